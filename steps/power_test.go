package steps

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/vsphere"
	"github.com/ftpdeploy/ftpdeploy/vsphere/vcsim"
)

func TestPowerConverges(t *testing.T) {
	p := newPair(t)
	reaches(t, newVM(p.topology, dark(p.topology.Boxes[0]), p.client, nil), plan.Present)
	s := newPower(p.topology, p.topology.Boxes[0], p.client, nil, "placement/ftp")
	reaches(t, s, plan.Present, p.writes)
	if changes := planOnly(t, s, plan.Absent, p.writes); len(changes) != 0 {
		t.Errorf("the VM's own step removes it, this one wants %+v", changes)
	}
	if after := s.After(); !slices.Equal(after, []string{"placement/ftp", "vm/haproxy-a"}) {
		t.Errorf("comes after %v", after)
	}
}

// A VM that is on without its addresses, as after a crash between power-on and
// the end of the wait, is waited for by the next run.
func TestPowerWaitsAgain(t *testing.T) {
	p := newPair(t)
	box := p.topology.Boxes[0]
	reaches(t, newVM(p.topology, dark(box), p.client, nil), plan.Present)
	p.SetDeaf(true)
	if err := p.calls.PowerOn(t.Context(), p.topology.ID, box.Name); err != nil {
		t.Fatal(err)
	}
	s := newPower(p.topology, box, p.client, nil)
	changes := planOnly(t, s, plan.Present, p.writes)
	if len(changes) != 2 || changes[0].From != plan.Unseen || !strings.Contains(changes[0].Reason, "lacks 198.18.0.11 on NIC frontend") || changes[1].From != plan.Unseen {
		t.Errorf("the plan is %+v", changes)
	}
}

// A guest that publishes other host keys than those pinned stops the run; the pin stays.
func TestPowerKeepsPin(t *testing.T) {
	p := newPair(t)
	p.up(t)
	p.SetExtra(t, p.path(0), vsphere.PublishedHostKeys, strings.Replace(vcsim.HostKeys, "1m5o", "1m5p", 1))
	before := p.Writes()
	if _, err := apply(t.Context(), plan.Present, p.steps(t)...); !errors.Is(err, vsphere.ErrHostKeys) {
		t.Errorf("got %v, want ErrHostKeys", err)
	}
	vm, err := p.calls.Find(t.Context(), p.topology.ID, "haproxy-a")
	if err != nil || !slices.Equal(vm.HostKeys, []string{vcsim.HostKeys}) || p.Writes() != before {
		t.Errorf("pinned %v, %v, %d writes", vm.HostKeys, err, p.Writes()-before)
	}
}
