package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/steps"
)

// drainModes are what --drain and rollout.drain may say.
var drainModes = []string{"wait", "deadline", "cut"}

func (a *app) drainFlag(c *cobra.Command) {
	c.Flags().StringVar(&a.drain, "drain", "", "`what` becomes of the sessions on a box that must go down: wait for their end, wait until the deadline and cut, or cut (default: rollout.drain)")
}

// longestDrain is more than any maintenance takes; after it, a box that was
// forgotten takes part again.
const longestDrain = 7 * 24 * time.Hour

func (a *app) drainCommand() *cobra.Command {
	var hold time.Duration
	c := a.operation("drain LB", "Have a box give its VIPs away, and keep it from them for some time",
		`The box waits for its sessions to end, as rollout.drain says, gives its VIPs to the other box,
and takes none until the time is over or resume says so: also when the other fails, and over a
reboot. Changes of the blueprint still reach it.`,
		"  ftpdeploy drain haproxy-a\n  ftpdeploy drain haproxy-a --for 8h --drain deadline", "Drain it?",
		func(live *steps.Live, box string) ([]plan.Step, error) {
			if hold < time.Second || hold > longestDrain {
				return nil, &exitError{64, fmt.Errorf("--for %s: want 1s to %.0fh", hold, longestDrain.Hours())}
			}
			return live.Drain(box, hold, fmt.Sprintf("%s@%s", a.user, a.host))
		})
	c.Flags().DurationVar(&hold, "for", 2*time.Hour, "`time` after which the box takes part again by itself")
	a.drainFlag(c)
	return c
}

func (a *app) resumeCommand() *cobra.Command {
	return a.operation("resume LB", "Have a drained box take part again",
		"A VIP comes back to the box only where preempt is set and its priority is higher.",
		"  ftpdeploy resume haproxy-a", "Have it take part again?",
		(*steps.Live).Resume)
}

// operation is a command on one box: planned, shown, asked for and done under the
// lock, as apply does.
func (a *app) operation(use, short, long, example, question string, list func(*steps.Live, string) ([]plan.Step, error)) *cobra.Command {
	var yes bool
	var wait time.Duration
	c := &cobra.Command{
		Use: use, Short: short, Long: long, Example: example,
		Annotations: map[string]string{"events": "yes", "changes": "yes"},
		Args:        cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.operate(cmd.Context(), wait, yes, question, func(_ context.Context, live *steps.Live) ([]plan.Step, error) {
				return list(live, args[0])
			}, nil)
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	lockFlag(c, &wait)
	return c
}

// operate opens what list gives, shows and asks, and does it under the lock; then is
// called when all is done, nil = not.
func (a *app) operate(
	ctx context.Context, wait time.Duration, yes bool, question string,
	list func(context.Context, *steps.Live) ([]plan.Step, error), then func(*deployment) error,
) error {
	a.list = func(live *steps.Live, ctx context.Context, _ plan.Goal) ([]plan.Step, error) { return list(ctx, live) }
	d, err := a.open(choices{})
	if err != nil {
		return err
	}
	defer d.close()
	d.guard.max = -1
	l := d.newLock(wait)
	defer l.release()
	_, err = d.reach(ctx, l, false, func(ctx context.Context) (*plan.Plan, error) {
		return d.ask(ctx, plan.Present, yes, question)
	})
	if err != nil || then == nil {
		return err
	}
	return then(d)
}

// sayDrained tells of the boxes that have given their VIPs away.
func (d *deployment) sayDrained() {
	for _, b := range d.live.Drained() {
		e := drained{Box: b.Box, WaitedMS: b.Waited.Milliseconds(), Cut: b.Sessions}
		for _, v := range b.VIPs {
			e.VIPs = append(e.VIPs, v.String())
		}
		for _, c := range b.Clients {
			e.Clients = append(e.Clients, c.String())
		}
		d.emit(event{level: "info", msg: b.String(), data: e})
	}
}
