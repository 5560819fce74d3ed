package vsphere

import (
	"slices"
	"testing"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/ftpdeploy/ftpdeploy/vsphere/vcsim"
)

// What is ours is found wherever it was moved, and nothing else is.
func TestNames(t *testing.T) {
	s := vcsim.Start(t)
	c := connect(t, s)
	if names, err := c.Names(t.Context(), deployment); err != nil || names != nil {
		t.Fatalf("nothing is ours, got %q, %v", names, err)
	}
	one, two, theirs := spec(1), spec(2), spec(3)
	two.Folder = ""
	theirs.Deployment = "theirs"
	for _, v := range []Spec{one, two, theirs} {
		create(t, c, v)
	}
	want := func(names ...string) {
		t.Helper()
		if got, err := c.Names(t.Context(), deployment); err != nil || !slices.Equal(got, names) {
			t.Errorf("got %q, %v, want %q", got, err, names)
		}
	}
	want("lb1", "lb2")
	s.Reconfigure(t, vcsim.Folder+"/lb1", types.VirtualMachineConfigSpec{Name: "renamed"})
	want("lb1", "lb2")
	s.Reconfigure(t, "lb2", types.VirtualMachineConfigSpec{InstanceUuid: theirs.UUID()}) // a copy of ours
	want("lb1")
	s.SetExtra(t, vcsim.Folder+"/renamed", markDeployment, "another")
	want()
}
