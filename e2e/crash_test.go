package e2e

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// killed is the exit code of a run that was killed by SIGKILL.
const killed = 128 + 9

// crash is an act by hand: FILE MOMENT COMMAND... It runs the command, says what
// it says, and kills it by SIGKILL right after MOMENT: the first of its events
// that fits the regular expression and is not in FILE yet, where it is then
// noted; or the time since the start, as "3.5s".
func crash(ctx context.Context, args []string) error {
	file, moment, command := args[0], args[1], args[2:]
	c := exec.CommandContext(ctx, command[0], command[1:]...)
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	lines := io.TeeReader(out, os.Stdout)
	if after, err := time.ParseDuration(moment); err == nil {
		defer time.AfterFunc(after, func() { _ = c.Process.Kill() }).Stop()
	} else if err := killAtEvent(lines, file, regexp.MustCompile(moment), c.Process); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, lines); err != nil {
		return err
	}
	var exit *exec.ExitError
	if err := c.Wait(); errors.As(err, &exit) && !exit.Exited() {
		os.Exit(killed)
	} else if errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	} else if err != nil {
		return err
	}
	return nil
}

// killAtEvent kills p right after an event that fits and is not noted.
func killAtEvent(events io.Reader, file string, fits *regexp.Regexp, p *os.Process) error {
	noted, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var e struct{ Type, State, Address, Step string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			return fmt.Errorf("%w: %s", err, line)
		}
		name := strings.Join(strings.Fields(e.Type+" "+e.State+" "+cmp.Or(e.Address, e.Step)), " ")
		if !fits.MatchString(name) || slices.Contains(strings.Split(string(noted), "\n"), name) {
			continue
		}
		if err := p.Kill(); err != nil {
			return err
		}
		f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(f, name)
		return errors.Join(err, f.Close())
	}
}

// crasher kills runs of ftpdeploy.
type crasher struct {
	noted string // file of the events after which a run was killed
}

func newCrasher(t *testing.T) *crasher {
	return &crasher{filepath.Join(t.TempDir(), "noted")}
}

// kills runs ftpdeploy and kills it at a moment, see crash. It tells what it was
// killed at, "" where it ended by itself before, which must be well.
func (c *crasher) kills(t *testing.T, moment string, args ...string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	command := append([]string{self, c.noted, moment, ftpdeploy, "-f", blueprint, "--json"}, args...)
	r := onEnv(t, "jump", []string{handEnv + "=crash"}, command...)
	if r.code != killed {
		r.must(t)
		return ""
	}
	if _, err := time.ParseDuration(moment); err == nil {
		return moment
	}
	noted, err := os.ReadFile(c.noted)
	if err != nil {
		t.Fatal(err)
	}
	return lastLine(string(noted))
}

// converges holds that the next apply puts all right that a killed run has left.
func converges(t *testing.T, at string, args ...string) time.Duration {
	t.Helper()
	r := deploy(t, append([]string{"apply", "--yes"}, args...)...)
	if r.code != 0 {
		t.Fatalf("killed at %q: the next apply ends with %d\n%s\n%s", at, r.code, r.stdout, r.stderr)
	}
	if again := deploy(t, append([]string{"plan", "--detailed-exitcode"}, args...)...); again.code != 0 {
		t.Fatalf("killed at %q, applied again: the plan is not empty: exit code %d\n%s\n%s", at, again.code, again.stdout, again.stderr)
	}
	noLeftovers(t, at)
	return r.took
}

// noLeftovers holds that nothing of a broken run is left anywhere.
func noLeftovers(t *testing.T, at string) {
	t.Helper()
	for _, box := range []string{boxA, boxB} {
		// A script that had its input when the run was killed runs to its end.
		within(t, 20*time.Second, "killed at "+at+": the scripts of the killed run have ended on "+box, func() bool {
			return on(t, box, "sh", "-c", `! pgrep -f '^(sudo .*)?sh -c m=ftpdeploy-' >/dev/null`).code == 0
		})
		left := shell(t, box, `find / -xdev \( -path /proc -o -path /sys \) -prune -o \( -name '.*.ftpdeploy.*' -o -path '/var/lib/ftpdeploy/*.new' \
				-o -path /var/lib/ftpdeploy/generations/new -o -path /var/lib/ftpdeploy/armed -o -name '*.dpkg-new' \) -print
			systemctl list-units --all --no-legend --plain 'ftpdeploy-revert*'; dpkg --audit`)
		if left != "" {
			t.Errorf("killed at %q: left on %s: %s", at, box, left)
		}
	}
	if got := slices.Sorted(slices.Values(strings.Fields(byHand(t, "vms")))); !slices.Equal(got, []string{boxA, boxB}) {
		t.Errorf("killed at %q: the VMs are %v", at, got)
	}
	if all := byHand(t, "objects"); strings.Contains(all, "Lease/") {
		t.Errorf("killed at %q: a lock is left: %s", at, all)
	}
}

// TestCrash kills ftpdeploy by SIGKILL while it makes a deployment from nothing,
// while it changes one, and while it removes it. Nobody unlocks or tidies up.
func TestCrash(t *testing.T) {
	c := newCrasher(t)
	file := variant(t, `client  = "2h"`, `client  = "3h"`)
	start := time.Now()
	// Each run goes on from what the one before has left, and is killed in turn. One
	// that is faster on one box than on the other may have passed a moment already.
	chain := func(verb string, least int, moments ...string) {
		t.Helper()
		for _, m := range moments {
			if at := c.kills(t, m, strings.Fields(verb)...); at != "" {
				least--
				t.Logf("%5.1f s  %s killed after %s", time.Since(start).Seconds(), strings.Fields(verb)[0], at)
			}
		}
		if least > 0 {
			t.Errorf("%s was killed %d times too few", verb, least)
		}
	}
	chain("apply --yes", 6, `^lock acquired`, `^action.progress haproxy-.$`, `^action.end (Secret|haproxy-.$)`, `^action.start .*:power`,
		`^action.progress .*:packages`, `^action.end .*:generation`, `^action.end .*:/etc/haproxy/haproxy.cfg`)
	took := converges(t, "the end of the chain")
	t.Logf("%5.1f s  made from nothing; the last apply took %.1f s", time.Since(start).Seconds(), took.Seconds())

	chain("apply --yes -f "+file, 5, `^action.progress .*:generation`, `^action.start .*haproxy.cfg`, `^action.end .*haproxy.cfg`, `^action.progress .*:haproxy.service`,
		`^action.end .*:haproxy.service`, `^action.end .*:proof`)
	took = converges(t, "the end of the chain", "-f", file)
	t.Logf("%5.1f s  changed; the last apply took %.1f s", time.Since(start).Seconds(), took.Seconds())

	chain("destroy --yes --delete-data home", 1, `^action.end Deployment`, `^action.end haproxy-a$`)
	deploy(t, "destroy", "--yes", "--delete-data", "home").must(t)
	if left := byHand(t, "objects") + byHand(t, "vms"); strings.TrimSpace(left) != "" {
		t.Errorf("left after a destroy that was killed: %s", left)
	}
	t.Logf("%5.1f s  removed", time.Since(start).Seconds())

	everyEvent(t, file, times(0, 1000))
	randomTimes(t, file, times(0, 100))
}

// everyEvent kills a change, and an apply from nothing, after each of their
// events, at most limit of each, and lets the next apply end its work.
func everyEvent(t *testing.T, file string, limit int) {
	if limit == 0 {
		return
	}
	deploy(t, "apply", "--yes").must(t)
	changed := eachEvent(t, "a change", limit, func() { deploy(t, "apply", "--yes").must(t) }, "-f", file)
	made := eachEvent(t, "an apply from nothing", limit, func() { deploy(t, "destroy", "--yes", "--delete-data", "home").must(t) })
	t.Logf("killed after each of %d events of a change and %d of an apply from nothing: all converged", changed, made)
}

// eachEvent kills an apply after each of its events and begins anew after each,
// and tells how many there were.
func eachEvent(t *testing.T, what string, limit int, anew func(), args ...string) int {
	t.Helper()
	c := newCrasher(t)
	for n := range limit {
		anew()
		at := c.kills(t, `^(lock|action|step)`, append([]string{"apply", "--yes"}, args...)...)
		if at == "" {
			return n
		}
		t.Logf("%s, killed after %s: applied in %.1f s", what, at, converges(t, at, args...).Seconds())
	}
	return limit
}

// randomTimes kills n changes, every tenth time an apply from nothing, at random.
func randomTimes(t *testing.T, file string, n int) {
	random := rand.New(rand.NewPCG(7, 7))
	for i := range n {
		anew, args, span := "apply --yes", []string{"-f", file}, 10*time.Second
		if i%10 == 9 {
			anew, args, span = "destroy --yes --delete-data home", nil, 45*time.Second
		}
		deploy(t, strings.Fields(anew)...).must(t)
		at := newCrasher(t).kills(t, time.Duration(random.Int64N(int64(span))).String(), append([]string{"apply", "--yes"}, args...)...)
		t.Logf("%d: after %s, killed at %s: applied in %.1f s", i+1, anew, at, converges(t, at, args...).Seconds())
	}
}
