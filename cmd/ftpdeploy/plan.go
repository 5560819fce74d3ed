package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/steps"
)

func (a *app) planCommand() *cobra.Command {
	var destroy, detailed bool
	var out string
	var wishes choices
	var g guard
	c := &cobra.Command{
		Use: "plan", Short: "Show what apply would do, and why; change nothing",
		Example:     "  ftpdeploy plan\n  ftpdeploy plan --out prod.ftpplan\n  ftpdeploy plan --destroy\n  ftpdeploy plan --detailed-exitcode --json",
		Annotations: map[string]string{"events": "yes"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			goal := plan.Present
			if destroy {
				goal = plan.Absent
				if len(wishes.SitesDown)+len(wishes.Replace) > 0 {
					return &exitError{64, errors.New("--site-down and --replace do not go with --destroy")}
				}
			}
			return a.reading(cmd.Context(), wishes, func(ctx context.Context, d *deployment) error {
				d.guard = g
				p, f, err := d.plan(ctx, goal)
				if err != nil {
					return err
				}
				if err := g.within(f.Plan); err != nil {
					return err
				}
				f.Next = next(f, out)
				if out != "" {
					if err := f.write(out); err != nil {
						return err
					}
				}
				if detailed && !p.Empty() {
					a.next = []string{f.Next}
					return errPending
				}
				a.suggest(f.Next)
				return nil
			})
		},
	}
	g.flags(c)
	c.Flags().BoolVar(&destroy, "destroy", false, "plan the removal of everything that this deployment owns")
	c.Flags().BoolVar(&detailed, "detailed-exitcode", false, "exit 2 when changes are pending, 0 when there are none")
	a.drainFlag(c)
	c.Flags().StringVar(&out, "out", "", "save the plan in a `file`, for show and apply")
	wishes.flagDeleteData(c.Flags())
	wishes.flagSitesDown(c.Flags())
	wishes.flagReplace(c.Flags())
	return c
}

// next is the command that makes the changes of a plan, "" where there are none.
func next(f *planFile, file string) string {
	command := "ftpdeploy apply"
	switch {
	case len(f.Plan.Changes()) == 0:
		return ""
	case file != "":
		command += " " + file
	case f.Plan.Goal == plan.Absent:
		command = "ftpdeploy destroy"
	}
	var lacking []string
	for _, d := range f.Needs {
		if file == "" || !slices.Contains(f.Allowed, d.Kind) {
			lacking = append(lacking, d.Kind)
		}
	}
	if file == "" && f.Drain != "" {
		command += " --drain " + f.Drain
	}
	if file == "" {
		for _, name := range f.Scope.Only {
			command += " --only " + name
		}
		for _, name := range f.Scope.Skip {
			command += " --skip " + name
		}
		command += f.words()
	}
	if lacking != nil {
		command += " --allow " + strings.Join(lacking, ",")
	}
	return command
}

// suggest names the command to run next; "" is none.
func (a *app) suggest(command string) {
	if command == "" {
		return
	}
	a.next = []string{command}
	a.emit(event{level: "info", msg: "Run: " + command, data: note{}})
}

// deployment is a loaded blueprint with its connections.
type deployment struct {
	*app
	topology *blueprints.Topology
	live     *steps.Live
	smoke    bool                         // the result is to be proven
	broken   []string                     // smoke blocks that failed before the first change
	worked   map[string]*blueprints.Smoke // those that passed, as they did
	watch    *steps.Watch                 // of the plan that is applied; nil before, and where no box was looked at
	took     time.Duration                // by its application
	guard    guard
	choices
	back *steps.Generation // that is gone back to; nil = the blueprint holds
}

// open loads the blueprint; connections are made when they are needed.
func (a *app) open(c choices) (*deployment, error) {
	if a.drain != "" && !slices.Contains(drainModes, a.drain) {
		return nil, &exitError{64, fmt.Errorf("--drain %s: want wait, deadline or cut", a.drain)}
	}
	t, err := a.load()
	if err == nil {
		err = c.check(t)
	}
	if err != nil {
		return nil, err
	}
	d := &deployment{app: a, topology: t, choices: c}
	d.live = steps.Open(t, steps.Options{
		Kubeconfig: a.kubeconfig, Context: a.context, Drain: a.drain, Env: a.env, Version: version(), Keep: a.keeping(t),
		DeleteData: c.DeleteData, SitesDown: c.SitesDown, Replace: c.Replace,
		Waiting: func(text string) { a.emit(event{level: "info", msg: text, data: progress{}}) },
		Took:    sync.OnceValue(func() map[string]float64 { return a.took(t.ID) }),
		Run:     a.identity(), Blueprint: func() (string, error) { return a.historyMark(t.ID) },
		Prove: d.stays,
	})
	return d, nil
}

// reading opens for a command that changes nothing. It has no safe point to get
// to, so its context ends at the first interrupt.
func (a *app) reading(ctx context.Context, c choices, run func(context.Context, *deployment) error) error {
	d, err := a.open(c)
	if err != nil {
		return err
	}
	defer d.close()
	ctx, cancel := a.cancelOnStop(ctx)
	defer cancel()
	return run(ctx, d)
}

// close ends the connections. The run is over: what they answer changes nothing.
func (d *deployment) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = d.live.Close(ctx)
}

// plan observes the targets, makes the plan and shows it.
func (d *deployment) plan(ctx context.Context, goal plan.Goal) (*plan.Plan, *planFile, error) {
	start := d.now()
	p, scoped, err := d.look(ctx, goal)
	if err != nil {
		return nil, nil, err
	}
	f, err := d.describe(p, scoped, d.now().Sub(start))
	if err != nil {
		return nil, nil, err
	}
	d.present(f)
	return p, f, nil
}

// look observes the targets and makes the plan; its second result is, in lines,
// what was not looked at or is kept, and what --only and --skip did.
func (d *deployment) look(ctx context.Context, goal plan.Goal) (*plan.Plan, []string, error) {
	if err := d.guard.check(); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, d.timeout, fmt.Errorf("--timeout %s is over", d.timeout))
	defer cancel()
	d.emit(event{level: "info", msg: "Looking at " + d.targets() + " …", data: progress{}})
	list, err := d.list(d.live, ctx, goal)
	if err != nil {
		return nil, nil, err
	}
	p, err := plan.Make(ctx, goal, list, plan.Options{Parallel: d.parallel, Rollback: d.topology.Rollout.OnFailure != "halt", Evidence: d.evidence})
	if err != nil {
		return nil, nil, err
	}
	scoped, err := d.narrow(p)
	return p, slices.Concat(d.live.Notes(), scoped), err
}

// evidence keeps what the clusters say of a failure.
func (d *deployment) evidence(ctx context.Context) {
	if err := d.live.Evidence(ctx); err != nil {
		d.emit(event{level: "warn", msg: "Not all evidence was kept: " + err.Error(), data: note{}})
	}
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

// describe puts into words what was looked at and what will be done.
func (d *deployment) describe(p *plan.Plan, scoped []string, took time.Duration) (*planFile, error) {
	blueprint, err := d.mark("")
	if err != nil {
		return nil, err
	}
	source := d.file
	if d.back != nil {
		source = fmt.Sprintf("generation %d", d.back.Number)
	}
	f := &planFile{
		Format: planFormat, Ftpdeploy: version(), Made: d.now().UTC(), Deployment: d.topology.ID, Blueprint: blueprint,
		Scope: d.guard.scope, back: d.back, choices: d.choices, Drain: d.drain, Allowed: d.guard.allow,
		Scoped: scoped, Impact: d.live.Forecast(p), Plan: p.Save(), Needs: steps.Dangers(d.topology, p, d.SitesDown),
		Head: fmt.Sprintf("%s  (%s)  %s\nobserved in %.1f s", d.topology.ID, source, d.targets(), took.Seconds()),
	}
	f.Digest = f.Plan.Digest()
	for _, o := range d.live.Observed() {
		f.Observed = append(f.Observed, observed{
			Address: o.Address, Kind: o.Kind, MS: o.Took.Milliseconds(), Turns: o.Turns, BytesIn: o.BytesIn, BytesOut: o.BytesOut,
		})
		if o.Turns > 0 {
			f.Head += fmt.Sprintf(" · %s %d turns, %.1f KiB", o.Address, o.Turns, float64(o.BytesIn+o.BytesOut)/1024)
		}
	}
	for _, line := range d.live.Away() {
		f.Head += "\n" + line
	}
	return f, nil
}

// count adds one change to those of its action.
func (s *planSummary) count(a plan.Action) {
	switch a {
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

// text is the summary for people.
func (s *planSummary) text(f *planFile, changes int) string {
	switch {
	case changes == 0 && s.LeftOut > 0:
		return "No changes: the steps that are meant are as they should be."
	case changes == 0 && f.Plan.Goal == plan.Absent:
		return "Nothing to remove: this deployment owns nothing here."
	case changes == 0 && f.back != nil:
		return fmt.Sprintf("No changes: everything that goes back is as in generation %d.", f.back.Number)
	case changes == 0:
		return "No changes: everything is as the blueprint says."
	}
	text := "\n"
	if s.Unchanged > 0 {
		text = fmt.Sprintf("  = %s unchanged\n\n", count(s.Unchanged, "step", "steps"))
	}
	for _, d := range s.Needs {
		given := ""
		if slices.Contains(f.Allowed, d.Kind) {
			given = ", which is given"
		}
		text += fmt.Sprintf("needs --allow: %s (%s)%s\n", d.Kind, strings.Join(d.Where, ", "), given)
	}
	if s.Impact != nil {
		text += fmt.Sprintf("VIP moves: %d.  %s.  Expected: about %s\n", s.Impact.VIPMoves, cutText(*s.Impact), secondsText(*s.Impact))
	}
	return text + fmt.Sprintf("Plan: %d to add, %d to change, %d to destroy, %d to run.  Digest %s", s.Add, s.Change, s.Destroy, s.Run, s.Digest)
}

// secondsText says how long something is expected to take: a range where that was
// never measured from here.
func secondsText(i plan.Impact) string {
	if i.Longest > 0 {
		return fmt.Sprintf("%.0f to %.0f s", max(1, i.Seconds), i.Longest)
	}
	return fmt.Sprintf("%.0f s", max(1, i.Seconds))
}

// cutText says how many of the open connections a plan breaks.
func cutText(i plan.Impact) string {
	open := i.Sessions + i.Transfers
	switch {
	case open == 0:
		return "Nothing is open"
	case i.Cut == 0:
		return fmt.Sprintf("Open: %s, none is cut", opened(i))
	}
	return fmt.Sprintf("Open: %s, %d cut", opened(i), i.Cut)
}

func opened(i plan.Impact) string {
	return count(i.Sessions, "session", "sessions") + ", " + count(i.Transfers, "transfer", "transfers")
}

func changeEvent(n int, step string, c plan.Change) planChange {
	out := planChange{
		ID: fmt.Sprintf("c%d", n), Address: step, Target: c.Target, Action: c.Action.Verb(), sign: string(c.Action),
		Unified: c.Detail.Unified, Reason: reason{c.Cause, c.Reason}, Effect: string(c.Effect), Impact: c.Impact, Needs: c.Needs, From: c.From, Want: c.Want,
	}
	for _, f := range c.Detail.Fields {
		out.Diff = append(out.Diff, fieldDiff(f))
	}
	return out
}
