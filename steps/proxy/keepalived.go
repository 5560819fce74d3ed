package proxy

import (
	"fmt"
	"strconv"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
)

// keepalived renders keepalived.conf: VRRPv3 (RFC 5798), a virtual router a VIP.
//
// All boxes start as BACKUP: only then does nopreempt hold. A failing script or NIC
// is a FAULT (weight 0), as with nopreempt a lower priority alone moves nothing.
func (r *render) keepalived() text {
	var t text
	t.raw(r.header())

	t.head("global_defs {")
	t.line("router_id %s", r.box.Name)
	t.line("vrrp_version 3")
	t.line("enable_script_security")
	t.line("script_user root") // with another user, 2.2's own config test kills itself
	t.raw("}\n")

	for _, v := range r.vips {
		t.head("vrrp_script check_%s {", v.Name, by(vipOf(v)))
		t.line(`script "%s %s"`, CheckPath, v.Name)
		t.line("interval 1")
		t.line("timeout 2")
		t.line("fall 2")
		t.line("rise 2")
		t.line("weight 0")
		t.raw("}\n")
	}
	for _, v := range r.vips {
		r.instance(&t, v)
	}
	return t
}

func (r *render) instance(t *text, v *blueprints.VIP) {
	nic, at := r.box.NIC(v.Network), vipOf(v)+"."
	t.head("vrrp_instance %s {", v.Name, by(vipOf(v)))
	t.line("interface %s", of(nic.Interface, nicOf(r.box, nic)+".interface"))
	t.line("state BACKUP")
	if !v.Preempt {
		t.line("nopreempt", by(at+"preempt"))
	}
	t.line("virtual_router_id %s", of(v.VirtualRouter, at+"virtual_router"))
	t.line("priority %s", of(r.box.Priority, "lb."+r.box.Name+".priority"))
	t.line("advert_int %s", of(strconv.FormatFloat(v.AdvertInterval.Seconds(), 'f', -1, 64), at+"advert_interval"))
	t.line("garp_master_refresh %s", of(fmt.Sprintf("%.0f", v.GARPRefresh.Seconds()), at+"garp_refresh"))
	if v.Transport == "unicast" && len(r.group.Boxes) > 1 {
		t.line("unicast_src_ip %s", of(nic.Address, nicOf(r.box, nic)+".address"), by(at+"transport"))
		t.line("unicast_peer {", by(at+"transport"))
		for _, b := range r.group.Boxes {
			if b != r.box {
				other := b.NIC(v.Network)
				t.line("    %s", of(other.Address, nicOf(b, other)+".address"))
			}
		}
		t.line("}")
	}
	// The VIP's own NIC is watched in any case.
	services := r.servicesOf(v)
	var watched []value
	for i := range r.box.NICs {
		n := &r.box.NICs[i]
		if n.Network != v.Network && r.reachesWorkers(n.Network, services) {
			watched = append(watched, of(n.Interface, nicOf(r.box, n)+".interface"))
		}
	}
	if len(watched) > 0 {
		t.line("track_interface {")
		for _, name := range watched {
			t.line("    %s", name)
		}
		t.line("}")
	}
	t.line("track_script {")
	t.line("    check_%s", v.Name)
	t.line("}")
	t.line("virtual_ipaddress {")
	t.line("    %s/%s dev %s", of(v.Address, at+"address"), of(v.Prefix, at+"prefix"), of(nic.Interface, nicOf(r.box, nic)+".interface"))
	t.line("}")
	t.raw("}\n")
}

// check renders the script of the vrrp_script: is the box not drained, does HAProxy
// answer, and does it say that the VIP named by the argument is served? bash opens
// the connection itself, as neither curl nor a netcat is on a minimal Debian, RHEL or
// Photon.
func (r *render) check() []byte {
	return fmt.Appendf(nil, `#!/bin/bash
%sread -r until _ 2>/dev/null <%s && [ "$until" -gt "$(date +%%s)" ] && exit 1
exec 3<>/dev/tcp/%s/%d || exit 1
echo -e "GET /$1 HTTP/1.0\r\n\r" >&3
read -r -t 1 -u 3 _ status _
[ "$status" = 200 ]
`, r.header(), DrainedPath, healthHost, healthPort)
}
