package steps

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/vsphere"
)

// How long a guest may take from power-on until it is reachable, and then until
// cloud-init has published its host keys.
const (
	addressBound = 5 * time.Minute
	hostKeyBound = 5 * time.Minute
)

// knockBound is how long a machine that should not be there has to greet.
const knockBound = time.Second

// machine is what the steps about one VM or some VMs in one vCenter share: how
// to look at them, and the snapshot that their first look takes.
type machine struct {
	topology *blueprints.Topology
	client   func(context.Context) (*vsphere.Client, error)
	first    *vsphere.Inventory // nil once it was used
}

// observe returns the snapshot of the start of the run, once, and then what is there now.
func (m *machine) observe(ctx context.Context, specs []vsphere.Spec, placements []vsphere.Placement) (*vsphere.Inventory, error) {
	if i := m.first; i != nil {
		m.first = nil
		return i, nil
	}
	c, err := m.client(ctx)
	if err != nil {
		return nil, err
	}
	return c.Observe(ctx, specs, placements)
}

// observeVCenter takes the snapshot that the steps of one vCenter share.
func (l *Live) observeVCenter(ctx context.Context, c *vsphere.Client, vcenter *blueprints.VCenter) (*vsphere.Inventory, error) {
	t := l.topology
	var specs []vsphere.Spec
	for _, b := range t.Boxes {
		if b.Created() && b.Site.VCenter == vcenter && !l.down(b) {
			spec := vmSpec(t, b)
			spec.Anew = slices.Contains(l.options.Replace, "lb."+b.Name)
			specs = append(specs, spec)
		}
	}
	var placements []vsphere.Placement
	for _, g := range t.Groups {
		if home, err := groupVCenter(g); err != nil {
			return nil, err
		} else if home == vcenter && l.whole(g) {
			placements = append(placements, groupPlacements(t, g)...)
		}
	}
	return c.Observe(ctx, specs, placements)
}

// vmSpec is the VM of a box that ftpdeploy makes.
func vmSpec(t *blueprints.Topology, box *blueprints.Box) vsphere.Spec {
	s := vsphere.Spec{
		Deployment: t.ID, Name: box.Name,
		Template: box.Image.Template, LibraryItem: box.Image.LibraryItem, Folder: box.Site.Folder, Cluster: box.Site.Cluster,
		HostGroup: box.Site.HostGroup, ResourcePool: box.Site.ResourcePool, Datastore: box.Site.Datastore,
		Annotation: fmt.Sprintf("lb %q of deployment %q, made by ftpdeploy: change the blueprint, not the VM.", box.Name, t.ID),
		CPUs:       box.CPUs, MemoryMB: box.MemoryMB, DiskGB: box.DiskGB,
		GuestInfo: func(macs []string) map[string]string { return guestInfo(box, t.ID, macs) },
	}
	for _, n := range box.NICs {
		s.NICs = append(s.NICs, vsphere.NIC{Name: n.Role, PortGroup: n.Network.PortGroup, Address: n.Address})
	}
	for _, v := range t.VIPs {
		if slices.Contains(v.Group.Boxes, box) {
			s.VIPs = append(s.VIPs, v.Address)
		}
	}
	return s
}

// vmStep keeps one VM: there and off when it is new, with its hardware and what
// its guest is told.
type vmStep struct {
	machine
	box    *blueprints.Box
	host   *hostStep
	after  []string
	doomed string // ID of the VM that is made anew, "" = none is
	knock  bool   // nobody may be at its address before it is made
}

// newVM makes the step "vm/NAME" of a box that ftpdeploy makes. Where VMs are
// there already, a change of hardware may need them off: each then names in after
// the step that brings the one before it back.
func newVM(t *blueprints.Topology, host *hostStep, client func(context.Context) (*vsphere.Client, error), first *vsphere.Inventory, after ...string) *vmStep {
	return &vmStep{machine: machine{t, client, first}, box: host.box, host: host, after: after}
}

// Name implements plan.Step.
func (s *vmStep) Name() string { return "vm/" + s.box.Name }

// After implements plan.Step.
func (s *vmStep) After() []string { return s.after }

// Plan implements plan.Step.
func (s *vmStep) Plan(ctx context.Context, goal plan.Goal) ([]plan.Change, error) {
	spec := vmSpec(s.topology, s.box)
	spec.Anew = s.doomed != ""
	i, err := s.observe(ctx, []vsphere.Spec{spec}, nil)
	if err != nil {
		return nil, err
	}
	vm, err := i.VM(spec.Deployment, spec.Name)
	switch {
	case err != nil:
		return nil, err
	case goal == plan.Absent && vm == nil:
		return nil, nil
	case goal == plan.Absent:
		return []plan.Change{s.destroy(spec)}, nil
	case vm == nil, vm.ID == s.doomed:
		err := i.Ready(spec)
		if vm == nil && s.knock {
			err = errors.Join(err, strangerAt(ctx, s.box))
		}
		if err != nil {
			return nil, err
		}
		if vm != nil {
			return []plan.Change{s.replace(spec, vm)}, nil
		}
		return []plan.Change{s.create(spec)}, nil
	}
	e, err := i.Edit(vm, spec)
	if err != nil || e == nil {
		return nil, err
	}
	edit := s.edit(spec, vm, e)
	if edit.Cause.Kind == plan.ByDrift {
		edit.Cause = s.acted(ctx, vm, vsphere.Edits, vm.Modified)
	}
	changes := []plan.Change{edit}
	if !e.Off && !e.Cuts {
		return changes, nil
	}
	p, err := s.host.look(ctx)
	if errors.Is(err, ErrAbsent) {
		return changes, nil // it never served
	}
	if err != nil {
		return nil, fmt.Errorf("look whether it holds a VIP: %w", err)
	}
	return s.host.around(p, append(changes, s.host.proven()), true, false)
}

// strangerAt says which machine greets where SSH is to reach a box whose VM is not
// there. vCenter need not know it: it may be another's, or one that runs on although
// it was taken out of the inventory. Who only accepts a connection may be a firewall.
func strangerAt(ctx context.Context, b *blueprints.Box) error {
	ctx, cancel := context.WithTimeout(ctx, knockBound)
	defer cancel()
	at := net.JoinHostPort(b.Address.String(), strconv.Itoa(b.SSH.Port))
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", at)
	if err != nil {
		return nil
	}
	defer conn.Close()
	end, _ := ctx.Deadline()
	greeting := make([]byte, len("SSH-"))
	if conn.SetDeadline(end) != nil {
		return nil
	}
	if _, err := io.ReadFull(conn, greeting); err != nil || string(greeting) != "SSH-" {
		return nil
	}
	return fmt.Errorf("%w: there is no VM %s, but sshd of some machine answers at %s: give the box another address, or take that machine away [FTP406]",
		vsphere.ErrTaken, b.Name, at)
}

func (s *vmStep) create(spec vsphere.Spec) plan.Change {
	fields := []plan.Field{
		{Path: "from", After: spec.Source()},
		{Path: "folder", After: spec.Folder},
		{Path: "cluster", After: spec.Cluster},
		{Path: "resource_pool", After: spec.ResourcePool},
		{Path: "datastore", After: spec.Datastore},
		{Path: "cpus", After: strconv.Itoa(spec.CPUs)},
		{Path: "memory_mb", After: strconv.Itoa(spec.MemoryMB)},
	}
	if spec.DiskGB > 0 {
		fields = append(fields, plan.Field{Path: "disk_gb", After: strconv.Itoa(spec.DiskGB)})
	}
	for _, n := range spec.NICs {
		fields = append(fields, plan.Field{Path: "nic." + n.Name, After: n.Address.String() + " on " + n.PortGroup})
	}
	return plan.Change{
		Action: plan.Create, Target: spec.Name, Reason: "not there", Cause: asked(s.topology, "lb."+s.box.Name),
		Detail: plan.Diff{Fields: fields}, Want: fieldsDigest(fields),
		Do: func(ctx context.Context, report func(string)) error {
			c, err := s.client(ctx)
			if err != nil {
				return err
			}
			report("making it from " + spec.Source())
			if err := c.Create(ctx, spec, report); err != nil {
				return err
			}
			report("telling the guest its addresses")
			return c.Reconfigure(ctx, spec)
		},
		Undo: func(ctx context.Context) error {
			c, err := s.client(ctx)
			if err != nil {
				return err
			}
			if err := c.Destroy(ctx, spec.Deployment, spec.Name); err != nil {
				return err
			}
			s.knock = false // a guest that still answers there is the one that just went
			return nil
		},
	}
}

func (s *vmStep) edit(spec vsphere.Spec, vm *vsphere.VM, e *vsphere.Edit) plan.Change {
	fields := differences(e.Differences)
	cause := asked(s.topology, vmSources(s.box, fields)...)
	told := !slices.ContainsFunc(fields, func(f plan.Field) bool { return !strings.HasPrefix(f.Path, "guestinfo.") })
	if e.Drift && !told {
		cause = drifted("", vm.Modified)
	}
	effect, reason := plan.NoEffect, "differs: "+paths(fields)
	switch {
	case e.Off:
		effect, reason = plan.Reboot, reason+"; the VM must go off for it, it cannot be hot-added"
	case e.Cuts:
		effect = plan.Restart
	case len(fields) == 1 && fields[0].Path == "name":
		reason = "was renamed"
	case told:
		reason = "what the guest is told differs; it reads that when the VM is made anew: --replace lb." + spec.Name
	}
	change := plan.Change{
		Action: plan.Update, Target: spec.Name, Reason: reason, Cause: cause, Effect: effect,
		Detail: plan.Diff{Fields: fields}, From: beforeDigest(fields), Want: fieldsDigest(fields),
		Do: func(ctx context.Context, report func(string)) error {
			c, err := s.client(ctx)
			if err != nil {
				return err
			}
			if err := s.host.remember(ctx); err != nil {
				return err
			}
			if !e.Off {
				return moved(c.Reconfigure(ctx, spec, e.Differences...))
			}
			if err := c.ShutDown(ctx, spec.Deployment, spec.Name, report); err != nil {
				return err
			}
			err = c.Reconfigure(ctx, spec, e.Differences...)
			if errors.Is(err, vsphere.ErrConflict) { // it runs on as it was
				return errors.Join(moved(err), c.PowerOn(ctx, spec.Deployment, spec.Name))
			}
			if err != nil {
				return err
			}
			if err := c.PowerOn(ctx, spec.Deployment, spec.Name); err != nil {
				return err
			}
			return c.WaitAddresses(ctx, spec, addressBound, report)
		},
	}
	if e.Reversible() {
		change.Undo = func(ctx context.Context) error {
			c, err := s.client(ctx)
			if err != nil {
				return err
			}
			return c.TakeBack(ctx, spec.Deployment, spec.Name, e)
		}
	}
	return change
}

// moved makes plan.ErrMoved of what vCenter, or its client, found changed.
func moved(err error) error {
	if errors.Is(err, vsphere.ErrConflict) {
		return fmt.Errorf("%w: %w", plan.ErrMoved, err)
	}
	return err
}

func (s *vmStep) destroy(spec vsphere.Spec) plan.Change {
	return plan.Change{
		Action: plan.Delete, Target: spec.Name, Reason: "is ours: both marks name this deployment", Cause: destroyed(s.topology),
		From: "there",
		Do: func(ctx context.Context, report func(string)) error {
			c, err := s.client(ctx)
			if err != nil {
				return err
			}
			report("powering off and removing the VM with its disks")
			return c.Destroy(ctx, spec.Deployment, spec.Name)
		},
	}
}

func differences(all []vsphere.Difference) []plan.Field {
	var fields []plan.Field
	for _, d := range all {
		fields = append(fields, plan.Field{Path: d.Path, Before: d.Before, After: d.After})
	}
	return fields
}

func paths(fields []plan.Field) string {
	var all []string
	for _, f := range fields {
		all = append(all, f.Path)
	}
	return strings.Join(all, ", ")
}

// fieldsDigest is a fingerprint of what fields lead to, beforeDigest one of what they come from.
func fieldsDigest(fields []plan.Field) string {
	return digestOf(fields, func(f plan.Field) string { return f.After })
}

func beforeDigest(fields []plan.Field) string {
	return digestOf(fields, func(f plan.Field) string { return f.Before })
}

func digestOf(fields []plan.Field, value func(plan.Field) string) string {
	var text strings.Builder
	for _, f := range fields {
		fmt.Fprintf(&text, "%q=%q\n", f.Path, value(f))
	}
	return fmt.Sprintf("sha256:%.8x", sha256.Sum256([]byte(text.String())))
}
