package plan

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// Plan is what will be done, step by step, in the order of the list it was made from.
type Plan struct {
	Goal    Goal
	Entries []Entry
	opts    Options
	did     [][]Change // by entry: what Apply has begun, and has not put back
}

// Entry is a step and the changes that it needs; no changes means it is as it should be.
type Entry struct {
	Step    Step
	Changes []Change
	Left    []Change // what it needs too, and Narrow left out
}

// Options are the same for making and applying a plan.
type Options struct {
	Parallel int      // steps that look or act at the same time; 0 means 8
	Observer Observer // nil means nobody listens
	Rollback bool     // a step that fails is put back, and then the others that have acted
	// Evidence is called once, before anything is put back; nil means nobody wants it.
	Evidence func(ctx context.Context)
}

func (o Options) parallel() int {
	if o.Parallel <= 0 {
		return 8
	}
	return o.Parallel
}

func (o Options) observe(e Event) {
	if o.Observer != nil {
		o.Observer.Observe(e)
	}
}

// StepError is an error with the step that it happened in.
type StepError struct {
	Step string
	Err  error
}

func (e *StepError) Error() string { return e.Step + ": " + e.Err.Error() }
func (e *StepError) Unwrap() error { return e.Err }

// Make asks every step, several at the same time, what must be done to reach
// goal. It changes nothing. The error joins what every step that could not look
// has to say, in the order of the list.
func Make(ctx context.Context, goal Goal, steps []Step, opts Options) (*Plan, error) {
	if err := check(steps); err != nil {
		return nil, err
	}
	p := &Plan{Goal: goal, Entries: make([]Entry, len(steps)), opts: opts}
	errs := make([]error, len(steps))
	slots := make(chan struct{}, opts.parallel())
	var wait sync.WaitGroup
	for i, s := range steps {
		wait.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			changes, err := look(ctx, s, goal)
			if err != nil {
				errs[i] = &StepError{s.Name(), err}
			}
			p.Entries[i] = Entry{Step: s, Changes: changes}
			opts.observe(Event{Kind: StepPlanned, Step: s.Name(), Index: i, Changes: changes, Err: err})
		})
	}
	wait.Wait()
	return p, errors.Join(errs...)
}

// look plans one step and checks what it says.
func look(ctx context.Context, s Step, goal Goal) ([]Change, error) {
	changes, err := s.Plan(ctx, goal)
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for i := range changes {
		c := &changes[i]
		if c.Effect == "" {
			c.Effect = NoEffect
		}
		if c.Cause.Kind == "" {
			c.Cause.Kind = ByDependency
		}
		if c.Do == nil || c.Target == "" || c.Reason == "" {
			return nil, fmt.Errorf("bug: change %d (%q) lacks its act, target or reason", i, c.Target)
		}
		if c.Cause.Kind == ByBlueprint && len(c.Cause.Source) == 0 {
			return nil, fmt.Errorf("bug: %q comes from the blueprint, and nobody knows from where in it", c.Target)
		}
		if seen[c.Target] {
			return nil, fmt.Errorf("bug: target %q is planned twice", c.Target)
		}
		seen[c.Target] = true
	}
	return changes, nil
}

// check holds the list to its form: names are unique and After names an earlier step.
func check(steps []Step) error {
	known := map[string]bool{}
	for _, s := range steps {
		for _, a := range s.After() {
			if !known[a] {
				return fmt.Errorf("bug: step %s comes after %q, which is not before it in the list", s.Name(), a)
			}
		}
		if known[s.Name()] {
			return fmt.Errorf("bug: two steps are named %s", s.Name())
		}
		known[s.Name()] = true
	}
	return nil
}

// Observe makes o the one that is told of what happens from now on.
func (p *Plan) Observe(o Observer) { p.opts.Observer = o }

// Empty tells whether there is nothing to do.
func (p *Plan) Empty() bool {
	return !slices.ContainsFunc(p.Entries, func(e Entry) bool { return len(e.Changes) > 0 })
}

// Changes is every change in the order of the list.
func (p *Plan) Changes() []Change {
	var all []Change
	for _, e := range p.Entries {
		all = append(all, e.Changes...)
	}
	return all
}

// Apply makes the changes of p. A step begins when the steps it comes after are
// done (with goal Absent: when the steps that come after it are); steps that do
// not depend on each other act at the same time.
//
// Right before a step acts it plans again; where that differs from p the error
// is a *DriftError and the step has changed nothing. It is one too where the act
// of a change finds its target otherwise. After a step has acted it
// plans once more and must be silent, else the error is a *NotConvergedError.
//
// After the first error, and once stop is closed (nil is never), no further
// change is begun; what is under way is finished, and Apply then returns.
// Cancelling ctx stops what is under way too.
//
// With Options.Rollback and goal Present a step that fails, or is stopped half-way,
// is put back at once, and after an error those that are done are too, if all of
// them can be. The error is then a *RollbackError. Nothing is put back once ctx was
// cancelled.
func (p *Plan) Apply(ctx context.Context, stop <-chan struct{}) error {
	p.did = make([][]Change, len(p.Entries))
	a := &application{Plan: p, stop: stop, done: make([]chan struct{}, len(p.Entries)), ok: make([]bool, len(p.Entries))}
	for i := range p.Entries {
		a.done[i] = make(chan struct{})
	}
	before := p.waits()
	slots := make(chan struct{}, p.opts.parallel())
	errs := make([]error, len(p.Entries))
	var wait sync.WaitGroup
	for i, e := range p.Entries {
		wait.Go(func() {
			defer close(a.done[i])
			for _, j := range before[i] {
				<-a.done[j]
			}
			if len(e.Changes) == 0 {
				a.ok[i] = !slices.ContainsFunc(before[i], func(j int) bool { return !a.ok[j] })
				return
			}
			slots <- struct{}{}
			defer func() { <-slots }()
			errs[i] = a.step(ctx, i, before[i])
			a.ok[i] = errs[i] == nil
		})
	}
	wait.Wait()
	return a.fail(ctx, errors.Join(errs...))
}

// waits are, for each entry, the entries that it begins after.
func (p *Plan) waits() [][]int {
	before := make([][]int, len(p.Entries))
	for i, e := range p.Entries {
		for _, name := range e.Step.After() {
			j := p.index(name)
			if p.Goal == Absent {
				before[j] = append(before[j], i)
			} else {
				before[i] = append(before[i], j)
			}
		}
	}
	return before
}

// ErrStopped is the error of a step that was not begun, or not finished, because
// the run was asked to stop.
var ErrStopped = errors.New("stopped before the next change, as asked")

// errNotBegun marks the steps that were left alone after another's error.
var errNotBegun = errors.New("not begun, because of an earlier error")

// application is one run of Apply.
type application struct {
	*Plan
	stop <-chan struct{}
	done []chan struct{} // closed when the entry of that index is over
	ok   []bool          // written before done is closed

	mu       sync.Mutex
	failed   bool
	rollback RollbackError // of the steps that were put back while others still acted

	asked sync.Once // for the evidence
}

// halt tells why nothing more may begin, or nil.
func (a *application) halt() error {
	if a.stopped() {
		return ErrStopped
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.failed {
		return errNotBegun
	}
	return nil
}

func (a *application) stopped() bool {
	select {
	case <-a.stop:
		return true
	default:
		return false
	}
}

func (a *application) step(ctx context.Context, i int, before []int) error {
	e := a.Entries[i]
	name := e.Step.Name()
	err := a.halt()
	if err == nil && slices.ContainsFunc(before, func(j int) bool { return !a.ok[j] }) {
		err = errNotBegun
	}
	if err != nil {
		a.opts.observe(Event{Kind: StepSkipped, Step: name, Index: i, Changes: e.Changes, Err: err})
		if errors.Is(err, ErrStopped) {
			return &StepError{name, err}
		}
		return nil // the error that keeps it from beginning is reported where it happened
	}
	a.opts.observe(Event{Kind: StepStarted, Step: name, Index: i, Changes: e.Changes})
	if err := a.act(ctx, i); err != nil {
		a.mu.Lock()
		a.failed = true
		a.mu.Unlock()
		a.opts.observe(Event{Kind: StepFailed, Step: name, Index: i, Err: err})
		var left *NotConvergedError
		if a.reverses(ctx) && !errors.As(err, &left) {
			a.evidence(ctx)
			r := a.putBack(ctx, i, moved(err)...)
			a.mu.Lock()
			a.rollback.add(r)
			a.mu.Unlock()
		}
		return &StepError{name, err}
	}
	a.opts.observe(Event{Kind: StepDone, Step: name, Index: i})
	return nil
}

// act plans the step again, makes its changes and checks that nothing is left.
func (a *application) act(ctx context.Context, i int) error {
	e := a.Entries[i]
	name := e.Step.Name()
	changes, err := look(ctx, e.Step, a.Goal)
	if err != nil {
		return err
	}
	if drifts := compare(name, e.Changes, changes); drifts != nil {
		return &DriftError{drifts}
	}
	for _, c := range changes {
		if err := a.halt(); errors.Is(err, ErrStopped) {
			return err
		}
		a.did[i] = append(a.did[i], c)
		a.opts.observe(Event{Kind: ChangeStarted, Step: name, Index: i, Change: &c})
		report := func(text string) {
			a.opts.observe(Event{Kind: ChangeProgress, Step: name, Index: i, Change: &c, Text: text})
		}
		if err := c.Do(ctx, report); err != nil {
			err = fmt.Errorf("%s: %w", c.Target, err)
			if errors.Is(err, ErrMoved) {
				a.did[i] = a.did[i][:len(a.did[i])-1]
				err = a.moved(ctx, e.Step, c, err)
			}
			a.opts.observe(Event{Kind: ChangeFailed, Step: name, Index: i, Change: &c, Err: err})
			return err
		}
		a.opts.observe(Event{Kind: ChangeDone, Step: name, Index: i, Change: &c})
	}
	left, err := look(ctx, e.Step, a.Goal)
	if err != nil {
		return fmt.Errorf("look again after the change: %w", err)
	}
	if len(left) > 0 {
		return &NotConvergedError{Left: left}
	}
	return nil
}
