package lab

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"fmt"
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
	template, err := BuildTemplate(t.Context(), testCache(t), t.Logf)
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
		&types.OptionValue{Key: "guestinfo.metadata", Value: b64(meta)}, &types.OptionValue{Key: "guestinfo.metadata.encoding", Value: "base64"},
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

// booted waits until vCenter shows all addresses and the host key of a VM.
func (s *site) booted(vm *object.VirtualMachine, n int) {
	s.Helper()
	s.until("the VM's addresses", time.Minute, func() error {
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
	s.until("the VM's host key", time.Minute, func() error {
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

func TestVCenter(t *testing.T) {
	s := newSite(t)
	a := s.clone("haproxy-a", 11)
	start := time.Now()
	s.task(a.PowerOn(t.Context()))
	s.booted(a, 11)
	t.Log("booted", time.Since(start))
	t.Log(s.ssh(a, 11, "", "ip -br addr; hostname; systemd-analyze; systemctl --failed; cloud-init status --long; systemd-analyze blame | head -20"))
	t.Log(s.sudo(a, 11, "id"))
	t.Log(s.sudo(a, 11, "apt-get update && apt-get install -y haproxy keepalived && haproxy -v"))
}
