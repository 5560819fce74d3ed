package plan

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// RollbackError is the error of a run that was put back, as far as it could be.
type RollbackError struct {
	Cause  error    // why
	Undone []string // steps that are as they were: each was looked at again
	Left   []string // targets that were changed and stay so
	Err    error    // why a step is not as it was
}

// Complete tells whether everything that the run has changed is as it was.
func (e *RollbackError) Complete() bool { return e.Err == nil && len(e.Left) == 0 }

func (e *RollbackError) Error() string {
	var b strings.Builder
	b.WriteString(e.Cause.Error())
	if len(e.Undone) > 0 {
		fmt.Fprintf(&b, "\nrolled back, and as before: %s", strings.Join(e.Undone, ", "))
	}
	if len(e.Left) > 0 {
		fmt.Fprintf(&b, "\nchanged, and not rolled back: %s", strings.Join(e.Left, ", "))
	}
	if e.Err != nil {
		fmt.Fprintf(&b, "\nthe rollback failed: %v", e.Err)
	}
	return b.String()
}

func (e *RollbackError) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Cause}
	}
	return []error{e.Cause, e.Err}
}

func (e *RollbackError) add(other RollbackError) {
	e.Undone = append(e.Undone, other.Undone...)
	e.Left = append(e.Left, other.Left...)
	e.Err = errors.Join(e.Err, other.Err)
}

// undoBound is how long one step may take to be put back and looked at.
const undoBound = 6 * time.Minute

// Rollback puts back what Apply has done, because of a cause that showed
// afterwards: if all of it can be put back, else nothing is. Nothing is either when
// stop is closed; ctx, once cancelled, ends it.
func (p *Plan) Rollback(ctx context.Context, stop <-chan struct{}, cause error) error {
	a := &application{Plan: p, stop: stop}
	return a.fail(ctx, cause)
}

// reverses tells whether what was done is put back at all.
func (p *Plan) reverses(ctx context.Context) bool {
	return p.opts.Rollback && p.Goal == Present && !errors.Is(ctx.Err(), context.Canceled)
}

// fail is the end of a run with an error: the steps that are done are put back.
func (a *application) fail(ctx context.Context, cause error) error {
	if cause == nil || !a.reverses(ctx) {
		return cause
	}
	if a.stopped() && !errors.Is(cause, ErrStopped) {
		cause = errors.Join(cause, ErrStopped)
	}
	all := RollbackError{Cause: cause}
	all.add(a.rollback)
	var left []string
	for _, did := range a.did {
		left = append(left, stays(did)...)
	}
	stay := func(did []Change) {
		for _, c := range did {
			all.Left = append(all.Left, c.Target)
		}
	}
	switch {
	case errors.Is(cause, ErrStopped), // what is done is done
		len(left) > 0 || len(all.Left) > 0: // a half of what was done would be a state that nobody has planned
		for _, did := range a.did {
			stay(did)
		}
	default:
		for i := range slices.Backward(a.did) {
			switch {
			case len(a.did[i]) == 0:
			case !a.reverses(ctx): // not any more
				stay(a.did[i])
			default:
				a.evidence(ctx)
				all.add(a.putBack(ctx, i))
			}
		}
	}
	if len(all.Undone) == 0 && len(all.Left) == 0 && all.Err == nil {
		return cause // nothing was changed
	}
	return &all
}

// evidence asks for the evidence of the failure, the first time.
func (a *application) evidence(ctx context.Context) {
	if a.opts.Evidence != nil {
		a.asked.Do(func() { a.opts.Evidence(context.WithoutCancel(ctx)) })
	}
}

// stays are the targets of changes that nothing can put back.
func stays(did []Change) []string {
	var left []string
	covers := false
	for _, c := range did {
		covers = covers || c.Undo != nil
		if c.Undo == nil && (!c.Covered || !covers) {
			left = append(left, c.Target)
		}
	}
	return left
}

// moved are the targets of err's drift.
func moved(err error) []string {
	var drift *DriftError
	var all []string
	if errors.As(err, &drift) {
		for _, d := range drift.Drifts {
			all = append(all, d.Target)
		}
	}
	return all
}

// putBack undoes what a step has done, the last first, and looks whether it is
// as it was but for the targets that others have changed meanwhile.
func (a *application) putBack(ctx context.Context, i int, foreign ...string) RollbackError {
	var r RollbackError
	e, did := a.Entries[i], a.did[i]
	if len(did) == 0 {
		return r
	}
	a.did[i] = nil
	name := e.Step.Name()
	a.opts.observe(Event{Kind: RollbackStarted, Step: name, Index: i, Changes: did})
	// Also when the time of the run is over: half a change is worse.
	asked := ctx
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), undoBound, fmt.Errorf("waited %s for %s to be as before", undoBound, name))
	defer cancel()
	defer context.AfterFunc(asked, func() {
		if errors.Is(asked.Err(), context.Canceled) {
			cancel()
		}
	})()
	r.Left = stays(did)
	for _, c := range slices.Backward(did) {
		if c.Undo == nil {
			continue
		}
		if err := c.Undo(ctx); err != nil {
			r.Err = fmt.Errorf("%s: %s: %w", name, c.Target, err)
			break
		}
	}
	if r.Err == nil && len(r.Left) == 0 {
		now, err := look(ctx, e.Step, a.Goal)
		if err == nil {
			theirs := func(c Change) bool { return slices.Contains(foreign, c.Target) }
			err = asBefore(slices.DeleteFunc(slices.Clone(e.Changes), theirs), slices.DeleteFunc(now, theirs))
		}
		if err != nil {
			r.Err = fmt.Errorf("%s: look whether it is as it was: %w", name, err)
		}
	}
	if r.Err != nil {
		a.opts.observe(Event{Kind: RollbackFailed, Step: name, Index: i, Err: r.Err})
		return r
	}
	if len(r.Left) == 0 {
		r.Undone = []string{name}
	}
	a.opts.observe(Event{Kind: RollbackDone, Step: name, Index: i})
	return r
}

// asBefore holds what a step wants after it was put back against what it wanted
// before: the same changes, and the same difference, but for what is Passing. From
// is not compared: a version of an object never comes back.
func asBefore(before, now []Change) error {
	wanted := map[string]*Change{}
	for i := range before {
		wanted[before[i].Target] = &before[i]
	}
	for i := range now {
		n := &now[i]
		b := wanted[n.Target]
		delete(wanted, n.Target)
		switch {
		case n.Passing:
		case b == nil:
			return fmt.Errorf("%s: not in the plan before, and now: %s", n.Target, n.Reason)
		case b.Want != n.Want, b.From != Unseen && (b.Action != n.Action || b.Detail.Unified != n.Detail.Unified):
			return fmt.Errorf("%s: differs otherwise than before: %s", n.Target, n.Reason)
		}
	}
	for _, b := range before {
		if wanted[b.Target] != nil && b.From != Unseen && !b.Passing {
			return fmt.Errorf("%s: was to be changed (%s), and is not any more", b.Target, b.Reason)
		}
	}
	return nil
}
