package steps

import (
	"context"
	"net/netip"
	"testing"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/remote"
)

// What became of an open session is told by what is there afterwards.
func TestWatchTellsCutFromEnded(t *testing.T) {
	top := load(t, fromLab(t))
	vip := top.VIPs[0].Address
	peer := netip.MustParseAddrPort("203.0.113.50:40384")
	open := remote.Connection{Local: netip.AddrPortFrom(vip, 21), Client: peer}
	held := []remote.Link{{Name: "frontend", Addresses: []netip.Prefix{netip.PrefixFrom(vip, 24)}}}
	for _, c := range []struct {
		name   string
		after  remote.Traffic
		rolled bool
		cut    int
	}{
		{"lives on", remote.Traffic{Open: []remote.Connection{open}, Links: held}, false, 0},
		{"ended as the client wanted", remote.Traffic{Links: held, Ended: []remote.Termination{{Peer: peer, How: "--"}}}, false, 0},
		{"timed out", remote.Traffic{Links: held, Ended: []remote.Termination{{Peer: peer, How: "cD"}}}, false, 0},
		{"is being closed", remote.Traffic{Links: held, Closing: []remote.Connection{open}}, false, 0},
		{"is gone without a word", remote.Traffic{Links: held}, false, 1},
		{"the server broke off", remote.Traffic{Links: held, Ended: []remote.Termination{{Peer: peer, How: "SD"}}}, false, 1},
		{"killed", remote.Traffic{Links: held, Ended: []remote.Termination{{Peer: peer, How: "KD"}}}, false, 1},
		{"its pod went", remote.Traffic{Links: held, Ended: []remote.Termination{{Peer: peer, How: "--"}}}, true, 1},
		{"the address left the box", remote.Traffic{Open: []remote.Connection{open}}, false, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := asApplied(t, top, 0)
			w := &Watch{
				live: &Live{topology: top, steps: []*hostStep{s}}, sight: map[*hostStep]*sight{}, cut: map[session]bool{},
				rolling: map[*blueprints.Service]int{}, holder: map[*blueprints.VIP]*hostStep{},
			}
			proof := open
			proof.Client = netip.AddrPortFrom(s.box.NICs[0].Address, 36740) // it ends during the change
			w.settle(s, &remote.Traffic{Open: []remote.Connection{open, proof}, Links: held})
			if c.rolled {
				w.roll(top.Services[0], 1)
			}
			w.settle(s, &c.after)
			if len(w.cut) != c.cut {
				t.Errorf("%d cut, want %d", len(w.cut), c.cut)
			}
		})
	}
}

// What a drain cuts is cut, although HAProxy logs that its client has gone.
func TestWatchCountsWhatADrainCuts(t *testing.T) {
	top := load(t, fromLab(t))
	s, vip := asApplied(t, top, 0), top.VIPs[0].Address
	open := remote.Connection{Local: netip.AddrPortFrom(vip, 21), Client: netip.MustParseAddrPort("203.0.113.50:40384")}
	l := &Live{topology: top, steps: []*hostStep{s}}
	l.watch = &Watch{live: l, sight: map[*hostStep]*sight{}, cut: map[session]bool{}, rolling: map[*blueprints.Service]int{}}
	l.watch.settle(s, &remote.Traffic{Open: []remote.Connection{open}})
	l.noteDrained(Drained{Box: s.box.Name, cut: []remote.Connection{open}})
	l.watch.settle(s, &remote.Traffic{Ended: []remote.Termination{{Peer: open.Client, How: "CD"}}})
	if len(l.watch.cut) != 1 || len(l.Drained()) != 1 {
		t.Errorf("%d cut, want 1", len(l.watch.cut))
	}
}

func TestWatchCountsMoves(t *testing.T) {
	top := load(t, fromLab(t))
	a, b := asApplied(t, top, 0), asApplied(t, top, 1)
	v := top.VIPs[0]
	for _, c := range []struct {
		name          string
		atA, atB      []float64
		holdsA, moves int
	}{
		{"stays", nil, nil, 1, 0},
		{"is taken again by its holder", []float64{5}, nil, 1, 0},
		{"goes to the other", nil, []float64{5}, 0, 1},
		{"comes back", []float64{7}, []float64{5}, 1, 2},
		{"went, and the journal with it", nil, nil, 0, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &Watch{holder: map[*blueprints.VIP]*hostStep{v: a}, sight: map[*hostStep]*sight{
				a: {masters: map[*blueprints.VIP][]float64{v: c.atA}, holds: map[*blueprints.VIP]bool{v: c.holdsA == 1}},
				b: {masters: map[*blueprints.VIP][]float64{v: c.atB}, holds: map[*blueprints.VIP]bool{v: c.holdsA == 0}},
			}}
			if got := w.moves(v); got != c.moves {
				t.Errorf("%d moves, want %d", got, c.moves)
			}
		})
	}
}

// What a service's step takes away of another one ends none of its own sessions.
func TestWatchKnowsWhosePodGoes(t *testing.T) {
	top := load(t, fromLab(t))
	service := top.Services[0]
	for _, c := range []struct {
		change  plan.Change
		rolling int
	}{
		{plan.Change{Action: plan.Update, Target: "Deployment ftp/vsftpd", Effect: plan.Rollout}, 1},
		{plan.Change{Action: plan.Delete, Target: "Deployment ftp/vsftpd", Effect: plan.Restart}, 1},
		{plan.Change{Action: plan.Delete, Target: "Deployment ftp/second", Effect: plan.Restart}, 0},
	} {
		w := &Watch{live: &Live{topology: top}, rolling: map[*blueprints.Service]int{}}
		was := -1
		c.change.Do = func(context.Context, func(string)) error {
			was = w.rolling[service]
			return nil
		}
		if err := w.around("kubernetes/vsftpd", c.change)(t.Context(), nil); err != nil || was != c.rolling || w.rolling[service] != 0 {
			t.Errorf("%s %s: %d of the service's pods go, want %d (%v)", c.change.Action, c.change.Target, was, c.rolling, err)
		}
	}
}
