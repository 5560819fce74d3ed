package vsphere

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/ftpdeploy/ftpdeploy/vsphere/vcsim"
)

const deployment = "ftp-test"

func quiet(string) {}

func spec(n int) Spec {
	s := Spec{
		Deployment: deployment, Name: fmt.Sprintf("lb%d", n),
		Template: vcsim.Template, Folder: vcsim.Folder, Cluster: vcsim.Cluster, ResourcePool: vcsim.Pool, Datastore: vcsim.Datastore,
		CPUs: 2, MemoryMB: 2048, DiskGB: 20,
	}
	for i, group := range vcsim.PortGroups {
		s.NICs = append(s.NICs, NIC{Name: strings.TrimPrefix(group, "dvpg-"), PortGroup: group, Address: netip.AddrFrom4([4]byte{198, 18, byte(i), byte(n)})})
	}
	s.GuestInfo = func(macs []string) map[string]string {
		text := "network:\n  ethernets:\n"
		for i, mac := range macs {
			text += fmt.Sprintf("    nic%d:\n      match: {macaddress: %q}\n      addresses: [%s/24]\n", i, mac, s.NICs[i].Address)
		}
		return map[string]string{"guestinfo.metadata": base64Of(text), "guestinfo.metadata.encoding": "base64"}
	}
	return s
}

func placement(vms ...Spec) Placement {
	p := Placement{Deployment: deployment, Name: "ftp", Cluster: vcsim.Cluster, AntiAffinity: true}
	for n, vm := range vms {
		p.Members = append(p.Members, Member{Name: vm.Name, HostGroup: vcsim.HostGroups[n%2]})
	}
	return p
}

func observe(t *testing.T, c *Client, specs []Spec, placements ...Placement) *Inventory {
	t.Helper()
	i, err := c.Observe(t.Context(), specs, placements)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func create(t *testing.T, c *Client, s Spec) {
	t.Helper()
	if err := c.Create(t.Context(), s, quiet); err != nil {
		t.Fatal(err)
	}
	if err := c.Reconfigure(t.Context(), s); err != nil {
		t.Fatal(err)
	}
}

func edit(t *testing.T, c *Client, s Spec) *Edit {
	t.Helper()
	i := observe(t, c, []Spec{s})
	vm, err := i.VM(s.Deployment, s.Name)
	if err != nil || vm == nil {
		t.Fatalf("VM %s: %v, %v", s.Name, vm, err)
	}
	e, err := i.Edit(vm, s)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func cards(vm *mo.VirtualMachine) []*types.VirtualEthernetCard {
	var all []*types.VirtualEthernetCard
	for _, d := range vm.Config.Hardware.Device {
		if n, ok := d.(types.BaseVirtualEthernetCard); ok {
			all = append(all, n.GetVirtualEthernetCard())
		}
	}
	slices.SortFunc(all, func(a, b *types.VirtualEthernetCard) int { return int(a.Key - b.Key) })
	return all
}

func TestCreate(t *testing.T) {
	s := vcsim.Start(t)
	c := connect(t, s)
	one, two := spec(1), spec(2)
	if i := observe(t, c, []Spec{one}); i.Ready(one) != nil {
		t.Fatal(i.Ready(one))
	}
	create(t, c, one)
	create(t, c, two)

	_, vm := s.VM(t, vcsim.Folder+"/lb1")
	if vm.Config.InstanceUuid != one.UUID() || vm.Config.Hardware.NumCPU != 2 || vm.Config.Hardware.MemoryMB != 2048 {
		t.Errorf("instanceUuid %s, %d CPUs, %d MB", vm.Config.InstanceUuid, vm.Config.Hardware.NumCPU, vm.Config.Hardware.MemoryMB)
	}
	if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff {
		t.Error("the VM was turned on")
	}
	_, other := s.VM(t, vcsim.Folder+"/lb2")
	_, template := s.VM(t, vcsim.Template)
	macs := map[string]bool{}
	for _, m := range []*mo.VirtualMachine{vm, other, template} {
		for _, card := range cards(m) {
			if macs[card.MacAddress] {
				t.Errorf("%s: the MAC address %s is used twice", m.Name, card.MacAddress)
			}
			macs[card.MacAddress] = true
		}
	}
	if got := cards(vm); len(got) != 3 {
		t.Fatalf("%d NICs, want 3", len(got))
	}
	for n, card := range cards(vm) {
		group, err := s.Finder.Network(t.Context(), vcsim.PortGroups[n])
		if err != nil {
			t.Fatal(err)
		}
		if key := card.Backing.(*types.VirtualEthernetCardDistributedVirtualPortBackingInfo).Port.PortgroupKey; key != group.Reference().Value {
			t.Errorf("NIC %d is on port group %s, want %s", n, key, group.Reference().Value)
		}
	}
	clone := s.Body("CloneVM_Task").(*types.CloneVM_Task).Spec
	if clone.PowerOn || clone.Config.VAppConfigRemoved == nil || !*clone.Config.VAppConfigRemoved {
		t.Error("the clone is to be off and without a vApp configuration")
	}
	extra := map[string]any{}
	for _, o := range clone.Config.ExtraConfig {
		extra[o.GetOptionValue().Key] = o.GetOptionValue().Value
	}
	for key, want := range map[string]any{
		"ftpdeploy.deployment": deployment, "ftpdeploy.name": "lb2", "ftpdeploy.hostkeys": "", PublishedHostKeys: "",
	} {
		if got, ok := extra[key]; !ok || got != want {
			t.Errorf("the clone's extraConfig %s is %v, want %v", key, got, want)
		}
	}
	if e := edit(t, c, one); e != nil {
		t.Errorf("after it was made it still differs: %v", e.Differences)
	}
	found, err := c.Find(t.Context(), deployment, "lb1")
	if err != nil || found.On || found.Name != "lb1" || found.NICs[0].MAC != cards(vm)[0].MacAddress {
		t.Errorf("Find: %+v, %v", found, err)
	}

	// Made again it stays as it is: a run that was interrupted is taken up.
	before := s.Writes()
	create(t, c, one)
	if n := s.Writes() - before; n != 0 {
		t.Errorf("making what is there took %d writes", n)
	}
}

// Everything that was changed by hand is named, and only that, and put back.
func TestDrift(t *testing.T) {
	s := vcsim.Start(t)
	c := connect(t, s)
	one := spec(1)
	create(t, c, one)
	path := vcsim.Folder + "/lb1"
	group, err := s.Finder.Network(t.Context(), "dvpg-mgmt")
	if err != nil {
		t.Fatal(err)
	}
	backing, err := group.EthernetCardBackingInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	editCard := func(operation types.VirtualDeviceConfigSpecOperation, n int, change func(*types.VirtualEthernetCard)) types.VirtualMachineConfigSpec {
		_, vm := s.VM(t, path)
		want := cards(vm)[n].Key
		var spec types.VirtualMachineConfigSpec
		for _, d := range vm.Config.Hardware.Device {
			if d.GetVirtualDevice().Key == want {
				change(d.(types.BaseVirtualEthernetCard).GetVirtualEthernetCard())
				spec.DeviceChange = append(spec.DeviceChange, &types.VirtualDeviceConfigSpec{Operation: operation, Device: d})
			}
		}
		return spec
	}
	for _, test := range []struct {
		name   string
		change func() (types.VirtualMachineConfigSpec, string)
		want   string
		writes int
	}{
		{"memory", func() (types.VirtualMachineConfigSpec, string) {
			return types.VirtualMachineConfigSpec{MemoryMB: 1024}, path
		}, "[{memory_mb 1024 2048}]", 1},
		{"CPUs", func() (types.VirtualMachineConfigSpec, string) {
			return types.VirtualMachineConfigSpec{NumCPUs: 4}, path
		}, "[{cpus 4 2}]", 1},
		{"name", func() (types.VirtualMachineConfigSpec, string) {
			return types.VirtualMachineConfigSpec{Name: "by-hand"}, path
		}, "[{name by-hand lb1}]", 1},
		{"NIC moved", func() (types.VirtualMachineConfigSpec, string) {
			return editCard("edit", 0, func(c *types.VirtualEthernetCard) { c.Backing = backing }), path
		}, "[{nic.frontend.port_group dvpg-mgmt dvpg-frontend}]", 1},
		{"NIC disconnected", func() (types.VirtualMachineConfigSpec, string) {
			return editCard("edit", 1, func(c *types.VirtualEthernetCard) { c.Connectable.StartConnected = false }), path
		}, "[{nic.workload.connected false true}]", 1},
		{"what the guest is told", func() (types.VirtualMachineConfigSpec, string) {
			return types.VirtualMachineConfigSpec{ExtraConfig: []types.BaseOptionValue{&types.OptionValue{Key: "guestinfo.metadata.encoding", Value: "gzip+base64"}}}, path
		}, fmt.Sprintf("[{guestinfo.metadata.encoding sha256:%.6x sha256:%.6x}]", sha256.Sum256([]byte("gzip+base64")), sha256.Sum256([]byte("base64"))), 1},
		{"last NIC removed", func() (types.VirtualMachineConfigSpec, string) {
			return editCard("remove", 2, func(*types.VirtualEthernetCard) {}), path
		}, "[{nic.mgmt  dvpg-mgmt}]", 1}, // gets the same MAC here, so the guest is told nothing new
	} {
		t.Run(test.name, func(t *testing.T) {
			change, at := test.change()
			s.Reconfigure(t, at, change)
			e := edit(t, c, one)
			if e == nil {
				t.Fatal("nothing differs")
			}
			if got := fmt.Sprint(e.Differences); got != test.want {
				t.Errorf("differs: %s, want %s", got, test.want)
			}
			if e.Off {
				t.Error("a VM that is off need not go off")
			}
			if !e.Drift {
				t.Error("what was done by hand is not told from a changed spec")
			}
			before := s.Writes()
			if err := c.Reconfigure(t.Context(), one); err != nil {
				t.Fatal(err)
			}
			if n := s.Writes() - before; n != test.writes {
				t.Errorf("%d writes, want %d", n, test.writes)
			}
			if e := edit(t, c, one); e != nil {
				t.Errorf("still differs: %v", e.Differences)
			}
		})
	}
}

func base64Of(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

// A VM that is on takes more memory only where its hot-add is enabled.
func TestResizeHot(t *testing.T) {
	s := vcsim.Start(t)
	c := connect(t, s)
	one := spec(1)
	create(t, c, one)
	if err := c.PowerOn(t.Context(), deployment, "lb1"); err != nil {
		t.Fatal(err)
	}
	path := vcsim.Folder + "/lb1"
	bigger := one
	bigger.MemoryMB = 4096
	if e := edit(t, c, bigger); e == nil || !e.Off {
		t.Errorf("without hot-add it must go off: %+v", e)
	}
	before := s.Writes()
	if err := c.Reconfigure(t.Context(), bigger); err == nil || s.Writes() != before {
		t.Errorf("reconfigured a VM that is on: %v, %d writes", err, s.Writes()-before)
	}
	s.Reconfigure(t, path, types.VirtualMachineConfigSpec{MemoryHotAddEnabled: types.NewBool(true)})
	if e := edit(t, c, bigger); e == nil || e.Off {
		t.Errorf("with hot-add it may stay on: %+v", e)
	}
	smaller := one
	smaller.MemoryMB = 1024
	if e := edit(t, c, smaller); e == nil || !e.Off {
		t.Errorf("memory cannot be taken away while it is on: %+v", e)
	}
	small := one
	small.DiskGB = 5
	i := observe(t, c, []Spec{small})
	vm, _ := i.VM(deployment, "lb1")
	if _, err := i.Edit(vm, small); err == nil || !strings.Contains(err.Error(), "[FTP404]") {
		t.Errorf("a smaller disk: %v", err)
	}
}

func TestMissing(t *testing.T) {
	s := vcsim.Start(t)
	c := connect(t, s)
	for want, change := range map[string]func(*Spec){
		`no port group "dvpg-frontnd" in DC0 - nearest: "dvpg-frontend"`:     func(s *Spec) { s.NICs[0].PortGroup = "dvpg-frontnd" },
		`no folder "ftpp" in DC0 - nearest: "ftp"`:                           func(s *Spec) { s.Folder = "infra/ftpp" },
		`no folder "infr" in DC0 - nearest: "infra"`:                         func(s *Spec) { s.Folder = "infr/ftp" },
		`no template "debian-13" in DC0 - nearest: "debian-12"`:              func(s *Spec) { s.Template = "templates/debian-13" },
		`no datastore "LocalDS_9" in DC0 - nearest: "LocalDS_0"`:             func(s *Spec) { s.Datastore = "LocalDS_9" },
		`no resource pool "infrared" in DC0 - nearest: "infra"`:              func(s *Spec) { s.ResourcePool = "infrared" },
		`no cluster "DC0_C1" in DC0 - nearest: "DC0_C0"`:                     func(s *Spec) { s.Cluster = "DC0_C1" },
		`disk of 1 GiB is smaller than that of template templates/debian-12`: func(s *Spec) { s.DiskGB = 1 },
	} {
		one := spec(1)
		change(&one)
		before := s.Writes()
		err := observe(t, c, []Spec{one}).Ready(one)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
		if !strings.HasPrefix(want, "disk") && !errors.Is(err, ErrMissing) {
			t.Errorf("%v is not ErrMissing", err)
		}
		if c.Create(t.Context(), one, quiet) == nil || s.Writes() != before {
			t.Errorf("%s: something was made", want)
		}
	}
	wrong := config(s)
	wrong.Datacenter = "DC1"
	other, err := Connect(t.Context(), wrong)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(context.Background())
	if err := observe(t, other, []Spec{spec(1)}).Ready(spec(1)); err == nil || !strings.Contains(err.Error(), `no datacenter "DC1" in vCenter 127.0.0.1:`) {
		t.Errorf("got %v", err)
	}
}

// A VM of our name that we did not make, and one of ours whose mark was changed, are left alone.
func TestForeign(t *testing.T) {
	s := vcsim.Start(t)
	c := connect(t, s)
	one, two := spec(1), spec(2)
	create(t, c, one)
	s.SetExtra(t, vcsim.Folder+"/lb1", "ftpdeploy.deployment", "someone-else")
	// Another deployment's machine stands where lb2 should.
	foreign := two
	foreign.Deployment = "other"
	create(t, c, foreign)

	before := s.Writes()
	i := observe(t, c, []Spec{one, two})
	if _, err := i.VM(deployment, "lb1"); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "someone-else") {
		t.Errorf("the VM marked by someone else: %v", err)
	}
	if err := i.Ready(two); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), `deployment "other"`) {
		t.Errorf("the VM of another deployment: %v", err)
	}
	for name, err := range map[string]error{
		"create":        c.Create(t.Context(), one, quiet),
		"create two":    c.Create(t.Context(), two, quiet),
		"reconfigure":   c.Reconfigure(t.Context(), one),
		"power on":      c.PowerOn(t.Context(), deployment, "lb1"),
		"shut down":     c.ShutDown(t.Context(), deployment, "lb1", quiet),
		"destroy":       c.Destroy(t.Context(), deployment, "lb1"),
		"pin host keys": c.PinHostKeys(t.Context(), deployment, "lb1", time.Second),
	} {
		if !errors.Is(err, ErrForeign) {
			t.Errorf("%s: %v, want ErrForeign", name, err)
		}
	}
	if n := s.Writes() - before; n != 0 {
		t.Errorf("%d writes to what is not ours", n)
	}
}

func TestPrivileges(t *testing.T) {
	s := vcsim.Start(t)
	c := connect(t, s)
	s.Deny("Network.Assign", "Host.Inventory.EditCluster", "VirtualMachine.Provisioning.DeployTemplate")
	one := spec(1)
	err := observe(t, c, []Spec{one}, placement(one, spec(2))).Ready(one)
	if !errors.Is(err, ErrDenied) {
		t.Fatalf("got %v, want ErrDenied", err)
	}
	for _, want := range []string{
		"Network.Assign on port group /DC0/network/dvpg-mgmt", "Host.Inventory.EditCluster on cluster /DC0/host/DC0_C0",
		"VirtualMachine.Provisioning.DeployTemplate on template /DC0/vm/templates/debian-12", "[FTP402]",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	if strings.Contains(err.Error(), "Network.Assign on folder") {
		t.Errorf("%q asks for a privilege where it is not needed", err)
	}
}

func TestPowerAndWait(t *testing.T) {
	s := vcsim.Start(t)
	c := connect(t, s)
	one := spec(1)
	create(t, c, one)
	for range 2 { // the second time it is on already
		if err := c.PowerOn(t.Context(), deployment, "lb1"); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.WaitAddresses(t.Context(), one, time.Minute, quiet); err != nil {
		t.Fatal(err)
	}
	vm, err := c.Find(t.Context(), deployment, "lb1")
	if err != nil || len(vm.NICs[0].Addresses) != 1 || vm.NICs[0].Addresses[0] != one.NICs[0].Address {
		t.Errorf("%+v, %v", vm, err)
	}
	for range 2 {
		if err := c.ShutDown(t.Context(), deployment, "lb1", quiet); err != nil {
			t.Fatal(err)
		}
	}
	if _, vm := s.VM(t, vcsim.Folder+"/lb1"); vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff {
		t.Error("it is on")
	}

	// What is wrong is said of each NIC.
	s.SetDeaf(true)
	if err := c.PowerOn(t.Context(), deployment, "lb1"); err != nil {
		t.Fatal(err)
	}
	mac := func(n int) string { return vm.NICs[n].MAC }
	expect := func(what string, want ...string) {
		t.Helper()
		err := c.WaitAddresses(t.Context(), one, time.Millisecond, quiet)
		if !errors.Is(err, ErrTimeout) {
			t.Errorf("%s: %v", what, err)
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q does not say %q", what, err, w)
			}
		}
	}
	expect("no Tools", "198.18.0.1 on NIC frontend ("+mac(0)+")", "198.18.2.1 on NIC mgmt ("+mac(2)+")", "VMware Tools do not run")
	s.SetGuest(t, vcsim.Folder+"/lb1", map[string]string{mac(0): "198.18.0.99", mac(1): "198.18.2.1"})
	expect("wrong addresses", "NIC frontend ("+mac(0)+"): it has 198.18.0.99", "NIC mgmt ("+mac(2)+"): it is on the NIC "+mac(1)+" instead")

	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.WaitAddresses(cancelled, one, time.Hour, quiet); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestPinHostKeys(t *testing.T) {
	s := vcsim.Start(t)
	c := connect(t, s)
	one := spec(1)
	create(t, c, one)
	path := vcsim.Folder + "/lb1"
	s.SetHostKeys("")
	if err := c.PowerOn(t.Context(), deployment, "lb1"); err != nil {
		t.Fatal(err)
	}
	if err := c.PinHostKeys(t.Context(), deployment, "lb1", time.Millisecond); !errors.Is(err, ErrTimeout) || !strings.Contains(err.Error(), PublishedHostKeys) {
		t.Errorf("nothing is published: %v", err)
	}
	s.SetExtra(t, path, PublishedHostKeys, "ssh-ed25519 \x1b[31mnot-a-key")
	if err := c.PinHostKeys(t.Context(), deployment, "lb1", time.Minute); err == nil || strings.ContainsRune(err.Error(), '\x1b') {
		t.Errorf("no key at all: %v", err)
	}
	s.SetExtra(t, path, PublishedHostKeys, vcsim.HostKeys+";")
	for range 2 {
		if err := c.PinHostKeys(t.Context(), deployment, "lb1", time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	vm, err := c.Find(t.Context(), deployment, "lb1")
	if err != nil || !slices.Equal(vm.HostKeys, []string{vcsim.HostKeys}) {
		t.Fatalf("pinned %v, %v", vm.HostKeys, err)
	}

	// A guest that publishes other keys does not get them pinned.
	s.SetExtra(t, path, PublishedHostKeys, strings.Replace(vcsim.HostKeys, "1m5o", "1m5p", 1))
	before := s.Writes()
	if err := c.PinHostKeys(t.Context(), deployment, "lb1", time.Minute); !errors.Is(err, ErrHostKeys) || !strings.Contains(err.Error(), "ssh-ed25519 SHA256:") {
		t.Errorf("other keys: %v", err)
	}
	if vm, _ = c.Find(t.Context(), deployment, "lb1"); !slices.Equal(vm.HostKeys, []string{vcsim.HostKeys}) || s.Writes() != before {
		t.Errorf("pinned now: %v", vm.HostKeys)
	}
}

func TestRules(t *testing.T) {
	s := vcsim.Start(t)
	c := connect(t, s)
	specs := []Spec{spec(1), spec(2)}
	p := placement(specs...)
	for _, one := range specs {
		create(t, c, one)
	}
	rules := func() *RulesEdit {
		t.Helper()
		e, err := observe(t, c, nil, p).Rules(p)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	apply := func(e *RulesEdit) {
		t.Helper()
		before := s.Writes()
		if err := c.ApplyRules(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		if n := s.Writes() - before; n != 1 {
			t.Errorf("%d writes, want one reconfiguration", n)
		}
		if e := rules(); e != nil {
			t.Errorf("still differs: %v", e.Differences)
		}
	}
	apply(rules())
	have := s.Rules(t)
	if len(have.Rule) != 3 || len(have.Group) != 4 {
		t.Fatalf("%d rules, %d groups", len(have.Rule), len(have.Group))
	}
	for _, r := range have.Rule {
		switch r := r.(type) {
		case *types.ClusterVmHostRuleInfo:
			if *r.Mandatory || !slices.Contains(vcsim.HostGroups, r.AffineHostGroupName) {
				t.Errorf("rule %s: mandatory %v, hosts %s", r.Name, *r.Mandatory, r.AffineHostGroupName)
			}
		case *types.ClusterAntiAffinityRuleSpec:
			if !*r.Mandatory || len(r.Vm) != 2 {
				t.Errorf("rule %s: mandatory %v, %d VMs", r.Name, *r.Mandatory, len(r.Vm))
			}
		}
	}

	change := func(operation types.ArrayUpdateOperation, pick func(types.BaseClusterRuleInfo) bool) {
		for _, r := range s.Rules(t).Rule {
			if pick(r) {
				rule := types.ClusterRuleSpec{ArrayUpdateSpec: types.ArrayUpdateSpec{Operation: operation}, Info: r}
				if operation == "remove" {
					rule.Info, rule.RemoveKey = nil, r.GetClusterRuleInfo().Key
				}
				s.EditRules(t, &types.ClusterConfigSpecEx{RulesSpec: []types.ClusterRuleSpec{rule}})
				return
			}
		}
		t.Fatal("no such rule")
	}
	antiAffinity := func(r types.BaseClusterRuleInfo) bool { _, ok := r.(*types.ClusterAntiAffinityRuleSpec); return ok }
	for name, drift := range map[string]func(){
		"rule removed": func() { change("remove", antiAffinity) },
		"rule disabled": func() {
			change("edit", func(r types.BaseClusterRuleInfo) bool {
				r.GetClusterRuleInfo().Enabled = types.NewBool(false)
				return antiAffinity(r)
			})
		},
		"rule made mandatory": func() {
			change("edit", func(r types.BaseClusterRuleInfo) bool {
				r.GetClusterRuleInfo().Mandatory = types.NewBool(true)
				return !antiAffinity(r)
			})
		},
		"other hosts": func() {
			change("edit", func(r types.BaseClusterRuleInfo) bool {
				h, ok := r.(*types.ClusterVmHostRuleInfo)
				if ok {
					h.AffineHostGroupName = "elsewhere"
				}
				return ok
			})
		},
		"VM group emptied": func() {
			for _, g := range s.Rules(t).Group {
				if g, ok := g.(*types.ClusterVmGroup); ok {
					g.Vm = nil
					s.EditRules(t, &types.ClusterConfigSpecEx{GroupSpec: []types.ClusterGroupSpec{{ArrayUpdateSpec: types.ArrayUpdateSpec{Operation: "edit"}, Info: g}}})
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			keys := ruleKeys(s.Rules(t))
			drift()
			e := rules()
			if e == nil || len(e.Differences) != 1 {
				t.Fatalf("differs: %+v", e)
			}
			apply(e)
			if name != "rule removed" && !slices.Equal(keys, ruleKeys(s.Rules(t))) {
				t.Errorf("the keys of the rules changed from %v to %v", keys, ruleKeys(s.Rules(t)))
			}
		})
	}

	// A box that moves to the other site, and a rule that is not ours.
	foreign := &types.ClusterVmHostRuleInfo{ClusterRuleInfo: types.ClusterRuleInfo{Name: "ftpdeploy." + deployment + "-2.ftp.x", Enabled: types.NewBool(true)}}
	s.EditRules(t, &types.ClusterConfigSpecEx{RulesSpec: []types.ClusterRuleSpec{{ArrayUpdateSpec: types.ArrayUpdateSpec{Operation: "add"}, Info: foreign}}})
	p.Members[1].HostGroup = vcsim.HostGroups[0]
	apply(rules())
	if have := s.Rules(t); len(have.Rule) != 3 || len(have.Group) != 3 {
		t.Errorf("%d rules, %d groups", len(have.Rule), len(have.Group))
	}
	wrong := p
	wrong.Members = slices.Clone(p.Members)
	wrong.Members[0].HostGroup = "site-a-host"
	if _, err := observe(t, c, nil, wrong).Rules(wrong); !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), `no host group "site-a-host" in cluster DC0_C0 - nearest: "site-a-hosts"`) {
		t.Errorf("a host group that is not there: %v", err)
	}

	// The one that answers for all takes away what is of no placement any more, and leaves what is of another.
	group := &types.ClusterVmGroup{ClusterGroupInfo: types.ClusterGroupInfo{Name: "ftpdeploy." + deployment + ".other.x", UserCreated: types.NewBool(true)}}
	s.EditRules(t, &types.ClusterConfigSpecEx{GroupSpec: []types.ClusterGroupSpec{{ArrayUpdateSpec: types.ArrayUpdateSpec{Operation: "add"}, Info: group}}})
	p.Known = []string{p.Name, "other"}
	if e := rules(); e != nil {
		t.Errorf("another placement's group is taken for stale: %v", e.Differences)
	}
	p.Known = []string{p.Name}
	if e := rules(); e == nil || len(e.Differences) != 1 || e.Differences[0].Path != "VM group "+group.Name {
		t.Fatalf("differs: %+v", e)
	}
	apply(rules())

	e, err := observe(t, c, nil, p).NoRules(p)
	if err != nil || e == nil {
		t.Fatal(e, err)
	}
	if err := c.ApplyRules(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	if have := s.Rules(t); len(have.Rule) != 1 || have.Rule[0].GetClusterRuleInfo().Name != foreign.Name || len(have.Group) != 2 {
		t.Errorf("left: %d rules, %d groups; want the foreign rule and the host groups", len(have.Rule), len(have.Group))
	}
	if e, err := observe(t, c, nil, p).NoRules(p); e != nil || err != nil {
		t.Error(e, err)
	}
}

func ruleKeys(c *types.ClusterConfigInfoEx) []int32 {
	var keys []int32
	for _, r := range c.Rule {
		keys = append(keys, r.GetClusterRuleInfo().Key)
	}
	slices.Sort(keys)
	return keys
}

// Looking at two VMs and their rules takes the look-ups, all at once, and one read.
func TestCalls(t *testing.T) {
	s := vcsim.Start(t)
	c := connect(t, s)
	specs := []Spec{spec(1), spec(2)}
	for _, one := range specs {
		create(t, c, one)
	}
	before, reads := c.Calls(), s.Calls("RetrievePropertiesEx")
	observe(t, c, specs, placement(specs...))
	if n := c.Calls() - before; n != 7 { // 2 VMs, 3 port groups, 1 cluster, 1 read
		t.Errorf("%d calls, want 7", n)
	}
	if n := s.Calls("RetrievePropertiesEx") - reads; n != 1 {
		t.Errorf("%d batched reads, want 1", n)
	}
	before = c.Calls()
	if _, err := c.Find(t.Context(), deployment, "lb1"); err != nil {
		t.Fatal(err)
	}
	if n := c.Calls() - before; n != 2 {
		t.Errorf("Find took %d calls, want 2", n)
	}
}

func TestDestroy(t *testing.T) {
	s := vcsim.Start(t)
	c := connect(t, s)
	one := spec(1)
	create(t, c, one)
	if err := c.PowerOn(t.Context(), deployment, "lb1"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it is not there
		if err := c.Destroy(t.Context(), deployment, "lb1"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Find(t.Context(), deployment, "lb1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("found: %v", err)
	}
	if _, err := s.Finder.VirtualMachine(t.Context(), vcsim.Template); err != nil {
		t.Errorf("the template: %v", err)
	}
}

// Someone else's change between our look and our write is not overwritten.
func TestConflict(t *testing.T) {
	s := vcsim.Start(t)
	c := connect(t, s)
	one := spec(1)
	create(t, c, one)
	_, vm := s.VM(t, vcsim.Folder+"/lb1")
	one.MemoryMB = 4096
	s.SetFault(func(method string, _ types.ManagedObjectReference) types.BaseMethodFault {
		if method == "ReconfigVM_Task" {
			return &types.ConcurrentAccess{}
		}
		return nil
	})
	if err := c.Reconfigure(t.Context(), one); !errors.Is(err, ErrConflict) {
		t.Errorf("got %v, want ErrConflict", err)
	}
	if sent := s.Body("ReconfigVM_Task").(*types.ReconfigVM_Task).Spec.ChangeVersion; sent == "" || sent != vm.Config.ChangeVersion {
		t.Errorf("sent the change version %q, want %q", sent, vm.Config.ChangeVersion)
	}
}

// What was planned, and only that, is done: a difference that came since is left.
func TestReconfigureOnlyWhatWasPlanned(t *testing.T) {
	s := vcsim.Start(t)
	c := connect(t, s)
	one := spec(1)
	create(t, c, one)
	one.MemoryMB = 4096
	planned := edit(t, c, one).Differences
	s.Reconfigure(t, vcsim.Folder+"/lb1", types.VirtualMachineConfigSpec{Name: "by-hand"})
	before := s.Writes()
	if err := c.Reconfigure(t.Context(), one, planned...); !errors.Is(err, ErrConflict) || s.Writes() != before {
		t.Errorf("got %v and %d writes, want ErrConflict", err, s.Writes()-before)
	}
	if err := c.Reconfigure(t.Context(), one, edit(t, c, one).Differences...); err != nil {
		t.Error(err)
	}
}

// A NIC that comes between others in the blueprint is added; those that are there
// stay what they are, and so does one that was added by hand go.
func TestNICsKeepTheirNames(t *testing.T) {
	s := vcsim.Start(t)
	c := connect(t, s)
	three := spec(1)
	two := three
	two.NICs = []NIC{three.NICs[0], three.NICs[2]}
	two.GuestInfo = nil
	create(t, c, two)
	before, _ := c.Find(t.Context(), deployment, "lb1")

	if e := edit(t, c, three); fmt.Sprint(e.Differences) != "[{nic.workload  dvpg-workload}]" || e.Cuts {
		t.Errorf("differs: %v", e.Differences)
	}
	if err := c.Reconfigure(t.Context(), three); err != nil {
		t.Fatal(err)
	}
	if e := edit(t, c, three); e != nil {
		t.Errorf("still differs: %v", e.Differences)
	}
	_, vm := s.VM(t, vcsim.Folder+"/lb1")
	have := cards(vm)
	if len(have) != 3 || have[0].MacAddress != before.NICs[0].MAC || have[1].MacAddress != before.NICs[1].MAC {
		t.Fatalf("%d NICs, MAC addresses %s, %s; want those of before, %+v", len(have), have[0].MacAddress, have[1].MacAddress, before.NICs)
	}
	metadata := three.GuestInfo([]string{have[0].MacAddress, have[2].MacAddress, have[1].MacAddress})["guestinfo.metadata"]
	for _, o := range vm.Config.ExtraConfig {
		if v := o.GetOptionValue(); v.Key == "guestinfo.metadata" && v.Value != metadata {
			t.Error("the guest is not told which NIC is which")
		}
	}
	if e := edit(t, c, two); e.Differences[0].Path != "nic."+have[2].MacAddress || e.Differences[0].After != "" {
		t.Errorf("without it again: %v", e.Differences)
	}
}

// Whoever interrupts a clone has it cancelled: it must not appear later.
func TestInterruptedClone(t *testing.T) {
	s := vcsim.Start(t)
	c := connect(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cloning := false
	s.SetFault(func(method string, _ types.ManagedObjectReference) types.BaseMethodFault {
		if cloning && method == "RetrievePropertiesEx" {
			cancel()
		}
		cloning = cloning || method == "CloneVM_Task"
		return nil
	})
	if err := c.Create(ctx, spec(1), quiet); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if n := s.Calls("CancelTask"); n != 1 {
		t.Errorf("the task was cancelled %d times", n)
	}
}

func TestShutDownWithoutTools(t *testing.T) {
	s := vcsim.Start(t)
	c := connect(t, s)
	create(t, c, spec(1))
	if err := c.PowerOn(t.Context(), deployment, "lb1"); err != nil {
		t.Fatal(err)
	}
	s.SetFault(func(method string, _ types.ManagedObjectReference) types.BaseMethodFault {
		if method == "ShutdownGuest" {
			return &types.ToolsUnavailable{}
		}
		return nil
	})
	if err := c.ShutDown(t.Context(), deployment, "lb1", quiet); err != nil {
		t.Fatal(err)
	}
	if _, vm := s.VM(t, vcsim.Folder+"/lb1"); vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff {
		t.Error("it is on")
	}
}

func TestStandardPortGroup(t *testing.T) {
	s := vcsim.Start(t)
	c := connect(t, s)
	one := spec(1)
	create(t, c, one)
	one.NICs[1].PortGroup = "VM Network"
	e := edit(t, c, one)
	if e == nil || !strings.Contains(fmt.Sprint(e.Differences), "{nic.workload.port_group ") || !strings.Contains(fmt.Sprint(e.Differences), " VM Network}") {
		t.Fatalf("differs: %+v", e)
	}
	if err := c.Reconfigure(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	if e := edit(t, c, one); e != nil {
		t.Errorf("still differs: %v", e.Differences)
	}
}

// A member that runs outside the cluster is not placed by its rules.
func TestRulesElsewhere(t *testing.T) {
	s := vcsim.Start(t)
	c := connect(t, s)
	one, two := spec(1), spec(2)
	create(t, c, one)
	create(t, c, two)
	_, vm := s.VM(t, vcsim.Folder+"/lb2")
	s.RemoveHost(*vm.Runtime.Host)
	p := placement(one, two)
	if _, err := observe(t, c, nil, p).Rules(p); err == nil || !strings.Contains(err.Error(), "runs outside cluster DC0_C0") {
		t.Errorf("got %v", err)
	}
}

// A spec that changed is told from a VM that did.
func TestEditTellsDriftFromAChangedSpec(t *testing.T) {
	s := vcsim.Start(t)
	c := connect(t, s)
	spec := spec(1)
	create(t, c, spec)
	more := spec
	more.CPUs++
	if e := edit(t, c, more); e == nil || e.Drift {
		t.Fatalf("a changed spec: %+v", e)
	}
	if err := c.Reconfigure(t.Context(), more); err != nil {
		t.Fatal(err)
	}
	if e := edit(t, c, spec); e == nil || e.Drift {
		t.Errorf("back to the first spec: %+v", e)
	}
}
