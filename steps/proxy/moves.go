package proxy

import (
	"slices"
	"strconv"
	"strings"
)

// MovesVIP tells whether an address that the keepalived.conf before gives to
// clients is not one of after.
func MovesVIP(before, after []byte) bool {
	still := virtualAddresses(after)
	return slices.ContainsFunc(virtualAddresses(before), func(a string) bool { return !slices.Contains(still, a) })
}

// virtualAddresses are those of the virtual_ipaddress blocks, without their masks.
func virtualAddresses(keepalived []byte) []string {
	var all []string
	inside := false
	for line := range strings.Lines(string(keepalived)) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case words[0] == "virtual_ipaddress":
			inside = true
		case words[0] == "}":
			inside = false
		case inside:
			address, _, _ := strings.Cut(words[0], "/")
			all = append(all, address)
		}
	}
	return all
}

// ShrinksRange tells whether a service that both haproxy.cfg have is without some
// passive port in after that before serves.
func ShrinksRange(before, after []byte) bool {
	now := passiveRanges(after)
	for name, was := range passiveRanges(before) {
		if is, ok := now[name]; ok && (is.first > was.first || is.last < was.last) {
			return true
		}
	}
	return false
}

// WidensRange tells whether a service that both haproxy.cfg have gets a passive
// port in after that before does not serve.
func WidensRange(before, after []byte) bool { return ShrinksRange(after, before) }

type portRange struct{ first, last int }

// passiveRanges are the ports that the passive frontends bind, by their names.
func passiveRanges(haproxy []byte) map[string]portRange {
	all := map[string]portRange{}
	frontend := ""
	for line := range strings.Lines(string(haproxy)) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case !strings.HasPrefix(line, " ") && !strings.HasPrefix(line, "\t"):
			frontend = ""
			if len(words) > 1 && words[0] == "frontend" && strings.HasSuffix(words[1], "_passive_fe") {
				frontend = words[1]
			}
		case frontend != "" && words[0] == "bind" && len(words) > 1:
			ports := words[1][strings.LastIndex(words[1], ":")+1:]
			first, last, _ := strings.Cut(ports, "-")
			f, err := strconv.Atoi(first)
			l, err2 := strconv.Atoi(last)
			if err == nil && err2 == nil {
				all[frontend] = portRange{f, l}
			}
		}
	}
	return all
}
