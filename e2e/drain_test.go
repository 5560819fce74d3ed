package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/steps/ftp"
)

// sessionPause is between two listings of a session that stays open.
const sessionPause = 500 * time.Millisecond

// sessions keeps an FTP session open from each of the addresses given and lists in
// it again and again, and once more when its standard input has ended. One that
// breaks is counted for its address and opened anew. It says "ready" when all are
// in, and at the end each address with its count.
func sessions(ctx context.Context, args []string) error {
	ctx = context.WithoutCancel(ctx) // its tests wait for machines to boot
	stop := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	var in, all sync.WaitGroup
	var one sync.Mutex // of few passive ports vsftpd finds none that is free when many list at once, and ends the session
	broken := make([]int, len(args)-1)
	for i, address := range args[1:] {
		in.Add(1)
		all.Go(func() { broken[i] = keepSession(ctx, args[0], address, in.Done, stop, &one) })
	}
	in.Wait()
	fmt.Println("ready")
	all.Wait()
	for i, address := range args[1:] {
		fmt.Println(address, broken[i])
	}
	return nil
}

func keepSession(ctx context.Context, to, from string, in func(), stop <-chan struct{}, one *sync.Mutex) (broken int) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: probeBound}
	host, _, _ := net.SplitHostPort(to)
	var c *ftp.Client
	tick := time.NewTicker(sessionPause)
	defer tick.Stop()
	for last := false; ; {
		var err error
		if c == nil {
			if c, err = ftp.Dial(ctx, ftp.Config{Address: to, Dial: dialer.DialContext, Timeout: patience}); err == nil {
				err = c.Login(ctx, "partner", os.Getenv("FTPDEPLOY_VAR_ftp_password"))
			}
			if err == nil && in != nil {
				in()
				in = nil
			}
		} else {
			one.Lock()
			err = listIn(ctx, c, host)
			one.Unlock()
			if err != nil {
				broken++
				fmt.Fprintln(os.Stderr, from, err)
			}
		}
		if err != nil && c != nil {
			c.Close()
			c = nil
		}
		if last {
			if c != nil {
				c.Close()
			}
			return broken
		}
		select {
		case <-stop:
			last = true
		case <-tick.C:
		}
	}
}

func listIn(ctx context.Context, c *ftp.Client, host string) error {
	port, err := c.ExtendedPassive(ctx)
	if err != nil {
		return err
	}
	data, err := c.DialData(ctx, net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return err
	}
	_, err = c.List(ctx, data, "")
	return err
}

// held are sessions that stay open until end is called, which tells how often each broke.
type held struct {
	in  io.Closer
	out *bufio.Scanner
	cmd *exec.Cmd
}

func hold(t *testing.T, addresses ...string) *held {
	t.Helper()
	// A box that lost the VIP under a session keeps it open until the VIP is back, and its
	// keepalive finds that nobody is there.
	has, _ := holder(t)
	within(t, 2*time.Minute, "no session of before is open on "+has, func() bool {
		return shell(t, has, `ss -Htn state established sport = :21`) == ""
	})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h := &held{cmd: exec.CommandContext(t.Context(), ftplab, append([]string{"exec", "client", "--", "env", handEnv + "=sessions", self, net.JoinHostPort(vip, "21")}, addresses...)...)}
	h.cmd.Stderr = os.Stderr
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.out = bufio.NewScanner(out)
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if !h.out.Scan() || h.out.Text() != "ready" {
		t.Fatalf("sessions from %v: %q", addresses, h.out.Text())
	}
	return h
}

func (h *held) end(t *testing.T) (broken int, by map[string]int) {
	t.Helper()
	_ = h.in.Close()
	by = map[string]int{}
	for h.out.Scan() {
		address, count, _ := strings.Cut(h.out.Text(), " ")
		n, err := strconv.Atoi(count)
		if err != nil {
			t.Fatalf("sessions say %q", h.out.Text())
		}
		by[address] = n
		broken += n
	}
	if err := h.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return broken, by
}

// rolling is the lab's blueprint with other texts and a bound for drains.
func rolling(t *testing.T, deadline string, texts ...string) string {
	t.Helper()
	text, err := os.ReadFile(blueprint)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.NewReplacer(texts...).Replace(string(text))
	if len(texts) > 0 && changed == string(text) {
		t.Fatalf("the blueprint has none of %q", texts)
	}
	file := filepath.Join(t.TempDir(), "lab.ftp.hcl")
	if err := os.WriteFile(file, []byte(changed+"\nrollout {\n  drain_deadline = \""+deadline+"\"\n}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// drains are the drain events of a run.
func drains(t *testing.T, stdout string) []drainEvent {
	t.Helper()
	return eventsOf[drainEvent](t, stdout, "drain")
}

type drainEvent struct {
	Box      string
	WaitedMS int64 `json:"waited_ms"`
	Cut      int
	Clients  []string
}

// masters counts how often a box has become the holder of the VIP since it booted.
func masters(t *testing.T) int {
	t.Helper()
	n := 0
	for _, box := range []string{boxA, boxB} {
		n += strings.Count(shell(t, box, `journalctl -b -q -o cat -u keepalived`), "Entering MASTER STATE")
	}
	return n
}

// table is what a box knows of the clients' nodes.
func table(t *testing.T, box string) string {
	t.Helper()
	return shell(t, box, `perl -MIO::Socket::UNIX -e '$s = IO::Socket::UNIX->new("/run/haproxy.sock") or die $!; print $s "show table vsftpd_control\n"; print while <$s>'`)
}

// reloadKeeps changes HAProxy's configuration twice in a row while 18 clients have
// sessions: nothing of theirs is lost, and no box reloads twice within the gap.
func reloadKeeps(t *testing.T) {
	nic := shell(t, "client", `ip -o addr show to 203.0.113.50 | { read -r _ n _; echo "$n"; }`)
	var clients []string
	for i := range 18 {
		clients = append(clients, fmt.Sprintf("203.0.113.%d", 60+i))
	}
	for _, c := range clients {
		shell(t, "client", "ip addr add "+c+"/24 dev "+nic)
	}
	defer func() {
		for _, c := range clients {
			shell(t, "client", "ip addr del "+c+"/24 dev "+nic)
		}
	}()
	has, _ := holder(t)
	before := masters(t)
	h := hold(t, clients...)
	file := rolling(t, "1m", `client  = "2h"`, `client  = "3h"`)
	first := deploy(t, "apply", "--yes", "-f", file).must(t)
	second := deploy(t, "apply", "--yes").must(t)
	for _, box := range []string{boxA, boxB} {
		within(t, 5*time.Second, box+" knows the node of each of the 18 clients", func() bool {
			now := table(t, box)
			for _, c := range clients {
				if !strings.Contains(now, "key="+c+" ") {
					return false
				}
			}
			return true
		})
		var starts []float64
		for line := range strings.Lines(shell(t, box, `journalctl -b -q -o short-unix -u haproxy | grep 'New worker' | tail -n 2`)) {
			when, _, _ := strings.Cut(line, " ")
			s, err := strconv.ParseFloat(when, 64)
			if err != nil {
				t.Fatal(err)
			}
			starts = append(starts, s)
		}
		// The journal tells when it was told; what counts is when the workers were started.
		if len(starts) != 2 || starts[1]-starts[0] < 9.5 {
			t.Errorf("%s: workers started at %f, want 10 s or more between", box, starts)
		} else {
			t.Logf("%s: reloads of two runs were %.1f s apart", box, starts[1]-starts[0])
		}
	}
	if broken, by := h.end(t); broken > 0 {
		t.Errorf("sessions broke: %v", by)
	}
	if now, _ := holder(t); now != has || masters(t) != before {
		t.Errorf("the VIP moved from %s to %s, %d times", has, now, masters(t)-before)
	}
	t.Logf("two runs took %.1f s and %.1f s; 18 clients in the table of both boxes, 0 of 18 sessions broke, VIP moves 0", first.took.Seconds(), second.took.Seconds())
}

// drainAndResume takes the holder out of service for a while, as for work on it.
func drainAndResume(t *testing.T) {
	file := rolling(t, "2s")
	has, other := holder(t)
	before := masters(t)
	h := hold(t, "203.0.113.50", "203.0.113.51")
	deploy(t, "drain", has, "--yes", "-f", file).exits(t, 5).says(t, "still has 2 sessions of 203.0.113.50, 203.0.113.51", "nothing was cut")
	if now, _ := holder(t); now != has {
		t.Errorf("the VIP left %s, whose drain was given up", has)
	}
	r := deploy(t, "drain", has, "--for", "1h", "--drain", "deadline", "--yes", "--json", "-f", file).must(t)
	cut := drains(t, r.stdout)
	within(t, 10*time.Second, other+" holds the VIP", func() bool { now, _ := holder(t); return now == other })
	broken, by := h.end(t)
	if len(cut) != 1 || cut[0].Box != has || cut[0].Cut != 2 || broken != 2 || fmt.Sprint(cut[0].Clients) != "[203.0.113.50 203.0.113.51]" || masters(t)-before != 1 {
		t.Errorf("said to be cut: %v; broke: %v; VIP moves %d", cut, by, masters(t)-before)
	}
	deploy(t, "drain", other, "--yes").exits(t, 1).says(t, has+" is drained until", "ftpdeploy resume "+has)
	deploy(t, "plan", "--detailed-exitcode").exits(t, 0).says(t, "No changes", `lb "`+has+`" is drained until`)
	deploy(t, "apply", "--yes").must(t).says(t, "No changes", "PASS")

	unfit := func() bool { return on(t, has, "/usr/libexec/keepalived/ftpdeploy-check", "ftp").code == 1 }
	lab(t, "fault", "vm-off", has)
	lab(t, "fault", "vm-on", has)
	booted(t, has)
	// Drained is all that is wrong with it.
	within(t, 10*time.Second, has+" would be fit", func() bool {
		return on(t, has, "sh", "-c", `sed /drained/d /usr/libexec/keepalived/ftpdeploy-check | bash -s ftp`).code == 0
	})
	if !unfit() {
		t.Errorf("%s takes part again after a reboot", has)
	}
	deploy(t, "resume", has, "--yes").must(t)
	within(t, 10*time.Second, has+" is fit after resume", func() bool { return !unfit() })

	start := time.Now()
	deploy(t, "drain", has, "--for", "8s", "--yes").must(t)
	if !unfit() {
		t.Errorf("%s is fit although it is drained", has)
	}
	within(t, 20*time.Second, has+"'s drain ends by itself", func() bool { return !unfit() })
	if took := time.Since(start); took < 7*time.Second { // the box's clock is asked for whole seconds
		t.Errorf("a drain of 8 s ended after %s", took)
	}
	if now, _ := holder(t); now != other {
		t.Errorf("the VIP came back to %s", now)
	}
	planIsEmpty(t)
	t.Logf("2 sessions cut as said, 1 VIP move, drained over a reboot, and over by itself after 8 s")
}

// upgradeDrains gives both boxes a newer HAProxy while clients have sessions that end.
func upgradeDrains(t *testing.T) {
	version := offerHAProxy(t)
	file := rolling(t, "3m", "  haproxy {\n", "  haproxy {\n    version = \""+version+"\"\n")
	has, other := holder(t)
	before := masters(t)
	h := hold(t, "203.0.113.50", "203.0.113.51")
	r := during(t, "waiting for 2 sessions of 203.0.113.50, 203.0.113.51", func(string) {
		if now, _ := holder(t); now != has {
			t.Errorf("the VIP is on %s while sessions are waited for", now)
		}
		if broken, by := h.end(t); broken > 0 {
			t.Errorf("sessions broke: %v", by)
		}
	}, "apply", "--yes", "-f", file).must(t)
	d := drains(t, r.stdout)
	if len(d) != 1 || d[0].Box != has || d[0].Cut != 0 || masters(t)-before != 1 {
		t.Errorf("drains: %v, VIP moves %d", d, masters(t)-before)
	}
	if now, _ := holder(t); now != other {
		t.Errorf("the VIP is on %s, not on %s", now, other)
	}
	for _, box := range []string{boxA, boxB} {
		if got := shell(t, box, `dpkg-query -W -f '${Version}' haproxy`); got != version {
			t.Errorf("%s has HAProxy %s, want %s", box, got, version)
		}
		shell(t, box, `rm -rf /var/local/newer /etc/apt/sources.list.d/newer.list`)
	}
	deploy(t, "apply", "--yes").must(t) // a version that is not asked for any more is a generation of its own, and stays
	planIsEmpty(t)
	t.Logf("both boxes have HAProxy %s after %.1f s; %s waited %.1f s for 2 sessions; 0 cut, 1 VIP move", version, r.took.Seconds(), has, float64(d[0].WaitedMS)/1000)
}

// offerHAProxy gives both boxes a source with the mirror's HAProxy under a higher version.
func offerHAProxy(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	has := shell(t, boxA, `dpkg-query -W -f '${Version}' haproxy`)
	version := has + "+lab1"
	script := `cd "$1"
curl -fsS -o old.deb "http://192.0.2.2/haproxy_$2_amd64.deb"
dpkg-deb -R old.deb tree
sed -i "s/^Version: .*/Version: $3/" tree/DEBIAN/control
mkdir newer
dpkg-deb -Znone -b tree newer/haproxy.deb >&2
cd newer
apt-ftparchive packages . > Packages
tar -c --owner=0 --group=0 haproxy.deb Packages > ../newer.tar`
	on(t, "jump", "sh", "-euc", script, "sh", dir, has, version).must(t)
	archive, err := os.ReadFile(filepath.Join(dir, "newer.tar"))
	if err != nil {
		t.Fatal(err)
	}
	for _, box := range []string{boxA, boxB} {
		c := exec.CommandContext(t.Context(), ftplab, "exec", box, "--", "sh", "-euc", `mkdir -p /var/local/newer /etc/apt/sources.list.d
tar -x -C /var/local/newer
chmod -R a+rX /var/local/newer
echo 'deb [trusted=yes] file:/var/local/newer ./' > /etc/apt/sources.list.d/newer.list`)
		c.Stdin = bytes.NewReader(archive)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", box, err, out)
		}
	}
	return version
}

// rebootsDrain changes the hardware of both boxes, and back, under clients that
// never stop: what breaks for them is what the drain has said.
func rebootsDrain(t *testing.T) {
	clients := []string{"203.0.113.50", "203.0.113.51"}
	for _, d := range []struct {
		policy string
		file   string
	}{
		{"deadline", rolling(t, "2s", `memory   = "512MiB"`, `memory   = "640MiB"`)},
		{"cut", blueprint},
	} {
		has, other := holder(t)
		h := hold(t, clients...)
		r := deploy(t, "apply", "--yes", "--json", "--allow", "both-boxes", "--drain", d.policy, "-f", d.file).must(t)
		broken, by := h.end(t)
		said := drains(t, r.stdout)
		// Both boxes were off: since then each knows of its own only.
		if moves := masters(t); len(said) != 1 || said[0].Box != has || said[0].Cut != len(clients) || broken != said[0].Cut || moves != 1 {
			t.Errorf("--drain %s: said to be cut: %v; broke: %v; VIP moves %d", d.policy, said, by, moves)
		} else {
			t.Logf("--drain %s: both boxes changed in %.1f s, %d sessions cut as said, %d VIP move", d.policy, r.took.Seconds(), broken, moves)
		}
		if now, _ := holder(t); now != other {
			t.Errorf("the VIP is on %s, not on %s", now, other)
		}
	}
	planIsEmpty(t)
}
