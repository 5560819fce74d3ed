package lab

import (
	"syscall"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// operations answers the calls on a VM to which the simulator's answer would
// lead a deployment astray.
//
// The simulator's own searches look at everything that is registered and end in
// a panic at what is no managed object, so this is one.
type operations struct {
	mo.GuestOperationsManager
	v *VCenter
}

var operationsReference = types.ManagedObjectReference{Type: "LabOperations", Value: "lab-operations"}

// Reference implements mo.Reference.
func (o *operations) Reference() types.ManagedObjectReference { return operationsReference }

// ShutdownGuest is the API's method. The guest gets the request, and the power
// state follows when it has halted, or never; the simulator's VM is off at once.
func (o *operations) ShutdownGuest(_ *simulator.Context, request *types.ShutdownGuest) soap.HasFault {
	body := &methods.ShutdownGuestBody{}
	if fault := o.ask(request.This, signalPowerOff); fault != nil {
		body.Fault_ = simulator.Fault("", fault)
		return body
	}
	body.Res = &types.ShutdownGuestResponse{}
	return body
}

// RebootGuest is the API's method, likewise.
func (o *operations) RebootGuest(_ *simulator.Context, request *types.RebootGuest) soap.HasFault {
	body := &methods.RebootGuestBody{}
	if fault := o.ask(request.This, signalReboot); fault != nil {
		body.Fault_ = simulator.Fault("", fault)
		return body
	}
	body.Res = &types.RebootGuestResponse{}
	return body
}

// ask sends a signal to the guest's systemd where its Tools run.
func (o *operations) ask(ref types.ManagedObjectReference, signal syscall.Signal) types.BaseMethodFault {
	registry := o.v.service.Context.Map
	vm, ok := registry.Get(ref).(*simulator.VirtualMachine)
	if !ok {
		return &types.ManagedObjectNotFound{Obj: ref}
	}
	var power types.VirtualMachinePowerState
	var tools string
	registry.WithLock(o.v.simulatorContext(), vm, func() {
		power, tools = vm.Runtime.PowerState, vm.Guest.ToolsRunningStatus
	})
	if power != types.VirtualMachinePowerStatePoweredOn {
		return &types.InvalidPowerState{RequestedState: types.VirtualMachinePowerStatePoweredOn, ExistingState: power}
	}
	if tools != string(types.VirtualMachineToolsRunningStatusGuestToolsRunning) {
		return &types.ToolsUnavailable{}
	}
	g := o.v.guestOf(ref)
	g.post(func() {
		if g.machine == nil {
			return
		}
		if err := g.machine.shutdown(signal); err != nil {
			o.v.config.Logf("vCenter: ask %s to go down: %v", g.hardware.name, err)
		}
	})
	return nil
}

// ReconfigVMTask is the API's method. As with a real vCenter the task fails where
// the configuration has changed since the caller read it, and where a running
// VM would need CPUs or memory that it cannot take before it is off.
func (o *operations) ReconfigVMTask(ctx *simulator.Context, request *types.ReconfigVM_Task) soap.HasFault {
	body := &methods.ReconfigVM_TaskBody{}
	vm, ok := ctx.Map.Get(request.This).(*simulator.VirtualMachine)
	if !ok {
		body.Fault_ = simulator.Fault("", &types.ManagedObjectNotFound{Obj: request.This})
		return body
	}
	var answer soap.HasFault
	ctx.Map.WithLock(ctx, vm, func() {
		fault := refusal(vm, &request.Spec)
		if fault == nil {
			answer = vm.ReconfigVMTask(ctx, request)
			return
		}
		task := simulator.CreateTask(vm, "reconfigVm", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) { return nil, fault })
		body.Res = &types.ReconfigVM_TaskResponse{Returnval: task.Run(ctx)}
		answer = body
	})
	return answer
}

// refusal is why a real vCenter would not reconfigure vm, nil being that it would.
func refusal(vm *simulator.VirtualMachine, spec *types.VirtualMachineConfigSpec) types.BaseMethodFault {
	if spec.ChangeVersion != "" && spec.ChangeVersion != vm.Config.ChangeVersion {
		return &types.ConcurrentAccess{}
	}
	if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn {
		return nil
	}
	hot := func(enabled *bool, grows bool) bool { return enabled != nil && *enabled && grows }
	if n := spec.NumCPUs; n != 0 && n != vm.Config.Hardware.NumCPU && !hot(vm.Config.CpuHotAddEnabled, n > vm.Config.Hardware.NumCPU) {
		return &types.CpuHotPlugNotSupported{}
	}
	if n := spec.MemoryMB; n != 0 && n != int64(vm.Config.Hardware.MemoryMB) && !hot(vm.Config.MemoryHotAddEnabled, n > int64(vm.Config.Hardware.MemoryMB)) {
		return &types.MemoryHotPlugNotSupported{}
	}
	return nil
}
