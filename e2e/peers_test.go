package e2e

import (
	"bufio"
	"errors"
	"io"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// during runs ftpdeploy and calls do at the first of its events that fits, while
// it goes on.
func during(t *testing.T, event string, do func(line string), args ...string) result {
	t.Helper()
	fits := regexp.MustCompile(event)
	c := exec.CommandContext(t.Context(), ftplab, append([]string{"exec", "jump", "--", ftpdeploy, "-f", blueprint, "--json"}, args...)...)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	done := false
	for lines := bufio.NewReader(out); ; {
		line, err := lines.ReadString('\n')
		said.WriteString(line)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if !done && fits.MatchString(line) {
			done = true
			do(line)
		}
	}
	_ = c.Wait() // its exit code is in the result
	if !done {
		t.Fatalf("no event was like %q:\n%s", event, said.String())
	}
	return result{stdout: said.String(), code: c.ProcessState.ExitCode(), took: time.Since(start)}
}

// boxOf is the box that an event is of.
func boxOf(line string) string {
	if strings.Contains(line, `"address":"`+boxA) {
		return boxA
	}
	return boxB
}

// peersGoAway takes every peer away in the middle of one change: vCenter's
// sessions, the SSH connections of the box that is changed, the API server. The
// run goes on by itself.
func peersGoAway(t *testing.T) {
	file := variant(t, `client  = "2h"`, `client  = "3h"`)
	r := during(t, `"action.start".*/etc/haproxy/haproxy.cfg"`, func(line string) {
		byHand(t, "sessions-end")
		lab(t, "fault", "kill", "kube-apiserver", "cp")
		shell(t, boxOf(line), `pkill -KILL -f '^sshd: ansible'`)
	}, "apply", "--yes", "-f", file)
	r.exits(t, 0)
	for _, c := range []string{boxA, boxB} {
		if got := shell(t, c, `grep -c 'timeout client 3h' /etc/haproxy/haproxy.cfg`); got == "0" {
			t.Errorf("%s has not got the change", c)
		}
	}
	t.Logf("vCenter's sessions, the API server and SSH of a box were killed in one apply: exit 0 after %.1f s", r.took.Seconds())
	noLeftovers(t, "peers")
	deploy(t, "apply", "--yes").must(t)
	planIsEmpty(t)
	if times(0, 1) > 0 {
		linkCut(t, file)
	}
}

// linkCut unplugs the jump host when the first box has loaded what it was given:
// the box goes back by itself.
func linkCut(t *testing.T, file string) {
	r := during(t, `"action.end".*:haproxy.service"`, func(line string) {
		lab(t, "fault", "link-cut", "jump", "management")
		defer lab(t, "fault", "link-join", "jump", "management")
		cut, box := time.Now(), boxOf(line)
		within(t, confirmWithin+5*time.Second, box+" reverts by itself", func() bool {
			return on(t, box, "sh", "-c", `! [ -f /var/lib/ftpdeploy/armed ] && grep -q 'timeout client 2h' /etc/haproxy/haproxy.cfg`).code == 0
		})
		t.Logf("%s reverted by itself %.1f s after the link was cut, confirm_within is %s", box, time.Since(cut).Seconds(), confirmWithin)
	}, "apply", "--yes", "-f", file)
	if r.code == 0 {
		t.Errorf("the run did not fail: %s", tail(r.stdout))
	}
	t.Logf("the run ended with %d after %.1f s: %s", r.code, r.took.Seconds(), lastLine(r.stdout))
	within(t, 15*time.Second, "the service works as before", func() bool { return deploy(t, "verify").code == 0 })
	deploy(t, "apply", "--yes", "-f", file).must(t)
	deploy(t, "apply", "--yes").must(t)
	planIsEmpty(t)
}
