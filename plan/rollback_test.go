package plan_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/ftpdeploy/ftpdeploy/plan"
)

// ledger is a step of four changes: "a" carries the way back of "b" too, "c" has
// none, and "p", which only goes with the others, is needed once.
type ledger struct {
	name  string
	after []string
	has   []string // changes that were made and are not put back
	want  []string
	fails string // change that fails, half made
	stuck bool   // nothing can be put back
	past  bool   // "p" was made
	log   *[]string
}

var errBroken = errors.New("broken")

func (l *ledger) Name() string    { return l.name }
func (l *ledger) After() []string { return l.after }

func (l *ledger) Plan(context.Context, plan.Goal) ([]plan.Change, error) {
	var all []plan.Change
	for _, w := range l.want {
		if slices.Contains(l.has, w) || w == "p" && l.past {
			continue
		}
		c := plan.Change{Action: plan.Update, Target: w, Reason: "not there", Want: w, Covered: w == "b", Passing: w == "p", Do: func(context.Context, func(string)) error {
			l.has = append(l.has, w)
			l.past = l.past || w == "p"
			if w == l.fails {
				return errBroken
			}
			return nil
		}}
		if w == "a" {
			c.Undo = func(context.Context) error {
				if l.stuck {
					return errors.New("stuck")
				}
				*l.log = append(*l.log, l.name)
				l.has = nil
				return nil
			}
		}
		if w == "p" {
			c.Undo = func(context.Context) error { return nil }
		}
		all = append(all, c)
	}
	return all, nil
}

func TestRollback(t *testing.T) {
	for _, test := range []struct {
		name          string
		first, second ledger
		undone, left  string
		says          string // "" = no error of the rollback itself
	}{
		{name: "the failed step, then the one that was done", first: ledger{want: []string{"a", "b"}}, second: ledger{want: []string{"a", "b"}, fails: "b"}, undone: "host/b host/a"},
		{name: "what went with its changes is needless now", first: ledger{}, second: ledger{want: []string{"p", "a"}, fails: "a"}, undone: "host/b"},
		{name: "its first change fails", first: ledger{}, second: ledger{want: []string{"a"}, fails: "a"}, undone: "host/b"},
		{
			name: "another cannot be put back, so it stays whole", first: ledger{want: []string{"a", "c"}}, second: ledger{want: []string{"a", "b"}, fails: "b"},
			undone: "host/b", left: "a c",
		},
		{name: "it cannot be put back itself", first: ledger{want: []string{"a"}}, second: ledger{want: []string{"a", "c"}, fails: "c"}, left: "c a"},
		{name: "the way back fails", first: ledger{}, second: ledger{want: []string{"a", "b"}, fails: "b", stuck: true}, says: "stuck"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var log []string
			first, second := test.first, test.second
			first.name, first.log, second.name, second.log, second.after = "host/a", &log, "host/b", &log, []string{"host/a"}
			evidence := func(context.Context) { log = append(log, "evidence") }
			p, err := plan.Make(t.Context(), plan.Present, []plan.Step{&first, &second}, plan.Options{Rollback: true, Evidence: evidence})
			if err != nil {
				t.Fatal(err)
			}
			err = p.Apply(t.Context(), nil)
			if log[0] != "evidence" || slices.Contains(log[1:], "evidence") {
				t.Errorf("evidence is asked for once, before all: %q", log)
			}
			var back *plan.RollbackError
			if !errors.As(err, &back) || !errors.Is(err, errBroken) {
				t.Fatalf("got %v", err)
			}
			if got := strings.Join(back.Undone, " "); got != test.undone {
				t.Errorf("undone %q, want %q", got, test.undone)
			}
			if got := strings.Join(back.Left, " "); got != test.left {
				t.Errorf("left %q, want %q", got, test.left)
			}
			if test.says == "" && back.Err != nil || test.says != "" && (back.Err == nil || !strings.Contains(err.Error(), test.says)) {
				t.Errorf("the rollback says %v, want %q", back.Err, test.says)
			}
			if complete := test.left == "" && test.says == ""; back.Complete() != complete {
				t.Errorf("complete: %v", back.Complete())
			}
		})
	}
}

// TestRollbackLater is the smoke test that fails when all is done.
func TestRollbackLater(t *testing.T) {
	var log []string
	first := &ledger{name: "host/a", log: &log, want: []string{"a", "b"}}
	second := &ledger{name: "host/b", log: &log, want: []string{"a"}, after: []string{"host/a"}}
	r := &recorder{}
	p, err := plan.Make(t.Context(), plan.Present, []plan.Step{first, second}, plan.Options{Rollback: true, Observer: r})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Apply(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	var back *plan.RollbackError
	if err := p.Rollback(t.Context(), nil, errBroken); !errors.As(err, &back) || !back.Complete() || !errors.Is(err, errBroken) {
		t.Errorf("got %v", err)
	}
	if got := strings.Join(log, " "); got != "host/b host/a" || len(first.has)+len(second.has) > 0 {
		t.Errorf("put back in the order %q", got)
	}
	if got := strings.Join(r.steps(plan.RollbackDone), " "); got != "host/b host/a" {
		t.Errorf("told of %q", got)
	}
}

func TestNoRollback(t *testing.T) {
	for _, test := range []struct {
		name string
		goal plan.Goal
		opts plan.Options
	}{
		{"not asked for", plan.Present, plan.Options{}},
		{"destroy", plan.Absent, plan.Options{Rollback: true}},
	} {
		var log []string
		l := &ledger{name: "host/a", log: &log, want: []string{"a", "b"}, fails: "b"}
		p, err := plan.Make(t.Context(), test.goal, []plan.Step{l}, test.opts)
		if err != nil {
			t.Fatal(err)
		}
		err = p.Apply(t.Context(), nil)
		var back *plan.RollbackError
		if err == nil || errors.As(err, &back) || len(log) > 0 {
			t.Errorf("%s: %v, undone %q", test.name, err, log)
		}
	}
	// Interrupted twice: the box's own timer does it.
	var log []string
	ctx, cancel := context.WithCancel(t.Context())
	l := &ledger{name: "host/a", log: &log, want: []string{"a", "b"}, fails: "b"}
	p, err := plan.Make(ctx, plan.Present, []plan.Step{l}, plan.Options{Rollback: true})
	if err != nil {
		t.Fatal(err)
	}
	p.Observe(cancelOn{plan.ChangeFailed, cancel})
	if err := p.Apply(ctx, nil); err == nil || len(log) > 0 {
		t.Errorf("%v, undone %q", err, log)
	}
}

type cancelOn struct {
	kind   plan.EventKind
	cancel func()
}

func (c cancelOn) Observe(e plan.Event) {
	if e.Kind == c.kind {
		c.cancel()
	}
}

// TestStopRollsBack: a step that is stopped half-way is put back, one that is
// done stays.
func TestStopRollsBack(t *testing.T) {
	var log []string
	stop := make(chan struct{})
	first := &ledger{name: "host/a", log: &log, want: []string{"a"}}
	second := &ledger{name: "host/b", log: &log, want: []string{"a", "b"}, after: []string{"host/a"}}
	p, err := plan.Make(t.Context(), plan.Present, []plan.Step{first, second}, plan.Options{Rollback: true})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	p.Observe(cancelOn{plan.ChangeDone, func() {
		if n++; n == 2 {
			close(stop)
		}
	}})
	err = p.Apply(t.Context(), stop)
	if !errors.Is(err, plan.ErrStopped) || strings.Join(log, " ") != "host/b" || len(first.has) != 1 {
		t.Errorf("%v, undone %q, host/a has %q", err, log, first.has)
	}
	var back *plan.RollbackError
	if !errors.As(err, &back) || back.Complete() || strings.Join(back.Left, " ") != "a" {
		t.Errorf("it does not say what stays changed: %v", err)
	}
}

// TestStoppedRunsAreNotPutBack: who has lost its lock leaves alone what it did, also
// where its smoke test fails, and so does who is interrupted for the second time, from
// then on.
func TestStoppedRunsAreNotPutBack(t *testing.T) {
	for _, test := range []struct {
		name, undone, left string
		stop, cancel       bool // before; while the last step is put back
	}{
		{"goes on", "host/b host/a", "", false, false},
		{"stopped", "", "a a", true, false},
		{"interrupted", "host/b", "a", false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			var log []string
			first := &ledger{name: "host/a", log: &log, want: []string{"a"}}
			second := &ledger{name: "host/b", log: &log, want: []string{"a"}, after: []string{"host/a"}}
			p, err := plan.Make(t.Context(), plan.Present, []plan.Step{first, second}, plan.Options{Rollback: true})
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Apply(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			stop := make(chan struct{})
			if test.stop {
				close(stop)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if test.cancel {
				p.Observe(cancelOn{plan.RollbackDone, cancel})
			}
			var back *plan.RollbackError
			err = p.Rollback(ctx, stop, errBroken)
			if !errors.As(err, &back) || strings.Join(log, " ") != test.undone || strings.Join(back.Left, " ") != test.left ||
				!errors.Is(err, errBroken) || errors.Is(err, plan.ErrStopped) != test.stop {
				t.Errorf("%v, undone %q", err, log)
			}
		})
	}
}
