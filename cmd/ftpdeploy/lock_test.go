package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/kube"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/steps"
)

// recording is a run whose events are kept.
type recording struct {
	*deployment
	mu   sync.Mutex
	all  []event
	tell chan event // gets every event too
}

// newRun is a run of a deployment that asks nothing of Kubernetes.
func newRun(state, id string) *recording {
	t := &blueprints.Topology{ID: "prod"}
	env := func(name string) (string, bool) { return state, name == "XDG_STATE_HOME" }
	r := &recording{tell: make(chan event, 100)}
	a := &app{env: env, now: time.Now, runID: id, user: id, host: "jump", verb: "apply", file: "prod.ftp.hcl", stop: make(chan struct{})}
	a.emit = func(e event) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.all = append(r.all, e)
		r.tell <- e
	}
	r.deployment = &deployment{app: a, topology: t, live: steps.Open(t, steps.Options{Env: env})}
	return r
}

func (r *recording) said() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	for _, e := range r.all {
		fmt.Fprintf(&b, "%s %s: %s\n", e.level, e.kind(), e.msg)
	}
	return b.String()
}

func TestLockOnOneHost(t *testing.T) {
	state := t.TempDir()
	first := newRun(state, "alice").newLock(0)
	if err := first.enter(t.Context()); err != nil {
		t.Fatal(err)
	}
	if waited, err := first.acquire(t.Context()); waited || err != nil {
		t.Fatal(waited, err)
	}
	err := newRun(state, "bob").newLock(0).enter(t.Context())
	if code := exitCode(err, false); code != 8 {
		t.Fatalf("exit code %d of %v, want 8", code, err)
	}
	for _, want := range []string{fmt.Sprintf("alice@jump pid %d", os.Getpid()), "ftpdeploy apply -f prod.ftp.hcl", "since ", "this host", filepath.Join(state, "ftpdeploy/locks/prod"), "expires ", "Nothing was changed", "--lock-timeout"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the refusal lacks %q:\n%s", want, err)
		}
	}
	other := newRun(state, "carol")
	other.topology = &blueprints.Topology{ID: "test"}
	if l := other.newLock(0); l.enter(t.Context()) != nil {
		t.Error("another deployment is locked too")
	} else {
		l.release()
	}
	first.release()

	last := newRun(state, "dave")
	l := last.newLock(0)
	if err := l.enter(t.Context()); err != nil {
		t.Fatalf("after it was given back: %v", err)
	}
	if l.died != "" {
		t.Errorf("run %q is thought to have died; it gave the lock back", l.died)
	}
	l.release()
	if s := last.said(); s != "" {
		t.Errorf("a run without changes says of its lock: %s", s)
	}
	file := filepath.Join(state, "ftpdeploy/locks/prod")
	for path, want := range map[string]os.FileMode{file: 0o600, filepath.Dir(file): 0o700} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want mode %o", path, info.Mode(), err, want)
		}
	}
}

func TestLockIsWaitedFor(t *testing.T) {
	state := t.TempDir()
	first := newRun(state, "alice").newLock(0)
	if err := first.enter(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := newRun(state, "bob")
	l := second.newLock(time.Minute)
	result := make(chan error, 1)
	go func() { result <- l.enter(t.Context()) }()
	if e := <-second.tell; e.kind() != "lock" || e.data.(lockState).State != "waiting" || !strings.Contains(e.msg, "alice@jump") {
		t.Errorf("first word: %+v", e)
	}
	first.release()
	select {
	case err := <-result:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the second run does not get the lock that was given back")
	}
	l.release()

	// The wait has its bound, and an interrupt ends it.
	if err := first.enter(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer first.release()
	if err := newRun(state, "bob").newLock(300 * time.Millisecond).enter(t.Context()); exitCode(err, false) != 8 {
		t.Errorf("after the wait: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := newRun(state, "bob").newLock(time.Minute).enter(ctx); exitCode(err, false) != 130 {
		t.Errorf("interrupted: %v", err)
	}
}

// A run that was killed leaves its name in the file, so that its Lease need not
// be waited for.
func TestLockOfTheDead(t *testing.T) {
	state := t.TempDir()
	first := newRun(state, "alice").newLock(0)
	if err := first.enter(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := first.file.Close(); err != nil { // as the kernel does
		t.Fatal(err)
	}
	second := newRun(state, "bob").newLock(0)
	if err := second.enter(t.Context()); err != nil || second.died != "alice" {
		t.Errorf("died: %q, %v, want alice", second.died, err)
	}
	second.release()
}

// Without a place for the file the run goes on, with a warning.
func TestLockWithoutHome(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, state := range []string{file, ""} {
		r := newRun(state, "alice")
		l := r.newLock(0)
		if err := l.enter(t.Context()); err != nil {
			t.Error(err)
		}
		if !strings.HasPrefix(r.said(), "warn note: No lock between runs on this host") {
			t.Errorf("said: %q", r.said())
		}
		l.release()
	}
}

// A run that loses its lock stops with 4; one that is interrupted, with 130.
func TestStoppedBy(t *testing.T) {
	stopped := &plan.StepError{Step: "vm/a", Err: plan.ErrStopped}
	r := newRun(t.TempDir(), "alice")
	if err := r.stoppedBy(stopped); exitCode(err, true) != 130 {
		t.Errorf("%v", err)
	}
	r.halt(fmt.Errorf("%w: Lease default/ftpdeploy-prod is now held by bob@there", kube.ErrLeaseLost))
	r.halt(&interruption{130}) // too late to be the reason
	err := r.stoppedBy(stopped)
	if exitCode(err, true) != 4 || !strings.Contains(err.Error(), "bob@there") || !errors.Is(err, kube.ErrLeaseLost) {
		t.Errorf("exit code %d: %v", exitCode(err, true), err)
	}
	err = r.stoppedBy(&plan.RollbackError{Cause: stopped, Left: []string{"haproxy-a:packages"}})
	if exitCode(err, true) != 4 || !strings.Contains(err.Error(), "bob@there") || !strings.Contains(err.Error(), "changed, and not rolled back: haproxy-a:packages") {
		t.Errorf("exit code %d: %v", exitCode(err, true), err)
	}
	if other := errors.New("other"); !errors.Is(r.stoppedBy(other), other) {
		t.Error("an error that is not a stop is hidden")
	}
}

func TestRecord(t *testing.T) {
	state := t.TempDir()
	id := uuid.Must(uuid.NewV7()).String()
	r := newRun(state, id)
	if err := r.record(); err != nil {
		t.Fatal(err)
	}
	r.emit(event{level: "info", msg: "something happens", data: note{}})
	r.end(0, nil)
	dir := filepath.Join(state, "ftpdeploy/runs", id)
	content, err := os.ReadFile(filepath.Join(dir, "events.ndjson"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], `"seq":1,`) || !strings.Contains(lines[0], "something happens") ||
		!strings.Contains(lines[1], `"type":"run.end"`) || !strings.Contains(lines[1], `"run_dir":"`+dir+`"`) {
		t.Errorf("recorded:\n%s", content)
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, "events.ndjson"): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v, want %o", path, info.Mode(), err, want)
		}
	}

	elsewhere := newRun(state, id)
	elsewhere.runDir = filepath.Join(t.TempDir(), "mine")
	if err := elsewhere.record(); err != nil {
		t.Fatal(err)
	}
	elsewhere.end(0, nil)
	if _, err := os.Stat(filepath.Join(elsewhere.runDir, "events.ndjson")); err != nil {
		t.Error(err)
	}
}

// runID is that of a run at a time: the first 48 bits are its milliseconds (RFC 9562, 5.7).
func runID(at time.Time, n byte) string {
	id := uuid.UUID{6: 0x70, 8: 0x80, 15: n}
	ms := at.UnixMilli()
	for i := range 6 {
		id[i] = byte(ms >> (40 - 8*i))
	}
	return id.String()
}

func TestPrune(t *testing.T) {
	now := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	day := 24 * time.Hour
	for _, tt := range []struct {
		name  string
		every time.Duration // between 60 runs
		kept  int
	}{
		{"many", time.Minute, 50},
		{"old", day, 30},
	} {
		t.Run(tt.name, func(t *testing.T) {
			runs := t.TempDir()
			var foreign []string
			for _, name := range []string{"notes", "00000000-0000-4000-8000-000000000000"} { // the second is no run's: its version is 4
				foreign = append(foreign, filepath.Join(runs, name))
			}
			var paths []string
			for i := range 60 {
				paths = append(paths, filepath.Join(runs, runID(now.Add(-time.Duration(i)*tt.every-time.Minute), byte(i))))
			}
			for _, p := range append(foreign, paths...) {
				if err := os.MkdirAll(filepath.Join(p, "deep"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			prune(runs, now)
			for i, p := range paths {
				if _, err := os.Stat(p); (err == nil) != (i < tt.kept) {
					t.Errorf("run %d of 60, the newest first: %v, want the first %d kept", i, err, tt.kept)
				}
			}
			for _, p := range foreign {
				if _, err := os.Stat(p); err != nil {
					t.Errorf("what is no run's is gone: %v", err)
				}
			}
		})
	}
	prune(filepath.Join(t.TempDir(), "nothing"), now)
}

func TestHumanViewOfTheLock(t *testing.T) {
	for _, quiet := range []bool{false, true} {
		var out, err strings.Builder
		h := &human{out: &out, err: &err, quiet: quiet, now: time.Now}
		for _, e := range []event{
			{level: "info", msg: "waiting", data: lockState{State: "waiting"}},
			{level: "warn", msg: "taken over", data: lockState{State: "taken_over"}},
			{level: "info", msg: "held", data: lockState{State: "acquired"}},
			{level: "debug", data: lockState{State: "released"}},
		} {
			h.emit(e)
		}
		want := "waiting\ntaken over\nheld\n"
		if quiet {
			want = "taken over\n"
		}
		if err.String() != want || out.Len() > 0 {
			t.Errorf("quiet %t: stdout %q, stderr %q, want %q", quiet, out.String(), err.String(), want)
		}
	}
}
