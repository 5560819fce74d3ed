package remote

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/remote/sshtest"
)

// locked is a Config with a lock, whose waits are counted.
func locked(t *testing.T, s *sshtest.Server) (Config, *atomic.Int32) {
	var waits atomic.Int32
	c := config(s)
	c.Lock = filepath.Join(t.TempDir(), "ftpdeploy")
	if err := os.Mkdir(c.Lock, 0o700); err != nil {
		t.Fatal(err)
	}
	c.Waiting = func(text string) {
		if text != "waiting for a change that was begun over another connection" {
			t.Errorf("waiting: %q", text)
		}
		waits.Add(1)
	}
	return c, &waits
}

// TestChangeOutlivesItsConnection breaks the connection of a change, which goes
// on by itself: who looks after that sees all of it.
func TestChangeOutlivesItsConnection(t *testing.T) {
	s := sshtest.Start(t)
	c, waits := locked(t, s)
	h := enter(t, c)
	fifo, done := filepath.Join(c.Lock, "fifo"), filepath.Join(c.Lock, "done")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	s.CutAt(1)
	begun := filepath.Join(c.Lock, "begun")
	if _, err := h.change(t.Context(), ": >"+quote(begun)+"\nread x <"+quote(fifo)+"\necho whole >"+quote(done), nil); !errors.Is(err, ErrBroken) || h.Alive() {
		t.Fatalf("%v, want ErrBroken", err)
	}
	again := enter(t, c)
	until(t, "the change begins", func() bool {
		_, err := os.Stat(begun)
		return err == nil
	})
	seen := make(chan error, 1)
	go func() {
		f, err := again.Find(t.Context(), Query{Files: []FileQuery{{Path: done}}})
		if err == nil && string(f.Files[done].Content) != "whole\n" {
			err = errors.New("a change under way was looked at")
		}
		seen <- err
	}()
	until(t, "somebody waits for the change", func() bool {
		select {
		case err := <-seen:
			t.Fatalf("nobody waited: %v", err)
		default:
		}
		return waits.Load() > 0
	})
	if err := os.WriteFile(fifo, []byte("go on\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := <-seen; err != nil {
		t.Error(err)
	}
}

// until polls for at most 10 s.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// TestNothingKeepsTheLock holds that what a change starts does not inherit it.
func TestNothingKeepsTheLock(t *testing.T) {
	s := sshtest.Start(t)
	c, waits := locked(t, s)
	h := enter(t, c)
	pid := filepath.Join(t.TempDir(), "pid")
	if _, err := h.change(t.Context(), "sleep 60 >/dev/null 2>&1 </dev/null & echo $! >"+quote(pid), nil); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := h.Run(context.WithoutCancel(t.Context()), "kill $(cat "+quote(pid)+")", nil); err != nil {
			t.Error(err)
		}
	}()
	if _, err := h.change(t.Context(), "exit 7", nil); !strings.Contains(err.Error(), "exit status 7") || waits.Load() > 0 {
		t.Errorf("%v; waited %d times", err, waits.Load())
	}
}

// cutConn breaks after so many bytes were sent.
type cutConn struct {
	net.Conn
	left int
}

func (c *cutConn) Write(p []byte) (int, error) {
	if c.left -= len(p); c.left < 0 {
		c.Close()
		return 0, net.ErrClosed
	}
	return c.Conn.Write(p)
}

// TestUploadIsCut breaks the connection in the middle of a file's content: the
// file is as it was, nothing is left beside it, and the next try succeeds.
func TestUploadIsCut(t *testing.T) {
	s := sshtest.Start(t)
	c, _ := locked(t, s)
	target := filepath.Join(t.TempDir(), "haproxy.cfg")
	f := File{Path: target, Mode: "0644", Owner: ":", Content: []byte("before\n")}
	h := enter(t, c)
	if err := h.Put(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	cut := c
	cut.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		return &cutConn{conn, 300 << 10}, err
	}
	f.Content = []byte(strings.Repeat("0123456789abcdef\n", 64<<10))
	if err := enter(t, cut).Put(t.Context(), f); !errors.Is(err, ErrBroken) {
		t.Fatalf("%v, want ErrBroken", err)
	}
	// The next one waits for the end of the one that broke.
	if _, err := h.change(t.Context(), ":", nil); err != nil {
		t.Fatal(err)
	}
	left := func() {
		t.Helper()
		if names, err := filepath.Glob(filepath.Dir(target) + "/.*"); err != nil || len(names) > 0 {
			t.Errorf("left: %v %v", names, err)
		}
	}
	if text, err := os.ReadFile(target); err != nil || string(text) != "before\n" {
		t.Errorf("after the cut: %v %.20q", err, text)
	}
	left()
	if err := h.Put(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(target); string(text) != string(f.Content) {
		t.Errorf("after the second try: %.20q", text)
	}
	left()
}

// TestGenerationIsAskedForAgain loses the answers of Arm and of Confirm.
func TestGenerationIsAskedForAgain(t *testing.T) {
	g := startGenerations(t)
	c := config(g.Server)
	c.Lock = g.Dir // what the cut leaves behind is waited for
	g.Host = enter(t, c)
	g.Token = "one"
	again := func(do func(*Host) error) {
		t.Helper()
		g.CutAt(1)
		if err := do(g.Host); !errors.Is(err, ErrBroken) {
			t.Fatalf("%v, want ErrBroken", err)
		}
		g.Host = enter(t, c)
		if err := do(g.Host); err != nil {
			t.Fatalf("asked again: %v", err)
		}
	}
	arm := func(h *Host) error {
		n, _, err := h.Arm(t.Context(), g.Generation)
		if err == nil && n != 1 {
			err = errors.New("another generation")
		}
		return err
	}
	again(arm)
	g.change()
	other := g.Generation
	other.Token = "two"
	if _, _, err := g.Arm(t.Context(), other); err == nil || !strings.Contains(err.Error(), "another run changes this machine") {
		t.Errorf("armed by another set of changes: %v", err)
	}
	again(func(h *Host) error { return h.Confirm(t.Context(), g.Generation, 1) })
	if err := g.Revert(t.Context(), g.Generation, 1); err != nil {
		t.Fatal(err)
	}
	g.asBefore()
	if err := g.Confirm(t.Context(), g.Generation, 1); !errors.Is(err, ErrReverted) {
		t.Errorf("confirmed after it was put back: %v", err)
	}
}
