package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// secondLab is a lab beside the one of the other tests.
type secondLab struct {
	t     *testing.T
	dir   string
	group string // its cgroup in the first hierarchy, once it is up
}

// ftplab runs ftplab for the second lab and returns what it said and how long it took.
func (l *secondLab) ftplab(args ...string) (string, time.Duration) {
	l.t.Helper()
	c := exec.CommandContext(l.t.Context(), ftplab, args...)
	c.Env = append(os.Environ(), "FTPLAB_DIR="+l.dir)
	start := time.Now()
	out, err := c.CombinedOutput()
	if err != nil {
		l.t.Fatalf("ftplab %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), time.Since(start)
}

// TestUpDown holds that a lab leaves nothing behind, however it ends, and that
// two labs do not meet.
func TestUpDown(t *testing.T) {
	parent, err := os.MkdirTemp("/run", "ftplab-updown-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(parent) })
	l := &secondLab{t: t, dir: filepath.Join(parent, "lab")}
	t.Cleanup(func() { // when the test has failed halfway
		c := exec.Command(ftplab, "down")
		c.Env = append(os.Environ(), "FTPLAB_DIR="+l.dir)
		c.Run()
	})
	before := l.lookAround()

	_, took := l.ftplab("up")
	l.group = cgroupOf(l.process())
	if !strings.Contains(l.group, "/ftplab-") {
		t.Fatalf("the lab process is in cgroup %q", l.group)
	}
	t.Logf("up in %.1f s", took.Seconds())
	if took > 90*time.Second {
		t.Errorf("up took %s, want at most 90 s", took)
	}
	l.bootVM()
	if used := l.memory(); used > 8<<30 {
		t.Errorf("the lab uses %d MiB, want at most 8 GiB", used>>20)
	} else {
		t.Logf("memory of the lab with one VM: %d MiB", used>>20)
	}
	during := l.lookAround()
	if len(during.added(before)) == 0 {
		t.Fatal("a running lab is not seen: what this test counts cannot show that nothing is left")
	}
	for _, added := range during.added(before) {
		// Cgroups and namespaces are the lab's; no one else's network or files change.
		if strings.HasPrefix(added, "link ") || strings.HasPrefix(added, "mount ") || strings.HasPrefix(added, "file ") {
			t.Errorf("the running lab shows outside: %s", added)
		}
	}

	said, took := l.ftplab("up")
	if !strings.Contains(said, "was up already") || took > 5*time.Second {
		t.Errorf("a second up took %s and said %q", took, said)
	}
	if said, _ := l.ftplab("status"); !strings.Contains(said, "worker-3") {
		t.Errorf("status does not list worker-3:\n%s", said)
	}

	_, took = l.ftplab("down")
	t.Logf("down in %.1f s", took.Seconds())
	l.nothingLeft(before, "down")
	if _, err := os.Stat(l.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("down has left %s: %v", l.dir, err)
	}
	l.ftplab("down") // of nothing

	l.ftplab("up")
	l.bootVM()
	victim := l.process()
	if err := syscall.Kill(victim, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	l.nothingLeft(before, "SIGKILL", "cgroup ") // empty directories, which the next run takes away
	_, took = l.ftplab("up")
	t.Logf("up after SIGKILL in %.1f s", took.Seconds())
	l.ftplab("exec", "jump", "--", "true")
	l.ftplab("down")
	l.nothingLeft(before, "up after SIGKILL, and down")
}

// bootVM makes a VM, which has more kinds of things to leave than the lab itself.
func (l *secondLab) bootVM() {
	l.t.Helper()
	self, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	l.ftplab("exec", "jump", "--", "env", handEnv+"=vm-foreign", self, "guest")
	l.ftplab("fault", "vm-on", "guest")
	l.ftplab("exec", "guest", "--", "true")
}

// TestLabRefuses holds that a directory with other things in it is left alone.
func TestLabRefuses(t *testing.T) {
	dir := t.TempDir()
	precious := filepath.Join(dir, "precious")
	if err := os.WriteFile(precious, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"up", "down"} {
		c := exec.CommandContext(t.Context(), ftplab, verb)
		c.Env = append(os.Environ(), "FTPLAB_DIR="+dir)
		if out, err := c.CombinedOutput(); err == nil || !strings.Contains(string(out), "holds precious and no lab") {
			t.Errorf("ftplab %s in a directory of something else: %v: %s", verb, err, out)
		}
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
}

// traces is what a lab could leave on the machine: "process 12 ftplab daemon",
// "namespace net:[4026]", "mount ...", "cgroup ...", "link ...", "file ...".
type traces map[string]bool

func (t traces) added(before traces) []string {
	var added []string
	for name := range t {
		if !before[name] {
			added = append(added, name)
		}
	}
	slices.Sort(added)
	return added
}

// lookAround lists the traces on this machine, those in the lab's directory and
// those of other labs left out.
func (l *secondLab) lookAround() traces {
	t, dir := l.t, l.dir
	t.Helper()
	seen := traces{}
	others := func(group string) bool {
		return strings.Contains(group, "/ftplab-") && (l.group == "" || !strings.Contains(group, filepath.Base(l.group)))
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		if pid, err := strconv.Atoi(filepath.Base(p)); err != nil || others(cgroupOf(pid)) {
			continue
		}
		command, err := os.ReadFile(filepath.Join(p, "cmdline"))
		if err == nil && bytes.Contains(command, []byte(dir)) {
			seen[fmt.Sprintf("process %s %s", filepath.Base(p), bytes.ReplaceAll(command, []byte{0}, []byte{' '}))] = true
		}
		namespaces, _ := filepath.Glob(filepath.Join(p, "ns/*")) // none of a process that has ended
		for _, n := range namespaces {
			if name, err := os.Readlink(n); err == nil {
				seen["namespace "+name] = true
			}
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		seen["mount "+strings.TrimSpace(line)] = true
	}
	links, err := filepath.Glob("/sys/class/net/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		seen["link "+filepath.Base(l)] = true
	}
	walk := func(kind, root string, keep func(path string, d fs.DirEntry) bool) {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil
			case err != nil:
				return err
			case path == dir || path == os.Getenv("FTPLAB_DIR"), strings.HasPrefix(path, "/run/ftplab"):
				return fs.SkipDir
			case keep(path, d):
				seen[kind+" "+path] = true
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	walk("cgroup", "/sys/fs/cgroup", func(path string, d fs.DirEntry) bool { return d.IsDir() && !others(path) })
	for _, root := range []string{"/etc", "/run", "/srv", "/var/lib"} {
		walk("file", root, func(string, fs.DirEntry) bool { return true })
	}
	return seen
}

// nothingLeft fails the test unless within 20 s all traces but those of the
// kinds in except are gone. (The kernel takes a namespace down a moment after
// its last process.)
func (l *secondLab) nothingLeft(before traces, after string, except ...string) {
	t := l.t
	t.Helper()
	var left []string
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		left = slices.DeleteFunc(l.lookAround().added(before), func(s string) bool {
			return slices.ContainsFunc(except, func(kind string) bool { return strings.HasPrefix(s, kind) })
		})
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s there is left:\n%s", after, strings.Join(left, "\n"))
		}
		<-tick.C
	}
}

// process finds the lab process.
func (l *secondLab) process() int {
	t, dir := l.t, l.dir
	t.Helper()
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		command, err := os.ReadFile(p)
		if err != nil || !bytes.HasSuffix(command, []byte("\x00daemon\x00"+dir+"\x00")) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p)))
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	t.Fatalf("no lab process of %s", dir)
	return 0
}

// memory is what the lab's processes use, in bytes: each page that several
// share is counted once (Pss of /proc/PID/smaps_rollup).
func (l *secondLab) memory() int64 {
	t := l.t
	t.Helper()
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var used int64
	for _, p := range processes {
		pid, err := strconv.Atoi(filepath.Base(p))
		if err != nil || !strings.HasPrefix(cgroupOf(pid), l.group) {
			continue
		}
		rollup, err := os.ReadFile(filepath.Join(p, "smaps_rollup"))
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(rollup)) {
			if f := strings.Fields(line); f[0] == "Pss:" {
				kib, err := strconv.ParseInt(f[1], 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				used += kib << 10
			}
		}
	}
	if used == 0 {
		t.Fatal("no process of the lab was measured")
	}
	return used
}

// cgroupOf is the cgroup of a process in the first hierarchy that the kernel
// lists; "" for a process that has ended.
func cgroupOf(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return line[strings.LastIndex(line, ":")+1:]
}
