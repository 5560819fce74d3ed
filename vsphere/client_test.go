package vsphere

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/ftpdeploy/ftpdeploy/vsphere/vcsim"
)

func config(s *vcsim.Server) Config {
	return Config{
		Server: s.URL, Username: vcsim.Username, Password: vcsim.Password, Datacenter: vcsim.Datacenter, Thumbprint: s.Thumbprint,
	}
}

func connect(t *testing.T, s *vcsim.Server) *Client {
	t.Helper()
	c, err := Connect(t.Context(), config(s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestConnectRefuses(t *testing.T) {
	s := vcsim.Start(t)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	for name, test := range map[string]struct {
		change func(*Config)
		want   error
		says   string
	}{
		"another password":    {func(c *Config) { c.Password = "wrong-secret" }, ErrLogin, vcsim.Username},
		"another thumbprint":  {func(c *Config) { c.Thumbprint = "AA" + c.Thumbprint[2:] }, ErrUntrusted, s.Thumbprint},
		"an unknown issuer":   {func(c *Config) { c.Thumbprint = "" }, ErrUntrusted, s.Thumbprint},
		"nobody listens":      {func(c *Config) { c.Server = closed.Addr().String() }, ErrUnreachable, closed.Addr().String()},
		"plain http":          {func(c *Config) { c.Server = "http://user:wrong-secret@vcenter.example/sdk" }, ErrUntrusted, "https"},
		"not an address":      {func(c *Config) { c.Server = "https://user:wrong-secret@vcenter example" }, nil, "https URL"},
		"a CA file of no use": {func(c *Config) { c.Thumbprint, c.CAFile = "", "client_test.go" }, nil, "no PEM certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			config := config(s)
			test.change(&config)
			c, err := Connect(t.Context(), config)
			if err == nil {
				c.Close(context.Background())
				t.Fatal("connected")
			}
			for _, sentinel := range []error{ErrLogin, ErrUntrusted, ErrUnreachable} {
				if want := errors.Is(test.want, sentinel); errors.Is(err, sentinel) != want {
					t.Errorf("errors.Is(%v, %v) = %v", err, sentinel, !want)
				}
			}
			if !strings.Contains(err.Error(), test.says) {
				t.Errorf("%q does not say %q", err, test.says)
			}
			if strings.Contains(err.Error(), "wrong-secret") || strings.Contains(err.Error(), vcsim.Password) {
				t.Errorf("%q shows the password", err)
			}
		})
	}
}

func TestConnectTrusts(t *testing.T) {
	s := vcsim.Start(t)
	var dialled []string
	for name, change := range map[string]func(*Config){
		"lower case, no colons": func(c *Config) {
			c.Thumbprint = strings.ToLower(strings.ReplaceAll(c.Thumbprint, ":", ""))
		},
		"SHA-1":    func(c *Config) { c.Thumbprint = s.ThumbprintSHA1() },
		"CA file":  func(c *Config) { c.Thumbprint, c.CAFile = "", s.CAFile(t) },
		"insecure": func(c *Config) { c.Thumbprint, c.Insecure = "", true },
		"user in the URL": func(c *Config) {
			host := strings.TrimPrefix(c.Server, "https://")
			c.Server = "https://" + vcsim.Username + ":" + vcsim.Password + "@" + host
			c.Username, c.Password = "", ""
		},
		"own dialer": func(c *Config) {
			c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				dialled = append(dialled, address)
				return (&net.Dialer{}).DialContext(ctx, network, address)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			config := config(s)
			change(&config)
			c, err := Connect(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			if got := c.Calls(); got != 2 {
				t.Errorf("connecting took %d calls, want the service's content and the login", got)
			}
			if err := c.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	if len(dialled) == 0 {
		t.Error("the dialer was not used")
	}
}

// When the session has expired, a call logs in again, once, and is repeated.
func TestSessionExpires(t *testing.T) {
	s := vcsim.Start(t)
	c := connect(t, s)
	one, two := spec(1), spec(2)
	create(t, c, one)
	create(t, c, two)
	p := placement(one, two)
	e, err := observe(t, c, nil, p).Rules(p)
	if err != nil {
		t.Fatal(err)
	}

	s.ExpireSessions(t)
	logins := s.Calls("Login")
	observe(t, c, []Spec{one, two}, p)
	if n := s.Calls("Login") - logins; n != 1 {
		t.Errorf("%d logins for one session, want 1", n)
	}

	s.ExpireSessions(t)
	writes := s.Calls("ReconfigureComputeResource_Task")
	if err := c.ApplyRules(t.Context(), e); err != nil {
		t.Errorf("the write: %v", err)
	}
	if n := s.Calls("ReconfigureComputeResource_Task") - writes; n != 2 {
		t.Errorf("the write was sent %d times, want once without a session and once with one", n)
	}
	if n := len(s.Rules(t).Rule); n == 0 {
		t.Error("no rules were made")
	}

	s.ExpireSessions(t)
	s.SetFault(func(method string, _ types.ManagedObjectReference) types.BaseMethodFault {
		if method == "Login" {
			return &types.InvalidLogin{}
		}
		return nil
	})
	if _, err := c.Find(t.Context(), deployment, "lb1"); !errors.Is(err, ErrLogin) {
		t.Errorf("a login that is refused: %v", err)
	}
	s.SetFault(nil)
}

// A vCenter that goes away is not mistaken for one that holds nothing.
func TestGoesAway(t *testing.T) {
	s := vcsim.Start(t)
	away := false
	config := config(s)
	config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if away {
			return nil, errors.New("no route to host")
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
	c, err := Connect(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	c.patience = 0
	away = true
	s.CloseConnections()
	if _, err := c.Find(t.Context(), deployment, "lb1"); !errors.Is(err, ErrUnreachable) {
		t.Errorf("Find: %v, want ErrUnreachable", err)
	}
	if _, err := c.Observe(t.Context(), []Spec{spec(1)}, nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("Observe: %v, want ErrUnreachable", err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Find(cancelled, deployment, "lb1"); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnreachable) {
		t.Errorf("cancelled: %v", err)
	}
}

// A vCenter that goes away in the middle of a run and comes back without its
// sessions is waited for: reads go on, and so does what was never sent. A write
// whose answer is lost is not repeated.
func TestRestarts(t *testing.T) {
	s := vcsim.Start(t)
	var said []string
	var away atomic.Int32 // how many connections are refused
	config := config(s)
	config.Waiting = func(text string) { said = append(said, text) }
	config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if away.Add(-1) >= 0 {
			return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
	c, err := Connect(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}()
	create(t, c, spec(1))
	restart := func() {
		s.ExpireSessions(t)
		s.CloseConnections()
		said = nil
		away.Store(2)
	}
	restart()
	if _, err := c.Find(t.Context(), deployment, "lb1"); err != nil || len(said) != 1 || !strings.Contains(said[0], "waiting for vCenter") {
		t.Errorf("a read: %v; said %q", err, said)
	}
	restart()
	if err := c.PowerOn(t.Context(), deployment, "lb1"); err != nil || len(said) != 1 {
		t.Errorf("a read and a write: %v; said %q", err, said)
	}

	sent := s.Calls("PowerOffVM_Task")
	s.SetFault(func(method string, _ types.ManagedObjectReference) types.BaseMethodFault {
		if method == "PowerOffVM_Task" {
			s.CloseConnections()
		}
		return nil
	})
	err = c.Destroy(t.Context(), deployment, "lb1")
	s.SetFault(nil)
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "whether vCenter took the request is not known: apply again") {
		t.Errorf("a write whose answer is lost: %v", err)
	}
	if n := s.Calls("PowerOffVM_Task") - sent; n != 1 {
		t.Errorf("it was sent %d times, want once", n)
	}
	if err := c.Destroy(t.Context(), deployment, "lb1"); err != nil {
		t.Errorf("again: %v", err)
	}
}
