package steps

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
)

// Forecast says of each change of p, which was made from the last List, what it
// costs those who use the deployment, and returns what all of it costs. What the
// clients have open is what was seen then; nil where no box was looked at.
func (l *Live) Forecast(p *plan.Plan) *plan.Impact {
	if !slices.ContainsFunc(l.steps, func(s *hostStep) bool { return s.seen != nil }) {
		return nil
	}
	f := newForecast(l.steps)
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
	for _, o := range l.Observed() {
		f.pace[o.Address] = max(1, o.Took.Seconds()/usualLook)
	}
	all.Seconds = f.lasts(p)
	return &all
}

// forecast is what is left of the start of a run while its changes are gone through.
type forecast struct {
	hosts  []*hostStep
	open   map[*hostStep]map[*blueprints.Service]traffic
	holder map[*blueprints.VIP]*hostStep // nil where no box holds it
	pace   map[string]float64            // how much slower than usual a box answered
}

func newForecast(hosts []*hostStep) *forecast {
	f := &forecast{hosts: hosts, open: map[*hostStep]map[*blueprints.Service]traffic{}, holder: map[*blueprints.VIP]*hostStep{}, pace: map[string]float64{}}
	for _, s := range hosts {
		f.open[s] = s.carries(s.seen)
		for _, v := range s.topology.VIPs {
			if v.Group == s.group && s.seen != nil && s.seen.Holds(v.Address) {
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
	i := plan.Impact{Seconds: seconds(kind, c)}
	if kind == "kubernetes" {
		f.onService(&i, name, c)
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
			if c.Effect == plan.Rollout || c.Effect == plan.Restart {
				i.Cut += f.cut(s, service)
			}
			if alone(s.services(), service) && c.Effect == plan.Rollout && len(s.group.Boxes) > 1 {
				i.Note = "no box holds the VIP while no pod serves; it may come back on the other one"
			}
		}
	}
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
			i.Cut += f.cut(s, behind(s.services(), v)...)
		}
	case c.Effect == plan.Reload && open != (traffic{}) && strings.HasSuffix(c.Target, ":haproxy.service"):
		i.Note = fmt.Sprintf("the worker that carries them may live up to %s (hard_stop_after)", short(s.group.HAProxy.HardStopAfter))
	}
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

// alone tells whether a VIP leaves its box when the service has no pod: unless
// the VIP's probe asks for no more than HAProxy, or another service keeps it.
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

// usual is how long changes take, by kind of step and end of target. They were
// measured in the lab; what depends on the site (a clone, a boot, a package
// mirror, an image's pull) takes longer elsewhere.
var usual = []struct {
	kind, target string
	effect       plan.Effect // "" = any
	seconds      float64
}{
	{"vm", ":drain", "", 3},
	{"vm", ":serves", "", 5},
	{"vm", ":resume", "", 1},
	{"vm", "", plan.Reboot, 6},
	{"vm", "", "", 1},
	{"power", ":hostkeys", "", 3},
	{"power", "", "", 2},
	{"host", ":packages", "", 5},
	{"host", ":drain", "", 3},
	{"host", ":resume", "", 1},
	{"host", ":proof", "", 0.3},
	{"host", ".service", plan.Reload, 0.5},
	{"host", ".service", "", 0.5},
	{"host", "", "", 0.1},
	{"kubernetes", "", plan.Rollout, 10},
	{"kubernetes", "", plan.Restart, 6},
	{"kubernetes", "", "", 0.1},
}

func seconds(kind string, c plan.Change) float64 {
	for _, u := range usual {
		target := strings.HasSuffix(c.Target, u.target)
		if u.kind == kind && target && (u.effect == "" || u.effect == c.Effect) {
			if kind == "kubernetes" && u.effect == "" && c.Action == plan.Create && strings.HasPrefix(c.Target, "Deployment ") {
				return 12
			}
			return u.seconds
		}
	}
	return 0
}

// How long a look at a box takes in the lab, the login included, and how long a
// step takes to look at its target before and after it acts.
const (
	usualLook = 0.4
	looks     = 0.6
)

// lasts is how long all of it takes: steps that do not wait for each other act at
// the same time.
func (f *forecast) lasts(p *plan.Plan) float64 {
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
			c.Impact.Seconds = round(c.Impact.Seconds*pace + f.pause(e.Step.Name(), *c, at))
			at += c.Impact.Seconds
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
		return min(max(0, d.gap.Seconds()-age), d.gap.Seconds())
	}
	return 0
}
