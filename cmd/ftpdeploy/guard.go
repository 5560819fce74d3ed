package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/steps"
)

// guard are the flags that keep a run within bounds.
type guard struct {
	max   int
	deny  []string
	allow []string
	scope plan.Scope
}

// choices are what a person asks for beside the blueprint. A saved plan keeps them.
type choices struct {
	DeleteData []string `json:"delete_data,omitempty"` // volumes whose data goes although it would be kept
	SitesDown  []string `json:"sites_down,omitempty"`  // sites that are left out
	Replace    []string `json:"replace,omitempty"`     // boxes that are made anew
}

func (c *choices) flagDeleteData(f *pflag.FlagSet) {
	f.StringArrayVar(&c.DeleteData, "delete-data", nil, "delete the data of this volume `name` too, which would be kept")
}

func (c *choices) flagSitesDown(f *pflag.FlagSet) {
	f.StringSliceVar(&c.SitesDown, "site-down", nil, "leave out the boxes of this `site`, which is lost")
}

func (c *choices) flagReplace(f *pflag.FlagSet) {
	f.StringSliceVar(&c.Replace, "replace", nil, "delete this box, such as `lb.NAME`, and make it anew")
}

// words are the choices as a command line gives them.
func (c *choices) words() string {
	var b strings.Builder
	for _, name := range c.DeleteData {
		b.WriteString(" --delete-data " + name)
	}
	for _, name := range c.SitesDown {
		b.WriteString(" --site-down " + name)
	}
	for _, name := range c.Replace {
		b.WriteString(" --replace " + name)
	}
	return b.String()
}

// check holds the choices to what the blueprint has.
func (c *choices) check(t *blueprints.Topology) error {
	if err := steps.CheckSitesDown(t, c.SitesDown); err != nil {
		return &exitError{64, err}
	}
	if _, err := steps.Replaced(t, c.Replace); err != nil {
		return &exitError{64, err}
	}
	return nil
}

// deniable are the effects and actions that --deny knows.
func deniable() []string {
	var all []string
	for _, e := range []plan.Effect{plan.Reload, plan.Restart, plan.Reboot, plan.Rebuild, plan.Rollout} {
		all = append(all, string(e))
	}
	for _, a := range []plan.Action{plan.Create, plan.Update, plan.Delete, plan.Run} {
		all = append(all, a.Verb())
	}
	return all
}

func (g *guard) flags(c *cobra.Command) {
	f := c.Flags()
	f.IntVar(&g.max, "max-changes", -1, "refuse more than `N` changes")
	f.StringSliceVar(&g.deny, "deny", nil, "refuse changes of these `kinds`: "+strings.Join(deniable(), ", "))
	f.StringSliceVar(&g.allow, "allow", nil, "allow dangers of these `kinds`: "+strings.Join(steps.Kinds(), ", "))
	f.StringSliceVar(&g.scope.Only, "only", nil, "only this `step`, such as host/haproxy-b, and what it needs")
	f.StringSliceVar(&g.scope.Skip, "skip", nil, "leave out this `step`")
}

// check holds the flags to the kinds that there are.
func (g *guard) check() error {
	for _, k := range g.deny {
		if !slices.Contains(deniable(), k) {
			return &exitError{64, fmt.Errorf("--deny %s: want some of %s", k, strings.Join(deniable(), ", "))}
		}
	}
	for _, k := range g.allow {
		if !slices.Contains(steps.Kinds(), k) {
			return &exitError{64, fmt.Errorf("--allow %s: want some of %s", k, strings.Join(steps.Kinds(), ", "))}
		}
	}
	return nil
}

// within refuses a plan that --max-changes or --deny is against.
func (g *guard) within(p *plan.Saved) error {
	var errs []error
	if n := len(p.Changes()); g.max >= 0 && n > g.max {
		errs = append(errs, fmt.Errorf("refused by --max-changes %d: these are %s; nothing was changed", g.max, count(n, "change", "changes")))
	}
	for _, kind := range g.deny {
		var denied []string
		for _, c := range p.Changes() {
			if c.Action.Verb() == kind || string(c.Effect) == kind {
				denied = append(denied, c.Target)
			}
		}
		if denied != nil {
			errs = append(errs, fmt.Errorf("refused by --deny %s: %s; nothing was changed", kind, strings.Join(denied, ", ")))
		}
	}
	if errs != nil {
		return &exitError{1, errors.Join(errs...)}
	}
	return nil
}

// allows refuses a plan with dangers that neither this run nor the plan allows.
func (g *guard) allows(f *planFile) error {
	var errs []error
	for _, d := range f.Needs {
		if !slices.Contains(g.allow, d.Kind) && !slices.Contains(f.Allowed, d.Kind) {
			errs = append(errs, fmt.Errorf("refused without --allow %s: %s; nothing was changed", d.Kind, strings.Join(d.Where, ", ")))
		}
	}
	if errs != nil {
		return &exitError{1, errors.Join(errs...)}
	}
	return nil
}

// narrow leaves out of p what --only and --skip do not mean, and tells in lines
// what was taken in and left out.
func (d *deployment) narrow(p *plan.Plan) ([]string, error) {
	scope := d.withHistory(d.guard.scope, p)
	if len(scope.Only)+len(scope.Skip) == 0 {
		return nil, nil
	}
	pulled, err := p.Narrow(scope)
	var unknown *plan.UnknownStepError
	switch {
	case errors.As(err, &unknown):
		return nil, &exitError{64, err}
	case err == nil:
		err = steps.Whole(d.topology, p)
	}
	if err != nil {
		return nil, &exitError{1, err}
	}
	var lines []string
	for _, s := range pulled {
		because := fmt.Sprintf("because %s comes after it", s.For)
		if p.Goal == plan.Absent {
			because = fmt.Sprintf("because %s can go only after it", s.For)
		}
		lines = append(lines, fmt.Sprintf("also: %s, %s", s.Step, because))
	}
	for _, e := range p.Entries {
		if n := len(e.Left); n > 0 {
			lines = append(lines, fmt.Sprintf("left out: %s (%s)", e.Step.Name(), count(n, "change", "changes")))
		}
	}
	return lines, nil
}
