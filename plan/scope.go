package plan

import (
	"fmt"
	"slices"
	"strings"
)

// Scope says which steps of a plan are meant, by their names.
type Scope struct {
	Only []string `json:"only,omitempty"` // these and what they need; empty means all
	Skip []string `json:"skip,omitempty"` // but not these
}

// Pulled is a step that a scope does not name and that is needed all the same.
type Pulled struct{ Step, For string }

// UnknownStepError says that a scope names a step that is not in the list.
type UnknownStepError struct {
	Name  string
	Known []string
}

func (e *UnknownStepError) Error() string {
	return fmt.Sprintf("there is no step %q; the steps are %s", e.Name, strings.Join(e.Known, ", "))
}

// TornError says that a scope leaves out what the rest of the plan rests on.
type TornError struct {
	Skipped string   // a step that is left out, and has changes
	For     []string // the steps with changes that cannot be without
}

func (e *TornError) Error() string {
	return fmt.Sprintf("%s cannot be skipped: it has changes, and must be done before %s; skip that too, or neither [FTP207]",
		e.Skipped, strings.Join(e.For, ", "))
}

// Narrow leaves out of p the changes of the steps that scope does not mean. A
// step that a meant one comes after (with goal Absent: that comes after it) is
// meant too if it has changes; those are returned in the order of the list.
func (p *Plan) Narrow(scope Scope) ([]Pulled, error) {
	for _, name := range slices.Concat(scope.Only, scope.Skip) {
		if p.index(name) < 0 {
			return nil, &UnknownStepError{name, p.names()}
		}
	}
	needs := p.needs()
	meant := make([]bool, len(p.Entries))
	cause := make([]int, len(p.Entries)) // for which entry it is meant too
	for i, e := range p.Entries {
		meant[i] = (len(scope.Only) == 0 || slices.Contains(scope.Only, e.Step.Name())) && !slices.Contains(scope.Skip, e.Step.Name())
		cause[i] = i
	}
	if err := p.torn(needs, meant, scope.Skip); err != nil {
		return nil, err
	}
	for i := range p.Entries {
		for _, j := range needs[i] {
			if meant[i] && cause[i] == i && !meant[j] && len(p.Entries[i].Changes) > 0 && len(p.Entries[j].Changes) > 0 {
				meant[j], cause[j] = true, i
			}
		}
	}
	var pulled []Pulled
	for i := range p.Entries {
		e := &p.Entries[i]
		switch {
		case !meant[i]:
			e.Left, e.Changes = e.Changes, nil
		case cause[i] != i:
			pulled = append(pulled, Pulled{e.Step.Name(), p.Entries[cause[i]].Step.Name()})
		}
	}
	return pulled, nil
}

// torn refuses to skip a step with changes that a meant one with changes needs.
func (p *Plan) torn(needs [][]int, meant []bool, skip []string) error {
	for _, name := range skip {
		j := p.index(name)
		if len(p.Entries[j].Changes) == 0 {
			continue
		}
		e := &TornError{Skipped: name}
		for i := range p.Entries {
			if meant[i] && len(p.Entries[i].Changes) > 0 && slices.Contains(needs[i], j) {
				e.For = append(e.For, p.Entries[i].Step.Name())
			}
		}
		if e.For != nil {
			return e
		}
	}
	return nil
}

// needs are, for each entry, all that must be done before it, near or far.
func (p *Plan) needs() [][]int {
	direct := p.waits()
	needs := make([][]int, len(p.Entries))
	for i := range p.Entries {
		todo := slices.Clone(direct[i])
		for len(todo) > 0 {
			j := todo[0]
			todo = todo[1:]
			if !slices.Contains(needs[i], j) {
				needs[i] = append(needs[i], j)
				todo = append(todo, direct[j]...)
			}
		}
	}
	return needs
}

func (p *Plan) index(name string) int {
	return slices.IndexFunc(p.Entries, func(e Entry) bool { return e.Step.Name() == name })
}

func (p *Plan) names() []string {
	var all []string
	for _, e := range p.Entries {
		all = append(all, e.Step.Name())
	}
	return all
}
