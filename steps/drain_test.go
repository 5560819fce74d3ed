package steps

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/steps/proxy"
)

// TestDrainIsPlanned holds when a box is drained for changes, and when it returns.
func TestDrainIsPlanned(t *testing.T) {
	vip := &blueprints.VIP{Name: "ftp", Address: netip.MustParseAddr("203.0.113.15")}
	holding := position{vips: []*blueprints.VIP{vip}, held: []netip.Addr{vip.Address}}
	later := time.Now().Add(time.Hour)
	work := []plan.Change{{Action: plan.Update, Target: "haproxy-a:packages"}}
	for _, test := range []struct {
		name        string
		p           position
		peer        *away
		changes     []plan.Change
		ends, moves bool
		want, from  string // from of the first change
	}{
		{name: "the holder, for what ends sessions", p: holding, changes: work, ends: true, want: ">drain ~packages >resume", from: plan.Unseen},
		{name: "the holder, for a reload", p: holding, changes: work, want: "~packages"},
		{name: "the standby", changes: work, ends: true, want: "~packages"},
		{name: "the standby, to which the VIP comes before", changes: work, ends: true, moves: true, want: ">drain ~packages >resume", from: plan.Unseen},
		{name: "drained by somebody", p: position{away: &away{until: later, by: "root@jump"}}, changes: work, ends: true, moves: true, want: "~packages"},
		{name: "drained by somebody, no change", p: position{away: &away{until: later, by: "root@jump"}}, want: ""},
		{name: "drained by a run that broke off", p: position{away: &away{until: later}}, want: ">resume", from: plan.Unseen},
		{name: "and with work left", p: position{away: &away{until: later}}, changes: work, ends: true, want: "~packages >resume"},
		{name: "the peer was left drained", p: holding, peer: &away{until: later}, changes: work, ends: true, want: ">drain ~packages >resume", from: plan.Unseen},
		{name: "the peer is drained", p: holding, peer: &away{until: later, by: "root@jump"}, changes: work, ends: true, want: "error"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &hostStep{box: &blueprints.Box{Name: "haproxy-a"}, drain: drainPolicy{"wait", 30 * time.Minute}}
			s.peers = []*hostStep{{box: &blueprints.Box{Name: "haproxy-b"}, start: position{away: test.peer}}}
			changes, err := s.around(test.p, slices.Clone(test.changes), test.ends, test.moves)
			if err != nil {
				if test.want != "error" || !strings.Contains(err.Error(), "haproxy-b is drained until") || !strings.Contains(err.Error(), "ftpdeploy resume haproxy-b") {
					t.Error(err)
				}
				return
			}
			if got := targets(changes); got != test.want {
				t.Fatalf("planned %q, want %q", got, test.want)
			}
			if len(changes) > 0 && changes[0].From != test.from {
				t.Errorf("planned from %q, want %q", changes[0].From, test.from)
			}
			for _, c := range changes { // else nothing of the run can go back
				if c.Action == plan.Run && c.Undo == nil && !c.Covered {
					t.Errorf("%s cannot be undone", c.Target)
				}
			}
		})
	}
}

// TestLeave holds what each policy does to a session that does not end.
func TestLeave(t *testing.T) {
	p := startHost(t)
	if err := p.host.Install(t.Context(), "debian", remote.Package{Name: "keepalived"}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.8.15:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	vip := &blueprints.VIP{Name: "ftp", Address: netip.MustParseAddr("127.0.8.15")}
	p.topology.Services = []*blueprints.Service{{VIP: vip, ControlPort: l.Addr().(*net.TCPAddr).Port, PassiveFirst: 1, PassiveLast: 2}}
	var left []Drained
	p.hostStep.drained = func(d Drained) { left = append(left, d) }
	now := position{vips: []*blueprints.VIP{vip}, held: []netip.Addr{vip.Address}, now: time.Now()}
	until := now.now.Add(time.Hour)
	var end time.Time
	leave := func(by string, policy drainPolicy) (said string, err error) {
		end, err = p.leave(t.Context(), now, until, by, policy, func(s string) { said += s + "\n" })
		return said, err
	}

	said, err := leave("", drainPolicy{"wait", time.Second})
	if err == nil || !strings.Contains(err.Error(), "haproxy-a still has 1 session of 127.0.0.1 after drain_deadline, 1s, and nothing was cut") {
		t.Errorf("got %v\n%s", err, said)
	}
	if len(left) > 0 || p.has(t, proxy.DrainedPath) != "" {
		t.Errorf("it left: %v", left)
	}
	// The kernel may end what was cut, so there is a client only for the first of the two.
	said, err = leave("root@jump", drainPolicy{"deadline", time.Second})
	if err != nil || !strings.Contains(said, "cutting 1 session of 127.0.0.1") || len(left) != 1 || left[0].Sessions != 1 {
		t.Fatalf("got %v, %v\n%s", err, left, said)
	}
	if got := left[0].String(); !strings.HasPrefix(got, "haproxy-a gave 127.0.8.15 away after ") || !strings.HasSuffix(got, " s: 1 session of 127.0.0.1 cut") {
		t.Error(got)
	}
	// For as long as it waited it stays away longer.
	if waited := end.Sub(until); waited < time.Second || waited > 30*time.Second {
		t.Errorf("it waited for a second at least, and stays away %s longer", waited)
	}
	if got := p.has(t, proxy.DrainedPath); got != fmt.Sprintf("%d root@jump\n", end.Unix()) {
		t.Errorf("mark %q", got)
	}
	where, err := p.look(t.Context())
	if err != nil || where.away == nil || where.away.by != "root@jump" || !where.away.until.Equal(end.Truncate(time.Second)) {
		t.Errorf("position %+v, %v", where, err)
	}
	p.edit(t, proxy.DrainedPath, fmt.Sprintf("%d root@jump\n", time.Now().Unix()-1))
	if where, err := p.look(t.Context()); err != nil || where.away != nil {
		t.Errorf("a drain that is over counts: %+v, %v", where, err)
	}
	if said, err := leave("", drainPolicy{"cut", time.Hour}); err != nil || len(left) != 2 || strings.Contains(said, "waiting") {
		t.Errorf("got %v, %v\n%s", err, left, said)
	}
	reaches(t, &resumeStep{p.hostStep}, plan.Present, p.Snapshot)
	if p.has(t, proxy.DrainedPath) != "" {
		t.Error("still drained after resume")
	}
}

// TestDrainCommand holds the steps of drain and resume to their rules.
func TestDrainCommand(t *testing.T) {
	a, b := startHost(t), startHost(t)
	for _, p := range []*hostPeer{a, b} {
		if err := p.host.Install(t.Context(), "debian", remote.Package{Name: "keepalived"}); err != nil {
			t.Fatal(err)
		}
	}
	b.box.Name = "haproxy-b"
	a.peers, b.peers = []*hostStep{b.hostStep}, []*hostStep{a.hostStep}
	drain := &drainStep{hostStep: a.hostStep, hold: time.Hour, who: "root@jump"}
	reaches(t, drain, plan.Present, func() string { return a.Snapshot() + b.Snapshot() })
	if _, err := (&drainStep{hostStep: b.hostStep, hold: time.Hour, who: "root@jump"}).Plan(t.Context(), plan.Present); err == nil ||
		!strings.Contains(err.Error(), "haproxy-a is drained until") || !strings.Contains(err.Error(), "only one box of a group may be") {
		t.Errorf("both boxes of a pair may be drained: %v", err)
	}
	reaches(t, &drainStep{hostStep: a.hostStep, hold: 2 * time.Hour, who: "root@jump"}, plan.Present, a.Snapshot) // a new end
	reaches(t, &resumeStep{a.hostStep}, plan.Present, a.Snapshot)
	b.hostStep.connect = func(context.Context) (*remote.Host, error) { return nil, ErrAbsent }
	if _, err := drain.Plan(t.Context(), plan.Present); err == nil || !strings.Contains(err.Error(), "look whether haproxy-b can take the VIPs") {
		t.Errorf("got %v without a peer", err)
	}
}

// TestHolderOfFormerAddress holds that a box which has a VIP at the address of before
// is its holder: it acts after the others, and what is connected there is drained.
func TestHolderOfFormerAddress(t *testing.T) {
	src := fromLab(t)
	now := load(t, src, edit{`address         = "203.0.113.15"`, `address         = "203.0.113.16"`})
	before := load(t, src)
	a, b := asFound(t, before, now, 0), asFound(t, before, now, 1)
	standbyFirst([]*hostStep{a, b}, nil)
	if !slices.Equal(a.after, []string{b.Name()}) || len(b.after) > 0 {
		t.Errorf("%s acts after %q, and %s after %q", a.Name(), a.after, b.Name(), b.after)
	}
	changes, err := a.around(a.start, []plan.Change{{Action: plan.Update, Target: "haproxy-a:packages"}}, true, false)
	if err != nil || targets(changes) != ">drain ~packages >resume" || !strings.HasPrefix(changes[0].Reason, "it holds 203.0.113.15, and ") {
		t.Errorf("planned %q, %v", targets(changes), err)
	}
	former := netip.MustParseAddr("203.0.113.15")
	if d := a.drainOf(a.start.vips); !slices.Contains(d.VIPs, former) {
		t.Errorf("leaves %v", d.VIPs)
	}
	if n, clients := a.sessions([]remote.Connection{{Local: netip.AddrPortFrom(former, 2121)}, {Local: netip.AddrPortFrom(former, 21100)}}); n != 1 || len(clients) != 1 {
		t.Errorf("%d sessions of %v, want one at a control port that is no more", n, clients)
	}
}

// TestNewcomerLast holds that a box which the holder does not know as its peer yet
// comes after it, and says that the holder's VIP is away for a moment.
func TestNewcomerLast(t *testing.T) {
	src := fromLab(t)
	before, now := load(t, src), load(t, src)
	before.Groups[0].Boxes = before.Groups[0].Boxes[:1]
	a, b := asFound(t, before, now, 0), asApplied(t, now, 1)
	b.seen = nil
	a.peers, b.peers = []*hostStep{b}, []*hostStep{a}
	hosts := []*hostStep{b, a}
	standbyFirst(hosts, nil)
	if hosts[0] != a || !slices.Equal(b.after, []string{a.Name()}) || len(a.after) > 0 {
		t.Errorf("%s acts after %q, and %s after %q", a.Name(), a.after, b.Name(), b.after)
	}
	impact := func(s *hostStep) string {
		return newForecast([]*hostStep{s}).impact(s.Name(), plan.Change{Action: plan.Run, Target: s.box.Name + ":keepalived.service", Effect: plan.Reload}).Note
	}
	if got := impact(a); !strings.HasPrefix(got, "the VIP is away for 1.8 s and comes back here") {
		t.Errorf("forecast %q", got)
	}

	// One that it knows already, as it was only rebuilt, comes first as any standby.
	a.seen, a.after, b.after = asApplied(t, now, 0).seen, nil, nil
	hosts = []*hostStep{a, b}
	if standbyFirst(hosts, nil); hosts[0] != b || !slices.Equal(a.after, []string{b.Name()}) {
		t.Errorf("%s acts after %q, and %s after %q", a.Name(), a.after, b.Name(), b.after)
	}
	if got := impact(a); got != "" {
		t.Errorf("forecast %q", got)
	}
}
