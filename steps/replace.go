package steps

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/vsphere"
)

// Replaced finds the boxes that --replace names, as in "lb.haproxy-a". It refuses
// those that ftpdeploy does not make, and two of one group: one must serve.
func Replaced(t *blueprints.Topology, addresses []string) ([]*blueprints.Box, error) {
	var boxes []*blueprints.Box
	for _, address := range addresses {
		name, ok := strings.CutPrefix(address, "lb.")
		i := slices.IndexFunc(t.Boxes, func(b *blueprints.Box) bool { return b.Name == name })
		switch {
		case !ok || i < 0:
			var known []string
			for _, b := range t.Boxes {
				known = append(known, "lb."+b.Name)
			}
			return nil, fmt.Errorf("--replace %s: the blueprint has %s", address, strings.Join(known, ", "))
		case !t.Boxes[i].Created():
			return nil, fmt.Errorf("--replace %s: that machine was not made by ftpdeploy", address)
		case !slices.Contains(boxes, t.Boxes[i]):
			boxes = append(boxes, t.Boxes[i])
		}
	}
	for _, g := range t.Groups {
		both := slices.DeleteFunc(slices.Clone(g.Boxes), func(b *blueprints.Box) bool { return !slices.Contains(boxes, b) })
		if len(both) > 1 {
			return nil, fmt.Errorf("--replace lb.%s and lb.%s: one box of a lb_group at a time, so that another serves; apply, then replace the next", both[0].Name, both[1].Name)
		}
	}
	return boxes, nil
}

// doom notes which VMs are to be made anew, by what vCenter calls them now.
func (l *Live) doom(inventories map[*blueprints.VCenter]*vsphere.Inventory) error {
	l.doomed = map[*blueprints.Box]string{}
	boxes, err := Replaced(l.topology, l.options.Replace)
	if err != nil {
		return err
	}
	for _, b := range boxes {
		if l.down(b) {
			return fmt.Errorf("--replace lb.%s: its site is left out by --site-down", b.Name)
		}
		vm, err := inventories[b.Site.VCenter].VM(l.topology.ID, b.Name)
		if err != nil {
			return err
		}
		if vm != nil {
			l.doomed[b] = vm.ID
		}
	}
	return nil
}

// without is the inventory of a vCenter when the VMs are gone that are made anew.
func (l *Live) without(v *blueprints.VCenter, i *vsphere.Inventory) *vsphere.Inventory {
	for b := range l.doomed {
		if b.Site.VCenter == v {
			i = i.Without(l.topology.ID, b.Name)
		}
	}
	return i
}

// replace makes the VM anew, in its place and under its name.
func (s *vmStep) replace(spec vsphere.Spec, vm *vsphere.VM) plan.Change {
	change := s.create(spec)
	create := change.Do
	change.Action, change.Effect, change.From = plan.Replace, plan.Rebuild, vm.ID
	change.Undo = nil // the disks are gone
	change.Reason = "--replace lb." + spec.Name + ": its disks go, and it gets new host keys"
	change.Do = func(ctx context.Context, report func(string)) error {
		c, err := s.client(ctx)
		if err != nil {
			return err
		}
		// In order: the VIP goes to the other box at once.
		if err := c.ShutDown(ctx, spec.Deployment, spec.Name, report); err != nil {
			return err
		}
		report("removing the VM with its disks")
		if err := c.Destroy(ctx, spec.Deployment, spec.Name); err != nil {
			return err
		}
		return create(ctx, report)
	}
	return change
}
