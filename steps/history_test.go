package steps

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/remote"
)

// archive is a pair of boxes with the step that keeps their history.
type archive struct {
	*history
	a, b *hostPeer
	want string // what the deployment is to be
}

func startArchive(t *testing.T) *archive {
	t.Helper()
	x := &archive{a: startHost(t), b: startHost(t), want: "one"}
	x.b.box.Name = "haproxy-b"
	group := x.a.group
	group.Boxes = append(group.Boxes, x.b.box)
	x.history = &history{
		topology: x.a.topology, hosts: []*hostStep{x.a.hostStep, x.b.hostStep},
		texts: func(context.Context) (map[string]string, error) { return map[string]string{"haproxy-a/x": x.want}, nil },
		draft: func() (*Generation, error) {
			return &Generation{Run: Run{ID: "7", Who: "ci@jump1", Command: "test"}}, nil
		},
	}
	return x
}

// snapshot is what both boxes have.
func (x *archive) snapshot() string { return x.a.Snapshot() + x.b.Snapshot() }

// numbers are the generations that a box keeps.
func (x *archive) numbers(t *testing.T, p *hostPeer) string {
	t.Helper()
	st, err := p.store(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, n := range st.names {
		all = append(all, fmt.Sprint(n.number))
	}
	return strings.Join(all, " ")
}

// rounds makes further generations.
func (x *archive) rounds(t *testing.T, n int) {
	t.Helper()
	for range n {
		x.want += "+"
		reaches(t, x, plan.Present, x.snapshot)
	}
}

func TestHistory(t *testing.T) {
	x := startArchive(t)
	for i, c := range reaches(t, x, plan.Present, x.snapshot) {
		if want := "haproxy-" + string(rune('a'+i)) + ":history"; c.Target != want || c.From != "" || c.Reason != "nothing is kept yet" {
			t.Errorf("%+v, want %s", c, want)
		}
	}
	x.rounds(t, 1)
	if changes := planOnly(t, x, plan.Absent, x.snapshot); len(changes) > 0 {
		t.Errorf("planned with goal absent: %+v", changes)
	}
	for _, p := range []*hostPeer{x.a, x.b} {
		if got := x.numbers(t, p); got != "1 2" {
			t.Errorf("%s keeps %s", p.box.Name, got)
		}
		st, err := p.store(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		all, err := st.read(t.Context(), st.names...)
		if err != nil {
			t.Fatal(err)
		}
		if g := all[1]; g.Texts["haproxy-a/x"] != "one+" || g.Run.Who != "ci@jump1" || g.Words() != "x" || time.Since(g.Made) > time.Minute {
			t.Errorf("%+v", g)
		}
		if info, err := os.Stat(filepath.Join(p.Root, historyAt, st.names[0].String())); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info, err)
		}
	}
}

func TestHistoryGoesBackToWhatItWas(t *testing.T) {
	x := startArchive(t)
	for _, before := range []string{"", "1 2 3"} {
		if before != "" {
			x.rounds(t, 3)
		}
		x.want += "!"
		changes := planOnly(t, x, plan.Present)
		for _, c := range changes {
			if err := c.Do(t.Context(), func(string) {}); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range changes {
			if err := c.Undo(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if a, b := x.numbers(t, x.a), x.numbers(t, x.b); a != before || b != before {
			t.Errorf("the boxes keep %q and %q, and kept %q", a, b, before)
		}
		if _, err := os.Stat(filepath.Join(x.a.Root, historyAt)); err == nil && before == "" {
			t.Error("an empty history is left")
		}
	}
}

func TestHistoryIsTheSameOnAllBoxes(t *testing.T) {
	x := startArchive(t)
	x.rounds(t, 3)
	t.Run("one is new", func(t *testing.T) {
		if err := os.RemoveAll(filepath.Join(x.b.Root, historyAt)); err != nil {
			t.Fatal(err)
		}
		changes := reaches(t, x, plan.Present, x.snapshot)
		if got := targets(changes); got != "+haproxy-b:history" || changes[0].Reason != "it lacks what haproxy-a keeps: generation 3" {
			t.Errorf("planned %s: %s", got, changes[0].Reason)
		}
		if got := x.numbers(t, x.b); got != "1 2 3" {
			t.Errorf("the new box keeps %s", got)
		}
	})
	t.Run("two runs used one number", func(t *testing.T) {
		// As if a run had reached only b, when a was out of reach.
		texts := map[string]string{"haproxy-a/x": "another"}
		sum, err := digest(texts)
		if err != nil {
			t.Fatal(err)
		}
		n := generationName{3, time.Now().UTC().Add(time.Hour).Truncate(time.Second), sum}
		text, err := (&Generation{Format: generationFormat, Number: 3, Made: n.made, Texts: texts}).encode()
		if err != nil {
			t.Fatal(err)
		}
		x.b.edit(t, filepath.Join(historyAt, n.String()), string(text))
		reaches(t, x, plan.Present, x.snapshot)
		for _, p := range []*hostPeer{x.a, x.b} {
			st, err := p.store(t.Context())
			if err != nil || x.numbers(t, p) != "1 2 3 4" || st.names[2] != n {
				t.Errorf("%s keeps %v, %v", p.box.Name, st.names, err)
			}
		}
	})
	t.Run("the oldest go", func(t *testing.T) {
		x.rounds(t, keptGenerations)
		if a, b := x.numbers(t, x.a), x.numbers(t, x.b); a != "4 5 6 7 8 9 10 11 12 13 14" || a != b {
			t.Errorf("the boxes keep %s and %s", a, b)
		}
	})
	t.Run("one is not there", func(t *testing.T) {
		x.want += "?"
		x.b.hostStep.connect = func(context.Context) (*remote.Host, error) { return nil, ErrAbsent }
		changes := planOnly(t, x, plan.Present)
		if len(changes) != 2 || changes[0].From == plan.Unseen || changes[1].From != plan.Unseen {
			t.Errorf("%+v", changes)
		}
		x.b.hostStep.connect = x.b.connect
	})
	t.Run("one was edited", func(t *testing.T) {
		st, err := x.a.store(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(historyAt, st.newest().String())
		for _, p := range []*hostPeer{x.a, x.b} {
			p.edit(t, file, strings.Replace(p.has(t, file), "one", "two", 1))
		}
		c := planOnly(t, x, plan.Present)[0]
		if err := c.Do(t.Context(), func(string) {}); err == nil || !strings.Contains(err.Error(), "is not as ftpdeploy wrote it") {
			t.Errorf("got %v", err)
		}
		x.a.edit(t, filepath.Join(historyAt, "notes.txt"), "")
		if _, err := x.Plan(t.Context(), plan.Present); err == nil || !strings.Contains(err.Error(), "notes.txt") {
			t.Errorf("got %v", err)
		}
	})
}

// then is a pair of boxes with a service, as a blueprint has it.
func then() *blueprints.Topology {
	a, b := &blueprints.Box{Name: "haproxy-a"}, &blueprints.Box{Name: "haproxy-b"}
	t, s := ftpTopology()
	g := &blueprints.Group{Name: "ftp", Boxes: []*blueprints.Box{a, b}, HAProxy: blueprints.HAProxy{PeersPort: 10000}}
	s.VIP.Group = g
	s.Volumes = []blueprints.Volume{{Name: "home", Size: "1Gi", Mount: "/home/vsftpd", AccessMode: "ReadWriteOnce"}}
	t.Boxes, t.Groups, t.VIPs = []*blueprints.Box{a, b}, []*blueprints.Group{g}, []*blueprints.VIP{s.VIP}
	t.Smokes = []*blueprints.Smoke{{Name: "one", VIP: s.VIP, Service: s}, {Name: "two", Standby: g, Service: s}}
	return t
}

// keptOf is a topology as a generation.
func keptOf(t *testing.T, topology *blueprints.Topology) *Generation {
	t.Helper()
	g := &Generation{Number: 7, Texts: map[string]string{}}
	g.describe(topology)
	for _, b := range topology.Boxes {
		g.Texts[machineName(b.Name)] = machineText(topology.Groups[0], b)
	}
	m, err := workload{topology, topology.Services[0]}.manifests()
	if err != nil {
		t.Fatal(err)
	}
	objects, err := objectTexts(topology.Services[0], m)
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(g.Texts, objects)
	return g
}

func TestGenerationServesWhatItServed(t *testing.T) {
	g, now := keptOf(t, then()), then()
	s := now.Services[0]
	s.ControlPort, s.ControlNodePort, s.PassiveFirst, s.PassiveLast, s.NodePortFirst = 2121, 30022, 22100, 22109, 32500
	now.Groups[0].HAProxy.PeersPort, now.Groups[0].HAProxy.MaxSessions = 10001, 5
	old, err := g.at(now)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := *keptOf(t, old), *g; fmt.Sprint(got.Groups, got.Services) != fmt.Sprint(want.Groups, want.Services) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if s.ControlPort != 2121 || now.Groups[0].HAProxy.PeersPort != 10001 {
		t.Error("the blueprint's topology was written to")
	}
	if old.Groups[0].HAProxy.MaxSessions != 5 {
		t.Error("more than addresses and ports went back")
	}
	for _, smoke := range old.Smokes {
		if smoke.Service != old.Services[0] || smoke.VIP != nil && smoke.VIP != old.VIPs[0] || smoke.Standby != nil && smoke.Standby != old.Groups[0] {
			t.Errorf("smoke %q proves another service", smoke.Name)
		}
	}
	if old.VIPs[0].Group != old.Groups[0] || old.Services[0].VIP != old.VIPs[0] {
		t.Error("not of one piece")
	}
}

func TestGenerationThatCannotBeGoneBackTo(t *testing.T) {
	live := func(t *blueprints.Topology) *Live {
		return Open(t, Options{Env: func(string) (string, bool) { return "", false }})
	}
	for _, tt := range []struct {
		want   string
		change func(*blueprints.Topology)
	}{
		{`has in lb_group "ftp" haproxy-a, haproxy-b, and the blueprint haproxy-a. Machines do not go back`, func(t *blueprints.Topology) { t.Groups[0].Boxes = t.Groups[0].Boxes[:1] }},
		{`has ftp_service "vsftpd", and the blueprint has not`, func(t *blueprints.Topology) { t.Services[0].Name = "ftp" }},
		{`has not ftp_service "ftp", and the blueprint has`, func(t *blueprints.Topology) { t.Services[0].Name = "ftp" }},
		{`has ftp_service "vsftpd" in clear text, and the blueprint with TLS. Certificates do not go back`, func(t *blueprints.Topology) { t.Services[0].TLS = &blueprints.TLS{} }},
		{`uses claim vsftpd-home, and no volume of ftp_service "vsftpd" is called so any more`, func(t *blueprints.Topology) { t.Services[0].Volumes = nil }},
		{"has Deployment ftp/vsftpd, and the blueprint Deployment files/vsftpd", func(t *blueprints.Topology) { t.Services[0].Namespace = "files" }},
	} {
		now := then()
		tt.change(now)
		if _, _, err := live(now).BackTo(keptOf(t, then())); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
}

func TestGenerationSaysWhatStays(t *testing.T) {
	now := then()
	now.Services[0].Volumes[0].Size = "2Gi"
	now.Services[0].Users[0].Password = blueprints.NewSecret("another")
	now.Services[0].Banner = "goes back"
	now.Boxes[0].Site, now.Boxes[0].CPUs, now.Boxes[0].MemoryMB = &blueprints.Site{}, 4, 1024
	_, stays, err := Open(now, Options{}).BackTo(keptOf(t, then()))
	want := []string{
		"haproxy-a/machine: 4 CPUs, 1024 MiB memory", "kubernetes/vsftpd/PersistentVolumeClaim vsftpd-home: not as it was then",
		"kubernetes/vsftpd: the account; its name or password was another",
	}
	if err != nil || !slices.EqualFunc(stays, want, strings.HasPrefix) {
		t.Errorf("%q, %v, want %q", stays, err, want)
	}
}

// testGoesBack goes back to a generation in which other ports were served.
func testGoesBack(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	f.deploy.VIPs = []*blueprints.VIP{f.service.VIP}
	f.apply(plan.Present)
	m, err := workload{f.deploy, f.service}.manifests()
	if err != nil {
		t.Fatal(err)
	}
	g := &Generation{Number: 7}
	g.describe(f.deploy)
	if g.Texts, err = objectTexts(f.service, m); err != nil {
		t.Fatal(err)
	}
	f.service.ControlNodePort++
	f.service.Banner, f.service.Users[0].Password = "new", blueprints.NewSecret("new")
	f.apply(plan.Present)

	live := Open(f.deploy, Options{Kubeconfig: f.server.Kubeconfig, Env: func(string) (string, bool) { return "", false }})
	now, err := live.Now(t.Context(), g)
	if err != nil {
		t.Fatal(err)
	}
	var shown strings.Builder
	for _, d := range Diff("7", g.GoingBack(), "now", now) {
		shown.WriteString(d.Unified)
	}
	for _, want := range []string{
		"--- 7/kubernetes/vsftpd/Service vsftpd\n+++ now/kubernetes/vsftpd/Service vsftpd\n",
		fmt.Sprintf("-    nodePort: %d\n+    nodePort: %d\n", f.service.ControlNodePort-1, f.service.ControlNodePort),
		"+        - name: BANNER\n+          value: new\n",
	} {
		if !strings.Contains(shown.String(), want) {
			t.Errorf("the diff lacks %q:\n%s", want, shown.String())
		}
	}

	if _, stays, err := live.BackTo(g); err != nil || len(stays) != 1 {
		t.Fatalf("%q, %v", stays, err)
	}
	past := live.kubernetes(live.topology.Services[0], nil)
	f.wantSigns(f.apply(plan.Present, past), "~ Deployment NS/vsftpd", "~ Service NS/vsftpd")
	if now, err = live.Now(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	for _, d := range Diff("7", g.GoingBack(), "now", now) {
		if strings.Count(d.Unified, "\n-") != 1 || !strings.Contains(d.Unified, "\n-"+"        ftpdeploy.dev/secret-checksum: ") {
			t.Errorf("more than the account's checksum is otherwise after going back:\n%s", d.Unified)
		}
	}
	f.wantSigns(f.plan(plan.Present), "~ Deployment NS/vsftpd", "~ Service NS/vsftpd")
}
