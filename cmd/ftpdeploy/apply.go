package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/steps"
)

// settleBound is how long after a change a failing smoke test is tried again:
// health checks, NodePorts and the holder of the VIP follow it within seconds.
const settleBound = 30 * time.Second

func (a *app) applyCommand() *cobra.Command {
	var yes, noVerify, acceptFaults bool
	var wait time.Duration
	var wishes choices
	var g guard
	c := &cobra.Command{
		Use: "apply [FILE]", Short: "Plan, ask, make exactly the planned changes, and prove the result",
		Long: `Without FILE: plan, ask, make exactly the planned changes, and prove the result.
With FILE, which plan --out has saved: look again, and if exactly the changes of that plan are
needed make them, without a question. The blueprint and its variables must be those of the plan.`,
		Example:     "  ftpdeploy apply\n  ftpdeploy apply prod.ftpplan\n  ftpdeploy apply --yes --json",
		Annotations: map[string]string{"events": "yes", "changes": "yes"},
		Args:        cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var saved *planFile
			if len(args) > 0 {
				if text := wishes.words(); text != "" {
					return &exitError{64, fmt.Errorf("%s goes with plan --out: a saved plan is applied as it is", strings.Fields(text)[0])}
				}
				var err error
				if saved, err = g.read(args[0]); err != nil {
					return err
				}
				if a.drain != "" {
					return &exitError{64, errors.New("--drain goes with plan --out: a saved plan is applied as it is")}
				}
				wishes, a.drain = saved.choices, saved.Drain
			}
			if err := a.checkRollout(cmd.Flags()); err != nil {
				return err
			}
			d, err := a.open(wishes)
			if err != nil {
				return err
			}
			defer d.close()
			defer d.measured(cmd.Context())
			d.guard = g
			l := d.newLock(wait)
			defer l.release()
			if saved != nil {
				if err := d.accept(args[0], saved); err != nil {
					return err
				}
			}
			p, err := d.reach(cmd.Context(), l, !noVerify, func(ctx context.Context) (*plan.Plan, error) {
				if saved != nil {
					return d.again(ctx, args[0], saved)
				}
				return d.ask(ctx, plan.Present, yes, "Apply these changes?")
			})
			if err != nil || saved != nil && saved.Plan.Goal == plan.Absent {
				return err
			}
			return d.prove(cmd.Context(), p, noVerify, acceptFaults)
		},
	}
	g.flags(c)
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	lockFlag(c, &wait)
	a.drainFlag(c)
	f := c.Flags()
	f.BoolVar(&noVerify, "no-verify", false, "skip the transfer that proves the result")
	f.BoolVar(&acceptFaults, "accept-baseline-faults", false, "do not fail for a smoke test that failed before the first change too")
	f.StringVar(&a.onFailure, "on-failure", "", "`what` is done with a change that fails: rollback or halt (default: the blueprint's)")
	f.DurationVar(&a.confirmWithin, "confirm-within", 0, "`bound` after which a box that is not proven goes back by itself (default: the blueprint's)")
	wishes.flagDeleteData(f)
	wishes.flagSitesDown(f)
	wishes.flagReplace(f)
	return c
}

// checkRollout holds the flags that stand in the place of the rollout block to
// what that may say.
func (a *app) checkRollout(f *pflag.FlagSet) error {
	if f.Changed("on-failure") && a.onFailure != "rollback" && a.onFailure != "halt" {
		return &exitError{64, fmt.Errorf("--on-failure %s: want rollback or halt", a.onFailure)}
	}
	if f.Changed("confirm-within") && a.confirmWithin < time.Second {
		return &exitError{64, fmt.Errorf("--confirm-within %s: want 1s or more", a.confirmWithin)}
	}
	return nil
}

// read reads a saved plan for its application.
func (g *guard) read(name string) (*planFile, error) {
	if len(g.scope.Only)+len(g.scope.Skip) > 0 {
		return nil, &exitError{64, errors.New("--only and --skip go with plan --out: a saved plan is applied as it is")}
	}
	f, err := readPlan(name, true)
	if err != nil {
		return nil, err
	}
	g.scope = f.Scope
	return f, nil
}

// prove runs the smoke tests after an apply; p is what was applied, nil where
// nothing was to do.
func (d *deployment) prove(ctx context.Context, p *plan.Plan, noVerify, acceptFaults bool) error {
	if noVerify {
		d.emit(event{level: "warn", msg: "NOT VERIFIED: --no-verify was given, nobody knows whether a transfer works. Run: ftpdeploy verify", data: note{}})
		return nil
	}
	settle := time.Duration(0)
	if p != nil {
		settle = settleBound
	}
	results, err := d.verify(ctx, nil, settle)
	if err != nil && p != nil {
		d.keepTranscripts(results)
		err = d.unproven(ctx, p, results, err, acceptFaults)
	}
	if err == nil {
		d.outputs()
	}
	return err
}

// keepTranscripts keeps what was said in the smoke tests.
func (d *deployment) keepTranscripts(results []steps.SmokeResult) {
	keep := d.keeping(d.topology)
	for _, r := range results {
		name := "smoke/" + r.Smoke.Name
		if r.Box != nil {
			name += "-" + r.Box.Name
		}
		text := strings.Join(r.Report.Transcript, "\n")
		if r.Err != nil {
			text += "\n" + r.Err.Error()
		}
		if err := keep(name+".txt", []byte(text+"\n")); err != nil {
			d.emit(event{level: "warn", msg: err.Error(), data: note{}})
		}
	}
}

func (a *app) destroyCommand() *cobra.Command {
	var yes bool
	var wait time.Duration
	var wishes choices
	var g guard
	c := &cobra.Command{
		Use: "destroy", Short: "Remove what this deployment owns; user data stays unless named",
		Example:     "  ftpdeploy destroy\n  ftpdeploy destroy --delete-data home",
		Annotations: map[string]string{"events": "yes", "changes": "yes"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := a.open(wishes)
			if err != nil {
				return err
			}
			defer d.close()
			defer d.measured(cmd.Context())
			d.guard = g
			l := d.newLock(wait)
			defer l.release()
			_, err = d.reach(cmd.Context(), l, false, func(ctx context.Context) (*plan.Plan, error) {
				return d.ask(ctx, plan.Absent, yes, "Destroy all of this?")
			})
			return err
		},
	}
	g.flags(c)
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	lockFlag(c, &wait)
	wishes.flagDeleteData(c.Flags())
	return c
}

func lockFlag(c *cobra.Command, wait *time.Duration) {
	c.Flags().DurationVar(wait, "lock-timeout", 0, "`bound` on the wait for another run's lock (default: do not wait)")
}

// unproven is the end of a run whose changes are made and whose smoke tests fail.
// It judges by the blocks: one that passed before, or was not there to be run, is
// this run's fault, and all goes back. One that failed before is not.
func (d *deployment) unproven(ctx context.Context, p *plan.Plan, results []steps.SmokeResult, err error, acceptFaults bool) error {
	before := func(r steps.SmokeResult) bool { return r.Err == nil || slices.Contains(d.broken, r.Smoke.Name) }
	switch {
	case len(results) == 0 || slices.ContainsFunc(results, func(r steps.SmokeResult) bool { return !before(r) }):
	case acceptFaults:
		d.emit(event{level: "warn", data: note{}, msg: "What fails failed before the first change too: accepted by --accept-baseline-faults."})
		return nil
	default:
		d.next = []string{"ftpdeploy verify", "ftpdeploy apply --accept-baseline-faults"}
		return &exitError{6, fmt.Errorf("%w\nIt failed before the first change too: this run did not break it, and nothing was rolled back", err)}
	}
	var decided *exitError
	if errors.As(err, &decided) {
		err = decided.err
	}
	var back *plan.RollbackError
	if err = p.Rollback(ctx, d.stop, err); errors.As(err, &back) {
		return d.served(ctx, err)
	}
	return &exitError{6, err}
}

// baselineTime bounds the proof of the boxes before the first change, and again the
// smoke tests there, which leave long_idle out; backTime is how
// long they may fail after the last one was put back.
const (
	baselineTime = 30 * time.Second
	backTime     = 15 * time.Second
)

// baseline tells apart what this run breaks from what was broken: it proves the
// boxes, and runs the smoke blocks if the result is to be proven, before the first
// change. Where no machine is made yet there is nothing to prove.
func (d *deployment) baseline(ctx context.Context) {
	d.emit(event{level: "info", msg: "Looking what works before the first change …", data: progress{}})
	ctx, cancel := d.cancelOnStop(ctx)
	defer cancel()
	look, end := context.WithTimeout(ctx, baselineTime)
	defer end()
	if !d.live.Baseline(look) || !d.smoke {
		return
	}
	ctx, cancel = context.WithTimeout(ctx, baselineTime)
	defer cancel()
	results, err := d.live.Serving(ctx, steps.SmokeOptions{As: d.brief()})
	d.worked = map[string]*blueprints.Smoke{}
	for _, r := range results {
		d.worked[r.Smoke.Name] = r.Smoke
	}
	for _, r := range results {
		if _, there := d.worked[r.Smoke.Name]; there && r.Err != nil {
			delete(d.worked, r.Smoke.Name)
			if ctx.Err() == nil { // else the time was too short for it, which says nothing
				d.broken = append(d.broken, r.Smoke.Name)
			}
		}
	}
	if err != nil && len(results) > 0 {
		d.emit(event{level: "warn", msg: "Before the first change: " + err.Error(), data: note{}})
	}
}

// brief are the smoke blocks without long_idle.
func (d *deployment) brief() map[string]*blueprints.Smoke {
	all := map[string]*blueprints.Smoke{}
	for _, s := range d.topology.Smokes {
		once := *s
		once.LongIdle = 0
		all[s.Name] = &once
	}
	return all
}

// stays proves what is there by now, before something is deleted for good: by all
// smoke blocks that did not fail before the first change too.
func (d *deployment) stays(ctx context.Context, report func(string)) error {
	if !d.smoke {
		report("not proven: the smoke tests are not run")
		return nil
	}
	names := []string{}
	for _, s := range d.topology.Smokes {
		if !slices.Contains(d.broken, s.Name) {
			names = append(names, s.Name)
		}
	}
	results, err := d.live.Smoke(ctx, steps.SmokeOptions{Names: names, As: d.brief(), Settle: settleBound, Report: report})
	if err = cmp.Or(err, context.Cause(ctx)); err != nil {
		d.keepTranscripts(results)
	}
	return err
}

// served looks, after all was put back because of err, whether what worked before
// works again: the boxes and, unless the run was interrupted, the smoke blocks.
func (d *deployment) served(ctx context.Context, err error) error {
	var back *plan.RollbackError
	if !errors.As(err, &back) || !back.Complete() || len(back.Undone) == 0 {
		return err
	}
	// Also when the time of the run is over.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*backTime)
	defer cancel()
	start := d.now()
	names := slices.Sorted(maps.Keys(d.worked))
	short := map[string]*blueprints.Smoke{}
	for name, s := range d.worked {
		// A session that the way back cut off keeps a passive port for a minute.
		once := *s
		once.EveryPort = false
		short[name] = &once
	}
	failed := d.live.Returned(ctx)
	if failed == nil && len(d.worked) > 0 && d.halted() == nil {
		_, failed = d.live.Smoke(ctx, steps.SmokeOptions{Names: names, As: short, Settle: backTime, Report: d.notYet()})
	}
	took := d.now().Sub(start)
	end := rollback{phase: "end", Address: "smoke", ElapsedMS: took.Milliseconds(), Outcome: "done"}
	switch {
	case failed != nil:
		end.Outcome, end.Cause = "failed", failed.Error()
		d.emit(event{level: "error", msg: fmt.Sprintf("verify    FAILED: %v", failed), data: end})
		d.next = []string{"ftpdeploy verify"}
		return &exitError{6, fmt.Errorf("%w\nall is put back, and what worked before does not: %w", err, failed)}
	case len(d.worked) > 0:
		d.emit(event{level: "info", msg: fmt.Sprintf("verify    works as before: %s  %.1f s", strings.Join(names, ", "), took.Seconds()), data: end})
	}
	return err
}

// ask makes a plan, shows it, and asks whether it is wanted.
func (d *deployment) ask(ctx context.Context, goal plan.Goal, yes bool, question string) (*plan.Plan, error) {
	p, f, err := d.plan(ctx, goal)
	if err != nil || p.Empty() {
		return p, err
	}
	if err := errors.Join(d.guard.within(f.Plan), d.guard.allows(f)); err != nil || yes {
		return p, err
	}
	return p, d.confirm("\n" + question)
}

// again makes a saved plan again, if that is still what is needed.
func (d *deployment) again(ctx context.Context, name string, f *planFile) (*plan.Plan, error) {
	p, _, err := d.look(ctx, f.Plan.Goal)
	if err == nil {
		err = f.Plan.Match(p)
	}
	if err != nil {
		d.next = []string{"ftpdeploy plan --out " + name}
		return nil, err
	}
	d.emit(event{level: "info", data: note{}, msg: fmt.Sprintf("%s: %s as planned %s ago.  Digest %s",
		name, count(len(p.Changes()), "change", "changes"), d.now().Sub(f.Made).Round(time.Second), f.Digest[:shownDigest])})
	return p, nil
}

// reach takes the lock and applies the plan that agreed returns, which it returns
// too; nil where nothing was to do. With smoke it looks before the first change
// whether the smoke tests pass.
func (d *deployment) reach(ctx context.Context, l *lock, smoke bool, agreed func(context.Context) (*plan.Plan, error)) (*plan.Plan, error) {
	p, err := d.agree(ctx, l, agreed)
	if err != nil || p.Empty() {
		return nil, err
	}
	d.smoke = smoke
	if p.Goal == plan.Present {
		d.baseline(ctx)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, d.timeout, fmt.Errorf("--timeout %s is over", d.timeout))
	defer cancel()
	o := d.observe(p)
	d.emit(event{level: "info", msg: "", data: note{}})
	if d.forecast = d.live.Forecast(p); d.forecast != nil {
		d.watch = d.live.Watch(ctx)
	}
	start := d.now()
	err = p.Apply(ctx, d.stop)
	d.took = d.now().Sub(start)
	d.sayDrained()
	if err != nil {
		var back *plan.RollbackError
		if !errors.As(err, &back) || !back.Complete() {
			d.emit(event{level: "error", msg: o.undone(p), data: note{}})
		}
		return p, d.served(ctx, err)
	}
	d.emit(event{level: "info", msg: fmt.Sprintf("\nDone: %s in %.1f s.", count(d.changed, "change", "changes"), d.took.Seconds()), data: note{}})
	return p, nil
}

// measured says what a run did cost beside what was expected; it is told when the
// smoke tests are over, as a VIP may move a moment after the change that moves it.
func (d *deployment) measured(ctx context.Context) {
	if d.watch == nil {
		return
	}
	fact, err := d.watch.Stop(context.WithoutCancel(ctx))
	text := func(i plan.Impact) string {
		lasts := fmt.Sprintf("%.1f s", i.Seconds)
		if i.Longest > 0 {
			lasts = secondsText(i)
		}
		return fmt.Sprintf("%d cut, %s, %s", i.Cut, count(i.VIPMoves, "VIP move", "VIP moves"), lasts)
	}
	if err != nil {
		d.emit(event{level: "warn", msg: fmt.Sprintf("Forecast: %s.  What it did cost could not be measured: %v", text(*d.forecast), err), data: note{}})
		return
	}
	fact.Seconds = d.took.Seconds()
	d.fact = &fact
	d.emit(event{level: "info", msg: fmt.Sprintf("\nForecast: %s.  Fact: %s.", text(*d.forecast), text(fact)), data: note{}})
}

// agree returns a plan that was shown and said yes to, with the lock held unless
// it is empty. Where another run was in between, it is made and asked for again.
func (d *deployment) agree(ctx context.Context, l *lock, agreed func(context.Context) (*plan.Plan, error)) (*plan.Plan, error) {
	ctx, cancel := d.cancelOnStop(ctx)
	defer cancel()
	if err := l.enter(ctx); err != nil {
		return nil, err
	}
	for {
		p, err := agreed(ctx)
		if err != nil || p.Empty() {
			return p, err
		}
		if waited, err := l.acquire(ctx); err != nil || !waited {
			return p, err
		}
		d.emit(event{level: "warn", msg: "Another run was in between: planning again.", data: note{}})
	}
}

// observer translates what the engine says into events.
type observer struct {
	*deployment
	mu      sync.Mutex
	started map[string]time.Time // target -> when its change began
	done    map[string]bool      // step + target: changed
	broken  map[string]bool      // step + target: begun, and ended by an error
	ids     map[string]string    // step + target -> id of the planned change
}

// observe readies the deployment for the application of p.
func (d *deployment) observe(p *plan.Plan) *observer {
	o := &observer{deployment: d, started: map[string]time.Time{}, done: map[string]bool{}, broken: map[string]bool{}, ids: map[string]string{}}
	var acting []int
	n := 0
	for i, e := range p.Entries {
		if len(e.Changes) > 0 {
			acting = append(acting, i)
		}
		for _, c := range e.Changes {
			n++
			o.ids[e.Step.Name()+c.Target] = fmt.Sprintf("c%d", n)
		}
	}
	if d.view != nil {
		d.view.expect(acting)
	}
	p.Observe(o)
	return o
}

// Observe implements plan.Observer.
func (o *observer) Observe(e plan.Event) {
	switch e.Kind {
	case plan.ChangeStarted, plan.ChangeProgress, plan.ChangeDone, plan.ChangeFailed:
		o.change(e)
	case plan.StepDone:
		o.emit(event{level: "info", msg: e.Step + ": as planned", data: stepEnd{e.Step, "changed", e.Index}})
	case plan.StepFailed:
		o.emit(event{level: "error", msg: e.Step + ": " + e.Err.Error(), data: stepEnd{e.Step, "failed", e.Index}})
	case plan.StepSkipped:
		o.emit(event{level: "warn", msg: e.Err.Error(), data: stepEnd{e.Step, "skipped", e.Index}})
	case plan.RollbackStarted, plan.RollbackDone, plan.RollbackFailed:
		o.rollback(e)
	case plan.StepPlanned, plan.StepStarted:
	}
}

func (o *observer) rollback(e plan.Event) {
	o.mu.Lock()
	key := "rollback " + e.Step
	if e.Kind == plan.RollbackStarted {
		o.started[key] = o.now()
		for _, c := range e.Changes {
			delete(o.done, e.Step+c.Target)
		}
	}
	elapsed := o.now().Sub(o.started[key])
	o.mu.Unlock()
	r := rollback{phase: "end", Address: e.Step, ElapsedMS: elapsed.Milliseconds(), Outcome: "done"}
	level := "info"
	msg := fmt.Sprintf("rollback  %s is as it was  %.1f s", e.Step, elapsed.Seconds())
	switch e.Kind {
	case plan.RollbackStarted:
		r.phase, r.Outcome = "start", ""
		msg = fmt.Sprintf("rollback  %s: putting back %s", e.Step, count(len(e.Changes), "change", "changes"))
	case plan.RollbackFailed:
		r.Outcome, r.Cause, level = "failed", e.Err.Error(), "error"
		msg = fmt.Sprintf("rollback  %s FAILED: %v", e.Step, e.Err)
	}
	o.emit(event{level: level, msg: msg, data: r})
}

func (o *observer) change(e plan.Event) {
	o.mu.Lock()
	key := e.Step + e.Change.Target
	if e.Kind == plan.ChangeStarted {
		o.started[key] = o.now()
	}
	elapsed := o.now().Sub(o.started[key])
	switch e.Kind {
	case plan.ChangeDone:
		o.done[key] = true
		o.changed++
	case plan.ChangeFailed:
		o.broken[key] = true
		o.changed++ // it may have reached its target
	}
	o.mu.Unlock()
	a := action{
		sign: string(e.Change.Action), ID: o.ids[key], Address: e.Change.Target, Step: e.Step, ElapsedMS: elapsed.Milliseconds(),
	}
	msg := fmt.Sprintf("%s %s", e.Step, e.Change.Target)
	level := "info"
	switch e.Kind {
	case plan.ChangeStarted:
		a.phase = "start"
	case plan.ChangeProgress:
		a.phase = "progress"
		msg = fmt.Sprintf("%s: %s (%.0f s)", msg, e.Text, elapsed.Seconds())
	case plan.ChangeDone:
		a.phase, a.Outcome = "end", "changed"
	default:
		a.phase, a.Outcome, a.Cause, level = "end", "failed", e.Err.Error(), "error"
	}
	o.emit(event{level: level, msg: msg, data: a})
}

// undone says, after an error, what was changed, what may be half changed, and
// what was not touched.
func (o *observer) undone(p *plan.Plan) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var done, broken, not []string
	for _, e := range p.Entries {
		for _, c := range e.Changes {
			switch key := e.Step.Name() + c.Target; {
			case o.done[key]:
				done = append(done, c.Target)
			case o.broken[key]:
				broken = append(broken, c.Target)
			default:
				not = append(not, c.Target)
			}
		}
	}
	if len(done)+len(broken) == 0 {
		return "\nNothing was changed."
	}
	text := ""
	for _, part := range []struct {
		what    string
		targets []string
	}{{"Changed", done}, {"Begun, and perhaps changed", broken}, {"Not changed", not}} {
		if len(part.targets) > 0 {
			text += fmt.Sprintf("\n%s: %s.", part.what, strings.Join(part.targets, ", "))
		}
	}
	return text + "\nRun again when the cause is gone: the next plan starts from what is there."
}

// outputs prints the blueprint's outputs.
func (d *deployment) outputs() {
	for _, o := range d.topology.Outputs {
		value := o.Value
		if o.Sensitive {
			value = "(sensitive)"
		}
		d.emit(event{level: "info", msg: o.Name + " = " + value, data: output{o.Name, value, o.Sensitive}})
	}
}

// errFault says that verify found a fault, which has been shown.
var errFault = &exitError{7, errors.New("the smoke test failed: see above for the hop that broke")}

// errPaths says that verify --matrix found paths that move no data, which have been shown.
var errPaths = &exitError{7, errors.New("not every path works: see above for those that do not")}
