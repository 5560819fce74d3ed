package steps

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/steps/ftp"
	"github.com/ftpdeploy/ftpdeploy/steps/ftp/ftptest"
	"github.com/ftpdeploy/ftpdeploy/steps/proxy"
)

// servingHost is a box whose haproxy leads to a real vsftpd.
type servingHost struct {
	*hostPeer
	server ftptest.Server
	back   string            // where haproxy finds the server
	extra  string            // in haproxy's global section
	kept   map[string]string // evidence
	before string            // haproxy.cfg when the first evidence was kept
	mu     sync.Mutex
}

func startServing(t *testing.T) *servingHost {
	t.Helper()
	s := &servingHost{hostPeer: startHost(t), back: "127.0.0.1", kept: map[string]string{}}
	s.server = ftptest.Start(t, 2, "listen_address=127.0.0.1", "pasv_address=127.0.8.15")
	network := &blueprints.Network{Name: "frontend", CIDR: netip.MustParsePrefix("127.0.8.0/24")}
	s.box.NICs = []blueprints.NIC{{Network: network, Address: netip.MustParseAddr("127.0.8.11")}}
	user := &blueprints.User{Name: ftptest.User, Password: blueprints.NewSecret(ftptest.Password), Writable: true}
	// The topology's VIPs stay none, as in startHost.
	service := &blueprints.Service{
		Name: "vsftpd", Server: "vsftpd", VIP: &blueprints.VIP{Group: s.group, Network: network, Address: netip.MustParseAddr("127.0.8.15")},
		ControlPort: s.server.Port, PassiveFirst: s.server.PassivePort, PassiveLast: s.server.PassivePort + 1,
	}
	s.topology.Services = []*blueprints.Service{service}
	s.topology.Smokes = []*blueprints.Smoke{{Name: "standby", Standby: s.group, Service: service, User: user, Modes: []string{ftp.EPSV}, Upload: 1 << 10, Timeout: 5 * time.Second}}
	s.topology.Rollout.ConfirmWithin = 18 * time.Second // 12 of them for the proof, on a busy machine
	s.hostStep.rendered = s.files
	s.hostStep.keep = func(name string, text []byte) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.kept) == 0 {
			s.before = s.has(t, proxy.HAProxyPath)
		}
		s.kept[name] = string(text)
		return nil
	}
	return s
}

func (s *servingHost) files(ctx context.Context) ([]proxy.File, error) {
	files, err := s.rendered(ctx)
	v := s.topology.Services[0]
	files[1].Content = fmt.Appendf(nil, `# ftpdeploy deployment=lab lb=haproxy-a
# %s
global
    hard-stop-after 1s
    %s
defaults
    mode tcp
    timeout connect 1s
    timeout client 10s
    timeout server 10s
frontend fe
    bind 127.0.8.11:%d-%d
    default_backend be
backend be
    server one %s
`, s.text, s.extra, v.ControlPort, v.PassiveLast, s.back)
	files[1].Service = "haproxy"
	return files, err
}

// apply carries out what the box needs, as ftpdeploy does; said is what was
// waited for.
func (s *servingHost) apply(t *testing.T) (said string, err error) {
	t.Helper()
	p, err := plan.Make(t.Context(), plan.Present, []plan.Step{s}, plan.Options{Rollback: true, Observer: listener{&said}})
	if err != nil {
		t.Fatal(err)
	}
	return said, p.Apply(t.Context(), nil)
}

type listener struct{ said *string }

func (l listener) Observe(e plan.Event) {
	if e.Text != "" {
		*l.said += e.Text + "\n"
	}
}

func (s *servingHost) must(t *testing.T) string {
	t.Helper()
	said, err := s.apply(t)
	if err != nil {
		t.Fatal(err)
	}
	if left := planOnly(t, s, plan.Present, s.Snapshot); len(left) > 0 {
		t.Fatalf("still planned: %s", targets(left))
	}
	if s.has(t, armedAt) != "" {
		t.Error("the timer still runs")
	}
	return said
}

// works tells whether the box serves at its own address.
func (s *servingHost) works(t *testing.T) error {
	return prove(t.Context(), s.topology.Smokes[0], s.box, "127.0.8.11", way{}).Err
}

// TestRolledBack breaks a box that works in ways that no check of a file sees.
func TestRolledBack(t *testing.T) {
	for _, test := range []struct {
		name, want string
		fault      func(s *servingHost)
	}{
		{"haproxy -c takes it, and a reload does not", "configuration was not loaded", func(s *servingHost) { s.extra = "stats socket /nonexistent/directory/haproxy.sock" }},
		{"a node port at which nobody listens", "the box does not serve", func(s *servingHost) { s.back = "127.0.0.1:1" }},
		{"a file that is refused", "check failed", func(s *servingHost) { s.extra = "no-such-keyword" }},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := startServing(t)
			s.must(t)
			good := s.has(t, proxy.HAProxyPath)
			test.fault(s)
			before := planOnly(t, s, plan.Present)
			said, err := s.apply(t)
			failed := time.Now()
			var back *plan.RollbackError
			if !errors.As(err, &back) || !back.Complete() || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want a complete rollback and %q\n%s", err, test.want, said)
			}
			if err := s.works(t); err != nil {
				t.Errorf("what worked before does not: %v", err)
			}
			t.Logf("proven again %.1f s after apply ended; it took %s", time.Since(failed).Seconds(), strings.TrimSpace(strings.ReplaceAll(said, "\n", "; ")))
			if s.has(t, proxy.HAProxyPath) != good || s.has(t, armedAt) != "" {
				t.Error("haproxy.cfg is not the former one, or the timer still runs")
			}
			if after := planOnly(t, s, plan.Present, s.Snapshot); targets(after) != targets(before) {
				t.Errorf("the plan was %s and is %s", targets(before), targets(after))
			}
			for _, name := range []string{"haproxy.cfg", "keepalived.conf", "checks.txt", "journal.txt", "state.txt", "ftp-transcript.txt"} {
				if s.kept["haproxy-a/"+name] == "" {
					t.Errorf("no evidence %s", name)
				}
			}
			if test.want != "check failed" && s.before == good {
				t.Error("the evidence was kept when all was put back")
			}
			if !strings.Contains(s.kept["haproxy-a/ftp-transcript.txt"], "> EPSV") || strings.Contains(s.kept["haproxy-a/ftp-transcript.txt"], ftptest.Password) {
				t.Errorf("transcript: %s", s.kept["haproxy-a/ftp-transcript.txt"])
			}
			s.back, s.extra, s.text = "127.0.0.1", "", "mended"
			s.must(t)
		})
	}
}

// clusterPart is what is still to be changed of a service in the cluster.
type clusterPart []plan.Change

func (clusterPart) Name() string    { return "kubernetes/vsftpd" }
func (clusterPart) After() []string { return nil }
func (c clusterPart) Plan(context.Context, plan.Goal) ([]plan.Change, error) {
	return c, nil
}

// TestProvenAsDeployed changes a box together with the account and the ports of its
// service: as long as the service's own change is to come, the box is proven by those
// that are deployed.
func TestProvenAsDeployed(t *testing.T) {
	s := startServing(t)
	s.must(t)
	deployed := s.topology.Smokes[0]
	wanted, service, user := *deployed, *deployed.Service, *deployed.User
	user.Name = "supplier"
	service.PassiveFirst++
	service.PassiveLast++
	wanted.Service, wanted.User = &service, &user
	s.topology.Services[0], s.topology.Smokes[0] = &service, &wanted
	s.former = func(context.Context, *blueprints.Smoke) (*blueprints.Smoke, error) {
		former := *deployed
		return &former, nil
	}
	s.text = "with the service"
	part := clusterPart{}
	s.cluster = func(*blueprints.Service) plan.Step { return part }
	var back *plan.RollbackError
	if _, err := s.apply(t); !errors.As(err, &back) || !back.Complete() || !strings.Contains(err.Error(), "the box does not serve") {
		t.Errorf("the cluster has all of the blueprint, and its account cannot log in: got %v", err)
	}
	part = clusterPart{{Target: "Secret ftp/vsftpd-account", Want: "supplier"}}
	s.must(t)
}

// meanwhile does something right before the change of a target is made.
type meanwhile struct {
	target string
	do     func()
}

func (m meanwhile) Observe(e plan.Event) {
	if e.Kind == plan.ChangeStarted && e.Change.Target == m.target {
		m.do()
	}
}

// TestEditWhileItActs: someone edits a file after the last look at it and before
// its turn. The edit stays, through the way back too, and all else is as before.
func TestEditWhileItActs(t *testing.T) {
	s := startServing(t)
	s.must(t)
	keepalived := s.has(t, proxy.KeepalivedPath)
	s.text = "two"
	p, err := plan.Make(t.Context(), plan.Present, []plan.Step{s}, plan.Options{Rollback: true, Observer: meanwhile{
		"haproxy-a:" + proxy.HAProxyPath,
		func() { s.edit(t, proxy.HAProxyPath, s.has(t, proxy.HAProxyPath)+"# by hand\n") },
	}})
	if err != nil {
		t.Fatal(err)
	}
	err = p.Apply(t.Context(), nil)
	var drift *plan.DriftError
	var back *plan.RollbackError
	if !errors.As(err, &drift) || !errors.As(err, &back) || !back.Complete() || !strings.Contains(err.Error(), "drift: edited at") {
		t.Fatalf("got %v", err)
	}
	if text := s.has(t, proxy.HAProxyPath); !strings.HasSuffix(text, "# by hand\n") {
		t.Errorf("the edit is gone: %q", text)
	}
	if s.has(t, proxy.KeepalivedPath) != keepalived || s.works(t) != nil {
		t.Errorf("not as before: %v", s.works(t))
	}
}

// TestFirstDeploy holds which proof a box needs that never served before.
func TestFirstDeploy(t *testing.T) {
	t.Run("the cluster's part is there and cannot be reached", func(t *testing.T) {
		s := startServing(t)
		s.back = "127.0.0.1:1"
		s.hostStep.cluster = func(*blueprints.Service) plan.Step { return clusterPart{} }
		before := planOnly(t, s, plan.Present)
		_, err := s.apply(t)
		var back *plan.RollbackError
		if !errors.As(err, &back) || !back.Complete() {
			t.Fatalf("got %v, want a complete rollback", err)
		}
		if after := planOnly(t, s, plan.Present); targets(after) != targets(before) {
			t.Errorf("the plan was %s and is %s", targets(before), targets(after))
		}
		if left := planOnly(t, s, plan.Absent); len(left) > 0 {
			t.Errorf("left: %s", targets(left))
		}
		if left, err := os.ReadDir(s.Root + "/var/lib"); err == nil && len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
	t.Run("the cluster's part is still made", func(t *testing.T) {
		s := startServing(t)
		s.back = "127.0.0.1:1"
		if said := s.must(t); !strings.Contains(said, "not proven, and it did not work before") {
			t.Errorf("said %q", said)
		}
		// Broken before: this run may not make it work, and must not be held up.
		s.text = "two"
		if said := s.must(t); !strings.Contains(said, "not proven, and it did not work before") {
			t.Errorf("said %q", said)
		}
		s.back = "127.0.0.1"
		s.must(t)
		if err := s.works(t); err != nil {
			t.Error(err)
		}
	})
}

// TestJumpHostVanishes: after the swap nobody comes back in time.
func TestJumpHostVanishes(t *testing.T) {
	s := startServing(t)
	s.must(t)
	good := s.has(t, proxy.HAProxyPath)
	swap := func() {
		t.Helper()
		s.text, s.back = s.text+" and more", "127.0.0.1:1"
		changes := planOnly(t, s, plan.Present)
		for _, c := range changes[:len(changes)-1] {
			if err := c.Do(t.Context(), func(string) {}); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Run("and stays away", func(t *testing.T) {
		s.topology.Rollout.ConfirmWithin = 9 * time.Second // enough for the swap on a busy machine
		swap()
		start := time.Now()
		for s.has(t, proxy.HAProxyPath) != good || s.works(t) != nil {
			if time.Since(start) > s.topology.Rollout.ConfirmWithin+20*time.Second {
				t.Fatal("not reverted")
			}
			<-time.After(50 * time.Millisecond)
		}
		t.Logf("reverted and served %.1f s after the swap", time.Since(start).Seconds())
		s.topology.Rollout.ConfirmWithin = 30 * time.Second
		s.back = "127.0.0.1"
		s.must(t)
	})
	t.Run("and comes back before the timer", func(t *testing.T) {
		good = s.has(t, proxy.HAProxyPath)
		s.topology.Rollout.ConfirmWithin = 30 * time.Second
		swap()
		s.topology.Rollout.ConfirmWithin = 18 * time.Second
		if got := targets(planOnly(t, s, plan.Present, s.Snapshot)); got != ">generation >proof" {
			t.Errorf("planned %s", got)
		}
		// It worked before the run that broke off, so it must work now.
		_, err := s.apply(t)
		var back *plan.RollbackError
		if !errors.As(err, &back) || !strings.Contains(err.Error(), "the box does not serve") {
			t.Fatalf("got %v", err)
		}
		if s.has(t, proxy.HAProxyPath) != good || s.works(t) != nil {
			t.Errorf("not as before the run that broke off: %v", s.works(t))
		}
		s.back = "127.0.0.1"
		s.must(t)
	})
	t.Run("and the box is given up", func(t *testing.T) {
		s.topology.Rollout.ConfirmWithin = 30 * time.Second
		swap()
		s.back = "127.0.0.1"
		reaches(t, s, plan.Absent, s.Snapshot)
	})
}

// TestConnectionBreaks cuts the connection in the middle of each command of a
// change in turn, while the command goes on: all of them are made.
func TestConnectionBreaks(t *testing.T) {
	s := startServing(t)
	s.must(t)
	for n := 1; ; n++ {
		s.text = fmt.Sprintf("cut at command %d", n)
		s.CutAt(n)
		before := len(s.Commands())
		s.must(t)
		if got := s.has(t, proxy.HAProxyPath); !strings.Contains(got, s.text) {
			t.Fatalf("%s: not there: %s", s.text, got)
		}
		if err := s.works(t); err != nil {
			t.Fatalf("%s: %v", s.text, err)
		}
		if len(s.Commands())-before < n {
			t.Logf("cut in the middle of each of %d commands", n-1)
			break
		}
	}
	s.CutAt(0)
}
