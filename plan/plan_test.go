package plan_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/plan"
)

// cell is a step whose live system is one string.
type cell struct {
	name  string
	after []string
	want  string
	on    *cell // what it lives on: it cannot be looked at while that is empty

	mu    sync.Mutex
	value string

	do   func(c *cell) error   // instead of setting the value
	meet func(context.Context) // called first in the act
}

func (c *cell) Name() string    { return c.name }
func (c *cell) After() []string { return c.after }

func (c *cell) get() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.value
}

func (c *cell) set(v string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.value = v
}

func (c *cell) Plan(_ context.Context, goal plan.Goal) ([]plan.Change, error) {
	want := c.want
	if goal == plan.Absent {
		want = ""
	}
	from := c.get()
	if c.on != nil && c.on.get() == "" && goal == plan.Present {
		from = plan.Unseen
	}
	if from == want {
		return nil, nil
	}
	action := plan.Update
	if from == "" || from == plan.Unseen {
		action = plan.Create
	}
	return []plan.Change{{
		Action: action, Target: c.name, Reason: "value differs", From: from, Want: want,
		Do: func(ctx context.Context, report func(string)) error {
			if c.meet != nil {
				c.meet(ctx)
			}
			if c.do != nil {
				return c.do(c)
			}
			report("the value")
			c.set(want)
			return nil
		},
	}}, nil
}

// recorder keeps what the engine says.
type recorder struct {
	mu     sync.Mutex
	events []plan.Event
}

func (r *recorder) Observe(e plan.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

func (r *recorder) steps(kind plan.EventKind) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for _, e := range r.events {
		if e.Kind == kind {
			names = append(names, e.Step)
		}
	}
	return names
}

func list(cells ...*cell) []plan.Step {
	var steps []plan.Step
	for _, c := range cells {
		steps = append(steps, c)
	}
	return steps
}

func mustMake(t *testing.T, goal plan.Goal, r *recorder, cells ...*cell) *plan.Plan {
	t.Helper()
	p, err := plan.Make(t.Context(), goal, list(cells...), plan.Options{Observer: r})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestApplyConverges(t *testing.T) {
	vm := &cell{name: "vm/a", want: "on"}
	host := &cell{name: "host/a", after: []string{"vm/a"}, want: "configured", on: vm}
	r := &recorder{}
	p := mustMake(t, plan.Present, r, vm, host)
	if n := len(p.Changes()); n != 2 {
		t.Fatalf("%d changes planned, want 2", n)
	}
	if got := p.Entries[1].Changes[0].From; got != plan.Unseen {
		t.Errorf("a step on a missing machine is planned from %q", got)
	}
	if vm.get() != "" || host.get() != "" {
		t.Fatal("planning changed something")
	}
	if err := p.Apply(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if again := mustMake(t, plan.Present, r, vm, host); !again.Empty() {
		t.Errorf("not empty after apply: %v", again.Changes())
	}
	if got := r.steps(plan.StepDone); !slices.Equal(got, []string{"vm/a", "host/a"}) {
		t.Errorf("done in the order %v", got)
	}
	if err := mustMake(t, plan.Absent, r, vm, host).Apply(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got := r.steps(plan.StepDone)[2:]; !slices.Equal(got, []string{"host/a", "vm/a"}) {
		t.Errorf("destroyed in the order %v", got)
	}
}

func TestIndependentStepsActTogether(t *testing.T) {
	var both sync.WaitGroup
	both.Add(2)
	meet := func(context.Context) { both.Done(); both.Wait() } // a serial engine never gets past it
	a, b := &cell{name: "a", want: "1", meet: meet}, &cell{name: "b", want: "1", meet: meet}
	if err := mustMake(t, plan.Present, &recorder{}, a, b).Apply(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
}

func TestDriftStopsTheStep(t *testing.T) {
	for _, tt := range []struct{ name, planned, now, text string }{
		{"another value", "old", "foreign", "planned from  old\n      now           foreign: value differs\n      wanted        new"},
		{"gone", "old", "", "planned from  old\n      now           nothing: value differs; to create, planned was to update\n      wanted        new"},
		{"already done", "old", "new", "not needed any more"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &cell{name: "a", want: "new", value: tt.planned}
			p := mustMake(t, plan.Present, &recorder{}, c)
			c.set(tt.now)
			err := p.Apply(t.Context(), nil)
			var drift *plan.DriftError
			if !errors.As(err, &drift) {
				t.Fatalf("got %v, want a DriftError", err)
			}
			if !strings.Contains(err.Error(), tt.text) || !strings.Contains(err.Error(), "FTP701") {
				t.Errorf("the error does not say %q: %v", tt.text, err)
			}
			if c.get() != tt.now {
				t.Errorf("the step acted: %q", c.get())
			}
		})
	}
}

// TestMovedWhileItActs: an edit that comes after the last look, and that the act
// itself finds. What the step did before goes back, and the edit stays.
func TestMovedWhileItActs(t *testing.T) {
	c := &cell{name: "a", want: "new", value: "old"}
	c.do = func(c *cell) error {
		c.value = "foreign"
		return fmt.Errorf("write: %w", plan.ErrMoved)
	}
	done := &cell{name: "b", want: "1", value: "0"}
	p, err := plan.Make(t.Context(), plan.Present, []plan.Step{done, c}, plan.Options{Rollback: true, Parallel: 1})
	if err != nil {
		t.Fatal(err)
	}
	err = p.Apply(t.Context(), nil)
	var drift *plan.DriftError
	if !errors.As(err, &drift) || !strings.Contains(err.Error(), "planned from  old\n      now           foreign: value differs\n      wanted        new") {
		t.Errorf("got %v", err)
	}
	if c.get() != "foreign" {
		t.Errorf("the edit is gone: %q", c.get())
	}
}

func TestPredictionMayBeNeedless(t *testing.T) {
	vm := &cell{name: "vm", want: "on"}
	host := &cell{name: "host", after: []string{"vm"}, want: "configured", on: vm}
	p := mustMake(t, plan.Present, &recorder{}, vm, host)
	host.set("configured") // the new machine brings it along
	if err := p.Apply(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
}

func TestNotConverged(t *testing.T) {
	c := &cell{name: "a", want: "new", value: "old", do: func(*cell) error { return nil }}
	err := mustMake(t, plan.Present, &recorder{}, c).Apply(t.Context(), nil)
	var left *plan.NotConvergedError
	if !errors.As(err, &left) || len(left.Left) != 1 {
		t.Fatalf("got %v, want a NotConvergedError with one change", err)
	}
}

func TestErrorStopsWhatFollows(t *testing.T) {
	broken := errors.New("no space left")
	a := &cell{name: "a", want: "1", do: func(*cell) error { return broken }}
	b := &cell{name: "b", after: []string{"a"}, want: "1"}
	c := &cell{name: "c", after: []string{"b"}, want: "1"}
	r := &recorder{}
	err := mustMake(t, plan.Present, r, a, b, c).Apply(t.Context(), nil)
	if !errors.Is(err, broken) {
		t.Fatalf("got %v", err)
	}
	if got, want := err.Error(), "a: a: no space left"; got != want {
		t.Errorf("error %q, want %q: nothing of the steps that only follow", got, want)
	}
	if got := r.steps(plan.StepSkipped); !slices.Equal(got, []string{"b", "c"}) {
		t.Errorf("skipped %v", got)
	}
	if b.get() != "" || c.get() != "" {
		t.Error("a step acted after the error of the one before it")
	}
}

func TestStopBetweenChanges(t *testing.T) {
	stop := make(chan struct{})
	a := &cell{name: "a", want: "1", meet: func(context.Context) { close(stop) }}
	b := &cell{name: "b", after: []string{"a"}, want: "1"}
	err := mustMake(t, plan.Present, &recorder{}, a, b).Apply(t.Context(), stop)
	if !errors.Is(err, plan.ErrStopped) {
		t.Fatalf("got %v, want ErrStopped", err)
	}
	if a.get() != "1" || b.get() != "" {
		t.Errorf("what was under way is %q, what followed is %q", a.get(), b.get())
	}
}

func TestMakeReportsEveryError(t *testing.T) {
	steps := []plan.Step{blind{"a"}, blind{"b"}}
	_, err := plan.Make(t.Context(), plan.Present, steps, plan.Options{})
	if err == nil || err.Error() != "a: cannot look\nb: cannot look" {
		t.Errorf("got %v", err)
	}
}

type blind struct{ name string }

func (b blind) Name() string  { return b.name }
func (blind) After() []string { return nil }
func (blind) Plan(context.Context, plan.Goal) ([]plan.Change, error) {
	return nil, errors.New("cannot look")
}

func TestListIsHeldToItsForm(t *testing.T) {
	for _, steps := range [][]plan.Step{
		list(&cell{name: "a"}, &cell{name: "a"}),
		list(&cell{name: "a", after: []string{"b"}}, &cell{name: "b"}),
	} {
		if _, err := plan.Make(t.Context(), plan.Present, steps, plan.Options{}); err == nil {
			t.Errorf("accepted")
		}
	}
}

// TestParallelIsBounded runs ten steps two at a time and looks for a third.
func TestParallelIsBounded(t *testing.T) {
	var mu sync.Mutex
	now, most := 0, 0
	var cells []*cell
	for i := range 10 {
		cells = append(cells, &cell{name: fmt.Sprint(i), want: "1", meet: func(ctx context.Context) {
			mu.Lock()
			now++
			most = max(most, now)
			mu.Unlock()
			// Leave the others time to come in; the bound holds whatever the time is.
			ctx, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
			defer cancel()
			<-ctx.Done()
			mu.Lock()
			now--
			mu.Unlock()
		}})
	}
	p, err := plan.Make(t.Context(), plan.Present, list(cells...), plan.Options{Parallel: 2})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Apply(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if most != 2 {
		t.Errorf("%d steps acted at the same time, want 2", most)
	}
}
