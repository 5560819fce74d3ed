package steps

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/steps/proxy"
)

func TestStatusOfABox(t *testing.T) {
	p := startHost(t)
	reaches(t, p, plan.Present, p.Snapshot)
	vip := &blueprints.VIP{Name: "ftp", Group: p.group, Address: netip.MustParseAddr("203.0.113.15")}
	p.topology.VIPs = []*blueprints.VIP{vip}
	p.Set("addresses", "lo UNKNOWN 127.0.0.1/8\nfrontend UP 203.0.113.11/24 203.0.113.15/24\n")
	held := time.Now().Add(-time.Hour).Unix()
	p.Set("journal/keepalived", fmt.Sprintf("%d.25 a Keepalived_vrrp[1]: (ftp) Entering MASTER STATE\n%d.25 a Keepalived_vrrp[1]: (ftp) Entering MASTER STATE\n", held, held-60))
	until := time.Now().Add(time.Hour).Truncate(time.Second)
	p.edit(t, proxy.DrainedPath, fmt.Sprintf("%d root@jump\n", until.Unix()))
	p.Kill("haproxy")
	before := p.Snapshot()
	b := &BoxStatus{Box: p.box}
	if err := p.status(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if p.Snapshot() != before {
		t.Error("status changed the box")
	}
	if !strings.HasPrefix(b.HAProxy, "2.6") || b.Keepalived == "" || b.OS == "" || !slices.Equal(b.Stopped, []string{"haproxy"}) || !slices.Equal(b.Holds, p.topology.VIPs) {
		t.Errorf("got %+v", b)
	}
	if !b.DrainedTo.Equal(until) || b.DrainedBy != "root@jump" {
		t.Errorf("drained until %s by %q", b.DrainedTo, b.DrainedBy)
	}
	v := (&Status{Boxes: []*BoxStatus{b}}).vip(vip)
	if v.Unknown || len(v.Holders) != 1 || v.Since.Sub(time.Unix(held, 0)).Abs() > 5*time.Second {
		t.Errorf("the VIP: %+v", v)
	}
}

func TestStatusOfNodes(t *testing.T) {
	n := nodesUp(&blueprints.Service{Name: "ftp"}, []remote.Proxy{
		{Name: "ftp_control", Server: "10.20.0.21", Status: "UP"},
		{Name: "ftp_control", Server: "10.20.0.22", Status: "DOWN", Check: "L4TOUT", Since: 7 * time.Second},
		{Name: "ftp_control", Server: "BACKEND", Status: "UP"},
		{Name: "ftp_passive", Server: "10.20.0.21", Status: "UP"},
		{Name: "other_control", Server: "10.20.0.21", Status: "UP"},
	})
	if n.Up != 1 || n.All != 2 || fmt.Sprint(n.Down) != "[10.20.0.22 DOWN since 7s (L4TOUT )]" {
		t.Errorf("got %+v", n)
	}
}

// TestStatusWithoutBoxes holds that what cannot be asked is an error, and what is
// not made yet is none.
func TestStatusWithoutBoxes(t *testing.T) {
	p := newPair(t)
	for _, b := range p.live().Status(t.Context(), time.Minute).Boxes {
		if !b.Absent || b.Err != nil {
			t.Errorf("%s is not made yet: %+v", b.Box.Name, b)
		}
	}
	p.up(t)
	p.dead(t)
	s := p.live().Status(t.Context(), time.Minute)
	for _, b := range s.Boxes {
		if b.Absent || !errors.Is(b.Err, remote.ErrUnreachable) || !strings.Contains(b.Err.Error(), "look at lb."+b.Box.Name) {
			t.Errorf("%s is dead: %+v", b.Box.Name, b)
		}
	}
	if err := s.Err(); !errors.Is(err, remote.ErrUnreachable) {
		t.Errorf("got %v", err)
	}
	if s := p.live().Status(t.Context(), 0); !errors.Is(s.Err(), ErrSilent) {
		t.Errorf("without any time: %v", s.Err())
	}
}
