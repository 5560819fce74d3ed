package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/steps"
)

func (a *app) historyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "history", Short: "List the generations that can be gone back to: when, who, what changed",
		Example:     "  ftpdeploy history\n  ftpdeploy history --json",
		Annotations: map[string]string{"events": "yes"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.reading(cmd.Context(), choices{}, func(ctx context.Context, d *deployment) error {
				all, err := d.generations(ctx)
				if err != nil {
					return err
				}
				if len(all) == 0 {
					a.emit(event{level: "info", msg: "Nothing is kept: no apply has come to its end here.", data: note{}})
					return nil
				}
				d.table(all)
				return nil
			})
		},
	}
}

// generations are those that are kept. A box that cannot be asked is warned of:
// every box keeps all of them.
func (d *deployment) generations(ctx context.Context) ([]*steps.Generation, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, d.timeout, fmt.Errorf("--timeout %s is over", d.timeout))
	defer cancel()
	all, err := d.history(d.live, ctx)
	if len(all) == 0 || ctx.Err() != nil {
		return nil, err
	}
	if err != nil {
		d.emit(event{level: "warn", msg: "Perhaps not all: " + err.Error(), data: note{}})
	}
	return all, nil
}

// table prints generations, the newest last.
func (d *deployment) table(all []*steps.Generation) {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "  generation\tmade (UTC)\tby\tcommand\tchanged")
	for i, g := range all {
		mark := " "
		if i == len(all)-1 {
			mark = "*"
		}
		who, _, _ := strings.Cut(g.Run.Who, " pid ")
		fmt.Fprintf(w, "%s %d\t%s\t%s\t%s\t%s\n", mark, g.Number, g.Made.UTC().Format(time.DateTime), who, g.Run.Command, g.Words())
	}
	_ = w.Flush() // into memory
	lines := strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
	d.emit(event{level: "info", msg: lines[0], data: note{}})
	for i, g := range all {
		d.emit(event{level: "info", msg: lines[i+1], data: generation{
			Number: g.Number, Made: stamp(g.Made), Who: g.Run.Who, Command: g.Run.Command, RunID: g.Run.ID, Ftpdeploy: g.Ftpdeploy,
			Blueprint: g.Blueprint, Back: g.Back, Differs: g.Changed, Current: i == len(all)-1,
		}})
	}
}

// generation is the one of a number.
func (d *deployment) generation(ctx context.Context, number int) (*steps.Generation, error) {
	all, err := d.generations(ctx)
	if err != nil {
		return nil, err
	}
	var kept []string
	for _, g := range all {
		if g.Number == number {
			return g, nil
		}
		kept = append(kept, strconv.Itoa(g.Number))
	}
	if kept == nil {
		kept = []string{"none"}
	}
	return nil, &exitError{1, fmt.Errorf("generation %d is not kept; kept are: %s", number, strings.Join(kept, ", "))}
}

func (a *app) diffCommand() *cobra.Command {
	return &cobra.Command{
		Use: "diff GEN [GEN]", Short: "Show what differs between two generations, or between one and what is there now",
		Long: `Shows files and manifests as unified diffs. With one generation: from it to what the boxes and the
cluster have now, as far as a rollback would put it back.`,
		Example:     "  ftpdeploy diff 7\n  ftpdeploy diff 7 8",
		Annotations: map[string]string{"events": "yes"},
		Args:        cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var numbers []int
			for _, s := range args {
				n, err := strconv.Atoi(s)
				if err != nil || n < 1 {
					return &exitError{64, fmt.Errorf("%q is no number of a generation; ftpdeploy history lists them", s)}
				}
				numbers = append(numbers, n)
			}
			return a.reading(cmd.Context(), choices{}, func(ctx context.Context, d *deployment) error {
				differences, err := d.diff(ctx, numbers)
				if err != nil {
					return err
				}
				for _, x := range differences {
					a.emit(event{level: "info", msg: x.Name, data: difference(x)})
				}
				if len(differences) == 0 {
					a.emit(event{level: "info", msg: "No differences.", data: note{}})
				}
				return nil
			})
		},
	}
}

// diff compares two generations, or one and what is there now.
func (d *deployment) diff(ctx context.Context, numbers []int) ([]steps.Difference, error) {
	from, err := d.generation(ctx, numbers[0])
	if err != nil {
		return nil, err
	}
	if len(numbers) == 2 {
		to, err := d.generation(ctx, numbers[1])
		if err != nil {
			return nil, err
		}
		return steps.Diff(strconv.Itoa(from.Number), from.Texts, strconv.Itoa(to.Number), to.Texts), nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, d.timeout, fmt.Errorf("--timeout %s is over", d.timeout))
	defer cancel()
	now, err := d.live.Now(ctx, from)
	if err != nil {
		return nil, err
	}
	return steps.Diff(strconv.Itoa(from.Number), from.GoingBack(), "now", now), nil
}

func (a *app) rollbackCommand() *cobra.Command {
	var yes bool
	var to int
	var wait time.Duration
	var g guard
	c := &cobra.Command{
		Use: "rollback --to GEN", Short: "Plan, ask, go back to a generation on all boxes and in the cluster, and prove the result",
		Long: `Goes back to a generation that ftpdeploy history lists: the files of the boxes, and the Deployment and
Service of each ftp_service, are made as they were then, in the order and with the proofs of apply. Machines,
packages, passwords and claims stay as the blueprint says. What was gone back to is a generation of its own.`,
		Example:     "  ftpdeploy rollback --to 7\n  ftpdeploy rollback --to 7 --yes",
		Annotations: map[string]string{"events": "yes", "changes": "yes"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if to < 1 {
				return &exitError{64, errors.New("--to is required: the generation to go back to; ftpdeploy history lists them")}
			}
			a.verb = fmt.Sprintf("rollback --to %d", to)
			d, err := a.open(choices{})
			if err != nil {
				return err
			}
			defer d.close()
			d.guard = g
			l := d.newLock(wait)
			defer l.release()
			if err := d.goBack(cmd.Context(), to); err != nil {
				return err
			}
			p, err := d.reach(cmd.Context(), l, true, func(ctx context.Context) (*plan.Plan, error) {
				return d.ask(ctx, plan.Present, yes, fmt.Sprintf("Go back to generation %d?", to))
			})
			if err != nil {
				return err
			}
			if err := d.prove(cmd.Context(), p, false, false); err != nil {
				return err
			}
			return d.ahead()
		},
	}
	g.flags(c)
	c.Flags().IntVar(&to, "to", 0, "the `generation` to go back to")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	lockFlag(c, &wait)
	a.drainFlag(c)
	return c
}

// goBack has the deployment lead to a generation, and says what of it does not
// come back.
func (d *deployment) goBack(ctx context.Context, number int) error {
	ctx, cancel := d.cancelOnStop(ctx)
	defer cancel()
	d.emit(event{level: "info", msg: "Looking at the history …", data: progress{}})
	g, err := d.generation(ctx, number)
	if err != nil {
		return err
	}
	topology, stays, err := d.live.BackTo(g)
	if err != nil {
		return err
	}
	d.topology, d.back = topology, g
	who, _, _ := strings.Cut(g.Run.Who, " pid ")
	text := fmt.Sprintf("Back to generation %d of %s UTC, by %s: %s\n", g.Number, g.Made.UTC().Format(time.DateTime), who, g.Run.Command) +
		"Goes back: the files of the boxes, and each ftp_service's Deployment, settings and Service.\n" +
		"Stays as the blueprint says: machines, packages, namespaces, passwords, claims and their data.\n"
	for _, line := range stays {
		text += "  otherwise then, and stays: " + line + "\n"
	}
	d.emit(event{level: "info", msg: text, data: note{}})
	return nil
}

// ahead says that a plan of the blueprint would lead forward again.
func (d *deployment) ahead() error {
	now, err := d.historyMark(d.topology.ID)
	if err != nil || now == d.back.Blueprint {
		return err
	}
	d.emit(event{level: "info", data: note{}, msg: fmt.Sprintf(
		"\nThe blueprint is ahead of generation %d: the next apply leads there again, unless the blueprint is changed.", d.back.Number)})
	d.suggest("ftpdeploy plan")
	return nil
}

// historyMark is the digest by which the history knows a blueprint again: the salt
// is always the same.
func (a *app) historyMark(deployment string) (string, error) {
	m, err := a.mark("history/" + deployment)
	return m.Digest, err
}

// withHistory is a scope that leaves out the history where it leaves out anything:
// a part of what is wanted is no generation.
func (d *deployment) withHistory(scope plan.Scope, p *plan.Plan) plan.Scope {
	history := steps.HistoryStep(d.topology)
	there := slices.ContainsFunc(p.Entries, func(e plan.Entry) bool { return e.Step.Name() == history })
	if there && len(scope.Skip) > 0 && !slices.Contains(scope.Only, history) {
		scope.Skip = append(slices.Clone(scope.Skip), history)
	}
	return scope
}
