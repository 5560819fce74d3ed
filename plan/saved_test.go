package plan_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/ftpdeploy/ftpdeploy/plan"
)

// saved writes a plan down and reads it again.
func saved(t *testing.T, p *plan.Plan) *plan.Saved {
	t.Helper()
	text, err := json.Marshal(p.Save())
	if err != nil {
		t.Fatal(err)
	}
	s := &plan.Saved{}
	if err := json.Unmarshal(text, s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSavedPlanIsTheSameAfterAWhile(t *testing.T) {
	for _, goal := range []plan.Goal{plan.Present, plan.Absent} {
		vm := &cell{name: "vm", want: "on", value: "off"}
		host := &cell{name: "host", after: []string{"vm"}, want: "configured", value: "old"}
		p := mustMake(t, goal, &recorder{}, vm, host)
		s := saved(t, p)
		for i, c := range p.Changes() {
			got := s.Changes()[i]
			c.Do, c.Undo = nil, nil
			if !reflect.DeepEqual(got, c) {
				t.Errorf("%+v became %+v", c, got)
			}
		}
		if s.Digest() != p.Save().Digest() {
			t.Error("the digest is another one")
		}
		again := mustMake(t, goal, &recorder{}, vm, host)
		if err := s.Match(again); err != nil {
			t.Error(err)
		}
	}
}

func TestSavedPlanIsHeldAgainstTheWorld(t *testing.T) {
	for name, tt := range map[string]struct {
		meanwhile func(a, b, c *cell)
		texts     []string // "" = still the plan
	}{
		"nothing":         {func(_, _, _ *cell) {}, nil},
		"another value":   {func(a, _, _ *cell) { a.set("foreign") }, []string{"planned from  old", "now           foreign: value differs", "wanted        new"}},
		"gone":            {func(a, _, _ *cell) { a.set("") }, []string{"now           nothing", "to create, planned was to update"}},
		"done by someone": {func(a, _, _ *cell) { a.set("new") }, []string{"now           as wanted: not needed any more"}},
		"not in the plan": {func(_, b, _ *cell) { b.set("foreign") }, []string{"b  b", "as it should be: not in the plan", "now           foreign", "wanted        same"}},
		"another wish":    {func(a, _, _ *cell) { a.want = "newer" }, []string{"it would now become newer", "wanted        new"}},
		"both":            {func(a, b, _ *cell) { a.set("x"); b.set("y") }, []string{"a  a", "b  b"}},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, c := &cell{name: "a", want: "new", value: "old"}, &cell{name: "b", want: "same", value: "same"}, &cell{name: "c", want: "1"}
			s := saved(t, mustMake(t, plan.Present, &recorder{}, a, b, c))
			tt.meanwhile(a, b, c)
			err := s.Match(mustMake(t, plan.Present, &recorder{}, a, b, c))
			var drift *plan.DriftError
			if errors.As(err, &drift) != (tt.texts != nil) {
				t.Fatalf("got %v", err)
			}
			for _, text := range tt.texts {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("the error does not say %q:\n%v", text, err)
				}
			}
		})
	}
}

func TestSavedPlanHoldsTheOrder(t *testing.T) {
	a, b := &cell{name: "host/a", want: "1"}, &cell{name: "host/b", want: "1"}
	s := saved(t, mustMake(t, plan.Present, &recorder{}, a, b))
	err := s.Match(mustMake(t, plan.Present, &recorder{}, b, a))
	var drift *plan.DriftError
	if !errors.As(err, &drift) || !strings.Contains(err.Error(), "host/a\n      planned from  the first step to act\n      now           the second step, after host/b") {
		t.Errorf("got %v", err)
	}
	// A step that is new in the list has a right to be there if it wants nothing.
	if err := s.Match(mustMake(t, plan.Present, &recorder{}, a, &cell{name: "c"}, b)); err != nil {
		t.Error(err)
	}
	err = s.Match(mustMake(t, plan.Present, &recorder{}, a, &cell{name: "c", want: "1"}, b))
	if !errors.As(err, &drift) || drift.Drifts[0].Step != "c" {
		t.Errorf("a change of a step that the plan has not: %v", err)
	}
}

func TestSavedPredictionMayBeNeedless(t *testing.T) {
	vm := &cell{name: "vm", want: "on"}
	host := &cell{name: "host", after: []string{"vm"}, want: "configured", on: vm}
	s := saved(t, mustMake(t, plan.Present, &recorder{}, vm, host))
	vm.set("on")
	host.set("configured")
	err := s.Match(mustMake(t, plan.Present, &recorder{}, vm, host))
	var drift *plan.DriftError
	if !errors.As(err, &drift) || len(drift.Drifts) != 1 || drift.Drifts[0].Target != "vm" {
		t.Errorf("got %v, want that the VM is there, and nothing of the host", err)
	}
}

func TestLongFingerprintsAreShortened(t *testing.T) {
	sum := strings.Repeat("0123456789abcdef", 4)
	c := &cell{name: "a", want: "new", value: "old"}
	p := mustMake(t, plan.Present, &recorder{}, c)
	c.set(sum + " 0644 root")
	if err := p.Apply(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "now           0123456789ab… 0644 root") {
		t.Errorf("got %v", err)
	}
}

func TestSavedPlanRefusesOtherWords(t *testing.T) {
	for _, text := range []string{`{"goal":"gone"}`, `{"goal":"present","steps":[{"name":"a","changes":[{"action":"explode"}]}]}`} {
		if err := json.Unmarshal([]byte(text), &plan.Saved{}); err == nil {
			t.Errorf("accepted %s", text)
		}
	}
}

// chain is a <- b <- c, and d alone; those that are named have changes.
func chain(t *testing.T, goal plan.Goal, changed string) (*plan.Plan, []*cell) {
	t.Helper()
	all := []*cell{{name: "a"}, {name: "b", after: []string{"a"}}, {name: "c", after: []string{"b"}}, {name: "d"}}
	for _, c := range all {
		c.want, c.value = "1", "1"
		if goal == plan.Absent {
			c.value = ""
		}
		if strings.Contains(changed, c.name) {
			c.value = "old"
		}
	}
	return mustMake(t, goal, &recorder{}, all...), all
}

func TestNarrow(t *testing.T) {
	for _, tt := range []struct {
		name    string
		goal    plan.Goal
		changed string
		scope   plan.Scope
		kept    string
		pulled  []plan.Pulled
		err     string
	}{
		{"all", plan.Present, "abcd", plan.Scope{}, "abcd", nil, ""},
		{"only one", plan.Present, "abcd", plan.Scope{Only: []string{"d"}}, "d", nil, ""},
		{"with what it needs", plan.Present, "abcd", plan.Scope{Only: []string{"c"}}, "abc", []plan.Pulled{{Step: "a", For: "c"}, {Step: "b", For: "c"}}, ""},
		{"through a step without changes", plan.Present, "acd", plan.Scope{Only: []string{"c"}}, "ac", []plan.Pulled{{Step: "a", For: "c"}}, ""},
		{"nothing to do", plan.Present, "ad", plan.Scope{Only: []string{"c"}}, "", nil, ""},
		{"skip the last", plan.Present, "abcd", plan.Scope{Skip: []string{"c"}}, "abd", nil, ""},
		{"skip what is needed", plan.Present, "abcd", plan.Scope{Skip: []string{"a"}}, "", nil, "a cannot be skipped: it has changes, and must be done before b, c; skip that too, or neither [FTP207]"},
		{"skip all of it", plan.Present, "abcd", plan.Scope{Skip: []string{"a", "b", "c"}}, "d", nil, ""},
		{"skip what is as it should be", plan.Present, "cd", plan.Scope{Skip: []string{"a"}}, "cd", nil, ""},
		{"only and skip", plan.Present, "abcd", plan.Scope{Only: []string{"c", "d"}, Skip: []string{"d"}}, "abc", []plan.Pulled{{Step: "a", For: "c"}, {Step: "b", For: "c"}}, ""},
		{"only against skip", plan.Present, "abcd", plan.Scope{Only: []string{"c"}, Skip: []string{"b"}}, "", nil, "FTP207"},
		{"backwards", plan.Absent, "abcd", plan.Scope{Only: []string{"b"}}, "bc", []plan.Pulled{{Step: "c", For: "b"}}, ""},
		{"skip backwards", plan.Absent, "abcd", plan.Scope{Skip: []string{"c"}}, "", nil, "c cannot be skipped: it has changes, and must be done before a, b"},
		{"unknown", plan.Present, "a", plan.Scope{Only: []string{"x"}}, "", nil, `there is no step "x"; the steps are a, b, c, d`},
		{"unknown to skip", plan.Present, "a", plan.Scope{Skip: []string{"x"}}, "", nil, `there is no step "x"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, all := chain(t, tt.goal, tt.changed)
			pulled, err := p.Narrow(tt.scope)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil || !slices.Equal(pulled, tt.pulled) {
				t.Fatalf("pulled in %v, %v; want %v", pulled, err, tt.pulled)
			}
			kept, left := "", 0
			for _, e := range p.Entries {
				left += len(e.Left)
				if len(e.Changes) > 0 {
					kept += e.Step.Name()
				}
			}
			if kept != tt.kept || left != len(tt.changed)-len(tt.kept) {
				t.Errorf("kept %q and left out %d, want %q", kept, left, tt.kept)
			}
			if err := p.Apply(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			for _, c := range all {
				changed := strings.Contains(tt.changed, c.name) && c.get() != "old"
				if changed != strings.Contains(kept, c.name) {
					t.Errorf("%s is %q", c.name, c.get())
				}
			}
		})
	}
}

// TestForeignEdits changes something between plan and apply, a hundred times:
// every edit of what a plan is about is refused with nothing changed.
func TestForeignEdits(t *testing.T) {
	for i := range 100 {
		var all []*cell
		for n := range 5 {
			c := &cell{name: fmt.Sprint("step", n), want: "1", value: "1"}
			if n > 0 {
				c.after = []string{fmt.Sprint("step", n-1)}
			}
			if (i>>n)&1 == 1 {
				c.value = "old"
			}
			all = append(all, c)
		}
		s := saved(t, mustMake(t, plan.Present, &recorder{}, all...))
		victim := all[i%5]
		before := victim.get()
		victim.set([]string{"foreign", "1", ""}[i%3])
		err := s.Match(mustMake(t, plan.Present, &recorder{}, all...))
		var drift *plan.DriftError
		if unrelated := before == victim.get(); errors.As(err, &drift) == unrelated {
			t.Errorf("edit %d of %s, %q to %q: got %v", i, victim.name, before, victim.get(), err)
		}
	}
}
