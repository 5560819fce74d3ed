package lab

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/simulator/vpx"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// VCenterConfig says what StartVCenter needs. All of it must be given.
type VCenterConfig struct {
	Dir             string // where the VMs' disks live; must be empty
	Listen          string // host:port of the API
	Certificate     tls.Certificate
	Username        string
	Password        string
	Template        Template
	AccountPassword string            // of the template's account "ansible"; its sudo asks for it
	Bridges         map[string]string // port group to the bridge, in this network namespace, that is its segment
	Logf            func(format string, args ...any)
}

// VCenter is govmomi's vCenter simulator whose powered-on VMs are machines that
// run. What the simulator leaves out and a deployment depends on, the lab adds:
// VMware Tools that report what the guest really has, DRS rules that are obeyed
// at power-on, and MAC addresses that are unique.
type VCenter struct {
	config  VCenterConfig
	service *simulator.Service
	server  *simulator.Server
	client  *vim25.Client // in process, past the recorder

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	guests sync.WaitGroup

	placing sync.Mutex // held while DRS places a VM; taken before any lock of the simulator

	// mu is innermost: nothing is locked or waited for while it is held.
	mu         sync.Mutex
	guest      map[types.ManagedObjectReference]*guest
	running    map[types.ManagedObjectReference]types.ManagedObjectReference // VM to its host, from placement to power-off
	portGroups map[string]string                                             // key to name
	writes     []string
	macs       int // assigned so far
}

// StartVCenter starts a vCenter with the inventory that makeInventory lists. Its VMs run
// in namespaces of this process; Close ends them.
func StartVCenter(ctx context.Context, config VCenterConfig) (*VCenter, error) {
	content := vpx.ServiceContent
	content.About.Version, content.About.ApiVersion, content.About.Build = "8.0.3", "8.0.3.0", "24022515"
	content.About.FullName = "VMware vCenter Server 8.0.3 build-24022515 (simulated by ftplab)"

	v := &VCenter{
		config:     config,
		service:    simulator.New(simulator.NewServiceInstance(simulator.NewContext(), content, vpx.RootFolder)),
		guest:      map[types.ManagedObjectReference]*guest{},
		running:    map[types.ManagedObjectReference]types.ManagedObjectReference{},
		portGroups: map[string]string{},
	}
	v.ctx, v.cancel = context.WithCancel(context.WithoutCancel(ctx))
	client, err := vim25.NewClient(ctx, v.service)
	if err != nil {
		return nil, fmt.Errorf("start vCenter: %w", err)
	}
	v.client = client
	registry := v.service.Context.Map
	registry.AddHandler(v)
	registry.Put(&operations{v: v})
	datastore := filepath.Join(config.Dir, "datastore")
	if err := os.MkdirAll(datastore, 0o700); err != nil {
		return nil, fmt.Errorf("start vCenter: %w", err)
	}
	if err := makeInventory(ctx, client, registry, datastore); err != nil {
		return nil, fmt.Errorf("start vCenter: make its inventory: %w", err)
	}

	// The simulator panics where it cannot listen; this says why instead.
	probe, err := new(net.ListenConfig).Listen(ctx, "tcp", config.Listen)
	if err != nil {
		return nil, fmt.Errorf("start vCenter: %w", err)
	}
	probe.Close()
	registry.Handler = v.intercept
	v.service.TLS = &tls.Config{Certificates: []tls.Certificate{config.Certificate}, MinVersion: tls.VersionTLS12}
	v.service.Listen = &url.URL{Host: config.Listen, User: url.UserPassword(config.Username, config.Password)}
	v.server = v.service.NewServer()
	return v, nil
}

// Close cuts the power of every VM, ends the API, and returns when nothing of
// them runs or is mounted.
func (v *VCenter) Close() {
	v.server.CloseClientConnections()
	v.server.Close()
	v.cancel()
	v.guests.Wait()
}

// URL is where the API answers, without credentials.
func (v *VCenter) URL() string {
	u := *v.server.URL
	u.User = nil
	return u.String()
}

// Writes lists every call since the start that could change something, in the
// order they came: the method and the name of its object, as in
// "ReconfigVM_Task haproxy-a". Calls that were refused are among them.
func (v *VCenter) Writes() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.writes)
}

// PowerOn switches the VM called name on, as its vCenter's operator would, and
// returns when it runs; it has not booted then.
func (v *VCenter) PowerOn(ctx context.Context, name string) error {
	return v.power(ctx, name, true)
}

// PowerOff cuts the power of the VM called name and returns when nothing of it runs.
func (v *VCenter) PowerOff(ctx context.Context, name string) error {
	return v.power(ctx, name, false)
}

func (v *VCenter) power(ctx context.Context, name string, on bool) error {
	ref, ok := v.find(name)
	if !ok {
		return fmt.Errorf("vCenter has no VM called %q", name)
	}
	vm := object.NewVirtualMachine(v.client, ref)
	verb, act := "power off", vm.PowerOff
	if on {
		verb, act = "power on", vm.PowerOn
		if refused := v.place(ref); refused != nil {
			return fmt.Errorf("power on %s: no host may run it: %T", name, refused)
		}
	}
	task, err := act(ctx)
	if err == nil {
		err = task.Wait(ctx)
	}
	if err != nil && !fault.Is(err, &types.InvalidPowerState{}) { // which says that it is so already
		return fmt.Errorf("%s %s: %w", verb, name, err)
	}
	return wait(ctx, fmt.Sprintf("%s to %s", name, verb), 20*time.Second, 20*time.Millisecond, func(context.Context) error {
		if m, ok := v.Machine(name); ok != on || on && m.Init == 0 {
			return fmt.Errorf("its machine runs: %t", ok)
		}
		return nil
	})
}

// find returns the VM or template called name.
func (v *VCenter) find(name string) (types.ManagedObjectReference, bool) {
	registry := v.service.Context.Map
	for _, vm := range registry.All("VirtualMachine") {
		if v.name(vm.Reference()) == name {
			return vm.Reference(), true
		}
	}
	return types.ManagedObjectReference{}, false
}

// name is what the inventory calls an object; one without a name is called by its id.
func (v *VCenter) name(ref types.ManagedObjectReference) string {
	name := ref.Value
	registry := v.service.Context.Map
	if entity, ok := registry.Get(ref).(mo.Entity); ok {
		registry.WithLock(v.simulatorContext(), entity, func() { name = entity.Entity().Name })
	}
	return name
}

// simulatorContext is a context of its own for each use: the simulator's locks
// belong to the context that took them.
func (v *VCenter) simulatorContext() *simulator.Context {
	c := *v.service.Context
	c.Context = v.ctx
	return &c
}

// intercept sees every call before the simulator does. A fault that it returns
// is the call's answer.
func (v *VCenter) intercept(_ *simulator.Context, call *simulator.Method) (mo.Reference, types.BaseMethodFault) {
	if !isRead(call.Name) {
		entry := call.Name + " " + v.name(call.This)
		v.mu.Lock()
		v.writes = append(v.writes, entry)
		v.mu.Unlock()
	}
	switch body := call.Body.(type) {
	case *types.ShutdownGuest, *types.RebootGuest:
		call.This = operationsReference
	case *types.PowerOnVM_Task:
		return nil, v.place(body.This)
	case *types.PowerOnMultiVM_Task:
		for _, vm := range body.Vm {
			if fault := v.place(vm); fault != nil {
				return nil, fault
			}
		}
	case *types.CreateVM_Task:
		v.assignMACs(&body.Config)
	case *types.CloneVM_Task:
		v.assignMACs(body.Spec.Config)
	case *types.ReconfigVM_Task:
		v.assignMACs(&body.Spec)
		call.This = operationsReference
	}
	return nil, nil
}

// isRead tells whether a method changes nothing outside the caller's own
// session. One that it does not know it takes for a write.
func isRead(method string) bool {
	for _, prefix := range []string{
		"Retrieve", "ContinueRetrieve", "CancelRetrieve", "WaitFor", "CheckForUpdates", "CancelWait",
		"Find", "Query", "Fetch", "List", "Check", "Login", "Logout", "Recommend", "Search", "Validate", "HasPrivilege",
	} {
		if strings.HasPrefix(method, prefix) {
			return true
		}
	}
	switch method {
	case "CreateFilter", "DestroyPropertyFilter", "CreatePropertyCollector", "DestroyPropertyCollector",
		"CreateContainerView", "CreateListView", "ModifyListView", "ResetListView", "DestroyView",
		"CreateCollectorForTasks", "CreateCollectorForEvents", "DestroyCollector", "ReadNextTasks", "ReadNextEvents",
		"CurrentTime", "SessionIsActive", "PlaceVm":
		return true
	}
	return false
}

// assignMACs gives each NIC that spec adds an address of vCenter's own range
// (00:50:56:80:00:00 and up), as vCenter does. The simulator's choice repeats
// itself after 4096 VMs, and two machines with one address fight over it.
func (v *VCenter) assignMACs(spec *types.VirtualMachineConfigSpec) {
	if spec == nil {
		return
	}
	for _, change := range spec.DeviceChange {
		device := change.GetVirtualDeviceConfigSpec()
		card, ok := device.Device.(types.BaseVirtualEthernetCard)
		if !ok || device.Operation != types.VirtualDeviceConfigSpecOperationAdd {
			continue
		}
		if nic := card.GetVirtualEthernetCard(); nic.MacAddress == "" {
			v.mu.Lock()
			v.macs++
			n := v.macs
			v.mu.Unlock()
			nic.MacAddress = fmt.Sprintf("00:50:56:%02x:%02x:%02x", 0x80|n>>16&0x3f, n>>8&0xff, n&0xff)
			nic.AddressType = string(types.VirtualEthernetCardMacTypeAssigned)
		}
	}
}
