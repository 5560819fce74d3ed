package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
)

// Saved is what a plan says, without its acts. It can be written down and held
// against a plan that is made later, elsewhere.
type Saved struct {
	Goal  Goal        `json:"goal"`
	Steps []SavedStep `json:"steps"` // all of the list, in its order
}

// SavedStep is what one step needs.
type SavedStep struct {
	Name    string   `json:"name"`
	Changes []Change `json:"changes,omitempty"`
	Left    []Change `json:"left_out,omitempty"` // see Entry
}

// Save returns what p says.
func (p *Plan) Save() *Saved {
	s := &Saved{Goal: p.Goal}
	for _, e := range p.Entries {
		s.Steps = append(s.Steps, SavedStep{e.Step.Name(), e.Changes, e.Left})
	}
	return s
}

// Changes is every change in the order of the list.
func (s *Saved) Changes() []Change {
	var all []Change
	for _, step := range s.Steps {
		all = append(all, step.Changes...)
	}
	return all
}

// Digest is a fingerprint, in hexadecimal, of what will be done: the steps, and
// the target, action, From and Want of every change.
func (s *Saved) Digest() string {
	h := sha256.New()
	enc := json.NewEncoder(h)
	for _, step := range s.Steps {
		for _, c := range step.Changes {
			_ = enc.Encode([]string{step.Name, string(c.Action), c.Target, c.From, c.Want}) // a hash takes every write
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Match holds p, made just now, against s. Where it would do anything else, or
// in another order, the error is a *DriftError. As when a step is about to act, a
// prediction may turn out not to be needed.
func (s *Saved) Match(p *Plan) error {
	if s.Goal != p.Goal {
		return fmt.Errorf("bug: a plan with goal %s is held against one with goal %s", p.Goal, s.Goal)
	}
	now := map[string]Entry{}
	for _, e := range p.Entries {
		now[e.Step.Name()] = e
	}
	var drifts []Drift
	for _, step := range s.Steps {
		drifts = append(drifts, compare(step.Name, step.Changes, now[step.Name].Changes)...)
	}
	for _, e := range p.Entries {
		if name := e.Step.Name(); !slices.ContainsFunc(s.Steps, func(s SavedStep) bool { return s.Name == name }) {
			drifts = append(drifts, compare(name, nil, e.Changes)...)
		}
	}
	if drifts == nil {
		drifts = s.disorder(p)
	}
	if drifts != nil {
		return &DriftError{drifts}
	}
	return nil
}

// disorder finds the first step that would not act where the plan has it: a box
// that got the VIP meanwhile would be changed before the one that lost it.
func (s *Saved) disorder(p *Plan) []Drift {
	var planned, now []string
	for _, step := range s.Steps {
		if len(step.Changes) > 0 {
			planned = append(planned, step.Name)
		}
	}
	for _, e := range p.Entries {
		if len(e.Changes) > 0 {
			now = append(now, e.Step.Name())
		}
	}
	planned = slices.DeleteFunc(planned, func(name string) bool { return !slices.Contains(now, name) })
	for i := range planned {
		if planned[i] != now[i] {
			return []Drift{{
				Step: planned[i], Expected: "the " + ordinal(i) + " step to act",
				Found: "the " + ordinal(slices.Index(now, planned[i])) + " step, after " + now[i],
			}}
		}
	}
	return nil
}

// ordinal counts from 0.
func ordinal(i int) string {
	if words := []string{"first", "second", "third"}; i < len(words) {
		return words[i]
	}
	return fmt.Sprintf("%dth", i+1)
}
