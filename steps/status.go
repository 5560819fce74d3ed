package steps

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/kube"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/steps/proxy"
)

// ErrSilent says that a target did not answer in the time that a look had.
var ErrSilent = errors.New("did not answer")

// Status is what a deployment does at one moment.
type Status struct {
	Boxes    []*BoxStatus     // in the order of the blueprint
	VIPs     []*VIPStatus     // likewise
	Clusters []*ClusterStatus // those that are talked to
	Services []*ServiceStatus // the servers that ftpdeploy keeps
	Newest   *Generation      // nil where no box keeps one, or none could be asked
	Locked   *kube.Tenant     // who changes the deployment now; nil where nobody does, or nobody can tell
}

// Err joins the errors of all that could not be asked.
func (s *Status) Err() error {
	var errs []error
	for _, b := range s.Boxes {
		errs = append(errs, b.Err)
	}
	for _, c := range s.Clusters {
		errs = append(errs, c.Err)
	}
	for _, v := range s.Services {
		errs = append(errs, v.Err)
	}
	return errors.Join(errs...)
}

// BoxStatus is what a box is and does.
type BoxStatus struct {
	Box        *blueprints.Box
	Err        error // why the rest is not known; nil = it is
	Absent     bool  // the machine is not made yet: there is nothing to ask
	OS         string
	HAProxy    string   // version of the package, "" = not installed
	Keepalived string   // likewise
	Stopped    []string // services that do not run
	Holds      []*blueprints.VIP
	Sessions   int             // control connections that are open
	Transfers  int             // data connections
	OldWorkers []time.Duration // ages of HAProxy's workers that only end what is open
	Nodes      []NodesUp       // by service, where HAProxy tells; else nil
	DrainedTo  time.Time       // until when it takes no VIP; zero = it takes part
	DrainedBy  string          // "" = a run, for its own work

	masters []remote.Mastery
	now     time.Time
	newest  generationName
}

// NodesUp is how many nodes a box finds healthy for a service.
type NodesUp struct {
	Service *blueprints.Service
	Up, All int
	Down    []string // their names, with why
}

// VIPStatus is where a VIP is.
type VIPStatus struct {
	VIP     *blueprints.VIP
	Holders []*blueprints.Box // more than one is a fault
	Since   time.Time         // that the holder has it, by this host's clock; zero where its journal does not say
	Unknown bool              // a box of its group could not be asked
}

// ClusterStatus is a cluster.
type ClusterStatus struct {
	Cluster *blueprints.Cluster
	Version string
	Err     error
}

// ServiceStatus is the cluster's part of a service.
type ServiceStatus struct {
	Service *blueprints.Service
	Pods    []kube.Pod // none where it is not deployed
	// Certificate is what it serves with; nil in clear text.
	Certificate *x509.Certificate
	Err         error
}

// Status looks at all targets at the same time, and changes nothing. What has not
// answered after bound is said to be ErrSilent; nobody waits for the end of a change
// that is under way.
func (l *Live) Status(ctx context.Context, bound time.Duration) *Status {
	ctx, cancel := context.WithTimeoutCause(ctx, bound, fmt.Errorf("%w within %s", ErrSilent, bound))
	defer cancel()
	s := &Status{}
	var looks []func(context.Context) error
	look := func(do func(context.Context)) {
		looks = append(looks, func(ctx context.Context) error { do(ctx); return nil })
	}
	for _, h := range l.hostSteps(nil) {
		b := &BoxStatus{Box: h.box}
		s.Boxes = append(s.Boxes, b)
		look(func(ctx context.Context) { b.Err = h.status(ctx, b) })
	}
	for _, c := range l.topology.Clusters {
		if !l.asked(c) {
			continue
		}
		status := &ClusterStatus{Cluster: c}
		s.Clusters = append(s.Clusters, status)
		look(func(ctx context.Context) {
			client, err := l.cluster(ctx, c)
			if err == nil {
				status.Version, err = client.Version(ctx)
			}
			if err != nil {
				status.Err = fmt.Errorf("look at cluster.%s: %w", c.Name, err)
			}
		})
	}
	for _, v := range l.topology.Services {
		if v.Server != "vsftpd" {
			continue
		}
		status := &ServiceStatus{Service: v}
		s.Services = append(s.Services, status)
		look(func(ctx context.Context) {
			client, err := l.cluster(ctx, v.Cluster)
			if err == nil {
				status.Pods, err = client.Pods(ctx, v.Namespace, v.Name)
			}
			if err != nil && !errors.Is(err, kube.ErrNotFound) {
				status.Err = fmt.Errorf("look at the pods of ftp_service.%s: %w", v.Name, err)
			}
			if err == nil && v.TLS != nil {
				if status.Certificate, err = l.Certificate(ctx, v); err != nil {
					status.Err = fmt.Errorf("look at the certificate of ftp_service.%s: %w", v.Name, err)
				}
			}
		})
	}
	look(func(ctx context.Context) { s.Locked, _ = l.LockedBy(ctx) }) // that the cluster does not answer is said once
	_ = together(ctx, looks)                                          // each has its own error
	for _, v := range l.topology.VIPs {
		s.VIPs = append(s.VIPs, s.vip(v))
	}
	s.Newest = l.newest(ctx, s)
	return s
}

// status asks the box what it is and does.
func (s *hostStep) status(ctx context.Context, b *BoxStatus) error {
	h, err := s.connect(ctx)
	var dark darkError
	if errors.Is(err, ErrAbsent) && !errors.As(err, &dark) {
		b.Absent = true
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at lb.%s: %w", b.Box.Name, err)
	}
	daemons := s.daemons()
	ask := remote.Doing{
		Query: remote.Query{
			Files: []remote.FileQuery{{Path: s.root + proxy.DrainedPath}}, Newest: []string{s.root + historyAt}, Ports: s.ports(),
		},
		Proxy: daemons[0].Daemon, Keepalived: daemons[1].Unit,
	}
	for _, d := range daemons {
		ask.Packages, ask.Units = append(ask.Packages, d.pkg), append(ask.Units, d.Unit)
	}
	ask.Host, ask.Port, ask.Path = proxy.Statistics()
	found, err := h.Status(ctx, ask)
	if err != nil {
		return fmt.Errorf("look at lb.%s: %w", b.Box.Name, err)
	}
	b.OS, b.HAProxy, b.Keepalived = found.OS.Name, found.Packages[daemons[0].pkg].Version, found.Packages[daemons[1].pkg].Version
	for _, d := range daemons {
		if u := found.Units[d.Unit]; u.Active != "active" {
			b.Stopped = append(b.Stopped, d.service)
		}
	}
	p := s.position(found.Facts)
	b.Holds, b.now, b.masters = p.vips, p.now, found.Masters
	if p.away != nil {
		b.DrainedTo, b.DrainedBy = p.away.until, p.away.by
	}
	for _, t := range s.carries(found.Facts) {
		b.Sessions += t.sessions
		b.Transfers += t.transfers
	}
	if len(found.Workers) > 1 {
		b.OldWorkers = found.Workers[1:]
	}
	if found.Proxies != nil {
		for _, service := range s.services() {
			b.Nodes = append(b.Nodes, nodesUp(service, found.Proxies))
		}
	}
	if name := found.Newest[s.root+historyAt]; name != "" {
		if b.newest, err = parseName(name); err != nil {
			return fmt.Errorf("on %s: %w", b.Box.Name, err)
		}
	}
	return nil
}

// nodesUp counts the nodes behind a service's control port.
func nodesUp(s *blueprints.Service, counters []remote.Proxy) NodesUp {
	n := NodesUp{Service: s}
	for _, c := range counters {
		switch {
		case c.Name != proxy.ControlBackend(s) || c.Server == "FRONTEND" || c.Server == "BACKEND":
			continue
		case c.Up():
			n.Up++
		default:
			n.Down = append(n.Down, fmt.Sprintf("%s %s since %s (%s %s)", c.Server, c.Status, c.Since, c.Check, c.Answer))
		}
		n.All++
	}
	return n
}

// vip tells where a VIP is, by what the boxes say.
func (s *Status) vip(v *blueprints.VIP) *VIPStatus {
	status := &VIPStatus{VIP: v}
	for _, b := range s.Boxes {
		if !slices.Contains(v.Group.Boxes, b.Box) {
			continue
		}
		status.Unknown = status.Unknown || b.Err != nil
		if !slices.Contains(b.Holds, v) {
			continue
		}
		status.Holders = append(status.Holders, b.Box)
		if i := slices.IndexFunc(b.masters, func(m remote.Mastery) bool { return m.Instance == v.Name }); i >= 0 {
			held := b.now.Sub(time.Unix(int64(b.masters[i].At), 0))
			status.Since = time.Now().Add(-max(0, held)).Truncate(time.Second)
		}
	}
	return status
}

// newest is the newest generation that a box keeps, with no more than its number and
// time where it cannot be read.
func (l *Live) newest(ctx context.Context, s *Status) *Generation {
	var from *BoxStatus
	for _, b := range s.Boxes {
		if b.newest.number > 0 && (from == nil || later(b.newest, from.newest) > 0) {
			from = b
		}
	}
	if from == nil {
		return nil
	}
	h := &hostStep{box: from.Box, connect: func(ctx context.Context) (*remote.Host, error) { return l.host(ctx, from.Box) }}
	found, err := store{host: h}.read(ctx, from.newest)
	if err != nil {
		return &Generation{Number: from.newest.number, Made: from.newest.made}
	}
	return found[0]
}
