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

// TestCrash has a box fail while two clients are connected, of whom one only
// watches: it loses its VIP and is mended, by Mend and by itself.
func TestCrash(t *testing.T) {
	b, h, _ := startBox(t)
	if err := h.Install(t.Context(), "debian", Package{Name: "keepalived"}); err != nil {
		t.Fatal(err)
	}
	config := b.Root + "/etc/keepalived"
	if _, err := h.Run(t.Context(), "mkdir -p "+config+" && echo x >"+config+"/keepalived.conf && systemctl start keepalived.service", nil); err != nil {
		t.Fatal(err)
	}
	const has, lacks = "lo UNKNOWN 127.0.0.1/8\nfrontend UP 127.0.9.11/24 127.0.9.15/24\n", "lo UNKNOWN 127.0.0.1/8\nfrontend UP 127.0.9.11/24\n"
	vip := netip.MustParseAddr("127.0.9.15")
	l := listen(t, vip.String()+":0")
	client := connect(t, l)
	watcher, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 9, 99)}}).Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	d := Drain{
		Mark: b.Root + "/var/lib/ftpdeploy/drained", Unit: "keepalived.service", VIPs: []netip.Addr{vip},
		Except: []netip.Addr{netip.MustParseAddr("127.0.9.99")},
	}
	running := func() bool {
		ok, err := h.Running(t.Context(), Daemon{Unit: "keepalived.service"})
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	failed := func() {
		t.Helper()
		out, err := h.Run(t.Context(), "ip -br addr", nil)
		if _, drained := os.Stat(d.Mark); err != nil || string(out) != lacks || running() || drained != nil {
			t.Errorf("a box that failed has %q, runs keepalived: %t, drained: %v, %v", out, running(), drained, err)
		}
	}
	until := time.Now().Add(time.Hour)
	b.Set("addresses", has)
	open, err := h.Crash(t.Context(), d, until, "drill of root@jump", time.Hour)
	if err != nil || len(open) != 1 || open[0].Client.String() != client.LocalAddr().String() {
		t.Fatalf("open: %v, %v, want %v", open, err, client.LocalAddr())
	}
	failed()
	if text, err := os.ReadFile(d.Mark); err != nil || string(text) != fmt.Sprintf("%d drill of root@jump\n", until.Unix()) {
		t.Errorf("mark %q, %v", text, err)
	}
	for range 2 {
		if err := h.Mend(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(d.Mark); !errors.Is(err, os.ErrNotExist) || !running() {
		t.Errorf("mended, it runs keepalived: %t, drained: %v", running(), err)
	}
	if stops := b.Calls("systemctl stop ftpdeploy-mend.timer"); len(stops) < 3 {
		t.Errorf("the timer goes on: %v", stops)
	}

	b.Set("addresses", has)
	if _, err := h.Crash(t.Context(), d, until, "drill", time.Second); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); ; {
		_, err := os.Stat(d.Mark)
		if errors.Is(err, os.ErrNotExist) && running() {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("it did not mend itself: %v, %s", err, strings.Join(b.Calls("systemd-run"), "\n"))
		}
	}

	b.Set("fail/systemd-run", "")
	b.Set("addresses", has)
	if _, err := h.Crash(t.Context(), d, until, "drill", time.Hour); err == nil || !strings.Contains(err.Error(), "start the timer that mends") || !running() {
		t.Errorf("without a timer: %v, keepalived runs: %t", err, running())
	}
}
