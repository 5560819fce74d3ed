package main

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
)

// TestDriftIsAPartOfThePlan holds which changes of a plan are drift.
func TestDriftIsAPartOfThePlan(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	change := func(action plan.Action, kind plan.CauseKind) plan.Change {
		var source []plan.Source
		if kind == plan.ByBlueprint {
			source = []plan.Source{{Address: "lb.haproxy-a"}}
		}
		return plan.Change{Action: action, Target: "haproxy-a:x", Reason: "differs", From: "old", Want: "new", Cause: plan.Cause{Kind: kind, Source: source}, Do: func(context.Context, func(string)) error { return nil }}
	}
	byRoot := change(plan.Update, plan.ByDrift)
	byRoot.Detail.Unified = "@@\n-by hand\n"
	byRoot.Cause = plan.Cause{Kind: plan.ByDrift, By: "root", How: "the file's owner and time", At: now.Add(-2 * time.Hour)}
	fields := change(plan.Update, plan.ByDrift)
	fields.Detail.Fields = []plan.Field{{Path: "memory_mb", Before: "768", After: "512"}, {Path: "cpus", Before: "2", After: "1"}}
	unseen := change(plan.Create, plan.ByBlueprint)
	unseen.From = plan.Unseen
	history := named{"history/lab", step{change(plan.Create, plan.ByDependency)}}
	for name, tt := range map[string]struct {
		steps  []plan.Step
		drifts int
		says   []string
	}{
		"none":                  {[]plan.Step{step{}}, 0, []string{"No drift"}},
		"a file":                {[]plan.Step{step{byRoot}}, 1, []string{"by root at 2026-11-23 10:00:00 UTC (2h 0m ago), says the file's owner and time", "-by hand", "1 change by others"}},
		"fields":                {[]plan.Step{step{fields}}, 1, []string{"nobody knows who, or when", "memory_mb: was 512, is 768", "cpus: was 1, is 2"}},
		"the blueprint's":       {[]plan.Step{step{change(plan.Update, plan.ByBlueprint)}, history}, 0, []string{"No drift", "Not drift: the blueprint asks for 1 change"}},
		"what goes with it":     {[]plan.Step{step{change(plan.Run, plan.ByDependency)}}, 0, []string{"No drift"}},
		"deleted":               {[]plan.Step{step{change(plan.Create, plan.ByBlueprint)}}, 1, []string{"it was there after the last apply"}},
		"not made yet":          {[]plan.Step{step{change(plan.Create, plan.ByBlueprint)}, history}, 0, []string{"Not drift"}},
		"nobody could look yet": {[]plan.Step{step{unseen}}, 0, []string{"Not drift"}},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := plan.Make(t.Context(), plan.Present, tt.steps, plan.Options{})
			if err != nil {
				t.Fatal(err)
			}
			var out, stream strings.Builder
			view, lines := &human{out: &out, err: &out, now: time.Now}, &jsonStream{w: &stream, now: time.Now}
			d := &deployment{topology: &blueprints.Topology{ID: "lab"}, app: &app{
				now: func() time.Time { return now }, emit: func(e event) { view.emit(e); lines.emit(e) },
			}}
			if n := d.drifts(p); n != tt.drifts {
				t.Errorf("%d changes are drift, want %d", n, tt.drifts)
			}
			for _, text := range tt.says {
				if !strings.Contains(out.String(), text) {
					t.Errorf("no %q in\n%s", text, out.String())
				}
			}
			if name != "a file" {
				return
			}
			var e struct {
				Type, Path, Was, Now string
				By                   struct{ Who, How, When string }
			}
			first, _, _ := strings.Cut(stream.String(), "\n")
			if err := json.Unmarshal([]byte(first), &e); err != nil || e.Type != "drift" || e.Path != "x" || e.Was != "new" || e.Now != "old" || e.By.Who != "root" || e.By.When != "2026-11-23T10:00:00Z" {
				t.Errorf("event %+v, %v", e, err)
			}
		})
	}
}

// named is a step of another name.
type named struct {
	name string
	step
}

func (s named) Name() string { return s.name }
