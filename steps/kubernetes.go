package steps

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aymanbagabas/go-udiff"
	"golang.org/x/sync/errgroup"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/kube"
	"github.com/ftpdeploy/ftpdeploy/plan"
)

// rolloutWait bounds the wait until a pod serves: it includes the pull of the image.
const rolloutWait = 5 * time.Minute

// servingPod is what the wait for a pod that is being replaced leads to.
const servingPod = "serving"

// takenWait bounds the wait until a pod has taken its settings: a kubelet that
// does not listen looks by itself within two minutes.
const takenWait = 3 * time.Minute

// ForeignError says that an object of our name is not ours.
type ForeignError struct {
	Object   kube.Ref
	Owner    string   // another deployment's ID, or ""
	Ours     string   // this deployment's ID
	Managers []string // who wrote its fields
	Service  string   // that has it in the blueprint
}

func (e *ForeignError) Error() string {
	if e.Owner != "" {
		return fmt.Sprintf("%s belongs to deployment %q, this is %q: deployments do not share objects; use another name or namespace, or destroy the other one first [FTP603]", e.Object, e.Owner, e.Ours)
	}
	return fmt.Sprintf("%s is there and was not made by ftpdeploy (managed by %s): take it over with ftpdeploy adopt ftp_service.%s, use another name or namespace, or delete it", e.Object, strings.Join(e.Managers, ", "), e.Service)
}

// kubernetes is the step of one FTP service: namespace, account, claims,
// Deployment and Service.
type kubernetes struct {
	workload
	wanted     func() (*manifests, error) // made once: the account's checksum takes a tenth of a second
	client     func(context.Context) (*kube.Client, error)
	past       bool     // wanted is a former generation
	deleteData []string // claims that are deleted although they are kept: volume NAME or SERVICE/NAME
	after      []string
}

// newKubernetes makes the step "kubernetes/NAME"; after are the steps that come
// first: those that give back NodePorts that it needs, and boxes.
func newKubernetes(t *blueprints.Topology, s *blueprints.Service, client func(context.Context) (*kube.Client, error), deleteData []string, after ...string) *kubernetes {
	w := workload{t, s}
	return &kubernetes{workload: w, wanted: sync.OnceValues(w.manifests), client: client, deleteData: deleteData, after: after}
}

func (k *kubernetes) Name() string { return "kubernetes/" + k.service.Name }

// After names the service that answers for the namespace, where that is another
// one, and what else comes first.
func (k *kubernetes) After() []string {
	after := slices.Clone(k.after)
	if first := k.firstInNamespace(); first != k.service {
		after = append(after, "kubernetes/"+first.Name)
	}
	return after
}

// neighbours are the services of the blueprint that have objects in the
// namespace, in its order.
func (k *kubernetes) neighbours() []*blueprints.Service {
	var all []*blueprints.Service
	for _, s := range k.topology.Services {
		if s.Server == "vsftpd" && s.Cluster == k.service.Cluster && s.Namespace == k.service.Namespace {
			all = append(all, s)
		}
	}
	return all
}

// firstInNamespace is the service that makes the namespace and clears away what
// services left in it that the blueprint does not have any more.
func (k *kubernetes) firstInNamespace() *blueprints.Service {
	if all := k.neighbours(); len(all) > 0 {
		return all[0]
	}
	return k.service
}

func (k *kubernetes) Plan(ctx context.Context, goal plan.Goal) ([]plan.Change, error) {
	c, err := k.client(ctx)
	if err != nil {
		return nil, err
	}
	var changes []plan.Change
	if goal == plan.Present {
		changes, err = k.present(ctx, c)
	} else {
		changes, err = k.absent(ctx, c)
	}
	return k.allowed(ctx, c, changes, err)
}

// allowed holds the account's rights against what a plan needs. What is not
// needed is not asked for: rights are looked at when there is something to do, or
// when the server refused.
func (k *kubernetes) allowed(ctx context.Context, c *kube.Client, changes []plan.Change, err error) ([]plan.Change, error) {
	if errors.Is(err, kube.ErrForbidden) || err == nil && len(changes) > 0 {
		namespace := kube.Ref{Kind: "Namespace", Name: k.service.Namespace}.String()
		own := slices.ContainsFunc(changes, func(c plan.Change) bool { return c.Target == namespace })
		if lacking := c.Check(ctx, k.rights(own || err != nil && k.service.CreateNamespace)); lacking != nil {
			return nil, lacking
		}
	}
	return changes, err
}

// rights are all that the step may need, with those to make and delete the
// namespace if it is to do that.
func (k *kubernetes) rights(namespace bool) []kube.Right {
	ns := k.service.Namespace
	rights := []kube.Right{
		{Verb: "list", Resource: "services"},
		{Verb: "list", Group: "storage.k8s.io", Resource: "storageclasses"},
		{Verb: "get", Resource: "namespaces", Namespace: ns},
		{Verb: "list", Resource: "pods", Namespace: ns},
		{Verb: "get", Resource: "pods/log", Namespace: ns},
		{Verb: "list", Resource: "events", Namespace: ns},
	}
	if k.service.LiveSettings {
		rights = append(rights, kube.Right{Verb: "patch", Resource: "pods", Namespace: ns})
	}
	rights = append(rights, k.lockRights()...)
	if k.service.Cluster.WorkerSelector != "" {
		rights = append(rights, kube.Right{Verb: "list", Resource: "nodes"})
	}
	if namespace {
		rights = append(rights, kube.Right{Verb: "create", Resource: "namespaces"},
			kube.Right{Verb: "patch", Resource: "namespaces", Namespace: ns}, kube.Right{Verb: "delete", Resource: "namespaces", Namespace: ns})
		for _, i := range inhabitants {
			rights = append(rights, kube.Right{Verb: "list", Group: i.group, Resource: i.resource, Namespace: ns})
		}
	}
	for _, verb := range []string{"get", "list", "create", "patch", "delete"} {
		for _, resource := range []string{"secrets", "configmaps", "persistentvolumeclaims", "services"} {
			rights = append(rights, kube.Right{Verb: verb, Resource: resource, Namespace: ns})
		}
		rights = append(rights, kube.Right{Verb: verb, Group: "apps", Resource: "deployments", Namespace: ns})
	}
	return rights
}

// present plans what must be made or put right, in this order: what an earlier
// blueprint left and would hold ports, the namespace, the objects, and what an
// earlier blueprint left otherwise.
func (k *kubernetes) present(ctx context.Context, c *kube.Client) ([]plan.Change, error) {
	m, err := k.wanted()
	if err != nil {
		return nil, err
	}
	var (
		namespace *kube.Live
		held      map[int]kube.Holder
		ours      []*kube.Live
		live      = make([]*kube.Live, len(m.objects))
	)
	look, lookCtx := errgroup.WithContext(ctx)
	look.SetLimit(4)
	look.Go(func() (err error) {
		namespace, err = find(lookCtx, c, kube.Ref{Kind: "Namespace", Name: k.service.Namespace})
		return err
	})
	look.Go(func() (err error) { ours, err = k.owned(lookCtx, c); return err })
	if len(m.objects) > 0 {
		look.Go(func() (err error) { held, err = c.NodePorts(lookCtx); return err })
	}
	for i, o := range m.objects {
		look.Go(func() (err error) { live[i], err = find(lookCtx, c, o.Ref()); return err })
	}
	if err := look.Wait(); err != nil {
		return nil, err
	}
	if len(m.objects) > 0 && namespace != nil && namespace.Deleting {
		return nil, fmt.Errorf("%s is being deleted: plan again when it is gone", namespace.Ref)
	}
	if err := k.checkHolders(held); err != nil {
		return nil, err
	}
	if err := k.checkStorage(ctx, c, live); err != nil {
		return nil, err
	}
	for _, l := range live {
		if err := k.checkOwner(l); err != nil {
			return nil, err
		}
	}

	var changes []plan.Change
	var late []plan.Change
	for _, l := range ours {
		if slices.ContainsFunc(m.objects, func(o kube.Object) bool { return o.Ref() == l.Ref }) || k.keeps(l) {
			continue
		}
		stale := k.deletion(c, l, notWanted)
		if stale.Undo, err = k.again(ctx, c, l); err != nil {
			return nil, err
		}
		if l.Kind == "Service" || l.Kind == "Deployment" {
			changes = append(changes, stale)
		} else { // a claim can go when the pod is without it
			late = append(late, stale)
		}
	}
	fresh, from := namespace == nil, ""
	switch {
	case len(m.objects) == 0:
	case fresh && m.namespace == nil:
		return nil, fmt.Errorf("namespace %q is not there: make it, or let ftpdeploy do it with create_namespace = true", k.service.Namespace)
	case fresh && k.firstInNamespace() != k.service:
		from = plan.Unseen // made by another step
	case m.namespace != nil && k.firstInNamespace() == k.service && (fresh || k.mine(namespace)):
		change, err := k.keep(ctx, c, m, m.namespace, namespace)
		if err != nil {
			return nil, err
		}
		changes = append(changes, change...)
	}
	// A dry run in a namespace that is not there, or for ports that are about to
	// be given back, would only be refused.
	blind := func(i int) bool {
		return fresh || live[i] == nil && m.objects[i].Ref().Kind == "Service" && k.heldByStale(held)
	}
	planned := make([][]plan.Change, len(m.objects))
	check, checkCtx := errgroup.WithContext(ctx)
	check.SetLimit(4)
	for i, o := range m.objects {
		if blind(i) {
			change, err := k.creation(c, m, o)
			if err != nil {
				return nil, err
			}
			change.From = from
			planned[i] = []plan.Change{change}
			continue
		}
		check.Go(func() (err error) { planned[i], err = k.keep(checkCtx, c, m, o, live[i]); return err })
	}
	if err := check.Wait(); err != nil {
		return nil, err
	}
	k.missed(live, planned)
	if i := slices.IndexFunc(live, func(l *kube.Live) bool { return l != nil && l.Kind == "Deployment" }); i >= 0 && len(planned[i]) > 0 {
		pull, err := k.pulling(c, live[i])
		if err != nil {
			return nil, err
		}
		if pull != nil {
			changes = slices.Insert(changes, 0, *pull)
		}
	}
	all := slices.Concat(changes, slices.Concat(planned...), late)
	k.together(all)
	return all, nil
}

// together has the Deployment put back after its account: the pod reads that when
// it starts.
func (k *kubernetes) together(changes []plan.Change) {
	at := func(kind, name string) int {
		target := kube.Ref{Kind: kind, Namespace: k.service.Namespace, Name: name}.String()
		return slices.IndexFunc(changes, func(c plan.Change) bool { return c.Target == target && c.Action == plan.Update })
	}
	account, pod := at("Secret", k.accountName()), at("Deployment", k.service.Name)
	if account < 0 || pod < 0 {
		return
	}
	undo := changes[pod].Undo
	changes[pod].Undo = func(ctx context.Context) error {
		if err := changes[account].Undo(ctx); err != nil {
			return err
		}
		return undo(ctx)
	}
}

// missed finds what was there: objects are made in their order, so one that is
// missing before one that is there was deleted.
func (k *kubernetes) missed(live []*kube.Live, planned [][]plan.Change) {
	var later *kube.Live
	for i := range slices.Backward(live) {
		switch {
		case live[i] != nil && live[i].Kind != "PersistentVolumeClaim": // which may be kept, or new
			later = live[i]
		case live[i] == nil && later != nil && len(planned[i]) > 0 && planned[i][0].Action == plan.Create &&
			!strings.HasPrefix(planned[i][0].Target, "PersistentVolumeClaim ") && !strings.HasPrefix(planned[i][0].Target, "ConfigMap ") && planned[i][0].Target != k.tlsRef().String():
			planned[i][0].Cause = drifted("", time.Time{})
			planned[i][0].Reason += fmt.Sprintf(", and %s, which is made after it, is: it was deleted", later.Ref)
		}
	}
}

// find is Find with nil for what is certainly not there.
func find(ctx context.Context, c *kube.Client, r kube.Ref) (*kube.Live, error) {
	live, err := c.Find(ctx, r)
	if errors.Is(err, kube.ErrNotFound) {
		return nil, nil
	}
	return live, err
}

// keep plans what makes an object as it is wanted: nothing, its creation or its
// correction.
func (k *kubernetes) keep(ctx context.Context, c *kube.Client, m *manifests, o kube.Object, live *kube.Live) ([]plan.Change, error) {
	if live != nil && live.Deleting {
		return nil, fmt.Errorf("%s is being deleted: plan again when it is gone", live.Ref)
	}
	if live == nil && o.Ref().Kind == "Namespace" { // a dry run of it tells nothing
		change, err := k.creation(c, m, o)
		return []plan.Change{change}, err
	}
	p, err := c.Preview(ctx, live, o)
	if err != nil {
		return nil, err
	}
	if live == nil {
		change, err := k.creation(c, m, o)
		change.Detail.Fields = append(change.Detail.Fields, warningFields(p.Warnings)...)
		return []plan.Change{change}, err
	}
	if len(p.Deltas) == 0 {
		return k.serving(ctx, c, live)
	}
	want, err := m.fingerprint(o)
	if err != nil {
		return nil, err
	}
	change := plan.Change{
		Action: plan.Update, Target: live.Ref.String(), Reason: reason(p.Deltas), Cause: k.cause(live.Ref, p.Deltas), Effect: plan.NoEffect,
		From: p.Fingerprint(), Want: want, Do: k.unmoved(c, o, p.Fingerprint(), k.applying(c, o)), Needs: objectDangers(live.Kind, p.Deltas),
	}
	if k.revision(o) != "" {
		change.Effect = plan.Reload
	}
	var taken []kube.Delta
	if k.isTLS(live.Ref) {
		if change.Detail.Fields, err = k.tlsDetail(live, o); err != nil {
			return nil, err
		}
	}
	for _, d := range p.Deltas {
		if !k.isTLS(live.Ref) || !strings.HasPrefix(d.Path, "data") {
			change.Detail.Fields = append(change.Detail.Fields, plan.Field{Path: d.Path, Before: d.Before, After: d.After})
		}
		if d.Subresource == "scale" && d.Manager == "kube-controller-manager" {
			taken = append(taken, d)
		}
		if live.Kind == "Deployment" && (strings.HasPrefix(d.Path, "spec.template.") || d.Path == "spec.replicas") {
			change.Effect = plan.Rollout
		}
	}
	if taken != nil { // an autoscaler would set it again and again
		return nil, &kube.ConflictError{Object: live.Ref, Fields: taken}
	}
	change.Detail.Fields = append(change.Detail.Fields, warningFields(p.Warnings)...)
	grows := func(d kube.Delta) bool {
		return live.Kind == "PersistentVolumeClaim" && strings.HasPrefix(d.Path, "spec.")
	}
	if !slices.ContainsFunc(p.Deltas, grows) { // and never shrinks
		change.Undo = func(ctx context.Context) error { return k.applying(c, p.Before())(ctx, func(string) {}) }
	}
	return []plan.Change{change}, nil
}

// creation plans an object that is not there.
func (k *kubernetes) creation(c *kube.Client, m *manifests, o kube.Object) (plan.Change, error) {
	want, err := m.fingerprint(o)
	if err != nil {
		return plan.Change{}, err
	}
	text, err := manifestText(o)
	if err != nil {
		return plan.Change{}, err
	}
	var fields []plan.Field
	if k.isTLS(o.Ref()) {
		if fields, err = k.tlsDetail(nil, o); err != nil {
			return plan.Change{}, err
		}
	}
	target := o.Ref().String()
	return plan.Change{
		Action: plan.Create, Target: target, Reason: "not there", Cause: asked(k.topology, k.source(o.Ref(), "")), Effect: plan.NoEffect, Want: want,
		Detail: plan.Diff{Unified: udiff.Unified("/dev/null", target, "", text), Fields: fields},
		Do:     k.unmoved(c, o, "", k.applying(c, o)),
		Undo: func(ctx context.Context) error {
			live, err := find(ctx, c, o.Ref())
			if err != nil || live == nil || !k.mine(live) {
				return err
			}
			return c.Delete(ctx, live, nil)
		},
	}, nil
}

// unmoved makes an act that first looks whether its object is still what the change
// was planned from: one before it may have waited for minutes.
func (k *kubernetes) unmoved(c *kube.Client, o kube.Object, from string, act func(context.Context, func(string)) error) func(context.Context, func(string)) error {
	return func(ctx context.Context, report func(string)) error {
		live, err := find(ctx, c, o.Ref())
		if err != nil {
			return err
		}
		now := ""
		if live != nil {
			p, err := c.Preview(ctx, live, o)
			if err != nil {
				return err
			}
			now = p.Fingerprint()
		}
		if now != from {
			return plan.ErrMoved
		}
		return act(ctx, report)
	}
}

// applying writes an object and waits until it is in force: a Deployment until it
// serves, live settings until its pod has taken them.
func (k *kubernetes) applying(c *kube.Client, o kube.Object) func(context.Context, func(string)) error {
	return func(ctx context.Context, report func(string)) error {
		// By force: what others set of the fields that we own was shown as drift.
		if _, err := c.Apply(ctx, o, true); err != nil {
			return err
		}
		r := o.Ref()
		if r.Kind == "Deployment" {
			return k.await(ctx, c, r.Name, report)
		}
		if revision := k.revision(o); revision != "" {
			return c.WaitTaken(ctx, k.service.Namespace, k.service.Name, kube.Taken{
				Volume: settingsVolume, Source: r.Name, Annotation: requestMark, Revision: revision,
			}, takenWait, report)
		}
		return nil
	}
}

// revision is what the pod's log says when it has taken an object's settings; ""
// for an object that it takes none from while it runs.
func (k *kubernetes) revision(o kube.Object) string {
	data, _ := o["data"].(map[string]any)
	if revision, ok := data[settingsRevision].(string); ok {
		return "settings=" + revision
	}
	for name, says := range map[string]string{accountRevision: "account=", tlsRevision: "tls="} {
		if revision, ok := data[name].(string); ok {
			if text, err := base64.StdEncoding.DecodeString(revision); err == nil {
				return says + string(text)
			}
		}
	}
	return ""
}

// await waits until a Deployment serves.
func (k *kubernetes) await(ctx context.Context, c *kube.Client, name string, report func(string)) error {
	err := c.WaitRollout(ctx, k.service.Namespace, name, rolloutWait, report)
	if stuck, ok := errors.AsType[*kube.StuckError](err); ok && stuck.Reason == "FailedCreate" && strings.Contains(stuck.Detail, "PodSecurity") {
		return fmt.Errorf("%w\nnext: kubectl label namespace %s pod-security.kubernetes.io/enforce=baseline", err, k.service.Namespace)
	}
	return err
}

// serving plans the wait that a run before this one did not get to the end of.
func (k *kubernetes) serving(ctx context.Context, c *kube.Client, live *kube.Live) ([]plan.Change, error) {
	if live.Kind != "Deployment" {
		return nil, nil
	}
	ok, progress, err := c.Serving(ctx, live.Namespace, live.Name)
	if ok || err != nil {
		return nil, err
	}
	return []plan.Change{{
		Action: plan.Run, Target: live.Ref.String(), Reason: "wait until it serves: " + progress, Cause: drifted("", time.Time{}), Effect: plan.NoEffect,
		// A pod may become ready by itself before its turn comes.
		From: plan.Unseen, Want: servingPod,
		Do:   func(ctx context.Context, report func(string)) error { return k.await(ctx, c, live.Name, report) },
		Undo: func(context.Context) error { return nil }, // it changed nothing
	}}, nil
}

func warningFields(warnings []string) []plan.Field {
	var fields []plan.Field
	for _, w := range warnings {
		fields = append(fields, plan.Field{Path: "warning", After: w})
	}
	return fields
}

// fingerprint stands for the object as it is wanted. The account goes into it by
// its checksum only, certificate and private key by a digest of both.
func (m *manifests) fingerprint(o kube.Object) (string, error) {
	text, err := manifestText(o)
	if err != nil {
		return "", err
	}
	data, _ := o["data"].(map[string]any)
	if revision, ok := data[tlsRevision].(string); ok {
		text += revision
	} else if o.Ref().Kind == "Secret" {
		text += m.checksum
	}
	return fmt.Sprintf("%x", sha256.Sum256([]byte(text)))[:16], nil
}

// reason says what differs, and who made it so where the server knows.
func reason(deltas []kube.Delta) string {
	const shown = 3
	var parts []string
	for i, d := range deltas {
		if i == shown {
			parts = append(parts, fmt.Sprintf("and %d more", len(deltas)-shown))
			break
		}
		name := d.Path
		if !strings.HasSuffix(name, "]") {
			name = name[strings.LastIndex(name, ".")+1:]
		}
		switch {
		case d.Manager == "":
			parts = append(parts, name+" differs")
		case d.Before == d.After || d.Before == "" || d.After == "" || len(d.Before)+len(d.After) > 80:
			parts = append(parts, fmt.Sprintf("%s changed by %s", name, author(d)))
		default:
			parts = append(parts, fmt.Sprintf("%s %s -> %s by %s", name, d.After, d.Before, author(d)))
		}
	}
	return strings.Join(parts, "; ")
}

// author is who set the value that is there now, and at what time (UTC).
func author(d kube.Delta) string {
	if d.Time.IsZero() {
		return d.Manager
	}
	layout := "2006-01-02 15:04"
	if d.Time.UTC().Format(time.DateOnly) == time.Now().UTC().Format(time.DateOnly) {
		layout = "15:04"
	}
	return d.Manager + " at " + d.Time.UTC().Format(layout)
}

// mine tells whether an object bears our mark: the deployment's label or, where
// someone took that away, our field manager.
func (k *kubernetes) mine(l *kube.Live) bool {
	owner, labelled := l.Labels[deploymentLabel]
	if labelled {
		return owner == k.topology.ID
	}
	return slices.ContainsFunc(l.Managers, func(m kube.Manager) bool { return m.Name == kube.FieldManager && l.Kind != "Namespace" })
}

// checkOwner refuses an object of our name that is another's; nil is fine.
func (k *kubernetes) checkOwner(l *kube.Live) error {
	if l == nil {
		return nil
	}
	service, labelled := l.Labels[serviceLabel]
	switch {
	case !k.mine(l):
		return &ForeignError{
			Object: l.Ref, Owner: l.Labels[deploymentLabel], Ours: k.topology.ID, Managers: managers(l), Service: k.service.Name,
		}
	case labelled && service != k.service.Name:
		return fmt.Errorf("%s belongs to ftp_service %q of this deployment: give service or volume another name", l.Ref, service)
	}
	return nil
}

// checkHolders refuses NodePorts that other Services hold. A Service of ours that
// is not in the blueprint any more gives them back first.
func (k *kubernetes) checkHolders(held map[int]kube.Holder) error {
	s := k.service
	var taken []string
	for _, p := range k.ports() {
		h, ok := held[p.node]
		if !ok || h.Namespace == s.Namespace && h.Name == s.Name || k.givenBack(h) {
			continue
		}
		taken = append(taken, fmt.Sprintf("NodePort %d is taken by %s. [FTP502]", p.node, h))
	}
	if taken == nil {
		return nil
	}
	return errors.New(strings.Join(taken, "\n") + "\ngive ftp_service \"" + s.Name + "\" other NodePorts, or free these")
}

// checkStorage refuses claims that nobody would serve. Claims that are there are
// not asked about: they have what they have.
func (k *kubernetes) checkStorage(ctx context.Context, c *kube.Client, live []*kube.Live) error {
	var missing []blueprints.Volume
	for _, v := range k.service.Volumes {
		if !slices.ContainsFunc(live, func(l *kube.Live) bool {
			return l != nil && l.Kind == "PersistentVolumeClaim" && l.Name == k.claimName(v)
		}) {
			missing = append(missing, v)
		}
	}
	if missing == nil {
		return nil
	}
	classes, err := c.StorageClasses(ctx)
	if err != nil {
		return err
	}
	var names []string
	for _, s := range classes {
		if s.Default {
			names = append(names, s.Name+" (default)")
		} else {
			names = append(names, s.Name)
		}
	}
	here := "There is no storage class here."
	if names != nil {
		here = "Classes here: " + strings.Join(names, ", ") + "."
	}
	for _, v := range missing {
		switch {
		case v.StorageClass == "" && !slices.ContainsFunc(classes, func(s kube.StorageClass) bool { return s.Default }):
			return fmt.Errorf("volume %q wants the cluster's default storage class and there is none; the claim would stay Pending. %s Name one with storage_class. [FTP504]", v.Name, here)
		case v.StorageClass != "" && !slices.ContainsFunc(classes, func(s kube.StorageClass) bool { return s.Name == v.StorageClass }):
			return fmt.Errorf("volume %q wants storage class %q, which is not there; the claim would stay Pending. %s [FTP503]", v.Name, v.StorageClass, here)
		}
	}
	return nil
}

// heldByStale tells whether a Service that will be deleted holds a port of ours.
func (k *kubernetes) heldByStale(held map[int]kube.Holder) bool {
	return slices.ContainsFunc(k.ports(), func(p servicePort) bool {
		h, ok := held[p.node]
		return ok && k.givenBack(h)
	})
}

// givenBack tells whether the holder of a NodePort goes in this run, before the
// port is asked for: by this step, or by that of a namespace where the blueprint
// has no service any more.
func (k *kubernetes) givenBack(h kube.Holder) bool {
	if h.Namespace == k.service.Namespace {
		return k.stale(h.Labels)
	}
	return h.Labels[deploymentLabel] == k.topology.ID && !slices.ContainsFunc(k.topology.Services, func(s *blueprints.Service) bool {
		return s.Server == "vsftpd" && s.Cluster == k.service.Cluster && s.Namespace == h.Namespace
	})
}

// stale tells whether an object in the namespace with these labels is our
// deployment's, but of a service that the blueprint has not, or not any more.
func (k *kubernetes) stale(labels map[string]string) bool {
	name, ok := labels[serviceLabel]
	return ok && labels[deploymentLabel] == k.topology.ID && !slices.ContainsFunc(k.neighbours(), func(s *blueprints.Service) bool { return s.Name == name })
}

// clears tells whether this step answers for an object of our deployment with
// these labels: it is this service's, or stale and this step is the first in the
// namespace.
func (k *kubernetes) clears(labels map[string]string) bool {
	return k.service.Name != "" && labels[deploymentLabel] == k.topology.ID && labels[serviceLabel] == k.service.Name ||
		k.stale(labels) && k.firstInNamespace() == k.service
}

// deletionOrder is the order in which objects can go: what is used goes last.
var deletionOrder = []string{"Service", "Deployment", "PersistentVolumeClaim", "Secret", "ConfigMap"}

// owned lists the objects that this step answers for, in deletionOrder.
func (k *kubernetes) owned(ctx context.Context, c *kube.Client) ([]*kube.Live, error) {
	found := make([][]*kube.Live, len(deletionOrder))
	group, ctx := errgroup.WithContext(ctx)
	for i, kind := range deletionOrder {
		group.Go(func() error {
			all, err := c.List(ctx, kind, k.service.Namespace, map[string]string{deploymentLabel: k.topology.ID})
			found[i] = slices.DeleteFunc(all, func(l *kube.Live) bool { return !k.clears(l.Labels) })
			return err
		})
	}
	err := group.Wait()
	return slices.Concat(found...), err
}

// keeps tells whether a claim outlives its service, for its data.
func (k *kubernetes) keeps(l *kube.Live) bool {
	if l.Kind != "PersistentVolumeClaim" {
		return false
	}
	keep := l.Annotations[keepAnnotation] == "true"
	for _, v := range k.service.Volumes { // the blueprint knows better than what it once was
		if l.Name == k.claimName(v) {
			keep = v.Keep
		}
	}
	return keep && !k.named(l)
}

// named tells whether deleteData names a claim.
func (k *kubernetes) named(l *kube.Live) bool {
	volume := l.Labels[volumeLabel]
	for _, v := range k.service.Volumes {
		if l.Name == k.claimName(v) {
			volume = v.Name
		}
	}
	return slices.Contains(k.deleteData, volume) || slices.Contains(k.deleteData, l.Labels[serviceLabel]+"/"+volume)
}

// deletion plans the end of an object.
func (k *kubernetes) deletion(c *kube.Client, l *kube.Live, why string) plan.Change {
	effect := plan.NoEffect
	if l.Kind == "Deployment" || l.Kind == "Service" {
		effect = plan.Restart
	}
	var needs []string
	if l.Kind == "PersistentVolumeClaim" && !k.named(l) {
		needs = []string{DeleteData}
	}
	return plan.Change{
		Action: plan.Delete, Target: l.Ref.String(), Reason: why, Cause: destroyed(k.topology), Effect: effect, From: l.UID, Needs: needs,
		Do: func(ctx context.Context, report func(string)) error { return c.Delete(ctx, l, report) },
	}
}

// again is the Undo of a deletion: it makes the object again. It is nil where that
// does not bring back what was in it.
func (k *kubernetes) again(ctx context.Context, c *kube.Client, l *kube.Live) (func(context.Context) error, error) {
	if l.Kind == "PersistentVolumeClaim" {
		return nil, nil
	}
	live, err := find(ctx, c, l.Ref)
	if err != nil || live == nil {
		return nil, err
	}
	return func(ctx context.Context) error { return k.applying(c, live.Manifest())(ctx, func(string) {}) }, nil
}

// absent plans the end of everything of the service but the claims that are
// kept, and of the namespace if we made it and nothing else is in it.
func (k *kubernetes) absent(ctx context.Context, c *kube.Client) ([]plan.Change, error) {
	namespace, err := find(ctx, c, kube.Ref{Kind: "Namespace", Name: k.service.Namespace})
	if err != nil || namespace == nil {
		return nil, err
	}
	ours, err := k.owned(ctx, c)
	if err != nil {
		return nil, err
	}
	// By name too: someone may have taken a label away.
	for _, r := range k.names() {
		if slices.ContainsFunc(ours, func(l *kube.Live) bool { return l.Ref == r }) {
			continue
		}
		l, err := find(ctx, c, r)
		if err != nil {
			return nil, err
		}
		if l != nil && k.mine(l) && k.checkOwner(l) == nil {
			ours = append(ours, l)
		}
	}
	slices.SortStableFunc(ours, func(a, b *kube.Live) int {
		return slices.Index(deletionOrder, a.Kind) - slices.Index(deletionOrder, b.Kind)
	})
	return k.removal(ctx, c, namespace, ours, "destroy")
}

// removal plans the end of objects but of the claims that are kept, and of their
// namespace if we made it and nothing else is in it.
func (k *kubernetes) removal(ctx context.Context, c *kube.Client, namespace *kube.Live, ours []*kube.Live, why string) ([]plan.Change, error) {
	var changes []plan.Change
	kept := false
	for _, l := range ours {
		if k.keeps(l) {
			kept = true
			continue
		}
		changes = append(changes, k.deletion(c, l, why))
	}
	if kept || namespace.Deleting || !k.mine(namespace) || k.firstInNamespace() != k.service {
		return changes, nil
	}
	others, err := k.others(ctx, c, changes)
	if err != nil || others != "" {
		return changes, err
	}
	return append(changes, k.deletion(c, namespace, why+"; nothing else is in it")), nil
}

// names are what the service's objects are called.
func (k *kubernetes) names() []kube.Ref {
	ns := k.service.Namespace
	names := []kube.Ref{{Kind: "Service", Namespace: ns, Name: k.service.Name}, {Kind: "Deployment", Namespace: ns, Name: k.service.Name}}
	for _, v := range k.service.Volumes {
		names = append(names, kube.Ref{Kind: "PersistentVolumeClaim", Namespace: ns, Name: k.claimName(v)})
	}
	names = append(names, kube.Ref{Kind: "Secret", Namespace: ns, Name: k.accountName()})
	if k.service.TLS != nil {
		names = append(names, k.tlsRef())
	}
	if k.service.LiveSettings {
		names = append(names, kube.Ref{Kind: "ConfigMap", Namespace: ns, Name: k.settingsName()})
	}
	return names
}

// inhabitants are the kinds in which work or data live: while there is one of
// them that is not ours, the namespace stays.
var inhabitants = []struct{ kind, group, resource string }{
	{"Pod", "", "pods"},
	{"Service", "", "services"},
	{"PersistentVolumeClaim", "", "persistentvolumeclaims"},
	{"Secret", "", "secrets"},
	{"ConfigMap", "", "configmaps"},
	{"Deployment", "apps", "deployments"},
	{"StatefulSet", "apps", "statefulsets"},
	{"DaemonSet", "apps", "daemonsets"},
	{"Job", "batch", "jobs"},
	{"CronJob", "batch", "cronjobs"},
}

// others names something in the namespace that is not ours, or that is kept; ""
// means that there will be nothing after the changes.
func (k *kubernetes) others(ctx context.Context, c *kube.Client, changes []plan.Change) (string, error) {
	for _, i := range inhabitants {
		all, err := c.List(ctx, i.kind, k.service.Namespace, nil)
		if err != nil {
			return "", err
		}
		for _, l := range all {
			byKubernetes := l.Name == "kube-root-ca.crt" || l.Annotations["kubernetes.io/service-account.name"] != ""
			ours := l.Labels[deploymentLabel] == k.topology.ID && !k.keeps(l)
			goes := slices.ContainsFunc(changes, func(c plan.Change) bool { return c.Target == l.Ref.String() })
			if !byKubernetes && !ours && !goes {
				return l.Ref.String(), nil
			}
		}
	}
	return "", nil
}
