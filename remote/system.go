package remote

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Set sets a kernel setting, now and until the next boot; a file in
// /etc/sysctl.d makes it last.
func (h *Host) Set(ctx context.Context, setting, value string) error {
	file := settingFile(setting)
	script := fmt.Sprintf("echo %s >%s && [ \"$(cat %[2]s)\" = %[1]s ]", quote(value), quote(file))
	if _, err := h.change(ctx, script, nil); err != nil {
		return fmt.Errorf("set %s=%s: %w", setting, value, err)
	}
	return nil
}

// SetBoolean sets a boolean of SELinux, also for later boots.
func (h *Host) SetBoolean(ctx context.Context, name string, on bool) error {
	value := "off"
	if on {
		value = "on"
	}
	if _, err := h.change(ctx, "setsebool -P "+quote(name)+" "+value+" >&2", nil); err != nil {
		return fmt.Errorf("set the SELinux boolean %s: %w", name, err)
	}
	return nil
}

// FirewallRule is one thing that a zone of firewalld lets in: a port
// ("21/tcp") or a rich rule.
type FirewallRule struct {
	Zone string
	Port string
	Rich string
}

func (r FirewallRule) String() string {
	if r.Port != "" {
		return r.Port
	}
	return r.Rich
}

// Allow adds rules to firewalld, now and for later boots. Those that are there
// are none of its errors.
func (h *Host) Allow(ctx context.Context, rules ...FirewallRule) error {
	return h.firewall(ctx, "add", rules)
}

// Disallow takes rules away from firewalld, now and for later boots.
func (h *Host) Disallow(ctx context.Context, rules ...FirewallRule) error {
	return h.firewall(ctx, "remove", rules)
}

func (h *Host) firewall(ctx context.Context, verb string, rules []FirewallRule) error {
	var b strings.Builder
	b.WriteString("fw() { firewall-cmd \"$@\" >&2 && firewall-cmd --permanent \"$@\" >&2 || { echo \"firewall-cmd $*\" >&2; exit 1; }; }\n")
	for _, r := range rules {
		what := "--" + verb + "-port=" + r.Port
		if r.Rich != "" {
			what = "--" + verb + "-rich-rule=" + r.Rich
		}
		fmt.Fprintf(&b, "fw --zone=%s %s\n", quote(r.Zone), quote(what))
	}
	if _, err := h.change(ctx, b.String(), nil); err != nil {
		return fmt.Errorf("%s rules of firewalld: %w", verb, err)
	}
	return nil
}

// Peers returns the addresses to which the machine has TCP connections at a port,
// each once.
func (h *Host) Peers(ctx context.Context, port int) ([]netip.Addr, error) {
	out, err := h.Run(ctx, fmt.Sprintf("ss -Htn state established 'dport = :%d'", port), nil)
	if err != nil {
		return nil, fmt.Errorf("look for connections to port %d: %w", port, err)
	}
	var all []netip.Addr
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) < 4 {
			return nil, fmt.Errorf("look for connections to port %d: ss says %q", port, line)
		}
		peer, err := netip.ParseAddrPort(fields[3])
		if err != nil {
			return nil, fmt.Errorf("look for connections to port %d: %w", port, err)
		}
		if a := peer.Addr().Unmap(); !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return all, nil
}
