package main

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/steps"
)

// cell is a step whose live system is a file: the command's own work is tested
// without the systems that a deployment is made of.
type cell struct {
	Step   string
	Comes  []string // after
	Want   string
	Effect plan.Effect
	Needs  []string
	dir    string
	do     func(context.Context) error // called first in the act
}

func (c *cell) Name() string    { return c.Step }
func (c *cell) After() []string { return c.Comes }

func (c *cell) file() string { return filepath.Join(c.dir, strings.ReplaceAll(c.Step, "/", "-")) }

func (c *cell) read() (string, error) {
	b, err := os.ReadFile(c.file())
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(b)), err
}

func (c *cell) Plan(_ context.Context, goal plan.Goal) ([]plan.Change, error) {
	want := c.Want
	if goal == plan.Absent {
		want = ""
	}
	from, err := c.read()
	if err != nil || from == want {
		return nil, err
	}
	action := plan.Update
	switch {
	case from == "":
		action = plan.Create
	case want == "":
		action = plan.Delete
	}
	return []plan.Change{{
		Action: action, Target: c.Step + ":value", Reason: "is " + from, From: from, Want: want, Effect: c.Effect, Needs: c.Needs,
		Detail: plan.Diff{Fields: []plan.Field{{Path: "value", Before: from, After: want}}},
		Do: func(ctx context.Context, _ func(string)) error {
			if c.do != nil {
				if err := c.do(ctx); err != nil {
					return err
				}
			}
			if want == "" {
				return os.Remove(c.file())
			}
			return os.WriteFile(c.file(), []byte(want), 0o600)
		},
	}}, nil
}

// cells makes the steps of the file cells.json in dir.
func cells(dir string) func(*steps.Live, context.Context, plan.Goal) ([]plan.Step, error) {
	return func(*steps.Live, context.Context, plan.Goal) ([]plan.Step, error) {
		b, err := os.ReadFile(filepath.Join(dir, "cells.json"))
		if err != nil {
			return nil, err
		}
		var all []*cell
		if err := json.Unmarshal(b, &all); err != nil {
			return nil, err
		}
		var list []plan.Step
		for _, c := range all {
			c.dir = dir
			list = append(list, c)
		}
		return list, nil
	}
}

// external writes the lab's blueprint with a server that somebody else runs: then
// no lock in a cluster is needed.
func external(name string) error {
	src, err := os.ReadFile("../../blueprints/lab.ftp.hcl")
	if err != nil {
		return err
	}
	return os.WriteFile(name, regexp.MustCompile(`(?m)^  image     = .*$`).ReplaceAll(src, []byte(`  server    = "external"`)), 0o600)
}

// generations are those of the file generations.json in dir; no file, none.
func generations(dir string) func(*steps.Live, context.Context) ([]*steps.Generation, error) {
	return func(*steps.Live, context.Context) ([]*steps.Generation, error) {
		b, err := os.ReadFile(filepath.Join(dir, "generations.json"))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		var all []*steps.Generation
		return all, json.Unmarshal(b, &all)
	}
}

// mainCells is main with cells of the working directory in the place of steps, and
// its history.
func mainCells() {
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, env: os.LookupEnv, now: time.Now, list: cells("."), history: generations(".")}
	os.Exit(a.run(context.Background(), os.Args[1:]))
}

// interruptible runs apply over two cells; do is the act of the first.
func interruptible(t *testing.T, do func(context.Context, *app) error) (code int, stdout string, second *cell) {
	t.Helper()
	first := &cell{Step: "vm/haproxy-a", Want: "on", dir: t.TempDir()}
	second = &cell{Step: "host/haproxy-a", Comes: []string{"vm/haproxy-a"}, Want: "configured", dir: first.dir}
	blueprint := filepath.Join(first.dir, "lab.ftp.hcl")
	if err := external(blueprint); err != nil {
		t.Fatal(err)
	}
	var out, errs strings.Builder
	a := &app{
		stdin: os.Stdin, stdout: &out, stderr: &errs, now: time.Now,
		list: func(*steps.Live, context.Context, plan.Goal) ([]plan.Step, error) {
			return []plan.Step{first, second}, nil
		},
	}
	a.env = func(name string) (string, bool) {
		v, ok := map[string]string{
			"CI": "true", "GOVC_URL": "vcenter.example", "GOVC_USERNAME": "u", "GOVC_PASSWORD": "p", "GOVC_TLS_CA_CERTS": "ca.pem",
			"FTPDEPLOY_LAB_KEY": "key", "FTPDEPLOY_LAB_SUDO_PASSWORD": "s", "KUBECONFIG": "k", "FTPDEPLOY_VAR_ftp_password": "f",
			"XDG_STATE_HOME": filepath.Join(first.dir, "state"),
		}[name]
		return v, ok
	}
	first.do = func(ctx context.Context) error { return do(ctx, a) }
	code = a.run(t.Context(), []string{"apply", "--yes", "--no-verify", "-f", blueprint})
	return code, out.String() + errs.String(), second
}

// interrupt sends this process a signal and waits until it has arrived.
func interrupt(ctx context.Context, s syscall.Signal, arrived <-chan struct{}) error {
	if err := syscall.Kill(os.Getpid(), s); err != nil {
		return err
	}
	select {
	case <-arrived:
		return nil
	case <-time.After(10 * time.Second):
		return errors.New("the signal did not arrive within 10 s")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func TestInterruptStopsAtTheNextSafePoint(t *testing.T) {
	for s, want := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143, syscall.SIGHUP: 143} {
		t.Run(s.String(), func(t *testing.T) { stopsAtTheNextSafePoint(t, s, want) })
	}
}

func stopsAtTheNextSafePoint(t *testing.T, s syscall.Signal, want int) {
	code, text, second := interruptible(t, func(ctx context.Context, a *app) error { return interrupt(ctx, s, a.stop) })
	if code != want {
		t.Errorf("exit code %d, want %d\n%s", code, want, text)
	}
	for _, want := range []string{
		"Stopping at the next safe point", "Changed: vm/haproxy-a:value.", "Not changed: host/haproxy-a:value.",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the output lacks %q:\n%s", want, text)
		}
	}
	if v, err := second.read(); v != "" || err != nil {
		t.Errorf("a change was begun after the interrupt: %q, %v", v, err)
	}
}

func TestSecondInterruptStopsNow(t *testing.T) {
	var cancelled atomic.Bool
	code, text, _ := interruptible(t, func(ctx context.Context, a *app) error {
		if err := interrupt(ctx, syscall.SIGINT, a.stop); err != nil {
			return err
		}
		err := interrupt(ctx, syscall.SIGINT, ctx.Done())
		cancelled.Store(ctx.Err() != nil)
		if err == nil {
			err = context.Cause(ctx)
		}
		return err
	})
	if code != 130 || !cancelled.Load() {
		t.Errorf("exit code %d, want 130; what was under way was cancelled: %t\n%s", code, cancelled.Load(), text)
	}
	if !strings.Contains(text, "Begun, and perhaps changed: vm/haproxy-a:value.") || !strings.Contains(text, "Not changed: host/haproxy-a:value.") {
		t.Errorf("the output does not say what was not done:\n%s", text)
	}
	if strings.Contains(text, "context canceled") || !strings.Contains(text, "Error: vm/haproxy-a: vm/haproxy-a:value: interrupted") {
		t.Errorf("the output does not say that it was interrupted:\n%s", text)
	}
}
