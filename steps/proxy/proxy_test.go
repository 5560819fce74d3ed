package proxy

import (
	"bytes"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
)

var update = flag.Bool("update", false, "rewrite the golden files, and fail")

// production is two boxes with three NICs before three workers.
func production() *blueprints.Topology {
	frontend := &blueprints.Network{Name: "frontend", CIDR: netip.MustParsePrefix("203.0.113.0/24")}
	workload := &blueprints.Network{Name: "workload", CIDR: netip.MustParsePrefix("10.20.0.0/22")}
	management := &blueprints.Network{Name: "management", CIDR: netip.MustParsePrefix("192.0.2.0/24")}
	box := func(name string, last string, priority int) *blueprints.Box {
		return &blueprints.Box{Name: name, Priority: priority, NICs: []blueprints.NIC{
			{Role: "frontend", Interface: "frontend", Network: frontend, Address: netip.MustParseAddr("203.0.113." + last)},
			{Role: "workload", Interface: "workload", Network: workload, Address: netip.MustParseAddr("10.20.0." + last)},
			{Role: "management", Interface: "mgmt", Network: management, Address: netip.MustParseAddr("192.0.2." + last)},
		}}
	}
	group := &blueprints.Group{
		Name:  "ftp",
		Boxes: []*blueprints.Box{box("haproxy-a", "11", 110), box("haproxy-b", "12", 100)},
		HAProxy: blueprints.HAProxy{
			MinVersion: "2.4", MaxSessions: 4096, Connect: 5 * time.Second, Client: 2 * time.Hour, Server: 2 * time.Hour,
			TCPKeepalive: time.Minute, HardStopAfter: 4 * time.Hour, StatsRole: "management", StatsPort: 8404, PeersPort: 10000,
		},
	}
	vip := &blueprints.VIP{
		Name: "ftp", Group: group, Address: netip.MustParseAddr("203.0.113.15"), Network: frontend, Prefix: 24,
		VirtualRouter: 51, AdvertInterval: 500 * time.Millisecond, Transport: "unicast", Probe: "frontend-and-backend",
		GARPRefresh: time.Minute,
	}
	cluster := &blueprints.Cluster{Name: "tkg", Workers: []netip.Addr{
		netip.MustParseAddr("10.20.0.21"), netip.MustParseAddr("10.20.0.22"), netip.MustParseAddr("10.20.0.23"),
	}}
	return &blueprints.Topology{
		ID: "ftp-prod", Boxes: group.Boxes, Groups: []*blueprints.Group{group}, VIPs: []*blueprints.VIP{vip},
		Clusters: []*blueprints.Cluster{cluster},
		Services: []*blueprints.Service{{
			Name: "vsftpd", Cluster: cluster, VIP: vip, ControlPort: 21, ControlNodePort: 30021,
			PassiveFirst: 21100, PassiveLast: 21110, NodePortFirst: 32100, SameSourceIP: true,
		}},
	}
}

// lab is two boxes with two NICs and the defaults of the language.
func lab() *blueprints.Topology {
	t := production()
	t.ID = "lab"
	t.Groups[0].HAProxy.MinVersion = "2.2"
	t.Groups[0].HAProxy.StatsRole = ""
	t.VIPs[0].AdvertInterval = time.Second
	for _, b := range t.Boxes {
		b.NICs = b.NICs[:2]
	}
	return t
}

// twoServices has two VIPs on one pair: "partner" shares port 21 with "vsftpd",
// "archive" has ports of its own behind the second VIP.
func twoServices() *blueprints.Topology {
	t := production()
	t.Groups[0].HAProxy.ExtraGlobal = "tune.bufsize 32768\n"
	t.Groups[0].HAProxy.ExtraDefaults = "  option tcp-smart-connect\n  timeout queue 10s\n"
	second := *t.VIPs[0]
	second.Name, second.Address, second.VirtualRouter = "partner", netip.MustParseAddr("203.0.113.16"), 52
	second.Preempt, second.Probe = true, "frontend"
	t.VIPs = append(t.VIPs, &second)
	partner := *t.Services[0]
	partner.Name, partner.VIP, partner.ControlNodePort = "partner", &second, 30022
	partner.PassiveFirst, partner.PassiveLast, partner.NodePortFirst = 31000, 31019, 31000
	archive := *t.Services[0]
	archive.Name, archive.ControlPort, archive.ControlNodePort = "archive", 2121, 30023
	archive.PassiveFirst, archive.PassiveLast, archive.NodePortFirst = 60000, 60009, 32200
	t.Services = append(t.Services, &partner, &archive)
	return t
}

func thousandPorts() *blueprints.Topology {
	t := production()
	t.Services[0].PassiveLast, t.Services[0].NodePortFirst = 22099, 31100
	return t
}

func oneBox() *blueprints.Topology {
	t := production()
	t.Boxes = t.Boxes[:1]
	t.Groups[0].Boxes = t.Boxes
	return t
}

func multicast() *blueprints.Topology {
	t := production()
	t.VIPs[0].Transport = "multicast"
	t.VIPs[0].AdvertInterval = 200 * time.Millisecond
	return t
}

func files(t *testing.T, topology *blueprints.Topology, box int) []File {
	t.Helper()
	g := topology.Groups[0]
	files, err := Files(topology, g, g.Boxes[box], nil)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func find(t *testing.T, files []File, path string) string {
	t.Helper()
	for _, f := range files {
		if f.Path == path {
			return string(f.Content)
		}
	}
	t.Fatalf("no file %s", path)
	return ""
}

func TestGolden(t *testing.T) {
	for _, c := range []struct {
		name     string
		topology *blueprints.Topology
		box      int
	}{
		{"lab", lab(), 0},
		{"production-a", production(), 0},
		{"production-b", production(), 1},
		{"two-services", twoServices(), 0},
		{"thousand-ports", thousandPorts(), 0},
		{"one-box", oneBox(), 0},
		{"multicast", multicast(), 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, f := range files(t, c.topology, c.box) {
				golden := filepath.Join("testdata", c.name, filepath.Base(f.Path))
				want, err := os.ReadFile(golden)
				if err != nil && !*update {
					t.Fatal(err)
				}
				if !bytes.Equal(f.Content, want) {
					if !*update {
						t.Errorf("%s differs from %s; look at it, then run with -update:\n%s", f.Path, golden, f.Content)
						continue
					}
					if err := os.MkdirAll(filepath.Dir(golden), 0o755); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(golden, f.Content, 0o644); err != nil {
						t.Fatal(err)
					}
					t.Errorf("rewrote %s", golden)
				}
				accepts(t, f)
				if owner, ok := Owner(f.Content); !ok || owner != c.topology.ID {
					t.Errorf("%s: owner %q %v, want %q", f.Path, owner, ok, c.topology.ID)
				}
			}
		})
	}
}

// accepts feeds the file to the command that judges it on a box, which must have
// nothing to say but, in haproxy's case, that it is valid.
func accepts(t *testing.T, f File) {
	t.Helper()
	if f.Path == KeepalivedPath {
		acceptsKeepalived(t, f)
		return
	}
	out, err := exec.Command(f.Check[0], append(f.Check[1:], candidate(t, f.Content))...).CombinedOutput()
	if err != nil || bytes.Contains(bytes.ToLower(out), []byte("warning")) {
		t.Errorf("%s is refused: %v\n%s\n%s", f.Path, err, out, f.Content)
	}
}

func candidate(t *testing.T, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "candidate")
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// acceptsKeepalived runs keepalived -t in a network namespace that has the box's
// interfaces, as it refuses others, and with a script that is installed here.
// Without root this is a user namespace, in which all files of the system have a
// foreign owner: then its one complaint must be that.
func acceptsKeepalived(t *testing.T, f File) {
	t.Helper()
	content := bytes.ReplaceAll(f.Content, []byte(CheckPath), []byte("/usr/bin/true"))
	foreign := os.Getuid() != 0
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if foreign {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	cmd := exec.Command("sh", "-c", `PATH=$PATH:/usr/sbin:/sbin
ip link add frontend type veth peer name workload && exec "$@"`, "sh")
	cmd.Args = append(append(cmd.Args, f.Check...), candidate(t, content))
	cmd.SysProcAttr = attr
	out, err := cmd.CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if !foreign || !strings.HasPrefix(line, "Disabling track script ") || !strings.HasSuffix(line, " due to insecure\n") {
			t.Errorf("%s is refused: %v\n%s\n%s", f.Path, err, out, content)
			return
		}
	}
	if err != nil && !foreign {
		t.Errorf("%s is refused: %v\n%s", f.Path, err, content)
	}
}

func TestLengthDoesNotDependOnPorts(t *testing.T) {
	number := regexp.MustCompile(`[0-9]+`)
	want := find(t, files(t, production(), 0), HAProxyPath)
	for _, ports := range []int{1, 400, 1000} {
		top := production()
		s := top.Services[0]
		s.PassiveFirst, s.PassiveLast, s.NodePortFirst = 20100, 20099+ports, 31100
		got := find(t, files(t, top, 0), HAProxyPath)
		if number.ReplaceAllString(got, "N") != number.ReplaceAllString(want, "N") {
			t.Errorf("for %d ports more than numbers differ from those for %d:\n%s", ports, production().Services[0].PassivePorts(), got)
		}
		if len(got) != len(want) { // all these ports have five digits, and so has their distance
			t.Errorf("%d bytes for %d ports, %d for %d", len(got), ports, len(want), production().Services[0].PassivePorts())
		}
	}
}

func TestServersKeepTheirLines(t *testing.T) {
	top := production()
	g := top.Groups[0]
	servers := func(workers ...string) map[string]bool {
		var nodes []netip.Addr
		for _, w := range workers {
			nodes = append(nodes, netip.MustParseAddr(w))
		}
		files, err := Files(top, g, g.Boxes[0], map[*blueprints.Cluster][]netip.Addr{top.Clusters[0]: nodes})
		if err != nil {
			t.Fatal(err)
		}
		lines := map[string]bool{}
		for line := range strings.Lines(find(t, files, HAProxyPath)) {
			if strings.HasPrefix(line, "    server ") {
				lines[line] = true
			}
		}
		return lines
	}
	before := servers("10.20.0.22", "10.20.0.21", "10.20.0.23")
	after := servers("10.20.0.9", "10.20.0.23", "10.20.0.22", "10.20.1.21")
	if len(before) != 6 || len(after) != 8 {
		t.Fatalf("%d and %d server lines, want 6 and 8", len(before), len(after))
	}
	for line := range before {
		if gone := strings.Contains(line, "10.20.0.21"); after[line] == gone {
			t.Errorf("after a change of other workers, kept = %v: %s", after[line], line)
		}
	}
}

func TestServerIDs(t *testing.T) {
	nodes := func(s ...string) []netip.Addr {
		var nodes []netip.Addr
		for _, a := range s {
			nodes = append(nodes, netip.MustParseAddr(a))
		}
		return nodes
	}
	for _, c := range []struct {
		nodes []netip.Addr
		want  string
	}{
		{nodes("10.20.0.21", "10.20.1.21"), "[262165 262421]"},
		{nodes("10.0.0.5", "10.16.0.5", "172.32.0.5"), "[5 6 7]"}, // alike in 20 bits
		{nodes("10.0.0.0"), "[1048576]"},
		{nodes("2001:db8::1:2"), "[65538]"},
	} {
		if got := fmt.Sprint(serverIDs(c.nodes)); got != c.want {
			t.Errorf("%v: ids %s, want %s", c.nodes, got, c.want)
		}
	}
}

func TestDirect(t *testing.T) {
	top := twoServices()
	for i, want := range []bool{true, false, true} { // "partner" wants port 21 too
		address, ok := Direct(top, top.Boxes[1], top.Services[i])
		if ok != want || ok && address.String() != "203.0.113.12" {
			t.Errorf("%s: %v %v, want %v", top.Services[i].Name, address, ok, want)
		}
	}
	top.Services[1].ControlPort, top.Services[1].PassiveFirst = 2021, 21110
	if _, ok := Direct(top, top.Boxes[1], top.Services[1]); ok {
		t.Error("overlapping passive ranges share the own address")
	}
}

func TestFilesNamesWhatIsMissing(t *testing.T) {
	top := production()
	g := top.Groups[0]
	_, err := Files(top, g, g.Boxes[0], map[*blueprints.Cluster][]netip.Addr{top.Clusters[0]: {}})
	if want := `render box "haproxy-a": cluster "tkg" of ftp_service "vsftpd" has no workers`; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	g.Boxes[1].NICs = g.Boxes[1].NICs[1:]
	_, err = Files(top, g, g.Boxes[0], nil)
	if want := `render box "haproxy-b": it has no nic in network "frontend" of vip "ftp"`; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestOwner(t *testing.T) {
	for content, want := range map[string]string{
		"# ftpdeploy deployment=a-1 lb=x\nglobal\n":     "a-1",
		"#!/bin/sh\n# ftpdeploy deployment=a\n":         "a",
		"# _version=7\n":                                "",
		"":                                              "",
		"global\n# ftpdeploy deployment=a\n":            "",
		"# ftpdeploy deployment=\n":                     "",
		"#!/bin/sh\nexit\n# ftpdeploy deployment=a b\n": "",
	} {
		if got, ok := Owner([]byte(content)); got != want || ok != (want != "") {
			t.Errorf("%q: owner %q %v, want %q", content, got, ok, want)
		}
	}
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 2 * time.Hour: "2h", 90 * time.Second: "90s", 2 * time.Minute: "2m", 1500 * time.Millisecond: "1500ms",
	} {
		if got := duration(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}
