package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/steps"
)

func (a *app) planCommand() *cobra.Command {
	var destroy, detailed bool
	c := &cobra.Command{
		Use: "plan", Short: "Show what apply would do, and why; change nothing",
		Example:     "  ftpdeploy plan\n  ftpdeploy plan --destroy\n  ftpdeploy plan --detailed-exitcode --json",
		Annotations: map[string]string{"events": "yes"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			goal := plan.Present
			if destroy {
				goal = plan.Absent
			}
			ctx, cancel := a.cancelOnStop(cmd.Context())
			defer cancel()
			d, err := a.open(nil)
			if err != nil {
				return err
			}
			defer d.close()
			p, err := d.plan(ctx, goal)
			if err != nil {
				return err
			}
			switch {
			case p.Empty():
				return nil
			case detailed:
				a.next = []string{"ftpdeploy apply"}
				return errPending
			case destroy:
				a.suggest("ftpdeploy destroy")
			default:
				a.suggest("ftpdeploy apply")
			}
			return nil
		},
	}
	c.Flags().BoolVar(&destroy, "destroy", false, "plan the removal of everything that this deployment owns")
	c.Flags().BoolVar(&detailed, "detailed-exitcode", false, "exit 2 when changes are pending, 0 when there are none")
	return c
}

// suggest names the command to run next.
func (a *app) suggest(command string) {
	a.next = []string{command}
	a.emit(event{level: "info", msg: "Run: " + command, data: note{}})
}

// deployment is a loaded blueprint with its connections.
type deployment struct {
	*app
	topology *blueprints.Topology
	live     *steps.Live
}

// open loads the blueprint; connections are made when they are needed.
func (a *app) open(deleteData []string) (*deployment, error) {
	t, err := a.load()
	if err != nil {
		return nil, err
	}
	live := steps.Open(t, steps.Options{
		Kubeconfig: a.kubeconfig, Context: a.context, DeleteData: deleteData, Env: a.env, Version: version(),
	})
	return &deployment{app: a, topology: t, live: live}, nil
}

// close ends the connections. The run is over: what they answer changes nothing.
func (d *deployment) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = d.live.Close(ctx)
}

// plan observes the targets, makes the plan and shows it.
func (d *deployment) plan(ctx context.Context, goal plan.Goal) (*plan.Plan, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, d.timeout, fmt.Errorf("--timeout %s is over", d.timeout))
	defer cancel()
	start := d.now()
	d.emit(event{level: "info", msg: "Looking at " + d.targets() + " …", data: progress{}})
	list, err := d.live.List(ctx, goal)
	if err != nil {
		return nil, err
	}
	p, err := plan.Make(ctx, goal, list, plan.Options{Parallel: d.parallel})
	if err != nil {
		return nil, err
	}
	d.show(p, d.now().Sub(start))
	return p, nil
}

// targets says in a few words what a run talks to.
func (d *deployment) targets() string {
	var parts []string
	seen := map[string]bool{}
	for _, b := range d.topology.Boxes {
		if b.Created() && !seen[b.Site.VCenter.Server] {
			seen[b.Site.VCenter.Server] = true
			parts = append(parts, "vCenter "+b.Site.VCenter.Name+"/"+b.Site.VCenter.Datacenter)
		}
	}
	parts = append(parts, count(len(d.topology.Boxes), "box", "boxes"))
	for _, c := range d.topology.Clusters {
		parts = append(parts, "cluster "+c.Name)
	}
	return strings.Join(parts, ", ")
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// show prints the plan in the order of its list.
func (d *deployment) show(p *plan.Plan, took time.Duration) {
	head := fmt.Sprintf("%s  (%s)  %s\nobserved in %.1f s", d.topology.ID, d.file, d.targets(), took.Seconds())
	for _, o := range d.live.Observed() {
		d.emit(event{level: "debug", data: observed{
			Address: o.Address, Kind: o.Kind, MS: o.Took.Milliseconds(), Turns: o.Turns, BytesIn: o.BytesIn, BytesOut: o.BytesOut,
		}})
		if o.Turns > 0 {
			head += fmt.Sprintf(" · %s %d turns, %.1f KiB", o.Address, o.Turns, float64(o.BytesIn+o.BytesOut)/1024)
		}
	}
	d.emit(event{level: "info", msg: head + "\n", data: note{}})
	s := planSummary{Digest: digest(p)}
	n := 0
	for _, e := range p.Entries {
		if len(e.Changes) == 0 {
			s.Unchanged++
		}
		for _, c := range e.Changes {
			n++
			d.emit(event{level: "info", msg: fmt.Sprintf("%s %s %s", c.Action, e.Step.Name(), c.Target), data: changeEvent(n, e.Step.Name(), c)})
			switch c.Action {
			case plan.Create:
				s.Add++
			case plan.Delete:
				s.Destroy++
			case plan.Run:
				s.Run++
			default:
				s.Change++
			}
		}
	}
	text := "No changes: everything is as the blueprint says."
	if p.Goal == plan.Absent {
		text = "Nothing to remove: this deployment owns nothing here."
	}
	if n > 0 {
		if s.Unchanged > 0 {
			text = fmt.Sprintf("  = %s unchanged\n\n", count(s.Unchanged, "step", "steps"))
		} else {
			text = "\n"
		}
		text += fmt.Sprintf("Plan: %d to add, %d to change, %d to destroy, %d to run.  Digest %s", s.Add, s.Change, s.Destroy, s.Run, s.Digest)
	}
	d.emit(event{level: "info", msg: text, data: s})
}

func changeEvent(n int, step string, c plan.Change) planChange {
	out := planChange{
		ID: fmt.Sprintf("c%d", n), Address: step, Target: c.Target, Action: c.Action.Verb(), sign: string(c.Action),
		Unified: c.Detail.Unified, Reason: c.Reason, Effect: string(c.Effect), From: c.From, Want: c.Want,
	}
	for _, f := range c.Detail.Fields {
		out.Diff = append(out.Diff, fieldDiff(f))
	}
	return out
}

// digest is a short fingerprint of what a plan will do.
func digest(p *plan.Plan) string {
	h := sha256.New()
	enc := json.NewEncoder(h)
	for _, e := range p.Entries {
		for _, c := range e.Changes {
			_ = enc.Encode([]string{e.Step.Name(), string(c.Action), c.Target, c.From, c.Want}) // a hash takes every write
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:6]
}
