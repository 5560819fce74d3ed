// Package vsphere finds, makes, changes and removes the virtual machines of a
// deployment, and the rules that place them, in one vCenter.
//
// What is ours bears two marks that must agree: the VM's instanceUuid, computed
// from the deployment and the VM's name, and the names of both in its
// extraConfig. What bears only one of them is refused with ErrForeign.
package vsphere

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Errors that a caller decides on, to be matched with errors.Is.
var (
	ErrUnreachable = errors.New("vCenter cannot be reached")
	ErrUntrusted   = errors.New("vCenter's certificate is not trusted")
	ErrLogin       = errors.New("vCenter refused the login")
	ErrMissing     = errors.New("not found in vCenter")                                // an object that the blueprint names
	ErrForeign     = errors.New("not ours")                                            // in the way, without both our marks
	ErrNotFound    = errors.New("no such VM of this deployment")                       // Find
	ErrHostKeys    = errors.New("host keys are not those pinned")                      // the guest publishes others
	ErrDenied      = errors.New("the vCenter account lacks privileges")                // names them
	ErrTimeout     = errors.New("timed out")                                           // says what was waited for
	ErrConflict    = errors.New("changed by someone else meanwhile; nothing was done") // the next plan shows it
)

// apiVersion is the version that we speak: the oldest that is in support, which
// every newer vCenter serves. A version newer than the server's may be refused.
const apiVersion = "7.0"

// requestBound is how long vCenter may take to answer one request. None of ours
// waits: tasks and guests are asked again and again.
const requestBound = 2 * time.Minute

// How long a vCenter that was there is waited for, and how often it is tried: it
// takes minutes to restart.
const (
	awayBound    = 5 * time.Minute
	awayInterval = time.Second
)

// Config says where a vCenter is and how it is trusted and entered. At most one
// of CAFile, Thumbprint and Insecure is set; none means the system's roots.
type Config struct {
	Server     string // host, host:port or https URL; user and password in a URL are used where the fields are empty
	Username   string
	Password   string
	Datacenter string // inventory path below the root folder
	CAFile     string // PEM
	Thumbprint string // of the server's certificate, SHA-256 or SHA-1, AA:BB:...
	Insecure   bool
	// Dial opens the connections; nil means directly.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Waiting is told what is waited for when vCenter goes away; nil = nobody asks.
	Waiting func(string)
}

// Client is a session with a vCenter. It may be used by several goroutines.
type Client struct {
	datacenter string
	server     string
	user       *url.Userinfo
	vim        *vim25.Client
	calls      atomic.Int64
	patience   time.Duration // with a vCenter that was there
	waiting    func(string)

	mu      sync.Mutex
	logons  int    // how many times we have logged in
	session string // key of the latest session
}

// Connect opens a session. The error is, by errors.Is, ErrUnreachable,
// ErrUntrusted or ErrLogin where it is one of these.
func Connect(ctx context.Context, config Config) (*Client, error) {
	address, user, err := endpoint(config)
	if err != nil {
		return nil, err
	}
	trust, err := newTrust(config)
	if err != nil {
		return nil, fmt.Errorf("connect to vCenter %s: %w", address.Host, err)
	}
	c := &Client{datacenter: strings.Trim(config.Datacenter, "/"), server: address.Host, user: user, patience: awayBound, waiting: config.Waiting}
	transport := soap.NewClient(address, config.Insecure)
	transport.Version = apiVersion
	transport.Timeout = requestBound
	pool := transport.DefaultTransport()
	pool.Proxy = nil // the environment is read by cmd only
	pool.MaxIdleConnsPerHost = 16
	pool.DialTLSContext = trust.dial
	transport.Transport = &counter{next: pool, calls: &c.calls}
	if c.vim, err = vim25.NewClient(ctx, transport); err != nil {
		return nil, fmt.Errorf("connect to vCenter %s: %w", c.server, unreachable(ctx, err))
	}
	c.vim.RoundTripper = &roundTripper{c}
	if err := c.login(ctx, 0); err != nil {
		return nil, err
	}
	return c, nil
}

// Close ends the session.
func (c *Client) Close(ctx context.Context) error {
	defer c.vim.CloseIdleConnections()
	_, err := methods.Logout(ctx, c.vim.Client, &types.Logout{This: *c.vim.ServiceContent.SessionManager})
	if err != nil && !fault.Is(err, &types.NotAuthenticated{}) {
		return fmt.Errorf("log out from vCenter %s: %w", c.server, unreachable(ctx, err))
	}
	return nil
}

// Calls is how many requests were sent so far, the login's among them.
func (c *Client) Calls() int { return int(c.calls.Load()) }

// endpoint reads the server's address. The text is never shown: it may hold a password.
func endpoint(config Config) (*url.URL, *url.Userinfo, error) {
	address, err := soap.ParseURL(config.Server)
	if err != nil || address == nil || address.Host == "" {
		return nil, nil, errors.New("the vCenter's server is neither a host, host:port nor an https URL")
	}
	if address.Scheme != "https" {
		return nil, nil, fmt.Errorf("connect to vCenter %s: %w: %s is not https", address.Host, ErrUntrusted, address.Scheme)
	}
	name, password := config.Username, config.Password
	if name == "" {
		name = address.User.Username()
	}
	if password == "" {
		password, _ = address.User.Password()
	}
	return address, url.UserPassword(name, password), nil
}

// login opens a session, unless another goroutine has done so since the caller
// saw that there had been seen logons.
func (c *Client) login(ctx context.Context, seen int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.logons != seen {
		return nil
	}
	password, _ := c.user.Password()
	response, err := methods.Login(ctx, c.vim.Client, &types.Login{
		This: *c.vim.ServiceContent.SessionManager, UserName: c.user.Username(), Password: password, Locale: "en_US",
	})
	switch {
	case fault.Is(err, &types.InvalidLogin{}), fault.Is(err, &types.NoPermission{}):
		return fmt.Errorf("log in to vCenter %s as %s: %w: check the user name and the password", c.server, c.user.Username(), ErrLogin)
	case err != nil:
		return fmt.Errorf("log in to vCenter %s as %s: %w", c.server, c.user.Username(), unreachable(ctx, err))
	}
	c.logons++
	c.session = response.Returnval.Key
	return nil
}

// current is the number of logons so far and the key of the session.
func (c *Client) current() (logons int, session string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.logons, c.session
}

// roundTripper logs in again when the session has expired, once: vCenter refuses
// a request without a session before it does anything, so each is repeated. While
// a vCenter that was there is away, what changes nothing and what was never sent
// are tried again.
type roundTripper struct{ client *Client }

func (r *roundTripper) RoundTrip(ctx context.Context, request, response soap.HasFault) error {
	c := r.client
	until := time.Now().Add(c.patience)
	entered, told := false, false
	for {
		seen, _ := c.current()
		err := c.vim.Client.RoundTrip(ctx, request, response)
		if fault.Is(err, &types.NotAuthenticated{}) && !entered {
			entered = true
			if err = c.login(ctx, seen); err == nil {
				reflect.ValueOf(response).Elem().SetZero() // else it keeps the fault of the first attempt
				continue
			}
			entered = !errors.Is(err, ErrUnreachable)
			err = fmt.Errorf("the session has expired: %w", err)
		} else if !isRead(request) && away(err) && !unsent(err) {
			return fmt.Errorf("%w; whether vCenter took the request is not known: apply again, which looks first", unreachable(ctx, err))
		}
		err = unreachable(ctx, err)
		if !errors.Is(err, ErrUnreachable) || time.Now().After(until) {
			return err
		}
		if !told && c.waiting != nil {
			c.waiting(fmt.Sprintf("waiting for vCenter %s, at most %s: %v", c.server, c.patience, err))
		}
		told = true
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w while waiting: %w", context.Cause(ctx), err)
		case <-time.After(awayInterval):
		}
	}
}

// away tells whether a request failed because nobody answered it.
func away(err error) bool {
	var network *url.Error
	return errors.As(err, &network) && !errors.Is(err, ErrUntrusted)
}

// unsent tells whether a request cannot have reached its server.
func unsent(err error) bool {
	var dial *net.OpError
	return errors.As(err, &dial) && dial.Op == "dial"
}

// isRead tells whether a request is one of the reads that we send.
func isRead(request soap.HasFault) bool {
	switch request.(type) {
	case *methods.RetrievePropertiesExBody, *methods.FindByInventoryPathBody, *methods.FindByUuidBody, *methods.HasPrivilegeOnEntitiesBody, *methods.QueryEventsBody:
		return true
	}
	return false
}

// unreachable marks the errors of the network, which are those that are neither
// a fault that vCenter reports, the certificate's, nor the caller's own cancelling.
func unreachable(ctx context.Context, err error) error {
	var network *url.Error
	switch {
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case !away(err) || !errors.As(err, &network):
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, network.Err)
}

// counter counts requests.
type counter struct {
	next  http.RoundTripper
	calls *atomic.Int64
}

func (c *counter) RoundTrip(r *http.Request) (*http.Response, error) {
	c.calls.Add(1)
	return c.next.RoundTrip(r)
}

// poll calls look, at first often, then every interval, until it says done,
// returns an error, or bound is over. What look last said is missing is part of
// the timeout's error, which is ErrTimeout or, where ctx ended first, ctx's.
func poll(ctx context.Context, interval, bound time.Duration, look func() (done bool, missing string, err error)) error {
	timeout := time.NewTimer(bound)
	defer timeout.Stop()
	for delay := 20 * time.Millisecond; ; delay = min(2*delay, interval) {
		done, missing, err := look()
		if err != nil || done {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w while waiting: %s", context.Cause(ctx), missing)
		case <-timeout.C:
			return fmt.Errorf("%w after %s: %s", ErrTimeout, bound, missing)
		case <-time.After(delay):
		}
	}
}
