package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/steps"
)

// statusBound is how long status waits for a target, unless --timeout says so.
const statusBound = 2 * time.Second

func (a *app) statusCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "status", Short: "Say what runs: VIPs, boxes, sessions, versions, pods, the last run",
		Long: `Looks at all targets at the same time and changes nothing. A target that does not answer within
2 seconds, or --timeout, is named, the others are shown, and the exit code is 9.`,
		Example:     "  ftpdeploy status\n  ftpdeploy status --json\n  ftpdeploy status --timeout 10s",
		Annotations: map[string]string{"events": "yes"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			bound := statusBound
			if cmd.Flags().Changed("timeout") {
				bound = a.timeout
			}
			return a.reading(cmd.Context(), choices{}, func(ctx context.Context, d *deployment) error {
				start := d.now()
				s := d.live.Status(ctx, bound)
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				d.emit(event{level: "info", data: note{}, msg: fmt.Sprintf("%s  (%s)  %s\nlooked at in %.1f s\n",
					d.topology.ID, d.file, d.targets(), d.now().Sub(start).Seconds())})
				return d.status(s)
			})
		},
	}
	return c
}

// The data of status's events; see event.go.
type (
	vipStatus struct {
		VIP     string   `json:"vip"`
		Address string   `json:"vip_address"`
		Holders []string `json:"holders"`         // one, unless something is wrong
		Since   string   `json:"since,omitempty"` // that the holder has it
		Unknown bool     `json:"unknown"`         // a box could not be asked
	}
	boxStatus struct {
		Box        string     `json:"box"`
		Error      string     `json:"error,omitempty"` // why the rest is not known
		Absent     bool       `json:"absent,omitempty"`
		OS         string     `json:"os,omitempty"`
		HAProxy    string     `json:"haproxy,omitempty"`
		Keepalived string     `json:"keepalived,omitempty"`
		Stopped    []string   `json:"stopped,omitempty"` // services that do not run
		Holds      []string   `json:"holds"`
		Sessions   int        `json:"sessions"`
		Transfers  int        `json:"transfers"`
		OldWorkers []float64  `json:"old_workers_s,omitempty"` // ages
		Nodes      []nodesUp  `json:"nodes,omitempty"`         // absent where HAProxy does not tell
		Drained    *drainedBy `json:"drained,omitempty"`
	}
	nodesUp struct {
		Service string   `json:"service"`
		Up      int      `json:"up"`
		All     int      `json:"all"`
		Down    []string `json:"down,omitempty"`
	}
	drainedBy struct {
		Until string `json:"until"`
		By    string `json:"by"` // "" = a run
	}
	clusterStatus struct {
		Cluster string `json:"cluster"`
		Version string `json:"kubernetes,omitempty"`
		Error   string `json:"error,omitempty"`
	}
	serviceStatus struct {
		Service string      `json:"service"`
		Pods    []podStatus `json:"pods"`
		Error   string      `json:"error,omitempty"`
		// CertificateEnds is when the certificate that it serves with ends.
		CertificateEnds string `json:"certificate_ends,omitempty"`
	}
	podStatus struct {
		Pod      string `json:"pod"`
		Node     string `json:"node,omitempty"`
		State    string `json:"state"`
		Ready    bool   `json:"ready"`
		Since    string `json:"since"`
		Restarts int    `json:"restarts"`
		Image    string `json:"image"`
		Digest   string `json:"digest,omitempty"`
	}
	lastRun struct {
		What    string `json:"what"` // generation: the newest that is kept; here: the last run of this user and host; now: one that is under way
		Number  int    `json:"generation,omitempty"`
		When    string `json:"when"`
		Who     string `json:"who"`
		Command string `json:"command"`
		RunID   string `json:"of_run,omitempty"`
		Exit    *int   `json:"exit_code,omitempty"`
	}
)

// status shows what was seen. The error says that something could not be.
func (d *deployment) status(s *steps.Status) error {
	for _, v := range s.VIPs {
		d.statusVIP(v)
	}
	for _, b := range s.Boxes {
		d.statusBox(b)
	}
	for _, c := range s.Clusters {
		e, text := clusterStatus{Cluster: c.Cluster.Name, Version: c.Version}, "Kubernetes "+c.Version
		if c.Err != nil {
			e.Error, text = c.Err.Error(), "NOT KNOWN: "+c.Err.Error()
		}
		d.emit(event{level: "info", data: e, msg: fmt.Sprintf("\n%-12s %s", "cluster "+c.Cluster.Name, text)})
	}
	for _, v := range s.Services {
		d.statusService(v)
	}
	for _, v := range s.Services {
		d.statusCertificate(v)
	}
	d.statusRuns(s)
	if err := s.Err(); err != nil {
		return &exitError{exitCode(err, false), errors.New("not all could be asked: see above for what, and why")}
	}
	return nil
}

func (d *deployment) statusVIP(v *steps.VIPStatus) {
	e := vipStatus{VIP: v.VIP.Name, Address: v.VIP.Address.String(), Holders: boxNames(v.Holders), Unknown: v.Unknown}
	text, level := "held by "+strings.Join(e.Holders, " AND ")+d.since(v.Since), "info"
	switch {
	case len(v.Holders) > 1:
		text, level = "HELD TWICE: "+text, "warn"
	case len(v.Holders) == 0 && v.Unknown:
		text, level = "NOT KNOWN who holds it: a box cannot be asked", "warn"
	case len(v.Holders) == 0:
		text, level = "HELD BY NONE", "warn"
	}
	if !v.Since.IsZero() {
		e.Since = stamp(v.Since)
	}
	d.emit(event{level: level, data: e, msg: fmt.Sprintf("%-12s %-15s %s", "vip "+e.VIP, e.Address, text)})
}

// since is a moment for people, "" where it is not known.
func (d *deployment) since(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return fmt.Sprintf(" since %s UTC (%s)", t.UTC().Format(time.DateTime), age(d.now().Sub(t)))
}

// age is a duration for people, to two units: "3d 4h", "12m 5s".
func age(d time.Duration) string {
	s := int(max(0, d).Seconds())
	switch {
	case s >= 24*3600:
		return fmt.Sprintf("%dd %dh", s/86400, s%86400/3600)
	case s >= 3600:
		return fmt.Sprintf("%dh %dm", s/3600, s%3600/60)
	case s >= 60:
		return fmt.Sprintf("%dm %ds", s/60, s%60)
	}
	return fmt.Sprintf("%ds", s)
}

func boxNames(boxes []*blueprints.Box) []string {
	names := []string{}
	for _, b := range boxes {
		names = append(names, b.Name)
	}
	return names
}

func (d *deployment) statusBox(b *steps.BoxStatus) {
	e := boxStatus{
		Box: b.Box.Name, Absent: b.Absent, OS: b.OS, HAProxy: b.HAProxy, Keepalived: b.Keepalived, Stopped: b.Stopped, Holds: []string{},
		Sessions: b.Sessions, Transfers: b.Transfers,
	}
	head := fmt.Sprintf("\n%-12s ", e.Box)
	switch {
	case b.Err != nil:
		e.Error = b.Err.Error()
		d.emit(event{level: "warn", data: e, msg: head + "NOT KNOWN: " + e.Error})
		return
	case b.Absent:
		d.emit(event{level: "info", data: e, msg: head + "is not made yet"})
		return
	}
	for _, v := range b.Holds {
		e.Holds = append(e.Holds, v.Name)
	}
	var lines []string
	has := "holds no VIP"
	if len(e.Holds) > 0 {
		has = "holds vip " + strings.Join(e.Holds, ", ")
	}
	lines = append(lines, fmt.Sprintf("%s; %s, %s open", has, count(b.Sessions, "session", "sessions"), count(b.Transfers, "transfer", "transfers")),
		fmt.Sprintf("HAProxy %s, keepalived %s, %s", cmp.Or(b.HAProxy, "not installed"), cmp.Or(b.Keepalived, "not installed"), b.OS))
	for _, n := range b.Nodes {
		e.Nodes = append(e.Nodes, nodesUp{n.Service.Name, n.Up, n.All, n.Down})
		lines = append(lines, fmt.Sprintf("%s: %d of %s up", n.Service.Name, n.Up, count(n.All, "node", "nodes")))
		for _, text := range n.Down {
			lines = append(lines, "  "+text)
		}
	}
	if b.Nodes == nil && !slices.Contains(b.Stopped, "haproxy") && b.HAProxy != "" {
		lines = append(lines, "nodes: not known, HAProxy's configuration is from before ftpdeploy could ask it (apply brings it up to date)")
	}
	if len(b.OldWorkers) > 0 {
		var ages []string
		for _, w := range b.OldWorkers {
			e.OldWorkers = append(e.OldWorkers, w.Seconds())
			ages = append(ages, age(w))
		}
		lines = append(lines, fmt.Sprintf("%s of HAProxy from before a reload, for open sessions: %s old", count(len(ages), "worker", "workers"), strings.Join(ages, ", ")))
	}
	level := "info"
	for _, service := range b.Stopped {
		level = "warn"
		lines = append(lines, strings.ToUpper(service)+" DOES NOT RUN")
	}
	if !b.DrainedTo.IsZero() {
		e.Drained = &drainedBy{stamp(b.DrainedTo), b.DrainedBy}
		lines = append(lines, fmt.Sprintf("DRAINED until %s UTC, by %s: it takes no VIP, also if the other fails. To end that: ftpdeploy resume %s",
			b.DrainedTo.UTC().Format(time.DateTime), cmp.Or(b.DrainedBy, "a run, for its own work"), e.Box))
	}
	d.emit(event{level: level, data: e, msg: head + strings.Join(lines, "\n"+strings.Repeat(" ", 13))})
}

func (d *deployment) statusService(v *steps.ServiceStatus) {
	e := serviceStatus{Service: v.Service.Name, Pods: []podStatus{}}
	head := fmt.Sprintf("%-12s ", e.Service)
	switch {
	case v.Err != nil:
		e.Error = v.Err.Error()
		d.emit(event{level: "warn", data: e, msg: head + "NOT KNOWN: " + e.Error})
		return
	case len(v.Pods) == 0:
		d.emit(event{level: "warn", data: e, msg: head + "HAS NO POD"})
		return
	}
	if v.Certificate != nil {
		e.CertificateEnds = stamp(v.Certificate.NotAfter)
	}
	var lines []string
	level := "info"
	for _, p := range v.Pods {
		e.Pods = append(e.Pods, podStatus{p.Name, p.Node, p.State, p.Ready, stamp(p.Since), p.Restarts, p.Image, p.Digest})
		state := "ready"
		if !p.Ready {
			state, level = "NOT READY, "+p.State, "warn"
		}
		lines = append(lines, fmt.Sprintf("pod %s/%s %s on %s%s, %s", v.Service.Namespace, p.Name, state, cmp.Or(p.Node, "no node"), d.since(p.Since), count(p.Restarts, "restart", "restarts")),
			fmt.Sprintf("image %s  %s", p.Image, cmp.Or(p.Digest, "not pulled yet")))
	}
	d.emit(event{level: level, data: e, msg: head + strings.Join(lines, "\n"+strings.Repeat(" ", 13))})
}

// statusCertificate tells for how long a service's certificate is good.
func (d *deployment) statusCertificate(v *steps.ServiceStatus) {
	line := func(level, text string) {
		d.emit(event{level: level, data: note{}, msg: "certificate  " + text})
	}
	switch c := v.Certificate; {
	case v.Err != nil: // which has been told
	case c == nil:
		line("info", "none (plain FTP; see FTP601)")
	case steps.DaysLeft(c, d.now()) < 0:
		line("warn", fmt.Sprintf("%s EXPIRED at %s UTC", c.Subject, c.NotAfter.UTC().Format(time.DateTime)))
	default:
		line("info", fmt.Sprintf("%s, %s left, until %s UTC", c.Subject, count(steps.DaysLeft(c, d.now()), "day", "days"), c.NotAfter.UTC().Format(time.DateTime)))
	}
}

// statusRuns tells of the newest generation, of the last run that is recorded here,
// and of one that is under way.
func (d *deployment) statusRuns(s *steps.Status) {
	line := func(head string, e lastRun, text string) {
		d.emit(event{level: "info", data: e, msg: fmt.Sprintf("%-12s %s", head, text)})
	}
	told := func(e lastRun) string {
		when, _ := time.Parse(time.RFC3339, e.When)
		text := when.UTC().Format(time.DateTime) + " UTC"
		if e.Who != "" {
			text += ", by " + e.Who
		}
		if e.Command != "" {
			text += ": " + e.Command
		}
		return text
	}
	if g := s.Newest; g != nil {
		who, _, _ := strings.Cut(g.Run.Who, " pid ")
		e := lastRun{What: "generation", Number: g.Number, When: stamp(g.Made), Who: who, Command: g.Run.Command, RunID: g.Run.ID}
		line("generation", e, fmt.Sprintf("%d of %s", g.Number, told(e)))
	}
	if e, ok := d.lastRun(); ok {
		line("last run", e, fmt.Sprintf("%s: exit %d", told(e), *e.Exit))
	}
	if t := s.Locked; t != nil && !t.Expired() {
		e := lastRun{What: "now", When: stamp(t.Since), Who: t.Who, Command: t.Command, RunID: t.Run}
		line("now", e, "a run changes this deployment since "+told(e))
	}
}

// lastRun reads what the last run was that changed this deployment, or was to, and
// came to its end, as this user's records on this host have it.
func (d *deployment) lastRun() (lastRun, bool) {
	state, err := d.stateDir()
	if err != nil {
		return lastRun{}, false
	}
	entries, err := os.ReadDir(filepath.Join(state, "runs"))
	if err != nil {
		return lastRun{}, false
	}
	for _, e := range slices.Backward(entries) { // a run's id begins with its time
		if r, deployment := readRun(filepath.Join(state, "runs", e.Name(), "events.ndjson")); deployment == d.topology.ID {
			return r, true
		}
	}
	return lastRun{}, false
}

// readRun reads who ran what, and for which deployment: "" where the run did not
// come to its end, or the file is none of a run.
func readRun(file string) (r lastRun, deployment string) {
	f, err := os.Open(file)
	if err != nil {
		return lastRun{}, ""
	}
	defer f.Close()
	r.What = "here"
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e struct {
			TS, Type, Run, User, Host, Command, Deployment string
			Exit                                           int
		}
		if !strings.Contains(lines.Text(), `"type":"run.`) || json.Unmarshal(lines.Bytes(), &e) != nil {
			continue
		}
		switch e.Type {
		case "run.start":
			r.Who, r.Command, r.RunID = e.User+"@"+e.Host, "ftpdeploy "+e.Command, e.Run
		case "run.end":
			r.When, r.Exit, deployment = e.TS, &e.Exit, e.Deployment
		}
	}
	return r, deployment
}
