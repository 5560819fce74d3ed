package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/steps"
)

func (a *app) drillCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "drill", Short: "Try out on purpose what will happen one day",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	failover := a.failoverCommand()
	failover.Args = usage(failover.Args)
	c.AddCommand(failover)
	return c
}

func (a *app) failoverCommand() *cobra.Command {
	var yes, hard bool
	var wait time.Duration
	c := &cobra.Command{
		Use: "failover [LB]", Short: "Move the VIP on purpose, measure the gap, and put the box back",
		Long: `The box that holds the VIP, or LB, gives it away in order, as drain does; with --hard it fails: its
keepalived is killed and the VIP taken from it, so that nobody gets a farewell. New connections are
opened from this host every 10 ms meanwhile. When another box has the VIP, and it is answered, the
box takes part again; the VIP stays where it went, unless preempt is set. Sessions are cut. The box
mends itself if this run does not.

Exit code 7: it showed a fault.`,
		Example:     "  ftpdeploy drill failover\n  ftpdeploy drill failover --hard --yes --json\n  ftpdeploy drill failover --drain cut",
		Annotations: map[string]string{"events": "yes", "changes": "yes"},
		Args:        cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			drill := &steps.Drill{Hard: hard, Who: fmt.Sprintf("drill of %s@%s", a.user, a.host), Stop: a.stop}
			return a.operate(cmd.Context(), wait, yes, "Drill it?", func(ctx context.Context, live *steps.Live) ([]plan.Step, error) {
				return live.Drill(ctx, drill, strings.Join(args, ""))
			}, func(d *deployment) error { return d.drilled(drill) })
		},
	}
	c.Flags().BoolVar(&hard, "hard", false, "the box fails from one moment to the next, instead of giving the VIP away")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	lockFlag(c, &wait)
	a.drainFlag(c)
	return c
}

// The data of a drill's event; see event.go.
type (
	drillEvent struct {
		Box      string     `json:"box"`
		Hard     bool       `json:"hard"`
		VIPs     []drillVIP `json:"vips"`
		Cut      int        `json:"cut"` // sessions
		Clients  []string   `json:"clients,omitempty"`
		NormalMS int64      `json:"normal_ms,omitempty"` // until the box was fit again; 0 = that was not seen
		Faults   []string   `json:"faults"`
	}
	drillVIP struct {
		VIP      string `json:"vip"`
		Address  string `json:"vip_address"`
		HeldBy   string `json:"held_by"` // "" = none, or more than one
		Asked    bool   `json:"asked"`   // false: no service is behind it, and there is no gap to measure
		GapMS    int64  `json:"gap_ms"`
		Attempts int    `json:"attempts"`
		Failed   int    `json:"failed"`
		ARP      bool   `json:"arp_visible"` // this host is in the VIP's network
		ARPMS    int64  `json:"arp_ms"`      // until this host knew the VIP on the other machine; 0 = it never did
	}
)

// drilled shows what a drill has shown. The error says that this was a fault.
func (d *deployment) drilled(drill *steps.Drill) error {
	e := drillEvent{Box: drill.Box.Name, Hard: drill.Hard, Cut: drill.Sessions, NormalMS: drill.Normal.Milliseconds(), Faults: append([]string{}, drill.Faults...)}
	how := "planned"
	if drill.Hard {
		how = "hard"
	}
	lines := []string{fmt.Sprintf("drill    %s failover of %s", how, e.Box)}
	for _, v := range drill.VIPs {
		one := drillVIP{
			VIP: v.VIP.Name, Address: v.VIP.Address.String(), Asked: v.Service != nil, GapMS: v.Gap.Milliseconds(), Attempts: v.Attempts, Failed: v.Failed,
			ARP: v.Visible, ARPMS: v.Moved.Milliseconds(),
		}
		text := "not asked, as no service is behind it"
		if one.Asked {
			text = fmt.Sprintf("gap %d ms for new connections, %d of %d failed", one.GapMS, one.Failed, one.Attempts)
		}
		arp := "gratuitous ARP: not visible from here"
		switch {
		case v.Visible && v.Moved > 0:
			arp = fmt.Sprintf("gratuitous ARP seen %d ms after the act", one.ARPMS)
		case v.Visible:
			arp = "NO gratuitous ARP was seen"
		}
		holder := "NOBODY, or more than one"
		if v.Holder != nil {
			one.HeldBy = v.Holder.Name
			holder = one.HeldBy
		}
		e.VIPs = append(e.VIPs, one)
		lines = append(lines, fmt.Sprintf("vip %-4s %s: %s; %s; now held by %s", one.VIP, one.Address, text, arp, holder))
	}
	cut := "no session was cut"
	if len(drill.Clients) > 0 {
		for _, c := range drill.Clients {
			e.Clients = append(e.Clients, c.String())
		}
		cut = fmt.Sprintf("%s of %s cut", count(e.Cut, "session", "sessions"), strings.Join(e.Clients, ", "))
	}
	normal := "NOT back to normal"
	if drill.Normal > 0 {
		normal = fmt.Sprintf("back to normal after %.1f s", drill.Normal.Seconds())
	}
	lines = append(lines, "         "+cut+"; "+normal)
	level := "info"
	for _, f := range drill.Faults {
		level = "warn"
		lines = append(lines, "FAULT    "+f)
	}
	d.emit(event{level: level, msg: strings.Join(lines, "\n"), data: e})
	if len(drill.Faults) > 0 {
		return &exitError{7, fmt.Errorf("the drill showed %s: see above", count(len(drill.Faults), "fault", "faults"))}
	}
	return nil
}
