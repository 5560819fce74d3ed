package vsphere

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// Keys of a VM's extraConfig. The guest may write guestinfo.* itself, never ftpdeploy.*.
const (
	markDeployment = "ftpdeploy.deployment"
	markName       = "ftpdeploy.name"
	pinnedKeys     = "ftpdeploy.hostkeys"
	nicNames       = "ftpdeploy.nics" // NAME=MAC;NAME=MAC: which card is which of the blueprint's
	givenSpec      = "ftpdeploy.spec" // what the VM was last made or set to: tells a changed blueprint from drift

	// PublishedHostKeys is where the guest publishes its SSH host keys: the first
	// two fields of each public key file ("ssh-ed25519 AAAA..."), joined by ";".
	PublishedHostKeys = "guestinfo.ftpdeploy.hostkeys"
)

// Spec is a VM as it should be.
type Spec struct {
	Deployment string
	Name       string
	Anew       bool // it is there, and is to be made anew: what that takes is looked at too

	// Where and from what it is made; a VM that is there is not moved. Paths are
	// relative to the datacenter's folder of their kind.
	Template     string
	LibraryItem  string // "LIBRARY/ITEM" of a content library; exactly one of Template and LibraryItem is set
	Folder       string
	Cluster      string
	HostGroup    string // of the cluster, where it should run; "" = anywhere. A Placement sees to it
	ResourcePool string // below the cluster's root pool; "" = that pool
	Datastore    string // "" = the template's
	Annotation   string

	CPUs     int
	MemoryMB int
	DiskGB   int // of the first disk, in GiB; 0 = the template's
	NICs     []NIC
	VIPs     []netip.Addr // that it may come to hold: no VM of others may show them when it is made
	// GuestInfo returns the extraConfig entries that the guest reads, for the MAC
	// addresses of NICs in their order. It must give the same for the same MACs.
	GuestInfo func(macs []string) map[string]string
}

// NIC is a network card of a Spec, in the order of the cards in the VM.
type NIC struct {
	Name      string
	PortGroup string
	Address   netip.Addr // that the guest should show on it
}

// UUID is the instanceUuid of the VM: the same for the same deployment and name, for ever.
func (s Spec) UUID() string { return instanceUUID(s.Deployment, s.Name) }

// Source is what the VM is made from, in words.
func (s Spec) Source() string {
	if s.LibraryItem != "" {
		return "library item " + s.LibraryItem
	}
	return "template " + s.Template
}

func instanceUUID(deployment, name string) string {
	return uuid.NewSHA1(uuid.NameSpaceURL, []byte("https://github.com/ftpdeploy/ftpdeploy/vm/"+deployment+"/"+name)).String()
}

// VM is a machine of ours as it was when it was read.
type VM struct {
	ID         string    // that vCenter gave it: another one for a VM that is made anew
	Name       string    // may have been renamed
	On         bool      // suspended counts as off
	Booted     time.Time // of its last power-on, by vCenter's clock; zero = not known
	Modified   time.Time // of its configuration, likewise
	Tools      string    // guest.toolsRunningStatus: guestToolsRunning, guestToolsNotRunning, guestToolsExecutingScripts
	NICs       []Card    // in the order that they were added in
	HostKeys   []string
	Published  []string // host keys that the guest claims; nothing trusts them before they are pinned
	reference  ref
	host       *ref
	properties *mo.VirtualMachine
}

// Card is a network card of a VM.
type Card struct {
	MAC       string // lower case
	Connected bool
	Addresses []netip.Addr // that VMware Tools report, link-local ones left out
	device    types.BaseVirtualDevice
}

// assign gives each of nics its card, nil where it has none, and returns the
// cards that are then left. A card is known by its MAC, which was recorded when
// it was made; cards without a record are taken in the order that they were
// added in.
func (vm *VM) assign(nics []NIC) (cards []*Card, left []*Card) {
	recorded := map[string]string{}
	for _, entry := range strings.Split(extraConfig(vm.properties)[nicNames], ";") {
		name, mac, _ := strings.Cut(entry, "=")
		recorded[name] = mac
	}
	for n := range vm.NICs {
		left = append(left, &vm.NICs[n])
	}
	cards = make([]*Card, len(nics))
	take := func(n int, fits func(*Card) bool) {
		if at := slices.IndexFunc(left, fits); cards[n] == nil && at >= 0 {
			cards[n] = left[at]
			left = slices.Delete(left, at, at+1)
		}
	}
	for n, nic := range nics {
		take(n, func(c *Card) bool { return c.MAC == recorded[nic.Name] })
	}
	for n := range nics {
		take(n, func(*Card) bool { return true })
	}
	return cards, left
}

// VM returns the VM that bears both our marks, or nil where there is no VM with
// our instanceUuid. A VM with that UUID but other marks is ErrForeign.
func (i *Inventory) VM(deployment, name string) (*VM, error) {
	id := instanceUUID(deployment, name)
	r, looked := i.vms[id]
	if !looked {
		return nil, fmt.Errorf("VM %s of %s was not looked for", name, deployment)
	}
	if r == nil {
		return nil, nil
	}
	return newVM(deployment, name, *r, i.machines[*r])
}

func newVM(deployment, name string, r ref, m *mo.VirtualMachine) (*VM, error) {
	if m == nil || m.Config == nil {
		return nil, fmt.Errorf("VM %s (%s) has no readable configuration: it may be inaccessible, or the account may not see it", name, r.Value)
	}
	extra := extraConfig(m)
	if m.Config.InstanceUuid != instanceUUID(deployment, name) || extra[markDeployment] != deployment || extra[markName] != name {
		return nil, foreign(deployment, name, m)
	}
	vm := &VM{
		ID: r.Value, Name: m.Name, On: m.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn,
		HostKeys: splitKeys(extra[pinnedKeys]), Published: splitKeys(extra[PublishedHostKeys]),
		reference: r, host: m.Runtime.Host, properties: m,
	}
	if at := m.Summary.Runtime.BootTime; at != nil {
		vm.Booted = *at
	}
	vm.Modified = m.Config.Modified.UTC()
	addresses := map[string][]netip.Addr{}
	if m.Guest != nil {
		vm.Tools = m.Guest.ToolsRunningStatus
		for _, n := range m.Guest.Net {
			mac := strings.ToLower(n.MacAddress)
			for _, text := range n.IpAddress {
				if a, err := netip.ParseAddr(text); err == nil && !a.IsLinkLocalUnicast() && !slices.Contains(addresses[mac], a) {
					addresses[mac] = append(addresses[mac], a)
				}
			}
		}
	}
	for _, d := range m.Config.Hardware.Device {
		if n, ok := d.(types.BaseVirtualEthernetCard); ok {
			card := n.GetVirtualEthernetCard()
			mac := strings.ToLower(card.MacAddress)
			connected := card.Connectable == nil || card.Connectable.StartConnected && (card.Connectable.Connected || !vm.On)
			vm.NICs = append(vm.NICs, Card{MAC: mac, Connected: connected, Addresses: addresses[mac], device: d})
		}
	}
	// The list's order changes when a device is edited, the keys do not.
	slices.SortFunc(vm.NICs, func(a, b Card) int {
		return cmp.Compare(a.device.GetVirtualDevice().Key, b.device.GetVirtualDevice().Key)
	})
	return vm, nil
}

func splitKeys(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == ';' || r == '\n' })
}

func extraConfig(m *mo.VirtualMachine) map[string]string {
	all := map[string]string{}
	if m.Config != nil {
		for _, o := range m.Config.ExtraConfig {
			v := o.GetOptionValue()
			all[v.Key] = fmt.Sprint(v.Value)
		}
	}
	return all
}

// foreign is the ErrForeign of a machine that stands where the VM should.
func foreign(deployment, name string, m *mo.VirtualMachine) error {
	extra := extraConfig(m)
	marks, adopt := "it bears no mark of ftpdeploy", "take it over with ftpdeploy adopt lb."+name+", "
	if extra[markDeployment] != "" || extra[markName] != "" {
		adopt = ""
		marks = fmt.Sprintf("its marks say deployment %q, name %q", extra[markDeployment], extra[markName])
	}
	id := ""
	if m.Config != nil {
		id = m.Config.InstanceUuid
	}
	return fmt.Errorf("VM %q (%s, instanceUuid %s): %w: %s, ours would say deployment %q, name %q with instanceUuid %s; %srename or remove it, or choose another name [FTP603]",
		m.Name, m.Self.Value, id, ErrForeign, marks, deployment, name, instanceUUID(deployment, name), adopt)
}

// Without is the inventory as it will be when a VM is gone.
func (i *Inventory) Without(deployment, name string) *Inventory {
	later := *i
	later.vms = maps.Clone(i.vms)
	later.vms[instanceUUID(deployment, name)] = nil
	return &later
}

// Ready tells why the VM of spec, which is not there or goes, cannot be made; nil means that it can.
// The error joins everything that is missing (ErrMissing), in the way
// (ErrForeign), not allowed (ErrDenied), too small or full (ErrCapacity), or taken (ErrTaken).
func (i *Inventory) Ready(spec Spec) error {
	c := i.client
	var errs []error
	for _, t := range c.needs(spec) {
		if i.refs[t.path] == nil {
			errs = append(errs, i.missing[t.path])
		} else if want := (map[string]string{"folder": "Folder", "template": "VirtualMachine", "datastore": "Datastore", "resource pool": "ResourcePool"})[t.kind]; want != "" && i.refs[t.path].Type != want {
			errs = append(errs, fmt.Errorf("%s %s is a %s, not a %s", t.kind, t.path, i.refs[t.path].Type, want))
		}
	}
	for _, n := range spec.NICs {
		if i.refs[c.networkPath(n)] != nil {
			if _, err := i.network(n); err != nil {
				errs = append(errs, err)
			}
		}
	}
	if r := i.refs[c.vmPath(spec)]; r != nil && (!spec.Anew || *r != deref(i.vms[spec.UUID()])) {
		if m := i.machines[*r]; m != nil {
			errs = append(errs, foreign(spec.Deployment, spec.Name, m))
		} else {
			errs = append(errs, fmt.Errorf("%s is a %s: %w", c.vmPath(spec), r.Type, ErrForeign))
		}
	}
	if m := i.machines[deref(i.refs[c.templatePath(spec)])]; m != nil && m.Config != nil {
		if err := diskFits(spec, m, "template "+spec.Template); err != nil {
			errs = append(errs, err)
		}
	}
	errs = append(errs, i.items[spec.LibraryItem], i.denied, i.lacking[spec.Name])
	return errors.Join(errs...)
}

const gib = 1 << 30

func firstDisk(m *mo.VirtualMachine) *types.VirtualDisk {
	for _, d := range m.Config.Hardware.Device {
		if disk, ok := d.(*types.VirtualDisk); ok {
			return disk
		}
	}
	return nil
}

func capacity(disk *types.VirtualDisk) int64 {
	if disk.CapacityInBytes != 0 {
		return disk.CapacityInBytes
	}
	return disk.CapacityInKB << 10
}

func diskFits(spec Spec, m *mo.VirtualMachine, whose string) error {
	if spec.DiskGB == 0 {
		return nil
	}
	disk := firstDisk(m)
	if disk == nil {
		return fmt.Errorf("%s has no disk", whose)
	}
	if have := capacity(disk); have > int64(spec.DiskGB)*gib {
		return fmt.Errorf("disk of %d GiB is smaller than that of %s (%s GiB): a disk cannot shrink [FTP404]",
			spec.DiskGB, whose, strconv.FormatFloat(float64(have)/gib, 'f', -1, 64))
	}
	return nil
}

// Difference is one thing about a VM, or about the rules, that is not as it should be.
type Difference struct{ Path, Before, After string }

// Edit is what brings a VM to its spec.
type Edit struct {
	Differences []Difference
	Off         bool // the VM is on and must go off for it
	Cuts        bool // a NIC in use is rewired
	Drift       bool // the spec is the one that the VM was last given: it was changed by others
	spec        types.VirtualMachineConfigSpec
	back        *types.VirtualMachineConfigSpec // nil where the hardware changes
}

// Reversible tells whether TakeBack can take the edit back: it is of words only.
func (e *Edit) Reversible() bool { return e.back != nil }

// Edit compares a VM with its spec; nil means that nothing differs. Where NICs
// are added, what the guest is told comes with the edit that follows: it holds
// their MAC addresses.
func (i *Inventory) Edit(vm *VM, spec Spec) (*Edit, error) {
	m := vm.properties
	e := &Edit{spec: types.VirtualMachineConfigSpec{ChangeVersion: m.Config.ChangeVersion}}
	differ := func(path, before, after string) {
		e.Differences = append(e.Differences, Difference{path, before, after})
	}
	if vm.Name != spec.Name {
		differ("name", vm.Name, spec.Name)
		e.spec.Name = spec.Name
	}
	if have := int(m.Config.Hardware.NumCPU); have != spec.CPUs {
		differ("cpus", strconv.Itoa(have), strconv.Itoa(spec.CPUs))
		e.spec.NumCPUs = clamp(spec.CPUs)
		hot := m.Config.CpuHotAddEnabled != nil && *m.Config.CpuHotAddEnabled && spec.CPUs > have
		e.Off = e.Off || vm.On && !hot
	}
	if have := int(m.Config.Hardware.MemoryMB); have != spec.MemoryMB {
		differ("memory_mb", strconv.Itoa(have), strconv.Itoa(spec.MemoryMB))
		e.spec.MemoryMB = int64(spec.MemoryMB)
		hot := m.Config.MemoryHotAddEnabled != nil && *m.Config.MemoryHotAddEnabled && spec.MemoryMB > have &&
			(m.Config.HotPlugMemoryLimit == 0 || int64(spec.MemoryMB) <= m.Config.HotPlugMemoryLimit)
		e.Off = e.Off || vm.On && !hot
	}
	if err := diskFits(spec, m, "the VM"); err != nil {
		return nil, err
	}
	if disk := firstDisk(m); spec.DiskGB != 0 && capacity(disk) != int64(spec.DiskGB)*gib {
		differ("disk_gb", strconv.FormatFloat(float64(capacity(disk))/gib, 'f', -1, 64), strconv.Itoa(spec.DiskGB))
		grown := *disk
		grown.CapacityInBytes, grown.CapacityInKB = int64(spec.DiskGB)*gib, int64(spec.DiskGB)*gib>>10
		e.device("edit", &grown)
	}
	macs, err := i.editNICs(e, vm, spec, differ)
	if err != nil {
		return nil, err
	}
	if len(macs) == len(spec.NICs) {
		extra, want := extraConfig(m), map[string]string{}
		if spec.GuestInfo != nil {
			want = maps.Clone(spec.GuestInfo(macs))
		}
		var names []string
		for n, nic := range spec.NICs {
			names = append(names, nic.Name+"="+macs[n])
		}
		want[nicNames] = strings.Join(names, ";")
		for _, k := range slices.Sorted(maps.Keys(want)) {
			if extra[k] != want[k] {
				differ(k, digest(extra[k]), digest(want[k]))
				e.spec.ExtraConfig = append(e.spec.ExtraConfig, &types.OptionValue{Key: k, Value: want[k]})
			}
		}
	}
	if len(e.Differences) == 0 {
		return nil, nil
	}
	if given := spec.given(); extraConfig(m)[givenSpec] == given {
		e.Drift = true
	} else {
		e.spec.ExtraConfig = append(e.spec.ExtraConfig, &types.OptionValue{Key: givenSpec, Value: given})
	}
	if e.spec.NumCPUs == 0 && e.spec.MemoryMB == 0 && len(e.spec.DeviceChange) == 0 {
		e.back = &types.VirtualMachineConfigSpec{}
		if e.spec.Name != "" {
			e.back.Name = vm.Name
		}
		for _, o := range e.spec.ExtraConfig {
			key := o.GetOptionValue().Key
			e.back.ExtraConfig = append(e.back.ExtraConfig, &types.OptionValue{Key: key, Value: extraConfig(m)[key]}) // "" removes it
		}
	}
	return e, nil
}

// given is the text of givenSpec.
func (s Spec) given() string {
	text := fmt.Sprintf("cpus=%d memory_mb=%d disk_gb=%d", s.CPUs, s.MemoryMB, s.DiskGB)
	for _, n := range s.NICs {
		text += fmt.Sprintf(" nic.%s=%s", n.Name, n.PortGroup)
	}
	return text
}

func (e *Edit) device(operation types.VirtualDeviceConfigSpecOperation, d types.BaseVirtualDevice) {
	e.spec.DeviceChange = append(e.spec.DeviceChange, &types.VirtualDeviceConfigSpec{Operation: operation, Device: d})
}

// editNICs compares the network cards and returns the MAC addresses of those
// that are there, in the order of the spec.
func (i *Inventory) editNICs(e *Edit, vm *VM, spec Spec, differ func(path, before, after string)) (macs []string, err error) {
	cards, left := vm.assign(spec.NICs)
	for n, nic := range spec.NICs {
		backing, err := i.network(nic)
		if err != nil {
			return nil, err
		}
		at := "nic." + nic.Name
		have := cards[n]
		if have == nil {
			differ(at, "", nic.PortGroup)
			card, err := newCard(n, backing)
			if err != nil {
				return nil, err
			}
			e.device("add", card)
			continue
		}
		macs = append(macs, have.MAC)
		changed := copyCard(have.device)
		device := changed.GetVirtualDevice()
		rewired := false
		if before := backs(device.Backing); before != backs(backing) {
			differ(at+".port_group", i.networkName(before), path.Base(nic.PortGroup))
			rewired = true
		}
		if !have.Connected {
			differ(at+".connected", "false", "true")
			rewired = true
		}
		if !rewired {
			continue
		}
		e.Cuts = e.Cuts || vm.On
		device.Backing = backing
		if device.Connectable != nil {
			device.Connectable.StartConnected, device.Connectable.Connected = true, vm.On
		}
		e.device("edit", changed)
	}
	for _, card := range left {
		differ("nic."+card.MAC, i.networkName(backs(card.device.GetVirtualDevice().Backing)), "")
		e.device("remove", card.device)
	}
	return macs, nil
}

// newCard makes the device for the n-th NIC. Negative keys are placeholders that vCenter replaces.
func newCard(n int, backing types.BaseVirtualDeviceBackingInfo) (types.BaseVirtualDevice, error) {
	card, err := object.EthernetCardTypes().CreateEthernetCard("vmxnet3", backing)
	if err != nil {
		return nil, err
	}
	card.GetVirtualDevice().Key = clamp(-200 - n)
	return card, nil
}

// clamp makes a number one of the API's; one that does not fit is refused there.
func clamp(n int) int32 { return int32(min(max(n, math.MinInt32), math.MaxInt32)) }

// copyCard makes a copy that can be edited while the original stays as it was read.
func copyCard(card types.BaseVirtualDevice) types.BaseVirtualDevice {
	original := reflect.ValueOf(card).Elem()
	changed := reflect.New(original.Type())
	changed.Elem().Set(original)
	device := changed.Interface().(types.BaseVirtualDevice)
	if c := device.GetVirtualDevice().Connectable; c != nil {
		connectable := *c
		device.GetVirtualDevice().Connectable = &connectable
	}
	return device
}

// digest stands for a long value where it is shown.
func digest(value string) string {
	if value == "" {
		return ""
	}
	return fmt.Sprintf("sha256:%.6x", sha256.Sum256([]byte(value)))
}

// Find reads the VM of a deployment by its name there. ErrNotFound means that
// there is none; ErrForeign that the one with its instanceUuid is not marked as ours.
func (c *Client) Find(ctx context.Context, deployment, name string) (*VM, error) {
	vm, err := c.look(ctx, deployment, name)
	if err == nil && vm == nil {
		err = fmt.Errorf("VM %s of deployment %s: %w", name, deployment, ErrNotFound)
	}
	return vm, err
}

// look is Find, with nil for a VM that is not there.
func (c *Client) look(ctx context.Context, deployment, name string) (*VM, error) {
	l := c.newLookup()
	l.uuid(ctx, instanceUUID(deployment, name))
	err := l.wait()
	if err == nil {
		err = c.read(ctx, l.inventory)
	}
	if err != nil {
		return nil, fmt.Errorf("look for VM %s in vCenter %s: %w", name, c.server, err)
	}
	return l.inventory.VM(deployment, name)
}
