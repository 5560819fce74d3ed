package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
	"golang.org/x/sys/unix"
)

// The lab plays VMware Tools for its machines: what vCenter says of a guest is
// what the guest has.

// runTools tells vCenter what has changed in the guest.
func (g *guest) runTools() {
	if err := g.takeGuestinfo(); err != nil {
		g.v.config.Logf("vCenter: guestinfo of %s: %v", g.hardware.name, err)
	}
	addresses, names, err := addressesIn(g.machine.id)
	if err != nil {
		return // it is booting or going down
	}
	if len(addresses) > 0 { // it has been set up
		g.names = names
	}
	report := fmt.Sprint(g.hardware.nics, addresses)
	if report == g.reported {
		return
	}
	g.reported = report
	hostname, err := os.ReadFile(filepath.Join(g.machine.root, "etc/hostname"))
	if err != nil {
		g.v.config.Logf("vCenter: host name of %s: %v", g.hardware.name, err)
	}
	g.update(func(vm *mo.VirtualMachine) []types.PropertyChange {
		if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn {
			return nil
		}
		return guestIsUp(g.hardware.nics, addresses, strings.TrimSpace(string(hostname)))
	})
}

// addressesIn lists the interfaces in network namespace netns by MAC address:
// their addresses in the kernel's order, without link-local ones, and their names.
func addressesIn(netns string) (addresses map[string][]netip.Prefix, names map[string]string, err error) {
	addresses, names = map[string][]netip.Prefix{}, map[string]string{}
	err = inNetns(netns, func() error {
		interfaces, err := net.Interfaces()
		if err != nil {
			return err
		}
		for _, i := range interfaces {
			mac := i.HardwareAddr.String()
			if mac == "" {
				continue // the loopback
			}
			names[mac] = i.Name
			all, err := i.Addrs()
			if err != nil {
				return err
			}
			for _, a := range all {
				prefix, err := netip.ParsePrefix(a.String())
				if err != nil {
					return err
				}
				if prefix.Addr().IsGlobalUnicast() {
					addresses[mac] = append(addresses[mac], prefix)
				}
			}
		}
		return nil
	})
	return addresses, names, err
}

// inNetns calls do on a thread that is in network namespace netns. What do
// opens stays there; what it starts with go does not.
func inNetns(netns string, do func() error) error {
	done := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine and is not used again.
		runtime.LockOSThread()
		done <- func() error {
			ns, err := os.Open("/run/netns/" + netns)
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter network namespace %s: %w", netns, err)
			}
			return do()
		}()
	}()
	return <-done
}

// guestIsUp is what VMware Tools report of a running guest. They are taken to
// run as soon as the guest has an address.
func guestIsUp(nics []virtualNIC, addresses map[string][]netip.Prefix, hostname string) []types.PropertyChange {
	var reported []types.GuestNicInfo
	primary := ""
	for _, nic := range nics {
		info := types.GuestNicInfo{
			Network:        nic.portGroup,
			MacAddress:     nic.mac,
			DeviceConfigId: nic.key,
			Connected:      nic.connected,
			IpConfig:       &types.NetIpConfigInfo{},
		}
		for _, prefix := range addresses[nic.mac] {
			address := prefix.Addr().String()
			if primary == "" {
				primary = address
			}
			info.IpAddress = append(info.IpAddress, address)
			info.IpConfig.IpAddress = append(info.IpConfig.IpAddress, types.NetIpConfigInfoIpAddress{
				IpAddress:    address,
				PrefixLength: int32(prefix.Bits()), //nolint:gosec // 128 at most
				State:        string(types.NetIpConfigInfoIpAddressStatusPreferred),
			})
		}
		reported = append(reported, info)
	}
	running, status, state := types.VirtualMachineToolsRunningStatusGuestToolsRunning, types.VirtualMachineToolsStatusToolsOk, types.VirtualMachineGuestStateRunning
	if primary == "" {
		running, status, state = types.VirtualMachineToolsRunningStatusGuestToolsNotRunning, types.VirtualMachineToolsStatusToolsNotRunning, types.VirtualMachineGuestStateNotRunning
	}
	return []types.PropertyChange{
		{Name: "guest.net", Val: reported},
		{Name: "guest.hostName", Val: hostname},
		{Name: "summary.guest.hostName", Val: hostname},
		{Name: "guest.ipAddress", Val: primary},
		{Name: "summary.guest.ipAddress", Val: primary},
		{Name: "guest.toolsRunningStatus", Val: string(running)},
		{Name: "guest.toolsStatus", Val: status},
		{Name: "guest.guestState", Val: string(state)},
	}
}

// guestIsDown is what vCenter shows of a guest that is off: no address is left
// over for the next who waits for one, and what the guest had published is
// gone, as it lived in the memory of the VM's process.
func guestIsDown(vm *mo.VirtualMachine, published map[string]bool) []types.PropertyChange {
	changes := guestIsUp(nil, nil, "")
	nics := slices.Clone(vm.Guest.Net)
	for i := range nics {
		nics[i].IpAddress, nics[i].IpConfig, nics[i].Connected = nil, nil, false
	}
	changes[0].Val = nics
	if len(published) == 0 {
		return changes
	}
	kept := slices.DeleteFunc(slices.Clone(vm.Config.ExtraConfig), func(o types.BaseOptionValue) bool {
		return published[o.GetOptionValue().Key]
	})
	return append(changes, types.PropertyChange{Name: "config.extraConfig", Val: kept})
}

// takeGuestinfo puts into the VM's extraConfig what the guest has set with vmware-rpctool.
func (g *guest) takeGuestinfo() error {
	dir := filepath.Join(g.machine.guestinfo, "set")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, entry := range entries {
		key, path := entry.Name(), filepath.Join(dir, entry.Name())
		value, err := os.ReadFile(path)
		if err == nil && !validGuestinfoKey(key) {
			err = fmt.Errorf("the guest sets %q, which is no guestinfo key", key)
		}
		if err == nil {
			g.publish(key, string(value))
			// Before the guest is told that it is set.
			err = replaceFile(g.machine.guestinfo, "values/"+key, string(value))
		}
		errs = append(errs, err, os.RemoveAll(path))
	}
	return errors.Join(errs...)
}

// publish sets one key of extraConfig for the guest.
func (g *guest) publish(key, value string) {
	g.update(func(vm *mo.VirtualMachine) []types.PropertyChange {
		if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn {
			return nil
		}
		g.v.mu.Lock()
		if g.published == nil {
			g.published = map[string]bool{}
		}
		g.published[key] = true
		g.v.mu.Unlock()
		options := slices.DeleteFunc(slices.Clone(vm.Config.ExtraConfig), func(o types.BaseOptionValue) bool {
			return o.GetOptionValue().Key == key
		})
		options = append(options, &types.OptionValue{Key: key, Value: value})
		return []types.PropertyChange{{Name: "config.extraConfig", Val: options}}
	})
}

// setGuestinfo lets a running guest read what vCenter has changed.
func (g *guest) setGuestinfo(h hardware) {
	g.hardware.guestinfo = h.guestinfo
	if g.machine == nil {
		return
	}
	if err := writeGuestinfo(g.machine.guestinfo, h.guestinfo); err != nil && !errors.Is(err, fs.ErrNotExist) {
		g.v.config.Logf("vCenter: guestinfo of %s: %v", h.name, err)
	}
}
