package steps

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
)

// without takes the last box out of the pair's blueprint.
func (p *pair) without() *blueprints.Box {
	gone := p.topology.Boxes[1]
	p.topology.Boxes = p.topology.Boxes[:1]
	p.group.Boxes = p.topology.Boxes
	return gone
}

// left looks for what an earlier blueprint left in the pair's vCenter.
func (p *pair) left(t *testing.T) (*Live, leftovers) {
	t.Helper()
	l := p.live()
	vms, err := l.leftVMs(t.Context(), p.topology.Boxes[0].Site.VCenter)
	if err != nil {
		t.Fatal(err)
	}
	return l, leftovers{vms: vms}
}

// A VM that the blueprint does not have any more goes after the boxes that stay,
// and what is of another deployment, or only a copy, stays.
func TestRemovedVM(t *testing.T) {
	p := newPair(t)
	p.up(t)
	if _, left := p.left(t); left.vms != nil {
		t.Errorf("left over: %+v", left.vms)
	}
	gone := p.without()
	l, left := p.left(t)
	first, leaving, last, err := l.removals(left, []string{"host/haproxy-a"}, true)
	if err != nil || first != nil || len(leaving) != 1 || leaving[0].Name() != "leaving/haproxy-b" || len(last) != 1 ||
		last[0].Name() != "removed/haproxy-b" || !slices.Equal(last[0].After(), []string{"host/haproxy-a"}) {
		t.Fatalf("%v, %v, %v, %v", first, leaving, last, err)
	}
	if _, leaving, last, err := l.removals(left, nil, false); err != nil || leaving != nil || len(planOnly(t, last[0], plan.Present, p.writes)) != 1 {
		t.Errorf("nobody else serves, and it leaves before the others are there: %v, %v", leaving, err)
	}
	if changes := planOnly(t, last[0], plan.Absent, p.writes); len(changes) != 1 || changes[0].Needs != nil || changes[0].Effect != plan.Restart {
		t.Errorf("to destroy everything is to destroy this too: %+v", changes)
	}
	if changes := planOnly(t, leaving[0], plan.Absent, p.writes); changes != nil {
		t.Errorf("what is destroyed leaves before: %+v", changes)
	}
	changes := reaches(t, leaving[0], plan.Present, p.writes)
	if len(changes) != 1 || changes[0].Effect != plan.Restart || !slices.Equal(changes[0].Needs, []string{RemoveBox}) {
		t.Errorf("%+v", changes)
	}
	if p.Calls("ShutdownGuest") == 0 {
		t.Error("the guest was not asked to shut down: the VIP does not leave in order")
	}
	on := func() bool {
		c, err := p.client(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		vm, err := c.Find(t.Context(), p.topology.ID, gone.Name)
		return err == nil && vm.On
	}
	if on() {
		t.Error("it has not left")
	}
	if err := changes[0].Undo(t.Context()); err != nil || !on() {
		t.Errorf("it is not on again: %v", err)
	}
	reaches(t, leaving[0], plan.Present, p.writes)

	if err := changes[0].Undo(t.Context()); err != nil {
		t.Fatal(err)
	}

	// What stays is proven before it is deleted; where that fails it is on again.
	var proofs int
	var fault error
	l.options.Prove = func(context.Context, func(string)) error {
		proofs++
		return fault
	}
	if _, _, last, err := l.removals(left, nil, false); err != nil || len(planOnly(t, last[0], plan.Present)) != 1 {
		t.Errorf("proven before anybody else serves: %v", err)
	}
	attempt := func() error {
		_, leaving, last, err := l.removals(left, []string{"leaving/haproxy-b"}, true)
		if err != nil || len(leaving) != 1 || len(last) != 1 {
			t.Fatal(leaving, last, err)
		}
		if changes := planOnly(t, last[0], plan.Absent, p.writes); len(changes) != 1 {
			t.Errorf("proven before all is destroyed: %+v", changes)
		}
		made, err := plan.Make(t.Context(), plan.Present, []plan.Step{leaving[0], last[0]}, plan.Options{Rollback: true})
		if err != nil {
			t.Fatal(err)
		}
		changes := made.Changes()
		if len(changes) != 3 || changes[1].Target != "haproxy-b:smoke" || changes[2].Action != plan.Delete || changes[2].Effect == plan.Restart ||
			!slices.Equal(changes[2].Needs, []string{RemoveBox}) {
			t.Errorf("%+v", changes)
		}
		return made.Apply(t.Context(), nil)
	}
	fault = errors.New("550 no")
	err = attempt()
	if back := (*plan.RollbackError)(nil); proofs != 1 || !errors.As(err, &back) || !back.Complete() || !errors.Is(err, fault) || !on() {
		t.Errorf("%d proofs, it is on: %t, %v", proofs, on(), err)
	}
	fault = nil
	if err := attempt(); err != nil || proofs != 2 {
		t.Errorf("%d proofs, %v", proofs, err)
	}
	if _, left := p.left(t); left.vms != nil {
		t.Errorf("left over: %+v", left.vms)
	}
	// The rules of a group of two become those of one.
	placement := p.steps(t)[1]
	if changes := reaches(t, placement, plan.Present); len(changes) != 1 {
		t.Errorf("%+v", changes)
	}
	if rules := p.Rules(t); slices.ContainsFunc(rules.Rule, func(r types.BaseClusterRuleInfo) bool {
		return strings.Contains(r.GetClusterRuleInfo().Name, gone.Site.HostGroup)
	}) {
		t.Errorf("the rules of %s are there", gone.Name)
	}
}

// A box under another name that takes its addresses over comes up after the old
// one is gone; two at once would leave nobody.
func TestRenamedBox(t *testing.T) {
	p := newPair(t)
	p.up(t)
	p.topology.Boxes[1].Name = "haproxy-c"
	l, left := p.left(t)
	first, leaving, last, err := l.removals(left, []string{"host/haproxy-a"}, true)
	if err != nil || last != nil || leaving != nil || len(first) != 1 || first[0].Name() != "removed/haproxy-b" || first[0].After() != nil {
		t.Fatalf("%v, %v, %v, %v", first, leaving, last, err)
	}
	power := newPower(p.topology, p.topology.Boxes[1], p.client, nil, "placement/ftp", "removed/haproxy-b")
	if !slices.Contains(power.After(), "removed/haproxy-b") {
		t.Errorf("after %q", power.After())
	}
	list := append(first, p.steps(t)...)
	list = slices.DeleteFunc(list, func(s plan.Step) bool { return s.Name() == "power/haproxy-c" })
	if _, err := apply(t.Context(), plan.Present, append(list, power)...); err != nil {
		t.Fatal(err)
	}

	p.topology.Boxes[0].Name, p.topology.Boxes[1].Name = "haproxy-d", "haproxy-e"
	l, left = p.left(t)
	if _, _, _, err := l.removals(left, nil, true); err == nil || !strings.Contains(err.Error(), `lb "haproxy-d" gets an address of "haproxy-a", and lb "haproxy-e" gets an address of "haproxy-c": renamed in one run, no box would serve`) {
		t.Errorf("got %v", err)
	}
	for i := range p.topology.Boxes[0].NICs {
		p.topology.Boxes[0].NICs[i].Address = netip.AddrFrom4([4]byte{198, 18, byte(i), 77})
	}
	if first, _, last, err := l.removals(left, nil, true); err != nil || len(first) != 1 || len(last) != 1 {
		t.Errorf("%v, %v, %v", first, last, err)
	}
}

// A service that moves to another namespace: what it leaves goes, first of all
// where it holds the ports, and its data stay.
func testRemovedNamespace(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	f.service.Volumes = append(f.service.Volumes, blueprints.Volume{Name: "logs", Size: "1Gi", Mount: "/var/log/vsftpd", AccessMode: "ReadWriteOnce"})
	f.service.Volumes[0].Keep = true
	f.deploy.ID += "-removed" // else the other tests' namespaces are left over too
	f.apply(plan.Present)
	was := f.service.Namespace

	look := func(data ...string) (*Live, leftovers) {
		t.Helper()
		l := Open(f.deploy, Options{Kubeconfig: f.server.Kubeconfig, DeleteData: data, Env: func(string) (string, bool) { return "", false }})
		places, notes, err := l.leftPlaces(t.Context(), f.service.Cluster)
		if err != nil {
			t.Fatal(err)
		}
		return l, leftovers{places: places, notes: notes}
	}
	if _, left := look(); left.places != nil || left.notes != nil {
		t.Errorf("left over: %+v", left)
	}
	f.service.Namespace += "-new"
	l, left := look()
	first, _, last, err := l.removals(left, nil, true)
	name := "removed/" + f.service.Cluster.Name + "." + was
	if err != nil || last != nil || len(first) != 1 || first[0].Name() != name {
		t.Fatalf("%v, %v, %v", first, last, err)
	}
	if len(left.notes) != 1 || !strings.HasPrefix(left.notes[0], "kept: PersistentVolumeClaim "+was+"/vsftpd-home") || !strings.HasSuffix(left.notes[0], "--delete-data vsftpd/home takes it away") {
		t.Errorf("%q", left.notes)
	}
	old, served := *f, *f.service // the controllers work in both namespaces
	served.Namespace = was
	old.service = &served
	defer old.control()()
	changes := f.apply(plan.Present, first[0], newKubernetes(f.deploy, f.service, f.connect, nil, name))
	signs := strings.ReplaceAll(strings.Join(f.signs(changes), "\n"), was, "WAS")
	if want := "- Service WAS/vsftpd\n- Deployment WAS/vsftpd\n- PersistentVolumeClaim WAS/vsftpd-logs\n- Secret WAS/vsftpd-account\n+ Namespace"; !strings.HasPrefix(signs, want) {
		t.Errorf("got\n%s\nwant\n%s", signs, want)
	}
	if _, left := look(); left.places != nil || len(left.notes) != 1 {
		t.Errorf("left over: %+v", left)
	}
	l, left = look("vsftpd/home")
	_, _, last, err = l.removals(left, []string{"kubernetes/vsftpd"}, true)
	if err != nil || len(last) != 1 || left.notes != nil || !slices.Equal(last[0].After(), []string{"kubernetes/vsftpd"}) {
		t.Fatalf("%+v, %v, %v", left, last, err)
	}
	gone := f.apply(plan.Present, f.step(), last[0])
	if got := strings.ReplaceAll(strings.Join(f.signs(gone), "\n"), was, "WAS"); got != "- PersistentVolumeClaim WAS/vsftpd-home\n- Namespace WAS" {
		t.Errorf("%s", got)
	}
}

// Who may not look into all namespaces is told what was not looked for.
func testRemovedForbidden(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	l := Open(f.deploy, Options{Kubeconfig: f.server.User("nobody"), Env: func(string) (string, bool) { return "", false }})
	places, notes, err := l.leftPlaces(t.Context(), f.service.Cluster)
	if err != nil || places != nil || len(notes) != 1 || !strings.Contains(notes[0], "not looked for") {
		t.Errorf("%v, %q, %v", places, notes, err)
	}
}
