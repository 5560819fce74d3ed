package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
)

// Network is one layer 2 segment of the lab: a bridge in the network namespace
// of the lab process. All of them are documentation ranges (RFC 5737).
type Network struct {
	Name   string // as NICs on it are named inside a host
	Bridge string
	Prefix netip.Prefix
}

// The lab's networks. The pods' and services' ranges (RFC 2544) are routed by the nodes.
var (
	Management = Network{"management", "mgmt", netip.MustParsePrefix("192.0.2.0/24")}
	Workload   = Network{"workload", "workload", netip.MustParsePrefix("198.51.100.0/24")}
	Frontend   = Network{"frontend", "frontend", netip.MustParsePrefix("203.0.113.0/24")}

	networks = []Network{Management, Workload, Frontend}
)

// LabAddress is the lab process itself, on Management: vCenter and the package mirror.
var LabAddress = netip.MustParseAddr("192.0.2.2")

// startNetworks makes the bridges and joins the lab process to Management.
func startNetworks(ctx context.Context) error {
	var batch strings.Builder
	for i, n := range networks {
		// With an address of its own: else a bridge takes the lowest of its
		// ports, and whoever knew the lab process by another loses it for half a
		// minute when a VM is plugged in.
		fmt.Fprintf(&batch, "link add %s address 02:00:5e:00:53:%02x type bridge forward_delay 0\nlink set %s up\n", n.Bridge, i+1, n.Bridge)
	}
	fmt.Fprintf(&batch, "addr add %s/%d dev %s\n", LabAddress, Management.Prefix.Bits(), Management.Bridge)
	if err := ip(ctx, "", batch.String()); err != nil {
		return fmt.Errorf("make the lab's networks: %w", err)
	}
	return nil
}

// NIC is one interface of a host.
type NIC struct {
	Name    string // inside the host
	Peer    string // the other end, in the lab's namespace, on the bridge
	Network Network
}

// addNetns makes network namespace name with one NIC a network; addresses of
// the same network share a NIC.
func addNetns(ctx context.Context, name string, addresses []netip.Addr) ([]NIC, error) {
	if err := run(ctx, "ip", "netns", "add", name); err != nil {
		return nil, err
	}
	var nics []NIC
	outer, inner := new(strings.Builder), new(strings.Builder)
	fmt.Fprintln(inner, "link set lo up")
	for _, n := range networks {
		made := false
		for _, a := range addresses {
			if !n.Prefix.Contains(a) {
				continue
			}
			if !made {
				// 15 characters is the kernel's limit for a name.
				nic := NIC{Name: n.Name, Peer: fmt.Sprintf("%.10s-%.4s", name, n.Name), Network: n}
				fmt.Fprintf(outer, "link add %s type veth peer name %s netns %s\nlink set %s master %s up\n", nic.Peer, nic.Name, name, nic.Peer, n.Bridge)
				fmt.Fprintf(inner, "link set %s up\n", nic.Name)
				nics = append(nics, nic)
				made = true
			}
			fmt.Fprintf(inner, "addr add %s/%d dev %s\n", a, n.Prefix.Bits(), n.Name)
		}
	}
	if err := ip(ctx, "", outer.String()); err != nil {
		return nil, fmt.Errorf("connect %s: %w", name, err)
	}
	if err := ip(ctx, name, inner.String()); err != nil {
		return nil, fmt.Errorf("connect %s: %w", name, err)
	}
	return nics, nil
}

// removeNetns removes a network namespace and its NICs. These go first and by
// name: a namespace lives on for a moment after it is removed.
func removeNetns(ctx context.Context, name string, nics []NIC) error {
	var batch strings.Builder
	for _, nic := range nics {
		fmt.Fprintf(&batch, "link del %s\n", nic.Peer)
	}
	if err := ip(ctx, "", batch.String()); err != nil {
		return fmt.Errorf("disconnect %s: %w", name, err)
	}
	return run(ctx, "ip", "netns", "del", name)
}

// ip runs lines of ip(8) commands in network namespace netns, "" being the
// lab's own, and stops at the first that is refused.
func ip(ctx context.Context, netns, batch string) error {
	argv := []string{"-batch", "-"}
	if netns != "" {
		argv = append([]string{"-n", netns}, argv...)
	}
	cmd := exec.CommandContext(ctx, "ip", argv...)
	cmd.Stdin = strings.NewReader(batch)
	return runCmd(cmd)
}
