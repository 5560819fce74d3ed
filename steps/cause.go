package steps

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/kube"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/vsphere"
)

// asked is the cause of a change that the values at some addresses of the
// blueprint lead to.
func asked(t *blueprints.Topology, addresses ...string) plan.Cause {
	c := plan.Cause{Kind: plan.ByBlueprint}
	for _, a := range addresses {
		if slices.ContainsFunc(c.Source, func(s plan.Source) bool { return s.Address == a }) {
			continue
		}
		r := t.Source(a)
		c.Source = append(c.Source, plan.Source{
			Address: a, File: r.Filename,
			Start: plan.Position{Line: r.Start.Line, Col: r.Start.Column, Byte: r.Start.Byte},
			End:   plan.Position{Line: r.End.Line, Col: r.End.Column, Byte: r.End.Byte},
		})
	}
	return c
}

// drifted is the cause of a change that puts right what others did; by is "" and
// at is zero where nobody knows.
func drifted(by string, at time.Time) plan.Cause {
	return plan.Cause{Kind: plan.ByDrift, By: by, At: at}
}

// edited is the cause where a file was written by others, as far as its owner tells.
func edited(s remote.FileState) plan.Cause {
	return plan.Cause{Kind: plan.ByDrift, By: s.Owner, How: "the file's owner and time", At: s.Modified.UTC()}
}

// acted is the cause where somebody did something to a VM, as far as vCenter's
// events tell; at is when the VM itself says that it was changed.
func (m *machine) acted(ctx context.Context, vm *vsphere.VM, events []string, at time.Time) plan.Cause {
	cause := drifted("", at)
	c, err := m.client(ctx)
	if err != nil {
		return cause
	}
	last, err := c.Last(ctx, vm, events)
	if err != nil || last.What == "" { // the plan is the same without it
		return cause
	}
	return plan.Cause{Kind: plan.ByDrift, By: last.Who, How: "vCenter's " + last.What, At: last.When}
}

// destroyed is the cause of all that goes because the deployment does.
func destroyed(t *blueprints.Topology) plan.Cause { return asked(t, "deployment."+t.ID) }

// vmSources are the attributes of a box, or of what it names, that the fields of
// its VM come from.
func vmSources(b *blueprints.Box, fields []plan.Field) []string {
	box := "lb." + b.Name
	var all []string
	for _, f := range fields {
		from := box
		switch f.Path {
		case "cpus":
			from += ".cpus"
		case "memory_mb":
			from += ".memory"
		case "disk_gb":
			from += ".disk"
		}
		if rest, ok := strings.CutPrefix(f.Path, "nic."); ok {
			role, what, _ := strings.Cut(rest, ".")
			if i := slices.IndexFunc(b.NICs, func(n blueprints.NIC) bool { return n.Role == role }); i >= 0 {
				from = box + ".nic." + role
				if what == "port_group" {
					from = "network." + b.NICs[i].Network.Name + ".port_group"
				}
			}
		}
		all = append(all, from)
	}
	return all
}

// objectSources are the attributes that the fields of Kubernetes objects come
// from: the first entry whose kind is the object's and whose part is in the
// field's path. SERVICE, VIP, USER and VOLUME stand for the service's.
var objectSources = []struct{ kind, part, from string }{
	{"", "PASV_ADDRESS", "VIP.address"},
	{"", "PASV_M", "SERVICE.passive.ports"},
	{"", "PASV_PROMISCUOUS", "SERVICE.passive.same_source_ip"},
	{"", "MAX_CLIENTS", "SERVICE.max_clients"},
	{"", "MAX_PER_IP", "SERVICE.max_per_ip"},
	{"", "IDLE_SESSION_TIMEOUT", "SERVICE.idle_session"},
	{"", "DATA_CONNECTION_TIMEOUT", "SERVICE.data_connection"},
	{"", "BANNER", "SERVICE.banner"},
	{"Deployment", ".imagePullPolicy", "SERVICE.pull_policy"},
	{"Deployment", ".image", "SERVICE.image"},
	{"Deployment", "spec.replicas", "SERVICE.replicas"},
	{"Deployment", ".nodeSelector", "SERVICE.node_selector"},
	{"Deployment", ".tolerations", "SERVICE.tolerations"},
	{"Deployment", ".resources", "SERVICE.resources"},
	{"Deployment", secretChecksum, "USER.password"},
	{"Deployment", ".projected.sources", "SERVICE.tls"},
	{"Deployment", settingsVolume, "SERVICE.live_settings"},
	{"Secret", "[" + certificateFile + "]", "SERVICE.tls.certificate"},
	{"Secret", "[" + keyFile + "]", "SERVICE.tls.private_key"},
	{"Secret", tlsForced, "SERVICE.tls.required"},
	{"Secret", tlsLeast, "SERVICE.tls.min_version"},
	{"Secret", tlsMost, "SERVICE.tls.max_version"},
	{"Secret", tlsRevision, "SERVICE.tls"},
	{"Secret", "data", "USER.password"},
	{"Secret", "", "USER"},
	{"PersistentVolumeClaim", "storageClassName", "VOLUME.storage_class"},
	{"PersistentVolumeClaim", ".storage", "VOLUME.size"},
	{"PersistentVolumeClaim", "accessModes", "VOLUME.access_mode"},
	{"PersistentVolumeClaim", keepAnnotation, "VOLUME.keep"},
	{"PersistentVolumeClaim", "", "VOLUME"},
	{"Service", `[port=CONTROL,protocol="TCP"].nodePort`, "SERVICE.control.node_port"},
	{"Service", "[port=CONTROL,", "SERVICE.control"},
	{"Service", "].nodePort", "SERVICE.passive.node_port_first"},
	{"Service", "spec.ports", "SERVICE.passive.ports"},
	{"", "metadata.labels", "deployment.ID.labels"},
	{"", "", "SERVICE"},
}

// source is the attribute that a field of one of the service's objects comes
// from; with path "" it is the block that the object comes from.
func (k *kubernetes) source(object kube.Ref, path string) string {
	s := k.service
	service := "ftp_service." + s.Name
	names := []string{"SERVICE", service, "VIP", "vip." + s.VIP.Name, "USER", service + ".user." + s.Users[0].Name, "ID", k.topology.ID}
	for _, v := range s.Volumes {
		if object.Name == k.claimName(v) {
			names = append(names, "VOLUME", service+".volume."+v.Name)
		}
	}
	if path == "" && k.isTLS(object) {
		return service + ".tls"
	}
	control := strings.NewReplacer("CONTROL", strconv.Itoa(s.ControlPort))
	for _, o := range objectSources {
		if (o.kind == "" || o.kind == object.Kind) && strings.Contains(path, control.Replace(o.part)) && (path != "" || o.part == "") {
			return strings.NewReplacer(names...).Replace(o.from)
		}
	}
	return service
}

// cause says where the differences of an object come from: the blueprint or what is
// gone back to, unless others wrote everything that differs.
func (k *kubernetes) cause(object kube.Ref, deltas []kube.Delta) plan.Cause {
	var from []string
	last := plan.Cause{Kind: plan.ByDrift, How: "field manager"}
	for _, d := range deltas {
		switch {
		case d.Manager == "":
			from = append(from, k.source(object, d.Path))
		case !d.Time.Before(last.At):
			last.By, last.At = d.Manager, d.Time.UTC()
		}
	}
	switch {
	case from == nil:
		return last
	case k.past && objectGoesBack(object.Kind):
		return plan.Cause{Kind: plan.ByRollback}
	}
	return asked(k.topology, from...)
}
