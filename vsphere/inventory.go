package vsphere

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vapi/rest"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

type ref = types.ManagedObjectReference

// Inventory is what a vCenter held of some VMs and rules at one moment, and what
// is needed to make those that are not there. It does not change.
type Inventory struct {
	client   *Client
	refs     map[string]*ref  // by inventory path; nil = not there
	missing  map[string]error // by inventory path: how to say that it is not there
	vms      map[string]*ref  // by instanceUuid; nil = not there
	machines map[ref]*mo.VirtualMachine
	clusters map[ref]*mo.ClusterComputeResource
	networks map[ref]string   // names
	switches map[ref]string   // uuid of the switch, by port group
	items    map[string]error // what is wrong with a library item
	denied   error            // privileges that the account lacks to make what is not there
	lacking  map[string]error // by VM that is to be made: what there is not enough of, or taken
}

// Observe reads the VMs of specs and the rules of placements: their references
// in parallel, then everything in one call. It reads what making a VM needs only
// where that VM is not there, or is to be made anew. An object that is not there is no error here but
// where it is needed.
func (c *Client) Observe(ctx context.Context, specs []Spec, placements []Placement) (*Inventory, error) {
	l := c.newLookup()
	for _, s := range specs {
		l.uuid(ctx, s.UUID())
		for _, n := range s.NICs {
			l.path(ctx, c.networkPath(n))
		}
	}
	for _, p := range placements {
		l.path(ctx, c.clusterPath(p.Cluster))
		for _, m := range p.Members {
			l.uuid(ctx, instanceUUID(p.Deployment, m.Name))
		}
	}
	if err := l.wait(); err != nil {
		return nil, fmt.Errorf("look in vCenter %s: %w", c.server, err)
	}
	i := l.inventory
	for _, s := range specs {
		if i.vms[s.UUID()] != nil && !s.Anew {
			continue
		}
		for _, o := range c.needs(s) {
			l.path(ctx, o.path)
		}
		l.path(ctx, c.vmPath(s))
		l.path(ctx, c.clusterPath(s.Cluster))
	}
	if err := l.wait(); err != nil {
		return nil, fmt.Errorf("look in vCenter %s: %w", c.server, err)
	}
	if err := c.read(ctx, i); err != nil {
		return nil, fmt.Errorf("read the inventory of vCenter %s: %w", c.server, err)
	}
	var needed, used []thing // used: what making a VM or rules takes privileges on
	var made []Spec
	for _, s := range specs {
		if i.vms[s.UUID()] != nil && !s.Anew {
			needed = append(needed, c.networksOf(s)...)
			continue
		}
		made = append(made, s)
		needed = append(needed, c.needs(s)...)
		used = append(used, c.needs(s)...)
	}
	for _, p := range placements {
		needed = append(needed, c.cluster(p.Cluster))
		if len(p.Names()) > 0 {
			used = append(used, c.cluster(p.Cluster))
		}
	}
	for _, t := range needed {
		if i.refs[t.path] == nil && i.missing[t.path] == nil {
			if i.missing[t.path] = c.notThere(ctx, t); !errors.Is(i.missing[t.path], ErrMissing) {
				return nil, i.missing[t.path]
			}
		}
	}
	for _, s := range specs {
		if _, known := i.items[s.LibraryItem]; known || s.LibraryItem == "" || i.vms[s.UUID()] != nil && !s.Anew {
			continue
		}
		err := c.content(ctx, func(ctx context.Context, client *rest.Client) error {
			_, err := libraryItem(ctx, client, s.LibraryItem)
			return err
		})
		if errors.Is(err, ErrUnreachable) || errors.Is(err, ErrLogin) {
			return nil, err
		}
		i.items[s.LibraryItem] = err
	}
	if len(made) > 0 {
		var err error
		if i.denied, err = c.denied(ctx, i, used); err != nil {
			return nil, err
		}
		if i.lacking, err = c.capacity(ctx, i, made); err != nil {
			return nil, err
		}
	}
	return i, nil
}

// thing is an object that a blueprint names by its inventory path.
type thing struct{ kind, path string }

func (c *Client) inventoryPath(parts ...string) string {
	path := "/" + c.datacenter
	for _, p := range parts {
		if p = strings.Trim(p, "/"); p != "" {
			path += "/" + p
		}
	}
	return path
}

func (c *Client) networkPath(n NIC) string          { return c.inventoryPath("network", n.PortGroup) }
func (c *Client) clusterPath(cluster string) string { return c.inventoryPath("host", cluster) }
func (c *Client) folderPath(s Spec) string          { return c.inventoryPath("vm", s.Folder) }
func (c *Client) vmPath(s Spec) string              { return c.inventoryPath("vm", s.Folder, s.Name) }
func (c *Client) templatePath(s Spec) string        { return c.inventoryPath("vm", s.Template) }
func (c *Client) datastorePath(s Spec) string       { return c.inventoryPath("datastore", s.Datastore) }

func (c *Client) poolPath(s Spec) string {
	return c.inventoryPath("host", s.Cluster, "Resources", s.ResourcePool)
}

func (c *Client) cluster(name string) thing { return thing{"cluster", c.clusterPath(name)} }

func (c *Client) networksOf(s Spec) []thing {
	var all []thing
	for _, n := range s.NICs {
		all = append(all, thing{"port group", c.networkPath(n)})
	}
	return all
}

// needs is what must be there to make the VM.
func (c *Client) needs(s Spec) []thing {
	all := append(c.networksOf(s),
		thing{"resource pool", c.poolPath(s)},
		thing{"folder", c.folderPath(s)})
	if s.Template != "" {
		all = append(all, thing{"template", c.templatePath(s)})
	}
	if s.Datastore != "" {
		all = append(all, thing{"datastore", c.datastorePath(s)})
	}
	return all
}

// lookup resolves names to references, all at the same time, each once.
type lookup struct {
	client    *Client
	inventory *Inventory
	group     sync.WaitGroup
	mu        sync.Mutex // guards the inventory and errs until wait returns
	errs      []error
}

func (c *Client) newLookup() *lookup {
	return &lookup{client: c, inventory: &Inventory{
		client: c, refs: map[string]*ref{}, missing: map[string]error{}, vms: map[string]*ref{},
		machines: map[ref]*mo.VirtualMachine{}, clusters: map[ref]*mo.ClusterComputeResource{},
		networks: map[ref]string{}, switches: map[ref]string{}, items: map[string]error{},
	}}
}

func (l *lookup) path(ctx context.Context, path string) {
	l.once(l.inventory.refs, path, func() (*ref, error) { return l.client.find(ctx, path) })
}

func (l *lookup) uuid(ctx context.Context, uuid string) {
	l.once(l.inventory.vms, uuid, func() (*ref, error) {
		byInstance := true
		response, err := methods.FindByUuid(ctx, l.client.vim, &types.FindByUuid{
			This: *l.client.vim.ServiceContent.SearchIndex, Uuid: uuid, VmSearch: true, InstanceUuid: &byInstance,
		})
		if err != nil {
			return nil, fmt.Errorf("find the VM with instanceUuid %s: %w", uuid, err)
		}
		return response.Returnval, nil
	})
}

func (l *lookup) once(known map[string]*ref, key string, find func() (*ref, error)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := known[key]; ok {
		return
	}
	known[key] = nil
	l.group.Go(func() {
		found, err := find()
		l.mu.Lock()
		defer l.mu.Unlock()
		known[key] = found
		if err != nil {
			l.errs = append(l.errs, err)
		}
	})
}

func (l *lookup) wait() error {
	l.group.Wait()
	return errors.Join(l.errs...)
}

func (c *Client) find(ctx context.Context, path string) (*ref, error) {
	response, err := methods.FindByInventoryPath(ctx, c.vim, &types.FindByInventoryPath{This: *c.vim.ServiceContent.SearchIndex, InventoryPath: path})
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", path, err)
	}
	return response.Returnval, nil
}

var machineProperties = []string{
	"name", "runtime.powerState", "summary.runtime.bootTime", "runtime.host", "config.instanceUuid", "config.changeVersion", "config.modified", "config.hardware", "config.extraConfig",
	"config.cpuHotAddEnabled", "config.memoryHotAddEnabled", "config.hotPlugMemoryLimit", "guest.net", "guest.toolsRunningStatus",
}

// read fills the inventory with the properties of what was found, in one call.
func (c *Client) read(ctx context.Context, i *Inventory) error {
	traverse := func(kind, path string) []types.BaseSelectionSpec {
		return []types.BaseSelectionSpec{&types.TraversalSpec{Type: kind, Path: path}}
	}
	filter := types.PropertyFilterSpec{PropSet: []types.PropertySpec{
		{Type: "VirtualMachine", PathSet: machineProperties},
		{Type: "ClusterComputeResource", PathSet: []string{"host", "configurationEx"}},
		{Type: "DistributedVirtualPortgroup", PathSet: []string{"name", "config.distributedVirtualSwitch"}},
		{Type: "DistributedVirtualSwitch", PathSet: []string{"uuid"}},
	}}
	seen := map[ref]bool{}
	add := func(r *ref) {
		if r == nil || seen[*r] {
			return
		}
		seen[*r] = true
		switch r.Type {
		case "VirtualMachine", "ClusterComputeResource":
			filter.ObjectSet = append(filter.ObjectSet, types.ObjectSpec{Obj: *r})
		case "DistributedVirtualPortgroup":
			filter.ObjectSet = append(filter.ObjectSet, types.ObjectSpec{Obj: *r, SelectSet: traverse(r.Type, "config.distributedVirtualSwitch")})
		}
	}
	for at, r := range i.refs {
		if r != nil && r.Type == "Network" { // a standard port group: its name is all that we need
			i.networks[*r] = path.Base(at)
		}
		add(r)
	}
	for _, r := range i.vms {
		add(r)
	}
	if len(filter.ObjectSet) == 0 {
		return nil
	}
	response, err := property.DefaultCollector(c.vim).RetrieveProperties(ctx, types.RetrieveProperties{SpecSet: []types.PropertyFilterSpec{filter}})
	if err != nil {
		return err
	}
	switchOf, uuids := map[ref]ref{}, map[ref]string{}
	for _, o := range response.Returnval {
		object, err := mo.ObjectContentToType(o, true)
		if err != nil {
			return fmt.Errorf("%s: %w", o.Obj, err)
		}
		switch object := object.(type) {
		case *mo.VirtualMachine:
			i.machines[o.Obj] = object
		case *mo.ClusterComputeResource:
			i.clusters[o.Obj] = object
		case *mo.DistributedVirtualPortgroup:
			i.networks[o.Obj] = object.Name
			if s := object.Config.DistributedVirtualSwitch; s != nil {
				switchOf[o.Obj] = *s
			}
		case *mo.DistributedVirtualSwitch:
			uuids[o.Obj] = object.Uuid
		case *mo.VmwareDistributedVirtualSwitch:
			uuids[o.Obj] = object.Uuid
		}
	}
	for group, s := range switchOf {
		i.switches[group] = uuids[s]
	}
	return nil
}

// network resolves the port group of n and says how a NIC is backed by it.
func (i *Inventory) network(n NIC) (types.BaseVirtualDeviceBackingInfo, error) {
	at := i.client.networkPath(n)
	r := i.refs[at]
	if r == nil {
		return nil, i.missing[at]
	}
	switch r.Type {
	case "DistributedVirtualPortgroup":
		if i.switches[*r] == "" {
			return nil, fmt.Errorf("port group %s: the account may not see its switch", at)
		}
		return &types.VirtualEthernetCardDistributedVirtualPortBackingInfo{
			Port: types.DistributedVirtualSwitchPortConnection{PortgroupKey: r.Value, SwitchUuid: i.switches[*r]},
		}, nil
	case "Network":
		return &types.VirtualEthernetCardNetworkBackingInfo{
			VirtualDeviceDeviceBackingInfo: types.VirtualDeviceDeviceBackingInfo{DeviceName: i.networks[*r]},
			Network:                        r,
		}, nil
	}
	return nil, fmt.Errorf("port group %s is a %s: a NIC needs a distributed or a standard port group", at, r.Type)
}

// backs tells which network is behind a NIC. Only the port group counts: vCenter
// fills in the port, its cookie and a summary text by itself.
func backs(backing types.BaseVirtualDeviceBackingInfo) string {
	switch b := backing.(type) {
	case *types.VirtualEthernetCardDistributedVirtualPortBackingInfo:
		return b.Port.PortgroupKey
	case *types.VirtualEthernetCardNetworkBackingInfo:
		if b.Network != nil {
			return b.Network.Value
		}
		return b.DeviceName
	}
	return ""
}

// networkName is the name of a network by its key, or the key where it is none of the deployment's.
func (i *Inventory) networkName(key string) string {
	for r, name := range i.networks {
		if r.Value == key {
			return name
		}
	}
	return key
}

// notThere is an ErrMissing that says which part of the path is not there and
// what is called most alike beside it.
func (c *Client) notThere(ctx context.Context, t thing) error {
	parent, name, kind := "", "", t.kind
	at := &c.vim.ServiceContent.RootFolder
	parts := strings.Split(strings.Trim(t.path, "/"), "/")
	inDatacenter := strings.Count(c.datacenter, "/") + 1
	for n, part := range parts {
		next, err := c.find(ctx, "/"+strings.Join(parts[:n+1], "/"))
		if err != nil {
			return err
		}
		if next == nil {
			parent, name = "/"+strings.Join(parts[:n], "/"), part
			switch {
			case n < inDatacenter:
				kind = "datacenter"
			case n < len(parts)-1:
				kind = "folder"
			}
			if t.kind == "resource pool" && n < len(parts)-1 {
				kind = "cluster"
			}
			break
		}
		at = next
	}
	if name == "" {
		return fmt.Errorf("%s was not there a moment ago, now it is: plan again", t.path)
	}
	names, err := c.children(ctx, *at)
	if err != nil {
		return fmt.Errorf("list %s: %w", parent, err)
	}
	where := c.datacenter
	if kind == "datacenter" {
		where = "vCenter " + c.server
	}
	return fmt.Errorf("no %s %q in %s%s: %w (%s) [FTP401]", kind, name, where, near(name, names), ErrMissing, t.path)
}

// children lists the names below a folder, a datacenter, a cluster or a resource pool.
func (c *Client) children(ctx context.Context, parent ref) ([]string, error) {
	paths := map[string]string{"Folder": "childEntity", "ResourcePool": "resourcePool", "ClusterComputeResource": "resourcePool", "ComputeResource": "resourcePool"}
	path := paths[parent.Type]
	if path == "" {
		return nil, nil
	}
	response, err := property.DefaultCollector(c.vim).RetrieveProperties(ctx, types.RetrieveProperties{SpecSet: []types.PropertyFilterSpec{{
		PropSet: []types.PropertySpec{{Type: "ManagedEntity", PathSet: []string{"name"}}},
		ObjectSet: []types.ObjectSpec{{Obj: parent, Skip: types.NewBool(true), SelectSet: []types.BaseSelectionSpec{
			&types.TraversalSpec{Type: parent.Type, Path: path},
		}}},
	}}})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, o := range response.Returnval {
		for _, p := range o.PropSet {
			if name, ok := p.Val.(string); ok {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names, nil
}

// missingIn is an ErrMissing for a name among names.
func missingIn(kind, name, where string, names []string) error {
	return fmt.Errorf("no %s %q in %s%s: %w [FTP401]", kind, name, where, near(name, names), ErrMissing)
}

func near(name string, names []string) string {
	if len(names) == 0 {
		return "; nothing is there, or the account may not see it"
	}
	return fmt.Sprintf(" - nearest: %q", nearest(name, names))
}

// nearest is the name that takes the fewest edits to become name.
func nearest(name string, names []string) string {
	return slices.MinFunc(names, func(a, b string) int { return distance(name, a) - distance(name, b) })
}

// distance is Levenshtein's, over bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
