package e2e

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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

// failedChange plants faults that no check of a file sees: the run ends with 5,
// all is as before, and the evidence is there.
func failedChange(t *testing.T) {
	for _, f := range []struct {
		name  string
		texts []string
	}{
		{"haproxy -c takes it, and a reload does not", []string{`hard_stop_after = "4h"`, "hard_stop_after = \"4h\"\n    extra_global = \"stats socket /nonexistent/x.sock\""}},
		{"dead nodes", []string{`["198.51.100.21", "198.51.100.22", "198.51.100.23"]`, `["198.51.100.98", "198.51.100.99"]`}},
		{"an image that is not there", []string{`vsftpd:lab"`, `vsftpd:none"`, `client  = "2h"`, `client  = "3h"`}},
	} {
		t.Run(f.name, func(t *testing.T) {
			file := variant(t, f.texts...)
			before := planned(t, "-f", file)
			r := deploy(t, "apply", "--yes", "--json", "-f", file).exits(t, 5)
			end := struct {
				Outcome string
				RunDir  string `json:"run_dir"`
			}{}
			if err := json.Unmarshal([]byte(lastLine(r.stdout)), &end); err != nil || end.Outcome != "rolled_back" {
				t.Fatalf("%v: %s", err, lastLine(r.stdout))
			}
			start := time.Now()
			within(t, 15*time.Second, "the service works as before", func() bool { return deploy(t, "verify").code == 0 })
			t.Logf("exit 5 after %.1f s, and verified %.1f s later", r.took.Seconds(), time.Since(start).Seconds())
			// In any order: where the service was away the VIP may have moved.
			byTarget := func(a, b change) int { return strings.Compare(a.Target, b.Target) }
			slices.SortFunc(before, byTarget)
			after := planned(t, "-f", file)
			if slices.SortFunc(after, byTarget); !slices.Equal(after, before) {
				t.Errorf("the plan was %v and is %v", before, after)
			}
			planIsEmpty(t)
			if kept := shell(t, "jump", "cat "+end.RunDir+"/*/ftp-transcript.txt "+end.RunDir+"/*/journal.txt"); !strings.Contains(kept, "> EPSV") {
				t.Errorf("evidence: %s", tail(kept))
			}
		})
	}
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
