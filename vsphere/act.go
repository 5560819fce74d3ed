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
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/task"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// How long vCenter may take. A clone copies the template's disks.
const (
	cloneBound    = 30 * time.Minute
	taskBound     = 5 * time.Minute
	shutdownBound = 3 * time.Minute

	taskInterval  = 500 * time.Millisecond
	guestInterval = 500 * time.Millisecond
)

// Create makes the VM of spec and leaves it off. When it is cloned from a
// template, identity, marks and hardware are set in the same task, so a crash
// never leaves a VM that is not marked; it gets network cards of its own, in
// order, and nothing of the template's extraConfig that is ours. What needs its MAC addresses is for Reconfigure.
func (c *Client) Create(ctx context.Context, spec Spec, report func(string)) error {
	i, err := c.Observe(ctx, []Spec{spec}, nil)
	if err != nil {
		return err
	}
	if vm, err := i.VM(spec.Deployment, spec.Name); err != nil || vm != nil {
		return err
	}
	if err := i.Ready(spec); err != nil {
		return err
	}
	if spec.LibraryItem != "" {
		return c.deploy(ctx, i, spec, report)
	}
	template := i.machines[*i.refs[c.templatePath(spec)]]
	if template == nil || template.Config == nil {
		return fmt.Errorf("template %s has no readable configuration", c.templatePath(spec))
	}
	config, err := i.newConfig(spec, template.Config.Hardware.Device)
	if err != nil {
		return err
	}
	clone := types.VirtualMachineCloneSpec{
		Location: types.VirtualMachineRelocateSpec{Pool: i.refs[c.poolPath(spec)]},
		Config:   config,
	}
	if spec.Datastore != "" {
		clone.Location.Datastore = i.refs[c.datastorePath(spec)]
	}
	folder := object.NewFolder(c.vim, *i.refs[c.folderPath(spec)])
	started, err := object.NewVirtualMachine(c.vim, template.Self).Clone(ctx, folder, spec.Name, clone)
	what := fmt.Sprintf("clone %s from %s", spec.Name, spec.Source())
	return c.task(ctx, what, cloneBound, started, err, report)
}

// Reconfigure brings the VM to its spec, in one task; where network cards are
// added it takes a second one for what the guest is told of them. The VM must be
// there; where the edit needs it off, it must be off. Where differences are given
// and are not those that are found, the error is ErrConflict.
func (c *Client) Reconfigure(ctx context.Context, spec Spec, planned ...Difference) error {
	var left []Difference
	for try := range 3 {
		i, err := c.Observe(ctx, []Spec{spec}, nil)
		if err != nil {
			return err
		}
		vm, err := i.VM(spec.Deployment, spec.Name)
		if err != nil {
			return err
		}
		if vm == nil {
			return fmt.Errorf("reconfigure VM %s: %w", spec.Name, ErrNotFound)
		}
		e, err := i.Edit(vm, spec)
		if err != nil || e == nil {
			return err
		}
		if try == 0 && planned != nil && !slices.Equal(planned, e.Differences) {
			return fmt.Errorf("reconfigure VM %s: %w: it differs by %v", spec.Name, ErrConflict, e.Differences)
		}
		if e.Off {
			return fmt.Errorf("reconfigure VM %s: it is on, and must be off for this", spec.Name)
		}
		started, err := object.NewVirtualMachine(c.vim, vm.reference).Reconfigure(ctx, e.spec)
		if err := c.task(ctx, "reconfigure VM "+spec.Name, taskBound, started, err, nil); err != nil {
			return err
		}
		left = e.Differences
	}
	return fmt.Errorf("reconfigure VM %s: vCenter reports success, but it stays as it was: %v", spec.Name, left)
}

// TakeBack makes of the VM what it was before an edit that is Reversible.
func (c *Client) TakeBack(ctx context.Context, deployment, name string, e *Edit) error {
	vm, err := c.Find(ctx, deployment, name)
	if err != nil {
		return err
	}
	started, err := object.NewVirtualMachine(c.vim, vm.reference).Reconfigure(ctx, *e.back)
	return c.task(ctx, "take the change of VM "+name+" back", taskBound, started, err, nil)
}

// PowerOn turns the VM on, or resumes it. One that is on is left alone.
func (c *Client) PowerOn(ctx context.Context, deployment, name string) error {
	vm, err := c.Find(ctx, deployment, name)
	if err != nil || vm.On {
		return err
	}
	started, err := object.NewVirtualMachine(c.vim, vm.reference).PowerOn(ctx)
	return c.power(ctx, "power on VM "+name, types.VirtualMachinePowerStatePoweredOn, started, err)
}

// ShutDown turns the VM off and lets its guest do so in order where VMware Tools
// run; a guest that takes more than three minutes is switched off.
func (c *Client) ShutDown(ctx context.Context, deployment, name string, report func(string)) error {
	vm, err := c.Find(ctx, deployment, name)
	if err != nil || !vm.On {
		return err
	}
	machine := object.NewVirtualMachine(c.vim, vm.reference)
	if err := machine.ShutdownGuest(ctx); err == nil {
		report("the guest shuts down")
		err = poll(ctx, guestInterval, shutdownBound, func() (bool, string, error) {
			vm, err := c.Find(ctx, deployment, name)
			return err == nil && !vm.On, "the guest of VM " + name + " to shut down", err
		})
		if !errors.Is(err, ErrTimeout) {
			return err
		}
	} else if !fault.Is(err, &types.ToolsUnavailable{}) && !fault.Is(err, &types.InvalidPowerState{}) {
		return fmt.Errorf("shut down the guest of VM %s: %w", name, err)
	}
	started, err := machine.PowerOff(ctx)
	return c.power(ctx, "power off VM "+name, types.VirtualMachinePowerStatePoweredOff, started, err)
}

// Destroy removes the VM with its disks. It looks at both marks first; a VM that
// is not there is no error.
func (c *Client) Destroy(ctx context.Context, deployment, name string) error {
	vm, err := c.look(ctx, deployment, name)
	if err != nil || vm == nil {
		return err
	}
	machine := object.NewVirtualMachine(c.vim, vm.reference)
	if vm.properties.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff {
		started, err := machine.PowerOff(ctx)
		if err := c.power(ctx, "power off VM "+name, types.VirtualMachinePowerStatePoweredOff, started, err); err != nil {
			return err
		}
	}
	started, err := machine.Destroy(ctx)
	if err := c.task(ctx, "destroy VM "+name, taskBound, started, err, nil); !fault.Is(err, &types.ManagedObjectNotFound{}) {
		return err
	}
	return nil
}

// power waits for a task that changes the power state; that it is there already is success.
func (c *Client) power(ctx context.Context, what string, want types.VirtualMachinePowerState, started *object.Task, err error) error {
	err = c.task(ctx, what, taskBound, started, err, nil)
	var state *types.InvalidPowerState
	if _, ok := fault.As(err, &state); ok && state.ExistingState == want {
		return nil
	}
	return err
}

// task waits until a task that was started, unless err, is over. Whoever
// interrupts the wait has the task cancelled: what it was about to make would
// otherwise appear later.
func (c *Client) task(ctx context.Context, what string, bound time.Duration, started *object.Task, err error, report func(string)) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, explain(err))
	}
	progress := int32(0)
	err = poll(ctx, taskInterval, bound, func() (bool, string, error) {
		var t mo.Task
		if err := property.DefaultCollector(c.vim).RetrieveOne(ctx, started.Reference(), []string{"info"}, &t); err != nil {
			return false, "", err
		}
		switch t.Info.State {
		case types.TaskInfoStateSuccess:
			return true, "", nil
		case types.TaskInfoStateError:
			return false, "", task.Error{LocalizedMethodFault: t.Info.Error, Description: t.Info.Description}
		}
		if report != nil && t.Info.Progress != progress {
			progress = t.Info.Progress
			report(fmt.Sprintf("%s: %d %%", what, t.Info.Progress))
		}
		return false, fmt.Sprintf("the task %s is %s (%d %%)", started.Reference().Value, t.Info.State, t.Info.Progress), nil
	})
	if ctx.Err() != nil || errors.Is(err, ErrTimeout) {
		cancelling, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if _, e := methods.CancelTask(cancelling, c.vim, &types.CancelTask{This: started.Reference()}); e == nil {
			err = fmt.Errorf("%w; asked vCenter to cancel it", err)
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, explain(err))
	}
	return nil
}

// explain gives the faults that a caller decides on their sentinel.
func explain(err error) error {
	var denied *types.NoPermission
	switch {
	case fault.Is(err, &types.ConcurrentAccess{}):
		return fmt.Errorf("%w: %w", ErrConflict, err)
	case fault.Is(err, &types.DuplicateName{}):
		return fmt.Errorf("%w: something of that name appeared meanwhile: %w", ErrConflict, err)
	}
	if _, ok := fault.As(err, &denied); ok {
		return fmt.Errorf("%w: %s [FTP402]", ErrDenied, denied.PrivilegeId)
	}
	return err
}

// WaitAddresses waits until the guest shows the address of every NIC of spec on
// that NIC; one without an address is not waited for. The error of a timeout
// names each NIC that lacks its address, by MAC, and what is wrong with it.
func (c *Client) WaitAddresses(ctx context.Context, spec Spec, bound time.Duration, report func(string)) error {
	said := ""
	err := poll(ctx, guestInterval, bound, func() (bool, string, error) {
		vm, err := c.Find(ctx, spec.Deployment, spec.Name)
		if err != nil {
			return false, "", err
		}
		if !vm.On {
			return false, "", fmt.Errorf("it went off while it was waited for")
		}
		missing := vm.Missing(spec.NICs)
		if missing != "" && missing != said {
			said = missing
			report("waiting for " + missing)
		}
		return missing == "", missing, nil
	})
	if err != nil {
		return fmt.Errorf("wait for the addresses of VM %s: %w", spec.Name, err)
	}
	return nil
}

// Missing says in words which of the addresses of nics the guest does not show,
// and what is wrong; "" means that all are there.
func (vm *VM) Missing(nics []NIC) string {
	var missing []string
	cards, _ := vm.assign(nics)
	for n, nic := range nics {
		if !nic.Address.IsValid() {
			continue
		}
		card := cards[n]
		if card == nil {
			missing = append(missing, fmt.Sprintf("%s on NIC %s, which the VM does not have", nic.Address, nic.Name))
			continue
		}
		if slices.Contains(card.Addresses, nic.Address) {
			continue
		}
		text := fmt.Sprintf("%s on NIC %s (%s): ", nic.Address, nic.Name, card.MAC)
		other := slices.IndexFunc(vm.NICs, func(o Card) bool { return slices.Contains(o.Addresses, nic.Address) })
		switch {
		case !card.Connected:
			text += "it is not connected to port group " + nic.PortGroup
		case other >= 0:
			text += fmt.Sprintf("it is on the NIC %s instead", vm.NICs[other].MAC)
		case len(card.Addresses) > 0:
			text += fmt.Sprintf("it has %s; cloud-init sets addresses at the first boot only, so a VM whose address changes is made anew", addresses(card.Addresses))
		case vm.Tools != string(types.VirtualMachineToolsRunningStatusGuestToolsRunning):
			text += "VMware Tools do not run in the guest (still booting, or open-vm-tools is not in the template)"
		default:
			text += "VMware Tools run but report no address (did cloud-init fail, is the address in use, or was the NIC added after the first boot? see the VM's console)"
		}
		missing = append(missing, text)
	}
	return strings.Join(missing, "; ")
}

func addresses(all []netip.Addr) string {
	var text []string
	for _, a := range all {
		text = append(text, a.String())
	}
	return strings.Join(text, ", ")
}

// PinHostKeys waits until the guest has published its SSH host keys and writes
// them where the guest cannot change them. Keys that are pinned already stay;
// where the guest publishes others, the error is ErrHostKeys.
func (c *Client) PinHostKeys(ctx context.Context, deployment, name string, bound time.Duration) error {
	var vm *VM
	err := poll(ctx, guestInterval, bound, func() (bool, string, error) {
		var err error
		if vm, err = c.Find(ctx, deployment, name); err != nil {
			return false, "", err
		}
		return len(vm.Published) > 0, "the guest to publish its SSH host keys as " + PublishedHostKeys +
			" (cloud-init must have run its final stage, and vmware-rpctool must be there; systemctl status ftpdeploy-hostkeys on its console)", nil
	})
	if err == nil {
		err = vm.CheckHostKeys()
	}
	if err != nil {
		return fmt.Errorf("pin the SSH host keys of VM %s: %w", name, err)
	}
	if len(vm.HostKeys) > 0 {
		return nil
	}
	for _, k := range vm.Published {
		if _, err := fingerprint(k); err != nil {
			return fmt.Errorf("pin the SSH host keys of VM %s: its guest publishes what is no public key: %w", name, err)
		}
	}
	started, err := object.NewVirtualMachine(c.vim, vm.reference).Reconfigure(ctx, types.VirtualMachineConfigSpec{
		ExtraConfig: []types.BaseOptionValue{&types.OptionValue{Key: pinnedKeys, Value: strings.Join(vm.Published, ";")}},
	})
	return c.task(ctx, "pin the SSH host keys of VM "+name, taskBound, started, err, nil)
}

// CheckHostKeys holds the keys that the guest publishes against those pinned:
// every pinned one must be among them. Nothing published, or nothing pinned, is
// no error.
func (vm *VM) CheckHostKeys() error {
	if len(vm.Published) == 0 {
		return nil
	}
	for _, k := range vm.HostKeys {
		if !slices.Contains(vm.Published, k) {
			return fmt.Errorf("%w: VM %s was pinned with %s, its guest publishes %s; if its keys were changed on purpose, remove %s from the VM's advanced configuration and apply again",
				ErrHostKeys, vm.Name, shown(k), shown(vm.Published...), pinnedKeys)
		}
	}
	return nil
}

// fingerprint is that of ssh-keygen -l for a public key line.
func fingerprint(line string) (string, error) {
	kind, text, _ := strings.Cut(line, " ")
	blob, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(blob) < 4+len(kind) || string(blob[4:4+len(kind)]) != kind {
		return "", fmt.Errorf("%.40q", line)
	}
	sum := sha256.Sum256(blob)
	return kind + " SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:]), nil
}

// shown lists keys by their fingerprints.
func shown(lines ...string) string {
	var all []string
	for _, l := range lines {
		text, err := fingerprint(l)
		if err != nil {
			text = "no public key " + err.Error()
		}
		all = append(all, text)
	}
	return strings.Join(all, ", ")
}
