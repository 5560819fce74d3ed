package sshtest

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/steps/ftp/ftptest"
)

//go:embed box.sh
var boxScript string

// Box is a Server with the programs of a Debian box: a package manager, a
// service manager and a packet filter that act on a directory instead of the
// machine, and the machine's own haproxy.
type Box struct {
	*Server
	Root string // what is put before the path of every file of the box
	Port int    // a free TCP port for haproxy's configurations

	dir string
}

// StartBox starts a box on which nothing is installed. It ends with the test.
func StartBox(t testing.TB) *Box {
	t.Helper()
	dir := t.TempDir()
	b := &Box{Server: Start(t), Root: filepath.Join(dir, "root"), Port: ftptest.FreePorts(t, 1), dir: dir}
	for _, d := range []string{"bin", "root", "installed", "enabled", "run", "log", "fail", "journal"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	programs := []string{"dpkg-query", "apt-cache", "apt-get", "systemctl", "systemd-run", "journalctl", "ip", "nft"}
	b.write("box.sh", boxScript, 0o755)
	for _, p := range programs {
		if err := os.Symlink(filepath.Join(dir, "box.sh"), filepath.Join(dir, "bin", p)); err != nil {
			t.Fatal(err)
		}
	}
	b.write("distribution.cfg", b.Config("as the distribution has it"), 0o644)
	b.write("addresses", "lo               UNKNOWN        127.0.0.1/8 ::1/128 \n", 0o644)
	b.write("ruleset", "", 0o644)
	b.write("calls", "", 0o644)
	b.Env = append(os.Environ(), "BOX="+dir, "PATH="+filepath.Join(dir, "bin")+":"+os.Getenv("PATH"))
	t.Cleanup(b.stop)
	return b
}

// Config is a configuration that haproxy can run with here.
func (b *Box) Config(comment string) string {
	return fmt.Sprintf("# %s\nglobal\n    hard-stop-after 1s\ndefaults\n    timeout connect 1s\n    timeout client 1s\n    timeout server 1s\n"+
		"listen one\n    bind 127.0.0.1:%d\n", comment, b.Port)
}

// Set gives one of the box's own files a new content: addresses (as `ip -br
// addr`), without (its addresses once keepalived was restarted), ruleset (as `nft list ruleset`), locked (the package manager's lock is
// held once), journal/UNIT (what journalctl has of it, the newest first), fail/UNIT (it does not start, or ignores a reload; systemd-run: no
// timer starts).
func (b *Box) Set(name, content string) { b.write(name, content, 0o644) }

// Calls returns the calls of the box's programs that begin with one of the prefixes.
func (b *Box) Calls(prefixes ...string) []string {
	text, err := os.ReadFile(filepath.Join(b.dir, "calls"))
	if err != nil {
		b.t.Fatal(err)
	}
	var calls []string
	for line := range strings.Lines(string(text)) {
		for _, p := range prefixes {
			if strings.HasPrefix(line, p) {
				calls = append(calls, strings.TrimSpace(line))
			}
		}
	}
	return calls
}

// Kill kills a service as kill -9 does, and its workers with it.
func (b *Box) Kill(service string) {
	pid, err := b.pid(service)
	if err != nil {
		return
	}
	syscall.Kill(-pid, syscall.SIGKILL)
	for deadline := time.Now().Add(10 * time.Second); ; {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("%s (PID %d) does not die", service, pid)
		}
	}
}

func (b *Box) pid(service string) (int, error) {
	text, err := os.ReadFile(filepath.Join(b.dir, "run", service))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// Snapshot prints all files of the box with their times, and what is installed,
// enabled and running: a plan must not change it.
func (b *Box) Snapshot() string {
	var s strings.Builder
	for _, d := range []string{"root", "installed", "enabled", "run"} {
		err := filepath.Walk(filepath.Join(b.dir, d), func(path string, info os.FileInfo, err error) error {
			if err != nil {
				return err
			}
			fmt.Fprintln(&s, strings.TrimPrefix(path, b.dir), info.Mode(), info.Size(), info.ModTime().UnixNano())
			return nil
		})
		if err != nil {
			b.t.Fatal(err)
		}
	}
	return s.String()
}

func (b *Box) stop() {
	b.Kill("haproxy")
	b.Kill("keepalived")
	b.Kill("ftpdeploy-revert.timer")
	b.Kill("ftpdeploy-revert")
}

func (b *Box) write(name, content string, mode os.FileMode) {
	if err := os.WriteFile(filepath.Join(b.dir, name), []byte(content), mode); err != nil {
		b.t.Fatal(err)
	}
}
