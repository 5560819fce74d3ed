package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Survey is how the cluster sees what a Deployment and a Service of the same name
// are to do.
type Survey struct {
	Deployment bool // it is there
	Replicas   int
	Serving    bool
	Progress   string
	Stuck      *StuckError // why it does not serve and will not; nil = nothing of that kind is seen
	Note       string      // what else is worth knowing of a Deployment that does not serve
	Pods       []PodState  // the newest first

	Service   bool // it is there
	NodePorts map[int]int
	Policy    string // externalTrafficPolicy
	Matched   int    // pods of the Deployment that the Service's selector matches
	Endpoints int    // of the Service, ready

	Nodes    []NodeState
	Policies []string // NetworkPolicies that hold for the pods' incoming traffic
	Unasked  []string // what could not be asked, and why
}

// PodState is a pod.
type PodState struct {
	Name, Node  string
	Ready       bool
	Deleting    bool
	Restarts    int
	Exit        int               // of the container's last end; 0 = it has not ended, or well
	ExitReason  string            // "OOMKilled", "Error"
	Env         map[string]string // what its containers were given in so many words
	Annotations map[string]string
}

// NodeState is a node.
type NodeState struct {
	Name      string
	Addresses []string
	Ready     bool
	Why       string    // it is not ready
	Since     time.Time // it is so
}

// Survey looks. What the account may not ask is left out and named; the error is
// that of the Deployment.
func (c *Client) Survey(ctx context.Context, namespace, name string) (*Survey, error) {
	s := &Survey{NodePorts: map[int]int{}}
	d, err := c.deployment(ctx, namespace, name)
	var pods []corev1.Pod
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return nil, err
	default:
		s.Deployment, s.Replicas = true, 1
		if d.Spec.Replicas != nil {
			s.Replicas = int(*d.Spec.Replicas)
		}
		s.Serving, s.Progress = rolledOut(d)
		if pods, err = c.pods(ctx, d); err != nil {
			return nil, err
		}
		if !s.Serving {
			if s.Stuck, s.Note, err = c.diagnose(ctx, d); err != nil {
				return nil, err
			}
		}
	}
	for i := range pods {
		s.Pods = append(s.Pods, podState(&pods[i]))
	}
	look := func(what string, call func(context.Context) error) {
		if err := c.try(ctx, what, call); err != nil && !errors.Is(err, ErrNotFound) {
			s.Unasked = append(s.Unasked, err.Error())
		}
	}
	look("get "+Ref{"Service", namespace, name}.String(), func(ctx context.Context) error {
		v, err := c.set.CoreV1().Services(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		s.Service, s.Policy = true, string(v.Spec.ExternalTrafficPolicy)
		for _, p := range v.Spec.Ports {
			s.NodePorts[int(p.Port)] = int(p.NodePort)
		}
		for _, p := range pods {
			if len(v.Spec.Selector) > 0 && labels.SelectorFromSet(v.Spec.Selector).Matches(labels.Set(p.Labels)) {
				s.Matched++
			}
		}
		return nil
	})
	look("list the EndpointSlices of namespace "+namespace, func(ctx context.Context) error {
		list, err := c.set.DiscoveryV1().EndpointSlices(namespace).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + name})
		if err != nil {
			return err
		}
		for _, slice := range list.Items {
			for _, e := range slice.Endpoints {
				if e.Conditions.Ready == nil || *e.Conditions.Ready {
					s.Endpoints += len(e.Addresses)
				}
			}
		}
		return nil
	})
	look("list the nodes", func(ctx context.Context) error {
		list, err := c.set.CoreV1().Nodes().List(ctx, everything)
		if err != nil {
			return err
		}
		for i := range list.Items {
			s.Nodes = append(s.Nodes, nodeState(&list.Items[i]))
		}
		return nil
	})
	look("list the NetworkPolicies of namespace "+namespace, func(ctx context.Context) error {
		list, err := c.set.NetworkingV1().NetworkPolicies(namespace).List(ctx, everything)
		if err != nil {
			return err
		}
		for _, p := range list.Items {
			selector, err := metav1.LabelSelectorAsSelector(&p.Spec.PodSelector)
			if err == nil && slices.ContainsFunc(pods, func(pod corev1.Pod) bool { return selector.Matches(labels.Set(pod.Labels)) }) {
				s.Policies = append(s.Policies, p.Name)
			}
		}
		return nil
	})
	return s, nil
}

func podState(p *corev1.Pod) PodState {
	s := PodState{Name: p.Name, Node: p.Spec.NodeName, Deleting: p.DeletionTimestamp != nil, Env: map[string]string{}, Annotations: p.Annotations}
	for _, x := range p.Status.Conditions {
		if x.Type == corev1.PodReady {
			s.Ready = x.Status == corev1.ConditionTrue
		}
	}
	for _, c := range p.Spec.Containers {
		for _, e := range c.Env {
			if e.ValueFrom == nil {
				s.Env[e.Name] = e.Value
			}
		}
	}
	for _, c := range p.Status.ContainerStatuses {
		s.Restarts += int(c.RestartCount)
		if t := c.LastTerminationState.Terminated; t != nil {
			s.Exit, s.ExitReason = int(t.ExitCode), t.Reason
		}
	}
	return s
}

func nodeState(n *corev1.Node) NodeState {
	s := NodeState{Name: n.Name}
	for _, a := range n.Status.Addresses {
		s.Addresses = append(s.Addresses, a.Address)
	}
	for _, x := range n.Status.Conditions {
		if x.Type == corev1.NodeReady {
			s.Ready, s.Since = x.Status == corev1.ConditionTrue, x.LastTransitionTime.UTC()
			if !s.Ready {
				s.Why = fmt.Sprintf("%s: %s", x.Reason, x.Message)
			}
		}
	}
	return s
}
