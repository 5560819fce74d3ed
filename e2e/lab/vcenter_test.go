package lab

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const (
	testUser     = "administrator@vsphere.local"
	testPassword = "vcenter-password"
	testAccount  = "account-password"

	bootLimit = 3 * time.Minute // 3 s on a machine that does nothing else
)

// site is a vCenter with its mirror, and a client as an operator has it.
type site struct {
	*testing.T
	vcenter *VCenter
	config  VCenterConfig
	ca      *CA
	client  *govmomi.Client
	find    *find.Finder
	key     string // private key file
}

func newSite(t *testing.T) *site {
	t.Helper()
	cache, err := testCache()
	if err != nil {
		t.Fatal(err)
	}
	template, err := BuildTemplate(t.Context(), cache, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{T: t}
	if s.ca, err = NewCA(); err != nil {
		t.Fatal(err)
	}
	certificate, err := s.ca.ServerCertificate(Subject{CommonName: "vcenter.lab.example", Names: []string{"vcenter.lab.example"}, Addresses: []netip.Addr{LabAddress}})
	if err != nil {
		t.Fatal(err)
	}
	s.config = VCenterConfig{
		Dir:             filepath.Join(t.TempDir(), "vms"),
		Listen:          LabAddress.String() + ":443",
		Certificate:     certificate,
		Username:        testUser,
		Password:        testPassword,
		Template:        template,
		AccountPassword: testAccount,
		Bridges:         map[string]string{"dvpg-mgmt": "mgmt", "dvpg-workload": "workload", "dvpg-frontend": "frontend"},
		Logf:            t.Logf,
	}
	if s.vcenter, err = StartVCenter(t.Context(), s.config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.vcenter.Close)
	stop, err := ServeMirror(template.Mirror, LabAddress.String()+":80")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stop() })

	if s.client, err = s.login(testPassword); err != nil {
		t.Fatal(err)
	}
	s.find = find.NewFinder(s.client.Client)
	dc, err := s.find.Datacenter(t.Context(), "DC1")
	if err != nil {
		t.Fatal(err)
	}
	s.find.SetDatacenter(dc)
	s.key = filepath.Join(t.TempDir(), "key")
	if err := run(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", s.key); err != nil {
		t.Fatal(err)
	}
	return s
}

// login makes a client that trusts the lab's CA and nobody else.
func (s *site) login(password string) (*govmomi.Client, error) {
	u, err := url.Parse(s.vcenter.URL())
	if err != nil {
		return nil, err
	}
	transport := soap.NewClient(u, false)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.ca.PEM)
	transport.DefaultTransport().TLSClientConfig.RootCAs = pool
	client, err := vim25.NewClient(s.Context(), transport)
	if err != nil {
		return nil, err
	}
	c := &govmomi.Client{Client: client, SessionManager: session.NewManager(client)}
	return c, c.Login(s.Context(), url.UserPassword(testUser, password))
}

// task waits for a task of vCenter.
func (s *site) task(task *object.Task, err error) *types.TaskInfo {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
	info, err := task.WaitForResult(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	return info
}

// properties reads what vCenter says of a VM.
func (s *site) properties(vm *object.VirtualMachine) mo.VirtualMachine {
	s.Helper()
	var m mo.VirtualMachine
	if err := vm.Properties(s.Context(), vm.Reference(), []string{"name", "config", "guest", "runtime"}, &m); err != nil {
		s.Fatal(err)
	}
	return m
}

// until polls for something that takes time.
func (s *site) until(what string, limit time.Duration, try func() error) {
	s.Helper()
	if err := wait(s.Context(), what, limit, 50*time.Millisecond, func(context.Context) error { return try() }); err != nil {
		s.Fatal(err)
	}
}

// publishHostKeys is what a guest runs at every boot, after sshd has its keys.
const publishHostKeys = `#!/bin/sh
vmware-rpctool "info-set guestinfo.hostkeys $(cat /etc/ssh/ssh_host_ed25519_key.pub)"
`

// clone makes a VM with a NIC in each network; n is the last part of its addresses.
func (s *site) clone(name string, n int) *object.VirtualMachine {
	s.Helper()
	ctx := s.Context()
	template, err := s.find.VirtualMachine(ctx, "/DC1/vm/templates/debian-12-cloudinit")
	if err != nil {
		s.Fatal(err)
	}
	folder, err := s.find.Folder(ctx, "/DC1/vm/infra/ftp")
	if err != nil {
		s.Fatal(err)
	}
	pool, err := s.find.ResourcePool(ctx, "/DC1/host/stretched-01/Resources/infra")
	if err != nil {
		s.Fatal(err)
	}
	store, err := s.find.Datastore(ctx, "/DC1/datastore/vsan-stretched")
	if err != nil {
		s.Fatal(err)
	}
	old, err := template.Device(ctx)
	if err != nil {
		s.Fatal(err)
	}
	changes, err := old.SelectByType((*types.VirtualEthernetCard)(nil)).ConfigSpec(types.VirtualDeviceConfigSpecOperationRemove)
	if err != nil {
		s.Fatal(err)
	}
	for i, pg := range testNICs {
		network, err := s.find.Network(ctx, "/DC1/network/"+pg.portGroup)
		if err != nil {
			s.Fatal(err)
		}
		backing, err := network.EthernetCardBackingInfo(ctx)
		if err != nil {
			s.Fatal(err)
		}
		card, err := object.EthernetCardTypes().CreateEthernetCard("vmxnet3", backing)
		if err != nil {
			s.Fatal(err)
		}
		card.GetVirtualDevice().Key = int32(-100 - i)
		changes = append(changes, &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: card})
	}
	info := s.task(template.Clone(ctx, folder, name, types.VirtualMachineCloneSpec{
		Location: types.VirtualMachineRelocateSpec{Pool: types.NewReference(pool.Reference()), Datastore: types.NewReference(store.Reference())},
		Config:   &types.VirtualMachineConfigSpec{NumCPUs: 2, MemoryMB: 2048, DeviceChange: changes},
	}))
	vm := object.NewVirtualMachine(s.client.Client, info.Result.(types.ManagedObjectReference))

	public, err := os.ReadFile(s.key + ".pub")
	if err != nil {
		s.Fatal(err)
	}
	meta := fmt.Sprintf("instance-id: %s\nlocal-hostname: %s\nnetwork:\n  version: 2\n  ethernets:\n", s.properties(vm).Config.InstanceUuid, name)
	for i, nic := range s.nics(vm) {
		meta += fmt.Sprintf("    nic%d:\n      match: {macaddress: %q}\n      set-name: %s\n      addresses: [%s.%d/24]\n", i, nic, testNICs[i].role, testNICs[i].prefix, n)
	}
	user := "#cloud-config\nusers:\n  - name: ansible\n    lock_passwd: false\n    ssh_authorized_keys: [" + strings.TrimSpace(string(public)) + "]\n" +
		"write_files:\n  - path: /var/lib/cloud/scripts/per-boot/hostkeys\n    permissions: '0755'\n    encoding: b64\n    content: " + b64(publishHostKeys) + "\n"
	s.task(vm.Reconfigure(ctx, types.VirtualMachineConfigSpec{ExtraConfig: []types.BaseOptionValue{
		&types.OptionValue{Key: "guestinfo.metadata", Value: meta}, // with its line ends and quotes
		&types.OptionValue{Key: "guestinfo.userdata", Value: b64(user)}, &types.OptionValue{Key: "guestinfo.userdata.encoding", Value: "base64"},
	}}))
	return vm
}

func b64(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

// testNICs are in an order of their own, so that a NIC's place proves nothing.
var testNICs = []struct{ role, portGroup, prefix string }{
	{"frontend", "dvpg-frontend", "203.0.113"},
	{"workload", "dvpg-workload", "198.51.100"},
	{"management", "dvpg-mgmt", "192.0.2"},
}

// nics returns the MAC addresses of a VM's NICs in the order in which they were added.
func (s *site) nics(vm *object.VirtualMachine) []string {
	s.Helper()
	devices := object.VirtualDeviceList(s.properties(vm).Config.Hardware.Device).SelectByType((*types.VirtualEthernetCard)(nil))
	slices.SortFunc(devices, func(a, b types.BaseVirtualDevice) int {
		return int(a.GetVirtualDevice().Key - b.GetVirtualDevice().Key)
	})
	var macs []string
	for _, d := range devices {
		macs = append(macs, d.(types.BaseVirtualEthernetCard).GetVirtualEthernetCard().MacAddress)
	}
	return macs
}

// guestinfo reads one key of a VM's extraConfig.
func (s *site) guestinfo(vm *object.VirtualMachine, key string) string {
	for _, o := range s.properties(vm).Config.ExtraConfig {
		if o.GetOptionValue().Key == key {
			return fmt.Sprint(o.GetOptionValue().Value)
		}
	}
	return ""
}

// addressed waits until vCenter shows all addresses of a VM.
func (s *site) addressed(vm *object.VirtualMachine, n int) {
	s.Helper()
	s.until("the VM's addresses", bootLimit, func() error {
		got := map[string][]string{}
		for _, nic := range s.properties(vm).Guest.Net {
			got[nic.MacAddress] = nic.IpAddress
		}
		for i, mac := range s.nics(vm) {
			if want := fmt.Sprintf("%s.%d", testNICs[i].prefix, n); !slices.Equal(got[mac], []string{want}) {
				return fmt.Errorf("vCenter shows %v on %s, want %s", got[mac], mac, want)
			}
		}
		return nil
	})
}

// booted waits until vCenter shows all addresses and the host key of a VM.
func (s *site) booted(vm *object.VirtualMachine, n int) {
	s.Helper()
	s.addressed(vm, n)
	s.until("the VM's host key", bootLimit, func() error {
		if key := s.guestinfo(vm, "guestinfo.hostkeys"); !strings.HasPrefix(key, "ssh-ed25519 ") {
			return fmt.Errorf("guestinfo.hostkeys is %q", key)
		}
		return nil
	})
}

// ssh runs a command on a VM as ansible, trusting only the host key that the VM has published.
func (s *site) ssh(vm *object.VirtualMachine, n int, input, command string) (string, error) {
	s.Helper()
	address := fmt.Sprintf("192.0.2.%d", n)
	known := filepath.Join(s.TempDir(), "known_hosts")
	if err := os.WriteFile(known, []byte(address+" "+s.guestinfo(vm, "guestinfo.hostkeys")+"\n"), 0o600); err != nil {
		s.Fatal(err)
	}
	cmd := exec.CommandContext(s.Context(), "ssh", "-F", "none", "-i", s.key, "-o", "BatchMode=yes", "-o", "ConnectTimeout=5",
		"-o", "StrictHostKeyChecking=yes", "-o", "UserKnownHostsFile="+known, "ansible@"+address, command)
	cmd.Stdin = strings.NewReader(input)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return strings.TrimSpace(out.String()), err
}

// sudo runs a command as root; the account's password is typed.
func (s *site) sudo(vm *object.VirtualMachine, n int, command string) string {
	s.Helper()
	out, err := s.ssh(vm, n, testAccount+"\n", "sudo -S -p '' sh -c '"+command+"'")
	if err != nil {
		s.Fatalf("%s: %v\n%s", command, err, out)
	}
	return out
}

// cluster is the site's only one.
func (s *site) cluster() *object.ClusterComputeResource {
	s.Helper()
	cluster, err := s.find.ClusterComputeResource(s.Context(), "/DC1/host/stretched-01")
	if err != nil {
		s.Fatal(err)
	}
	return cluster
}

// apart makes a mandatory rule that two VMs must not share a host.
func (s *site) apart(a, b *object.VirtualMachine) {
	s.Helper()
	s.task(s.cluster().Reconfigure(s.Context(), &types.ClusterConfigSpecEx{RulesSpec: []types.ClusterRuleSpec{{
		ArrayUpdateSpec: types.ArrayUpdateSpec{Operation: types.ArrayUpdateOperationAdd},
		Info: &types.ClusterAntiAffinityRuleSpec{
			ClusterRuleInfo: types.ClusterRuleInfo{Name: "apart", Enabled: types.NewBool(true), Mandatory: types.NewBool(true)},
			Vm:              []types.ManagedObjectReference{a.Reference(), b.Reference()},
		},
	}}}, true))
}

// boxes makes two VMs that must not share a host, and boots them at the same time.
func (s *site) boxes() (a, b *object.VirtualMachine) {
	s.Helper()
	a, b = s.clone("haproxy-a", 11), s.clone("haproxy-b", 12)
	s.apart(a, b)
	first, err := a.PowerOn(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	s.task(b.PowerOn(s.Context()))
	s.task(first, nil)
	s.booted(a, 11)
	s.booted(b, 12)
	return a, b
}

func TestVCenterMachine(t *testing.T) {
	s := newSite(t)
	a, b := s.boxes()
	ctx := t.Context()

	if ha, hb := s.properties(a).Runtime.Host, s.properties(b).Runtime.Host; *ha == *hb {
		t.Errorf("both VMs run on %s although they must not", ha)
	}
	if name := s.properties(a).Guest.HostName; name != "haproxy-a" {
		t.Errorf("vCenter shows host name %q", name)
	}
	want := "frontend 203.0.113.11/24\nmanagement 192.0.2.11/24\nworkload 198.51.100.11/24"
	interfaces := func() {
		t.Helper()
		out, err := s.ssh(a, 11, "", `ip -o -4 addr show scope global | awk '{print $2, $4}' | sort`)
		if err != nil || out != want {
			t.Errorf("the guest's interfaces are %q (%v), want %q", out, err, want)
		}
	}
	interfaces()

	if out, err := s.ssh(a, 11, "wrong\n", "sudo -S -p '' id -u"); err == nil {
		t.Errorf("sudo takes a wrong password: %s", out)
	}
	if out, err := s.ssh(a, 11, "", "sudo -n id -u"); err == nil {
		t.Errorf("sudo asks for no password: %s", out)
	}
	if out := s.sudo(a, 11, "vmware-rpctool \"info-get guestinfo.metadata\""); out != strings.TrimSpace(s.guestinfo(a, "guestinfo.metadata")) {
		t.Errorf("the guest reads guestinfo.metadata as %q", out)
	}

	for command, says := range map[string]string{
		"info-set ftpdeploy.deployment mine": "Permission denied",
		"info-set guestinfo./etc/passwd x":   "Invalid key",
		"info-get guestinfo.nothing":         "No value found",
	} {
		out, err := s.ssh(a, 11, testAccount+"\n", "sudo -S -p '' vmware-rpctool '"+command+"'")
		if err == nil || out != says {
			t.Errorf("vmware-rpctool %q: %q (%v), want %q", command, out, err, says)
		}
	}
	s.task(a.Reconfigure(ctx, types.VirtualMachineConfigSpec{ExtraConfig: []types.BaseOptionValue{&types.OptionValue{Key: "guestinfo.later", Value: "here"}}}))
	s.until("the guest to see what vCenter sets", 10*time.Second, func() error {
		out, err := s.ssh(a, 11, testAccount+"\n", "sudo -S -p '' vmware-rpctool 'info-get guestinfo.later'")
		if err != nil || out != "here" {
			return fmt.Errorf("%q (%w)", out, err)
		}
		return nil
	})

	s.sudo(a, 11, "echo kept >/var/tmp/disk")
	s.task(a.PowerOff(ctx))
	if p := s.properties(a); p.Guest.IpAddress != "" || s.guestinfo(a, "guestinfo.hostkeys") != "" {
		t.Errorf("a VM that is off shows address %q, host key %q", p.Guest.IpAddress, s.guestinfo(a, "guestinfo.hostkeys"))
	}
	s.until("the machine to be off", 10*time.Second, func() error {
		if m, on := s.vcenter.Machine("haproxy-a"); on {
			return fmt.Errorf("%+v", m)
		}
		return nil
	})
	s.task(a.PowerOn(ctx))
	s.booted(a, 11)
	interfaces()
	if out, err := s.ssh(a, 11, "", "cat /var/tmp/disk"); err != nil || out != "kept" {
		t.Errorf("after a power cycle the disk holds %q (%v)", out, err)
	}

	boot := func() string {
		m, on := s.vcenter.Machine("haproxy-a")
		if !on {
			return "off"
		}
		return fmt.Sprint("PID 1 is ", m.Init)
	}
	for name, reboot := range map[string]func(){
		"RebootGuest": func() {
			if err := a.RebootGuest(ctx); err != nil {
				t.Error(err)
			}
		},
		"reboot": func() { _, _ = s.ssh(a, 11, testAccount+"\n", "sudo -S systemctl reboot") }, // the connection breaks
		"Reset":  func() { s.task(a.Reset(ctx)) },
	} {
		before := boot()
		reboot()
		s.until(name, bootLimit, func() error {
			if now := boot(); now == before || now == "off" || strings.HasSuffix(now, " 0") {
				return fmt.Errorf("%s, as before", now)
			}
			return nil
		})
		s.booted(a, 11)
		s.until("sshd after "+name, bootLimit, func() error {
			out, err := s.ssh(a, 11, "", "hostname")
			if err != nil || out != "haproxy-a" {
				return fmt.Errorf("%s: %w", out, err)
			}
			return nil
		})
	}
	interfaces()

	for name, halt := range map[string]func(){
		"ShutdownGuest": func() {
			if err := a.ShutdownGuest(ctx); err != nil {
				t.Error(err)
			}
			if m, on := s.vcenter.Machine("haproxy-a"); on && s.properties(a).Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn {
				t.Errorf("vCenter says that it is off while %+v runs", m)
			}
		},
		"poweroff": func() { _, _ = s.ssh(a, 11, testAccount+"\n", "sudo -S systemctl poweroff") },
	} {
		halt()
		s.until("power off after "+name, bootLimit, func() error {
			if state := s.properties(a).Runtime.PowerState; state != types.VirtualMachinePowerStatePoweredOff || boot() != "off" {
				return fmt.Errorf("vCenter says %s, the machine is %s", state, boot())
			}
			return nil
		})
		s.task(a.PowerOn(ctx))
		s.booted(a, 11)
	}

	// A machine keeps its addresses without cloud-init, which nothing needs after the first boot.
	s.sudo(a, 11, "mv /usr/bin/python3.11 /usr/bin/gone")
	s.task(a.PowerOff(ctx))
	s.task(a.PowerOn(ctx))
	s.addressed(a, 11)

	machines := []Machine{}
	for _, name := range []string{"haproxy-a", "haproxy-b"} {
		m, on := s.vcenter.Machine(name)
		if !on || m.Init == 0 {
			t.Fatalf("%s does not run", name)
		}
		machines = append(machines, m)
	}
	for _, vm := range []*object.VirtualMachine{a, b} {
		s.task(vm.PowerOff(ctx))
		s.task(vm.Destroy(ctx))
	}
	s.until("nothing to be left of the VMs", 20*time.Second, func() error {
		for _, m := range machines {
			paths := []string{filepath.Dir(m.Root), "/run/netns/" + m.NetNS, fmt.Sprintf("/proc/%d", m.Init)}
			for _, link := range m.Links {
				if _, err := net.InterfaceByName(link); err == nil {
					return fmt.Errorf("interface %s is there", link)
				}
			}
			for _, path := range paths {
				if _, err := os.Lstat(path); !os.IsNotExist(err) {
					return fmt.Errorf("%s is there (%w)", path, err)
				}
			}
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err == nil && strings.Contains(string(mounts), s.config.Dir) {
			err = errors.New("a disk is mounted")
		}
		return err
	})
}

// The packages that ftpdeploy needs come from the lab's mirror, and what they
// need of the kernel is there.
func TestVCenterHAProxyPair(t *testing.T) {
	s := newSite(t)
	a, b := s.boxes()
	failed := make(chan error)
	for _, box := range []struct {
		vm       *object.VirtualMachine
		n, peer  int
		priority int
		state    string
	}{{a, 11, 12, 110, "MASTER"}, {b, 12, 11, 100, "BACKUP"}} {
		config := fmt.Sprintf("vrrp_instance vip {\n state %s\n interface frontend\n virtual_router_id 15\n priority %d\n advert_int 0.2\n version 3\n"+
			" unicast_src_ip 203.0.113.%d\n unicast_peer {\n  203.0.113.%d\n }\n virtual_ipaddress {\n  203.0.113.15/24 dev frontend\n }\n}\n",
			box.state, box.priority, box.n, box.peer)
		go func() {
			failed <- func() error {
				for _, command := range []string{
					"apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install haproxy keepalived </dev/null >/dev/null",
					"sysctl -q -w net.ipv4.ip_nonlocal_bind=1",
					"echo " + b64(config) + " | base64 -d >/etc/keepalived/keepalived.conf",
					"systemctl restart keepalived",
					"systemctl is-active haproxy keepalived",
				} {
					if out, err := s.ssh(box.vm, box.n, testAccount+"\n", "sudo -S -p '' sh -c '"+command+"'"); err != nil {
						return fmt.Errorf("%s: %w: %s", command, err, out)
					}
				}
				return nil
			}()
		}()
	}
	if err := errors.Join(<-failed, <-failed); err != nil {
		t.Fatal(err)
	}
	holds := func(vm *object.VirtualMachine) func() error {
		return func() error {
			for _, nic := range s.properties(vm).Guest.Net {
				if slices.Contains(nic.IpAddress, "203.0.113.15") {
					return nil
				}
			}
			return fmt.Errorf("it has %+v", s.properties(vm).Guest.Net)
		}
	}
	s.until("haproxy-a to hold the VIP", 20*time.Second, holds(a))
	if holds(b)() == nil {
		t.Error("both hold the VIP")
	}
	for range 2 { // the second time it is off already
		if err := s.vcenter.PowerOff(t.Context(), "haproxy-a"); err != nil {
			t.Fatal(err)
		}
	}
	s.until("haproxy-b to take the VIP", 10*time.Second, holds(b))
	if err := s.vcenter.PowerOn(t.Context(), "haproxy-a"); err != nil {
		t.Fatal(err)
	}
	s.until("haproxy-a to take the VIP back", 20*time.Second, holds(a))

	mark := "ran-by-a-timer"
	s.sudo(b, 12, "systemd-run --quiet --on-active=100ms --timer-property=AccuracySec=10ms touch /run/"+mark)
	s.until("a transient timer", 10*time.Second, func() error {
		out, err := s.ssh(b, 12, "", "ls /run/"+mark)
		if err != nil {
			return fmt.Errorf("%s: %w", out, err)
		}
		return nil
	})
}

// What a deployment must be told by a real vCenter, the lab's tells it, too.
func TestVCenterRefuses(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	if _, err := s.login("wrong"); !fault.Is(err, &types.InvalidLogin{}) {
		t.Errorf("a wrong password: %v", err)
	}
	vm := s.clone("haproxy-a", 11)
	found, err := object.NewSearchIndex(s.client.Client).FindByUuid(ctx, nil, s.properties(vm).Config.InstanceUuid, true, types.NewBool(true))
	if err != nil || found == nil || found.Reference() != vm.Reference() {
		t.Errorf("a search by instance UUID finds %v (%v)", found, err)
	}
	before := s.vcenter.Writes()
	if err := vm.ShutdownGuest(ctx); !fault.Is(err, &types.InvalidPowerState{}) {
		t.Errorf("ShutdownGuest of a VM that is off: %v", err)
	}
	if got := s.vcenter.Writes()[len(before):]; !slices.Equal(got, []string{"ShutdownGuest haproxy-a"}) {
		t.Errorf("recorded %q", got)
	}
	s.properties(vm)
	if got := s.vcenter.Writes()[len(before):]; len(got) != 1 {
		t.Errorf("a read is recorded as a write: %q", got)
	}

	other := s.clone("haproxy-b", 12)
	s.apart(vm, other)
	hosts, err := s.cluster().Hosts(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range hosts[1:] {
		s.task(host.EnterMaintenanceMode(ctx, 5, false, nil))
	}
	s.task(vm.PowerOn(ctx))
	if host := s.properties(vm).Runtime.Host; *host != hosts[0].Reference() {
		t.Errorf("the VM runs on %s, the only usable host is %s", host, hosts[0].Reference())
	}
	if _, err := other.PowerOn(ctx); !fault.Is(err, &types.InsufficientResourcesFault{}) {
		t.Errorf("a power-on that breaks a mandatory rule: %v", err)
	}

	refused := func(spec types.VirtualMachineConfigSpec) error {
		task, err := vm.Reconfigure(ctx, spec)
		if err != nil {
			t.Fatal(err) // it is the task that fails
		}
		return task.Wait(ctx)
	}
	if err := refused(types.VirtualMachineConfigSpec{MemoryMB: 4096}); !fault.Is(err, &types.MemoryHotPlugNotSupported{}) {
		t.Errorf("more memory for a running VM: %v", err)
	}
	if err := refused(types.VirtualMachineConfigSpec{NumCPUs: 4}); !fault.Is(err, &types.CpuHotPlugNotSupported{}) {
		t.Errorf("more CPUs for a running VM: %v", err)
	}
	if err := refused(types.VirtualMachineConfigSpec{ChangeVersion: "1", Annotation: "stale"}); !fault.Is(err, &types.ConcurrentAccess{}) {
		t.Errorf("a change of what has changed meanwhile: %v", err)
	}

	s.task(other.Destroy(ctx))
	s.until("the rule to lose the VM that is gone", 10*time.Second, func() error {
		config, err := s.cluster().Configuration(ctx)
		if err != nil {
			return err
		}
		for _, rule := range config.Rule {
			if r := rule.(*types.ClusterAntiAffinityRuleSpec); !slices.Equal(r.Vm, []types.ManagedObjectReference{vm.Reference()}) {
				return fmt.Errorf("it has %v", r.Vm)
			}
		}
		return nil
	})
}

// A VM-Host "should" rule names a site; the VM starts there.
func TestVCenterSites(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	for i, place := range []string{"site-b", "site-a"} {
		vm := s.clone("box-"+place, 11+i)
		add := types.ArrayUpdateSpec{Operation: types.ArrayUpdateOperationAdd}
		s.task(s.cluster().Reconfigure(ctx, &types.ClusterConfigSpecEx{
			GroupSpec: []types.ClusterGroupSpec{{ArrayUpdateSpec: add, Info: &types.ClusterVmGroup{
				ClusterGroupInfo: types.ClusterGroupInfo{Name: "vms-" + place}, Vm: []types.ManagedObjectReference{vm.Reference()},
			}}},
			RulesSpec: []types.ClusterRuleSpec{{ArrayUpdateSpec: add, Info: &types.ClusterVmHostRuleInfo{
				ClusterRuleInfo: types.ClusterRuleInfo{Name: "at-" + place, Enabled: types.NewBool(true)},
				VmGroupName:     "vms-" + place, AffineHostGroupName: place + "-hosts",
			}}},
		}, true))
		s.task(vm.PowerOn(ctx))
		var host mo.HostSystem
		on := *s.properties(vm).Runtime.Host
		if err := object.NewHostSystem(s.client.Client, on).Properties(ctx, on, []string{"config.vsanHostConfig"}, &host); err != nil {
			t.Fatal(err)
		}
		if got := host.Config.VsanHostConfig.FaultDomainInfo.Name; got != place {
			t.Errorf("the rule wants %s, the VM runs in %s", place, got)
		}
	}
}
