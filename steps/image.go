package steps

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ftpdeploy/ftpdeploy/kube"
	"github.com/ftpdeploy/ftpdeploy/plan"
)

// imageLabel marks the pods that only pull an image. They bear none of the labels
// by which the Service finds the pod that serves.
const imageLabel = "ftpdeploy.dev/image-of" // ftp_service "NAME"

// trialGone bounds the removal of what has pulled an image.
const trialGone = 30 * time.Second

// pulling plans the proof that an image can be had, before the pod that serves is
// ended for it. Live is the Deployment as it is.
func (k *kubernetes) pulling(c *kube.Client, live *kube.Live) (*plan.Change, error) {
	var has deployed
	if err := live.Decode(&has); err != nil {
		return nil, err
	}
	image := k.service.Image
	containers := has.Spec.Template.Spec.Containers
	if len(containers) == 0 || containers[0].Image == image {
		return nil, nil
	}
	return &plan.Change{
		Action: plan.Run, Target: "image " + image, Reason: "it must be there before the pod that serves is ended",
		From: containers[0].Image, Want: "pulled",
		Do:   func(ctx context.Context, report func(string)) error { return k.pull(ctx, c, report) },
		Undo: func(ctx context.Context) error { return k.endTrial(ctx, c) },
	}, nil
}

// pull has a node pull the image. Where no pod can be made for that, by a quota or
// for want of room, nothing is proven, and nothing is wrong with the image.
func (k *kubernetes) pull(ctx context.Context, c *kube.Client, report func(string)) error {
	live, err := find(ctx, c, kube.Ref{Kind: "Deployment", Namespace: k.service.Namespace, Name: k.trialName()})
	if err == nil {
		err = k.checkOwner(live)
	}
	if err == nil {
		_, err = c.Apply(ctx, k.imageTrial(), true)
	}
	if err != nil {
		return err
	}
	err = c.WaitPulled(ctx, k.service.Namespace, k.trialName(), rolloutWait, report)
	var stuck *kube.StuckError
	if errors.As(err, &stuck) && !stuck.Unpullable() {
		report("not tried: " + stuck.Error())
		err = nil
	}
	return errors.Join(err, k.endTrial(ctx, c))
}

func (k *kubernetes) endTrial(ctx context.Context, c *kube.Client) error {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), trialGone, fmt.Errorf("waited %s", trialGone))
	defer cancel()
	live, err := find(ctx, c, kube.Ref{Kind: "Deployment", Namespace: k.service.Namespace, Name: k.trialName()})
	if err != nil || live == nil || !k.mine(live) {
		return err
	}
	return c.Delete(ctx, live, nil)
}

// trialName is none that a service can have.
func (k *kubernetes) trialName() string { return k.service.Name + ".image" }

// imageTrial is the Deployment whose pod pulls the image: near the pod that serves,
// where the next one will probably be. That its command may not be in the image
// does not matter. It asks for nothing of what the other needs.
func (k *kubernetes) imageTrial() kube.Object {
	container := map[string]any{
		"name": "image", "image": k.service.Image, "imagePullPolicy": k.service.PullPolicy, "command": []any{"true"},
		"securityContext": map[string]any{"allowPrivilegeEscalation": false, "capabilities": map[string]any{"drop": []any{"ALL"}}},
	}
	labels := map[string]any{imageLabel: k.service.Name, deploymentLabel: k.topology.ID}
	pod := map[string]any{
		"automountServiceAccountToken": false, "enableServiceLinks": false, "terminationGracePeriodSeconds": 0,
		"containers": []any{container},
		"affinity": map[string]any{"podAffinity": map[string]any{"preferredDuringSchedulingIgnoredDuringExecution": []any{map[string]any{
			"weight": 100,
			"podAffinityTerm": map[string]any{
				"topologyKey": "kubernetes.io/hostname", "labelSelector": map[string]any{"matchLabels": k.selector()},
			},
		}}}},
	}
	k.place(pod)
	return kube.Object{
		"apiVersion": "apps/v1", "kind": "Deployment", "metadata": k.metadata(k.trialName()),
		"spec": map[string]any{
			"replicas": 1, "selector": map[string]any{"matchLabels": labels},
			"template": map[string]any{"metadata": map[string]any{"labels": labels}, "spec": pod},
		},
	}
}
