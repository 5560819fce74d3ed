package e2e

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// running is an ftpdeploy that goes on while the test does other things.
type running struct {
	cmd    *exec.Cmd
	pid    string   // on jump
	states []string // of its lock, as it said; complete when it has ended
	ended  chan struct{}
}

// start runs ftpdeploy on the jump host and returns when it holds the lock and
// has begun its first change.
func start(t *testing.T, args ...string) *running {
	t.Helper()
	r := &running{ended: make(chan struct{})}
	r.cmd = exec.CommandContext(t.Context(), ftplab, append([]string{"exec", "jump", "--", ftpdeploy, "-f", blueprint, "--json"}, args...)...)
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	begun := make(chan string, 1)
	go func() {
		defer close(r.ended)
		lines := bufio.NewReader(out)
		pid := ""
		for {
			line, err := lines.ReadString('\n')
			if err != nil { // it has ended, or was killed in the middle of a line
				break
			}
			var e struct {
				Type, State string
				Holder      struct{ Who string }
			}
			if json.Unmarshal([]byte(line), &e) != nil {
				continue
			}
			if e.Type == "lock" {
				r.states = append(r.states, e.State)
				if m := regexp.MustCompile(`pid (\d+)`).FindStringSubmatch(e.Holder.Who); e.State == "acquired" && m != nil {
					pid = m[1]
				}
			}
			if e.Type == "action.start" && pid != "" {
				select {
				case begun <- pid:
				default:
				}
			}
		}
		_, _ = io.Copy(io.Discard, out)
		_ = r.cmd.Wait() // its exit code is looked at
	}()
	select {
	case r.pid = <-begun:
	case <-r.ended:
		t.Fatalf("ftpdeploy %s ended with %d before its first change", strings.Join(args, " "), r.cmd.ProcessState.ExitCode())
	case <-time.After(2 * time.Minute):
		t.Fatalf("ftpdeploy %s began no change in 2 minutes", strings.Join(args, " "))
	}
	return r
}

// exits waits for the end.
func (r *running) exits(t *testing.T, code int) {
	t.Helper()
	select {
	case <-r.ended:
	case <-time.After(2 * time.Minute):
		t.Fatal("it did not end within 2 minutes")
	}
	if got := r.cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("exit code %d, want %d", got, code)
	}
}

// kill ends it as a power cut would.
func (r *running) kill(t *testing.T) {
	t.Helper()
	on(t, "jump", "kill", "-9", r.pid).must(t)
	r.exits(t, 128+9)
}

// elsewhere runs ftpdeploy with a state directory of its own, as on another host.
func elsewhere(t *testing.T, args ...string) result {
	t.Helper()
	return onEnv(t, "jump", []string{"XDG_STATE_HOME=" + os.Getenv("FTPLAB_DIR") + "/elsewhere"}, append([]string{ftpdeploy, "-f", blueprint}, args...)...)
}

// TestLock runs several applies at once, and takes their lock away from them.
func TestLock(t *testing.T) {
	a := start(t, "apply", "--yes")
	for where, second := range map[string]func(*testing.T, ...string) result{"this host": deploy, "Lease default/ftpdeploy-lab": elsewhere} {
		r := second(t, "apply", "--yes").exits(t, 8).says(t, "locked by another run", "pid "+a.pid, "ftpdeploy apply", "since ", "expires ", where)
		if r.took > 5*time.Second {
			t.Errorf("the second run took %s to say that it is locked out", r.took)
		}
	}
	deploy(t, "plan").must(t)

	// One that lost its lock stops, when it is to be renewed: a run over a slow line has
	// something to begin then.
	delay := func(by string) { lab(t, "fault", "link-delay", "jump", "management", by) }
	defer delay("0s")
	delay("300ms")
	byHand(t, "lease-delete", "default", "ftpdeploy-lab")
	a.exits(t, 4)
	delay("0s")

	// One that was killed keeps the others out until its lock expires.
	a = start(t, "apply", "--yes")
	a.kill(t)
	elsewhere(t, "apply", "--yes").exits(t, 8).says(t, "pid "+a.pid)
	r := elsewhere(t, "apply", "--yes", "--lock-timeout", "90s").must(t).says(t, "waiting for the lock", "taken over from", "has expired", "PASS")
	t.Logf("taken over after expiry; waiting and applying took %.0f s", r.took.Seconds())

	// On the same host it is known to be dead.
	a = start(t, "destroy", "--yes")
	a.kill(t)
	r = deploy(t, "destroy", "--yes", "--delete-data", "home").must(t).says(t, "ended without giving it back")
	t.Logf("taken over from a dead run of the same host; destroy took %.0f s", r.took.Seconds())
	if left := byHand(t, "objects"); left != "" {
		t.Errorf("left in the cluster: %s", left)
	}

	// An interrupt gives it back.
	a = start(t, "apply", "--yes")
	on(t, "jump", "kill", "-INT", a.pid).must(t)
	a.exits(t, 130)
	if got := strings.Join(a.states, " "); got != "acquired released" {
		t.Errorf("the lock of an interrupted run: %s", got)
	}
	deploy(t, "destroy", "--yes", "--delete-data", "home").must(t)
	if left := byHand(t, "objects"); left != "" {
		t.Errorf("left in the cluster: %s", left)
	}

	// What is kept on the host is for its owner only, and holds no secret.
	records := shell(t, "jump", `cd ~/.local/state/ftpdeploy; find . -type f ! -perm 0600 -o -type d ! -perm 0700 ! -name .; ls runs | wc -l
		for s in "$FTPDEPLOY_VAR_ftp_password" "$FTPDEPLOY_LAB_SUDO_PASSWORD" "$GOVC_PASSWORD"; do ! grep -rlF "$s" . || exit 1; done`)
	if strings.Contains(records, "./") || records == "0" {
		t.Errorf("kept on the jump host: %s", records)
	}
}
