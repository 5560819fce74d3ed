package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// guest makes the machine of one VM follow what vCenter says about the VM, and
// tells vCenter what became of the machine. It lives from the VM's first
// power-on, or first change, until the VM is destroyed.
type guest struct {
	v   *VCenter
	ref types.ManagedObjectReference
	dir string // of the VM's disk and all else that is kept while it is off

	mu    sync.Mutex
	inbox []func() // what has happened to the VM and is not done yet
	wake  chan struct{}

	// Only the goroutine of follow touches these.
	hardware hardware
	machine  *machine          // nil while the VM is off
	names    map[string]string // of the NICs in the guest, by MAC address
	reported string            // what vCenter was told last of the machine's addresses
	gone     bool

	// The lock of the VCenter guards these.
	public    Machine
	published map[string]bool // keys of extraConfig that the guest has set
}

// hardware is what a machine gets from its VM.
type hardware struct {
	name      string
	nics      []virtualNIC // by device key: the order of the device list changes with every edit
	guestinfo map[string]string
}

type virtualNIC struct {
	key       int32
	mac       string
	portGroup string // name
	connected bool
}

// Machine is a running VM as the lab sees it from outside.
type Machine struct {
	Name  string            // of the VM when it was powered on
	NetNS string            // as ip-netns(8) knows it
	Links map[string]string // port group to the end of the NIC that is on the lab's bridge
	Root  string            // the machine's file system
	Init  int               // the machine's PID 1, 0 while it is not there yet

	nspawn int // process
}

// Machine returns the running VM that is called name, or was when it was powered on:
// what somebody calls it in vCenter changes nothing in the guest. false means that there
// is no such VM or that it is off.
func (v *VCenter) Machine(name string) (Machine, bool) {
	var m Machine
	ref, known := v.find(name)
	v.mu.Lock()
	if g := v.guest[ref]; known && g != nil {
		m = g.public
	}
	if !known {
		for _, g := range v.guest {
			if g.public.Name == name {
				m = g.public
			}
		}
	}
	v.mu.Unlock()
	if m.nspawn == 0 {
		return Machine{}, false
	}
	m.Init = guestInit(m.nspawn)
	return m, true
}

// The next four methods are simulator.RegisterObject: the simulator calls them
// for every object and every change, while it holds the object's lock. They
// must not wait for anything.

// Reference implements simulator.RegisterObject.
func (v *VCenter) Reference() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "Lab", Value: "lab"}
}

// PutObject implements simulator.RegisterObject.
func (v *VCenter) PutObject(_ *simulator.Context, object mo.Reference) {
	if pg, ok := object.(*simulator.DistributedVirtualPortgroup); ok {
		v.mu.Lock()
		v.portGroups[pg.Self.Value] = pg.Name
		v.mu.Unlock()
	}
}

// RemoveObject implements simulator.RegisterObject.
func (v *VCenter) RemoveObject(_ *simulator.Context, ref types.ManagedObjectReference) {
	if ref.Type != "VirtualMachine" {
		return
	}
	v.mu.Lock()
	delete(v.running, ref)
	g := v.guest[ref]
	delete(v.guest, ref)
	v.mu.Unlock()
	if g != nil {
		g.post(g.destroy)
	}
	v.guests.Go(func() { v.forget(ref) }) // not here: it takes the lock of the cluster
}

// UpdateObject implements simulator.RegisterObject.
func (v *VCenter) UpdateObject(ctx *simulator.Context, object mo.Reference, changes []types.PropertyChange) {
	vm, ok := object.(*mo.VirtualMachine)
	if !ok || vm.Config == nil || vm.Config.Template {
		return
	}
	on := vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn
	for _, change := range changes {
		switch {
		case change.Name == "runtime.powerState" && on:
			v.mu.Lock()
			v.running[vm.Self] = *vm.Runtime.Host
			v.mu.Unlock()
			g, h := v.guestOf(vm.Self), v.hardwareOf(vm)
			g.post(func() { g.start(h) })
		case change.Name == "runtime.powerState":
			g := v.guestOf(vm.Self)
			v.mu.Lock()
			delete(v.running, vm.Self)
			published := g.published
			g.published = nil
			v.mu.Unlock()
			ctx.Update(vm, guestIsDown(vm, published))
			g.post(g.stop)
		case change.Name == "runtime.host" && on:
			v.mu.Lock()
			v.running[vm.Self] = *vm.Runtime.Host
			v.mu.Unlock()
		case change.Name == "config.hardware.device" && on:
			g, h := v.guestOf(vm.Self), v.hardwareOf(vm)
			g.post(func() { g.rewire(h) })
		case change.Name == "config.extraConfig" && on:
			g, h := v.guestOf(vm.Self), v.hardwareOf(vm)
			g.post(func() { g.setGuestinfo(h) })
		}
	}
}

// guestOf returns the guest of a VM, which it starts to follow where it is new.
func (v *VCenter) guestOf(ref types.ManagedObjectReference) *guest {
	v.mu.Lock()
	defer v.mu.Unlock()
	g := v.guest[ref]
	if g == nil {
		g = &guest{v: v, ref: ref, dir: filepath.Join(v.config.Dir, ref.Value), wake: make(chan struct{}, 1)}
		v.guest[ref] = g
		v.guests.Go(g.follow)
	}
	return g
}

// hardwareOf copies what the machine needs to know of a VM whose lock is held.
func (v *VCenter) hardwareOf(vm *mo.VirtualMachine) hardware {
	h := hardware{name: vm.Name, guestinfo: map[string]string{}}
	for _, device := range vm.Config.Hardware.Device {
		card, ok := device.(types.BaseVirtualEthernetCard)
		if !ok {
			continue
		}
		c := card.GetVirtualEthernetCard()
		nic := virtualNIC{key: c.Key, mac: strings.ToLower(c.MacAddress), connected: c.Connectable == nil || c.Connectable.Connected || c.Connectable.StartConnected}
		if backing, ok := c.Backing.(*types.VirtualEthernetCardDistributedVirtualPortBackingInfo); ok {
			v.mu.Lock()
			nic.portGroup = v.portGroups[backing.Port.PortgroupKey]
			v.mu.Unlock()
		}
		h.nics = append(h.nics, nic)
	}
	slices.SortFunc(h.nics, func(a, b virtualNIC) int { return int(a.key - b.key) })
	for _, option := range vm.Config.ExtraConfig {
		if o := option.GetOptionValue(); strings.HasPrefix(o.Key, "guestinfo.") {
			h.guestinfo[o.Key] = fmt.Sprint(o.Value)
		}
	}
	return h
}

func (g *guest) post(do func()) {
	g.mu.Lock()
	g.inbox = append(g.inbox, do)
	g.mu.Unlock()
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// toolsInterval is how often the lab looks at a machine for VMware Tools.
const toolsInterval = 100 * time.Millisecond

// follow does what the inbox holds, in that order, and looks after the machine in between.
func (g *guest) follow() {
	tick := time.NewTicker(toolsInterval)
	defer tick.Stop()
	for !g.gone {
		var ended <-chan struct{}
		if g.machine != nil {
			ended = g.machine.ended
		}
		select {
		case <-g.v.ctx.Done():
			g.stop()
			return
		case <-g.wake:
			g.mu.Lock()
			todo := g.inbox
			g.inbox = nil
			g.mu.Unlock()
			for _, do := range todo {
				do()
			}
		case <-ended:
			g.machineEnded()
		case <-tick.C:
			if g.machine != nil {
				g.runTools()
			}
		}
	}
}

// start boots the machine.
func (g *guest) start(h hardware) {
	g.stop()
	g.hardware = h
	m, err := startMachine(g.v.ctx, g.dir, g.ref.Value, h, g.names, g.v.config)
	if err != nil {
		if g.v.ctx.Err() == nil { // else it is the end of the lab
			g.v.config.Logf("vCenter: %s does not start: %v", h.name, err)
		}
		g.say(types.VirtualMachinePowerStatePoweredOff)
		return
	}
	g.machine = m
	g.show()
}

// stop cuts the machine's power. It may be off already.
func (g *guest) stop() {
	if g.machine == nil {
		return
	}
	m := g.machine
	g.machine, g.reported = nil, ""
	if err := m.stop(g.v.ctx); err != nil {
		g.v.config.Logf("vCenter: power off %s: %v", g.hardware.name, err)
	}
	g.show()
}

// destroy removes the disk, too. There is nothing to follow after it.
func (g *guest) destroy() {
	g.stop()
	if err := os.RemoveAll(g.dir); err != nil {
		g.v.config.Logf("vCenter: destroy %s: %v", g.hardware.name, err)
	}
	g.gone = true
}

// machineEnded is called when the guest has rebooted or halted by its own will
// or was killed; vCenter learns of it.
func (g *guest) machineEnded() {
	reboot := g.machine.rebooted()
	g.stop()
	if reboot {
		g.start(g.hardware)
		return
	}
	g.v.config.Logf("vCenter: %s has halted", g.hardware.name)
	g.say(types.VirtualMachinePowerStatePoweredOff)
}

// rewire makes the cables of a running machine follow its NICs.
func (g *guest) rewire(h hardware) {
	if g.machine == nil {
		return
	}
	if err := g.machine.rewire(g.v.ctx, h.nics); err != nil {
		g.v.config.Logf("vCenter: rewire %s: %v", h.name, err)
	}
	g.hardware.nics = h.nics
	g.show()
}

// show lets Machine see what runs now.
func (g *guest) show() {
	var public Machine
	if m := g.machine; m != nil {
		public = Machine{Name: g.hardware.name, NetNS: m.id, Links: m.links(), Root: m.root, nspawn: m.cmd.Process.Pid}
	}
	g.v.mu.Lock()
	g.public = public
	g.v.mu.Unlock()
}

// say tells vCenter the VM's power state.
func (g *guest) say(state types.VirtualMachinePowerState) {
	g.update(func(*mo.VirtualMachine) []types.PropertyChange {
		return []types.PropertyChange{
			{Name: "runtime.powerState", Val: state},
			{Name: "summary.runtime.powerState", Val: state},
		}
	})
}

// update changes the VM in vCenter's inventory; one that is destroyed meanwhile is left alone.
func (g *guest) update(changes func(*mo.VirtualMachine) []types.PropertyChange) {
	registry := g.v.service.Context.Map
	vm, ok := registry.Get(g.ref).(*simulator.VirtualMachine)
	if !ok {
		return
	}
	ctx := g.v.simulatorContext()
	registry.WithLock(ctx, vm, func() { ctx.Update(vm, changes(&vm.VirtualMachine)) })
}
