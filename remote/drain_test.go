package remote

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// TestDrain has a box leave its VIP while a client is connected: it waits, it cuts
// and says whom, and it comes back.
func TestDrain(t *testing.T) {
	b, h, _ := startBox(t)
	if err := h.Install(t.Context(), "debian", Package{Name: "keepalived"}); err != nil {
		t.Fatal(err)
	}
	const has, lacks = "lo UNKNOWN 127.0.0.1/8\nfrontend UP 127.0.9.11/24 127.0.9.15/24\n", "lo UNKNOWN 127.0.0.1/8\nfrontend UP 127.0.9.11/24\n"
	vip := netip.MustParseAddr("127.0.9.15")
	listeners := map[string]net.Listener{}
	listeners["vip"] = listen(t, vip.String()+":0")
	port := listeners["vip"].Addr().(*net.TCPAddr).Port
	listeners["own"] = listen(t, fmt.Sprintf("127.0.9.11:%d", port))
	d := Drain{
		Mark: b.Root + "/var/lib/ftpdeploy/drained", Unit: "keepalived.service", VIPs: []netip.Addr{vip, netip.MustParseAddr("2001:db8::15")},
	}
	until := time.Now().Add(time.Hour)
	clients := map[string]net.Conn{"vip": connect(t, listeners["vip"]), "own": connect(t, listeners["own"])}

	b.Set("addresses", has)
	b.Set("without", lacks)
	open, err := h.Leave(t.Context(), d, until, "apply", false)
	if !errors.Is(err, ErrBusy) || len(open) != 1 || open[0].Client.String() != clients["vip"].LocalAddr().String() || int(open[0].Local.Port()) != port {
		t.Fatalf("got %v and %v, want that %v is busy", open, err, clients["vip"].LocalAddr())
	}
	if _, err := os.Stat(d.Mark); !errors.Is(err, os.ErrNotExist) || len(b.Calls("systemctl restart")) > 0 {
		t.Errorf("something was changed for a busy box: %v", err)
	}

	cut, err := h.Leave(t.Context(), d, until, "drain root@jump", true)
	if err != nil || len(cut) != 1 || cut[0] != open[0] {
		t.Fatalf("cut %v, %v", cut, err)
	}
	if text, err := os.ReadFile(d.Mark); err != nil || string(text) != fmt.Sprintf("%d drain root@jump\n", until.Unix()) {
		t.Errorf("mark %q, %v", text, err)
	}
	if err := h.Return(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(d.Mark); !errors.Is(err, os.ErrNotExist) || len(b.Calls("systemctl restart keepalived")) != 2 {
		t.Errorf("after the return: %v, %v", err, b.Calls("systemctl restart"))
	}

	// The last session ends while it is waited for; one at the own address is none.
	clients["vip"] = connect(t, listeners["vip"])
	b.Set("addresses", has)
	time.AfterFunc(300*time.Millisecond, func() { clients["vip"].Close() })
	if cut, err := h.Leave(t.Context(), d, until, "apply", false); err != nil || len(cut) > 0 {
		t.Errorf("cut %v, %v", cut, err)
	}
	// It has the VIP again: the drain was over, and the peer is gone.
	b.Set("addresses", has)
	if err := h.Return(t.Context(), d); err != nil || len(b.Calls("systemctl restart keepalived")) != 3 {
		t.Errorf("a holder was restarted: %v, %v", err, b.Calls("systemctl restart"))
	}
	b.Set("without", has)
	if _, err := h.Leave(t.Context(), d, until, "apply", true); err == nil || !strings.Contains(err.Error(), "still has one of 127.0.9.15") {
		t.Errorf("got %v for a VIP that does not leave", err)
	}
}

func TestUnfit(t *testing.T) {
	b, h, _ := startBox(t)
	for _, test := range []struct {
		check, want string
		before      func()
	}{
		{"true", "keepalived.service does not run", func() {}},
		{"true", "", func() {
			if err := h.Install(t.Context(), "debian", Package{Name: "keepalived"}); err != nil {
				t.Fatal(err)
			}
			if err := h.Put(t.Context(), File{Path: b.Root + "/etc/keepalived/keepalived.conf", Mode: "0644", Owner: ":", Content: []byte("x\n")}); err != nil {
				t.Fatal(err)
			}
			if err := h.Start(t.Context(), Daemon{Unit: "keepalived.service", Config: b.Root + "/etc/keepalived/keepalived.conf", Marker: b.Root + "/var/lib/m"}); err != nil {
				t.Fatal(err)
			}
		}},
		{"false", "what keepalived asks HAProxy fails", func() {}},
	} {
		test.before()
		if got, err := h.Unfit(t.Context(), "keepalived.service", test.check); err != nil || got != test.want {
			t.Errorf("unfit: %q, %v, want %q", got, err, test.want)
		}
	}
}

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// connect is a client whose connection both sides have.
func connect(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	go func() { // what closes on one side closes on the other
		_, _ = s.Read(make([]byte, 1))
		s.Close()
	}()
	return c
}
