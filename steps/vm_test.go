package steps

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/vsphere"
	"github.com/ftpdeploy/ftpdeploy/vsphere/vcsim"
)

// pair is a deployment of two boxes on two sites, and the vCenter that it lives in.
type pair struct {
	*vcsim.Server
	topology *blueprints.Topology
	group    *blueprints.Group
	calls    *vsphere.Client
	client   func(context.Context) (*vsphere.Client, error)
}

func newPair(t *testing.T) *pair {
	t.Helper()
	s := vcsim.Start(t)
	vcenter := &blueprints.VCenter{Name: "main", Server: s.URL, Username: vcsim.Username, Password: blueprints.NewSecret(vcsim.Password), Datacenter: vcsim.Datacenter, Thumbprint: s.Thumbprint}
	image := &blueprints.Image{Name: "debian", VCenter: vcenter, Template: vcsim.Template, OSFamily: "debian"}
	ssh := &blueprints.SSH{Name: "lab", User: "deploy", Port: 22, Become: "sudo", AuthorizedKeys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGxhYg== lab"}}
	group := &blueprints.Group{Name: "ftp", AntiAffinity: true}
	topology := &blueprints.Topology{ID: "ftp-test", Groups: []*blueprints.Group{group}}
	var networks []*blueprints.Network
	for i, portGroup := range vcsim.PortGroups {
		networks = append(networks, &blueprints.Network{Name: strings.TrimPrefix(portGroup, "dvpg-"), PortGroup: portGroup, CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i), 0}), 24)})
	}
	networks[0].Gateway = netip.MustParseAddr("198.18.0.254")
	networks[0].DNS = []netip.Addr{netip.MustParseAddr("198.18.0.53")}
	networks[0].MTU = 1400
	for i, name := range []string{"haproxy-a", "haproxy-b"} {
		box := &blueprints.Box{
			Name: name, Image: image, SSH: ssh, CPUs: 2, MemoryMB: 2048, DiskGB: 20,
			Site: &blueprints.Site{
				Name: name, VCenter: vcenter, Cluster: vcsim.Cluster, HostGroup: vcsim.HostGroups[i],
				ResourcePool: vcsim.Pool, Datastore: vcsim.Datastore, Folder: vcsim.Folder,
			},
		}
		for n, network := range networks {
			box.NICs = append(box.NICs, blueprints.NIC{
				Role: network.Name, Interface: network.Name, Network: network, Address: netip.AddrFrom4([4]byte{198, 18, byte(n), byte(11 + i)}), Default: n == 0, SSH: n == 2,
			})
		}
		topology.Boxes = append(topology.Boxes, box)
	}
	group.Boxes = topology.Boxes
	c, err := vsphere.Connect(t.Context(), vsphere.Config{
		Server: vcenter.Server, Username: vcenter.Username, Password: vcenter.Password.Reveal(), Datacenter: vcenter.Datacenter, Thumbprint: vcenter.Thumbprint,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(context.Background()) })
	return &pair{Server: s, topology: topology, group: group, calls: c, client: func(context.Context) (*vsphere.Client, error) { return c, nil }}
}

// steps are those of a run that begins now, with the snapshot that it takes.
func (p *pair) steps(t *testing.T) []plan.Step {
	t.Helper()
	first, err := p.live().observeVCenter(t.Context(), p.calls, p.topology.Boxes[0].Site.VCenter)
	if err != nil {
		t.Fatal(err)
	}
	var all []plan.Step
	for _, b := range p.topology.Boxes {
		all = append(all, newVM(p.topology, dark(b), p.client, first))
	}
	all = append(all, newPlacement(p.topology, p.group, p.client, first))
	for _, b := range p.topology.Boxes {
		all = append(all, newPower(p.topology, b, p.client, first, "placement/"+p.group.Name))
	}
	return all
}

func (p *pair) up(t *testing.T) {
	t.Helper()
	if _, err := apply(t.Context(), plan.Present, p.steps(t)...); err != nil {
		t.Fatal(err)
	}
}

func (p *pair) path(n int) string { return vcsim.Folder + "/" + p.topology.Boxes[n].Name }

// writes is a probe: a plan must not write.
func (p *pair) writes() string { return fmt.Sprintf("%d writes", p.Writes()) }

func TestVMConverges(t *testing.T) {
	p := newPair(t)
	converges(t, newVM(p.topology, dark(p.topology.Boxes[0]), p.client, nil), p.writes)
}

// A machine that answers where the VM would be reached, and that vCenter need not
// know, is not made a second one of. What only accepts connections is no machine.
func TestStrangerAt(t *testing.T) {
	for greeting, taken := range map[string]bool{"SSH-2.0-OpenSSH_9.2\r\n": true, "220 ready\r\n": false, "": false} {
		p := newPair(t)
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		go func() {
			for {
				c, err := listener.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, greeting)
				defer c.Close()
			}
		}()
		b := p.topology.Boxes[0]
		at := listener.Addr().(*net.TCPAddr)
		b.Address, b.SSH.Port = at.AddrPort().Addr(), at.Port
		step := newVM(p.topology, dark(b), p.client, nil)
		step.knock = true
		changes, err := step.Plan(t.Context(), plan.Present)
		if taken && (!errors.Is(err, vsphere.ErrTaken) || !strings.Contains(err.Error(), "answers at "+at.String())) {
			t.Errorf("%q: %v, %v", greeting, changes, err)
		}
		if !taken && (err != nil || len(changes) != 1) {
			t.Errorf("%q: %v, %v", greeting, changes, err)
		}
		if taken {
			continue
		}

		// Nor is the VM's own guest a stranger, while it goes in a rollback.
		if err := changes[0].Do(t.Context(), func(string) {}); err != nil {
			t.Fatal(err)
		}
		greeting = "SSH-2.0-OpenSSH_9.2\r\n"
		if err := changes[0].Undo(t.Context()); err != nil {
			t.Fatal(err)
		}
		if changes, err := step.Plan(t.Context(), plan.Present); err != nil || len(changes) != 1 {
			t.Errorf("taken back: %v, %v", changes, err)
		}
	}
}

// The whole pair: made, silent, destroyed; nothing of ours is left.
func TestPair(t *testing.T) {
	p := newPair(t)
	changes, err := apply(t.Context(), plan.Present, p.steps(t)...)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range changes {
		got = append(got, fmt.Sprintf("%s %s %v", c.Action, c.Target, c.From == plan.Unseen))
	}
	want := []string{
		"+ haproxy-a false", "+ haproxy-b false", "+ DC0_C0:rules true",
		"> haproxy-a:power true", "+ haproxy-a:hostkeys true", "> haproxy-b:power true", "+ haproxy-b:hostkeys true",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the plan was %q, want %q", got, want)
	}
	for _, b := range p.topology.Boxes {
		vm, err := p.calls.Find(t.Context(), p.topology.ID, b.Name)
		if err != nil || !vm.On || !slices.Equal(vm.HostKeys, []string{vcsim.HostKeys}) {
			t.Errorf("%s: %+v, %v", b.Name, vm, err)
		}
	}

	// A run that has nothing to do takes seven calls: the look-ups at the same time, then one read.
	calls, reads, writes := p.calls.Calls(), p.Calls("RetrievePropertiesEx"), p.Writes()
	made, err := plan.Make(t.Context(), plan.Present, p.steps(t), plan.Options{})
	if err != nil || !made.Empty() {
		t.Errorf("it still wants %+v, %v", made.Changes(), err)
	}
	if n := p.calls.Calls() - calls; n != 7 {
		t.Errorf("%d calls, want 7", n)
	}
	if n := p.Calls("RetrievePropertiesEx") - reads; n != 1 {
		t.Errorf("%d reads, want 1", n)
	}
	if n := p.Writes() - writes; n != 0 {
		t.Errorf("%d writes", n)
	}

	if _, err := apply(t.Context(), plan.Absent, p.steps(t)...); err != nil {
		t.Fatal(err)
	}
	if rules := p.Rules(t); len(rules.Rule) != 0 || len(rules.Group) != len(vcsim.HostGroups) {
		t.Errorf("%d rules and %d groups are left", len(rules.Rule), len(rules.Group))
	}
	vms, err := p.Finder.VirtualMachineList(t.Context(), vcsim.Folder+"/*")
	if err == nil && len(vms) != 0 {
		t.Errorf("left: %v", vms)
	}
	made, err = plan.Make(t.Context(), plan.Absent, p.steps(t), plan.Options{})
	if err != nil || !made.Empty() {
		t.Errorf("it still wants to remove %+v, %v", made.Changes(), err)
	}
}

// What was changed by hand is named, and only that, and put back by a run.
func TestDrift(t *testing.T) {
	p := newPair(t)
	p.up(t)
	for _, test := range []struct {
		name   string
		change func()
		target string
		effect plan.Effect
		says   string
		by     string // the event that tells who did it
	}{
		{"memory", func() { p.Reconfigure(t, p.path(0), types.VirtualMachineConfigSpec{MemoryMB: 1024}) }, "haproxy-a", plan.Reboot, "memory_mb", "VmReconfiguredEvent"},
		{"renamed", func() { p.Reconfigure(t, p.path(1), types.VirtualMachineConfigSpec{Name: "by-hand"}) }, "haproxy-b", plan.NoEffect, "was renamed", "VmReconfiguredEvent"},
		{"off", func() { p.PowerOff(t, p.path(0)) }, "haproxy-a:power", plan.NoEffect, "is off", "VmPoweredOffEvent"},
		{"NIC moved", func() { p.moveNIC(t, p.path(0), 0, "dvpg-mgmt") }, "haproxy-a", plan.Restart, "nic.frontend.port_group", "VmReconfiguredEvent"},
		{"rule removed", func() { p.removeRule(t) }, "DC0_C0:rules", plan.NoEffect, "differs: rule ftpdeploy.ftp-test.ftp.", ""},
		{"told otherwise", func() { p.SetExtra(t, p.path(1), "guestinfo.userdata", "other") }, "haproxy-b", plan.NoEffect, "made anew", ""},
		{"pin lost", func() { p.SetExtra(t, p.path(1), "ftpdeploy.hostkeys", "") }, "haproxy-b:hostkeys", plan.NoEffect, "no SSH host key", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.change()
			changes, err := apply(t.Context(), plan.Present, p.steps(t)...)
			if err != nil {
				t.Fatal(err)
			}
			if len(changes) != 1 || changes[0].Target != test.target || changes[0].Effect != test.effect || !strings.Contains(changes[0].Reason, test.says) {
				t.Errorf("the plan was %+v, want one change of %s, effect %s, because %s", changes, test.target, test.effect, test.says)
			}
			if c := changes[0].Cause; test.by != "" && (c.Kind != plan.ByDrift || c.By != vcsim.Username || c.How != "vCenter's "+test.by || time.Since(c.At).Abs() > time.Minute) {
				t.Errorf("the cause is %+v, want %s by %s", c, test.by, vcsim.Username)
			}
			made, err := plan.Make(t.Context(), plan.Present, p.steps(t), plan.Options{})
			if err != nil || !made.Empty() {
				t.Errorf("it still wants %+v, %v", made.Changes(), err)
			}
			// All but the hardware is put back by a run that fails.
			if changes[0].Undo == nil {
				if words := []string{"renamed", "told otherwise", "rule removed"}; slices.Contains(words, test.name) {
					t.Error("it has no way back")
				}
				return
			}
			if err := changes[0].Undo(t.Context()); err != nil {
				t.Fatal(err)
			}
			again, err := apply(t.Context(), plan.Present, p.steps(t)...)
			if err != nil || len(again) != 1 || again[0].Target != test.target || again[0].From != changes[0].From {
				t.Errorf("after it was put back: %+v, %v", again, err)
			}
		})
	}
	// A resize is done with the machine on again and reachable.
	if vm, err := p.calls.Find(t.Context(), p.topology.ID, "haproxy-a"); err != nil || !vm.On {
		t.Errorf("%+v, %v", vm, err)
	}
}

// A VM that was deleted by hand is made anew, with its rules and new host keys.
func TestRebuild(t *testing.T) {
	p := newPair(t)
	p.up(t)
	p.PowerOff(t, p.path(0))
	vm, _ := p.VM(t, p.path(0))
	task, err := vm.Destroy(t.Context())
	if err != nil || task.Wait(t.Context()) != nil {
		t.Fatal(err)
	}
	changes, err := apply(t.Context(), plan.Present, p.steps(t)...)
	if err != nil {
		t.Fatal(err)
	}
	var targets []string
	for _, c := range changes {
		targets = append(targets, string(c.Action)+" "+c.Target)
	}
	if want := []string{"+ haproxy-a", "~ DC0_C0:rules", "> haproxy-a:power", "+ haproxy-a:hostkeys"}; !slices.Equal(targets, want) {
		t.Errorf("the plan was %q, want %q", targets, want)
	}
	for _, r := range p.Rules(t).Rule {
		if r, ok := r.(*types.ClusterAntiAffinityRuleSpec); ok && len(r.Vm) != 2 {
			t.Errorf("the anti-affinity rule has %d VMs", len(r.Vm))
		}
	}
}

// One VM that is not ours stops the run, both ways, before anything is changed.
// TestFirstDeployGoesBack: of machines that a run has made nothing is left.
func TestFirstDeployGoesBack(t *testing.T) {
	p := newPair(t)
	made, err := plan.Make(t.Context(), plan.Present, p.steps(t), plan.Options{Rollback: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := made.Apply(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	var back *plan.RollbackError
	if err := made.Rollback(t.Context(), nil, errors.New("the smoke test failed")); !errors.As(err, &back) || !back.Complete() || len(back.Undone) != 5 {
		t.Errorf("got %v, want all five steps put back", err)
	}
	for _, s := range p.steps(t) {
		if left := planOnly(t, s, plan.Absent, p.writes); len(left) > 0 {
			t.Errorf("%s left: %s", s.Name(), targets(left))
		}
	}
}

func TestForeignVM(t *testing.T) {
	p := newPair(t)
	p.up(t)
	p.SetExtra(t, p.path(1), "ftpdeploy.deployment", "someone-else")
	before := p.Writes()
	for _, goal := range []plan.Goal{plan.Present, plan.Absent} {
		if _, err := apply(t.Context(), goal, p.steps(t)...); !errors.Is(err, vsphere.ErrForeign) || !strings.Contains(err.Error(), `deployment "someone-else"`) {
			t.Errorf("goal %v: %v", goal, err)
		}
	}
	if n := p.Writes() - before; n != 0 {
		t.Errorf("%d writes", n)
	}
}

// What the blueprint names and vCenter does not have is found before anything is made.
func TestMissingObject(t *testing.T) {
	p := newPair(t)
	p.topology.Boxes[1].Site.HostGroup = "site-c-hosts"
	p.topology.Boxes[1].NICs[0].Network.PortGroup = "dvpg-frontnd"
	_, err := apply(t.Context(), plan.Present, p.steps(t)...)
	if !errors.Is(err, vsphere.ErrMissing) {
		t.Fatalf("got %v, want ErrMissing", err)
	}
	for _, want := range []string{
		`vm/haproxy-a: no port group "dvpg-frontnd" in DC0 - nearest: "dvpg-frontend"`, "vm/haproxy-b: no port group",
		`placement/ftp: no host group "site-c-hosts" in cluster DC0_C0 - nearest: "site-a-hosts"`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	if n := p.Calls("CloneVM_Task"); n != 0 {
		t.Errorf("%d clones", n)
	}
}

func (p *pair) moveNIC(t *testing.T, path string, n int, portGroup string) {
	t.Helper()
	network, err := p.Finder.Network(t.Context(), portGroup)
	if err != nil {
		t.Fatal(err)
	}
	backing, err := network.EthernetCardBackingInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, vm := p.VM(t, path)
	card := nics(vm)[n]
	card.GetVirtualDevice().Backing = backing
	p.Reconfigure(t, path, types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
		&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationEdit, Device: card},
	}})
}

func nics(vm *mo.VirtualMachine) []types.BaseVirtualDevice {
	var all []types.BaseVirtualDevice
	for _, d := range vm.Config.Hardware.Device {
		if _, ok := d.(types.BaseVirtualEthernetCard); ok {
			all = append(all, d)
		}
	}
	slices.SortFunc(all, func(a, b types.BaseVirtualDevice) int {
		return int(a.GetVirtualDevice().Key - b.GetVirtualDevice().Key)
	})
	return all
}

func (p *pair) removeRule(t *testing.T) {
	t.Helper()
	p.EditRules(t, &types.ClusterConfigSpecEx{RulesSpec: []types.ClusterRuleSpec{{ArrayUpdateSpec: types.ArrayUpdateSpec{
		Operation: types.ArrayUpdateOperationRemove, RemoveKey: p.Rules(t).Rule[0].GetClusterRuleInfo().Key,
	}}}})
}

// dark is the step of a box that nobody can enter, as it is in the simulator.
func dark(b *blueprints.Box) *hostStep {
	return &hostStep{box: b, connect: func(context.Context) (*remote.Host, error) { return nil, ErrAbsent }}
}
