package steps

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/remote"
)

// Bounds of a drill.
const (
	drillWait   = time.Minute      // for a moment without sessions
	drillHold   = 3 * time.Minute  // a drained box takes part again by itself after that
	drillMend   = time.Minute      // a box that was made to fail mends itself after that
	drillBefore = time.Second      // all must be well so long before, and after
	drillAnswer = 20 * time.Second // until a VIP is answered again
)

// Drill moves VIPs on purpose, and is what that has shown.
type Drill struct {
	Hard bool          // the holder fails; else it gives its VIPs away in order
	Who  string        // for whom
	Stop chan struct{} // closed when the drill is to end early; the box is put back in any case

	Box      *blueprints.Box // that had the VIPs
	VIPs     []DrilledVIP
	Sessions int           // that were cut
	Clients  []netip.Addr  // whose sessions or transfers were cut, each once
	Normal   time.Duration // from the act until the VIPs were answered by another box, and this one was fit to take them; 0 = that was not seen
	Faults   []string      // what is not as it should be
}

// DrilledVIP is what became of a VIP.
type DrilledVIP struct {
	VIP      *blueprints.VIP
	Service  *blueprints.Service // whose control port was asked
	Gap      time.Duration       // the longest that no new connection was answered
	Attempts int
	Failed   int
	Holder   *blueprints.Box // in the end; nil = none, or more than one
	// Moved is when this host learned that another machine has the address, after the
	// act: from its gratuitous ARP. It did not where it is 0; where this host is not in
	// the VIP's network, or the address is IPv6, Visible is false.
	Moved   time.Duration
	Visible bool
}

func (d *Drill) fault(format string, args ...any) {
	d.Faults = append(d.Faults, fmt.Sprintf(format, args...))
}

// Drill returns the step that drills the failover of a box: of the one that holds a
// VIP where box is "". What it shows is written into d.
func (l *Live) Drill(ctx context.Context, d *Drill, box string) ([]plan.Step, error) {
	if box != "" {
		s, err := l.member(box)
		if err != nil {
			return nil, err
		}
		return []plan.Step{&drillStep{hostStep: s, drill: d}}, nil
	}
	var holders []*hostStep
	all := l.hostSteps(nil)
	positions := make([]position, len(all))
	var looks []func(context.Context) error
	for i, s := range all {
		looks = append(looks, func(ctx context.Context) (err error) {
			positions[i], err = s.look(ctx)
			if err != nil {
				err = fmt.Errorf("look whether lb.%s holds a VIP: %w", s.box.Name, err)
			}
			return err
		})
	}
	if err := together(ctx, looks); err != nil {
		return nil, err
	}
	for i, s := range all {
		if len(positions[i].vips) > 0 {
			holders = append(holders, s)
		}
	}
	switch len(holders) {
	case 0:
		return nil, errors.New("no box holds a VIP: there is nothing to fail over. Run: ftpdeploy status")
	case 1:
		return []plan.Step{&drillStep{hostStep: holders[0], drill: d}}, nil
	}
	var names []string
	for _, s := range holders {
		names = append(names, s.box.Name)
	}
	return nil, fmt.Errorf("several boxes hold VIPs: say which one is to lose its own: %s", strings.Join(names, ", "))
}

// drillStep has a box lose its VIPs, measures it, and puts the box back.
type drillStep struct {
	*hostStep
	drill *Drill
	done  bool
}

// Name implements plan.Step.
func (s *drillStep) Name() string { return "drill/" + s.box.Name }

// After implements plan.Step.
func (s *drillStep) After() []string { return nil }

// Plan implements plan.Step.
func (s *drillStep) Plan(ctx context.Context, _ plan.Goal) ([]plan.Change, error) {
	if s.done {
		return nil, nil
	}
	p, err := s.ready(ctx)
	if err != nil {
		return nil, err
	}
	c := plan.Change{
		Action: plan.Run, Target: s.box.Name + ":drill", Effect: plan.Restart, Reason: "you ask for it",
		From: "holds " + listed(p.held), Want: "another box holds " + listed(p.held),
		Detail: plan.Diff{Fields: []plan.Field{{Path: "loses", After: listed(p.held)}}},
		Do:     func(ctx context.Context, report func(string)) error { return s.run(ctx, p, report) },
		Undo:   func(ctx context.Context) error { return s.mend(ctx, p) },
	}
	if s.drill.Hard {
		c.Detail.Fields = append(c.Detail.Fields, plan.Field{Path: "how", After: "it is silent from one moment to the next: keepalived is killed, the VIPs are taken from it"},
			plan.Field{Path: "sessions", After: "they are cut"}, plan.Field{Path: "mends itself", After: drillMend.String() + " later, if this run does not"})
	} else {
		c.Detail.Fields = append(c.Detail.Fields, s.policy().fields()...)
	}
	return []plan.Change{c}, nil
}

// policy is that of a drain, with a shorter wait.
func (s *drillStep) policy() drainPolicy {
	return drainPolicy{s.drain.mode, min(s.drain.deadline, drillWait)}
}

// ready refuses a drill of a box that another one could not take over from.
func (s *drillStep) ready(ctx context.Context) (position, error) {
	p, err := s.look(ctx)
	switch {
	case err != nil:
		return p, err
	case len(s.peers) == 0:
		return p, fmt.Errorf("lb %q is alone in lb_group %q: nobody could take its VIPs", s.box.Name, s.group.Name)
	case len(p.vips) == 0:
		return p, fmt.Errorf("lb %q holds no VIP: there is nothing to fail over", s.box.Name)
	case p.away != nil:
		return p, fmt.Errorf("%s is drained until %s, and holds a VIP all the same. Run: ftpdeploy resume %s", s.box.Name, p.away, s.box.Name)
	}
	for _, peer := range s.peers {
		other, err := peer.look(ctx)
		if err != nil {
			return p, fmt.Errorf("look whether %s can take the VIPs: %w", peer.box.Name, err)
		}
		if other.away != nil {
			return p, fmt.Errorf("%s is drained until %s: it would not take the VIPs. Run: ftpdeploy resume %s", peer.box.Name, other.away, peer.box.Name)
		}
		for _, v := range p.vips {
			if slices.Contains(other.vips, v) {
				return p, fmt.Errorf("%s and %s hold %s both: they do not hear each other's adverts", s.box.Name, peer.box.Name, v.Address)
			}
		}
	}
	for _, v := range p.vips {
		if err := s.anyPeer(func(peer *hostStep) error { return peer.fit(ctx, v) }); err != nil {
			return p, fmt.Errorf("no other box would take %s, so it is not drilled: %w", v.Address, err)
		}
	}
	return p, nil
}

// run is the drill. The box is put back however it ends.
func (s *drillStep) run(ctx context.Context, p position, report func(string)) error {
	s.drill.Box = s.box
	stopped, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() {
		select {
		case <-s.drill.Stop:
			stop(plan.ErrStopped)
		case <-stopped.Done():
		}
	}()
	knockers, began, err := s.fail(stopped, p, report)
	for _, k := range knockers {
		if k != nil {
			defer k.end()
		}
	}
	if began.IsZero() {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), backBound, fmt.Errorf("waited %s for %s to be as before", backBound, s.box.Name))
	defer cancel()
	report("putting " + s.box.Name + " back")
	if err := errors.Join(err, s.mend(ctx, p)); err != nil {
		return err
	}
	s.normal(ctx, p, began, report)
	pauseFor(ctx, drillBefore) // what the way back does to clients counts too
	s.judge(ctx, p, knockers, began)
	s.done = true
	return nil
}

// fail has the box lose its VIPs while they are asked, and waits until they are
// answered again. It began at the moment of the second result, zero where it did not.
func (s *drillStep) fail(ctx context.Context, p position, report func(string)) ([]*knocker, time.Time, error) {
	knockers, err := s.knock(ctx, p, report)
	if err != nil {
		return knockers, time.Time{}, err
	}
	began := time.Now()
	if err := s.act(ctx, p, knockers, report); err != nil {
		return knockers, began, err
	}
	return knockers, began, s.answered(ctx, p, knockers, report)
}

// knock begins to ask the service behind each VIP, and waits until all is well; nil
// stands for a VIP without one. They go on until they are ended.
func (s *drillStep) knock(ctx context.Context, p position, report func(string)) ([]*knocker, error) {
	var all []*knocker
	for _, v := range p.vips {
		var k *knocker
		if service := s.serviceOf(v); service != nil {
			k = &knocker{address: v.Address, port: service.ControlPort}
			k.begin(ctx)
		}
		all = append(all, k)
	}
	report("looking whether new connections are answered")
	for _, k := range all {
		if k == nil {
			continue
		}
		err := s.until(ctx, drillAnswer, func(string) {}, func(context.Context) error { return k.wait() })
		if err != nil {
			return all, fmt.Errorf("nothing was done, as the gap could not be measured from here: %w", err)
		}
	}
	return all, nil
}

// serviceOf is the first service behind a VIP, nil where there is none.
func (s *drillStep) serviceOf(v *blueprints.VIP) *blueprints.Service {
	for _, service := range s.topology.Services {
		if service.VIP == v {
			return service
		}
	}
	return nil
}

// act has the box lose its VIPs.
func (s *drillStep) act(ctx context.Context, p position, knockers []*knocker, report func(string)) error {
	var watchers []netip.Addr
	for _, k := range knockers {
		if k == nil {
			continue
		}
		k.mu.Lock()
		if !slices.Contains(watchers, k.source) {
			watchers = append(watchers, k.source)
		}
		k.mu.Unlock()
	}
	s.except = watchers
	if !s.drill.Hard {
		told := s.drained
		s.drained = func(d Drained) {
			s.drill.Sessions, s.drill.Clients = d.Sessions, d.Clients
			if told != nil {
				told(d)
			}
		}
		defer func() { s.drained = told }()
		_, err := s.leave(ctx, p, p.now.Add(drillHold), s.drill.Who, s.policy(), report)
		return err
	}
	h, err := s.connect(ctx)
	if err != nil {
		return err
	}
	report("making it fail")
	open, err := h.Crash(ctx, s.drainOf(p.vips), p.now.Add(drillAnswer+drillMend), s.drill.Who, drillMend)
	s.drill.Sessions, s.drill.Clients = s.sessions(open)
	return err
}

// answered waits until another box holds the VIPs, and new connections are answered.
// That it never comes to it is a fault, and no error.
func (s *drillStep) answered(ctx context.Context, p position, knockers []*knocker, report func(string)) error {
	if err := s.taken(ctx, p.vips, report); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		s.drill.fault("%v", err)
		return nil
	}
	for _, k := range knockers {
		if k == nil {
			continue
		}
		err := s.until(ctx, drillAnswer, report, func(context.Context) error { return k.wait() })
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			s.drill.fault("%s after another box has taken it: %v", drillAnswer, err)
		}
	}
	return nil
}

// mend has the box take part again.
func (s *drillStep) mend(ctx context.Context, p position) error {
	if !s.drill.Hard {
		return s.comeBack(ctx, p.vips)
	}
	ctx, cancel := bounded(ctx, actBound, s.box.Name+" to take part again")
	defer cancel()
	return s.enter(ctx, func(h *remote.Host) error { return h.Mend(ctx, s.drainOf(p.vips)) })
}

// normal waits until the box would take the VIPs, or has taken back those that it
// should.
func (s *drillStep) normal(ctx context.Context, p position, began time.Time, report func(string)) {
	for _, v := range p.vips {
		err := s.until(ctx, takerBound, report, func(ctx context.Context) error {
			if err := s.fit(ctx, v); err != nil || !v.Preempt || slices.ContainsFunc(s.peers, func(peer *hostStep) bool { return peer.box.Priority > s.box.Priority }) {
				return err
			}
			now, err := s.look(ctx)
			if err == nil && !slices.Contains(now.vips, v) {
				err = fmt.Errorf("%s has not come back, although it should (preempt)", v.Address)
			}
			return err
		})
		if err != nil {
			s.drill.fault("%s after the drill: %v", s.box.Name, err)
			return
		}
	}
	s.drill.Normal = time.Since(began)
}

// judge writes down what became of each VIP.
func (s *drillStep) judge(ctx context.Context, p position, knockers []*knocker, began time.Time) {
	holders := map[*blueprints.VIP][]*blueprints.Box{}
	for _, member := range append([]*hostStep{s.hostStep}, s.peers...) {
		now, err := member.look(ctx)
		if err != nil {
			s.drill.fault("who holds the VIPs is not known: %v", err)
			continue
		}
		for _, v := range now.vips {
			holders[v] = append(holders[v], member.box)
		}
	}
	for i, v := range p.vips {
		d := DrilledVIP{VIP: v}
		switch has := holders[v]; len(has) {
		case 0:
			s.drill.fault("no box holds %s", v.Address)
		case 1:
			d.Holder = has[0]
			if has[0] == s.box && !v.Preempt {
				s.drill.fault("%s is on %s again, which should not have taken it back", v.Address, s.box.Name)
			}
		default:
			s.drill.fault("%s is held by %s and %s", v.Address, has[0].Name, has[1].Name)
		}
		if k := knockers[i]; k != nil {
			d.Service = s.serviceOf(v)
			d.Gap = k.gap(began)
			d.Moved, d.Visible = k.moved(began)
			d.Attempts, d.Failed = k.counts()
			if d.Visible && d.Moved == 0 {
				s.drill.fault("this host has not learned that %s is on another machine: no gratuitous ARP came here", v.Address)
			}
		}
		s.drill.VIPs = append(s.drill.VIPs, d)
	}
}
