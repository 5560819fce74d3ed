package lab

import (
	"context"
	"fmt"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/types"
)

// The inventory: what a site with a stretched cluster has before ftpdeploy comes.
const (
	datacenterName = "DC1"
	clusterName    = "stretched-01"
	datastoreName  = "vsan-stretched"
	switchName     = "dvs-01"
	poolName       = "infra"
	templateName   = "debian-12-cloudinit"
)

// hostSites gives each ESXi host its site, in the order in which they are added.
var hostSites = []struct{ host, site string }{
	{"esx-a1.lab.example", "site-a"},
	{"esx-a2.lab.example", "site-a"},
	{"esx-b1.lab.example", "site-b"},
	{"esx-b2.lab.example", "site-b"},
}

// portGroupVLANs are the distributed port groups, the template's NIC being on the first.
var portGroupVLANs = []struct {
	name string
	vlan int32
}{
	{"dvpg-mgmt", 101},
	{"dvpg-workload", 102},
	{"dvpg-frontend", 103},
}

// makeInventory makes datacenter DC1 with
//
//	host/stretched-01                  4 hosts, DRS and HA on; host groups site-a-hosts and site-b-hosts
//	host/stretched-01/Resources/infra
//	datastore/vsan-stretched           its files are in datastoreDir
//	network/dvs-01, dvpg-mgmt, dvpg-workload, dvpg-frontend
//	vm/infra/ftp
//	vm/templates/debian-12-cloudinit
func makeInventory(ctx context.Context, client *vim25.Client, registry *simulator.Registry, datastoreDir string) error {
	dc, err := object.NewRootFolder(client).CreateDatacenter(ctx, datacenterName)
	if err != nil {
		return err
	}
	folders, err := dc.Folders(ctx)
	if err != nil {
		return err
	}
	cluster, err := folders.HostFolder.CreateCluster(ctx, clusterName, types.ClusterConfigSpecEx{})
	if err != nil {
		return err
	}
	hosts, err := addHosts(ctx, client, registry, cluster, datastoreDir)
	if err != nil {
		return err
	}
	nic, err := addNetworks(ctx, client, registry, folders.NetworkFolder, hosts)
	if err != nil {
		return err
	}

	root, err := cluster.ResourcePool(ctx)
	if err != nil {
		return err
	}
	pool, err := root.Create(ctx, poolName, types.DefaultResourceConfigSpec())
	if err != nil {
		return err
	}
	infra, err := folders.VmFolder.CreateFolder(ctx, "infra")
	if err != nil {
		return err
	}
	if _, err := infra.CreateFolder(ctx, "ftp"); err != nil {
		return err
	}
	templates, err := folders.VmFolder.CreateFolder(ctx, "templates")
	if err != nil {
		return err
	}
	return addTemplate(ctx, client, templates, pool, nic)
}

// result waits for a task and returns what it made.
func result(ctx context.Context, task *object.Task, err error) (types.ManagedObjectReference, error) {
	if err != nil {
		return types.ManagedObjectReference{}, err
	}
	info, err := task.WaitForResult(ctx, nil)
	if err != nil {
		return types.ManagedObjectReference{}, err
	}
	ref, _ := info.Result.(types.ManagedObjectReference) // most tasks make nothing
	return ref, nil
}

// addHosts adds the hosts, each in the fault domain of its site, their shared
// datastore, and the cluster's settings and host groups.
func addHosts(ctx context.Context, client *vim25.Client, registry *simulator.Registry, cluster *object.ClusterComputeResource, datastoreDir string) ([]types.ManagedObjectReference, error) {
	var hosts []types.ManagedObjectReference
	groups := map[string]*types.ClusterHostGroup{}
	spec := &types.ClusterConfigSpecEx{
		DrsConfig: &types.ClusterDrsConfigInfo{Enabled: types.NewBool(true), DefaultVmBehavior: types.DrsBehaviorFullyAutomated},
		DasConfig: &types.ClusterDasConfigInfo{Enabled: types.NewBool(true)},
	}
	for _, h := range hostSites {
		task, err := cluster.AddHost(ctx, types.HostConnectSpec{HostName: h.host, UserName: "root"}, true, nil, nil)
		ref, err := result(ctx, task, err)
		if err != nil {
			return nil, fmt.Errorf("add host %s: %w", h.host, err)
		}
		hosts = append(hosts, ref)
		datastores, err := object.NewHostSystem(client, ref).ConfigManager().DatastoreSystem(ctx)
		if err != nil {
			return nil, fmt.Errorf("add host %s: %w", h.host, err)
		}
		if _, err := datastores.CreateLocalDatastore(ctx, datastoreName, datastoreDir); err != nil {
			return nil, fmt.Errorf("mount %s on %s: %w", datastoreName, h.host, err)
		}
		// The simulator has no call for a fault domain.
		host := registry.Get(ref).(*simulator.HostSystem)
		host.Config.VsanHostConfig = &types.VsanHostConfigInfo{
			Enabled:         types.NewBool(true),
			FaultDomainInfo: &types.VsanHostFaultDomainInfo{Name: h.site},
		}

		group := groups[h.site]
		if group == nil {
			group = &types.ClusterHostGroup{ClusterGroupInfo: types.ClusterGroupInfo{Name: h.site + "-hosts"}}
			groups[h.site] = group
			spec.GroupSpec = append(spec.GroupSpec, types.ClusterGroupSpec{
				ArrayUpdateSpec: types.ArrayUpdateSpec{Operation: types.ArrayUpdateOperationAdd},
				Info:            group,
			})
		}
		group.Host = append(group.Host, ref)
	}
	for _, store := range registry.All("Datastore") {
		store.(*simulator.Datastore).Summary.Type = string(types.HostFileSystemVolumeFileSystemTypeVsan)
	}
	task, err := cluster.Reconfigure(ctx, spec, true)
	if _, err := result(ctx, task, err); err != nil {
		return nil, fmt.Errorf("configure the cluster: %w", err)
	}
	return hosts, nil
}

// addNetworks makes the switch and its port groups and returns the backing of
// a NIC on the first of them.
func addNetworks(ctx context.Context, client *vim25.Client, registry *simulator.Registry, folder *object.Folder, hosts []types.ManagedObjectReference) (types.BaseVirtualDeviceBackingInfo, error) {
	config := &types.VMwareDVSConfigSpec{}
	config.Name = switchName
	for _, host := range hosts {
		config.Host = append(config.Host, types.DistributedVirtualSwitchHostMemberConfigSpec{
			Operation: string(types.ConfigSpecOperationAdd),
			Host:      host,
		})
	}
	task, err := folder.CreateDVS(ctx, types.DVSCreateSpec{ConfigSpec: config})
	ref, err := result(ctx, task, err)
	if err != nil {
		return nil, fmt.Errorf("make the switch: %w", err)
	}
	dvs := object.NewDistributedVirtualSwitch(client, ref)
	// The simulator ignores the hosts of a switch that is being made.
	task, err = dvs.Reconfigure(ctx, &types.DVSConfigSpec{Host: config.Host})
	if _, err := result(ctx, task, err); err != nil {
		return nil, fmt.Errorf("join the hosts to the switch: %w", err)
	}
	for _, pg := range portGroupVLANs {
		task, err := dvs.AddPortgroup(ctx, []types.DVPortgroupConfigSpec{{
			Name:     pg.name,
			NumPorts: 16,
			Type:     string(types.DistributedVirtualPortgroupPortgroupTypeEarlyBinding),
			DefaultPortConfig: &types.VMwareDVSPortSetting{
				Vlan: &types.VmwareDistributedVirtualSwitchVlanIdSpec{VlanId: pg.vlan},
			},
		}})
		if _, err := result(ctx, task, err); err != nil {
			return nil, fmt.Errorf("make port group %s: %w", pg.name, err)
		}
	}
	for _, pg := range registry.All("DistributedVirtualPortgroup") {
		if pg.Entity().Name == portGroupVLANs[0].name {
			return object.NewDistributedVirtualPortgroup(client, pg.Reference()).EthernetCardBackingInfo(ctx)
		}
	}
	return nil, fmt.Errorf("port group %s was not made", portGroupVLANs[0].name)
}

// addTemplate makes the template: 1 CPU, 1 GiB, a disk of 8 GiB, one NIC.
func addTemplate(ctx context.Context, client *vim25.Client, folder *object.Folder, pool *object.ResourcePool, backing types.BaseVirtualDeviceBackingInfo) error {
	var devices object.VirtualDeviceList
	scsi, err := devices.CreateSCSIController("pvscsi")
	if err != nil {
		return err
	}
	path := fmt.Sprintf("[%s] %s/%[2]s.vmdk", datastoreName, templateName)
	disk := devices.CreateDisk(scsi.(types.BaseVirtualController), types.ManagedObjectReference{}, path)
	disk.CapacityInKB = 8 << 20
	nic, err := devices.CreateEthernetCard("vmxnet3", backing)
	if err != nil {
		return err
	}
	changes, err := object.VirtualDeviceList{scsi, disk, nic}.ConfigSpec(types.VirtualDeviceConfigSpecOperationAdd)
	if err != nil {
		return err
	}
	task, err := folder.CreateVM(ctx, types.VirtualMachineConfigSpec{
		Name:         templateName,
		GuestId:      string(types.VirtualMachineGuestOsIdentifierDebian12_64Guest),
		NumCPUs:      1,
		MemoryMB:     1024,
		Files:        &types.VirtualMachineFileInfo{VmPathName: "[" + datastoreName + "]"},
		DeviceChange: changes,
	}, pool, nil)
	ref, err := result(ctx, task, err)
	if err != nil {
		return fmt.Errorf("make template %s: %w", templateName, err)
	}
	if err := object.NewVirtualMachine(client, ref).MarkAsTemplate(ctx); err != nil {
		return fmt.Errorf("make template %s: %w", templateName, err)
	}
	return nil
}
