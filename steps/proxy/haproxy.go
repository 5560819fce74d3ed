package proxy

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
)

// haproxy renders haproxy.cfg. Its length does not depend on the number of ports:
// a frontend binds the whole passive range, and a backend reaches NodePort
// p+offset of the port p that the client came to.
func (r *render) haproxy() text {
	var t text
	h := &r.group.HAProxy
	at := groupOf(r.group) + ".haproxy."
	t.raw(r.header())

	t.head("global", by(groupOf(r.group)+".haproxy"))
	t.line("log stdout format short local0") // systemd's journal: no syslog daemon needed, not even in the chroot
	t.line("chroot /var/lib/haproxy")
	t.line("user haproxy")
	t.line("group haproxy")
	t.line("master-worker")
	t.line("localpeer %s", r.box.Name)
	t.line("stats socket %s mode 600 level admin expose-fd listeners", StatsSocket)
	t.line("maxconn %s", of(h.MaxSessions, at+"max_sessions"))
	t.line("hard-stop-after %s", of(duration(h.HardStopAfter), at+"hard_stop_after"))
	t.lines(h.ExtraGlobal, at+"extra_global")

	t.head("defaults", by(groupOf(r.group)+".haproxy"))
	t.line("mode tcp")
	t.line("log global")
	t.line("option tcplog")
	t.line("option dontlognull")
	t.line("option redispatch")
	t.line("retries 3")
	t.line("timeout connect %s", of(duration(h.Connect), at+"timeouts.connect"))
	t.line("timeout client %s", of(duration(h.Client), at+"timeouts.client")) // the control channel is silent while a file moves
	t.line("timeout server %s", of(duration(h.Server), at+"timeouts.server"))
	t.line("timeout check 2s")
	t.line("option clitcpka")
	t.line("option srvtcpka")
	if versionAtLeast(h.MinVersion, 2, 3) { // older ones take the idle time from sysctl net.ipv4.tcp_keepalive_time
		t.line("clitcpka-idle %s", of(duration(h.TCPKeepalive), at+"tcp_keepalive"), by(at+"min_version"))
		t.line("srvtcpka-idle %s", of(duration(h.TCPKeepalive), at+"tcp_keepalive"), by(at+"min_version"))
	}
	t.lines(h.ExtraDefaults, at+"extra_defaults")

	peers := r.group.Name + "_peers"
	if n := r.peerNetwork(); n != nil {
		t.head("peers %s", peers, by(groupOf(r.group)+".members"))
		for _, b := range r.group.Boxes {
			nic := b.NIC(n)
			t.line("peer %s %s:%s", of(b.Name, groupOf(r.group)+".members"), of(host(nic.Address), nicOf(b, nic)+".address"), of(h.PeersPort, at+"peers_port"))
		}
	}

	t.head("frontend health")
	t.line("bind %s:%d", healthHost, healthPort)
	t.line("mode http")
	t.line("http-request set-log-level silent")
	t.line("timeout client 5s")
	for _, v := range r.vips {
		services := r.servicesOf(v)
		if v.Probe == "frontend" || len(services) == 0 {
			t.line("http-request return status 200 if { path /%s }", v.Name, by(vipOf(v)+".probe"))
			continue
		}
		// A service that lost its nodes must not take the VIP from its neighbours:
		// the other box does not reach them either, unless this one reaches nothing.
		for _, s := range services {
			t.line("http-request return status 200 if { path /%s } { nbsrv(%s) ge 1 }", v.Name, ControlBackend(s), by(vipOf(v)+".probe"))
		}
	}
	// What HAProxy counts, for status and doctor: nothing that is surely on a box can
	// read its socket.
	t.line("http-request return status 503 unless { path_beg %s }", statsURI)
	t.line("stats enable")
	t.line("stats uri %s", statsURI)

	if nic := r.statsNIC(); nic != nil {
		t.head("frontend stats")
		t.line("bind %s:%s", of(host(nic.Address), nicOf(r.box, nic)+".address"), of(h.StatsPort, at+"stats_bind"))
		t.line("mode http")
		t.line("http-request set-log-level silent")
		t.line("timeout client 30s")
		t.line("stats enable")
		t.line("stats uri /")
	}

	for _, s := range r.services {
		addresses := []value{of(host(s.VIP.Address), vipOf(s.VIP)+".address")}
		if own, ok := Direct(r.topology, r.box, s); ok {
			addresses = append(addresses, of(host(own), nicOf(r.box, r.box.NIC(s.VIP.Network))+".address"))
		}
		mine, workers := serviceOf(s), clusterOf(s.Cluster)
		control, passive := ControlBackend(s), s.Name+"_passive"

		t.head("frontend %s_fe", control, by(mine))
		for _, a := range addresses {
			t.line("bind %s:%s", a, of(s.ControlPort, mine+".control.port"))
		}
		t.line("default_backend %s", control)

		t.head("frontend %s_fe", passive, by(mine))
		for _, a := range addresses {
			t.line("bind %s:%s-%s", a, of(s.PassiveFirst, mine+".passive.ports"), of(s.PassiveLast, mine+".passive.ports"))
		}
		t.line("default_backend %s", passive)

		t.head("backend %s", control, by(mine))
		t.line("balance source")
		t.line("hash-type consistent")
		t.line("stick-table type ip%s size 100k expire %s%s", of(family(s.VIP.Address), vipOf(s.VIP)+".address"),
			of(duration(r.stickFor()), r.stickFrom()), r.sharedBy(peers))
		t.line("stick on src")
		t.line("option tcp-check")
		t.line("tcp-check connect")
		t.line("tcp-check expect rstring ^(220|421)") // 421: alive, and full
		t.line(`tcp-check send QUIT\r\n`)
		t.line("default-server check inter 500ms fastinter 200ms downinter 200ms fall 2 rise 2")
		ids := serverIDs(r.workers[s.Cluster])
		for i, node := range r.workers[s.Cluster] {
			t.line("server %s %s:%s id %d", of(node, workers), host(node), of(s.ControlNodePort, mine+".control.node_port"), ids[i])
		}

		// A passive port listens only during a transfer: a check of its own would
		// find it dead, so its servers follow those of the control port.
		t.head("backend %s", passive, by(mine))
		t.line("balance source")
		t.line("hash-type consistent")
		t.line("stick on src table %s", control)
		for i, node := range r.workers[s.Cluster] {
			offset := of(fmt.Sprintf("%+d", s.NodePortFirst-s.PassiveFirst), mine+".passive.node_port_first", mine+".passive.ports")
			t.line("server %s %s:%s id %d track %s/%s", of(node, workers), host(node), offset, ids[i], control, node)
		}
	}
	return t
}

// ControlBackend is the backend of a service's control connections: its servers are
// the nodes, checked.
func ControlBackend(s *blueprints.Service) string { return s.Name + "_control" }

// serverIDs gives each node the low 20 bits of its address as its server id (2^20
// for none set). So a node keeps its id, and with it its sessions, on both boxes and
// while other nodes come and go: the stick table and the consistent hash know servers
// by it, and the hash looks at no more than these bits. Only nodes whose addresses
// differ above them, in a network wider than /12, can clash; the later then takes the
// next free id.
func serverIDs(nodes []netip.Addr) []int {
	const bits = 20
	ids, taken := make([]int, len(nodes)), map[int]bool{}
	for i, node := range nodes {
		b := node.AsSlice()
		b = b[len(b)-3:]
		id := (int(b[0])<<16 | int(b[1])<<8 | int(b[2])) & (1<<bits - 1)
		if id == 0 {
			id = 1 << bits
		}
		for taken[id] {
			id = id%(1<<bits) + 1
		}
		ids[i], taken[id] = id, true
	}
	return ids
}

// stickFor is how long a client's node is remembered after its last connection:
// longer than an idle control connection may live, as a data connection may follow.
func (r *render) stickFor() time.Duration {
	return max(4*time.Hour, 2*r.group.HAProxy.Client, 2*r.group.HAProxy.Server)
}

// stickFrom is the address of the longer timeout.
func (r *render) stickFrom() string {
	timeouts := groupOf(r.group) + ".haproxy.timeouts."
	if r.group.HAProxy.Server > r.group.HAProxy.Client {
		return timeouts + "server"
	}
	return timeouts + "client"
}

func (r *render) sharedBy(peers string) string {
	if r.peerNetwork() == nil {
		return ""
	}
	return " peers " + peers
}

// peerNetwork is where the boxes tell each other their stick tables: a network
// that all of them have a NIC in, rather one of the workers' than one of the
// clients', as the protocol has no authentication. A lone box has peers too: they
// carry the table over a reload. Nil if the boxes share no network.
func (r *render) peerNetwork() *blueprints.Network {
	var best *blueprints.Network
	bestRank := -1
	for _, nic := range r.group.Boxes[0].NICs {
		n, rank := nic.Network, 1
		for _, b := range r.group.Boxes {
			if b.NIC(n) == nil {
				rank = -1
			}
		}
		if rank == -1 {
			continue
		}
		if r.reachesWorkers(n, r.services) {
			rank = 2
		}
		for _, v := range r.vips {
			if v.Network == n {
				rank = 0
			}
		}
		if rank > bestRank {
			best, bestRank = n, rank
		}
	}
	return best
}

func (r *render) statsNIC() *blueprints.NIC {
	for i, nic := range r.box.NICs {
		if r.group.HAProxy.StatsRole != "" && nic.Role == r.group.HAProxy.StatsRole {
			return &r.box.NICs[i]
		}
	}
	return nil
}

// versionAtLeast compares "2.6.12" with major.minor.
func versionAtLeast(version string, major, minor int) bool {
	var gotMajor, gotMinor int
	if n, _ := fmt.Sscanf(version, "%d.%d", &gotMajor, &gotMinor); n < 1 {
		return false
	}
	return gotMajor > major || gotMajor == major && gotMinor >= minor
}

func family(a netip.Addr) string {
	if a.Is4() {
		return ""
	}
	return "v6"
}

// host is an address as it stands before ":port".
func host(a netip.Addr) string {
	return strings.TrimSuffix(netip.AddrPortFrom(a, 0).String(), ":0")
}

// duration is d as HAProxy writes it: a whole number of its largest unit.
func duration(d time.Duration) string {
	switch {
	case d%time.Hour == 0 && d != 0:
		return strconv.FormatInt(int64(d/time.Hour), 10) + "h"
	case d%time.Minute == 0 && d != 0:
		return strconv.FormatInt(int64(d/time.Minute), 10) + "m"
	case d%time.Second == 0:
		return strconv.FormatInt(int64(d/time.Second), 10) + "s"
	}
	return strconv.FormatInt(d.Milliseconds(), 10) + "ms"
}
