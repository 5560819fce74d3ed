package steps

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/vsphere"
)

// powerStep keeps a VM on, with the addresses of the blueprint on its NICs and
// its SSH host keys pinned.
type powerStep struct {
	machine
	box   *blueprints.Box
	after []string
	made  bool // by this run: what undoes that undoes all of this step
}

// newPower makes the step "power/NAME" of a box that ftpdeploy makes; after are
// the steps that place it and that free its addresses.
func newPower(t *blueprints.Topology, box *blueprints.Box, client func(context.Context) (*vsphere.Client, error), first *vsphere.Inventory, after ...string) plan.Step {
	return &powerStep{machine: machine{t, client, first}, box: box, after: after}
}

// Name implements plan.Step.
func (s *powerStep) Name() string { return "power/" + s.box.Name }

// After implements plan.Step.
func (s *powerStep) After() []string {
	return append(slices.Clone(s.after), "vm/"+s.box.Name)
}

// Plan implements plan.Step. With goal Absent there is nothing to do: the VM
// goes with its step.
func (s *powerStep) Plan(ctx context.Context, goal plan.Goal) ([]plan.Change, error) {
	if goal == plan.Absent {
		return nil, nil
	}
	spec := vmSpec(s.topology, s.box)
	vm, err := s.find(ctx, spec)
	if err != nil {
		return nil, err
	}
	var changes []plan.Change
	on := plan.Change{
		Action: plan.Run, Target: spec.Name + ":power", Want: "on, with its addresses",
		Do: func(ctx context.Context, report func(string)) error { return s.powerOn(ctx, spec, report) },
	}
	pin := plan.Change{
		Action: plan.Create, Target: spec.Name + ":hostkeys", Reason: "no SSH host key is pinned", Want: "pinned",
		Do: func(ctx context.Context, report func(string)) error { return s.pin(ctx, spec, report) },
	}
	if s.made = s.made || vm == nil; s.made {
		gone := func(context.Context) error { return nil }
		on.Undo, pin.Undo = gone, gone
	} else if !vm.On {
		on.Undo = func(ctx context.Context) error { return s.shutDown(ctx, spec) }
	}
	switch {
	case vm == nil:
		on.Reason, on.From = "is made off", plan.Unseen
		changes = append(changes, on)
		pin.From = plan.Unseen
	case !vm.On:
		on.Reason, on.From, on.Cause = "is off", "off", s.acted(ctx, vm, vsphere.PowerOffs, time.Time{})
		changes = append(changes, on)
		pin.From = plan.Unseen
	default:
		if missing := vm.Missing(spec.NICs); missing != "" {
			// They may come at any moment.
			on.Reason, on.From, on.Cause = "is on, but lacks "+missing, plan.Unseen, drifted("", time.Time{})
			changes = append(changes, on)
		}
		if len(vm.Published) == 0 {
			pin.From = plan.Unseen
		}
		if err := vm.CheckHostKeys(); err != nil {
			return nil, err
		}
	}
	if vm == nil || len(vm.HostKeys) == 0 {
		changes = append(changes, pin)
	}
	return changes, nil
}

// find reads the VM, or takes it from the snapshot; nil means that it is not there.
func (s *powerStep) find(ctx context.Context, spec vsphere.Spec) (*vsphere.VM, error) {
	if i := s.first; i != nil {
		s.first = nil
		return i.VM(spec.Deployment, spec.Name)
	}
	c, err := s.client(ctx)
	if err != nil {
		return nil, err
	}
	vm, err := c.Find(ctx, spec.Deployment, spec.Name)
	if errors.Is(err, vsphere.ErrNotFound) {
		return nil, nil
	}
	return vm, err
}

func (s *powerStep) powerOn(ctx context.Context, spec vsphere.Spec, report func(string)) error {
	c, err := s.client(ctx)
	if err != nil {
		return err
	}
	if err := c.PowerOn(ctx, spec.Deployment, spec.Name); err != nil {
		return err
	}
	return c.WaitAddresses(ctx, spec, addressBound, report)
}

func (s *powerStep) shutDown(ctx context.Context, spec vsphere.Spec) error {
	c, err := s.client(ctx)
	if err != nil {
		return err
	}
	return c.ShutDown(ctx, spec.Deployment, spec.Name, func(string) {})
}

func (s *powerStep) pin(ctx context.Context, spec vsphere.Spec, report func(string)) error {
	c, err := s.client(ctx)
	if err != nil {
		return err
	}
	report("waiting for the guest to publish its SSH host keys")
	return c.PinHostKeys(ctx, spec.Deployment, spec.Name, hostKeyBound)
}
