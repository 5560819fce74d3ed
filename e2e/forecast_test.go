package e2e

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// uploads is how many clients are in the middle of an upload while something is
// changed: each has a session and a transfer open.
const uploads = 3

// impact is what a run says it will cost, or did.
type impact struct {
	Sessions, Transfers, Cut int
	VIPMoves                 int `json:"vip_moves"`
	Seconds                  float64
}

// forecastIsFact changes one thing after another while clients upload, and holds
// what the plan foretold against what became of them.
func forecastIsFact(t *testing.T) {
	edits := []string{
		// An upload holds its passive port, which a test of every port then waits for in vain.
		"  target = vip.ftp\n", "  target = vip.ftp\n  every_port = false\n",
		"  target = lb_group.ftp.standby\n", "  target = lb_group.ftp.standby\n  every_port = false\n",
	}
	var newer, bigger []string // the edits of version and memory
	password := shell(t, "jump", `printf %s "$FTPDEPLOY_VAR_ftp_password"`)
	given := password
	apply := func(t *testing.T, args ...string) result {
		t.Helper()
		return onEnv(t, "jump", []string{"FTPDEPLOY_VAR_ftp_password=" + given}, append([]string{ftpdeploy, "apply", "--yes", "--json", "-f", variant(t, slices.Concat(edits, newer, bigger)...)}, args...)...).must(t)
	}
	var table []string
	for _, c := range []struct {
		name     string
		by       func(t *testing.T) []string // makes the edit, and returns further arguments
		effects  []string                    // those of the plan, but none
		cut      int                         // uploads
		vipMoves int
	}{
		{"both boxes reloaded", func(*testing.T) []string {
			edits = append(edits, `client  = "2h"`, `client  = "3h"`)
			return nil
		}, []string{"reload", "reload"}, 0, 0},
		{"pod replaced", func(*testing.T) []string {
			edits = append(edits, `  namespace = "ftp"`, "  namespace = \"ftp\"\n  live_settings = true")
			return nil
		}, []string{"reload", "rollout"}, uploads, 0},
		{"password changed live", func(*testing.T) []string {
			given = "rotated-" + password
			return nil
		}, []string{"reload"}, 0, 0},
		{"package upgraded", func(t *testing.T) []string {
			newer = []string{"  haproxy {\n", "  haproxy {\n    version = \"" + offerHAProxy(t) + "\"\n"}
			return []string{"--drain", "cut"}
		}, []string{"restart", "restart", "restart"}, uploads, 1},
		{"boxes rebooted", func(*testing.T) []string {
			bigger = []string{`memory   = "512MiB"`, `memory   = "768MiB"`}
			return []string{"--drain", "cut", "--allow", "both-boxes"}
		}, []string{"reboot", "restart", "reboot"}, uploads, 1},
		{"box made anew", func(t *testing.T) []string {
			newer = nil // it would not find it
			has, _ := holder(t)
			return []string{"--replace", "lb." + has}
		}, []string{"replace"}, uploads, 1},
	}[:times(3, 6)] {
		t.Run(c.name, func(t *testing.T) {
			stop := upload(t, given)
			defer stop()
			r := apply(t, c.by(t)...)
			var effects []string
			for _, e := range events(t, r.stdout) {
				if e.Type == "plan.change" && e.Effect != "none" {
					effects = append(effects, e.Effect)
				}
			}
			var end struct{ Forecast, Actual *impact }
			if err := json.Unmarshal([]byte(lastLine(r.stdout)), &end); err != nil || end.Forecast == nil || end.Actual == nil {
				t.Fatalf("no forecast, or nothing measured (%v): %s", err, lastLine(r.stdout))
			}
			f, a := *end.Forecast, *end.Actual
			if !slices.Equal(effects, c.effects) {
				t.Errorf("effects %v, want %v", effects, c.effects)
			}
			if f.Sessions != uploads || f.Transfers != uploads {
				t.Errorf("the plan saw %d sessions and %d transfers, and %d of each were open", f.Sessions, f.Transfers, uploads)
			}
			if f.Cut != 2*c.cut || a.Cut != 2*c.cut {
				t.Errorf("%d connections were to be cut and %d were measured, want %d", f.Cut, a.Cut, 2*c.cut)
			}
			if f.VIPMoves != c.vipMoves || a.VIPMoves != c.vipMoves {
				t.Errorf("the VIP was to move %d times and moved %d times, want %d", f.VIPMoves, a.VIPMoves, c.vipMoves)
			}
			// The clients know best. One whose box is gone finds out at its next write.
			within(t, 30*time.Second, fmt.Sprintf("%d uploads go on", uploads-c.cut), func() bool { return uploading(t) == uploads-c.cut })
			// A machine that does other things beside is slow in its own way.
			// The proof of a new machine may wait a minute for a port that a cut session keeps.
			if off := math.Abs(f.Seconds - a.Seconds); off > max(3, 0.3*a.Seconds) && times(0, 1) == 1 && c.name != "box made anew" {
				t.Errorf("it was to take %.1f s and took %.1f s", f.Seconds, a.Seconds)
			}
			table = append(table, fmt.Sprintf("%-22s %-24s sessions %d, forecast %d   cut %d, forecast %d   VIP moves %d, forecast %d   %5.1f s, forecast %.1f s",
				c.name, strings.Join(effects, "+"), uploads, f.Sessions, a.Cut, f.Cut, a.VIPMoves, f.VIPMoves, a.Seconds, f.Seconds))
		})
	}
	t.Log("what was foretold and what happened, with 3 uploads open:\n" + strings.Join(table, "\n"))
	for _, box := range []string{boxA, boxB} {
		shell(t, box, `rm -rf /var/local/newer /etc/apt/sources.list.d/newer.list`)
	}
	edits, newer, given = nil, nil, password // the machines in a run of their own
	apply(t)
	deploy(t, "apply", "--yes", "--allow", "both-boxes", "--drain", "cut").must(t)
	planIsEmpty(t)
	shell(t, "client", `cd ~/uploads; printf 'machine %s login partner password %s\n' `+vip+` "$FTPDEPLOY_VAR_ftp_password" > netrc
		for p in *.pid; do curl -sS --netrc-file netrc --max-time 20 ftp://`+vip+`/ -Q "-DELE upload${p%.pid}" >/dev/null; done; rm -r ~/uploads`)
}

// upload begins uploads that go on until they are cut, or stopped.
func upload(t *testing.T, password string) (stop func()) {
	t.Helper()
	netrc := filepath.Join(t.TempDir(), "netrc")
	if err := os.WriteFile(netrc, fmt.Appendf(nil, "machine %s login partner password %s\n", vip, password), 0o600); err != nil {
		t.Fatal(err)
	}
	shell(t, "client", `mkdir -p ~/uploads; cp `+netrc+` ~/uploads/netrc; cd ~/uploads; rm -f *.pid
		for i in `+strings.Trim(fmt.Sprint(numbers(uploads)), "[]")+`; do
			setsid sh -c 'echo $$ > $0.pid; exec curl -sS --netrc-file netrc --limit-rate 20k -T /dev/zero ftp://`+vip+`/upload$0' $i > $i.log 2>&1 < /dev/null &
		done`)
	within(t, 30*time.Second, "the uploads are under way", func() bool {
		return strings.TrimSpace(shell(t, "client", `ss -Htn state established "( dst `+vip+` )" | wc -l`)) == fmt.Sprint(2*uploads)
	})
	return func() {
		shell(t, "client", `cd ~/uploads; for p in *.pid; do kill $(cat $p) 2>/dev/null || :; done`)
		within(t, 30*time.Second, "nothing is open any more", func() bool {
			return shell(t, "client", `ss -Htn state established "( dst `+vip+` )"`) == ""
		})
	}
}

func numbers(n int) []int {
	var all []int
	for i := range n {
		all = append(all, i+1)
	}
	return all
}

// uploading is how many of the uploads still have their data connection, as the
// client sees it.
func uploading(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(shell(t, "client", `ss -Htn state established "( dst `+vip+` and dport != :21 )" | wc -l`))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
