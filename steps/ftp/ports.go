package ftp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
)

// Ports proves each passive port of a service by one way in: a control connection
// to Address, and for each port that the server announces a listing over a data
// connection to where Data says. It writes nothing.
type Ports struct {
	Address  string // host:port of the control connection
	User     string
	Password string
	First    int // the passive ports
	Last     int
	// Data gives the host:port that leads to passive port p.
	Data func(p int) string
	Dial DialFunc // nil = directly
	TLS  *TLS     // nil = in clear text
	// Timeout bounds each step of a session; 0 = DefaultTimeout. It is what the first
	// port costs whose packets are dropped; each further one costs a quarter.
	Timeout time.Duration
	// Patience is how long Run waits for a port that the server does not choose, because
	// another session may hold it; 0 = three timeouts.
	Patience time.Duration
	InUse    InUse // nil = nobody knows
}

// PortsReport is what Ports saw. Every port of the range is in one of the three.
type PortsReport struct {
	OK       []int         // a listing came through, ascending
	Failed   map[int]error // why none came
	NotDrawn []int         // the server did not announce them, ascending
}

// nothing is a name that no server has a file of. Most list it as empty, which is
// cheap; with the others the working directory is listed.
const nothing = "ftpdeploy-verify-nothing"

// sessionLosses is how many times a session that broke is opened again.
const sessionLosses = 3

// Run draws ports until each was announced, or for as long as chance asks for and
// other sessions may hold one. Up to 32 ports all are drawn, beyond that a sample.
// The error is that of the control connection, or names a port that was never
// chosen and that no client uses; the report has what was seen before.
func (p Ports) Run(ctx context.Context) (PortsReport, error) {
	p.Timeout = cmp.Or(p.Timeout, DefaultTimeout)
	p.Patience = cmp.Or(p.Patience, 3*p.Timeout)
	r := &ports{Ports: p, proven: map[int]bool{}, failed: map[int]error{}, listed: nothing}
	err := r.run(ctx)
	if r.client != nil {
		r.client.Close()
	}
	report := PortsReport{Failed: r.failed}
	for port := p.First; port <= p.Last; port++ {
		switch {
		case r.proven[port]:
			report.OK = append(report.OK, port)
		case r.failed[port] == nil:
			report.NotDrawn = append(report.NotDrawn, port)
		}
	}
	return report, err
}

// ports is a Ports that runs.
type ports struct {
	Ports
	client *Client
	proven map[int]bool
	failed map[int]error
	listed string // what is listed
	losses int    // of sessions
	slow   bool   // a data connection has timed out
}

func (r *ports) run(ctx context.Context) error {
	n := r.Last - r.First + 1
	settled := time.Now() // when a port was last proven or given up
	var asked time.Time   // when InUse was last asked
	for made := 0; len(r.proven)+len(r.failed) < n; made++ {
		if made >= draws(n) {
			if n > completePorts {
				return nil
			}
			if made == draws(n) || time.Since(asked) > time.Second {
				open := r.open()
				used, err := r.InUse.all(ctx, open)
				switch {
				case used:
					return nil
				case time.Since(settled) > r.Patience && err != nil:
					return fmt.Errorf("the server chose other ports in %d draws; not proven is %d: %w", made, open[0], err)
				case time.Since(settled) > r.Patience:
					return fmt.Errorf("the server chose other ports in %d draws; not proven is %d: another session may hold it", made, open[0])
				}
				asked = time.Now()
			}
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(50 * time.Millisecond):
			}
		}
		before := len(r.proven) + len(r.failed)
		if err := r.draw(ctx); err != nil {
			return err
		}
		if len(r.proven)+len(r.failed) > before {
			settled = time.Now()
		}
	}
	return nil
}

func (r *ports) settled(port int) bool { return r.proven[port] || r.failed[port] != nil }

// open are the ports that are not settled.
func (r *ports) open() []int {
	var open []int
	for port := r.First; port <= r.Last; port++ {
		if !r.settled(port) {
			open = append(open, port)
		}
	}
	return open
}

// draw has the server choose a port, and tries it if it is a new one.
func (r *ports) draw(ctx context.Context) error {
	if r.client == nil {
		if err := r.enter(ctx); err != nil {
			return err
		}
	}
	port, err := r.client.ExtendedPassive(ctx)
	switch {
	case err != nil && (ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded)):
		return fmt.Errorf("ask for a data port: %w", err)
	case err != nil: // vsftpd ends a session for which it finds no free port
		return r.lost(fmt.Errorf("ask for a data port: %w", err))
	}
	if port < r.First || port > r.Last {
		return fmt.Errorf("the server announces port %d, outside %d-%d", port, r.First, r.Last)
	}
	if r.settled(port) {
		return nil // the next EPSV takes its listener away
	}
	alive, err := r.list(ctx, port)
	var reply *Reply
	switch {
	case err == nil:
		r.proven[port] = true
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case r.listed == nothing && errors.As(err, &reply) && (reply.Code == 450 || reply.Code == 550): // no such file
		r.listed = ""
		return nil
	}
	r.failed[port] = err
	r.slow = r.slow || errors.Is(err, context.DeadlineExceeded)
	if alive {
		return nil
	}
	return r.lost(err)
}

// lost has the next draw open another session, unless too many of them broke; err is
// what broke this one.
func (r *ports) lost(err error) error {
	r.client.Close()
	r.client = nil
	if r.losses++; r.losses > sessionLosses {
		return fmt.Errorf("session after session breaks: %w", err)
	}
	return nil
}

// draws is after how many a server that chooses at random has announced all of n
// ports, but in 1 of 20,000 cases; beyond completePorts it is a sample.
func draws(n int) int {
	if n > completePorts {
		return 100
	}
	return int(float64(n) * (math.Log(float64(n)) + 10))
}

// enter opens a session.
func (r *ports) enter(ctx context.Context) error {
	client, err := Dial(ctx, Config{Address: r.Address, Dial: r.Dial, TLS: r.TLS, Timeout: r.Timeout})
	if err != nil {
		return err
	}
	if err := client.Login(ctx, r.User, r.Password); err != nil {
		client.Close()
		return fmt.Errorf("user %q: %w", r.User, err)
	}
	r.client = client
	return nil
}

// list moves a listing over a port; alive tells whether the session is still of use.
// Once packets were dropped, others are not waited for as long: a worker that drops
// a whole range would hold up everything.
func (r *ports) list(ctx context.Context, port int) (alive bool, err error) {
	reach := ctx
	if r.slow {
		var cancel context.CancelFunc
		reach, cancel = context.WithTimeoutCause(ctx, r.Timeout/4, timeoutError(r.Timeout/4))
		defer cancel()
	}
	data, err := r.client.DialData(reach, r.Data(port))
	if err != nil {
		return true, err
	}
	_, err = r.client.List(ctx, data, r.listed)
	var reply *Reply
	return err == nil || errors.As(err, &reply), err
}

// Ranges writes ascending numbers as "1-3, 7".
func Ranges(numbers []int) string {
	var parts []string
	for i := 0; i < len(numbers); {
		j := i
		for j+1 < len(numbers) && numbers[j+1] == numbers[j]+1 {
			j++
		}
		part := fmt.Sprint(numbers[i])
		if j > i {
			part += fmt.Sprintf("-%d", numbers[j])
		}
		parts = append(parts, part)
		i = j + 1
	}
	return strings.Join(parts, ", ")
}
