package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/steps/ftp"
)

const (
	// clientRate is how fast each looping client moves data (bytes a second): slow
	// enough that most changes find its transfer open.
	clientRate = 1 << 20
	// passwordFile, in the client's home, is where looping clients look up the
	// password for each new session.
	passwordFile = "password"
	// refusedBound is how long a client goes on asking to be let in while the
	// password is being changed.
	refusedBound = time.Minute
	// narrow is the range of the lab's blueprint. vsftpd draws a port ten times and
	// then gives up, so that eight transfers at once make it fail now and then; with
	// wide twenty do not.
	narrow, wide = `ports           = "21100-21110"`, `ports           = "21100-21200"`
	// retryPause is between a client's failure and its next try.
	retryPause = 500 * time.Millisecond
)

// round is a file that a client put and got back.
type round struct {
	Client     string
	Start, End time.Time
	Refused    int    // logins with a password that was not, or no longer, the right one
	Error      string // what failed, "" if both transfers passed and the file came back the same
}

// traffic is what partners run all day: each puts a file of random content, gets
// it back and compares, again and again, from an address of its own. A third of
// them each is lftp, curl (a session a transfer) and our own client (one session
// as long as nothing fails). None tries a transfer again. With the file of a CA they
// do so over TLS.
type traffic struct {
	t      *testing.T
	n      int
	size   int64
	cmd    *exec.Cmd
	mu     sync.Mutex
	rounds []round
	ended  chan error
	gone   bool // it has ended, and its addresses are taken away
}

// startClients starts n clients on the lab's host "client" and returns when all
// of them move data.
func startClients(t *testing.T, n int, size int64, ca ...string) *traffic {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	shell(t, "client", `umask 077; printf %s "$FTPDEPLOY_VAR_ftp_password" > ~/`+passwordFile)
	for i := range n {
		shell(t, "client", "ip address add "+clientAddress(i).String()+"/24 dev frontend")
	}
	c := &traffic{t: t, n: n, size: size, ended: make(chan error, 1)}
	c.cmd = exec.Command(ftplab, "exec", "client", "--", "env", handEnv+"=clients", self, strconv.Itoa(n), strconv.FormatInt(size, 10), strings.Join(ca, ""))
	c.cmd.Stderr = os.Stderr
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		in := json.NewDecoder(out)
		for {
			var r round
			if in.Decode(&r) != nil {
				break
			}
			c.mu.Lock()
			c.rounds = append(c.rounds, r)
			c.mu.Unlock()
		}
		c.ended <- c.cmd.Wait()
	}()
	t.Cleanup(func() { // of a test that failed before it stopped them
		if !c.gone {
			_ = c.cmd.Process.Signal(syscall.SIGTERM)
			<-c.ended
			c.leave(context.Background()) // that of the test is over
		}
	})
	within(t, time.Minute, "every client moves data", func() bool {
		open := strings.Fields(shell(t, "client", `ss -Htn state established dst `+vip+` | wc -l`))
		return len(open) == 1 && atoi(t, open[0]) >= 2*n
	})
	return c
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(s))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// stop lets every client finish its round, and counts. Each failure is logged.
func (c *traffic) stop() (transfers, failed int) {
	c.t.Helper()
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		c.t.Fatalf("stop the clients: %v", err)
	}
	bound := 2*time.Duration(c.size/clientRate)*time.Second + 2*refusedBound
	select {
	case err := <-c.ended:
		c.leave(c.t.Context())
		if err != nil {
			c.t.Fatalf("the clients: %v", err)
		}
	case <-time.After(bound):
		c.t.Fatalf("the clients did not finish their rounds within %s", bound)
	}
	refused := 0
	for _, r := range c.rounds {
		transfers += 2
		refused += r.Refused
		if r.Error != "" {
			failed++
			c.t.Logf("%s, from %s to %s: %s", r.Client, r.Start.Format("15:04:05.000"), r.End.Format("15:04:05.000"), r.Error)
		}
	}
	c.t.Logf("%d clients: %d transfers of %d MiB, %d failed; %d logins refused while the password changed", c.n, transfers, c.size>>20, failed, refused)
	return transfers, failed
}

// leave takes the clients' addresses away.
func (c *traffic) leave(ctx context.Context) {
	c.gone = true
	for i := range c.n {
		if out, err := exec.CommandContext(ctx, ftplab, "exec", "client", "--", "ip", "address", "del", clientAddress(i).String()+"/24", "dev", "frontend").CombinedOutput(); err != nil {
			c.t.Errorf("take an address of the clients away: %v: %s", err, out)
		}
	}
}

// openAt counts the rounds that were under way at a time. It knows them all once
// the clients have stopped.
func (c *traffic) openAt(at time.Time) int {
	n := 0
	for _, r := range c.rounds {
		if r.Start.Before(at) && r.End.After(at) {
			n++
		}
	}
	return n
}

func clientAddress(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{203, 0, 113, byte(100 + i)})
}

// loopClients is the act of startClients on the client: it runs N clients with
// files of SIZE, over TLS where CA is not "", until SIGTERM, and prints their rounds.
func loopClients(ctx context.Context, args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	size, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	// A run may take longer than an act by hand; its end is SIGTERM.
	ctx, stop := signal.NotifyContext(context.WithoutCancel(ctx), syscall.SIGTERM)
	defer stop()
	home, err := os.UserHomeDir()
	if err != nil {
		return err
	}
	var mu sync.Mutex
	out := json.NewEncoder(os.Stdout)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			l := looper{id: i, size: size, dir: home, from: clientAddress(i), ca: args[2]}
			defer l.close()
			kind := []struct {
				name string
				move func(*looper, context.Context) error
			}{{"lftp", (*looper).lftp}, {"curl", (*looper).curl}, {"probe", (*looper).probe}}[i%3]
			for ctx.Err() == nil {
				r := round{Client: fmt.Sprintf("%s from %s", kind.name, l.from), Start: time.Now()}
				var refused time.Time // the first time
				for r.Error = errorText(l.round(kind.move)); strings.Contains(r.Error, "530") && (refused.IsZero() || time.Since(refused) < refusedBound); {
					if r.Refused++; refused.IsZero() {
						refused = time.Now()
					}
					<-time.After(retryPause)
					r.Error = errorText(l.round(kind.move))
				}
				r.End = time.Now()
				mu.Lock()
				_ = out.Encode(r)
				mu.Unlock()
				if r.Error != "" {
					<-time.After(retryPause)
				}
			}
		})
	}
	all.Wait()
	return nil
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// looper is one client.
type looper struct {
	id, rounds int
	size       int64
	dir        string
	from       netip.Addr
	ca         string      // file, "" = in clear text
	session    *ftp.Client // of probe
}

func (l *looper) close() {
	if l.session != nil {
		l.session.Close()
	}
	_ = os.Remove(l.file())
}

// round is one put and one get, in at most five times what they take at clientRate.
func (l *looper) round(move func(*looper, context.Context) error) error {
	l.rounds++
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute+5*time.Duration(2*l.size/clientRate)*time.Second)
	defer cancel()
	return move(l, ctx)
}

func (l *looper) name() string { return "loop-" + strconv.Itoa(l.id) }
func (l *looper) file() string { return filepath.Join(l.dir, l.name()) }

// content is what this round puts: no two rounds put the same.
func (l *looper) content() io.Reader {
	seed := sha256.Sum256(fmt.Appendf(nil, "client %d round %d", l.id, l.rounds))
	return io.LimitReader(rand.NewChaCha8(seed), l.size)
}

func (l *looper) compare(got io.Reader) error {
	want, have := sha256.New(), sha256.New()
	n, err := io.Copy(have, got)
	if _, err2 := io.Copy(want, l.content()); err != nil || err2 != nil {
		return errors.Join(err, err2)
	}
	if !bytes.Equal(want.Sum(nil), have.Sum(nil)) {
		return fmt.Errorf("got %d bytes with another checksum than those that were put", n)
	}
	return nil
}

func (l *looper) password() (string, error) {
	b, err := os.ReadFile(filepath.Join(l.dir, passwordFile))
	return string(b), err
}

func (l *looper) lftp(ctx context.Context) error {
	password, err := l.password()
	if err != nil {
		return err
	}
	f, err := os.Create(l.file())
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, l.content()); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	script := fmt.Sprintf("set net:socket-bind-ipv4 %s; set net:limit-rate %d; set net:max-retries 1; set net:persist-retries 0; "+
		"set net:timeout 30; set cmd:fail-exit true; put %s -o %s; cat %[4]s; bye", l.from, clientRate, l.file(), l.name())
	if l.ca != "" {
		script = "set ssl:ca-file " + l.ca + "; set ftp:ssl-force true; set ftp:ssl-protect-data true; " + script
	}
	c := exec.CommandContext(ctx, "lftp", "--env-password", "-u", "partner", "ftp://"+vip, "-e", script)
	c.Env = append(os.Environ(), "LFTP_PASSWORD="+password)
	said := &lastWords{word: "530", act: cancel} // lftp does not end by itself when its login is refused
	c.Stderr = said
	return l.received(c, &said.text)
}

func (l *looper) curl(ctx context.Context) error {
	password, err := l.password()
	if err != nil {
		return err
	}
	netrc := l.file() + ".netrc"
	if err := os.WriteFile(netrc, fmt.Appendf(nil, "machine %s login partner password %s\n", vip, password), 0o600); err != nil {
		return err
	}
	args := []string{
		"-sS", "--netrc-file", netrc, "--interface", l.from.String(), "--limit-rate", strconv.Itoa(clientRate), "ftp://" + vip + "/" + l.name(),
	}
	if l.ca != "" {
		args = append(args, "--ssl-reqd", "--cacert", l.ca)
	}
	put := exec.CommandContext(ctx, "curl", append(args, "-T", "-")...)
	put.Stdin = l.content()
	if out, err := put.CombinedOutput(); err != nil {
		return fmt.Errorf("put: %w: %s", err, out)
	}
	get := exec.CommandContext(ctx, "curl", args...)
	var said bytes.Buffer
	get.Stderr = &said
	return l.received(get, &said)
}

// received runs a command whose output must be what was put.
func (l *looper) received(c *exec.Cmd, said *bytes.Buffer) error {
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	compared := l.compare(out)
	if err := c.Wait(); err != nil {
		return fmt.Errorf("%w: %s", err, said)
	}
	return compared
}

// probe keeps its session from round to round.
func (l *looper) probe(ctx context.Context) (err error) {
	defer func() {
		if err != nil && l.session != nil {
			l.session.Close()
			l.session = nil
		}
	}()
	if l.session == nil {
		password, err := l.password()
		if err != nil {
			return err
		}
		dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(l.from, 0))}
		config := ftp.Config{Address: net.JoinHostPort(vip, "21"), Dial: dialer.DialContext, Timeout: 30 * time.Second}
		if l.ca != "" {
			if config.TLS, err = trusting(l.ca); err != nil {
				return err
			}
		}
		l.session, err = ftp.Dial(ctx, config)
		if err != nil {
			return err
		}
		if err := l.session.Login(ctx, "partner", password); err != nil {
			return err
		}
	}
	data, err := l.data(ctx)
	if err != nil {
		return err
	}
	if _, err := l.session.Store(ctx, data, l.name(), &paced{from: l.content()}); err != nil {
		return fmt.Errorf("put: %w", err)
	}
	if data, err = l.data(ctx); err != nil {
		return err
	}
	// The comparison holds the reading back, and so the server.
	r, w := io.Pipe()
	compared := make(chan error, 1)
	go func() { compared <- l.compare(&paced{from: r}) }()
	_, err = l.session.Retrieve(ctx, data, l.name(), w)
	w.Close()
	if c := <-compared; err == nil {
		err = c
	}
	if err != nil {
		return fmt.Errorf("get: %w", err)
	}
	return nil
}

func (l *looper) data(ctx context.Context) (net.Conn, error) {
	to, err := l.session.Passive(ctx)
	if err != nil {
		return nil, err
	}
	return l.session.DialData(ctx, to.String())
}

// paced reads no faster than clientRate.
type paced struct {
	from  io.Reader
	start time.Time
	total int64
}

func (p *paced) Read(b []byte) (int, error) {
	if p.start.IsZero() {
		p.start = time.Now()
	}
	<-time.After(time.Until(p.start.Add(time.Duration(p.total) * time.Second / clientRate)))
	n, err := p.from.Read(b[:min(len(b), 64<<10)])
	p.total += int64(n)
	return n, err
}

// lastWords keeps what a command says, and acts once when it says a word.
type lastWords struct {
	text bytes.Buffer
	word string
	act  func()
}

func (w *lastWords) Write(b []byte) (int, error) {
	n, err := w.text.Write(b)
	if strings.Contains(w.text.String(), w.word) {
		w.act()
	}
	return n, err
}

// edit is a change of the blueprint.
type edit struct {
	name, from, to string
	act            func() // stands in for the change of a text where it is not nil
}

// trafficGoesOn changes the deployment again and again while clients put and get:
// no transfer fails and the VIP stays where it is. A change of password that the
// clients have to learn of is one of them.
func trafficGoesOn(t *testing.T) {
	password := shell(t, "jump", `printf %s "$FTPDEPLOY_VAR_ftp_password"`)
	text, err := os.ReadFile(blueprint)
	if err != nil {
		t.Fatal(err)
	}
	live := strings.NewReplacer(`  namespace = "ftp"`, "  namespace = \"ftp\"\n  live_settings = true\n  idle_session = \"10m\"",
		narrow, wide).Replace(string(text))
	file := filepath.Join(t.TempDir(), "lab.ftp.hcl")
	apply := func() result {
		t.Helper()
		if err := os.WriteFile(file, []byte(live), 0o600); err != nil {
			t.Fatal(err)
		}
		return onEnv(t, "jump", []string{"FTPDEPLOY_VAR_ftp_password=" + password}, ftpdeploy, "-f", file, "apply", "--yes").must(t)
	}
	apply() // the pod is replaced, to take its settings from files
	has, _ := holder(t)
	moves := shell(t, has, vipMoves)

	edits := []edit{
		{name: "timeout", from: `client  = "2h"`, to: `client  = "3h"`},
		{name: "worker removed", from: `"198.51.100.22", "198.51.100.23"]`, to: `"198.51.100.22"]`},
		{name: "password", act: func() {
			password += "-new"
			shell(t, "client", "printf %s '"+password+"' > ~/"+passwordFile)
		}},
		{name: "range widened", from: wide, to: `ports           = "21100-21220"`},
		{name: "worker added", from: `"198.51.100.22"]`, to: `"198.51.100.22", "198.51.100.23"]`},
		{name: "log target", from: `hard_stop_after = "4h"`, to: "hard_stop_after = \"4h\"\n    extra_global = \"log 127.0.0.1:514 local1\""},
		{name: "max_sessions", from: `hard_stop_after = "4h"`, to: "hard_stop_after = \"4h\"\n    max_sessions = 5000"},
		{name: "idle_session", from: `idle_session = "10m"`, to: `idle_session = "20m"`},
		{name: "order of the workers", from: `["198.51.100.21", "198.51.100.22", "198.51.100.23"]`, to: `["198.51.100.23", "198.51.100.22", "198.51.100.21"]`},
		{name: "advert_interval", from: `advert_interval = "500ms"`, to: `advert_interval = "1s"`},
	}[:times(4, 10)]
	c := startClients(t, times(4, 20), int64(times(8, 64))<<20)
	var began []time.Time
	for _, e := range edits {
		if e.act != nil {
			e.act()
		} else if !strings.Contains(live, e.from) {
			t.Fatalf("%s: the blueprint has no %q", e.name, e.from)
		}
		live = strings.Replace(live, e.from, e.to, 1)
		began = append(began, time.Now())
		r := apply()
		t.Logf("%-20s %5.1f s: %s", e.name, r.took.Seconds(), done(r.stdout))
	}
	transfers, failed := c.stop()
	if failed > 0 {
		t.Errorf("%d of %d transfers failed", failed, transfers)
	}
	for i, at := range began {
		if c.openAt(at) == 0 {
			t.Errorf("no client was at work when this began: %s", edits[i].name)
		}
	}
	if now, _ := holder(t); now != has || shell(t, has, vipMoves) != moves {
		t.Errorf("the VIP was on %s and is on %s; it came and went: %s before, %s after", has, now, moves, shell(t, has, vipMoves))
	}
	deploy(t, "apply", "--yes", "--allow", "shrink-range").must(t)
	planIsEmpty(t)
}

// vipMoves counts how often keepalived of a box took or gave the VIP.
const vipMoves = `journalctl -q -o cat -u keepalived | grep -cE 'Entering (MASTER|BACKUP|FAULT) STATE' || true`

// done is the line of an apply that says what it did.
func done(stdout string) string {
	for line := range strings.Lines(stdout) {
		if strings.HasPrefix(line, "Done:") || strings.HasPrefix(line, "No changes") {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// knock is the act of reloadStorm on the client: it opens new connections to each
// ADDRESS, RATE a second in all, until SIGTERM, waits for each greeting and prints
// how many there were and every one that failed.
func knock(ctx context.Context, args []string) error {
	rate, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.WithoutCancel(ctx), syscall.SIGTERM)
	defer stop()
	var (
		mu    sync.Mutex
		knock knocks
		all   sync.WaitGroup
	)
	start := time.Now()
	for i := 0; ctx.Err() == nil; i++ {
		<-time.After(time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(rate))))
		all.Go(func() {
			err := greeted(args[1+i%(len(args)-1)])
			mu.Lock()
			defer mu.Unlock()
			knock.Tried++
			if err != nil {
				knock.Failed = append(knock.Failed, time.Now().Format("15:04:05.000 ")+err.Error())
			}
		})
	}
	all.Wait()
	return json.NewEncoder(os.Stdout).Encode(knock)
}

// knocks is what knock prints.
type knocks struct {
	Tried  int
	Failed []string
}

// greeted opens a connection, reads the greeting and leaves.
func greeted(address string) error {
	conn, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "220") {
		return fmt.Errorf("%s greets with %q: %w", address, line, err)
	}
	_, err = io.WriteString(conn, "QUIT\r\n")
	return err
}

// reloadStorm reloads HAProxy of both boxes again and again, as an apply does and
// as often as min_reload_gap lets it, while 100 new connections a second come to
// the VIP and to the boxes' own addresses: every one is served.
func reloadStorm(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	knocking := exec.Command(ftplab, "exec", "client", "--", "env", handEnv+"=knock", self, "100", vip+":21", "203.0.113.11:21", "203.0.113.12:21")
	var out bytes.Buffer
	knocking.Stdout, knocking.Stderr = &out, os.Stderr
	if err := knocking.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = knocking.Process.Kill() }) // of a test that failed
	text, err := os.ReadFile(blueprint)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "lab.ftp.hcl")
	count := func() int {
		n := 0
		for _, box := range []string{boxA, boxB} {
			n += atoi(t, shell(t, box, `journalctl -q -o cat -u haproxy | grep -c 'Loading success' || true`))
		}
		return n
	}
	before, start := count(), time.Now()
	rounds := times(2, 25)
	for i := range rounds {
		changed := strings.Replace(string(text), `client  = "2h"`, fmt.Sprintf(`client  = "%dm"`, 120+rounds-1-i), 1) // the last is as it was
		if err := os.WriteFile(file, []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
		deploy(t, "-f", file, "apply", "--yes").must(t)
	}
	reloads, took := count()-before, time.Since(start)
	if err := knocking.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := knocking.Wait(); err != nil {
		t.Fatalf("knock: %v", err)
	}
	var k knocks
	if err := json.Unmarshal(out.Bytes(), &k); err != nil {
		t.Fatal(err)
	}
	if reloads < rounds*2-2 {
		t.Errorf("%d reloads, want %d", reloads, rounds*2)
	}
	if len(k.Failed) > 0 {
		t.Errorf("%d of %d connections failed: %s", len(k.Failed), k.Tried, tail(strings.Join(k.Failed, "\n")))
	}
	t.Logf("%d reloads in %.0f s under %d new connections (%.0f a second): %d refused", reloads, took.Seconds(), k.Tried, float64(k.Tried)/took.Seconds(), len(k.Failed))
	planIsEmpty(t)
}

// throughput compares the way through the VIP with the way straight to the pod.
func throughput(t *testing.T) {
	deploy(t, "-f", variant(t, narrow, wide), "apply", "--yes").must(t)
	pod := strings.Fields(byHand(t, "pod"))
	if len(pod) != 2 {
		t.Fatalf("the pod is %v", pod)
	}
	neighbour := "worker-1"
	if pod[1] == neighbour {
		neighbour = "worker-2"
	}
	size := times(64, 256) // MiB
	password := shell(t, "client", `printf %s "$FTPDEPLOY_VAR_ftp_password"`)
	// fetch puts one file and has n streams get it at once, from a host.
	fetch := func(host, address string, n int) float64 {
		out := onEnv(t, host, []string{"PASSWORD=" + password}, "bash", "-euc", `
netrc=$(mktemp); trap 'rm -f "$netrc"' EXIT
printf 'machine %s login partner password %s\n' "$1" "$PASSWORD" > "$netrc"
head -c "$3"M /dev/zero | curl -sS --netrc-file "$netrc" -T - "ftp://$1/throughput"
start=$(date +%s%N)
for i in $(seq "$2"); do curl -sS --netrc-file "$netrc" -o /dev/null "ftp://$1/throughput" & streams="${streams-} $!"; done
for s in $streams; do wait "$s"; done
echo $(( $(date +%s%N) - start ))
curl -sS --netrc-file "$netrc" -Q "-DELE throughput" -I "ftp://$1/" > /dev/null`, "fetch", address, strconv.Itoa(n), strconv.Itoa(size)).must(t)
		return float64(n*size) * 1e9 / float64(atoi(t, out.stdout))
	}
	for _, n := range []int{1, 8} {
		vips, pods := []float64{}, []float64{}
		for range 3 {
			vips, pods = append(vips, fetch("client", vip, n)), append(pods, fetch(neighbour, pod[0], n))
		}
		t.Logf("%d streams of %d MiB: %4.0f MiB/s through the VIP, %4.0f MiB/s to the pod, ratio %.2f (medians of 3)", n, size, median(vips), median(pods), median(vips)/median(pods))
	}
	deploy(t, "apply", "--yes", "--allow", "shrink-range").must(t)
	planIsEmpty(t)
}
