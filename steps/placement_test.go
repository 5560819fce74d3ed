package steps

import (
	"slices"
	"testing"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
)

func TestPlacementConverges(t *testing.T) {
	p := newPair(t)
	for _, b := range p.topology.Boxes {
		reaches(t, newVM(p.topology, dark(b), p.client, nil), plan.Present)
	}
	s := newPlacement(p.topology, p.group, p.client, nil)
	converges(t, s, p.writes)
	if after := s.After(); !slices.Equal(after, []string{"vm/haproxy-a", "vm/haproxy-b"}) {
		t.Errorf("comes after %v", after)
	}
}

// Rules that a run has changed, or made, are put back as they were.
func TestPlacementGoesBack(t *testing.T) {
	p := newPair(t)
	p.up(t)
	boxes := slices.Clone(p.topology.Boxes)
	back := func(action plan.Action) {
		t.Helper()
		changes := reaches(t, newPlacement(p.topology, p.group, p.client, nil), plan.Present)
		if len(changes) != 1 || changes[0].Action != action {
			t.Fatalf("%+v", changes)
		}
		if err := changes[0].Undo(t.Context()); err != nil {
			t.Fatal(err)
		}
		again := planOnly(t, newPlacement(p.topology, p.group, p.client, nil), plan.Present, p.writes)
		if len(again) != 1 || again[0].From != changes[0].From || again[0].Action != action {
			t.Errorf("planned again %+v, want %+v", again, changes[0])
		}
	}
	p.without()
	back(plan.Update)
	p.topology.Boxes, p.group.Boxes = boxes, boxes
	if changes := planOnly(t, newPlacement(p.topology, p.group, p.client, nil), plan.Present, p.writes); len(changes) != 0 {
		t.Errorf("the rules are not as they were: %+v", changes)
	}
	reaches(t, newPlacement(p.topology, p.group, p.client, nil), plan.Absent)
	back(plan.Create)
}

// A group whose boxes need no rule has none.
func TestPlacementOfNothing(t *testing.T) {
	p := newPair(t)
	p.group.AntiAffinity = false
	for _, b := range p.topology.Boxes {
		b.Site.HostGroup = ""
	}
	s := newPlacement(p.topology, p.group, p.client, nil)
	for _, goal := range []plan.Goal{plan.Present, plan.Absent} {
		if changes := planOnly(t, s, goal, p.writes); len(changes) != 0 {
			t.Errorf("goal %v: %+v", goal, changes)
		}
	}
}

func TestPlacementNeedsOneVCenter(t *testing.T) {
	p := newPair(t)
	if home, err := groupVCenter(p.group); err != nil || home.Name != "main" {
		t.Errorf("%v, %v", home, err)
	}
	p.topology.Boxes[1].Site.VCenter = &blueprints.VCenter{Name: "other"}
	if _, err := groupVCenter(p.group); err == nil {
		t.Error("a group in two vCenters was accepted")
	}
}
