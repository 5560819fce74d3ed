package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// machine is a running VM: a systemd-nspawn container in a network namespace of
// its own, on an overlay of the template.
type machine struct {
	id        string // also of its network namespace
	root      string
	guestinfo string // directory that the guest sees as /run/guestinfo
	nics      []virtualNIC
	names     map[string]string // what the guest called its NICs last, by MAC address
	bridges   map[string]string
	group     cgroup
	cmd       *exec.Cmd
	ended     chan struct{} // closed when cmd has ended
}

// rebootStatus is systemd-nspawn's exit status when its guest has asked for a
// reboot and --keep-unit leaves it to the caller.
const rebootStatus = 133

// interfaceName is what a booting guest calls NIC i. The first time these are
// the names of the PCI slots that vSphere uses. A name that cloud-init has given
// stays: on a machine with udev that is the work of the .link files that come
// with it, and not of cloud-init once more.
func (m *machine) interfaceName(i int) string {
	if name, ok := m.names[m.nics[i].mac]; ok {
		return name
	}
	return fmt.Sprintf("ens%d", 192+32*i)
}

// link is the lab's end of NIC i.
func (m *machine) link(i int) string { return fmt.Sprintf("%s-%d", m.id, i) }

// links gives the lab's end of each NIC by its port group.
func (m *machine) links() map[string]string {
	links := map[string]string{}
	for i, nic := range m.nics {
		links[nic.portGroup] = m.link(i)
	}
	return links
}

// startMachine boots a machine whose disk is in dir; it makes the disk where
// there is none. It returns when the machine has begun to boot.
func startMachine(ctx context.Context, dir, id string, h hardware, names map[string]string, config VCenterConfig) (*machine, error) {
	m := &machine{
		id:        id,
		root:      filepath.Join(dir, "root"),
		guestinfo: filepath.Join(dir, "guestinfo"),
		nics:      h.nics,
		names:     names,
		bridges:   config.Bridges,
		ended:     make(chan struct{}),
	}
	if err := m.boot(ctx, dir, h.guestinfo, config); err != nil {
		return nil, errors.Join(err, m.release(ctx))
	}
	return m, nil
}

func (m *machine) boot(ctx context.Context, dir string, guestinfo map[string]string, config VCenterConfig) error {
	_, err := os.Stat(dir)
	fresh := errors.Is(err, os.ErrNotExist)
	if err := m.mountDisk(dir, config.Template.Root); err != nil {
		return fmt.Errorf("mount its disk: %w", err)
	}
	if fresh {
		account := []byte("ansible:" + config.AccountPassword + "\n")
		if err := inRoot(ctx, m.root, account, "chpasswd"); err != nil {
			return fmt.Errorf("set the password of its account: %w", err)
		}
	}
	if err := m.connect(ctx); err != nil {
		return fmt.Errorf("connect its NICs: %w", err)
	}
	if err := writeGuestinfo(m.guestinfo, guestinfo); err != nil {
		return fmt.Errorf("hand it guestinfo: %w", err)
	}
	console, err := os.OpenFile(filepath.Join(dir, "console.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer console.Close()
	// Not ctx's: killing systemd-nspawn would leave the guest to itself.
	m.cmd = exec.CommandContext(context.WithoutCancel(ctx), "systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit",
		"--machine="+m.id, "--directory="+m.root, "--network-namespace-path=/run/netns/"+m.id,
		"--bind="+m.guestinfo+":/run/guestinfo",
		"--capability=CAP_NET_ADMIN", // keepalived moves addresses, sysctls of the network are set
		"--resolv-conf=off", "--timezone=off", "--link-journal=no")
	m.cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_NSPAWN_API_VFS_WRITABLE=network"}
	m.cmd.Stdout, m.cmd.Stderr = console, console
	// Else the services of all guests would meet in the same cgroups, and those
	// would be left when the lab ends.
	if m.group, err = newCgroup(m.id); err != nil {
		return err
	}
	if err := m.group.start(m.cmd); err != nil {
		return err
	}
	go func() {
		_ = m.cmd.Wait() // how it ended is in ProcessState
		close(m.ended)
	}()
	return nil
}

// mountDisk mounts the machine's file system: the template, with what the
// machine writes kept in dir.
func (m *machine) mountDisk(dir, template string) error {
	upper, work := filepath.Join(dir, "disk"), filepath.Join(dir, "work")
	for _, d := range []string{upper, work, m.root} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	return unix.Mount("overlay", m.root, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", template, upper, work))
}

// connect makes the network namespace and a cable to the bridge for each NIC.
func (m *machine) connect(ctx context.Context) error {
	if err := run(ctx, "ip", "netns", "add", m.id); err != nil {
		return err
	}
	if err := ip(ctx, m.id, "link set lo up\n"); err != nil {
		return err
	}
	var batch strings.Builder
	for i, nic := range m.nics {
		bridge, ok := m.bridges[nic.portGroup]
		if !ok {
			return fmt.Errorf("port group %q has no bridge", nic.portGroup)
		}
		fmt.Fprintf(&batch, "link add %s type veth peer name %s address %s netns %s\n", m.link(i), m.interfaceName(i), nic.mac, m.id)
		fmt.Fprintf(&batch, "link set %s master %s %s\n", m.link(i), bridge, upOrDown(nic.connected))
	}
	return ip(ctx, "", batch.String())
}

func upOrDown(up bool) string {
	if up {
		return "up"
	}
	return "down"
}

// rewire moves cables to where nics say; a NIC that is added or removed while
// the machine runs takes effect at its next boot.
func (m *machine) rewire(ctx context.Context, nics []virtualNIC) error {
	var batch strings.Builder
	for i, old := range m.nics {
		for _, now := range nics {
			if now.key != old.key || now == old {
				continue
			}
			bridge, ok := m.bridges[now.portGroup]
			if !ok {
				return fmt.Errorf("port group %q has no bridge", now.portGroup)
			}
			fmt.Fprintf(&batch, "link set %s master %s %s\n", m.link(i), bridge, upOrDown(now.connected))
			m.nics[i] = now
		}
	}
	return ip(ctx, "", batch.String())
}

// shutdown asks the guest's systemd for a target: it halts or reboots by itself.
func (m *machine) shutdown(signal syscall.Signal) error {
	pid := guestInit(m.cmd.Process.Pid)
	if pid == 0 {
		return errors.New("it has not begun to boot")
	}
	return syscall.Kill(pid, signal)
}

// What systemd(1) makes of real-time signals.
const (
	signalPowerOff = syscall.Signal(34 + 4) // SIGRTMIN+4
	signalReboot   = syscall.Signal(34 + 5)
)

// rebooted tells, after the end, whether the guest wanted to boot again.
func (m *machine) rebooted() bool { return m.cmd.ProcessState.ExitCode() == rebootStatus }

// stop cuts the power and returns when nothing but the disk is left.
func (m *machine) stop(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	err := wait(ctx, "the machine's processes to end", 20*time.Second, 10*time.Millisecond, func(context.Context) error {
		select {
		case <-m.ended:
			return nil
		default:
		}
		// With the guest's PID 1 the kernel ends all of the guest. Killing
		// systemd-nspawn would leave the guest to itself.
		if pid := guestInit(m.cmd.Process.Pid); pid != 0 {
			return errors.Join(errors.New("its PID 1 runs"), syscall.Kill(pid, syscall.SIGKILL))
		}
		return errors.New("systemd-nspawn runs")
	})
	return errors.Join(err, m.release(ctx))
}

// release gives back what a machine that does not run has taken, but for its disk.
func (m *machine) release(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	// By name and first: a namespace ends some time after its last process, and
	// until then its cables would be in the way of the next boot.
	for i := range m.nics {
		if _, err := net.InterfaceByName(m.link(i)); err == nil {
			errs = append(errs, ip(ctx, "", "link del "+m.link(i)+"\n"))
		}
	}
	if _, err := os.Stat("/run/netns/" + m.id); err == nil {
		errs = append(errs, run(ctx, "ip", "netns", "del", m.id))
	}
	errs = append(errs, m.group.remove(ctx))
	if err := unix.Unmount(m.root, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		errs = append(errs, fmt.Errorf("unmount %s: %w", m.root, err))
	}
	return errors.Join(errs...)
}

// guestInit finds the PID 1 of the guest of systemd-nspawn process nspawn, 0
// being none. It is looked for each time, as nspawn's first child only
// prepares the guest and ends.
func guestInit(nspawn int) int {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", nspawn))
	if err != nil {
		return 0
	}
	for _, task := range tasks {
		children, err := os.ReadFile(task)
		if err != nil {
			continue // it has ended
		}
		for child := range strings.FieldsSeq(string(children)) {
			status, err := os.ReadFile("/proc/" + child + "/status")
			if err != nil {
				continue
			}
			for line := range strings.Lines(string(status)) {
				ids := strings.Fields(line)
				if len(ids) < 3 || ids[0] != "NSpid:" || ids[len(ids)-1] != "1" {
					continue
				}
				if pid, err := strconv.Atoi(child); err == nil {
					return pid
				}
			}
		}
	}
	return 0
}
