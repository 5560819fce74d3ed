package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// savedPlan makes a plan, has the world and the blueprint change under it, and
// applies it when all is again as it was planned from.
func savedPlan(t *testing.T) {
	dir := t.TempDir()
	file, mine := filepath.Join(dir, "p.ftpplan"), filepath.Join(dir, "lab.ftp.hcl")
	rewrite := func(old, text string) {
		t.Helper()
		src, err := os.ReadFile(blueprint)
		if err != nil {
			t.Fatal(err)
		}
		changed := bytes.ReplaceAll(src, []byte(old), []byte(text))
		if bytes.Equal(src, changed) {
			t.Fatalf("the blueprint has no %q", old)
		}
		if err := os.WriteFile(mine, changed, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	apply := func(args ...string) result {
		return deploy(t, append([]string{"-f", mine, "apply"}, args...)...)
	}
	const timeout, longer = `client  = "2h"`, `client  = "3h"`
	rewrite(timeout, longer)
	shown := deploy(t, "-f", mine, "plan", "--out", file).must(t).stdout
	if again := deploy(t, "show", file).must(t).stdout; again != shown {
		t.Errorf("show prints\n%s\nand plan printed\n%s", again, shown)
	}
	holdsNoSecret(t, file)

	before := writes(t)
	rewrite(timeout, `client  = "4h"`)
	apply(file).exits(t, 4).says(t, "was made from another blueprint")
	rewrite(timeout, longer)
	shell(t, boxA, `cp -p /etc/haproxy/haproxy.cfg /root/ours.cfg; sed -i 's/^\(\s*maxconn\).*/\1 17/' /etc/haproxy/haproxy.cfg`)
	apply(file).exits(t, 4).says(t, "planned from", "drift: edited", "wanted", "maxconn 17")
	shell(t, boxA, `mv /root/ours.cfg /etc/haproxy/haproxy.cfg`)
	byHand(t, "node-port", "21104", "31999")
	apply(file).exits(t, 4).says(t, "not in the plan", "31999")
	if after := writes(t); len(after) != len(before) {
		t.Errorf("a refused plan wrote: %v", after[len(before):])
	}
	byHand(t, "node-port", "21104", "32104")

	apply(file, "--max-changes", "1").exits(t, 1).says(t, "refused by --max-changes 1")
	apply(file, "--deny", "reload").exits(t, 1).says(t, "refused by --deny reload")
	apply(file).must(t).says(t, "10 changes as planned", "PASS")
	apply(file).exits(t, 4).says(t, "not needed any more")

	rewrite(`address         = "`+vip+`"`, `address         = "203.0.113.16"`)
	apply("--yes").exits(t, 1).says(t, "refused without --allow vip-change")
	rewrite("node_port = 30021", "node_port = 30022")
	deploy(t, "-f", mine, "plan", "--skip", "kubernetes/vsftpd").exits(t, 1).says(t, "FTP207")

	deploy(t, "apply", "--yes").must(t)
	planIsEmpty(t)
}

// holdsNoSecret looks into a file for every secret of the jump host's environment.
func holdsNoSecret(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%s has mode %v (%v)", file, info.Mode(), err)
	}
	for _, name := range []string{"GOVC_PASSWORD", "FTPDEPLOY_LAB_SUDO_PASSWORD", "FTPDEPLOY_VAR_ftp_password"} {
		secret := shell(t, "jump", `printf %s "$`+name+`"`)
		if secret == "" || strings.Contains(string(text), secret) {
			t.Errorf("%s is empty, or shows in %s", name, file)
		}
	}
}
