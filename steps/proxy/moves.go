package proxy

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// MovesVIP tells whether an address that the keepalived.conf before gives to
// clients is not one of after.
func MovesVIP(before, after []byte) bool {
	flat := func(keepalived []byte) []netip.Addr {
		return slices.Concat(slices.Collect(maps.Values(VirtualAddresses(keepalived)))...)
	}
	still := flat(after)
	return slices.ContainsFunc(flat(before), func(a netip.Addr) bool { return !slices.Contains(still, a) })
}

// VirtualAddresses are those of the virtual_ipaddress blocks of a keepalived.conf, by
// the names of their vrrp_instance blocks.
func VirtualAddresses(keepalived []byte) map[string][]netip.Addr {
	return addressesIn(keepalived, "virtual_ipaddress")
}

// UnicastPeers are those of the unicast_peer blocks, likewise.
func UnicastPeers(keepalived []byte) map[string][]netip.Addr {
	return addressesIn(keepalived, "unicast_peer")
}

// addressesIn are the addresses in the blocks of a kind, by their vrrp_instance.
func addressesIn(keepalived []byte, block string) map[string][]netip.Addr {
	all := map[string][]netip.Addr{}
	instance, inside := "", false
	for line := range strings.Lines(string(keepalived)) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case words[0] == "vrrp_instance" && len(words) > 1:
			instance = words[1]
		case words[0] == block:
			inside = true
		case words[0] == "}":
			inside = false
		case inside:
			text, _, _ := strings.Cut(words[0], "/")
			if a, err := netip.ParseAddr(text); err == nil {
				all[instance] = append(all[instance], a)
			}
		}
	}
	return all
}

// ShrinksRange tells whether a service that both haproxy.cfg have is without some
// passive port in after that before serves.
func ShrinksRange(before, after []byte) bool { return len(wider(after, before)) > 0 }

// WidensRange tells whether a service that both haproxy.cfg have gets a passive
// port in after that before does not serve, while its other ports lead to where they
// led: where the NodePorts move too, they have to move first.
func WidensRange(before, after []byte) bool {
	from, to := nodePorts(before), nodePorts(after)
	return slices.ContainsFunc(wider(before, after), func(service string) bool {
		return from[service+"_control"] == to[service+"_control"] && from[service+"_passive"] == to[service+"_passive"]
	})
}

// wider are the services of both that have a passive port in after and not in before.
func wider(before, after []byte) []string {
	var all []string
	was := passiveRanges(before)
	for service, is := range passiveRanges(after) {
		if w, ok := was[service]; ok && (is.first < w.first || is.last > w.last) {
			all = append(all, service)
		}
	}
	return all
}

// nodePorts are the ports of the workers to which the backends lead, by their
// names: "30021", or "+11000", so much above the port that the client came to.
func nodePorts(haproxy []byte) map[string]string {
	all := map[string]string{}
	backend := ""
	for line := range strings.Lines(string(haproxy)) {
		words := strings.Fields(line)
		switch {
		case len(words) > 1 && words[0] == "backend":
			backend = words[1]
		case len(words) > 2 && words[0] == "server":
			all[backend] = words[2][strings.LastIndex(words[2], ":")+1:]
		}
	}
	return all
}

type portRange struct{ first, last int }

// passiveRanges are the ports that the passive frontends bind, by their services.
func passiveRanges(haproxy []byte) map[string]portRange {
	all := map[string]portRange{}
	service := ""
	for line := range strings.Lines(string(haproxy)) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case !strings.HasPrefix(line, " ") && !strings.HasPrefix(line, "\t"):
			service = ""
			if len(words) > 1 && words[0] == "frontend" && strings.HasSuffix(words[1], "_passive_fe") {
				service = strings.TrimSuffix(words[1], "_passive_fe")
			}
		case service != "" && words[0] == "bind" && len(words) > 1:
			ports := words[1][strings.LastIndex(words[1], ":")+1:]
			first, last, _ := strings.Cut(ports, "-")
			f, err := strconv.Atoi(first)
			l, err2 := strconv.Atoi(last)
			if err == nil && err2 == nil {
				all[service] = portRange{f, l}
			}
		}
	}
	return all
}
