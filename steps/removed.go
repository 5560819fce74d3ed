package steps

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/kube"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/vsphere"
)

// notWanted is why something of ours goes that no block of the blueprint stands for.
const notWanted = "not in the blueprint any more"

// removedVM takes away a VM of ours that the blueprint does not have any more.
type removedVM struct {
	topology *blueprints.Topology
	name     string
	client   func(context.Context) (*vsphere.Client, error)
	after    []string
	leaves   bool // before it goes: see leavingVM
}

// Name implements plan.Step.
func (s *removedVM) Name() string { return "removed/" + s.name }

// After implements plan.Step.
func (s *removedVM) After() []string { return s.after }

// Plan implements plan.Step.
func (s *removedVM) Plan(ctx context.Context, goal plan.Goal) ([]plan.Change, error) {
	c, err := s.client(ctx)
	if err != nil {
		return nil, err
	}
	vm, err := c.Find(ctx, s.topology.ID, s.name)
	switch {
	case errors.Is(err, vsphere.ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, err
	}
	change := plan.Change{
		Action: plan.Delete, Target: s.name, Reason: notWanted + "; both marks name this deployment", From: vm.ID, Cause: destroyed(s.topology),
		Do: func(ctx context.Context, report func(string)) error {
			// A guest that shuts down in order hands its VIPs over: the other box does
			// not have to wait for adverts that stay out.
			if err := c.ShutDown(ctx, s.topology.ID, s.name, report); err != nil {
				return err
			}
			report("removing the VM with its disks")
			return c.Destroy(ctx, s.topology.ID, s.name)
		},
	}
	if vm.On && (!s.leaves || goal == plan.Absent) {
		change.Effect = plan.Restart
	}
	if goal == plan.Present {
		change.Needs = []string{RemoveBox}
	}
	return []plan.Change{change}, nil
}

// leavingVM shuts down what removedVM takes away later, before the boxes that stay
// forget it: one that hears no adverts any more takes the VIPs that others hold.
type leavingVM struct {
	removedVM
}

// Name implements plan.Step.
func (s *leavingVM) Name() string { return "leaving/" + s.name }

// Plan implements plan.Step.
func (s *leavingVM) Plan(ctx context.Context, goal plan.Goal) ([]plan.Change, error) {
	if goal == plan.Absent { // it goes as a whole
		return nil, nil
	}
	c, err := s.client(ctx)
	if err != nil {
		return nil, err
	}
	vm, err := c.Find(ctx, s.topology.ID, s.name)
	if errors.Is(err, vsphere.ErrNotFound) {
		return nil, nil
	}
	if err != nil || !vm.On {
		return nil, err
	}
	return []plan.Change{{
		Action: plan.Run, Target: s.name + ":power", Effect: plan.Restart, From: "on", Want: "off", Cause: destroyed(s.topology),
		Reason: notWanted + ": its guest shuts down in order and hands its VIPs over before the others forget it", Needs: []string{RemoveBox},
		Do: func(ctx context.Context, report func(string)) error {
			return c.ShutDown(ctx, s.topology.ID, s.name, report)
		},
		Undo: func(ctx context.Context) error { return c.PowerOn(ctx, s.topology.ID, s.name) },
	}}, nil
}

// lastStep takes away for good something of ours that nothing takes the place of.
// That is the end of the way back, so what stays is proven before.
type lastStep struct {
	plan.Step
	proof *proof
}

// Plan implements plan.Step.
func (s *lastStep) Plan(ctx context.Context, goal plan.Goal) ([]plan.Change, error) {
	changes, err := s.Step.Plan(ctx, goal)
	if err != nil || len(changes) == 0 || goal == plan.Absent {
		return changes, err
	}
	return append([]plan.Change{{
		Action: plan.Run, Target: strings.TrimPrefix(s.Name(), "removed/") + ":smoke", Cause: changes[0].Cause,
		Reason: "what stays is proven before this is deleted for good",
		Do:     s.proof.do, Undo: func(context.Context) error { return nil },
	}}, changes...), nil
}

// proof is one of what a run has made so far, for all that wait for it.
type proof struct {
	run  func(ctx context.Context, report func(string)) error
	once sync.Once
	err  error
}

func (p *proof) do(ctx context.Context, report func(string)) error {
	p.once.Do(func() { p.err = p.run(ctx, report) })
	return p.err
}

// removedNamespace takes away what services left in a namespace where the
// blueprint has none any more. Where it still has one, that one's step does it.
type removedNamespace struct {
	kubernetes
	after []string
}

// newRemovedNamespace makes the step "removed/CLUSTER.NAMESPACE".
func newRemovedNamespace(l *Live, c *blueprints.Cluster, namespace string) *removedNamespace {
	none := &blueprints.Service{Cluster: c, Namespace: namespace}
	return &removedNamespace{kubernetes: kubernetes{
		workload: workload{l.topology, none}, client: l.clusterOf(c), deleteData: l.options.DeleteData,
	}}
}

// Name implements plan.Step.
func (s *removedNamespace) Name() string {
	return "removed/" + s.service.Cluster.Name + "." + s.service.Namespace
}

// After implements plan.Step.
func (s *removedNamespace) After() []string { return s.after }

// Plan implements plan.Step.
func (s *removedNamespace) Plan(ctx context.Context, _ plan.Goal) ([]plan.Change, error) {
	c, err := s.client(ctx)
	if err != nil {
		return nil, err
	}
	namespace, err := find(ctx, c, kube.Ref{Kind: "Namespace", Name: s.service.Namespace})
	if err != nil || namespace == nil {
		return nil, err
	}
	ours, err := s.owned(ctx, c)
	if err != nil {
		return nil, err
	}
	changes, err := s.removal(ctx, c, namespace, ours, notWanted)
	return s.allowed(ctx, c, changes, err)
}

// leftovers are what an earlier blueprint left in the targets.
type leftovers struct {
	vms    []leftVM
	places []leftPlace
	notes  []string // what stays all the same, or could not be looked for
}

// leftVM is a VM that no block lb stands for.
type leftVM struct {
	name      string
	vcenter   *blueprints.VCenter
	addresses []netip.Addr
}

// leftPlace is a namespace without any ftp_service of the blueprint.
type leftPlace struct {
	cluster   *blueprints.Cluster
	namespace string
	ports     []int // NodePorts that are held there
}

// leftVMs looks in a vCenter for VMs of ours that the blueprint does not have.
func (l *Live) leftVMs(ctx context.Context, v *blueprints.VCenter) ([]leftVM, error) {
	if len(l.options.SitesDown) > 0 { // nobody takes a box away while another is lost
		return nil, nil
	}
	c, err := l.vcenter(ctx, v)
	if err != nil {
		return nil, err
	}
	names, err := c.Names(ctx, l.topology.ID)
	if err != nil {
		return nil, err
	}
	var left []leftVM
	for _, name := range names {
		if slices.ContainsFunc(l.topology.Boxes, func(b *blueprints.Box) bool {
			return b.Created() && b.Site.VCenter == v && b.Name == name
		}) {
			continue
		}
		vm, err := c.Find(ctx, l.topology.ID, name)
		if errors.Is(err, vsphere.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		one := leftVM{name: name, vcenter: v}
		for _, card := range vm.NICs {
			one.addresses = append(one.addresses, card.Addresses...)
		}
		left = append(left, one)
	}
	return left, nil
}

// leftKinds are those by which a place is known where a service once was. Its
// Secret is no reason to be allowed to list those of others.
var leftKinds = []string{"Service", "Deployment", "PersistentVolumeClaim"}

// leftPlaces looks in a cluster for namespaces that hold something of ours and
// no ftp_service of the blueprint. Where the account may not look into all
// namespaces, those of the blueprint are all that is looked into, and a note says so.
func (l *Live) leftPlaces(ctx context.Context, c *blueprints.Cluster) (places []leftPlace, notes []string, err error) {
	client, err := l.cluster(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	found := make([][]*kube.Live, len(leftKinds))
	var looks []func(context.Context) error
	for i, kind := range leftKinds {
		looks = append(looks, func(ctx context.Context) (err error) {
			found[i], err = client.List(ctx, kind, "", map[string]string{deploymentLabel: l.topology.ID})
			return err
		})
	}
	if err := together(ctx, looks); errors.Is(err, kube.ErrForbidden) {
		return nil, []string{fmt.Sprintf("not looked for: what services left in namespaces of cluster %q that the blueprint does not name: "+
			"the account may not list services, deployments and persistentvolumeclaims of all namespaces", c.Name)}, nil
	} else if err != nil {
		return nil, nil, err
	}
	var goes []*kube.Live
	for _, o := range slices.Concat(found...) {
		k := newRemovedNamespace(l, c, o.Namespace)
		switch {
		case k.claimed(o):
		case k.keeps(o):
			notes = append(notes, fmt.Sprintf("kept: %s has the data of volume %s, which is %s; --delete-data %s takes it away",
				o.Ref, volumeOf(o), notWanted, volumeOf(o)))
		case o.Labels[serviceLabel] != "" && k.neighbours() == nil && !o.Deleting:
			goes = append(goes, o)
		}
	}
	for _, o := range goes {
		if !slices.ContainsFunc(places, func(p leftPlace) bool { return p.namespace == o.Namespace }) {
			places = append(places, leftPlace{cluster: c, namespace: o.Namespace})
		}
	}
	if places == nil {
		return nil, notes, nil
	}
	held, err := client.NodePorts(ctx)
	if err != nil {
		return nil, nil, err
	}
	for port, h := range held {
		for i := range places {
			if places[i].namespace == h.Namespace && h.Labels[deploymentLabel] == l.topology.ID {
				places[i].ports = append(places[i].ports, port)
			}
		}
	}
	return places, notes, nil
}

// volumeOf is the name by which --delete-data knows a claim.
func volumeOf(o *kube.Live) string { return o.Labels[serviceLabel] + "/" + o.Labels[volumeLabel] }

// claimed tells whether an object of the namespace is the claim of a volume of the blueprint.
func (s *removedNamespace) claimed(o *kube.Live) bool {
	return o.Kind == "PersistentVolumeClaim" && slices.ContainsFunc(s.neighbours(), func(n *blueprints.Service) bool {
		return slices.ContainsFunc(n.Volumes, func(v blueprints.Volume) bool { return workload{s.topology, n}.claimName(v) == o.Name })
	})
}

// removals makes the steps that take away what is left over, and divides them:
// first go those that hold an address or a NodePort which another is about to
// get, all others last, when what replaces them is there. Where a box that serves
// stays, the VMs among those leave before the steps of the boxes.
func (l *Live) removals(left leftovers, before []string, stays bool) (first []plan.Step, leaving []*leavingVM, last []plan.Step, err error) {
	var taken []string
	for _, vm := range left.vms {
		step := &removedVM{topology: l.topology, name: vm.name, client: func(ctx context.Context) (*vsphere.Client, error) { return l.vcenter(ctx, vm.vcenter) }}
		if b := l.successor(vm); b != nil {
			taken = append(taken, fmt.Sprintf("lb %q gets an address of %q", b.Name, vm.name))
			first = append(first, step)
			continue
		}
		step.after, step.leaves = before, stays
		last = append(last, step)
		if stays {
			leaving = append(leaving, &leavingVM{removedVM{topology: l.topology, name: vm.name, client: step.client}})
		}
	}
	if len(taken) > 1 {
		return nil, nil, nil, fmt.Errorf("%s: renamed in one run, no box would serve meanwhile. Rename one, apply, then rename the next", strings.Join(taken, ", and "))
	}
	for _, p := range left.places {
		step := newRemovedNamespace(l, p.cluster, p.namespace)
		if slices.ContainsFunc(l.topology.Services, func(s *blueprints.Service) bool { return p.blocks(l.topology, s) }) {
			first = append(first, step)
			continue
		}
		step.after = before
		last = append(last, step)
	}
	if stays && l.options.Prove != nil {
		p := &proof{run: l.options.Prove}
		for i := range last {
			last[i] = &lastStep{last[i], p}
		}
	}
	return first, leaving, last, nil
}

// successor is the box that gets an address of a VM that goes, nil where none does.
func (l *Live) successor(vm leftVM) *blueprints.Box {
	for _, b := range l.topology.Boxes {
		if slices.ContainsFunc(b.NICs, func(n blueprints.NIC) bool { return slices.Contains(vm.addresses, n.Address) }) {
			return b
		}
	}
	return nil
}

// blocks tells whether a NodePort of a service is held where the blueprint has no
// service any more.
func (p leftPlace) blocks(t *blueprints.Topology, s *blueprints.Service) bool {
	return s.Server == "vsftpd" && s.Cluster == p.cluster && slices.ContainsFunc(workload{t, s}.ports(), func(port servicePort) bool {
		return slices.Contains(p.ports, port.node)
	})
}
