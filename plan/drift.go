package plan

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// DriftError says that the world is not as it was when the plan was made. What
// returned it has changed nothing.
type DriftError struct{ Drifts []Drift }

// ErrMoved is the error of an act that found its target not as it was planned
// from, and has changed nothing there. Apply makes it a *DriftError.
var ErrMoved = errors.New("the target is not as it was planned from any more")

// Drift is one target that is not as it was planned from.
type Drift struct {
	Step     string
	Target   string  // "" when it is the step's place in the order that differs
	Planned  *Change // nil: the plan did not touch this target
	Now      *Change // nil: nothing needs to be done any more
	Expected string  // fingerprint that it was planned from, or the place that was planned
	Found    string  // fingerprint now, or the place now
}

func (e *DriftError) Error() string {
	var b strings.Builder
	b.WriteString("the world changed since this plan was made; nothing was changed here [FTP701]")
	for _, d := range e.Drifts {
		fmt.Fprintf(&b, "\n  %s", strings.TrimSpace(d.Step+"  "+d.Target))
		from, now, want := d.values()
		for _, row := range [][2]string{{"planned from", from}, {"now", now}, {"wanted", want}} {
			if row[1] != "" {
				fmt.Fprintf(&b, "\n      %-13s %s", row[0], row[1])
			}
		}
		d.differences(&b)
	}
	b.WriteString("\nplan again")
	return b.String()
}

// values are what the target was planned from, what it is now, with why that
// needs a change, and what was wanted.
func (d Drift) values() (from, now, want string) {
	switch {
	case d.Target == "":
		return d.Expected, d.Found, ""
	case d.Planned == nil:
		return "as it should be: not in the plan", name(d.Found) + ": " + d.Now.Reason, name(d.Now.Want)
	case d.Now == nil:
		return name(d.Expected), "as wanted: not needed any more", name(d.Planned.Want)
	}
	from, now, want = name(d.Expected), name(d.Found)+": "+d.Now.Reason, name(d.Planned.Want)
	if d.Planned.Want != d.Now.Want && d.Expected == d.Found {
		now += "; it would now become " + name(d.Now.Want) + ", as what the blueprint is given differs"
	}
	if d.Planned.Action != d.Now.Action {
		now += fmt.Sprintf("; to %s, planned was to %s", d.Now.Action.Verb(), d.Planned.Action.Verb())
	}
	return from, now, want
}

// differences shows what is there now beside what is wanted.
func (d Drift) differences(b *strings.Builder) {
	if d.Now == nil {
		return
	}
	for _, f := range d.Now.Detail.Fields {
		text := f.After
		if f.Before != "" {
			text = f.Before + " -> " + f.After
		}
		fmt.Fprintf(b, "\n        %s: %s", f.Path, text)
	}
	for line := range strings.Lines(d.Now.Detail.Unified) {
		b.WriteString("\n        " + strings.TrimRight(line, "\n"))
	}
}

// longHex is a digest that nobody reads to its end.
var longHex = regexp.MustCompile(`\b([0-9a-f]{12})[0-9a-f]{20,}\b`)

func name(fingerprint string) string {
	if fingerprint == "" {
		return "nothing"
	}
	return longHex.ReplaceAllString(fingerprint, "$1…")
}

// NotConvergedError says that a step still wants changes after it has acted.
type NotConvergedError struct{ Left []Change }

func (e *NotConvergedError) Error() string {
	var b strings.Builder
	b.WriteString("the result is not what was predicted; still different:")
	for _, c := range e.Left {
		fmt.Fprintf(&b, "\n  %s %s: %s", c.Action, c.Target, c.Reason)
		for _, f := range c.Detail.Fields {
			fmt.Fprintf(&b, "\n      %s: %s, wanted %s", f.Path, f.Before, f.After)
		}
	}
	return b.String()
}

// moved is the drift of a change whose act returned cause, an ErrMoved: the step is
// asked once more what it finds.
func (a *application) moved(ctx context.Context, s Step, c Change, cause error) error {
	d := Drift{Step: s.Name(), Target: c.Target, Planned: &c, Expected: c.From}
	now, err := look(ctx, s, a.Goal)
	if err != nil {
		return errors.Join(cause, err)
	}
	for i := range now {
		if now[i].Target == c.Target {
			d.Now, d.Found = &now[i], now[i].From
		}
	}
	return &DriftError{[]Drift{d}}
}

// compare holds what a step wants now against what was approved. A prediction
// (From = Unseen) may turn out not to be needed, or to be an update where a
// creation was foreseen; everything else must be the same.
func compare(step string, approved, now []Change) []Drift {
	var drifts []Drift
	byTarget := map[string]*Change{}
	for i := range approved {
		byTarget[approved[i].Target] = &approved[i]
	}
	needed := map[string]bool{}
	for i := range now {
		n := &now[i]
		needed[n.Target] = true
		a := byTarget[n.Target]
		switch {
		case a == nil:
			drifts = append(drifts, Drift{Step: step, Target: n.Target, Now: n, Found: n.From})
		case a.Want != n.Want, a.From != Unseen && (a.From != n.From || a.Action != n.Action):
			drifts = append(drifts, Drift{Step: step, Target: n.Target, Planned: a, Now: n, Expected: a.From, Found: n.From})
		}
	}
	for i := range approved {
		if a := &approved[i]; !needed[a.Target] && a.From != Unseen {
			drifts = append(drifts, Drift{Step: step, Target: a.Target, Planned: a, Expected: a.From})
		}
	}
	return drifts
}
