package steps

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/remote/sshtest"
)

// dead has the boxes of the pair lead to an SSH port that hangs up on all who
// come, and returns what happens there: one value each time.
func (p *pair) dead(t *testing.T) <-chan struct{} {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	came := make(chan struct{}, 100)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.Close()
			came <- struct{}{}
		}
	}()
	for _, b := range p.topology.Boxes {
		b.Address = netip.MustParseAddr("127.0.0.1")
		b.SSH.Port = listener.Addr().(*net.TCPAddr).Port
		b.SSH.Password = blueprints.NewSecret("secret")
	}
	return came
}

func (p *pair) live() *Live {
	return Open(p.topology, Options{Env: func(string) (string, bool) { return "", false }})
}

// Machines that do not answer any more can be destroyed: they go as a whole.
func TestDestroyDoesNotEnterWhatItRemoves(t *testing.T) {
	p := newPair(t)
	p.up(t)
	came := p.dead(t)
	list, err := p.live().List(t.Context(), plan.Absent)
	if err != nil {
		t.Fatal(err)
	}
	if changes, err := apply(t.Context(), plan.Absent, list...); err != nil || len(changes) == 0 {
		t.Errorf("%+v, %v", changes, err)
	}
	if len(came) > 0 {
		t.Error("a machine was entered before it was destroyed")
	}
}

// A machine that a run powered on before it was killed is given time to boot by
// the next one.
func TestBootIsWaitedForByTheNextRun(t *testing.T) {
	p := newPair(t)
	p.up(t)
	came := p.dead(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for range 2 * len(p.topology.Boxes) {
			<-came
		}
		cancel()
	}()
	if _, err := p.live().List(ctx, plan.Present); !errors.Is(err, context.Canceled) || errors.Is(err, remote.ErrUnreachable) {
		t.Errorf("got %v, want a second try that is cancelled", err)
	}
}

// What can be done about a machine that cannot be entered stands in the error.
func TestAdviceOnAMachineThatCannotBeEntered(t *testing.T) {
	ours, theirs := &blueprints.Box{Name: "haproxy-a", Site: &blueprints.Site{}}, &blueprints.Box{}
	for _, tt := range []struct {
		box  *blueprints.Box
		err  error
		says string
	}{
		{ours, remote.ErrUnreachable, "apply --replace lb.haproxy-a"},
		{ours, remote.ErrHostKey, "Nothing was sent"},
		{ours, remote.ErrAuth, ""},
		{theirs, remote.ErrUnreachable, ""},
		{ours, nil, ""},
	} {
		got := advised(tt.box, tt.err)
		if !errors.Is(got, tt.err) || got != nil && (!strings.Contains(got.Error(), tt.says) || tt.says == "" && got.Error() != tt.err.Error()) {
			t.Errorf("%v became %v, want %q added", tt.err, got, tt.says)
		}
	}
}

// TestWayOut holds that the machine which smoke blocks are run from is entered once,
// again only where that connection broke, and left at the end.
func TestWayOut(t *testing.T) {
	box := sshtest.StartBox(t)
	host, port, err := net.SplitHostPort(box.Address)
	if err != nil {
		t.Fatal(err)
	}
	known := filepath.Join(t.TempDir(), "known_hosts")
	if err := os.WriteFile(known, fmt.Appendf(nil, "[%s]:%s %s\n", host, port, box.HostKey), 0o600); err != nil {
		t.Fatal(err)
	}
	from := &blueprints.SSH{User: box.User, IdentityFile: box.Identity, KnownHosts: known, BastionAddress: host, ConnectTimeout: time.Minute}
	if from.Port, err = strconv.Atoi(port); err != nil {
		t.Fatal(err)
	}
	l := Open(&blueprints.Topology{Smokes: []*blueprints.Smoke{{From: from}}}, Options{Env: func(string) (string, bool) { return "", false }})
	way := func() *remote.Host {
		if _, err := l.dialFrom(t.Context(), from); err != nil {
			t.Fatal(err)
		}
		return l.ways[from].value
	}
	first := way()
	if way() != first {
		t.Error("entered again")
	}
	ended := func(h *remote.Host) {
		for bound := time.Now().Add(10 * time.Second); h.Alive(); <-time.After(time.Millisecond) {
			if time.Now().After(bound) {
				t.Fatal("it is still there")
			}
		}
	}
	first.Close()
	ended(first)
	last := way()
	if last == first {
		t.Error("the connection that broke is used")
	}
	if err := l.Close(t.Context()); err != nil {
		t.Error(err)
	}
	ended(last)
}
