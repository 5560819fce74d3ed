package proxy

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
)

// TestVersions has HAProxy and keepalived of other Debian suites check the files that
// are rendered for them. Their root file systems are in the directory that
// FTPDEPLOY_SUITES names (make versions); without it there are none to ask.
func TestVersions(t *testing.T) {
	roots, err := filepath.Glob(filepath.Join(os.Getenv("FTPDEPLOY_SUITES"), "*"))
	if err != nil || os.Getenv("FTPDEPLOY_SUITES") == "" {
		roots = nil
	}
	if os.Getenv("FTPDEPLOY_SUITES") != "" && len(roots) == 0 {
		t.Fatal("FTPDEPLOY_SUITES has no suite")
	}
	for _, root := range roots {
		first := func(path string) string {
			out, err := exec.Command("chroot", root, path, "-v").CombinedOutput()
			if err != nil {
				t.Fatalf("%s in %s: %v: %s", path, root, err, out)
			}
			line, _, _ := strings.Cut(string(out), "\n")
			return line
		}
		haproxy := first("/usr/sbin/haproxy")
		t.Logf("%s; %s", haproxy, first("/usr/sbin/keepalived"))
		_, number, _ := strings.Cut(haproxy, "version ")
		for name, topology := range map[string]*blueprints.Topology{
			"lab": lab(), "production": production(), "two-services": twoServices(), "thousand-ports": thousandPorts(), "one-box": oneBox(), "multicast": multicast(),
		} {
			if h := &topology.Groups[0].HAProxy; !versionAtLeast(number, 2, 4) {
				h.MinVersion = "2.2" // as who has such a version must say
			}
			for _, f := range files(t, topology, 0) {
				if f.Service == "" {
					continue
				}
				t.Run(filepath.Base(root)+"/"+name+"/"+f.Service, func(t *testing.T) { acceptsIn(t, root, f) })
			}
		}
	}
}

// acceptsIn has the program of a root file system check a file: it must have nothing to say.
func acceptsIn(t *testing.T, root string, f File) {
	t.Helper()
	inside, err := os.MkdirTemp(filepath.Join(root, "tmp"), "candidate-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(inside)
	// keepalived asks for a script that can be run; there is no bash.
	content := bytes.ReplaceAll(f.Content, []byte(CheckPath), []byte("/usr/sbin/keepalived"))
	if err := os.WriteFile(filepath.Join(inside, "file"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", `ip link add frontend type veth peer name workload && exec chroot "$0" "$@"`, root)
	cmd.Args = append(append(cmd.Args, f.Check...), strings.TrimPrefix(filepath.Join(inside, "file"), root))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	if said := strings.TrimSpace(strings.ReplaceAll(string(out), "Configuration file is valid", "")); err != nil || said != "" {
		t.Errorf("refused: %v\n%s", err, out)
	}
}
