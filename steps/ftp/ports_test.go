package ftp_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/steps/ftp"
	"github.com/ftpdeploy/ftpdeploy/steps/ftp/ftptest"
)

// portsOf proves the ports of a server, each by way of data.
func portsOf(s ftptest.Server, n int, data func(p int) string) ftp.Ports {
	return ftp.Ports{
		Address: net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port)), User: ftptest.User, Password: ftptest.Password,
		First: s.PassivePort, Last: s.PassivePort + n - 1, Data: data, Timeout: time.Second,
	}
}

func local(p int) string { return fmt.Sprintf("127.0.0.1:%d", p) }

func TestPorts(t *testing.T) {
	s := ftptest.Start(t, 11)
	r, err := portsOf(s, 11, local).Run(t.Context())
	if err != nil || len(r.OK) != 11 || len(r.Failed)+len(r.NotDrawn) != 0 || !slices.IsSorted(r.OK) {
		t.Errorf("%+v, %v", r, err)
	}
	if left := s.Left(t); len(left) != 0 {
		t.Errorf("it left %v", left)
	}
}

// TestPortsTellWhich holds that a path that refuses, one that leads to another's
// listener, and one that takes connections and is dumb are each told, and the
// others proven.
func TestPortsTellWhich(t *testing.T) {
	s := ftptest.Start(t, 5)
	dumb, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer dumb.Close()
	free := ftptest.FreePorts(t, 1)
	r, err := portsOf(s, 5, func(p int) string {
		switch p {
		case s.PassivePort:
			return local(free)
		case s.PassivePort + 3:
			return dumb.Addr().String()
		}
		return local(p)
	}).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := []int{s.PassivePort + 1, s.PassivePort + 2, s.PassivePort + 4}; !slices.Equal(r.OK, want) {
		t.Errorf("proven %v, want %v", r.OK, want)
	}
	if err := r.Failed[s.PassivePort]; err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("the refused one: %v", err)
	}
	if err := r.Failed[s.PassivePort+3]; err == nil || !strings.Contains(err.Error(), "nothing came within 1s") {
		t.Errorf("the dumb one: %v", err)
	}
}

// TestPortsOtherSource holds that the server's refusal of a data connection from
// another address than the control connection's is told by its words.
func TestPortsOtherSource(t *testing.T) {
	s := ftptest.Start(t, 2)
	p := portsOf(s, 2, local)
	p.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}}
		if address != p.Address {
			d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}
		}
		return d.DialContext(ctx, network, address)
	}
	r, err := p.Run(t.Context())
	if err != nil || len(r.Failed) != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	for port, err := range r.Failed {
		if !strings.Contains(err.Error(), "425") {
			t.Errorf("port %d: %v", port, err)
		}
	}
}

func TestPortsControl(t *testing.T) {
	s := ftptest.Start(t, 2)
	p := portsOf(s, 2, local)
	p.First, p.Last = p.First+10, p.Last+10
	if r, err := p.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "outside") || len(r.NotDrawn) != 2 {
		t.Errorf("another range: %+v, %v", r, err)
	}
	p = portsOf(s, 2, local)
	p.Address = local(ftptest.FreePorts(t, 1))
	if r, err := p.Run(t.Context()); err == nil || len(r.NotDrawn) != 2 {
		t.Errorf("no server: %+v, %v", r, err)
	}
}

// TestPortsSample holds that of more than 32 ports a sample is drawn, and that the
// rest is named.
func TestPortsSample(t *testing.T) {
	s := ftptest.Start(t, 200)
	r, err := portsOf(s, 200, local).Run(t.Context())
	if err != nil || len(r.OK) == 0 || len(r.OK)+len(r.NotDrawn) != 200 || len(r.NotDrawn) < 100 {
		t.Errorf("%d proven, %d not drawn, %v", len(r.OK), len(r.NotDrawn), err)
	}
}

// TestPortsInUse holds that a port which a client's transfer keeps is no fault of the path.
func TestPortsInUse(t *testing.T) {
	s := ftptest.Start(t, 5) // vsftpd dies where it draws a port that is taken nine times in a row
	client, err := ftp.Dial(t.Context(), ftp.Config{Address: local(s.Port)})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.Login(t.Context(), ftptest.User, ftptest.Password); err != nil {
		t.Fatal(err)
	}
	port, err := client.ExtendedPassive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p := portsOf(s, 5, local)
	p.InUse = func(context.Context) ([]int, error) { return []int{port}, nil }
	const heldLong = 10 * time.Second // for which it is waited for what nobody knows to be used
	p.Patience = 2 * heldLong
	start := time.Now()
	if r, err := p.Run(t.Context()); err != nil || len(r.OK) != 4 || !slices.Equal(r.NotDrawn, []int{port}) || time.Since(start) > heldLong {
		t.Errorf("in use: %+v, %v after %s", r, err, time.Since(start))
	}
	p.InUse = func(context.Context) ([]int, error) { return nil, nil }
	p.Patience = 100 * time.Millisecond
	if _, err := p.Run(t.Context()); err == nil || !strings.Contains(err.Error(), strconv.Itoa(port)+": another session may hold it") {
		t.Errorf("held by nobody that is known: %v", err)
	}
}

// TestPortsTaken holds that a session which the server ends for want of a free port is
// opened again, and not for ever.
func TestPortsTaken(t *testing.T) {
	s := ftptest.Start(t, 1)
	taken, err := net.Listen("tcp", local(s.PassivePort))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if _, err := portsOf(s, 1, local).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "session after session breaks: ask for a data port: ") {
		t.Errorf("taken for ever: %v", err)
	}
	p, sessions := portsOf(s, 1, local), 0
	p.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == p.Address {
			if sessions++; sessions == 3 {
				taken.Close()
			}
		}
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	}
	if r, err := p.Run(t.Context()); err != nil || sessions != 3 || !slices.Equal(r.OK, []int{s.PassivePort}) {
		t.Errorf("taken for two sessions: %+v, %v, %d sessions", r, err, sessions)
	}
}
