package main

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/kube"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/steps"
)

func TestStatusView(t *testing.T) {
	now := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	a, b := &blueprints.Box{Name: "haproxy-a"}, &blueprints.Box{Name: "haproxy-b"}
	vip := &blueprints.VIP{Name: "ftp", Address: netip.MustParseAddr("203.0.113.15")}
	service := &blueprints.Service{Name: "vsftpd", Namespace: "ftp", VIP: vip}
	s := &steps.Status{
		VIPs: []*steps.VIPStatus{{VIP: vip, Holders: []*blueprints.Box{a}, Since: now.Add(-76 * time.Hour), Unknown: true}},
		Boxes: []*steps.BoxStatus{
			{
				Box: a, OS: "Debian GNU/Linux 12 (bookworm)", HAProxy: "2.6.12-1", Keepalived: "1:2.2.7-1", Holds: []*blueprints.VIP{vip}, Sessions: 2, Transfers: 1,
				OldWorkers: []time.Duration{12 * time.Minute}, DrainedTo: now.Add(time.Hour), DrainedBy: "root@jump",
				Nodes: []steps.NodesUp{{Service: service, Up: 1, All: 2, Down: []string{"10.20.0.22 DOWN since 7s (L4TOUT )"}}},
			},
			{Box: b, Err: fmt.Errorf("look at lb.haproxy-b: %w", remote.ErrUnreachable)},
		},
		Clusters: []*steps.ClusterStatus{{Cluster: &blueprints.Cluster{Name: "tkg"}, Version: "v1.26.13"}},
		Services: []*steps.ServiceStatus{{Service: service, Pods: []kube.Pod{
			{Name: "vsftpd-x", Node: "worker-1", State: "Running", Ready: true, Since: now.Add(-90 * time.Second), Image: "vsftpd:1", Digest: "sha256:abc"},
		}}},
		Newest: &steps.Generation{Number: 8, Made: now.Add(-time.Hour), Run: steps.Run{Who: "ci@jump pid 41", Command: "ftpdeploy apply"}},
	}
	state := t.TempDir()
	for name, text := range map[string]string{
		"019ab000-0000-7000-8000-000000000001": `{"type":"run.start","run":"r1","command":"apply","user":"ci","host":"jump"}
{"type":"run.end","ts":"2026-11-23T09:30:00.000Z","exit":5,"deployment":"ftp-prod"}`,
		"019ab000-0000-7000-8000-000000000002": `{"type":"run.start","run":"r2","command":"apply","user":"ci","host":"jump"}
{"type":"run.end","ts":"2026-11-23T09:40:00.000Z","exit":0,"deployment":"another"}`,
		"019ab000-0000-7000-8000-000000000003": `{"type":"run.start","run":"r3","command":"apply","user":"ci","host":"jump"}`,
	} {
		dir := filepath.Join(state, "ftpdeploy", "runs", name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "events.ndjson"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out strings.Builder
	app := &app{now: func() time.Time { return now }, emit: (&human{out: &out, err: &out, now: time.Now}).emit, env: func(name string) (string, bool) {
		return state, name == "XDG_STATE_HOME"
	}}
	d := &deployment{app: app, topology: &blueprints.Topology{ID: "ftp-prod", Services: []*blueprints.Service{service}}}
	err := d.status(s)
	if exitCode(err, false) != 9 || !errors.As(err, new(*exitError)) {
		t.Errorf("got %v", err)
	}
	want := `vip ftp      203.0.113.15    held by haproxy-a since 2026-11-20 06:00:00 UTC (3d 4h)

haproxy-a    holds vip ftp; 2 sessions, 1 transfer open
             HAProxy 2.6.12-1, keepalived 1:2.2.7-1, Debian GNU/Linux 12 (bookworm)
             vsftpd: 1 of 2 nodes up
               10.20.0.22 DOWN since 7s (L4TOUT )
             1 worker of HAProxy from before a reload, for open sessions: 12m 0s old
             DRAINED until 2026-11-23 11:00:00 UTC, by root@jump: it takes no VIP, also if the other fails. To end that: ftpdeploy resume haproxy-a

haproxy-b    NOT KNOWN: look at lb.haproxy-b: cannot be reached

cluster tkg  Kubernetes v1.26.13
vsftpd       pod ftp/vsftpd-x ready on worker-1 since 2026-11-23 09:58:30 UTC (1m 30s), 0 restarts
             image vsftpd:1  sha256:abc
certificate  none (plain FTP; see FTP601)
generation   8 of 2026-11-23 09:00:00 UTC, by ci@jump: ftpdeploy apply
last run     2026-11-23 09:30:00 UTC, by ci@jump: ftpdeploy apply: exit 5
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}

	s = &steps.Status{
		VIPs:  []*steps.VIPStatus{{VIP: vip, Holders: []*blueprints.Box{a, b}}, {VIP: vip}, {VIP: vip, Unknown: true}},
		Boxes: []*steps.BoxStatus{{Box: a, Stopped: []string{"keepalived"}}, {Box: b, Absent: true}},
		Services: []*steps.ServiceStatus{
			{Service: service, Certificate: &x509.Certificate{Subject: pkix.Name{CommonName: "ftp.example.org"}, NotAfter: now.Add(25 * time.Hour)}},
			{Service: service, Certificate: &x509.Certificate{Subject: pkix.Name{CommonName: "old"}, NotAfter: now.Add(-time.Hour)}},
		},
	}
	out.Reset()
	if err := d.status(s); err != nil {
		t.Error(err)
	}
	for _, text := range []string{
		"HELD TWICE: held by haproxy-a AND haproxy-b", "HELD BY NONE", "NOT KNOWN who holds it", "KEEPALIVED DOES NOT RUN", "is not made yet", "HAS NO POD",
		"certificate  CN=ftp.example.org, 1 day left, until 2026-11-24 11:00:00 UTC", "certificate  CN=old EXPIRED at 2026-11-23 09:00:00 UTC",
	} {
		if !strings.Contains(out.String(), text) {
			t.Errorf("no %q in\n%s", text, out.String())
		}
	}
}
