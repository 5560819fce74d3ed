package vsphere

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// Errors of Ready about what a VM that is made would live on.
var (
	ErrCapacity = errors.New("there is not enough for it")
	ErrTaken    = errors.New("another VM has its address")
)

// room is what VMs that are to be made would live on and beside. What the account may not see is not in it.
type room struct {
	datastores map[ref]*mo.Datastore
	pools      map[ref]*mo.ResourcePool
	hosts      map[ref]*mo.HostSystem
	machines   map[ref]*mo.VirtualMachine // the templates, the VMs that are made anew, and all on the port groups
}

// capacity tells of each of specs, whose VMs are to be made, what there is not enough of, and which of its
// addresses other VMs have: one read, and a second one where an address is taken.
func (c *Client) capacity(ctx context.Context, i *Inventory, specs []Spec) (map[string]error, error) {
	r, err := c.readRoom(ctx, i, specs)
	if err != nil {
		return nil, fmt.Errorf("read the capacity of vCenter %s: %w", c.server, err)
	}
	lacking := map[string]error{}
	for _, s := range specs {
		taken, err := c.taken(ctx, i, r, s)
		if err != nil {
			return nil, err
		}
		lacking[s.Name] = errors.Join(i.storage(r, s, specs), i.compute(r, s), i.pool(r, s, specs), taken)
	}
	return lacking, nil
}

// readRoom reads, in one call, what capacity looks at.
func (c *Client) readRoom(ctx context.Context, i *Inventory, specs []Spec) (*room, error) {
	traverse := func(kind, path string) []types.BaseSelectionSpec {
		return []types.BaseSelectionSpec{&types.TraversalSpec{Type: kind, Path: path}}
	}
	filter := types.PropertyFilterSpec{PropSet: []types.PropertySpec{
		{Type: "Datastore", PathSet: []string{"name", "summary", "host"}},
		{Type: "ResourcePool", PathSet: []string{"config", "runtime"}},
		{Type: "HostSystem", PathSet: []string{"name", "runtime.connectionState", "runtime.inMaintenanceMode", "summary.hardware"}},
		{Type: "VirtualMachine", PathSet: []string{"name", "guest.net", "storage.perDatastoreUsage", "resourceConfig"}},
	}}
	seen := map[ref]bool{}
	add := func(r *ref, paths ...string) {
		if r == nil || seen[*r] {
			return
		}
		seen[*r] = true
		o := types.ObjectSpec{Obj: *r}
		for _, path := range paths {
			o.SelectSet = append(o.SelectSet, traverse(r.Type, path)...)
		}
		filter.ObjectSet = append(filter.ObjectSet, o)
	}
	for _, s := range specs {
		add(i.store(s))
		add(i.refs[c.poolPath(s)])
		add(i.refs[c.templatePath(s)])
		add(i.vms[s.UUID()])
		add(i.refs[c.clusterPath(s.Cluster)], "host")
		for _, n := range s.NICs {
			add(i.refs[c.networkPath(n)], "vm")
		}
	}
	found := &room{map[ref]*mo.Datastore{}, map[ref]*mo.ResourcePool{}, map[ref]*mo.HostSystem{}, map[ref]*mo.VirtualMachine{}}
	if len(filter.ObjectSet) == 0 {
		return found, nil
	}
	response, err := property.DefaultCollector(c.vim).RetrieveProperties(ctx, types.RetrieveProperties{SpecSet: []types.PropertyFilterSpec{filter}})
	if err != nil {
		return nil, err
	}
	for _, o := range response.Returnval {
		object, err := mo.ObjectContentToType(o, true)
		if fault.Is(err, &types.NoPermission{}) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", o.Obj, err)
		}
		switch object := object.(type) {
		case *mo.Datastore:
			found.datastores[o.Obj] = object
		case *mo.ResourcePool:
			found.pools[o.Obj] = object
		case *mo.HostSystem:
			found.hosts[o.Obj] = object
		case *mo.VirtualMachine:
			found.machines[o.Obj] = object
		}
	}
	return found, nil
}

// store is the datastore of a VM that is made; nil where that is not known.
func (i *Inventory) store(s Spec) *ref {
	if s.Datastore != "" {
		return i.refs[i.client.datastorePath(s)]
	}
	m := i.machines[deref(i.refs[i.client.templatePath(s)])]
	if m == nil || m.Config == nil {
		return nil
	}
	if disk := firstDisk(m); disk != nil {
		if b, ok := disk.Backing.(types.BaseVirtualDeviceFileBackingInfo); ok {
			return b.GetVirtualDeviceFileBackingInfo().Datastore
		}
	}
	return nil
}

// storage says why the datastore cannot take the VM of s, with those of all that are made with it.
func (i *Inventory) storage(r *room, s Spec, all []Spec) error {
	store := i.store(s)
	d := r.datastores[deref(store)]
	if d == nil {
		return nil
	}
	switch {
	case !d.Summary.Accessible:
		return fmt.Errorf("%w: datastore %s is not accessible: bring it back, or place VM %s elsewhere [FTP405]", ErrCapacity, d.Name, s.Name)
	case d.Summary.MaintenanceMode != "" && d.Summary.MaintenanceMode != string(types.DatastoreSummaryMaintenanceModeStateNormal):
		return fmt.Errorf("%w: datastore %s is in maintenance mode (%s): end that, or place VM %s elsewhere [FTP405]", ErrCapacity, d.Name, d.Summary.MaintenanceMode, s.Name)
	}
	var names []string
	need, free := int64(0), d.Summary.FreeSpace
	for _, one := range all {
		if deref(i.store(one)) != *store {
			continue
		}
		names = append(names, one.Name)
		need += i.bytes(r, one, d)
		free += committed(r.machines[deref(i.vms[one.UUID()])], *store) // of the one that it takes the place of
	}
	if need <= free {
		return nil
	}
	return fmt.Errorf("%w: datastore %s has %s free, and %s needs %s at least: free %s there, or place it elsewhere [FTP405]",
		ErrCapacity, d.Name, inGiB(free), strings.Join(names, " with "), inGiB(need), inGiB(need-free))
}

// bytes is what a VM takes of its datastore from the first day: its disks, a thin one as far as the
// template has filled it, and the swap file, unless the datastore makes that thin. Of an
// item of a content library the size is not known.
func (i *Inventory) bytes(r *room, s Spec, d *mo.Datastore) int64 {
	at := deref(i.refs[i.client.templatePath(s)])
	m := i.machines[at]
	if m == nil || m.Config == nil {
		return 0
	}
	first := firstDisk(m)
	var thick, before, thin int64 // before: what the thick ones take of the template
	for _, device := range m.Config.Hardware.Device {
		disk, ok := device.(*types.VirtualDisk)
		if !ok {
			continue
		}
		flat, ok := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
		switch {
		case ok && flat.ThinProvisioned != nil && *flat.ThinProvisioned:
			thin += capacity(disk)
		case disk == first:
			thick += max(capacity(disk), int64(s.DiskGB)*gib)
			before += capacity(disk)
		default:
			thick += capacity(disk)
			before += capacity(disk)
		}
	}
	template := r.machines[at]
	sum := thick + min(max(0, committed(template)-before), thin)
	if d.Summary.Type != "vsan" {
		sum += max(0, int64(s.MemoryMB)-reserved(template)) << 20
	}
	return sum
}

// committed is what a VM takes of some datastores, none meaning all.
func committed(m *mo.VirtualMachine, of ...ref) int64 {
	if m == nil || m.Storage == nil {
		return 0
	}
	sum := int64(0)
	for _, u := range m.Storage.PerDatastoreUsage {
		if of == nil || slices.Contains(of, u.Datastore) {
			sum += u.Committed
		}
	}
	return sum
}

// reserved is the memory (MiB) that VMs made from a template keep for themselves.
func reserved(template *mo.VirtualMachine) int64 {
	if template == nil || template.ResourceConfig == nil || template.ResourceConfig.MemoryAllocation.Reservation == nil {
		return 0
	}
	return *template.ResourceConfig.MemoryAllocation.Reservation
}

// compute says why no host that the VM of s may run on can run it.
func (i *Inventory) compute(r *room, s Spec) error {
	hosts, where := i.hostsOf(r, s)
	if len(hosts) == 0 {
		return nil
	}
	store := deref(i.store(s))
	var why []string
	for _, h := range hosts {
		problem := unfit(h, s)
		if d := r.datastores[store]; problem == "" && d != nil && len(d.Host) > 0 && !slices.ContainsFunc(d.Host, func(m types.DatastoreHostMount) bool { return m.Key == h.Self }) {
			problem = "does not mount datastore " + d.Name
		}
		if problem == "" {
			return nil
		}
		why = append(why, h.Name+" "+problem)
	}
	return fmt.Errorf("%w: no host of %s can run VM %s, which wants %d CPUs and %s of memory: %s. Bring a host back, or ask for less [FTP405]",
		ErrCapacity, where, s.Name, s.CPUs, inGiB(int64(s.MemoryMB)<<20), strings.Join(why, ", "))
}

// hostsOf are the hosts of the cluster, or of the host group in it, where the VM of s should run, in the
// order of their names; none where they are not known.
func (i *Inventory) hostsOf(r *room, s Spec) (hosts []*mo.HostSystem, where string) {
	where = "cluster " + s.Cluster
	cluster := i.clusters[deref(i.refs[i.client.clusterPath(s.Cluster)])]
	if cluster == nil {
		return nil, where
	}
	members := cluster.Host
	if config, ok := cluster.ConfigurationEx.(*types.ClusterConfigInfoEx); ok && s.HostGroup != "" {
		for _, g := range config.Group {
			if g, ok := g.(*types.ClusterHostGroup); ok && g.Name == s.HostGroup {
				members, where = g.Host, fmt.Sprintf("host group %s in cluster %s", s.HostGroup, s.Cluster)
			}
		}
	}
	for _, m := range members {
		h := r.hosts[m]
		if h == nil {
			return nil, where // it may be the one
		}
		hosts = append(hosts, h)
	}
	slices.SortFunc(hosts, func(a, b *mo.HostSystem) int { return cmp.Compare(a.Name, b.Name) })
	return hosts, where
}

// unfit says why a host cannot run the VM of s; "" means that it can.
func unfit(h *mo.HostSystem, s Spec) string {
	hardware := h.Summary.Hardware
	switch {
	case h.Runtime.ConnectionState != types.HostSystemConnectionStateConnected:
		return "is " + map[types.HostSystemConnectionState]string{
			types.HostSystemConnectionStateDisconnected: "disconnected", types.HostSystemConnectionStateNotResponding: "not responding",
		}[h.Runtime.ConnectionState]
	case h.Runtime.InMaintenanceMode:
		return "is in maintenance mode"
	case hardware != nil && int(hardware.NumCpuThreads) < s.CPUs:
		return fmt.Sprintf("has %d logical CPUs", hardware.NumCpuThreads)
	case hardware != nil && hardware.MemorySize < int64(s.MemoryMB)<<20:
		return "has " + inGiB(hardware.MemorySize)
	}
	return ""
}

// pool says why the resource pool cannot give the VM of s, and those that are made with it, their memory.
func (i *Inventory) pool(r *room, s Spec, all []Spec) error {
	if s.ResourcePool == "" { // a cluster's root: its limit is what its hosts have
		return nil
	}
	at := i.client.poolPath(s)
	p := r.pools[deref(i.refs[at])]
	if p == nil {
		return nil
	}
	var names []string
	memory, kept := int64(0), int64(0)
	for _, one := range all {
		if i.client.poolPath(one) == at {
			names = append(names, one.Name)
			memory += int64(one.MemoryMB) << 20
			kept += reserved(r.machines[deref(i.refs[i.client.templatePath(one)])]) << 20
		}
	}
	who := strings.Join(names, " with ")
	if limit := p.Config.MemoryAllocation.Limit; limit != nil && *limit >= 0 && *limit<<20 < memory {
		return fmt.Errorf("%w: resource pool %s is limited to %s of memory, and %s needs %s: raise the limit, or take another pool [FTP405]",
			ErrCapacity, s.ResourcePool, inGiB(*limit<<20), who, inGiB(memory))
	}
	if left := p.Runtime.Memory.UnreservedForVm; kept > left {
		return fmt.Errorf("%w: resource pool %s has %s of memory left to reserve, and the template has %s reserve %s: raise the pool's reservation, or take the template's away [FTP405]",
			ErrCapacity, s.ResourcePool, inGiB(left), who, inGiB(kept))
	}
	return nil
}

// taken says which addresses of the VM of s other VMs on its port groups show. One
// of the same deployment is passed over: its own step has it give the address up.
func (c *Client) taken(ctx context.Context, i *Inventory, r *room, s Spec) (error, error) {
	wanted := map[netip.Addr]string{}
	for _, n := range s.NICs {
		wanted[n.Address] = "the address of its NIC " + n.Name
	}
	for _, v := range s.VIPs {
		wanted[v] = "a VIP of it"
	}
	var errs []error
	for _, at := range slices.SortedFunc(maps.Keys(r.machines), func(a, b ref) int { return cmp.Compare(a.Value, b.Value) }) {
		m := r.machines[at]
		if m.Guest == nil || at == deref(i.vms[s.UUID()]) {
			continue
		}
		for _, n := range m.Guest.Net {
			for _, text := range n.IpAddress {
				a, err := netip.ParseAddr(text)
				what, clash := wanted[a]
				if err != nil || !clash {
					continue
				}
				ours, err := c.marked(ctx, at, s.Deployment)
				if err != nil {
					return nil, err
				}
				if !ours {
					errs = append(errs, fmt.Errorf("%w: VM %q (%s) shows %s, which is %s: give %s another address, or have that VM give it up [FTP406]",
						ErrTaken, m.Name, at.Value, a, what, s.Name))
				}
			}
		}
	}
	return errors.Join(errs...), nil
}

// marked tells whether a VM bears a deployment's mark.
func (c *Client) marked(ctx context.Context, at ref, deployment string) (bool, error) {
	var m mo.VirtualMachine
	if err := property.DefaultCollector(c.vim).RetrieveOne(ctx, at, []string{"config.extraConfig"}, &m); err != nil {
		return false, fmt.Errorf("look whose VM %s is: %w", at.Value, err)
	}
	return extraConfig(&m)[markDeployment] == deployment, nil
}

// inGiB is a size in words.
func inGiB(bytes int64) string { return fmt.Sprintf("%.1f GiB", float64(bytes)/gib) }
