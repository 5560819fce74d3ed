package steps

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/aymanbagabas/go-udiff"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/kube"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/steps/proxy"
	"github.com/ftpdeploy/ftpdeploy/vsphere"
)

// adoption is the step that gives our mark to what stands where the blueprint has
// something of ours, and changes nothing else of it.
type adoption struct {
	address string
	look    func(context.Context) ([]plan.Change, error)
	found   bool // there was something to mark
}

// Name implements plan.Step.
func (s *adoption) Name() string { return "adopt/" + s.address }

// After implements plan.Step.
func (s *adoption) After() []string { return nil }

// Plan implements plan.Step.
func (s *adoption) Plan(ctx context.Context, _ plan.Goal) ([]plan.Change, error) {
	changes, err := s.look(ctx)
	if err == nil && len(changes) == 0 && !s.found {
		return nil, fmt.Errorf("there is nothing to adopt: what stands for %s is ours, or is not there", s.address)
	}
	s.found = s.found || len(changes) > 0
	return changes, err
}

// Adopt returns the step that marks as ours what an address of the blueprint
// stands for: "lb.NAME", its VM or the files in it, or "ftp_service.NAME".
func (l *Live) Adopt(address string) (plan.Step, error) {
	kind, name, _ := strings.Cut(address, ".")
	for _, g := range l.topology.Groups {
		for _, b := range g.Boxes {
			if kind == "lb" && b.Name == name {
				return &adoption{address: address, look: func(ctx context.Context) ([]plan.Change, error) { return l.adoptBox(ctx, g, b) }}, nil
			}
		}
	}
	for _, s := range l.topology.Services {
		if kind == "ftp_service" && s.Name == name && s.Server == "vsftpd" {
			w := workload{l.topology, s}
			k := &kubernetes{workload: w, wanted: w.manifests, client: l.clusterOf(s.Cluster)}
			return &adoption{address: address, look: k.adopt}, nil
		}
	}
	return nil, fmt.Errorf("adopt %s: the blueprint has no lb and no ftp_service of that address that ftpdeploy keeps", address)
}

// adoptBox marks the VM of a box or, where that is ours, its files.
func (l *Live) adoptBox(ctx context.Context, g *blueprints.Group, b *blueprints.Box) ([]plan.Change, error) {
	if b.Created() {
		change, err := l.adoptVM(ctx, b)
		if err != nil || change != nil {
			return change, err
		}
	}
	workers := map[*blueprints.Cluster][]netip.Addr{}
	for _, c := range l.topology.Clusters {
		nodes, err := l.workers(ctx, c)
		if err != nil {
			return nil, err
		}
		workers[c] = nodes
	}
	s := newHost(l.topology, g, b, func(ctx context.Context) (*remote.Host, error) { return l.host(ctx, b) },
		func(context.Context) ([]proxy.File, error) { return proxy.Files(l.topology, g, b, workers) }, nil, nil)
	return s.adopt(ctx)
}

func (l *Live) adoptVM(ctx context.Context, b *blueprints.Box) ([]plan.Change, error) {
	c, err := l.vcenter(ctx, b.Site.VCenter)
	if err != nil {
		return nil, err
	}
	spec := vmSpec(l.topology, b)
	i, err := c.Observe(ctx, []vsphere.Spec{spec}, nil)
	if err != nil {
		return nil, err
	}
	id, err := i.Stranger(spec)
	if id == "" || err != nil {
		return nil, err
	}
	return []plan.Change{{
		Action: plan.Update, Target: spec.Name, Reason: "bears no mark; gets both of ours, and nothing else of it changes", From: id, Want: "marked",
		Detail: plan.Diff{Fields: []plan.Field{{Path: "instanceUuid", After: spec.UUID()}, {Path: "deployment", After: spec.Deployment}}},
		Do:     func(ctx context.Context, _ func(string)) error { return c.Adopt(ctx, spec, id) },
	}}, nil
}

// adopt marks the files of a box that others wrote.
func (s *hostStep) adopt(ctx context.Context) ([]plan.Change, error) {
	files, err := s.files(ctx)
	if err != nil {
		return nil, err
	}
	facts, err := s.observe(ctx, files)
	if errors.Is(err, ErrAbsent) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	l := &hostLook{hostStep: s, files: files, facts: facts}
	var changes []plan.Change
	for _, f := range files {
		now := l.state(f.Path)
		if !now.Exists || now.Content == nil || now.Pristine {
			continue
		}
		switch owner, marked := proxy.Owner(now.Content); {
		case !marked:
			changes = append(changes, l.adoptFile(f, now))
		case owner != s.topology.ID:
			return nil, l.anothers(f, owner)
		}
	}
	return changes, nil
}

// adoptFile puts our mark on a file. What is there now is what destroy puts back.
func (l *hostLook) adoptFile(f proxy.File, now remote.FileState) plan.Change {
	marked := proxy.Mark(l.topology, l.box, now.Content)
	return plan.Change{
		Action: plan.Update, Target: l.target(f.Path), From: now.SHA256, Want: "marked",
		Reason: "written by others; gets our mark, and is kept as " + l.kept(f.Path) + ", which destroy puts back",
		Detail: plan.Diff{Unified: udiff.Unified(f.Path, f.Path, string(now.Content), string(marked))},
		Do: l.act(actBound, func(ctx context.Context, h *remote.Host, _ func(string)) error {
			// What was kept before stood there before the file that is adopted.
			if err := h.RemoveAll(ctx, l.kept(f.Path)); err != nil {
				return err
			}
			return h.Put(ctx, remote.File{Path: l.root + f.Path, Mode: "0" + now.Mode, Owner: now.Owner + ":", Content: marked, Keep: l.kept(f.Path)})
		}),
	}
}

// adopt marks the objects of a service that others made, if the API server would
// then let us keep them.
func (k *kubernetes) adopt(ctx context.Context) ([]plan.Change, error) {
	c, err := k.client(ctx)
	if err != nil {
		return nil, err
	}
	m, err := k.wanted()
	if err != nil {
		return nil, err
	}
	var changes []plan.Change
	var refused []error
	for _, o := range m.objects {
		live, err := find(ctx, c, o.Ref())
		switch {
		case err != nil:
			return nil, err
		case live == nil, k.mine(live):
			continue
		case live.Labels[deploymentLabel] != "":
			refused = append(refused, k.checkOwner(live))
			continue
		case live.Deleting:
			return nil, fmt.Errorf("%s is being deleted: plan again when it is gone", live.Ref)
		}
		if _, err := c.Preview(ctx, live, o); err != nil {
			refused = append(refused, fmt.Errorf("%s cannot be adopted, since it cannot become what the blueprint says: %w; delete it, or use another name", live.Ref, err))
			continue
		}
		changes = append(changes, k.adoptObject(c, live, o))
	}
	return changes, errors.Join(refused...)
}

func (k *kubernetes) adoptObject(c *kube.Client, live *kube.Live, o kube.Object) plan.Change {
	wanted, _ := o["metadata"].(map[string]any)
	metadata := map[string]any{"namespace": live.Namespace, "name": live.Name}
	var fields []plan.Field
	for _, part := range []struct {
		field string
		keys  []string
	}{{"labels", []string{deploymentLabel, serviceLabel, volumeLabel}}, {"annotations", []string{keepAnnotation}}} {
		all, _ := wanted[part.field].(map[string]any)
		marks := map[string]any{}
		for _, key := range part.keys {
			if value, ok := all[key]; ok {
				marks[key] = value
				fields = append(fields, plan.Field{Path: "metadata." + part.field + "." + key, After: fmt.Sprint(value)})
			}
		}
		if len(marks) > 0 {
			metadata[part.field] = marks
		}
	}
	mark := kube.Object{"apiVersion": o["apiVersion"], "kind": o["kind"], "metadata": metadata}
	return plan.Change{
		Action: plan.Update, Target: live.Ref.String(), From: live.UID, Want: "marked",
		Reason: "made by " + strings.Join(managers(live), ", ") + "; gets our mark, and nothing else of it changes",
		Detail: plan.Diff{Fields: fields},
		Do: func(ctx context.Context, _ func(string)) error {
			_, err := c.Apply(ctx, mark, false)
			return err
		},
	}
}

// managers are who wrote an object's fields, each once.
func managers(l *kube.Live) []string {
	var names []string
	for _, m := range l.Managers {
		if !slices.Contains(names, m.Name) {
			names = append(names, m.Name)
		}
	}
	return names
}
