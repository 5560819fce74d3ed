package steps

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/steps/proxy"
)

// Bounds of a drain, beside rollout.drain_deadline.
const (
	takerBound = 30 * time.Second // until another box is fit to take the VIPs
	takenBound = 15 * time.Second // until it has taken them
	backBound  = 2 * time.Minute  // until a box that was away has its services, and serves
	// workBound is how long a box stays away at most for what a run does to it. It
	// takes part again by itself when the run is gone.
	workBound = 30 * time.Minute
)

// Drained is a box that has given its VIPs away.
type Drained struct {
	Box      string
	VIPs     []netip.Addr
	Waited   time.Duration // for its sessions to end
	Sessions int           // that were cut
	Clients  []netip.Addr  // whose sessions or transfers were cut, each once
	cut      []remote.Connection
}

// String says what became of the sessions.
func (d Drained) String() string {
	text := fmt.Sprintf("%s gave %s away after %.1f s", d.Box, listed(d.VIPs), d.Waited.Seconds())
	if len(d.Clients) == 0 {
		return text + ": no session was cut"
	}
	return fmt.Sprintf("%s: %s of %s cut", text, counted(d.Sessions, "session"), listed(d.Clients))
}

// away says that a box is drained.
type away struct {
	until time.Time
	by    string // who; "" = a run, for its own work
}

func (a *away) String() string { return a.until.UTC().Format("2006-01-02 15:04:05 MST") }

// position is what decides whether a box can be drained, or is.
type position struct {
	vips []*blueprints.VIP // that it holds
	held []netip.Addr      // the addresses at which it does
	away *away             // nil = it takes part
	now  time.Time         // by its own clock
}

func (s *hostStep) position(f *remote.Facts) position {
	p := position{now: f.Now}
	for _, v := range s.vips() {
		held := slices.DeleteFunc(s.at(v), func(a netip.Addr) bool { return !f.Holds(a) })
		if len(held) > 0 {
			p.vips, p.held = append(p.vips, v), append(p.held, held...)
		}
	}
	text := strings.TrimSpace(string(f.Files[s.root+proxy.DrainedPath].Content))
	until, by, _ := strings.Cut(text, " ")
	if seconds, err := strconv.ParseInt(until, 10, 64); err == nil && seconds > f.Now.Unix() {
		p.away = &away{until: time.Unix(seconds, 0), by: strings.TrimSpace(by)}
	}
	return p
}

// look asks the box for its position.
func (s *hostStep) look(ctx context.Context) (position, error) {
	h, err := s.connect(ctx)
	if err != nil {
		return position{}, err
	}
	ctx, cancel := bounded(ctx, actBound, "an answer of "+s.box.Name)
	defer cancel()
	f, err := h.Find(ctx, remote.Query{Files: []remote.FileQuery{{Path: s.root + proxy.DrainedPath}}})
	if err != nil {
		return position{}, err
	}
	return s.position(f), nil
}

// at are the addresses of a VIP: the blueprint's, and where that has another one now
// what the box's keepalived.conf had when the run looked at it.
func (s *hostStep) at(v *blueprints.VIP) []netip.Addr {
	all := []netip.Addr{v.Address}
	if s.seen == nil {
		return all
	}
	for _, a := range proxy.VirtualAddresses(s.seen.Files[s.root+proxy.KeepalivedPath].Content)[v.Name] {
		if a != v.Address {
			all = append(all, a)
		}
	}
	return all
}

// vips are those of the box's group.
func (s *hostStep) vips() []*blueprints.VIP {
	var all []*blueprints.VIP
	for _, v := range s.topology.VIPs {
		if v.Group == s.group {
			all = append(all, v)
		}
	}
	return all
}

// drainOf says to the box what it leaves.
func (s *hostStep) drainOf(vips []*blueprints.VIP) remote.Drain {
	d := remote.Drain{Mark: s.root + proxy.DrainedPath, Unit: s.daemons()[1].Unit, Except: s.except}
	for _, v := range vips {
		d.VIPs = append(d.VIPs, s.at(v)...)
	}
	return d
}

// around puts the drain of the box before changes that end the sessions on it, and
// its return behind them, where it holds a VIP. What a run that broke off has left
// drained returns too. With moves a VIP may come and go until then.
func (s *hostStep) around(p position, changes []plan.Change, ends, moves bool) ([]plan.Change, error) {
	left := p.away != nil && p.away.by == ""
	drains := ends && (len(p.vips) > 0 || moves && p.away == nil)
	if !drains && !left {
		return changes, nil
	}
	back := plan.Change{
		Action: plan.Run, Target: s.box.Name + ":resume", Reason: "it was drained for these changes", Want: "takes part",
		Passing: true, From: plan.Unseen, // the drain may also end by itself
		Do: func(ctx context.Context, report func(string)) error {
			if len(changes) == 0 {
				if err := s.serves(ctx, report); err != nil {
					return err
				}
			}
			return s.comeBack(ctx, s.vips())
		},
		Undo: func(context.Context) error { return nil }, // what the drain was for goes back without one
	}
	if !drains {
		back.Reason = fmt.Sprintf("a run that broke off has drained it until %s", p.away)
		return append(changes, back), nil
	}
	if err := s.alone(); err != nil {
		return nil, err
	}
	drain := plan.Change{
		Action: plan.Run, Target: s.box.Name + ":drain", Effect: plan.Restart, Want: "away, " + s.drain.String(), Passing: true,
		Reason: "what follows ends the sessions on it", Detail: plan.Diff{Fields: s.drain.fields()},
		Do: func(ctx context.Context, report func(string)) error {
			now, err := s.look(ctx)
			if err != nil {
				return err
			}
			_, err = s.leave(ctx, now, now.now.Add(workBound), "", s.drain, report)
			return err
		},
		Undo: func(ctx context.Context) error { return s.comeBack(ctx, s.vips()) },
	}
	// What it holds may have changed by its turn, also by what the run does before.
	drain.From = plan.Unseen
	if moves {
		drain.Reason += ", and a VIP may be there by then"
	} else {
		drain.Reason = "it holds " + listed(p.held) + ", and " + drain.Reason
	}
	return slices.Concat([]plan.Change{drain}, changes, []plan.Change{back}), nil
}

// alone refuses to drain a box whose peers somebody has drained, all of them. One
// that a run has left drained returns before: it holds no VIP.
func (s *hostStep) alone() error {
	var drained []string
	for _, peer := range s.peers {
		if peer.start.away == nil || peer.start.away.by == "" {
			return nil
		}
		drained = append(drained, fmt.Sprintf("%s is drained until %s", peer.box.Name, peer.start.away))
	}
	if drained == nil {
		return nil // there never is another
	}
	return fmt.Errorf("%s cannot be drained, as nobody could take its VIPs: %s. Run: ftpdeploy resume %s",
		s.box.Name, strings.Join(drained, ", "), s.peers[0].box.Name)
}

// drainPolicy says what a drain does with sessions.
type drainPolicy struct {
	mode     string // wait, deadline, cut
	deadline time.Duration
}

func (p drainPolicy) String() string {
	if p.mode == "cut" {
		return p.mode
	}
	return p.mode + " " + p.deadline.String()
}

func (p drainPolicy) fields() []plan.Field {
	text := map[string]string{
		"wait":     fmt.Sprintf("their end is waited for, at most %s; then nothing is changed", p.deadline),
		"deadline": fmt.Sprintf("their end is waited for, at most %s; then they are cut", p.deadline),
		"cut":      "they are cut at once",
	}[p.mode]
	return []plan.Field{{Path: "sessions", After: text}}
}

// leave gives the VIPs that the box holds away and returns when another box has them.
// A box that holds none only stays away. It does until then, and for as long more as
// it had to wait for sessions: that end is what is returned.
func (s *hostStep) leave(ctx context.Context, p position, until time.Time, by string, policy drainPolicy, report func(string)) (time.Time, error) {
	h, err := s.connect(ctx)
	if err != nil {
		return until, err
	}
	ctx, cancel := bounded(ctx, policy.deadline+takerBound+takenBound+actBound, s.box.Name+" to give its VIPs away")
	defer cancel()
	if err := s.awaitTaker(ctx, p.vips, report); err != nil {
		return until, err
	}
	start, end := time.Now(), until
	d, cut := s.drainOf(p.vips), policy.mode == "cut"
	var open []remote.Connection
	for {
		open, err = h.Leave(ctx, d, until, by, cut)
		if !errors.Is(err, remote.ErrBusy) {
			break
		}
		sessions, clients := s.sessions(open)
		text := fmt.Sprintf("%s of %s", counted(sessions, "session"), listed(clients))
		until = end.Add(time.Since(start).Truncate(time.Second))
		switch left := policy.deadline - time.Since(start); {
		case left > 0:
			report(fmt.Sprintf("waiting for %s, at most %s", text, left.Round(time.Second)))
		case policy.mode == "deadline":
			report("cutting " + text)
			cut = true
		default:
			return until, fmt.Errorf("%s still has %s after drain_deadline, %s, and nothing was cut: try again in a quieter hour, or say --drain deadline or --drain cut",
				s.box.Name, text, policy.deadline)
		}
	}
	if err != nil || len(p.vips) == 0 {
		return until, err
	}
	done := Drained{Box: s.box.Name, VIPs: p.held, Waited: time.Since(start), cut: open}
	done.Sessions, done.Clients = s.sessions(open)
	if s.drained != nil {
		s.drained(done)
	}
	report(done.String())
	if err := s.taken(ctx, p.vips, report); err != nil {
		return until, errors.Join(err, s.comeBack(ctx, p.vips))
	}
	return until, nil
}

// sessions counts the connections that are not for data, and names each client once.
// The control port may be another one than the blueprint's by now.
func (s *hostStep) sessions(open []remote.Connection) (n int, clients []netip.Addr) {
	for _, c := range open {
		port := int(c.Local.Port())
		data := slices.ContainsFunc(s.topology.Services, func(v *blueprints.Service) bool {
			return slices.Contains(s.at(v.VIP), c.Local.Addr()) && v.PassiveFirst <= port && port <= v.PassiveLast
		})
		if !data {
			n++
		}
		if !slices.Contains(clients, c.Client.Addr()) {
			clients = append(clients, c.Client.Addr())
		}
	}
	slices.SortFunc(clients, netip.Addr.Compare)
	return n, clients
}

// awaitTaker waits until each of the VIPs has another box that would take it.
func (s *hostStep) awaitTaker(ctx context.Context, vips []*blueprints.VIP, report func(string)) error {
	if len(s.peers) == 0 {
		return nil
	}
	for _, v := range vips {
		err := s.until(ctx, takerBound, report, func(ctx context.Context) error {
			return s.anyPeer(func(peer *hostStep) error { return peer.fit(ctx, v) })
		})
		if err != nil {
			return fmt.Errorf("no other box would take %s, so %s keeps it: %w", v.Address, s.box.Name, err)
		}
	}
	return nil
}

// fit tells why the box would not take a VIP now.
func (s *hostStep) fit(ctx context.Context, v *blueprints.VIP) error {
	h, err := s.connect(ctx)
	if err != nil {
		return err
	}
	why, err := h.Unfit(ctx, s.daemons()[1].Unit, s.root+proxy.CheckPath, v.Name)
	if err == nil && why != "" {
		err = errors.New(why)
	}
	return err
}

// taken waits until other boxes hold the VIPs.
func (s *hostStep) taken(ctx context.Context, vips []*blueprints.VIP, report func(string)) error {
	if len(s.peers) == 0 {
		return nil
	}
	for _, v := range vips {
		err := s.until(ctx, takenBound, report, func(ctx context.Context) error {
			return s.anyPeer(func(peer *hostStep) error {
				p, err := peer.look(ctx)
				if err == nil && !slices.Contains(p.vips, v) {
					err = errors.New("does not hold it")
				}
				return err
			})
		})
		if err != nil {
			return fmt.Errorf("%s gave %s away, and no other box has taken it: %w", s.box.Name, v.Address, err)
		}
	}
	return nil
}

// anyPeer tells why ok says yes of none of the other boxes; nil where of one it does.
func (s *hostStep) anyPeer(ok func(*hostStep) error) error {
	var errs []error
	for _, peer := range s.peers {
		err := ok(peer)
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", peer.box.Name, err))
	}
	return errors.Join(errs...)
}

// until tries again until ok has no error, and returns the last one after bound.
func (s *hostStep) until(ctx context.Context, bound time.Duration, report func(string), ok func(context.Context) error) error {
	end := time.Now().Add(bound)
	for {
		err := ok(ctx)
		if err == nil || time.Now().After(end) {
			return err
		}
		report("waiting: " + err.Error())
		if pauseFor(ctx, smokePause); ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), err)
		}
	}
}

// comeBack ends a drain.
func (s *hostStep) comeBack(ctx context.Context, vips []*blueprints.VIP) error {
	h, err := s.connect(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := bounded(ctx, actBound, s.box.Name+" to take part again")
	defer cancel()
	return h.Return(ctx, s.drainOf(vips))
}

// proven is the change that ends others which took the whole box down: the next
// box is not touched before this one serves again.
func (s *hostStep) proven() plan.Change {
	return plan.Change{
		Action: plan.Run, Target: s.box.Name + ":serves", Want: "serves", From: "goes down",
		Reason: "its own address is proven before another box goes down",
		Do:     s.serves,
	}
}

// remember proves the box as it is, unless the run has done that already.
func (s *hostStep) remember(ctx context.Context) error {
	if s.worked != nil {
		return nil
	}
	h, err := s.connect(ctx)
	if errors.Is(err, ErrAbsent) {
		return nil
	}
	if err == nil {
		s.worked = s.measure(ctx, h)
	}
	return err
}

// serves waits for the box's services, and proves at its own address those that
// worked before the run acted.
func (s *hostStep) serves(ctx context.Context, report func(string)) error {
	h, err := s.connect(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := bounded(ctx, backBound, s.box.Name+" to serve again")
	defer cancel()
	for _, d := range s.daemons() {
		err := s.until(ctx, settleBound, report, func(ctx context.Context) error {
			running, err := h.Running(ctx, d.Daemon)
			if err == nil && !running {
				err = fmt.Errorf("%s does not run", d.Unit)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	if s.worked == nil {
		return nil
	}
	for _, smoke := range s.proofs() {
		if !slices.Contains(s.worked.proven, smoke.Service.Name) {
			continue
		}
		if err := s.again(ctx, h, smoke, s.worked); err != nil {
			return fmt.Errorf("%s is back, and what worked before does not: %w", s.box.Name, err)
		}
	}
	return nil
}

// listed are addresses as a sentence has them; of many only the first are named.
func listed(all []netip.Addr) string {
	const most = 20
	var words []string
	for _, a := range all[:min(len(all), most)] {
		words = append(words, a.String())
	}
	if more := len(all) - most; more > 0 {
		words = append(words, fmt.Sprintf("%d more", more))
	}
	return strings.Join(words, ", ")
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// Drained are the boxes that have given their VIPs away in this run.
func (l *Live) Drained() []Drained {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.drained
}

func (l *Live) noteDrained(d Drained) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drained = append(l.drained, d)
	if l.watch != nil {
		l.watch.dropped(d)
	}
}

// Away says of each box that somebody has drained until when, and how that ends.
func (l *Live) Away() []string {
	var all []string
	for _, s := range l.steps {
		if a := s.start.away; a != nil && a.by != "" {
			all = append(all, fmt.Sprintf("lb %q is drained until %s, by %s: it takes no VIP, also if the other fails. To end that: ftpdeploy resume %s",
				s.box.Name, a, a.by, s.box.Name))
		}
	}
	return all
}

// Drain returns the step that has a box give its VIPs away and stay away for some
// time, in the name of who.
func (l *Live) Drain(box string, hold time.Duration, who string) ([]plan.Step, error) {
	s, err := l.member(box)
	if err != nil {
		return nil, err
	}
	if len(s.peers) == 0 {
		return nil, fmt.Errorf("lb %q is alone in lb_group %q: nobody could take its VIPs", box, s.group.Name)
	}
	return []plan.Step{&drainStep{hostStep: s, hold: hold, who: who}}, nil
}

// Resume returns the step that has a drained box take part again.
func (l *Live) Resume(box string) ([]plan.Step, error) {
	s, err := l.member(box)
	if err != nil {
		return nil, err
	}
	return []plan.Step{&resumeStep{s}}, nil
}

// member is the step of a box by its name.
func (l *Live) member(name string) (*hostStep, error) {
	name = strings.TrimPrefix(name, "lb.")
	var names []string
	for _, s := range l.hostSteps(nil) {
		if s.box.Name == name {
			return s, nil
		}
		names = append(names, s.box.Name)
	}
	return nil, fmt.Errorf("no lb is named %q: want one of %s", name, strings.Join(names, ", "))
}

// drainStep keeps a box away from its VIPs for some time.
type drainStep struct {
	*hostStep
	hold time.Duration
	who  string
	end  time.Time // by the box's clock, from the first look on
}

// Name implements plan.Step.
func (s *drainStep) Name() string { return "drain/" + s.box.Name }

// After implements plan.Step.
func (s *drainStep) After() []string { return nil }

// Plan implements plan.Step.
func (s *drainStep) Plan(ctx context.Context, _ plan.Goal) ([]plan.Change, error) {
	p, err := s.look(ctx)
	if err != nil {
		return nil, err
	}
	for _, peer := range s.peers {
		if peer.start, err = peer.look(ctx); err != nil {
			return nil, fmt.Errorf("look whether %s can take the VIPs: %w", peer.box.Name, err)
		}
		if peer.start.away != nil {
			return nil, fmt.Errorf("%s is drained until %s, and only one box of a group may be. Run: ftpdeploy resume %s", peer.box.Name, peer.start.away, peer.box.Name)
		}
	}
	if s.end.IsZero() {
		s.end = time.Unix(p.now.Add(s.hold).Unix(), 0)
	}
	if p.away != nil && p.away.by != "" && p.away.until.Equal(s.end) {
		return nil, nil
	}
	end := &away{until: s.end}
	c := plan.Change{
		Action: plan.Run, Target: s.box.Name + ":drain", Want: "away", Reason: "you ask for it",
		Detail: plan.Diff{Fields: []plan.Field{{Path: "takes no VIP until", After: end.String()}}},
		From:   "holds no VIP",
		Do: func(ctx context.Context, report func(string)) (err error) {
			s.end, err = s.leave(ctx, p, s.end, s.who, s.drain, report)
			return err
		},
		Undo: func(ctx context.Context) error { return s.comeBack(ctx, s.vips()) },
	}
	if p.away != nil {
		c.From, c.Detail.Fields[0].Before = "drained", p.away.String()
	}
	if len(p.held) > 0 {
		c.From, c.Effect = "holds "+listed(p.held), plan.Restart
		c.Detail.Fields = append(c.Detail.Fields, plan.Field{Path: "leaves", After: listed(p.held)})
		c.Detail.Fields = append(c.Detail.Fields, s.drain.fields()...)
	}
	return []plan.Change{c}, nil
}

// resumeStep ends a drain before its time.
type resumeStep struct{ *hostStep }

// Name implements plan.Step.
func (s *resumeStep) Name() string { return "resume/" + s.box.Name }

// After implements plan.Step.
func (s *resumeStep) After() []string { return nil }

// Plan implements plan.Step.
func (s *resumeStep) Plan(ctx context.Context, _ plan.Goal) ([]plan.Change, error) {
	p, err := s.look(ctx)
	if err != nil || p.away == nil {
		return nil, err
	}
	return []plan.Change{{
		Action: plan.Run, Target: s.box.Name + ":resume", Want: "takes part",
		Reason: fmt.Sprintf("it is drained until %s, by %s", p.away, cmp.Or(p.away.by, "a run")), From: plan.Unseen,
		Do: func(ctx context.Context, _ func(string)) error { return s.comeBack(ctx, s.vips()) },
	}}, nil
}
