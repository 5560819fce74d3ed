package doctor

import (
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/kube"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/steps/ftp"
)

var vip = netip.MustParseAddr("203.0.113.15")

func stage(o ftp.Outcome) ftp.Stage { return ftp.Stage{Outcome: o, Took: 5 * time.Millisecond} }

// entered is a session that was let in.
func entered() ftp.Sight {
	return ftp.Sight{Connect: stage(ftp.OK), Greeting: stage(ftp.OK), Login: stage(ftp.OK)}
}

func everyPort() Ports {
	p := Ports{Failed: map[int]Failure{}}
	for n := 21100; n <= 21110; n++ {
		p.OK = append(p.OK, n)
	}
	return p
}

// well are the facts of a service on which nothing is wrong: two boxes, three workers.
func well() *Facts {
	f := &Facts{Wanted: Wanted{
		Service: "vsftpd", Namespace: "ftp", VIP: vip, VIPName: "ftp", Prefix: 32, Control: 21, First: 21100, Last: 21110,
		ControlNodePort: 30021, NodePortFirst: 32100, User: "partner", Client: 2 * time.Hour, Server: 2 * time.Hour,
	}}
	f.Here, f.Through = entered(), everyPort()
	f.Here.Tries = []ftp.Try{
		{Mode: ftp.PASV, Announced: netip.AddrPortFrom(vip, 21104), Connect: stage(ftp.OK), List: stage(ftp.OK)},
		{Mode: ftp.EPSV, Announced: netip.AddrPortFrom(netip.Addr{}, 21105), Connect: stage(ftp.OK), List: stage(ftp.OK)},
	}
	f.Cluster = &kube.Survey{
		Deployment: true, Replicas: 1, Serving: true, Progress: "1 of 1 pods serve",
		Pods:    []kube.PodState{{Name: "vsftpd-1", Node: "worker-1", Ready: true, Env: map[string]string{"PASV_ADDRESS": vip.String()}}},
		Service: true, NodePorts: map[int]int{21: 30021}, Policy: "Cluster", Matched: 1, Endpoints: 1,
	}
	for p := 21100; p <= 21110; p++ {
		f.Cluster.NodePorts[p] = p + 11000
	}
	for _, b := range []string{"haproxy-a", "haproxy-b"} {
		f.Boxes = append(f.Boxes, Box{
			Name: b, HAProxy: "active", Keepalived: "active", NonlocalBind: "1", State: "BACKUP", Fit: Yes,
			Own: entered(), OwnPorts: everyPort(), PeerReach: ftp.OK,
		})
	}
	f.Boxes[0].Holds, f.Boxes[0].Prefix, f.Boxes[0].State = true, 32, "MASTER"
	for i := 1; i <= 3; i++ {
		address := fmt.Sprintf("198.51.100.2%d", i)
		f.Workers = append(f.Workers, address)
		f.Cluster.Nodes = append(f.Cluster.Nodes, kube.NodeState{Name: fmt.Sprintf("worker-%d", i), Addresses: []string{address}, Ready: true})
		for _, b := range []string{"haproxy-a", "haproxy-b"} {
			f.Cells = append(f.Cells, Cell{Box: b, Worker: address, Control: entered(), Ports: everyPort(), Proxy: ftp.OK})
		}
	}
	f.PodHasSecret, f.SecretIsWanted = Yes, Yes
	return f
}

// lose has the client meet a service that does not take its connection.
func (f *Facts) lose(o ftp.Outcome) {
	f.Here, f.Through = ftp.Sight{Connect: stage(o)}, Ports{}
}

// close has ports of a way be closed.
func (p *Ports) close(o ftp.Outcome, text string, ports ...int) {
	for _, n := range ports {
		p.OK = slices.DeleteFunc(p.OK, func(m int) bool { return m == n })
		p.Failed[n] = Failure{o, text}
	}
}

// cells are those of a worker, or with "" all of them, that a test changes.
func (f *Facts) cells(worker string, change func(*Cell)) {
	for i := range f.Cells {
		if worker == "" || f.Cells[i].Worker == worker {
			change(&f.Cells[i])
		}
	}
}

func refused(c *Cell) { c.Control, c.Ports = ftp.Sight{Connect: stage(ftp.Refused)}, Ports{} }
func silent(c *Cell)  { c.Control, c.Ports = ftp.Sight{Connect: stage(ftp.Silent)}, Ports{} }

func noPod(f *Facts, reason, kind, detail string) {
	f.Cluster.Serving, f.Cluster.Progress, f.Cluster.Endpoints = false, "0 of 1 pods serve", 0
	if reason != "" {
		f.Cluster.Stuck = &kube.StuckError{Object: kube.Ref{Kind: kind, Namespace: "ftp", Name: "x"}, Reason: reason, Detail: detail}
	}
	f.cells("", refused)
	f.lose(ftp.Refused)
	for i := range f.Boxes {
		b := &f.Boxes[i]
		b.Fit, b.State, b.Holds = No, "FAULT", false
		b.Own, b.OwnPorts = ftp.Sight{Connect: stage(ftp.OK), Greeting: stage(ftp.Closed)}, Ports{}
		b.Servers = []remote.Proxy{{Name: "vsftpd_control", Server: f.Workers[0], Status: "DOWN", Answer: "L4CON Connection refused"}}
	}
}

func TestDiagnose(t *testing.T) {
	const edge = "198.51.100.22"
	for _, c := range []struct {
		name       string
		change     func(*Facts)
		id         string // of the primary verdict; "" = nothing is wrong
		confidence Confidence
		says       string
	}{
		{name: "nothing is wrong", change: func(*Facts) {}},
		{"image", func(f *Facts) { noPod(f, "ImagePullBackOff", "Pod", "image x: not found") }, "pod-image", Certain, "cannot be pulled"},
		{"crash", func(f *Facts) { noPod(f, "CrashLoopBackOff", "Pod", "exit code 1; last log line: broken") }, "pod-crash", Certain, "last log line: broken"},
		{"memory", func(f *Facts) {
			noPod(f, "CrashLoopBackOff", "Pod", "exit code 137 (OOMKilled)")
			f.Cluster.Pods[0].ExitReason = "OOMKilled"
		}, "pod-memory", Certain, "resources.limits.memory"},
		{"silent end with code 2: what vsftpd does with settings that it rejects, and others may do too", func(f *Facts) {
			noPod(f, "CrashLoopBackOff", "Pod", "exit code 2; its log is empty")
			f.Cluster.Pods[0].Exit = 2
		}, "pod-crash", Likely, "rejects its configuration"},
		{"unschedulable", func(f *Facts) { noPod(f, "Unschedulable", "Pod", "0/3 nodes are available") }, "pod-unschedulable", Certain, "0/3 nodes"},
		{"claim", func(f *Facts) { noPod(f, "ProvisioningFailed", "PersistentVolumeClaim", "no class fast") }, "pod-volume", Certain, "storage_class"},
		{"admission", func(f *Facts) { noPod(f, "FailedCreate", "Deployment", "violates PodSecurity") }, "pod-refused", Certain, "Pod Security"},
		{"secret is gone", func(f *Facts) { noPod(f, "CreateContainerConfigError", "Pod", "secret not found") }, "pod-config", Certain, "secret not found"},
		{"probe", func(f *Facts) {
			noPod(f, "", "", "")
			f.Cluster.Note = "pod x: Unhealthy: Readiness probe failed: connection refused"
		}, "pod-not-ready", Certain, "Readiness probe failed"},
		{"not ready, and nobody says why", func(f *Facts) { noPod(f, "", "", "") }, "pod-not-ready", Likely, ""},
		{"scaled", func(f *Facts) { noPod(f, "", "", ""); f.Cluster.Replicas = 0 }, "pod-scaled-down", Certain, "scaled to 0"},
		{"deployment", func(f *Facts) { noPod(f, "", "", ""); f.Cluster.Deployment = false }, "deployment-missing", Certain, "ftpdeploy apply"},
		{"the API server is away, and FTP goes on", func(f *Facts) { f.Cluster, f.Away = nil, "no answer" }, "cluster-unreachable", Likely, "no answer"},
		{"two pods", func(f *Facts) { f.Cluster.Replicas, f.Cluster.Endpoints = 2, 2 }, "pods-many", Certain, "--replicas 1"},
		{"service", func(f *Facts) { noPod(f, "", "", ""); f.Cluster.Serving, f.Cluster.Service = true, false }, "service-missing", Certain, "no Service"},
		{"service may not be read", func(f *Facts) {
			f.Cluster.Service, f.Cluster.Unasked = false, []string{"get Service: forbidden"}
		}, "", "", ""},
		{"selector", func(f *Facts) { noPod(f, "", "", ""); f.Cluster.Serving, f.Cluster.Matched = true, 0 }, "service-selector", Certain, "selects no pod"},
		{"control NodePort", func(f *Facts) {
			noPod(f, "", "", "")
			f.Cluster.Serving, f.Cluster.Endpoints, f.Cluster.NodePorts[21] = true, 1, 30022
		}, "wrong-node-port", Certain, "port 21 has NodePort 30022"},
		{"passive port is not in the Service", func(f *Facts) {
			delete(f.Cluster.NodePorts, 21107)
			f.cells("", func(c *Cell) { c.Ports.close(ftp.Refused, "refused", 21107) })
			f.Through.close(ftp.Refused, "refused", 21107)
		}, "wrong-node-port", Certain, "port 21107 is not in the Service"},

		{"kube-proxy of a worker", func(f *Facts) { f.cells(edge, func(c *Cell) { refused(c); c.Proxy = ftp.Refused }) }, "kube-proxy-down", Certain, edge + ":10256"},
		{"rules of a worker", func(f *Facts) { f.cells(edge, refused) }, "kube-proxy-rules", Certain, "no rule"},
		{"rules of a worker, seen by one box only", func(f *Facts) {
			f.cells(edge, refused)
			f.Cells = slices.DeleteFunc(f.Cells, func(c Cell) bool { return c.Box == "haproxy-b" })
		}, "kube-proxy-rules", Likely, ""},
		{"kube-proxy's health is nowhere to be had: it may be bound elsewhere", func(f *Facts) {
			f.cells("", func(c *Cell) { c.Proxy = ftp.Refused })
			f.cells(edge, refused)
		}, "kube-proxy-rules", Likely, "no rule"},
		{"worker is silent", func(f *Facts) { f.cells(edge, func(c *Cell) { silent(c); c.Proxy = ftp.Silent }) }, "worker-unreachable", Likely, ""},
		{"worker drops the control NodePort", func(f *Facts) { f.cells(edge, silent) }, "node-port-closed", Certain, "30021"},
		{"node is not ready", func(f *Facts) {
			f.Cluster.Nodes[1].Ready, f.Cluster.Nodes[1].Why = false, "NodeStatusUnknown"
			f.cells(edge, silent)
		}, "node-down", Certain, "NodeStatusUnknown"},
		{"node list", func(f *Facts) { f.Workers[1] = "198.51.100.99" }, "node-list", Certain, "198.51.100.99 is the address of no node"},
		{"worker drops one port", func(f *Facts) {
			f.cells(edge, func(c *Cell) { c.Ports.close(ftp.Silent, "timed out", 21104) })
		}, "node-port-closed", Certain, "NodePort 32104"},
		{"worker drops one port, and the other box has not drawn it", func(f *Facts) {
			f.cells(edge, func(c *Cell) {
				if c.Box == "haproxy-a" {
					c.Ports.close(ftp.Silent, "timed out", 21104)
				} else {
					c.Ports.OK = slices.DeleteFunc(c.Ports.OK, func(p int) bool { return p == 21104 })
				}
			})
		}, "node-port-closed", Likely, "NodePort 32104"},
		{"a path is closed", func(f *Facts) { f.Cells[2].Ports.close(ftp.Silent, "timed out", 21104) }, "path-closed", Likely, "haproxy-a -> " + edge},
		{"a port is closed everywhere", func(f *Facts) {
			f.cells("", func(c *Cell) { c.Ports.close(ftp.Refused, "refused", 21104) })
			f.Through.close(ftp.Closed, "closed", 21104)
		}, "port-closed-everywhere", Likely, "32104"},
		{"one box reaches no worker", func(f *Facts) {
			f.cells("", func(c *Cell) {
				if c.Box == "haproxy-a" {
					silent(c)
				}
			})
		}, "box-to-workers", Certain, "haproxy-a reaches no worker"},
		{"all workers refuse a ready pod", func(f *Facts) { f.cells("", refused); f.lose(ftp.Closed) }, "kube-proxy-down", Likely, "every worker"},
		{"all workers are silent", func(f *Facts) { f.cells("", silent); f.lose(ftp.Closed) }, "workers-unreachable", Likely, "dropped"},
		{"all workers are silent, and there is a policy", func(f *Facts) {
			f.cells("", silent)
			f.lose(ftp.Closed)
			f.Cluster.Policies = []string{"deny"}
		}, "network-policy", Likely, "deny"},

		{"address", func(f *Facts) {
			f.Here.Tries[0].Announced = netip.MustParseAddrPort("192.0.2.99:21104")
			f.Here.Tries[0].Connect, f.Here.Tries[0].List = stage(ftp.Silent), ftp.Stage{}
			f.Cluster.Pods[0].Env["PASV_ADDRESS"] = "192.0.2.99"
		}, "pasv-address", Certain, "PASV_ADDRESS=192.0.2.99"},
		{"range", func(f *Facts) {
			f.Here.Tries[1].Announced = netip.AddrPortFrom(netip.Addr{}, 21111)
			f.Here.Tries[1].Connect = stage(ftp.Refused)
			f.Here.Tries[1].List = ftp.Stage{}
		}, "pasv-range", Certain, "21111"},
		{"secret, of which nobody has taken notice", func(f *Facts) { f.PodHasSecret, f.SecretIsWanted = No, No }, "secret-not-rolled", Certain, "rollout restart"},
		{"password of the blueprint is not applied", func(f *Facts) {
			f.SecretIsWanted, f.SecretWorks = No, ftp.OK
			f.Here.Login, f.Here.Tries = stage(ftp.Denied), nil
		}, "password-pending", Certain, "ftpdeploy apply"},
		{"certificate that has expired", func(f *Facts) {
			f.Here.Login, f.Here.Tries = ftp.Stage{Outcome: ftp.Unsafe, Text: "the certificate expired at 2026-11-22 [FTP611]"}, nil
		}, "tls", Likely, "FTP611"},
		{"server that resumes no session of TLS", func(f *Facts) {
			text := "the data connection did not resume the TLS session of the control connection: 522 session reuse required [FTP614]"
			for i := range f.Here.Tries {
				f.Here.Tries[i].List = ftp.Stage{Outcome: ftp.Unsafe, Text: text}
			}
			f.Through.close(ftp.Unsafe, text, 21101, 21107)
			f.cells(edge, func(c *Cell) { c.Ports.close(ftp.Unsafe, text, 21103) })
			f.Boxes[0].OwnPorts.close(ftp.Unsafe, text, 21102)
		}, "tls", Likely, "FTP614"},
		{"server refuses the account", func(f *Facts) { f.Here.Login, f.Here.Tries = stage(ftp.Denied), nil }, "login-refused", Likely, "although the pod was started"},
		{"greeting", func(f *Facts) {
			slow := func(s *ftp.Sight) { s.Greeting = ftp.Stage{Outcome: ftp.OK, Took: 5 * time.Second} }
			f.cells("", func(c *Cell) { slow(&c.Control) })
			slow(&f.Here)
		}, "greeting-slow", Likely, "names"},

		{"haproxy of the holder", func(f *Facts) {
			f.Boxes[0].HAProxy, f.Boxes[0].Own = "inactive", ftp.Sight{Connect: stage(ftp.Refused)}
			f.lose(ftp.Refused)
		}, "haproxy-stopped", Certain, "haproxy-a"},
		{"haproxy of the standby", func(f *Facts) {
			f.Boxes[1].HAProxy, f.Boxes[1].Own = "failed", ftp.Sight{Connect: stage(ftp.Refused)}
		}, "haproxy-stopped", Certain, "haproxy -c"},
		{"keepalived of the standby", func(f *Facts) { f.Boxes[1].Keepalived = "inactive" }, "keepalived-stopped", Certain, "haproxy-b"},
		{"keepalived of both", func(f *Facts) {
			f.Boxes[0].Keepalived, f.Boxes[1].Keepalived, f.Boxes[0].Holds = "inactive", "inactive", false
			f.lose(ftp.Silent)
		}, "keepalived-stopped", Certain, ""},
		{"held twice, and both are masters", func(f *Facts) {
			f.Boxes[1].Holds, f.Boxes[1].Prefix, f.Boxes[1].State = true, 32, "MASTER"
		}, "vrrp-blocked", Certain, "112"},
		{"held twice, once by hand", func(f *Facts) { f.Boxes[1].Holds, f.Boxes[1].Prefix = true, 32 }, "vip-held-twice", Certain, "by hand"},
		{"held twice, and keepalived was told otherwise", func(f *Facts) {
			f.Boxes[1].Holds, f.Boxes[1].State = true, "MASTER"
			f.Boxes[1].Edits = []Edit{{Kind: "vrrp-config", Section: "vrrp_instance ftp", Want: "virtual_router_id 51", Has: "virtual_router_id 52"}}
		}, "vrrp-config", Certain, "virtual_router_id 52"},
		{"held by none", func(f *Facts) { f.Boxes[0].Holds, f.Boxes[0].State = false, "FAULT"; f.lose(ftp.Silent) }, "vip-held-by-none", Likely, "FAULT"},
		{"held by none, for both are drained", func(f *Facts) {
			f.Boxes[0].Holds, f.Boxes[0].Drained, f.Boxes[1].Drained = false, "later", "later"
			f.lose(ftp.Silent)
		}, "vip-held-by-none", Certain, "resume"},
		{"mask", func(f *Facts) { f.Boxes[0].Prefix = 23 }, "vip-mask", Certain, "/23"},
		{"box is off", func(f *Facts) { f.Boxes[1] = Box{Name: "haproxy-b", Off: true, Unreached: "the machine is off"} }, "box-off", Certain, "haproxy-b"},
		{"box is not entered", func(f *Facts) { f.Boxes[1] = Box{Name: "haproxy-b", Unreached: "no answer"} }, "box-unreachable", Certain, "--replace"},
		{"box lets nobody in", func(f *Facts) { f.Boxes[1] = Box{Name: "haproxy-b", Unreached: "no key", Refused: true} }, "box-login", Certain, "ssh block"},
		{"clock", func(f *Facts) { f.Boxes[1].Ahead = -10 * time.Minute }, "clock-off", Certain, "behind"},
		{"clock is a little off", func(f *Facts) { f.Boxes[1].Ahead = 3 * time.Second }, "", "", ""},
		{"disk", func(f *Facts) { f.Boxes[1].Full = []string{"/var/log (/dev/sda1)"} }, "disk-full", Certain, "/var/log"},
		{"setting", func(f *Facts) { f.Boxes[1].NonlocalBind = "0" }, "nonlocal-bind", Certain, "nonlocal"},
		{"firewalld", func(f *Facts) { f.Boxes[0].Firewall = "21102-21110/tcp" }, "box-firewall", Certain, "21102"},
		{"a box drops ports, and nothing shows why", func(f *Facts) {
			f.Boxes[0].OwnPorts.close(ftp.Silent, "timed out", 21102, 21103)
			f.Through.close(ftp.Silent, "timed out", 21102, 21103)
		}, "box-firewall", Likely, "21102-21103"},
		{"a box drops ports, and its rule shows", func(f *Facts) {
			f.Boxes[0].OwnPorts.close(ftp.Silent, "timed out", 21102, 21103)
			f.Boxes[0].Filters = []string{"-A INPUT -p tcp -m tcp --dport 21102:21110 -j DROP"}
		}, "box-firewall", Certain, "21102:21110"},
		{"a box drops ports, and its rule is about others", func(f *Facts) {
			f.Boxes[0].OwnPorts.close(ftp.Silent, "timed out", 21102, 21103)
			f.Boxes[0].Filters = []string{"-A INPUT -p tcp -m tcp --dport 8080 -j DROP"}
		}, "box-firewall", Likely, ""},
		{"a box refuses ports", func(f *Facts) { f.Boxes[0].OwnPorts.close(ftp.Refused, "refused", 21110) }, "range-narrow", Likely, "21110"},
		{"a box holds all workers for dead", func(f *Facts) {
			f.Boxes[0].Own = ftp.Sight{Connect: stage(ftp.OK), Greeting: stage(ftp.Closed)}
			f.Boxes[0].Servers = []remote.Proxy{{Name: "vsftpd_control", Server: edge, Status: "DOWN", Answer: "L7RSP"}}
		}, "check-fails", Certain, "L7RSP"},
		{"sticky line is missing", func(f *Facts) {
			f.Boxes[0].Edits = []Edit{{Kind: "sticky-missing", Section: "backend vsftpd_passive", Want: "stick on src table vsftpd_control"}}
			f.Here.Tries[1].List = ftp.Stage{Outcome: ftp.Denied, Text: "LIST: 425 Security: Bad IP connecting."}
		}, "sticky-missing", Certain, "425 Security"},
		{"stick table is lost: the same reply, and no line is missing", func(f *Facts) {
			f.Here.Tries[1].List = ftp.Stage{Outcome: ftp.Denied, Text: "LIST: 425 Security: Bad IP connecting."}
		}, "data-other-worker", Likely, "show table"},
		{"timeouts of the blueprint", func(f *Facts) { f.Client = time.Second }, "timeouts-short", Likely, "1s"},
		{"timeouts of the blueprint have cut sessions", func(f *Facts) { f.Client, f.Boxes[0].Cut = time.Second, []string{"cD"} }, "timeouts-short", Certain, "cD"},
		{"vip leads elsewhere", func(f *Facts) { f.lose(ftp.Silent) }, "vip-path", Likely, "arping"},
		{"a client fails and nothing else", func(f *Facts) { f.Here.Tries[0].List = stage(ftp.Closed) }, "unexplained", Likely, "listing closed"},
		{"nothing was looked at", func(f *Facts) { *f = Facts{Wanted: f.Wanted} }, "", "", ""},
		{"what breaks comes before what only may", func(f *Facts) {
			f.Boxes[1].Ahead = time.Hour
			f.Boxes[1].Keepalived = "inactive"
			f.Here.Login, f.Here.Tries = stage(ftp.Denied), nil
		}, "login-refused", Likely, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := well()
			c.change(f)
			found := Diagnose(*f)
			if c.id == "" {
				if len(found) > 0 {
					t.Fatalf("found %+v, want nothing", found)
				}
				return
			}
			if len(found) == 0 {
				t.Fatal("found nothing")
			}
			v := found[0]
			if v.ID != c.id || v.Confidence != c.confidence {
				t.Errorf("found %s (%s): %s %q, want %s (%s)", v.ID, v.Confidence, v.Text, v.Evidence, c.id, c.confidence)
			}
			if text := v.Text + "\n" + strings.Join(v.Evidence, "\n") + "\n" + v.Fix; !strings.Contains(text, c.says) {
				t.Errorf("it does not say %q: %s", c.says, text)
			}
			for _, v := range found {
				if v.Fix == "" || v.Text == "" || len(v.Evidence) == 0 || v.Evidence[0] == "" && v.ID != "box-off" {
					t.Errorf("a verdict lacks something: %+v", v)
				}
			}
		})
	}
}

// What is edited of another service is none of this one's causes.
func TestEditsOfAnother(t *testing.T) {
	w := Wanted{Service: "vsftpd", VIP: vip, VIPName: "ftp"}
	for section, line := range map[string]string{
		"backend second_control": "stick on src", "backend second_passive": "server 198.51.100.21 198.51.100.21:+1", "vrrp_instance second {": "priority 1",
	} {
		if got := kindOf(w, Edit{Section: section, Want: line}); got != "config-edited" {
			t.Errorf("%s: %s", section, got)
		}
	}
}

func TestEdits(t *testing.T) {
	const want = `# ftpdeploy deployment=lab
defaults
    timeout connect 5s
    timeout client 2h
frontend vsftpd_passive_fe
    bind 203.0.113.15:21100-21110
    bind 203.0.113.11:21100-21110
backend vsftpd_passive
    stick on src table vsftpd_control
    server 198.51.100.21 198.51.100.21:+11000 id 1 track vsftpd_control/198.51.100.21
    server 198.51.100.22 198.51.100.22:+11000 id 2 track vsftpd_control/198.51.100.22
vrrp_instance ftp {
    virtual_router_id 51
    virtual_ipaddress {
        203.0.113.15/32 dev frontend
    }
}
`
	for _, c := range []struct{ old, new, kind, text string }{
		{"stick on src table vsftpd_control", "", "sticky-missing", `backend vsftpd_passive: lacks "stick on src table vsftpd_control"`},
		{"timeout client 2h", "timeout client 1s", "timeouts-short", `defaults: "timeout client 1s", to be "timeout client 2h"`},
		{"timeout connect 5s", "timeout connect 9s", "config-edited", ""},
		{"203.0.113.15:21100-21110", "203.0.113.15:21100-21105", "range-narrow", ""},
		{"198.51.100.22:+11000", "198.51.100.22:+11001", "wrong-node-port", ""},
		{"server 198.51.100.22 198.51.100.22:", "server 198.51.100.99 198.51.100.99:", "node-list", ""},
		{"/32", "/23", "vip-mask", ""},
		{"_id 51", "_id 52", "vrrp-config", ""},
		{"deployment=lab", "deployment=lab, and a comment", "", ""},
		{"    timeout client 2h\n", "    timeout   client 2h\n\n", "", ""},
	} {
		edits := Edits(well().Wanted, want, strings.Replace(want, c.old, c.new, 1))
		if c.kind == "" {
			if len(edits) > 0 {
				t.Errorf("%s: found %v, want nothing", c.new, edits)
			}
			continue
		}
		if len(edits) == 0 || edits[0].Kind != c.kind || !strings.Contains(edits[0].String(), c.text) {
			t.Errorf("%s instead of %s: found %v, want %s", c.new, c.old, edits, c.kind)
		}
	}
}

func TestJudge(t *testing.T) {
	lost := func(texts ...string) []ftp.Try {
		var all []ftp.Try
		for _, text := range texts {
			try := ftp.Try{Mode: ftp.EPSV, Announced: netip.AddrPortFrom(netip.Addr{}, 21100), Connect: stage(ftp.OK), List: ftp.Stage{Outcome: ftp.Denied, Text: text}}
			if text == "" {
				try.List = stage(ftp.OK)
			}
			all = append(all, try)
		}
		return all
	}
	base := func() Outside {
		o := Outside{Host: "203.0.113.20", Port: 21, User: "partner", Sight: entered()}
		o.Sight.Tries = lost("", "")
		return o
	}
	atOnce := ftp.Stage{Outcome: ftp.Closed, Took: time.Millisecond}
	ended, refused := []Knock{{21100, atOnce}}, []Knock{{21100, stage(ftp.Refused)}}
	watched := func(first ftp.Stage, opened ...time.Duration) []Watch {
		all := []Watch{{21100, first, 0}, {21101, first, 0}}
		for i, d := range opened {
			all[i].Opened = d
		}
		return all
	}
	const bad = "LIST: 425 Security: Bad IP connecting."
	for _, c := range []struct {
		name       string
		change     func(*Outside)
		id         string
		confidence Confidence
	}{
		{"serves", func(*Outside) {}, "", ""},
		{"nobody listens", func(o *Outside) { o.Sight = ftp.Sight{Connect: stage(ftp.Refused)} }, "control-refused", Likely},
		{"no answer", func(o *Outside) { o.Sight = ftp.Sight{Connect: stage(ftp.Silent)} }, "control-silent", Likely},
		{"closed at once", func(o *Outside) {
			o.Sight = ftp.Sight{Connect: stage(ftp.OK), Greeting: stage(ftp.Closed)}
		}, "control-closed", Likely},
		{"no greeting", func(o *Outside) {
			o.Sight = ftp.Sight{Connect: stage(ftp.OK), Greeting: stage(ftp.Silent)}
		}, "greeting-slow", Likely},
		{"login", func(o *Outside) { o.Sight.Login, o.Sight.Tries = stage(ftp.Denied), nil }, "login-refused", Likely},
		{"private address to the world", func(o *Outside) {
			o.Sight.Tries = []ftp.Try{{Mode: ftp.PASV, Announced: netip.MustParseAddrPort("10.42.0.9:21100"), Connect: stage(ftp.Silent)}}
			o.Host = "8.8.8.8"
		}, "pasv-address", Certain},
		{"another address, which works: it may be meant so", func(o *Outside) {
			o.Sight.Tries = []ftp.Try{{Mode: ftp.PASV, Announced: netip.MustParseAddrPort("203.0.113.21:21100"), Connect: stage(ftp.OK), List: stage(ftp.OK)}}
		}, "pasv-address", Likely},
		{"health checks: ports are ended at once while they listen, and someone takes them", func(o *Outside) {
			o.Sight.Tries, o.Watched, o.Idle, o.Taken = lost(bad, bad), watched(atOnce), ended, []string{"425 Security: Bad IP connecting.", "425 Security: Bad IP connecting."}
		}, "passive-health-checked", Certain},
		{"a balancer that does not even listen for dead servers", func(o *Outside) {
			o.Sight.Tries, o.Watched, o.Idle, o.Taken = lost(bad, bad), watched(stage(ftp.Refused)), refused, []string{"426 Failure writing network stream.", "426 Failure writing network stream."}
		}, "passive-health-checked", Certain},
		{"someone takes listeners, once: it may be another client", func(o *Outside) {
			o.Sight.Tries, o.Watched, o.Idle, o.Taken = lost(bad, bad), watched(atOnce), ended, []string{"426 Failure writing network stream.", ""}
		}, "passive-health-checked", Likely},
		{"a server that waits for a second only says 425, and nobody took its port", func(o *Outside) {
			o.Sight.Tries, o.Watched, o.Idle, o.Taken = lost("", bad), watched(stage(ftp.OK)), refused, []string{"425 Failed to establish connection.", "425 Failed to establish connection."}
		}, "data-other-source", Likely},
		{"ended at once, and nobody is seen to take them", func(o *Outside) {
			o.Sight.Tries, o.Watched, o.Idle, o.Taken = lost(bad, bad), watched(atOnce), ended, []string{"", ""}
		}, "passive-health-checked", Likely},
		{"ports begin to work when they have listened for a while", func(o *Outside) {
			o.Sight.Tries, o.Watched, o.Idle, o.Taken = lost("silent", "silent"), watched(atOnce, 4*time.Second, 5*time.Second), ended, []string{"", ""}
		}, "passive-health-checked", Certain},
		{"likewise, and the balancer refuses instead", func(o *Outside) {
			o.Sight.Tries, o.Watched, o.Idle, o.Taken = lost("silent", "silent"), watched(stage(ftp.Refused), 4*time.Second, 5*time.Second), refused, []string{"", ""}
		}, "passive-health-checked", Certain},
		{"one of two ports begins to work: that may be chance", func(o *Outside) {
			o.Sight.Tries, o.Watched, o.Idle, o.Taken = lost("silent", "silent"), watched(atOnce, 4*time.Second), ended, []string{"", ""}
		}, "passive-health-checked", Likely},
		{"two nodes and no check", func(o *Outside) {
			o.Sight.Tries, o.Watched, o.Idle, o.Taken = lost(bad, ""), watched(stage(ftp.OK)), refused, []string{"", ""}
		}, "data-other-source", Likely},
		{"firewall", func(o *Outside) {
			o.Sight.Tries = lost("", "")
			for i := range o.Sight.Tries {
				o.Sight.Tries[i].Connect, o.Sight.Tries[i].List = stage(ftp.Silent), ftp.Stage{}
			}
			o.Watched, o.Taken = watched(stage(ftp.Silent)), []string{"", ""}
		}, "passive-dropped", Likely},
		{"no port forwarding", func(o *Outside) {
			o.Sight.Tries = lost("", "")
			for i := range o.Sight.Tries {
				o.Sight.Tries[i].Connect, o.Sight.Tries[i].List = stage(ftp.Refused), ftp.Stage{}
			}
			o.Watched, o.Idle, o.Taken = watched(stage(ftp.Refused)), refused, []string{"", ""}
		}, "passive-refused", Likely},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := base()
			c.change(&o)
			found := Judge(o)
			switch {
			case c.id == "" && len(found) > 0:
				t.Errorf("found %+v, want nothing", found)
			case c.id != "" && (len(found) == 0 || found[0].ID != c.id || found[0].Confidence != c.confidence):
				t.Errorf("found %+v, want %s (%s)", found, c.id, c.confidence)
			}
		})
	}
}

// TestDocumented holds the table of the manual to the verdicts that there are.
func TestDocumented(t *testing.T) {
	manual, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	ids := slices.Clone(editKinds)
	for _, file := range []string{"diagnose.go", "boxes.go", "address.go"} {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?:\bID(?:, v\.\w+)*(?: =|:)\s+|one\()"([a-z-]+)"`).FindAllStringSubmatch(string(source), -1) {
			ids = append(ids, m[1])
		}
	}
	if len(ids) < 50 {
		t.Fatalf("found only %d verdicts in the source: %v", len(ids), ids)
	}
	for _, id := range ids {
		if !strings.Contains(string(manual), "`"+id+"`") {
			t.Errorf("docs/operations.md does not have %s", id)
		}
	}
}
