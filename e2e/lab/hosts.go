package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Host is a machine of the lab that is no VM: a process that is PID 1 of its
// own pid, mount, network, uts, ipc and cgroup namespaces, and what runs in
// them. Its end is a power cut; its directory is its disk.
type Host struct {
	Name      string
	Addresses []netip.Addr

	dir   string // hosts/NAME of the lab's directory
	spec  hostSpec
	group cgroup

	mu       sync.Mutex
	init     *exec.Cmd     // nil: the power is off
	off      chan struct{} // closed when init has ended
	nics     []NIC         // as of the last boot
	services []*service
}

// hostNames is what every host's /etc/hosts says: name -> address.
type hostNames map[string]string

// hostSpec is what a host's PID 1 does before it only reaps.
type hostSpec struct {
	Name    string
	Mounts  []mount           // in this order
	Links   map[string]string // symbolic links: name -> what it points to
	Root    string            // becomes "/" after all mounts; "" = the lab's root stays
	Sysctls map[string]string // below /proc/sys, of the host's own network namespace
}

// newHost makes a host's directory; it is off.
func newHost(labDir, name string, names hostNames, addresses ...string) (*Host, error) {
	h := &Host{Name: name, dir: filepath.Join(labDir, "hosts", name)}
	for _, a := range addresses {
		h.Addresses = append(h.Addresses, netip.MustParseAddr(a))
	}
	if err := os.MkdirAll(h.Home(), 0o700); err != nil {
		return nil, fmt.Errorf("make host %s: %w", name, err)
	}
	var table strings.Builder
	fmt.Fprintln(&table, "127.0.0.1 localhost")
	for _, n := range slices.Sorted(maps.Keys(names)) {
		fmt.Fprintln(&table, names[n], n)
	}
	for file, text := range map[string]string{"hosts": table.String(), "resolv.conf": ""} {
		if err := os.WriteFile(filepath.Join(h.dir, file), []byte(text), 0o644); err != nil {
			return nil, fmt.Errorf("make host %s: %w", name, err)
		}
	}
	var err error
	if h.group, err = newCgroup(name); err != nil {
		return nil, fmt.Errorf("make host %s: %w", name, err)
	}
	h.spec = hostSpec{Name: name, Mounts: []mount{
		{Target: "/", Flags: unix.MS_REC | unix.MS_PRIVATE},
		{Source: "proc", Target: "/proc", Kind: "proc"},
		{Source: "sysfs", Target: "/sys", Kind: "sysfs"},
		{Source: filepath.Join(h.dir, "hosts"), Target: "/etc/hosts", Flags: unix.MS_BIND},
		{Source: filepath.Join(h.dir, "resolv.conf"), Target: "/etc/resolv.conf", Flags: unix.MS_BIND},
	}}
	return h, nil
}

// Home is the host's home directory.
func (h *Host) Home() string { return filepath.Join(h.dir, "home") }

// boot turns the power on and returns when PID 1 has made the host ready for
// processes. Its network is that of a machine that nothing has configured but
// its addresses.
func (h *Host) boot(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.init != nil {
		return nil
	}
	var err error
	if h.nics, err = addNetns(ctx, h.Name, h.Addresses); err != nil {
		return fmt.Errorf("boot %s: %w", h.Name, err)
	}
	spec, err := json.Marshal(h.spec)
	if err != nil {
		return fmt.Errorf("boot %s: %w", h.Name, err)
	}
	log, err := h.log("console")
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "/proc/self/exe", "host") // it outlives the caller
	cmd.Stdin = strings.NewReader(string(spec))
	cmd.Stderr = log
	said, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("boot %s: %w", h.Name, err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | unix.CLONE_NEWCGROUP,
		Setsid:     true,
	}
	err = onThread(func() error {
		if err := h.group.joinThread(); err != nil {
			return err
		}
		if err := setns("/run/netns/"+h.Name, unix.CLONE_NEWNET); err != nil {
			return err
		}
		return cmd.Start()
	})
	if err != nil {
		return fmt.Errorf("boot %s: %w", h.Name, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	trouble, err := io.ReadAll(said)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err == nil && len(trouble) > 0 {
		err = errors.New(string(trouble))
	}
	if err != nil {
		_, _ = cmd.Process.Kill(), cmd.Wait()
		return fmt.Errorf("boot %s: %w", h.Name, err)
	}
	off := make(chan struct{})
	h.init, h.off = cmd, off
	go func() {
		_ = cmd.Wait() // a host ends by being killed
		h.mu.Lock()
		h.init = nil
		h.mu.Unlock()
		close(off)
	}()
	return nil
}

// cut turns the power off: when it returns every process of the host is gone,
// and its addresses and all that its kernel would still forward are too.
func (h *Host) cut(ctx context.Context) error {
	h.mu.Lock()
	init, off, nics := h.init, h.off, h.nics
	h.services = nil
	h.mu.Unlock()
	if init == nil {
		return nil
	}
	if err := init.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("cut the power of %s: %w", h.Name, err)
	}
	err := wait(ctx, h.Name+" to be off", 10*time.Second, 10*time.Millisecond, func(context.Context) error {
		select {
		case <-off:
			return nil
		default:
			return errors.New("its processes are still ending")
		}
	})
	if err != nil {
		return err
	}
	return removeNetns(ctx, h.Name, nics)
}

// pid is that of the host's PID 1 as the lab process sees it, 0 where the power
// is off; off is closed when it goes off.
func (h *Host) pid() (pid int, off <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.init == nil {
		return 0, h.off
	}
	return h.init.Process.Pid, h.off
}

// start starts a command in the host. The caller waits for it.
func (h *Host) start(cmd *exec.Cmd) error {
	pid, _ := h.pid()
	if pid == 0 {
		return fmt.Errorf("start %s on %s: the host is off", cmd.Path, h.Name)
	}
	return startIn(fmt.Sprintf("/proc/%d", pid), h.group, cmd)
}

// run runs a command in the host to its end.
func (h *Host) run(ctx context.Context, argv ...string) error {
	pid, _ := h.pid()
	if pid == 0 {
		return fmt.Errorf("run %s on %s: the host is off", argv[0], h.Name)
	}
	return runIn(ctx, fmt.Sprintf("/proc/%d", pid), h.group, h.Name, argv...)
}

// log opens the log file of one of the host's services for appending.
func (h *Host) log(service string) (*os.File, error) {
	dir := filepath.Join(h.dir, "log")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("open the log of %s on %s: %w", service, h.Name, err)
	}
	f, err := os.OpenFile(filepath.Join(dir, service+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log of %s on %s: %w", service, h.Name, err)
	}
	return f, nil
}

// RunHost is the program of a host's PID 1: it reads its hostSpec from in, and
// writes what went wrong to out or closes it when the host is ready. It returns
// only with an error.
func RunHost(in io.Reader, out io.WriteCloser) error {
	err := enterHost(in)
	if err != nil {
		fmt.Fprint(out, err)
		return err
	}
	out.Close()
	_, err = reap(0)
	return err
}

func enterHost(in io.Reader) error {
	var spec hostSpec
	if err := json.NewDecoder(in).Decode(&spec); err != nil {
		return fmt.Errorf("read what the host should be: %w", err)
	}
	if err := mountAll(spec.Mounts); err != nil {
		return err
	}
	for name, to := range spec.Links {
		if err := os.Symlink(to, name); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	if spec.Root != "" {
		if err := os.Chdir(spec.Root); err != nil {
			return err
		}
		// The old root is put on top of the new one, and then taken away.
		if err := unix.PivotRoot(".", "."); err != nil {
			return fmt.Errorf("make %s the root: %w", spec.Root, err)
		}
		if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
			return fmt.Errorf("leave the old root: %w", err)
		}
		if err := os.Chdir("/"); err != nil {
			return err
		}
		// The kubelet and the container runtime pass mounts on to each other.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
			return fmt.Errorf("share mounts: %w", err)
		}
	}
	for name, value := range spec.Sysctls {
		if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0); err != nil {
			return err
		}
	}
	return unix.Sethostname([]byte(spec.Name))
}

// The main thread is the main goroutine's alone: it would not end with a
// goroutine of onThread, and would stay where that has gone.
func init() { runtime.LockOSThread() }

// onThread calls f on a thread that no other goroutine ever gets, so that f may
// change the thread's namespaces and cgroup. What f starts inherits them.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		done <- f()
	}()
	return <-done
}

// startIn starts cmd in all namespaces of the process whose /proc directory is
// proc, and in group, which may be empty. A name without a slash is looked for
// there, in PATH; a working directory that is not there becomes "/".
func startIn(proc string, group cgroup, cmd *exec.Cmd) error {
	return onThread(func() error {
		if err := group.joinThread(); err != nil {
			return err
		}
		// A thread that shares its root directory with others cannot change its mount namespace.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("enter the host: %w", err)
		}
		kinds := []struct {
			name string
			flag int
		}{{"cgroup", unix.CLONE_NEWCGROUP}, {"ipc", unix.CLONE_NEWIPC}, {"uts", unix.CLONE_NEWUTS}, {"net", unix.CLONE_NEWNET}, {"pid", unix.CLONE_NEWPID}, {"mnt", unix.CLONE_NEWNS}}
		for _, k := range kinds { // mnt last: it hides proc
			if err := setns(filepath.Join(proc, "ns", k.name), k.flag); err != nil {
				return err
			}
		}
		if cmd.Err != nil { // it was not found outside
			path, err := exec.LookPath(cmd.Args[0])
			if err != nil {
				return err
			}
			cmd.Path, cmd.Err = path, nil
		}
		if _, err := os.Stat(cmd.Dir); cmd.Dir != "" && errors.Is(err, fs.ErrNotExist) {
			cmd.Dir = "/"
		}
		return cmd.Start()
	})
}

// runIn runs a command to its end where startIn starts it.
func runIn(ctx context.Context, proc string, group cgroup, host string, argv ...string) error {
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &said, &said
	err := startIn(proc, group, cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return fmt.Errorf("%s on %s: %w: %s", strings.Join(argv, " "), host, err, bytes.TrimSpace(said.Bytes()))
	}
	return nil
}

func setns(path string, kind int) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("enter a namespace: %w", err)
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), kind); err != nil {
		return fmt.Errorf("enter namespace %s: %w", path, err)
	}
	return nil
}

// service is a program that a host keeps running: one that ends is started
// again a second later, unless it was stopped.
type service struct {
	name string
	host *Host
	argv []string

	mu      sync.Mutex
	stopped bool
	cmd     *exec.Cmd
	ended   chan struct{} // closed when cmd has ended
}

// serve starts a service of the host.
func (h *Host) serve(name string, argv ...string) (*service, error) {
	s := &service{name: name, host: h, argv: argv}
	if err := s.start(); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.services = append(h.services, s)
	return s, nil
}

// service finds a service of the host by name.
func (h *Host) service(name string) (*service, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := slices.IndexFunc(h.services, func(s *service) bool { return s.name == name })
	if i >= 0 {
		return h.services[i], nil
	}
	var names []string
	for _, s := range h.services {
		names = append(names, s.name)
	}
	return nil, fmt.Errorf("no service %q on %s, which has: %s", name, h.Name, strings.Join(names, " "))
}

// start starts a service that is not running.
func (s *service) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd != nil && !s.stopped {
		return nil
	}
	s.stopped = false
	return s.launch()
}

// launch starts the program once; s.mu is held.
func (s *service) launch() error {
	log, err := s.host.log(s.name)
	if err != nil {
		return err
	}
	defer log.Close()
	_, off := s.host.pid()
	cmd := exec.CommandContext(context.Background(), s.argv[0], s.argv[1:]...) // it ends with its host
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := s.host.start(cmd); err != nil {
		return fmt.Errorf("start %s on %s: %w", s.name, s.host.Name, err)
	}
	ended := make(chan struct{})
	s.cmd, s.ended = cmd, ended
	go func() {
		_ = cmd.Wait() // how it ended is in its log
		close(ended)
		select {
		case <-off:
		case <-time.After(time.Second):
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.cmd == cmd && !s.stopped {
				_ = s.launch() // where it fails, its host is off
			}
		}
	}()
	return nil
}

// stop ends the service and keeps it stopped.
func (s *service) stop(ctx context.Context) error {
	s.mu.Lock()
	s.stopped = true
	cmd, ended := s.cmd, s.ended
	s.mu.Unlock()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s on %s: %w", s.name, s.host.Name, err)
	}
	return wait(ctx, s.name+" on "+s.host.Name+" to stop", 30*time.Second, 20*time.Millisecond, func(context.Context) error {
		select {
		case <-ended:
			return nil
		default:
			return errors.New("it is still running")
		}
	})
}

// kill ends the service without warning; it comes back.
func (s *service) kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s on %s: %w", s.name, s.host.Name, err)
	}
	return nil
}

// state is "running", "stopped" or "ended" (about to be started again).
func (s *service) state() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.ended:
		if s.stopped {
			return "stopped"
		}
		return "ended"
	default:
		return "running"
	}
}

// serviceStates lists the host's services as NAME=STATE.
func (h *Host) serviceStates() []string {
	h.mu.Lock()
	services := slices.Clone(h.services)
	h.mu.Unlock()
	var states []string
	for _, s := range services {
		states = append(states, s.name+"="+s.state())
	}
	return states
}
