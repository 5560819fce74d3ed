package ftp

import (
	"context"
	crand "crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The modes of a probe.
const (
	PASV = "pasv" // RFC 959: the reply names address and port
	EPSV = "epsv" // RFC 2428: the reply names a port, the address is that of the control connection
)

// Probe proves an FTP service by using it: in each mode a session lists, uploads,
// downloads, compares and deletes a file of its own. Whatever goes wrong, it tries
// to leave nothing behind.
type Probe struct {
	Address  string // host:port of the control connection
	User     string
	Password string
	Modes    []string // PASV, EPSV

	TLS     *TLS // nil = in clear text
	OnlyTLS bool // with TLS: clear text must be refused

	ExpectAddress netip.Addr // what 227 must announce; the zero value = anything
	PortFirst     int        // the data ports that may be announced
	PortLast      int
	EveryPort     bool          // move data through each port: all up to 32, beyond that a sample
	Upload        int64         // bytes; 0 = only list, for an account that cannot write
	LongIdle      time.Duration // let one more upload take this long: the control channel is silent meanwhile
	InUse         InUse         // nil = nobody knows
	Dir           string        // where the file is put, "" = where the login leads
	Remove        []string      // what other probes left, to be removed where that can be done

	Dial    DialFunc      // nil = directly
	Timeout time.Duration // for each step of a session; 0 = DefaultTimeout
}

// Report is what a probe saw.
type Report struct {
	Checks     []Check  // in the order they were made; a failed one is the last, but for cleaning up
	Ports      []int    // the data ports that moved data, ascending
	NotDrawn   []int    // with EveryPort: the ports that the server never chose; up to 32 ports clients use them, or the probe failed
	Left       []string // files of this and other probes that may still be there
	Transcript []string
	// Certificate is what the server showed, good or not; nil where it showed none.
	Certificate *x509.Certificate
}

// Check is one thing that was proven, or not.
type Check struct {
	Name     string // "connect", "pasv download"
	OK       bool
	Duration time.Duration
	Bytes    int64 // moved
	Port     int   // the data port, 0 = none
	Detail   string
}

// BytesPerSecond is the rate of a check that moved data.
func (c Check) BytesPerSecond() float64 { return float64(c.Bytes) / c.Duration.Seconds() }

// Fault is the error of a probe: which check failed, why, and what the server had
// said last.
type Fault struct {
	Check string
	Err   error
	Reply string // "" = it never spoke
}

func (f *Fault) Error() string {
	text := f.Check + ": " + f.Err.Error()
	if f.Reply != "" && !strings.Contains(text, f.Reply) {
		text += fmt.Sprintf(" (last reply: %s)", f.Reply)
	}
	return text
}

func (f *Fault) Unwrap() error { return f.Err }

// ErrNotDrawn says that with EveryPort the server did not choose one of the ports.
// A session that broke off between PASV and its data connection keeps a port for
// vsftpd's accept_timeout, a minute: only a port that stays away is one that is lost.
var ErrNotDrawn = errors.New("the server did not choose a port")

// InUse tells which data ports carry a transfer now: vsftpd keeps a port for as long as
// its transfer lasts, and does not choose it for another. With an error it tells what it
// found out nevertheless.
type InUse func(context.Context) ([]int, error)

// all tells whether each of these ports carries a transfer. Where that cannot be found
// out none does, and the error says why.
func (f InUse) all(ctx context.Context, ports []int) (bool, error) {
	if f == nil {
		return false, nil
	}
	busy, err := f(ctx)
	switch {
	case !slices.ContainsFunc(ports, func(p int) bool { return !slices.Contains(busy, p) }):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("whether a transfer uses it cannot be told: %w", err)
	}
	return false, nil
}

// ErrAnnounced says that the server sends its clients to an address or a port that
// they do not have.
var ErrAnnounced = errors.New("the server announces")

// Final tells whether a fault is the server's own word, which does not pass by
// itself: it refuses for good (a 5yz reply, RFC 959 section 4.2), sends clients
// astray, or has a certificate that they refuse.
func Final(err error) bool {
	var reply *Reply
	var bad *tls.CertificateVerificationError
	return errors.Is(err, ErrAnnounced) || errors.As(err, &reply) && reply.Code >= 500 || errors.As(err, &bad)
}

// completePorts is up to how many ports EveryPort means every port. A server draws
// ports at random, so n ports take about n·H(n) draws to see: 33 for 11, 130 for 32.
const completePorts = 32

// cleanupTimeout bounds the removal of a file after a failure.
const cleanupTimeout = 15 * time.Second

// Run probes. The error is a *Fault that names the broken hop, joined with what
// could not be removed; the report is good in any case. A probe that asks for what
// cannot be proven is refused before the first connection.
func (p Probe) Run(ctx context.Context) (Report, error) {
	if p.Timeout == 0 {
		p.Timeout = DefaultTimeout
	}
	switch {
	case len(p.Modes) == 0:
		return Report{}, errors.New("a probe without modes proves nothing")
	case p.LongIdle > 0 && p.Upload == 0:
		return Report{}, errors.New("a long transfer needs an upload, and an account that may write")
	}
	r := &run{Probe: p, seen: map[int]bool{}}
	var err error
	for i, mode := range p.Modes {
		if err = r.session(ctx, mode, i == 0); err != nil {
			break
		}
	}
	if err == nil && p.TLS != nil {
		err = r.strangers(ctx)
	}
	if r.file != "" {
		err = errors.Join(err, r.cleanUp(ctx))
	}
	r.report.Left = r.Remove
	if r.file != "" {
		r.report.Left = append(r.report.Left, r.file)
	}
	for port := range r.seen {
		r.report.Ports = append(r.report.Ports, port)
	}
	slices.Sort(r.report.Ports)
	return r.report, err
}

// run is a probe that runs.
type run struct {
	Probe
	report Report
	client *Client
	mode   string
	file   string       // what may exist on the server and is ours to remove
	seen   map[int]bool // ports that moved data
}

func (r *run) config() Config {
	return Config{Address: r.Address, Dial: r.Dial, TLS: r.TLS, Timeout: r.Timeout, Trace: func(line string) {
		r.report.Transcript = append(r.report.Transcript, line)
	}}
}

// check makes a check of f, which may fill in what it saw.
func (r *run) check(name string, f func(*Check) error) error {
	c := Check{Name: name}
	start := time.Now()
	err := f(&c)
	c.Duration = time.Since(start)
	c.OK = err == nil
	if err != nil {
		fault := &Fault{Check: name, Err: err}
		if r.client != nil {
			fault.Reply = r.client.LastReply()
		}
		c.Detail, err = err.Error(), fault
	}
	r.report.Checks = append(r.report.Checks, c)
	return err
}

// session makes the checks of one mode. The first one draws the ports.
func (r *run) session(ctx context.Context, mode string, first bool) error {
	r.mode, r.client = mode, nil
	var client *Client
	err := r.check(mode+" connect", func(*Check) (err error) {
		client, err = connect(ctx, r.config())
		return err
	})
	if err != nil {
		return err
	}
	defer client.Close()
	r.client = client
	if err := r.check(mode+" greeting", func(*Check) error { return client.greeting(ctx) }); err != nil {
		return err
	}
	if r.TLS != nil {
		if err := r.check(mode+" tls", r.encrypt(ctx)); err != nil {
			return err
		}
	}
	if err := r.check(mode+" login", func(*Check) error {
		if err := client.Login(ctx, r.User, r.Password); err != nil {
			return fmt.Errorf("user %q: %w", r.User, err)
		}
		return nil
	}); err != nil {
		return err
	}

	if first {
		r.sweep(ctx, client)
	}

	// Two transfers a session at least: one passes by luck where data does not
	// follow control.
	if err := r.check(mode+" list", r.list(ctx, r.Dir, "")); err != nil {
		return err
	}
	if r.Upload > 0 {
		if err := r.roundTrip(ctx, mode); err != nil {
			return err
		}
	}
	listed, name := r.Dir, ""
	if r.file != "" {
		listed, name = r.file, path.Base(r.file)
	}
	if err := r.check(mode+" list again", r.list(ctx, listed, name)); err != nil {
		return err
	}
	if first && r.EveryPort {
		if err := r.check(mode+" every port", func(c *Check) error { return r.everyPort(ctx, c, listed, name) }); err != nil {
			return err
		}
	}
	if r.file != "" {
		if err := r.check(mode+" delete", func(*Check) error { return r.remove(ctx, client) }); err != nil {
			return err
		}
	}
	if first && r.LongIdle > 0 {
		if err := r.longIdle(ctx, mode); err != nil {
			return err
		}
	}
	return r.check(mode+" quit", func(*Check) error { return client.Quit(ctx) })
}

// encrypt returns a check of the control connection's TLS: chain, name, dates and
// version.
func (r *run) encrypt(ctx context.Context) func(*Check) error {
	return func(c *Check) error {
		err := r.client.encrypt(ctx)
		var bad *tls.CertificateVerificationError
		if errors.As(err, &bad) {
			r.report.Certificate = bad.UnverifiedCertificates[0]
		}
		if err != nil {
			return err
		}
		seen := r.client.conn.(*tls.Conn).ConnectionState()
		r.report.Certificate = seen.PeerCertificates[0]
		c.Detail = fmt.Sprintf("%s, certificate until %s", tls.VersionName(seen.Version), r.report.Certificate.NotAfter.UTC().Format(time.DateOnly))
		return nil
	}
}

// strangers proves that those are not let in who must not be: who logs in in clear
// text, and who does not show by his TLS session that a data connection is his.
func (r *run) strangers(ctx context.Context) error {
	if r.OnlyTLS {
		err := r.check("clear text refused", func(*Check) error {
			config := r.config()
			config.TLS = nil
			client, err := Dial(ctx, config)
			if err != nil {
				return err
			}
			defer client.Close()
			r.client = client
			_, err = client.command(ctx, 5, "USER "+r.User)
			var let *Reply
			if errors.As(err, &let) {
				return &TLSError{"FTP615", "the server takes a login in clear text", let}
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return r.check("reuse demanded", func(c *Check) error {
		config, fresh := r.config(), *r.TLS
		fresh.Fresh = true
		config.TLS = &fresh
		client, err := Dial(ctx, config)
		if err != nil {
			return err
		}
		defer client.Close()
		r.client = client
		if err := client.Login(ctx, r.User, r.Password); err != nil {
			return fmt.Errorf("user %q: %w", r.User, err)
		}
		err = r.transfer(ctx, c, func(data net.Conn) (int64, error) {
			listing, err := client.List(ctx, data, r.Dir)
			return int64(len(listing)), err
		})
		var refused *TLSError
		var reply *Reply
		if errors.As(err, &refused) && refused.Code == "FTP614" && errors.As(refused.Err, &reply) {
			return nil
		}
		return err
	})
}

// roundTrip uploads a file of random bytes and compares the download.
func (r *run) roundTrip(ctx context.Context, mode string) error {
	sent, received := sha256.New(), sha256.New()
	content, err := r.newFile()
	if err != nil {
		return err
	}
	err = r.check(mode+" upload", func(c *Check) error {
		return r.transfer(ctx, c, func(data net.Conn) (int64, error) {
			return r.client.Store(ctx, data, r.file, io.TeeReader(io.LimitReader(content, r.Upload), sent))
		})
	})
	if err != nil {
		return err
	}
	return r.check(mode+" download", func(c *Check) error {
		err := r.transfer(ctx, c, func(data net.Conn) (int64, error) {
			return r.client.Retrieve(ctx, data, r.file, received)
		})
		if err != nil {
			return err
		}
		if c.Bytes != r.Upload {
			return fmt.Errorf("%s has %d bytes, uploaded were %d", r.file, c.Bytes, r.Upload)
		}
		if got, want := received.Sum(nil), sent.Sum(nil); string(got) != string(want) {
			return fmt.Errorf("%s came back changed: sha256 %x, uploaded was %x", r.file, got, want)
		}
		return nil
	})
}

// newFile names a file that nobody else has, and returns endless content for it.
func (r *run) newFile() (io.Reader, error) {
	var seed [32]byte
	if _, err := crand.Read(seed[:]); err != nil {
		return nil, err
	}
	r.file = path.Join(r.Dir, "ftpdeploy-smoke-"+hex.EncodeToString(seed[:8]))
	return rand.NewChaCha8(seed), nil
}

// remove deletes the file, and looks that it is gone. A reply 550 to DELE alone says
// too little: that there is no such file, or that it may not be deleted.
func (r *run) remove(ctx context.Context, client *Client) error {
	deletion := client.Delete(ctx, r.file)
	size, err := client.Size(ctx, r.file)
	var reply *Reply
	switch {
	case errors.As(err, &reply) && reply.Code == 550:
		r.file = ""
		return nil
	case deletion != nil:
		return deletion
	case err != nil:
		return fmt.Errorf("look whether %s is gone: %w", r.file, err)
	}
	return fmt.Errorf("%s is still there after its deletion, with %d bytes", r.file, size)
}

// sweep removes what other probes left. That proves nothing of the service.
func (r *run) sweep(ctx context.Context, client *Client) {
	var left []string
	for _, file := range r.Remove {
		one := &run{file: file}
		if err := one.remove(ctx, client); err != nil {
			left = append(left, file)
		}
	}
	r.Remove = left
}

// cleanUp removes the file that a failed session left, in a session of its own, and
// even if ctx is done.
func (r *run) cleanUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), cleanupTimeout, timeoutError(cleanupTimeout))
	defer cancel()
	r.client = nil
	return r.check("clean up", func(*Check) error {
		client, err := Dial(ctx, r.config())
		if err == nil {
			r.client = client
			defer client.Close()
			err = client.Login(ctx, r.User, r.Password)
		}
		if err == nil {
			err = r.remove(ctx, client)
		}
		if err != nil {
			return fmt.Errorf("%s may be left at %s, remove it: %w", r.file, r.Address, err)
		}
		return nil
	})
}

// list returns a check of the listing of a path, in which a name must be found.
func (r *run) list(ctx context.Context, path, name string) func(*Check) error {
	return func(c *Check) error {
		var listing []byte
		err := r.transfer(ctx, c, func(data net.Conn) (_ int64, err error) {
			listing, err = r.client.List(ctx, data, path)
			return int64(len(listing)), err
		})
		if err == nil && !strings.Contains(string(listing), name) {
			err = fmt.Errorf("the listing of %s does not show it", path)
		}
		return err
	}
}

// transfer opens a data connection and moves data over it.
func (r *run) transfer(ctx context.Context, c *Check, move func(data net.Conn) (int64, error)) error {
	host, port, err := r.dataAddress(ctx)
	if err != nil {
		return err
	}
	data, err := r.client.DialData(ctx, net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return err
	}
	c.Port = port
	c.Bytes, err = move(data)
	if err != nil {
		return fmt.Errorf("data port %d: %w", port, err)
	}
	r.seen[port] = true
	return nil
}

// dataAddress asks the server where to connect, and judges its answer.
func (r *run) dataAddress(ctx context.Context) (host string, port int, err error) {
	switch r.mode {
	case PASV:
		announced, err := r.client.Passive(ctx)
		if err != nil {
			return "", 0, err
		}
		if r.ExpectAddress.IsValid() && announced.Addr() != r.ExpectAddress {
			return "", 0, fmt.Errorf("%w %s, clients need %s", ErrAnnounced, announced.Addr(), r.ExpectAddress)
		}
		host, port = announced.Addr().String(), int(announced.Port())
	case EPSV:
		if host, _, err = net.SplitHostPort(r.Address); err != nil {
			return "", 0, err
		}
		if port, err = r.client.ExtendedPassive(ctx); err != nil {
			return "", 0, err
		}
	default:
		return "", 0, fmt.Errorf("no mode %q: there are %s and %s", r.mode, PASV, EPSV)
	}
	if port < r.PortFirst || port > r.PortLast {
		return "", 0, fmt.Errorf("%w port %d, outside %d-%d", ErrAnnounced, port, r.PortFirst, r.PortLast)
	}
	return host, port, nil
}

// everyPort moves a listing through port after port until each was drawn.
func (r *run) everyPort(ctx context.Context, c *Check, listed, name string) error {
	n := r.PortLast - r.PortFirst + 1
	draws := draws(n)
	made := 0
	for ; len(r.seen) < n && made < draws; made++ {
		var one Check
		if err := r.list(ctx, listed, name)(&one); err != nil {
			return err
		}
		c.Bytes += one.Bytes
	}
	for p := r.PortFirst; p <= r.PortLast; p++ {
		if !r.seen[p] {
			r.report.NotDrawn = append(r.report.NotDrawn, p)
		}
	}
	c.Detail = fmt.Sprintf("%d of %d ports in %d draws", len(r.seen), n, made)
	if n > completePorts || len(r.seen) == n {
		return nil
	}
	used, err := r.InUse.all(ctx, r.report.NotDrawn)
	switch {
	case used:
		c.Detail += fmt.Sprintf("; clients use %v", r.report.NotDrawn)
		return nil
	case err != nil:
		return fmt.Errorf("%w: %d, in %d draws (%w)", ErrNotDrawn, r.report.NotDrawn[0], made, err)
	}
	return fmt.Errorf("%w: %d, in %d draws", ErrNotDrawn, r.report.NotDrawn[0], made)
}

// longIdle uploads a few bytes at a time for as long as LongIdle.
func (r *run) longIdle(ctx context.Context, mode string) error {
	content, err := r.newFile()
	if err != nil {
		return err
	}
	err = r.check(mode+" long transfer", func(c *Check) error {
		return r.transfer(ctx, c, func(data net.Conn) (int64, error) {
			return r.client.Store(ctx, data, r.file, &slow{ctx: ctx, from: content, until: time.Now().Add(r.LongIdle)})
		})
	})
	if err != nil {
		return err
	}
	return r.check(mode+" delete long", func(*Check) error { return r.remove(ctx, r.client) })
}

// slow reads a byte now and then, and ends at a point in time.
type slow struct {
	ctx   context.Context
	from  io.Reader
	until time.Time
}

const slowPace = time.Second

func (s *slow) Read(p []byte) (int, error) {
	left := time.Until(s.until)
	if left <= 0 {
		return 0, io.EOF
	}
	select {
	case <-s.ctx.Done():
		return 0, context.Cause(s.ctx)
	case <-time.After(min(left, slowPace)):
		return s.from.Read(p[:1])
	}
}
