package steps

import (
	"slices"
	"strings"
	"testing"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/vsphere"
)

func TestReplaced(t *testing.T) {
	p := newPair(t)
	for _, tt := range []struct {
		names []string
		says  string
	}{
		{[]string{"lb.haproxy-a", "lb.haproxy-a"}, ""},
		{[]string{"haproxy-a"}, "--replace haproxy-a: the blueprint has lb.haproxy-a, lb.haproxy-b"},
		{[]string{"lb.haproxy-c"}, "the blueprint has lb.haproxy-a"},
		{[]string{"lb.haproxy-b", "lb.haproxy-a"}, "--replace lb.haproxy-a and lb.haproxy-b: one box of a lb_group at a time"},
	} {
		boxes, err := Replaced(p.topology, tt.names)
		if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) || err == nil && len(boxes) != 1 {
			t.Errorf("%v: %v, %v, want %q", tt.names, boxes, err, tt.says)
		}
	}
	p.topology.Boxes[0].Site = nil
	if _, err := Replaced(p.topology, []string{"lb.haproxy-a"}); err == nil || !strings.Contains(err.Error(), "was not made by ftpdeploy") {
		t.Errorf("a machine of somebody else: %v", err)
	}
}

// A VM that differs in nothing is made anew, with its rules and new host keys; the
// other one is left alone, and once it is done nothing is left to do.
func TestReplace(t *testing.T) {
	p := newPair(t)
	p.up(t)
	find := func(n int) string {
		t.Helper()
		vm, err := p.calls.Find(t.Context(), p.topology.ID, p.topology.Boxes[n].Name)
		if err != nil || !vm.On || len(vm.HostKeys) == 0 {
			t.Fatalf("%+v, %v", vm, err)
		}
		return vm.ID
	}
	old, other := find(1), find(0)
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGxhYnMgbmV3IGtleSwgbmV3IGJveCwgbmV3IGxpZmUhISE="
	p.SetHostKeys(key)
	l := Open(p.topology, Options{Replace: []string{"lb.haproxy-b"}, Env: func(string) (string, bool) { return "", false }})
	v := p.topology.Boxes[0].Site.VCenter
	seen, err := l.observeVCenter(t.Context(), p.calls, v)
	if err == nil {
		err = l.doom(map[*blueprints.VCenter]*vsphere.Inventory{v: seen})
	}
	if err != nil {
		t.Fatal(err)
	}
	var list []plan.Step
	for _, b := range p.topology.Boxes {
		vm := newVM(p.topology, dark(b), p.client, seen)
		vm.doomed = l.doomed[b]
		list = append(list, vm)
	}
	list = append(list, newPlacement(p.topology, p.group, p.client, l.without(v, seen)))
	for _, b := range p.topology.Boxes {
		list = append(list, newPower(p.topology, b, p.client, l.without(v, seen), "placement/ftp"))
	}
	before := p.Writes()
	made, err := plan.Make(t.Context(), plan.Present, list, plan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if p.Writes() != before {
		t.Error("the plan wrote")
	}
	var targets []string
	for _, c := range made.Changes() {
		targets = append(targets, string(c.Action)+" "+c.Target+" "+string(c.Effect))
	}
	if want := []string{"± haproxy-b replace", "~ DC0_C0:rules none", "> haproxy-b:power none", "+ haproxy-b:hostkeys none"}; !slices.Equal(targets, want) {
		t.Errorf("planned %q, want %q", targets, want)
	}
	if _, err := l.host(t.Context(), p.topology.Boxes[1]); err == nil || !strings.Contains(err.Error(), ErrAbsent.Error()) {
		t.Errorf("the box that goes is entered: %v", err)
	}
	if err := made.Apply(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if find(1) == old || find(0) != other {
		t.Error("the wrong VM was made anew")
	}
	vm, err := p.calls.Find(t.Context(), p.topology.ID, "haproxy-b")
	if err != nil || !slices.Equal(vm.HostKeys, []string{key}) {
		t.Errorf("pinned %q, %v", vm.HostKeys, err)
	}
	if changes, err := apply(t.Context(), plan.Present, p.steps(t)...); err != nil || len(changes) > 0 {
		t.Errorf("left to do: %+v, %v", changes, err)
	}
}
