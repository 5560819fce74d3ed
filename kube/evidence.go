package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// logLines is how much of a container's log is evidence.
const logLines = 300

// Look collects what tells why a Deployment does not serve, each text by the name
// of a file: the state of it and its pods, the events of its namespace, and the end
// of each container's log, with that of the one before it. Where there is no such
// Deployment there are the events only. It changes nothing.
func (c *Client) Look(ctx context.Context, namespace, name string) (map[string][]byte, error) {
	found := map[string][]byte{}
	var errs []error
	events, err := c.events(ctx, namespace)
	if err == nil {
		found["events.txt"] = events
	}
	errs = append(errs, err)
	d, err := c.deployment(ctx, namespace, name)
	if errors.Is(err, ErrNotFound) {
		return found, errors.Join(errs...)
	}
	var pods []corev1.Pod
	if err == nil {
		pods, err = c.pods(ctx, d)
	}
	if err != nil {
		return found, errors.Join(append(errs, err)...)
	}
	found["pods.yaml"], err = states(d, pods)
	errs = append(errs, err)
	for _, p := range pods {
		for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
			if text, err := c.log(ctx, &p, s.Name, false, logLines); err == nil { // else it has not begun
				found[fmt.Sprintf("%s-%s.log", p.Name, s.Name)] = text
			}
			if s.RestartCount == 0 {
				continue
			}
			if text, err := c.log(ctx, &p, s.Name, true, logLines); err == nil {
				found[fmt.Sprintf("%s-%s-before.log", p.Name, s.Name)] = text
			}
		}
	}
	return found, errors.Join(errs...)
}

// states says how a Deployment and its pods are. What they were told, in their
// environment, is left out.
func states(d *appsv1.Deployment, pods []corev1.Pod) ([]byte, error) {
	type state struct {
		Name   string `json:"name"`
		Node   string `json:"node,omitempty"`
		Status any    `json:"status"`
	}
	all := []state{{Name: Ref{"Deployment", d.Namespace, d.Name}.String(), Status: d.Status}}
	for _, p := range pods {
		all = append(all, state{Ref{"Pod", p.Namespace, p.Name}.String(), p.Spec.NodeName, p.Status})
	}
	return yaml.Marshal(all)
}

// events are those of a namespace, the oldest first, one a line.
func (c *Client) events(ctx context.Context, namespace string) ([]byte, error) {
	var all []corev1.Event
	err := c.try(ctx, "list events in namespace "+namespace, func(ctx context.Context) error {
		list, err := c.set.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{})
		if err == nil {
			all = list.Items
		}
		return err
	})
	slices.SortStableFunc(all, func(a, b corev1.Event) int { return when(&a).Compare(when(&b)) })
	var text bytes.Buffer
	for i := range all {
		e := &all[i]
		fmt.Fprintf(&text, "%s %s %s %s: %s (%d times)\n", when(e).UTC().Format("2006-01-02T15:04:05Z"), e.Type, e.Reason,
			Ref{e.InvolvedObject.Kind, e.InvolvedObject.Namespace, e.InvolvedObject.Name}, e.Message, max(e.Count, 1))
	}
	return text.Bytes(), err
}
