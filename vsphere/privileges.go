package vsphere

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// privileges that a deployment is made with, by what they are needed on. The
// names are those of vSphere's privilege reference.
var privileges = map[string][]string{
	"folder": {
		"VirtualMachine.Inventory.CreateFromExisting", "VirtualMachine.Inventory.Delete",
		"VirtualMachine.Config.AdvancedConfig", "VirtualMachine.Config.CPUCount", "VirtualMachine.Config.Memory",
		"VirtualMachine.Config.DiskExtend", "VirtualMachine.Config.EditDevice", "VirtualMachine.Config.AddRemoveDevice",
		"VirtualMachine.Config.Rename", "VirtualMachine.Config.Settings",
		"VirtualMachine.Interact.PowerOn", "VirtualMachine.Interact.PowerOff",
	},
	"template":      {"VirtualMachine.Provisioning.DeployTemplate"},
	"resource pool": {"Resource.AssignVMToPool"},
	"datastore":     {"Datastore.AllocateSpace"},
	"port group":    {"Network.Assign"},
	"cluster":       {"Host.Inventory.EditCluster"},
}

// denied asks, in one call, whether the session may do what making a VM takes.
// What it may not is the first result, an ErrDenied that names every privilege.
func (c *Client) denied(ctx context.Context, i *Inventory, things []thing) (denied, err error) {
	_, session := c.current()
	request := types.HasPrivilegeOnEntities{This: *c.vim.ServiceContent.AuthorizationManager, SessionId: session}
	needs := map[ref]thing{}
	for _, t := range things {
		r := i.refs[t.path]
		if _, ok := needs[deref(r)]; ok || r == nil {
			continue
		}
		needs[*r] = t
		request.Entity = append(request.Entity, *r)
		for _, p := range privileges[t.kind] {
			if !slices.Contains(request.PrivId, p) {
				request.PrivId = append(request.PrivId, p)
			}
		}
	}
	if len(request.Entity) == 0 {
		return nil, nil
	}
	response, err := methods.HasPrivilegeOnEntities(ctx, c.vim, &request)
	if err != nil {
		return nil, fmt.Errorf("ask vCenter %s for the account's privileges: %w", c.server, err)
	}
	var lacking []string
	for _, e := range response.Returnval {
		t := needs[e.Entity]
		for _, p := range e.PrivAvailability {
			if !p.IsGranted && slices.Contains(privileges[t.kind], p.PrivId) {
				lacking = append(lacking, fmt.Sprintf("%s on %s %s", p.PrivId, t.kind, t.path))
			}
		}
	}
	if len(lacking) == 0 {
		return nil, nil
	}
	slices.Sort(lacking)
	return fmt.Errorf("%w: %s [FTP402]", ErrDenied, strings.Join(lacking, ", ")), nil
}

func deref(r *ref) ref {
	if r == nil {
		return ref{}
	}
	return *r
}
