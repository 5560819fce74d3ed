package kube

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Taken says how pods take settings while they run: from a volume of a Secret or
// ConfigMap, one file of which holds an annotation of the pod. Their log repeats
// that file's text, as "request=TEXT", when what is in the volume is in force, and
// then says "taken" and the revisions, or "refused".
type Taken struct {
	Volume     string // name of the volume
	Source     string // name of the Secret or ConfigMap, of those in the volume, that has changed
	Annotation string // of the pod, which it finds in the volume
	Revision   string // what the log must say beside the request
}

// WaitTaken has each pod of a Deployment that runs and has the source in its volume
// look at it, and waits, for at most bound, until it has taken its settings. A pod that is
// yet to start reads them then. Report may be nil.
func (c *Client) WaitTaken(ctx context.Context, namespace, name string, t Taken, bound time.Duration, report func(string)) error {
	d, err := c.deployment(ctx, namespace, name)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	pods, err := c.pods(ctx, d)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, bound, fmt.Errorf("it has not said within %s that it took its settings: does its image watch them?", bound))
	defer cancel()
	for _, p := range pods {
		mounts := slices.ContainsFunc(p.Spec.Volumes, t.draws)
		if p.DeletionTimestamp != nil || p.Status.Phase != corev1.PodRunning || !mounts {
			continue
		}
		if err := c.waitTaken(ctx, &p, t, report); err != nil {
			return fmt.Errorf("pod %s: %w", p.Name, err)
		}
	}
	return nil
}

// draws tells whether a volume is the one of the settings and has the source.
func (t Taken) draws(v corev1.Volume) bool {
	return v.Name == t.Volume && v.Projected != nil && slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool {
		return s.Secret != nil && s.Secret.Name == t.Source || s.ConfigMap != nil && s.ConfigMap.Name == t.Source
	})
}

// logTail is how much of a pod's log is read: what was logged since the last look.
const logTail = int64(1000)

func (c *Client) waitTaken(ctx context.Context, p *corev1.Pod, t Taken, report func(string)) error {
	request := rand.Text()
	mark, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{t.Annotation: request}}})
	if err != nil {
		return err
	}
	pods := c.set.CoreV1().Pods(p.Namespace)
	err = c.try(ctx, "have it look at its settings", func(ctx context.Context) error {
		_, err := pods.Patch(ctx, p.Name, types.MergePatchType, mark, metav1.PatchOptions{FieldManager: FieldManager})
		return err
	})
	if err != nil {
		return err
	}
	if report != nil {
		report("waiting until pod " + p.Name + " has taken its settings")
	}
	for {
		var log []byte
		tail := logTail
		err := c.try(ctx, "read its log", func(ctx context.Context) (err error) {
			log, err = pods.GetLogs(p.Name, &corev1.PodLogOptions{Container: p.Spec.Containers[0].Name, TailLines: &tail}).DoRaw(ctx)
			return err
		})
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(log)) {
			if !strings.Contains(line, "request="+request) || !strings.Contains(line, t.Revision) {
				continue
			}
			if strings.Contains(line, "refused") {
				return fmt.Errorf("it refused its settings, and goes on with the former ones: %s", strings.TrimSpace(string(log[max(0, len(log)-500):])))
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(poll):
		}
	}
}
