package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/steps"
)

func (a *app) adoptCommand() *cobra.Command {
	var yes bool
	var wait time.Duration
	c := &cobra.Command{
		Use: "adopt ADDRESS", Short: "Mark as ours what stands where the blueprint has something",
		Long: `Take over what was made without ftpdeploy: the VM of an lb, or its files once it can be entered, or
the Kubernetes objects of an ftp_service. Only our mark is set, shown and asked for first; what differs from
the blueprint is what the next plan shows. What bears the mark of another deployment is refused.`,
		Example:     "  ftpdeploy adopt lb.haproxy-a\n  ftpdeploy adopt ftp_service.vsftpd --yes",
		Annotations: map[string]string{"events": "yes", "changes": "yes"},
		Args:        cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := a.open(choices{})
			if err != nil {
				return err
			}
			defer d.close()
			d.guard.max = -1
			step, err := d.live.Adopt(args[0])
			if err != nil {
				return &exitError{64, err}
			}
			d.list = func(*steps.Live, context.Context, plan.Goal) ([]plan.Step, error) { return []plan.Step{step}, nil }
			l := d.newLock(wait)
			defer l.release()
			p, err := d.reach(cmd.Context(), l, false, func(ctx context.Context) (*plan.Plan, error) {
				return d.ask(ctx, plan.Present, yes, "Mark this as ours?")
			})
			if err == nil && p != nil {
				a.suggest("ftpdeploy plan")
			}
			return err
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	lockFlag(c, &wait)
	return c
}
