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
func (r *render) keepalived() []byte {
	var t text
	t.raw(r.header())

	t.section("global_defs {")
	t.line("router_id %s", r.box.Name)
	t.line("vrrp_version 3")
	t.line("enable_script_security")
	t.line("script_user root") // with another user, 2.2's own config test kills itself
	t.raw("}\n")

	for _, v := range r.vips {
		t.section("vrrp_script check_%s {", v.Name)
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
	nic := r.box.NIC(v.Network)
	t.section("vrrp_instance %s {", v.Name)
	t.line("interface %s", nic.Interface)
	t.line("state BACKUP")
	if !v.Preempt {
		t.line("nopreempt")
	}
	t.line("virtual_router_id %d", v.VirtualRouter)
	t.line("priority %d", r.box.Priority)
	t.line("advert_int %s", strconv.FormatFloat(v.AdvertInterval.Seconds(), 'f', -1, 64))
	t.line("garp_master_refresh %.0f", v.GARPRefresh.Seconds())
	if v.Transport == "unicast" && len(r.group.Boxes) > 1 {
		t.line("unicast_src_ip %s", nic.Address)
		t.line("unicast_peer {")
		for _, b := range r.group.Boxes {
			if b != r.box {
				t.line("    %s", b.NIC(v.Network).Address)
			}
		}
		t.line("}")
	}
	// The VIP's own NIC is watched in any case.
	services := r.servicesOf(v)
	var watched []string
	for _, n := range r.box.NICs {
		if n.Network != v.Network && r.reachesWorkers(n.Network, services) {
			watched = append(watched, n.Interface)
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
	t.line("    %s/%d dev %s", v.Address, v.Prefix, nic.Interface)
	t.line("}")
	t.raw("}\n")
}

// check renders the script of the vrrp_script: does HAProxy answer, and does it say
// that the VIP named by the argument is served? bash opens the connection itself, as
// neither curl nor a netcat is on a minimal Debian, RHEL or Photon.
func (r *render) check() []byte {
	return fmt.Appendf(nil, `#!/bin/bash
%sexec 3<>/dev/tcp/%s/%d || exit 1
echo -e "GET /$1 HTTP/1.0\r\n\r" >&3
read -r -t 1 -u 3 _ status _
[ "$status" = 200 ]
`, r.header(), healthHost, healthPort)
}
