package remote

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/remote/sshtest"
)

// generations is a box with haproxy, which has loaded what we wrote.
type generations struct {
	*sshtest.Box
	*Host
	t       *testing.T
	haproxy Daemon
	Generation
}

func startGenerations(t *testing.T) *generations {
	t.Helper()
	b, h, d := startBox(t)
	g := &generations{Box: b, Host: h, t: t, haproxy: d}
	g.put("first")
	if err := h.Reload(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	g.Generation = Generation{
		Dir: b.Root + "/var/lib/ftpdeploy", Within: time.Minute,
		Files: []string{d.Config, b.Root + "/etc/new.conf"}, Services: []Service{{Daemon: d}},
	}
	return g
}

func (g *generations) put(text string) {
	g.t.Helper()
	f := File{Path: g.haproxy.Config, Mode: "0644", Owner: ":", Content: []byte(g.Config(text))}
	if err := g.Put(g.t.Context(), f); err != nil {
		g.t.Fatal(err)
	}
}

func (g *generations) arm(want int) {
	g.t.Helper()
	if n, _, err := g.Arm(g.t.Context(), g.Generation); err != nil || n != want {
		g.t.Fatalf("generation %d, %v, want %d", n, err, want)
	}
}

// change makes a second configuration the loaded one, and a file that was not there.
func (g *generations) change() {
	g.t.Helper()
	g.put("second")
	f := File{Path: g.Files[1], Mode: "0644", Owner: ":", Content: []byte("new\n")}
	if err := errors.Join(g.Put(g.t.Context(), f), g.Reload(g.t.Context(), g.haproxy)); err != nil {
		g.t.Fatal(err)
	}
}

// asBefore holds the box to what it was before change.
func (g *generations) asBefore() {
	g.t.Helper()
	text, err := os.ReadFile(g.haproxy.Config)
	if err != nil || !strings.HasPrefix(string(text), "# first\n") {
		g.t.Errorf("haproxy.cfg: %v %q", err, text)
	}
	if _, err := os.Stat(g.Files[1]); !errors.Is(err, os.ErrNotExist) {
		g.t.Errorf("a file that was not there is left: %v", err)
	}
	f, err := g.Find(g.t.Context(), Query{Files: []FileQuery{{Path: g.haproxy.Config}, {Path: g.haproxy.Marker}, {Path: g.Dir + "/armed"}}})
	if err != nil {
		g.t.Fatal(err)
	}
	if f.Files[g.Dir+"/armed"].Exists {
		g.t.Error("the generation is still armed")
	}
	if loaded := strings.TrimSpace(string(f.Files[g.haproxy.Marker].Content)); loaded != f.Files[g.haproxy.Config].Identity {
		g.t.Errorf("what haproxy has loaded is not known: %q", loaded)
	}
	if running, err := g.Running(g.t.Context(), g.haproxy); err != nil || !running {
		g.t.Errorf("haproxy does not run (%v)", err)
	}
}

func (g *generations) kept() []string {
	g.t.Helper()
	dirs, err := filepath.Glob(g.Dir + "/generations/*")
	if err != nil {
		g.t.Fatal(err)
	}
	return dirs
}

// TestRevertByTimer is what happens when nobody comes back.
func TestRevertByTimer(t *testing.T) {
	g := startGenerations(t)
	g.Within = 9 * time.Second // enough for the change on a busy machine
	g.arm(1)
	start := time.Now()
	g.change()
	g.Cut()
	g.Host = enter(t, config(g.Server))
	for deadline := start.Add(g.Within + 15*time.Second); ; {
		if _, err := os.Stat(g.Dir + "/generations/1/reverted"); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not reverted after %s: %q", time.Since(start), g.Calls("systemd-run", "systemctl"))
		}
		<-time.After(50 * time.Millisecond)
	}
	t.Logf("reverted %.1f s after it was armed for %s", time.Since(start).Seconds(), g.Within)
	g.asBefore()
	if err := g.Confirm(t.Context(), g.Generation, 1); !errors.Is(err, ErrReverted) {
		t.Errorf("confirmed afterwards: %v", err)
	}
	if err := g.Revert(t.Context(), g.Generation, 1); err != nil {
		t.Errorf("reverted once more: %v", err)
	}
}

func TestRevertAtOnce(t *testing.T) {
	g := startGenerations(t)
	g.arm(1)
	g.change()
	if err := g.Revert(t.Context(), g.Generation, 1); err != nil {
		t.Fatal(err)
	}
	g.asBefore()
	if calls := g.Calls("systemctl stop ftpdeploy-revert.timer"); len(calls) == 0 {
		t.Error("the timer goes on")
	}
	if restarts := g.Calls("systemctl restart", "systemctl stop haproxy"); len(restarts) > 0 {
		t.Errorf("haproxy was interrupted: %q", restarts)
	}
}

func TestRevertConfirmed(t *testing.T) {
	g := startGenerations(t)
	g.arm(1)
	g.change()
	if err := g.Confirm(t.Context(), g.Generation, 1); err != nil {
		t.Fatal(err)
	}
	if err := g.Revert(t.Context(), g.Generation, 1); err != nil {
		t.Fatal(err)
	}
	g.asBefore()
}

// TestRevertTouchesOnlyWhatDiffers: haproxy has nothing to load where its
// configuration is the one that it had.
func TestRevertTouchesOnlyWhatDiffers(t *testing.T) {
	g := startGenerations(t)
	g.arm(1)
	before := len(g.Calls("systemctl reload"))
	if err := g.Revert(t.Context(), g.Generation, 1); err != nil {
		t.Fatal(err)
	}
	g.asBefore()
	if n := len(g.Calls("systemctl reload")) - before; n != 0 {
		t.Errorf("%d reloads", n)
	}
}

// TestRevertSparesWhatOthersChanged: what someone else wrote meanwhile stays.
func TestRevertSparesWhatOthersChanged(t *testing.T) {
	g := startGenerations(t)
	g.arm(1)
	g.change()
	if err := os.WriteFile(g.Files[1], []byte("foreign\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := g.Revert(t.Context(), g.Generation, 1, g.Files[1]); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(g.Files[1]); err != nil || string(text) != "foreign\n" {
		t.Errorf("%q, %v", text, err)
	}
	if text, err := os.ReadFile(g.haproxy.Config); err != nil || !strings.HasPrefix(string(text), "# first\n") {
		t.Errorf("haproxy.cfg: %v %q", err, text)
	}
}

// TestRevertToNothing is the first generation of a box on which nothing ran before.
func TestRevertToNothing(t *testing.T) {
	g := startGenerations(t)
	if err := g.RemoveAll(t.Context(), g.Dir); err != nil {
		t.Fatal(err)
	}
	g.Services[0].Stop = true
	g.arm(1)
	g.change()
	if err := g.Revert(t.Context(), g.Generation, 1); err != nil {
		t.Fatal(err)
	}
	if running, err := g.Running(t.Context(), g.haproxy); err != nil || running {
		t.Errorf("haproxy runs (%v)", err)
	}
	if _, err := os.Stat(g.haproxy.Marker); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("marked as loaded: %v", err)
	}
}

// TestArmGoesOn: a run that broke off left a generation armed, and the next one
// goes on with it. What is put back is what was there before the first.
func TestArmGoesOn(t *testing.T) {
	g := startGenerations(t)
	g.Proven = []string{"vsftpd"}
	g.arm(1)
	g.change()
	g.Proven = nil
	if _, _, err := g.Arm(t.Context(), g.Generation); err == nil || !strings.Contains(err.Error(), "another run changes this machine") {
		t.Errorf("armed twice: %v", err)
	}
	g.Pending = 1
	n, proven, err := g.Arm(t.Context(), g.Generation)
	if err != nil || n != 1 || strings.Join(proven, " ") != "vsftpd" {
		t.Fatalf("%d %q %v", n, proven, err)
	}
	g.put("third")
	if err := g.Revert(t.Context(), g.Generation, 1); err != nil {
		t.Fatal(err)
	}
	g.asBefore()
	if _, _, err := g.Arm(t.Context(), g.Generation); !errors.Is(err, ErrReverted) {
		t.Errorf("went on with what was put back: %v", err)
	}
}

func TestArmWithoutATimer(t *testing.T) {
	g := startGenerations(t)
	g.Box.Set("fail/systemd-run", "")
	if _, _, err := g.Arm(t.Context(), g.Generation); err == nil || !strings.Contains(err.Error(), "start the timer that reverts") {
		t.Fatalf("got %v", err)
	}
	g.asBefore()
}

func TestGenerationsArePruned(t *testing.T) {
	g := startGenerations(t)
	for n := 1; n <= keptGenerations+2; n++ {
		g.arm(n)
		if err := g.Confirm(t.Context(), g.Generation, n); err != nil {
			t.Fatal(err)
		}
	}
	if kept := g.kept(); len(kept) != keptGenerations {
		t.Errorf("kept %q", kept)
	}
}
