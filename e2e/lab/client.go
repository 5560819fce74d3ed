package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What is in this file runs outside the sandbox: it is how ftplab's commands
// reach a lab.

// ErrNoLab says that no lab is up in the directory.
var ErrNoLab = errors.New("no lab is up: run ftplab up")

// Config says which lab is meant and what it is made from.
type Config struct {
	Dir        string // absolute; all files of the lab but the cache are in it
	Cache      string // absolute; what is made once
	Kubernetes string // version of the cluster: see BuildKubernetes
	Say        func(string)
}

// Up returns when the lab in config.Dir is up. One that is up already is left
// as it is: fresh is false then.
func Up(ctx context.Context, config Config) (fresh bool, err error) {
	if err := checkMachine(ctx); err != nil {
		return false, err
	}
	if n := len(socketPath(config.Dir)); n > 107 { // sun_path of unix(7)
		return false, fmt.Errorf("the lab's directory %s is too long by %d characters for a socket in it", config.Dir, n-107)
	}
	if err := os.MkdirAll(config.Dir, 0o700); err != nil {
		return false, fmt.Errorf("make the lab's directory: %w", err)
	}
	lock, err := lockLab(config.Dir)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return false, followStart(ctx, config, nil)
	}
	if err != nil {
		return false, err
	}
	defer lock.Close()
	if err := sweep(ctx, config.Dir); err != nil {
		return false, err
	}
	if err := checkInotify(); err != nil {
		return false, err
	}
	assets, err := prepare(ctx, config)
	if err != nil {
		return false, err
	}
	text, err := json.Marshal(assets)
	if err == nil {
		err = os.WriteFile(filepath.Join(config.Dir, "assets.json"), text, 0o644)
	}
	if err != nil {
		return false, fmt.Errorf("write what the lab stands on: %w", err)
	}
	log, err := os.Create(logPath(config.Dir))
	if err != nil {
		return false, fmt.Errorf("make the lab's log: %w", err)
	}
	defer log.Close()
	config.Say("starting the sandbox; its log is " + log.Name())
	process, err := startSandbox(ctx, config.Dir, log, lock)
	if err != nil {
		return false, err
	}
	ended := make(chan error, 1)
	go func() {
		state, err := process.Wait()
		if err == nil {
			err = fmt.Errorf("the lab ended (%s); its log %s says: %s", state, log.Name(), lastLines(log.Name()))
		}
		ended <- err
	}()
	return true, followStart(ctx, config, ended)
}

// lockName is the file in a lab's directory that marks it as one.
const lockName = "ftplab.lock"

func logPath(dir string) string { return filepath.Join(dir, "lab.log") }

// prepare makes what the cache lacks.
func prepare(ctx context.Context, config Config) (Assets, error) {
	if err := os.MkdirAll(config.Cache, 0o755); err != nil {
		return Assets{}, fmt.Errorf("make the cache: %w", err)
	}
	kubernetes, err := BuildKubernetes(ctx, config)
	if err != nil {
		return Assets{}, err
	}
	images, err := prepareImages(ctx, config.Cache, config.Say)
	if err != nil {
		return Assets{}, err
	}
	template, err := BuildTemplate(ctx, config.Cache, func(format string, args ...any) { config.Say(fmt.Sprintf(format, args...)) })
	if err != nil {
		return Assets{}, err
	}
	return Assets{Version: config.Kubernetes, Kubernetes: kubernetes, Images: images, Template: template}, nil
}

// followStart tells what the lab says while it starts, and returns when it is
// up. ended, where given, tells that it is not going to be.
func followStart(ctx context.Context, config Config, ended <-chan error) error {
	limit := 30 * time.Second
	if ended == nil { // another ftplab up is at it, and may have to build Kubernetes first
		limit = 20 * time.Minute
	}
	err := wait(ctx, "the lab's control socket", limit, 20*time.Millisecond, func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socketPath(config.Dir))
		if err == nil {
			return conn.Close()
		}
		select {
		case err := <-ended:
			return permanent{err}
		default:
			return err
		}
	})
	if err != nil {
		return err
	}
	err = ask(ctx, config.Dir, request{Command: "follow"}, config.Say, nil)
	if err != nil && ended != nil {
		return fmt.Errorf("%w (logs: %s and hosts/*/log beside it)", err, logPath(config.Dir))
	}
	return err
}

// lockLab takes the lock that a lab process holds while it lives. It refuses a
// directory that holds anything but a lab: all of it is going to be removed.
func lockLab(dir string) (*os.File, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("lock the lab's directory: %w", err)
	}
	if len(entries) > 0 && !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == lockName }) {
		return nil, fmt.Errorf("%s holds %s and no lab: name an empty directory", dir, entries[0].Name())
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the lab's directory: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("lock the lab's directory: %w", err)
	}
	return lock, nil
}

// sweep removes what a lab that ended, or was killed, has left: its cgroups and
// what is in its directory, the lock apart.
func sweep(ctx context.Context, dir string) error {
	group, err := findCgroups(cgroupName(dir))
	if err != nil {
		return err
	}
	if err := group.remove(ctx); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("clear the lab's directory: %w", err)
	}
	for _, e := range entries {
		if e.Name() == lockName {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("clear the lab's directory: %w", err)
		}
	}
	return nil
}

// Down ends the lab in dir, running or not, and returns when nothing is left of
// it but the cache: no process, namespace, mount, cgroup or file.
func Down(ctx context.Context, dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	group, err := findCgroups(cgroupName(dir))
	if err != nil {
		return err
	}
	if err := group.remove(ctx); err != nil { // its processes end with it
		return err
	}
	var lock *os.File
	err = wait(ctx, "the lab to end", 20*time.Second, 20*time.Millisecond, func(context.Context) error {
		if lock, err = lockLab(dir); err != nil && !errors.Is(err, syscall.EWOULDBLOCK) {
			return permanent{err}
		}
		return err
	})
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := sweep(ctx, dir); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove the lab's directory: %w", err)
	}
	return nil
}

// ask sends one request to the lab in dir, tells what it says meanwhile, and
// decodes its result into result, unless that is nil.
func ask(ctx context.Context, dir string, r request, say func(string), result any) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socketPath(dir))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return ErrNoLab
	}
	if err != nil {
		return fmt.Errorf("reach the lab: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := json.NewEncoder(conn).Encode(r); err != nil {
		return fmt.Errorf("reach the lab: %w", err)
	}
	for answers := json.NewDecoder(conn); ; {
		var a reply
		if err := answers.Decode(&a); err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return fmt.Errorf("the lab's answer: %w", err)
		}
		switch {
		case !a.Done:
			say(a.Say)
		case a.Error != "":
			return errors.New(a.Error)
		case result == nil:
			return nil
		default:
			return json.Unmarshal(a.Result, result)
		}
	}
}

func silent(string) {}

// Status lists the hosts and VMs of the lab in dir.
func Status(ctx context.Context, dir string) ([]HostState, error) {
	var states []HostState
	return states, ask(ctx, dir, request{Command: "status"}, silent, &states)
}

// Environment is what a user of the lab in dir sets on jump, as NAME=value.
func Environment(ctx context.Context, dir string) ([]string, error) {
	var environment []string
	return environment, ask(ctx, dir, request{Command: "environment"}, silent, &environment)
}

// Writes lists what vCenter and the API server were made to change since the
// lab in dir is up, in order: every changing call that vCenter got, and what
// ftpdeploy wrote to the cluster, dry runs left out.
func Writes(ctx context.Context, dir string) ([]string, error) {
	var writes []string
	return writes, ask(ctx, dir, request{Command: "writes"}, silent, &writes)
}

// Fault makes or mends a fault in the lab in dir: args as FaultUsage has them.
func Fault(ctx context.Context, dir string, args []string) error {
	return ask(ctx, dir, request{Command: "fault", Args: args}, silent, nil)
}

// Exec runs argv on a host of the lab in dir, with this process's standard
// input, output and error and in the same directory where the host has it. It
// returns the command's exit code, 128 + N for one that signal N ended.
//
// SIGTERM and SIGHUP are passed on to the command, and SIGINT too unless a
// terminal has sent it to the command already. environment is added to the host's own.
func Exec(ctx context.Context, dir, host string, environment, argv []string) (int, error) {
	var to found
	if err := ask(ctx, dir, request{Command: "find", Args: []string{host}}, silent, &to); err != nil {
		return 0, err
	}
	proc, err := sandboxProc(ctx, dir)
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), argv[0], argv[1:]...) // signals end it, and only they
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(append(environment, to.Environment...), "HOME="+to.Home)
	if cmd.Dir, err = os.Getwd(); err != nil {
		return 0, fmt.Errorf("find the working directory: %w", err)
	}
	// Before the command is there, a signal must not end this process alone.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT)
	defer signal.Stop(signals)
	if err := startIn(filepath.Join(proc, fmt.Sprint(to.PID)), cgroup{}, cmd); err != nil {
		return 0, fmt.Errorf("run %s on %s: %w", argv[0], host, err)
	}
	_, err = unix.IoctlGetTermios(int(os.Stdin.Fd()), unix.TCGETS)
	terminal := err == nil
	go func() {
		for s := range signals {
			if s != syscall.SIGINT || !terminal {
				_ = cmd.Process.Signal(s) // where it has ended there is nothing to pass on
			}
		}
	}()
	err = cmd.Wait()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return 0, fmt.Errorf("run %s on %s: %w", argv[0], host, err)
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return cmd.ProcessState.ExitCode(), nil
}

// sandboxProc is the sandbox's own /proc, seen from outside.
func sandboxProc(ctx context.Context, dir string) (string, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socketPath(dir))
	if err != nil {
		return "", ErrNoLab
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return "", fmt.Errorf("find the lab's process: %w", err)
	}
	var peer *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) {
		peer, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || failed != nil {
		return "", fmt.Errorf("find the lab's process: %w", errors.Join(err, failed))
	}
	return fmt.Sprintf("/proc/%d/root/proc", peer.Pid), nil
}

// lastLines is the end of a log file, for an error.
func lastLines(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(string(bytes.TrimSpace(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "\n")
}
