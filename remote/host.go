// Package remote enters machines over SSH and keeps their files, packages,
// services and kernel settings. The machine needs sh, coreutils, systemd and
// iproute2: no Python and no agent. It is the only package that imports
// golang.org/x/crypto/ssh.
package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
)

var (
	// ErrUnreachable says that no SSH server answered.
	ErrUnreachable = errors.New("cannot be reached")
	// ErrHostKey says that the machine did not prove to be the one that is meant.
	// Nothing was sent to it, neither a password nor a signature.
	ErrHostKey = errors.New("host key not trusted")
	// ErrAuth says that the machine refused every login that it was offered.
	ErrAuth = errors.New("login refused")
	// ErrSudo says that the login worked and the user may not become root.
	ErrSudo = errors.New("cannot become root")
	// ErrBroken says that the connection broke while it was used. What ran on the
	// machine may have ended, or go on there.
	ErrBroken = errors.New("the connection broke")
	// ErrForwarding says that the machine opens no connections for others.
	ErrForwarding = errors.New("forwards no connections")
)

// Config says how a machine is entered. One of HostKeys and KnownHosts must be
// given: there is no way to enter a machine that cannot prove who it is.
type Config struct {
	Name    string // what errors call the machine; default Address
	Address string // host:port
	User    string

	IdentityFile string // private key file, "" = none
	AgentSocket  string // socket of an SSH agent, "" = none; its keys come after IdentityFile
	Password     string // "" = none

	HostKeys   []string // pinned keys, as authorized_keys has them ("ssh-ed25519 AAAA...")
	KnownHosts string   // known_hosts file; used where HostKeys is empty

	Become         bool   // run everything as root by sudo
	BecomePassword string // "" = sudo must not ask

	// Lock is a directory on the machine. While it is there, scripts that change the
	// machine run one after the other, whoever sent them, and Find waits for them:
	// one whose connection broke goes on by itself. "" = none.
	Lock string
	// Waiting is told what is waited for; nil = nobody asks.
	Waiting func(string)

	ConnectTimeout time.Duration // from the first packet to the end of the login; 0 = 10 s
	Bastion        *Config       // nil = direct
	// Dial opens the connection to Address; nil = net.Dialer. Not used with Bastion.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Host is a machine that has been entered. It may be used by several goroutines.
type Host struct {
	name    string
	user    string
	become  bool
	sudoPwd string
	lock    string
	waiting func(string)
	client  *ssh.Client
	conn    *countingConn
	bastion *Host
	ended   chan struct{} // closed when the connection is over
}

// Stats counts what a Host cost the network so far, the handshake included.
type Stats struct {
	Turns    int64 // times that the server spoke after we had spoken
	BytesIn  int64
	BytesOut int64
}

// Dial enters a machine. The host key is verified before anything is sent that
// could be of use to another machine. The error is one of ErrUnreachable,
// ErrHostKey and ErrAuth (errors.Is), or says what is wrong with c.
func Dial(ctx context.Context, c Config) (*Host, error) {
	h := &Host{name: cmp.Or(c.Name, c.Address), user: c.User, become: c.Become, sudoPwd: c.BecomePassword, lock: c.Lock, waiting: c.Waiting}
	trust, err := newTrust(c)
	if err != nil {
		return nil, fmt.Errorf("enter %s: %w", h.name, err)
	}
	timeout := cmp.Or(c.ConnectTimeout, 10*time.Second)
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no login within %v", timeout))
	defer cancel()

	login, err := newLogin(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("enter %s: %w", h.name, err)
	}
	defer login.close()

	conn, err := h.connect(ctx, c)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("enter %s at %s: %w", h.name, c.Address, err)
	}
	h.conn = &countingConn{Conn: conn}

	hangUp := context.AfterFunc(ctx, func() {
		conn.Close()
		login.close()
	})
	sc, channels, requests, err := ssh.NewClientConn(h.conn, c.Address, &ssh.ClientConfig{
		User:              c.User,
		Auth:              login.methods,
		HostKeyCallback:   trust.check,
		HostKeyAlgorithms: trust.algorithms,
		ClientVersion:     "SSH-2.0-ftpdeploy",
	})
	if !hangUp() && err == nil {
		sc.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		h.Close()
		return nil, fmt.Errorf("enter %s at %s: %w", h.name, c.Address, explain(ctx, c, trust, err))
	}
	h.client, h.ended = ssh.NewClient(sc, channels, requests), make(chan struct{})
	go func() {
		defer close(h.ended)
		_ = h.client.Wait() // how it ended is told to those who use it
	}()
	return h, nil
}

// connect opens the transport to c.Address.
func (h *Host) connect(ctx context.Context, c Config) (net.Conn, error) {
	dial := c.Dial
	switch {
	case c.Bastion != nil:
		var err error
		if h.bastion, err = Dial(ctx, *c.Bastion); err != nil {
			return nil, fmt.Errorf("through the bastion: %w", err)
		}
		dial = h.bastion.DialContext
	case dial == nil:
		// A machine that vanished is noticed after 25 s at most, however long a command may take.
		dial = (&net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
			Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3,
		}}).DialContext
	}
	conn, err := dial(ctx, "tcp", c.Address)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return conn, nil
}

// explain turns the error of a handshake into one of the package's own.
func explain(ctx context.Context, c Config, trust *trust, err error) error {
	var algorithms *ssh.AlgorithmNegotiationError
	var network net.Error
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", ErrUnreachable, context.Cause(ctx))
	case trust.err != nil:
		return trust.err
	case errors.As(err, &algorithms) && len(trust.algorithms) > 0:
		return fmt.Errorf("%w: the server has no host key of the types that are known for it (%s): %w",
			ErrHostKey, algorithmList(trust.algorithms), err)
	case !trust.checked, errors.As(err, &network):
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return fmt.Errorf("%w for user %q (%s): %w", ErrAuth, c.User, offered(c), err)
}

// Close ends the connection. What still runs on the machine is not waited for.
func (h *Host) Close() error {
	var err error
	if h.client != nil {
		err = h.client.Close()
	}
	if h.bastion != nil {
		err = errors.Join(err, h.bastion.Close())
	}
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Alive tells whether the connection stands, as far as this side knows: it has
// neither been closed nor seen to break.
func (h *Host) Alive() bool {
	select {
	case <-h.ended:
		return false
	default:
		return true
	}
}

// Name is what errors call the machine.
func (h *Host) Name() string { return h.name }

// Stats tells what the connection cost so far; a bastion's is not counted.
func (h *Host) Stats() Stats {
	return Stats{Turns: h.conn.turns.Load(), BytesIn: h.conn.in.Load(), BytesOut: h.conn.out.Load()}
}

// DialContext opens a connection from the machine to address (SSH's
// direct-tcpip), as net.Dialer would if it ran there. Refused and lost
// connections give the same errors. Deadlines cannot be set on it.
func (h *Host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := h.client.DialContext(ctx, network, address)
	var refused *ssh.OpenChannelError
	if errors.As(err, &refused) && refused.Reason == ssh.Prohibited {
		return nil, fmt.Errorf("connect from %s to %s: it %w: %w", h.name, address, ErrForwarding, err)
	}
	if errno := reasonOf(refused); errno != nil {
		err = errno
	}
	if err != nil {
		return nil, fmt.Errorf("connect from %s to %s: %w", h.name, address, err)
	}
	return conn, nil
}

// reasonOf is the error of the connect(2) that a server tells of in words, nil where it
// is none of those that matter.
func reasonOf(refused *ssh.OpenChannelError) error {
	if refused == nil {
		return nil
	}
	for _, e := range []error{syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ETIMEDOUT} {
		if strings.EqualFold(refused.Message, e.Error()) {
			return e
		}
	}
	return nil
}

// countingConn counts what passes it.
type countingConn struct {
	net.Conn
	in, out, turns atomic.Int64
	spoke          atomic.Bool // we wrote, and the server has not yet answered
}

func (c *countingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && c.spoke.Swap(false) {
		c.turns.Add(1)
	}
	c.in.Add(int64(n))
	return n, err
}

func (c *countingConn) Write(p []byte) (int, error) {
	c.spoke.Store(true)
	n, err := c.Conn.Write(p)
	c.out.Add(int64(n))
	return n, err
}
