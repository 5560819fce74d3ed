package lab

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A lab is a tree of processes:
//
//	ftplab sandbox DIR     PID 1 of the sandbox's namespaces
//	  ftplab daemon DIR    the lab process: vCenter, the mirror, the control socket
//	    ftplab host        PID 1 of a host's namespaces: jump, client, cp, worker-N
//	    systemd-nspawn     a VM
//
// However the first two end, the kernel ends all others, and with the last of
// them go every mount, interface and firewall rule.

// cgroupName is the same for every run of a lab in dir, so that a run finds
// what is left of one that was killed.
func cgroupName(dir string) string {
	return fmt.Sprintf("ftplab-%x", sha256.Sum256([]byte(dir)))[:15]
}

// startSandbox starts `ftplab sandbox dir` in its own namespaces and a session
// of its own. lock is held for as long as the lab process lives.
func startSandbox(ctx context.Context, dir string, log, lock *os.File) (*os.Process, error) {
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "/proc/self/exe", "sandbox", dir) // it outlives this process
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		Setsid:     true,
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the lab's sandbox: %w", err)
	}
	return cmd.Process, nil
}

// Sandbox is the program of the sandbox's PID 1. It makes the namespaces ready,
// starts the lab process and returns when that has ended.
func Sandbox(ctx context.Context, dir string) error {
	if os.Getpid() != 1 {
		return errors.New("ftplab sandbox is started by ftplab up")
	}
	lock := inherited("lock")
	group, err := newCgroup(cgroupName(dir))
	if err != nil {
		return err
	}
	if err := group.join(); err != nil {
		return err
	}
	keep, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open the lab's directory: %w", err)
	}
	defer keep.Close()
	mounts := []mount{
		{Target: "/", Flags: unix.MS_REC | unix.MS_PRIVATE},
		{Source: "proc", Target: "/proc", Kind: "proc"},
		{Source: "tmpfs", Target: "/run", Kind: "tmpfs", Data: "mode=755"}, // ip-netns(8) and systemd-nspawn write there
	}
	if strings.HasPrefix(dir, "/run/") {
		mounts = append(mounts, mount{Source: fmt.Sprintf("/proc/self/fd/%d", keep.Fd()), Target: dir, Flags: unix.MS_BIND})
	}
	if err := mountAll(mounts); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte("ftplab")); err != nil {
		return fmt.Errorf("set the sandbox's host name: %w", err)
	}
	if err := run(ctx, "ip", "link", "set", "lo", "up"); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "daemon", dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{lock}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the lab process: %w", err)
	}
	lock.Close()
	status, err := reap(cmd.Process.Pid)
	if err != nil {
		return err
	}
	if status.ExitStatus() != 0 {
		return fmt.Errorf("the lab process ended: exit status %d, signal %v", status.ExitStatus(), status.Signal())
	}
	return nil
}

// inherited is the file that the parent process handed over as descriptor 3.
func inherited(name string) *os.File {
	unix.CloseOnExec(3)
	return os.NewFile(3, name)
}

// reap waits for every process that is a child or becomes one because it is
// orphaned, and returns when pid has ended; 0 never does.
func reap(pid int) (syscall.WaitStatus, error) {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	for ; ; <-ended {
		for {
			var status syscall.WaitStatus
			child, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
			if errors.Is(err, syscall.EINTR) {
				continue
			}
			if err != nil && !errors.Is(err, syscall.ECHILD) {
				return 0, fmt.Errorf("wait for children: %w", err)
			}
			if child == pid && pid != 0 {
				return status, nil
			}
			if child <= 0 {
				break
			}
		}
	}
}

// mount is one call of mount(2). A target that is missing is made: a file where
// the source is one, else a directory.
type mount struct {
	Source, Target, Kind string
	Flags                uintptr
	Data                 string
}

func mountAll(mounts []mount) error {
	for _, m := range mounts {
		if err := m.makeTarget(); err != nil {
			return fmt.Errorf("mount %s: %w", m.Target, err)
		}
		if err := unix.Mount(m.Source, m.Target, m.Kind, m.Flags, m.Data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.Source, m.Target, err)
		}
	}
	return nil
}

func (m mount) makeTarget() error {
	if _, err := os.Stat(m.Target); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if info, err := os.Stat(m.Source); err == nil && info.Mode().IsRegular() {
		return cmp.Or(os.MkdirAll(filepath.Dir(m.Target), 0o755), os.WriteFile(m.Target, nil, 0o644))
	}
	return os.MkdirAll(m.Target, 0o755)
}
