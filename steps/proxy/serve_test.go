package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/steps/ftp/ftptest"
)

// TestServe runs the real HAProxy on the rendered file, with loopback addresses
// for VIP, box and workers: ports are mapped, data follows control to the same
// worker, the box's own address serves too, and the check script's verdict follows
// the workers of the box and, where it has none, whether the other box greets.
func TestServe(t *testing.T) {
	top := production()
	g, s := top.Groups[0], top.Services[0]
	free := freePorts(t, 7) // control, 2 passive, health, stats, peers, NodePort of control
	vip, own := "127.0.3.15", "127.0.3.11"
	top.VIPs[0].Address = netip.MustParseAddr(vip)
	g.Boxes[0].NICs[0].Address = netip.MustParseAddr(own)
	g.Boxes[0].NICs[1].Address = netip.MustParseAddr("127.0.4.11")
	g.Boxes[0].NICs[2].Address = netip.MustParseAddr("127.0.5.11")
	other := netip.MustParseAddr("127.0.3.12")
	g.Boxes[1].NICs[0].Address = other
	g.Boxes[1].NICs[1].Address = netip.MustParseAddr("127.0.4.12")
	g.Boxes[1].NICs[2].Address = netip.MustParseAddr("127.0.5.12")
	g.HAProxy.StatsPort, g.HAProxy.PeersPort = free[4], free[5]
	s.ControlPort, s.ControlNodePort = free[0], free[6]
	s.PassiveFirst, s.PassiveLast, s.NodePortFirst = free[1], free[2], free[1] // mapped by +0
	mapped := *s                                                               // and one mapped by an offset, at the VIP only
	mapped.Name, mapped.NodePortFirst = "mapped", free[1]
	more := freePorts(t, 3)
	mapped.ControlPort, mapped.PassiveFirst, mapped.PassiveLast = more[0], more[1], more[2]
	top.Services = append(top.Services, &mapped)

	workers := []netip.Addr{netip.MustParseAddr("127.0.4.21"), netip.MustParseAddr("127.0.4.22")}
	files, err := Files(top, g, g.Boxes[0], map[*blueprints.Cluster][]netip.Addr{top.Clusters[0]: workers})
	if err != nil {
		t.Fatal(err)
	}
	config, script := find(t, files, HAProxyPath), find(t, files, CheckPath)
	dir := t.TempDir()
	for _, r := range [][2]string{ // what a process without root, beside others, must not do
		{"    chroot /var/lib/haproxy\n", ""},
		{"    user haproxy\n", ""},
		{"    group haproxy\n", ""},
		{StatsSocket, filepath.Join(dir, "s")},
		{healthHost + ":" + strconv.Itoa(healthPort), healthHost + ":" + strconv.Itoa(free[3])},
	} {
		if !strings.Contains(config, r[0]) {
			t.Fatalf("no %q in the file", r[0])
		}
		config = strings.ReplaceAll(config, r[0], r[1])
	}
	passes := func(script string) bool {
		script = strings.ReplaceAll(script, fmt.Sprintf("/%s/%d ", healthHost, healthPort), fmt.Sprintf("/%s/%d ", healthHost, free[3]))
		return exec.Command("bash", candidate(t, []byte(script)), top.VIPs[0].Name).Run() == nil
	}
	check := func() bool { return passes(script) }
	lone, err := os.ReadFile("testdata/one-box/ftpdeploy-check")
	if err != nil {
		t.Fatal(err)
	}
	if check() {
		t.Fatal("the check passes without HAProxy")
	}

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	path := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, "/usr/sbin/haproxy", "-W", "-f", path)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		cmd.Wait() // it was interrupted: its error says no more
		if t.Failed() {
			t.Log(log.String())
		}
	})

	answered := func() string { return get(t, fmt.Sprintf("%s:%d", healthHost, free[3]), "/"+top.VIPs[0].Name) }
	until(ctx, t, "HAProxy to say that there are no workers", func() bool {
		return answers(vip, s.ControlPort) && strings.Contains(answered(), " 503 ")
	})
	if !check() {
		t.Error("without workers the check fails although no other box greets")
	}
	if !passes(string(lone)) {
		t.Error("without workers the check fails although there is no other box")
	}
	away := worker(t, other, s.ControlPort)
	if check() {
		t.Error("without workers the check passes although the other box greets")
	}
	away()
	mute, err := net.Listen("tcp", fmt.Sprintf("%s:%d", other, s.ControlPort))
	if err != nil {
		t.Fatal(err)
	}
	if start := time.Now(); !check() || time.Since(start) > 3*time.Second {
		t.Errorf("without workers, and another box that greets nobody, the check fails, or it took %s", time.Since(start))
	}
	mute.Close()
	away = worker(t, other, mapped.ControlPort)
	if check() {
		t.Error("without workers the check passes although the other box greets for the second service")
	}
	var stop []func()
	for _, w := range workers {
		for _, port := range []int{free[6], free[1], free[2]} {
			stop = append(stop, worker(t, w, port))
		}
	}
	until(ctx, t, "the check to pass with workers", check)

	host, _, page := Statistics()
	for path, want := range map[string]string{page: "\n" + s.Name + "_control," + workers[0].String() + ",", "/-/": "503"} {
		if got := get(t, fmt.Sprintf("%s:%d", host, free[3]), path); !strings.Contains(got, want) {
			t.Errorf("GET %s has no %q:\n%s", path, want, got)
		}
	}

	until(ctx, t, "both services to have a worker", func() bool {
		return ask(t, vip, s.ControlPort) != "" && ask(t, vip, mapped.ControlPort) != ""
	})

	for range 3 {
		for _, c := range []struct {
			service *blueprints.Service
			address string
			port    int
			want    int
		}{
			{s, vip, s.ControlPort, free[6]},
			{s, vip, s.PassiveFirst, free[1]},
			{s, vip, s.PassiveLast, free[2]},
			{s, own, s.ControlPort, free[6]},
			{s, own, s.PassiveLast, free[2]},
			{&mapped, vip, mapped.ControlPort, free[6]},
			{&mapped, vip, mapped.PassiveFirst, free[1]},
			{&mapped, vip, mapped.PassiveLast, free[2]},
		} {
			node, _, _ := strings.Cut(ask(t, vip, c.service.ControlPort), ":")
			if got, want := ask(t, c.address, c.port), fmt.Sprintf("%s:%d", node, c.want); got != want {
				t.Errorf("%s:%d leads to %q, want %s", c.address, c.port, got, want)
			}
		}
	}

	for _, f := range stop {
		f()
	}
	until(ctx, t, "the check to fail after the workers are gone", func() bool { return !check() })
	away()
	until(ctx, t, "the check to pass after the other box has none either", check)
}

// freePorts returns n ports in a row that nothing uses.
func freePorts(t *testing.T, n int) []int {
	t.Helper()
	first := ftptest.FreePorts(t, n)
	var ports []int
	for p := first; p < first+n; p++ {
		ports = append(ports, p)
	}
	return ports
}

// worker answers "220 ADDRESS:PORT" at a NodePort of a worker.
func worker(t *testing.T, address netip.Addr, port int) (stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", address, port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "220 %s\r\n", c.LocalAddr())
			c.Close()
		}
	}()
	return func() { l.Close() }
}

func answers(address string, port int) bool {
	c, err := net.DialTimeout("tcp", fmt.Sprintf("%s:%d", address, port), time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

func get(t *testing.T, address, path string) string {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprintf(c, "GET %s HTTP/1.0\r\n\r\n", path)
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(answer)
}

func ask(t *testing.T, address string, port int) string {
	t.Helper()
	c, err := net.DialTimeout("tcp", fmt.Sprintf("%s:%d", address, port), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return strings.TrimPrefix(strings.TrimSpace(line), "220 ")
}

// until polls: each look at HAProxy takes a few milliseconds of its own.
func until(ctx context.Context, t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited for %s", what)
		case <-tick.C:
		}
	}
}
