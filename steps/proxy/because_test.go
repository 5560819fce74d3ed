package proxy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
)

// One attribute of the blueprint is changed: the difference of the box's files is
// put down to it.
func TestBecause(t *testing.T) {
	const haproxy = "lb_group.ftp.haproxy."
	for name, c := range map[string]struct {
		change func(*blueprints.Topology)
		want   string // addresses, those of keepalived.conf behind those of haproxy.cfg
	}{
		"client":          {func(t *blueprints.Topology) { t.Groups[0].HAProxy.Client = time.Hour }, haproxy + "timeouts.client"},
		"client and more": {func(t *blueprints.Topology) { t.Groups[0].HAProxy.Client = 9 * time.Hour }, haproxy + "timeouts.client"},
		"connect":         {func(t *blueprints.Topology) { t.Groups[0].HAProxy.Connect = time.Second }, haproxy + "timeouts.connect"},
		"sessions":        {func(t *blueprints.Topology) { t.Groups[0].HAProxy.MaxSessions = 100 }, haproxy + "max_sessions"},
		"hard stop":       {func(t *blueprints.Topology) { t.Groups[0].HAProxy.HardStopAfter = time.Hour }, haproxy + "hard_stop_after"},
		"keepalive":       {func(t *blueprints.Topology) { t.Groups[0].HAProxy.TCPKeepalive = time.Hour }, haproxy + "tcp_keepalive"},
		"own text":        {func(t *blueprints.Topology) { t.Groups[0].HAProxy.ExtraGlobal = "tune.bufsize 32768" }, haproxy + "extra_global"},
		"stats":           {func(t *blueprints.Topology) { t.Groups[0].HAProxy.StatsPort = 8405 }, haproxy + "stats_bind"},
		"peers":           {func(t *blueprints.Topology) { t.Groups[0].HAProxy.PeersPort = 10001 }, haproxy + "peers_port"},
		"worker added": {func(t *blueprints.Topology) {
			t.Clusters[0].Workers = append(t.Clusters[0].Workers, netip.MustParseAddr("10.20.0.24"))
		}, "cluster.tkg.workers"},
		"worker removed":      {func(t *blueprints.Topology) { t.Clusters[0].Workers = t.Clusters[0].Workers[:2] }, "cluster.tkg.workers"},
		"control port":        {func(t *blueprints.Topology) { t.Services[0].ControlPort = 2121 }, "ftp_service.vsftpd.control.port"},
		"control NodePort":    {func(t *blueprints.Topology) { t.Services[0].ControlNodePort = 30022 }, "ftp_service.vsftpd.control.node_port"},
		"range widened":       {func(t *blueprints.Topology) { t.Services[0].PassiveLast = 21120 }, "ftp_service.vsftpd.passive.ports"},
		"passive NodePorts":   {func(t *blueprints.Topology) { t.Services[0].NodePortFirst = 32200 }, "ftp_service.vsftpd.passive.node_port_first ftp_service.vsftpd.passive.ports"},
		"VIP":                 {func(t *blueprints.Topology) { t.VIPs[0].Address = netip.MustParseAddr("203.0.113.16") }, "vip.ftp.address | vip.ftp.address"},
		"router":              {func(t *blueprints.Topology) { t.VIPs[0].VirtualRouter = 52 }, "| vip.ftp.virtual_router"},
		"interval":            {func(t *blueprints.Topology) { t.VIPs[0].AdvertInterval = time.Second }, "| vip.ftp.advert_interval"},
		"preempt":             {func(t *blueprints.Topology) { t.VIPs[0].Preempt = true }, "| vip.ftp"}, // a line goes, and nothing like it stays
		"priority":            {func(t *blueprints.Topology) { t.Boxes[0].Priority = 120 }, "| lb.haproxy-a.priority"},
		"probe":               {func(t *blueprints.Topology) { t.VIPs[0].Probe = "frontend" }, "vip.ftp.probe"},
		"address of the peer": {func(t *blueprints.Topology) { t.Boxes[1].NICs[0].Address = netip.MustParseAddr("203.0.113.13") }, "| lb.haproxy-b.nic.frontend.address"},
	} {
		t.Run(name, func(t *testing.T) {
			top := production()
			before := files(t, top, 0)
			c.change(top)
			after := files(t, top, 0)
			because := func(path string) string {
				i := slices.IndexFunc(after, func(f File) bool { return f.Path == path })
				if string(after[i].Content) == string(before[i].Content) {
					return ""
				}
				return strings.Join(after[i].Because(before[i].Content), " ")
			}
			got := because(HAProxyPath)
			if k := because(KeepalivedPath); k != "" {
				got = strings.TrimSpace(got + " | " + k)
			}
			if got != c.want {
				t.Errorf("because of %q, want %q", got, c.want)
			}
		})
	}
}
