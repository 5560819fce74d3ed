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

	"golang.org/x/sys/unix"
)

// TestMain runs the tests in a sandbox like that of a lab, where the lab's
// networks are, so that a test that dies leaves nothing behind. Like a lab it is
// three processes: this one, PID 1 of the sandbox, and the one that tests.
func TestMain(m *testing.M) {
	inside := os.Getenv(insideSandbox) != ""
	status, err := 1, errors.New("the lab's tests start machines: run them as root")
	switch {
	case inside && os.Getpid() == 1:
		status, err = sandboxed(context.Background())
	case inside:
		status, err = m.Run(), nil
	case os.Getuid() == 0:
		status, err = runSandboxed(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

// insideSandbox names the sandbox's cgroup to the processes in it.
const insideSandbox = "FTPLAB_TEST_CGROUP"

// testCgroup holds every process of a run of the tests.
func testCgroup(pid int) string { return fmt.Sprintf("ftplab-test-%d", pid) }

func runSandboxed(ctx context.Context) (status int, err error) {
	// The sandbox has no way to Debian's mirrors.
	cache, err := testCache()
	if err != nil {
		return 0, err
	}
	if _, err := BuildTemplate(ctx, cache, func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, format+"\n", args...)
	}); err != nil {
		return 0, err
	}
	cmd := testCommand(ctx)
	cmd.Env = append(os.Environ(), insideSandbox+"="+testCgroup(os.Getpid()))
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	err = cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		status, err = exit.ExitCode(), nil
	}
	group, errGroup := findCgroups(testCgroup(os.Getpid()))
	if errGroup == nil {
		errGroup = group.remove(ctx)
	}
	return status, errors.Join(err, errGroup)
}

// sandboxed is the program of the sandbox's PID 1.
func sandboxed(ctx context.Context) (status int, err error) {
	if err := enterSandbox(ctx); err != nil {
		return 0, err
	}
	cmd := testCommand(ctx)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	ended, err := reap(cmd.Process.Pid)
	if ended.Signaled() {
		err = fmt.Errorf("the tests were ended by signal %v", ended.Signal())
	}
	return ended.ExitStatus(), err
}

// testCommand is this program once more.
func testCommand(ctx context.Context) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd
}

func enterSandbox(ctx context.Context) error {
	group, err := newCgroup(os.Getenv(insideSandbox))
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
