package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/steps"
)

func (a *app) driftCommand() *cobra.Command {
	var detailed bool
	c := &cobra.Command{
		Use: "drift", Short: "Name what others changed, who and when, as far as that is known; change nothing",
		Long: `Makes a plan and shows the part of it that puts right what others did: not what the blueprint asks
for since the last apply.`,
		Example:     "  ftpdeploy drift\n  ftpdeploy drift --detailed-exitcode --json",
		Annotations: map[string]string{"events": "yes"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.reading(cmd.Context(), choices{}, func(ctx context.Context, d *deployment) error {
				p, notes, err := d.look(ctx, plan.Present)
				if err != nil {
					return err
				}
				for _, line := range notes {
					d.emit(event{level: "info", msg: line, data: note{}})
				}
				n := d.drifts(p)
				if n == 0 {
					return nil
				}
				a.suggest("ftpdeploy apply")
				if detailed {
					return errPending
				}
				return nil
			})
		},
	}
	c.Flags().BoolVar(&detailed, "detailed-exitcode", false, "exit 2 when there is drift, 0 when there is none")
	return c
}

// The data of drift's events; see event.go.
type (
	driftEvent struct {
		Address string  `json:"address"` // the step
		Target  string  `json:"target"`
		Path    string  `json:"path"`
		Was     string  `json:"was"` // and will be again
		Now     string  `json:"now"`
		By      driftBy `json:"by"`
		Unified string  `json:"unified,omitempty"` // of a file: what puts it right
		Reason  string  `json:"reason"`
	}
	driftBy struct {
		Who  string `json:"who"` // "" = nobody knows; likewise the others
		How  string `json:"how"`
		When string `json:"when,omitempty"`
	}
)

// drifts shows what of a plan puts right what others did, and returns how many
// changes that are.
func (d *deployment) drifts(p *plan.Plan) int {
	history := steps.HistoryStep(d.topology)
	settled := !slices.ContainsFunc(p.Entries, func(e plan.Entry) bool { return e.Step.Name() == history && len(e.Changes) > 0 })
	n, others := 0, 0
	for _, e := range p.Entries {
		for _, c := range e.Changes {
			switch {
			case c.Cause.Kind == plan.ByDrift:
			case c.Cause.Kind == plan.ByBlueprint && c.Action == plan.Create && settled && c.From != plan.Unseen:
				// What the last apply made, by the same blueprint, and is not there.
				c.Cause, c.Reason = plan.Cause{Kind: plan.ByDrift}, c.Reason+": it was there after the last apply"
			case c.Cause.Kind == plan.ByBlueprint:
				others++
				continue
			default:
				continue // goes with another change
			}
			n++
			d.drift(e.Step.Name(), c)
		}
	}
	if n == 0 {
		d.emit(event{level: "info", msg: "No drift: nobody has changed what the last apply left.", data: note{}})
	} else {
		d.emit(event{level: "info", msg: fmt.Sprintf("\n%s by others", count(n, "change", "changes")), data: note{}})
	}
	if others > 0 {
		d.emit(event{level: "info", msg: fmt.Sprintf("Not drift: the blueprint asks for %s that no apply has made yet (ftpdeploy plan).", count(others, "change", "changes")), data: note{}})
	}
	return n
}

// drift shows one change by others, an event for each field that differs.
func (d *deployment) drift(step string, c plan.Change) {
	by := driftBy{Who: c.Cause.By, How: c.Cause.How}
	author := "nobody knows who, or when"
	if c.Cause.By != "" {
		author = "by " + c.Cause.By
	}
	if !c.Cause.At.IsZero() {
		by.When = stamp(c.Cause.At)
		author = strings.TrimPrefix(author, "nobody knows who, or when")
		author = strings.TrimSpace(author + fmt.Sprintf(" at %s UTC (%s ago)", c.Cause.At.UTC().Format(time.DateTime), age(d.now().Sub(c.Cause.At))))
	}
	if c.Cause.How != "" && (c.Cause.By != "" || !c.Cause.At.IsZero()) {
		author += ", says " + c.Cause.How
	}
	head := fmt.Sprintf("\n  %s %-22s %s\n      %s\n      %s", c.Action, step, c.Target, c.Reason, author)
	fields := c.Detail.Fields
	if len(fields) == 0 {
		_, path, _ := strings.Cut(c.Target, ":")
		fields = []plan.Field{{Path: path, Before: c.From, After: c.Want}}
	}
	for i, f := range fields {
		text := fmt.Sprintf("      %s: was %s, is %s", f.Path, orNothing(f.After), orNothing(f.Before))
		switch {
		case len(c.Detail.Fields) == 0:
			text = head
		case i == 0:
			text = head + "\n" + text
		}
		e := driftEvent{Address: step, Target: c.Target, Path: f.Path, Was: f.After, Now: f.Before, By: by, Reason: c.Reason}
		if i == 0 {
			e.Unified = c.Detail.Unified
		}
		d.emit(event{level: "warn", msg: text, data: e})
	}
}

func orNothing(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}
