package plan

import (
	"fmt"
	"strings"
)

// DriftError says that the world is not as it was when the plan was made. The
// step that returned it has changed nothing.
type DriftError struct{ Drifts []Drift }

// Drift is one target that is not as it was planned from.
type Drift struct {
	Target   string
	Planned  *Change // nil: the plan did not touch this target
	Now      *Change // nil: nothing needs to be done any more
	Expected string  // fingerprint that it was planned from
	Found    string  // fingerprint now
}

func (e *DriftError) Error() string {
	var b strings.Builder
	b.WriteString("the world changed since this plan was made; nothing was changed here [FTP701]")
	for _, d := range e.Drifts {
		switch {
		case d.Planned == nil:
			fmt.Fprintf(&b, "\n  %s: not in the plan, now needed: %s", d.Target, d.Now.Reason)
		case d.Now == nil:
			fmt.Fprintf(&b, "\n  %s: planned (%s), not needed any more", d.Target, d.Planned.Reason)
		default:
			fmt.Fprintf(&b, "\n  %s: planned from %s, now %s, wanted %s", d.Target, name(d.Expected), name(d.Found), name(d.Planned.Want))
		}
	}
	b.WriteString("\nplan again")
	return b.String()
}

func name(fingerprint string) string {
	if fingerprint == "" {
		return "nothing"
	}
	return fingerprint
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

// compare holds what a step wants now against what was approved. A prediction
// (From = Unseen) may turn out not to be needed, or to be an update where a
// creation was foreseen; everything else must be the same.
func compare(approved, now []Change) error {
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
			drifts = append(drifts, Drift{Target: n.Target, Now: n, Found: n.From})
		case a.Want != n.Want, a.From != Unseen && (a.From != n.From || a.Action != n.Action):
			drifts = append(drifts, Drift{Target: n.Target, Planned: a, Now: n, Expected: a.From, Found: n.From})
		}
	}
	for i := range approved {
		if a := &approved[i]; !needed[a.Target] && a.From != Unseen {
			drifts = append(drifts, Drift{Target: a.Target, Planned: a, Expected: a.From})
		}
	}
	if len(drifts) > 0 {
		return &DriftError{drifts}
	}
	return nil
}
