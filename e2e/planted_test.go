package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// planted is a fault, and the change that meets it.
type planted struct {
	name  string
	texts []string // of the blueprint, in pairs: what stands there, and what instead
	env   []string
	args  []string // of apply
	plant func(t *testing.T)
	mend  func(t *testing.T)
	says  string // in what the failed run said
	kept  string // file of the evidence, and
	holds string // what stands in it
	long  bool   // in the long form only
}

// certainty is how soon after the failure the former service must be proven.
const certainty = 15 * time.Second

var plantedFaults = []planted{
	{
		name: "wrong NodePort", long: true,
		texts: []string{`node_port = 30021`, `node_port = 30022`},
		plant: onWorkers("drop-port", "30022"), mend: onWorkers("undrop-port", "30022"),
		says: "the box does not serve", kept: "haproxy-*/ftp-transcript.txt", holds: "connected to",
	},
	{
		name:  "wrong PASV address",
		texts: []string{`vsftpd:lab"`, `vsftpd:other-address"`},
		says:  "the server announces 192.0.2.99, clients need 203.0.113.15", kept: "kubernetes-vsftpd/vsftpd-*.log", holds: "passive 192.0.2.99:21100-21110",
	},
	{
		name: "firewall drop of one port", long: true,
		texts: []string{`"21100-21110"`, `"21100-21111"`},
		plant: onWorkers("drop-port", "32111"), mend: onWorkers("undrop-port", "32111"),
		says: "every port: ", kept: "haproxy-*/ftp-transcript.txt", holds: "> EPSV",
	},
	{
		name:  "bad image",
		texts: []string{`vsftpd:lab"`, `vsftpd:none"`, `client  = "2h"`, `client  = "3h"`},
		says:  "vsftpd:none", kept: "kubernetes-vsftpd/events.txt", holds: "vsftpd:none",
	},
	{
		name: "an image that crashes", long: true,
		texts: []string{`vsftpd:lab"`, `vsftpd:crash"`},
		says:  "last log line: this image is broken", kept: "kubernetes-vsftpd/vsftpd-*.log", holds: "this image is broken",
	},
	{
		name: "unwritable volume", long: true,
		texts: []string{`volume "home" {`, "node_selector = { \"kubernetes.io/hostname\" = \"worker-3\" }\n  tolerations   = [{ operator = \"Exists\" }]\n\n  volume \"home\" {"},
		plant: func(t *testing.T) {
			byHand(t, "taint", "worker-3")
			shell(t, "worker-3", "mount -o remount,bind,ro /srv")
		},
		mend: func(t *testing.T) {
			shell(t, "worker-3", "mount -o remount,bind,rw /srv")
			byHand(t, "untaint", "worker-3")
		},
		says: "Read-only file system", kept: "kubernetes-vsftpd/vsftpd-*.log", holds: "Read-only file system",
	},
	{
		name: "wrong VIP mask", long: true,
		texts: []string{`virtual_router  = 51`, "virtual_router  = 51\n  prefix          = 23"},
		// A partner behind a router, which is jump here. With this mask the boxes take
		// the partner for a neighbour, and no neighbour answers.
		plant: func(t *testing.T) {
			shell(t, "jump", `sysctl -qw net.ipv4.conf.all.arp_ignore=1; ip addr add 203.0.112.10/32 dev lo; ip route add `+vip+`/32 dev frontend src 203.0.112.10`)
			onBoxes("ip route add 203.0.112.0/22 via 203.0.113.10")(t)
		},
		mend: func(t *testing.T) {
			onBoxes("ip route del 203.0.112.0/22")(t)
			shell(t, "jump", `ip route del `+vip+`/32; ip addr del 203.0.112.10/32 dev lo; sysctl -qw net.ipv4.conf.all.arp_ignore=0`)
		},
		says: "pasv connect: connect to " + vip, kept: "smoke/end-to-end.txt", holds: "pasv connect",
	},
	{
		name: "VRID clash", long: true,
		texts: []string{`virtual_router  = 51`, `virtual_router  = 52`},
		plant: otherPair, mend: noOtherPair,
		says: "no box holds vip", kept: "smoke/end-to-end.txt", holds: "pasv connect",
	},
	{
		name:  "wrong password",
		texts: []string{`vsftpd:lab"`, `vsftpd:other-password"`},
		env:   []string{"FTPDEPLOY_VAR_ftp_password=a-new-one-for-the-partner"},
		says:  "530 Login incorrect", kept: "smoke/end-to-end.txt", holds: "530 Login incorrect",
	},
	{
		name:  "full disk",
		texts: []string{`client  = "2h"`, `client  = "3h"`},
		// The holder of the VIP is changed last: what is done by then goes back too.
		plant: func(t *testing.T) {
			has, _ := holder(t)
			shell(t, has, `cp -a /etc/haproxy /root/full; mount -t tmpfs -o size=64k,mode=755 full /etc/haproxy; cp -a /root/full/. /etc/haproxy
				! dd if=/dev/zero of=/etc/haproxy/fill bs=4k 2>/dev/null`)
		},
		mend: onBoxes("if mountpoint -q /etc/haproxy; then umount /etc/haproxy; rm -r /root/full; fi"),
		says: "No space left on device", kept: "haproxy-*/haproxy.cfg", holds: "timeout client 2h",
	},
	{
		name: "dead node list", long: true,
		texts: []string{`["198.51.100.21", "198.51.100.22", "198.51.100.23"]`, `["198.51.100.98", "198.51.100.99"]`},
		says:  "the box does not serve", kept: "haproxy-*/haproxy.cfg", holds: "198.51.100.98",
	},
	{
		name: "1 s timeouts", long: true,
		texts: []string{`client  = "2h"`, `client  = "1s"`, `server  = "2h"`, `server  = "1s"`, `  upload = "1MiB"`, "  upload = \"1MiB\"\n  timeout = \"20s\"\n  long_idle = \"3s\""},
		says:  "pasv long transfer", kept: "smoke/end-to-end.txt", holds: "pasv long transfer",
	},
	{
		name:  "haproxy does not start",
		texts: []string{`hard_stop_after = "4h"`, "hard_stop_after = \"4h\"\n    extra_global = \"stats socket /nonexistent/x.sock\""},
		says:  "configuration was not loaded", kept: "haproxy-*/journal.txt", holds: "/nonexistent/x.sock",
	},
}

// onWorkers makes a fault, or mends it, on every worker.
func onWorkers(fault, port string) func(*testing.T) {
	return func(t *testing.T) {
		for _, worker := range []string{"worker-1", "worker-2", "worker-3"} {
			lab(t, "fault", fault, worker, port)
		}
	}
}

func onBoxes(script string) func(*testing.T) {
	return func(t *testing.T) {
		for _, box := range []string{boxA, boxB} {
			shell(t, box, script)
		}
	}
}

// otherPair has the client speak as the better member of a virtual router 52 that
// carries our VIP too, as a pair does that was made from a copy of the configuration.
// It keeps the address to itself, so that only the number clashes.
func otherPair(t *testing.T) {
	shell(t, "client", `cat >"$HOME/keepalived.conf" <<'END'
global_defs {
    vrrp_version 3
}
vrrp_instance other {
    interface frontend
    state BACKUP
    virtual_router_id 52
    priority 250
    advert_int 0.5
    unicast_src_ip 203.0.113.50
    unicast_peer {
        203.0.113.11
        203.0.113.12
    }
    virtual_ipaddress {
        203.0.113.15/32 dev lo
    }
}
END
sysctl -qw net.ipv4.conf.all.arp_ignore=1
cd "$HOME"
keepalived -l -f "$HOME/keepalived.conf" -p "$HOME/keepalived.pid" -r "$HOME/vrrp.pid" -c "$HOME/checkers.pid"`)
	within(t, 10*time.Second, "the other pair speaks", func() bool {
		return strings.Contains(shell(t, "client", "ip -br -4 addr show lo"), vip)
	})
}

func noOtherPair(t *testing.T) {
	shell(t, "client", `kill $(cat "$HOME/keepalived.pid")`)
	within(t, 10*time.Second, "the other pair is gone", func() bool {
		return !strings.Contains(shell(t, "client", "ip -br -4 addr show lo"), vip)
	})
	shell(t, "client", "sysctl -qw net.ipv4.conf.all.arp_ignore=0")
}

// failedChange plants fault after fault: each run ends with 5, what worked before is
// proven to work again in time, the evidence is there, and the next plan is the one before.
func failedChange(t *testing.T) {
	var table []string
	for _, f := range plantedFaults {
		if f.long && times(0, 1) == 0 {
			continue
		}
		if !t.Run(f.name, func(t *testing.T) { table = append(table, f.run(t)) }) {
			break // the next one needs a deployment that works
		}
	}
	t.Log("ended with 5, seconds until then, and from the failure until the former service was proven:\n" + strings.Join(table, "\n"))
}

func (f planted) run(t *testing.T) string {
	if f.plant != nil {
		f.plant(t)
	}
	file := variant(t, f.texts...)
	ftp := func(args ...string) result {
		return onEnv(t, "jump", f.env, append([]string{ftpdeploy, "-f", file}, args...)...)
	}
	before := sorted(t, ftp("plan", "--json"))
	if len(before) == 0 {
		t.Fatal("the blueprint's text was not replaced: nothing is planned")
	}
	r := ftp(append([]string{"apply", "--yes", "--json"}, f.args...)...).exits(t, 5).says(t, f.says)
	failed, proven, dir := ending(t, r)
	if proven.IsZero() || proven.Sub(failed) > certainty {
		t.Errorf("failed at %s, proven again at %s: want at most %s\n%s", failed, proven, certainty, r.stdout)
	}
	if after := sorted(t, ftp("plan", "--json")); !slices.Equal(after, before) {
		t.Errorf("the plan was %v and is %v", before, after)
	}
	if kept := shell(t, "jump", "cat "+filepath.Join(dir, f.kept)); !strings.Contains(kept, f.holds) {
		t.Errorf("%s does not say %q: %s", f.kept, f.holds, tail(kept))
	}
	if f.mend != nil {
		f.mend(t)
	}
	start := time.Now()
	deploy(t, "verify").must(t)
	planIsEmpty(t)
	line := fmt.Sprintf("%-28s %5.1f s %5.1f s", f.name, r.took.Seconds(), proven.Sub(failed).Seconds())
	t.Logf("%s; verified by the former blueprint %.1f s later", line, time.Since(start).Seconds())
	return line
}

// sorted is what plan --json planned, in no order: where the service was away the
// VIP may have moved, and the boxes' turns with it.
func sorted(t *testing.T, r result) []change {
	t.Helper()
	var all []change
	for _, e := range events(t, r.must(t).stdout) {
		if e.Type == "plan.change" {
			all = append(all, e.change)
		}
	}
	slices.SortFunc(all, func(a, b change) int { return strings.Compare(a.Target, b.Target) })
	return all
}

// ending is when a run failed, when it had proven the former service, and where its
// records are.
func ending(t *testing.T, r result) (failed, proven time.Time, dir string) {
	t.Helper()
	for _, e := range events(t, r.stdout) {
		fault := e.Type == "action.end" && e.Outcome == "failed" || e.Type == "step.end" && e.Outcome == "failed" || e.Type == "smoke.check" && !e.OK
		switch {
		case fault && failed.IsZero():
			failed = e.TS
		case e.Type == "rollback.end" && e.Address == "smoke" && e.Outcome == "done":
			proven = e.TS
		case e.Type == "run.end":
			dir = e.RunDir
			if e.Outcome != "rolled_back" {
				t.Errorf("the run's outcome is %q", e.Outcome)
			}
		}
	}
	if _, err := os.Stat(dir); err != nil {
		t.Errorf("the run's directory: %v", err)
	}
	return failed, proven, dir
}

// failedFirst deploys something broken where nothing is: nothing is left of it.
func failedFirst(t *testing.T) {
	file := variant(t, `hard_stop_after = "4h"`, "hard_stop_after = \"4h\"\n    extra_global = \"stats socket /nonexistent/x.sock\"")
	before := sorted(t, deploy(t, "plan", "--json", "-f", file))
	r := deploy(t, "apply", "--yes", "--json", "-f", file).exits(t, 5).says(t, "rolled back, and as before: ")
	for what, left := range map[string]string{"VMs": byHand(t, "vms"), "rules and groups": byHand(t, "rules"), "objects in the cluster": byHand(t, "objects")} {
		if left != "" {
			t.Errorf("%s left: %s", what, left)
		}
	}
	if after := sorted(t, deploy(t, "plan", "--json", "-f", file)); !slices.Equal(after, before) {
		t.Errorf("the plan was %v and is %v", before, after)
	}
	t.Logf("a first deployment failed and left nothing, %.1f s", r.took.Seconds())
}
