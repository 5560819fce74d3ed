package doctor

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ftpdeploy/ftpdeploy/kube"
	"github.com/ftpdeploy/ftpdeploy/steps/ftp"
)

type (
	podState  = kube.PodState
	nodeState = kube.NodeState
)

func (d *diagnosis) box(name string) *Box {
	for i := range d.Boxes {
		if d.Boxes[i].Name == name {
			return &d.Boxes[i]
		}
	}
	return nil
}

// serves tells whether a box serves at its own address.
func (b *Box) serves() bool { return b.Own.Login.Outcome == ftp.OK }

// reach looks whether the boxes can be entered.
func (d *diagnosis) reach() {
	for i := range d.Boxes {
		b := &d.Boxes[i]
		v := Verdict{Confidence: Certain, Evidence: []string{b.Unreached}, breaks: !d.works() && !b.serves()}
		if b.Own.Connect.Outcome != ftp.Unasked {
			v.Evidence = append(v.Evidence, fmt.Sprintf("here -> its own address, port %d: %s", d.Control, b.Own.Connect.Outcome))
		}
		switch {
		case b.Off:
			v.ID, v.Text, v.Fix = "box-off", b.Name+" does not run", "ftpdeploy apply"
		case b.NoVCenter:
			v.ID, v.Text, v.breaks = "vcenter-unreachable", "vCenter cannot be asked for the host keys of "+b.Name+", which is therefore not entered", false
			v.Fix = "Check the vcenter block and the network to vCenter. FTP goes on without it"
		case b.Refused:
			v.ID, v.Text = "box-login", b.Name+" answers SSH and does not let ftpdeploy in"
			v.Fix = "Correct the ssh block: user, key, sudo, host key"
		case b.Unreached != "" && b.serves():
			v.ID, v.Text = "box-unreachable", b.Name+" cannot be entered over SSH, and serves FTP: sshd, or the management network"
			v.Fix = "Look at sshd and the management NIC by the console"
		case b.Unreached != "":
			v.ID, v.Text = "box-unreachable", b.Name+" cannot be entered over SSH"
			v.Fix = "Look at its console. If it is lost: ftpdeploy apply --replace lb." + b.Name
		default:
			continue
		}
		d.say(v, "box "+b.Name)
	}
}

// daemons looks at HAProxy and keepalived.
func (d *diagnosis) daemons() {
	for i := range d.Boxes {
		b := &d.Boxes[i]
		if !b.entered() {
			continue
		}
		if len(b.Lacks) > 0 {
			d.say(Verdict{
				ID: "package-missing", Confidence: Certain, breaks: d.carries(b), Text: b.Name + " lacks " + strings.Join(b.Lacks, ", "),
				Evidence: []string{"not installed: " + strings.Join(b.Lacks, ", ")}, Fix: "ftpdeploy apply",
			}, "box "+b.Name, "keepalived "+b.Name)
			continue
		}
		if b.HAProxy != "" && b.HAProxy != "active" {
			v := Verdict{
				ID: "haproxy-stopped", Confidence: Certain, breaks: d.carries(b), Text: fmt.Sprintf("HAProxy does not run on %s (%s)", b.Name, b.HAProxy),
				Evidence: append([]string{"haproxy.service is " + b.HAProxy}, b.Said...),
				Fix:      "ftpdeploy apply, or on the box: systemctl start haproxy",
			}
			if b.HAProxy == "failed" {
				v.Fix = "On " + b.Name + ": haproxy -c -f /etc/haproxy/haproxy.cfg; journalctl -u haproxy -n 50. Then: ftpdeploy apply"
			}
			d.say(v, "box "+b.Name, "unfit "+b.Name)
		}
		if b.Keepalived != "" && b.Keepalived != "active" {
			d.say(Verdict{
				ID: "keepalived-stopped", Confidence: Certain, breaks: !d.held(), Text: fmt.Sprintf("keepalived does not run on %s (%s): it takes no VIP", b.Name, b.Keepalived),
				Evidence: []string{"keepalived.service is " + b.Keepalived, holds(b, d.Facts)},
				Fix:      "ftpdeploy apply, or on the box: systemctl start keepalived",
			}, "keepalived "+b.Name)
		}
	}
}

func holds(b *Box, f Facts) string {
	if b.Holds {
		return b.Name + " has the VIP " + f.VIP.String()
	}
	return b.Name + " does not have the VIP"
}

// held tells whether a box holds the VIP.
func (d *diagnosis) held() bool {
	return slices.ContainsFunc(d.Boxes, func(b Box) bool { return b.Holds })
}

// configs looks at the configurations.
func (d *diagnosis) configs() {
	texts := map[string]string{
		"wrong-node-port": "HAProxy sends to other NodePorts than the Service has",
		"node-list":       "HAProxy's list of workers is not the blueprint's",
		"range-narrow":    "HAProxy does not serve the ports of the blueprint",
		"sticky-missing":  "data connections do not follow their control connection to the same worker",
		"timeouts-short":  "HAProxy ends silent control connections after another time than the blueprint's, also while a file moves",
		"vip-mask":        "keepalived has the VIP with another mask",
		"vrrp-config":     "keepalived's configuration is not the blueprint's",
		"config-edited":   "the configuration is not the blueprint's",
	}
	for _, kind := range editKinds {
		v := Verdict{ID: kind, Confidence: Certain, Fix: "ftpdeploy plan shows the difference, ftpdeploy apply takes it back"}
		var names, explains []string
		for i := range d.Boxes {
			b := &d.Boxes[i]
			first := true
			for _, e := range b.Edits {
				if e.Kind != kind {
					continue
				}
				v.Evidence = append(v.Evidence, b.Name+"  "+e.String())
				if first {
					names = append(names, b.Name)
					v.breaks = v.breaks || d.carries(b) && kind != "config-edited"
					if kind != "config-edited" && kind != "timeouts-short" {
						explains = append(explains, "box "+b.Name, "unfit "+b.Name)
					}
					if kind == "vrrp-config" || kind == "vip-mask" {
						explains = append(explains, "keepalived "+b.Name)
					}
				}
				first = false
			}
			if !first && b.Edited != "" {
				v.Evidence = append(v.Evidence, b.Name+"  "+b.Edited)
			}
			if !first && kind == "timeouts-short" && len(b.Cut) > 0 {
				v.Evidence = append(v.Evidence, timedOut(b))
			}
		}
		if names == nil {
			continue
		}
		v.Text = fmt.Sprintf("%s: %s", strings.Join(names, ", "), texts[kind])
		d.say(v, explains...)
	}
	for i := range d.Boxes {
		b := &d.Boxes[i]
		if b.Pending && len(b.Edits) == 0 {
			d.say(Verdict{
				ID: "reload-pending", Confidence: Likely, breaks: d.carries(b) && !d.works(), Text: b.Name + ": HAProxy may not run what is on disk: it was written after the last load that ftpdeploy has seen",
				Evidence: []string{b.Edited}, Fix: "ftpdeploy apply",
			})
		}
	}
	if d.Client < shortTimeout || d.Server < shortTimeout {
		v := Verdict{
			ID: "timeouts-short", Confidence: Likely, breaks: true, Fix: "Raise haproxy.timeouts in the blueprint above the longest transfer, then: ftpdeploy apply",
			Text:     fmt.Sprintf("the blueprint has HAProxy end silent control connections after %s: a longer transfer loses its session", min(d.Client, d.Server)),
			Evidence: []string{fmt.Sprintf("timeouts: client %s, server %s", d.Client, d.Server)},
		}
		for i := range d.Boxes {
			if b := &d.Boxes[i]; len(b.Cut) > 0 {
				v.Confidence = Certain
				v.Evidence = append(v.Evidence, timedOut(b))
			}
		}
		d.say(v)
	}
}

func timedOut(b *Box) string {
	return fmt.Sprintf("%s has ended %d sessions by a timeout in the last hour (flag cD or sD in its log)", b.Name, len(b.Cut))
}

// machines looks at what else makes a box unfit.
func (d *diagnosis) machines() {
	for i := range d.Boxes {
		b := &d.Boxes[i]
		if !b.entered() {
			continue
		}
		if b.NonlocalBind == "0" {
			d.say(Verdict{
				ID: "nonlocal-bind", Confidence: Certain, Text: b.Name + " may not bind the VIP while it does not hold it: HAProxy does not start there",
				Evidence: []string{"net.ipv4.ip_nonlocal_bind is 0"}, Fix: "ftpdeploy apply",
			})
		}
		if len(b.Full) > 0 {
			d.say(Verdict{
				ID: "disk-full", Confidence: Certain, Text: fmt.Sprintf("a disk of %s is full: %s", b.Name, strings.Join(b.Full, ", ")),
				Evidence: b.Full, Fix: "Make room on " + b.Name + ": df -h; journalctl --vacuum-size=100M",
			})
		}
		if b.Ahead.Abs() > clockSlack {
			way := "ahead of"
			if b.Ahead < 0 {
				way = "behind"
			}
			d.say(Verdict{
				ID: "clock-off", Confidence: Certain, Text: fmt.Sprintf("the clock of %s is %s %s this machine's: drains end at the wrong time, and logs do not fit together", b.Name, b.Ahead.Abs().Round(1e9), way),
				Evidence: []string{fmt.Sprintf("%s is %s %s, by both machines' own word", b.Name, b.Ahead.Abs().Round(1e9), way)},
				Fix:      "Set the clocks by NTP on both: timedatectl",
			})
		}
		if b.Firewall != "" {
			d.say(Verdict{
				ID: "box-firewall", Confidence: Certain, breaks: d.carries(b), Text: b.Name + ": firewalld does not let in what the service needs",
				Evidence: []string{b.Firewall}, Fix: "ftpdeploy apply",
			}, "box "+b.Name)
		}
	}
}

// vip looks who holds the VIP.
func (d *diagnosis) vip() {
	var holders, others []*Box
	known := true
	for i := range d.Boxes {
		b := &d.Boxes[i]
		switch {
		case !b.entered():
			known = false
		case b.Holds:
			holders = append(holders, b)
		default:
			others = append(others, b)
		}
	}
	switch {
	case len(holders) > 1:
		d.heldTwice(holders)
	case len(holders) == 0 && known && len(d.Boxes) > 0:
		d.heldByNone(others)
	case len(holders) == 1:
		b := holders[0]
		if b.Prefix != d.Prefix && !d.said("vip-mask") {
			d.say(Verdict{
				ID: "vip-mask", Confidence: Certain, breaks: true, Text: fmt.Sprintf("%s has the VIP as %s/%d, to be /%d: it takes clients behind a router for neighbours", b.Name, d.VIP, b.Prefix, d.Prefix),
				Evidence: []string{fmt.Sprintf("ip addr on %s: %s/%d", b.Name, d.VIP, b.Prefix)}, Fix: "ftpdeploy apply",
			})
		}
		if b.State != "" && b.State != "MASTER" && b.Keepalived == "active" {
			d.say(Verdict{
				ID: "vip-by-hand", Confidence: Likely, Text: fmt.Sprintf("%s has the VIP, and its keepalived is %s: something else has set it", b.Name, b.State),
				Evidence: b.Log, Fix: fmt.Sprintf("On %s: ip addr del %s/%d dev NIC", b.Name, d.VIP, b.Prefix),
			}, "holder")
		}
	}
	for _, b := range others {
		if b.Fit == No && b.Drained == "" && len(holders) > 0 && !d.explained["unfit "+b.Name] && !d.explained["workers"] && !d.explained["box "+b.Name] {
			d.say(Verdict{
				ID: "standby-unfit", Confidence: Likely, Text: b.Name + " would not take the VIP: keepalived's check fails there", Evidence: append(d.servers(b), b.Log...),
				Fix: "On " + b.Name + ": journalctl -u haproxy -n 50",
			})
		}
	}
}

func (d *diagnosis) said(id string) bool {
	return slices.ContainsFunc(d.verdicts, func(v Verdict) bool { return v.ID == id })
}

// servers are the servers of the service's control that a box has marked down.
func (d *diagnosis) servers(b *Box) []string {
	var all []string
	for _, s := range b.Servers {
		if s.Name == d.Service+"_control" && s.Server != "FRONTEND" && s.Server != "BACKEND" && !s.Up() {
			all = append(all, fmt.Sprintf("%s: HAProxy has %s %s for %s: %s %s", b.Name, s.Server, s.Status, s.Since, s.Check, s.Answer))
		}
	}
	return all
}

func (d *diagnosis) heldTwice(holders []*Box) {
	v := Verdict{ID: "vip-held-twice", Confidence: Likely, breaks: true, Text: "more than one box holds the VIP: clients reach whichever answers first"}
	masters, edited, reach := 0, false, true
	var names []string
	for _, b := range holders {
		names = append(names, b.Name)
		v.Evidence = append(v.Evidence, fmt.Sprintf("%s has %s/%d, and its keepalived is %s (%s)", b.Name, d.VIP, b.Prefix, orNone(b.State), b.Keepalived))
		if b.State == "MASTER" && b.Keepalived == "active" {
			masters++
		}
		edited = edited || d.explained["keepalived "+b.Name]
		reach = reach && b.PeerReach == ftp.OK
		v.Fix = fmt.Sprintf("On the box that is not to have it: ip addr del %s/%d dev NIC; then: ftpdeploy apply", d.VIP, d.Prefix)
	}
	switch {
	case masters == len(holders) && !edited:
		// A master that hears a better one steps down: both are, so at least one hears nothing.
		v.ID, v.Confidence = "vrrp-blocked", Certain
		v.Text = fmt.Sprintf("%s all hold the VIP: VRRP (IP protocol 112) does not get through between them", strings.Join(names, " and "))
		if reach {
			v.Evidence = append(v.Evidence, "TCP between their addresses in the VIP's network gets through")
		} else {
			v.Text = fmt.Sprintf("%s all hold the VIP: they do not hear each other in the VIP's network", strings.Join(names, " and "))
			v.Evidence = append(v.Evidence, "TCP between their addresses in the VIP's network does not get through either")
		}
		v.Fix = "Let IP protocol 112 pass between the boxes' addresses in the VIP's network: host firewalls, the port group, distributed firewall rules"
	case masters < len(holders):
		v.Confidence = Certain
		v.Text = "more than one box holds the VIP, and keepalived is not master on all of them: it was set by hand, or left behind when keepalived was killed"
	}
	d.say(v, "holder")
}

func orNone(s string) string {
	if s == "" {
		return "of no known state"
	}
	return s
}

func (d *diagnosis) heldByNone(boxes []*Box) {
	v := Verdict{ID: "vip-held-by-none", Confidence: Likely, breaks: true, Text: "no box holds the VIP " + d.VIP.String()}
	accounted, unfit := 0, 0
	for _, b := range boxes {
		line := fmt.Sprintf("%s: keepalived is %s, %s", b.Name, b.Keepalived, orNone(b.State))
		switch {
		case b.Drained != "":
			line += ", drained until " + b.Drained
			accounted++
		case d.explained["keepalived "+b.Name], d.explained["unfit "+b.Name]:
			accounted++
		case b.Fit == No:
			line += ", and its check fails"
			unfit++
		}
		v.Evidence = append(v.Evidence, line)
		v.Evidence = append(v.Evidence, d.servers(b)...)
	}
	drained := slices.ContainsFunc(boxes, func(b *Box) bool { return b.Drained != "" })
	switch {
	case (d.explained["workers"] || d.explained["pod"]) && unfit+accounted == len(boxes):
		d.explained["holder"] = true // by design: what cannot serve takes no VIP
		return
	case accounted == len(boxes) && !drained:
		d.explained["holder"] = true
		return
	case accounted == len(boxes):
		v.Confidence, v.Text = Certain, v.Text+": drained boxes take none, also when the other one fails"
		v.Fix = "ftpdeploy resume " + boxes[0].Name
	case unfit > 0 && unfit+accounted == len(boxes):
		v.Text += ": keepalived's check fails everywhere"
		v.Fix = "On a box: /usr/libexec/keepalived/ftpdeploy-check " + d.VIPName + "; journalctl -u haproxy -n 50"
	default:
		v.Fix = "On both boxes: journalctl -u keepalived -n 30; ip -br link"
		for _, b := range boxes {
			if b.State == "FAULT" {
				v.Text += ": keepalived is in FAULT, so a NIC is down or the check fails"
				v.Evidence = append(v.Evidence, b.Log...)
				break
			}
		}
	}
	d.say(v, "holder")
}

// entrances holds the ways in against each other: the VIP's and the boxes' own.
func (d *diagnosis) entrances() {
	for i := range d.Boxes {
		b := &d.Boxes[i]
		if !b.entered() || d.explained["box "+b.Name] || d.explained["workers"] || d.explained["greeting"] {
			continue
		}
		breaks := d.carries(b)
		switch o := b.Own.Connect.Outcome; {
		case o == ftp.Refused && b.HAProxy == "active":
			d.say(Verdict{
				ID: "box-not-listening", Confidence: Likely, breaks: breaks, Text: fmt.Sprintf("%s refuses port %d although HAProxy runs: it runs with another configuration", b.Name, d.Control),
				Evidence: []string{"here -> " + b.Name + ": refused"}, Fix: "ftpdeploy apply, then on the box: systemctl reload haproxy",
			}, "box "+b.Name)
			continue
		case o == ftp.Silent:
			d.blocked(b, fmt.Sprint(d.Control), breaks, nil)
			continue
		case o == ftp.OK && b.Own.Greeting.Outcome != ftp.OK && b.Own.Greeting.Outcome != ftp.Unasked:
			down := d.servers(b)
			v := Verdict{
				ID: "check-fails", Confidence: sure(len(down) > 0), breaks: breaks,
				Text:     b.Name + " takes connections and leads them nowhere: HAProxy holds every worker for dead, and they answer this box",
				Evidence: append([]string{fmt.Sprintf("here -> %s: connected, then %s", b.Name, b.Own.Greeting.Outcome)}, down...),
				Fix:      "On " + b.Name + ": journalctl -u haproxy -n 50",
			}
			d.say(v, "box "+b.Name)
			continue
		}
		var silent, refused []int
		for p := d.First; p <= d.Last; p++ {
			switch b.OwnPorts.Failed[p].Outcome {
			case ftp.Silent:
				silent = append(silent, p)
			case ftp.Refused:
				refused = append(refused, p)
			}
		}
		if d.portsExplained(append(slices.Clone(silent), refused...)) {
			continue
		}
		if len(silent) > 0 {
			d.blocked(b, ftp.Ranges(silent), breaks, silent)
		}
		if len(refused) > 0 {
			d.say(Verdict{
				ID: "range-narrow", Confidence: Likely, breaks: breaks, Text: fmt.Sprintf("%s refuses passive port %s: HAProxy does not listen there", b.Name, ftp.Ranges(refused)),
				Evidence: []string{fmt.Sprintf("here -> %s: %s refused, %s ok", b.Name, ftp.Ranges(refused), ftp.Ranges(b.OwnPorts.OK))},
				Fix:      "ftpdeploy apply",
			}, "box "+b.Name, "data")
		}
	}
}

// portsExplained tells whether a worker's closed ports are why these fail.
func (d *diagnosis) portsExplained(ports []int) bool {
	return len(ports) > 0 && d.explained["ports "+ftp.Ranges(ports)]
}

// blocked says that packets from here to a port of a box get lost.
func (d *diagnosis) blocked(b *Box, ports string, breaks bool, passive []int) {
	v := Verdict{
		ID: "box-firewall", Confidence: Likely, breaks: breaks, Text: fmt.Sprintf("packets to port %s of %s are dropped, by the box or on the way to it", ports, b.Name),
		Evidence: []string{fmt.Sprintf("here -> %s: %s timed out", b.Name, ports)},
		Fix:      fmt.Sprintf("On %s: nft list ruleset; iptables-save. Then the firewalls between clients and the box", b.Name),
	}
	if len(b.OwnPorts.OK) > 0 {
		v.Evidence = append(v.Evidence, fmt.Sprintf("here -> %s: %s ok", b.Name, ftp.Ranges(b.OwnPorts.OK)))
	}
	for i := range d.Boxes {
		if o := &d.Boxes[i]; o != b && o.serves() {
			v.Evidence = append(v.Evidence, fmt.Sprintf("here -> %s: %d, %s ok", o.Name, d.Control, ftp.Ranges(o.OwnPorts.OK)))
		}
	}
	if len(b.Filters) > 0 {
		v.Evidence = append(v.Evidence, b.Filters...)
		if passive == nil {
			passive = []int{d.Control}
		}
		if slices.ContainsFunc(b.Filters, func(rule string) bool { return names(rule, passive) }) {
			v.Confidence, v.Text = Certain, fmt.Sprintf("a packet filter on %s drops port %s", b.Name, ports)
		}
	}
	d.say(v, "box "+b.Name, "data")
}

// names tells whether a rule of a packet filter is about all of these ports.
func names(rule string, ports []int) bool {
	for _, word := range strings.FieldsFunc(rule, func(r rune) bool { return strings.ContainsRune(" ,{}", r) }) {
		var first, last int
		word = strings.ReplaceAll(word, ":", "-")
		if n, _ := fmt.Sscanf(word, "%d-%d", &first, &last); n == 2 && first <= ports[0] && ports[len(ports)-1] <= last {
			return true
		}
		if n, _ := fmt.Sscanf(word, "%d", &first); n == 1 && len(ports) == 1 && word == fmt.Sprint(ports[0]) {
			return true
		}
	}
	return false
}

// data looks at transfers that fail although each hop lets them through.
func (d *diagnosis) data() {
	if d.explained["data"] || d.explained["workers"] {
		return
	}
	var bad []string
	for _, t := range d.Here.Tries {
		if strings.Contains(t.List.Text, "Bad IP connecting") {
			bad = append(bad, t.Mode+": "+t.List.Text)
		}
	}
	for _, f := range d.Through.Failed {
		if strings.Contains(f.Text, "Bad IP connecting") && len(bad) < 4 {
			bad = append(bad, f.Text)
		}
	}
	if len(bad) == 0 {
		return
	}
	if d.said("sticky-missing") {
		for i := range d.verdicts {
			if v := &d.verdicts[i]; v.ID == "sticky-missing" {
				v.breaks, v.Evidence = true, append(v.Evidence, bad[0])
			}
		}
	} else {
		d.say(Verdict{
			ID: "data-other-worker", Confidence: Likely, breaks: true,
			Text:     "control and data took different workers, so the server saw two source addresses: the stick table was lost (both boxes restarted, or two reloads within seconds), or clients come from several addresses",
			Evidence: bad, Fix: "Clients log in again. If it goes on: echo 'show table " + d.Service + "_control' | socat - /run/haproxy.sock on both boxes",
		})
	}
	d.explained["data"] = true
}

// rest says what is seen and not explained.
func (d *diagnosis) rest() {
	if d.works() || len(d.verdicts) > 0 && slices.ContainsFunc(d.verdicts, func(v Verdict) bool { return v.breaks }) {
		return
	}
	v := Verdict{ID: "unexplained", Confidence: Likely, breaks: true, Fix: "ftpdeploy verify -v --matrix; the logs of the server and of HAProxy"}
	add := func(name string, s ftp.Stage) {
		if s.Outcome != ftp.OK && s.Outcome != ftp.Unasked {
			v.Evidence = append(v.Evidence, fmt.Sprintf("here -> %s: %s %s: %s", d.VIP, name, s.Outcome, s.Text))
		}
	}
	add("connect", d.Here.Connect)
	add("greeting", d.Here.Greeting)
	add("login", d.Here.Login)
	for _, t := range d.Here.Tries {
		add(t.Mode+" data connection", t.Connect)
		add(t.Mode+" listing", t.List)
	}
	if d.Through.Err != "" {
		v.Evidence = append(v.Evidence, d.Through.Err)
	}
	boxes := ""
	for i := range d.Boxes {
		if d.Boxes[i].serves() {
			boxes += " " + d.Boxes[i].Name
		}
	}
	switch {
	case d.Here.Connect.Outcome == ftp.Unasked:
		return
	case d.Here.Connect.Outcome != ftp.OK && boxes != "" && d.held():
		v.ID, v.Text = "vip-path", fmt.Sprintf("the VIP %s does not answer from here, and%s at its own address does: another machine may have the VIP, or its router still sends to the box of before", d.VIP, boxes)
		v.Fix = fmt.Sprintf("From a machine in the VIP's network: arping %s, and compare the MAC address with the holder's", d.VIP)
	case len(v.Evidence) == 0:
		v.Text = "a passive port does not come up through the VIP, and every path behind it works"
	default:
		v.Text = "a client fails, and every hop that was looked at works"
	}
	for p, f := range d.Through.Failed {
		v.Evidence = append(v.Evidence, fmt.Sprintf("port %d: %s", p, f.Text))
	}
	slices.Sort(v.Evidence)
	d.say(v)
}
