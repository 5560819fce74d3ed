package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// neighbour is a second service on the same boxes, with a VIP, a range of 400 ports
// and a proof of its own.
const neighbour = `
vip "second" {
  lb_group        = lb_group.ftp
  address         = "` + secondVIP + `"
  network         = network.frontend
  virtual_router  = 52
  advert_interval = "500ms"
}

ftp_service "second" {
  cluster   = cluster.lab
  vip       = vip.second
  namespace = "ftp-second"
  image     = "docker.io/ftpdeploy/vsftpd:lab"

  control {
    node_port = 30022
  }

  passive {
    ports           = "22000-22399"
    node_port_first = 32200
  }

  user "other" {
    password = var.ftp_password
  }
}

smoke "second" {
  target     = vip.second
  user       = ftp_service.second.user.other
  every_port = false
  timeout    = "20s"
}
`

const secondVIP = "203.0.113.16"

// neighbourComesAndGoes adds a service with a VIP of its own while clients put and get
// through the first, moves a file through it, and takes it away again: no transfer of
// the first fails, and its VIP stays where it is.
func neighbourComesAndGoes(t *testing.T) {
	text, err := os.ReadFile(blueprint)
	if err != nil {
		t.Fatal(err)
	}
	long := times(0, 1) == 1
	if long { // as many clients need more ports; the NodePorts from 32200 on are the neighbour's
		text = []byte(strings.Replace(string(text), narrow, `ports           = "21100-21190"`, 1))
	}
	// That every port is proven is seen elsewhere.
	first := strings.Replace(string(text), "  target = vip.ftp\n", "  target = vip.ftp\n  every_port = false\n", 1)
	one, both := filepath.Join(t.TempDir(), "one.ftp.hcl"), filepath.Join(t.TempDir(), "both.ftp.hcl")
	for file, text := range map[string]string{one: first, both: first + neighbour} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if long {
		deploy(t, "-f", one, "apply", "--yes").must(t)
	}
	length := func() int { return len(shell(t, boxA, `cat /etc/haproxy/haproxy.cfg`)) }
	has, _ := holder(t)
	const moved = `journalctl -q -o cat -u keepalived | grep -cE '\(ftp\) Entering (MASTER|BACKUP|FAULT) STATE' || true`
	moves, alone := shell(t, has, moved), length()

	c := startClients(t, times(4, 20), int64(times(2, 64))<<20)
	began := []time.Time{time.Now()}
	added := deploy(t, "-f", both, "apply", "--yes").must(t).says(t, "kubernetes/second", "PASS")
	if two := length(); two > 2*alone {
		t.Errorf("haproxy.cfg has %d bytes for one service of %d ports and %d with another of 400", alone, passives, two)
	}
	got := onEnv(t, "client", []string{"VIP=" + secondVIP}, "bash", "-euc", `
umask 077; cd "$(mktemp -d)"
printf 'machine %s login other password %s\n' "$VIP" "$FTPDEPLOY_VAR_ftp_password" > netrc
head -c 1000000 /dev/urandom > data
for i in $(seq 10); do
  curl -sS --netrc-file netrc -T data "ftp://$VIP/f$i"
  curl -sS --netrc-file netrc -o back "ftp://$VIP/f$i"
  cmp data back && echo "$i"
done`).must(t)
	if n := len(strings.Fields(got.stdout)); n != 10 {
		t.Errorf("%d of 10 files came back through the second VIP: %s", n, got.stderr)
	}
	deploy(t, "-f", both, "plan", "--detailed-exitcode").exits(t, 0)

	began = append(began, time.Now())
	gone := deploy(t, "-f", one, "apply", "--yes", "--allow", "vip-change,shrink-range", "--no-verify").must(t)
	transfers, failed := c.stop()
	if failed > 0 {
		t.Errorf("%d of %d transfers failed", failed, transfers)
	}
	for i, at := range began {
		if c.openAt(at) == 0 {
			t.Errorf("no client was at work when the second service %s", []string{"came", "went"}[i])
		}
	}
	if now, _ := holder(t); now != has || shell(t, has, moved) != moves {
		t.Errorf("the VIP of the first service was on %s and is on %s; it came and went: %s before, %s after", has, now, moves, shell(t, has, moved))
	}
	for _, box := range []string{boxA, boxB} {
		if addresses := shell(t, box, `ip -4 -o address show`); strings.Contains(addresses, secondVIP+"/") {
			t.Errorf("%s still holds %s", box, secondVIP)
		}
	}
	if left := byHand(t, "objects"); strings.Contains(left, "second") {
		t.Errorf("left of the service: %s", left)
	}
	if long {
		deploy(t, "apply", "--yes", "--allow", "shrink-range").must(t)
	}
	planIsEmpty(t)
	t.Logf("a service with 400 ports added in %.1f s (%s) and removed in %.1f s (%s)", added.took.Seconds(), done(added.stdout), gone.took.Seconds(), done(gone.stdout))
}
