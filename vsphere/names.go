package vsphere

import (
	"context"
	"fmt"
	"slices"

	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/types"
)

// Names lists the VMs of the datacenter that bear both our marks, by their names
// in the deployment. A copy of one of them, which has an instanceUuid of its own,
// is none.
func (c *Client) Names(ctx context.Context, deployment string) ([]string, error) {
	root, err := c.find(ctx, c.inventoryPath("vm"))
	if err == nil && root == nil {
		return nil, c.notThere(ctx, thing{"folder", c.inventoryPath("vm")})
	}
	if err != nil {
		return nil, fmt.Errorf("look in vCenter %s: %w", c.server, err)
	}
	keyed := func(key string) string { return fmt.Sprintf("config.extraConfig[%q]", key) }
	below := &types.TraversalSpec{
		SelectionSpec: types.SelectionSpec{Name: "below"}, Type: "Folder", Path: "childEntity",
		SelectSet: []types.BaseSelectionSpec{&types.SelectionSpec{Name: "below"}},
	}
	response, err := property.DefaultCollector(c.vim).RetrieveProperties(ctx, types.RetrieveProperties{SpecSet: []types.PropertyFilterSpec{{
		PropSet:   []types.PropertySpec{{Type: "VirtualMachine", PathSet: []string{"config.instanceUuid", keyed(markDeployment), keyed(markName)}}},
		ObjectSet: []types.ObjectSpec{{Obj: *root, Skip: types.NewBool(true), SelectSet: []types.BaseSelectionSpec{below}}},
	}}})
	if err != nil {
		return nil, fmt.Errorf("look for the VMs of deployment %s in vCenter %s: %w", deployment, c.server, err)
	}
	var names []string
	for _, o := range response.Returnval {
		values := map[string]string{}
		for _, p := range o.PropSet {
			switch v := p.Val.(type) {
			case string:
				values[p.Name] = v
			case types.OptionValue:
				values[p.Name] = fmt.Sprint(v.Value)
			}
		}
		name := values[keyed(markName)]
		if values[keyed(markDeployment)] == deployment && values["config.instanceUuid"] == instanceUUID(deployment, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}
