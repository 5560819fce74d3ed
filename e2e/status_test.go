package e2e

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// statusEvents are those of a run of status, by type and name.
func statusEvents(t *testing.T, r result) map[string]statusEvent {
	t.Helper()
	all := map[string]statusEvent{}
	for _, e := range eventsOf[statusEvent](t, r.stdout, "") {
		all[strings.TrimSpace(e.Type+" "+e.VIP+e.Box+e.Cluster+e.Service+e.What)] = e
	}
	return all
}

type statusEvent struct {
	Type, VIP, Box, Cluster, Service, What string
	Error                                  string
	Holders                                []string
	Since                                  time.Time
	Sessions, Transfers                    int
	HAProxy, Keepalived, OS                string
	Kubernetes                             string
	Nodes                                  []struct {
		Service string
		Up, All int
	}
	Pods []struct {
		Pod, Node, State, Digest string
		Ready                    bool
	}
	Drained    *struct{ By string }
	Generation int
	Exit       *int `json:"exit_code"`
}

// nodesUp tells whether both boxes hold every node of their one service for alive.
func nodesUp(t *testing.T, file string) bool {
	t.Helper()
	all := statusEvents(t, on(t, "jump", ftpdeploy, "-f", file, "status", "--json", "--timeout", "30s").must(t))
	return !slices.ContainsFunc([]string{boxA, boxB}, func(box string) bool {
		n := all["status.box "+box].Nodes
		return len(n) != 1 || n[0].Up != n[0].All
	})
}

// statusSays holds what status says against what is there, also with a box and the
// cluster out of reach.
func statusSays(t *testing.T) {
	has, other := holder(t)
	h := hold(t, "203.0.113.50", "203.0.113.51")
	var took []float64
	var all map[string]statusEvent
	within(t, 30*time.Second, "all nodes are up", func() bool { return nodesUp(t, blueprint) })
	for range 5 {
		r := deploy(t, "status", "--json", "--timeout", "30s").must(t)
		took, all = append(took, r.took.Seconds()), statusEvents(t, r)
	}
	if broken, by := h.end(t); broken > 0 {
		t.Errorf("sessions broke: %v", by)
	}
	if v := all["status.vip ftp"]; fmt.Sprint(v.Holders) != "["+has+"]" || v.Since.IsZero() || time.Since(v.Since) < 0 {
		t.Errorf("the VIP, which %s holds: %+v", has, v)
	}
	for _, box := range []string{has, other} {
		b := all["status.box "+box]
		if b.HAProxy == "" || b.Keepalived == "" || !strings.Contains(b.OS, "Debian") || len(b.Nodes) != 1 || b.Nodes[0].Up != 3 || b.Nodes[0].All != 3 {
			t.Errorf("%s: %+v", box, b)
		}
		if want := map[string]int{has: 2}[box]; b.Sessions != want {
			t.Errorf("%s has %d sessions, want %d", box, b.Sessions, want)
		}
	}
	if c := all["status.cluster lab"]; !strings.HasPrefix(c.Kubernetes, "v1.") {
		t.Errorf("the cluster: %+v", c)
	}
	if s := all["status.service vsftpd"]; len(s.Pods) != 1 || !s.Pods[0].Ready || !strings.HasPrefix(s.Pods[0].Digest, "sha256:") || s.Pods[0].Node == "" {
		t.Errorf("the pod: %+v", s)
	}
	if g, last := all["status.run generation"], all["status.run here"]; g.Generation == 0 || last.Exit == nil || *last.Exit != 0 {
		t.Errorf("generation %+v, last run %+v", g, last)
	}
	t.Logf("status: median %.2f s, longest %.2f s\n%s", median(took), maxOf(took), deploy(t, "status", "--timeout", "30s").must(t).stdout)

	lab(t, "fault", "link-cut", other, "management")
	r := deploy(t, "status", "--timeout", "6s").exits(t, 9).says(t, "held by "+has, other, "NOT KNOWN", "Kubernetes v1.")
	lab(t, "fault", "link-join", other, "management")
	t.Logf("with %s out of reach, waited for 6 s: %.2f s", other, r.took.Seconds())

	lab(t, "fault", "link-cut", "cp", "management")
	r = deploy(t, "status", "--timeout", "6s").exits(t, 9).says(t, "held by "+has, "3 of 3 nodes up", "cluster lab  NOT KNOWN")
	lab(t, "fault", "link-join", "cp", "management")
	t.Logf("without the cluster, waited for 6 s: %.2f s", r.took.Seconds())
	within(t, time.Minute, "the cluster is back", func() bool { return deploy(t, "status", "--timeout", "10s").code == 0 })
}

func maxOf(v []float64) (longest float64) {
	for _, x := range v {
		longest = max(longest, x)
	}
	return longest
}

// standbyBroken takes the workers' network from the standby, and from it alone: the
// service goes on, and verify names the box that would fail after a failover.
func standbyBroken(t *testing.T) {
	has, other := holder(t)
	lab(t, "fault", "link-cut", other, "workload")
	within(t, 30*time.Second, other+" is without nodes", func() bool {
		return strings.Contains(deploy(t, "status", "--timeout", "30s").must(t).stdout, "0 of 3 nodes up")
	})
	r := deploy(t, "verify").exits(t, 7).says(t, "(standby "+other+")")
	if !strings.Contains(r.stdout, "PASS  smoke \"end-to-end\" via "+net.JoinHostPort(vip, "21")) {
		t.Errorf("the VIP does not work any more:\n%s", r.stdout)
	}
	if now, _ := holder(t); now != has {
		t.Errorf("the VIP moved to %s", now)
	}
	lab(t, "fault", "link-join", other, "workload")
	within(t, 30*time.Second, other+" has its nodes", func() bool { return deploy(t, "verify").code == 0 })
}
