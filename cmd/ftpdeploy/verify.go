package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/steps"
)

func (a *app) verifyCommand() *cobra.Command {
	var names, reports []string
	var matrix bool
	var wishes choices
	c := &cobra.Command{
		Use: "verify", Short: "Prove the service with real passive-FTP transfers",
		Long: `Run the smoke blocks: real transfers through the VIP and, where the blueprint says so, through
the box that does not hold it. With --matrix also prove every passive port from every box to
every worker, by listings that change nothing.`,
		Example: "  ftpdeploy verify\n  ftpdeploy verify --matrix\n  ftpdeploy verify --name end-to-end --json\n" +
			"  ftpdeploy verify --matrix --report prometheus=/var/lib/node_exporter/ftp.prom",
		Annotations: map[string]string{"events": "yes"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			files, err := parseReports(reports)
			if err != nil {
				return err
			}
			return a.reading(cmd.Context(), wishes, func(ctx context.Context, d *deployment) error {
				for _, name := range names {
					if !slices.ContainsFunc(d.topology.Smokes, func(s *blueprints.Smoke) bool { return s.Name == name }) {
						return &exitError{64, fmt.Errorf("--name %s: the blueprint has no smoke block of that name", name)}
					}
				}
				for _, line := range d.live.LeftOut() {
					d.emit(event{level: "warn", msg: line, data: note{}})
				}
				// The matrix goes first: a transfer that breaks leaves its port taken for as long as the
				// server waits for it, and the matrix leaves none.
				var v verdicts
				var paths error
				if matrix {
					v.cells, paths = d.matrix(ctx)
				}
				if ctx.Err() == nil {
					v.smokes, err = d.verify(ctx, names, 0)
				}
				return errors.Join(cmp.Or(err, paths), v.write(files, d.now()))
			})
		},
	}
	c.Flags().BoolVar(&matrix, "matrix", false, "prove every passive port from every box to every worker too")
	c.Flags().StringArrayVar(&reports, "report", nil, "write the result as junit=`FILE` or prometheus=FILE (textfile collector) too")
	c.Flags().StringArrayVar(&names, "name", nil, "only the smoke block of this `name`")
	wishes.flagSitesDown(c.Flags())
	return c
}

// verify runs the smoke tests. With settle it tries again for that long: after
// a change, NodePorts answer a few seconds later than Kubernetes says.
func (d *deployment) verify(ctx context.Context, names []string, settle time.Duration) ([]steps.SmokeResult, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, d.timeout, fmt.Errorf("--timeout %s is over", d.timeout))
	defer cancel()
	results, err := d.live.Smoke(ctx, steps.SmokeOptions{Names: names, Settle: settle, Report: d.notYet()})
	for _, r := range results {
		d.proof(r)
	}
	switch {
	case ctx.Err() != nil:
		return results, context.Cause(ctx)
	case err != nil:
		return results, verdict(results)
	case len(results) == 0:
		d.emit(event{level: "warn", msg: "NOT VERIFIED: the blueprint has no smoke block, nobody knows whether a transfer works.", data: note{}})
	}
	return results, nil
}

// errUnasked says that a box could not be asked, which has been shown.
var errUnasked = &exitError{9, errors.New("a box cannot be asked who holds the VIP: see above for why")}

// verdict tells a transfer that fails from a test that could not be made, because
// a box is out of reach or is not the one that is trusted.
func verdict(results []steps.SmokeResult) error {
	unasked := false
	for _, r := range results {
		if r.Err != nil && (r.Address != "" || !slices.ContainsFunc(unreachable, func(u error) bool { return errors.Is(r.Err, u) })) {
			return errFault
		}
		unasked = unasked || r.Err != nil
	}
	if unasked {
		return errUnasked
	}
	return errFault
}

// notYet tells of a smoke test that is tried again: when its fault is another
// one, and else every ten seconds.
func (d *deployment) notYet() func(string) {
	var last string
	var said time.Time
	return func(text string) {
		if text == last && d.now().Sub(said) < 10*time.Second {
			return
		}
		last, said = text, d.now()
		d.emit(event{level: "info", msg: "not yet: " + text, data: progress{}})
	}
}

// proof shows the outcome of one smoke block.
func (d *deployment) proof(r steps.SmokeResult) {
	verdict, box := "PASS", ""
	if r.Err != nil {
		verdict = "FAIL"
	}
	head := fmt.Sprintf("\n%s  smoke %q", verdict, r.Smoke.Name)
	if r.Address != "" {
		head += " via " + r.Address
	}
	if r.Box != nil {
		box = r.Box.Name
		head += " (standby " + box + ")"
	}
	d.emit(event{level: "info", msg: fmt.Sprintf("%s  %.1f s", head, r.Took.Seconds()), data: note{}})
	for _, c := range r.Report.Checks {
		level := "info"
		if !c.OK {
			level = "error"
		}
		text := c.Detail
		if c.Bytes > 0 && c.OK {
			text = strings.TrimSpace(fmt.Sprintf("%s %.1f MiB/s", text, c.BytesPerSecond()/(1<<20)))
		}
		d.emit(event{level: level, msg: c.Name + ": " + text, data: smokeCheck{
			Smoke: r.Smoke.Name, Name: c.Name, Box: box, OK: c.OK, MS: c.Duration.Milliseconds(), Bytes: c.Bytes, Port: c.Port, Text: text,
		}})
	}
	if n := len(r.Report.Ports); n > 0 {
		text := fmt.Sprintf("       passive ports that moved data: %d", n)
		if len(r.Report.NotDrawn) > 0 {
			text += fmt.Sprintf("; never drawn by the server: %v", r.Report.NotDrawn)
		}
		d.emit(event{level: "info", msg: text, data: note{}})
	}
	if r.Err == nil {
		return
	}
	d.emit(event{level: "error", msg: r.Err.Error(), data: note{}})
	if d.verbose > 0 {
		d.emit(event{level: "error", msg: strings.Join(r.Report.Transcript, "\n"), data: note{}})
	}
}
