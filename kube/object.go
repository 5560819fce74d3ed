package kube

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// deleteWait bounds the wait for an object to be gone: a pod's grace period, the
// release of a volume, a namespace's emptying.
const deleteWait = 5 * time.Minute

// Object is a manifest: exactly the fields that we want to own, as the API's JSON
// names them. It has apiVersion, kind and metadata.name, and metadata.namespace
// unless its kind stands outside of namespaces.
type Object map[string]any

// Ref returns what the object is called.
func (o Object) Ref() Ref {
	meta, _ := o["metadata"].(map[string]any)
	kind, _ := o["kind"].(string)
	namespace, _ := meta["namespace"].(string)
	name, _ := meta["name"].(string)
	return Ref{Kind: kind, Namespace: namespace, Name: name}
}

// Ref names an object of one of the kinds that this package knows.
type Ref struct{ Kind, Namespace, Name string }

// String is as in "Service ftp/vsftpd".
func (r Ref) String() string {
	if r.Namespace == "" {
		return r.Kind + " " + r.Name
	}
	return r.Kind + " " + r.Namespace + "/" + r.Name
}

// kinds are the resources that can be named by a Ref.
var kinds = map[string]schema.GroupVersionResource{
	"Namespace":             {Version: "v1", Resource: "namespaces"},
	"Secret":                {Version: "v1", Resource: "secrets"},
	"ConfigMap":             {Version: "v1", Resource: "configmaps"},
	"PersistentVolumeClaim": {Version: "v1", Resource: "persistentvolumeclaims"},
	"Pod":                   {Version: "v1", Resource: "pods"},
	"Service":               {Version: "v1", Resource: "services"},
	"Deployment":            {Group: "apps", Version: "v1", Resource: "deployments"},
	"StatefulSet":           {Group: "apps", Version: "v1", Resource: "statefulsets"},
	"DaemonSet":             {Group: "apps", Version: "v1", Resource: "daemonsets"},
	"Job":                   {Group: "batch", Version: "v1", Resource: "jobs"},
	"CronJob":               {Group: "batch", Version: "v1", Resource: "cronjobs"},
}

func resource(kind string) (schema.GroupVersionResource, error) {
	r, ok := kinds[kind]
	if !ok {
		return r, fmt.Errorf("bug: kind %q is not known", kind)
	}
	return r, nil
}

// Live is an object as the API server has it.
type Live struct {
	Ref
	UID             string
	ResourceVersion string
	Labels          map[string]string
	Annotations     map[string]string
	Created         time.Time
	Deleting        bool      // it is on its way out
	Managers        []Manager // who wrote its fields, as the server recorded it

	content map[string]any // nil when it comes from List
}

// Manager wrote some of an object's fields.
type Manager struct {
	Name        string
	Subresource string    // "scale", "status", ...; "" = the object itself
	Time        time.Time // of its last write that changed something

	apply  bool
	fields map[string]any // FieldsV1
}

func newLive(r Ref, m metav1.Object, content map[string]any) (*Live, error) {
	l := &Live{
		Ref: r, UID: string(m.GetUID()), ResourceVersion: m.GetResourceVersion(), Labels: m.GetLabels(), Annotations: m.GetAnnotations(),
		Created: m.GetCreationTimestamp().UTC(), Deleting: m.GetDeletionTimestamp() != nil, content: content,
	}
	for _, f := range m.GetManagedFields() {
		g := Manager{Name: f.Manager, Subresource: f.Subresource, apply: f.Operation == metav1.ManagedFieldsOperationApply}
		if f.Time != nil {
			g.Time = f.Time.UTC()
		}
		if f.FieldsV1 != nil {
			if err := json.Unmarshal(f.FieldsV1.GetRawBytes(), &g.fields); err != nil {
				return nil, fmt.Errorf("read who manages %s: %w", r, err)
			}
		}
		l.Managers = append(l.Managers, g)
	}
	return l, nil
}

// Decode reads the object, which comes from Find, into a struct of the API's JSON.
func (l *Live) Decode(into any) error {
	text, err := json.Marshal(l.content)
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", l.Ref, err)
	}
	return nil
}

// Find returns the object, or an error that is ErrNotFound when it is not there.
func (c *Client) Find(ctx context.Context, r Ref) (*Live, error) {
	g, err := resource(r.Kind)
	if err != nil {
		return nil, err
	}
	var live *Live
	err = c.try(ctx, "get "+r.String(), func(ctx context.Context) error {
		u, err := c.objects.Resource(g).Namespace(r.Namespace).Get(ctx, r.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		live, err = newLive(r, u, u.Object)
		return err
	})
	return live, err
}

// List returns the objects of a kind that bear all labels, by their metadata
// only. Namespace "" is all of them; one that is not there holds none.
func (c *Client) List(ctx context.Context, kind, namespace string, withLabels map[string]string) ([]*Live, error) {
	g, err := resource(kind)
	if err != nil {
		return nil, err
	}
	var found []*Live
	what := fmt.Sprintf("list every %s in namespace %s", kind, namespace)
	if namespace == "" {
		what = fmt.Sprintf("list every %s in all namespaces", kind)
	}
	err = c.try(ctx, what, func(ctx context.Context) error {
		found = nil
		list, err := c.metadata.Resource(g).Namespace(namespace).List(ctx, metav1.ListOptions{LabelSelector: labels.Set(withLabels).String()})
		if err != nil {
			return err
		}
		for i := range list.Items {
			m := &list.Items[i]
			live, err := newLive(Ref{kind, m.Namespace, m.Name}, m, nil)
			if err != nil {
				return err
			}
			found = append(found, live)
		}
		return nil
	})
	return found, err
}

// Preview is what an apply would do.
type Preview struct {
	Live     *Live    // as it is now; nil = not there
	Deltas   []Delta  // the owned fields that would change; none = nothing to do
	Warnings []string // what the server says beside, such as Pod Security

	would *Live
}

// Preview asks the server what applying o, with force, would change of live, which
// is nil when o is not there. Nothing is written. The namespace must be there.
func (c *Client) Preview(ctx context.Context, live *Live, o Object) (*Preview, error) {
	what := "check " + o.Ref().String()
	ctx, w := collect(ctx)
	would, err := c.patch(ctx, what, o, true, true)
	rolling := live != nil && wantsRecreate(err)
	if rolling {
		would, err = c.patch(ctx, what, withoutStrategy(o), true, true)
	}
	if err != nil {
		return nil, err
	}
	p := &Preview{Live: live, Deltas: compare(live, would), Warnings: w.texts, would: would}
	if rolling {
		p.Deltas = append(p.Deltas, live.delta([]string{"f:spec", "f:strategy", "f:type"}, "RollingUpdate", "Recreate"))
	}
	return p, nil
}

// Fingerprint stands for the live object as far as the apply would change it; ""
// when there is none. It holds no secret: that of a Secret is its version.
func (p *Preview) Fingerprint() string {
	if p.Live == nil {
		return ""
	}
	if p.Live.Kind == "Secret" {
		return p.Live.UID + "@" + p.Live.ResourceVersion
	}
	var b strings.Builder
	for _, d := range p.Deltas {
		fmt.Fprintf(&b, "%s=%s\n", d.Path, d.Before)
	}
	sum := sha256.Sum256([]byte(b.String()))
	return fmt.Sprintf("%s@%x", p.Live.UID, sum[:8])
}

// Before is the manifest that puts back what the apply would change or take away;
// nil when there was nothing.
func (p *Preview) Before() Object {
	if p.Live == nil {
		return nil
	}
	return p.Live.manifest(merged(owned(p.Live), owned(p.would)))
}

// Manifest is what of the object is ours, by which it can be made again. The object
// comes from Find.
func (l *Live) Manifest() Object { return l.manifest(owned(l)) }

// manifest has the fields of the object that the tree names.
func (l *Live) manifest(tree map[string]any) Object {
	fields, _ := project(tree, l.content).(map[string]any)
	name := map[string]any{"name": l.Name}
	if l.Namespace != "" {
		name["namespace"] = l.Namespace
	}
	return merged(fields, map[string]any{"apiVersion": l.content["apiVersion"], "kind": l.Kind, "metadata": name})
}

// wantsRecreate tells whether a Deployment was refused because it has the
// parameters of a rolling update, which server-side apply cannot clear.
func wantsRecreate(err error) bool {
	var status apierrors.APIStatus
	if !apierrors.IsInvalid(err) || !errors.As(err, &status) || status.Status().Details == nil {
		return false
	}
	for _, c := range status.Status().Details.Causes {
		if c.Field == "spec.strategy.rollingUpdate" {
			return true
		}
	}
	return false
}

// withoutStrategy is a copy of a Deployment that does not name its strategy.
func withoutStrategy(o Object) Object {
	o = maps.Clone(o)
	spec, _ := o["spec"].(map[string]any)
	spec = maps.Clone(spec)
	delete(spec, "strategy")
	o["spec"] = spec
	return o
}

// Apply writes the fields of o and returns the object as it then is. Without
// force it stops with a *ConflictError where another manager owns a field that o
// wants otherwise.
func (c *Client) Apply(ctx context.Context, o Object, force bool) (*Live, error) {
	what := "apply " + o.Ref().String()
	live, err := c.patch(ctx, what, o, force, false)
	if wantsRecreate(err) {
		recreate := []byte(`{"spec":{"strategy":{"type":"Recreate","rollingUpdate":null}}}`)
		err = c.try(ctx, what, func(ctx context.Context) error {
			_, err := c.objects.Resource(kinds["Deployment"]).Namespace(o.Ref().Namespace).
				Patch(ctx, o.Ref().Name, types.StrategicMergePatchType, recreate, metav1.PatchOptions{FieldManager: FieldManager})
			return err
		})
		if err != nil {
			return nil, err
		}
		live, err = c.patch(ctx, what, o, force, false)
	}
	if !apierrors.IsConflict(err) || force {
		return live, err
	}
	before, findErr := c.Find(ctx, o.Ref())
	if findErr != nil {
		return nil, err
	}
	p, previewErr := c.Preview(ctx, before, o)
	if previewErr != nil {
		return nil, err
	}
	conflict := &ConflictError{Object: o.Ref()}
	for _, d := range p.Deltas {
		if d.Manager != "" {
			conflict.Fields = append(conflict.Fields, d)
		}
	}
	if len(conflict.Fields) == 0 {
		return nil, err
	}
	return nil, conflict
}

// patch is server-side apply. It is safe to repeat.
func (c *Client) patch(ctx context.Context, what string, o Object, force, dry bool) (*Live, error) {
	r := o.Ref()
	g, err := resource(r.Kind)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	options := metav1.PatchOptions{FieldManager: FieldManager, Force: &force, FieldValidation: metav1.FieldValidationStrict}
	if dry {
		options.DryRun = []string{metav1.DryRunAll}
	}
	var live *Live
	err = c.try(ctx, what, func(ctx context.Context) error {
		u, err := c.objects.Resource(g).Namespace(r.Namespace).Patch(ctx, r.Name, types.ApplyPatchType, body, options)
		if err != nil {
			return err
		}
		live, err = newLive(r, u, u.Object)
		return err
	})
	return live, err
}

// Delete deletes the object that l was, with all that hangs on it, and returns
// when it is gone. An object of the same name that was made since is left alone.
// Report says what is being waited for; it may be nil.
func (c *Client) Delete(ctx context.Context, l *Live, report func(string)) error {
	g, err := resource(l.Kind)
	if err != nil {
		return err
	}
	what := "delete " + l.Ref.String()
	uid := types.UID(l.UID)
	options := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}
	if l.Kind == "Deployment" { // it is gone when its pods are
		foreground := metav1.DeletePropagationForeground
		options.PropagationPolicy = &foreground
	}
	err = c.try(ctx, what, func(ctx context.Context) error {
		err := c.objects.Resource(g).Namespace(l.Namespace).Delete(ctx, l.Name, options)
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	return c.WaitGone(ctx, l, report)
}

// WaitGone waits, for at most 5 minutes, until the object that l was is not there
// any more.
func (c *Client) WaitGone(ctx context.Context, l *Live, report func(string)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, deleteWait, fmt.Errorf("not gone after %s", deleteWait))
	defer cancel()
	for {
		now, err := c.Find(ctx, l.Ref)
		switch {
		case errors.Is(err, ErrNotFound):
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("wait for %s to be gone: %w", l.Ref, context.Cause(ctx))
		case err != nil:
			return err
		case now.UID != l.UID:
			return nil
		}
		why := now.holdup()
		if report != nil {
			report(why)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s to be gone: %w: %s", l.Ref, context.Cause(ctx), why)
		case <-time.After(poll):
		}
	}
}

// holdup says what keeps a deleted object.
func (l *Live) holdup() string {
	if !l.Deleting {
		return "it is still there and not marked for deletion"
	}
	meta, _ := l.content["metadata"].(map[string]any)
	if f, ok := meta["finalizers"].([]any); ok && len(f) > 0 {
		return fmt.Sprintf("it is being deleted; finalizers left: %v", f)
	}
	if l.Kind == "Namespace" {
		status, _ := l.content["status"].(map[string]any)
		conditions, _ := status["conditions"].([]any)
		for _, x := range conditions {
			if c, ok := x.(map[string]any); ok && c["status"] == "True" && c["type"] != "NamespaceDeletionDiscoveryFailure" {
				return fmt.Sprintf("it is being emptied: %v", c["message"])
			}
		}
	}
	return "it is being deleted"
}
