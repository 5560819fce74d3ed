package kube

import (
	"context"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Pod is a pod of a Deployment, by its first container.
type Pod struct {
	Name     string
	Node     string // "" = it has none yet
	State    string // Running, Pending, Terminating, ...
	Ready    bool
	Since    time.Time // when it was made
	Restarts int
	Image    string // as it was asked for
	Digest   string // of what runs: "sha256:..."; "" = nothing yet
}

// Pods returns the pods of a Deployment, those that end too. The error is
// ErrNotFound where there is no such Deployment.
func (c *Client) Pods(ctx context.Context, namespace, deployment string) ([]Pod, error) {
	d, err := c.deployment(ctx, namespace, deployment)
	if err != nil {
		return nil, err
	}
	found, err := c.pods(ctx, d)
	var all []Pod
	for i := range found {
		all = append(all, podOf(&found[i]))
	}
	return all, err
}

func podOf(p *corev1.Pod) Pod {
	out := Pod{Name: p.Name, Node: p.Spec.NodeName, State: string(p.Status.Phase), Since: p.CreationTimestamp.UTC()}
	if p.DeletionTimestamp != nil {
		out.State = "Terminating"
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			out.Ready = c.Status == corev1.ConditionTrue
		}
	}
	if len(p.Spec.Containers) == 0 {
		return out
	}
	out.Image = p.Spec.Containers[0].Image
	for _, s := range p.Status.ContainerStatuses {
		if s.Name != p.Spec.Containers[0].Name {
			continue
		}
		out.Restarts = int(s.RestartCount)
		if i := strings.Index(s.ImageID, "sha256:"); i >= 0 { // before it stands the name, or none
			out.Digest = s.ImageID[i:]
		}
	}
	return out
}
