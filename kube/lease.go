package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Annotations of a Lease that say more about its holder than the API has fields for.
const (
	runAnnotation     = "ftpdeploy.dev/run"
	commandAnnotation = "ftpdeploy.dev/command"
)

// leaseCall bounds one attempt to renew a Lease, so that there is time for more.
const leaseCall = 8 * time.Second

// ErrLeaseLost means that a Lease that was ours is not any more: another run has
// taken it, someone deleted it, or it could not be renewed in time.
var ErrLeaseLost = errors.New("the lock is lost")

// ErrForeign means that an object of our name does not bear our mark.
var ErrForeign = errors.New("it was not made by ftpdeploy for this deployment")

// Claim is a Lease as one run wants to hold it.
type Claim struct {
	Namespace, Name string
	Labels          map[string]string // our mark: a Lease without them is another's
	Seconds         int32             // that it lives without being renewed
	Run             string            // unique to this run
	Who             string            // as in "ci@jump1 pid 4121"
	Command         string            // what the run was asked to do
}

// String is as in "Lease ftp/ftpdeploy-prod".
func (l Claim) String() string { return "Lease " + l.Namespace + "/" + l.Name }

func (l Claim) ttl() time.Duration { return time.Duration(l.Seconds) * time.Second }

// Rights are what a run needs to look at a claim's Lease, and to hold it.
func (l Claim) Rights() []Right {
	var rights []Right
	for _, verb := range []string{"get", "create", "update", "delete"} {
		rights = append(rights, Right{Verb: verb, Group: "coordination.k8s.io", Resource: "leases", Namespace: l.Namespace})
	}
	return rights
}

// Tenant is a run that holds a Lease. Its times are those of the API server's
// clock, so that runs on machines whose clocks differ agree on them.
type Tenant struct {
	Run, Who, Command string
	Since             time.Time
	Expires           time.Time     // unless the run renews it before
	Left              time.Duration // until Expires; 0 or less = it has expired
}

// Expired tells whether the tenant did not renew the Lease in time.
func (t Tenant) Expired() bool { return t.Left <= 0 }

// HeldError says that another run holds a Lease.
type HeldError struct {
	Lease  string // as in "Lease ftp/ftpdeploy-prod"
	Tenant Tenant
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("%s is held by %s since %s", e.Lease, e.Tenant.Who, e.Tenant.Since.Format(time.RFC3339))
}

// Lease is one that this run holds.
type Lease struct {
	client  *Client
	claim   Claim
	object  *coordinationv1.Lease // as the server last answered
	renewed time.Time             // when the last renewal that was answered was sent, by our clock
}

// Tenant returns who holds a claim's Lease, nil when nobody does.
func (c *Client) Tenant(ctx context.Context, claim Claim) (*Tenant, error) {
	object, err := c.lease(ctx, claim)
	if object == nil || err != nil {
		return nil, err
	}
	return c.tenant(object), nil
}

// lease returns a claim's Lease, nil when there is none.
func (c *Client) lease(ctx context.Context, claim Claim) (*coordinationv1.Lease, error) {
	var object *coordinationv1.Lease
	err := c.try(ctx, "get "+claim.String(), func(ctx context.Context) error {
		var err error
		object, err = c.set.CoordinationV1().Leases(claim.Namespace).Get(ctx, claim.Name, metav1.GetOptions{})
		return err
	})
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for name, value := range claim.Labels {
		if object.Labels[name] != value {
			return nil, fmt.Errorf("%s is there without the label %s: %s: %w; delete it, or give the deployment another id", claim, name, value, ErrForeign)
		}
	}
	return object, nil
}

// tenant reads who holds a Lease, nil when nobody does.
func (c *Client) tenant(l *coordinationv1.Lease) *Tenant {
	who := value(l.Spec.HolderIdentity)
	if who == "" {
		return nil
	}
	t := &Tenant{
		Run: l.Annotations[runAnnotation], Who: who, Command: l.Annotations[commandAnnotation],
		Since: value(l.Spec.AcquireTime).UTC(),
	}
	ttl := time.Duration(value(l.Spec.LeaseDurationSeconds)) * time.Second
	t.Expires = value(l.Spec.RenewTime).Add(ttl).UTC()
	t.Left = t.Expires.Sub(c.clock.now())
	return t
}

// value is what p points to, or nothing.
func value[T any](p *T) T {
	var none T
	if p == nil {
		return none
	}
	return *p
}

// Acquire makes the Lease ours, or returns a *HeldError. One that has expired is
// taken over, and so is one of a run that is known to be dead; from whom is the
// second result, nil where nobody held it.
func (c *Client) Acquire(ctx context.Context, claim Claim, dead func(run string) bool) (*Lease, *Tenant, error) {
	const tries = 5 // each but the first after someone else wrote it in between
	var last error
	for range tries {
		before, err := c.lease(ctx, claim)
		if err != nil {
			return nil, nil, err
		}
		sent := time.Now()
		now := metav1.NewMicroTime(c.clock.now())
		wanted := &coordinationv1.Lease{}
		wanted.Namespace, wanted.Name = claim.Namespace, claim.Name
		var from *Tenant
		if before != nil {
			wanted = before.DeepCopy()
			from = c.tenant(before)
			if from != nil && from.Run != claim.Run && !from.Expired() && !dead(from.Run) {
				return nil, nil, &HeldError{claim.String(), *from}
			}
		}
		wanted.Labels = joined(wanted.Labels, claim.Labels)
		wanted.Annotations = joined(wanted.Annotations, map[string]string{runAnnotation: claim.Run, commandAnnotation: claim.Command})
		transitions := value(wanted.Spec.LeaseTransitions)
		if before != nil {
			transitions++
		}
		wanted.Spec = coordinationv1.LeaseSpec{
			HolderIdentity: &claim.Who, LeaseDurationSeconds: &claim.Seconds, AcquireTime: &now, RenewTime: &now, LeaseTransitions: &transitions,
		}
		object, err := c.writeLease(ctx, "acquire "+claim.String(), wanted, before == nil)
		switch {
		case err == nil:
			if from != nil && from.Run == claim.Run { // an answer to ourselves was lost
				from = nil
			}
			return &Lease{client: c, claim: claim, object: object, renewed: sent}, from, nil
		case !outrun(err):
			return nil, nil, err
		}
		last = err
	}
	return nil, nil, fmt.Errorf("%d others were faster: %w", tries, last)
}

// writeLease creates or updates a Lease.
func (c *Client) writeLease(ctx context.Context, what string, l *coordinationv1.Lease, create bool) (*coordinationv1.Lease, error) {
	var object *coordinationv1.Lease
	err := c.try(ctx, what, func(ctx context.Context) (err error) {
		leases := c.set.CoordinationV1().Leases(l.Namespace)
		if create {
			object, err = leases.Create(ctx, l, metav1.CreateOptions{FieldManager: FieldManager})
			return err
		}
		object, err = leases.Update(ctx, l, metav1.UpdateOptions{FieldManager: FieldManager})
		return err
	})
	return object, err
}

// outrun tells whether a write failed because of another write in between.
func outrun(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || errors.Is(err, ErrNotFound) && !namespaceGone(err)
}

// namespaceGone tells a namespace that is not there from a Lease that is not.
func namespaceGone(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status) && status.Status().Details != nil && status.Status().Details.Kind == "namespaces"
}

func joined(a, b map[string]string) map[string]string {
	all := map[string]string{}
	maps.Copy(all, a)
	maps.Copy(all, b)
	return all
}

// Keep renews the Lease, three times in each TTL, until ctx ends; then it
// returns nil. Else the error is ErrLeaseLost, with the reason: it then comes
// before the Lease expires, while nobody else can have it yet, unless someone
// took it by force.
func (l *Lease) Keep(ctx context.Context) error {
	every := l.claim.ttl() / 3
	again := every / 10
	pause := max(0, every-time.Since(l.renewed)) // to acquire it may have taken long
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			continue
		case <-time.After(pause):
		}
		err := l.renew(ctx)
		switch {
		case err == nil:
			pause = every
			continue
		case errors.Is(err, ErrLeaseLost):
			return err
		case ctx.Err() == nil && time.Since(l.renewed) > l.claim.ttl()*5/6:
			return fmt.Errorf("%w: %s was not renewed for %s and is about to expire: %w", ErrLeaseLost, l.claim, time.Since(l.renewed).Round(time.Second), err)
		}
		pause = again
	}
	return nil
}

// renew says that we are still there.
func (l *Lease) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, min(leaseCall, l.claim.ttl()/3))
	defer cancel()
	sent := time.Now()
	now := metav1.NewMicroTime(l.client.clock.now())
	wanted := l.object.DeepCopy()
	wanted.Spec.RenewTime = &now
	object, err := l.client.writeLease(ctx, "renew "+l.claim.String(), wanted, false)
	if err == nil {
		l.object, l.renewed = object, sent
		return nil
	}
	if !outrun(err) {
		return err
	}
	// Someone wrote it since: another run, or a person, or we, and the answer got lost.
	object, err = l.client.lease(ctx, l.claim)
	if err != nil {
		return err
	}
	if err := l.ours(object); err != nil {
		return err
	}
	l.object = object
	return errors.New("the Lease was edited since the last renewal")
}

// ours is nil when object is a Lease that this run holds, else ErrLeaseLost.
func (l *Lease) ours(object *coordinationv1.Lease) error {
	if object == nil {
		return fmt.Errorf("%w: %s was deleted", ErrLeaseLost, l.claim)
	}
	t := l.client.tenant(object)
	if t == nil || t.Run != l.claim.Run {
		who := "nobody"
		if t != nil {
			who = strings.TrimSpace(t.Who + " " + t.Command)
		}
		return fmt.Errorf("%w: %s is now held by %s", ErrLeaseLost, l.claim, who)
	}
	return nil
}

// Tenant is this run, as the others see it.
func (l *Lease) Tenant() Tenant { return value(l.client.tenant(l.object)) }

// Release deletes the Lease, unless it is not ours any more. Keep must have
// returned before.
func (l *Lease) Release(ctx context.Context) error {
	what := "release " + l.claim.String()
	object, err := l.client.lease(ctx, l.claim)
	if err != nil {
		return err
	}
	if errors.Is(l.ours(object), ErrLeaseLost) {
		return nil
	}
	uid, version := object.UID, object.ResourceVersion
	err = l.client.try(ctx, what, func(ctx context.Context) error {
		return l.client.set.CoordinationV1().Leases(l.claim.Namespace).Delete(ctx, l.claim.Name, metav1.DeleteOptions{
			Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &version},
		})
	})
	if errors.Is(err, ErrNotFound) || apierrors.IsConflict(err) { // it was taken just now: not ours to delete
		return nil
	}
	return err
}

// serverClock reads the API server's clock from the Date of its answers, to the
// second.
type serverClock struct {
	ahead atomic.Int64 // of ours, in nanoseconds
	next  http.RoundTripper
}

func (s *serverClock) now() time.Time { return time.Now().Add(time.Duration(s.ahead.Load())) }

func (s *serverClock) RoundTrip(r *http.Request) (*http.Response, error) {
	sent := time.Now()
	answer, err := s.next.RoundTrip(r)
	if err != nil {
		return answer, err
	}
	arrived := time.Now()
	if date, err := http.ParseTime(answer.Header.Get("Date")); err == nil { // else our clock has to do
		s.compare(date, sent, arrived)
	}
	return answer, nil
}

// compare takes the Date of an answer to what was sent and arrived by our clock:
// the server's clock was between date and date + 1 s at some time in between.
// Where that fits ours, ours is the finer one.
func (s *serverClock) compare(date, sent, arrived time.Time) {
	switch low, high := date.Sub(arrived), date.Add(time.Second).Sub(sent); {
	case low > 0:
		s.ahead.Store(int64(low))
	case high < 0:
		s.ahead.Store(int64(high))
	default:
		s.ahead.Store(0)
	}
}
