package e2e

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// confirmWithin is the timer of the blueprints of this file.
const confirmWithin = 40 * time.Second

// variant is the lab's blueprint with other texts and a short timer.
func variant(t *testing.T, texts ...string) string {
	t.Helper()
	text, err := os.ReadFile(blueprint)
	if err != nil {
		t.Fatal(err)
	}
	s := strings.NewReplacer(append(texts, `  upload = "1MiB"`, "  upload = \"1MiB\"\n  timeout = \"20s\"",
		`  upload = "64KiB"`, "  upload = \"64KiB\"\n  timeout = \"20s\"")...).Replace(string(text))
	file := filepath.Join(t.TempDir(), "lab.ftp.hcl")
	if err := os.WriteFile(file, []byte(s+"\nrollout {\n  confirm_within = \""+confirmWithin.String()+"\"\n}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// jumpHostKilled kills ftpdeploy when the first box has loaded what it was given
// and is not proven yet.
func jumpHostKilled(t *testing.T) {
	file := variant(t, `client  = "2h"`, `client  = "3h"`)
	pid := filepath.Join(t.TempDir(), "pid")
	c := exec.CommandContext(t.Context(), ftplab, "exec", "jump", "--", "sh", "-c", `echo $$ >"$1"; exec "$2" apply --yes --json -f "$3"`, "sh", pid, ftpdeploy, file)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if l := lines.Text(); strings.Contains(l, `"action.end"`) && strings.Contains(l, ":haproxy.service\"") {
			break
		}
	}
	shell(t, "jump", "kill -9 $(cat "+pid+")")
	killed := time.Now()
	_ = c.Wait() // it was killed
	var swapped []string
	for _, box := range []string{boxA, boxB} {
		if shell(t, box, `cat /var/lib/ftpdeploy/armed 2>/dev/null || :`) != "" {
			swapped = append(swapped, box)
		}
	}
	if len(swapped) != 1 {
		t.Fatalf("armed: %v", swapped)
	}
	within(t, confirmWithin+5*time.Second, swapped[0]+" reverts by itself", func() bool {
		return on(t, swapped[0], "sh", "-c", `! [ -f /var/lib/ftpdeploy/armed ] && grep -q 'timeout client 2h' /etc/haproxy/haproxy.cfg`).code == 0
	})
	t.Logf("%s reverted by itself %.1f s after the kill, confirm_within is %s", swapped[0], time.Since(killed).Seconds(), confirmWithin)
	within(t, 15*time.Second, "the service works as before", func() bool { return deploy(t, "verify").code == 0 })
	planIsEmpty(t)
	deploy(t, "apply", "--yes", "-f", file).must(t)
	deploy(t, "apply", "--yes").must(t)
	planIsEmpty(t)
}
