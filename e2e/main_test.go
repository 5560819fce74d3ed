// Package e2e runs the built ftpdeploy in the lab, where every peer is real,
// and looks at what its users would see.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	vip      = "203.0.113.15"
	boxA     = "haproxy-a"
	boxB     = "haproxy-b"
	passives = 11 // 21100-21110
)

var (
	root      string // of the repository
	ftplab    string // the lab's program
	ftpdeploy string
	blueprint string
)

func TestMain(m *testing.M) {
	if act := os.Getenv(handEnv); act != "" {
		os.Exit(hand(act, os.Args[1:]))
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	wd, err := os.Getwd()
	if err != nil {
		return fail(err)
	}
	root = filepath.Dir(wd)
	ftplab, ftpdeploy = filepath.Join(root, "bin/ftplab"), filepath.Join(root, "bin/ftpdeploy")
	blueprint = filepath.Join(root, "blueprints/lab.ftp.hcl")
	if os.Geteuid() != 0 {
		return fail(errors.New("the end-to-end tests need root: they make network namespaces and machines"))
	}
	for _, f := range []string{ftplab, ftpdeploy} {
		if _, err := os.Stat(f); err != nil {
			return fail(fmt.Errorf("%w: run make e2e, which builds it", err))
		}
	}
	dir, err := os.MkdirTemp("/run", "ftplab-e2e-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Setenv("FTPLAB_DIR", dir); err != nil {
		return fail(err)
	}
	up := exec.Command(ftplab, "up")
	up.Stdout, up.Stderr = os.Stderr, os.Stderr
	start := time.Now()
	if err := up.Run(); err != nil {
		_ = exec.Command(ftplab, "down").Run()
		return fail(fmt.Errorf("ftplab up: %w", err))
	}
	fmt.Fprintf(os.Stderr, "lab up in %.1f s\n", time.Since(start).Seconds())
	code := m.Run()
	if code != 0 {
		log, err := os.ReadFile(filepath.Join(dir, "lab.log"))
		fmt.Fprintf(os.Stderr, "the end of the lab's log (%v):\n%s\n", err, log[max(0, len(log)-8000):])
		for _, box := range []string{boxA, boxB} {
			out, err := exec.Command(ftplab, "exec", box, "--", "sh", "-c", `systemctl --failed --no-pager; cloud-init status --long
				journalctl --no-pager -n 60 -u ftpdeploy-hostkeys -u cloud-final -u haproxy -u keepalived`).CombinedOutput()
			fmt.Fprintf(os.Stderr, "%s (%v):\n%s\n", box, err, out)
		}
	}
	if out, err := exec.Command(ftplab, "down").CombinedOutput(); err != nil {
		return fail(fmt.Errorf("ftplab down: %w: %s", err, out))
	}
	return code
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, "e2e:", err)
	return 1
}

// result is how a command ended.
type result struct {
	stdout, stderr string
	code           int
	took           time.Duration
}

// on runs a command on a host of the lab; the test fails only if the lab does.
func on(t *testing.T, host string, args ...string) result {
	t.Helper()
	return onEnv(t, host, nil, args...)
}

func onEnv(t *testing.T, host string, env []string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	command := append([]string{"exec", host, "--"}, args...)
	if len(env) > 0 {
		command = append(append([]string{"exec", host, "--", "env"}, env...), args...)
	}
	c := exec.CommandContext(ctx, ftplab, command...)
	var out, err bytes.Buffer
	c.Stdout, c.Stderr = &out, &err
	start := time.Now()
	failed := c.Run()
	var exit *exec.ExitError
	if failed != nil && !errors.As(failed, &exit) {
		t.Fatalf("%s: %v", strings.Join(command, " "), failed)
	}
	return result{out.String(), err.String(), c.ProcessState.ExitCode(), time.Since(start)}
}

// words is what the command has said, of events their messages: whoever reads why a
// test failed needs the last ones.
func (r result) words() string {
	var b strings.Builder
	for _, out := range []string{"stderr:\n" + r.stderr, "stdout:\n" + r.stdout} {
		for line := range strings.Lines(out) {
			var e struct{ Level, Type, Msg string }
			switch err := json.Unmarshal([]byte(line), &e); {
			case err != nil || e.Type == "":
				b.WriteString(line)
			case e.Msg != "":
				fmt.Fprintf(&b, "%s %s: %s\n", e.Level, e.Type, e.Msg)
			}
		}
	}
	return b.String()
}

// must fails the test unless the command ended well.
func (r result) must(t *testing.T) result {
	t.Helper()
	return r.exits(t, 0)
}

// exits fails the test unless the command ended with code.
func (r result) exits(t *testing.T, code int) result {
	t.Helper()
	if r.code != code {
		t.Fatalf("exit code %d, want %d\n%s", r.code, code, r.words())
	}
	return r
}

// says fails the test unless the output has each text.
func (r result) says(t *testing.T, texts ...string) result {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(r.stdout+r.stderr, text) {
			t.Errorf("the output does not say %q:\n%s", text, r.words())
		}
	}
	return r
}

// deploy runs ftpdeploy on the jump host.
func deploy(t *testing.T, args ...string) result {
	t.Helper()
	return on(t, "jump", append([]string{ftpdeploy, "-f", blueprint}, args...)...)
}

// shell runs a shell script on a host and returns what it printed.
func shell(t *testing.T, host, script string) string {
	t.Helper()
	return strings.TrimSpace(on(t, host, "sh", "-euc", script).must(t).stdout)
}

// byHand runs one of the acts of hand_test.go on the jump host, as a person
// with the vCenter's or the cluster's own tools would.
func byHand(t *testing.T, act string, args ...string) string {
	t.Helper()
	return byHandOn(t, "jump", act, args...)
}

func byHandOn(t *testing.T, host, act string, args ...string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(onEnv(t, host, []string{handEnv + "=" + act}, append([]string{self}, args...)...).must(t).stdout)
}

// lab runs a command of the lab's program.
func lab(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), ftplab, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ftplab %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// change is a plan.change event.
type change struct {
	Address, Target, Action, Effect string
	Reason                          struct{ Kind, Text, By string }
}

// planned returns the changes of ftpdeploy plan.
func planned(t *testing.T, args ...string) []change {
	t.Helper()
	r := deploy(t, append([]string{"plan", "--json"}, args...)...).must(t)
	var all []change
	for _, e := range events(t, r.stdout) {
		if e.Type == "plan.change" {
			all = append(all, e.change)
		}
	}
	return all
}

type jsonEvent struct {
	Seq     int
	TS      time.Time
	Type    string
	Msg     string
	Outcome string
	RunDir  string `json:"run_dir"`
	change
	Turns          int
	BytesIn        int64 `json:"bytes_in"`
	BytesOut       int64 `json:"bytes_out"`
	Kind           string
	Exit           int
	Add, Unchanged int
	ElapsedMS      int64 `json:"elapsed_ms"`
	OK             bool
}

// events reads a stream of events and holds it to its form.
func events(t *testing.T, stdout string) []jsonEvent {
	t.Helper()
	var all []jsonEvent
	for line := range strings.Lines(stdout) {
		var e jsonEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("not an event: %v: %s", err, line)
		}
		if e.Seq != len(all)+1 {
			t.Errorf("event %d has seq %d", len(all)+1, e.Seq)
		}
		all = append(all, e)
	}
	if len(all) < 2 || all[0].Type != "run.start" || all[len(all)-1].Type != "run.end" {
		t.Fatalf("a stream does not begin with run.start and end with run.end:\n%s", stdout)
	}
	return all
}

// eventsOf are the events of one type in what a command said; "" = of all types.
func eventsOf[T any](t *testing.T, stdout, kind string) []T {
	t.Helper()
	var all []T
	for line := range strings.Lines(stdout) {
		var head struct{ Type string }
		var e T
		if err := json.Unmarshal([]byte(line), &head); err != nil {
			t.Fatalf("not an event: %v: %s", err, line)
		}
		if kind != "" && head.Type != kind {
			continue
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("not a %s event: %v: %s", head.Type, err, line)
		}
		all = append(all, e)
	}
	return all
}

// within polls until ok says yes.
func within(t *testing.T, bound time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(bound)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, bound)
		}
		<-tick.C
	}
}
