package remote

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/remote/sshtest"
)

// startBox starts a box with haproxy installed, and enters it.
func startBox(t *testing.T) (*sshtest.Box, *Host, Daemon) {
	t.Helper()
	b := sshtest.StartBox(t)
	h := enter(t, config(b.Server))
	if err := h.Install(t.Context(), "debian", Package{Name: "haproxy"}); err != nil {
		t.Fatal(err)
	}
	return b, h, Daemon{
		Unit: "haproxy.service", Config: b.Root + "/etc/haproxy/haproxy.cfg", Marker: b.Root + "/var/lib/ftpdeploy/loaded-haproxy", Worker: "haproxy",
	}
}

func TestFind(t *testing.T) {
	b, h, d := startBox(t)
	b.Set("addresses", "lo UNKNOWN 127.0.0.1/8 ::1/128 \nfrontend@if9 UP 203.0.113.11/24 metric 100 203.0.113.15/24 fe80::1/64 \nworkload DOWN \n")
	b.Set("ruleset", "table inet filter {\n\tchain input {\n\t\ttype filter hook input priority filter; policy drop;\n\t}\n}\n"+
		"table ip nat {\n\tchain out {\n\t\ttype nat hook output priority 0; policy accept;\n\t\tdrop\n\t}\n}\n"+
		"table ip raw {\n\tchain in {\n\t\ttype filter hook input priority 0; policy accept;\n\t\tip saddr 192.0.2.1 drop\n\t}\n}\n")
	before := b.Snapshot()
	f, err := h.Find(t.Context(), Query{
		Packages: []string{"haproxy", "keepalived"},
		Units:    []string{"haproxy.service", "keepalived.service"},
		Settings: []string{"net.ipv4.ip_nonlocal_bind"},
		Files:    []FileQuery{{Path: d.Config, Package: "haproxy"}, {Path: b.Root + "/none"}, {Path: "/etc/passwd", Package: "haproxy"}},
		Booleans: []string{"haproxy_connect_any"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if b.Snapshot() != before {
		t.Error("looking changed the box")
	}
	if f.OS.Family != "debian" || f.OS.Name == "" {
		t.Errorf("os: %+v", f.OS)
	}
	if got := f.Packages["haproxy"]; got.Version != "2.6.12-1+deb12u4" {
		t.Errorf("haproxy: %+v", got)
	}
	if got := f.Packages["keepalived"]; got.Version != "" || got.Candidate == "" {
		t.Errorf("keepalived: %+v", got)
	}
	if got := f.Units["haproxy.service"]; got != (UnitState{Exists: true, Active: "active", Enabled: "enabled"}) {
		t.Errorf("haproxy.service: %+v", got)
	}
	if got := f.Units["keepalived.service"]; got != (UnitState{Active: "inactive"}) {
		t.Errorf("keepalived.service: %+v", got)
	}
	if got := f.Settings["net.ipv4.ip_nonlocal_bind"]; got != "0" && got != "1" {
		t.Errorf("setting: %q", got)
	}
	cfg := f.Files[d.Config]
	if !cfg.Exists || !cfg.Pristine || !strings.Contains(string(cfg.Content), "listen one") || cfg.Mode != "644" || time.Since(cfg.Modified) > time.Minute {
		t.Errorf("haproxy.cfg: %+v", cfg)
	}
	if f.Files["/etc/passwd"].Pristine || f.Files[b.Root+"/none"].Exists {
		t.Error("a file is taken for another")
	}
	if !f.Holds(netip.MustParseAddr("203.0.113.15")) || f.Holds(netip.MustParseAddr("203.0.113.16")) || f.Links[1].Name != "frontend" {
		t.Errorf("links: %+v", f.Links)
	}
	if got := strings.Join(f.Firewall.NFT, "|"); got != "inet filter input: policy drop|ip raw in: ip saddr 192.0.2.1 drop" {
		t.Errorf("nft: %q", got)
	}
	if f.SELinux.Mode != "" {
		t.Errorf("selinux: %+v", f.SELinux)
	}

	again, err := h.Find(t.Context(), Query{Files: []FileQuery{{Path: d.Config, Known: cfg.SHA256, Package: "haproxy"}}})
	if err != nil || again.Files[d.Config].Content != nil || again.Files[d.Config].Identity != cfg.Identity {
		t.Errorf("known content was fetched: %+v, %v", again, err)
	}
}

func TestFindTellsWhatItCannotTell(t *testing.T) {
	b, h, _ := startBox(t)
	for _, test := range []struct {
		name, want string
		query      Query
	}{
		{name: "no such setting", query: Query{Settings: []string{"net.ipv4.nonsense"}}, want: "net.ipv4.nonsense"},
		{name: "directory", query: Query{Files: []FileQuery{{Path: b.Root}}}, want: "is not a file"},
	} {
		f, err := h.Find(t.Context(), test.query)
		if err == nil || !strings.Contains(err.Error(), test.want) || f != nil {
			t.Errorf("%s: got %+v, %v, want an error with %q", test.name, f, err, test.want)
		}
	}
	for _, cut := range []string{"", "@os\ndebian\n\n12\nDebian\n", "oops\n@end\n", "@os\nalpine\n\n3\nAlpine\n@end\n", "@unknown\n@end\n", "@file /x\nabc\n@end\n"} {
		if f, err := parseFacts([]byte(cut)); err == nil {
			t.Errorf("%q was taken for %+v", cut, f)
		}
	}
}

// TestCostOfANoOpPlan holds what one look at a box that is as it should be costs
// the network, the handshake and the login included: 12 turns and 16 KiB.
func TestCostOfANoOpPlan(t *testing.T) {
	cost := func(t *testing.T, c Config, b *sshtest.Box) {
		text := []byte("# ftpdeploy deployment=lab\n" + strings.Repeat(b.Config("x"), 12))
		first := enter(t, c)
		q := Query{
			Packages: []string{"haproxy", "keepalived"},
			Units:    []string{"haproxy.service", "keepalived.service"},
			Settings: []string{"net.ipv4.ip_nonlocal_bind"},
			Booleans: []string{"haproxy_connect_any"},
			Ports:    []Ports{{21, 21}, {21100, 21110}},
			Newest:   []string{b.Root + "/var/lib/ftpdeploy/history"},
		}
		for i := range 11 {
			f := File{Path: fmt.Sprintf("%s/%d-20261123T100209Z-0123456789abcdef", q.Newest[0], 99+i), Mode: "0600", Owner: ":", Content: text}
			if err := first.Put(t.Context(), f); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"sysctl.conf", "check", "haproxy.cfg", "keepalived.conf"} {
			f := File{Path: b.Root + "/etc/" + name, Mode: "0644", Owner: ":", Content: text}
			if err := first.Put(t.Context(), f); err != nil {
				t.Fatal(err)
			}
			q.Files = append(q.Files, FileQuery{Path: f.Path, Package: "haproxy"})
		}
		for _, name := range []string{"loaded-haproxy", "loaded-keepalived", "installed", "enabled", "opened", "boolean", "generation"} {
			file := b.Root + "/var/lib/ftpdeploy/" + name
			if err := first.Note(t.Context(), file, strings.Repeat("x", 100)); err != nil {
				t.Fatal(err)
			}
			q.Files = append(q.Files, FileQuery{Path: file})
		}
		f, err := first.Find(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		for i := range q.Files[:4] {
			q.Files[i].Known = f.Files[q.Files[i].Path].SHA256
		}
		h := enter(t, c)
		if f, err = h.Find(t.Context(), q); err != nil || f.Newest[q.Newest[0]] != "109-20261123T100209Z-0123456789abcdef" {
			t.Fatalf("%v, %v", f, err)
		}
		s := h.Stats()
		t.Logf("%+v", s)
		// On a box no path begins with the test's directory, there and back.
		budget := int64(16<<10 + 2*len(b.Root)*len(q.Files))
		if s.Turns == 0 || s.Turns > 12 || s.BytesIn+s.BytesOut > budget {
			t.Errorf("%d turns, %d bytes: more than 12 or %d", s.Turns, s.BytesIn+s.BytesOut, budget)
		}
	}
	t.Run("in process", func(t *testing.T) {
		b, _, _ := startBox(t)
		cost(t, config(b.Server), b)
	})
	t.Run("OpenSSH", func(t *testing.T) {
		b, _, _ := startBox(t)
		cost(t, realSSHD(t, b.Env), b)
	})
}

func TestPut(t *testing.T) {
	h := enter(t, config(sshtest.Start(t)))
	dir := t.TempDir()
	f := File{Path: dir + "/etc/new/it's.cfg", Mode: "0640", Owner: ":", Content: []byte("first\x00\n\n"), Keep: dir + "/kept/it"}
	read := func() string {
		text, _ := os.ReadFile(f.Path)
		return string(text)
	}
	if err := h.Put(t.Context(), f); err != nil || read() != string(f.Content) {
		t.Fatalf("got %q, %v", read(), err)
	}
	if info, err := os.Stat(f.Path); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if info, err := os.Stat(dir + "/etc"); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("directory above: %v, %v", info.Mode(), err)
	}
	if _, err := os.Stat(f.Keep); err == nil {
		t.Error("nothing was there before, and something is kept")
	}

	f.Content, f.Check = []byte("second"), `grep -q second {} || { echo "no second" >&2; exit 1; }`
	if err := h.Put(t.Context(), f); err != nil || read() != "second" {
		t.Fatalf("got %q, %v", read(), err)
	}
	f.Content = []byte("third")
	if err := h.Put(t.Context(), f); !errors.Is(err, ErrCheck) || !strings.Contains(err.Error(), "no second") || read() != "second" {
		t.Errorf("got %v and %q, want ErrCheck and the file as it was", err, read())
	}
	f.Check = ""
	if err := h.Put(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	if kept, err := os.ReadFile(f.Keep); err != nil || string(kept) != "first\x00\n\n" {
		t.Errorf("kept %q, %v: want what was there before us", kept, err)
	}
	if all, err := os.ReadDir(filepath.Dir(f.Path)); err != nil || len(all) != 1 {
		t.Errorf("left beside the file: %v, %v", all, err)
	}
	facts, err := h.Find(t.Context(), Query{Files: []FileQuery{{Path: f.Path}}})
	if err != nil {
		t.Fatal(err)
	}
	was := facts.Files[f.Path]
	f.Was, f.Content = &was, []byte("fourth")
	if err := h.Put(t.Context(), f); err != nil || read() != "fourth" {
		t.Errorf("got %q, %v", read(), err)
	}
	for _, edit := range []func() error{
		func() error { return os.WriteFile(f.Path, []byte("foreign"), 0o640) },
		func() error { return os.Chmod(f.Path, 0o644) },
		func() error { return os.Remove(f.Path) },
		func() error { return os.Symlink(f.Keep, f.Path) },
	} {
		if err := edit(); err != nil {
			t.Fatal(err)
		}
		f.Content = []byte("fifth")
		if err := h.Put(t.Context(), f); !errors.Is(err, ErrChanged) || read() == "fifth" {
			t.Errorf("got %v and %q, want ErrChanged", err, read())
		}
	}
	f.Was = nil
	if err := os.Remove(f.Path); err != nil {
		t.Fatal(err)
	}
	if err := h.Put(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	if err := h.Restore(t.Context(), f.Path, f.Keep); err != nil || read() != "first\x00\n\n" {
		t.Errorf("put back %q, %v", read(), err)
	}
	if err := h.Put(t.Context(), File{Path: "relative"}); err == nil {
		t.Error("a relative path was taken")
	}
}

func TestPutOfACutConnectionLeavesTheFile(t *testing.T) {
	s := sshtest.Start(t)
	h, err := Dial(t.Context(), config(s))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	target := filepath.Join(dir, "a")
	if err := os.WriteFile(target, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The server cuts the line while the content is checked.
	s.Env = append(s.Env, "NOTE="+filepath.Join(dir, "checking"))
	go func() {
		for t.Context().Err() == nil {
			if _, err := os.Stat(filepath.Join(dir, "checking")); err == nil {
				s.Cut()
				return
			}
			runtime.Gosched()
		}
	}()
	err = h.Put(t.Context(), File{Path: target, Mode: "0600", Owner: ":", Content: []byte("new"), Check: `touch "$NOTE"; sleep 1000; : {}`})
	if err == nil || errors.Is(err, ErrCheck) {
		t.Errorf("got %v, want an error of the connection", err)
	}
	if text, _ := os.ReadFile(target); string(text) != "old" {
		t.Errorf("the file says %q", text)
	}
	again := enter(t, config(s))
	if err := again.Put(t.Context(), File{Path: target, Mode: "0600", Owner: ":", Content: []byte("new")}); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(dir + "/.a.*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestFilesOfADirectory(t *testing.T) {
	b, h, _ := startBox(t)
	dir := b.Root + "/var/lib/ftpdeploy/history"
	if names, err := h.List(t.Context(), dir); err != nil || len(names) != 0 {
		t.Errorf("a directory that is not there: %q, %v", names, err)
	}
	if f, err := h.Find(t.Context(), Query{Newest: []string{dir}}); err != nil || f.Newest[dir] != "" {
		t.Errorf("a directory that is not there: %v, %v", f, err)
	}
	contents := map[string]string{"1-a": "one\n", "2-b": "", "-x y": "two\n@end\n\x00three"}
	for name, content := range contents {
		if err := h.Put(t.Context(), File{Path: dir + "/" + name, Mode: "0600", Owner: ":", Content: []byte(content)}); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := h.List(t.Context(), dir); err != nil || strings.Join(names, "|") != "-x y|1-a|2-b" {
		t.Errorf("%q, %v", names, err)
	}
	names := []string{"2-b", "-x y", "1-a"}
	texts, err := h.Read(t.Context(), dir, names...)
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		if string(texts[i]) != contents[name] {
			t.Errorf("%s: %q", name, texts[i])
		}
	}
	if _, err := h.Read(t.Context(), dir, "1-a", "none"); err == nil {
		t.Error("a file that is not there was read")
	}
	for _, left := range [][]string{{"1-a", "none"}, {"2-b", "-x y"}, {"2-b"}} {
		if err := h.Remove(t.Context(), dir, left...); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the empty directory stays: %v", err)
	}
}

func TestNote(t *testing.T) {
	h := enter(t, config(sshtest.Start(t)))
	file := filepath.Join(t.TempDir(), "state", "installed")
	for _, lines := range [][]string{{"haproxy"}, {"keepalived", "haproxy"}, {`zone rule "x" it's`}} {
		if err := h.Note(t.Context(), file, lines...); err != nil {
			t.Fatal(err)
		}
	}
	if text, _ := os.ReadFile(file); string(text) != "haproxy\nkeepalived\nzone rule \"x\" it's\n" {
		t.Errorf("got %q", text)
	}
}

func TestInstallWaitsForTheLock(t *testing.T) {
	b := sshtest.StartBox(t)
	b.Set("locked", "")
	h := enter(t, config(b.Server))
	if err := h.Install(t.Context(), "debian", Package{Name: "keepalived"}, Package{Name: "haproxy", Version: "2.6.12-1+deb12u4"}); err != nil {
		t.Fatal(err)
	}
	if got := len(b.Calls("apt-get -q -y -o Dpkg::Options::=--force-confold update")); got != 2 {
		t.Errorf("updated %d times, want twice", got)
	}
	if got := b.Calls("apt-get -q -y -o Dpkg::Options::=--force-confold install"); len(got) != 1 || !strings.HasSuffix(got[0], " keepalived haproxy=2.6.12-1+deb12u4") {
		t.Errorf("got %q", got)
	}
	if err := h.Install(t.Context(), "debian", Package{Name: "nonsense"}); err == nil || !strings.Contains(err.Error(), "not told about: install nonsense") {
		t.Errorf("got %v, want what the package manager says", err)
	}
	if err := h.Install(t.Context(), "alpine", Package{Name: "haproxy"}); err == nil {
		t.Error("an unknown family was taken")
	}
}

func TestReload(t *testing.T) {
	b, h, d := startBox(t)
	loaded := func() bool {
		t.Helper()
		f, err := h.Find(t.Context(), Query{Files: []FileQuery{{Path: d.Config}, {Path: d.Marker}}})
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(f.Files[d.Marker].Content)) == f.Files[d.Config].Identity
	}
	put := func(text string) {
		t.Helper()
		if err := h.Put(t.Context(), File{Path: d.Config, Mode: "0644", Owner: ":", Content: []byte(text)}); err != nil {
			t.Fatal(err)
		}
	}
	if loaded() {
		t.Error("loaded before we had it load anything")
	}
	put(b.Config("two"))
	if err := h.Reload(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if !loaded() {
		t.Error("not marked as loaded")
	}
	if age, ok, err := h.Age(t.Context(), d); err != nil || !ok || age < 0 || age > time.Minute {
		t.Errorf("the worker is %v old, %v, %v", age, ok, err)
	}
	put(b.Config("two")) // the same bytes, perhaps over others that were loaded
	if loaded() {
		t.Error("a file that was written since is taken for the loaded one")
	}

	// haproxy -c would find this good, and the worker cannot run with it.
	put(strings.Replace(b.Config("three"), "bind 127.0.0.1:", "bind 127.0.0.1:"+portOf(b.Address)+"\n    bind 127.0.0.1:", 1))
	if err := h.Reload(t.Context(), d); !errors.Is(err, ErrReload) {
		t.Errorf("got %v, want ErrReload", err)
	}
	if loaded() {
		t.Error("a failed reload is marked as done")
	}
	if running, err := h.Running(t.Context(), d); err != nil || !running {
		t.Errorf("it does not go on with what it had: %v", err)
	}
	b.Kill("haproxy")
	if err := h.Reload(t.Context(), d); !errors.Is(err, ErrReload) || !strings.Contains(err.Error(), "not active") {
		t.Errorf("got %v, want what systemctl says", err)
	}
	put(b.Config("four"))
	if err := h.Start(t.Context(), d); err != nil || !loaded() {
		t.Errorf("start: %v, loaded %v", err, loaded())
	}
}

func portOf(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

func TestReloadInPlace(t *testing.T) {
	b := sshtest.StartBox(t)
	h := enter(t, config(b.Server))
	if err := h.Install(t.Context(), "debian", Package{Name: "keepalived"}); err != nil {
		t.Fatal(err)
	}
	d := Daemon{Unit: "keepalived.service", Config: b.Root + "/etc/keepalived/keepalived.conf", Marker: b.Root + "/var/lib/ftpdeploy/loaded-keepalived"}
	if err := h.Put(t.Context(), File{Path: d.Config, Mode: "0644", Owner: ":", Content: bytes.Repeat([]byte("x\n"), 3)}); err != nil {
		t.Fatal(err)
	}
	for _, act := range []func() error{
		func() error { return h.Start(t.Context(), d) },
		func() error { return h.Reload(t.Context(), d) },
	} {
		if err := act(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(d.Marker); err != nil {
		t.Error(err)
	}
}

// Connections are counted where they are open, and by the address they came to.
func TestFindCountsConnections(t *testing.T) {
	_, h, _ := startBox(t)
	l, err := net.Listen("tcp", "127.0.9.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	other, err := net.Listen("tcp", net.JoinHostPort("127.0.9.2", strconv.Itoa(port)))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for _, to := range []net.Addr{l.Addr(), l.Addr(), other.Addr()} {
		c, err := net.Dial("tcp", to.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	quiet := Ports{1, 1}
	asked := Ports{port, port}
	f, err := h.Find(t.Context(), Query{Ports: []Ports{asked, quiet}})
	if err != nil {
		t.Fatal(err)
	}
	want := map[netip.Addr]int{netip.MustParseAddr("127.0.9.1"): 2, netip.MustParseAddr("127.0.9.2"): 1}
	if got, ok := f.Open[quiet]; !maps.Equal(f.Open[asked], want) || !ok || len(got) != 0 {
		t.Errorf("open: %v, want %v at %v", f.Open, want, asked)
	}
}
