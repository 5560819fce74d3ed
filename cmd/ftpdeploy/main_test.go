package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/kube"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/steps"
	"github.com/ftpdeploy/ftpdeploy/vsphere"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"ftpdeploy": main, "ftpcells": mainCells})
}

// TestScripts runs testdata/*.txtar. Beside the usual commands they have
// "exits CODE COMMAND...", which runs a command that must end with that code, and
// ftpcells, which is ftpdeploy with cells in the place of steps.
func TestScripts(t *testing.T) {
	blueprints, err := filepath.Abs("../../blueprints")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("BLUEPRINTS", blueprints)
			e.Setenv("XDG_STATE_HOME", filepath.Join(e.WorkDir, "state"))
			dir := filepath.Join(e.WorkDir, "external")
			e.Setenv("EXTERNAL", filepath.Join(dir, "lab.ftp.hcl"))
			if err := os.Mkdir(dir, 0o700); err != nil {
				return err
			}
			return external(filepath.Join(dir, "lab.ftp.hcl"))
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits},
	})
}

func exits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func TestExitCodes(t *testing.T) {
	deep := func(err error) error { return fmt.Errorf("step: %w", fmt.Errorf("do: %w", err)) }
	for _, tt := range []struct {
		err     error
		changed bool
		want    int
	}{
		{nil, true, 0},
		{deep(io.ErrUnexpectedEOF), false, 1},
		{errPending, false, 2},
		{&exitError{3, errShown}, false, 3},
		{deep(&plan.DriftError{}), true, 4},
		{deep(&plan.NotConvergedError{}), true, 6},
		{deep(io.ErrUnexpectedEOF), true, 6},
		{deep(remote.ErrUnreachable), true, 6},
		{deep(&plan.RollbackError{Cause: deep(io.ErrUnexpectedEOF), Undone: []string{"host/a"}}), true, 5},
		{deep(&plan.RollbackError{Cause: deep(io.ErrUnexpectedEOF), Left: []string{"vm"}}), true, 6},
		{deep(&plan.RollbackError{Cause: deep(io.ErrUnexpectedEOF), Err: io.EOF}), true, 6},
		{deep(&plan.RollbackError{Cause: deep(&plan.DriftError{}), Undone: []string{"host/a"}}), true, 4},
		{deep(&plan.RollbackError{Cause: deep(plan.ErrStopped), Undone: []string{"host/a"}}), true, 130},
		{errFault, false, 7},
		{deep(vsphere.ErrUnreachable), false, 9},
		{deep(vsphere.ErrUntrusted), false, 9},
		{deep(vsphere.ErrLogin), false, 9},
		{deep(remote.ErrUnreachable), false, 9},
		{deep(remote.ErrHostKey), false, 9},
		{deep(remote.ErrAuth), false, 9},
		{deep(remote.ErrSudo), false, 9},
		{deep(kube.ErrUnreachable), false, 9},
		{deep(kube.ErrAuth), false, 9},
		{errors.Join(deep(io.ErrUnexpectedEOF), deep(kube.ErrAuth)), false, 9},
		{deep(plan.ErrStopped), true, 130},
		{deep(context.Canceled), false, 130},
	} {
		if got := exitCode(tt.err, tt.changed); got != tt.want {
			t.Errorf("exitCode(%v, changed %t) = %d, want %d", tt.err, tt.changed, got, tt.want)
		}
	}
}

// TestSummaryOfAFailedApply holds that a change that broke off counts neither as
// made nor as not made: a Deployment that cannot pull its image was replaced.
func TestSummaryOfAFailedApply(t *testing.T) {
	boom := errors.New("boom")
	act := func(target string, err error) plan.Change {
		return plan.Change{
			Action: plan.Run, Target: target, Reason: "test",
			Do: func(context.Context, func(string)) error { return err },
		}
	}
	for _, tt := range []struct {
		changes []plan.Change
		want    string
	}{
		{[]plan.Change{act("one", boom)}, "Begun, and perhaps changed: one.\nRun again"},
		{
			[]plan.Change{act("one", nil), act("two", boom), act("three", nil)},
			"Changed: one.\nBegun, and perhaps changed: two.\nNot changed: three.\nRun again",
		},
	} {
		p, err := plan.Make(t.Context(), plan.Present, []plan.Step{step(tt.changes)}, plan.Options{})
		if err != nil {
			t.Fatal(err)
		}
		a := &app{emit: func(event) {}, now: time.Now}
		o := (&deployment{app: a}).observe(p)
		if err := p.Apply(t.Context(), nil); !errors.Is(err, boom) {
			t.Fatalf("apply: %v", err)
		}
		if got := strings.TrimSpace(o.undone(p)); !strings.HasPrefix(got, tt.want) {
			t.Errorf("the summary is %q, want %q", got, tt.want)
		}
	}
}

// step is one that always wants its changes.
type step []plan.Change

func (s step) Name() string                                           { return "step/test" }
func (s step) After() []string                                        { return nil }
func (s step) Plan(context.Context, plan.Goal) ([]plan.Change, error) { return s, nil }

// toggle is a step that can be put back.
type toggle struct{ on bool }

func (*toggle) Name() string    { return "step/toggle" }
func (*toggle) After() []string { return nil }
func (s *toggle) Plan(context.Context, plan.Goal) ([]plan.Change, error) {
	if s.on {
		return nil, nil
	}
	set := func(on bool) func(context.Context) error {
		return func(context.Context) error { s.on = on; return nil }
	}
	return []plan.Change{{
		Action: plan.Update, Target: "toggle", Reason: "is off", Want: "on", Undo: set(false),
		Do: func(ctx context.Context, _ func(string)) error { return set(true)(ctx) },
	}}, nil
}

// TestUnproven holds whose fault a smoke test is that fails after the changes.
func TestUnproven(t *testing.T) {
	result := func(name string, err error) steps.SmokeResult {
		return steps.SmokeResult{Smoke: &blueprints.Smoke{Name: name}, Err: err}
	}
	boom := errors.New("boom")
	for _, tt := range []struct {
		name    string
		results []steps.SmokeResult
		accept  bool
		code    int
		back    bool
	}{
		{"all of it failed before", []steps.SmokeResult{result("old", boom), result("good", nil)}, false, 6, false},
		{"and that is accepted", []steps.SmokeResult{result("old", boom), result("good", nil)}, true, 0, false},
		{"one of them passed before", []steps.SmokeResult{result("old", boom), result("good", boom)}, true, 5, true},
		{"none could be run", nil, true, 5, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &toggle{}
			p, err := plan.Make(t.Context(), plan.Present, []plan.Step{s}, plan.Options{Rollback: true})
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Apply(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			d := &deployment{app: &app{emit: func(event) {}, now: time.Now}, broken: []string{"old"}, live: steps.Open(&blueprints.Topology{}, steps.Options{})}
			err = d.unproven(t.Context(), p, tt.results, errFault, tt.accept)
			if code := exitCode(err, true); code != tt.code || s.on == tt.back {
				t.Errorf("exit code %d, want %d; put back %t, want %t: %v", code, tt.code, !s.on, tt.back, err)
			}
		})
	}
}

// TestStays holds that nothing is deleted where what stays does not serve, but for
// what did not before the run either.
func TestStays(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().(*net.TCPAddr)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	service := &blueprints.Service{Name: "vsftpd", ControlPort: closed.Port, VIP: &blueprints.VIP{Name: "main", Group: &blueprints.Group{}, Address: closed.AddrPort().Addr()}}
	topology := &blueprints.Topology{ID: "test", Smokes: []*blueprints.Smoke{{
		Name: "old", Service: service, VIP: service.VIP, User: &blueprints.User{Name: "ftp"}, Modes: []string{"pasv"}, Timeout: time.Second,
	}}}
	a := &app{emit: func(event) {}, now: time.Now, recorded: t.TempDir()}
	d := &deployment{app: a, topology: topology, live: steps.Open(topology, steps.Options{})}
	var said []string
	say := func(text string) { said = append(said, text) }
	if err := d.stays(t.Context(), say); err != nil || len(said) != 1 || !strings.Contains(said[0], "not proven") {
		t.Errorf("nobody wants it proven: %v, %q", err, said)
	}
	d.smoke, d.broken = true, []string{"old"}
	if err := d.stays(t.Context(), say); err != nil {
		t.Errorf("it did not serve before: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	d.broken = nil
	if err := d.stays(ctx, say); err == nil || !strings.Contains(err.Error(), `smoke "old"`) {
		t.Errorf("it does not serve: %v", err)
	}
}

// TestRetriesAreSaidOnce holds that a fault that stays is not repeated at each try.
func TestRetriesAreSaidOnce(t *testing.T) {
	var said []string
	now := time.Unix(0, 0)
	a := &app{emit: func(e event) { said = append(said, e.msg) }, now: func() time.Time { return now }}
	say := (&deployment{app: a}).notYet()
	for range 21 {
		say("one")
		now = now.Add(time.Second)
	}
	say("two")
	if got := strings.Join(said, ", "); got != "not yet: one, not yet: one, not yet: one, not yet: two" {
		t.Error(got)
	}
}

// TestApplyOutputIsInListOrder ends the steps in another order than the list's.
func TestApplyOutputIsInListOrder(t *testing.T) {
	var out, err strings.Builder
	h := &human{out: &out, err: &err, now: time.Now}
	h.expect([]int{0, 2, 5})
	over := func(index int, step string) {
		h.emit(event{data: action{phase: "end", sign: "+", Step: step, Address: "x", Outcome: "changed"}})
		h.emit(event{data: stepEnd{step, "changed", index}})
	}
	over(5, "third")
	over(0, "first")
	if strings.Contains(out.String(), "third") {
		t.Errorf("a later step is printed before an earlier one is over:\n%s", out.String())
	}
	over(2, "second")
	first, second, third := strings.Index(out.String(), "first"), strings.Index(out.String(), "second"), strings.Index(out.String(), "third")
	if first < 0 || second < first || third < second {
		t.Errorf("not in the order of the list:\n%s", out.String())
	}
}

func TestHumanViewOnATerminalLeavesNoStatusLine(t *testing.T) {
	var out, err strings.Builder
	h := &human{out: &out, err: &err, live: true, width: 20, now: time.Now}
	h.emit(event{msg: "a text that is longer than the terminal is wide", data: progress{}})
	h.emit(event{level: "info", msg: "result", data: note{}})
	if !strings.HasSuffix(err.String(), "\r\x1b[K") {
		t.Errorf("the status line stays: %q", err.String())
	}
	if line, _, _ := strings.Cut(err.String(), "\r"); len([]rune(line)) > 19 {
		t.Errorf("the status line is wider than the terminal: %q", line)
	}
	if out.String() != "result\n" {
		t.Errorf("stdout has %q", out.String())
	}
}

// A test that could not be made is no fault of the service.
func TestVerdict(t *testing.T) {
	passed := steps.SmokeResult{Address: "203.0.113.15:21"}
	failed := steps.SmokeResult{Address: "203.0.113.15:21", Err: fmt.Errorf("refused (who holds it cannot be told: %w)", remote.ErrHostKey)}
	unasked := steps.SmokeResult{Err: fmt.Errorf("find the box that holds vip: %w", remote.ErrHostKey)}
	torn := steps.SmokeResult{Err: errors.New("the service is not at the box's own address")}
	for name, tt := range map[string]struct {
		results []steps.SmokeResult
		code    int
	}{
		"a transfer fails":       {[]steps.SmokeResult{passed, failed}, 7},
		"nobody can be asked":    {[]steps.SmokeResult{passed, unasked}, 9},
		"both":                   {[]steps.SmokeResult{unasked, failed}, 7},
		"another reason":         {[]steps.SmokeResult{torn}, 7},
		"ended before the first": {nil, 7},
	} {
		if code := exitCode(verdict(tt.results), false); code != tt.code {
			t.Errorf("%s: exit code %d, want %d", name, code, tt.code)
		}
	}
}
