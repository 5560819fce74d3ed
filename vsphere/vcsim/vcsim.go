// Package vcsim is a vCenter for tests: govmomi's simulator with the inventory
// of a small stretched cluster, TLS, a login, and guests that do what cloud-init
// and VMware Tools do. It fakes the peer; nothing of the product imports it.
package vcsim

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	"sigs.k8s.io/yaml"
)

// What the inventory holds.
const (
	Username   = "administrator@vsphere.local"
	Password   = "S3cret!-vcsim"
	Datacenter = "DC0"
	Cluster    = "DC0_C0" // of four hosts, two in each of HostGroups
	Pool       = "infra"
	Folder     = "infra/ftp"
	Datastore  = "LocalDS_0"
	Template   = "templates/debian-12" // one NIC, one disk
)

// PortGroups and HostGroups of the inventory.
var (
	PortGroups = []string{"dvpg-frontend", "dvpg-workload", "dvpg-mgmt"}
	HostGroups = []string{"site-a-hosts", "site-b-hosts"}
)

// Server is a running simulator. Its fields may be changed between calls to it.
type Server struct {
	URL        string
	Thumbprint string // SHA-256
	Model      *simulator.Model
	Client     *govmomi.Client // logged in; its calls are counted like all others
	Finder     *find.Finder

	http *simulator.Server

	mu    sync.Mutex
	calls map[string]int
	deaf  bool
	keys  string
	fault func(method string, object types.ManagedObjectReference) types.BaseMethodFault
	body  map[string]types.AnyType
}

// HostKeys is what guests publish until SetHostKeys.
const HostKeys = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEiVvuSjWk3XZYHHd4BHZ0OoZ6Y6Yc2T7F6FLG2S1m5o"

// Start runs a simulator until the test ends.
func Start(t testing.TB) *Server {
	t.Helper()
	ctx := context.Background()
	model := simulator.VPX()
	model.Host, model.ClusterHost, model.Machine, model.Autostart = 0, 4, 1, false
	about := &model.ServiceContent.About
	about.Version, about.ApiVersion = "8.0.3", "8.0.3.0"
	must(t, model.Create())
	model.Service.TLS, model.Service.RegisterEndpoints = new(tls.Config), true
	model.Service.Listen = &url.URL{Host: "127.0.0.1:0", User: url.UserPassword(Username, Password)}
	server := model.Service.NewServer()
	t.Cleanup(func() { server.Close(); model.Remove() })
	s := &Server{
		URL: "https://" + server.URL.Host + "/sdk", Thumbprint: soap.ThumbprintSHA256(server.Certificate()),
		Model: model, http: server, calls: map[string]int{}, body: map[string]types.AnyType{}, keys: HostKeys,
	}
	var err error
	s.Client, err = govmomi.NewClient(ctx, server.URL, true)
	must(t, err)
	s.Finder = find.NewFinder(s.Client.Client)
	datacenter, err := s.Finder.Datacenter(ctx, Datacenter)
	must(t, err)
	s.Finder.SetDatacenter(datacenter)
	s.furnish(t)
	model.Map().Handler = s.called
	model.Map().AddHandler(s)
	return s
}

// furnish makes what simulator.VPX does not have.
func (s *Server) furnish(t testing.TB) {
	ctx := context.Background()
	network, err := s.Finder.Network(ctx, "DVS0")
	must(t, err)
	var groups []types.DVPortgroupConfigSpec
	for _, name := range PortGroups {
		groups = append(groups, types.DVPortgroupConfigSpec{Name: name, NumPorts: 8, Type: "earlyBinding"})
	}
	wait(t)(network.(*object.DistributedVirtualSwitch).AddPortgroup(ctx, groups))

	cluster, err := s.Finder.ClusterComputeResource(ctx, Cluster)
	must(t, err)
	hosts, err := cluster.Hosts(ctx)
	must(t, err)
	edit := &types.ClusterConfigSpecEx{}
	for n, name := range HostGroups {
		edit.GroupSpec = append(edit.GroupSpec, types.ClusterGroupSpec{
			ArrayUpdateSpec: types.ArrayUpdateSpec{Operation: "add"},
			Info: &types.ClusterHostGroup{
				ClusterGroupInfo: types.ClusterGroupInfo{Name: name},
				Host:             []types.ManagedObjectReference{hosts[2*n].Reference(), hosts[2*n+1].Reference()},
			},
		})
	}
	wait(t)(cluster.Reconfigure(ctx, edit, true))
	root, err := cluster.ResourcePool(ctx)
	must(t, err)
	_, err = root.Create(ctx, Pool, types.DefaultResourceConfigSpec())
	must(t, err)

	vms, err := s.Finder.Folder(ctx, "vm")
	must(t, err)
	infra, err := vms.CreateFolder(ctx, "infra")
	must(t, err)
	_, err = infra.CreateFolder(ctx, "ftp")
	must(t, err)
	templates, err := vms.CreateFolder(ctx, "templates")
	must(t, err)
	template, err := s.Finder.VirtualMachine(ctx, "DC0_C0_RP0_VM0")
	must(t, err)
	wait(t)(template.Rename(ctx, "debian-12"))
	wait(t)(templates.MoveInto(ctx, []types.ManagedObjectReference{template.Reference()}))
	must(t, template.MarkAsTemplate(ctx))
}

// Calls is how often a method was called.
func (s *Server) Calls(method string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[method]
}

// reads are the methods that change nothing.
var reads = []string{
	"RetrieveServiceContent", "Login", "Logout", "RetrieveProperties", "RetrievePropertiesEx", "FindByInventoryPath", "FindByUuid",
	"HasPrivilegeOnEntities", "QueryEvents", "CreatePropertyCollector", "DestroyPropertyCollector", "CreateFilter", "WaitForUpdatesEx", "FindChild",
}

// Writes is how many calls there were that may change something.
func (s *Server) Writes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := 0
	for method, n := range s.calls {
		if !slices.Contains(reads, method) {
			sum += n
		}
	}
	return sum
}

// Body is the latest request of a method.
func (s *Server) Body(method string) types.AnyType {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.body[method]
}

// SetFault has every call asked for a fault; nil means none.
func (s *Server) SetFault(fault func(method string, object types.ManagedObjectReference) types.BaseMethodFault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = fault
}

// SetDeaf makes guests that are powered on from now run no VMware Tools.
func (s *Server) SetDeaf(deaf bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deaf = deaf
}

// SetHostKeys changes what guests publish when they are powered on; "" is nothing.
func (s *Server) SetHostKeys(keys string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = keys
}

func (s *Server) called(_ *simulator.Context, m *simulator.Method) (mo.Reference, types.BaseMethodFault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[m.Name]++
	s.body[m.Name] = m.Body
	if s.fault != nil {
		return nil, s.fault(m.Name, m.This)
	}
	return nil, nil
}

// Reference implements simulator.RegisterObject.
func (s *Server) Reference() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "Guests", Value: "guests"}
}

// PutObject implements simulator.RegisterObject.
func (s *Server) PutObject(*simulator.Context, mo.Reference) {}

// RemoveObject implements simulator.RegisterObject.
func (s *Server) RemoveObject(*simulator.Context, types.ManagedObjectReference) {}

// UpdateObject implements simulator.RegisterObject: a VM that goes on boots its
// guest, one that goes off has none. It runs with the VM's lock held.
func (s *Server) UpdateObject(ctx *simulator.Context, object mo.Reference, changes []types.PropertyChange) {
	vm, ok := object.(*mo.VirtualMachine)
	if !ok || !slices.ContainsFunc(changes, func(c types.PropertyChange) bool { return c.Name == "runtime.powerState" }) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	on := vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn && !s.deaf
	tools := types.VirtualMachineToolsRunningStatusGuestToolsNotRunning
	var nics []types.GuestNicInfo
	if on {
		tools = types.VirtualMachineToolsRunningStatusGuestToolsRunning
		nics = guestNICs(vm)
		if s.keys != "" {
			setExtra(vm, "guestinfo.ftpdeploy.hostkeys", s.keys)
		}
	}
	ctx.Update(vm, []types.PropertyChange{{Name: "guest.net", Val: nics}, {Name: "guest.toolsRunningStatus", Val: string(tools)}})
}

// guestNICs is what a guest shows that did what guestinfo.metadata says.
func guestNICs(vm *mo.VirtualMachine) []types.GuestNicInfo {
	var text []byte
	for _, o := range vm.Config.ExtraConfig {
		if v := o.GetOptionValue(); v.Key == "guestinfo.metadata" {
			text, _ = base64.StdEncoding.DecodeString(fmt.Sprint(v.Value))
		}
	}
	var metadata struct {
		Network struct {
			Ethernets map[string]struct {
				Match     struct{ MACAddress string }
				Addresses []string
			}
		}
	}
	if err := yaml.Unmarshal(text, &metadata); err != nil {
		return nil
	}
	var nics []types.GuestNicInfo
	for _, e := range metadata.Network.Ethernets {
		nic := types.GuestNicInfo{MacAddress: e.Match.MACAddress, Connected: true, IpAddress: []string{"fe80::1"}}
		for _, a := range e.Addresses {
			address, _, _ := strings.Cut(a, "/")
			nic.IpAddress = append(nic.IpAddress, address)
		}
		nics = append(nics, nic)
	}
	return nics
}

func setExtra(vm *mo.VirtualMachine, key, value string) {
	for _, o := range vm.Config.ExtraConfig {
		if v := o.GetOptionValue(); v.Key == key {
			v.Value = value
			return
		}
	}
	vm.Config.ExtraConfig = append(vm.Config.ExtraConfig, &types.OptionValue{Key: key, Value: value})
}

// VM reads the VM at a path below the vm folder.
func (s *Server) VM(t testing.TB, path string) (*object.VirtualMachine, *mo.VirtualMachine) {
	t.Helper()
	ctx := context.Background()
	vm, err := s.Finder.VirtualMachine(ctx, path)
	must(t, err)
	var properties mo.VirtualMachine
	must(t, vm.Properties(ctx, vm.Reference(), nil, &properties))
	return vm, &properties
}

// Reconfigure changes the VM at a path below the vm folder, as an operator does by hand.
func (s *Server) Reconfigure(t testing.TB, path string, spec types.VirtualMachineConfigSpec) {
	t.Helper()
	vm, _ := s.VM(t, path)
	wait(t)(vm.Reconfigure(context.Background(), spec))
}

// SetExtra sets an extraConfig entry of the VM at a path below the vm folder.
func (s *Server) SetExtra(t testing.TB, path, key, value string) {
	t.Helper()
	s.Reconfigure(t, path, types.VirtualMachineConfigSpec{ExtraConfig: []types.BaseOptionValue{&types.OptionValue{Key: key, Value: value}}})
}

// PowerOff switches the VM at a path below the vm folder off.
func (s *Server) PowerOff(t testing.TB, path string) {
	t.Helper()
	vm, _ := s.VM(t, path)
	wait(t)(vm.PowerOff(context.Background()))
}

// Rules are the cluster's rules and its groups.
func (s *Server) Rules(t testing.TB) *types.ClusterConfigInfoEx {
	t.Helper()
	cluster, err := s.Finder.ClusterComputeResource(context.Background(), Cluster)
	must(t, err)
	configuration, err := cluster.Configuration(context.Background())
	must(t, err)
	return configuration
}

// EditRules changes the cluster, as an operator does by hand.
func (s *Server) EditRules(t testing.TB, spec *types.ClusterConfigSpecEx) {
	t.Helper()
	cluster, err := s.Finder.ClusterComputeResource(context.Background(), Cluster)
	must(t, err)
	wait(t)(cluster.Reconfigure(context.Background(), spec, true))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wait(t testing.TB) func(*object.Task, error) {
	return func(task *object.Task, err error) {
		t.Helper()
		must(t, err)
		must(t, task.Wait(context.Background()))
	}
}

// Deny makes the simulator, which grants every privilege, refuse some.
func (s *Server) Deny(privileges ...string) {
	manager := s.Model.Map().Get(*s.Client.ServiceContent.AuthorizationManager).(*simulator.AuthorizationManager)
	s.Model.Map().Put(&grudging{AuthorizationManager: manager, denied: privileges})
}

type grudging struct {
	*simulator.AuthorizationManager
	denied []string
}

// HasPrivilegeOnEntities hides the simulator's, which grants everything.
func (g *grudging) HasPrivilegeOnEntities(request *types.HasPrivilegeOnEntities) soap.HasFault {
	body := g.AuthorizationManager.HasPrivilegeOnEntities(request).(*methods.HasPrivilegeOnEntitiesBody)
	for i := range body.Res.Returnval {
		granted := body.Res.Returnval[i].PrivAvailability
		for j := range granted {
			granted[j].IsGranted = !slices.Contains(g.denied, granted[j].PrivId)
		}
	}
	return body
}

// SetGuest makes VMware Tools of the VM at a path below the vm folder run and
// report addresses, by MAC.
func (s *Server) SetGuest(t testing.TB, path string, addresses map[string]string) {
	t.Helper()
	var nics types.ArrayOfGuestNicInfo
	for mac, address := range addresses {
		nics.GuestNicInfo = append(nics.GuestNicInfo, types.GuestNicInfo{MacAddress: mac, Connected: true, IpAddress: []string{address}})
	}
	s.Reconfigure(t, path, types.VirtualMachineConfigSpec{ExtraConfig: []types.BaseOptionValue{
		&types.OptionValue{Key: "SET.guest.net", Value: nics},
		&types.OptionValue{Key: "SET.guest.toolsRunningStatus", Value: string(types.VirtualMachineToolsRunningStatusGuestToolsRunning)},
	}})
}

// SetDatastore changes what the datastore says of itself.
func (s *Server) SetDatastore(t testing.TB, change func(*types.DatastoreSummary)) {
	t.Helper()
	datastore, err := s.Finder.Datastore(context.Background(), Datastore)
	must(t, err)
	d := s.Model.Map().Get(datastore.Reference()).(*simulator.Datastore)
	s.Model.Map().WithLock(s.Model.Service.Context, d, func() { change(&d.Summary) })
}

// Alter changes what the simulator holds of the VM at a path below the vm folder.
func (s *Server) Alter(t testing.TB, path string, change func(*mo.VirtualMachine)) {
	t.Helper()
	vm, _ := s.VM(t, path)
	m := s.Model.Map().Get(vm.Reference()).(*simulator.VirtualMachine)
	s.Model.Map().WithLock(s.Model.Service.Context, m, func() { change(&m.VirtualMachine) })
}

// Beside puts the VM at a path below the vm folder on a port group: the simulator
// does not keep the list of a group's VMs.
func (s *Server) Beside(t testing.TB, path, portGroup string) {
	t.Helper()
	vm, _ := s.VM(t, path)
	group, err := s.Finder.Network(context.Background(), portGroup)
	must(t, err)
	g := s.Model.Map().Get(group.Reference()).(*simulator.DistributedVirtualPortgroup)
	s.Model.Map().WithLock(s.Model.Service.Context, g, func() { g.Vm = append(g.Vm, vm.Reference()) })
}

// ExpireSessions ends every session but the test's own.
func (s *Server) ExpireSessions(t testing.TB) {
	t.Helper()
	ctx := context.Background()
	own, err := s.Client.SessionManager.UserSession(ctx)
	must(t, err)
	var manager mo.SessionManager
	must(t, s.Client.RetrieveOne(ctx, *s.Client.ServiceContent.SessionManager, []string{"sessionList"}, &manager))
	for _, session := range manager.SessionList {
		if session.Key != own.Key {
			must(t, s.Client.SessionManager.TerminateSession(ctx, []string{session.Key}))
		}
	}
}

// CloseConnections cuts every connection; the server goes on to listen.
func (s *Server) CloseConnections() { s.http.CloseClientConnections() }

// RemoveHost takes a host out of the cluster with all that runs on it.
func (s *Server) RemoveHost(host types.ManagedObjectReference) {
	for _, c := range s.Model.Map().All("ClusterComputeResource") {
		cluster := c.(*simulator.ClusterComputeResource)
		cluster.Host = slices.DeleteFunc(cluster.Host, func(h types.ManagedObjectReference) bool { return h == host })
	}
}

// ThumbprintSHA1 is the other form of Thumbprint.
func (s *Server) ThumbprintSHA1() string { return soap.ThumbprintSHA1(s.http.Certificate()) }

// CAFile writes the certificate that the server's is issued by.
func (s *Server) CAFile(t testing.TB) string {
	t.Helper()
	name, err := s.http.CertificateFile()
	must(t, err)
	return name
}
