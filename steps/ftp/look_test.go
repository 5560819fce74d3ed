package ftp

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// TestLook looks at a server in each way that it may break, and goes on.
func TestLook(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault func(*server, *faults)
		want  string // outcomes: connect greeting login, then data connection and listing of each try
	}{
		{"well", func(*server, *faults) {}, "ok ok ok, ok ok, ok ok"},
		{"nobody listens", func(s *server, _ *faults) { s.control.Close() }, "refused  "},
		{"no greeting", func(_ *server, f *faults) { f.greeting = "-" }, "ok timed out "},
		{"full", func(_ *server, f *faults) { f.greeting = "421 full" }, "ok denied "},
		{"wrong password", func(_ *server, f *faults) { f.login = "530 no" }, "ok ok denied"},
		{"no passive mode", func(_ *server, f *faults) { f.passive = "550 no" }, "ok ok ok,  denied,  denied"},
		{"a data port refuses", func(s *server, _ *faults) { s.ports[0].Close() }, "ok ok ok, refused , ok ok"},
		{"bad IP", func(_ *server, f *faults) { f.refuseData = "425 Security: Bad IP connecting." }, "ok ok ok, ok denied, ok denied"},
		{"nobody behind the proxy", func(_ *server, f *faults) { f.dropData = true }, "ok ok ok, ok timed out, ok timed out"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, 2)
			s.breakIt(func(f *faults) { c.fault(s, f) })
			seen := Look{Address: s.address(), User: "partner", Password: password, Modes: []string{PASV, EPSV}, Timeout: 2 * time.Second}.Run(t.Context())
			got := fmt.Sprintf("%s %s %s", seen.Connect.Outcome, seen.Greeting.Outcome, seen.Login.Outcome)
			for _, try := range seen.Tries {
				got += fmt.Sprintf(", %s %s", try.Connect.Outcome, try.List.Outcome)
				if try.OK() && try.Announced.Port() == 0 {
					t.Errorf("a listing without an announced port: %+v", try)
				}
			}
			if got != c.want {
				t.Errorf("saw %q, want %q: %+v", got, c.want, seen)
			}
			if strings.Contains(strings.Join(seen.Transcript, "\n"), password) {
				t.Errorf("the password is in the transcript: %q", seen.Transcript)
			}
			if left := s.left(); left != nil {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestKnock(t *testing.T) {
	held, ended := listen(t, func(c net.Conn) { io.Copy(io.Discard, c) }), listen(t, func(c net.Conn) { c.Close() })
	closed := listen(t, nil)
	for address, want := range map[string]Outcome{held: OK, ended: Closed, closed: Refused} {
		if got := Knock(t.Context(), nil, address, time.Second, 100*time.Millisecond); got.Outcome != want {
			t.Errorf("%s: %+v, want %s", address, got, want)
		}
	}
}

// listen serves connections by do; with nil nobody listens at the address.
func listen(t *testing.T, do func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if do == nil {
		l.Close()
		return l.Addr().String()
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go do(c)
		}
	}()
	return l.Addr().String()
}

// TestAwait tells a server that waits for its data connection from one that someone
// else has connected to.
func TestAwait(t *testing.T) {
	s := newServer(t, 2)
	l := Look{Address: s.address(), User: "partner", Password: password, Timeout: time.Second}
	reply, err := l.Await(t.Context(), EPSV, 100*time.Millisecond)
	if reply != "" || err != nil {
		t.Errorf("a server that waits says %q: %v", reply, err)
	}
	for i := range s.ports {
		if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", portOf(s, i))); err == nil {
			c.Close() // what the server still waits for
		}
	}
	s.breakIt(func(f *faults) { f.refuseData = "425 Security: Bad IP connecting." })
	if err := l.Ask(t.Context(), EPSV, func(port int) {
		if port != portOf(s, 1) && port != portOf(s, 0) {
			t.Errorf("port %d was announced", port)
		}
	}); err != nil {
		t.Error(err)
	}
	s.breakIt(func(f *faults) { f.login = "530 no" })
	if _, err := l.Await(t.Context(), EPSV, time.Second); err == nil {
		t.Error("a login that is refused is no error")
	}
}

func portOf(s *server, i int) int { return port(s.ports[i]) }

func TestOutcomeOf(t *testing.T) {
	for err, want := range map[error]Outcome{nil: OK, errGone: Closed, timeoutError(1): Silent, &Reply{530, "no"}: Denied, errors.New("x"): Failed} {
		if got := OutcomeOf(err); got != want {
			t.Errorf("%v: %s, want %s", err, got, want)
		}
	}
}
