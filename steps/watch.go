package steps

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/remote"
)

// watchBound is how long a look at what is open may take: it must not hold up a run.
const watchBound = 10 * time.Second

// Watch measures what clients lose while a plan is applied. What was open is
// looked at on the boxes, when the watch begins and before each change that is
// bound to cut something; whether it lived on, or ended as its client or server
// wanted, is told by the boxes' sockets and by HAProxy's log.
type Watch struct {
	live    *Live
	looking sync.Mutex // one look at a time

	mu      sync.Mutex
	sight   map[*hostStep]*sight
	rolling map[*blueprints.Service]int // rollouts under way
	cut     map[session]bool
	holder  map[*blueprints.VIP]*hostStep // when the watch began
	err     error
}

// sight is what the watch knows of a box.
type sight struct {
	since int64 // when the watch began, by the box's clock
	open  map[session]bool
	holds map[*blueprints.VIP]bool
	// masters is when keepalived has taken a VIP here since the watch began, by the box's clock.
	masters map[*blueprints.VIP][]float64
}

// session is a connection of a client, to one box and service.
type session struct {
	service *blueprints.Service
	box     *blueprints.Box
	remote.Connection
}

// Watch begins to measure what the application of a plan costs, of the steps of
// the last List. Stop ends it.
func (l *Live) Watch(ctx context.Context) *Watch {
	w := &Watch{
		live: l, sight: map[*hostStep]*sight{}, rolling: map[*blueprints.Service]int{},
		cut: map[session]bool{}, holder: map[*blueprints.VIP]*hostStep{},
	}
	w.look(ctx)
	for s, seen := range w.sight {
		for v, holds := range seen.holds {
			if holds {
				w.holder[v] = s
			}
		}
	}
	l.watch = w
	return w
}

// Stop tells how many sessions and transfers clients have lost, and how often a VIP
// moved from one box to another. An error says why that is not known.
func (w *Watch) Stop(ctx context.Context) (plan.Impact, error) {
	w.live.watch = nil
	w.look(ctx)
	i := plan.Impact{Cut: len(w.cut)}
	for v := range w.holder {
		i.VIPMoves += w.moves(v)
	}
	return i, w.err
}

// moves is how often a VIP that a box held has gone to another since, by the
// journals of the boxes. One that was rebooted may have lost its own: where the VIP
// is tells then.
func (w *Watch) moves(v *blueprints.VIP) int {
	type arrival struct {
		at  float64
		box *hostStep
	}
	var all []arrival
	for s, seen := range w.sight {
		for _, at := range seen.masters[v] {
			all = append(all, arrival{at, s})
		}
	}
	slices.SortFunc(all, func(a, b arrival) int { return cmp.Compare(a.at, b.at) })
	n, at := 0, w.holder[v]
	for _, a := range all {
		if a.box != at {
			n, at = n+1, a.box
		}
	}
	for s, seen := range w.sight {
		if seen.holds[v] && s != at {
			n++
		}
	}
	return n
}

// around is the act of a change, with looks before and after it if it may cut what
// is open.
func (w *Watch) around(step string, c plan.Change) func(context.Context, func(string)) error {
	if c.Effect == plan.NoEffect || c.Effect == "" || c.Effect == plan.Reload {
		return c.Do
	}
	service := w.serviceOf(step)
	return func(ctx context.Context, report func(string)) error {
		w.look(ctx)
		if service != nil && !beside(service, c) {
			w.roll(service, 1)
			defer w.roll(service, -1)
		}
		err := c.Do(ctx, report)
		if !endsBox(c) { // whose log may be gone with it, and who takes time to be back
			w.look(ctx)
		}
		return err
	}
}

// serviceOf is the service whose pod a step may replace, nil where it has none.
func (w *Watch) serviceOf(step string) *blueprints.Service {
	for _, s := range w.live.topology.Services {
		if step == "kubernetes/"+s.Name {
			return s
		}
	}
	return nil
}

func (w *Watch) roll(s *blueprints.Service, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rolling[s] += n
}

// look holds what was open against what is, on every box that can be entered.
func (w *Watch) look(ctx context.Context) {
	// What was open is held against what is: in the order in which it was seen.
	w.looking.Lock()
	defer w.looking.Unlock()
	ctx, cancel := bounded(ctx, watchBound, "a look at what clients have open")
	defer cancel()
	var looks []func(context.Context) error
	for _, s := range w.live.steps {
		looks = append(looks, func(ctx context.Context) error {
			h, err := s.connect(ctx)
			if errors.Is(err, ErrAbsent) {
				if h, err = w.live.going(ctx, s.box); err != nil {
					return nil
				}
				defer h.Close()
			}
			var t *remote.Traffic
			if err == nil {
				t, err = h.Traffic(ctx, s.ports(), w.since(s))
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if err != nil {
				w.err = errors.Join(w.err, err)
				return nil
			}
			w.settle(s, t)
			return nil
		})
	}
	_ = together(ctx, looks) // what is wrong stands in w.err
}

// since is when the watch of a box began, 0 where it has not.
func (w *Watch) since(s *hostStep) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if known := w.sight[s]; known != nil {
		return known.since
	}
	return 0
}

// dropped counts what a drain has cut. HAProxy logs it as if the clients had gone: the
// drain ends the sockets that it leaves behind.
func (w *Watch) dropped(d Drained) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.live.steps {
		if s.box.Name != d.Box {
			continue
		}
		for _, c := range d.cut {
			if o, ok := w.session(s, c); ok {
				w.cut[o] = true
			}
		}
	}
}

// settle decides what became of a box's sessions since the last look.
func (w *Watch) settle(s *hostStep, t *remote.Traffic) {
	now := &sight{since: t.At, open: map[session]bool{}, holds: map[*blueprints.VIP]bool{}, masters: map[*blueprints.VIP][]float64{}}
	lost := map[netip.Addr]bool{}
	links := remote.Facts{Links: t.Links}
	for _, v := range s.topology.VIPs {
		if v.Group == s.group {
			now.holds[v] = slices.ContainsFunc(s.at(v), links.Holds)
			for _, a := range s.at(v) {
				lost[a] = !links.Holds(a)
			}
			for _, m := range t.Masters {
				if m.Instance == v.Name {
					now.masters[v] = append(now.masters[v], m.At)
				}
			}
		}
	}
	for _, c := range t.Open {
		// A connection whose address has left the box stands for a while, and leads nowhere.
		if o, ok := w.session(s, c); ok && !lost[c.Local.Addr()] {
			now.open[o] = true
		}
	}
	before := w.sight[s]
	w.sight[s] = now
	if before == nil {
		return
	}
	now.since = before.since
	ended := map[netip.AddrPort]bool{} // as client or server wanted
	for _, c := range t.Closing {
		ended[c.Client] = true
	}
	for _, e := range t.Ended {
		ended[e.Peer] = !torn(e.How)
	}
	for o := range before.open {
		if !now.open[o] && (!ended[o.Client] || w.rolling[o.service] > 0) {
			w.cut[o] = true
		}
	}
}

// torn tells whether a session that moved data was ended by HAProxy, or by a
// server that broke off: configuration.txt, "Session state at disconnection".
func torn(how string) bool { return len(how) == 2 && strings.IndexByte("SDUKIR", how[0]) >= 0 }

// session is the connection as a client's of one of the box's services. The box itself
// is none: from there it is proven.
func (w *Watch) session(s *hostStep, c remote.Connection) (session, bool) {
	if slices.ContainsFunc(s.box.NICs, func(n blueprints.NIC) bool { return n.Address == c.Client.Addr() }) {
		return session{}, false
	}
	for _, service := range s.services() {
		inRange := func(p remote.Ports) bool { return p.First <= int(c.Local.Port()) && int(c.Local.Port()) <= p.Last }
		if slices.Contains(s.addresses(service), c.Local.Addr()) && slices.ContainsFunc(portsOf(service), inRange) {
			return session{service, s.box, c}, true
		}
	}
	return session{}, false
}

// watched is a step whose changes are watched while a Watch is on.
type watched struct {
	plan.Step
	live *Live
}

// Plan implements plan.Step.
func (s watched) Plan(ctx context.Context, goal plan.Goal) ([]plan.Change, error) {
	changes, err := s.Step.Plan(ctx, goal)
	if w := s.live.watch; w != nil {
		for i := range changes {
			changes[i].Do = w.around(s.Name(), changes[i])
		}
	}
	return changes, err
}
