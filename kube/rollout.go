package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
)

// certain is how long the same obstacle must stand before a wait gives up: some
// pass by themselves within a moment, such as a class that is being made.
const certain = 2 * time.Second

// StuckError says why a Deployment's pods will not serve.
type StuckError struct {
	Object Ref    // what stands in the way: a pod, a claim, the Deployment
	Reason string // one word, as Kubernetes has it: ImagePullBackOff, CrashLoopBackOff, FailedCreate
	Detail string // why
}

func (e *StuckError) Error() string {
	return fmt.Sprintf("%s: %s: %s", e.Object, e.Reason, e.Detail)
}

// Serving tells whether the Deployment's pods are all of its current template
// and available; if not, progress says how far it is.
func (c *Client) Serving(ctx context.Context, namespace, name string) (serving bool, progress string, err error) {
	d, err := c.deployment(ctx, namespace, name)
	if err != nil {
		return false, "", err
	}
	serving, progress = rolledOut(d)
	return serving, progress, nil
}

func (c *Client) deployment(ctx context.Context, namespace, name string) (*appsv1.Deployment, error) {
	var d *appsv1.Deployment
	err := c.try(ctx, "get "+Ref{"Deployment", namespace, name}.String(), func(ctx context.Context) (err error) {
		d, err = c.set.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
		return err
	})
	return d, err
}

func rolledOut(d *appsv1.Deployment) (bool, string) {
	want := int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	s := d.Status
	if s.ObservedGeneration < d.Generation {
		return false, "the deployment controller has not seen it yet"
	}
	ok := s.UpdatedReplicas == want && s.Replicas == want && s.AvailableReplicas == want
	return ok, fmt.Sprintf("%d of %d pods serve", min(s.AvailableReplicas, s.UpdatedReplicas), want)
}

// WaitRollout waits, for at most bound, until the Deployment serves. Where the
// cause is plain that it will not (an image that cannot be pulled, a container
// that crashes, a claim without a class, Pod Security, quota, no node that fits)
// it stops within seconds with a *StuckError. Report says what is being waited
// for; it may be nil.
func (c *Client) WaitRollout(ctx context.Context, namespace, name string, bound time.Duration, report func(string)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, bound, fmt.Errorf("it does not serve after %s", bound))
	defer cancel()
	return c.await(ctx, namespace, name, report, func(_ context.Context, d *appsv1.Deployment) (bool, string, error) {
		serving, progress := rolledOut(d)
		return serving, progress, nil
	})
}

// WaitPulled waits, for at most bound, until a pod of the Deployment has its image,
// whatever the pod does then. It stops with a *StuckError as WaitRollout does.
func (c *Client) WaitPulled(ctx context.Context, namespace, name string, bound time.Duration, report func(string)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, bound, fmt.Errorf("it is not pulled after %s", bound))
	defer cancel()
	return c.await(ctx, namespace, name, report, func(ctx context.Context, d *appsv1.Deployment) (bool, string, error) {
		pods, err := c.pods(ctx, d)
		for _, p := range pods {
			if slices.ContainsFunc(p.Status.ContainerStatuses, pulled) {
				return true, "", nil
			}
		}
		return false, "the image is not pulled yet", err
	})
}

// pulled tells whether a container has its image: it has run, or was to be made.
func pulled(s corev1.ContainerStatus) bool {
	if s.State.Running != nil || s.State.Terminated != nil || s.LastTerminationState.Terminated != nil {
		return true
	}
	return s.State.Waiting != nil && slices.Contains([]string{"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}, s.State.Waiting.Reason)
}

// Unpullable tells whether an image cannot be had: it is not there, or may not be
// taken, or is not to be asked for.
func (e *StuckError) Unpullable() bool {
	return slices.Contains([]string{"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}, e.Reason)
}

// await polls the Deployment until done says so, ctx is over, or an obstacle has
// stood for a while that will not pass.
func (c *Client) await(ctx context.Context, namespace, name string, report func(string),
	done func(context.Context, *appsv1.Deployment) (ok bool, progress string, err error),
) error {
	var obstacle *StuckError
	var since time.Time
	seen := "nothing seen yet"
	for {
		d, err := c.deployment(ctx, namespace, name)
		var ok bool
		var progress, note string
		if err == nil {
			ok, progress, err = done(ctx, d)
		}
		if ok {
			return nil
		}
		var stuck *StuckError
		if err == nil {
			stuck, note, err = c.diagnose(ctx, d)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %s", context.Cause(ctx), seen)
		}
		if err != nil {
			return err
		}
		seen = progress
		if note != "" {
			seen += ": " + note
		}
		if stuck != nil {
			if obstacle == nil || obstacle.Object != stuck.Object || family(obstacle.Reason) != family(stuck.Reason) {
				since = time.Now()
			}
			seen = progress + ": " + stuck.Error()
			if time.Since(since) >= certain {
				return stuck
			}
		}
		obstacle = stuck
		if report != nil {
			report(seen)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %s", context.Cause(ctx), seen)
		case <-time.After(poll):
		}
	}
}

// family joins the reasons that alternate for one cause.
func family(reason string) string {
	if reason == "ErrImagePull" {
		return "ImagePullBackOff"
	}
	return reason
}

// diagnose looks for what keeps the Deployment from serving. Stuck is an obstacle
// that will not pass by itself; note is what is worth knowing meanwhile.
func (c *Client) diagnose(ctx context.Context, d *appsv1.Deployment) (stuck *StuckError, note string, err error) {
	if d.Status.ObservedGeneration < d.Generation {
		return nil, "", nil // what there is to see is of the time before
	}
	for _, x := range d.Status.Conditions {
		failed := x.Type == appsv1.DeploymentReplicaFailure && x.Status == corev1.ConditionTrue ||
			x.Type == appsv1.DeploymentProgressing && x.Status == corev1.ConditionFalse
		if failed {
			stuck = &StuckError{Ref{"Deployment", d.Namespace, d.Name}, x.Reason, x.Message}
		}
	}
	pods, err := c.pods(ctx, d)
	if err != nil {
		return nil, "", err
	}
	for _, p := range pods {
		why, about, err := c.examine(ctx, &p)
		if err != nil {
			return nil, "", err
		}
		if why != nil {
			return why, "", nil // the cause; a condition of the Deployment only follows from it
		}
		if note == "" {
			note = about
		}
	}
	return stuck, note, nil
}

// pods are those of the Deployment's selector, the newest first.
func (c *Client) pods(ctx context.Context, d *appsv1.Deployment) ([]corev1.Pod, error) {
	var pods []corev1.Pod
	what := "list the pods of " + Ref{"Deployment", d.Namespace, d.Name}.String()
	err := c.try(ctx, what, func(ctx context.Context) error {
		list, err := c.set.CoreV1().Pods(d.Namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(d.Spec.Selector)})
		if err == nil {
			pods = list.Items
		}
		return err
	})
	slices.SortFunc(pods, func(a, b corev1.Pod) int {
		return cmp.Or(b.CreationTimestamp.Compare(a.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
	})
	return pods, err
}

// examine looks at one pod.
func (c *Client) examine(ctx context.Context, p *corev1.Pod) (*StuckError, string, error) {
	ref := Ref{"Pod", p.Namespace, p.Name}
	if p.DeletionTimestamp != nil {
		return nil, fmt.Sprintf("pod %s, the one before, is ending", p.Name), nil
	}
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		w := s.State.Waiting
		if w == nil {
			continue
		}
		switch w.Reason {
		case "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError", "CreateContainerError", "RunContainerError":
			return &StuckError{ref, w.Reason, fmt.Sprintf("image %s: %s", s.Image, w.Message)}, "", nil
		case "CrashLoopBackOff":
			return &StuckError{ref, w.Reason, c.crash(ctx, p, s)}, "", nil
		}
	}
	for _, x := range p.Status.Conditions {
		if x.Type != corev1.PodScheduled || x.Status != corev1.ConditionFalse {
			continue
		}
		// A pod waits for its claims first: a claim that is still being served is no
		// obstacle, and one that cannot be is the cause.
		stuck, unbound, err := c.claims(ctx, p)
		if stuck != nil || err != nil {
			return stuck, "", err
		}
		if unbound == "" && x.Reason == corev1.PodReasonUnschedulable {
			return &StuckError{ref, x.Reason, x.Message}, "", nil
		}
		return nil, cmp.Or(unbound, "pod "+p.Name+" is not scheduled: "+x.Message), nil
	}
	event, err := c.warning(ctx, p.Namespace, string(p.UID))
	if err != nil {
		return nil, "", err
	}
	if event != nil {
		return nil, fmt.Sprintf("pod %s: %s: %s", p.Name, event.Reason, event.Message), nil
	}
	for _, s := range p.Status.ContainerStatuses {
		switch {
		case s.State.Waiting != nil:
			return nil, fmt.Sprintf("pod %s on %s: %s", p.Name, p.Spec.NodeName, s.State.Waiting.Reason), nil
		case s.State.Running != nil && !s.Ready:
			return nil, fmt.Sprintf("pod %s on %s runs, but its readiness probe has not succeeded", p.Name, p.Spec.NodeName), nil
		case s.State.Terminated != nil:
			return nil, fmt.Sprintf("pod %s on %s: container ended with exit code %d", p.Name, p.Spec.NodeName, s.State.Terminated.ExitCode), nil
		}
	}
	return nil, fmt.Sprintf("pod %s is %s", p.Name, p.Status.Phase), nil
}

// crash says how the container ended the last time, with the last line of its log.
func (c *Client) crash(ctx context.Context, p *corev1.Pod, s corev1.ContainerStatus) string {
	text := fmt.Sprintf("restarted %d times", s.RestartCount)
	if t := s.LastTerminationState.Terminated; t != nil {
		text = fmt.Sprintf("exit code %d (%s), %s", t.ExitCode, t.Reason, text)
	}
	b, err := c.log(ctx, p, s.Name, true, 5)
	if err != nil {
		return text + "; its log cannot be read: " + err.Error()
	}
	tail := strings.Split(strings.TrimSpace(string(b)), "\n")
	last := tail[len(tail)-1]
	if last == "" {
		return text + "; its log is empty"
	}
	return text + "; last log line: " + last
}

// log is the end of a container's log, or of that of the one before it.
func (c *Client) log(ctx context.Context, p *corev1.Pod, container string, previous bool, lines int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, certain) // the node may be what is broken
	defer cancel()
	log, err := c.set.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{Container: container, Previous: previous, TailLines: &lines}).Stream(ctx)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(log, 256<<10))
	return b, errors.Join(err, log.Close())
}

// claims looks at the claims of a pod that is not scheduled. Unbound says what a
// claim waits for that may still come.
func (c *Client) claims(ctx context.Context, p *corev1.Pod) (stuck *StuckError, unbound string, err error) {
	for _, v := range p.Spec.Volumes {
		if v.PersistentVolumeClaim == nil {
			continue
		}
		ref := Ref{"PersistentVolumeClaim", p.Namespace, v.PersistentVolumeClaim.ClaimName}
		var claim *corev1.PersistentVolumeClaim
		err := c.try(ctx, "get "+ref.String(), func(ctx context.Context) (err error) {
			claim, err = c.set.CoreV1().PersistentVolumeClaims(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
			return err
		})
		if errors.Is(err, ErrNotFound) {
			return &StuckError{ref, "NotFound", "the pod wants it, but it is not there"}, "", nil
		}
		if err != nil {
			return nil, "", err
		}
		if claim.Status.Phase == corev1.ClaimBound {
			continue
		}
		class := "the cluster's default class, which there is none of"
		if claim.Spec.StorageClassName != nil {
			class = fmt.Sprintf("class %q", *claim.Spec.StorageClassName)
		}
		event, err := c.latest(ctx, ref.Namespace, string(claim.UID))
		if err != nil {
			return nil, "", err
		}
		if event == nil {
			unbound = fmt.Sprintf("claim %s (%s) is not bound yet", ref.Name, class)
			continue
		}
		detail := fmt.Sprintf("%s: %s", class, event.Message)
		// FailedBinding, of type Normal, is "no volume and no class": nobody will make one.
		if event.Type == corev1.EventTypeWarning || event.Reason == "FailedBinding" {
			return &StuckError{ref, event.Reason, detail}, "", nil
		}
		unbound = fmt.Sprintf("claim %s: %s", ref.Name, detail)
	}
	return nil, unbound, nil
}

// warning is the newest event about an object if it is a warning, else nil.
func (c *Client) warning(ctx context.Context, namespace, uid string) (*corev1.Event, error) {
	e, err := c.latest(ctx, namespace, uid)
	if e == nil || e.Type != corev1.EventTypeWarning {
		return nil, err
	}
	return e, nil
}

// latest is the newest event about an object, or nil.
func (c *Client) latest(ctx context.Context, namespace, uid string) (*corev1.Event, error) {
	var found *corev1.Event
	err := c.try(ctx, "list events in namespace "+namespace, func(ctx context.Context) error {
		list, err := c.set.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{
			FieldSelector: fields.OneTermEqualSelector("involvedObject.uid", uid).String(),
		})
		if err != nil {
			return err
		}
		found = nil
		for i := range list.Items {
			if e := &list.Items[i]; found == nil || when(e).After(when(found)) {
				found = e
			}
		}
		return nil
	})
	return found, err
}

// when is the last time that an event was seen; old and new writers differ in the
// field that they fill.
func when(e *corev1.Event) time.Time {
	t := e.CreationTimestamp.Time
	for _, x := range []time.Time{e.FirstTimestamp.Time, e.LastTimestamp.Time, e.EventTime.Time} {
		if x.After(t) {
			t = x
		}
	}
	return t
}
