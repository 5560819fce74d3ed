package steps

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/kube"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/steps/proxy"
	"github.com/ftpdeploy/ftpdeploy/vsphere"
)

// edit replaces one text of the lab's blueprint by another.
type edit struct{ old, text string }

// fromLab reads the lab's blueprint.
func fromLab(t *testing.T) string {
	t.Helper()
	src, err := os.ReadFile("../blueprints/lab.ftp.hcl")
	if err != nil {
		t.Fatal(err)
	}
	return string(src)
}

// load is a blueprint with edits. It changes the working directory.
func load(t *testing.T, src string, edits ...edit) *blueprints.Topology {
	t.Helper()
	text := src
	for _, e := range edits {
		if e.old == "" {
			continue
		}
		if text = strings.ReplaceAll(text, e.old, e.text); text == src {
			t.Fatalf("the blueprint has no %q", e.old)
		}
	}
	t.Chdir(t.TempDir()) // so that places in it have its bare name
	if err := os.WriteFile("lab.ftp.hcl", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	topology, _, diags := blueprints.Load("lab.ftp.hcl", blueprints.Options{Env: func(name string) (string, bool) { return "/" + name, true }})
	if topology == nil {
		t.Fatal(diags)
	}
	return topology
}

// written is a file as ftpdeploy left it.
func written(content []byte, mode os.FileMode) remote.FileState {
	sum := sha256.Sum256(content)
	return remote.FileState{
		Exists: true, SHA256: hex.EncodeToString(sum[:]), Mode: fmt.Sprintf("%o", mode.Perm()), Owner: "root", Group: "root", Content: content,
		Identity: hex.EncodeToString(sum[:]) + " 1", Modified: time.Date(2026, 11, 20, 14, 2, 0, 0, time.UTC),
	}
}

// asApplied is a box of the lab as an apply leaves it; the first box holds the
// VIP, with three sessions and two transfers.
func asApplied(t *testing.T, topology *blueprints.Topology, n int) *hostStep {
	t.Helper()
	g := topology.Groups[0]
	b := g.Boxes[n]
	s := newHost(topology, g, b, nil, func(context.Context) ([]proxy.File, error) { return proxy.Files(topology, g, b, nil) }, nil, nil)
	files, err := s.files(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f := &remote.Facts{
		OS:       remote.OS{Family: "debian"},
		Packages: map[string]remote.PackageState{"haproxy": {Version: "2.6.12-1"}, "keepalived": {Version: "2.2.7-1"}},
		Units:    map[string]remote.UnitState{},
		Settings: map[string]string{"net.ipv4.ip_nonlocal_bind": "1"},
		Files:    map[string]remote.FileState{installedAt: written([]byte("haproxy\nkeepalived\n"), 0o644), generationAt: written([]byte("4\n"), 0o644)},
		Open:     map[remote.Ports]map[netip.Addr]int{},
	}
	for _, file := range files {
		f.Files[file.Path] = written(file.Content, file.Mode)
	}
	for _, d := range s.daemons() {
		f.Units[d.Unit] = remote.UnitState{Exists: true, Active: "active", Enabled: "enabled"}
		f.Files[d.Marker] = written([]byte(f.Files[d.Config].Identity+"\n"), 0o644)
	}
	if n == 0 {
		vip := topology.VIPs[0].Address
		f.Links = []remote.Link{{Name: "frontend", Addresses: []netip.Prefix{netip.PrefixFrom(vip, 24)}}}
		f.Open = opened(s, vip)
	}
	s.seen = f
	return s
}

// opened are three sessions and two transfers, as a box counts them that is asked for
// the ports of the blueprint.
func opened(s *hostStep, vip netip.Addr) map[remote.Ports]map[netip.Addr]int {
	t := &remote.Traffic{}
	for _, port := range []uint16{21, 21, 21, 21101, 21104} {
		t.Open = append(t.Open, remote.Connection{Local: netip.AddrPortFrom(vip, port)})
	}
	return s.counts(t).Open
}

// asFound is a box of the lab as an apply of another blueprint has left it.
func asFound(t *testing.T, before, now *blueprints.Topology, n int) *hostStep {
	t.Helper()
	s := asApplied(t, now, n)
	s.seen = asApplied(t, before, n).seen
	if n == 0 {
		s.seen.Open = opened(s, before.VIPs[0].Address)
	}
	s.start = s.position(s.seen)
	return s
}

// planned is a step with changes that are known.
type planned struct {
	name    string
	changes []plan.Change
}

func (p planned) Name() string                                           { return p.name }
func (p planned) After() []string                                        { return nil }
func (p planned) Plan(context.Context, plan.Goal) ([]plan.Change, error) { return p.changes, nil }

// The kinds of changes, each with its cause and its cost in words.
func TestWhyAndWhatItCosts(t *testing.T) {
	golden, err := filepath.Abs("testdata/why.txt")
	if err != nil {
		t.Fatal(err)
	}
	src := fromLab(t)
	nodePort := func(path, before, after, manager string) kube.Delta {
		return kube.Delta{Path: path, Before: before, After: after, Manager: manager, Time: time.Date(2026, 11, 20, 14, 2, 0, 0, time.UTC)}
	}
	object := func(kind, name string, effect plan.Effect, deltas ...kube.Delta) func(*testing.T, *blueprints.Topology) planned {
		return func(_ *testing.T, top *blueprints.Topology) planned {
			k := &kubernetes{workload: workload{top, top.Services[0]}}
			ref := kube.Ref{Kind: kind, Namespace: "ftp", Name: name}
			var fields []plan.Field
			for _, d := range deltas {
				fields = append(fields, plan.Field{Path: d.Path, Before: d.Before, After: d.After})
			}
			return planned{k.Name(), []plan.Change{{
				Action: plan.Update, Target: ref.String(), Reason: reason(deltas), Cause: k.cause(ref, deltas), Effect: effect, Detail: plan.Diff{Fields: fields},
				Do: func(context.Context, func(string)) error { return nil },
			}}}
		}
	}
	machine := func(e vsphere.Edit) func(*testing.T, *blueprints.Topology) planned {
		return func(_ *testing.T, top *blueprints.Topology) planned {
			s := &vmStep{box: top.Boxes[0]}
			s.topology = top
			vm := &vsphere.VM{Modified: time.Date(2026, 11, 20, 14, 2, 0, 0, time.UTC)}
			return planned{s.Name(), []plan.Change{s.edit(vmSpec(top, s.box), vm, &e)}}
		}
	}
	box := func(n int, happened func(*remote.Facts)) func(*testing.T, *blueprints.Topology) planned {
		return func(t *testing.T, top *blueprints.Topology) planned {
			now := asFound(t, load(t, src), top, n)
			if happened != nil {
				happened(now.seen)
			}
			files, err := now.files(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			changes, err := (&hostLook{hostStep: now, files: files, facts: now.seen}).changes()
			if err != nil {
				t.Fatal(err)
			}
			return planned{now.Name(), changes}
		}
	}
	const holder, standby = 0, 1
	edited := func(path string, change func(*remote.FileState)) func(*remote.Facts) {
		return func(f *remote.Facts) {
			s := f.Files[path]
			change(&s)
			f.Files[path] = s
		}
	}
	var out strings.Builder
	for _, c := range []struct {
		name  string
		edit  edit
		makes func(*testing.T, *blueprints.Topology) planned
	}{
		{"a timeout of HAProxy", edit{`client  = "2h"`, `client  = "3h"`}, box(holder, nil)},
		{"the same on the standby", edit{`client  = "2h"`, `client  = "3h"`}, box(standby, nil)},
		{"hard_stop_after", edit{`hard_stop_after = "4h"`, `hard_stop_after = "2h"`}, box(holder, nil)},
		{"lines of the operator's", edit{`hard_stop_after = "4h"`, "hard_stop_after = \"4h\"\n    extra_global = \"tune.bufsize 32768\""}, box(holder, nil)},
		{"a worker added", edit{`"198.51.100.23"]`, `"198.51.100.23", "198.51.100.24"]`}, box(holder, nil)},
		{"a worker removed", edit{`, "198.51.100.23"]`, `]`}, box(holder, nil)},
		{"the passive range widened", edit{`"21100-21110"`, `"21100-21120"`}, box(holder, nil)},
		{"the control NodePort", edit{`node_port = 30021`, `node_port = 30022`}, box(holder, nil)},
		{"the passive NodePorts", edit{`node_port_first = 32100`, `node_port_first = 32200`}, box(holder, nil)},
		{"the VIP", edit{`address         = "203.0.113.15"`, `address         = "203.0.113.16"`}, box(holder, nil)},
		{"advert_interval", edit{`advert_interval = "500ms"`, `advert_interval = "1s"`}, box(holder, nil)},
		{"priority", edit{`priority = 110`, `priority = 120`}, box(holder, nil)},
		{"a version of HAProxy", edit{`hard_stop_after = "4h"`, "hard_stop_after = \"4h\"\n    version = \"2.6.12-2\""}, box(holder, nil)},
		{"haproxy.cfg edited by hand", edit{}, box(holder, edited(proxy.HAProxyPath, func(s *remote.FileState) {
			*s = written(append(s.Content, "# by hand\n"...), 0o644)
			s.Owner, s.Identity = "alice", "other"
		}))},
		{"haproxy.cfg removed", edit{}, box(holder, edited(proxy.HAProxyPath, func(s *remote.FileState) { *s = remote.FileState{} }))},
		{"the mode of haproxy.cfg", edit{}, box(holder, edited(proxy.HAProxyPath, func(s *remote.FileState) { s.Mode = "600" }))},
		{"haproxy.cfg touched", edit{}, box(holder, edited(proxy.HAProxyPath, func(s *remote.FileState) { s.Identity = "touched" }))},
		{"a service stopped", edit{}, box(standby, func(f *remote.Facts) {
			f.Units["haproxy.service"] = remote.UnitState{Exists: true, Active: "inactive", Enabled: "enabled"}
		})},
		{"a service not enabled", edit{}, box(standby, func(f *remote.Facts) {
			f.Units["keepalived.service"] = remote.UnitState{Exists: true, Active: "active", Enabled: "disabled"}
		})},
		{"a kernel setting", edit{}, box(standby, func(f *remote.Facts) { f.Settings["net.ipv4.ip_nonlocal_bind"] = "0" })},
		{"a package removed", edit{}, box(standby, func(f *remote.Facts) { f.Packages["keepalived"] = remote.PackageState{Candidate: "2.2.7-1"} })},
		{"more CPUs, by a reboot", edit{`cpus     = 1`, `cpus     = 2`}, machine(vsphere.Edit{Off: true, Differences: []vsphere.Difference{{Path: "cpus", Before: "1", After: "2"}}})},
		{"memory changed by hand, hot-added", edit{}, machine(vsphere.Edit{Drift: true, Differences: []vsphere.Difference{{Path: "memory_mb", Before: "768", After: "512"}}})},
		{"a port group", edit{`"dvpg-frontend"`, `"dvpg-other"`}, machine(vsphere.Edit{Cuts: true, Differences: []vsphere.Difference{{Path: "nic.frontend.port_group", Before: "dvpg-frontend", After: "dvpg-other"}}})},
		{"a machine that is not there", edit{}, func(_ *testing.T, top *blueprints.Topology) planned {
			s := &vmStep{box: top.Boxes[1]}
			s.topology = top
			return planned{s.Name(), []plan.Change{s.create(vmSpec(top, s.box))}}
		}},
		{"the password", edit{}, object("Deployment", "vsftpd", plan.Rollout, kube.Delta{Path: "spec.template.metadata.annotations[" + secretChecksum + "]", Before: "a", After: "b"})},
		{"the image", edit{`vsftpd:lab"`, `vsftpd:new"`}, object("Deployment", "vsftpd", plan.Rollout, kube.Delta{Path: `spec.template.spec.containers[name="vsftpd"].image`, Before: "old", After: "new"})},
		{"a NodePort changed by hand", edit{}, object("Service", "vsftpd", plan.NoEffect, nodePort(`spec.ports[port=21104,protocol="TCP"].nodePort`, "31999", "32104", "kubectl-edit"))},
		{"a NodePort of the blueprint", edit{`node_port_first = 32100`, `node_port_first = 32200`}, object("Service", "vsftpd", plan.NoEffect, nodePort(`spec.ports[port=21104,protocol="TCP"].nodePort`, "32104", "32204", ""))},
		{"the Service's control NodePort", edit{`node_port = 30021`, `node_port = 30022`}, object("Service", "vsftpd", plan.NoEffect, nodePort(`spec.ports[port=21,protocol="TCP"].nodePort`, "30021", "30022", ""))},
		{"a volume's size", edit{`size  = "1Gi"`, `size  = "2Gi"`}, object("PersistentVolumeClaim", "vsftpd-home", plan.NoEffect, kube.Delta{Path: "spec.resources.requests.storage", Before: "1Gi", After: "2Gi"})},
	} {
		step := planned{}
		t.Run(c.name, func(t *testing.T) {
			step = c.makes(t, load(t, src, c.edit))
			top, before := load(t, src, c.edit), load(t, src)
			l := &Live{topology: top, steps: []*hostStep{asFound(t, before, top, holder), asFound(t, before, top, standby)}}
			p, err := plan.Make(t.Context(), plan.Present, []plan.Step{step}, plan.Options{})
			if err != nil {
				t.Fatal(err)
			}
			all := l.Forecast(p)
			fmt.Fprintf(&out, "== %s\n", c.name)
			for _, change := range p.Changes() {
				if strings.HasSuffix(change.Target, ":generation") || strings.HasSuffix(change.Target, ":proof") {
					continue
				}
				describe(&out, change)
			}
			fmt.Fprintf(&out, "in all: %d sessions and %d transfers open, %d cut, %d VIP moves\n\n", all.Sessions, all.Transfers, all.Cut, all.VIPMoves)
		})
	}
	want, err := os.ReadFile(golden)
	if err != nil && !*update {
		t.Fatal(err)
	}
	if got := out.String(); got != string(want) {
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		t.Errorf("differs from %s; look at it, then run with -update:\n%s", golden, got)
	}
}

func describe(out *strings.Builder, c plan.Change) {
	fmt.Fprintf(out, "%s %s, effect %s\n", c.Action, c.Target, c.Effect)
	fmt.Fprintf(out, "    because %s: %s", c.Cause.Kind, c.Reason)
	if c.Cause.By != "" {
		fmt.Fprintf(out, " (by %s)", c.Cause.By)
	}
	if !c.Cause.At.IsZero() {
		fmt.Fprintf(out, " (at %s)", c.Cause.At.Format(time.DateTime))
	}
	fmt.Fprintln(out)
	for _, s := range c.Cause.Source {
		fmt.Fprintf(out, "        %s %s:%d,%d\n", s.Address, s.File, s.Start.Line, s.Start.Col)
	}
	if c.Effect != plan.NoEffect || c.Impact.VIPMoves > 0 {
		fmt.Fprintf(out, "    impact holds %q, %d sessions, %d transfers, %d cut, %d VIP moves", c.Impact.Holds, c.Impact.Sessions, c.Impact.Transfers, c.Impact.Cut, c.Impact.VIPMoves)
		if c.Impact.Note != "" {
			fmt.Fprintf(out, "; %s", c.Impact.Note)
		}
		fmt.Fprintln(out)
	}
}
