package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/ftpdeploy/ftpdeploy/kube"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/steps"
)

// How often a lock that is waited for is looked at.
const (
	filePoll  = 200 * time.Millisecond
	leasePoll = time.Second
	waitSaid  = 10 * time.Second // how often the wait is said
)

// lock is a run's hold on its deployment: a locked file on this host, which ends
// with the process, and a Lease in the cluster, which ends when it is not renewed.
// The file keeps runs of one host apart while they only look; the Lease is
// written when there is something to change.
type lock struct {
	*deployment
	run   steps.Run
	until time.Time // others are waited for
	told  time.Time // when that was last said

	file  *os.File // nil where this host has no place for it
	died  string   // the run that last held the file, where it did not give it back
	held  bool
	lease *kube.Lease // nil where the deployment has none
	leave func()      // ends the renewal
}

// fileHolder is what a run writes into the file that it holds.
type fileHolder struct {
	Run     string    `json:"run"`
	Who     string    `json:"who"`
	Command string    `json:"command"`
	Since   time.Time `json:"since"`
}

// newLock readies the deployment's lock; wait is how long others are waited for.
func (d *deployment) newLock(wait time.Duration) *lock {
	return &lock{deployment: d, until: d.now().Add(wait), run: d.identity()}
}

// identity says who runs what.
func (a *app) identity() steps.Run {
	return steps.Run{
		ID: a.runID, Who: fmt.Sprintf("%s@%s pid %d", a.user, a.host, os.Getpid()), Command: fmt.Sprintf("ftpdeploy %s -f %s", a.verb, a.file),
	}
}

// enter takes the file, and ends the run where another one is under way. What a
// dead run left in the cluster is taken over here, so that even a run with
// nothing to do clears it away.
func (l *lock) enter(ctx context.Context) error {
	if err := l.enterHost(ctx); err != nil {
		return err
	}
	for {
		tenant, err := l.live.LockedBy(ctx)
		if err != nil || tenant == nil {
			return err
		}
		if tenant.Expired() || tenant.Run == l.died {
			_, err := l.acquire(ctx)
			return err
		}
		if err := l.await(ctx, l.byLease(*tenant), leasePoll); err != nil {
			return err
		}
	}
}

// enterHost takes the file. A host without a place for it is warned of: there
// the Lease alone keeps runs apart.
func (l *lock) enterHost(ctx context.Context) error {
	file, err := l.openFile()
	for err == nil {
		if err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
			break
		}
		if errors.Is(err, syscall.EWOULDBLOCK) {
			if err := l.await(ctx, l.byFile(file), filePoll); err != nil {
				_ = file.Close() // nothing was written to it
				return err
			}
			err = nil
		}
	}
	if err == nil {
		if before, unsigned := readHolder(file); unsigned == nil {
			l.died = before.Run
		}
		l.file = file
		err = l.sign()
	}
	if err != nil {
		l.emit(event{level: "warn", msg: "No lock between runs on this host: " + err.Error(), data: note{}})
	}
	return nil
}

func (l *lock) openFile() (*os.File, error) {
	state, err := l.stateDir()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(state, "locks")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return os.OpenFile(filepath.Join(dir, l.topology.ID), os.O_RDWR|os.O_CREATE, 0o600)
}

// sign writes into the file who holds it.
func (l *lock) sign() error {
	content, err := json.Marshal(fileHolder{l.run.ID, l.run.Who, l.run.Command, l.now().UTC()})
	if err == nil {
		err = l.file.Truncate(0)
	}
	if err == nil {
		_, err = l.file.WriteAt(content, 0)
	}
	if err != nil {
		return fmt.Errorf("write who holds the lock: %w", err)
	}
	return nil
}

func readHolder(file *os.File) (fileHolder, error) {
	var h fileHolder
	content, err := io.ReadAll(io.NewSectionReader(file, 0, 1<<16))
	if err == nil {
		err = json.Unmarshal(content, &h)
	}
	return h, err
}

// other is a run that holds the lock.
type other struct {
	event lockHolder
	text  string // several lines
}

func (l *lock) byFile(file *os.File) other {
	h, err := readHolder(file)
	if err != nil { // it is just about to sign
		h = fileHolder{Who: "a run that has just begun", Command: "not known yet", Since: l.now().UTC()}
	}
	return other{
		lockHolder{Who: h.Who, Command: h.Command, Since: stamp(h.Since), Run: h.Run},
		l.describe(h.Who, h.Command, h.Since, "this host, file "+file.Name(), "when that run ends, in whatever way"),
	}
}

func (l *lock) byLease(t kube.Tenant) other {
	expires := fmt.Sprintf("%s UTC, in %.0f s, unless that run renews it", t.Expires.Format(time.DateTime), t.Left.Seconds())
	return other{holderOf(t), l.describe(t.Who, t.Command, t.Since, l.live.LockPlace(), expires)}
}

func (l *lock) describe(who, command string, since time.Time, where, expires string) string {
	return fmt.Sprintf("  who      %s\n  command  %s\n  since    %s UTC, %s ago\n  where    %s\n  expires  %s",
		who, command, since.UTC().Format(time.DateTime), max(0, l.now().Sub(since)).Round(time.Second), where, expires)
}

func holderOf(t kube.Tenant) lockHolder {
	return lockHolder{Who: t.Who, Command: t.Command, Since: stamp(t.Since), Run: t.Run, Expires: stamp(t.Expires)}
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// await waits a moment for the lock that o holds, or ends the run.
func (l *lock) await(ctx context.Context, o other, moment time.Duration) error {
	left := l.until.Sub(l.now())
	if left <= 0 {
		return &exitError{8, fmt.Errorf("locked by another run\n%s\nNothing was changed. To wait for it: --lock-timeout 10m", o.text)}
	}
	if now := l.now(); now.Sub(l.told) >= waitSaid {
		l.told = now
		l.emit(event{level: "info", msg: fmt.Sprintf("waiting for the lock, at most %s: held by %s (%s)", left.Round(time.Second), o.event.Who, o.event.Command), data: lockState{State: "waiting", Holder: o.event, TTLS: steps.LockTTL}})
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(min(moment, left)):
		return nil
	}
}

// acquire makes the deployment this run's own, once. It tells whether others
// were in between, so that what was planned may not be so any more.
func (l *lock) acquire(ctx context.Context) (waited bool, err error) {
	if l.held {
		return false, nil
	}
	for {
		lease, from, err := l.live.Lock(ctx, l.run, func(id string) bool { return id != "" && id == l.died })
		if held, ok := errors.AsType[*kube.HeldError](err); ok {
			waited = true
			if err := l.await(ctx, l.byLease(held.Tenant), leasePoll); err != nil {
				return waited, err
			}
			continue
		}
		if err != nil {
			return waited, err
		}
		l.own(lease, from)
		return waited, nil
	}
}

// own says that the lock is ours, and keeps it so.
func (l *lock) own(lease *kube.Lease, from *kube.Tenant) {
	l.held, l.lease = true, lease
	if from != nil {
		why := "it has expired, that run did not renew it"
		if !from.Expired() {
			why = "that run on this host ended without giving it back"
		}
		l.emit(event{level: "warn", msg: fmt.Sprintf("lock    taken over from %s (%s): %s", from.Who, from.Command, why), data: lockState{State: "taken_over", Holder: holderOf(*from), TTLS: steps.LockTTL}})
	}
	msg, holder := fmt.Sprintf("lock    held by %s (this host only)", l.run.Who), lockHolder{Who: l.run.Who, Command: l.run.Command, Since: stamp(l.now()), Run: l.run.ID}
	if lease != nil {
		msg, holder = fmt.Sprintf("lock    held by %s (%s, %d s)", l.run.Who, l.live.LockPlace(), steps.LockTTL), holderOf(lease.Tenant())
	}
	l.emit(event{level: "info", msg: msg, data: lockState{State: "acquired", Holder: holder, TTLS: steps.LockTTL}})
	if lease == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	l.leave = func() { cancel(); <-over }
	go func() {
		defer close(over)
		if err := lease.Keep(ctx); err != nil {
			l.emit(event{level: "warn", msg: "Stopping at the next safe point: " + err.Error(), data: note{}})
			l.halt(err)
		}
	}()
}

// release gives the lock back, however the run ended.
func (l *lock) release() {
	back := true
	if l.lease != nil {
		l.leave()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := l.lease.Release(ctx); err != nil {
			back = false
			l.emit(event{level: "warn", msg: fmt.Sprintf("The lock was not given back and expires in at most %d s: %v", steps.LockTTL, err), data: note{}})
		}
	}
	if l.file != nil {
		if back {
			_ = l.file.Truncate(0) // what stays there is not believed unless the Lease says the same
		}
		_ = l.file.Close() // which unlocks it
	}
	if l.held && back {
		l.emit(event{level: "debug", data: lockState{State: "released", Holder: lockHolder{Who: l.run.Who, Command: l.run.Command, Run: l.run.ID}, TTLS: steps.LockTTL}})
	}
}

// stoppedBy is the error of a run that ended with err, in the light of what made
// it stop.
func (a *app) stoppedBy(err error) error {
	why := a.halted()
	if _, asked := errors.AsType[*interruption](why); why == nil || asked || !errors.Is(err, plan.ErrStopped) && !errors.Is(err, why) {
		return err
	}
	lost := fmt.Errorf("%w\nnothing more was begun; run again: the next plan starts from what is there", why)
	if back, ok := errors.AsType[*plan.RollbackError](err); ok { // which names what stays changed
		return &exitError{4, &plan.RollbackError{Cause: lost, Undone: back.Undone, Left: back.Left, Err: back.Err}}
	}
	return &exitError{4, lost}
}
