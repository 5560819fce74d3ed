package steps

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/kube"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/steps/doctor"
	"github.com/ftpdeploy/ftpdeploy/steps/ftp"
	"github.com/ftpdeploy/ftpdeploy/steps/proxy"
	"github.com/ftpdeploy/ftpdeploy/vsphere"
)

// How long the looks of Doctor may take. Those of a kind are at the same time, so all
// of it takes no longer than their sum.
const (
	enterDoctor = 6 * time.Second // boxes and cluster
	pathsDoctor = 7 * time.Second // from the boxes to the workers
	wayDoctor   = 5 * time.Second // from here, port by port
	whyDoctor   = 3 * time.Second // for a pod that does not serve to say why

	greetDoctor = 6 * time.Second // for the server to greet
	dataDoctor  = 2 * time.Second // for each step of a listing
)

// proxyHealth is the port at which kube-proxy tells that it is well, on each node, unless it is told otherwise.
const proxyHealth = 10256

// Doctor looks at everything that a client's transfer goes through, from all sides, and
// says what is wrong, the cause of what clients meet first. It changes nothing. What
// cannot be asked is a verdict or a fact that is missing, never an error.
func (l *Live) Doctor(ctx context.Context) []doctor.Verdict {
	seen := l.examine(ctx)
	var all []doctor.Verdict
	for _, f := range seen {
		for _, v := range doctor.Diagnose(f) {
			// What several services have in common is said once.
			same := func(o doctor.Verdict) bool { return o.ID == v.ID && o.Text == v.Text }
			if i := slices.IndexFunc(all, same); i >= 0 {
				all[i].Service = ""
			} else {
				all = append(all, v)
			}
		}
	}
	return all
}

// examine collects the facts of every service.
func (l *Live) examine(ctx context.Context) []doctor.Facts {
	t := l.topology
	all := make([]doctor.Facts, len(t.Services))
	workers, away := l.doctorWorkers(ctx)
	for i, s := range t.Services {
		all[i].Wanted, all[i].Away = wantedOf(s), away[s.Cluster]
		for _, w := range workers[s.Cluster] {
			all[i].Workers = append(all[i].Workers, w.String())
		}
	}

	var first sync.WaitGroup
	var mu sync.Mutex
	boxes := map[*blueprints.Box]*boxSight{}
	for _, h := range l.hostSteps(workers) {
		first.Go(func() {
			look, cancel := bounded(ctx, enterDoctor, "an answer of "+h.box.Name)
			defer cancel()
			seen := l.examineBox(look, h)
			mu.Lock()
			defer mu.Unlock()
			boxes[h.box] = seen
		})
	}
	for i, s := range t.Services {
		first.Go(func() {
			look, cancel := bounded(ctx, enterDoctor, "the API server")
			defer cancel()
			l.survey(look, s, &all[i])
		})
		first.Go(func() { all[i].Here = l.lookHere(ctx, s) })
	}
	first.Wait()

	for i, s := range t.Services {
		for _, b := range s.VIP.Group.Boxes {
			if seen := boxes[b]; seen != nil {
				all[i].Boxes = append(all[i].Boxes, seen.box(s))
			}
		}
	}
	paths, cancel := context.WithTimeout(ctx, pathsDoctor)
	defer cancel()
	skip := func(b *blueprints.Box) bool { return boxes[b] == nil || boxes[b].host == nil }
	var second sync.WaitGroup
	for i, s := range t.Services {
		cells := make([]doctor.Cell, 0, len(s.VIP.Group.Boxes)*len(workers[s.Cluster]))
		for _, b := range s.VIP.Group.Boxes {
			for _, w := range workers[s.Cluster] {
				if !skip(b) {
					cells = append(cells, doctor.Cell{Box: b.Name, Worker: w.String()})
				}
			}
		}
		all[i].Cells = cells
		for n := range cells {
			c := &cells[n]
			h := boxes[l.boxNamed(c.Box)].host
			second.Go(func() { c.Control = lookFrom(paths, s, h, net.JoinHostPort(c.Worker, strconv.Itoa(s.ControlNodePort))) })
			second.Go(func() {
				c.Proxy = ftp.Knock(paths, h.DialContext, net.JoinHostPort(c.Worker, strconv.Itoa(proxyHealth)), pathTimeout, 100*time.Millisecond).Outcome
				if c.Proxy == ftp.Closed {
					c.Proxy = ftp.OK
				}
			})
		}
		for n := range all[i].Boxes {
			second.Go(func() { l.lookAround(paths, s, &all[i].Boxes[n], boxes) })
		}
	}
	var matrix []*Cell
	second.Go(func() {
		// What is not looked at has been told of where it was asked first.
		matrix, _ = l.matrix(paths, func(_ context.Context, c *blueprints.Cluster) ([]netip.Addr, error) { return workers[c], nil }, skip, 0)
	})
	second.Wait()
	for i, s := range t.Services {
		l.takeMatrix(&all[i], s, matrix)
		l.askSecret(ctx, s, &all[i], boxes)
	}

	way, cancel := context.WithTimeout(ctx, wayDoctor)
	defer cancel()
	var third sync.WaitGroup
	for _, c := range unsettled(matrix) {
		third.Go(func() { c.prove(way, boxes[c.Box].host, 0, nil) })
	}
	for i, s := range t.Services {
		f := &all[i]
		if f.Here.Login.Outcome == ftp.OK {
			third.Go(func() { f.Through = l.portsAt(way, s, f.VIP) })
		}
		for n := range f.Boxes {
			b := &f.Boxes[n]
			if own, ok := proxy.Direct(t, l.boxNamed(b.Name), s); ok && b.Own.Login.Outcome == ftp.OK {
				third.Go(func() { b.OwnPorts = l.portsAt(way, s, own) })
			}
		}
	}
	third.Wait()
	for i, s := range t.Services {
		l.takeMatrix(&all[i], s, matrix)
	}
	return all
}

// doctorWorkers are the workers of every cluster, and why those that a selector
// chooses could not be asked for.
func (l *Live) doctorWorkers(ctx context.Context) (workers map[*blueprints.Cluster][]netip.Addr, away map[*blueprints.Cluster]string) {
	ctx, cancel := bounded(ctx, enterDoctor, "the API server")
	defer cancel()
	workers, away = map[*blueprints.Cluster][]netip.Addr{}, map[*blueprints.Cluster]string{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, c := range l.topology.Clusters {
		all.Go(func() {
			found, err := l.workers(ctx, c)
			mu.Lock()
			defer mu.Unlock()
			if workers[c] = found; err != nil {
				away[c] = err.Error()
			}
		})
	}
	all.Wait()
	return workers, away
}

func (l *Live) boxNamed(name string) *blueprints.Box {
	i := slices.IndexFunc(l.topology.Boxes, func(b *blueprints.Box) bool { return b.Name == name })
	return l.topology.Boxes[i]
}

func wantedOf(s *blueprints.Service) doctor.Wanted {
	h := s.VIP.Group.HAProxy
	return doctor.Wanted{
		Service: s.Name, Namespace: s.Namespace, VIP: s.VIP.Address, VIPName: s.VIP.Name, Prefix: s.VIP.Prefix,
		Control: s.ControlPort, First: s.PassiveFirst, Last: s.PassiveLast,
		ControlNodePort: s.ControlNodePort, NodePortFirst: s.NodePortFirst, User: s.Users[0].Name,
		Client: h.Client, Server: h.Server,
	}
}

// boxSight is what one look at a box has shown, for all of its services.
type boxSight struct {
	step      *hostStep
	host      *remote.Host // nil where it was not entered
	err       error
	files     []proxy.File
	facts     *remote.Facts
	condition *remote.Condition
	ahead     time.Duration
}

func (l *Live) examineBox(ctx context.Context, h *hostStep) *boxSight {
	s := &boxSight{step: h}
	var host *remote.Host
	if host, s.err = h.connect(ctx); s.err != nil {
		return s
	}
	if s.files, s.err = h.files(ctx); s.err != nil {
		return s
	}
	ask := remote.Ask{
		Check: proxy.CheckPath, Since: time.Hour,
		Disks: []string{"/", "/etc/haproxy", "/etc/keepalived", "/var/lib", "/var/log", "/run", "/tmp"},
	}
	ask.Host, ask.Port, ask.Path = proxy.Statistics()
	for _, v := range h.vips() {
		ask.VIPs = append(ask.VIPs, v.Name)
	}
	s.err = together(ctx, []func(context.Context) error{
		func(ctx context.Context) (err error) {
			s.facts, err = h.observe(ctx, s.files)
			return err
		},
		func(ctx context.Context) (err error) {
			before := time.Now()
			if s.condition, err = host.Condition(ctx, ask); err != nil {
				return err
			}
			// Its clock is read somewhere between, and in whole seconds.
			switch now := s.condition.Now; {
			case now.Before(before.Add(-time.Second)):
				s.ahead = -before.Sub(now)
			case now.After(time.Now().Add(time.Second)):
				s.ahead = time.Until(now)
			}
			return nil
		},
	})
	if s.err == nil {
		s.host = host
	}
	return s
}

// box is what a look at a box tells of one of its services.
func (s *boxSight) box(service *blueprints.Service) doctor.Box {
	h := s.step
	b := doctor.Box{Name: h.box.Name}
	if s.err != nil {
		b.Unreached = s.err.Error()
		b.Off = errors.Is(s.err, ErrAbsent)
		b.Refused = errors.Is(s.err, remote.ErrAuth) || errors.Is(s.err, remote.ErrSudo) || errors.Is(s.err, remote.ErrHostKey)
		for _, u := range []error{vsphere.ErrUnreachable, vsphere.ErrLogin, vsphere.ErrUntrusted} {
			b.NoVCenter = b.NoVCenter || errors.Is(s.err, u)
		}
		return b
	}
	f, c := s.facts, s.condition
	b.Ahead, b.Log, b.Said, b.Servers, b.Cut, b.Filters = s.ahead, c.Log, c.Said, c.Servers, c.Cut, c.Filters
	b.State = c.States[service.VIP.Name]
	b.Fit = doctor.KnownIf(!slices.Contains(c.Unfit, service.VIP.Name))
	for _, d := range h.daemons() {
		switch state := f.Units[d.Unit].Active; d.service {
		case "haproxy":
			b.HAProxy = state
			loaded, config := f.Files[d.Marker], f.Files[d.Config]
			b.Pending = state == "active" && config.Exists && strings.TrimSpace(string(loaded.Content)) != config.Identity
		default:
			b.Keepalived = state
		}
	}
	for _, p := range h.packages() {
		if f.Packages[p.Name].Version == "" {
			b.Lacks = append(b.Lacks, p.Name)
		}
	}
	for _, link := range f.Links {
		for _, p := range link.Addresses {
			if p.Addr() == service.VIP.Address {
				b.Holds, b.Prefix = true, p.Bits()
			}
		}
	}
	for _, name := range h.settings() {
		if v := f.Settings[name]; v != "1" {
			b.NonlocalBind = v
		}
	}
	if away := h.position(f).away; away != nil {
		b.Drained = away.String()
	}
	for dir, left := range c.Disks {
		if left.Full {
			b.Full = append(b.Full, fmt.Sprintf("%s (%s)", dir, left.Device))
		}
	}
	slices.Sort(b.Full)
	look := &hostLook{hostStep: h, files: s.files, facts: f}
	if change, ok, err := look.open(); err == nil && ok {
		b.Firewall = fieldText(change)
	}
	for _, file := range s.files {
		if file.Path != proxy.HAProxyPath && file.Path != proxy.KeepalivedPath {
			continue
		}
		state := f.Files[h.root+file.Path]
		if state.Content == nil && state.Exists {
			continue // as it is to be
		}
		want := file.Content
		if file.Path == proxy.HAProxyPath {
			want = proxy.KeepLeaving(state.Content, want, func(string) bool { return true })
		}
		if edits := doctor.Edits(wantedOf(service), string(want), string(state.Content)); len(edits) > 0 {
			b.Edits = append(b.Edits, edits...)
			b.Edited = fmt.Sprintf("%s was written at %s by %s", file.Path, state.Modified.UTC().Format("2006-01-02 15:04:05 MST"), cmp.Or(state.Owner, "nobody: it is not there"))
		}
	}
	if b.Pending && b.Edited == "" {
		b.Edited = fmt.Sprintf("%s was written at %s", proxy.HAProxyPath, f.Files[h.root+proxy.HAProxyPath].Modified.UTC().Format("2006-01-02 15:04:05 MST"))
	}
	return b
}

// fieldText says what a change sets.
func fieldText(c plan.Change) string {
	var all []string
	for _, f := range c.Detail.Fields {
		all = append(all, strings.TrimSpace(f.Path+" "+f.After))
	}
	return cmp.Or(strings.Join(all, ", "), c.Reason)
}

// lookAround looks at a box's own address from here, and from it at the next box.
func (l *Live) lookAround(ctx context.Context, s *blueprints.Service, b *doctor.Box, boxes map[*blueprints.Box]*boxSight) {
	box := l.boxNamed(b.Name)
	if own, ok := proxy.Direct(l.topology, box, s); ok {
		dial, err := l.wayOf(ctx, s)
		if err == nil {
			b.Own = look(s, own, dial).Run(ctx)
		}
	}
	group := s.VIP.Group.Boxes
	next := group[(slices.Index(group, box)+1)%len(group)]
	seen, nic := boxes[box], next.NIC(s.VIP.Network)
	if next != box && seen.host != nil && nic != nil {
		// Any answer, also a reset, has come over that network.
		k := ftp.Knock(ctx, seen.host.DialContext, net.JoinHostPort(nic.Address.String(), strconv.Itoa(s.ControlPort)), pathTimeout, 0)
		b.PeerReach = k.Outcome
		if k.Outcome == ftp.Refused || k.Outcome == ftp.Closed {
			b.PeerReach = ftp.OK
		}
	}
}

// look is the look at a service at an address, as far as the login.
func look(s *blueprints.Service, at netip.Addr, dial ftp.DialFunc) ftp.Look {
	return ftp.Look{
		Address: net.JoinHostPort(at.String(), strconv.Itoa(s.ControlPort)), User: s.Users[0].Name, Password: s.Users[0].Password.Reveal(),
		Dial: dial, TLS: clientTLS(s.TLS), Timeout: greetDoctor, DataTimeout: dataDoctor,
	}
}

func lookFrom(ctx context.Context, s *blueprints.Service, h *remote.Host, address string) ftp.Sight {
	p := look(s, netip.Addr{}, h.DialContext)
	p.Address = address
	return p.Run(ctx)
}

// wayOf is how clients reach a service: from here, or from where the smoke test of
// its VIP is run.
func (l *Live) wayOf(ctx context.Context, s *blueprints.Service) (ftp.DialFunc, error) {
	for _, smoke := range l.topology.Smokes {
		if smoke.Service == s && smoke.VIP != nil && smoke.From != nil {
			return l.dialFrom(ctx, smoke.From)
		}
	}
	return nil, nil
}

// lookHere lists a few times through the VIP.
func (l *Live) lookHere(ctx context.Context, s *blueprints.Service) ftp.Sight {
	ctx, cancel := context.WithTimeout(ctx, enterDoctor+pathsDoctor)
	defer cancel()
	dial, err := l.wayOf(ctx, s)
	if err != nil {
		return ftp.Sight{}
	}
	p := look(s, s.VIP.Address, dial)
	p.Modes = []string{ftp.EPSV, ftp.EPSV}
	if s.VIP.Address.Is4() {
		p.Modes = []string{ftp.PASV, ftp.EPSV, ftp.PASV}
	}
	return p.Run(ctx)
}

// portsAt proves each passive port at an address.
func (l *Live) portsAt(ctx context.Context, s *blueprints.Service, at netip.Addr) doctor.Ports {
	dial, err := l.wayOf(ctx, s)
	if err != nil {
		return doctor.Ports{Err: err.Error()}
	}
	c := &Cell{Service: s}
	p := c.ports()
	data := func(port int) string { return net.JoinHostPort(at.String(), strconv.Itoa(port)) }
	p.Address, p.Data, p.Dial, p.Timeout = data(s.ControlPort), data, dial, dataDoctor
	c.run(ctx, p)
	return portsOfCell(ctx, c)
}

func portsOfCell(ctx context.Context, c *Cell) doctor.Ports {
	p := doctor.Ports{OK: c.Ports.OK, Failed: map[int]doctor.Failure{}}
	for port, err := range c.Ports.Failed {
		p.Failed[port] = doctor.Failure{Outcome: ftp.OutcomeOf(err), Text: err.Error()}
	}
	// A port that another session holds, or for which the time was too short, proves nothing.
	if c.Err != nil && len(c.Ports.OK) == 0 && ctx.Err() == nil {
		p.Err = c.Err.Error()
	}
	return p
}

// unsettled are the cells in which a port was not drawn that failed in another cell of
// the same worker: whether that is the worker's fault depends on them.
func unsettled(matrix []*Cell) []*Cell {
	var all []*Cell
	for _, c := range matrix {
		if slices.ContainsFunc(c.Ports.NotDrawn, func(port int) bool {
			return slices.ContainsFunc(matrix, func(o *Cell) bool {
				return o.Service == c.Service && o.Worker == c.Worker && o.Ports.Failed[port] != nil
			})
		}) {
			all = append(all, c)
		}
	}
	return all
}

// takeMatrix puts the passive ports of the matrix into the facts.
func (l *Live) takeMatrix(f *doctor.Facts, s *blueprints.Service, matrix []*Cell) {
	for _, c := range matrix {
		for i := range f.Cells {
			if into := &f.Cells[i]; c.Service == s && c.Box.Name == into.Box && c.Worker.String() == into.Worker {
				into.Ports = portsOfCell(context.Background(), c)
			}
		}
	}
}

// survey asks the cluster about a service.
func (l *Live) survey(ctx context.Context, s *blueprints.Service, f *doctor.Facts) {
	if s.Server != "vsftpd" {
		return
	}
	start := time.Now()
	c, err := l.cluster(ctx, s.Cluster)
	for err == nil {
		// Why a pod does not serve may show a moment after that it does not.
		f.Cluster, err = c.Survey(ctx, s.Namespace, s.Name)
		if err != nil || f.Cluster.Serving || f.Cluster.Stuck != nil || !f.Cluster.Deployment || f.Cluster.Replicas == 0 || time.Since(start) > whyDoctor {
			break
		}
		pauseFor(ctx, 500*time.Millisecond)
	}
	if err != nil {
		f.Away = err.Error()
		return
	}
	who := l.secretAccount(ctx, s)
	if who == nil {
		return
	}
	user := s.Users[0]
	f.SecretIsWanted = doctor.KnownIf(who.Name == user.Name && who.Password.Reveal() == user.Password.Reveal())
	for _, p := range f.Cluster.Pods {
		if sum := p.Annotations[secretChecksum]; sum != "" && !p.Deleting {
			if now, err := (workload{l.topology, s}).accountChecksum(who); err == nil {
				f.PodHasSecret = doctor.KnownIf(sum == now)
			}
			break
		}
	}
}

// secretAccount is the account in the Secret of a service, nil where it cannot be read.
func (l *Live) secretAccount(ctx context.Context, s *blueprints.Service) *blueprints.User {
	c, err := l.cluster(ctx, s.Cluster)
	if err != nil {
		return nil
	}
	var who account
	secret, err := find(ctx, c, kube.Ref{Kind: "Secret", Namespace: s.Namespace, Name: workload{l.topology, s}.accountName()})
	if err != nil || secret == nil || secret.Decode(&who) != nil {
		return nil
	}
	return &blueprints.User{Name: string(who.Data.User), Password: blueprints.NewSecret(string(who.Data.Password))}
}

// askSecret tries the account of the Secret, where the blueprint's is refused and is another one.
func (l *Live) askSecret(ctx context.Context, s *blueprints.Service, f *doctor.Facts, boxes map[*blueprints.Box]*boxSight) {
	i := slices.IndexFunc(f.Cells, func(c doctor.Cell) bool { return c.Control.Login.Outcome == ftp.Denied })
	if i < 0 || f.SecretIsWanted != doctor.No {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, wayDoctor)
	defer cancel()
	who := l.secretAccount(ctx, s)
	if who == nil {
		return
	}
	p := look(s, netip.Addr{}, boxes[l.boxNamed(f.Cells[i].Box)].host.DialContext)
	p.Address = net.JoinHostPort(f.Cells[i].Worker, strconv.Itoa(s.ControlNodePort))
	p.User, p.Password = who.Name, who.Password.Reveal()
	f.SecretWorks = p.Run(ctx).Login.Outcome
}
