package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/steps"
)

func TestDrillView(t *testing.T) {
	a, b := &blueprints.Box{Name: "haproxy-a"}, &blueprints.Box{Name: "haproxy-b"}
	vip := &blueprints.VIP{Name: "ftp", Address: netip.MustParseAddr("203.0.113.15")}
	one := steps.DrilledVIP{VIP: vip, Service: &blueprints.Service{}, Gap: 336 * time.Millisecond, Attempts: 900, Failed: 3, Holder: b, Moved: 310 * time.Millisecond, Visible: true}
	far := one
	far.Visible, far.Moved = false, 0
	for name, tt := range map[string]struct {
		drill steps.Drill
		code  int
		says  []string
	}{
		"planned": {
			steps.Drill{Box: a, VIPs: []steps.DrilledVIP{one}, Normal: 4 * time.Second},
			0,
			[]string{"planned failover of haproxy-a", "gap 336 ms for new connections, 3 of 900 failed", "gratuitous ARP seen 310 ms after the act", "now held by haproxy-b", "no session was cut; back to normal after 4.0 s"},
		},
		"hard, from afar": {
			steps.Drill{Box: a, Hard: true, VIPs: []steps.DrilledVIP{far}, Normal: 4 * time.Second, Sessions: 2, Clients: []netip.Addr{netip.MustParseAddr("203.0.113.50")}},
			0,
			[]string{"hard failover of haproxy-a", "not visible from here", "2 sessions of 203.0.113.50 cut"},
		},
		"nobody took it": {
			steps.Drill{Box: a, VIPs: []steps.DrilledVIP{{VIP: vip}}, Faults: []string{"no box holds 203.0.113.15"}},
			7,
			[]string{"NOBODY", "NOT back to normal", "FAULT    no box holds 203.0.113.15", "not asked, as no service is behind it"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			d := &deployment{app: &app{emit: (&human{out: &out, err: &out, now: time.Now}).emit}}
			if code := exitCode(d.drilled(&tt.drill), true); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			for _, text := range tt.says {
				if !strings.Contains(out.String(), text) {
					t.Errorf("no %q in\n%s", text, out.String())
				}
			}
		})
	}
}
