package steps

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/kube"
)

func TestLockAt(t *testing.T) {
	a, b := &blueprints.Cluster{Name: "a"}, &blueprints.Cluster{Name: "b", WorkerSelector: "ftp=yes"}
	service := func(server string, c *blueprints.Cluster, namespace string, makes bool) *blueprints.Service {
		return &blueprints.Service{Name: namespace, Server: server, Cluster: c, Namespace: namespace, CreateNamespace: makes}
	}
	clusters := []*blueprints.Cluster{a, b}
	for _, tt := range []struct {
		name      string
		clusters  []*blueprints.Cluster
		services  []*blueprints.Service
		cluster   *blueprints.Cluster
		namespace string
	}{
		{"a namespace that is there", clusters, []*blueprints.Service{service("vsftpd", a, "ftp", false)}, a, "ftp"},
		{"a namespace that goes with destroy", clusters, []*blueprints.Service{service("vsftpd", a, "ftp", true)}, a, "default"},
		{"made for another service", clusters, []*blueprints.Service{service("vsftpd", a, "ftp", false), service("vsftpd", a, "ftp", true)}, a, "default"},
		{"the first of ours", clusters, []*blueprints.Service{service("external", a, "", false), service("vsftpd", b, "x", false)}, b, "x"},
		{"only nodes are asked for", clusters, []*blueprints.Service{service("external", a, "", false)}, b, "default"},
		{"nothing is asked for", clusters[:1], []*blueprints.Service{service("external", a, "", false)}, nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, namespace := lockAt(&blueprints.Topology{ID: "lab", Clusters: tt.clusters, Services: tt.services})
			if c != tt.cluster || namespace != tt.namespace {
				t.Errorf("%+v, %q", c, namespace)
			}
		})
	}
}

// Exactly one step asks for the rights to the lock.
func TestLockRights(t *testing.T) {
	topology, first := ftpTopology()
	second := *first
	second.Name, second.Namespace = "second", "other"
	topology.Services = append(topology.Services, &second)
	wants := kube.Right{Verb: "update", Group: "coordination.k8s.io", Resource: "leases", Namespace: "default"}
	for _, s := range topology.Services {
		k := &kubernetes{workload: workload{topology, s}}
		if got := slices.Contains(k.rights(false), wants); got != (s == first) {
			t.Errorf("service %s asks for the right to the lock: %t", s.Name, got)
		}
	}
}

// testLock is the life of a deployment's lock, and what an account without the
// right to it is told.
func testLock(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	live := func(kubeconfig string) *Live {
		return Open(f.deploy, Options{Kubeconfig: kubeconfig, Version: "test", Env: func(string) (string, bool) { return "", false }})
	}
	alive := func(string) bool { return false }
	run := Run{ID: "1", Who: "ci@jump pid 1", Command: "ftpdeploy apply"}

	poor := live(f.server.User("locked-out"))
	if tenant, err := poor.LockedBy(t.Context()); tenant != nil || err != nil { // Plan and Lock say more
		t.Errorf("%+v, %v", tenant, err)
	}
	_, _, err := poor.Lock(t.Context(), run, alive)
	if lacks, ok := errors.AsType[*kube.RightsError](err); !ok || len(lacks.Missing) != 4 || !strings.Contains(err.Error(), "leases.coordination.k8s.io in namespace default") {
		t.Errorf("an account without rights is told: %v", err)
	}

	l := live(f.server.Kubeconfig)
	if want := "Lease default/ftpdeploy-lab of cluster tkg"; l.LockPlace() != want {
		t.Errorf("place %q, want %q", l.LockPlace(), want)
	}
	if tenant, err := l.LockedBy(t.Context()); tenant != nil || err != nil {
		t.Fatalf("%+v, %v", tenant, err)
	}
	lease, from, err := l.Lock(t.Context(), run, alive)
	if err != nil || from != nil {
		t.Fatal(from, err)
	}
	if tenant, err := l.LockedBy(t.Context()); err != nil || tenant == nil || tenant.Who != run.Who || tenant.Command != run.Command {
		t.Errorf("%+v, %v", tenant, err)
	}
	object, err := f.api.CoordinationV1().Leases("default").Get(t.Context(), "ftpdeploy-lab", metav1.GetOptions{})
	if err != nil || object.Labels["app.kubernetes.io/managed-by"] != "ftpdeploy" || object.Labels[deploymentLabel] != "lab" || *object.Spec.LeaseDurationSeconds != LockTTL {
		t.Errorf("%+v, %v", object, err)
	}
	_, _, err = l.Lock(t.Context(), Run{ID: "2", Who: "other"}, alive)
	if _, held := errors.AsType[*kube.HeldError](err); !held {
		t.Errorf("the second run gets %v", err)
	}
	if err := lease.Release(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	left, err := f.api.CoordinationV1().Leases("default").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(left.Items) > 0 {
		t.Errorf("left: %v, %v", left.Items, err)
	}
}
