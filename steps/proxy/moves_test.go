package proxy

import (
	"net/netip"
	"testing"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
)

// rendered are the haproxy.cfg and the keepalived.conf of the first box.
func rendered(t *testing.T, change func(*blueprints.Topology)) (haproxy, keepalived []byte) {
	t.Helper()
	topology := production()
	if change != nil {
		change(topology)
	}
	group := topology.Groups[0]
	files, err := Files(topology, group, group.Boxes[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		switch f.Path {
		case HAProxyPath:
			haproxy = f.Content
		case KeepalivedPath:
			keepalived = f.Content
		}
	}
	return haproxy, keepalived
}

func TestDangerousDifferences(t *testing.T) {
	haproxy, keepalived := rendered(t, nil)
	for _, tt := range []struct {
		name           string
		change         func(*blueprints.Topology)
		moves, shrinks bool
	}{
		{"nothing", nil, false, false},
		{"another address", func(t *blueprints.Topology) { t.VIPs[0].Address = netip.MustParseAddr("203.0.113.99") }, true, false},
		{"another mask", func(t *blueprints.Topology) { t.VIPs[0].Prefix-- }, false, false},
		{"another router", func(t *blueprints.Topology) { t.VIPs[0].VirtualRouter++ }, false, false},
		{"a port less", func(t *blueprints.Topology) { t.Services[0].PassiveLast-- }, false, true},
		{"a later first port", func(t *blueprints.Topology) { t.Services[0].PassiveFirst++; t.Services[0].NodePortFirst++ }, false, true},
		{"a port more", func(t *blueprints.Topology) { t.Services[0].PassiveLast++ }, false, false},
		{"other NodePorts", func(t *blueprints.Topology) { t.Services[0].NodePortFirst++ }, false, false},
	} {
		h, k := rendered(t, tt.change)
		if got := MovesVIP(keepalived, k); got != tt.moves {
			t.Errorf("%s: MovesVIP is %t", tt.name, got)
		}
		if got := ShrinksRange(haproxy, h); got != tt.shrinks {
			t.Errorf("%s: ShrinksRange is %t", tt.name, got)
		}
		if got := WidensRange(h, haproxy); got != tt.shrinks {
			t.Errorf("%s: WidensRange is %t of the way back", tt.name, got)
		}
	}
	both, _ := rendered(t, func(t *blueprints.Topology) { t.Services[0].PassiveLast++; t.Services[0].NodePortFirst++ })
	if WidensRange(haproxy, both) || ShrinksRange(haproxy, both) {
		t.Error("a port more and other NodePorts: the old ports lead elsewhere")
	}
	peers, addresses := UnicastPeers(keepalived), VirtualAddresses(keepalived)
	if name := production().VIPs[0].Name; len(peers[name]) != 1 || len(addresses[name]) != 1 || peers[name][0] == addresses[name][0] {
		t.Errorf("peers %v, addresses %v", peers, addresses)
	}
	if !MovesVIP(keepalived, nil) {
		t.Error("a VIP that goes is none that moves")
	}
	if MovesVIP(nil, keepalived) || ShrinksRange(nil, haproxy) {
		t.Error("what is new is a danger")
	}
}
