package e2e

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/steps/ftp"
)

const (
	probeEvery = 50 * time.Millisecond
	probeBound = 3 * time.Second
	// patience is how long a client waits where none may fail: what it has to wait for
	// is told, but a machine that makes another one beside is slow in its own way.
	patience = 10 * time.Second
	// unhurried is the pace there: sessions that a stall heaps up must not take all the
	// passive ports, since vsftpd ends one for which it draws taken ones nine times.
	unhurried = 200 * time.Millisecond
)

// attempt is one session of the prober: connect, banner, login, EPSV, LIST.
type attempt struct {
	Start time.Time
	Took  time.Duration
	Error string
}

// probe is what a client does that never gives up: at the pace given it begins a new
// session, whatever became of the ones before: up to a listing, or at a pace of 10 ms
// up to the greeting. It prints every attempt, each given up after the bound given, and
// ends after the number of seconds given.
func probe(ctx context.Context, args []string) error {
	seconds, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	every, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	bound, err := time.ParseDuration(args[3])
	if err != nil {
		return err
	}
	session := listing
	if every < probeEvery {
		session = greeting
	}
	var mu sync.Mutex
	out := json.NewEncoder(os.Stdout)
	var sessions sync.WaitGroup
	tick := time.NewTicker(every)
	defer tick.Stop()
	for end := time.Now().Add(time.Duration(seconds) * time.Second); time.Now().Before(end); <-tick.C {
		sessions.Go(func() {
			a := attempt{Start: time.Now()}
			ctx, cancel := context.WithTimeout(ctx, bound)
			defer cancel()
			if err := session(ctx, args[0]); err != nil {
				a.Error = err.Error()
			}
			a.Took = time.Since(a.Start)
			mu.Lock()
			defer mu.Unlock()
			_ = out.Encode(a)
		})
	}
	sessions.Wait()
	return nil
}

// watch probes the VIP from the client for some seconds while act happens, and
// tells how long no session was completed.
func watch(t *testing.T, seconds int, act func()) (gap time.Duration, failed, total int) {
	t.Helper()
	return watchEvery(t, probeEvery, probeBound, seconds, act)
}

// watchEvery is watch at another pace, and of other clients. A prober that ended before
// the act did has seen the rest of it too little: the test fails.
func watchEvery(t *testing.T, every, bound time.Duration, seconds int, act func()) (gap time.Duration, failed, total int) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), ftplab, "exec", "client", "--", "env", handEnv+"=probe", self,
		net.JoinHostPort(vip, "21"), strconv.Itoa(seconds), every.String(), bound.String())
	c.Stderr = os.Stderr
	pipe, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var attempts []attempt
	in := json.NewDecoder(pipe)
	acted := false
	for {
		var a attempt
		if err := in.Decode(&a); err != nil {
			break
		}
		attempts = append(attempts, a)
		if !acted && len(attempts) == int(time.Second/every) { // a second of proof that all was well before
			acted = true
			act()
		}
	}
	if err := c.Wait(); err != nil {
		t.Fatalf("prober: %v", err)
	}
	if !acted {
		t.Fatal("the prober ended before anything was done")
	}
	var slowest attempt
	for i, a := range attempts {
		if a.Took > slowest.Took {
			slowest = a
		}
		if a.Error == "" {
			continue
		}
		if failed++; failed <= 5 { // enough to tell what it was
			t.Logf("session %d, %.2f s after the first, failed after %.2f s: %s", i, a.Start.Sub(attempts[0].Start).Seconds(), a.Took.Seconds(), a.Error)
		}
	}
	if slowest.Took > time.Second {
		t.Logf("the slowest session took %.2f s, from %.2f s after the first", slowest.Took.Seconds(), slowest.Start.Sub(attempts[0].Start).Seconds())
	}
	return outage(t, attempts, every), failed, len(attempts)
}

// outage is the longest time in which no session was completed, less the pace of
// the prober. A session that was begun while the service was away and got through
// by a repeated SYN counts when it was completed.
func outage(t *testing.T, attempts []attempt, every time.Duration) time.Duration {
	t.Helper()
	good := slices.DeleteFunc(slices.Clone(attempts), func(a attempt) bool { return a.Error != "" })
	if len(good) == 0 {
		t.Fatal("no session of the prober succeeded")
	}
	begun := func(a, b attempt) int { return a.Start.Compare(b.Start) }
	if tail := slices.MaxFunc(attempts, begun).Start.Sub(slices.MaxFunc(good, begun).Start); tail > time.Second {
		t.Fatalf("the service did not come back: no session that was begun in the last %s was completed", tail)
	}
	var ends []time.Time
	for _, a := range good {
		ends = append(ends, a.Start.Add(a.Took))
	}
	slices.SortFunc(ends, time.Time.Compare)
	var longest time.Duration
	for i := 1; i < len(ends); i++ {
		longest = max(longest, ends[i].Sub(ends[i-1]))
	}
	return max(0, longest-every)
}

// greeting is a session that ends with the server's greeting.
func greeting(ctx context.Context, address string) error {
	c, err := ftp.Dial(ctx, ftp.Config{Address: address, Timeout: patience})
	if err == nil {
		c.Close()
	}
	return err
}

// listing is one session: connect, banner, login, EPSV, LIST.
func listing(ctx context.Context, address string) error { return listingBy(ctx, address, nil) }

func listingBy(ctx context.Context, address string, encrypted *ftp.TLS) error {
	c, err := ftp.Dial(ctx, ftp.Config{Address: address, TLS: encrypted, Timeout: patience})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Login(ctx, "partner", os.Getenv("FTPDEPLOY_VAR_ftp_password")); err != nil {
		return err
	}
	port, err := c.ExtendedPassive(ctx)
	if err != nil {
		return err
	}
	data, err := c.DialData(ctx, net.JoinHostPort(vip, strconv.Itoa(port)))
	if err != nil {
		return err
	}
	_, err = c.List(ctx, data, "")
	return err
}
