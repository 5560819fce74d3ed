package steps

import (
	"context"
	"slices"
	"testing"

	"github.com/ftpdeploy/ftpdeploy/plan"
)

// converges holds a step to the law of every step: planned it wants something,
// done it wants nothing, and the same with goal Absent. A plan must not change
// what a probe, which prints the state of the peer, shows.
func converges(t *testing.T, s plan.Step, probes ...func() string) {
	t.Helper()
	reaches(t, s, plan.Present, probes...)
	reaches(t, s, plan.Absent, probes...)
}

// reaches is one half of converges: from a state that is not the goal to the goal.
func reaches(t *testing.T, s plan.Step, goal plan.Goal, probes ...func() string) []plan.Change {
	t.Helper()
	changes := planOnly(t, s, goal, probes...)
	if len(changes) == 0 {
		t.Fatalf("%s wants nothing, goal %v", s.Name(), goal)
	}
	seen := map[string]bool{}
	for _, c := range changes {
		if c.Do == nil || c.Target == "" || c.Reason == "" || seen[c.Target] {
			t.Fatalf("%s: change without an act, target or reason of its own: %+v", s.Name(), c)
		}
		seen[c.Target] = true
		if err := c.Do(t.Context(), func(string) {}); err != nil {
			t.Fatalf("%s: %s %s: %v", s.Name(), c.Action, c.Target, err)
		}
	}
	for _, c := range planOnly(t, s, goal, probes...) {
		t.Errorf("%s still wants %s %s (%s): %+v", s.Name(), c.Action, c.Target, c.Reason, c.Detail)
	}
	return changes
}

// planOnly plans twice, which must give the same, and holds the plan to change nothing.
func planOnly(t *testing.T, s plan.Step, goal plan.Goal, probes ...func() string) []plan.Change {
	t.Helper()
	var before []string
	for _, p := range probes {
		before = append(before, p())
	}
	changes, err := s.Plan(t.Context(), goal)
	if err != nil {
		t.Fatalf("plan %s, goal %v: %v", s.Name(), goal, err)
	}
	again, err := s.Plan(t.Context(), goal)
	if err != nil {
		t.Fatalf("plan %s, goal %v, again: %v", s.Name(), goal, err)
	}
	same := func(a, b plan.Change) bool {
		return a.Target == b.Target && a.Action == b.Action && a.From == b.From && a.Want == b.Want
	}
	if !slices.EqualFunc(changes, again, same) {
		t.Errorf("%s plans one thing, then another: %+v, then %+v", s.Name(), changes, again)
	}
	for i, p := range probes {
		if after := p(); after != before[i] {
			t.Errorf("planning %s changed its target:\n%s\nbecame\n%s", s.Name(), before[i], after)
		}
	}
	return changes
}

// serial lets one step act at a time: two VMs that are made at once race with each
// other inside the simulator (its datastore's URL), which -race takes for ours.
var serial = plan.Options{Parallel: 1}

// apply makes a plan of the steps and carries it out, as ftpdeploy does.
func apply(ctx context.Context, goal plan.Goal, steps ...plan.Step) ([]plan.Change, error) {
	p, err := plan.Make(ctx, goal, steps, serial)
	if err != nil {
		return nil, err
	}
	return p.Changes(), p.Apply(ctx, nil)
}
