package steps

import (
	"context"
	"net/netip"
	"slices"
	"sync"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/steps/proxy"
)

// traffic is what clients have open through a box: control connections, and
// connections that move data.
type traffic struct{ sessions, transfers int }

// portsOf are the ports of a service's control and of its data connections.
func portsOf(s *blueprints.Service) []remote.Ports {
	return []remote.Ports{{First: s.ControlPort, Last: s.ControlPort}, {First: s.PassiveFirst, Last: s.PassiveLast}}
}

// ports are those of all services of the box.
func (s *hostStep) ports() []remote.Ports {
	var all []remote.Ports
	for _, service := range s.services() {
		for _, p := range portsOf(service) {
			if !slices.Contains(all, p) {
				all = append(all, p)
			}
		}
	}
	return all
}

// addresses are where the box serves a service, with what addressesOf says also at an
// address that the VIP had before.
func (s *hostStep) addresses(service *blueprints.Service) []netip.Addr {
	return append(s.at(service.VIP), addressesOf(s.topology, s.box, service)[1:]...)
}

// addressesOf are where a box serves a service: the VIP, and the box's own address
// where it has one for it.
func addressesOf(t *blueprints.Topology, b *blueprints.Box, s *blueprints.Service) []netip.Addr {
	all := []netip.Addr{s.VIP.Address}
	if own, ok := proxy.Direct(t, b, s); ok {
		all = append(all, own)
	}
	return all
}

// inUse are the passive ports of a service over which a box has a data connection open.
func (l *Live) inUse(ctx context.Context, s *blueprints.Service) ([]int, error) {
	var mu sync.Mutex
	var ports []int
	err := l.each(ctx, s.VIP.Group, func(ctx context.Context, b *blueprints.Box, h *remote.Host) error {
		t, err := h.Traffic(ctx, []remote.Ports{{First: s.PassiveFirst, Last: s.PassiveLast}}, 0)
		if err != nil {
			return err
		}
		at := addressesOf(l.topology, b, s)
		mu.Lock()
		defer mu.Unlock()
		for _, c := range t.Open {
			if slices.Contains(at, c.Local.Addr()) {
				ports = append(ports, int(c.Local.Port()))
			}
		}
		return nil
	})
	return ports, err
}

// carries is what was open through the box, by service, when f was seen; nothing
// where that is nil.
func (s *hostStep) carries(f *remote.Facts) map[*blueprints.Service]traffic {
	all := map[*blueprints.Service]traffic{}
	if f == nil {
		return all
	}
	for _, service := range s.services() {
		var open [2]int
		for i, ports := range portsOf(service) {
			for _, a := range s.addresses(service) {
				open[i] += f.Open[ports][a]
			}
		}
		all[service] = traffic{open[0], open[1]}
	}
	return all
}

// counts are a look at the box's connections as Facts has them: how many are open, and
// its addresses.
func (s *hostStep) counts(t *remote.Traffic) *remote.Facts {
	f := &remote.Facts{Links: t.Links, Open: map[remote.Ports]map[netip.Addr]int{}}
	for _, p := range s.ports() {
		f.Open[p] = map[netip.Addr]int{}
		for _, c := range t.Open {
			if port := int(c.Local.Port()); p.First <= port && port <= p.Last {
				f.Open[p][c.Local.Addr()]++
			}
		}
	}
	return f
}
