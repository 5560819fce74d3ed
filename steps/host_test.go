package steps

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/remote/sshtest"
	"github.com/ftpdeploy/ftpdeploy/steps/proxy"
)

// hostPeer is a box with the step that keeps it.
type hostPeer struct {
	*sshtest.Box
	*hostStep
	host *remote.Host
	text string // what haproxy.cfg says beside what it needs
}

// startHost starts a box and enters it. Its group has no VIP, so that the
// kernel's settings, which are the machine's own, stay as they are.
func startHost(t *testing.T) *hostPeer {
	t.Helper()
	p := &hostPeer{Box: sshtest.StartBox(t), text: "one"}
	if _, err := p.connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.host.Close() })
	box := &blueprints.Box{Name: "haproxy-a"}
	group := &blueprints.Group{
		Name: "ftp", Boxes: []*blueprints.Box{box}, Firewall: "detected", SELinux: "manage",
		HAProxy: blueprints.HAProxy{Package: blueprints.Package{Name: "haproxy"}, MinVersion: "2.2"}, Keepalived: blueprints.Package{Name: "keepalived"},
	}
	topology := &blueprints.Topology{ID: "lab", Boxes: []*blueprints.Box{box}, Groups: []*blueprints.Group{group}}
	p.hostStep = newHost(topology, group, box, p.connect, p.rendered, nil, nil)
	p.root = p.Root
	return p
}

// connect enters the box, again where the connection broke.
func (p *hostPeer) connect(ctx context.Context) (h *remote.Host, err error) {
	if p.host == nil || !p.host.Alive() {
		p.host, err = remote.Dial(ctx, remote.Config{
			Name: "haproxy-a", Address: p.Address, User: p.User, IdentityFile: p.Identity, HostKeys: []string{p.HostKey}, Lock: p.Root + stateDir,
		})
	}
	return p.host, err
}

func (p *hostPeer) rendered(context.Context) ([]proxy.File, error) {
	const mark = "# ftpdeploy deployment=lab lb=haproxy-a\n"
	return []proxy.File{
		{Path: proxy.CheckPath, Mode: 0o755, Content: []byte("#!/bin/sh\n" + mark), Check: []string{"sh", "-n"}},
		{
			Path: proxy.HAProxyPath, Mode: 0o644, Content: []byte(mark + p.Config(p.text)),
			Check: []string{"haproxy", "-c", "-f"}, Service: "haproxy",
		},
		{Path: proxy.KeepalivedPath, Mode: 0o644, Content: []byte(mark), Check: []string{"test", "-s"}, Service: "keepalived"},
	}, nil
}

// has tells what the box has at a path.
func (p *hostPeer) has(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(p.Root, path))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(text)
}

func (p *hostPeer) edit(t *testing.T, path, content string) {
	t.Helper()
	file := filepath.Join(p.Root, path)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// targets are the changes in a few words.
func targets(changes []plan.Change) string {
	var all []string
	for _, c := range changes {
		all = append(all, string(c.Action)+strings.TrimPrefix(c.Target, "haproxy-a:"))
	}
	return strings.Join(all, " ")
}

func TestHostConverges(t *testing.T) {
	p := startHost(t)
	converges(t, p, p.Snapshot)
	if left, err := filepath.Glob(p.Root + "/*/*"); err != nil || strings.Contains(fmt.Sprint(left), "ftpdeploy") || p.has(t, proxy.HAProxyPath) != "" {
		t.Errorf("left behind: %v %v", left, err)
	}
	if restarts := p.Calls("systemctl restart", "systemctl try-restart"); len(restarts) > 0 {
		t.Errorf("restarted: %q", restarts)
	}
}

func TestHostKeepsWhatWasInstalledBefore(t *testing.T) {
	p := startHost(t)
	if err := p.host.Install(t.Context(), "debian", remote.Package{Name: "haproxy"}); err != nil {
		t.Fatal(err)
	}
	before := p.has(t, proxy.HAProxyPath)
	if before == "" {
		t.Fatal("the package brought no configuration")
	}
	converges(t, p, p.Snapshot)
	if after := p.has(t, proxy.HAProxyPath); after != before {
		t.Errorf("haproxy.cfg was not put back: %q", after)
	}
	if running, err := p.host.Running(t.Context(), p.daemons()[0].Daemon); err != nil || !running {
		t.Errorf("haproxy ran before us and does not now (%v)", err)
	}
}

func TestHostRepairsDrift(t *testing.T) {
	p := startHost(t)
	reaches(t, p, plan.Present, p.Snapshot)
	for _, test := range []struct {
		name, want string
		drift      func(t *testing.T)
	}{
		{
			"haproxy.cfg edited", "~/etc/haproxy/haproxy.cfg >haproxy.service",
			func(t *testing.T) { p.edit(t, proxy.HAProxyPath, p.has(t, proxy.HAProxyPath)+"# by hand\n") },
		},
		{
			"edited and put back, perhaps loaded meanwhile", ">haproxy.service",
			func(t *testing.T) { p.edit(t, proxy.HAProxyPath, p.has(t, proxy.HAProxyPath)) },
		},
		{
			"blueprint changed", "~/etc/haproxy/haproxy.cfg >haproxy.service",
			func(*testing.T) { p.text = "two" },
		},
		{
			"run broken off before the reload", ">haproxy.service",
			func(t *testing.T) {
				p.text = "three"
				changes := planOnly(t, p, plan.Present)
				for _, c := range changes[:2] {
					if err := c.Do(t.Context(), func(string) {}); err != nil {
						t.Fatal(err)
					}
				}
			},
		},
		{"haproxy killed", ">haproxy.service", func(*testing.T) { p.Kill("haproxy") }},
		{"keepalived killed", ">keepalived.service", func(*testing.T) { p.Kill("keepalived") }},
		{
			"not started at boot", "~keepalived.service enabled",
			func(_ *testing.T) { os.Remove(filepath.Join(filepath.Dir(p.Root), "enabled", "keepalived")) },
		},
		{
			"script made unusable", "~" + proxy.CheckPath,
			func(_ *testing.T) { os.Chmod(filepath.Join(p.Root, proxy.CheckPath), 0o600) },
		},
		{
			"script gone", "+" + proxy.CheckPath,
			func(_ *testing.T) { os.Remove(filepath.Join(p.Root, proxy.CheckPath)) },
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.drift(t)
			if got, want := targets(reaches(t, p, plan.Present, p.Snapshot)), ">generation "+test.want+" >proof"; got != want {
				t.Errorf("planned %s, want %s", got, want)
			}
		})
	}
	if got := len(p.Calls("systemctl reload haproxy")); got < 4 {
		t.Errorf("%d reloads", got)
	}
}

func TestHostTellsWhyAFileDiffers(t *testing.T) {
	p := startHost(t)
	first := func() plan.Change {
		t.Helper()
		changes := planOnly(t, p, plan.Present)
		for _, c := range changes {
			if c.Target == "haproxy-a:"+proxy.HAProxyPath {
				return c
			}
		}
		t.Fatalf("planned %s", targets(changes))
		return plan.Change{}
	}
	if c := first(); c.Reason != "not there" || !strings.HasPrefix(c.Detail.Unified, "--- /dev/null\n+++ "+proxy.HAProxyPath+"\n@@ ") {
		t.Errorf("%q, %s", c.Reason, c.Detail.Unified)
	}
	reaches(t, p, plan.Present)
	p.text = "two"
	if c := first(); c.Reason != "the blueprint says otherwise" || !strings.Contains(c.Detail.Unified, "\n-# one\n+# two\n") {
		t.Errorf("%q, %s", c.Reason, c.Detail.Unified)
	}
	p.edit(t, proxy.HAProxyPath, p.has(t, proxy.HAProxyPath)+"# by hand\n")
	if c := first(); !strings.HasPrefix(c.Reason, "drift: edited at 20") || !strings.Contains(c.Detail.Unified, "\n-# by hand\n") {
		t.Errorf("%q, %s", c.Reason, c.Detail.Unified)
	}
}

func TestHostRefusesWhatIsNotOurs(t *testing.T) {
	for _, test := range []struct{ name, path, content, want string }{
		{"Data Plane API", proxy.HAProxyPath, "# _version=7\nglobal\n", `first line: "# _version=7", Data Plane API`},
		{"Ansible", proxy.KeepalivedPath, "# Ansible managed\n", ", Ansible)"},
		{"by hand", proxy.HAProxyPath, "global\n", `(first line: "global")`},
		{"by hand, kernel", sysctlPath, "net.ipv4.ip_nonlocal_bind=0\n", "[FTP604]"},
		{"another deployment", proxy.HAProxyPath, "# ftpdeploy deployment=other lb=haproxy-a\n", `belongs to deployment "other" and this is "lab"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := startHost(t)
			p.edit(t, test.path, test.content)
			before := p.Snapshot()
			for _, goal := range []plan.Goal{plan.Present, plan.Absent} {
				changes, err := p.Plan(t.Context(), goal)
				if _, marked := proxy.Owner([]byte(test.content)); goal == plan.Absent && !marked {
					if err != nil || len(changes) > 0 {
						t.Errorf("got %v and %d changes: destroy leaves alone what is not ours", err, len(changes))
					}
					continue
				}
				if !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), test.want) || len(changes) > 0 {
					t.Errorf("got %v and %d changes, want ErrForeign with %q", err, len(changes), test.want)
				}
			}
			if p.Snapshot() != before {
				t.Error("the box was changed")
			}
		})
	}
}

func TestHostOfAnotherFamily(t *testing.T) {
	p := startHost(t)
	p.hostStep.box.Image = &blueprints.Image{Name: "rhel9", OSFamily: "rhel"}
	before := p.Snapshot()
	if _, err := p.Plan(t.Context(), plan.Present); err == nil || !strings.Contains(err.Error(), `of the debian family, and image "rhel9" says os_family = "rhel"`) {
		t.Errorf("got %v", err)
	}
	if p.Snapshot() != before {
		t.Error("the box was changed")
	}
}

func TestHostRejectedConfigurationStaysOut(t *testing.T) {
	p := startHost(t)
	reaches(t, p, plan.Present)
	good := p.has(t, proxy.HAProxyPath)
	p.text = "broken\nno such section"
	changes := planOnly(t, p, plan.Present)
	err := changes[1].Do(t.Context(), func(string) {})
	if !errors.Is(err, remote.ErrCheck) || !strings.Contains(err.Error(), "no such section") && !strings.Contains(err.Error(), "unknown keyword") {
		t.Errorf("got %v, want ErrCheck with what haproxy says", err)
	}
	if p.has(t, proxy.HAProxyPath) != good {
		t.Error("the configuration was replaced")
	}
}

// TestHostBeforeItsMachine holds what is predicted for a machine that is not
// made yet against what is then needed.
func TestHostBeforeItsMachine(t *testing.T) {
	p := startHost(t)
	enter := p.hostStep.connect
	p.hostStep.connect = func(context.Context) (*remote.Host, error) { return nil, ErrAbsent }
	predicted := planOnly(t, p, plan.Present)
	want := map[string]string{}
	for _, c := range predicted {
		if c.From != plan.Unseen {
			t.Errorf("%s is planned from %q", c.Target, c.From)
		}
		want[c.Target] = c.Want
	}
	if changes := planOnly(t, p, plan.Absent); len(changes) > 0 {
		t.Errorf("nothing is there, and %s is to go", targets(changes))
	}
	p.hostStep.connect = enter
	for _, c := range reaches(t, p, plan.Present) {
		if w, ok := want[c.Target]; !ok || w != c.Want {
			t.Errorf("%s was not predicted: %q, %q", c.Target, c.Want, w)
		}
	}
}

// A machine that is off is not taken for an empty one: what is in it cannot be told.
func TestHostThatIsOff(t *testing.T) {
	p := startHost(t)
	reaches(t, p, plan.Present)
	enter := p.hostStep.connect
	p.hostStep.connect = func(context.Context) (*remote.Host, error) { return nil, darkError("the machine is off") }
	changes := planOnly(t, p, plan.Present)
	if len(changes) == 0 {
		t.Error("nothing is planned for a machine that nobody can look into")
	}
	for _, c := range changes {
		if c.Reason != "unless it is so already: nobody can look, the machine is off" {
			t.Errorf("%s: because %s", c.Target, c.Reason)
		}
	}
	p.hostStep.connect = enter
	if changes := planOnly(t, p, plan.Present); len(changes) > 0 {
		t.Errorf("it is as it should be, and %s is planned", targets(changes))
	}
}

func TestHostOfOursGoesAsAWhole(t *testing.T) {
	p := startHost(t)
	p.box.Site = &blueprints.Site{}
	p.hostStep.connect = func(context.Context) (*remote.Host, error) { return nil, errors.New("entered") }
	if changes, err := p.Plan(t.Context(), plan.Absent); err != nil || len(changes) > 0 {
		t.Errorf("got %v, %v", changes, err)
	}
}

// pair is a step of the first of two boxes with two NICs, a VIP and a service.
func frontendPair() *hostStep {
	front := &blueprints.Network{Name: "frontend", CIDR: netip.MustParsePrefix("203.0.113.0/24")}
	work := &blueprints.Network{Name: "workload", CIDR: netip.MustParsePrefix("10.20.0.0/22")}
	var boxes []*blueprints.Box
	for i, name := range []string{"haproxy-a", "haproxy-b"} {
		boxes = append(boxes, &blueprints.Box{Name: name, NICs: []blueprints.NIC{
			{Role: "workload", Interface: "eth0", Network: work, Address: netip.AddrFrom4([4]byte{10, 20, 0, byte(11 + i)})},
			{Role: "frontend", Interface: "eth1", Network: front, Address: netip.AddrFrom4([4]byte{203, 0, 113, byte(11 + i)})},
		}})
	}
	g := &blueprints.Group{
		Name: "ftp", Boxes: boxes, Firewall: "detected", SELinux: "manage", Keepalived: blueprints.Package{Name: "keepalived"},
		HAProxy: blueprints.HAProxy{Package: blueprints.Package{Name: "haproxy"}, MinVersion: "2.2", PeersPort: 10000, StatsRole: "workload", StatsPort: 8405},
	}
	vip := &blueprints.VIP{Name: "ftp", Group: g, Network: front, Address: netip.MustParseAddr("203.0.113.15")}
	t := &blueprints.Topology{
		ID: "lab", Boxes: boxes, Groups: []*blueprints.Group{g}, VIPs: []*blueprints.VIP{vip},
		Services: []*blueprints.Service{{Name: "vsftpd", VIP: vip, ControlPort: 21, PassiveFirst: 21100, PassiveLast: 21110}},
	}
	return newHost(t, g, boxes[0], nil, nil, nil, nil)
}

// TestHostOrder holds the whole list for a machine of RHEL's family that is not made yet.
func TestHostOrder(t *testing.T) {
	s := frontendPair()
	s.box.Image = &blueprints.Image{OSFamily: "rhel"}
	s.connect = func(context.Context) (*remote.Host, error) { return nil, ErrAbsent }
	s.rendered = func(context.Context) ([]proxy.File, error) {
		return []proxy.File{{Path: proxy.CheckPath}, {Path: proxy.HAProxyPath, Service: "haproxy"}, {Path: proxy.KeepalivedPath, Service: "keepalived"}}, nil
	}
	changes := planOnly(t, s, plan.Present)
	want := "+packages >generation +/etc/sysctl.d/90-ftpdeploy.conf ~sysctl net.ipv4.ip_nonlocal_bind ~firewalld ~selinux haproxy_connect_any " +
		"+/usr/libexec/keepalived/ftpdeploy-check +/etc/haproxy/haproxy.cfg +/etc/keepalived/keepalived.conf " +
		"~haproxy.service enabled ~keepalived.service enabled >haproxy.service >keepalived.service >proof"
	if got := targets(changes); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if !strings.Contains(changes[2].Detail.Unified, "\n+net.ipv4.ip_nonlocal_bind = 1\n") {
		t.Errorf("kernel settings: %s", changes[1].Detail.Unified)
	}
	// There, with the setting lost since and another version than the one that is pinned.
	s.group.HAProxy.Package.Version = "2.4.22-3.el9"
	s.first = &remote.Facts{
		OS:       remote.OS{Family: "rhel"},
		Packages: map[string]remote.PackageState{"haproxy": {Version: "2.4.17-1.el9"}, "keepalived": {Version: "2.2.8-3.el9"}},
		Settings: map[string]string{"net.ipv4.ip_nonlocal_bind": "0"},
	}
	changes, err := s.Plan(t.Context(), plan.Present)
	if err != nil {
		t.Fatal(err)
	}
	if c := changes[0]; c.Action != plan.Update || c.Effect != plan.Restart || c.Detail.Fields[0] != (plan.Field{Path: "haproxy", Before: "2.4.17-1.el9", After: "2.4.22-3.el9"}) {
		t.Errorf("another version: %+v", c)
	}
	if c := changes[3]; c.From != "0" || c.Detail.Fields[0] != (plan.Field{Path: "net.ipv4.ip_nonlocal_bind", Before: "0", After: "1"}) {
		t.Errorf("kernel setting: %+v", c)
	}
}

func TestHostMinVersion(t *testing.T) {
	for _, test := range []struct {
		has, minimum string
		older        bool
	}{
		{"2.6.12-1+deb12u4", "2.2", false},
		{"2.2", "2.2", false},
		{"1:2.0.33-1", "2.2", true},
		{"2.4.22-3.el9_4", "2.4.23", true},
		{"10.0-1", "9.1", false},
		{"2-1", "2.2", true},
	} {
		if got := older(test.has, test.minimum); got != test.older {
			t.Errorf("%s older than %s: %v", test.has, test.minimum, got)
		}
	}
	s := frontendPair()
	l := &hostLook{hostStep: s, facts: &remote.Facts{Packages: map[string]remote.PackageState{"haproxy": {Version: "2.0.33-1"}}}}
	if err := l.refuse(plan.Present); err == nil || !strings.Contains(err.Error(), "package haproxy on haproxy-a is 2.0.33-1, and min_version is 2.2") {
		t.Errorf("got %v", err)
	}
	l.facts.Packages["haproxy"] = remote.PackageState{Candidate: "2.0.33-1"}
	if err := l.refuse(plan.Present); err == nil || !strings.Contains(err.Error(), "would be 2.0.33-1") {
		t.Errorf("got %v", err)
	}
}

func TestHostFirewall(t *testing.T) {
	s := frontendPair()
	vrrp := `rule family="ipv4" source address="203.0.113.12" protocol value="vrrp" accept`
	peers := func(a string) string {
		return `rule family="ipv4" source address="` + a + `" port port="10000" protocol="tcp" accept`
	}
	complete := remote.ZoneRules{Ports: []string{"21/tcp", "21000-21200/tcp", "8405/tcp"}, Rich: []string{vrrp, peers("203.0.113.12"), peers("10.20.0.12")}}
	parts := func(passive ...string) remote.ZoneRules {
		return remote.ZoneRules{Ports: append([]string{"21/tcp", "8405/tcp"}, passive...), Rich: complete.Rich}
	}
	facts := func(runtime, permanent remote.ZoneRules) *remote.Facts {
		return &remote.Facts{Firewall: remote.Firewall{
			Firewalld: true, Default: "public", Links: map[string]string{"eth1": "public"},
			Zones: map[string]remote.Zone{"public": {Runtime: runtime, Permanent: permanent}},
		}}
	}
	for _, test := range []struct {
		name   string
		facts  *remote.Facts
		set    string
		fields int
		ports  string // that are opened
		err    string
	}{
		{name: "nothing open", facts: facts(remote.ZoneRules{}, remote.ZoneRules{}), fields: 6, ports: "21/tcp 21100-21110/tcp 8405/tcp"},
		{name: "all open", facts: facts(complete, complete)},
		{name: "lost at the next boot", facts: facts(complete, remote.ZoneRules{}), fields: 6},
		{name: "zone trusts", facts: facts(remote.ZoneRules{Target: "ACCEPT"}, remote.ZoneRules{Target: "ACCEPT"})},
		{name: "half the passive ports", facts: facts(remote.ZoneRules{Ports: []string{"21/tcp", "21100-21101/tcp", "8405/tcp"}, Rich: complete.Rich}, complete), fields: 1, ports: "21102-21110/tcp"},
		{name: "open in parts", facts: facts(parts("21000-21104/tcp", "21105-21110/tcp"), parts("21100-21108/tcp", "21104-21120/tcp"))},
		{name: "gaps", facts: facts(parts("21000-21104/tcp", "21107/tcp"), complete), fields: 1, ports: "21105-21106/tcp 21108-21110/tcp"},
		{name: "other gaps at the next boot", facts: facts(parts("21100-21109/tcp"), parts("21101-21110/tcp")), fields: 1, ports: "21100/tcp 21110/tcp"},
		{name: "left alone", facts: facts(remote.ZoneRules{}, remote.ZoneRules{}), set: "none"},
		{name: "no firewall", facts: &remote.Facts{}},
		{name: "firewalld wanted", facts: &remote.Facts{}, set: "firewalld", err: "does not run on haproxy-a"},
		{
			name: "someone's own filter", facts: &remote.Facts{Firewall: remote.Firewall{NFT: []string{"inet filter input: policy drop"}}},
			err: "eth1 21100-21110/tcp, eth1 protocol 112 (VRRP) from 203.0.113.12",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.group.Firewall = "detected"
			if test.set != "" {
				s.group.Firewall = test.set
			}
			l := &hostLook{hostStep: s, facts: test.facts}
			c, ok, err := l.open()
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("got %v, want %q", err, test.err)
				}
				return
			}
			if err != nil || ok != (test.fields > 0) || len(c.Detail.Fields) != test.fields {
				t.Errorf("got %+v, %v, want %d openings", c.Detail.Fields, err, test.fields)
			}
			var ports []string
			for _, r := range l.missingRules() {
				if r.Port != "" {
					ports = append(ports, r.Port)
				}
			}
			if got := strings.Join(ports, " "); test.ports != "" && got != test.ports {
				t.Errorf("opens %s, want %s", got, test.ports)
			}
		})
	}
}

// TestHostKeepsLeavingWorkers holds that a worker that leaves stays for its
// sessions, that this is silent afterwards, and that the box is asked who is in
// use only when the file changes anyway.
func TestHostKeepsLeavingWorkers(t *testing.T) {
	s := frontendPair()
	cluster := &blueprints.Cluster{Name: "tkg", Workers: []netip.Addr{netip.MustParseAddr("10.20.0.21"), netip.MustParseAddr("10.20.0.22")}}
	s.topology.Services[0].Cluster = cluster
	config := func() []proxy.File {
		t.Helper()
		files, err := proxy.Files(s.topology, s.group, s.box, nil)
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
	asked := errors.New("asked")
	s.connect = func(context.Context) (*remote.Host, error) { return nil, asked }
	keep := func(live []byte) ([]byte, error) {
		files := config()
		err := s.keepLeaving(t.Context(), files, &remote.Facts{Files: map[string]remote.FileState{proxy.HAProxyPath: {Exists: true, Content: live}}})
		return files[1].Content, err
	}
	two := config()[1].Content
	cluster.Workers = cluster.Workers[:1]
	left, err := keep(two)
	if err != nil || !proxy.HasLeft(left) {
		t.Fatalf("%v, and the worker that leaves is not kept:\n%s", err, left)
	}
	if again, err := keep(left); err != nil || !bytes.Equal(again, left) {
		t.Errorf("%v, and not silent:\n%s", err, again)
	}
	s.group.HAProxy.MaxSessions = 99
	if _, err := keep(left); !errors.Is(err, asked) {
		t.Errorf("the file changes and the box is not asked: %v", err)
	}
	if again, err := keep(bytes.Replace(left, []byte("deployment=lab"), []byte("deployment=other"), 1)); err != nil || proxy.HasLeft(again) {
		t.Errorf("%v, and kept of a file that is not ours:\n%s", err, again)
	}
}
