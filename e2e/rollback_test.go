package e2e

import (
	"os"
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
	if newCrasher(t).kills(t, "^action.end .*:haproxy.service", "apply", "--yes", "-f", file) == "" {
		t.Fatal("ftpdeploy ended before it was killed")
	}
	killed := time.Now()
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
