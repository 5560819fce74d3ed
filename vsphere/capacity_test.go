package vsphere

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/ftpdeploy/ftpdeploy/vsphere/vcsim"
)

// What there is not enough of is named with how much there is and how much is
// needed, and nothing is made.
func TestCapacity(t *testing.T) {
	hosts := func(t *testing.T, s *vcsim.Server) []*object.HostSystem {
		cluster, err := s.Finder.ClusterComputeResource(t.Context(), vcsim.Cluster)
		if err != nil {
			t.Fatal(err)
		}
		hosts, err := cluster.Hosts(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return hosts
	}
	rest := func(t *testing.T, hosts ...*object.HostSystem) {
		for _, h := range hosts {
			task, err := h.EnterMaintenanceMode(t.Context(), 0, false, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := task.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	limit := func(t *testing.T, s *vcsim.Server, megabytes int64) {
		pool, err := s.Finder.ResourcePool(t.Context(), vcsim.Pool)
		if err != nil {
			t.Fatal(err)
		}
		spec := types.DefaultResourceConfigSpec()
		spec.MemoryAllocation.Limit = &megabytes
		if err := pool.UpdateConfig(t.Context(), "", &spec); err != nil {
			t.Fatal(err)
		}
	}
	thick := func(t *testing.T, s *vcsim.Server) {
		s.Alter(t, vcsim.Template, func(m *mo.VirtualMachine) {
			firstDisk(m).Backing.(*types.VirtualDiskFlatVer2BackingInfo).ThinProvisioned = types.NewBool(false)
		})
	}
	for name, test := range map[string]struct {
		change func(*testing.T, *vcsim.Server, *Spec)
		want   string // "" = it can be made
	}{
		"enough":    {func(*testing.T, *vcsim.Server, *Spec) {}, ""},
		"both fill": {func(t *testing.T, s *vcsim.Server, _ *Spec) { thick(t, s); free(t, s, 44*gib) }, ""},
		"both do not fit": {
			func(t *testing.T, s *vcsim.Server, _ *Spec) { thick(t, s); free(t, s, 43*gib) },
			"datastore LocalDS_0 has 43.0 GiB free, and lb1 with lb2 needs 44.0 GiB at least: free 1.0 GiB there, or place it elsewhere [FTP405]",
		},
		"thin, but the swap files": {
			func(t *testing.T, s *vcsim.Server, _ *Spec) { free(t, s, 3*gib) },
			"datastore LocalDS_0 has 3.0 GiB free, and lb1 with lb2 needs 4.0 GiB at least",
		},
		"no swap files on vSAN": {func(t *testing.T, s *vcsim.Server, _ *Spec) {
			s.SetDatastore(t, func(d *types.DatastoreSummary) { d.Type, d.FreeSpace = "vsan", gib })
		}, ""},
		"datastore in maintenance": {
			func(t *testing.T, s *vcsim.Server, _ *Spec) {
				s.SetDatastore(t, func(d *types.DatastoreSummary) { d.MaintenanceMode = "inMaintenance" })
			},
			"datastore LocalDS_0 is in maintenance mode (inMaintenance): end that, or place VM lb1 elsewhere [FTP405]",
		},
		"datastore not accessible": {
			func(t *testing.T, s *vcsim.Server, _ *Spec) {
				s.SetDatastore(t, func(d *types.DatastoreSummary) { d.Accessible = false })
			},
			"datastore LocalDS_0 is not accessible",
		},
		"the site's hosts in maintenance": {
			func(t *testing.T, s *vcsim.Server, _ *Spec) { rest(t, hosts(t, s)[:2]...) },
			"no host of host group site-a-hosts in cluster DC0_C0 can run VM lb1, which wants 2 CPUs and 2.0 GiB of memory: " +
				"DC0_C0_H0 is in maintenance mode, DC0_C0_H1 is in maintenance mode. Bring a host back, or ask for less [FTP405]",
		},
		"one host of the site is left": {func(t *testing.T, s *vcsim.Server, _ *Spec) { rest(t, hosts(t, s)[0]) }, ""},
		"a host is lost and the other one small": {
			func(t *testing.T, s *vcsim.Server, one *Spec) {
				rest(t, hosts(t, s)[0])
				one.CPUs = 4
			},
			"DC0_C0_H0 is in maintenance mode, DC0_C0_H1 has 2 logical CPUs. Bring",
		},
		"memory of the hosts": {func(_ *testing.T, _ *vcsim.Server, one *Spec) { one.MemoryMB = 8192 }, "DC0_C0_H0 has 4.0 GiB, DC0_C0_H1 has 4.0 GiB. Bring"},
		"anywhere in the cluster": {func(t *testing.T, s *vcsim.Server, one *Spec) {
			rest(t, hosts(t, s)[:2]...)
			one.HostGroup = ""
		}, ""},
		"the pool's limit": {
			func(t *testing.T, s *vcsim.Server, _ *Spec) { limit(t, s, 3000) },
			"resource pool infra is limited to 2.9 GiB of memory, and lb1 with lb2 needs 4.0 GiB: raise the limit, or take another pool [FTP405]",
		},
		"the pool's limit is enough": {func(t *testing.T, s *vcsim.Server, _ *Spec) { limit(t, s, 4096) }, ""},
		"the template reserves more than is left": {
			func(t *testing.T, s *vcsim.Server, _ *Spec) {
				s.Alter(t, vcsim.Template, func(m *mo.VirtualMachine) {
					m.ResourceConfig = &types.ResourceConfigSpec{MemoryAllocation: types.ResourceAllocationInfo{Reservation: types.NewInt64(512)}}
				})
			},
			"resource pool infra has 0.9 GiB of memory left to reserve, and the template has lb1 with lb2 reserve 1.0 GiB: raise",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := vcsim.Start(t)
			c := connect(t, s)
			one, two := spec(1), spec(2)
			one.HostGroup, two.HostGroup = vcsim.HostGroups[0], vcsim.HostGroups[1]
			test.change(t, s, &one)
			reads, writes := s.Calls("RetrievePropertiesEx"), s.Writes()
			err := observe(t, c, []Spec{one, two}).Ready(one)
			if n := s.Writes() - writes; n != 0 {
				t.Errorf("%d writes", n)
			}
			if n := s.Calls("RetrievePropertiesEx") - reads; n != 2 {
				t.Errorf("%d reads, want 2: of the inventory and of the capacity", n)
			}
			switch {
			case test.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want) || !errors.Is(err, ErrCapacity)):
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
}

// A VM that is made anew gives back what it takes.
func TestCapacityAnew(t *testing.T) {
	s := vcsim.Start(t)
	c := connect(t, s)
	one := spec(1)
	create(t, c, one)
	free(t, s, gib)
	two := spec(2)
	if err := observe(t, c, []Spec{two}).Ready(two); !errors.Is(err, ErrCapacity) {
		t.Errorf("a VM more on a datastore that is full: %v", err)
	}
	s.Alter(t, vcsim.Folder+"/lb1", func(m *mo.VirtualMachine) {
		m.Storage = &types.VirtualMachineStorageInfo{PerDatastoreUsage: []types.VirtualMachineUsageOnDatastore{{Datastore: m.Datastore[0], Committed: 20 * gib}}}
	})
	one.Anew = true
	if err := observe(t, c, []Spec{one}).Ready(one); err != nil {
		t.Errorf("a VM in the place of one: %v", err)
	}
}

func free(t *testing.T, s *vcsim.Server, bytes int64) {
	t.Helper()
	s.SetDatastore(t, func(d *types.DatastoreSummary) { d.FreeSpace = bytes })
}

// An address that a VM of others shows is refused before anything is made; one of
// this deployment gives it up in a step of its own.
func TestAddressTaken(t *testing.T) {
	s := vcsim.Start(t)
	c := connect(t, s)
	other := spec(9)
	other.Deployment, other.Name = "someone", "web-7"
	create(t, c, other)
	path := vcsim.Folder + "/web-7"
	_, vm := s.VM(t, path)
	one := spec(1)
	one.VIPs = []netip.Addr{netip.MustParseAddr("198.18.0.99")}
	for _, group := range vcsim.PortGroups {
		s.Beside(t, path, group)
	}
	for address, want := range map[string]string{
		"198.18.1.1":  `VM "web-7" (` + vm.Self.Value + `) shows 198.18.1.1, which is the address of its NIC workload: give lb1 another address, or have that VM give it up [FTP406]`,
		"198.18.0.99": "shows 198.18.0.99, which is a VIP of it",
		"198.18.1.2":  "",
	} {
		s.SetGuest(t, path, map[string]string{cards(vm)[0].MacAddress: address})
		err := observe(t, c, []Spec{one}).Ready(one)
		if want == "" && err != nil || want != "" && (!errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want %q", address, err, want)
		}
	}
	s.SetGuest(t, path, map[string]string{cards(vm)[0].MacAddress: "198.18.1.1"})
	s.SetExtra(t, path, "ftpdeploy.deployment", one.Deployment)
	if err := observe(t, c, []Spec{one}).Ready(one); err != nil {
		t.Errorf("of the same deployment: %v", err)
	}
}
