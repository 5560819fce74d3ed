package vsphere

import (
	"context"
	"fmt"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// stranger is the machine that stands where the VM of spec should, or has its
// instanceUuid, and bears neither mark; nil where there is none.
func (i *Inventory) stranger(spec Spec) (*mo.VirtualMachine, error) {
	r := i.vms[spec.UUID()]
	if r == nil {
		r = i.refs[i.client.vmPath(spec)]
	}
	if r == nil {
		return nil, nil
	}
	m := i.machines[*r]
	if m == nil || m.Config == nil {
		return nil, fmt.Errorf("%s (%s) is no VM whose configuration can be read", i.client.vmPath(spec), r.Value)
	}
	extra := extraConfig(m)
	switch {
	case extra[markDeployment] == "" && extra[markName] == "":
		return m, nil
	case m.Config.InstanceUuid == spec.UUID() && extra[markDeployment] == spec.Deployment && extra[markName] == spec.Name:
		return nil, nil // it is ours
	}
	return nil, foreign(spec.Deployment, spec.Name, m)
}

// Stranger is the ID of the VM that stands where that of spec should and bears no
// mark; "" where there is none. One with the marks of another is ErrForeign.
func (i *Inventory) Stranger(spec Spec) (string, error) {
	m, err := i.stranger(spec)
	if m == nil || err != nil {
		return "", err
	}
	return m.Self.Value, nil
}

// Adopt gives the VM that Stranger found both our marks, in one task, and changes
// nothing else of it.
func (c *Client) Adopt(ctx context.Context, spec Spec, id string) error {
	i, err := c.Observe(ctx, []Spec{spec}, nil)
	if err != nil {
		return err
	}
	m, err := i.stranger(spec)
	if err != nil {
		return err
	}
	if m == nil || m.Self.Value != id {
		return fmt.Errorf("mark VM %s: %w", spec.Name, ErrConflict)
	}
	started, err := object.NewVirtualMachine(c.vim, m.Self).Reconfigure(ctx, types.VirtualMachineConfigSpec{
		ChangeVersion: m.Config.ChangeVersion,
		InstanceUuid:  spec.UUID(),
		ExtraConfig: []types.BaseOptionValue{
			&types.OptionValue{Key: markDeployment, Value: spec.Deployment},
			&types.OptionValue{Key: markName, Value: spec.Name},
		},
	})
	return c.task(ctx, "mark VM "+spec.Name, taskBound, started, err, nil)
}
