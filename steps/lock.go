package steps

import (
	"context"
	"errors"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/kube"
)

// LockTTL is how many seconds a lock outlives a run that ended without giving it back.
const LockTTL = 60

// Run says who wants to hold a deployment's lock.
type Run struct {
	ID      string `json:"id"`      // unique
	Who     string `json:"who"`     // as in "ci@jump1 pid 4121"
	Command string `json:"command"` // as in "ftpdeploy apply"
}

// lockAt says where a deployment's lock is: in the cluster of the first
// ftp_service and in its namespace, so that no right elsewhere is needed; but in
// "default", which every cluster has, where the deployment makes the namespace
// and destroys it. A deployment with servers of others, whose workers come from
// a cluster, has it in that cluster. Nil where nothing is asked of Kubernetes at
// all.
func lockAt(t *blueprints.Topology) (c *blueprints.Cluster, namespace string) {
	const everywhere = "default"
	for _, s := range t.Services {
		if s.Server == "vsftpd" {
			for _, n := range t.Services {
				if n.Server == "vsftpd" && n.Cluster == s.Cluster && n.Namespace == s.Namespace && n.CreateNamespace {
					return s.Cluster, everywhere
				}
			}
			return s.Cluster, s.Namespace
		}
	}
	for _, c := range t.Clusters {
		if c.WorkerSelector != "" {
			return c, everywhere
		}
	}
	return nil, ""
}

// claim is the lock of t as run wants to hold it.
func claim(t *blueprints.Topology, namespace string, run Run) kube.Claim {
	return kube.Claim{
		Namespace: namespace, Name: "ftpdeploy-" + t.ID,
		Labels:  map[string]string{"app.kubernetes.io/managed-by": "ftpdeploy", deploymentLabel: t.ID},
		Seconds: LockTTL, Run: run.ID, Who: run.Who, Command: run.Command,
	}
}

// LockPlace says where the deployment's lock is, for people, as in "Lease
// default/ftpdeploy-lab of cluster tkg"; "" where there is none but on this host.
func (l *Live) LockPlace() string {
	c, namespace := lockAt(l.topology)
	if c == nil {
		return ""
	}
	return claim(l.topology, namespace, Run{}).String() + " of cluster " + c.Name
}

// LockedBy looks who holds the deployment's lock, nil when nobody does. Where
// that may not be looked at, the answer is nil too: the plan then names every
// right that is missing, and nothing is changed before Lock has got the lock.
func (l *Live) LockedBy(ctx context.Context) (*kube.Tenant, error) {
	c, namespace := lockAt(l.topology)
	if c == nil {
		return nil, nil
	}
	client, err := l.cluster(ctx, c)
	if err != nil {
		return nil, err
	}
	tenant, err := client.Tenant(ctx, claim(l.topology, namespace, Run{}))
	if errors.Is(err, kube.ErrForbidden) {
		return nil, nil
	}
	return tenant, err
}

// Lock makes the deployment's lock run's own, or returns a *kube.HeldError. A
// lock that has expired, or whose run is dead, is taken over: from whom is the
// second result. The first is nil where the deployment has no lock in a cluster.
func (l *Live) Lock(ctx context.Context, run Run, dead func(id string) bool) (*kube.Lease, *kube.Tenant, error) {
	c, namespace := lockAt(l.topology)
	if c == nil {
		return nil, nil, nil
	}
	client, err := l.cluster(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	wanted := claim(l.topology, namespace, run)
	lease, from, err := client.Acquire(ctx, wanted, dead)
	if errors.Is(err, kube.ErrForbidden) {
		if lacking := client.Check(ctx, wanted.Rights()); lacking != nil {
			return nil, nil, lacking
		}
	}
	return lease, from, err
}

// lockRights are the rights to the deployment's lock, where it is in the cluster
// of this step's service and this is the first service in it.
func (k *kubernetes) lockRights() []kube.Right {
	c, namespace := lockAt(k.topology)
	for _, s := range k.topology.Services {
		if s.Server == "vsftpd" && s.Cluster == c {
			if s != k.service {
				return nil
			}
			return claim(k.topology, namespace, Run{}).Rights()
		}
	}
	return nil
}
