package steps

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/remote"
)

// opening is one thing that a firewall must let in.
type opening struct {
	nic  *blueprints.NIC
	port string     // "21/tcp", "21100-21110/tcp"; "" = VRRP
	peer netip.Addr // the box that it may come from; invalid = any
	from string     // address of what asks for it
}

// rule is the opening as firewalld has it. Its rich rules come back in exactly
// this form from --list-all (firewalld.richlanguage(5)).
func (o opening) rule(zone string) remote.FirewallRule {
	if !o.peer.IsValid() {
		return remote.FirewallRule{Zone: zone, Port: o.port}
	}
	family := "ipv4"
	if o.peer.Is6() {
		family = "ipv6"
	}
	rich := fmt.Sprintf("rule family=%q source address=%q ", family, o.peer)
	if port, protocol, ok := strings.Cut(o.port, "/"); ok {
		rich += fmt.Sprintf("port port=%q protocol=%q accept", port, protocol)
	} else {
		rich += `protocol value="vrrp" accept`
	}
	return remote.FirewallRule{Zone: zone, Rich: rich}
}

func (o opening) String() string {
	what := o.port
	if what == "" {
		what = "protocol 112 (VRRP)"
	}
	if o.peer.IsValid() {
		what += " from " + o.peer.String()
	}
	return what
}

// openings are what the box's firewall must let in: the services' ports on the
// NICs of their VIPs, VRRP and the stick table from the other boxes, statistics.
func (s *hostStep) openings() []opening {
	var all []opening
	haproxy := "lb_group." + s.group.Name + ".haproxy"
	add := func(o opening) {
		same := func(other opening) bool { return other.nic == o.nic && other.port == o.port && other.peer == o.peer }
		if o.nic != nil && !slices.ContainsFunc(all, same) {
			all = append(all, o)
		}
	}
	for _, service := range s.topology.Services {
		if service.VIP.Group != s.group {
			continue
		}
		nic, at := s.box.NIC(service.VIP.Network), "ftp_service."+service.Name
		add(opening{nic: nic, port: strconv.Itoa(service.ControlPort) + "/tcp", from: at + ".control.port"})
		add(opening{nic: nic, port: fmt.Sprintf("%d-%d/tcp", service.PassiveFirst, service.PassiveLast), from: at + ".passive.ports"})
	}
	for _, peer := range s.group.Boxes {
		if peer == s.box {
			continue
		}
		for _, v := range s.topology.VIPs {
			if other := peer.NIC(v.Network); v.Group == s.group && other != nil {
				add(opening{nic: s.box.NIC(v.Network), peer: other.Address, from: "vip." + v.Name})
			}
		}
		for i := range s.box.NICs {
			nic := &s.box.NICs[i]
			if other := peer.NIC(nic.Network); other != nil {
				add(opening{nic: nic, port: strconv.Itoa(s.group.HAProxy.PeersPort) + "/tcp", peer: other.Address, from: haproxy + ".peers_port"})
			}
		}
	}
	for i := range s.box.NICs {
		if nic := &s.box.NICs[i]; s.group.HAProxy.StatsRole != "" && nic.Role == s.group.HAProxy.StatsRole {
			add(opening{nic: nic, port: strconv.Itoa(s.group.HAProxy.StatsPort) + "/tcp", from: haproxy + ".stats_bind"})
		}
	}
	return all
}

// guard is what the firewall and SELinux of the box must be told.
func (l *hostLook) guard() ([]plan.Change, error) {
	var all []plan.Change
	c, ok, err := l.open()
	if err != nil {
		return nil, err
	}
	if ok {
		all = append(all, c)
	}
	if on, known := l.facts.SELinux.Booleans[connectAny]; known && !on && l.group.SELinux == "manage" {
		all = append(all, plan.Change{
			Action: plan.Update, Target: l.target("selinux " + connectAny), From: "off", Want: "on",
			Reason: "HAProxy may bind and connect to HTTP's ports only", Cause: l.since("lb_group." + l.group.Name + ".selinux"),
			Detail: plan.Diff{Fields: []plan.Field{{Path: connectAny, Before: "off", After: "on"}}},
			Do: l.act(actBound, func(ctx context.Context, h *remote.Host, _ func(string)) error {
				if err := h.Note(ctx, l.root+booleanAt, connectAny); err != nil {
					return err
				}
				return h.SetBoolean(ctx, connectAny, true)
			}),
		})
	}
	return all, nil
}

// open opens the firewall where there is one that we can tell what to do.
func (l *hostLook) open() (plan.Change, bool, error) {
	f := l.facts.Firewall
	openings := l.openings()
	switch {
	case l.group.Firewall == "none":
		return plan.Change{}, false, nil
	case f.Firewalld && l.group.Firewall != "nftables":
	case l.group.Firewall == "firewalld":
		return plan.Change{}, false, fmt.Errorf("firewalld does not run on %s, and firewall is \"firewalld\": start it, or say \"none\"", l.box.Name)
	case len(f.NFT) > 0:
		var words []string
		for _, o := range openings {
			words = append(words, o.nic.Interface+" "+o.String())
		}
		return plan.Change{}, false, fmt.Errorf("%s has a packet filter that others wrote (nftables: %s), and ftpdeploy cannot tell what it lets in: "+
			"let in %s, and say firewall = \"none\"", l.box.Name, strings.Join(f.NFT, "; "), strings.Join(words, ", "))
	default:
		return plan.Change{}, false, nil
	}

	var fields []plan.Field
	var rules []remote.FirewallRule
	var notes []string
	var every []plan.Field
	var from []string // what asks for those that were never opened before
	for _, o := range openings {
		field := plan.Field{Path: o.nic.Role, After: o.String()}
		every = append(every, field)
		for i, rule := range l.closed(o) {
			if i == 0 {
				fields = append(fields, field)
			}
			rules = append(rules, rule)
			notes = append(notes, note(rule))
			if !open(l.opened(rule.Zone), rule) {
				from = append(from, o.from)
			}
		}
	}
	cause := asked(l.topology, from...)
	if from == nil { // all of it was opened once
		cause = drifted("", time.Time{})
	}
	if len(rules) == 0 {
		return plan.Change{}, false, nil
	}
	return plan.Change{
		Action: plan.Update, Target: l.target("firewalld"), From: "closed: " + fieldsDigest(fields), Want: fieldsDigest(every),
		Reason: "does not let in what it must", Cause: cause,
		Detail: plan.Diff{Fields: fields},
		Do: l.act(actBound, func(ctx context.Context, h *remote.Host, _ func(string)) error {
			if err := h.Note(ctx, l.root+openedAt, notes...); err != nil {
				return err
			}
			return h.Allow(ctx, rules...)
		}),
	}, true, nil
}

// closed are the rules that firewalld lacks for what an opening lets in. Of ports only
// those: it joins ranges, and what takes a whole one back would take others with it.
func (l *hostLook) closed(o opening) []remote.FirewallRule {
	zone := l.facts.Firewall.Zone(o.nic.Interface)
	rule := o.rule(zone)
	z := l.facts.Firewall.Zones[zone]
	if open(z.Runtime, rule) && open(z.Permanent, rule) {
		return nil
	}
	if rule.Port == "" {
		return []remote.FirewallRule{rule}
	}
	first, last, protocol := portRange(rule.Port)
	part := func(a, b int) remote.FirewallRule {
		ports := strconv.Itoa(a)
		if a < b {
			ports += "-" + strconv.Itoa(b)
		}
		return remote.FirewallRule{Zone: zone, Port: ports + "/" + protocol}
	}
	var lacks []remote.FirewallRule
	begin := first
	for p := first; p <= last+1; p++ {
		if p <= last && (!open(z.Runtime, part(p, p)) || !open(z.Permanent, part(p, p))) {
			continue
		}
		if begin < p {
			lacks = append(lacks, part(begin, p-1))
		}
		begin = p + 1
	}
	return lacks
}

// opened is what we have opened in a zone.
func (l *hostLook) opened(zone string) remote.ZoneRules {
	var z remote.ZoneRules
	for _, line := range l.lines(openedAt) {
		if r := noted(line); r.Zone == zone && r.Rich != "" {
			z.Rich = append(z.Rich, r.Rich)
		} else if r.Zone == zone {
			z.Ports = append(z.Ports, r.Port)
		}
	}
	return z
}

// missingRules are those that open adds.
func (l *hostLook) missingRules() []remote.FirewallRule {
	if !l.facts.Firewall.Firewalld || l.group.Firewall == "none" || l.group.Firewall == "nftables" {
		return nil
	}
	var rules []remote.FirewallRule
	for _, o := range l.openings() {
		rules = append(rules, l.closed(o)...)
	}
	return rules
}

// open tells whether a zone lets in what a rule asks for.
func open(z remote.ZoneRules, rule remote.FirewallRule) bool {
	if z.Target == "ACCEPT" || slices.Contains(z.Rich, rule.Rich) && rule.Rich != "" {
		return true
	}
	if rule.Port == "" {
		return false
	}
	next, last, protocol := portRange(rule.Port)
	for next <= last {
		reaches := next
		for _, p := range z.Ports {
			if a, b, other := portRange(p); other == protocol && a <= next && next <= b {
				reaches = max(reaches, b+1)
			}
		}
		if reaches == next {
			return false
		}
		next = reaches
	}
	return true
}

// portRange reads "21/tcp" and "21100-21110/tcp".
func portRange(s string) (first, last int, protocol string) {
	ports, protocol, _ := strings.Cut(s, "/")
	a, b, ok := strings.Cut(ports, "-")
	if !ok {
		b = a
	}
	return leadingInt(a), leadingInt(b), protocol
}

// note is a rule as openedAt has it, and noted reads it back.
func note(r remote.FirewallRule) string { return r.Zone + " " + r.String() }

func noted(line string) remote.FirewallRule {
	zone, what, _ := strings.Cut(line, " ")
	if strings.HasPrefix(what, "rule ") {
		return remote.FirewallRule{Zone: zone, Rich: what}
	}
	return remote.FirewallRule{Zone: zone, Port: what}
}

// unguard takes back what we told the firewall and SELinux.
func (l *hostLook) unguard() []plan.Change {
	var all []plan.Change
	if lines := l.lines(openedAt); len(lines) > 0 && l.facts.Firewall.Firewalld {
		var rules []remote.FirewallRule
		for _, line := range lines {
			r := noted(line)
			if z := l.facts.Firewall.Zones[r.Zone]; open(z.Runtime, r) || open(z.Permanent, r) {
				rules = append(rules, r)
			}
		}
		if len(rules) > 0 {
			all = append(all, l.undo("firewalld", plan.Update, "we opened it", strings.Join(lines, "\n"), func(ctx context.Context, h *remote.Host, _ func(string)) error {
				return h.Disallow(ctx, rules...)
			}))
		}
	}
	if l.state(booleanAt).Exists && l.facts.SELinux.Booleans[connectAny] {
		all = append(all, l.undo("selinux "+connectAny, plan.Update, "we switched it on", "on", func(ctx context.Context, h *remote.Host, _ func(string)) error {
			return h.SetBoolean(ctx, connectAny, false)
		}))
	}
	return all
}
