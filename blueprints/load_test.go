package blueprints

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/hcl/v2"
)

// load loads a blueprint that must be without errors.
func load(t *testing.T, path string, o Options) *Topology {
	t.Helper()
	topology, files, diags := Load(path, o)
	if diags.HasErrors() {
		t.Fatalf("%s:\n%s", path, render(t, files, diags))
	}
	return topology
}

// write makes files in a new directory and returns it.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// base is a small blueprint without a fault, with replacements made in it.
func base(t *testing.T, oldnew ...string) string {
	t.Helper()
	src, err := os.ReadFile("testdata/rules/base" + suffix)
	if err != nil {
		t.Fatal(err)
	}
	s := string(src)
	for i := 0; i < len(oldnew); i += 2 {
		if !strings.Contains(s, oldnew[i]) {
			t.Fatalf("no %q in the base blueprint", oldnew[i])
		}
		s = strings.Replace(s, oldnew[i], oldnew[i+1], 1)
	}
	return s
}

func codes(diags hcl.Diagnostics) []string {
	var out []string
	for _, d := range diags {
		if Code(d) != "FTP601" {
			out = append(out, Code(d))
		}
	}
	return out
}

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}

func TestProduction(t *testing.T) {
	topology := load(t, "production.ftp.hcl", Options{Env: from(environment), Version: "0.1.0"})
	equal(t, "id", topology.ID, "ftp-prod")
	equal(t, "label team", topology.Labels["team"], "platform")
	equal(t, "boxes", len(topology.Boxes), 2)
	a, b := topology.Boxes[0], topology.Boxes[1]
	equal(t, "site", b.Site.Name, "b")
	equal(t, "vCenter of the site", a.Site.VCenter.Server, "vcenter.example")
	equal(t, "password", a.Site.VCenter.Password.Reveal(), "vcenter-password")
	equal(t, "SSH address", a.Address, netip.MustParseAddr("192.0.2.11"))
	equal(t, "memory", a.MemoryMB, 2048)
	equal(t, "disk", a.DiskGB, 20)
	equal(t, "interface", a.NICs[2].Interface, "management")
	equal(t, "default route", a.NICs[0].Default, true)
	equal(t, "known_hosts", a.SSH.KnownHosts, "/home/operator/.ssh/known_hosts")
	g := topology.Groups[0]
	equal(t, "second member", g.Boxes[1], b)
	equal(t, "client timeout", g.HAProxy.Client, 2*time.Hour)
	equal(t, "statistics", g.HAProxy.StatsRole, "management")
	equal(t, "statistics port", g.HAProxy.StatsPort, 8404)
	equal(t, "peers port", g.HAProxy.PeersPort, 10000)
	v := topology.VIPs[0]
	equal(t, "VIP", v.Address, netip.MustParseAddr("203.0.113.15"))
	equal(t, "prefix", v.Prefix, 24)
	equal(t, "advert interval", v.AdvertInterval, 500*time.Millisecond)
	equal(t, "GARP refresh", v.GARPRefresh, time.Minute)
	c := topology.Clusters[0]
	equal(t, "workers", len(c.Workers), 3)
	equal(t, "kubeconfig", c.Kubeconfig, "/etc/kube/config")
	s := topology.Services[0]
	equal(t, "passive ports", s.PassivePorts(), 11)
	equal(t, "NodePort of the last passive port", s.NodePort(21110), 32110)
	equal(t, "user's password", s.Users[0].Password.Reveal(), "ftp-password")
	equal(t, "storage class", s.Volumes[0].StorageClass, "")
	equal(t, "second volume is kept", s.Volumes[1].Keep, true)
	equal(t, "smoke's VIP", topology.Smokes[0].VIP, v)
	equal(t, "smoke's upload", topology.Smokes[0].Upload, 8<<20)
	equal(t, "smoke's user", topology.Smokes[1].User, s.Users[0])
	equal(t, "standby", topology.Smokes[1].Standby, g)
	equal(t, "drain deadline", topology.Rollout.DrainDeadline, 30*time.Minute)
	equal(t, "output", topology.Outputs[0].Value, "ftp://203.0.113.15:21/")
}

func TestLab(t *testing.T) {
	topology := load(t, "lab.ftp.hcl", Options{Env: from(environment)})
	equal(t, "id", topology.ID, "lab")
	a := topology.Boxes[0]
	equal(t, "identity file", a.SSH.IdentityFile, "/nowhere/id_ed25519")
	equal(t, "CA file", a.Site.VCenter.CAFile, "/etc/ca.pem")
	equal(t, "sudo's password", a.SSH.BecomePassword.Reveal(), "sudo-password")
	equal(t, "memory", a.MemoryMB, 512)
	equal(t, "workers", len(topology.Clusters[0].Workers), 3)
	equal(t, "namespace", topology.Services[0].Namespace, "ftp")
	equal(t, "create namespace", topology.Services[0].CreateNamespace, true)
	equal(t, "pull policy", topology.Services[0].PullPolicy, "IfNotPresent")
	equal(t, "home", topology.Services[0].Users[0].Home, "/home/vsftpd/partner")
	equal(t, "order", topology.Rollout.Order, "standby-first")
	equal(t, "every port", topology.Smokes[0].EveryPort, true)
}

func TestShippedBlueprintsAreFormatted(t *testing.T) {
	for _, path := range []string{"production.ftp.hcl", "lab.ftp.hcl"} {
		src, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if formatted := Format(src); !bytes.Equal(formatted, src) {
			t.Errorf("%s is not formatted", path)
		}
	}
}

func TestFormatIsIdempotentAndKeepsComments(t *testing.T) {
	once := Format([]byte("deployment \"x\" {\nlabels={a=\"b\"} # why\n  required_version    = \">= 1\"\n}\n"))
	want := "deployment \"x\" {\n  labels           = { a = \"b\" } # why\n  required_version = \">= 1\"\n}\n"
	equal(t, "formatted", string(once), want)
	equal(t, "formatted twice", string(Format(once)), want)
}

func TestLoadIsFast(t *testing.T) {
	const budget = 100 * time.Millisecond
	best := time.Hour
	for range 5 { // the machine has other things to do too
		start := time.Now()
		load(t, "production.ftp.hcl", Options{Env: from(environment)})
		best = min(best, time.Since(start))
	}
	t.Logf("production.ftp.hcl loads in %s", best)
	if best > budget {
		t.Errorf("production.ftp.hcl loads in %s, want at most %s", best, budget)
	}
}

func TestDirectory(t *testing.T) {
	whole := base(t)
	at := strings.Index(whole, "lb_group \"ftp\"")
	dir := write(t, map[string]string{"a.ftp.hcl": whole[at:], "b.ftp.hcl": whole[:at], "other.hcl": "not { of ours"})
	topology := load(t, dir, Options{Env: from(environment)})
	equal(t, "members", len(topology.Groups[0].Boxes), 2)
	equal(t, "file", topology.File, dir)

	_, _, diags := Load(t.TempDir(), Options{})
	if !slices.Equal(codes(diags), []string{"FTP105"}) {
		t.Errorf("an empty directory gives %v", diags)
	}
	_, _, diags = Load(filepath.Join(dir, "nothing"), Options{})
	if !slices.Equal(codes(diags), []string{"FTP105"}) {
		t.Errorf("a file that is not there gives %v", diags)
	}
}

func TestFind(t *testing.T) {
	dir := write(t, map[string]string{"a.ftp.hcl": "", "a.auto.ftpvars.hcl": "", "main.hcl": ""})
	got, err := Find(dir)
	if want := filepath.Join(dir, "a.ftp.hcl"); got != want || err != nil {
		t.Errorf("Find gives %q, %v, want %q", got, err, want)
	}
	dir = write(t, map[string]string{"a.ftp.hcl": "", "b.ftp.hcl": ""})
	if got, err = Find(dir); err == nil || !strings.Contains(err.Error(), "a.ftp.hcl, b.ftp.hcl") {
		t.Errorf("two blueprints give %q, %v", got, err)
	}
	if got, err = Find(t.TempDir()); err == nil || !strings.Contains(err.Error(), "no *.ftp.hcl") {
		t.Errorf("no blueprint gives %q, %v", got, err)
	}
}

func TestDynamicBlocks(t *testing.T) {
	src := base(t, `  volume "home" {
    size  = "1Gi"
    mount = "/home/vsftpd"
  }`, `  dynamic "volume" {
    for_each = { home = "1Gi", logs = "2Gi" }
    labels   = [volume.key]
    content {
      size  = volume.value
      mount = "/srv/${volume.key}"
    }
  }`)
	topology := load(t, write(t, map[string]string{"x.ftp.hcl": src}), Options{Env: from(environment)})
	volumes := topology.Services[0].Volumes
	equal(t, "volumes", len(volumes), 2)
	equal(t, "mount", volumes[1].Mount, "/srv/logs")
	equal(t, "size", volumes[1].Size, "2Gi")
}

// A machine that ftpdeploy does not create has an address and names its interfaces.
func TestMachinesOfOthers(t *testing.T) {
	foreign := []string{
		"  site     = site.a\n  image    = image.debian\n", "  address  = \"192.0.2.11\"\n",
		"    address = \"203.0.113.11\"\n", "    address   = \"203.0.113.11\"\n    interface = \"ens192\"\n",
		"    address = \"10.20.0.11\"\n    ssh     = true\n", "    address   = \"10.20.0.11\"\n    interface = \"ens224\"\n",
	}
	topology := load(t, write(t, map[string]string{"x.ftp.hcl": base(t, foreign...)}), Options{Env: from(environment)})
	a := topology.Boxes[0]
	equal(t, "created", a.Created(), false)
	equal(t, "address", a.Address, netip.MustParseAddr("192.0.2.11"))
	equal(t, "interface", a.NICs[1].Interface, "ens224")

	_, _, diags := Load(write(t, map[string]string{"x.ftp.hcl": base(t, foreign[:4]...)}), Options{Env: from(environment)})
	if !slices.ContainsFunc(diags, func(d *hcl.Diagnostic) bool { return strings.Contains(d.Detail, `"interface"`) }) {
		t.Errorf("no interface gives %v", diags)
	}
}

// govc takes the account from GOVC_URL where it is there; so do we, and keep it out of the address.
func TestServerWithAccount(t *testing.T) {
	src := base(t, `"vcenter.example"`, `env("GOVC_URL")`, "  username   = \"deploy\"\n  password   = env(\"GOVC_PASSWORD\")\n", "")
	env := map[string]string{"GOVC_URL": "https://deploy:hunter2@vcenter.example:8989/sdk", "FTP_PASSWORD": "x"}
	v := load(t, write(t, map[string]string{"x.ftp.hcl": src}), Options{Env: from(env)}).Boxes[0].Site.VCenter
	equal(t, "server", v.Server, "https://vcenter.example:8989/sdk")
	equal(t, "username", v.Username, "deploy")
	equal(t, "password", v.Password.Reveal(), "hunter2")
}

// testdata/id_ed25519 is a key of this test only, as ssh-keygen writes it with a passphrase.
func TestAuthorizedKeys(t *testing.T) {
	const blob = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICW3l5v3J3dCOTrD0nBqU9MQzmfRQhE4WIa3Mnv5yMKG"
	private, err := os.ReadFile("testdata/id_ed25519")
	if err != nil {
		t.Fatal(err)
	}
	public, err := os.ReadFile("testdata/id_ed25519.pub")
	if err != nil {
		t.Fatal(err)
	}
	line := strings.TrimSpace(string(public))
	bare := strings.Join(strings.Fields(line)[:2], " ")
	for _, test := range []struct {
		name  string
		files map[string]string
		args  string
		want  []string
	}{
		{"beside the key", map[string]string{"key": "unreadable", "key.pub": string(public)}, `identity_file = "key"`, []string{line}},
		{"in the key, though it is encrypted", map[string]string{"key": string(private)}, `identity_file = "key"`, []string{bare}},
		{"nowhere", map[string]string{"key": "unreadable"}, `identity_file = "key"`, nil},
		{"no file", nil, `identity_file = "key"`, nil},
		{"given", map[string]string{"key.pub": string(public)}, `identity_file = "key"` + "\n authorized_keys = [\"" + blob + "\"]", []string{blob}},
		{"given none", map[string]string{"key.pub": string(public)}, `identity_file = "key"` + "\n authorized_keys = []", []string{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			files := map[string]string{"x.ftp.hcl": base(t, "  user = \"ansible\"\n", "  user = \"ansible\"\n  "+test.args+"\n")}
			for name, content := range test.files {
				files[name] = content
			}
			dir := write(t, files)
			ssh := load(t, dir, Options{Env: from(environment)}).Boxes[0].SSH
			equal(t, "identity file", ssh.IdentityFile, filepath.Join(dir, "key"))
			if !slices.Equal(ssh.AuthorizedKeys, test.want) {
				t.Errorf("authorized keys are %q, want %q", ssh.AuthorizedKeys, test.want)
			}
		})
	}
}

func TestRequiredVersion(t *testing.T) {
	for _, test := range []struct {
		version, constraint string
		want                bool
	}{
		{"0.1.0", ">= 0.1.0", true},
		{"0.1.0", "> 0.1.0", false},
		{"0.10.0", ">= 0.9", true},
		{"1.2.3", "1.2.3", true},
		{"1.2.3", "!= 1.2.3", false},
		{"1.2.3", ">= 1, < 2", true},
		{"2.0.0", ">= 1, < 2", false},
		{"v1.2.3-rc1", "<= 1.2.3", true},
		{"dev", ">= 9", true},
		{"", ">= 9", true},
	} {
		if got, err := satisfies(test.version, test.constraint); got != test.want || err != nil {
			t.Errorf("%q with %q gives %v, %v", test.version, test.constraint, got, err)
		}
	}
	for _, constraint := range []string{"", "new", ">= x", ">= 1,", "~> 1.2", "=> 1"} {
		if _, err := satisfies("1.0.0", constraint); err == nil {
			t.Errorf("constraint %q is accepted", constraint)
		}
	}
}
