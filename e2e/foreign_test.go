package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// foreign is an edit by others, made by hand between a plan and its application.
type foreign struct {
	name string
	ours bool // it is of what ftpdeploy keeps, so no plan may be applied over it
	do   func(t *testing.T)
	is   func(t *testing.T) bool // it is still there
	undo func(t *testing.T)      // nil = an apply does it
}

// onBox is an edit of a box by three shell scripts.
func onBox(box, name string, ours bool, do, is, undo string) foreign {
	f := foreign{
		name: name + " on " + box, ours: ours,
		do: func(t *testing.T) { shell(t, box, do) },
		is: func(t *testing.T) bool { return on(t, box, "sh", "-euc", is).code == 0 },
	}
	if undo != "" {
		f.undo = func(t *testing.T) { shell(t, box, undo) }
	}
	return f
}

// ofFile is an edit of one of our files. The file itself is kept aside meanwhile:
// a copy of it would not be what a daemon has loaded.
func ofFile(box, name, file, do, is string) foreign {
	return onBox(box, name, true, "ln "+file+" /root/ours; cp -p "+file+" "+file+".theirs; mv "+file+".theirs "+file+"; "+do, is, "rm -f "+file+"; mv /root/ours "+file)
}

// ofObject is an edit of an object of the cluster by two patches.
func ofObject(name string, ours bool, path, do, shows, undo string) foreign {
	f := foreign{
		name: name, ours: ours,
		do: func(t *testing.T) { byHand(t, "api", "PATCH", path, do) },
		is: func(t *testing.T) bool { return strings.Contains(byHand(t, "api", "GET", path), shows) },
	}
	if undo != "" {
		f.undo = func(t *testing.T) { byHand(t, "api", "PATCH", path, undo) }
	}
	return f
}

// ofVM is an edit of a VM by an act of hand_test.go.
func ofVM(name string, ours bool, act, box, value, back string) foreign {
	f := foreign{
		name: name + " of " + box, ours: ours,
		do: func(t *testing.T) { byHand(t, act, box, value) },
		is: func(t *testing.T) bool { return strings.Contains(byHand(t, "vm-show"), value) },
	}
	f.undo = func(t *testing.T) { byHand(t, act, box, back) }
	return f
}

const (
	cfg         = "/etc/haproxy/haproxy.cfg"
	vrrp        = "/etc/keepalived/keepalived.conf"
	checkAt     = "/usr/libexec/keepalived/ftpdeploy-check"
	sysctlAt    = "/etc/sysctl.d/90-ftpdeploy.conf"
	serviceAt   = "/api/v1/namespaces/ftp/services/vsftpd"
	workloadAt  = "/apis/apps/v1/namespaces/ftp/deployments/vsftpd"
	accountAt   = "/api/v1/namespaces/ftp/secrets/vsftpd-account"
	claimAt     = "/api/v1/namespaces/ftp/persistentvolumeclaims/vsftpd-home"
	namespaceAt = "/api/v1/namespaces/ftp"
)

// edits are those that are chosen from.
func edits() []foreign {
	var all []foreign
	for _, box := range []string{boxA, boxB} {
		all = append(all,
			ofFile(box, "haproxy.cfg edited", cfg, `sed -i 's/^\(\s*maxconn\).*/\1 17/' `+cfg, `grep -q 'maxconn 17' `+cfg),
			ofFile(box, "haproxy.cfg commented", cfg, `echo '# by hand' >>`+cfg, `grep -q '# by hand' `+cfg),
			ofFile(box, "haproxy.cfg for root only", cfg, `chmod 600 `+cfg, `[ "$(stat -c %a `+cfg+`)" = 600 ]`),
			ofFile(box, "haproxy.cfg given away", cfg, `chown haproxy `+cfg, `[ "$(stat -c %U `+cfg+`)" = haproxy ]`),
			ofFile(box, "haproxy.cfg of another group", cfg, `chgrp haproxy `+cfg, `[ "$(stat -c %G `+cfg+`)" = haproxy ]`),
			ofFile(box, "haproxy.cfg linked", cfg, `cp -p `+cfg+` /root/theirs; ln -sf /root/theirs `+cfg, `[ -h `+cfg+` ]`),
			ofFile(box, "haproxy.cfg gone", cfg, `rm `+cfg, `[ ! -e `+cfg+` ]`),
			ofFile(box, "keepalived.conf edited", vrrp, `sed -i 's/priority .*/priority 42/' `+vrrp, `grep -q 'priority 42' `+vrrp),
			ofFile(box, "keepalived.conf gone", vrrp, `rm `+vrrp, `[ ! -e `+vrrp+` ]`),
			ofFile(box, "the check not executable", checkAt, `chmod -x `+checkAt, `[ ! -x `+checkAt+` ]`),
			ofFile(box, "the check emptied of its purpose", checkAt, `echo 'exit 0' >>`+checkAt, `grep -q 'exit 0' `+checkAt),
			ofFile(box, "kernel settings' file gone", sysctlAt, `rm `+sysctlAt, `[ ! -e `+sysctlAt+` ]`),
			onBox(box, "kernel setting changed", true, `sysctl -qw net.ipv4.ip_nonlocal_bind=0`, `grep -q 0 /proc/sys/net/ipv4/ip_nonlocal_bind`, `sysctl -qw net.ipv4.ip_nonlocal_bind=1`),
			onBox(box, "haproxy stopped", true, `systemctl stop haproxy`, `! systemctl -q is-active haproxy`, `systemctl start haproxy`),
			onBox(box, "keepalived stopped", true, `systemctl stop keepalived`, `! systemctl -q is-active keepalived`, `systemctl start keepalived`),
			onBox(box, "haproxy disabled", true, `systemctl -q disable haproxy`, `! systemctl -q is-enabled haproxy`, `systemctl -q enable haproxy`),
			onBox(box, "keepalived removed", true, `DEBIAN_FRONTEND=noninteractive apt-get -qqy remove keepalived >/dev/null 2>&1`, `! dpkg-query -Wf '${db:Status-Status}' keepalived | grep -qx installed`, ""),
			ofVM("name", true, "vm-rename", box, box+"-by-hand", box),
			ofVM("what the guest is told", true, "vm-extra", box, "guestinfo.metadata.encoding=gzip+base64", "guestinfo.metadata.encoding=base64"),
			onBox(box, "message of the day", false, `cp -p /etc/motd /root/motd; echo 'patched by ops' >>/etc/motd`, `grep -q 'patched by ops' /etc/motd`, `mv /root/motd /etc/motd`),
			onBox(box, "another file beside haproxy.cfg", false, `echo '# of others' >/etc/haproxy/other.cfg`, `grep -q others /etc/haproxy/other.cfg`, `rm /etc/haproxy/other.cfg`),
			onBox(box, "a drop-in for haproxy", false, `mkdir -p /etc/systemd/system/haproxy.service.d; echo '[Service]' >/etc/systemd/system/haproxy.service.d/ops.conf`,
				`[ -f /etc/systemd/system/haproxy.service.d/ops.conf ]`, `rm -r /etc/systemd/system/haproxy.service.d`),
			onBox(box, "another kernel setting", false, `sysctl -qw net.ipv4.tcp_keepalive_time=600`, `grep -qx 600 /proc/sys/net/ipv4/tcp_keepalive_time`, `sysctl -qw net.ipv4.tcp_keepalive_time=7200`),
			onBox(box, "haproxy restarted", false, `systemctl restart haproxy`, `systemctl -q is-active haproxy`, `:`),
			ofVM("other advanced configuration", false, "vm-extra", box, "ops.ticket=42", "ops.ticket="),
			ofVM("notes", false, "vm-notes", box, "asked for by ops", "changed by hand"),
		)
	}
	all = append(all,
		ofObject("NodePort of a Service", true, serviceAt, `{"spec":{"ports":[{"port":21104,"protocol":"TCP","nodePort":31999}]}}`, `"nodePort":31999`, `{"spec":{"ports":[{"port":21104,"protocol":"TCP","nodePort":32104}]}}`),
		ofObject("selector of a Service", true, serviceAt, `{"spec":{"selector":{"tier":"x"}}}`, `"tier":"x"`, `{"spec":{"selector":{"tier":null}}}`),
		ofObject("label of a Service", true, serviceAt, `{"metadata":{"labels":{"app.kubernetes.io/name":"other"}}}`, `"app.kubernetes.io/name":"other"`, `{"metadata":{"labels":{"app.kubernetes.io/name":"vsftpd"}}}`),
		ofObject("traffic policy of a Service", true, serviceAt, `{"spec":{"externalTrafficPolicy":"Local"}}`, `"externalTrafficPolicy":"Local"`, `{"spec":{"externalTrafficPolicy":"Cluster"}}`),
		ofObject("passive range of the pod", true, workloadAt, `{"spec":{"template":{"spec":{"containers":[{"name":"vsftpd","env":[{"name":"PASV_MAX_PORT","value":"21105"}]}]}}}}`, `"value":"21105"`, ""),
		ofObject("replicas", true, workloadAt, `{"spec":{"replicas":2}}`, `"replicas":2,"selector"`, `{"spec":{"replicas":1}}`),
		ofObject("label of a Deployment", true, workloadAt, `{"metadata":{"labels":{"app.kubernetes.io/name":"other"}}}`, `"app.kubernetes.io/name":"other"`, `{"metadata":{"labels":{"app.kubernetes.io/name":"vsftpd"}}}`),
		ofObject("password", true, accountAt, `{"data":{"FTP_PASS":"Ynk="}}`, `"FTP_PASS":"Ynk="`, ""),
		ofObject("label of a claim", true, claimAt, `{"metadata":{"labels":{"ftpdeploy.dev/volume":"other"}}}`, `"ftpdeploy.dev/volume":"other"`, `{"metadata":{"labels":{"ftpdeploy.dev/volume":"home"}}}`),
		ofObject("Pod Security of the namespace", true, namespaceAt, `{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"privileged"}}}`, `enforce":"privileged"`, `{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"baseline"}}}`),
		ofObject("annotation of a Service", false, serviceAt, `{"metadata":{"annotations":{"ops/ticket":"42"}}}`, `"ops/ticket":"42"`, `{"metadata":{"annotations":{"ops/ticket":null}}}`),
		ofObject("annotation of a Deployment", false, workloadAt, `{"metadata":{"annotations":{"ops/ticket":"42"}}}`, `"ops/ticket":"42"`, `{"metadata":{"annotations":{"ops/ticket":null}}}`),
		ofObject("another key of a Secret", false, accountAt, `{"data":{"NOTE":"Ynk="}}`, `"NOTE":"Ynk="`, `{"data":{"NOTE":null}}`),
		ofObject("annotation of a claim", false, claimAt, `{"metadata":{"annotations":{"ops/ticket":"42"}}}`, `"ops/ticket":"42"`, `{"metadata":{"annotations":{"ops/ticket":null}}}`),
		ofObject("label of a node", false, "/api/v1/nodes/worker-2", `{"metadata":{"labels":{"ops/rack":"7"}}}`, `"ops/rack":"7"`, `{"metadata":{"labels":{"ops/rack":null}}}`),
		ofObject("another namespace's object", false, "/api/v1/namespaces/default", `{"metadata":{"annotations":{"ops/ticket":"42"}}}`, `"ops/ticket":"42"`, `{"metadata":{"annotations":{"ops/ticket":null}}}`),
		foreign{
			name: "a rule is gone", ours: true,
			do: func(t *testing.T) { byHand(t, "rule-delete", "#separate") },
			is: func(t *testing.T) bool { return !strings.Contains(byHand(t, "rules"), "#separate") },
		},
		foreign{
			name: "the Service is gone", ours: true,
			do: func(t *testing.T) { byHand(t, "service-delete", "ftp", "vsftpd") },
			is: func(t *testing.T) bool { return !strings.Contains(byHand(t, "objects"), "Service/ftp/vsftpd") },
		},
		foreign{
			name: "another deployment's rule", ours: false,
			do:   func(t *testing.T) { byHand(t, "rule-add", "ops-keep-apart") },
			is:   func(t *testing.T) bool { return strings.Contains(byHand(t, "rules"), "ops-keep-apart") },
			undo: func(t *testing.T) { byHand(t, "rule-delete", "ops-keep-apart") },
		},
	)
	return all
}

// intended are the changes under which the edits are made.
var intended = []draft{
	{"client timeout": 1},
	{"passive NodePorts": 1},
	{"banner": 1},
	{"anti_affinity": 1},
	{"labels": 1},
	{"MTU": 1},
	{"advert_interval": 1},
	{"client timeout": 2, "labels": 1, "MTU": 1, "anti_affinity": 1},
}

// drafted writes the blueprint of a draft.
func drafted(t *testing.T, d draft) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "edited.ftp.hcl")
	if err := os.WriteFile(file, []byte(d.text(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// foreignEdits makes an edit between each of many plans and its application. One
// of what is ours is refused with everything left as it is; any other is still
// there when exactly the plan has been done.
func foreignEdits(t *testing.T) {
	r := rand.New(rand.NewPCG(seed(t), 2))
	shipped := drafted(t, draft{})
	deploy(t, "apply", "--yes", "-f", shipped).must(t)
	all := edits()
	order := r.Perm(len(all))
	refused, applied := 0, 0
	for i := range times(4, 100) {
		edit, change := all[order[i%len(order)]], intended[r.IntN(len(intended))]
		t.Run(fmt.Sprintf("FTPDEPLOY_SEED=%d, %d: %s", seed(t), i+1, edit.name), func(t *testing.T) {
			file, saved := drafted(t, change), filepath.Join(t.TempDir(), "p.ftpplan")
			changes := planned(t, "-f", file, "--out", saved)
			edit.do(t)
			before := see(t)
			a := deploy(t, "apply", "-f", file, saved, "--allow", anyDanger)
			after := see(t)
			seen := after.mutations(t, before)
			if !edit.is(t) {
				t.Errorf("the edit was overwritten; the plan was %v, apply ended with %d: %s", targets(changes), a.code, a.stderr)
			}
			switch {
			case a.code == 4:
				refused++
				a.says(t, "planned from", "now", "wanted", "FTP701")
				if len(seen) > 0 {
					t.Errorf("a refused plan changed %v", seen)
				}
			case a.code == 0 && !edit.ours:
				applied++
				if extra, missing := account(t, changes, seen); extra != nil || missing != nil {
					t.Errorf("the plan was %v\n  extra:   %s\n  missing: %s", targets(changes), strings.Join(extra, "\n           "), strings.Join(missing, "\n           "))
				}
			default:
				t.Errorf("apply ends with %d, under %v\n%s\n%s", a.code, targets(changes), a.stderr, tail(a.stdout))
			}
			if edit.undo != nil {
				edit.undo(t)
			}
			if a.code != 4 || edit.undo == nil {
				deploy(t, "apply", "--yes", "-f", shipped, "--allow", anyDanger).must(t)
			}
		})
	}
	deploy(t, "apply", "--yes").must(t)
	planIsEmpty(t)
	t.Logf("%d edits between plan and apply: %d refused with 4 and nothing changed, %d applied with exactly the plan's changes; none overwritten", refused+applied, refused, applied)
}

// applying runs apply and calls at for each of its events, as they come.
func applying(t *testing.T, file string, at func(jsonEvent)) result {
	t.Helper()
	c := exec.CommandContext(t.Context(), ftplab, "exec", "jump", "--", ftpdeploy, "apply", "--yes", "--json", "--allow", anyDanger, "-f", file)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	c.Stderr = &stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		stdout.Write(append(lines.Bytes(), '\n'))
		var e jsonEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("not an event: %s", lines.Text())
		}
		at(e)
	}
	_ = c.Wait() // its exit code is looked at
	return result{stdout: stdout.String(), stderr: stderr.String(), code: c.ProcessState.ExitCode()}
}

// once calls do at the first event of a kind and target.
func once(kind, target string, do func()) func(jsonEvent) {
	return func(e jsonEvent) {
		if do != nil && e.Type == kind && e.Address == target {
			do()
			do = nil
		}
	}
}

// editsMeanwhile makes edits while apply acts: between its last look at a target
// and that target's turn. The edit, which harms no service, stays, and what was
// done before it goes back.
func editsMeanwhile(t *testing.T) {
	has, other := holder(t) // the box without the VIP is changed first
	shipped := drafted(t, draft{})
	deploy(t, "apply", "--yes", "-f", shipped).must(t)
	cases := []struct {
		name, at string
		change   draft
		edit     foreign
	}{
		{
			"the next box", other + ":generation",
			draft{"client timeout": 2},
			ofFile(has, "haproxy.cfg edited", cfg, `sed -i 's/^\(\s*maxconn\).*/\1 17/' `+cfg, `grep -q 'maxconn 17' `+cfg),
		},
		{
			"the file whose turn is next", other + ":generation",
			draft{"client timeout": 2},
			ofFile(other, "haproxy.cfg edited", cfg, `sed -i 's/^\(\s*maxconn\).*/\1 17/' `+cfg, `grep -q 'maxconn 17' `+cfg),
		},
		{
			"the Service while the pod is replaced", "Deployment ftp/vsftpd",
			draft{"banner": 1, "labels": 1},
			ofObject("label", true, serviceAt, `{"metadata":{"labels":{"app.kubernetes.io/name":"other"}}}`, `"app.kubernetes.io/name":"other"`, `{"metadata":{"labels":{"app.kubernetes.io/name":"vsftpd"}}}`),
		},
		{
			"the VM while its guest shuts down", boxB,
			draft{"memory of haproxy-b": 1},
			ofVM("name", true, "vm-rename", boxB, boxB+"-by-hand", boxB),
		},
	}
	for _, c := range cases[:times(3, len(cases))] {
		t.Run(c.name, func(t *testing.T) {
			file := drafted(t, c.change)
			r := applying(t, file, once("action.start", c.at, func() { c.edit.do(t) })).exits(t, 4)
			r.says(t, "planned from", "wanted")
			if !c.edit.is(t) {
				t.Errorf("the edit was overwritten: %s", tail(r.stdout))
			}
			c.edit.undo(t)
			within(t, 30*time.Second, "all but the edit is as it was", func() bool { return len(planned(t, "-f", shipped)) == 0 })
		})
	}
	deploy(t, "apply", "--yes").must(t)
	planIsEmpty(t)
}

// notAsPredicted has others change a target of each layer right after apply did:
// apply ends with 6 and shows what is otherwise.
func notAsPredicted(t *testing.T) {
	_, other := holder(t)
	shipped := drafted(t, draft{})
	deploy(t, "apply", "--yes", "-f", shipped).must(t)
	ends := func(t *testing.T, r result, texts ...string) {
		t.Helper()
		r.exits(t, 6).says(t, append(texts, "the result is not what was predicted")...)
	}
	t.Run("box", func(t *testing.T) {
		last := shell(t, other, `cat /var/lib/ftpdeploy/generation`)
		actor := exec.CommandContext(t.Context(), ftplab, "exec", other, "--", "sh", "-c",
			`until [ -f /var/lib/ftpdeploy/generations/$(($1 + 1))/confirmed ]; do :; done; echo 0 >/proc/sys/net/ipv4/ip_nonlocal_bind`, "sh", last)
		if err := actor.Start(); err != nil {
			t.Fatal(err)
		}
		r := applying(t, drafted(t, draft{"client timeout": 2}), func(jsonEvent) {})
		if err := actor.Wait(); err != nil {
			t.Fatalf("the actor: %v", err)
		}
		ends(t, r, "net.ipv4.ip_nonlocal_bind: 0, wanted 1")
	})
	deploy(t, "apply", "--yes", "-f", shipped).must(t)
	t.Run("cluster", func(t *testing.T) {
		r := applying(t, drafted(t, draft{"banner": 1}), once("action.start", "Deployment ftp/vsftpd", func() {
			byHand(t, "api", "PATCH", accountAt, `{"metadata":{"labels":{"app.kubernetes.io/name":"other"}}}`)
		}))
		ends(t, r, "other, wanted vsftpd")
	})
	deploy(t, "apply", "--yes", "-f", shipped).must(t)
	t.Run("vCenter", func(t *testing.T) {
		on := "vcenter: PowerOnVM_Task " + boxB
		before, renamed := count(writes(t))[on], false
		r := applying(t, drafted(t, draft{"memory of haproxy-b": 1}), func(e jsonEvent) {
			if e.Type == "action.progress" && !renamed && count(writes(t))[on] > before {
				byHand(t, "vm-rename", boxB, boxB+"-by-hand")
				renamed = true
			}
		})
		ends(t, r, boxB+"-by-hand, wanted "+boxB)
	})
	deploy(t, "apply", "--yes", "-f", shipped).must(t)
	deploy(t, "apply", "--yes").must(t)
	planIsEmpty(t)
}
