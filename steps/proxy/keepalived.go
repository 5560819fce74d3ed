package proxy

import (
	"fmt"
	"strconv"
	"strings"

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
		t.line("timeout 4") // longer than the script takes: three answers, and its pause
		t.line("fall 1")    // the script asks twice itself
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
	// Of two masters that hear each other again the one that stays must repeat its
	// gratuitous ARP, which it does at an advert of the one that goes.
	t.line("higher_prio_send_advert true")
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
// answer, and does it say that the VIP named by the argument is served? Where no node
// serves it, the box is at fault only if another one greets clients: while the server's
// pod is replaced none does, and the VIP stays. It asks twice, so that neither HAProxy's
// own restart nor a node that the other box has found alive a moment sooner counts. bash
// opens the connections itself, as neither curl nor a netcat is on a minimal Debian, RHEL
// or Photon.
func (r *render) check() []byte {
	var others strings.Builder
	for _, v := range r.vips {
		var greet []string
		for _, s := range r.servicesOf(v) {
			for _, b := range r.group.Boxes {
				if own, ok := Direct(r.topology, b, s); ok && b != r.box {
					greet = append(greet, fmt.Sprintf("greets %s %d", own, s.ControlPort))
				}
			}
		}
		if len(greet) > 0 {
			fmt.Fprintf(&others, "%s) %s ;;\n", v.Name, strings.Join(greet, " & ")+" &")
		}
	}
	nobody := 0 // who cannot be asked may greet
	if len(r.group.Boxes) == 1 {
		nobody = 1
	}
	return fmt.Appendf(nil, `#!/bin/bash
%sread -r until _ 2>/dev/null <%s && [ "$until" -gt "$(date +%%s)" ] && exit 1
served() {
	status=
	exec 3<>/dev/tcp/%s/%d || return
	echo -e "GET /$1 HTTP/1.0\r\n\r" >&3
	read -r -t 1 -u 3 _ status _
	exec 3>&-
	[ "$status" = 200 ]
}
greets() {
	timeout 1 bash -c 'exec 3<>/dev/tcp/$0/$1; read -r -u 3 said; echo -e "QUIT\r" >&3; [[ $said == 220* || $said == 421* ]]' "$@"
}
elsewhere() {
	case $1 in
	%s*) return %d ;;
	esac
	for job in $(jobs -p); do
		wait "$job" && return
	done
	return 1
} 2>/dev/null
served "$1" && exit
[ "$status" = 503 ] && ! elsewhere "$1" && exit 0
sleep 0.4
served "$1"
`, r.header(), DrainedPath, healthHost, healthPort, strings.ReplaceAll(others.String(), "\n", "\n\t"), nobody)
}
