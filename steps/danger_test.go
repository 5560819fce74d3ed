package steps

import (
	"context"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/kube"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/steps/proxy"
)

// said is a step that says what it is told to.
type said struct {
	name    string
	changes []plan.Change
}

func (s said) Name() string  { return s.name }
func (said) After() []string { return nil }
func (s said) Plan(context.Context, plan.Goal) ([]plan.Change, error) {
	for i := range s.changes {
		c := &s.changes[i]
		c.Reason, c.Do = "is said so", func(context.Context, func(string)) error { return nil }
	}
	return s.changes, nil
}

func planOf(t *testing.T, goal plan.Goal, list ...plan.Step) *plan.Plan {
	t.Helper()
	p, err := plan.Make(t.Context(), goal, list, plan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDangers(t *testing.T) {
	topology := frontendPair().topology
	vm := func(box string, c plan.Change) plan.Step {
		c.Target = box
		return said{"vm/" + box, []plan.Change{c}}
	}
	reboot, reload := plan.Change{Action: plan.Update, Effect: plan.Reboot}, plan.Change{Action: plan.Run, Effect: plan.Reload}
	replace := plan.Change{Action: plan.Replace}
	needy := plan.Change{Action: plan.Update, Needs: []string{VIPChange, ShrinkRange}}
	for name, tt := range map[string]struct {
		goal plan.Goal
		list []plan.Step
		want string
	}{
		"reboot of one":   {plan.Present, []plan.Step{vm("haproxy-a", reboot), vm("haproxy-b", reload)}, ""},
		"reboot of both":  {plan.Present, []plan.Step{vm("haproxy-a", reboot), vm("haproxy-b", reboot)}, "both-boxes haproxy-a haproxy-b"},
		"one replaced":    {plan.Present, []plan.Step{vm("haproxy-a", reboot), vm("haproxy-b", replace)}, "both-boxes haproxy-a haproxy-b"},
		"reload of both":  {plan.Present, []plan.Step{vm("haproxy-a", reload), vm("haproxy-b", reload)}, ""},
		"destroy of both": {plan.Absent, []plan.Step{vm("haproxy-a", replace), vm("haproxy-b", replace)}, ""},
		"of a change":     {plan.Present, []plan.Step{vm("haproxy-a", needy)}, "vip-change haproxy-a; shrink-range haproxy-a"},
	} {
		var got []string
		for _, d := range Dangers(topology, planOf(t, tt.goal, tt.list...), nil) {
			got = append(got, d.Kind+" "+strings.Join(d.Where, " "))
		}
		if text := strings.Join(got, "; "); text != tt.want {
			t.Errorf("%s: %q, want %q", name, text, tt.want)
		}
	}
	topology.Groups[0].Boxes = topology.Groups[0].Boxes[:1]
	if d := Dangers(topology, planOf(t, plan.Present, vm("haproxy-a", reboot)), nil); d != nil {
		t.Errorf("a lone box: %v", d)
	}
}

// TestHostDangers changes the blueprint under a box that is set up.
func TestHostDangers(t *testing.T) {
	render := func(s *hostStep) []proxy.File {
		files, err := proxy.Files(s.topology, s.group, s.box, nil)
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
	pair := func() *hostStep {
		s := frontendPair()
		s.topology.Services[0].Cluster = &blueprints.Cluster{Workers: []netip.Addr{netip.MustParseAddr("10.20.0.21")}}
		return s
	}
	facts := &remote.Facts{Files: map[string]remote.FileState{}}
	for _, f := range render(pair()) {
		facts.Files[f.Path] = remote.FileState{Exists: true, Content: f.Content, SHA256: "another", Mode: "644", Owner: "root"}
	}
	for name, tt := range map[string]struct {
		change func(*blueprints.Topology)
		want   []string
	}{
		"nothing of this":   {func(t *blueprints.Topology) { t.Groups[0].HAProxy.MaxSessions = 99 }, nil},
		"another VIP":       {func(t *blueprints.Topology) { t.VIPs[0].Address = netip.MustParseAddr("203.0.113.16") }, []string{VIPChange}},
		"a smaller range":   {func(t *blueprints.Topology) { t.Services[0].PassiveLast = 21105 }, []string{ShrinkRange}},
		"a range elsewhere": {func(t *blueprints.Topology) { t.Services[0].PassiveFirst, t.Services[0].PassiveLast = 22000, 22020 }, []string{ShrinkRange}},
		"a larger range":    {func(t *blueprints.Topology) { t.Services[0].PassiveLast = 21120 }, nil},
	} {
		s := pair()
		tt.change(s.topology)
		look := &hostLook{hostStep: s, facts: facts}
		var got []string
		for _, f := range render(s) {
			if c, ok := look.write(f); ok {
				got = append(got, c.Needs...)
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: needs %q, want %q", name, got, tt.want)
		}
	}
}

func TestWhole(t *testing.T) {
	topology := frontendPair().topology
	topology.Services[0].Namespace = "ftp"
	ports := plan.Change{Action: plan.Update, Target: "Service ftp/vsftpd", Detail: plan.Diff{Fields: []plan.Field{{Path: `spec.ports[port=21,protocol="TCP"].nodePort`}}}}
	label := plan.Change{Action: plan.Update, Target: "Service ftp/vsftpd", Detail: plan.Diff{Fields: []plan.Field{{Path: "metadata.labels.team"}}}}
	servers := plan.Change{Action: plan.Update, Target: "haproxy-a:/etc/haproxy/haproxy.cfg", Detail: plan.Diff{
		Unified: "--- a\n+++ b\n@@ -1 +1 @@\n-    server 10.20.0.21 10.20.0.21:30021 id 1\n+    server 10.20.0.21 10.20.0.21:30022 id 1\n",
	}}
	timeout := servers
	timeout.Detail.Unified = "--- a\n+++ b\n@@ -1,2 +1,2 @@\n     server 10.20.0.21 10.20.0.21:30021 id 1\n-    timeout client 2h\n+    timeout client 3h\n"
	passive := plan.Change{Action: plan.Update, Target: "Deployment ftp/vsftpd", Detail: plan.Diff{
		Fields: []plan.Field{{Path: `spec.template.spec.containers[name="vsftpd"].env[name="PASV_MAX_PORT"].value`}},
	}}
	live := plan.Change{Action: plan.Update, Target: "ConfigMap ftp/vsftpd-settings", Detail: plan.Diff{Fields: []plan.Field{{Path: "data.PASV_MAX_PORT"}}}}
	image := passive
	image.Detail.Fields = []plan.Field{{Path: `spec.template.spec.containers[name="vsftpd"].image`}}
	binds := servers
	binds.Detail.Unified = "--- a\n+++ b\n@@ -1 +1 @@\n-    bind 203.0.113.15:21100-21110\n+    bind 203.0.113.15:21100-21105\n"
	created := servers
	created.Action = plan.Create
	for name, tt := range map[string]struct {
		service, config plan.Change
		skip            string
		want            string
	}{
		"both":                      {ports, servers, "", ""},
		"ports without servers":     {ports, servers, "host/haproxy-a", `leaving out host/haproxy-a would leave HAProxy on haproxy-a and ftp_service "vsftpd" with different ports`},
		"servers without ports":     {ports, servers, "kubernetes/vsftpd", "leaving out kubernetes/vsftpd would leave HAProxy on haproxy-a"},
		"a range without binds":     {passive, binds, "host/haproxy-a", "FTP207"},
		"a live range":              {live, binds, "host/haproxy-a", "FTP207"},
		"binds without their range": {passive, binds, "kubernetes/vsftpd", "FTP207"},
		"an image":                  {image, binds, "kubernetes/vsftpd", ""},
		"a label":                   {label, servers, "kubernetes/vsftpd", ""},
		"a timeout":                 {ports, timeout, "host/haproxy-a", ""},
		"a box that is made later":  {ports, created, "host/haproxy-a", ""},
		"a cluster that comes last": {plan.Change{Action: plan.Create, Target: "Service ftp/vsftpd"}, created, "kubernetes/vsftpd", "FTP207"},
	} {
		p := planOf(t, plan.Present, said{"host/haproxy-a", []plan.Change{tt.config}}, said{"kubernetes/vsftpd", []plan.Change{tt.service}})
		var scope plan.Scope
		if tt.skip != "" {
			scope.Skip = []string{tt.skip}
		}
		if _, err := p.Narrow(scope); err != nil {
			t.Fatal(err)
		}
		err := Whole(topology, p)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
}

func testObjectDangers(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	f.apply(plan.Present)
	needs := func() string {
		var all []string
		for _, c := range f.plan(plan.Present) {
			all = append(all, c.Needs...)
		}
		return strings.Join(all, " ")
	}
	f.service.PassiveLast++
	if got := needs(); got != "" {
		t.Errorf("a larger range needs %q", got)
	}
	f.service.PassiveLast -= 2
	if got := needs(); got != ShrinkRange {
		t.Errorf("a smaller range needs %q", got)
	}
	f.service.PassiveLast++
	f.service.VIP = &blueprints.VIP{Name: "ftp", Address: netip.MustParseAddr("203.0.113.16")}
	if got := needs(); got != VIPChange {
		t.Errorf("another VIP needs %q", got)
	}
	if got := f.plan(plan.Absent); !slices.ContainsFunc(got, func(c plan.Change) bool {
		return strings.HasPrefix(c.Target, "PersistentVolumeClaim") && slices.Equal(c.Needs, []string{DeleteData})
	}) {
		t.Errorf("a claim goes and nobody need allow it: %+v", got)
	}
	for _, c := range planOnly(t, f.step("home"), plan.Absent) {
		if c.Needs != nil {
			t.Errorf("%s was named and needs %q", c.Target, c.Needs)
		}
	}
	f.apply(plan.Absent)
}

// A saved plan holds no secret: of a first apply, of another password, of a removal.
func testSavedSecrets(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	hold := func(goal plan.Goal) {
		t.Helper()
		p := planOf(t, goal, f.step())
		text, err := json.Marshal(p.Save())
		if err != nil || p.Empty() {
			t.Fatalf("plan of %d changes: %v", len(p.Changes()), err)
		}
		for _, secret := range []string{canary, base64Text(canary)[:12]} {
			if strings.Contains(string(text), secret) {
				t.Errorf("the password shows in %s", text)
			}
		}
		saved := &plan.Saved{}
		if err := json.Unmarshal(text, saved); err != nil {
			t.Fatal(err)
		}
		if err := saved.Match(planOf(t, goal, f.step())); err != nil {
			t.Errorf("nothing happened, and the plan is stale: %v", err)
		}
	}
	hold(plan.Present)
	f.apply(plan.Present)
	f.service.Users[0].Password = blueprints.NewSecret(canary + "2")
	hold(plan.Present)
	f.edit(kube.Ref{Kind: "Secret", Namespace: f.service.Namespace, Name: "vsftpd-account"}, `{"data":{"FTP_PASS":"`+base64Text(canary+"3")+`"}}`)
	hold(plan.Present)
	hold(plan.Absent)
	f.apply(plan.Absent)
}

// A VIP that the server announces is dangerous to change, wherever the setting
// stands, and not when it only moves there.
func TestObjectDangers(t *testing.T) {
	const env = `spec.template.spec.containers[name="vsftpd"].env[name="PASV_ADDRESS"]`
	for name, tt := range map[string]struct {
		kind  string
		delta kube.Delta
		want  []string
	}{
		"in the environment":         {"Deployment", kube.Delta{Path: env + ".value", Before: "203.0.113.15", After: "203.0.113.16"}, []string{VIPChange}},
		"in a file":                  {"ConfigMap", kube.Delta{Path: "data.PASV_ADDRESS", Before: "203.0.113.15", After: "203.0.113.16"}, []string{VIPChange}},
		"from environment to a file": {"Deployment", kube.Delta{Path: env, Before: `{"name":"PASV_ADDRESS","value":"203.0.113.15"}`}, nil},
		"another setting":            {"ConfigMap", kube.Delta{Path: "data.BANNER", Before: "a", After: "b"}, nil},
	} {
		if got := objectDangers(tt.kind, []kube.Delta{tt.delta}); !slices.Equal(got, tt.want) {
			t.Errorf("%s: needs %q, want %q", name, got, tt.want)
		}
	}
}
