// Package proxy renders what a box needs to carry its group's VIPs and FTP
// services: the HAProxy configuration, the keepalived configuration and the
// script by which keepalived asks HAProxy. It is pure text: the same topology
// and workers give the same bytes, without secrets and without the time.
//
// The shapes were measured with HAProxy 2.6 and keepalived 2.2; they use nothing
// newer than HAProxy 2.2 and keepalived 2.1.
package proxy

import (
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
)

const (
	// HAProxyPath is where the packages of all families look for the configuration.
	HAProxyPath = "/etc/haproxy/haproxy.cfg"
	// KeepalivedPath likewise.
	KeepalivedPath = "/etc/keepalived/keepalived.conf"
	// CheckPath is the script that keepalived runs. In this directory SELinux's
	// policy gives a script its own unconfined domain, so it may connect to HAProxy.
	CheckPath = "/usr/libexec/keepalived/ftpdeploy-check"
	// DrainedPath is the file by which a box is drained: the check fails until the
	// time in its first word is over, in seconds since 1970.
	DrainedPath = "/var/lib/ftpdeploy/drained"
	// StatsSocket is HAProxy's command socket (root only, level admin). SELinux's
	// policy knows this name.
	StatsSocket = "/run/haproxy.sock"

	// healthHost and healthPort answer keepalived's script: HTTP, a path per VIP.
	healthHost, healthPort = "127.0.0.1", 8404
	// statsURI is beside those paths: no VIP is named so.
	statsURI = "/-/stats"
)

// Statistics is what is asked over HTTP, on the box itself, for HAProxy's counters as
// CSV (management.txt, "CSV format").
func Statistics() (host string, port int, path string) {
	return healthHost, healthPort, statsURI + ";csv"
}

// File is a file of a box. It is owned by root.
type File struct {
	Path    string
	Mode    fs.FileMode
	Content []byte
	// Check is the command that judges the content before it takes its place; the
	// path of the candidate is appended. It exits 0 for a good file.
	Check []string
	// Service is the systemd service to reload when the content changed, "" = none.
	Service string

	values map[place][]value // by the lines of the content
	group  string            // address of the block that all of it serves
}

// Files returns the files of a box in the order in which they must be installed:
// keepalived's check rejects a configuration whose script is not there yet.
// Workers are the node addresses of each cluster; a cluster that it does not hold
// has those of the blueprint.
//
// An error names a box without a NIC in the network of one of its VIPs, or a
// cluster without workers.
func Files(t *blueprints.Topology, g *blueprints.Group, box *blueprints.Box, workers map[*blueprints.Cluster][]netip.Addr) ([]File, error) {
	r := render{topology: t, group: g, box: box, workers: map[*blueprints.Cluster][]netip.Addr{}}
	for _, v := range t.VIPs {
		if v.Group != g {
			continue
		}
		for _, b := range g.Boxes {
			if b.NIC(v.Network) == nil {
				return nil, fmt.Errorf("render box %q: it has no nic in network %q of vip %q", b.Name, v.Network.Name, v.Name)
			}
		}
		r.vips = append(r.vips, v)
	}
	for _, s := range t.Services {
		if s.VIP.Group != g {
			continue
		}
		nodes, ok := workers[s.Cluster]
		if !ok {
			nodes = s.Cluster.Workers
		}
		if len(nodes) == 0 {
			return nil, fmt.Errorf("render box %q: cluster %q of ftp_service %q has no workers", box.Name, s.Cluster.Name, s.Name)
		}
		nodes = slices.Clone(nodes)
		slices.SortFunc(nodes, netip.Addr.Compare)
		r.workers[s.Cluster] = slices.Compact(nodes)
		r.services = append(r.services, s)
	}
	h, k := r.haproxy(), r.keepalived()
	return []File{
		{Path: CheckPath, Mode: 0o755, Content: r.check(), Check: []string{"bash", "-n"}, group: groupOf(g)},
		{
			Path: HAProxyPath, Mode: 0o644, Content: h.content,
			Check: []string{"/usr/sbin/haproxy", "-c", "-f"}, Service: "haproxy", values: h.values, group: groupOf(g),
		},
		{
			Path: KeepalivedPath, Mode: 0o644, Content: k.content,
			Check: []string{"/usr/sbin/keepalived", "-t", "-f"}, Service: "keepalived", values: k.values, group: groupOf(g),
		},
	}, nil
}

// Direct returns the box's own address at which it serves s beside the VIP, with
// the same ports: there a box is proven that does not hold the VIP, by EPSV,
// whose reply carries no address. The second result is false where the box has no
// such address: it has no NIC in the VIP's network, or an earlier service of the
// blueprint has one of the ports.
func Direct(t *blueprints.Topology, box *blueprints.Box, s *blueprints.Service) (netip.Addr, bool) {
	nic := box.NIC(s.VIP.Network)
	if nic == nil {
		return netip.Addr{}, false
	}
	for _, earlier := range t.Services {
		if earlier == s {
			break
		}
		if earlier.VIP.Group == s.VIP.Group && earlier.VIP.Network == s.VIP.Network && sharePort(earlier, s) {
			return netip.Addr{}, false
		}
	}
	return nic.Address, true
}

// sharePort tells whether two services listen on the same port.
func sharePort(a, b *blueprints.Service) bool {
	has := func(s *blueprints.Service, port int) bool {
		return port == s.ControlPort || s.PassiveFirst <= port && port <= s.PassiveLast
	}
	return has(a, b.ControlPort) || has(b, a.ControlPort) ||
		a.PassiveFirst <= b.PassiveLast && b.PassiveFirst <= a.PassiveLast
}

const mark = "# ftpdeploy deployment="

// Owner returns the deployment that a file bears the mark of, and false for a
// file without one: that is someone else's. The mark is the first line, or the
// second after a script's "#!".
func Owner(content []byte) (deployment string, ok bool) {
	line, rest, _ := strings.Cut(string(content), "\n")
	if strings.HasPrefix(line, "#!") {
		line, _, _ = strings.Cut(rest, "\n")
	}
	line, ok = strings.CutPrefix(line, mark)
	if !ok {
		return "", false
	}
	deployment, _, _ = strings.Cut(line, " ")
	return deployment, deployment != ""
}

// Mark is content with the mark of a deployment's box, where Owner looks for it.
func Mark(t *blueprints.Topology, b *blueprints.Box, content []byte) []byte {
	first, rest := "", string(content)
	if strings.HasPrefix(rest, "#!") {
		line, after, _ := strings.Cut(rest, "\n")
		first, rest = line+"\n", after
	}
	return []byte(first + (&render{topology: t, box: b}).header() + rest)
}

// render is what the files of one box are made from.
type render struct {
	topology *blueprints.Topology
	group    *blueprints.Group
	box      *blueprints.Box
	vips     []*blueprints.VIP
	services []*blueprints.Service
	workers  map[*blueprints.Cluster][]netip.Addr // sorted, no duplicates
}

func (r *render) header() string {
	return mark + r.topology.ID + " lb=" + r.box.Name + " (an edit by hand is undone by the next apply)\n"
}

// servicesOf returns the services behind a VIP.
func (r *render) servicesOf(v *blueprints.VIP) []*blueprints.Service {
	var services []*blueprints.Service
	for _, s := range r.services {
		if s.VIP == v {
			services = append(services, s)
		}
	}
	return services
}

// reachesWorkers tells whether a worker of one of the services is in network n.
func (r *render) reachesWorkers(n *blueprints.Network, services []*blueprints.Service) bool {
	return slices.ContainsFunc(services, func(s *blueprints.Service) bool {
		return slices.ContainsFunc(r.workers[s.Cluster], n.CIDR.Contains)
	})
}
