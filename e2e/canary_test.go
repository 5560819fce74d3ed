package e2e

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// canariesAreNowhere makes a change with all that can be said, and one that
// fails and goes back, and then looks for every password everywhere: in what was
// said, in every file of the boxes and of the jump host's home, in the arguments
// and the environment of every program that was started on a box, in the
// arguments of every process of the machine, in vCenter, in the cluster.
func canariesAreNowhere(t *testing.T) {
	canaries := map[string]string{}
	for _, name := range []string{"FTPDEPLOY_VAR_ftp_password", "FTPDEPLOY_LAB_SUDO_PASSWORD", "GOVC_PASSWORD"} {
		canaries[name] = strings.TrimSpace(on(t, "jump", "printenv", name).must(t).stdout)
	}
	found := map[string]string{} // where -> text
	stops := map[string]func() string{}
	for _, box := range []string{boxA, boxB} {
		stops[box] = trace(t, box, "-v", "-s", "65536", "-e", "trace=execve")
	}
	argv := sampleArguments(t)

	// With all the time of the default: strace slows a box down.
	text, err := os.ReadFile(blueprint)
	if err != nil {
		t.Fatal(err)
	}
	good := filepath.Join(t.TempDir(), "lab.ftp.hcl")
	if err := os.WriteFile(good, []byte(strings.Replace(string(text), `client  = "2h"`, `client  = "3h"`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	bad := variant(t, `["198.51.100.21", "198.51.100.22", "198.51.100.23"]`, `["198.51.100.98", "198.51.100.99"]`)
	keep := func(what string, r result) { found["said by "+what] = r.stdout + r.stderr }
	keep("plan", deploy(t, "plan", "-vv", "-f", good).must(t))
	keep("apply", deploy(t, "apply", "--yes", "-vv", "-f", good).must(t))
	programs := 0
	for box, stop := range stops {
		files, err := filepath.Glob(filepath.Join(stop(), "trace.*"))
		if err != nil {
			t.Fatal(err)
		}
		var all strings.Builder
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			all.Write(text)
		}
		found["programs on "+box] = all.String()
		programs += strings.Count(all.String(), "execve(")
	}
	failed := deploy(t, "apply", "--yes", "-vv", "--json", "-f", bad).exits(t, 5)
	keep("the apply that fails", failed)
	keep("the last apply", deploy(t, "apply", "--yes", "-vv", "--json").must(t))
	keep("verify", deploy(t, "verify", "-vv").must(t))

	found["arguments on this machine"] = argv()
	if programs < 100 {
		t.Errorf("only %d programs were seen to start on the boxes", programs)
	}
	found["vCenter"] = byHand(t, "vcenter-dump")
	found["cluster"] = byHand(t, "cluster-dump", "ftp/vsftpd-account")
	if !strings.Contains(found["cluster"], "vsftpd-account") || !strings.Contains(found["vCenter"], "ftpdeploy.hostkeys") {
		t.Error("what vCenter and the cluster hold was not read")
	}
	audit, err := filepath.Glob(filepath.Join(os.Getenv("FTPLAB_DIR"), "kubernetes/audit.log"))
	if err != nil || len(audit) == 0 {
		t.Fatalf("no audit log: %v", err)
	}
	for _, f := range audit {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		found["audit log"] += string(text)
	}

	size := 0
	for where, text := range found {
		if text == "" {
			t.Errorf("%s: nothing was looked at", where)
		}
		size += len(text)
		for name, canary := range canaries {
			if strings.Contains(text, canary) || strings.Contains(text, encoded(canary)) {
				t.Errorf("%s is in: %s", name, where)
			}
		}
	}
	var end struct {
		RunDir string `json:"run_dir"`
	}
	if err := json.Unmarshal([]byte(lastLine(failed.stdout)), &end); err != nil {
		t.Fatal(err)
	}
	if n := shell(t, "jump", "ls "+end.RunDir+"/haproxy-* | wc -l"); n == "0" {
		t.Error("there is no evidence to look at")
	}
	var words []string
	for _, canary := range canaries {
		words = append(words, canary, encoded(canary))
	}
	files := 0
	for host, where := range map[string]string{"jump": `"$HOME"`, boxA: "/", boxB: "/"} {
		find := "find " + where + ` \( -path /proc -o -path /sys \) -prune -o -type f -print0`
		grep := "grep -aF -e '" + strings.Join(words, "' -e '") + "'"
		if hits := shell(t, host, find+" | xargs -0 "+grep+" -l || :"); hits != "" {
			t.Errorf("in files of %s: %s", host, hits)
		}
		n, err := strconv.Atoi(shell(t, host, find+` | tr -dc '\0' | wc -c`))
		if err != nil || n == 0 {
			t.Errorf("files of %s that were looked at: %d %v", host, n, err)
		}
		files += n
		if where == "/" {
			if hits := shell(t, host, "journalctl --no-pager --all -o json | "+grep+" || :"); hits != "" {
				t.Errorf("in the journal of %s: %s", host, hits)
			}
		}
	}
	t.Logf("%d canaries, plain and in base64: 0 hits in %d files of the boxes and the jump host, %d starts of programs on the boxes, and %.1f MB that was said and is kept in vCenter, cluster and audit log",
		len(canaries), files, programs, float64(size)/1e6)
	planIsEmpty(t)
}

func encoded(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// sampleArguments collects the arguments of every process of this machine, and so
// of the lab, again and again until it is asked for them.
func sampleArguments(t *testing.T) (stop func() string) {
	t.Helper()
	seen := map[string]bool{}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case <-tick.C:
			}
			processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
			for _, p := range processes {
				text, _ := os.ReadFile(p) // none of a process that has ended
				seen[string(text)] = true
			}
		}
	}()
	over := sync.OnceFunc(func() { close(end); <-ended })
	t.Cleanup(over)
	return func() string {
		over()
		var all strings.Builder
		for s := range seen {
			all.WriteString(s + "\n")
		}
		return all.String()
	}
}
