package e2e

import (
	"cmp"
	"fmt"
	"os/exec"
	"path"
	"strings"
	"testing"
	"time"
)

// illness is a planted fault, and what doctor is to name.
type illness struct {
	name  string
	cause string // the id of the verdict
	plant func(t *testing.T)
	heal  func(t *testing.T)
	env   []string // of doctor
	long  bool     // in the long form only
}

// mending is what heals beside the illness's own heal: a plant that chose a machine adds to it.
var mending []func(*testing.T)

func afterwards(heal func(*testing.T)) { mending = append(mending, heal) }

func (i illness) mend(t *testing.T) {
	if i.heal != nil {
		i.heal(t)
	}
	for _, heal := range mending {
		heal(t)
	}
	mending = nil
}

// verdictBound is the time that a verdict may take.
const verdictBound = 20 * time.Second

// applied heals what ftpdeploy itself takes back.
func applied(t *testing.T) { deploy(t, "apply", "--yes").must(t) }

// patched has someone else change the Deployment, and waits until a pod says what comes of it.
func patched(patch, says string) func(*testing.T) {
	return func(t *testing.T) {
		byHand(t, "api", "PATCH", "/apis/apps/v1/namespaces/ftp/deployments/vsftpd", patch)
		podsSay(t, says)
	}
}

func podsSay(t *testing.T, text string) {
	t.Helper()
	within(t, 60*time.Second, "the pods or their events say "+text, func() bool {
		return strings.Contains(byHand(t, "api", "GET", "/api/v1/namespaces/ftp/pods")+byHand(t, "api", "GET", "/api/v1/namespaces/ftp/events"), text)
	})
}

// ofContainer is a patch of the Deployment's container.
func ofContainer(fields string) string {
	return `{"spec":{"template":{"spec":{"containers":[{"name":"vsftpd",` + fields + `}]}}}}`
}

// holding runs on the box that holds the VIP, standing on the one that does not.
func holding(do func(t *testing.T, box string)) func(*testing.T) {
	return func(t *testing.T) {
		has, _ := holder(t)
		do(t, has)
	}
}

func standing(do func(t *testing.T, box string)) func(*testing.T) {
	return func(t *testing.T) {
		_, other := holder(t)
		do(t, other)
	}
}

// altered changes a file of a box by sed, as a person would, and has its daemon load it;
// unaltered puts it back as it was, the time of its last change too.
func altered(t *testing.T, box, file, expression string) {
	t.Helper()
	unit := path.Base(path.Dir(file))
	shell(t, box, fmt.Sprintf(`cp -p %[1]s /root/%[2]s.kept; sed -E %[3]s /root/%[2]s.kept >/root/%[2]s.new
		! cmp -s /root/%[2]s.new %[1]s; cat /root/%[2]s.new >%[1]s; systemctl reload %[2]s`, file, unit, "'"+expression+"'"))
}

func unaltered(file string) func(*testing.T) {
	unit := path.Base(path.Dir(file))
	return onBoxes(fmt.Sprintf(`[ ! -e /root/%[2]s.kept ] || { cp -p /root/%[2]s.kept %[1]s; rm /root/%[2]s.kept; systemctl reload %[2]s; }`, file, unit))
}

const (
	haproxyFile    = "/etc/haproxy/haproxy.cfg"
	keepalivedFile = "/etc/keepalived/keepalived.conf"
)

// bothAltered changes haproxy.cfg on both boxes.
func bothAltered(expression string) func(*testing.T) {
	return func(t *testing.T) {
		for _, box := range []string{boxA, boxB} {
			altered(t, box, haproxyFile, expression)
		}
	}
}

func onWorker(t *testing.T, script string) { shell(t, "worker-2", script) }

func faulty(words ...string) func(*testing.T) {
	return func(t *testing.T) { lab(t, append([]string{"fault"}, words...)...) }
}

var illnesses = []illness{
	{
		name: "a worker drops one passive port", cause: "node-port-closed",
		plant: faulty("drop-port", "worker-2", "32104"), heal: faulty("undrop-port", "worker-2", "32104"),
	},
	{
		name: "kube-proxy is stopped on a worker, without its rules", cause: "kube-proxy-down",
		plant: func(t *testing.T) {
			lab(t, "fault", "stop", "kube-proxy", "worker-2")
			onWorker(t, `iptables-save | grep -v -- '-A KUBE-\(NODEPORTS\|SERVICES\)' | iptables-restore`)
		},
		heal: faulty("start", "kube-proxy", "worker-2"),
	},
	{
		name: "the image cannot be pulled", cause: "pod-image",
		plant: patched(ofContainer(`"image":"docker.io/ftpdeploy/vsftpd:none"`), "ImagePull"), heal: applied,
	},
	{
		name: "the Secret is changed, and the pod is not", cause: "secret-not-rolled",
		plant: func(t *testing.T) {
			kept := byHand(t, "secret-get", "FTP_PASS")
			byHand(t, "secret", "FTP_PASS", "of-tomorrow")
			afterwards(func(t *testing.T) { byHand(t, "secret", "FTP_PASS", kept) })
		},
	},
	{
		name: "the stick line is missing on the holder", cause: "sticky-missing",
		plant: holding(func(t *testing.T, box string) {
			altered(t, box, haproxyFile, `/_passive$/,/^$/{/stick on src|balance|hash-type/d}`)
		}),
		heal: unaltered(haproxyFile),
	},
	{
		name: "VRRP does not get through", cause: "vrrp-blocked",
		plant: func(t *testing.T) {
			lab(t, "fault", "drop-vrrp", boxA)
			lab(t, "fault", "drop-vrrp", boxB)
			bothHold(t)
		},
		heal: func(t *testing.T) {
			lab(t, "fault", "undrop-vrrp", boxA)
			lab(t, "fault", "undrop-vrrp", boxB)
			holder(t)
		},
	},
	{
		name: "HAProxy is stopped on the standby", cause: "haproxy-stopped",
		plant: standing(func(t *testing.T, box string) { shell(t, box, "systemctl stop haproxy") }), heal: onBoxes("systemctl start haproxy"),
	},
	{
		name: "a filter before the holder drops passive ports", cause: "box-firewall",
		plant: holding(func(t *testing.T, box string) {
			for p := 21107; p <= 21110; p++ {
				lab(t, "fault", "drop-port", box, fmt.Sprint(p))
				afterwards(func(t *testing.T) { lab(t, "fault", "undrop-port", box, fmt.Sprint(p)) })
			}
		}),
	},

	{
		name: "a worker drops the control NodePort", cause: "node-port-closed", long: true,
		plant: faulty("drop-port", "worker-2", "30021"), heal: faulty("undrop-port", "worker-2", "30021"),
	},
	{
		name: "rules of kube-proxy are gone, and it runs", cause: "kube-proxy-rules", long: true,
		plant: func(t *testing.T) {
			onWorker(t, `iptables -t nat -I PREROUTING -p tcp --dport 30021 -j REDIRECT --to-ports 9`)
		},
		heal: func(t *testing.T) {
			onWorker(t, `iptables -t nat -D PREROUTING -p tcp --dport 30021 -j REDIRECT --to-ports 9`)
		},
	},
	{
		name: "one way from a box to a worker is closed for a port", cause: "path-closed", long: true,
		plant: func(t *testing.T) {
			onWorker(t, "iptables -t raw -I PREROUTING -p tcp -s 198.51.100.11 --dport 32104 -j DROP")
		},
		heal: func(t *testing.T) {
			onWorker(t, "iptables -t raw -D PREROUTING -p tcp -s 198.51.100.11 --dport 32104 -j DROP")
		},
	},
	{
		name: "a worker loses its power", cause: "node-down", long: true,
		plant: func(t *testing.T) {
			lab(t, "fault", "node-kill", idleWorker(t))
			within(t, 60*time.Second, "a node is not ready", func() bool {
				return strings.Contains(byHand(t, "api", "GET", "/api/v1/nodes"), "NodeStatusUnknown")
			})
		},
		heal: func(t *testing.T) {
			for _, w := range []string{"worker-1", "worker-2", "worker-3"} {
				lab(t, "fault", "node-start", w)
			}
		},
	},
	{
		name: "a box is cut off from the workers", cause: "box-to-workers", long: true,
		plant: faulty("link-cut", boxB, "workload"), heal: faulty("link-join", boxB, "workload"),
	},

	{
		name: "the server crashes", cause: "pod-crash", long: true,
		plant: patched(ofContainer(`"image":"docker.io/ftpdeploy/vsftpd:crash"`), "CrashLoopBackOff"), heal: applied,
	},
	{
		name: "no node takes the pod", cause: "pod-unschedulable", long: true,
		plant: patched(`{"spec":{"template":{"spec":{"nodeSelector":{"ftplab.test/none":"such"}}}}}`, "Unschedulable"),
		heal: func(t *testing.T) {
			byHand(t, "api", "PATCH", "/apis/apps/v1/namespaces/ftp/deployments/vsftpd", `{"spec":{"template":{"spec":{"nodeSelector":null}}}}`)
			applied(t)
		},
	},
	{
		name: "a claim is of a class that is not there", cause: "pod-volume", long: true,
		plant: func(t *testing.T) {
			byHand(t, "api", "POST", "/api/v1/namespaces/ftp/persistentvolumeclaims",
				`{"metadata":{"name":"lost"},"spec":{"accessModes":["ReadWriteOnce"],"storageClassName":"none","resources":{"requests":{"storage":"1Gi"}}}}`)
			patched(`{"spec":{"template":{"spec":{"volumes":[{"name":"home","persistentVolumeClaim":{"claimName":"lost"}}]}}}}`, `storageclass.storage.k8s.io \"none\" not found`)(t)
		},
		heal: func(t *testing.T) {
			applied(t)
			byHand(t, "api", "DELETE", "/api/v1/namespaces/ftp/persistentvolumeclaims/lost")
		},
	},
	{
		name: "the readiness probe fails", cause: "pod-not-ready", long: true,
		plant: patched(ofContainer(`"startupProbe":null,"readinessProbe":{"tcpSocket":{"port":9999},"periodSeconds":1,"failureThreshold":1}`), "Readiness probe failed"), heal: applied,
	},
	{
		name: "the pod's Secret is gone", cause: "pod-config", long: true,
		plant: patched(ofContainer(`"env":[{"name":"FTP_USER","valueFrom":{"secretKeyRef":{"name":"none","key":"x"}}}]`), "CreateContainerConfigError"), heal: applied,
	},
	{
		name: "the Deployment is scaled to 0", cause: "pod-scaled-down", long: true,
		plant: func(t *testing.T) {
			byHand(t, "api", "PATCH", "/apis/apps/v1/namespaces/ftp/deployments/vsftpd", `{"spec":{"replicas":0}}`)
		},
		heal: applied,
	},
	{
		name: "the Deployment is gone", cause: "deployment-missing", long: true,
		plant: func(t *testing.T) { byHand(t, "api", "DELETE", "/apis/apps/v1/namespaces/ftp/deployments/vsftpd") }, heal: applied,
	},
	{
		name: "the Service is gone", cause: "service-missing", long: true,
		plant: func(t *testing.T) { byHand(t, "service-delete", "ftp", "vsftpd") }, heal: applied,
	},
	{
		name: "the Service selects no pod", cause: "service-selector", long: true,
		plant: func(t *testing.T) {
			byHand(t, "api", "PATCH", "/api/v1/namespaces/ftp/services/vsftpd", `{"spec":{"selector":{"ftplab.test/none":"such"}}}`)
		},
		heal: func(t *testing.T) {
			byHand(t, "api", "PATCH", "/api/v1/namespaces/ftp/services/vsftpd", `{"spec":{"selector":{"ftplab.test/none":null}}}`)
		},
	},
	{
		name: "the Service has another NodePort", cause: "wrong-node-port", long: true,
		plant: func(t *testing.T) { byHand(t, "node-port", "21", "30022") }, heal: func(t *testing.T) { byHand(t, "node-port", "21", "30021") },
	},
	{
		name: "the pod announces another address", cause: "pasv-address", long: true,
		plant: func(t *testing.T) {
			byHand(t, "api", "PATCH", "/apis/apps/v1/namespaces/ftp/deployments/vsftpd", ofContainer(`"env":[{"name":"PASV_ADDRESS","value":"192.0.2.99"}]`))
			rolledOut(t, "192.0.2.99")
		},
		heal: func(t *testing.T) { deploy(t, "apply", "--yes", "--allow", "vip-change").must(t) },
	},
	{
		name: "the image has a password of its own", cause: "login-refused", long: true,
		plant: func(t *testing.T) {
			byHand(t, "api", "PATCH", "/apis/apps/v1/namespaces/ftp/deployments/vsftpd", ofContainer(`"image":"docker.io/ftpdeploy/vsftpd:other-password"`))
			rolledOut(t, "vsftpd:other-password")
		},
		heal: applied,
	},
	{
		name: "the blueprint has another password", cause: "password-pending", long: true,
		plant: func(*testing.T) {}, env: []string{"FTPDEPLOY_VAR_ftp_password=of-tomorrow"},
	},
	{
		name: "the server looks up names, and no DNS answers", cause: "greeting-slow", long: true,
		plant: func(t *testing.T) {
			onVsftpd(t, `echo tcp_wrappers=YES >>/etc/vsftpd/vsftpd.conf; echo 'ALL: .invalid' >/etc/hosts.deny; cp /etc/resolv.conf /etc/resolv.kept
				echo 'nameserver 198.18.0.53' >/etc/resolv.conf; kill -HUP $(busybox pidof vsftpd | busybox tr ' ' '\n' | busybox sort -n | busybox head -n1)`)
			for _, w := range []string{"worker-1", "worker-2", "worker-3"} {
				shell(t, w, "iptables -t raw -I PREROUTING -p udp --dport 53 -j DROP")
				afterwards(func(t *testing.T) { shell(t, w, "iptables -t raw -D PREROUTING -p udp --dport 53 -j DROP") })
			}
		},
		heal: func(t *testing.T) {
			onVsftpd(t, `busybox cat /etc/resolv.kept >/etc/resolv.conf; busybox sed -i /tcp_wrappers/d /etc/vsftpd/vsftpd.conf; busybox rm /etc/hosts.deny
				kill -HUP $(busybox pidof vsftpd | busybox tr ' ' '\n' | busybox sort -n | busybox head -n1)`)
		},
	},

	{
		name: "timeouts are short", cause: "timeouts-short", long: true,
		plant: bothAltered(`s/timeout (client|server) 2h/timeout \1 1s/`), heal: unaltered(haproxyFile),
	},
	{
		name: "workers that are none", cause: "node-list", long: true,
		plant: bothAltered(`s/198\.51\.100\.2([123])/198.51.100.9\1/g`), heal: unaltered(haproxyFile),
	},
	{
		name: "HAProxy sends to other NodePorts", cause: "wrong-node-port", long: true,
		plant: bothAltered(`s/\+11000/+11001/`), heal: unaltered(haproxyFile),
	},
	{
		name: "the standby serves a narrower range", cause: "range-narrow", long: true,
		plant: standing(func(t *testing.T, box string) { altered(t, box, haproxyFile, `s/21100-21110/21100-21105/`) }), heal: unaltered(haproxyFile),
	},
	{
		name: "a line of haproxy.cfg is another", cause: "config-edited", long: true,
		plant: standing(func(t *testing.T, box string) { altered(t, box, haproxyFile, `s/retries 3/retries 1/`) }), heal: unaltered(haproxyFile),
	},
	{
		name: "the VIP has another mask", cause: "vip-mask", long: true,
		plant: holding(func(t *testing.T, box string) { altered(t, box, keepalivedFile, `s|203.0.113.15/24|203.0.113.15/23|`) }), heal: unaltered(keepalivedFile),
	},
	{
		name: "the standby has another virtual router", cause: "vrrp-config", long: true,
		plant: standing(func(t *testing.T, box string) {
			altered(t, box, keepalivedFile, `s/virtual_router_id 51/virtual_router_id 52/`)
			bothHold(t)
		}),
		heal: func(t *testing.T) {
			unaltered(keepalivedFile)(t)
			holder(t)
			shell(t, "jump", "ip neigh flush to "+vip)
		},
	},
	{
		name: "someone has given the standby the VIP", cause: "vip-held-twice", long: true,
		plant: standing(func(t *testing.T, box string) {
			shell(t, box, "ip addr add "+vip+"/32 dev frontend")
			afterwards(func(t *testing.T) {
				shell(t, box, "ip addr del "+vip+"/32 dev frontend")
				shell(t, "jump", "ip neigh flush to "+vip)
			})
		}),
	},
	{
		name: "both boxes are drained", cause: "vip-held-by-none", long: true,
		plant: func(t *testing.T) {
			onBoxes(`echo "$(($(date +%s) + 3600)) root@jump" >/var/lib/ftpdeploy/drained`)(t)
			noneHolds(t)
		},
		heal: func(t *testing.T) {
			onBoxes("rm -f /var/lib/ftpdeploy/drained")(t)
			holder(t)
		},
	},
	{
		name: "keepalived is stopped on both", cause: "keepalived-stopped", long: true,
		plant: func(t *testing.T) { onBoxes("systemctl stop keepalived")(t); noneHolds(t) },
		heal:  func(t *testing.T) { onBoxes("systemctl start keepalived")(t); holder(t) },
	},
	{
		name: "HAProxy is stopped on the holder", cause: "haproxy-stopped", long: true,
		plant: holding(func(t *testing.T, box string) { shell(t, box, "systemctl stop haproxy") }),
		heal:  func(t *testing.T) { onBoxes("systemctl start haproxy")(t); holder(t) },
	},
	{
		name: "a clock is off: its date says so", cause: "clock-off", long: true, // the clock itself is the machine's, and the lab's hosts share it
		plant: func(t *testing.T) {
			shell(t, boxB, `printf '#!/bin/sh\nexec /bin/date -d "+10 min" "$@"\n' >/usr/local/bin/date; chmod +x /usr/local/bin/date`)
		},
		heal: func(t *testing.T) { shell(t, boxB, "rm /usr/local/bin/date") },
	},
	{
		name: "a disk is full", cause: "disk-full", long: true,
		plant: standing(func(t *testing.T, box string) {
			shell(t, box, `mount -t tmpfs -o size=64k,mode=755 full /var/log; ! dd if=/dev/zero of=/var/log/fill bs=4k 2>/dev/null`)
		}),
		heal: onBoxes("if [ -e /var/log/fill ]; then umount /var/log; fi"),
	},
	{
		name: "the standby may not bind the VIP", cause: "nonlocal-bind", long: true,
		plant: standing(func(t *testing.T, box string) { shell(t, box, "sysctl -qw net.ipv4.ip_nonlocal_bind=0") }),
		heal:  onBoxes("sysctl -qw net.ipv4.ip_nonlocal_bind=1"),
	},
	{
		name: "a box cannot be entered", cause: "box-unreachable", long: true,
		plant: faulty("stop", "ssh", boxB), heal: faulty("start", "ssh", boxB),
	},
	{
		name: "a box is off", cause: "box-off", long: true,
		plant: standing(func(t *testing.T, box string) {
			lab(t, "fault", "vm-off", box)
			afterwards(func(t *testing.T) {
				lab(t, "fault", "vm-on", box)
				booted(t, box)
			})
		}),
	},
}

func bothHold(t *testing.T) {
	t.Helper()
	within(t, 30*time.Second, "both boxes hold the VIP", func() bool {
		return strings.Contains(shell(t, boxA, "ip -br -4 addr"), vip+"/") && strings.Contains(shell(t, boxB, "ip -br -4 addr"), vip+"/")
	})
}

func noneHolds(t *testing.T) {
	t.Helper()
	within(t, 30*time.Second, "no box holds the VIP", func() bool {
		return !strings.Contains(shell(t, boxA, "ip -br -4 addr")+shell(t, boxB, "ip -br -4 addr"), vip+"/")
	})
}

// idleWorker is a worker that the pod is not on.
func idleWorker(t *testing.T) string {
	t.Helper()
	for _, w := range []string{"worker-1", "worker-2", "worker-3"} {
		if !strings.HasSuffix(byHand(t, "pod"), " "+w) {
			return w
		}
	}
	return ""
}

// rolledOut waits until the only pod is of a template that has a text, and serves.
func rolledOut(t *testing.T, text string) {
	t.Helper()
	within(t, 60*time.Second, "a pod with "+text+" serves", func() bool {
		pods := byHand(t, "api", "GET", "/api/v1/namespaces/ftp/pods")
		return strings.Contains(pods, text) && strings.Count(pods, `"podIP":`) == 1 && strings.Contains(pods, `"ready":true`) && !strings.Contains(pods, `"deletionTimestamp":`)
	})
}

// onVsftpd runs a script in the container of the FTP server.
func onVsftpd(t *testing.T, script string) {
	t.Helper()
	pod := strings.Fields(byHand(t, "pod"))
	shell(t, pod[1], `p=$(pgrep -of /usr/sbin/vsftpd); nsenter -t "$p" -m -p /usr/bin/busybox sh -euc '`+strings.ReplaceAll(script, "'", `'\''`)+`'`)
}

// diagnosis is a diagnosis event.
type diagnosis struct {
	ID, Confidence, Cause, Fix string
	Evidence                   []string
	Primary                    bool
}

// diagnosed are the verdicts of doctor.
func diagnosed(t *testing.T, env []string, args ...string) ([]diagnosis, result) {
	t.Helper()
	r := onEnv(t, "jump", env, append([]string{ftpdeploy, "doctor", "--json"}, args...)...)
	found := eventsOf[diagnosis](t, r.stdout, "diagnosis")
	if want := map[bool]int{true: 7, false: 0}[len(found) > 0]; r.code != want {
		t.Errorf("doctor ends with %d, want %d: %s", r.code, want, r.stdout)
	}
	return found, r
}

// asked is the first verdict of doctor on the lab's blueprint, without an ID if there is
// none. A machine that stalled for the bound of a probe has doctor asked again where it
// is not want, unless it was certain.
func asked(t *testing.T, env []string, want string) (first diagnosis, r result) {
	t.Helper()
	for range 2 {
		var found []diagnosis
		found, r = diagnosed(t, env, "-f", blueprint)
		if first = (diagnosis{}); len(found) > 0 {
			first = found[0]
		}
		if first.ID == want || first.Confidence == "certain" {
			break
		}
		t.Logf("not what is wanted: %s", r.stdout)
	}
	return first, r
}

// doctorNames plants faults over all layers, one after the other: each is named by the
// first verdict, in time, and what is said to be certain is never wrong.
func doctorNames(t *testing.T) {
	before := writes(t)
	if first, r := asked(t, nil, ""); first.ID != "" {
		t.Fatalf("doctor finds something on a service that is well: %s", r.stdout)
	}
	if after := writes(t); len(after) != len(before) {
		t.Errorf("doctor wrote: %v", after[len(before):])
	}
	var table []string
	named, planted, wrong := 0, 0, 0
	for _, i := range illnesses {
		if i.long && times(0, 1) == 0 {
			continue
		}
		t.Run(i.name, func(t *testing.T) {
			defer i.mend(t)
			i.plant(t)
			first, r := asked(t, i.env, i.cause)
			planted++
			line := fmt.Sprintf("%-60s %5.1f s  %s (%s)", i.name, r.took.Seconds(), cmp.Or(first.ID, "nothing"), first.Confidence)
			switch {
			case first.ID == i.cause:
				named++
			case first.Confidence == "certain":
				wrong++
				fallthrough
			default:
				line += ", planted " + i.cause
				t.Logf("%s\n%s", line, r.stdout)
			}
			table = append(table, line)
			if r.took > 2*verdictBound {
				t.Errorf("doctor took %s", r.took)
			}
		})
		if t.Failed() {
			break
		}
		within(t, 2*time.Minute, "all is well after: "+i.name, func() bool {
			found, r := diagnosed(t, nil, "-f", blueprint)
			if len(found) > 0 {
				t.Logf("after %s, not yet well: %s: %s; %.1f s", i.name, found[0].ID, found[0].Cause, r.took.Seconds())
			}
			return len(found) == 0
		})
	}
	t.Logf("%d of %d named, %d wrong and certain\n%s", named, planted, wrong, strings.Join(table, "\n"))
	if wrong > 0 || named < planted-planted/15 {
		t.Errorf("%d of %d are named, and %d are wrong and said to be certain", named, planted, wrong)
	}
}

// managedConfig is what the first user found on the managed HAProxy: round robin, a check on
// every passive port, nothing that keeps a client on a node.
func managedConfig() string {
	var b strings.Builder
	b.WriteString("global\n    maxconn 1000\ndefaults\n    mode tcp\n    timeout connect 5s\n    timeout client 10m\n    timeout server 10m\n")
	add := func(name string, port, node int) {
		fmt.Fprintf(&b, "frontend %s_fe\n    bind 203.0.113.20:%d\n    default_backend %[1]s\nbackend %[1]s\n    balance roundrobin\n    option tcp-check\n    tcp-check connect\n", name, port)
		for n := 21; n <= 23; n++ {
			fmt.Fprintf(&b, "    server node%d 198.51.100.%[1]d:%d check inter 2s fall 3 rise 2\n", n, node)
		}
	}
	add("control", 21, 30121)
	for i := range passives {
		add(fmt.Sprintf("data_%d", i), 21200+i, 32200+i)
	}
	return b.String()
}

// managedBalancer deploys the server as the first user did, behind a load balancer as
// theirs, has lftp fail there, and asks doctor why.
func managedBalancer(t *testing.T) {
	const password = "of-the-first-user"
	byHand(t, "deploy-first", password)
	defer func() {
		byHand(t, "namespace-delete", "seed")
		shell(t, "managed", `kill $(cat "$HOME/haproxy.pid")`)
	}()
	shell(t, "managed", "cat >\"$HOME/haproxy.cfg\" <<'END'\n"+managedConfig()+"END\nhaproxy -D -f \"$HOME/haproxy.cfg\" -p \"$HOME/haproxy.pid\"")
	// HAProxy takes every server for alive until three checks of it have failed. Who connects
	// to a port without a server is let go at once; while there is one, HAProxy tries it for
	// three seconds.
	within(t, 60*time.Second, "the load balancer leads to the server over every node, and holds its passive ports for dead", func() bool {
		return on(t, "client", "bash", "-ec", `for p in {21200..21210}; do exec 3<>/dev/tcp/203.0.113.20/$p; code=0; read -t 1 -u 3 || code=$?; [ $code = 1 ]; done
			for i in {1..9}; do exec 3<>/dev/tcp/203.0.113.20/21; read -t 2 -u 3 l; [[ $l = 220* ]]; done`).code == 0
	})

	// One listing may get through: a check that vsftpd is late for looks to it like the client.
	const listing = `lftp --env-password -u partner ftp://203.0.113.20 -e "debug 9; set net:timeout 100; set net:max-retries 1; set cmd:fail-exit true; cls; bye"`
	said := make(chan string, 1)
	go func() {
		var all string
		for range 3 {
			out, err := exec.CommandContext(t.Context(), ftplab, "exec", "client", "--", "env", "LFTP_PASSWORD="+password, "bash", "-c", listing).CombinedOutput()
			all += fmt.Sprintf("%s(%v)\n", out, err)
			if strings.Contains(all, "425 ") {
				break
			}
		}
		said <- all
	}()

	found, r := diagnosed(t, []string{"FTPDEPLOY_FTP_PASSWORD=" + password}, "--address", "203.0.113.20", "--user", "partner")
	if len(found) != 1 || found[0].ID != "passive-health-checked" || !strings.Contains(found[0].Cause, "tcp-check") || !strings.Contains(found[0].Cause, "listen only during a transfer") {
		t.Errorf("doctor says %+v", found)
	}
	if len(found) > 0 {
		t.Logf("%.1f s: %s: %s\n%s", r.took.Seconds(), found[0].Confidence, found[0].Cause, strings.Join(found[0].Evidence, "\n"))
	}
	if out := <-said; !strings.Contains(out, "425 ") {
		t.Errorf("lftp does not meet 425: %s", tail(out))
	}

	// Through our boxes the same look from outside finds nothing.
	if found, r := diagnosed(t, nil, "-f", blueprint, "--address", vip); len(found) > 0 {
		t.Errorf("doctor finds something behind ftpdeploy's own boxes: %s", r.stdout)
	}
}
