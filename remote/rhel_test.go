package remote

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/ftpdeploy/ftpdeploy/remote/sshtest"
)

// rpmPrograms answer as those of RHEL 9 and Photon 5 do. They are constructed
// from the programs' manuals and published transcripts, not recorded: neither
// system could be run where this was written.
var rpmPrograms = map[string]string{
	"rpm": `case "$*" in
'-q --qf %{VERSION}-%{RELEASE}\n haproxy') echo 2.4.22-3.el9_4 ;;
'-q --qf %{VERSION}-%{RELEASE}\n keepalived') echo 'package keepalived is not installed'; exit 1 ;;
'-q --qf %{VERSION}-%{RELEASE}\n broken') echo 'error: rpmdb: BDB0113 Thread/process failed'; exit 1 ;;
'-q --qf [%{FILENAMES} %{FILEDIGESTS}\n] haproxy')
	echo '/etc/haproxy 0000000000000000000000000000000000000000000000000000000000000000'
	echo "$CONFIG $(sha256sum <"$CONFIG" | cut -d' ' -f1)" ;;
*) echo "rpm: not told about: $*" >&2; exit 99 ;;
esac`,
	"dnf":        `echo "dnf $*" >>"$CALLS"; [ "$5" != haproxy-9 ] || { echo 'Error: Unable to find a match: haproxy-9' >&2; exit 1; }`,
	"tdnf":       `echo "tdnf $*" >>"$CALLS"`,
	"setsebool":  `echo "setsebool $*" >>"$CALLS"`,
	"getenforce": `echo Enforcing`,
	"getsebool":  `echo "$1 --> off"`,
	"restorecon": `echo "restorecon $*" >>"$CALLS"`,
	"firewall-cmd": `case "$*" in
--state) echo running ;;
--get-default-zone) echo public ;;
--get-active-zones) printf 'frontend\n  interfaces: eth1\npublic (default)\n  interfaces: eth0\n' ;;
'--zone=frontend --list-all') cat <<'E'
frontend (active)
  target: default
  icmp-block-inversion: no
  interfaces: eth1
  sources: 
  services: ssh
  ports: 21/tcp 21100-21110/tcp
  protocols: 
  forward: yes
  masquerade: no
  forward-ports: 
  source-ports: 
  icmp-blocks: 
  rich rules: 
	rule family="ipv4" source address="203.0.113.12" protocol value="vrrp" accept
E
;;
'--permanent --zone=frontend --list-all') printf 'frontend\n  target: default\n  interfaces: \n  ports: 21/tcp\n  rich rules: \n' ;;
'--zone=public --list-all') printf 'public (default, active)\n  target: default\n  interfaces: eth0\n  ports: \n  rich rules: \n' ;;
'--permanent --zone=public --list-all') printf 'public\n  target: default\n  ports: \n  rich rules: \n' ;;
--permanent* | --zone*) echo "firewall-cmd $*" >>"$CALLS"; echo success ;;
*) echo "firewall-cmd: not told about: $*" >&2; exit 99 ;;
esac`,
}

// startRPM starts a machine with no other programs than rpmPrograms, sh and
// coreutils, and enters it. It returns what its programs were called with, too.
func startRPM(t *testing.T) (h *Host, cfg string, calls func() []string) {
	t.Helper()
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range rpmPrograms {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{
		"sh", "cat", "cut", "stat", "sha256sum", "md5sum", "base64", "timeout", "mkdir", "mktemp", "sync", "mv", "cp", "rm", "chown", "chmod",
	} {
		file, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(file, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	cfg = filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(cfg, []byte("global\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := sshtest.Start(t)
	s.Env = []string{"PATH=" + bin, "CALLS=" + filepath.Join(dir, "calls"), "CONFIG=" + cfg}
	calls = func() []string {
		text, _ := os.ReadFile(filepath.Join(dir, "calls"))
		return strings.Split(strings.TrimSpace(string(text)), "\n")
	}
	return enter(t, config(s)), cfg, calls
}

func TestFindWithRPM(t *testing.T) {
	h, config, _ := startRPM(t)
	ask := script + "package haproxy\npackage keepalived\nfile '" + config + "' '' haproxy\nfirewall\nselinux haproxy_connect_any\necho @end\n"
	out, err := h.Run(t.Context(), ask, nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := parseFacts(append([]byte("@os\nrhel\nfedora\n9.4\nRed Hat Enterprise Linux 9.4 (Plow)\n"), out...))
	if err != nil {
		t.Fatal(err)
	}
	if f.OS.Family != "rhel" {
		t.Errorf("family %q", f.OS.Family)
	}
	if f.Packages["haproxy"].Version != "2.4.22-3.el9_4" || f.Packages["keepalived"].Version != "" {
		t.Errorf("packages: %+v", f.Packages)
	}
	if cfg := f.Files[config]; !cfg.Pristine || string(cfg.Content) != "global\n" {
		t.Errorf("haproxy.cfg: %+v", cfg)
	}
	want := Firewall{
		Firewalld: true, Default: "public", Links: map[string]string{"eth0": "public", "eth1": "frontend"},
		Zones: map[string]Zone{
			"public": {Runtime: ZoneRules{Target: "default", Ports: []string{}}, Permanent: ZoneRules{Target: "default", Ports: []string{}}},
			"frontend": {
				Runtime: ZoneRules{
					Target: "default", Ports: []string{"21/tcp", "21100-21110/tcp"},
					Rich: []string{`rule family="ipv4" source address="203.0.113.12" protocol value="vrrp" accept`},
				},
				Permanent: ZoneRules{Target: "default", Ports: []string{"21/tcp"}},
			},
		},
	}
	if !reflect.DeepEqual(f.Firewall, want) {
		t.Errorf("firewall: %+v\nwant %+v", f.Firewall, want)
	}
	if f.Firewall.Zone("eth1") != "frontend" || f.Firewall.Zone("eth7") != "public" {
		t.Error("wrong zone of an interface")
	}
	if f.SELinux.Mode != "Enforcing" || !reflect.DeepEqual(f.SELinux.Booleans, map[string]bool{"haproxy_connect_any": false}) {
		t.Errorf("selinux: %+v", f.SELinux)
	}
	if _, err := h.Run(t.Context(), script+"package broken", nil); err == nil || !strings.Contains(err.Error(), "rpmdb") {
		t.Errorf("got %v: a broken database is not a missing package", err)
	}
}

func TestActWithRPM(t *testing.T) {
	h, config, calls := startRPM(t)
	ctx := t.Context()
	rich := `rule family="ipv4" source address="203.0.113.12" protocol value="vrrp" accept`
	for _, act := range []func() error{
		func() error {
			return h.Install(ctx, "rhel", Package{Name: "haproxy"}, Package{"keepalived", "2.2.8-3.el9"})
		},
		func() error { return h.Install(ctx, "photon", Package{Name: "haproxy"}) },
		func() error { return h.Uninstall(ctx, "rhel", "haproxy") },
		func() error { return h.SetBoolean(ctx, "haproxy_connect_any", true) },
		func() error {
			return h.Allow(ctx, FirewallRule{Zone: "public", Port: "21/tcp"}, FirewallRule{Zone: "public", Rich: rich})
		},
		func() error { return h.Disallow(ctx, FirewallRule{Zone: "public", Port: "21/tcp"}) },
		func() error { return h.Put(ctx, File{Path: config, Mode: "0644", Owner: ":"}) },
	} {
		if err := act(); err != nil {
			t.Error(err)
		}
	}
	want := []string{
		"dnf -q -y install haproxy keepalived-2.2.8-3.el9",
		"tdnf -q -y install haproxy",
		"dnf -q -y --noautoremove remove haproxy",
		"setsebool -P haproxy_connect_any on",
		"firewall-cmd --zone=public --add-port=21/tcp",
		"firewall-cmd --permanent --zone=public --add-port=21/tcp",
		"firewall-cmd --zone=public --add-rich-rule=" + rich,
		"firewall-cmd --permanent --zone=public --add-rich-rule=" + rich,
		"firewall-cmd --zone=public --remove-port=21/tcp",
		"firewall-cmd --permanent --zone=public --remove-port=21/tcp",
		"restorecon " + config,
	}
	if got := calls(); !slices.Equal(got, want) {
		t.Errorf("called\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if err := h.Install(ctx, "rhel", Package{"nonsense", ""}, Package{"haproxy", "9"}); err == nil || !strings.Contains(err.Error(), "Unable to find a match") {
		t.Errorf("got %v, want what dnf says", err)
	}
}
