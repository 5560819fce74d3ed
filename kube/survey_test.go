package kube

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ftpdeploy/ftpdeploy/kube/kubetest"
)

// testSurvey looks at a Deployment and its Service as they come to serve.
func testSurvey(t *testing.T, c *Client, _ *kubetest.Server) {
	survey := func(s *stage, name string) *Survey {
		t.Helper()
		found, err := c.Survey(t.Context(), s.ns, name)
		if err != nil {
			t.Fatal(err)
		}
		if len(found.Unasked) > 0 {
			t.Errorf("not asked: %v", found.Unasked)
		}
		return found
	}
	s := newStage(t, c)
	if found := survey(s, "b"); found.Deployment || found.Service || found.Pods != nil {
		t.Errorf("of what is not there: %+v", found)
	}
	set := s.pod("n", "")
	set(waiting("ImagePullBackOff", "no such tag"))
	found := survey(s, "a")
	if !found.Deployment || found.Replicas != 1 || found.Serving || found.Service || found.Stuck == nil || !found.Stuck.Unpullable() {
		t.Errorf("of a pod without its image: %+v", found)
	}

	ctx := context.Background()
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeNodePort, Selector: map[string]string{"app": "other"},
		Ports: []corev1.ServicePort{{Name: "control", Port: 21, NodePort: 30921}, {Name: "data", Port: 21100, NodePort: 30922}},
	}}
	made, err := c.set.CoreV1().Services(s.ns).Create(ctx, service, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	policy := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "deny"}}
	if _, err := c.set.NetworkingV1().NetworkPolicies(s.ns).Create(ctx, policy, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.status(serving)
	set(`{"phase":"Running","conditions":[{"type":"Ready","status":"True"}],"containerStatuses":[{"name":"main","image":"x:1","imageID":"","ready":true,"restartCount":2,` +
		`"state":{"running":{},"waiting":null},"lastState":{"terminated":{"exitCode":137,"reason":"OOMKilled"}}}]}`)
	found = survey(s, "a")
	if !found.Serving || found.Stuck != nil || !found.Service || found.Matched != 0 || found.Endpoints != 0 || found.Policy != "Cluster" ||
		!maps.Equal(found.NodePorts, map[int]int{21: 30921, 21100: 30922}) || fmt.Sprint(found.Policies) != "[deny]" {
		t.Errorf("of a Service that selects other pods: %+v", found)
	}
	if len(found.Pods) != 1 || !found.Pods[0].Ready || found.Pods[0].Restarts != 2 || found.Pods[0].Exit != 137 || found.Pods[0].ExitReason != "OOMKilled" {
		t.Errorf("pods: %+v", found.Pods)
	}

	made.Spec.Selector = map[string]string{"app": "a"}
	if _, err := c.set.CoreV1().Services(s.ns).Update(ctx, made, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	no := false
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "a-1", Labels: map[string]string{discoveryv1.LabelServiceName: "a"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"198.18.1.2"}}, {Addresses: []string{"198.18.1.3"}, Conditions: discoveryv1.EndpointConditions{Ready: &no}}},
	}
	if _, err := c.set.DiscoveryV1().EndpointSlices(s.ns).Create(ctx, slice, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if found = survey(s, "a"); found.Matched != 1 || found.Endpoints != 1 {
		t.Errorf("of a Service that selects the pod: %+v", found)
	}
}

// A node that is not ready says why.
func TestNodeState(t *testing.T) {
	n := &corev1.Node{Status: corev1.NodeStatus{
		Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "198.51.100.21"}},
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown, Reason: "NodeStatusUnknown", Message: "Kubelet stopped posting node status."}},
	}}
	if s := nodeState(n); s.Ready || !strings.Contains(s.Why, "NodeStatusUnknown: Kubelet stopped") || s.Addresses[0] != "198.51.100.21" {
		t.Errorf("%+v", s)
	}
}
