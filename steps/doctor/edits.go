package doctor

import (
	"slices"
	"strings"
)

// Edit is a difference of a configuration file of a box from what it is to be.
type Edit struct {
	Kind    string // the cause that it is
	Section string // "backend vsftpd_passive"
	Want    string // "" = the line is not to be there
	Has     string // "" = the line is missing
}

func (e Edit) String() string {
	switch {
	case e.Has == "":
		return e.Section + ": lacks \"" + e.Want + "\""
	case e.Want == "":
		return e.Section + ": has \"" + e.Has + "\" besides"
	}
	return e.Section + ": \"" + e.Has + "\", to be \"" + e.Want + "\""
}

// Edits compares a haproxy.cfg or keepalived.conf with what it is to be, as far as
// that concerns a service and its VIP. The order is that of the causes, the ones that
// break more first.
func Edits(w Wanted, want, has string) []Edit {
	var all []Edit
	wanted, order := sections(want)
	live, more := sections(has)
	for _, name := range append(order, more...) {
		if len(wanted[name])+len(live[name]) == 0 {
			continue
		}
		missing, added := without(wanted[name], live[name]), without(live[name], wanted[name])
		delete(wanted, name)
		delete(live, name)
		for _, line := range missing {
			e := Edit{Section: name, Want: line}
			if i := slices.IndexFunc(added, func(a string) bool { return key(a) == key(line) }); i >= 0 {
				e.Has = added[i]
				added = slices.Delete(added, i, i+1)
			}
			all = append(all, e)
		}
		for _, line := range added {
			all = append(all, Edit{Section: name, Has: line})
		}
	}
	for i := range all {
		all[i].Kind = kindOf(w, all[i])
	}
	slices.SortStableFunc(all, func(a, b Edit) int { return slices.Index(editKinds, a.Kind) - slices.Index(editKinds, b.Kind) })
	return all
}

// editKinds are the causes that an edit may be.
var editKinds = []string{
	"wrong-node-port", "node-list", "range-narrow", "sticky-missing", "timeouts-short", "vip-mask", "vrrp-config", "config-edited",
}

// kindOf is the cause that an edit is.
func kindOf(w Wanted, e Edit) string {
	word, rest, _ := strings.Cut(e.Want+e.Has, " ")
	if e.Want != "" && e.Has != "" {
		word, rest, _ = strings.Cut(e.Want, " ")
	}
	vrrp := strings.HasPrefix(e.Section, "vrrp") || strings.HasPrefix(e.Section, "global_defs")
	kind, name, _ := strings.Cut(strings.TrimSuffix(e.Section, " {"), " ")
	switch {
	case (kind == "frontend" || kind == "backend") && !strings.HasPrefix(name, w.Service+"_"), kind == "vrrp_instance" && name != w.VIPName:
		return "config-edited" // of another service
	case vrrp && strings.HasPrefix(word, w.VIP.String()+"/") && e.Has != "" && e.Want != "":
		return "vip-mask"
	case vrrp:
		return "vrrp-config"
	case word == "server" && e.Has != "" && e.Want != "" && hostOf(e.Has) == hostOf(e.Want):
		return "wrong-node-port"
	case word == "server":
		return "node-list"
	case word == "bind" && strings.HasPrefix(e.Section, "frontend "+w.Service+"_"):
		return "range-narrow"
	case word == "stick", word == "stick-table", word == "balance", word == "hash-type", strings.HasPrefix(e.Section, "peers"):
		return "sticky-missing"
	case word == "timeout" && (strings.HasPrefix(rest, "client") || strings.HasPrefix(rest, "server")):
		return "timeouts-short"
	}
	return "config-edited"
}

// hostOf is the address in "server NAME ADDRESS:PORT ...".
func hostOf(line string) string {
	words := strings.Fields(line)
	if len(words) < 3 {
		return ""
	}
	return words[2][:max(0, strings.LastIndexByte(words[2], ':'))]
}

// key is by what a line is known again that has another value.
func key(line string) string {
	words := strings.Fields(line)
	switch words[0] {
	case "server", "timeout", "peer", "option", "tcp-check":
		return strings.Join(words[:min(2, len(words))], " ")
	case "bind":
		return words[0] + " " + words[1][:max(0, strings.LastIndexByte(words[1], ':'))]
	}
	if head, _, ok := strings.Cut(words[0], "/"); ok {
		return head
	}
	return words[0]
}

// sections are the lines below each line that begins at the left margin, in both
// daemons' files; comments and empty lines are left out.
func sections(text string) (lines map[string][]string, order []string) {
	lines = map[string][]string{}
	head := ""
	for line := range strings.Lines(text) {
		trimmed := strings.TrimSpace(line)
		switch {
		case trimmed == "", trimmed[0] == '#', trimmed == "}":
		case line[0] != ' ' && line[0] != '\t':
			head = strings.TrimSuffix(trimmed, " {")
			order = append(order, head)
			lines[head] = append(lines[head], trimmed)
		default:
			lines[head] = append(lines[head], strings.Join(strings.Fields(trimmed), " "))
		}
	}
	return lines, order
}

// without are the lines of a that b lacks.
func without(a, b []string) []string {
	b = slices.Clone(b)
	return slices.DeleteFunc(slices.Clone(a), func(line string) bool {
		i := slices.Index(b, line)
		if i >= 0 {
			b = slices.Delete(b, i, i+1)
		}
		return i >= 0
	})
}
