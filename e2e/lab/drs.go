package lab

import (
	"maps"
	"slices"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// place is a small DRS: before a VM is powered on it moves it to the host that
// the cluster's VM-VM anti-affinity and VM-Host rules like best. Where rules
// that are mandatory leave no host, its fault refuses the power-on.
func (v *VCenter) place(ref types.ManagedObjectReference) types.BaseMethodFault {
	// One at a time, and a VM counts as running from here on: of two that are
	// powered on at once, the second must see the first.
	v.placing.Lock()
	defer v.placing.Unlock()

	registry := v.service.Context.Map
	vm, ok := registry.Get(ref).(*simulator.VirtualMachine)
	if !ok {
		return nil // the simulator refuses the call
	}
	var home types.ManagedObjectReference
	off := false
	registry.WithLock(v.simulatorContext(), vm, func() {
		home = *vm.Runtime.Host
		off = vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOff && !vm.Config.Template
	})
	cluster, ok := registry.Any("ClusterComputeResource").(*simulator.ClusterComputeResource)
	if !ok || !off {
		return nil // likewise
	}
	v.mu.Lock()
	running := maps.Clone(v.running)
	v.mu.Unlock()
	delete(running, ref)

	var hosts []types.ManagedObjectReference
	var against breaches
	registry.WithLock(v.simulatorContext(), cluster, func() {
		hosts = slices.Clone(cluster.Host)
		against = findBreaches(cluster.ConfigurationEx.(*types.ClusterConfigInfoEx), ref, hosts, running)
	})
	best, found := types.ManagedObjectReference{}, false
	for _, host := range hosts {
		if against.mandatory[host] > 0 || !v.usable(host) {
			continue
		}
		if !found || against.cost(host, home) < against.cost(best, home) {
			best, found = host, true
		}
	}
	if !found {
		return &types.InsufficientResourcesFault{}
	}
	v.mu.Lock()
	v.running[ref] = best
	v.mu.Unlock()
	if best != home {
		v.move(vm, home, best)
	}
	return nil
}

// breaches counts, for each host, the rules that a VM would break there.
type breaches struct {
	mandatory, wished map[types.ManagedObjectReference]int
}

// cost orders hosts: rules first, then staying at home.
func (b breaches) cost(host, home types.ManagedObjectReference) int {
	cost := 2 * b.wished[host]
	if host != home {
		cost++
	}
	return cost
}

func findBreaches(config *types.ClusterConfigInfoEx, vm types.ManagedObjectReference, hosts []types.ManagedObjectReference, running map[types.ManagedObjectReference]types.ManagedObjectReference) breaches {
	vmGroup, hostGroup := map[string][]types.ManagedObjectReference{}, map[string][]types.ManagedObjectReference{}
	for _, group := range config.Group {
		switch group := group.(type) {
		case *types.ClusterVmGroup:
			vmGroup[group.Name] = group.Vm
		case *types.ClusterHostGroup:
			hostGroup[group.Name] = group.Host
		}
	}
	found := breaches{map[types.ManagedObjectReference]int{}, map[types.ManagedObjectReference]int{}}
	for _, rule := range config.Rule {
		info := rule.GetClusterRuleInfo()
		if info.Enabled == nil || !*info.Enabled {
			continue
		}
		count := found.wished
		if info.Mandatory != nil && *info.Mandatory {
			count = found.mandatory
		}
		switch rule := rule.(type) {
		case *types.ClusterAntiAffinityRuleSpec:
			if !slices.Contains(rule.Vm, vm) {
				continue
			}
			for _, other := range rule.Vm {
				if host, ok := running[other]; ok {
					count[host]++
				}
			}
		case *types.ClusterVmHostRuleInfo:
			if !slices.Contains(vmGroup[rule.VmGroupName], vm) {
				continue
			}
			for _, host := range hosts {
				if rule.AffineHostGroupName != "" && !slices.Contains(hostGroup[rule.AffineHostGroupName], host) ||
					rule.AntiAffineHostGroupName != "" && slices.Contains(hostGroup[rule.AntiAffineHostGroupName], host) {
					count[host]++
				}
			}
		}
	}
	return found
}

// usable tells whether a host may run anything.
func (v *VCenter) usable(ref types.ManagedObjectReference) bool {
	registry := v.service.Context.Map
	host, ok := registry.Get(ref).(*simulator.HostSystem)
	usable := false
	if ok {
		registry.WithLock(v.simulatorContext(), host, func() {
			usable = !host.Runtime.InMaintenanceMode && host.Runtime.ConnectionState == types.HostSystemConnectionStateConnected
		})
	}
	return usable
}

// move makes to the host of vm.
func (v *VCenter) move(vm *simulator.VirtualMachine, from, to types.ManagedObjectReference) {
	registry := v.service.Context.Map
	if host, ok := registry.Get(from).(*simulator.HostSystem); ok {
		ctx := v.simulatorContext()
		registry.WithLock(ctx, host, func() { registry.RemoveReference(ctx, host, &host.Vm, vm.Self) })
	}
	if host, ok := registry.Get(to).(*simulator.HostSystem); ok {
		ctx := v.simulatorContext()
		registry.WithLock(ctx, host, func() { registry.AppendReference(ctx, host, &host.Vm, vm.Self) })
	}
	registry.AtomicUpdate(v.simulatorContext(), vm, []types.PropertyChange{
		{Name: "runtime.host", Val: &to},
		{Name: "summary.runtime.host", Val: &to},
	})
	v.config.Logf("vCenter: DRS places %s on %s", v.name(vm.Self), v.name(to))
}

// forget takes a VM that is no more out of the cluster's groups and rules, as
// vCenter does.
func (v *VCenter) forget(ref types.ManagedObjectReference) {
	registry := v.service.Context.Map
	cluster, ok := registry.Any("ClusterComputeResource").(*simulator.ClusterComputeResource)
	if !ok {
		return
	}
	gone := func(vm types.ManagedObjectReference) bool { return vm == ref }
	registry.WithLock(v.simulatorContext(), cluster, func() {
		config := cluster.ConfigurationEx.(*types.ClusterConfigInfoEx)
		for _, group := range config.Group {
			if group, ok := group.(*types.ClusterVmGroup); ok {
				group.Vm = slices.DeleteFunc(slices.Clone(group.Vm), gone)
			}
		}
		for _, rule := range config.Rule {
			switch rule := rule.(type) {
			case *types.ClusterAntiAffinityRuleSpec:
				rule.Vm = slices.DeleteFunc(slices.Clone(rule.Vm), gone)
			case *types.ClusterAffinityRuleSpec:
				rule.Vm = slices.DeleteFunc(slices.Clone(rule.Vm), gone)
			}
		}
	})
}
