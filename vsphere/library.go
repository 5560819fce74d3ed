package vsphere

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vapi/library"
	"github.com/vmware/govmomi/vapi/rest"
	"github.com/vmware/govmomi/vapi/vcenter"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// content runs act in a session with vCenter's REST API, the only way to its
// content libraries.
func (c *Client) content(ctx context.Context, act func(context.Context, *rest.Client) error) error {
	client := rest.NewClient(c.vim)
	client.Transport = c.vim.Transport
	client.Timeout = cloneBound // one request deploys
	err := client.Login(ctx, c.user)
	if rest.IsStatusError(err, http.StatusUnauthorized) {
		return fmt.Errorf("log in to the content libraries of vCenter %s as %s: %w", c.server, c.user.Username(), ErrLogin)
	}
	if err != nil {
		return fmt.Errorf("log in to the content libraries of vCenter %s: %w", c.server, unreachable(ctx, err))
	}
	err = unreachable(ctx, act(ctx, client))
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_ = client.Logout(closing) // the session would end by itself
	return err
}

// libraryItem finds the item "LIBRARY/ITEM", which must be an OVF template.
func libraryItem(ctx context.Context, client *rest.Client, name string) (id string, err error) {
	manager := library.NewManager(client)
	inLibrary, inItem, ok := strings.Cut(name, "/")
	if !ok {
		return "", fmt.Errorf("library_item %q is not of the form LIBRARY/ITEM", name)
	}
	libraries, err := manager.GetLibraries(ctx)
	if err != nil {
		return "", err
	}
	var names []string
	for _, l := range libraries {
		if names = append(names, l.Name); l.Name != inLibrary {
			continue
		}
		items, err := manager.GetLibraryItems(ctx, l.ID)
		if err != nil {
			return "", err
		}
		names = nil
		for _, item := range items {
			if names = append(names, item.Name); item.Name != inItem {
				continue
			}
			if item.Type != library.ItemTypeOVF {
				return "", fmt.Errorf("library item %q is a %s: only an OVF template can be deployed", name, item.Type)
			}
			return item.ID, nil
		}
		return "", missingIn("library item", inItem, "content library "+inLibrary, names)
	}
	return "", missingIn("content library", inLibrary, "this vCenter", names)
}

// deploy makes the VM of spec from an item of a content library. The library's
// API takes neither our identity nor our marks: they are set on the result at
// once. What a crash in between leaves bears no mark and is refused as ErrForeign.
func (c *Client) deploy(ctx context.Context, i *Inventory, spec Spec, report func(string)) error {
	what := fmt.Sprintf("deploy %s from %s", spec.Name, spec.Source())
	report(what)
	request := vcenter.Deploy{
		DeploymentSpec: vcenter.DeploymentSpec{Name: spec.Name, AcceptAllEULA: true},
		Target:         vcenter.Target{ResourcePoolID: i.refs[c.poolPath(spec)].Value, FolderID: i.refs[c.folderPath(spec)].Value},
	}
	if spec.Datastore != "" {
		request.DefaultDatastoreID = i.refs[c.datastorePath(spec)].Value
	}
	var made ref
	err := c.content(ctx, func(ctx context.Context, client *rest.Client) error {
		id, err := libraryItem(ctx, client, spec.LibraryItem)
		if err != nil {
			return err
		}
		r, err := vcenter.NewManager(client).DeployLibraryItem(ctx, id, request)
		if err == nil {
			made = *r
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	machine := object.NewVirtualMachine(c.vim, made)
	var m mo.VirtualMachine
	if err := machine.Properties(ctx, made, []string{"config.hardware.device"}, &m); err != nil {
		return fmt.Errorf("%s: read the result: %w", what, err)
	}
	config, err := i.newConfig(spec, m.Config.Hardware.Device)
	if err != nil {
		return err
	}
	started, err := machine.Reconfigure(ctx, *config)
	return c.task(ctx, "mark VM "+spec.Name+" as ours", taskBound, started, err, nil)
}

// newConfig is what a VM that is made gets on top of what it is made from, with these devices.
func (i *Inventory) newConfig(spec Spec, from []types.BaseVirtualDevice) (*types.VirtualMachineConfigSpec, error) {
	config := &types.VirtualMachineConfigSpec{
		InstanceUuid: spec.UUID(),
		NumCPUs:      clamp(spec.CPUs),
		MemoryMB:     int64(spec.MemoryMB),
		Annotation:   spec.Annotation,
		// Else cloud-init may take the OVF data source instead of guestinfo.
		VAppConfigRemoved: types.NewBool(true),
		ExtraConfig: []types.BaseOptionValue{
			&types.OptionValue{Key: markDeployment, Value: spec.Deployment},
			&types.OptionValue{Key: markName, Value: spec.Name},
			&types.OptionValue{Key: givenSpec, Value: spec.given()},
			// A template that was made of such a VM still has that VM's.
			&types.OptionValue{Key: pinnedKeys, Value: ""},
			&types.OptionValue{Key: nicNames, Value: ""},
			&types.OptionValue{Key: PublishedHostKeys, Value: ""},
		},
	}
	change := func(operation types.VirtualDeviceConfigSpecOperation, d types.BaseVirtualDevice) {
		config.DeviceChange = append(config.DeviceChange, &types.VirtualDeviceConfigSpec{Operation: operation, Device: d})
	}
	for _, d := range from {
		if _, ok := d.(types.BaseVirtualEthernetCard); ok {
			change(types.VirtualDeviceConfigSpecOperationRemove, d)
		}
	}
	for n, nic := range spec.NICs {
		backing, err := i.network(nic)
		if err != nil {
			return nil, err
		}
		card, err := newCard(n, backing)
		if err != nil {
			return nil, err
		}
		change(types.VirtualDeviceConfigSpecOperationAdd, card)
	}
	return config, nil
}
