package kube

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Delta is one field that an apply changes.
type Delta struct {
	Path          string // as in spec.ports[port=21,protocol="TCP"].nodePort
	Before, After string // "" = not there; a Secret's data reads "(sensitive)"

	// Manager wrote the value that is there now, at Time; "" when that was us, or
	// nobody knows.
	Manager     string
	Subresource string
	Time        time.Time
}

// ConflictError says that others own fields that we want otherwise.
type ConflictError struct {
	Object Ref
	Fields []Delta
}

func (e *ConflictError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: fields are owned by others:", e.Object)
	for _, d := range e.Fields {
		fmt.Fprintf(&b, "\n  %s is %s, set by %s; wanted %s", d.Path, orNothing(d.Before), d.Author(), orNothing(d.After))
	}
	b.WriteString("\neither stop the other from setting them (or put its values into the blueprint), or take them over by force")
	return b.String()
}

// Author says who wrote the value that is there now, and when.
func (d Delta) Author() string {
	s := d.Manager
	if d.Subresource != "" {
		s += " (" + d.Subresource + ")"
	}
	if !d.Time.IsZero() {
		s += " at " + d.Time.Format("2006-01-02 15:04:05Z")
	}
	return s
}

func orNothing(s string) string {
	if s == "" {
		return "not there"
	}
	return s
}

// compare lists what differs between live and would in the fields that we own in
// either of them: what the server defaulted, or others added, does not show. A
// list entry that only one side has is one delta.
func compare(live, would *Live) []Delta {
	c := comparison{live: live, secret: would.Kind == "Secret"}
	var before any
	if live != nil {
		before = live.content
	}
	c.walk(nil, owned(live), owned(would), before, would.content)
	slices.SortStableFunc(c.deltas, func(a, b Delta) int { return strings.Compare(a.Path, b.Path) })
	return c.deltas
}

// owned is the tree of the fields that we own by apply.
func owned(l *Live) map[string]any {
	if l == nil {
		return nil
	}
	for _, m := range l.Managers {
		if m.apply && m.Name == FieldManager && m.Subresource == "" {
			return m.fields
		}
	}
	return nil
}

type comparison struct {
	live   *Live
	secret bool
	deltas []Delta
}

// walk goes down two trees of owned fields and the two values that they describe
// at the same time. The steps of path are written as FieldsV1 has them: f:NAME
// for a field, k:{KEYS} for a list entry by its keys, v:VALUE for a member of a
// set; "." stands for the thing itself.
func (c *comparison) walk(path []string, a, b map[string]any, before, after any) {
	if reflect.DeepEqual(before, after) {
		return
	}
	steps := map[string]bool{}
	for _, tree := range []map[string]any{a, b} {
		for step := range tree {
			if step != "." {
				steps[step] = true
			}
		}
	}
	inList := len(path) > 0 && !strings.HasPrefix(path[len(path)-1], "f:")
	if len(steps) == 0 || inList && (before == nil || after == nil) {
		c.add(path, before, after)
		return
	}
	for step := range steps {
		x, _ := a[step].(map[string]any)
		y, _ := b[step].(map[string]any)
		c.walk(append(slices.Clip(path), step), x, y, descend(before, step), descend(after, step))
	}
}

func (c *comparison) add(path []string, before, after any) {
	d := c.live.delta(path, valueText(before), valueText(after))
	if c.secret && (path[0] == "f:data" || path[0] == "f:stringData") {
		d.Before, d.After = mask(before), mask(after)
	}
	c.deltas = append(c.deltas, d)
}

// delta is a change of the field at path, with who else wrote it last; l may be nil.
func (l *Live) delta(path []string, before, after string) Delta {
	d := Delta{Path: pathText(path), Before: before, After: after}
	if l == nil {
		return d
	}
	for _, m := range l.Managers {
		if m.Name != FieldManager && m.owns(path) && !m.Time.Before(d.Time) {
			d.Manager, d.Subresource, d.Time = m.Name, m.Subresource, m.Time
		}
	}
	return d
}

func mask(v any) string {
	if v == nil {
		return ""
	}
	return "(sensitive)"
}

// owns tells whether the manager wrote the field at path, or all of a thing that
// holds it.
func (m Manager) owns(path []string) bool {
	tree := m.fields
	for _, step := range path {
		next, ok := tree[step].(map[string]any)
		if !ok {
			return false
		}
		if len(next) == 0 {
			return true
		}
		tree = next
	}
	return true
}

// descend returns the part of v that step names, or nil.
func descend(v any, step string) any {
	kind, text, _ := strings.Cut(step, ":")
	switch kind {
	case "f":
		m, _ := v.(map[string]any)
		return m[text]
	case "k":
		keys := map[string]any{}
		if json.Unmarshal([]byte(text), &keys) != nil {
			return nil
		}
		list, _ := v.([]any)
		for _, item := range list {
			m, ok := item.(map[string]any)
			if ok && matches(m, keys) {
				return m
			}
		}
	case "v":
		list, _ := v.([]any)
		for _, item := range list {
			if b, err := json.Marshal(item); err == nil && string(b) == text {
				return item
			}
		}
	}
	return nil
}

// project is the part of v that tree names, or nil.
func project(tree map[string]any, v any) any {
	if len(tree) == 0 {
		return v
	}
	switch v := v.(type) {
	case map[string]any:
		part := map[string]any{}
		for step, below := range tree {
			name, ok := strings.CutPrefix(step, "f:")
			value, there := v[name]
			if below, isTree := below.(map[string]any); ok && there && isTree {
				part[name] = project(below, value)
			}
		}
		return part
	case []any:
		var part []any
		for _, item := range v {
			for step, below := range tree {
				below, isTree := below.(map[string]any)
				if isTree && step != "." && reflect.DeepEqual(descend([]any{item}, step), item) {
					part = append(part, project(below, item))
				}
			}
		}
		return part
	}
	return v
}

// merged is a with what b holds put in; maps are merged, everything else is
// replaced. Neither is changed.
func merged(a, b map[string]any) map[string]any {
	m := map[string]any{}
	maps.Copy(m, a)
	for k, v := range b {
		mine, ok := m[k].(map[string]any)
		if theirs, both := v.(map[string]any); ok && both {
			v = merged(mine, theirs)
		}
		m[k] = v
	}
	return m
}

// matches tells whether m has all keys. Numbers differ in their Go type, so the
// values are compared as text.
func matches(m, keys map[string]any) bool {
	for k, want := range keys {
		if have, ok := m[k]; !ok || fmt.Sprint(have) != fmt.Sprint(want) {
			return false
		}
	}
	return true
}

// pathText is a path for people.
func pathText(path []string) string {
	var b strings.Builder
	for _, step := range path {
		kind, text, _ := strings.Cut(step, ":")
		switch {
		case kind == "k":
			b.WriteString("[" + keysText(text) + "]")
		case kind == "v" || strings.ContainsAny(text, "./"):
			b.WriteString("[" + text + "]")
		default:
			if b.Len() > 0 {
				b.WriteByte('.')
			}
			b.WriteString(text)
		}
	}
	return b.String()
}

// keysText turns {"port":21,"protocol":"TCP"} into port=21,protocol="TCP".
func keysText(text string) string {
	keys := map[string]any{}
	if json.Unmarshal([]byte(text), &keys) != nil {
		return text
	}
	var parts []string
	for k, v := range keys {
		j, err := json.Marshal(v)
		if err != nil {
			return text
		}
		parts = append(parts, k+"="+string(j))
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}

// valueText is a value for people; nil, which stands for no value, is "".
func valueText(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		if v != "" {
			return v
		}
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(b)
}
