package steps

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/kube"
)

// Evidence keeps what the clusters have to say of the services: pods, events and
// logs. It is for the moment when a run has failed and nothing is put back yet. The
// boxes' own is kept by their steps.
func (l *Live) Evidence(ctx context.Context) error {
	if l.options.Keep == nil {
		return nil
	}
	ctx, cancel := bounded(ctx, evidenceBound, "the evidence in Kubernetes")
	defer cancel()
	var looks []func(context.Context) error
	for _, s := range l.topology.Services {
		if s.Server == "vsftpd" {
			looks = append(looks, func(ctx context.Context) error { return l.keepPods(ctx, s) })
		}
	}
	return together(ctx, looks)
}

// keepPods keeps the evidence of one service. Images print the password of their
// account, and the live one may be another than the blueprint's.
func (l *Live) keepPods(ctx context.Context, s *blueprints.Service) error {
	c, err := l.cluster(ctx, s.Cluster)
	if err != nil {
		return err
	}
	var who account
	secret, err := find(ctx, c, kube.Ref{Kind: "Secret", Namespace: s.Namespace, Name: workload{l.topology, s}.accountName()})
	if err == nil && secret != nil {
		err = secret.Decode(&who)
	}
	if err != nil {
		return fmt.Errorf("no pod's log is kept, as its secrets are not known: %w", err)
	}
	found, err := c.Look(ctx, s.Namespace, s.Name)
	for name, text := range found {
		if len(who.Data.Password) > 0 {
			text = bytes.ReplaceAll(text, who.Data.Password, []byte("(sensitive)"))
		}
		err = errors.Join(err, l.options.Keep("kubernetes-"+s.Name+"/"+name, text))
	}
	return err
}
