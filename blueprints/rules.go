package blueprints

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// check runs the rules that look across blocks. Each passes over what could not be read, which
// has its zero value and has been reported.
func (l *loader) check() {
	t := l.topology
	for _, n := range sortedKeys(l.networks) {
		l.checkNetwork(l.networks[n])
	}
	for _, b := range t.Boxes {
		l.checkBox(b)
	}
	for _, v := range t.VIPs {
		l.checkVIP(v)
	}
	l.checkAddresses()
	l.checkRouters()
	for _, g := range t.Groups {
		l.checkGroup(g)
	}
	for _, c := range t.Clusters {
		l.checkWorkers(c)
	}
	for _, s := range t.Services {
		l.checkServer(s)
		l.checkPath(s)
		l.checkNodePortRange(s)
		l.checkPorts(s)
	}
	l.checkNodePorts()
	l.checkBinds()
	l.checkClaims()
	for _, s := range t.Smokes {
		l.checkSmoke(s)
	}
	l.checkTimes()
}

// place is where an argument of a topology's object was written.
func (l *loader) place(of any, arg string) place {
	if b := l.blocks[of]; b != nil {
		return b.at(arg)
	}
	return place{}
}

// nicPlace is where an argument of a box's i-th NIC was written.
func (l *loader) nicPlace(b *Box, i int, arg string) place {
	return l.blocks[b].children["nic"][i].at(arg)
}

// inner is where an argument of an object's only block of a type was written.
func (l *loader) inner(of any, typ, arg string) place { return l.blocks[of].child(typ).at(arg) }

// inside reports an address that is not in its network or that the network keeps for itself.
func (l *loader) inside(what string, a netip.Addr, n *Network, at place) {
	if n == nil || !a.IsValid() || !n.CIDR.IsValid() {
		return
	}
	switch {
	case !n.CIDR.Contains(a):
		l.fail("FTP201", at, "Address is not in its network", "%s %s is outside network %q, %s.", what, a, n.Name, n.CIDR)
	case a == n.CIDR.Addr() && n.CIDR.Addr().Is4() && n.CIDR.Bits() < 31:
		l.fail("FTP202", at, "Address belongs to something else", "%s %s is the address of network %q itself.", what, a, n.Name)
	case a == lastAddr(n.CIDR):
		l.fail("FTP202", at, "Address belongs to something else", "%s %s is the broadcast address of network %q.", what, a, n.Name)
	}
}

func (l *loader) checkNetwork(n *Network) { l.inside("Gateway", n.Gateway, n, l.place(n, "gateway")) }

func (l *loader) checkBox(b *Box) {
	block := l.blocks[b]
	var ssh, defaults []int
	for i, n := range b.NICs {
		l.inside(fmt.Sprintf("%s address of lb %q", n.Role, b.Name), n.Address, n.Network, l.nicPlace(b, i, "address"))
		if n.SSH {
			ssh = append(ssh, i)
		}
		if n.Default {
			defaults = append(defaults, i)
			if n.Network != nil && l.blocks[n.Network].attrs["gateway"] == nil {
				l.fail("FTP210", l.nicPlace(b, i, "default"), "Default route without a gateway",
					"Network %q has no gateway. Give it one, or put the default route of lb %q elsewhere.", n.Network.Name, b.Name)
			}
		}
		for j := range i {
			if n.Network != nil && b.NICs[j].Network == n.Network {
				l.fail("FTP109", l.nicPlace(b, i, "network"), "Declared twice", "nic %q of lb %q is already in network %q.", b.NICs[j].Role, b.Name, n.Network.Name)
			}
			if n.Interface != "" && b.NICs[j].Interface == n.Interface {
				l.fail("FTP109", l.nicPlace(b, i, "interface"), "Declared twice", "nic %q of lb %q is already interface %q.", b.NICs[j].Role, b.Name, n.Interface)
			}
		}
	}
	if len(defaults) > 1 {
		l.fail("FTP210", l.nicPlace(b, defaults[1], "default"), "More than one default route",
			"nic %q of lb %q already holds the default route. A machine has one: set default = false on the others.", b.NICs[defaults[0]].Role, b.Name)
	}
	switch {
	case block.attrs["address"] != nil && len(ssh) > 0:
		l.fail("FTP209", l.nicPlace(b, ssh[0], "ssh"), "More than one way in", "lb %q has an address, where SSH connects: leave ssh = true out.", b.Name)
	case block.attrs["address"] != nil:
	case len(ssh) == 0 && !block.failedBelow("nic", "ssh"):
		l.fail("FTP209", block.here(), "No way in", "No nic of lb %q has ssh = true. Set it on the one that ftpdeploy reaches.", b.Name)
	case len(ssh) > 1:
		l.fail("FTP209", l.nicPlace(b, ssh[1], "ssh"), "More than one way in",
			"nic %q of lb %q already has ssh = true. Set it on one nic only.", b.NICs[ssh[0]].Role, b.Name)
	case len(ssh) == 1:
		b.Address = b.NICs[ssh[0]].Address
	}
	if b.Site != nil && b.Image != nil && b.Site.VCenter != nil && b.Image.VCenter != nil && b.Site.VCenter != b.Image.VCenter {
		l.fail("FTP217", block.at("image"), "Image is in another vCenter",
			"lb %q goes to site %q of vcenter %q, but image %q is in vcenter %q.", b.Name, b.Site.Name, b.Site.VCenter.Name, b.Image.Name, b.Image.VCenter.Name)
	}
}

// failedBelow tells whether an argument of some inner block could not be read.
func (b *block) failedBelow(typ, arg string) bool {
	return slices.ContainsFunc(b.children[typ], func(c *block) bool { return c.failed[arg] })
}

func (l *loader) checkVIP(v *VIP) {
	at := l.place(v, "address")
	l.inside("VIP", v.Address, v.Network, at)
	if v.Group == nil || v.Network == nil {
		return
	}
	for _, b := range v.Group.Boxes {
		if b.NIC(v.Network) == nil && !slices.ContainsFunc(b.NICs, func(n NIC) bool { return n.Network == nil }) {
			l.fail("FTP218", l.place(v, "network"), "VIP has no place on a machine",
				"lb %q has no nic in network %q, so it could never hold vip %q.", b.Name, v.Network.Name, v.Name)
		}
	}
}

// checkAddresses reports addresses that two things want.
func (l *loader) checkAddresses() {
	type owner struct {
		what string
		at   place
	}
	owners := map[netip.Addr]owner{}
	claim := func(a netip.Addr, what string, at place) {
		if !a.IsValid() {
			return
		}
		if other, taken := owners[a]; taken {
			l.fail("FTP203", at, "Address is used twice", "%s is %s and also %s (%s).", a, what, other.what, other.at.seenFrom(at))
			return
		}
		owners[a] = owner{what, at}
	}
	for _, name := range l.declared["network"] {
		n := l.networks[name]
		claim(n.Gateway, fmt.Sprintf("the gateway of network %q", n.Name), l.place(n, "gateway"))
	}
	for _, b := range l.topology.Boxes {
		for i, n := range b.NICs {
			claim(n.Address, fmt.Sprintf("the %s address of lb %q", n.Role, b.Name), l.nicPlace(b, i, "address"))
		}
		if block := l.blocks[b]; block.attrs["address"] != nil && !slices.ContainsFunc(b.NICs, func(n NIC) bool { return n.Address == b.Address }) {
			claim(b.Address, fmt.Sprintf("the address of lb %q", b.Name), block.at("address"))
		}
	}
	vips := map[netip.Addr]bool{}
	for _, v := range l.topology.VIPs {
		other, taken := owners[v.Address]
		if taken && !vips[v.Address] {
			at := l.place(v, "address")
			l.fail("FTP202", at, "Address belongs to something else",
				"VIP %s is %s (%s). A VIP needs an address of its own.", v.Address, other.what, other.at.seenFrom(at))
			continue
		}
		claim(v.Address, fmt.Sprintf("the address of vip %q", v.Name), l.place(v, "address"))
		vips[v.Address] = true
	}
	for _, c := range l.topology.Clusters {
		for _, w := range c.Workers {
			other, taken := owners[w]
			if !taken {
				continue
			}
			at := l.place(c, "workers")
			l.fail("FTP212", at, "Not a worker", "%s is %s (%s).", w, other.what, other.at.seenFrom(at))
		}
	}
}

// checkRouters reports VRRP routers of the same number on one segment.
func (l *loader) checkRouters() {
	vips := l.topology.VIPs
	for i, v := range vips {
		for _, other := range vips[:i] {
			if v.VirtualRouter == 0 || v.VirtualRouter != other.VirtualRouter || v.Network == nil || other.Network == nil {
				continue
			}
			if v.Network == other.Network || v.Network.PortGroup != "" && v.Network.PortGroup == other.Network.PortGroup {
				at := l.place(v, "virtual_router")
				l.fail("FTP211", at, "Virtual router used twice",
					"VRID %d on %q is already that of vip %q (%s). Two VIPs on one segment need two numbers.",
					v.VirtualRouter, cmp.Or(v.Network.PortGroup, v.Network.Name), other.Name, l.place(other, "virtual_router").seenFrom(at))
			}
		}
	}
}

func (l *loader) checkGroup(g *Group) {
	block := l.blocks[g]
	boxes := g.Boxes
	if len(boxes) == 1 && !block.failed["members"] {
		l.warn("FTP213", block.at("members"), "No failover", "lb_group %q has one member; the VIP has nowhere to go.", g.Name)
	}
	if len(boxes) > 1 && boxes[0].Site != nil && !slices.ContainsFunc(boxes, func(b *Box) bool { return b.Site != boxes[0].Site }) {
		l.warn("FTP214", block.at("members"), "All machines on one site",
			"Every member of lb_group %q is on site %q: when that site is lost, so is the VIP.", g.Name, boxes[0].Site.Name)
	}
	for i, b := range boxes {
		for _, other := range boxes[:i] {
			if b.Priority != 0 && b.Priority == other.Priority {
				l.fail("FTP216", l.place(b, "priority"), "Equal priorities",
					"lb %q and lb %q both have VRRP priority %d; which of them takes a free VIP would be left to their addresses.", other.Name, b.Name, b.Priority)
			}
		}
	}
	h := g.HAProxy
	haproxy := block.child("haproxy")
	if h.StatsRole != "" {
		for _, b := range boxes {
			if !slices.ContainsFunc(b.NICs, func(n NIC) bool { return n.Role == h.StatsRole }) {
				l.fail("FTP102", haproxy.at("stats_bind"), "No such nic", "lb %q has no nic %q for the statistics to listen on.", b.Name, h.StatsRole)
				break
			}
		}
	}
	if h.StatsPort != 0 && h.StatsPort == h.PeersPort {
		l.fail("FTP206", haproxy.at("stats_bind"), "Port is bound twice", "%d is the port of HAProxy's peers.", h.StatsPort)
	}
	for _, limit := range []struct {
		arg string
		d   time.Duration
	}{{"client", h.Client}, {"server", h.Server}} {
		if h.HardStopAfter != 0 && limit.d > h.HardStopAfter {
			l.fail("FTP312", haproxy.at("hard_stop_after"), "Reloads would cut transfers",
				"hard_stop_after (%s) is shorter than timeouts.%s (%s): after a reload the old process ends while transfers that it carries may still run.",
				shortDuration(h.HardStopAfter), limit.arg, shortDuration(limit.d))
			break
		}
	}
	if h.MinReloadGap < 8*time.Second && !haproxy.failed["min_reload_gap"] {
		l.warn("FTP314", haproxy.at("min_reload_gap"), "Sticky sessions can be lost",
			"When two reloads follow within about 5 s, the second process starts before it has learned the table of the first. Keep 8s at least.")
	}
}

func (l *loader) checkWorkers(c *Cluster) {
	block := l.blocks[c]
	at := block.at("workers")
	if c.Workers != nil && len(c.Workers) == 0 && !block.failed["workers"] {
		l.fail("FTP212", at, "No workers", "The list is empty: there is nowhere to send connections.")
	}
	for i, w := range c.Workers {
		if slices.Contains(c.Workers[:i], w) {
			l.fail("FTP212", at, "Worker listed twice", "%s stands in the list more than once.", w)
		}
	}
}

// checkServer holds what vsftpd and its image can do.
func (l *loader) checkServer(s *Service) {
	block := l.blocks[s]
	passive := block.child("passive")
	l.checkTLS(s)
	if s.Image != "" && !strings.Contains(s.Image, "@sha256:") {
		l.warn("FTP505", block.at("image"), "Image is not pinned",
			"A tag can mean another image tomorrow, and a pod that moves to another node would pull it. Name it by digest: NAME@sha256:...")
	}
	if n := s.PassivePorts(); s.PassiveFirst != 0 {
		switch {
		case n > 1000:
			l.warn("FTP303", passive.at("ports"), "Many passive ports",
				"%d ports are %d listening sockets on each machine, and %d port entries in the Service with as many kube-proxy rules for each node. A few ports a concurrent transfer are enough.", n, 2*n, n)
		case s.MaxClients > n:
			l.warn("FTP302", passive.at("ports"), "Few passive ports",
				"%d ports for up to %d clients (max_clients): when all are taken, the next transfer fails.", n, s.MaxClients)
		case n < 10:
			l.warn("FTP302", passive.at("ports"), "Few passive ports",
				"%d ports: a port that was just used rests for a minute, so clients with many small files run out of them. Use 10 at least.", n)
		}
	}
	if !s.SameSourceIP && !passive.failed["same_source_ip"] {
		l.warn("FTP305", passive.at("same_source_ip"), "Data connections are open to anyone",
			"Whoever guesses the port can take over a data connection (vsftpd's pasv_promiscuous). ftpdeploy's proxy keeps the client's connections together, so the check can stay on.")
	}
	if s.Server != "vsftpd" {
		return
	}
	if s.Replicas > 1 {
		l.fail("FTP301", block.at("replicas"), "Data connections would reach the wrong pod",
			"%d replicas share NodePorts and kube-proxy picks one at random per connection. Use replicas = 1 (the pod moves between nodes by itself).", s.Replicas)
	}
	for i, u := range s.Users {
		if i > 0 {
			l.fail("FTP306", l.blocks[u].here(), "The image takes one user",
				"An image with the environment contract of fauria/vsftpd has exactly one account (FTP_USER), and ftp_service %q already has user %q.", s.Name, s.Users[0].Name)
			continue
		}
		if want := "/home/vsftpd/" + u.Name; u.Home != "" && u.Home != want {
			l.fail("FTP306", l.place(u, "home"), "The image sets the home directory",
				"An image with the environment contract of fauria/vsftpd puts FTP_USER into %s. Leave home out, or rename the user.", want)
		}
		if !u.Writable {
			l.fail("FTP306", l.place(u, "writable"), "The image lets its user write",
				"An image with the environment contract of fauria/vsftpd cannot keep FTP_USER from writing. Leave writable out.")
		}
	}
}

// checkPath reports boxes that cannot reach a service's workers.
func (l *loader) checkPath(s *Service) {
	if s.VIP == nil || s.VIP.Group == nil || s.Cluster == nil {
		return
	}
	for _, b := range s.VIP.Group.Boxes {
		if len(b.NICs) == 0 || slices.ContainsFunc(b.NICs, func(n NIC) bool { return n.Network == nil || !n.Network.CIDR.IsValid() }) {
			continue
		}
		routed := slices.ContainsFunc(b.NICs, func(n NIC) bool { return n.Network.Gateway.IsValid() })
		for _, w := range s.Cluster.Workers {
			if slices.ContainsFunc(b.NICs, func(n NIC) bool { return n.Network.CIDR.Contains(w) }) {
				continue
			}
			var nets []string
			for _, n := range b.NICs {
				nets = append(nets, fmt.Sprintf("%s %s", n.Network.Name, n.Network.CIDR))
			}
			detail := fmt.Sprintf("lb %q has no nic in a network that reaches worker %s (it has %s)", b.Name, w, strings.Join(nets, ", "))
			at := l.place(s.Cluster, "workers")
			if routed {
				l.warn("FTP208", at, "Workers are behind a router", "%s. It works only if a gateway routes there, and back to the machine.", detail)
			} else {
				l.fail("FTP208", at, "No path to the workers", "%s, and none of them has a gateway.", detail)
			}
			break
		}
	}
}

// checkNodePortRange reports NodePorts that the cluster does not give out.
func (l *loader) checkNodePortRange(s *Service) {
	c := s.Cluster
	if c == nil || c.NodePortFirst == 0 {
		return
	}
	if p := s.ControlNodePort; p != 0 && (p < c.NodePortFirst || p > c.NodePortLast) {
		l.fail("FTP204", l.inner(s, "control", "node_port"), "Control NodePort leaves the cluster's NodePort range",
			"%d is not in %d-%d, which cluster %q allows.", p, c.NodePortFirst, c.NodePortLast, c.Name)
	}
	if s.NodePortFirst == 0 || s.PassiveFirst == 0 {
		return
	}
	last := s.NodePort(s.PassiveLast)
	if s.NodePortFirst >= c.NodePortFirst && last <= c.NodePortLast {
		return
	}
	fit := fmt.Sprintf("Largest start that fits: %d.", c.NodePortLast-s.PassivePorts()+1)
	if s.PassivePorts() > c.NodePortLast-c.NodePortFirst+1 {
		fit = "No start fits: there are fewer NodePorts than passive ports."
	}
	l.fail("FTP204", l.inner(s, "passive", "node_port_first"), "Passive NodePorts leave the cluster's NodePort range",
		"%d ports from %d need NodePorts %d-%d, but cluster %q allows %d-%d. %s",
		s.PassivePorts(), s.NodePortFirst, s.NodePortFirst, last, c.Name, c.NodePortFirst, c.NodePortLast, fit)
}

// span is a run of ports that something wants.
type span struct {
	portRange
	what    func(port int) string
	service *Service
	at      place
}

func (a span) overlap(b span) (int, bool) {
	p := max(a.first, b.first)
	return p, p <= a.last && p <= b.last
}

// checkNodePorts reports NodePorts that two things want.
func (l *loader) checkNodePorts() {
	var spans []span
	for _, s := range l.topology.Services {
		of := fmt.Sprintf(" of ftp_service %q", s.Name)
		if len(l.topology.Services) == 1 {
			of = ""
		}
		if p := s.ControlNodePort; p != 0 {
			spans = append(spans, span{portRange{p, p}, func(int) string { return "control" + of }, s, l.inner(s, "control", "node_port")})
		}
		if s.NodePortFirst != 0 && s.PassiveFirst != 0 {
			spans = append(spans, span{
				portRange{s.NodePortFirst, s.NodePort(s.PassiveLast)},
				func(p int) string { return fmt.Sprintf("passive port %d%s", p-s.NodePortFirst+s.PassiveFirst, of) },
				s, l.inner(s, "passive", "node_port_first"),
			})
		}
	}
	for i, a := range spans {
		for _, b := range spans[:i] {
			if p, clash := a.overlap(b); clash && a.service.Cluster != nil && a.service.Cluster == b.service.Cluster {
				l.fail("FTP205", a.at, "NodePort is wanted twice", "NodePort %d is wanted by %s and by %s (%s).", p, a.what(p), b.what(p), b.at.seenFrom(a.at))
			}
		}
	}
}

// checkPorts reports passive ports that mean something else on the machines.
func (l *loader) checkPorts(s *Service) {
	passive := portRange{s.PassiveFirst, s.PassiveLast}
	control, at := l.inner(s, "control", "port"), l.inner(s, "passive", "ports")
	uses := []portUse{
		{s.ControlPort, "the control port of this service"},
		{21, "FTP's control port"},
		{20, "FTP's data port"},
		{22, "SSH"},
	}
	if s.VIP != nil && s.VIP.Group != nil {
		h := s.VIP.Group.HAProxy
		own := []portUse{{h.StatsPort, "HAProxy's statistics port"}, {h.PeersPort, "the port of HAProxy's peers"}}
		for _, b := range s.VIP.Group.Boxes {
			if b.SSH != nil {
				own = append(own, portUse{b.SSH.Port, fmt.Sprintf("where sshd of lb %q listens", b.Name)})
			}
		}
		for _, use := range own {
			if use.port != 0 && s.ControlPort == use.port {
				l.fail("FTP206", control, "Port is bound twice",
					"Control port %d is %s. HAProxy binds it on the machines' own addresses too, to prove a standby.", use.port, use.what)
				break
			}
		}
		uses = append(uses, own...)
	}
	told := map[int]bool{}
	for _, use := range uses {
		if passive.has(use.port) && !told[use.port] {
			told[use.port] = true
			l.fail("FTP215", at, "Passive range takes a port that is in use", "%s contains %d, %s.", passive, use.port, use.what)
		}
	}
}

// portUse is a port and what it is for; port 0 is none.
type portUse struct {
	port int
	what string
}

// checkBinds reports services that want the same port of one VIP.
func (l *loader) checkBinds() {
	var spans []span
	for _, s := range l.topology.Services {
		what := func(int) string { return fmt.Sprintf("ftp_service %q", s.Name) }
		if s.ControlPort != 0 {
			spans = append(spans, span{portRange{s.ControlPort, s.ControlPort}, what, s, l.inner(s, "control", "port")})
		}
		if s.PassiveFirst != 0 {
			spans = append(spans, span{portRange{s.PassiveFirst, s.PassiveLast}, what, s, l.inner(s, "passive", "ports")})
		}
	}
	for i, a := range spans {
		for _, b := range spans[:i] {
			if p, clash := a.overlap(b); clash && a.service != b.service && a.service.VIP != nil && a.service.VIP == b.service.VIP {
				l.fail("FTP206", a.at, "Port is bound twice", "%s is already bound by %s (%s). Give each service a VIP of its own.",
					net.JoinHostPort(a.service.VIP.Address.String(), strconv.Itoa(p)), b.what(p), b.at.seenFrom(a.at))
			}
		}
	}
}

// checkClaims reports volumes of two services that would be one claim: it is named
// SERVICE-VOLUME, and both names may hold dashes.
func (l *loader) checkClaims() {
	type claim struct {
		cluster         *Cluster
		namespace, name string
	}
	first := map[claim]*block{}
	for _, s := range l.topology.Services {
		for i, v := range s.Volumes {
			b := l.blocks[s].children["volume"][i]
			c := claim{s.Cluster, s.Namespace, s.Name + "-" + v.Name}
			if other := first[c]; other != nil && s.Cluster != nil && s.Namespace != "" {
				l.fail("FTP308", b.here(), "Two volumes are one claim",
					"PersistentVolumeClaim %s/%s is also that of another ftp_service's volume (%s). Rename one of them, or give the services namespaces of their own.",
					c.namespace, c.name, other.here().seenFrom(b.here()))
				continue
			}
			first[c] = b
		}
	}
}

func (l *loader) checkSmoke(s *Smoke) {
	vip := s.VIP
	if s.Service != nil && s.Service.VIP != nil {
		at := l.place(s, "target")
		if s.VIP != nil && s.VIP != s.Service.VIP {
			l.fail("FTP307", at, "Proof of another path", "ftp_service %q is behind vip %q: a transfer through vip %q would not reach it.", s.Service.Name, s.Service.VIP.Name, s.VIP.Name)
		}
		if g := s.Service.VIP.Group; s.Standby != nil && g != nil && s.Standby != g {
			l.fail("FTP307", at, "Proof of another path", "ftp_service %q is behind lb_group %q: a transfer through lb_group %q would not reach it.", s.Service.Name, g.Name, s.Standby.Name)
		}
		vip = cmp.Or(vip, s.Service.VIP)
	}
	if vip != nil && vip.Address.Is6() && slices.Contains(s.Modes, "pasv") {
		l.fail("FTP304", l.place(s, "modes"), "PASV cannot announce this VIP", "VIP %s is IPv6, and 227 replies carry IPv4 only. Use modes = [\"epsv\"].", vip.Address)
	}
	if vip == nil || vip.Group == nil {
		return
	}
	timeouts := l.blocks[vip.Group].child("haproxy").child("timeouts")
	for _, t := range []struct {
		arg string
		d   time.Duration
	}{{"client", vip.Group.HAProxy.Client}, {"server", vip.Group.HAProxy.Server}} {
		if t.d != 0 && t.d < s.LongIdle {
			l.warn("FTP311", timeouts.at(t.arg), "Control channel may be cut during long transfers",
				"%s timeout (%s) is shorter than smoke %q.long_idle (%s). While a file moves, the control connection carries no bytes, so HAProxy closes it after this time and the client reports a failed transfer.",
				t.arg, shortDuration(t.d), s.Name, shortDuration(s.LongIdle))
		}
	}
}

// checkTimes holds the dead-man timer against the proofs that must end before it fires. A machine
// is proven either as a standby or as the holder of the VIP, so the two kinds do not add up.
func (l *loader) checkTimes() {
	r := &l.topology.Rollout
	if r.ConfirmWithin == 0 {
		return
	}
	sums := map[bool]time.Duration{}
	for _, s := range l.topology.Smokes {
		sums[s.Standby != nil] += s.Timeout + s.LongIdle
	}
	longest := max(sums[true], sums[false])
	if r.ConfirmWithin >= longest {
		return
	}
	at := l.place(r, "confirm_within")
	if l.blocks[r] == nil {
		at = l.blocks[l.topology.Smokes[0]].here()
	}
	l.fail("FTP313", at, "Machines would revert before they are proven",
		"The dead-man timer (confirm_within) fires after %s, before the smoke tests' own limits end (%s). Raise confirm_within in a rollout block, or lower the smoke blocks' timeout.", shortDuration(r.ConfirmWithin), shortDuration(longest))
}
