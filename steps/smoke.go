package steps

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/steps/ftp"
	"github.com/ftpdeploy/ftpdeploy/steps/proxy"
)

// SmokeOptions say which smoke blocks are run, and how they reach out.
type SmokeOptions struct {
	Names []string // the blocks to run; nil = all
	// Holder finds the box that holds a VIP now; nil = nobody does.
	Holder func(context.Context, *blueprints.VIP) (*blueprints.Box, error)
	// Down tells of a box that it is neither asked nor proven; nil = none is.
	Down func(*blueprints.Box) bool
	// DialFrom opens the way out of the machine that a block's "from" names. It is
	// not called for a block without one: that is run from here.
	DialFrom func(context.Context, *blueprints.SSH) (ftp.DialFunc, error)
	// Former gives a block as it fits what is deployed, nil where that is no other one;
	// it is run where the block itself fails. nil = only the block itself counts.
	Former func(context.Context, *blueprints.Smoke) (*blueprints.Smoke, error)
	// As are variants, by the names of blocks, that are run in their places.
	As map[string]*blueprints.Smoke
	// InUse tells which passive ports of a service carry a client's transfer now: they are
	// as good as proven. nil = nobody knows.
	InUse func(context.Context, *blueprints.Service) ([]int, error)
	// Settle is how long a failing block is tried again: NodePorts answer some
	// seconds after their Service. What the server itself refuses is given up sooner. A
	// port that vsftpd did not choose, while all else works, is waited for a minute and
	// more in any case: a session that broke off may hold it. 0 = one try.
	Settle time.Duration
	// Report is told what is being waited for; nil = nobody is.
	Report func(string)

	left *litter
}

// SmokeResult is the outcome of one block against one address.
type SmokeResult struct {
	Smoke   *blueprints.Smoke
	Box     *blueprints.Box // proven by its own address; nil = whoever holds the VIP
	Address string          // host:port of the control connection; "" = it was not found out
	Took    time.Duration   // of the last try
	Report  ftp.Report      // of the last try
	Err     error           // nil = proven
}

// smokePause is between two tries, and finalBound how long is tried again what the
// server itself refuses: it may have been about to end. A port that the server does not
// choose, while all else works, may be held by a session that broke off: vsftpd keeps
// it for its accept_timeout, a minute, so that is tried again for heldBound in any case.
const (
	smokePause = 500 * time.Millisecond
	finalBound = 3 * time.Second
	heldPause  = 3 * time.Second
	heldBound  = 75 * time.Second
)

// Smoke proves the services of t by transfers, block after block in the order of the
// blueprint; it changes nothing that it does not clean up. A block on a VIP gives one
// result, a block on a group's standby one for each box that does not hold the VIP.
//
// The error joins those of the results, each with its block, address and box; a block
// whose boxes could not be told apart has one result without a box. Ended by ctx it
// returns what there is.
func Smoke(ctx context.Context, t *blueprints.Topology, o SmokeOptions) ([]SmokeResult, error) {
	if o.Report == nil {
		o.Report = func(string) {}
	}
	if o.left == nil {
		o.left = &litter{}
	}
	var results []SmokeResult
	var errs []error
	for _, s := range t.Smokes {
		if o.Names != nil && !slices.Contains(o.Names, s.Name) {
			continue
		}
		for _, r := range o.settle(ctx, t, s) {
			results = append(results, r)
			if r.Err != nil {
				errs = append(errs, r.Err)
			}
		}
		if ctx.Err() != nil {
			break
		}
	}
	return results, errors.Join(errs...)
}

// settle tries a block until it passes, o.Settle is over or ctx is done.
func (o *SmokeOptions) settle(ctx context.Context, t *blueprints.Topology, s *blueprints.Smoke) []SmokeResult {
	start := time.Now()
	for {
		results := o.try(ctx, t, s)
		pause, patience := heldPause, max(o.Settle, heldBound)
		var fault error
		for _, r := range results {
			if r.Err == nil {
				continue
			}
			fault = cmp.Or(fault, r.Err)
			if !errors.Is(r.Err, ftp.ErrNotDrawn) {
				pause, patience = smokePause, min(patience, o.Settle)
			}
			if ftp.Final(r.Err) {
				patience = min(patience, finalBound)
			}
		}
		if fault == nil || time.Since(start)+pause > patience {
			return results
		}
		o.Report(fault.Error())
		if pauseFor(ctx, pause); ctx.Err() != nil {
			return results
		}
	}
}

// try runs a block once against each of its addresses: as the blueprint has it,
// and where that fails as it fits what is deployed.
func (o *SmokeOptions) try(ctx context.Context, t *blueprints.Topology, s *blueprints.Smoke) []SmokeResult {
	as := cmp.Or(o.As[s.Name], s)
	results := o.run(ctx, t, s, as)
	if o.Former == nil || !slices.ContainsFunc(results, func(r SmokeResult) bool { return r.Err != nil }) {
		return results
	}
	if former, err := o.Former(ctx, as); err == nil && former != nil {
		return o.run(ctx, t, s, former)
	}
	return results
}

// run runs a block, with the account and the ports of its variant as, against each
// of its addresses.
func (o *SmokeOptions) run(ctx context.Context, t *blueprints.Topology, s, as *blueprints.Smoke) []SmokeResult {
	vip := as.Service.VIP
	broken := func(err error) []SmokeResult {
		return []SmokeResult{{Smoke: s, Err: fmt.Errorf("smoke %q: %w", s.Name, err)}}
	}
	var dial ftp.DialFunc
	if s.From != nil {
		var err error
		if dial, err = o.DialFrom(ctx, s.From); err != nil {
			return broken(fmt.Errorf("reach ssh %q, from where it is run: %w", s.From.Name, err))
		}
	}
	if s.Standby == nil {
		r := prove(ctx, as, nil, vip.Address.String(), way{dial, o.InUse, o.left})
		if fault := (*ftp.Fault)(nil); errors.As(r.Err, &fault) && fault.Reply == "" {
			r.Err = o.explain(ctx, vip, r.Err)
		}
		return []SmokeResult{r}
	}
	holder, err := o.Holder(ctx, vip)
	if err != nil {
		return broken(fmt.Errorf("find the box that holds vip %q: %w", vip.Name, err))
	}
	var results []SmokeResult
	for _, box := range s.Standby.Boxes {
		if box == holder || o.Down != nil && o.Down(box) {
			continue
		}
		own, ok := proxy.Direct(t, box, s.Service)
		if !ok {
			results = append(results, SmokeResult{Smoke: s, Box: box, Err: fmt.Errorf(
				"smoke %q on lb %q: ftp_service %q cannot be reached at the box's own address, where an earlier service has one of its ports",
				s.Name, box.Name, s.Service.Name)})
			continue
		}
		results = append(results, prove(ctx, as, box, own.String(), way{dial, o.InUse, o.left}))
	}
	return results
}

// explain adds to the error of a VIP that does not answer who holds it.
func (o *SmokeOptions) explain(ctx context.Context, vip *blueprints.VIP, err error) error {
	holder, lookup := o.Holder(ctx, vip)
	switch {
	case lookup != nil:
		return fmt.Errorf("%w (who holds vip %q cannot be told: %w)", err, vip.Name, lookup)
	case holder == nil:
		return fmt.Errorf("%w (no box holds vip %q)", err, vip.Name)
	}
	return fmt.Errorf("%w (lb %q holds vip %q)", err, holder.Name, vip.Name)
}

// way is how a service is proven.
type way struct {
	dial  ftp.DialFunc                                              // nil = directly
	inUse func(context.Context, *blueprints.Service) ([]int, error) // as in SmokeOptions
	left  *litter                                                   // nil = what is left stays
}

// litter is what proofs could not remove from servers: the next one may.
type litter struct {
	mu    sync.Mutex
	files map[string][]string // by the service, and the user in whose home they are
}

func (l *litter) take(s *blueprints.Smoke) []string {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	key := s.Service.Name + "/" + s.User.Name
	files := l.files[key]
	delete(l.files, key)
	return files
}

func (l *litter) put(s *blueprints.Smoke, files []string) {
	if l == nil || len(files) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.files == nil {
		l.files = map[string][]string{}
	}
	key := s.Service.Name + "/" + s.User.Name
	l.files[key] = append(l.files[key], files...)
}

// prove runs a block against one address: the VIP, or a box's own.
func prove(ctx context.Context, s *blueprints.Smoke, box *blueprints.Box, host string, by way) SmokeResult {
	service := s.Service
	r := SmokeResult{Smoke: s, Box: box, Address: net.JoinHostPort(host, strconv.Itoa(service.ControlPort))}
	p := ftp.Probe{
		Address: r.Address, User: s.User.Name, Password: s.User.Password.Reveal(), Modes: s.Modes,
		PortFirst: service.PassiveFirst, PortLast: service.PassiveLast, EveryPort: s.EveryPort,
		Upload: s.Upload, LongIdle: s.LongIdle, Dial: by.dial, Remove: by.left.take(s), Timeout: min(s.Timeout, ftp.DefaultTimeout),
		TLS: clientTLS(service.TLS), OnlyTLS: service.TLS != nil && service.TLS.Required,
	}
	if by.inUse != nil {
		p.InUse = func(ctx context.Context) ([]int, error) { return by.inUse(ctx, service) }
	}
	if service.VIP.Address.Is4() {
		p.ExpectAddress = service.VIP.Address
	}
	if box != nil {
		p.Modes = []string{ftp.EPSV} // 227 would lead to the VIP, and so to the other box
	}
	if !s.User.Writable {
		p.Upload = 0
	}
	limit := s.Timeout + s.LongIdle
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done within its timeout of %s", limit))
	defer cancel()
	start := time.Now()
	var err error
	r.Report, err = p.Run(ctx)
	by.left.put(s, r.Report.Left)
	r.Took = time.Since(start)
	if err != nil {
		r.Err = fmt.Errorf("smoke %q at %s%s: %w", s.Name, r.Address, onBox(box), err)
	}
	return r
}

func onBox(box *blueprints.Box) string {
	if box == nil {
		return ""
	}
	return fmt.Sprintf(" (lb %q)", box.Name)
}
