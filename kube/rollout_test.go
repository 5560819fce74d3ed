package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ftpdeploy/ftpdeploy/kube/kubetest"
)

// stage is a Deployment "a" in a namespace of its own, whose controller,
// scheduler and kubelet the test plays.
type stage struct {
	*Client
	t  *testing.T
	ns string
}

func newStage(t *testing.T, c *Client) *stage {
	t.Helper()
	s := &stage{c, t, namespace(t, c)}
	apply(t, c, deployment(s.ns, "a", "x:1"))
	s.status(`{"observedGeneration":1,"replicas":1,"updatedReplicas":1}`)
	return s
}

// status sets that of the Deployment.
func (s *stage) status(status string) {
	s.t.Helper()
	_, err := s.set.AppsV1().Deployments(s.ns).Patch(context.Background(), "a", types.MergePatchType, []byte(`{"status":`+status+`}`), metav1.PatchOptions{}, "status")
	if err != nil {
		s.t.Error(err)
	}
}

const serving = `{"observedGeneration":1,"replicas":1,"updatedReplicas":1,"readyReplicas":1,"availableReplicas":1}`

// pod makes pod a-1 on a node, with the claim "data" if there is one, and returns
// how to set its status.
func (s *stage) pod(node, claim string) func(status string) {
	s.t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "a-1", Labels: map[string]string{"app": "a"}},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "main", Image: "x:1"}}},
	}
	if claim != "" {
		p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}}}
	}
	if _, err := s.set.CoreV1().Pods(s.ns).Create(s.t.Context(), p, metav1.CreateOptions{}); err != nil {
		s.t.Fatal(err)
	}
	return func(status string) {
		s.t.Helper()
		if _, err := s.set.CoreV1().Pods(s.ns).Patch(context.Background(), "a-1", types.MergePatchType, []byte(`{"status":`+status+`}`), metav1.PatchOptions{}, "status"); err != nil {
			s.t.Error(err)
		}
	}
}

// claim makes a pending PersistentVolumeClaim "data".
func (s *stage) claim(class string) Ref {
	s.t.Helper()
	spec := map[string]any{"accessModes": []any{"ReadWriteOnce"}, "resources": map[string]any{"requests": map[string]any{"storage": "1Gi"}}, "storageClassName": class}
	o := Object{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": map[string]any{"namespace": s.ns, "name": "data"}, "spec": spec}
	apply(s.t, s.Client, o)
	return o.Ref()
}

// event tells something about an object.
func (s *stage) event(about Ref, kind, reason, message string) {
	s.t.Helper()
	live, err := s.Find(s.t.Context(), about)
	if err != nil {
		s.t.Fatal(err)
	}
	now := metav1.Now()
	_, err = s.set.CoreV1().Events(s.ns).Create(s.t.Context(), &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{GenerateName: "e-"},
		InvolvedObject: corev1.ObjectReference{Kind: about.Kind, Namespace: s.ns, Name: about.Name, UID: types.UID(live.UID)},
		Type:           kind, Reason: reason, Message: message, FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
}

func waiting(reason, message string) string {
	return fmt.Sprintf(`{"containerStatuses":[{"name":"main","image":"x:1","imageID":"","ready":false,"restartCount":0,"state":{"waiting":{"reason":%q,"message":%q}}}]}`, reason, message)
}

func unscheduled(message string) string {
	return fmt.Sprintf(`{"conditions":[{"type":"PodScheduled","status":"False","reason":"Unschedulable","message":%q}]}`, message)
}

// kubelet answers the API server's question for a container's log, as the node
// that it is registered as.
func kubelet(t *testing.T, c *Client, node, log string) {
	t.Helper()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/containerLogs/") || r.URL.Query().Get("previous") != "true" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, log)
	}))
	t.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.set.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	status, err := json.Marshal(map[string]any{"status": corev1.NodeStatus{
		Addresses:       []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: u.Hostname()}},
		DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: int32(port)}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.set.CoreV1().Nodes().Patch(t.Context(), node, types.MergePatchType, status, metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
}

// Each cause that will not pass by itself ends the wait within 5 s, and is named.
func testRollout(t *testing.T, c *Client, _ *kubetest.Server) {
	kubelet(t, c, "crashing", "starting\n500 OOPS: unrecognised variable in config file\n")
	claimRef := func(s *stage) Ref { return Ref{"PersistentVolumeClaim", s.ns, "data"} }
	podRef := func(s *stage) Ref { return Ref{"Pod", s.ns, "a-1"} }
	deploymentRef := func(s *stage) Ref { return Ref{"Deployment", s.ns, "a"} }
	for name, test := range map[string]struct {
		play   func(*stage)
		object func(*stage) Ref
		reason string
		detail []string
	}{
		"image": {func(s *stage) {
			s.pod("n", "")(waiting("ErrImagePull", "tag x:1 is not there"))
		}, podRef, "ErrImagePull", []string{"image x:1", "tag x:1 is not there"}},
		"config": {func(s *stage) {
			s.pod("n", "")(waiting("CreateContainerConfigError", `secret "s" not found`))
		}, podRef, "CreateContainerConfigError", []string{`secret "s" not found`}},
		"crash": {func(s *stage) {
			s.pod("crashing", "")(`{"containerStatuses":[{"name":"main","image":"x:1","imageID":"","ready":false,"restartCount":2,
				"state":{"waiting":{"reason":"CrashLoopBackOff"}},"lastState":{"terminated":{"exitCode":2,"reason":"Error"}}}]}`)
		}, podRef, "CrashLoopBackOff", []string{"exit code 2 (Error)", "restarted 2 times", "last log line: 500 OOPS: unrecognised variable"}},
		"crash without log": {func(s *stage) {
			s.pod("gone", "")(`{"containerStatuses":[{"name":"main","image":"x:1","imageID":"","ready":false,"restartCount":2,
				"state":{"waiting":{"reason":"CrashLoopBackOff"}},"lastState":{"terminated":{"exitCode":139,"reason":"Error"}}}]}`)
		}, podRef, "CrashLoopBackOff", []string{"exit code 139", "its log cannot be read"}},
		"unschedulable": {func(s *stage) {
			s.pod("", "")(unscheduled("0/3 nodes are available: 3 Insufficient memory."))
		}, podRef, "Unschedulable", []string{"3 Insufficient memory"}},
		"class": {func(s *stage) {
			s.event(s.claim("fast"), "Warning", "ProvisioningFailed", `storageclass.storage.k8s.io "fast" not found`)
			s.pod("", "data")(unscheduled("pod has unbound immediate PersistentVolumeClaims"))
		}, claimRef, "ProvisioningFailed", []string{`class "fast"`, `"fast" not found`}},
		"no class": {func(s *stage) {
			s.event(s.claim(""), "Normal", "FailedBinding", "no persistent volumes available for this claim and no storage class is set")
			s.pod("", "data")(unscheduled("pod has unbound immediate PersistentVolumeClaims"))
		}, claimRef, "FailedBinding", []string{"no storage class is set"}},
		"no claim": {func(s *stage) {
			s.pod("", "data")(unscheduled(`persistentvolumeclaim "data" not found`))
		}, claimRef, "NotFound", []string{"not there"}},
		"pod security": {func(s *stage) {
			s.status(`{"observedGeneration":1,"conditions":[{"type":"ReplicaFailure","status":"True","reason":"FailedCreate","message":"violates PodSecurity \"restricted:latest\""}]}`)
		}, deploymentRef, "FailedCreate", []string{"violates PodSecurity"}},
		"quota": {func(s *stage) {
			s.status(`{"observedGeneration":1,"conditions":[{"type":"ReplicaFailure","status":"True","reason":"FailedCreate","message":"exceeded quota: q, requested: pods=1, used: pods=0, limited: pods=0"}]}`)
		}, deploymentRef, "FailedCreate", []string{"exceeded quota: q"}},
		"deadline": {func(s *stage) {
			s.status(`{"observedGeneration":1,"replicas":1,"conditions":[{"type":"Progressing","status":"False","reason":"ProgressDeadlineExceeded","message":"has timed out progressing"}]}`)
		}, deploymentRef, "ProgressDeadlineExceeded", []string{"timed out"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, c)
			test.play(s)
			start := time.Now()
			err := c.WaitRollout(t.Context(), s.ns, "a", time.Minute, nil)
			took := time.Since(start)
			stuck, ok := errors.AsType[*StuckError](err)
			if !ok {
				t.Fatalf("%v", err)
			}
			if stuck.Object != test.object(s) || stuck.Reason != test.reason {
				t.Errorf("%s, %s", stuck.Object, stuck.Reason)
			}
			for _, want := range test.detail {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q lacks %q", err, want)
				}
			}
			if took > 5*time.Second {
				t.Errorf("named after %s", took)
			}
		})
	}
	t.Run("patience", func(t *testing.T) { testPatience(t, c) })
	t.Run("evidence", func(t *testing.T) { testEvidence(t, c) })
}

// What is left of a failure is there to be read.
func testEvidence(t *testing.T, c *Client) {
	s := newStage(t, c)
	s.pod("", "")(waiting("ImagePullBackOff", "no such tag"))
	s.event(Ref{"Pod", s.ns, "a-1"}, corev1.EventTypeWarning, "Failed", "not found in the registry")
	found, err := c.Look(t.Context(), s.ns, "a")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"pods.yaml": "message: no such tag", "events.txt": "Warning Failed Pod " + s.ns + "/a-1: not found in the registry (1 times)",
	} {
		if !strings.Contains(string(found[name]), want) {
			t.Errorf("%s lacks %q:\n%s", name, want, found[name])
		}
	}
	if found, err = c.Look(t.Context(), s.ns, "b"); err != nil || len(found) != 1 {
		t.Errorf("of a Deployment that is not there: %q, %v; want the events", found, err)
	}
}

// What may pass by itself, or is on its way, is waited for, and said.
func testPatience(t *testing.T, c *Client) {
	// begin waits in the background; said gives what it reports.
	begin := func(s *stage, bound time.Duration) (said chan string, ended chan error) {
		said, ended = make(chan string, 1000), make(chan error, 1)
		go func() { ended <- c.WaitRollout(s.t.Context(), s.ns, "a", bound, func(text string) { said <- text }) }()
		return said, ended
	}
	until := func(t *testing.T, said chan string, ended chan error, want string) {
		t.Helper()
		deadline := time.After(20 * time.Second)
		last := ""
		for {
			select {
			case last = <-said:
				if strings.Contains(last, want) {
					return
				}
			case err := <-ended:
				t.Fatalf("ended with %v before it said %q", err, want)
			case <-deadline:
				t.Fatalf("says %q, want %q", last, want)
			}
		}
	}

	t.Run("success", func(t *testing.T) {
		t.Parallel()
		s := newStage(t, c)
		s.status(`{"observedGeneration":0}`)
		said, ended := begin(s, time.Minute)
		until(t, said, ended, "the deployment controller has not seen it yet")
		s.status(`{"observedGeneration":1,"replicas":1,"updatedReplicas":1,"availableReplicas":0}`)
		set := s.pod("n", "")
		until(t, said, ended, "0 of 1 pods serve: pod a-1 is Pending")
		set(waiting("ContainerCreating", ""))
		until(t, said, ended, "pod a-1 on n: ContainerCreating")
		set(`{"containerStatuses":[{"name":"main","image":"x:1","imageID":"","ready":false,"restartCount":0,"state":{"running":{},"waiting":null}}]}`)
		until(t, said, ended, "readiness probe has not succeeded")
		if ok, progress, err := c.Serving(t.Context(), s.ns, "a"); ok || err != nil || progress != "0 of 1 pods serve" {
			t.Errorf("serving %v, %q, %v", ok, progress, err)
		}
		s.status(serving)
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if ok, _, err := c.Serving(t.Context(), s.ns, "a"); !ok || err != nil {
			t.Errorf("serving %v, %v", ok, err)
		}
	})
	t.Run("the pod before", func(t *testing.T) {
		t.Parallel()
		s := newStage(t, c)
		s.status(`{"observedGeneration":1,"replicas":2,"updatedReplicas":1,"readyReplicas":1,"availableReplicas":1}`)
		s.pod("n", "")
		edit(t, c, Ref{"Pod", s.ns, "a-1"}, `{"metadata":{"finalizers":["example.org/keep"]}}`)
		if err := c.set.CoreV1().Pods(s.ns).Delete(t.Context(), "a-1", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		said, ended := begin(s, time.Minute)
		until(t, said, ended, "pod a-1, the one before, is ending")
		s.status(serving)
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Run("an obstacle that passes", func(t *testing.T) {
		t.Parallel()
		s := newStage(t, c)
		set := s.pod("", "")
		set(unscheduled("0/3 nodes are available: taint"))
		said, ended := begin(s, time.Minute)
		until(t, said, ended, "Unschedulable: 0/3 nodes are available: taint")
		s.status(serving)
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Run("a claim that is being served", func(t *testing.T) {
		t.Parallel()
		s := newStage(t, c)
		ref := s.claim("slow")
		s.pod("", "data")(unscheduled("pod has unbound immediate PersistentVolumeClaims"))
		start := time.Now()
		said, ended := begin(s, time.Minute)
		until(t, said, ended, `claim data (class "slow") is not bound yet`)
		s.event(ref, "Normal", "ExternalProvisioning", "waiting for a volume to be created")
		for time.Since(start) < certain+time.Second {
			until(t, said, ended, "waiting for a volume to be created")
		}
		s.status(serving)
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Run("a volume that hangs elsewhere", func(t *testing.T) {
		t.Parallel()
		s := newStage(t, c)
		s.pod("n", "")
		s.event(Ref{"Pod", s.ns, "a-1"}, "Warning", "FailedAttachVolume", "Multi-Attach error for volume")
		err := c.WaitRollout(t.Context(), s.ns, "a", 2*time.Second, nil)
		if err == nil || !strings.Contains(err.Error(), "it does not serve after 2s") || !strings.Contains(err.Error(), "FailedAttachVolume: Multi-Attach error") {
			t.Errorf("%v", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		t.Parallel()
		s := newStage(t, c)
		ctx, cancel := context.WithCancel(t.Context())
		err := c.WaitRollout(ctx, s.ns, "a", time.Minute, func(string) { cancel() })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
	t.Run("no deployment", func(t *testing.T) {
		t.Parallel()
		if err := c.WaitRollout(t.Context(), namespace(t, c), "a", time.Minute, nil); !errors.Is(err, ErrNotFound) {
			t.Errorf("%v", err)
		}
	})
}
