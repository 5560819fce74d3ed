package vsphere

import (
	"errors"
	"strings"
	"testing"

	"github.com/ftpdeploy/ftpdeploy/vsphere/vcsim"
)

func TestDeployFromLibrary(t *testing.T) {
	s := vcsim.Start(t)
	c := connect(t, s)
	s.AddLibraryItem(t, "images", "debian-12")
	one := spec(1)
	one.Template, one.DiskGB = "", 2
	for item, want := range map[string]string{
		"images/debian-13": `no library item "debian-13" in content library images - nearest: "debian-12"`,
		"imagos/debian-12": `no content library "imagos" in this vCenter - nearest: "images"`,
	} {
		one.LibraryItem = item
		if err := observe(t, c, []Spec{one}).Ready(one); !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	one.LibraryItem = "images/debian-12"
	if err := observe(t, c, []Spec{one}).Ready(one); err != nil {
		t.Fatal(err)
	}
	create(t, c, one)
	if e := edit(t, c, one); e != nil {
		t.Errorf("after it was made it still differs: %v", e.Differences)
	}
	_, vm := s.VM(t, vcsim.Folder+"/lb1")
	if vm.Config.InstanceUuid != one.UUID() || len(cards(vm)) != 3 || vm.Config.Hardware.NumCPU != 2 {
		t.Errorf("instanceUuid %s, %d NICs, %d CPUs", vm.Config.InstanceUuid, len(cards(vm)), vm.Config.Hardware.NumCPU)
	}
	if err := c.Destroy(t.Context(), deployment, "lb1"); err != nil {
		t.Fatal(err)
	}
}
