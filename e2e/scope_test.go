package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// edited writes the lab's blueprint with edits: pairs of a regular expression
// and what stands in the place of what it matches.
func edited(t *testing.T, edits ...string) string {
	t.Helper()
	text, err := os.ReadFile(blueprint)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(edits); i += 2 {
		changed := regexp.MustCompile(edits[i]).ReplaceAll(text, []byte(edits[i+1]))
		if string(changed) == string(text) {
			t.Fatalf("the blueprint has no %q", edits[i])
		}
		text = changed
	}
	file := filepath.Join(t.TempDir(), "lab.ftp.hcl")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// secondService is another service, in a namespace of its own.
const secondService = `
ftp_service "second" {
  cluster   = cluster.lab
  vip       = vip.ftp
  namespace = "ftp-second"
  image     = "docker.io/ftpdeploy/vsftpd:lab"

  control {
    port      = 2121
    node_port = 30022
  }

  passive {
    ports           = "21200-21209"
    node_port_first = 32200
  }

  user "other" {
    password = var.ftp_password
  }

  volume "home" {
    size  = "1Gi"
    mount = "/home/vsftpd"
    keep  = true
  }
}
`

// withoutB takes lb "haproxy-b" out of the blueprint, with what names it.
var withoutB = []string{
	`(?s)lb "haproxy-b" .*?\n}\n`, "",
	`, lb.haproxy-b]`, "]",
	`(?s)smoke "standby" .*?\n}\n`, "",
}

// removed takes a service and a box out of the blueprint: they go, the data stay. The
// box holds the VIP; when it is back nobody who is in the middle of a transfer notices.
func removed(t *testing.T) {
	both := edited(t, `(?m)^# -+ proof`, secondService+"\n$0")
	deploy(t, "-f", both, "apply", "--yes").must(t).says(t, "PASS")

	one := edited(t, withoutB...)
	deploy(t, "-f", one, "apply", "--yes").exits(t, 1).says(t, "refused without --allow remove-box: haproxy-b")
	deploy(t, "-f", one, "plan").must(t).says(t, "removed/haproxy-b", "haproxy-b:smoke", "removed/lab.ftp-second", "lab.ftp-second:smoke", "not in the blueprint any more",
		"kept: PersistentVolumeClaim ftp-second/second-home")
	// Nothing is deleted before what stays is proven. Here it is not: the server forgets its
	// users when the box that stays has been changed. All that went is back.
	const users = "/etc/vsftpd/virtual_users.db"
	forgets := once("action.end", boxA+":proof", func() { onVsftpd(t, "busybox mv "+users+" "+users+".kept") })
	knows := once("action.end", boxB+":smoke", func() { onVsftpd(t, "busybox mv "+users+".kept "+users) })
	applying(t, one, func(e jsonEvent) { forgets(e); knows(e) }).exits(t, 5).says(t, "530 Login incorrect",
		"rolled back, and as before: removed/", ", host/haproxy-a, leaving/haproxy-b, placement/ftp")
	booted(t, boxB)
	deploy(t, "-f", both, "plan", "--detailed-exitcode").exits(t, 0)

	if has, _ := holder(t); has == boxA {
		deploy(t, "drain", boxA, "--yes").must(t)
		deploy(t, "resume", boxA, "--yes").must(t)
	}
	var gone result
	gap, _, _ := watch(t, 20, func() {
		gone = deploy(t, "-f", one, "apply", "--yes", "--allow", "remove-box").must(t).says(t, "PASS", "leaving/haproxy-b", "the VIP is away for 1.8 s")
	})
	if gap > 5*time.Second {
		t.Errorf("no session for %s while the box that held the VIP went", gap)
	}
	if vms := byHand(t, "vms"); strings.Contains(vms, boxB) {
		t.Errorf("%s is there: %s", boxB, vms)
	}
	left := slices.DeleteFunc(strings.Split(byHand(t, "objects"), "\n"), func(o string) bool { return !strings.Contains(o, "second") })
	if want := []string{"Namespace//ftp-second", "PersistentVolumeClaim/ftp-second/second-home"}; !slices.Equal(left, want) {
		t.Errorf("left of the service: %q, want %q", left, want)
	}
	deploy(t, "-f", one, "plan", "--detailed-exitcode").exits(t, 0).says(t, "No changes", "kept: PersistentVolumeClaim")

	stop := upload(t, shell(t, "jump", `printf %s "$FTPDEPLOY_VAR_ftp_password"`))
	again := deploy(t, "apply", "--yes", "--json", "--delete-data", "second/home", "--allow", "delete-data").must(t)
	if n := uploading(t); n != uploads {
		t.Errorf("%d of %d uploads go on", n, uploads)
	}
	stop()
	var end struct{ Forecast, Actual impact }
	if err := json.Unmarshal([]byte(lastLine(again.stdout)), &end); err != nil || end.Forecast.Cut+end.Forecast.VIPMoves+end.Actual.Cut+end.Actual.VIPMoves != 0 {
		t.Errorf("a box that is added cuts or moves something (%v): %+v", err, end)
	}
	if left := byHand(t, "objects"); strings.Contains(left, "second") {
		t.Errorf("left of the service: %s", left)
	}
	planIsEmpty(t)
	t.Logf("box and service removed in %.1f s, claim kept, gap %.1f s; box added again and claim deleted in %.1f s, 0 of %d uploads cut",
		gone.took.Seconds(), gap.Seconds(), again.took.Seconds(), uploads)
}

// replaced makes the standby anew although nothing differs: the other box and the
// sessions through the VIP are left alone.
func replaced(t *testing.T) {
	_, standby := holder(t)
	file := filepath.Join(t.TempDir(), "p.ftpplan")
	deploy(t, "plan", "--replace", "lb."+standby, "--out", file).must(t).says(t, "effect: replace", "--replace lb."+standby)
	keys := shell(t, standby, `cat /etc/ssh/ssh_host_ed25519_key.pub`)
	before := writes(t)
	var r result
	gap, failed, total := watchEvery(t, unhurried, patience, 30, func() { r = deploy(t, "apply", file).must(t).says(t, "PASS") })
	if failed > 0 {
		t.Errorf("%d of %d sessions failed while the box without the VIP was made anew", failed, total)
	}
	for _, w := range writes(t)[len(before):] {
		if strings.Contains(w, "haproxy-") && !strings.Contains(w, standby) {
			t.Errorf("also written: %s", w)
		}
	}
	if shell(t, standby, `cat /etc/ssh/ssh_host_ed25519_key.pub`) == keys {
		t.Error("the machine has the host keys of the one before it")
	}
	planIsEmpty(t)
	t.Logf("%s made anew in %.1f s; gap %.2f s, %d of %d sessions failed", standby, r.took.Seconds(), gap.Seconds(), failed, total)
}

// siteDown cuts a site off: without the flag the plan names it, with it the rest
// is repaired and proven, and nothing of the site is touched.
func siteDown(t *testing.T) {
	nics := []string{"frontend", "workload", "management"}
	for _, nic := range nics {
		lab(t, "fault", "link-cut", boxA, nic)
	}
	within(t, 30*time.Second, boxB+" has the VIP", func() bool {
		return strings.Contains(on(t, boxB, "ip", "-4", "-o", "addr", "show").stdout, vip+"/")
	})
	shell(t, boxB, `sysctl -qw net.ipv4.ip_nonlocal_bind=0`)
	config := shell(t, boxB, `sha256sum /etc/haproxy/haproxy.cfg /etc/keepalived/keepalived.conf`)
	deploy(t, "plan").exits(t, 9).says(t, "no box of site a can be reached", "--site-down a")
	before := writes(t)
	r := deploy(t, "apply", "--yes", "--site-down", "a").must(t).says(t, "not looked at: lb haproxy-a (--site-down a)", "ip_nonlocal_bind", "PASS")
	deploy(t, "plan", "--site-down", "a", "--detailed-exitcode").exits(t, 0).says(t, "not looked at", "No changes")
	deploy(t, "verify", "--site-down", "a").must(t).says(t, "not looked at", "PASS")
	if after := shell(t, boxB, `sha256sum /etc/haproxy/haproxy.cfg /etc/keepalived/keepalived.conf`); after != config {
		t.Error("the configurations of the box that is left have changed")
	}
	for _, w := range writes(t)[len(before):] {
		if strings.Contains(w, "haproxy-") {
			t.Errorf("vCenter was made to change something: %s", w)
		}
	}
	for _, nic := range nics {
		lab(t, "fault", "link-join", boxA, nic)
	}
	holder(t)
	planIsEmpty(t)
	t.Logf("site a dark: the rest repaired and proven in %.1f s", r.took.Seconds())
}

// adopted takes over a haproxy.cfg and a Service that others made: only the mark
// is set, and the next apply brings them to the blueprint.
func adopted(t *testing.T) {
	shell(t, boxB, `printf 'global\n' > /etc/haproxy/haproxy.cfg`)
	byHand(t, "service-unmark", "vsftpd")
	deploy(t, "plan").exits(t, 1).says(t, "FTP604", "ftpdeploy adopt lb."+boxB)
	deploy(t, "adopt", "lb."+boxB).exits(t, 1).says(t, "say --yes")
	deploy(t, "adopt", "lb."+boxB, "--yes").must(t).says(t, "+# ftpdeploy deployment=lab lb="+boxB, "Done: 1 change")
	if got := shell(t, boxB, `sed 1d /etc/haproxy/haproxy.cfg; cat /var/lib/ftpdeploy/kept/haproxy.cfg`); got != "global\nglobal" {
		t.Errorf("below the mark, and kept: %q", got)
	}
	deploy(t, "plan").exits(t, 1).says(t, "Service ftp/vsftpd", "ftpdeploy adopt ftp_service.vsftpd")
	deploy(t, "adopt", "ftp_service.vsftpd", "--yes").must(t).says(t, "metadata.labels.ftpdeploy.dev/deployment: lab")
	deploy(t, "adopt", "ftp_service.vsftpd", "--yes").exits(t, 1).says(t, "nothing to adopt")
	deploy(t, "apply", "--yes").must(t).says(t, "PASS")
	planIsEmpty(t)
}
