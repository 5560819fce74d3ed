// Package steps holds the steps that make a deployment from a topology: the
// only place where a topology meets the clients of the outside world.
package steps

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/kube"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/steps/ftp"
	"github.com/ftpdeploy/ftpdeploy/steps/proxy"
	"github.com/ftpdeploy/ftpdeploy/vsphere"
)

// List observes the targets once, as far as goal needs them, and returns the
// steps of the deployment: its table of contents. Each step's first Plan takes
// what was observed here; later ones look again.
func (l *Live) List(ctx context.Context, goal plan.Goal) ([]plan.Step, error) {
	seen, err := l.observe(ctx, goal)
	if err != nil {
		return nil, err
	}
	t := l.topology
	var rest []string // the steps after which goes what nothing takes the place of
	for _, h := range seen.hosts {
		rest = append(rest, h.Name())
	}
	for _, s := range t.Services {
		if s.Server == "vsftpd" {
			rest = append(rest, "kubernetes/"+s.Name)
		}
	}
	list, leaving, last, err := l.removals(seen.left, rest, slices.ContainsFunc(seen.hosts, (*hostStep).serving))
	if err != nil {
		return nil, err
	}
	l.notes = slices.Concat(l.LeftOut(), seen.left.notes)
	var made []*blueprints.Box // the boxes that ftpdeploy makes, in the order in which they may go down
	for _, h := range seen.hosts {
		if h.box.Created() {
			made = append(made, h.box)
		}
	}
	standing := ""    // a VM that is there already goes down, if it must, after the one before is back
	var down []string // the steps of those that must
	for _, h := range seen.hosts {
		b := h.box
		if !b.Created() {
			continue
		}
		var after []string
		if standing != "" {
			after = []string{standing}
		}
		inventory := seen.inventories[b.Site.VCenter]
		vm := newVM(t, h, l.vcenterOf(b), inventory, after...)
		vm.knock = b.SSH.Bastion == nil && !slices.ContainsFunc(seen.left.vms, func(left leftVM) bool { return l.successor(left) == b })
		if vm.doomed = l.doomed[b]; vm.doomed != "" {
			for _, peer := range h.peers { // it may get the VIP
				peer.moves = true
			}
		}
		if there, err := inventory.VM(t.ID, b.Name); err == nil && there != nil {
			standing = vm.Name()
			if e, err := inventory.Edit(there, vmSpec(t, b)); err == nil && e != nil && (e.Off || e.Cuts) {
				down = append(down, vm.Name())
				if len(h.start.vips) > 0 {
					h.moves = true
					for _, peer := range h.peers {
						peer.moves = true
					}
				}
			}
		}
		list = append(list, vm)
	}
	for _, g := range t.Groups {
		if i := slices.IndexFunc(g.Boxes, (*blueprints.Box).Created); i >= 0 && l.whole(g) {
			b := g.Boxes[i]
			list = append(list, newPlacement(t, g, l.vcenterOf(b), l.without(b.Site.VCenter, seen.inventories[b.Site.VCenter])))
		}
	}
	for _, b := range made {
		var after []string
		for _, g := range t.Groups {
			if slices.Contains(g.Boxes, b) && l.whole(g) {
				after = append(after, "placement/"+g.Name)
			}
		}
		for _, vm := range seen.left.vms {
			if l.successor(vm) == b {
				after = append(after, "removed/"+vm.name)
			}
		}
		list = append(list, newPower(t, b, l.vcenterOf(b), l.without(b.Site.VCenter, seen.inventories[b.Site.VCenter]), after...))
	}
	for _, s := range leaving {
		for _, b := range made { // what takes its place is on by then
			s.after = append(s.after, "power/"+b.Name)
		}
		for _, h := range seen.hosts {
			h.after = append(h.after, s.Name())
		}
		list = append(list, s)
	}
	l.steps = seen.hosts
	for _, h := range seen.hosts {
		h.keep, h.cluster, h.former, h.past, h.left = l.options.Keep, l.clusterStep, l.former, l.past, &l.left
		list = append(list, h)
	}
	widened, err := l.widened(ctx, seen.hosts)
	if err != nil {
		return nil, err
	}
	var services []*kubernetes
	for _, s := range t.Services {
		if s.Server != "vsftpd" {
			continue
		}
		// A box that was down is proven by what it served before.
		after := slices.Concat(widened, down)
		for _, p := range seen.left.places {
			if p.blocks(t, s) {
				after = append(after, newRemovedNamespace(l, p.cluster, p.namespace).Name())
			}
		}
		k := l.kubernetes(s, l.options.DeleteData, after...)
		list, services = append(list, k), append(services, k)
	}
	list = append(list, last...)
	if len(l.options.SitesDown) == 0 { // what a part of the boxes leads to is no generation
		var all []string
		for _, s := range list {
			all = append(all, s.Name())
		}
		list = append(list, l.history(seen.hosts, services, all))
	}
	for i := range list {
		list[i] = watched{list[i], l}
	}
	return list, nil
}

// Notes say, line by line, what the last List did not look at, and what is kept
// although the blueprint does not have it any more.
func (l *Live) Notes() []string { return l.notes }

// widened names the steps of the boxes that are to serve passive ports which they
// do not serve now: before they do, no server may announce such a port.
func (l *Live) widened(ctx context.Context, hosts []*hostStep) ([]string, error) {
	var names []string
	for _, h := range hosts {
		if h.first == nil {
			continue
		}
		files, err := h.files(ctx)
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			if f.Path == proxy.HAProxyPath && proxy.WidensRange(h.first.Files[h.root+f.Path].Content, f.Content) {
				names = append(names, h.Name())
			}
		}
	}
	return names, nil
}

// sighting is what was observed at the start of a run.
type sighting struct {
	inventories map[*blueprints.VCenter]*vsphere.Inventory
	hosts       []*hostStep // in the order in which the boxes may be changed
	left        leftovers
}

func (l *Live) observe(ctx context.Context, goal plan.Goal) (*sighting, error) {
	seen := &sighting{inventories: map[*blueprints.VCenter]*vsphere.Inventory{}}
	workers := map[*blueprints.Cluster][]netip.Addr{}
	// The look at a target writes its result into a variable of its own.
	var looks []func(context.Context) error
	inventories := make([]*vsphere.Inventory, 0, len(l.vcenters))
	vms, unreached := make([][]leftVM, len(l.vcenters)), make([]error, len(l.vcenters))
	var centers []*blueprints.VCenter
	for v := range l.vcenters {
		i := len(inventories)
		inventories, centers = append(inventories, nil), append(centers, v)
		looks = append(looks, func(ctx context.Context) error {
			unreached[i] = l.timed("vcenter."+v.Name, "vcenter", func() (remote.Stats, error) {
				c, err := l.vcenter(ctx, v)
				if err != nil {
					return remote.Stats{}, err
				}
				return remote.Stats{}, together(ctx, []func(context.Context) error{
					func(ctx context.Context) (err error) {
						inventories[i], err = l.observeVCenter(ctx, c, v)
						return err
					},
					func(ctx context.Context) (err error) {
						vms[i], err = l.leftVMs(ctx, v)
						return err
					},
				})
			})
			return unreached[i]
		})
	}
	nodes := make([][]netip.Addr, len(l.topology.Clusters))
	places, notes := make([][]leftPlace, len(l.topology.Clusters)), make([][]string, len(l.topology.Clusters))
	enters := slices.ContainsFunc(l.topology.Boxes, func(b *blueprints.Box) bool { return entered(b, goal) })
	for i, c := range l.topology.Clusters {
		if l.asked(c) {
			looks = append(looks, func(ctx context.Context) (err error) {
				places[i], notes[i], err = l.leftPlaces(ctx, c)
				return err
			})
		}
		if nodes[i] = c.Workers; c.WorkerSelector == "" || !enters {
			continue
		}
		looks = append(looks, func(ctx context.Context) error {
			return l.timed("cluster."+c.Name, "cluster", func() (remote.Stats, error) {
				var err error
				nodes[i], err = l.workers(ctx, c)
				return remote.Stats{}, err
			})
		})
	}
	if err := together(ctx, looks); err != nil {
		failed := map[*blueprints.Box]error{}
		for _, b := range l.topology.Boxes {
			if b.Created() && !l.down(b) {
				failed[b] = unreached[slices.Index(centers, b.Site.VCenter)]
			}
		}
		return nil, siteAdvice(l.topology, failed, err)
	}
	for i, v := range centers {
		seen.inventories[v] = inventories[i]
	}
	if err := l.doom(seen.inventories); err != nil {
		return nil, err
	}
	for i, c := range l.topology.Clusters {
		workers[c] = nodes[i]
	}
	seen.left = leftovers{slices.Concat(vms...), slices.Concat(places...), slices.Concat(notes...)}
	slices.SortFunc(seen.left.vms, func(a, b leftVM) int { return strings.Compare(a.name, b.name) })
	l.expectBoots(seen)
	return seen, l.observeHosts(ctx, goal, seen, workers)
}

// asked tells whether a cluster is talked to at all: one whose workers are fixed,
// with servers of others behind them, is not.
func (l *Live) asked(c *blueprints.Cluster) bool {
	return c.WorkerSelector != "" || slices.ContainsFunc(l.topology.Services, func(s *blueprints.Service) bool {
		return s.Server == "vsftpd" && s.Cluster == c
	})
}

// entered tells whether goal needs a look into a box. One that ftpdeploy made
// goes as a whole, whatever is in it, and also when it does not answer any more.
func entered(b *blueprints.Box, goal plan.Goal) bool { return goal == plan.Present || !b.Created() }

// expectBoots has the machines that were powered on a moment ago given time to
// boot: by a run that was broken off, or by hand. What is wrong with a VM is said
// by its own step.
func (l *Live) expectBoots(seen *sighting) {
	for _, b := range l.topology.Boxes {
		if !b.Created() || l.down(b) {
			continue
		}
		vm, err := seen.inventories[b.Site.VCenter].VM(l.topology.ID, b.Name)
		if err != nil || vm == nil || !vm.On || vm.Booted.IsZero() {
			continue
		}
		if time.Since(vm.Booted).Abs() < bootBound { // vCenter's clock may be ahead of ours
			l.hosts[b].fresh = true
		}
	}
}

// together runs all looks at the same time and joins what they have to say.
func together(ctx context.Context, looks []func(context.Context) error) error {
	errs := make([]error, len(looks))
	var all sync.WaitGroup
	for i, look := range looks {
		all.Go(func() { errs[i] = look(ctx) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// workers are those of a cluster: the blueprint's, or the addresses of the nodes that
// its selector matches now.
func (l *Live) workers(ctx context.Context, c *blueprints.Cluster) ([]netip.Addr, error) {
	if c.WorkerSelector == "" {
		return c.Workers, nil
	}
	client, err := l.cluster(ctx, c)
	if err != nil {
		return nil, err
	}
	found, err := client.Nodes(ctx, c.WorkerSelector, c.NodeAddressType)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no node of cluster %q matches worker_selector %q", c.Name, c.WorkerSelector)
	}
	var addresses []netip.Addr
	for _, n := range found {
		addresses = append(addresses, n.Address)
	}
	return addresses, nil
}

// observeHosts makes the host steps with what their boxes look like now. Where a
// box of a group holds a VIP, the ones that hold none are changed before it.
func (l *Live) observeHosts(ctx context.Context, goal plan.Goal, seen *sighting, workers map[*blueprints.Cluster][]netip.Addr) error {
	var looks []func(context.Context) error
	seen.hosts = l.hostSteps(workers)
	unreached := make([]error, len(l.topology.Boxes))
	for _, h := range seen.hosts {
		if entered(h.box, goal) {
			looks = append(looks, func(ctx context.Context) error {
				err := l.observeHost(ctx, h)
				unreached[slices.Index(l.topology.Boxes, h.box)] = err
				return err
			})
		}
	}
	if err := together(ctx, looks); err != nil {
		failed := map[*blueprints.Box]error{}
		for i, b := range l.topology.Boxes {
			failed[b] = unreached[i]
		}
		return siteAdvice(l.topology, failed, err)
	}
	standbyFirst(seen.hosts, l.doomed)
	return nil
}

// hostSteps are the steps of all boxes that are looked at, in the order of the blueprint.
func (l *Live) hostSteps(workers map[*blueprints.Cluster][]netip.Addr) []*hostStep {
	var all []*hostStep
	for _, g := range l.topology.Groups {
		var members []*hostStep
		for _, b := range g.Boxes {
			if l.down(b) {
				continue
			}
			files := func(context.Context) ([]proxy.File, error) {
				files, err := proxy.Files(l.topology, g, b, workers)
				if err == nil && l.past != nil {
					files, err = l.past.files(b.Name, files)
				}
				return files, err
			}
			var after []string
			if b.Created() {
				after = []string{"power/" + b.Name}
			}
			h := newHost(l.topology, g, b, func(ctx context.Context) (*remote.Host, error) { return l.host(ctx, b) }, files, nil, after)
			h.drain.mode, h.drained = cmp.Or(l.options.Drain, h.drain.mode), l.noteDrained
			members = append(members, h)
		}
		for _, h := range members {
			h.peers = slices.DeleteFunc(slices.Clone(members), func(other *hostStep) bool { return other == h })
		}
		all = append(all, members...)
	}
	return all
}

// observeHost takes the snapshot of one box. A box that is not there has none.
func (l *Live) observeHost(ctx context.Context, h *hostStep) error {
	files, err := h.files(ctx)
	if err != nil {
		return err
	}
	err = l.timed("lb."+h.box.Name, "host", func() (remote.Stats, error) {
		host, err := h.connect(ctx)
		if err != nil {
			return remote.Stats{}, err
		}
		facts, err := h.observe(ctx, files)
		h.seenAt = time.Now()
		if h.first, h.seen = facts, facts; err == nil {
			h.start = h.position(facts)
		}
		return host.Stats(), err
	})
	if errors.Is(err, ErrAbsent) {
		if old, err := l.going(ctx, h.box); err == nil {
			defer old.Close()
			if t, err := old.Traffic(ctx, h.ports(), 0); err == nil {
				h.going = h.counts(t)
			}
		}
		return nil
	}
	return err
}

// standbyFirst puts the boxes that hold a VIP behind the others, in the list, and
// behind those the ones that they do not know yet. The boxes of a group act one after
// the other in this order, but on the first day, when none holds anything. One that is
// made anew is not looked into: it is taken for the holder where no other is.
func standbyFirst(hosts []*hostStep, doomed map[*blueprints.Box]string) {
	holds := func(h *hostStep) bool {
		return len(h.start.vips) > 0 || doomed[h.box] != "" &&
			!slices.ContainsFunc(h.peers, func(peer *hostStep) bool { return len(peer.start.vips) > 0 })
	}
	turn := func(h *hostStep) int {
		switch {
		case slices.ContainsFunc(h.peers, func(peer *hostStep) bool { return peer.ignores(h) }):
			return 2
		case holds(h):
			return 1
		}
		return 0
	}
	slices.SortStableFunc(hosts, func(a, b *hostStep) int { return turn(a) - turn(b) })
	serves := map[*blueprints.Group]bool{}
	for _, h := range hosts {
		serves[h.group] = serves[h.group] || holds(h)
	}
	for i, h := range hosts {
		for _, earlier := range hosts[:i] {
			if serves[h.group] && earlier.group == h.group {
				h.after = append(h.after, earlier.Name())
			}
		}
	}
}

// ignores tells whether the box holds a VIP and sends no adverts to another box of its
// group: that one would take the VIP too.
func (s *hostStep) ignores(other *hostStep) bool {
	return slices.ContainsFunc(s.start.vips, func(v *blueprints.VIP) bool {
		conf, nic := s.seen.Files[s.root+proxy.KeepalivedPath].Content, other.box.NIC(v.Network)
		return v.Transport == "unicast" && len(conf) > 0 && nic != nil && !slices.Contains(proxy.UnicastPeers(conf)[v.Name], nic.Address)
	})
}

// serving tells whether the box was set up for its VIPs when the run began.
func (s *hostStep) serving() bool {
	return s.seen != nil && s.seen.Files[s.root+proxy.KeepalivedPath].Exists
}

// clusterStep is the step that keeps the cluster's part of a service, nil where
// that is someone else's.
func (l *Live) clusterStep(s *blueprints.Service) plan.Step {
	if s.Server != "vsftpd" {
		return nil
	}
	return l.kubernetes(s, nil)
}

// kubernetes makes the step of a service, leading to a former generation if that
// is gone back to.
func (l *Live) kubernetes(s *blueprints.Service, deleteData []string, after ...string) *kubernetes {
	k := newKubernetes(l.topology, s, l.clusterOf(s.Cluster), deleteData, after...)
	if k.past = l.past != nil; k.past {
		k.wanted = sync.OnceValues(func() (*manifests, error) {
			m, err := k.manifests()
			if err != nil {
				return nil, err
			}
			return l.past.manifests(s, m)
		})
	}
	return k
}

func (l *Live) vcenterOf(b *blueprints.Box) func(context.Context) (*vsphere.Client, error) {
	return func(ctx context.Context) (*vsphere.Client, error) { return l.vcenter(ctx, b.Site.VCenter) }
}

func (l *Live) clusterOf(c *blueprints.Cluster) func(context.Context) (*kube.Client, error) {
	return func(ctx context.Context) (*kube.Client, error) { return l.cluster(ctx, c) }
}

// Smoke runs the smoke blocks, names only or all, each tried again for
// o.Settle; see SmokeOptions. Holder, Down and DialFrom are provided.
func (l *Live) Smoke(ctx context.Context, o SmokeOptions) ([]SmokeResult, error) {
	o.Holder, o.Down, o.InUse, o.left = l.holder, l.down, l.inUse, &l.left
	o.DialFrom = l.dialFrom
	return Smoke(ctx, l.topology, o)
}

// dialFrom opens the way out of a machine from which a smoke block is run.
func (l *Live) dialFrom(ctx context.Context, s *blueprints.SSH) (ftp.DialFunc, error) {
	h, err := l.ways[s].get(ctx, (*remote.Host).Alive, func(ctx context.Context) (*remote.Host, error) {
		return remote.Dial(ctx, l.sshConfig(s, s.BastionAddress))
	})
	if err != nil {
		return nil, err
	}
	return h.DialContext, nil
}

// Serving runs the smoke blocks as Smoke does, and where one fails as it fits what
// is deployed: it tells whether a service works, also one that the blueprint has
// otherwise.
func (l *Live) Serving(ctx context.Context, o SmokeOptions) ([]SmokeResult, error) {
	o.Former = l.former
	return l.Smoke(ctx, o)
}

// holder finds the box that holds a VIP now; nil where none does.
func (l *Live) holder(ctx context.Context, v *blueprints.VIP) (*blueprints.Box, error) {
	var mu sync.Mutex
	holds := map[*blueprints.Box]bool{}
	err := l.each(ctx, v.Group, func(ctx context.Context, b *blueprints.Box, h *remote.Host) error {
		facts, err := h.Find(ctx, remote.Query{})
		if err != nil {
			return fmt.Errorf("look whether lb %q holds it: %w", b.Name, err)
		}
		mu.Lock()
		defer mu.Unlock()
		holds[b] = facts.Holds(v.Address)
		return nil
	})
	if i := slices.IndexFunc(v.Group.Boxes, func(b *blueprints.Box) bool { return holds[b] }); i >= 0 && err == nil {
		return v.Group.Boxes[i], nil
	}
	return nil, err
}

// each enters the boxes of a group that are not left out as down, at the same time.
func (l *Live) each(ctx context.Context, g *blueprints.Group, look func(context.Context, *blueprints.Box, *remote.Host) error) error {
	var looks []func(context.Context) error
	for _, b := range g.Boxes {
		if l.down(b) {
			continue
		}
		looks = append(looks, func(ctx context.Context) error {
			h, err := l.host(ctx, b)
			if err != nil {
				return fmt.Errorf("enter lb %q: %w", b.Name, err)
			}
			return look(ctx, b, h)
		})
	}
	return together(ctx, looks)
}

// Rendered is a file that apply puts on a target, or a manifest that it applies.
type Rendered struct {
	Name    string // with slashes: "haproxy-a/etc/haproxy/haproxy.cfg"
	Content []byte
}

// Render gives everything that apply would write, without looking at a target.
// What only the targets know stands as a placeholder: MAC addresses. Secrets
// read "(sensitive)". Workers that a selector chooses are an error.
func Render(t *blueprints.Topology) ([]Rendered, error) {
	var files []Rendered
	for _, g := range t.Groups {
		for _, b := range g.Boxes {
			list, err := proxy.Files(t, g, b, nil)
			if err != nil {
				return nil, err
			}
			for _, f := range list {
				files = append(files, Rendered{path.Join(b.Name, f.Path), f.Content})
			}
		}
	}
	for _, b := range t.Boxes {
		if b.Created() {
			metadata, userdata := RenderCloudInit(b, t.ID, nil)
			files = append(files, Rendered{path.Join(b.Name, "cloud-init", "metadata.yaml"), metadata},
				Rendered{path.Join(b.Name, "cloud-init", "userdata.yaml"), userdata})
		}
	}
	for _, s := range t.Services {
		if s.Server != "vsftpd" {
			continue
		}
		manifests, err := RenderManifests(t, s)
		if err != nil {
			return nil, fmt.Errorf("render ftp_service %q: %w", s.Name, err)
		}
		files = append(files, Rendered{path.Join("kubernetes", s.Name+".yaml"), manifests})
	}
	return files, nil
}
