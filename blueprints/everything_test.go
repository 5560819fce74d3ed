package blueprints

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"github.com/ftpdeploy/ftpdeploy/steps/ftp/ftptest"
)

const everything = "testdata/everything.ftp.hcl"

// The example uses each block and argument that the language has.
func TestEverythingIsUsed(t *testing.T) {
	src, err := os.ReadFile(everything)
	if err != nil {
		t.Fatal(err)
	}
	file, diags := hclsyntax.ParseConfig(src, everything, hcl.InitialPos)
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	used := map[string]bool{}
	var visit func(prefix string, body *hclsyntax.Body)
	visit = func(prefix string, body *hclsyntax.Body) {
		for name := range body.Attributes {
			used[prefix+name] = true
		}
		for _, b := range body.Blocks {
			used[prefix+b.Type] = true
			visit(prefix+b.Type+".", b.Body)
		}
	}
	visit("", file.Body.(*hclsyntax.Body))
	var check func(prefix string, blocks map[string]spec)
	check = func(prefix string, blocks map[string]spec) {
		for typ, s := range blocks {
			if !used[prefix+typ] {
				t.Errorf("no block %s%s", prefix, typ)
			}
			for arg := range strings.FieldsSeq(s.args) {
				if name := prefix + typ + "." + strings.TrimSuffix(arg, "!"); !used[name] {
					t.Errorf("no argument %s", name)
				}
			}
			check(prefix+typ+".", s.blocks)
		}
	}
	check("", schema)
}

func TestEverything(t *testing.T) {
	src, err := os.ReadFile(everything)
	if err != nil {
		t.Fatal(err)
	}
	authority := ftptest.NewAuthority(t)
	certificate, key := authority.Issue(t, 90*24*time.Hour, "ftp.example.org")
	dir := write(t, map[string]string{
		"x.ftp.hcl": string(src), "password.txt": "from-a-file", "ftp.crt": string(certificate), "ftp.key": string(key), "ca.crt": string(authority.PEM),
	})
	topology, files, diags := Load(dir, Options{Env: from(environment), Version: "1.0.0"})
	if topology == nil {
		t.Fatal(render(t, files, diags))
	}
	if want := []string{"FTP403", "FTP208", "FTP305"}; !sameSet(codes(diags), want) {
		t.Errorf("warnings are %q, want %q", codes(diags), want)
	}
	address := netip.MustParseAddr
	made, found, g, vip := topology.Boxes[0], topology.Boxes[1], topology.Groups[0], topology.VIPs[0]
	main, elsewhere, smoke := topology.Services[0], topology.Services[1], topology.Smokes[0]
	ca := made.Site.VCenter
	for _, test := range []struct {
		what      string
		got, want any
	}{
		{"labels", topology.Labels, map[string]string{"team": "platform"}},
		{"required version", topology.RequiredVersion, ">= 0.1.0, < 2"},
		{"CA file", ca.CAFile, filepath.Join(dir, "pki/ca.pem")},
		{"vCenter's address", ca.Server, "vcenter.example:8443"},
		{"host group", made.Site.HostGroup, "hosts-a"},
		{"library item", made.Image.LibraryItem, "images/debian-12"},
		{"family", made.Image.OSFamily, "debian"},
		{"network", made.NICs[0].Network.CIDR, netip.MustParsePrefix("203.0.113.0/24")},
		{"gateway", made.NICs[0].Network.Gateway, address("203.0.113.1")},
		{"DNS", made.NICs[0].Network.DNS, []netip.Addr{address("192.0.2.53"), address("2001:db8::53")}},
		{"MTU", made.NICs[0].Network.MTU, 9000},
		{"NIC by its network", made.NIC(vip.Network), &made.NICs[0]},
		{"NIC that is not there", made.NIC(found.NICs[1].Network), (*NIC)(nil)},
		{"interface", made.NICs[0].Interface, "front0"},
		{"SSH port", made.SSH.Port, 2222},
		{"agent", made.SSH.Agent, false},
		{"identity file", made.SSH.IdentityFile, "/home/operator/.ssh/id"},
		{"SSH password", made.SSH.Password.Reveal(), "ftp-password"},
		{"known hosts", made.SSH.KnownHosts, filepath.Join(dir, "known_hosts")},
		{"host key", made.SSH.HostKey, "strict"},
		{"authorized keys", made.SSH.AuthorizedKeys, []string{"ssh-ed25519 AAAAC3Nza deploy@example"}},
		{"bastion", made.SSH.Bastion.BastionAddress, "jump.example"},
		{"become", made.SSH.Become, "none"},
		{"connect timeout", made.SSH.ConnectTimeout, 3 * time.Second},
		{"CPUs", made.CPUs, 4},
		{"memory", made.MemoryMB, 4096},
		{"disk", made.DiskGB, 30},
		{"priority", found.Priority, 7},
		{"found machine's address", found.Address, address("10.20.0.12")},
		{"anti-affinity", g.AntiAffinity, false},
		{"firewall", g.Firewall, "nftables"},
		{"SELinux", g.SELinux, "leave"},
		{"HAProxy", g.HAProxy, HAProxy{
			Package: Package{"haproxy30", "3.0.5-1"}, MinVersion: "2.6", MaxSessions: 100, Layout: "compact",
			Connect: 1500 * time.Millisecond, Client: time.Hour, Server: 90 * time.Minute, TCPKeepalive: 30 * time.Second,
			HardStopAfter: 3 * time.Hour, MinReloadGap: 20 * time.Second, StatsRole: "frontend", StatsPort: 8404, PeersPort: 10001,
			ExtraGlobal: "nbthread 2", ExtraDefaults: "option splice-auto",
		}},
		{"keepalived", g.Keepalived, Package{"keepalived22", "1:2.2.8-1"}},
		{"prefix", vip.Prefix, 32},
		{"virtual router", vip.VirtualRouter, 255},
		{"advert interval", vip.AdvertInterval, time.Second},
		{"preempt", vip.Preempt, true},
		{"transport", vip.Transport, "multicast"},
		{"probe", vip.Probe, "frontend"},
		{"GARP refresh", vip.GARPRefresh, time.Duration(0)},
		{"kubeconfig", main.Cluster.Kubeconfig, filepath.Join(dir, "kube/a") + ":/etc/kube/b:/home/operator/c"},
		{"context", main.Cluster.Context, "admin@a"},
		{"NodePorts", []int{main.Cluster.NodePortFirst, main.Cluster.NodePortLast}, []int{20000, 22767}},
		{"address type", main.Cluster.NodeAddressType, "ExternalIP"},
		{"selector", elsewhere.Cluster.WorkerSelector, "role=worker"},
		{"create namespace", main.CreateNamespace, false},
		{"live settings", main.LiveSettings, true},
		{"pull policy", main.PullPolicy, "Always"},
		{"node selector", main.NodeSelector, map[string]string{"disk": "ssd"}},
		{"tolerations", main.Tolerations, []Toleration{{Key: "ftp", Operator: "Exists"}, {Key: "a", Value: "b", Effect: "NoSchedule"}}},
		{"banner", main.Banner, "Welcome."},
		{"limits of clients", []int{main.MaxClients, main.MaxPerIP}, []int{10, 3}},
		{"idle", []time.Duration{main.IdleSession, main.DataConnection}, []time.Duration{10 * time.Minute, 2 * time.Minute}},
		{"control", []int{main.ControlPort, main.ControlNodePort}, []int{2121, 20021}},
		{"passive", []int{main.PassiveFirst, main.PassiveLast, main.NodePortFirst}, []int{21100, 21110, 21100}},
		{"same source", main.SameSourceIP, false},
		{"writable", elsewhere.Users[0].Writable, false},
		{"certificate", main.TLS.Certificate, string(certificate)},
		{"certificate's subject", main.TLS.Chain[0].Subject.CommonName, "ftp.example.org"},
		{"private key", main.TLS.PrivateKey.Reveal(), string(key)},
		{"CA", main.TLS.Roots.Equal(authority.Roots), true},
		{"server name", main.TLS.ServerName, "ftp.example.org"},
		{"versions", []string{main.TLS.MinVersion, main.TLS.MaxVersion}, []string{"1.2", "1.3"}},
		{"TLS required", main.TLS.Required, false},
		{"requests", main.Requests, map[string]string{"cpu": "100m"}},
		{"limits", main.Limits, map[string]string{"memory": "128Mi"}},
		{"external", elsewhere.Server, "external"},
		{"external user's home", elsewhere.Users[0].Home, "/srv/one"},
		{"rollout", topology.Rollout, Rollout{"standby-first", 1, "deadline", 10 * time.Minute, "halt", 40 * time.Minute}},
		{"smoke's user", smoke.User, elsewhere.Users[1]},
		{"smoke's service", smoke.Service, elsewhere},
		{"modes", smoke.Modes, []string{"epsv"}},
		{"upload", smoke.Upload, int64(3 << 20)},
		{"every port", smoke.EveryPort, false},
		{"idle and timeout", []time.Duration{smoke.LongIdle, smoke.Timeout}, []time.Duration{11 * time.Minute, 20 * time.Minute}},
		{"from", smoke.From, made.SSH.Bastion},
		{"output", topology.Outputs[0], Output{"secret", "ftp-password", true, "What to type."}},
	} {
		if !reflect.DeepEqual(test.got, test.want) {
			t.Errorf("%s: %v, want %v", test.what, test.got, test.want)
		}
	}
	volume := main.Volumes[0]
	volume.Range = hcl.Range{}
	if want := (Volume{"home", "10Gi", "/home/vsftpd", "gold", "ReadWriteMany", false, hcl.Range{}}); volume != want {
		t.Errorf("volume: %v, want %v", volume, want)
	}
}

func sameSet(a, b []string) bool {
	a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	return slices.Equal(slices.Compact(a), slices.Compact(b))
}

// What cannot be, one change of the base blueprint each, and the words that must be in what is said of it.
func TestRefused(t *testing.T) {
	for _, test := range []struct{ name, old, new, want string }{
		{"vCenter without a user", "  username   = \"deploy\"\n", "", `"username" is required`},
		{"vCenter without a password", "  password   = env(\"GOVC_PASSWORD\")\n", "", `"password" is required`},
		{"vCenter without an address", `"vcenter.example"`, `""`, "its value is empty"},
		{"image of nothing", "  template  = \"templates/debian-12\"\n", "", `"template" or "library_item"`},
		{"image of two things", "  template  = \"templates/debian-12\"\n", "  template  = \"x\"\n  library_item = \"y\"\n", "Only one of"},
		{"unknown system", `= "debian"`, `= "debain"`, `Did you mean "debian"?`},
		{"machine without a site", "  site     = site.a\n", "", `"site" (or "address"`},
		{"machine without an image", "  image    = image.debian\n", "", `"image" is required`},
		{"machine of both kinds", "  site     = site.a\n", "  site     = site.a\n  address = \"192.0.2.1\"\n", "Only one of"},
		{"machine's name", `lb "haproxy-a"`, `lb "HAProxy_a"`, "lower case letters"},
		{"label", `network "workload"`, `network "10 net"`, "nothing could refer to it"},
		{"memory of vSphere", "  priority = 110", "  priority = 110\n  memory = \"514MiB\"", "multiple of 4 MiB"},
		{"disk", "  priority = 110", "  priority = 110\n  disk = \"1536MiB\"", "whole GiB"},
		{"interface", `nic "frontend"`, `nic "frontend-interface"`, "1 to 15 letters"},
		{"two NICs of one network", "network = network.workload", "network = network.frontend", "already in network"},
		{"network without a port group", "  port_group = \"dvpg-workload\"\n", "", `"port_group" is required`},
		{"MTU", "  port_group = \"dvpg-workload\"\n", "  port_group = \"dvpg-workload\"\n  mtu = 100\n", "from 576 to 9216"},
		{"members that are none", "[lb.haproxy-a, lb.haproxy-b]", "lb.haproxy-a", "members takes a list"},
		{"member twice", "[lb.haproxy-a, lb.haproxy-b]", "[lb.haproxy-a, lb.haproxy-a]", "already a member"},
		{"advert interval too long", "virtual_router = 51", "virtual_router = 51\n  advert_interval = \"41s\"", "40.95 s"},
		{"advert interval too fine", "virtual_router = 51", "virtual_router = 51\n  advert_interval = \"505ms\"", "hundredths"},
		{"no workers", "  workers = [\"10.20.0.21\", \"10.20.0.22\"]\n", "", `"workers" or "worker_selector"`},
		{"workers in two ways", "  workers = [\"10.20.0.21\", \"10.20.0.22\"]\n", "  workers = [\"10.20.0.21\"]\n  worker_selector = \"a\"\n", "Only one of"},
		{"statistics", "  members = [lb.haproxy-a, lb.haproxy-b]\n", "  members = [lb.haproxy-a, lb.haproxy-b]\n  haproxy {\n    stats_bind = \"8404\"\n  }\n", "not NIC:PORT"},
		{"two control blocks", "  passive {", "  control {\n    node_port = 30022\n  }\n  passive {", "only one control block"},
		{"no image", "  image     = \"registry.example", "  # \"", `"image" is required`},
		{"image", "@sha256:7f0c", "@sha256:7f0", "64 hex digits"},
		{"namespace", `namespace = "ftp"`, `namespace = "FTP"`, "lower case letters"},
		{"user's name", `user "partner"`, `user "a b"`, "letters, digits and the signs"},
		{"relative mount", `mount = "/home/vsftpd"`, `mount = "home"`, "not an absolute path"},
		{"two volumes at one place", "  volume \"home\" {", "  volume \"copy\" {\n    size = \"1Gi\"\n    mount = \"/home/vsftpd\"\n  }\n\n  volume \"home\" {", "already the mount"},
		{"toleration", `namespace = "ftp"`, "namespace = \"ftp\"\n  tolerations = [{ operator = \"Like\" }]", "not Equal or Exists"},
		{"toleration's effect", `namespace = "ftp"`, "namespace = \"ftp\"\n  tolerations = [{ effect = \"Never\" }]", "NoExecute"},
		{"null in a map", `namespace = "ftp"`, "namespace = \"ftp\"\n  node_selector = { a = null }", `"a" is null`},
		{"no modes", "  target = vip.ftp\n", "  target = vip.ftp\n  modes = []\n", "Name pasv"},
		{"unknown mode", "  target = vip.ftp\n", "  target = vip.ftp\n  modes = [\"pasv\", \"port\"]\n", `"port" is not one of pasv, epsv`},
		{"rollout twice", "smoke \"end-to-end\" {", "rollout {}\n\nrollout {}\n\nsmoke \"end-to-end\" {", "another rollout block (line 116)"},
		{"home that is not known", "  user = \"ansible\"\n", "  user = \"ansible\"\n  identity_file = \"~someone/key\\u0000\"\n", "NUL"},
		{"control port of sshd", "    node_port = 30021\n", "    port = 22\n    node_port = 30021\n", "where sshd"},
		{"negative duration", "  target = vip.ftp\n", "  target = vip.ftp\n  long_idle = \"-5s\"\n", "is negative"},
		{"loopback", `"10.20.0.22"]`, `"127.0.0.1"]`, "cannot be the address"},
		{"null argument", `namespace = "ftp"`, `namespace = null`, `"namespace" is required, and its value is empty`},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := write(t, map[string]string{"x.ftp.hcl": base(t, test.old, test.new)})
			topology, files, diags := Load(dir, Options{Env: from(environment)})
			if text := render(t, files, diags); !strings.Contains(strings.Join(strings.Fields(text), " "), test.want) || topology != nil {
				t.Errorf("%q is not in\n%s", test.want, text)
			}
		})
	}
}

// The last line of a diagnostic says where a value came from.
func TestProvenance(t *testing.T) {
	src := base(t, "node_port_first = 32100", "node_port_first = local.first", "deployment \"rules\" {}",
		"deployment \"rules\" {}\nvariable \"first\" {\n  default = 32100\n}\nlocals {\n  first = var.first + 1\n}")
	dir := write(t, map[string]string{"x.ftp.hcl": src, "vars.hcl": "# first\nfirst = 32761\n"})
	file := filepath.Join(dir, "vars.hcl")
	for _, test := range []struct {
		o    Options
		want string
	}{
		{Options{Vars: map[string]string{"first": "32762"}, Env: from(environment)}, `var.first = "32762" (--var)`},
		{Options{VarFiles: []string{file}, Env: from(environment)}, "var.first = 32761 (" + file + " line 2)"},
		{Options{Env: from(environment, map[string]string{"FTPDEPLOY_VAR_first": "32763"})}, `var.first = "32763" (FTPDEPLOY_VAR_first)`},
	} {
		_, _, diags := Load(dir, test.o)
		at := slices.IndexFunc(diags, func(d *hcl.Diagnostic) bool { return Code(d) == "FTP204" })
		if at < 0 || !strings.HasSuffix(diags[at].Detail, "\n"+test.want) {
			t.Errorf("no %q in %v", test.want, diags)
		}
	}
}

// What the command line says of the rollout stands in the place of the block, and
// is held to the same rules.
func TestRolloutFromOutside(t *testing.T) {
	dir := write(t, map[string]string{"x.ftp.hcl": base(t)})
	topology, _, diags := Load(dir, Options{Env: from(environment), OnFailure: "halt", ConfirmWithin: time.Hour})
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	equal(t, "on_failure", topology.Rollout.OnFailure, "halt")
	equal(t, "confirm_within", topology.Rollout.ConfirmWithin, time.Hour)
	_, _, diags = Load(dir, Options{Env: from(environment), ConfirmWithin: time.Second})
	if !slices.ContainsFunc(diags, func(d *hcl.Diagnostic) bool { return Code(d) == "FTP313" }) {
		t.Errorf("a second is enough: %v", diags)
	}
}

// Names that only look like those of secrets are shown.
func TestSecretNames(t *testing.T) {
	for name, want := range map[string]bool{
		"password": true, "GOVC_PASSWORD": true, "FTP_PASS": true, "become_password": true, "apikey": true, "private_key": true, "MY_TOKEN": true,
		"passive": false, "passive_last": false, "bypass": false, "host_key": false, "authorized_keys": false, "compass": false,
	} {
		equal(t, name, secretName.MatchString(name), want)
	}
}
