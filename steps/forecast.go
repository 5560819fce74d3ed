package steps

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/steps/proxy"
)

// Forecast says of each change of p, which was made from the last List, what it
// costs those who use the deployment, and returns what all of it costs. What the
// clients have open is what was seen then; nil where no box was looked at.
func (l *Live) Forecast(p *plan.Plan) *plan.Impact {
	if !slices.ContainsFunc(l.steps, func(s *hostStep) bool { return s.seen != nil }) {
		return nil
	}
	f := newForecast(l.steps)
	if l.options.Took != nil {
		f.took = l.options.Took()
	}
	for _, o := range l.Observed() {
		f.pace[o.Address] = max(1, o.Took.Seconds()/usualLook)
	}
	var all plan.Impact
	for _, s := range l.steps {
		now := f.carried(s)
		all.Sessions += now.sessions
		all.Transfers += now.transfers
	}
	for _, e := range p.Entries {
		for i := range e.Changes {
			c := &e.Changes[i]
			c.Impact = f.impact(e.Step.Name(), *c)
			all.Cut += c.Impact.Cut
			all.VIPMoves += c.Impact.VIPMoves
		}
	}
	all.Longest = f.lasts(p, func(i *plan.Impact) *float64 { return &i.Longest })
	all.Seconds = f.lasts(p, func(i *plan.Impact) *float64 { return &i.Seconds })
	known := func(i *plan.Impact) {
		if i.Longest <= i.Seconds {
			i.Longest = 0
		}
	}
	known(&all)
	for _, e := range p.Entries {
		for i := range e.Changes {
			known(&e.Changes[i].Impact)
		}
	}
	return &all
}

// forecast is what is left of the start of a run while its changes are gone through.
type forecast struct {
	hosts  []*hostStep
	open   map[*hostStep]map[*blueprints.Service]traffic
	holder map[*blueprints.VIP]*hostStep // nil where no box holds it
	pace   map[string]float64            // how much slower than usual a box answered
	took   map[string]float64            // seconds in earlier runs, by ChangeKey
}

func newForecast(hosts []*hostStep) *forecast {
	f := &forecast{hosts: hosts, open: map[*hostStep]map[*blueprints.Service]traffic{}, holder: map[*blueprints.VIP]*hostStep{}, pace: map[string]float64{}}
	for _, s := range hosts {
		seen := s.seen
		if seen == nil {
			seen = s.going
		}
		f.open[s] = s.carries(seen)
		for _, v := range s.topology.VIPs {
			if v.Group == s.group && seen != nil && slices.ContainsFunc(s.at(v), seen.Holds) {
				f.holder[v] = s
			}
		}
	}
	return f
}

// carried is what a box carries for some services, none meaning all.
func (f *forecast) carried(s *hostStep, services ...*blueprints.Service) traffic {
	var sum traffic
	for service, t := range f.open[s] {
		if services == nil || slices.Contains(services, service) {
			sum.sessions += t.sessions
			sum.transfers += t.transfers
		}
	}
	return sum
}

// cut ends what a box carries for some services, none meaning all.
func (f *forecast) cut(s *hostStep, services ...*blueprints.Service) int {
	gone := f.carried(s, services...)
	for service := range f.open[s] {
		if services == nil || slices.Contains(services, service) {
			f.open[s][service] = traffic{}
		}
	}
	return gone.sessions + gone.transfers
}

// impact is what one change costs.
func (f *forecast) impact(step string, c plan.Change) plan.Impact {
	kind, name, _ := strings.Cut(step, "/")
	i := plan.Impact{}
	i.Seconds, i.Longest = f.seconds(step, c)
	switch kind {
	case "kubernetes":
		f.onService(&i, name, c)
		return i
	case "leaving":
		i.Note = "it is not looked into: what clients have open through it is cut. To wait for them, drain it before you take it out of the blueprint"
		return i
	}
	for _, s := range f.hosts {
		if s.box.Name == name {
			f.onBox(&i, s, c)
		}
	}
	return i
}

// onService is the impact of a change of a service's objects: what is open leads
// to its pod, whichever box it goes through.
func (f *forecast) onService(i *plan.Impact, name string, c plan.Change) {
	for _, s := range f.hosts {
		for _, service := range s.services() {
			if service.Name != name {
				continue
			}
			open := f.carried(s, service)
			i.Sessions += open.sessions
			i.Transfers += open.transfers
			if (c.Effect == plan.Rollout || c.Effect == plan.Restart) && !beside(service, c) {
				i.Cut += f.cut(s, service)
			}
		}
	}
	for _, s := range f.hosts {
		for _, service := range s.services() {
			if service.Name == name && f.holder[service.VIP] == s && len(s.group.Boxes) > 1 && alone(s.services(), service) && leavesBoxes(service, c) {
				i.Cut += f.cut(s, behind(s.services(), service.VIP)...)
				i.VIPMoves += f.move(service.VIP, s, c)
				i.Note = "no box has a worker until the first one is changed: the VIP goes there, unless the other one follows at once"
				return
			}
		}
	}
}

// beside tells whether a change of a service's step takes away what an earlier blueprint
// had in the same namespace.
func beside(s *blueprints.Service, c plan.Change) bool {
	return c.Action == plan.Delete && !strings.HasSuffix(c.Target, "/"+s.Name)
}

// leavesBoxes tells whether a change of a service's objects has the boxes ask for it
// where it is no more. Who repairs what others changed brings it back to them.
func leavesBoxes(s *blueprints.Service, c plan.Change) bool {
	control := fmt.Sprintf(`[port=%d,protocol="TCP"].nodePort`, s.ControlPort)
	return c.Action == plan.Update && c.Cause.Kind != plan.ByDrift && slices.ContainsFunc(c.Detail.Fields, func(f plan.Field) bool { return strings.HasSuffix(f.Path, control) })
}

// onBox is the impact of a change of a box or of its machine.
func (f *forecast) onBox(i *plan.Impact, s *hostStep, c plan.Change) {
	open := f.carried(s)
	i.Sessions, i.Transfers = open.sessions, open.transfers
	var held []*blueprints.VIP
	for _, v := range s.topology.VIPs {
		if f.holder[v] == s {
			held = append(held, v)
			i.Holds = append(i.Holds, v.Name)
		}
	}
	switch {
	case strings.HasSuffix(c.Target, ":drain"):
		f.drain(i, s, held, c)
	case endsBox(c), c.Effect == plan.Restart, c.Action == plan.Delete && c.Target == s.box.Name:
		i.Cut = f.cut(s)
		for _, v := range held {
			i.VIPMoves += f.move(v, s, c)
		}
	case slices.Contains(c.Needs, VIPChange):
		for _, v := range held {
			if len(s.at(v)) > 1 {
				i.Cut += f.cut(s, behind(s.services(), v)...)
			}
		}
	case c.Effect == plan.Reload && strings.HasSuffix(c.Target, ":keepalived.service"):
		for _, v := range s.vips() {
			lone := len(s.group.Boxes) == 1 // it has the VIP by then
			if s.beginsAnew(v) && (lone || slices.Contains(held, v)) {
				interval := v.AdvertInterval.Seconds()
				away := 3*interval + float64(256-s.box.Priority)/256*interval // RFC 5798, section 6.1, Master_Down_Interval
				i.Note = fmt.Sprintf("the VIP is away for %.1f s and comes back here: keepalived begins anew with its first unicast peer, and without its last", away)
			}
		}
	case c.Effect == plan.Reload && open != (traffic{}) && strings.HasSuffix(c.Target, ":haproxy.service"):
		i.Note = fmt.Sprintf("the worker that carries them may live up to %s (hard_stop_after)", s.hardStop())
	}
}

// beginsAnew tells whether a reload takes a VIP for a new one, as it is announced to
// peers by name from now on, or is no more.
func (s *hostStep) beginsAnew(v *blueprints.VIP) bool {
	if s.seen == nil {
		return false
	}
	conf := s.seen.Files[s.root+proxy.KeepalivedPath].Content
	return len(conf) > 0 && (len(proxy.UnicastPeers(conf)[v.Name]) > 0) != (v.Transport == "unicast" && len(s.group.Boxes) > 1)
}

// hardStop is how long a worker lives at most that a reload leaves behind: it goes by
// what was configured when it began.
func (s *hostStep) hardStop() string {
	if s.seen != nil {
		for line := range bytes.Lines(s.seen.Files[s.root+proxy.HAProxyPath].Content) {
			if words := bytes.Fields(line); len(words) == 2 && string(words[0]) == "hard-stop-after" {
				return string(words[1])
			}
		}
	}
	return short(s.group.HAProxy.HardStopAfter)
}

// drain is the impact of giving the VIPs of a box away: by its policy what is
// open is waited for, or cut.
func (f *forecast) drain(i *plan.Impact, s *hostStep, held []*blueprints.VIP, c plan.Change) {
	open := 0
	for _, v := range held {
		open += f.cut(s, behind(s.services(), v)...)
		i.VIPMoves += f.move(v, s, c)
	}
	switch {
	case open == 0:
	case s.drain.mode == "wait":
		i.Note = fmt.Sprintf("waits until nothing is open, at most %s; else nothing is changed", short(s.drain.deadline))
	case s.drain.mode == "deadline":
		i.Cut = open
		i.Note = fmt.Sprintf("waits until nothing is open, at most %s; cut is what is open then", short(s.drain.deadline))
	default:
		i.Cut = open
	}
}

// alone tells whether a box is to have a VIP only while a service's workers answer it:
// unless the VIP's probe asks for no more than HAProxy, or another service keeps it.
func alone(all []*blueprints.Service, s *blueprints.Service) bool {
	return s.VIP.Probe == "frontend-and-backend" && len(behind(all, s.VIP)) == 1
}

func behind(all []*blueprints.Service, v *blueprints.VIP) []*blueprints.Service {
	return slices.DeleteFunc(slices.Clone(all), func(s *blueprints.Service) bool { return s.VIP != v })
}

// move has a VIP leave a box that goes away, and tells how often it moves: with
// preempt it comes back.
func (f *forecast) move(v *blueprints.VIP, from *hostStep, c plan.Change) int {
	f.holder[v] = nil
	for _, s := range f.hosts {
		if s == from || s.group != from.group || s.seen == nil {
			continue
		}
		if v.Preempt && from.box.Priority > s.box.Priority && c.Action != plan.Delete {
			f.holder[v] = from
			return 2
		}
		f.holder[v] = s
		return 1
	}
	return 0
}

// short is a duration without the units that are zero.
func short(d time.Duration) string {
	text := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(text, zero) {
			text = text[:len(text)-2]
		}
	}
	return text
}

// usual is how long changes take that were not made before from where the run is, by
// kind of step and end of target. It was measured in the lab; what the site decides (a
// clone, a boot, a package mirror, an image's pull) takes longer elsewhere.
var usual = []struct {
	kind, target string
	effect       plan.Effect // "" = any
	seconds      float64
	site         bool
}{
	{"vm", ":drain", "", 2.5, false},
	{"vm", ":serves", "", 1.5, false},
	{"vm", ":resume", "", 1.3, false},
	{"vm", "", plan.Reboot, 4, true},
	{"vm", "", "", 1, true},
	{"leaving", "", "", 2, true},
	{"removed", ":smoke", "", 1, false},
	{"power", ":hostkeys", "", 3, true},
	{"power", "", "", 2, true},
	{"host", ":packages", "", 2, true},
	{"host", ":drain", "", 2.5, false},
	{"host", ":resume", "", 1.3, false},
	{"host", ":generation", "", 0.4, false},
	{"host", ":proof", "", 0.4, false},
	{"host", ".service", "", 0.6, false},
	{"host", "", "", 0.2, false},
	{"history", "", "", 0.2, false},
	{"kubernetes", "", plan.Rollout, 5, true},
	{"kubernetes", "", plan.Restart, 6, false},
	{"kubernetes", "", plan.Reload, 1, false}, // of settings, in a server that goes on
	{"kubernetes", "", "", 0.1, false},
}

// slower is how much longer than in the lab it may take elsewhere what a site decides.
const slower = 5

// ChangeKey names a change by all that says how long it takes.
func ChangeKey(step, target, verb, effect string) string {
	return strings.Join([]string{step, verb, target, effect}, " ")
}

// seconds is how long a change takes, and how long it may take at most: as the same
// one did before from here, else as such ones do in the lab. What waits for a time to
// come, for clients, or on the first day for the pod, is no guide.
func (f *forecast) seconds(step string, c plan.Change) (about, longest float64) {
	took, known := f.took[ChangeKey(step, c.Target, c.Action.Verb(), string(c.Effect))]
	if known && !strings.HasSuffix(c.Target, ":drain") && !strings.HasSuffix(c.Target, ":proof") && (c.Effect != plan.Reload || !strings.HasSuffix(c.Target, ":haproxy.service")) {
		return took, took
	}
	kind, box, _ := strings.Cut(step, "/")
	for _, u := range usual {
		if u.kind != kind || !strings.HasSuffix(c.Target, u.target) || u.effect != "" && u.effect != c.Effect {
			continue
		}
		about = u.seconds
		if kind == "kubernetes" && u.effect == "" && c.Action == plan.Create && strings.HasPrefix(c.Target, "Deployment ") {
			about, u.site = 12, true
		}
		if kind == "host" && !u.site { // which its line or its disk slows down as it does a look
			about *= max(1, f.pace["lb."+box])
		}
		longest = about
		if u.site {
			longest *= slower
		}
		return about, longest
	}
	return 0, 0
}

// How long a look at a box takes in the lab, the login included, and how long a
// step takes to look at its target before and after it acts.
const (
	usualLook = 0.4
	looks     = 0.4
)

// lasts is how long all of it takes, by a figure of each change, to which it adds what
// the change waits: steps that do not wait for each other act at the same time.
func (f *forecast) lasts(p *plan.Plan, of func(*plan.Impact) *float64) float64 {
	ends := map[string]float64{}
	last := 0.0
	for n := range p.Entries {
		if p.Goal == plan.Absent {
			n = len(p.Entries) - 1 - n
		}
		e := p.Entries[n]
		at := 0.0
		for _, other := range p.Entries {
			before := slices.Contains(e.Step.After(), other.Step.Name())
			if p.Goal == plan.Absent {
				before = slices.Contains(other.Step.After(), e.Step.Name())
			}
			if before {
				at = max(at, ends[other.Step.Name()])
			}
		}
		pace := 1.0
		if box, ok := strings.CutPrefix(e.Step.Name(), "host/"); ok {
			pace = max(1, f.pace["lb."+box])
		}
		if len(e.Changes) > 0 {
			at += looks * pace
		}
		for i := range e.Changes {
			c := &e.Changes[i]
			seconds := of(&c.Impact)
			*seconds = round(*seconds + f.pause(e.Step.Name(), *c, at))
			at += *seconds
		}
		ends[e.Step.Name()] = at
		last = max(last, at)
	}
	return round(last)
}

// round leaves tenths of a second.
func round(seconds float64) float64 { return math.Round(seconds*10) / 10 }

// pause is how long a reload that comes at some second of the run waits until
// the worker is min_reload_gap old.
func (f *forecast) pause(step string, c plan.Change, at float64) float64 {
	if c.Effect != plan.Reload || !strings.HasSuffix(c.Target, ":haproxy.service") {
		return 0
	}
	for _, s := range f.hosts {
		if s.Name() != step || s.seen == nil {
			continue
		}
		d := s.daemons()[0]
		age := s.seen.Now.Sub(s.seen.Files[d.Marker].Modified).Seconds() + at
		if !s.seenAt.IsZero() { // what works before the first change is looked at in between
			age += time.Since(s.seenAt).Seconds()
		}
		return min(max(0, d.gap.Seconds()-age), d.gap.Seconds())
	}
	return 0
}
