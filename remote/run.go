package remote

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// ExitError is the failure of a script that did run.
type ExitError struct {
	Status int    // exit status; -1 = killed by a signal
	Signal string // as SSH names it ("KILL"), "" = none
	Stderr string // the last lines that it wrote there
}

func (e *ExitError) Error() string {
	s := fmt.Sprintf("exit status %d", e.Status)
	if e.Signal != "" {
		s = "killed by signal " + e.Signal
	}
	if e.Stderr != "" {
		s += ": " + e.Stderr
	}
	return s
}

// hangUpGrace is how long a command may take to end once its connection is cut.
const hangUpGrace = 2 * time.Second

// bootstrap reads a script from stdin, up to a line that is the mark, and runs
// it; what follows the mark is the script's own stdin. So neither the script
// nor what it reads is ever an argument, which every user of the machine could
// see. What comes before the first mark is dropped: a password that sudo did not
// ask for. It says the mark on stderr when it starts: from then on failures are
// the script's and no longer sudo's.
const bootstrap = `m=%s; echo $m >&2; while IFS= read -r l && [ "$l" != $m ]; do :; done; s=; ` +
	`while IFS= read -r l && [ "$l" != $m ]; do s="$s$l
"; done; PATH=$PATH:/usr/sbin:/sbin; export LC_ALL=C TZ=UTC0; eval "$s"`

// Run runs a POSIX sh script, as root where the Config says Become, and returns
// what it wrote to stdout. The error is ErrSudo where the user may not become
// root, and holds an *ExitError where the script failed. A script whose ctx ends
// is told so by a signal and a closed connection; it may go on running.
func (h *Host) Run(ctx context.Context, script string, stdin []byte) ([]byte, error) {
	out, err := h.run(ctx, script, stdin)
	if errors.Is(err, ErrBroken) {
		_ = h.client.Close() // it is over; Alive says so from now on
		<-h.ended
	}
	if err != nil {
		return nil, fmt.Errorf("on %s: %w", h.name, err)
	}
	return out, nil
}

// lockWait bounds how long a script that an earlier run has left is waited for:
// its longest is an installation.
const lockWait = 5 * time.Minute

// lockWaits is what a script says on stderr before it waits for another one.
const lockWaits = "ftpdeploy: waiting for a change that was begun over another connection"

// alone makes of a script one that changes the machine while no other one does,
// or with shared one that looks while nobody changes it. The lock is held by the
// shell around it, so that nothing that it starts can keep it.
func (h *Host) alone(script string, shared bool) string {
	if h.lock == "" {
		return script
	}
	mode := "-x"
	if shared {
		mode = "-s"
	}
	return fmt.Sprintf("if [ -d %[1]s ]; then\nexec 9<%[1]s\n"+
		"flock %[2]s -n 9 || { echo '%[3]s' >&2; flock %[2]s -w %[4]d 9; } || { echo 'it did not end within %[4]d s' >&2; exit 1; }\nfi\n"+
		"(\n%[5]s\n) 9<&-\nexit $?", quote(h.lock), mode, lockWaits, int(lockWait.Seconds()), strings.TrimSuffix(script, "\n"))
}

// change runs a script that changes the machine.
func (h *Host) change(ctx context.Context, script string, stdin []byte) ([]byte, error) {
	return h.Run(ctx, h.alone(script, false), stdin)
}

func (h *Host) run(ctx context.Context, script string, stdin []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	// Until the command runs, only a closed connection ends the waiting.
	hangUp := context.AfterFunc(ctx, func() { h.client.Close() })
	defer hangUp()
	session, err := h.client.NewSession()
	if err != nil {
		return nil, broken(ctx, "open a session", err)
	}
	defer session.Close()
	in, err := session.StdinPipe()
	if err != nil {
		return nil, err
	}

	mark := "ftpdeploy-" + rand.Text()
	ask := "password-" + rand.Text() // the prompt that sudo is told to use
	command := "sh -c '" + fmt.Sprintf(bootstrap, mark) + "'"
	asks := h.become && h.sudoPwd != ""
	switch {
	case asks:
		command = "LC_ALL=C sudo -S -p '" + ask + "' -- " + command
	case h.become:
		command = "LC_ALL=C sudo -n -- " + command
	}
	var stdout bytes.Buffer
	stderr := &watcher{mark: mark, ask: ask, waiting: h.waiting, started: make(chan struct{}), refused: make(chan struct{})}
	session.Stdout, session.Stderr = &stdout, stderr
	if err := session.Start(command); err != nil {
		return nil, broken(ctx, "start a shell", err)
	}
	if !hangUp() {
		return nil, context.Cause(ctx)
	}

	ended := make(chan struct{})
	go func() {
		err = session.Wait()
		close(ended)
	}()
	go func() {
		// A write fails only when the command is over, and then its exit status tells more.
		defer in.Close()
		if asks {
			_, _ = io.WriteString(in, h.sudoPwd+"\n")
			// Wait for the shell: sudo would take the script's lines for further passwords.
			select {
			case <-stderr.started:
			case <-stderr.refused:
				return
			case <-ctx.Done():
				return
			}
		}
		_, _ = io.WriteString(in, mark+"\n"+strings.TrimSuffix(script, "\n")+"\n"+mark+"\n")
		_, _ = in.Write(stdin)
	}()

	select {
	case <-ended:
	case <-ctx.Done():
		_ = session.Signal(ssh.SIGTERM) // what it does not end, hanging up does
		_ = session.Close()
		select {
		case <-ended:
		case <-time.After(hangUpGrace):
			h.client.Close() // who does not even say that it hangs up is gone: enter it anew
		}
		return nil, context.Cause(ctx)
	}
	return stdout.Bytes(), h.verdict(err, stderr)
}

// broken is the error of a connection that could not be used: ErrBroken, unless
// ctx has ended or the machine has refused.
func broken(ctx context.Context, what string, err error) error {
	var refused *ssh.OpenChannelError
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case !errors.As(err, &refused):
		err = fmt.Errorf("%w: %w", ErrBroken, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// verdict says what the end of a command means.
func (h *Host) verdict(err error, stderr *watcher) error {
	if err == nil {
		return nil
	}
	var exit *ssh.ExitError
	if !errors.As(err, &exit) {
		return fmt.Errorf("%w: %w", ErrBroken, err)
	}
	text, started := stderr.result()
	if h.become && !started {
		advice := fmt.Sprintf("give the ssh block become_password, or add to the sudoers (visudo): %s ALL=(ALL) NOPASSWD: ALL", h.user)
		if h.sudoPwd != "" {
			advice = fmt.Sprintf("check become_password, and that the sudoers (visudo) hold: %s ALL=(ALL) ALL", h.user)
		}
		return fmt.Errorf("%w: `sudo sh` as user %q: %s: %s", ErrSudo, h.user, oneLine(text), advice)
	}
	e := &ExitError{Status: exit.ExitStatus(), Signal: exit.Signal(), Stderr: tail(text)}
	if e.Signal != "" {
		e.Status = -1
	}
	return e
}

// watcher keeps the end of what a command writes to stderr, and sees sudo's
// prompts and the shell's start in it.
type watcher struct {
	mark, ask string
	waiting   func(string) // nil = nobody asks

	started chan struct{} // closed when the shell says its mark
	refused chan struct{} // closed when sudo asks a second time

	mu      sync.Mutex
	text    []byte
	running bool
	wrong   bool
	waits   bool
}

// stderrLimit is how many bytes of stderr are kept.
const stderrLimit = 64 << 10

func (w *watcher) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text = append(w.text, p...)
	if !w.running {
		if i := bytes.Index(w.text, []byte(w.mark+"\n")); i >= 0 {
			w.running = true
			w.text = w.text[i+len(w.mark)+1:]
			close(w.started)
		} else if bytes.Count(w.text, []byte(w.ask)) > 1 && !w.wrong {
			w.wrong = true
			close(w.refused)
		}
	}
	if !w.waits && w.waiting != nil && bytes.Contains(w.text, []byte(lockWaits)) {
		w.waits = true
		w.waiting(strings.TrimPrefix(lockWaits, "ftpdeploy: "))
	}
	if over := len(w.text) - stderrLimit; over > 0 {
		w.text = w.text[over:]
	}
	return len(p), nil
}

// result returns what was written, without prompts, and whether the shell had started.
func (w *watcher) result() (string, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.ReplaceAll(string(w.text), w.ask, ""), w.running
}

// tail returns the last lines of a command's output, trimmed.
func tail(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	if n := len(lines) - 20; n > 0 {
		lines = lines[n:]
	}
	return strings.Join(lines, "\n")
}

// oneLine is the end of s without its empty lines.
func oneLine(s string) string {
	lines := slices.DeleteFunc(strings.Split(tail(s), "\n"), func(l string) bool { return strings.TrimSpace(l) == "" })
	return strings.Join(lines, "; ")
}

// quote makes s one word of a shell command.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
