package kube

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ftpdeploy/ftpdeploy/kube/kubetest"
)

func alive(string) bool { return false }

func claim(namespace, run string, seconds int32) Claim {
	return Claim{
		Namespace: namespace, Name: "ftpdeploy-test", Labels: map[string]string{"ftpdeploy.dev/deployment": "test"},
		Seconds: seconds, Run: run, Who: run + "@jump pid 1", Command: "ftpdeploy apply",
	}
}

func acquire(t *testing.T, c *Client, wanted Claim) (*Lease, *Tenant) {
	t.Helper()
	l, from, err := c.Acquire(t.Context(), wanted, alive)
	if err != nil {
		t.Fatal(err)
	}
	return l, from
}

// keep renews l until the test ends or the returned function is called; what
// Keep says comes through the channel.
func keep(t *testing.T, l *Lease) (said <-chan error, end func()) {
	ctx, cancel := context.WithCancel(t.Context())
	ch := make(chan error, 1)
	go func() { ch <- l.Keep(ctx) }()
	return ch, cancel
}

func lost(t *testing.T, said <-chan error, bound time.Duration, text string) {
	t.Helper()
	select {
	case err := <-said:
		if !errors.Is(err, ErrLeaseLost) || !strings.Contains(err.Error(), text) {
			t.Errorf("Keep ends with %v, want ErrLeaseLost and %q", err, text)
		}
	case <-time.After(bound):
		t.Errorf("Keep goes on for %s", bound)
	}
}

// A Lease is one run's; the next one gets it when it is given back.
func testLease(t *testing.T, c *Client, _ *kubetest.Server) {
	ns := namespace(t, c)
	if tenant, err := c.Tenant(t.Context(), claim(ns, "b", 60)); tenant != nil || err != nil {
		t.Fatalf("held before it was taken: %v, %v", tenant, err)
	}
	l, from := acquire(t, c, claim(ns, "a", 60))
	if from != nil {
		t.Errorf("taken over from %+v", from)
	}
	_, _, err := c.Acquire(t.Context(), claim(ns, "b", 60), alive)
	held, ok := errors.AsType[*HeldError](err)
	if !ok {
		t.Fatalf("the second run gets %v, want a HeldError", err)
	}
	if got := held.Tenant; got.Run != "a" || got.Who != "a@jump pid 1" || got.Command != "ftpdeploy apply" || time.Since(got.Since).Abs() > time.Minute || got.Left < 50*time.Second || got.Left > time.Minute {
		t.Errorf("holder: %+v", got)
	}
	object, err := c.lease(t.Context(), claim(ns, "a", 60))
	if err != nil || object.Labels["ftpdeploy.dev/deployment"] != "test" {
		t.Errorf("the Lease does not bear our mark: %v, %v", object, err)
	}
	if err := l.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if object, err := c.lease(t.Context(), claim(ns, "a", 60)); object != nil || err != nil {
		t.Errorf("left after Release: %v, %v", object, err)
	}
	if err := l.Release(t.Context()); err != nil {
		t.Errorf("Release of what is gone: %v", err)
	}
	b, from := acquire(t, c, claim(ns, "b", 60))
	if from != nil {
		t.Errorf("taken over from %+v after it was given back", from)
	}
	// One that took long to get is renewed at once: a third of its time is over.
	first := b.object.Spec.RenewTime
	b.renewed = time.Now().Add(-20 * time.Second)
	said, end := keep(t, b)
	for bound := time.Now().Add(10 * time.Second); ; <-time.After(50 * time.Millisecond) {
		object, err := c.lease(t.Context(), claim(ns, "b", 60))
		if err != nil {
			t.Fatal(err)
		}
		if !object.Spec.RenewTime.Equal(first) {
			break
		}
		if time.Now().After(bound) {
			t.Error("not renewed")
			break
		}
	}
	end()
	if err := <-said; err != nil {
		t.Error(err)
	}
	if err := b.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A Lease lives on while it is renewed, also after an edit by hand, and expires
// when its run is gone.
func testLeaseExpires(t *testing.T, c *Client, _ *kubetest.Server) {
	ns := namespace(t, c)
	l, _ := acquire(t, c, claim(ns, "a", 2))
	said, end := keep(t, l)
	first, err := c.Tenant(t.Context(), claim(ns, "", 0))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.set.CoordinationV1().Leases(ns).Patch(t.Context(), "ftpdeploy-test", types.MergePatchType, []byte(`{"metadata":{"annotations":{"note":"mine"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	until := func(what string, ok func(*Tenant) bool) {
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			tenant, err := c.Tenant(t.Context(), claim(ns, "", 0))
			if err != nil || tenant == nil {
				t.Fatalf("%v, %v", tenant, err)
			}
			if ok(tenant) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: not within 20 s: %+v", what, tenant)
			}
			<-tick.C
		}
	}
	until("it is renewed", func(now *Tenant) bool { return now.Expires.Sub(first.Expires) > 2*time.Second && !now.Expired() })
	end() // as a run that was killed
	if err := <-said; err != nil {
		t.Errorf("Keep ends with %v, want nil", err)
	}
	until("it expires", func(now *Tenant) bool { return now.Expired() })
	b, from := acquire(t, c, claim(ns, "b", 60))
	if from == nil || from.Run != "a" || !from.Expired() {
		t.Errorf("taken over from %+v, want run a, expired", from)
	}
	if n := value(b.object.Spec.LeaseTransitions); n != 1 {
		t.Errorf("%d transitions, want 1", n)
	}
	if err := l.Release(t.Context()); err != nil { // the first run was only asleep
		t.Fatal(err)
	}
	if tenant, err := c.Tenant(t.Context(), claim(ns, "", 0)); err != nil || tenant == nil || tenant.Run != "b" {
		t.Errorf("the first run gave back what the second one holds: %+v, %v", tenant, err)
	}
}

// A run that is known to be dead is not waited for.
func testLeaseOfTheDead(t *testing.T, c *Client, _ *kubetest.Server) {
	ns := namespace(t, c)
	acquire(t, c, claim(ns, "a", 60))
	_, from, err := c.Acquire(t.Context(), claim(ns, "b", 60), func(run string) bool { return run == "a" })
	if err != nil || from == nil || from.Run != "a" || from.Expired() {
		t.Errorf("from %+v, %v", from, err)
	}
}

// Of many who want a Lease at the same time one gets it.
func testLeaseRace(t *testing.T, c *Client, _ *kubetest.Server) {
	ns := namespace(t, c)
	const runs = 10
	results := make(chan error, runs)
	for i := range runs {
		go func() {
			_, _, err := c.Acquire(t.Context(), claim(ns, string(rune('a'+i)), 60), alive)
			results <- err
		}()
	}
	got := 0
	for range runs {
		err := <-results
		if _, held := errors.AsType[*HeldError](err); err == nil {
			got++
		} else if !held {
			t.Errorf("%v, want a HeldError", err)
		}
	}
	if got != 1 {
		t.Errorf("%d runs hold the Lease", got)
	}
}

// A holder learns of its loss at the next renewal.
func testLeaseLost(t *testing.T, c *Client, _ *kubetest.Server) {
	ns := namespace(t, c)
	l, _ := acquire(t, c, claim(ns, "a", 3))
	said, _ := keep(t, l)
	if err := c.set.CoordinationV1().Leases(ns).Delete(t.Context(), "ftpdeploy-test", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	lost(t, said, 10*time.Second, "was deleted")

	l, _ = acquire(t, c, claim(ns, "a", 3))
	said, _ = keep(t, l)
	if _, _, err := c.Acquire(t.Context(), claim(ns, "b", 60), func(string) bool { return true }); err != nil {
		t.Fatal(err)
	}
	lost(t, said, 10*time.Second, "held by b@jump pid 1")
}

// A Lease of that name that does not bear our mark is left alone.
func testLeaseForeign(t *testing.T, c *Client, _ *kubetest.Server) {
	ns := namespace(t, c)
	foreign := &coordinationv1.Lease{}
	foreign.Name = "ftpdeploy-test"
	if _, err := c.set.CoordinationV1().Leases(ns).Create(t.Context(), foreign, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Acquire(t.Context(), claim(ns, "a", 60), func(string) bool { return true }); !errors.Is(err, ErrForeign) {
		t.Errorf("%v, want ErrForeign", err)
	}
	if object, err := c.set.CoordinationV1().Leases(ns).Get(t.Context(), "ftpdeploy-test", metav1.GetOptions{}); err != nil || object.Spec.HolderIdentity != nil {
		t.Errorf("it was touched: %v, %v", object, err)
	}
}

// Without rights to Leases, or without the namespace, the error says so.
func testLeaseRefused(t *testing.T, c *Client, server *kubetest.Server) {
	poor, err := Connect(Config{Kubeconfig: server.User("lessee")})
	if err != nil {
		t.Fatal(err)
	}
	wanted := claim("default", "a", 60)
	if _, _, err := poor.Acquire(t.Context(), wanted, alive); !errors.Is(err, ErrForbidden) {
		t.Errorf("%v, want ErrForbidden", err)
	}
	lacks, ok := errors.AsType[*RightsError](poor.Check(t.Context(), wanted.Rights()))
	if !ok || len(lacks.Missing) != 4 || !strings.Contains(lacks.Error(), "update leases.coordination.k8s.io in namespace default") {
		t.Errorf("rights: %v", lacks)
	}
	if _, _, err := c.Acquire(t.Context(), claim("no-such-namespace", "a", 60), alive); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v, want ErrNotFound", err)
	}
}

// A clock that is wrong by hours neither steals a lock nor keeps one: what counts
// is the server's.
func TestServerClock(t *testing.T) {
	for _, tt := range []struct {
		name     string
		ours     time.Duration // how far our clock is ahead
		from, to time.Duration // what the server's may be ahead of ours
	}{
		{"the same", 0, 0, 0},
		{"ours is ahead", 3 * time.Hour, -3*time.Hour - time.Second, -3*time.Hour + 2*time.Second},
		{"ours is behind", -3 * time.Hour, 3*time.Hour - 2*time.Second, 3*time.Hour + time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server := time.Date(2026, 11, 23, 10, 0, 0, 300e6, time.UTC)
			s := &serverClock{}
			s.compare(server.Truncate(time.Second), server.Add(tt.ours-10*time.Millisecond), server.Add(tt.ours+10*time.Millisecond))
			if got := time.Duration(s.ahead.Load()); got < tt.from || got > tt.to {
				t.Errorf("the server's clock is %s ahead, want %s to %s", got, tt.from, tt.to)
			}
		})
	}
}

// While the server is away a hold goes on, and it ends before the Lease expires.
func testLeaseOutage(t *testing.T, c *Client, server *kubetest.Server) {
	l, _ := acquire(t, c, claim("default", "a", 6))
	said, end := keep(t, l)
	defer end()
	server.Stop()
	start := time.Now()
	lost(t, said, 20*time.Second, "about to expire")
	if took := time.Since(start); took < 3*time.Second {
		t.Errorf("given up after %s of an outage", took)
	}
	server.Restart()
}
