package steps

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ftpdeploy/ftpdeploy/steps/ftp"
)

const (
	attemptEvery = 10 * time.Millisecond
	attemptBound = 3 * time.Second // for one of them
)

// knocker is what new clients see of a service: every 10 ms it opens a control
// connection from this host, and waits for the server's greeting. Beside that it
// watches to whom this host would send what is meant for the address.
type knocker struct {
	address netip.Addr
	port    int
	source  netip.Addr // of this host, on the way there; invalid while nothing was answered

	mu       sync.Mutex
	good     []time.Time // when one was answered
	attempts int
	failed   int
	last     error
	hardware []move

	cancel context.CancelFunc
	all    sync.WaitGroup
}

// move is a link-layer address that an IP address has from a moment on.
type move struct {
	mac  string
	when time.Time
}

// begin begins; it goes on until end, or until ctx is done.
func (k *knocker) begin(ctx context.Context) {
	ctx, k.cancel = context.WithCancel(ctx)
	k.all.Go(func() {
		tick := time.NewTicker(attemptEvery)
		defer tick.Stop()
		for {
			k.all.Go(func() { k.once(ctx) })
			k.neighbour()
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
}

// end returns when the last attempt is over.
func (k *knocker) end() {
	k.cancel()
	k.all.Wait()
}

// counts is how many attempts came to their end, and how many of them failed.
func (k *knocker) counts() (attempts, failed int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.attempts, k.failed
}

// once makes one attempt. One that the end cuts off counts as none.
func (k *knocker) once(ctx context.Context) {
	var local netip.Addr
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		if err == nil {
			if a, err := netip.ParseAddrPort(c.LocalAddr().String()); err == nil {
				local = a.Addr().Unmap()
			}
		}
		return c, err
	}
	bounded, cancel := context.WithTimeout(ctx, attemptBound)
	defer cancel()
	c, err := ftp.Dial(bounded, ftp.Config{Address: net.JoinHostPort(k.address.String(), strconv.Itoa(k.port)), Dial: dial, Timeout: attemptBound})
	if err == nil {
		c.Close()
	}
	now := time.Now()
	if ctx.Err() != nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.attempts++
	var reply *ftp.Reply
	if err != nil && !errors.As(err, &reply) { // also a server that is full has answered
		k.failed, k.last = k.failed+1, err
		return
	}
	k.source = local
	k.good = append(k.good, now)
}

// neighbour notes the link-layer address that this host knows of the IP address:
// only a host in the same network knows one.
func (k *knocker) neighbour() {
	mac := hardwareOf("/proc/net/arp", k.address)
	if mac == "" {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if n := len(k.hardware); n == 0 || k.hardware[n-1].mac != mac {
		k.hardware = append(k.hardware, move{mac, time.Now()})
	}
}

// hardwareOf finds an address in a table like /proc/net/arp; "" = it is not there,
// or not complete.
func hardwareOf(table string, a netip.Addr) string {
	text, err := os.ReadFile(table)
	if err != nil {
		return "" // a host without it sees nothing from here
	}
	for line := range strings.Lines(string(text)) {
		// IP address, HW type, flags, HW address, mask, device
		if w := strings.Fields(line); len(w) >= 6 && w[0] == a.String() && w[2] != "0x0" {
			return w[3]
		}
	}
	return ""
}

// steadyGap is how long an answer may take where all is well: a busy host of ours is
// no outage.
const steadyGap = 300 * time.Millisecond

// wait tells why it cannot be said that all attempts are answered: it is nil when
// they were for the last second.
func (k *knocker) wait() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	first := slices.IndexFunc(k.good, func(t time.Time) bool { return now.Sub(t) < drillBefore })
	well := first > 0 // before that too
	for i := max(first, 1); well && i < len(k.good); i++ {
		well = k.good[i].Sub(k.good[i-1]) <= steadyGap
	}
	if well && now.Sub(k.good[len(k.good)-1]) <= steadyGap {
		return nil
	}
	return errors.Join(fmt.Errorf("new connections to %s are not answered all the time: %d of %d were", k.address, len(k.good), k.attempts), k.last)
}

// gap is the longest time since a moment without an answer, less the pace of the
// attempts. One that was begun meanwhile and got through by a repeated SYN counts
// when it was answered.
func (k *knocker) gap(since time.Time) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	var longest time.Duration
	for i, t := range k.good {
		if i > 0 && t.After(since) {
			longest = max(longest, t.Sub(k.good[i-1]))
		}
	}
	if n := len(k.good); n > 0 {
		longest = max(longest, time.Since(k.good[n-1]))
	}
	return max(0, longest-attemptEvery)
}

// moved tells how long after a moment the address came to another machine, as this
// host saw it; 0 = it did not. Visible is false where it sees none of it.
func (k *knocker) moved(since time.Time) (after time.Duration, visible bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, m := range k.hardware {
		if i > 0 && m.when.After(since) {
			return m.when.Sub(since), true
		}
	}
	return 0, len(k.hardware) > 0
}
