// Package plan turns a list of steps into a plan that can be shown, and applies
// exactly that plan. It knows nothing of what the steps touch: it never prints,
// exits, or reads flags or the environment.
package plan

import (
	"context"
	"fmt"
)

// Goal is what a step's target should be.
type Goal int

// The goals.
const (
	Present Goal = iota // the target is as the blueprint says
	Absent              // nothing of ours is left
)

// String is present or absent.
func (g Goal) String() string {
	if g == Absent {
		return "absent"
	}
	return "present"
}

// MarshalText implements encoding.TextMarshaler.
func (g Goal) MarshalText() ([]byte, error) { return []byte(g.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (g *Goal) UnmarshalText(text []byte) error {
	for _, goal := range []Goal{Present, Absent} {
		if goal.String() == string(text) {
			*g = goal
			return nil
		}
	}
	return fmt.Errorf("no goal %q", text)
}

// Action is the kind of a change. Its text is the sign that is shown.
type Action string

// The actions.
const (
	Create  Action = "+"
	Update  Action = "~"
	Replace Action = "±"
	Delete  Action = "-"
	Run     Action = ">" // an act that leaves no new object: reload, power on, wait
)

// Verb is the action as a word for machines: create, update, replace, delete, run.
func (a Action) Verb() string {
	switch a {
	case Create:
		return "create"
	case Update:
		return "update"
	case Replace:
		return "replace"
	case Delete:
		return "delete"
	case Run:
		return "run"
	}
	panic(fmt.Sprintf("plan: no action %q", string(a)))
}

// MarshalText implements encoding.TextMarshaler by the verb.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.Verb()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *Action) UnmarshalText(text []byte) error {
	for _, action := range []Action{Create, Update, Replace, Delete, Run} {
		if action.Verb() == string(text) {
			*a = action
			return nil
		}
	}
	return fmt.Errorf("no action %q", text)
}

// Effect is what a change costs those who use its target.
type Effect string

// The effects, from the mildest.
const (
	NoEffect Effect = "none"
	Reload   Effect = "reload"  // the service goes on, open transfers too
	Restart  Effect = "restart" // the service is away for seconds, open transfers break
	Reboot   Effect = "reboot"  // the machine is away
	Rebuild  Effect = "replace" // the machine is made anew
	Rollout  Effect = "rollout" // the pod is replaced
)

// Impact is what a change, or a plan, costs those who use the deployment.
type Impact struct {
	Sessions  int      `json:"sessions"`  // control connections that are open now
	Transfers int      `json:"transfers"` // data connections, likewise
	Cut       int      `json:"cut"`       // how many of both it breaks
	VIPMoves  int      `json:"vip_moves"` // how often a VIP goes from one box to another
	Seconds   float64  `json:"seconds"`
	Longest   float64  `json:"seconds_max,omitempty"` // where Seconds was measured elsewhere, what it may be here; else 0
	Holds     []string `json:"holds,omitempty"`       // VIPs that the changed box has
	Note      string   `json:"note,omitempty"`
}

// Unseen is the From of a change whose target could not be looked at, because
// what it lives on does not exist yet. Such a change is a prediction: when it is
// applied it may turn out not to be needed, but nothing else may be.
const Unseen = "unseen"

// Change is one thing that will be done: its words and its act, made in one place.
// As JSON it is its words alone.
type Change struct {
	Action Action `json:"action"`
	Target string `json:"target"` // "haproxy-a:/etc/haproxy/haproxy.cfg"; unique within its step
	Reason string `json:"reason"` // why: "not there", "nodePort 32104 differs", "config is newer than the process"
	Cause  Cause  `json:"cause"`  // no kind reads as ByDependency
	Effect Effect `json:"effect"` // "" reads as NoEffect
	Impact Impact `json:"impact"` // what it is expected to cost; nobody's plan is held against it
	Detail Diff   `json:"detail"` // what differs; secrets are masked where it is made

	// Needs are the kinds of danger that someone must have allowed by name before
	// this is done.
	Needs []string `json:"needs_allow,omitempty"`

	// From is a fingerprint of the live state that the change was planned from
	// ("" = the target does not exist, Unseen = it could not be looked at) and
	// Want one of the state that it leads to. Neither holds a secret in a form
	// that could be guessed.
	From string `json:"from"`
	Want string `json:"want"`

	// Do makes the change and returns when its effect is real, not when it is
	// requested. Report, which may be called any number of times, says in a few
	// words what is being waited for.
	Do func(ctx context.Context, report func(string)) error `json:"-"`
	// Undo puts back what was, whether or not Do came to its end; nil where nothing
	// can be put back.
	Undo func(ctx context.Context) error `json:"-"`
	// Covered says that the Undo of an earlier change of the step puts this one
	// back too.
	Covered bool `json:"-"`
	// Passing says that this only goes with other changes of the step and the moment
	// decides whether they need it: when they are put back, it may have become needless.
	Passing bool `json:"-"`
}

// Diff says what a change does to its target: fields, or a unified diff.
type Diff struct {
	Fields  []Field `json:"fields,omitempty"`
	Unified string  `json:"unified,omitempty"` // as diff -u prints it, with its header lines
}

// Field is one value that differs.
type Field struct {
	Path   string `json:"path"`
	Before string `json:"before"` // "" where there was nothing; "(sensitive)" for a secret
	After  string `json:"after"`
}

// Step is one entry of the list that makes a deployment.
type Step interface {
	// Name is kind/name, as in "vm/haproxy-a". It is the same in output, JSON and tests.
	Name() string
	// After names the steps that must be there before this one can look or act.
	After() []string
	// Plan reads, and only reads, the live state and returns what must be done in
	// this order; empty means nothing. Where the target cannot exist yet, because a
	// step of After has not been applied, it returns the changes that will be
	// needed, each with From = Unseen.
	Plan(ctx context.Context, goal Goal) ([]Change, error)
}
