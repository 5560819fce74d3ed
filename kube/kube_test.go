package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/ftpdeploy/ftpdeploy/kube/kubetest"
)

// TestAPI is everything that is tested against one real API server.
func TestAPI(t *testing.T) {
	server := kubetest.Start(t)
	c, err := Connect(Config{Kubeconfig: server.Kubeconfig, UserAgent: "ftpdeploy-test"})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]func(*testing.T, *Client, *kubetest.Server){
		"apply":          testApply,
		"before":         testBefore,
		"passing faults": testPassingFaults,
		"secret":         testSecret,
		"strategy":       testStrategy,
		"conflict":       testConflict,
		"strict":         testStrict,
		"warnings":       testWarnings,
		"delete":         testDelete,
		"list":           testList,
		"node ports":     testNodePorts,
		"nodes":          testNodes,
		"classes":        testStorageClasses,
		"rights":         testRights,
		"version":        testVersion,
		"rollout":        testRollout,
		"survey":         testSurvey,

		"lease":           testLease,
		"lease expires":   testLeaseExpires,
		"lease, dead run": testLeaseOfTheDead,
		"lease race":      testLeaseRace,
		"lease lost":      testLeaseLost,
		"lease, foreign":  testLeaseForeign,
		"lease refused":   testLeaseRefused,
	} {
		t.Run(name, func(t *testing.T) { test(t, c, server) })
	}
	t.Run("lease outage", func(t *testing.T) { testLeaseOutage(t, c, server) })
	t.Run("outage", func(t *testing.T) { testOutage(t, c, server) }) // last, and alone
}

// namespace makes one for a test, with the Pod Security level that vsftpd needs.
func namespace(t *testing.T, c *Client) string {
	t.Helper()
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(t.Name()))
	apply(t, c, Object{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{
		"name": name, "labels": map[string]any{"pod-security.kubernetes.io/enforce": "baseline"},
	}})
	return name
}

func apply(t *testing.T, c *Client, o Object) *Live {
	t.Helper()
	live, err := c.Apply(t.Context(), o, true)
	if err != nil {
		t.Fatal(err)
	}
	return live
}

func preview(t *testing.T, c *Client, o Object) *Preview {
	t.Helper()
	live, err := c.Find(t.Context(), o.Ref())
	if err != nil && !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	p, err := c.Preview(t.Context(), live, o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// edit changes an object as kubectl edit would.
func edit(t *testing.T, c *Client, r Ref, patch string) {
	t.Helper()
	_, err := c.objects.Resource(kinds[r.Kind]).Namespace(r.Namespace).
		Patch(t.Context(), r.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{FieldManager: "kubectl-edit"})
	if err != nil {
		t.Fatal(err)
	}
}

func service(namespace, name string, ports map[int]int) Object {
	var list []any
	for _, port := range slices.Sorted(maps.Keys(ports)) {
		list = append(list, map[string]any{"name": fmt.Sprintf("p%d", port), "protocol": "TCP", "port": port, "targetPort": port, "nodePort": ports[port]})
	}
	return Object{
		"apiVersion": "v1", "kind": "Service",
		"metadata": map[string]any{"namespace": namespace, "name": name, "labels": map[string]any{"app.kubernetes.io/name": "x"}},
		"spec":     map[string]any{"type": "NodePort", "selector": map[string]any{"app": name}, "ports": list},
	}
}

func deployment(namespace, name, image string) Object {
	labels := map[string]any{"app": name}
	return Object{
		"apiVersion": "apps/v1", "kind": "Deployment",
		"metadata": map[string]any{"namespace": namespace, "name": name},
		"spec": map[string]any{
			"replicas": 1, "selector": map[string]any{"matchLabels": labels},
			"strategy": map[string]any{"type": "Recreate"},
			"template": map[string]any{
				"metadata": map[string]any{"labels": labels},
				"spec": map[string]any{"containers": []any{map[string]any{
					"name": "main", "image": image, "env": []any{map[string]any{"name": "A", "value": "1"}, map[string]any{"name": "B", "value": "2"}},
				}}},
			},
		},
	}
}

// texts are deltas as "path: before -> after", without the author.
func texts(deltas []Delta) []string {
	var all []string
	for _, d := range deltas {
		all = append(all, fmt.Sprintf("%s: %s -> %s", d.Path, d.Before, d.After))
	}
	return all
}

func wantDeltas(t *testing.T, p *Preview, want ...string) {
	t.Helper()
	if got := texts(p.Deltas); !slices.Equal(got, want) {
		t.Errorf("deltas:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func testApply(t *testing.T, c *Client, _ *kubetest.Server) {
	ns := namespace(t, c)
	o := service(ns, "a", map[int]int{21: 30021, 21100: 32100})
	p := preview(t, c, o)
	if p.Live != nil {
		t.Fatal("a preview made the object")
	}
	if len(p.Deltas) == 0 {
		t.Fatal("the preview of a new object is empty")
	}
	if _, err := c.Find(t.Context(), o.Ref()); !errors.Is(err, ErrNotFound) {
		t.Fatalf("after a preview: %v, want ErrNotFound", err)
	}
	first := apply(t, c, o)
	if second := apply(t, c, o); second.ResourceVersion != first.ResourceVersion {
		t.Error("the same apply wrote again")
	}
	wantDeltas(t, preview(t, c, o)) // none: what the server defaulted does not show

	// drift by hand, each named and only that
	edit(t, c, o.Ref(), `{"metadata":{"labels":{"app.kubernetes.io/name":null,"theirs":"1"}},
		"spec":{"externalTrafficPolicy":"Local","ports":[{"port":21100,"nodePort":32105}]}}`)
	p = preview(t, c, o)
	wantDeltas(t, p, "metadata.labels[app.kubernetes.io/name]:  -> x", `spec.ports[port=21100,protocol="TCP"].nodePort: 32105 -> 32100`)
	if d := p.Deltas[1]; d.Manager != "kubectl-edit" || time.Since(d.Time) > time.Minute {
		t.Errorf("author %q, want kubectl-edit just now", d.Author())
	}
	apply(t, c, o)
	wantDeltas(t, preview(t, c, o))

	// a whole port removed by hand, another one moved in the blueprint
	edit(t, c, o.Ref(), `{"spec":{"ports":[{"port":21100,"$patch":"delete"}]}}`)
	changed := service(ns, "a", map[int]int{21: 30022, 21100: 32100})
	wantDeltas(t, preview(t, c, changed),
		`spec.ports[port=21,protocol="TCP"].nodePort: 30021 -> 30022`,
		`spec.ports[port=21100,protocol="TCP"]:  -> {"name":"p21100","nodePort":32100,"port":21100,"protocol":"TCP","targetPort":21100}`)
	apply(t, c, changed)

	// a port that is not wanted any more
	fewer := service(ns, "a", map[int]int{21: 30022})
	wantDeltas(t, preview(t, c, fewer),
		`spec.ports[port=21100,protocol="TCP"]: {"name":"p21100","nodePort":32100,"port":21100,"protocol":"TCP","targetPort":21100} -> `)
	apply(t, c, fewer)
	wantDeltas(t, preview(t, c, fewer))
}

// What an apply changes or takes away can be put back.
func testBefore(t *testing.T, c *Client, _ *kubetest.Server) {
	ns := namespace(t, c)
	was := service(ns, "a", map[int]int{21: 30061, 22: 30062})
	if p := preview(t, c, was); p.Before() != nil || p.Fingerprint() != "" {
		t.Errorf("of nothing: %v, %q", p.Before(), p.Fingerprint())
	}
	apply(t, c, was)
	edit(t, c, was.Ref(), `{"spec":{"ports":[{"port":21,"nodePort":30063}]}}`)
	wanted := service(ns, "a", map[int]int{21: 30064})
	p := preview(t, c, wanted)
	if again := preview(t, c, wanted); p.Fingerprint() != again.Fingerprint() || p.Fingerprint() == "" {
		t.Errorf("fingerprints %q and %q", p.Fingerprint(), again.Fingerprint())
	}
	apply(t, c, wanted)
	if after := preview(t, c, was); after.Fingerprint() == p.Fingerprint() {
		t.Error("the fingerprint does not see the change")
	}
	apply(t, c, p.Before())
	wantDeltas(t, preview(t, c, service(ns, "a", map[int]int{21: 30063, 22: 30062})))
}

func testSecret(t *testing.T, c *Client, _ *kubetest.Server) {
	ns := namespace(t, c)
	o := Object{
		"apiVersion": "v1", "kind": "Secret", "metadata": map[string]any{"namespace": ns, "name": "s"},
		"type": "Opaque", "data": map[string]any{"PASS": "Y2FuYXJ5"},
	}
	wantDeltas(t, preview(t, c, o), "data.PASS:  -> (sensitive)", "type:  -> Opaque")
	apply(t, c, o)
	edit(t, c, o.Ref(), `{"data":{"PASS":"ZHJpZnRlZA=="}}`)
	p := preview(t, c, o)
	wantDeltas(t, p, "data.PASS: (sensitive) -> (sensitive)")
	_, err := c.Apply(t.Context(), o, false)
	if err == nil {
		t.Fatal("no conflict with kubectl-edit")
	}
	for _, text := range []string{err.Error(), fmt.Sprintf("%+v", p.Deltas)} {
		if strings.Contains(text, "Y2FuYXJ5") || strings.Contains(text, "ZHJpZnRlZA") {
			t.Errorf("a secret shows in %s", text)
		}
	}
}

// A Deployment whose strategy was set to RollingUpdate has defaulted parameters
// that Recreate forbids and that server-side apply alone cannot clear.
func testStrategy(t *testing.T, c *Client, _ *kubetest.Server) {
	ns := namespace(t, c)
	o := deployment(ns, "a", "x:1")
	apply(t, c, o)
	wantDeltas(t, preview(t, c, o))
	edit(t, c, o.Ref(), `{"spec":{"strategy":{"type":"RollingUpdate"},"template":{"spec":{"containers":[{"name":"main","image":"y:1"}]}}}}`)
	p := preview(t, c, o)
	wantDeltas(t, p, `spec.template.spec.containers[name="main"].image: y:1 -> x:1`, "spec.strategy.type: RollingUpdate -> Recreate")
	if p.Deltas[1].Manager != "kubectl-edit" {
		t.Errorf("author %q", p.Deltas[1].Author())
	}
	apply(t, c, o)
	wantDeltas(t, preview(t, c, o))
}

func testConflict(t *testing.T, c *Client, _ *kubetest.Server) {
	ns := namespace(t, c)
	o := deployment(ns, "a", "x:1")
	apply(t, c, o)
	edit(t, c, o.Ref(), `{"spec":{"replicas":3}}`)
	_, err := c.Apply(t.Context(), o, false)
	conflict, ok := errors.AsType[*ConflictError](err)
	if !ok {
		t.Fatalf("%v, want a *ConflictError", err)
	}
	if len(conflict.Fields) != 1 || conflict.Fields[0].Path != "spec.replicas" || conflict.Fields[0].Before != "3" || conflict.Fields[0].After != "1" || conflict.Fields[0].Manager != "kubectl-edit" {
		t.Errorf("conflict %+v", conflict.Fields)
	}
	for _, want := range []string{"kubectl-edit", "spec.replicas is 3", "wanted 1", "either", "force"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q lacks %q", err, want)
		}
	}
	if live, err := c.Find(t.Context(), o.Ref()); err != nil || fmt.Sprint(live.content["spec"].(map[string]any)["replicas"]) != "3" {
		t.Errorf("the conflict changed the object (%v)", err)
	}
}

func testStrict(t *testing.T, c *Client, _ *kubetest.Server) {
	ns := namespace(t, c)
	o := service(ns, "a", map[int]int{21: 30031})
	o["spec"].(map[string]any)["selectr"] = map[string]any{}
	if _, err := c.Preview(t.Context(), nil, o); err == nil || !strings.Contains(err.Error(), "selectr") {
		t.Errorf("a misspelt field gives %v", err)
	}
	if _, err := c.Preview(t.Context(), nil, service("nowhere", "a", map[int]int{21: 30031})); !errors.Is(err, ErrNotFound) {
		t.Errorf("a namespace that is not there gives %v", err)
	}
}

func testWarnings(t *testing.T, c *Client, _ *kubetest.Server) {
	p := preview(t, c, deployment(namespace(t, c), "a", "x:1"))
	if len(p.Warnings) != 1 || !strings.Contains(p.Warnings[0], "PodSecurity") {
		t.Errorf("warnings %q, want one of Pod Security", p.Warnings)
	}
}

func testDelete(t *testing.T, c *Client, _ *kubetest.Server) {
	ns := namespace(t, c)
	o := service(ns, "a", map[int]int{21: 30041})
	old := apply(t, c, o)
	if err := c.Delete(t.Context(), old, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(t.Context(), old, nil); err != nil {
		t.Errorf("deleting what is gone: %v", err)
	}
	again := apply(t, c, o)
	if err := c.Delete(t.Context(), old, nil); err == nil {
		t.Error("an object that was made since was taken for the old one")
	}
	if live, err := c.Find(t.Context(), o.Ref()); err != nil || live.UID != again.UID {
		t.Errorf("the new object is not there any more: %v", err)
	}

	// what a finalizer keeps
	kept := Object{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"namespace": ns, "name": "kept", "finalizers": []any{"example.org/keep"}}}
	live := apply(t, c, kept)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	said := make(chan string, 100)
	ended := make(chan error, 1)
	go func() { ended <- c.Delete(ctx, live, func(s string) { said <- s }) }()
	if s := <-said; !strings.Contains(s, "example.org/keep") {
		t.Errorf("waits for %q, want the finalizer", s)
	}
	edit(t, c, kept.Ref(), `{"metadata":{"finalizers":null}}`)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func testList(t *testing.T, c *Client, _ *kubetest.Server) {
	ns := namespace(t, c)
	for _, name := range []string{"a", "b"} {
		apply(t, c, Object{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"namespace": ns, "name": name, "labels": map[string]any{"which": name}}})
	}
	found, err := c.List(t.Context(), "ConfigMap", ns, map[string]string{"which": "b"})
	if err != nil || len(found) != 1 || found[0].Ref != (Ref{"ConfigMap", ns, "b"}) || found[0].UID == "" {
		t.Errorf("found %v, %v", found, err)
	}
	if found, err := c.List(t.Context(), "ConfigMap", "nowhere", nil); err != nil || len(found) != 0 {
		t.Errorf("in no namespace: %v, %v", found, err)
	}
}

func testNodePorts(t *testing.T, c *Client, _ *kubetest.Server) {
	ns := namespace(t, c)
	apply(t, c, service(ns, "holder", map[int]int{21: 30051, 22: 30052}))
	held, err := c.NodePorts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("Service %s/holder (since %s)", ns, time.Now().UTC().Format(time.DateOnly))
	if held[30052].String() != want {
		t.Errorf("30052 is held by %s, want %s", held[30052], want)
	}
	if h, ok := held[30053]; ok {
		t.Errorf("30053 is held by %s", h)
	}
}

func testNodes(t *testing.T, c *Client, _ *kubetest.Server) {
	node := func(name, address string, ready string) {
		t.Helper()
		body := fmt.Sprintf(`{"metadata":{"name":%q,"labels":{"worker":"yes"}}}`, name)
		if err := c.set.CoreV1().RESTClient().Post().Resource("nodes").Body([]byte(body)).Do(t.Context()).Error(); err != nil {
			t.Fatal(err)
		}
		status := fmt.Sprintf(`{"status":{"addresses":[{"type":"Hostname","address":"x"},{"type":"InternalIP","address":%q}],"conditions":[{"type":"Ready","status":%q}]}}`, address, ready)
		if _, err := c.set.CoreV1().Nodes().Patch(t.Context(), name, types.StrategicMergePatchType, []byte(status), metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
	}
	node("worker-2", "198.51.100.22", "True")
	node("worker-1", "198.51.100.21", "False")
	nodes, err := c.Nodes(t.Context(), "worker=yes", "InternalIP")
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(nodes)
	// the oldest first; within the same second by name
	if got != "[{worker-2 198.51.100.22 true} {worker-1 198.51.100.21 false}]" && got != "[{worker-1 198.51.100.21 false} {worker-2 198.51.100.22 true}]" {
		t.Error(got)
	}
	if nodes, err := c.Nodes(t.Context(), "worker=no", "InternalIP"); err != nil || len(nodes) != 0 {
		t.Errorf("%v, %v", nodes, err)
	}
	if _, err := c.Nodes(t.Context(), "worker=yes", "ExternalIP"); err == nil || !strings.Contains(err.Error(), "no address of type ExternalIP") {
		t.Errorf("%v", err)
	}
}

func testStorageClasses(t *testing.T, c *Client, _ *kubetest.Server) {
	for _, body := range []string{
		`{"metadata":{"name":"gold"},"provisioner":"x"}`,
		`{"metadata":{"name":"base","annotations":{"storageclass.kubernetes.io/is-default-class":"true"}},"provisioner":"x"}`,
	} {
		if err := c.set.StorageV1().RESTClient().Post().Resource("storageclasses").Body([]byte(body)).Do(t.Context()).Error(); err != nil {
			t.Fatal(err)
		}
	}
	classes, err := c.StorageClasses(t.Context())
	if err != nil || !slices.Equal(classes, []StorageClass{{"base", true}, {"gold", false}}) {
		t.Errorf("%v, %v", classes, err)
	}
}

func testRights(t *testing.T, c *Client, server *kubetest.Server) {
	poor, err := Connect(Config{Kubeconfig: server.User("poor")})
	if err != nil {
		t.Fatal(err)
	}
	rights := []Right{{"get", "", "secrets", "ftp"}, {"patch", "apps", "deployments", "ftp"}, {"get", "apps", "deployments", "ftp"}, {"list", "", "services", ""}, {"get", "", "pods/log", "ftp"}}
	if err := c.Check(t.Context(), rights); err != nil {
		t.Errorf("the administrator: %v", err)
	}
	err = poor.Check(t.Context(), rights)
	lacks, ok := errors.AsType[*RightsError](err)
	if !ok || !slices.Equal(lacks.Missing, rights) {
		t.Fatalf("missing: %v", err)
	}
	const roles = `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: ftpdeploy}
rules:
- {apiGroups: [""], resources: ["services"], verbs: [list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: ftpdeploy, namespace: ftp}
rules:
- {apiGroups: [""], resources: ["pods/log"], verbs: [get]}
- {apiGroups: [""], resources: ["secrets"], verbs: [get]}
- {apiGroups: ["apps"], resources: ["deployments"], verbs: [get, patch]}
`
	if got := lacks.Roles(); got != roles {
		t.Errorf("roles:\n%s\nwant:\n%s", got, roles)
	}
	if _, err := poor.Find(t.Context(), Ref{"Secret", "ftp", "x"}); !errors.Is(err, ErrForbidden) {
		t.Errorf("%v, want ErrForbidden", err)
	}
}

func testVersion(t *testing.T, c *Client, _ *kubetest.Server) {
	if v, err := c.Version(t.Context()); err != nil || !strings.HasPrefix(v, "v1.") {
		t.Errorf("%q, %v", v, err)
	}
}

// The server goes away and comes back: a read made meanwhile succeeds, one while
// it stays away says where it wanted to go, and a wrong client is turned away.
func testOutage(t *testing.T, c *Client, server *kubetest.Server) {
	server.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := c.StorageClasses(ctx); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("while it is away: %v", err)
	}
	result := make(chan error, 1)
	go func() {
		_, err := c.StorageClasses(t.Context())
		result <- err
	}()
	server.Restart()
	if err := <-result; err != nil {
		t.Errorf("over a restart: %v", err)
	}
}

// kubeconfig makes one for a URL, with two contexts and a token.
func kubeconfig(t *testing.T, url string) string {
	t.Helper()
	config := map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "one",
		"clusters": []any{map[string]any{"name": "c", "cluster": map[string]any{"server": url, "insecure-skip-tls-verify": true}}},
		"users":    []any{map[string]any{"name": "u", "user": map[string]any{"token": "canary"}}},
		"contexts": []any{
			map[string]any{"name": "one", "context": map[string]any{"cluster": "c", "user": "u"}},
			map[string]any{"name": "two", "context": map[string]any{"cluster": "c", "user": "u"}},
		},
	}
	b, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConnect(t *testing.T) {
	path := kubeconfig(t, "https://192.0.2.1:6443")
	c, err := Connect(Config{Kubeconfig: filepath.Join(t.TempDir(), "none") + ":" + path})
	if err != nil || c.Context() != "one" || c.Server() != "https://192.0.2.1:6443" {
		t.Errorf("of a list: %v, %v", c, err)
	}
	if c, err = Connect(Config{Kubeconfig: path, Context: "two"}); err != nil || c.Context() != "two" {
		t.Errorf("with a context: %v", err)
	}
	if _, err = Connect(Config{Kubeconfig: path, Context: "three"}); err == nil || !strings.Contains(err.Error(), `no context "three"`) || !strings.Contains(err.Error(), "one, two") {
		t.Errorf("with a wrong context: %v", err)
	}
	if _, err = Connect(Config{Kubeconfig: "/nonexistent/kubeconfig"}); err == nil || !strings.Contains(err.Error(), "/nonexistent/kubeconfig") {
		t.Errorf("without a file: %v", err)
	}
}

// A server that cannot prove who it is gets no token and no try more.
func TestUntrusted(t *testing.T) {
	var asked atomic.Int32
	server := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	t.Cleanup(server.Close)
	path := kubeconfig(t, server.URL)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(b), `"insecure-skip-tls-verify":true`, `"insecure-skip-tls-verify":false`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Connect(Config{Kubeconfig: path})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Version(t.Context())
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "certificate") || asked.Load() != 0 {
		t.Errorf("%v after %d requests", err, asked.Load())
	}
}

func TestUnreachable(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	var dials atomic.Int32
	c, err := Connect(Config{Kubeconfig: kubeconfig(t, "https://"+address), Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials.Add(1)
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.StorageClasses(t.Context())
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), address) {
		t.Errorf("%v, want ErrUnreachable at %s", err, address)
	}
	if n := dials.Load(); n < 3 || n > 20 {
		t.Errorf("%d tries through Dial", n)
	}
}

// answering is a server that gives each request the next status, and 200 then.
func answering(t *testing.T, statuses ...int) (*Client, *atomic.Int32) {
	t.Helper()
	var asked atomic.Int32
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n := int(asked.Add(1))
		w.Header().Set("Content-Type", "application/json")
		if n > len(statuses) {
			fmt.Fprint(w, `{"kind":"StorageClassList","apiVersion":"storage.k8s.io/v1","items":[]}`)
			return
		}
		w.WriteHeader(statuses[n-1])
		fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"code":%d}`,
			map[int]string{401: "Unauthorized", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}[statuses[n-1]], statuses[n-1])
	}))
	t.Cleanup(server.Close)
	c, err := Connect(Config{Kubeconfig: kubeconfig(t, server.URL)})
	if err != nil {
		t.Fatal(err)
	}
	return c, &asked
}

func TestRetry(t *testing.T) {
	c, asked := answering(t, 429, 503, 500)
	if _, err := c.StorageClasses(t.Context()); err != nil || asked.Load() != 4 {
		t.Errorf("%v after %d calls, want success after 4", err, asked.Load())
	}
	c, asked = answering(t, 503)
	// It names the UID, so a second one finds the same object or none.
	if err := c.Delete(t.Context(), &Live{Ref: Ref{"Secret", "ftp", "s"}, UID: "u"}, nil); err != nil || asked.Load() != 3 {
		t.Errorf("a delete: %v after %d calls, want success after 2 and a look whether it is gone", err, asked.Load())
	}
	c, asked = answering(t, 401)
	_, err := c.StorageClasses(t.Context())
	if !errors.Is(err, ErrAuth) || asked.Load() != 1 {
		t.Errorf("%v after %d calls, want ErrAuth after 1", err, asked.Load())
	}
	if strings.Contains(err.Error(), "canary") {
		t.Errorf("the token shows in %q", err)
	}
}

// A server in front of the API server's fails in every way that passes by itself,
// in front of a read and of an apply.
func testPassingFaults(t *testing.T, _ *Client, server *kubetest.Server) {
	target, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := Connect(Config{Kubeconfig: server.Kubeconfig})
	if err != nil {
		t.Fatal(err)
	}
	honest := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport: raw.set.CoreV1().RESTClient().(*rest.RESTClient).Client.Transport,
	}
	status := func(code int, reason string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "application/json")
			if code == http.StatusTooManyRequests {
				w.Header().Set("Retry-After", "1")
			}
			w.WriteHeader(code)
			fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"code":%d,"message":"planted"}`, reason, code)
		}
	}
	var faults []func(http.ResponseWriter)
	var mu sync.Mutex
	front := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		var fault func(http.ResponseWriter)
		if len(faults) > 0 {
			fault, faults = faults[0], faults[1:]
		}
		mu.Unlock()
		if fault != nil {
			fault(w)
			return
		}
		honest.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	var said []string
	c, err := Connect(Config{Kubeconfig: kubeconfig(t, front.URL), Waiting: func(text string) { said = append(said, text) }})
	if err != nil {
		t.Fatal(err)
	}
	cut := func(http.ResponseWriter) { panic(http.ErrAbortHandler) }
	for name, fault := range map[string]func(http.ResponseWriter){
		"429": status(http.StatusTooManyRequests, "TooManyRequests"), "500": status(http.StatusInternalServerError, "InternalError"),
		"503": status(http.StatusServiceUnavailable, "ServiceUnavailable"), "cut": cut,
	} {
		t.Run(name, func(t *testing.T) {
			mu.Lock()
			faults = []func(http.ResponseWriter){fault, fault}
			mu.Unlock()
			if _, err := c.StorageClasses(t.Context()); err != nil {
				t.Errorf("a read: %v", err)
			}
			mu.Lock()
			faults = []func(http.ResponseWriter){fault, fault}
			mu.Unlock()
			if _, err := c.Apply(t.Context(), Object{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": "passing"}}, false); err != nil {
				t.Errorf("an apply: %v", err)
			}
		})
	}
	if len(said) == 0 || !strings.Contains(said[0], "waiting for the Kubernetes API server at "+front.URL+", at most ") {
		t.Errorf("said: %q", said)
	}
}
