package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// faults are what can be done to a lab, each with its opposite beside it. HOST
// is a host or a VM, NIC the name of its network: management, workload, frontend.
var faults = []struct {
	name, args string
	about      string
	do         func(l *Lab, ctx context.Context, args []string) error
}{
	{"link-down", "HOST NIC", "pull the cable: the host sees no carrier", func(l *Lab, ctx context.Context, a []string) error { return l.setLink(ctx, a[0], a[1], "down") }},
	{"link-up", "HOST NIC", "", func(l *Lab, ctx context.Context, a []string) error { return l.setLink(ctx, a[0], a[1], "up") }},
	{"link-cut", "HOST NIC", "unplug the switch upstream: nothing passes, the carrier stays", func(l *Lab, ctx context.Context, a []string) error { return l.setLink(ctx, a[0], a[1], "nomaster") }},
	{"link-join", "HOST NIC", "", func(l *Lab, ctx context.Context, a []string) error { return l.setLink(ctx, a[0], a[1], "master") }},
	{"link-delay", "HOST NIC TIME", "delay every frame in both directions, by 100ms; 0s ends it", func(l *Lab, ctx context.Context, a []string) error { return l.delay(ctx, a[0], a[1], a[2]) }},
	{"drop-port", "HOST PORT", "drop what is sent to one TCP port of the host", func(l *Lab, ctx context.Context, a []string) error { return l.dropPort(ctx, a[0], a[1], "-I") }},
	{"undrop-port", "HOST PORT", "", func(l *Lab, ctx context.Context, a []string) error { return l.dropPort(ctx, a[0], a[1], "-D") }},
	{"drop-vrrp", "HOST", "drop the adverts that other hosts send to the host", func(l *Lab, ctx context.Context, a []string) error { return l.drop(ctx, a[0], "-I", "112") }},
	{"undrop-vrrp", "HOST", "", func(l *Lab, ctx context.Context, a []string) error { return l.drop(ctx, a[0], "-D", "112") }},
	{"cut-vrrp", "HOST", "drop the adverts between the host and others, both ways at once", func(l *Lab, ctx context.Context, a []string) error { return l.cutVRRP(ctx, a[0], "-I") }},
	{"join-vrrp", "HOST", "", func(l *Lab, ctx context.Context, a []string) error { return l.cutVRRP(ctx, a[0], "-D") }},
	{"stop", "SERVICE HOST", "stop a service in order; it stays stopped", func(l *Lab, ctx context.Context, a []string) error { return l.service(ctx, "stop", a[0], a[1]) }},
	{"start", "SERVICE HOST", "", func(l *Lab, ctx context.Context, a []string) error { return l.service(ctx, "start", a[0], a[1]) }},
	{"kill", "SERVICE HOST", "end a service with SIGKILL; what restarts it restarts it", func(l *Lab, ctx context.Context, a []string) error { return l.service(ctx, "kill", a[0], a[1]) }},
	{"node-kill", "NODE", "cut the power of a Kubernetes node", func(l *Lab, ctx context.Context, a []string) error { return l.node(ctx, a[0], false) }},
	{"node-start", "NODE", "", func(l *Lab, ctx context.Context, a []string) error { return l.node(ctx, a[0], true) }},
	{"vm-off", "VM", "cut the power of a VM", func(l *Lab, ctx context.Context, a []string) error { return l.vcenter.PowerOff(ctx, a[0]) }},
	{"vm-on", "VM", "", func(l *Lab, ctx context.Context, a []string) error { return l.vcenter.PowerOn(ctx, a[0]) }},
	{"freeze", "HOST", "stop every process of the host with SIGSTOP", func(l *Lab, _ context.Context, a []string) error { return l.signal(a[0], unix.SIGSTOP) }},
	{"thaw", "HOST", "", func(l *Lab, _ context.Context, a []string) error { return l.signal(a[0], unix.SIGCONT) }},
}

// FaultUsage lists the faults, one a line.
func FaultUsage() string {
	var usage strings.Builder
	for _, f := range faults {
		fmt.Fprintln(&usage, strings.TrimRight(fmt.Sprintf("  %-28s%s", f.name+" "+f.args, f.about), " "))
	}
	return usage.String()
}

// fault makes or mends one fault. It returns when the fault is real.
func (l *Lab) fault(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("say which fault:\n" + FaultUsage())
	}
	for _, f := range faults {
		if f.name != args[0] {
			continue
		}
		if len(args)-1 != len(strings.Fields(f.args)) {
			return fmt.Errorf("usage: ftplab fault %s %s", f.name, f.args)
		}
		return f.do(l, ctx, args[1:])
	}
	return fmt.Errorf("no fault %q; there are:\n%s", args[0], FaultUsage())
}

// link finds the switch's end of a NIC.
func (l *Lab) link(host, nic string) (peer, bridge string, err error) {
	i := slices.IndexFunc(networks, func(n Network) bool { return n.Name == nic })
	if i < 0 {
		return "", "", fmt.Errorf("no network %q: management, workload or frontend", nic)
	}
	bridge = networks[i].Bridge
	if h := l.host(host); h != nil {
		if pid, _ := h.pid(); pid == 0 {
			return "", "", fmt.Errorf("%s is off", host)
		}
		for _, c := range h.nics {
			if c.Name == nic {
				return c.Peer, bridge, nil
			}
		}
	} else if m, on := l.vcenter.Machine(host); on {
		for group, b := range portGroups {
			if b == bridge && m.Links[group] != "" {
				return m.Links[group], bridge, nil
			}
		}
	} else {
		return "", "", fmt.Errorf("no host %q is on", host)
	}
	return "", "", fmt.Errorf("%s has no NIC in %s", host, nic)
}

// setLink changes the switch's end of a NIC.
func (l *Lab) setLink(ctx context.Context, host, nic, state string) error {
	peer, bridge, err := l.link(host, nic)
	if err != nil {
		return err
	}
	if state == "master" {
		state += " " + bridge
	}
	return ip(ctx, "", "link set "+peer+" "+state+"\n")
}

// delay delays a NIC's frames, instead of any delay that it has.
func (l *Lab) delay(ctx context.Context, host, nic, text string) error {
	delay, err := time.ParseDuration(text)
	if err != nil || delay < 0 {
		return fmt.Errorf("%q is no time: write 100ms, or 0s to end the delay", text)
	}
	peer, bridge, err := l.link(host, nic)
	if err != nil {
		return err
	}
	if d, ok := l.delayed[peer]; ok {
		delete(l.delayed, peer)
		if err := d.end(ctx); err != nil {
			return err
		}
	}
	if delay == 0 {
		return nil
	}
	d, err := delayLink(ctx, peer, bridge, delay)
	if err == nil {
		l.delayed[peer] = d
	}
	return err
}

// dropPort inserts (-I) or deletes (-D) a rule that drops packets to a TCP port
// before any address translation, so that a NodePort is meant by its number.
func (l *Lab) dropPort(ctx context.Context, host, port, command string) error {
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q is no port", port)
	}
	return l.drop(ctx, host, command, "tcp", "--dport", port)
}

// drop inserts (-I) or deletes (-D) a rule that drops what is sent to a host by a protocol.
func (l *Lab) drop(ctx context.Context, host, command string, protocol ...string) error {
	netns, err := l.netNSOf(host)
	if err != nil {
		return err
	}
	argv := append([]string{"ip", "netns", "exec", netns, "iptables", "-w", "-t", "raw", command, "PREROUTING", "-p"}, protocol...)
	return run(ctx, append(argv, "-j", "DROP")...)
}

// cutVRRP inserts (-I) or deletes (-D) rules that drop the adverts that a host sends and
// gets, in one step.
func (l *Lab) cutVRRP(ctx context.Context, host, command string) error {
	netns, err := l.netNSOf(host)
	if err != nil {
		return err
	}
	rules := fmt.Sprintf("*raw\n%[1]s PREROUTING -p 112 -j DROP\n%[1]s OUTPUT -p 112 -j DROP\nCOMMIT\n", command)
	return run(ctx, "ip", "netns", "exec", netns, "sh", "-c", `printf %s "$1" | iptables-restore -w --noflush`, "sh", rules)
}

// netNSOf is the network namespace of a host or a VM that is on.
func (l *Lab) netNSOf(host string) (string, error) {
	if l.host(host) != nil {
		return host, nil
	}
	m, on := l.vcenter.Machine(host)
	if !on {
		return "", fmt.Errorf("no host %q is on", host)
	}
	return m.NetNS, nil
}

// service stops, starts or kills a service of a host, or a systemd unit of a VM.
func (l *Lab) service(ctx context.Context, verb, name, host string) error {
	h := l.host(host)
	if h == nil {
		unit := []string{"systemctl", verb, name}
		if verb == "kill" {
			unit = []string{"systemctl", "kill", "--signal=KILL", name}
		}
		return l.runOnVM(ctx, host, unit...)
	}
	s, err := h.service(name)
	if err != nil {
		return err
	}
	switch verb {
	case "stop":
		return s.stop(ctx)
	case "start":
		return s.start()
	default:
		return s.kill()
	}
}

// runOnVM runs a command on a VM to its end.
func (l *Lab) runOnVM(ctx context.Context, name string, argv ...string) error {
	m, on := l.vcenter.Machine(name)
	if !on || m.Init == 0 {
		return fmt.Errorf("no host %q is on", name)
	}
	return runIn(ctx, fmt.Sprintf("/proc/%d", m.Init), cgroup{}, name, argv...)
}

// node cuts a node's power, or gives it back and waits until it is ready.
func (l *Lab) node(ctx context.Context, name string, on bool) error {
	i := slices.IndexFunc(l.kube.nodes, func(h *Host) bool { return h.Name == name })
	if i < 0 {
		return fmt.Errorf("no node %q", name)
	}
	n := l.kube.nodes[i]
	if !on {
		return n.cut(ctx)
	}
	if pid, _ := n.pid(); pid != 0 {
		return nil
	}
	if err := l.kube.bootNode(ctx, i, n); err != nil {
		return err
	}
	since := time.Now()
	if err := l.kube.startKubelet(n); err != nil {
		return err
	}
	return l.kube.waitNode(ctx, n, since)
}

// signal sends s to every process of a host or VM, those of its containers too.
func (l *Lab) signal(host string, s syscall.Signal) error {
	at, err := l.find(host)
	if err != nil {
		return err
	}
	top, err := os.Stat(fmt.Sprintf("/proc/%d/ns/pid", at.PID))
	if err != nil {
		return fmt.Errorf("find the processes of %s: %w", host, err)
	}
	signalled := map[int]bool{}
	for { // until no process is new: one may fork before it is stopped
		before := len(signalled)
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return fmt.Errorf("find the processes of %s: %w", host, err)
		}
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil || signalled[pid] || !below(pid, top) {
				continue
			}
			if err := syscall.Kill(pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("signal process %d of %s: %w", pid, host, err)
			}
			signalled[pid] = true
		}
		if len(signalled) == before {
			return nil
		}
	}
}

// below tells whether a process is in the pid namespace top or in one that was
// made in it. A process that has ended is nowhere.
func below(pid int, top os.FileInfo) bool {
	ns, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "ns/pid"))
	for err == nil {
		info, failed := ns.Stat()
		if failed == nil && os.SameFile(info, top) {
			ns.Close()
			return true
		}
		var parent int
		parent, err = unix.IoctlRetInt(int(ns.Fd()), unix.NS_GET_PARENT) // refused above the sandbox's own
		ns.Close()
		if err == nil {
			ns = os.NewFile(uintptr(parent), "parent")
		}
	}
	return false
}
