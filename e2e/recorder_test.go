package e2e

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// changing are the system calls that change a file or its name, opens aside:
// what each of them stands for in a record.
var changing = map[string]string{
	"rename": "rename", "renameat": "rename", "renameat2": "rename",
	"unlink": "remove", "unlinkat": "remove", "rmdir": "remove",
	"mkdir": "mkdir", "mkdirat": "mkdir", "mknod": "mknod", "mknodat": "mknod",
	"link": "link", "linkat": "link", "symlink": "link", "symlinkat": "link",
	"truncate": "write", "ftruncate": "write",
	"chmod": "chmod", "fchmod": "chmod", "fchmodat": "chmod",
	"chown": "chown", "fchown": "chown", "lchown": "chown", "fchownat": "chown",
	"setxattr": "label", "lsetxattr": "label", "fsetxattr": "label", "removexattr": "label", "lremovexattr": "label", "fremovexattr": "label",
	"utime": "touch", "utimes": "touch", "utimensat": "touch", "futimesat": "touch",
}

// onFile are those of them that are given an open file.
var onFile = map[string]bool{"ftruncate": true, "fchmod": true, "fchown": true, "fsetxattr": true, "fremovexattr": true}

var opening = []string{"open", "openat", "openat2", "creat"}

var (
	traced        = regexp.MustCompile(`^(\S+) (\w+)\((.*)\)\s+= \d+(?:<(.*)>)?$`)
	tracedWriting = regexp.MustCompile(`\bO_(WRONLY|RDWR|CREAT|TRUNC)\b`)
	tracedPath    = regexp.MustCompile(`(?:\w+<([^<>]*)>, )?"([^"]*)"`)
	tracedFile    = regexp.MustCompile(`^\d+<([^<>]*)>`)
)

// bookkeeping are the paths that a login itself, and systemd for any unit, write.
var bookkeeping = regexp.MustCompile(`^(/dev/(null|tty|ptmx|pts/.*)|/proc/\d+/.*|/sys/fs/cgroup/.*|/run/motd\.dynamic(\.new)?|/run/sudo/ts/\w+|/run/utmp|/var/log/(lastlog|wtmp|btmp))$`)

// recordWrites records what is changed in the files of a box by anyone who logs
// in, and by systemd and the units that it starts meanwhile: every open for
// writing, rename, removal, mode and the like, as the kernel is asked for them.
// What daemons that run already do is not in it. stop returns the record in the
// order of time, as "write /etc/motd" or "rename /a /b"; it ends early for a box
// that goes off.
func recordWrites(t *testing.T, box string) (stop func() []string) {
	t.Helper()
	calls := slices.Clone(opening)
	for call := range changing {
		calls = append(calls, call)
	}
	end := trace(t, box, "-s", "0", "-e", "trace="+strings.Join(calls, ","))
	return func() []string {
		t.Helper()
		return readTraces(t, end())
	}
}

// trace has strace follow all that is started on a box by a login or by systemd.
// stop returns the directory that has its files, one a process.
func trace(t *testing.T, box string, args ...string) (stop func() string) {
	t.Helper()
	dir := t.TempDir()
	args = append(args, "-ff", "-ttt", "-y", "-z", "-o", filepath.Join(dir, "trace"))
	roots := rootsOf(t, box)
	for _, pid := range roots {
		args = append(args, "-p", strconv.Itoa(pid))
	}
	strace := exec.Command("strace", args...) // its end is stop's
	said, err := strace.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := strace.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // when the test has ended without stop
		_ = strace.Process.Kill()
		_ = strace.Wait()
	})
	attached := make(chan int)
	go func() {
		n := 0
		for lines := bufio.NewScanner(said); lines.Scan(); {
			// The process of a session that is just over may have ended since.
			ended := strings.Contains(lines.Text(), "attach: ") && strings.HasSuffix(lines.Text(), ": No such process")
			if ended || strings.HasSuffix(lines.Text(), " attached") {
				if n++; n == len(roots) {
					attached <- n
				}
			}
		}
		close(attached)
	}()
	select {
	case n := <-attached:
		if n == 0 {
			t.Fatal("strace has ended at once")
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("strace is not attached to %s within 20 s", box)
	}
	return func() string {
		_ = strace.Process.Signal(os.Interrupt) // it may have ended with the box
		<-attached                              // closed: all is read
		_ = strace.Wait()                       // ended by the signal
		return dir
	}
}

// rootsOf finds the processes of a box that start what a login or systemd
// starts, by their numbers here.
func rootsOf(t *testing.T, box string) []int {
	t.Helper()
	namespace := shell(t, box, "readlink /proc/self/ns/pid")
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var roots []int
	for _, p := range processes {
		in, _ := os.Readlink(filepath.Join(p, "ns/pid")) // none of a process that has ended
		name, _ := os.ReadFile(filepath.Join(p, "comm"))
		if pid, err := strconv.Atoi(filepath.Base(p)); err == nil && in == namespace && (string(name) == "sshd\n" || string(name) == "systemd\n") {
			roots = append(roots, pid)
		}
	}
	if len(roots) < 2 {
		t.Fatalf("%s has no systemd or no sshd: %v", box, roots)
	}
	return roots
}

// readTraces makes a record of the traces, a file each process.
func readTraces(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "trace.*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no traces: %v", err)
	}
	type write struct{ when, what string }
	var writes []write
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			call := traced.FindStringSubmatch(strings.TrimSpace(line))
			if call == nil {
				continue // an exit, a signal
			}
			if what := writing(call[2], call[3], call[4]); what != "" {
				writes = append(writes, write{call[1], what})
			}
		}
	}
	slices.SortStableFunc(writes, func(a, b write) int { return strings.Compare(a.when, b.when) })
	var record []string
	for _, w := range writes {
		record = append(record, w.what)
	}
	return record
}

// writing says what a call changes, "" for nothing that counts.
func writing(call, args, opened string) string {
	verb := changing[call]
	var paths []string
	if verb == "" {
		if call != "creat" && !tracedWriting.MatchString(args) {
			return ""
		}
		verb, paths = "write", []string{strings.TrimSuffix(opened, " (deleted)")}
	} else if file := tracedFile.FindStringSubmatch(args); file != nil && onFile[call] {
		paths = file[1:]
	} else {
		for _, p := range tracedPath.FindAllStringSubmatch(args, -1) {
			switch {
			case p[2] == "": // the name of an attribute, which is not recorded
			case filepath.IsAbs(p[2]) || p[1] == "":
				paths = append(paths, p[2])
			default:
				paths = append(paths, filepath.Join(p[1], p[2]))
			}
		}
		if paths == nil && file != nil { // utimensat of an open file
			paths = file[1:]
		}
	}
	if !slices.ContainsFunc(paths, func(p string) bool { return !bookkeeping.MatchString(p) }) {
		return ""
	}
	return verb + " " + strings.Join(paths, " ")
}
