package e2e

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestMainJob is the life of a deployment, in the order in which its users live
// it: each part stands on the one before.
func TestMainJob(t *testing.T) {
	parts := []struct {
		name string
		run  func(*testing.T)
	}{
		{"plan on the empty lab writes nothing", emptyPlan},
		{"demo applies and transfers", demo},
		{"demo again changes nothing", demoAgain},
		{"plan after apply is empty", planIsEmpty},
		{"a plan only looks", plansOnlyLook},
		{"no Python on the boxes", noPython},
		{"a no-op plan is cheap", cheapPlan},
		{"clients put, list and get", clients},
		{"status says what runs", statusSays},
		{"a broken standby is found while the VIP works", standbyBroken},
		{"every path is proven, and a blocked one named", pathMatrix},
		{"doctor names what is planted", doctorNames},
		{"doctor explains a managed load balancer", managedBalancer},
		{"traffic goes on", trafficGoesOn},
		{"a second service comes and goes under traffic", neighbourComesAndGoes},
		{"what is foretold happens", forecastIsFact},
		{"reloads refuse nobody", reloadStorm},
		{"throughput", throughput},
		{"secrets are nowhere", secretsAreNowhere},
		{"canaries are nowhere", canariesAreNowhere},
		{"FTPS", ftps},
		{"a dark site is left out", siteDown},
		{"drift is named and repaired", drift},
		{"a saved plan is what runs", savedPlan},
		{"a plan is exactly what is done", accuracy},
		{"reloads keep sessions and their nodes", reloadKeeps},
		{"a box is drained and resumes", drainAndResume},
		{"drills are as the prober sees them", drills},
		{"drills are refused, or end by themselves", drillsRefused},
		{"a stun moves nothing, and a box without nodes loses the VIP", stunAndCutOff},
		{"of two masters one stays, and is found", mastersMeetAgain},
		{"an upgrade drains", upgradeDrains},
		{"reboots drain", rebootsDrain},
		{"edits between plan and apply are not overwritten", foreignEdits},
		{"edits while apply acts are not overwritten", editsMeanwhile},
		{"what is not as predicted is said", notAsPredicted},
		{"what the blueprint has no more goes", removed},
		{"a box is made anew on demand", replaced},
		{"what is not ours is refused", refused},
		{"what others made is adopted", adopted},
		{"a failed change goes back", failedChange},
		{"a box goes back when the jump host is gone", jumpHostKilled},
		{"peers go away in the middle of an apply", peersGoAway},
		{"history goes back", historyGoesBack},
		{"the VIP survives its holder", failover},
		{"lost machines are rebuilt", rebuild},
		{"destroy leaves nothing but data", destroy},
		{"a failed first deployment leaves nothing", failedFirst},
	}
	for _, p := range parts {
		if !t.Run(p.name, p.run) {
			t.FailNow()
		}
	}
}

// writes is what vCenter and the API server were made to change, as the lab saw it.
func writes(t *testing.T) []string {
	t.Helper()
	return slices.DeleteFunc(strings.Split(lab(t, "writes"), "\n"), func(s string) bool { return s == "" })
}

func emptyPlan(t *testing.T) {
	before := writes(t)
	r := deploy(t, "plan", "--detailed-exitcode").exits(t, 2)
	r.says(t, boxA, boxB, "placement/", "/etc/haproxy/haproxy.cfg", "/etc/keepalived/keepalived.conf", "kubernetes/vsftpd", "Plan:")
	if after := writes(t); len(after) != len(before) {
		t.Errorf("plan wrote: %v", after[len(before):])
	}
	t.Logf("0 writes; %s", lastLine(r.stdout))
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// runDemo runs what make demo runs.
func runDemo(t *testing.T) string {
	t.Helper()
	start := time.Now()
	out, err := exec.CommandContext(t.Context(), filepath.Join(root, "e2e/demo.sh")).CombinedOutput()
	if err != nil {
		t.Fatalf("demo: %v\n%s", err, out)
	}
	t.Logf("demo took %.1f s", time.Since(start).Seconds())
	return string(out)
}

func demo(t *testing.T) {
	out := runDemo(t)
	for _, text := range []string{"PASS", "a passive-FTP transfer went through the VIP " + vip} {
		if !strings.Contains(out, text) {
			t.Errorf("demo does not say %q:\n%s", text, out)
		}
	}
}

func demoAgain(t *testing.T) {
	before := writes(t)
	if out := runDemo(t); !strings.Contains(out, "No changes") {
		t.Errorf("the second demo changes something:\n%s", out)
	}
	if after := writes(t); len(after) != len(before) {
		t.Errorf("the second demo wrote: %v", after[len(before):])
	}
}

func planIsEmpty(t *testing.T) {
	deploy(t, "plan", "--detailed-exitcode").exits(t, 0).says(t, "No changes")
}

// noPython takes Python away: from here on the boxes are kept without it.
func noPython(t *testing.T) {
	for _, box := range []string{boxA, boxB} {
		shell(t, box, `for p in /usr/bin/python3*; do mv "$p" "/root/${p##*/}"; done; ! command -v python3`)
	}
	planIsEmpty(t)
}

func cheapPlan(t *testing.T) {
	var plan, ssh, vc, api []float64
	turns := math.MaxInt // of the plan with the fewest: what crosses on the line is counted twice
	var size int64
	for range 5 {
		r := deploy(t, "plan", "--json").must(t)
		plan = append(plan, r.took.Seconds())
		most := 0
		for _, e := range events(t, r.stdout) {
			if e.Type == "observe.target" && e.Kind == "host" {
				most, size = max(most, e.Turns), max(size, e.BytesIn+e.BytesOut)
			}
		}
		turns = min(turns, most)
		ssh = append(ssh, on(t, "jump", "sh", "-c", `exec ssh -o BatchMode=yes -o UserKnownHostsFile="$HOME/e2e_known_hosts" `+
			`-o StrictHostKeyChecking=accept-new -i "$FTPDEPLOY_LAB_KEY" ansible@192.0.2.11 true`).must(t).took.Seconds())
		start := time.Now()
		byHand(t, "login")
		vc = append(vc, time.Since(start).Seconds())
		start = time.Now()
		byHand(t, "get-version")
		api = append(api, time.Since(start).Seconds())
	}
	if turns == 0 || turns > 12 {
		t.Errorf("a no-op plan takes %d network turns a host, want 1 to 12", turns)
	}
	if size == 0 || size > 16<<10 {
		t.Errorf("a no-op plan moves %d bytes a host, want at most 16 KiB", size)
	}
	sum := median(ssh) + median(vc) + median(api)
	t.Logf("no-op plan: median %.2f s; ssh true %.2f s + vCenter login %.2f s + API read %.2f s = %.2f s; ratio %.2f; %d turns and %.1f KiB a host",
		median(plan), median(ssh), median(vc), median(api), sum, median(plan)/sum, turns, float64(size)/1024)
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// clients moves 100 files, half with lftp and half with curl, from two
// addresses, each put, listed and got, and counts the passive ports.
func clients(t *testing.T) {
	const script = `
cd "$HOME"; umask 077
printf 'machine %s login partner password %s\n' "$VIP" "$FTPDEPLOY_VAR_ftp_password" > .netrc
head -c 100000 /dev/urandom > data
export LFTP_PASSWORD=$FTPDEPLOY_VAR_ftp_password
ok=0
for i in $(seq 25); do
  for from in 203.0.113.50 203.0.113.51; do
    rm -f back
    if lftp --env-password -u partner "ftp://$VIP" -e "debug -o $HOME/lftp.log 9; set net:socket-bind-ipv4 $from; set ftp:prefer-epsv false
        set net:timeout 10; set net:max-retries 1; set cmd:fail-exit true; put data -o l$i; cls l$i; get l$i -o back; rm l$i; bye" > lftp.out &&
       grep -q "l$i" lftp.out && cmp -s data back; then ok=$((ok+1)); fi
    rm -f back
    if curl -sS -v --netrc --interface $from --disable-epsv --max-time 20 -T data "ftp://$VIP/c$i" 2>> curl.log &&
       curl -sS -v --netrc --interface $from --max-time 20 -l "ftp://$VIP/" 2>> curl.log | grep -q "^c$i" &&
       curl -sS -v --netrc --interface $from --max-time 20 "ftp://$VIP/c$i" -Q "-DELE c$i" -o back 2>> curl.log && cmp -s data back; then ok=$((ok+1)); fi
  done
done
echo "$ok"`
	start := time.Now()
	if got := strings.TrimSpace(onEnv(t, "client", []string{"VIP=" + vip}, "bash", "-uc", script).must(t).stdout); got != "100" {
		t.Errorf("%s of 100 files were put, listed and got\n%s", got, tail(shell(t, "client", `tail -n 40 ~/lftp.log ~/curl.log`)))
	}
	took := time.Since(start)
	logs := shell(t, "client", `cat ~/lftp.log ~/curl.log`)
	seen := map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)(?:Entering Passive Mode \(203,0,113,15,(\d+),(\d+)\)|Entering Extended Passive Mode \(\|\|\|(\d+)\|\))`).FindAllStringSubmatch(logs, -1) {
		port := m[3]
		if port == "" {
			var hi, lo int
			if _, err := fmt.Sscan(m[1], &hi); err != nil {
				t.Fatal(err)
			}
			if _, err := fmt.Sscan(m[2], &lo); err != nil {
				t.Fatal(err)
			}
			port = fmt.Sprint(hi<<8 | lo)
		}
		seen[port]++
	}
	if len(seen) != passives {
		t.Errorf("data took %d passive ports, want %d: %v", len(seen), passives, seen)
	}
	config := shell(t, boxA, `cat /etc/haproxy/haproxy.cfg`)
	if !strings.Contains(config, "stick") {
		t.Error("haproxy.cfg has no sticky data path")
	}
	if env := byHand(t, "pod-env", "PASV_PROMISCUOUS"); env != "NO" {
		t.Errorf("PASV_PROMISCUOUS is %q in the pod, want NO", env)
	}
	t.Logf("100 of 100 files put, listed, got and compared in %.1f s by lftp and curl from two addresses, pasv_promiscuous=NO; data connections by port: %v", took.Seconds(), seen)
}

func tail(s string) string {
	if len(s) > 4000 {
		return s[len(s)-4000:]
	}
	return s
}

// secretsAreNowhere greps the output of the talkative commands for the password.
func secretsAreNowhere(t *testing.T) {
	password := strings.TrimSpace(on(t, "jump", "printenv", "FTPDEPLOY_VAR_ftp_password").must(t).stdout)
	sudo := strings.TrimSpace(on(t, "jump", "printenv", "FTPDEPLOY_LAB_SUDO_PASSWORD").must(t).stdout)
	byHand(t, "secret", "FTP_PASS", "canary-by-hand")
	plan := deploy(t, "plan", "-vv", "--json").must(t)
	render := deploy(t, "render", "--to", "/tmp/e2e-render").must(t)
	rendered := on(t, "jump", "sh", "-c", "cat $(find /tmp/e2e-render -type f); rm -r /tmp/e2e-render").must(t)
	apply := deploy(t, "apply", "--yes", "-vv").must(t)
	boxes := shell(t, boxA, `cat /var/log/*.log 2>/dev/null | tr -d "\\0"; journalctl --no-pager; find /var/lib/ftpdeploy /etc/haproxy /etc/keepalived -type f -exec cat {} +`)
	for _, secret := range []string{password, sudo, "canary-by-hand"} {
		for where, text := range map[string]string{
			"plan": plan.stdout + plan.stderr, "render": render.stdout + rendered.stdout, "apply": apply.stdout + apply.stderr, boxA: boxes,
		} {
			if strings.Contains(text, secret) {
				t.Errorf("a secret is in what %s shows", where)
			}
		}
	}
}

// drift changes one thing at a time by hand: the plan names it and only it, and
// apply repairs it.
func drift(t *testing.T) {
	for _, d := range []struct {
		name   string
		by     func(t *testing.T)
		target string // part of the only targets that may be planned
		who    string // drift says who did it; "" = nobody can know
	}{
		{"haproxy.cfg edited", func(t *testing.T) { shell(t, boxA, `sed -i 's/^\(\s*maxconn\).*/\1 17/' /etc/haproxy/haproxy.cfg`) }, "haproxy", "root"},
		{"service stopped", func(t *testing.T) { shell(t, boxB, `systemctl stop haproxy`) }, "haproxy", ""},
		{"sysctl changed", func(t *testing.T) { shell(t, boxB, `sysctl -qw net.ipv4.ip_nonlocal_bind=0`) }, "ip_nonlocal_bind", ""},
		{"VM memory changed", func(t *testing.T) {
			byHand(t, "vm-memory", boxB, "768")
			booted(t, boxB)
		}, boxB, strings.TrimSpace(on(t, "jump", "printenv", "GOVC_USERNAME").must(t).stdout)},
		{"NodePort changed", func(t *testing.T) { byHand(t, "node-port", "21104", "31999") }, "Service", "kubectl-edit"},
		{"Secret changed", func(t *testing.T) { byHand(t, "secret", "FTP_PASS", "changed-by-hand") }, "Secret", "kubectl-edit"},
	} {
		t.Run(d.name, func(t *testing.T) {
			d.by(t)
			changes := planned(t)
			if len(changes) == 0 {
				t.Fatal("the plan does not see it")
			}
			steps, causes := map[string]bool{}, map[string]bool{}
			for _, c := range changes {
				steps[c.Address] = true
				guard := strings.HasSuffix(c.Target, ":generation") || strings.HasSuffix(c.Target, ":proof")
				if !guard && !strings.Contains(strings.ToLower(c.Target), strings.ToLower(d.target)) {
					t.Errorf("also planned: %+v", c)
				}
				causes[c.Reason.Kind] = true
				t.Logf("%s %s: %s (effect: %s)", c.Action, c.Target, c.Reason.Text, c.Effect)
			}
			if len(steps) != 1 {
				t.Errorf("one thing was changed, %d steps are planned: %v", len(steps), steps)
			}
			if !causes["drift"] || causes["blueprint"] {
				t.Errorf("the causes are said to be %v", causes)
			}
			driftSays(t, d.target, d.who)
			deploy(t, "apply", "--yes").must(t)
			planIsEmpty(t)
		})
	}
	deploy(t, "drift", "--detailed-exitcode").exits(t, 0).says(t, "No drift")
}

// driftSays holds drift to what was just done, by whom.
func driftSays(t *testing.T, target, who string) {
	t.Helper()
	r := deploy(t, "drift", "--detailed-exitcode", "--json").exits(t, 2)
	all := eventsOf[struct {
		Target, Path, Was, Now string
		By                     struct {
			Who, How string
			When     time.Time
		}
	}](t, r.stdout, "drift")
	for _, e := range all {
		if !strings.Contains(strings.ToLower(e.Target), strings.ToLower(target)) {
			t.Errorf("drift names %+v too", e)
		}
		if !strings.EqualFold(e.By.Who, who) && (who != "" || !strings.Contains(e.Target, "haproxy")) {
			t.Errorf("drift says that it was %q, want %q: %+v", e.By.Who, who, e)
		}
		if age := time.Since(e.By.When); who != "" && (age < -time.Minute || age > 5*time.Minute) {
			t.Errorf("drift says that it was %s ago: %+v", age, e)
		}
		t.Logf("drift: %s %s was %.20q, is %.20q, by %+v", e.Target, e.Path, e.Was, e.Now, e.By)
	}
	if len(all) == 0 {
		t.Errorf("drift names nothing:\n%s", r.stdout)
	}
}

// booted waits until a box that came up has its services and its addresses.
func booted(t *testing.T, box string) {
	t.Helper()
	within(t, time.Minute, box+" is up", func() bool {
		r := on(t, box, "sh", "-c", "systemctl is-active keepalived haproxy && systemctl is-system-running")
		return strings.Contains(r.stdout, "running") || strings.Contains(r.stdout, "degraded")
	})
}

// refused puts something foreign in the way: the plan names its holder and
// changes nothing.
func refused(t *testing.T) {
	t.Run("haproxy.cfg", func(t *testing.T) {
		shell(t, boxA, `cp -p /etc/haproxy/haproxy.cfg /root/ours.cfg; printf '# _version=7\nglobal\n' > /etc/haproxy/haproxy.cfg`)
		before := writes(t)
		deploy(t, "plan").exits(t, 1).says(t, "/etc/haproxy/haproxy.cfg", boxA, "_version=7", "FTP604")
		deploy(t, "apply", "--yes").exits(t, 1).says(t, "FTP604")
		if got := shell(t, boxA, `cat /etc/haproxy/haproxy.cfg`); got != "# _version=7\nglobal" {
			t.Errorf("the foreign file was touched: %q", got)
		}
		if after := writes(t); len(after) != len(before) {
			t.Errorf("something was changed: %v", after[len(before):])
		}
		shell(t, boxA, `mv /root/ours.cfg /etc/haproxy/haproxy.cfg`)
		deploy(t, "apply", "--yes").must(t)
	})
	t.Run("VM", func(t *testing.T) {
		byHand(t, "vm-destroy", boxB)
		byHand(t, "vm-foreign", boxB)
		before := writes(t)
		deploy(t, "plan").exits(t, 1).says(t, boxB, "not ours")
		deploy(t, "apply", "--yes").exits(t, 1)
		if after := writes(t); len(after) != len(before) {
			t.Errorf("something was changed: %v", after[len(before):])
		}
		byHand(t, "vm-destroy", boxB)
		deploy(t, "apply", "--yes").must(t)
	})
	t.Run("NodePort", func(t *testing.T) {
		byHand(t, "node-port", "21104", "31999")
		byHand(t, "service-foreign", "32104")
		before := writes(t)
		deploy(t, "plan").exits(t, 1).says(t, "32104", "shop/checkout", "FTP502")
		deploy(t, "apply", "--yes").exits(t, 1).says(t, "shop/checkout")
		if after := writes(t); len(after) != len(before) {
			t.Errorf("something was changed: %v", after[len(before):])
		}
		byHand(t, "service-delete", "shop", "checkout")
		deploy(t, "apply", "--yes").must(t)
	})
	planIsEmpty(t)
}

// holder is the box that has the VIP.
func holder(t *testing.T) (has, other string) {
	t.Helper()
	boxes := []string{boxA, boxB}
	within(t, 30*time.Second, "exactly one box holds the VIP", func() bool {
		var holders []string
		for _, box := range boxes {
			if r := on(t, box, "ip", "-4", "-o", "addr", "show"); strings.Contains(r.stdout, vip+"/") {
				holders = append(holders, box)
			}
		}
		if len(holders) == 1 {
			has = holders[0]
		}
		return len(holders) == 1
	})
	for _, box := range boxes {
		if box != has {
			other = box
		}
	}
	return has, other
}

// failover breaks the holder of the VIP in four ways and measures the gap.
func failover(t *testing.T) {
	var table []string
	for _, f := range []struct {
		name   string
		breaks func(box string)
		mends  func(box string)
	}{
		{"haproxy killed", func(b string) {
			shell(t, b, `systemctl kill -s KILL --kill-whom=all haproxy || systemctl kill -s KILL --kill-who=all haproxy`)
		}, nil},
		{"keepalived killed", func(b string) { shell(t, b, `pkill -KILL keepalived`) }, nil},
		{"machine killed", func(b string) { lab(t, "fault", "vm-off", b) }, nil},
		{"frontend link cut", func(b string) { lab(t, "fault", "link-down", b, "frontend") }, func(b string) { lab(t, "fault", "link-up", b, "frontend") }},
	} {
		has, _ := holder(t)
		gap, failed, total := watch(t, 12, func() { f.breaks(has) })
		on(t, "client", "sh", "-c", `printf 'machine %s login partner password %s\n' 203.0.113.15 "$FTPDEPLOY_VAR_ftp_password" > ~/.netrc; chmod 600 ~/.netrc
			exec curl -sS --netrc --max-time 10 -l ftp://203.0.113.15/`).must(t)
		table = append(table, fmt.Sprintf("%-20s on %-10s gap %5.2f s   %3d of %d sessions failed", f.name, has, gap.Seconds(), failed, total))
		if gap > 5*time.Second {
			t.Errorf("%s: no session for %s", f.name, gap)
		}
		if f.mends != nil {
			f.mends(has)
		}
		deploy(t, "apply", "--yes").must(t)
		planIsEmpty(t)
	}
	t.Log("sessions through the VIP (connect, login, EPSV, LIST), one begun every 50 ms; gap = no session completed:\n" + strings.Join(table, "\n"))
}

// rebuild takes away machines, the namespace, all of it, and the home of the jump
// host each time: what has nothing but the blueprint and its environment plans
// what is gone and nothing else, and makes it again.
func rebuild(t *testing.T) {
	const namespace = "namespace ftp"
	losses := [][]string{{boxA}, {namespace}, {boxA, boxB, namespace}}
	if times(0, 1) > 0 {
		losses = append(losses, []string{boxA, boxB})
	}
	for _, lost := range losses {
		t.Run(strings.Join(lost, " and "), func(t *testing.T) {
			gone := map[string]bool{} // steps that may have something to do, or targets
			for _, what := range lost {
				if what == namespace {
					byHand(t, "namespace-delete", "ftp")
					gone["kubernetes/vsftpd"] = true
					continue
				}
				byHand(t, "vm-destroy", what)
				for _, step := range []string{"vm/" + what, "power/" + what, "host/" + what, "placement/ftp", what + ":history"} {
					gone[step] = true
				}
			}
			shell(t, "jump", `find "$HOME" -mindepth 1 -delete; [ -z "$(ls -A "$HOME")" ]`)
			var said []string
			for _, c := range planned(t) {
				said = append(said, c.Action+" "+c.Target)
				if !gone[c.Address] && !gone[c.Target] {
					t.Errorf("planned, and not gone: %+v", c)
				}
				if strings.HasPrefix(c.Address, "kubernetes/") && c.Action != "create" {
					t.Errorf("planned of a namespace that is gone: %+v", c)
				}
			}
			for _, what := range lost {
				if what == namespace {
					what = "PersistentVolumeClaim ftp/vsftpd-home"
				}
				if !slices.Contains(said, "create "+what) {
					t.Errorf("the plan does not say that %s is gone: %q", what, said)
				}
			}
			r := deploy(t, "apply", "--yes").must(t).says(t, "PASS")
			t.Logf("rebuilt by %d changes and proven in %.1f s", len(said), r.took.Seconds())
			planIsEmpty(t)
			if left := shell(t, "jump", `ls -A "$HOME"`); left != "" {
				t.Logf("ftpdeploy keeps on the jump host: %s", left)
			}
		})
	}
}

func destroy(t *testing.T) {
	deploy(t, "destroy", "--yes").must(t)
	if left := byHand(t, "vms"); left != "" {
		t.Errorf("VMs left: %s", left)
	}
	if left := byHand(t, "rules"); left != "" {
		t.Errorf("rules and groups left: %s", left)
	}
	for o := range strings.Lines(byHand(t, "objects")) {
		if o = strings.TrimSpace(o); !strings.HasPrefix(o, "PersistentVolumeClaim/ftp/") && o != "Namespace//ftp" {
			t.Errorf("left in the cluster: %s", o)
		}
	}
	if kept := byHand(t, "objects"); !strings.Contains(kept, "PersistentVolumeClaim/ftp/") {
		t.Error("the user's data was deleted without being asked for")
	}
	deploy(t, "destroy", "--yes").must(t).says(t, "Nothing to remove")
	deploy(t, "destroy", "--yes", "--delete-data", "home").must(t)
	if left := byHand(t, "objects"); strings.TrimSpace(left) != "" {
		t.Errorf("left after --delete-data: %s", left)
	}
}

// TestUsageFromAnEmptyMachine holds the answers to wrong use.
func TestUsageFromAnEmptyMachine(t *testing.T) {
	dir := t.TempDir()
	c := exec.CommandContext(t.Context(), ftpdeploy, "plan", "--nonsense")
	c.Dir = dir
	c.Env = append(os.Environ(), "HOME="+dir)
	out, err := c.CombinedOutput()
	if err == nil || c.ProcessState.ExitCode() != 64 {
		t.Errorf("exit code %d, want 64: %s", c.ProcessState.ExitCode(), out)
	}
}
