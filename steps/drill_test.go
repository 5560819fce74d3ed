package steps

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/steps/proxy"
)

// TestDrillIsRefused holds when a box must not be made to lose its VIP.
func TestDrillIsRefused(t *testing.T) {
	a, b := startHost(t), startHost(t)
	b.box.Name = "haproxy-b"
	vip := &blueprints.VIP{Name: "ftp", Group: a.group, Address: netip.MustParseAddr("127.0.7.15")}
	for _, p := range []*hostPeer{a, b} {
		if err := p.host.Install(t.Context(), "debian", remote.Package{Name: "keepalived"}); err != nil {
			t.Fatal(err)
		}
		p.edit(t, proxy.KeepalivedPath, "x")
		p.group = a.group
		p.topology.VIPs = []*blueprints.VIP{vip}
	}
	const has, lacks = "frontend UP 127.0.7.11/24 127.0.7.15/24\n", "frontend UP 127.0.7.12/24\n"
	drill := &drillStep{hostStep: a.hostStep, drill: &Drill{Hard: true}}
	says := func(text string) {
		t.Helper()
		if _, err := drill.Plan(t.Context(), plan.Present); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want %q", err, text)
		}
	}
	says("is alone in lb_group")
	a.peers = []*hostStep{b.hostStep}
	says("holds no VIP")
	a.Set("addresses", has)
	b.Set("addresses", has)
	says("hold 127.0.7.15 both")
	b.Set("addresses", lacks)
	b.edit(t, proxy.DrainedPath, "99999999999 root@jump\n")
	says("haproxy-b is drained until")
	if err := os.Remove(filepath.Join(b.Root, proxy.DrainedPath)); err != nil {
		t.Fatal(err)
	}
	says("no other box would take 127.0.7.15, so it is not drilled: haproxy-b: keepalived.service does not run")
	if _, err := b.host.Run(t.Context(), "systemctl start keepalived.service", nil); err != nil {
		t.Fatal(err)
	}
	says("what keepalived asks HAProxy fails")
	b.edit(t, proxy.CheckPath, "#!/bin/sh\n")
	if err := os.Chmod(filepath.Join(b.Root, proxy.CheckPath), 0o755); err != nil {
		t.Fatal(err)
	}
	before := a.Snapshot() + b.Snapshot()
	if changes := planOnly(t, drill, plan.Present); targets(changes) != ">drill" || changes[0].From != "holds 127.0.7.15" || changes[0].Undo == nil {
		t.Errorf("planned %+v", changes)
	}
	if a.Snapshot()+b.Snapshot() != before {
		t.Error("the plan changed a box")
	}
}

// TestKnocker holds what is made of attempts: the gap, and whether all is well.
func TestKnocker(t *testing.T) {
	now := time.Now()
	ago := func(ms int) time.Time { return now.Add(-time.Duration(ms) * time.Millisecond) }
	k := &knocker{address: netip.MustParseAddr("203.0.113.15"), port: 21}
	if k.wait() == nil {
		t.Error("nothing was answered, and all is well")
	}
	for ms := 5000; ms > 3000; ms -= 10 {
		k.good = append(k.good, ago(ms))
	}
	if k.wait() == nil {
		t.Error("nothing was answered for three seconds, and all is well")
	}
	for ms := 2500; ms >= 0; ms -= 10 {
		k.good = append(k.good, ago(ms))
	}
	if err := k.wait(); err != nil {
		t.Error(err)
	}
	if gap := k.gap(ago(4000)); gap != 500*time.Millisecond {
		t.Errorf("gap %s, want 500 ms: 510 less the pace", gap)
	}
	if gap := k.gap(ago(2000)); gap > 300*time.Millisecond {
		t.Errorf("gap %s since a moment after it", gap)
	}

	if _, visible := k.moved(ago(4000)); visible {
		t.Error("an address that was never seen is visible")
	}
	k.hardware = []move{{"02:00:00:00:00:01", ago(5000)}}
	if after, visible := k.moved(ago(4000)); after != 0 || !visible {
		t.Errorf("moved after %s, visible %t", after, visible)
	}
	k.hardware = append(k.hardware, move{"02:00:00:00:00:02", ago(3750)})
	if after, visible := k.moved(ago(4000)); after != 250*time.Millisecond || !visible {
		t.Errorf("moved after %s, visible %t", after, visible)
	}

	table := filepath.Join(t.TempDir(), "arp")
	text := `IP address       HW type     Flags       HW address            Mask     Device
203.0.113.15     0x1         0x2         02:00:00:00:00:01     *        frontend
203.0.113.16     0x1         0x0         00:00:00:00:00:00     *        frontend
`
	if err := os.WriteFile(table, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for address, want := range map[string]string{"203.0.113.15": "02:00:00:00:00:01", "203.0.113.16": "", "203.0.113.1": ""} {
		if got := hardwareOf(table, netip.MustParseAddr(address)); got != want {
			t.Errorf("%s is at %q, want %q", address, got, want)
		}
	}
}
