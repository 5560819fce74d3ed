package ftp

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"
)

// Outcome is how one thing ended that was tried.
type Outcome string

// The outcomes.
const (
	OK      Outcome = "ok"
	Refused Outcome = "refused"   // by a reset: nobody listens there
	Silent  Outcome = "timed out" // nothing came back
	Closed  Outcome = "closed"    // taken, and ended by the other side
	Denied  Outcome = "denied"    // by a reply of the server
	Unsafe  Outcome = "TLS fails" // a *TLSError says how
	Failed  Outcome = "failed"    // in another way
	Unasked Outcome = ""
)

// OutcomeOf is the outcome of what ended with err.
func OutcomeOf(err error) Outcome {
	var reply *Reply
	var insecure *TLSError
	var timeout net.Error
	switch {
	case err == nil:
		return OK
	case errors.As(err, &insecure):
		return Unsafe
	case errors.As(err, &reply):
		return Denied
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refused
	case errors.Is(err, errGone), errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return Closed
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT),
		errors.Is(err, syscall.EHOSTUNREACH), errors.As(err, &timeout) && timeout.Timeout():
		return Silent
	}
	return Failed
}

// Look looks at an FTP service from outside, as a client that wants to know why it
// fails: it goes on where others give up. It lists and writes nothing.
type Look struct {
	Address     string // host:port of the control connection
	User        string
	Password    string
	Modes       []string      // PASV, EPSV: a listing each, in sessions as few as hold
	Dial        DialFunc      // nil = directly
	TLS         *TLS          // nil = in clear text
	Timeout     time.Duration // of each step up to the login; 0 = DefaultTimeout
	DataTimeout time.Duration // of each step of a listing; 0 = Timeout
}

// Sight is what a Look saw.
type Sight struct {
	Connect, Greeting, Login Stage // the login with TLS begins by it
	Tries                    []Try // one for each mode, unless the login failed
	Transcript               []string
}

// Stage is a step of a session.
type Stage struct {
	Outcome Outcome
	Took    time.Duration
	Text    string // what went wrong
}

// Try is a listing.
type Try struct {
	Mode      string
	Announced netip.AddrPort // the zero address with EPSV; the zero value = the server announced nothing
	Connect   Stage          // of the data connection
	List      Stage          // of the listing, replies included
}

// OK tells whether data came.
func (t Try) OK() bool { return t.List.Outcome == OK }

// Run looks. What fails is in the sight; it ends with ctx.
func (l Look) Run(ctx context.Context) Sight {
	var s Sight
	trace := func(line string) { s.Transcript = append(s.Transcript, line) }
	c := l.enter(ctx, &s, trace)
	if c == nil {
		return s
	}
	for _, mode := range l.Modes {
		if c == nil {
			if c = l.enter(ctx, &Sight{}, trace); c == nil {
				return s
			}
		}
		try, alive := l.try(ctx, c, mode)
		s.Tries = append(s.Tries, try)
		if !alive {
			c.Close()
			c = nil
		}
	}
	if c != nil {
		c.Close()
	}
	return s
}

// enter opens a session, stage by stage; nil where that fails.
func (l Look) enter(ctx context.Context, s *Sight, trace func(string)) *Client {
	stage := func(to *Stage, f func() error) bool {
		*to = staged(f)
		return to.Outcome == OK
	}
	var c *Client
	opened := stage(&s.Connect, func() (err error) {
		c, err = connect(ctx, Config{Address: l.Address, Dial: l.Dial, TLS: l.TLS, Timeout: l.Timeout, Trace: trace})
		return err
	})
	if !opened {
		return nil
	}
	greeted := stage(&s.Greeting, func() error { return c.greeting(ctx) })
	login := func() error {
		if l.TLS != nil {
			if err := c.encrypt(ctx); err != nil {
				return err
			}
		}
		return c.Login(ctx, l.User, l.Password)
	}
	if !greeted || !stage(&s.Login, login) {
		c.Close()
		return nil
	}
	return c
}

func staged(f func() error) Stage {
	start := time.Now()
	err := f()
	s := Stage{Outcome: OutcomeOf(err), Took: time.Since(start)}
	if err != nil {
		s.Text = err.Error()
	}
	return s
}

// try lists once; alive tells whether the session is still of use.
func (l Look) try(ctx context.Context, c *Client, mode string) (t Try, alive bool) {
	t.Mode = mode
	bound := cmp.Or(l.DataTimeout, l.Timeout, DefaultTimeout)
	address, announced, err := l.announced(ctx, c, mode)
	if t.Announced = announced; err != nil {
		t.List = Stage{Outcome: OutcomeOf(err), Text: err.Error()}
		return t, t.List.Outcome == Denied
	}
	var data net.Conn
	t.Connect = staged(func() (err error) {
		ctx, cancel := context.WithTimeoutCause(ctx, bound, timeoutError(bound))
		defer cancel()
		data, err = c.DialData(ctx, address)
		return err
	})
	if data == nil {
		return t, true // the next PASV takes the listener away
	}
	t.List = staged(func() error {
		ctx, cancel := context.WithTimeoutCause(ctx, bound, timeoutError(bound))
		defer cancel()
		_, err := c.List(ctx, data, "")
		return err
	})
	return t, t.List.Outcome == OK || t.List.Outcome == Denied
}

// announced asks for a data port, and where it is.
func (l Look) announced(ctx context.Context, c *Client, mode string) (address string, announced netip.AddrPort, err error) {
	host, _, err := net.SplitHostPort(l.Address)
	if err != nil {
		return "", announced, err
	}
	if mode == PASV {
		if announced, err = c.Passive(ctx); err != nil {
			return "", announced, err
		}
		host = announced.Addr().String()
	} else {
		port, err := c.ExtendedPassive(ctx)
		if err != nil {
			return "", announced, err
		}
		announced = netip.AddrPortFrom(netip.Addr{}, uint16(port)) //nolint:gosec // it was read as one of 16 bits
	}
	return net.JoinHostPort(host, strconv.Itoa(int(announced.Port()))), announced, nil
}

// Knock opens a connection and says nothing: OK = it stood for hold, Closed = the
// other side ended it, after Took.
func Knock(ctx context.Context, dial DialFunc, address string, timeout, hold time.Duration) Stage {
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	var conn net.Conn
	s := staged(func() (err error) {
		ctx, cancel := context.WithTimeoutCause(ctx, timeout, timeoutError(timeout))
		defer cancel()
		conn, err = dial(ctx, "tcp", address)
		return err
	})
	if conn == nil {
		return s
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, hold)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	start := time.Now()
	_, err := conn.Read(make([]byte, 1))
	if took := time.Since(start); stop() && err != nil {
		return Stage{Outcome: Closed, Took: took, Text: err.Error()}
	}
	return Stage{Outcome: OK, Took: time.Since(start)}
}

// Await asks for a data port, opens no connection to it, and asks for a listing:
// a server has nobody to send it to, and waits. A final reply within bound is what it
// returns, else "": unless the server is just impatient, someone else has connected.
func (l Look) Await(ctx context.Context, mode string, bound time.Duration) (reply string, err error) {
	var s Sight
	c := l.enter(ctx, &s, func(string) {})
	if c == nil {
		return "", errors.New(cmp.Or(s.Connect.Text, s.Greeting.Text, s.Login.Text))
	}
	defer c.Close()
	if _, _, err = l.announced(ctx, c, mode); err != nil {
		return "", err
	}
	c.config.Timeout = bound
	if _, err = c.command(ctx, 0, "LIST"); err == nil && c.last.Code < 200 {
		_, err = c.read(ctx, 0)
	}
	switch OutcomeOf(err) {
	case OK:
		return c.LastReply(), nil
	case Silent:
		return "", nil
	}
	return "", err
}

// Ask asks for a data port and has look at it while the server listens there.
func (l Look) Ask(ctx context.Context, mode string, look func(port int)) error {
	var s Sight
	c := l.enter(ctx, &s, func(string) {})
	if c == nil {
		return errors.New(cmp.Or(s.Connect.Text, s.Greeting.Text, s.Login.Text))
	}
	defer c.Close()
	_, announced, err := l.announced(ctx, c, mode)
	if err == nil {
		look(int(announced.Port()))
	}
	return err
}
