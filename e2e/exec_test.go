package e2e

import (
	"bufio"
	"bytes"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// TestExec holds that a command on a host is like one that is run here: its
// input, its output, its exit code, its signals; and that it is on the host.
func TestExec(t *testing.T) {
	if got := on(t, "jump", "sh", "-c", "exit 7").code; got != 7 {
		t.Errorf("exit code %d, want 7", got)
	}
	if got := on(t, "jump", "sh", "-c", "kill -9 $$").code; got != 128+9 {
		t.Errorf("exit code %d of a command that SIGKILL ended, want 137", got)
	}
	if got := on(t, "jump", "no-such-command"); got.code != 1 || !strings.Contains(got.stderr, "no-such-command on jump") {
		t.Errorf("exit code %d of a command that is not there: %s", got.code, got.stderr)
	}
	if got := on(t, "nobody", "true"); got.code != 1 || !strings.Contains(got.stderr, `no host "nobody"`) {
		t.Errorf("exit code %d on a host that is not there: %s", got.code, got.stderr)
	}
	c := exec.CommandContext(t.Context(), ftplab, "exec", "worker-2", "--", "sh", "-c", "hostname; cat; echo 'to stderr' >&2")
	c.Stdin = strings.NewReader("through\n")
	var errors bytes.Buffer
	c.Stderr = &errors
	if out, err := c.Output(); err != nil || string(out) != "worker-2\nthrough\n" || errors.String() != "to stderr\n" {
		t.Errorf("%v: stdout %q, stderr %q", err, out, errors.String())
	}
	for _, host := range []string{"jump", "client"} { // a home of their own, in which there may be what ftpdeploy leaves
		if got := shell(t, host, `hostname; ls -A "$HOME" | grep -vx .local | wc -l; printenv FTPDEPLOY_VAR_ftp_password | wc -l; printenv KUBECONFIG GOVC_URL | wc -l`); got != map[string]string{"jump": "jump\n0\n1\n2", "client": "client\n0\n1\n0"}[host] {
			t.Errorf("on %s: %q", host, got)
		}
	}
	if r := on(t, "client", "curl", "-sk", "--max-time", "3", "https://192.0.2.5:6443/"); r.code != 7 { // cannot connect
		t.Errorf("the client reaches the API server: curl ends with %d", r.code)
	}

	// SIGTERM reaches the command, and its last words and exit code come back.
	c = exec.CommandContext(t.Context(), ftplab, "exec", "jump", "--", "sh", "-c", `trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done`)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "ready" {
		t.Fatalf("the command says %q", lines.Text())
	}
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if !lines.Scan() || lines.Text() != "bye" {
		t.Errorf("after SIGTERM the command says %q", lines.Text())
	}
	if c.Wait(); c.ProcessState.ExitCode() != 3 {
		t.Errorf("exit code %d, want 3", c.ProcessState.ExitCode())
	}
}
