package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain runs the tests as PID 1 of a sandbox like that of a lab, where the
// lab's networks are, so that a test that dies leaves nothing behind.
func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "the lab's tests start machines: run them as root")
		os.Exit(1)
	}
	if os.Getpid() == 1 {
		if err := enterSandbox(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	// The sandbox has no way to Debian's mirrors.
	cache, err := testCache()
	if err == nil {
		_, err = BuildTemplate(context.Background(), cache, func(format string, args ...any) {
			fmt.Fprintf(os.Stderr, format+"\n", args...)
		})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	status, err := runSandboxed()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

// testCgroup holds every process of a run of the tests.
func testCgroup(pid int) string { return fmt.Sprintf("ftplab-test-%d", pid) }

func runSandboxed() (status int, err error) {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), fmt.Sprintf("FTPLAB_TEST_CGROUP=%s", testCgroup(os.Getpid())))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	err = cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		status, err = exit.ExitCode(), nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	group, errGroup := findCgroups(testCgroup(os.Getpid()))
	if errGroup == nil {
		errGroup = group.remove(ctx)
	}
	return status, errors.Join(err, errGroup)
}

func enterSandbox(ctx context.Context) error {
	group, err := newCgroup(os.Getenv("FTPLAB_TEST_CGROUP"))
	if err != nil {
		return err
	}
	if err := group.join(); err != nil {
		return err
	}
	if err := mountAll([]mount{
		{Target: "/", Flags: unix.MS_REC | unix.MS_PRIVATE},
		{Source: "proc", Target: "/proc", Kind: "proc"},
		{Source: "tmpfs", Target: "/run", Kind: "tmpfs", Data: "mode=755"},
	}); err != nil {
		return err
	}
	if err := run(ctx, "ip", "link", "set", "lo", "up"); err != nil {
		return err
	}
	return startNetworks(ctx)
}

// testCache is where the template is kept between runs.
func testCache() (string, error) {
	cache, err := os.UserCacheDir()
	return filepath.Join(cache, "ftpdeploy"), err
}
