package e2e

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
)

// knob is one thing of the lab's blueprint that a random edit changes: the text
// that is there, and those that may stand in its place.
type knob struct {
	name    string
	old     string
	new     []string
	inOrder bool // from one to the next and then back to old: the others cannot be reached
}

// second is another FTP service beside the blueprint's own.
func second(control, first int) string {
	return fmt.Sprintf(`ftp_service "second" {
  cluster   = cluster.lab
  vip       = vip.ftp
  namespace = "ftp"
  image     = "docker.io/ftpdeploy/vsftpd:lab"
  control {
    port      = %d
    node_port = %d
  }
  passive {
    ports           = "22100-22109"
    node_port_first = %d
  }
  user "other" {
    password = var.ftp_password
  }
}

smoke "second" {
  target = vip.ftp
  user    = ftp_service.second.user.other
  upload  = "64KiB"
  timeout = "20s"
}

smoke "end-to-end" {`, control, 30000+control, first)
}

// scratch is a volume that goes with its data.
func scratch(size string) string {
	return `  volume "scratch" {
    size  = "` + size + `"
    mount = "/srv/scratch"
    keep  = false
  }

  volume "home" {`
}

const (
	inGroup   = "  members = [lb.haproxy-a, lb.haproxy-b]"
	inHAProxy = "    timeouts {"
	inVIP     = "  lb_group        = lb_group.ftp"
	inService = `  namespace = "ftp"`
	inSmoke   = `smoke "standby" {`
)

// knobs are the edits. Each alone, and any of them together, is a blueprint that
// validate accepts.
var knobs = []knob{
	{name: "client timeout", old: `client  = "2h"`, new: []string{`client  = "1h"`, `client  = "3h"`, `client  = "150m"`}},
	{name: "server timeout", old: `server  = "2h"`, new: []string{`server  = "1h"`, `server  = "3h"`}},
	{name: "connect timeout", old: `connect = "5s"`, new: []string{`connect = "3s"`, `connect = "8s"`}},
	{name: "hard_stop_after", old: `hard_stop_after = "4h"`, new: []string{`hard_stop_after = "5h"`, `hard_stop_after = "8h"`}},
	{name: "max_sessions", old: inHAProxy, new: []string{"    max_sessions = 2000\n" + inHAProxy, "    max_sessions = 6000\n" + inHAProxy}},
	{name: "tcp_keepalive", old: inHAProxy, new: []string{"    tcp_keepalive = \"30s\"\n" + inHAProxy}},
	{name: "statistics", old: inHAProxy, new: []string{"    stats_bind = \"management:8404\"\n" + inHAProxy}},
	{name: "log target", old: inHAProxy, new: []string{
		"    extra_global = \"log 192.0.2.10:514 local0\"\n" + inHAProxy, "    extra_global = \"log 192.0.2.10:1514 local1\"\n" + inHAProxy,
	}},
	{name: "extra_defaults", old: inHAProxy, new: []string{"    extra_defaults = \"option dontlog-normal\"\n" + inHAProxy}},
	{name: "peers_port", old: inHAProxy, new: []string{"    peers_port = 10001\n" + inHAProxy}},
	{name: "anti_affinity", old: inGroup, new: []string{inGroup + "\n  anti_affinity = false"}},
	{name: "workers", old: `workers    = ["198.51.100.21", "198.51.100.22", "198.51.100.23"]`, new: []string{
		`workers    = ["198.51.100.21", "198.51.100.22"]`, `workers    = ["198.51.100.23", "198.51.100.21"]`, `workers    = ["198.51.100.22"]`,
		`workers    = ["198.51.100.21", "198.51.100.22", "198.51.100.23", "198.51.100.99"]`, `worker_selector = "kubernetes.io/os=linux"`,
	}},
	{name: "advert_interval", old: `advert_interval = "500ms"`, new: []string{`advert_interval = "1s"`, `advert_interval = "700ms"`}},
	{name: "virtual_router", old: "virtual_router  = 51", new: []string{"virtual_router  = 52"}},
	{name: "garp_refresh", old: inVIP, new: []string{"  garp_refresh = \"30s\"\n" + inVIP}},
	{name: "preempt", old: inVIP, new: []string{"  preempt = true\n" + inVIP}},
	{name: "probe", old: inVIP, new: []string{"  probe = \"frontend\"\n" + inVIP}},
	{name: "priority", old: "priority = 110", new: []string{"priority = 90", "priority = 120"}},
	{name: "VIP", old: "\"" + vip + "\"", new: []string{`"203.0.113.16"`}},
	{name: "MTU", old: `cidr       = "198.51.100.0/24"`, new: []string{"mtu = 1400\n  cidr       = \"198.51.100.0/24\""}},
	{name: "control NodePort", old: "node_port = 30021", new: []string{"node_port = 30022", "node_port = 30121"}},
	{name: "passive range", old: `ports           = "21100-21110"`, new: []string{`ports           = "21100-21115"`, `ports           = "21105-21114"`, `ports           = "21098-21110"`}},
	{name: "passive NodePorts", old: "node_port_first = 32100", new: []string{"node_port_first = 32200", "node_port_first = 32105"}},
	{name: "password", old: "    password = var.ftp_password\n  }\n\n  volume", new: []string{"    password = \"${var.ftp_password}-2\"\n  }\n\n  volume"}},
	{name: "user", old: "partner", new: []string{"supplier"}},
	{name: "scratch volume", old: `  volume "home" {`, new: []string{scratch("1Gi"), scratch("2Gi")}, inOrder: true},
	{name: "resources", old: inService, new: []string{
		inService + "\n  resources {\n    requests = { memory = \"32Mi\" }\n  }",
		inService + "\n  resources {\n    requests = { cpu = \"10m\" }\n    limits = { memory = \"128Mi\" }\n  }",
	}},
	{name: "banner", old: inService, new: []string{inService + "\n  banner = \"Welcome.\"", inService + "\n  banner = \"Be brief.\""}},
	{name: "limits of clients", old: inService, new: []string{inService + "\n  max_clients = 10", inService + "\n  max_clients = 9\n  max_per_ip = 8"}},
	{name: "idle_session", old: inService, new: []string{inService + "\n  idle_session = \"10m\""}},
	{name: "same image by another name", old: "docker.io/ftpdeploy/vsftpd:lab\" #", new: []string{"docker.io/fauria/vsftpd:lab\" #"}},
	{name: "node_selector", old: inService, new: []string{inService + "\n  node_selector = { \"kubernetes.io/os\" = \"linux\" }"}},
	{name: "tolerations", old: inService, new: []string{inService + "\n  tolerations = [{ key = \"ftp\", operator = \"Exists\" }]"}},
	{name: "labels", old: `deployment "lab" {}`, new: []string{"deployment \"lab\" {\n  labels = { team = \"files\" }\n}", "deployment \"lab\" {\n  labels = { team = \"mail\", tier = \"2\" }\n}"}},
	{name: "second service", old: `smoke "end-to-end" {`, new: []string{second(2121, 32300), second(2122, 32300)}},
	// What nothing in the world stands for.
	{name: "comment", old: inVIP, new: []string{"  # not for guests\n" + inVIP}},
	{name: "output", old: `output "url" {`, new: []string{"output \"port\" {\n  value = \"21\"\n}\n\noutput \"url\" {"}},
	{name: "proof", old: inSmoke, new: []string{inSmoke + "\n  timeout = \"30s\""}},
	{name: "min_reload_gap", old: `min_reload_gap = "0s"`, new: []string{`min_reload_gap = "1s"`}},
	{name: "confirm_within", old: inSmoke, new: []string{"rollout {\n  confirm_within = \"120s\"\n}\n\n" + inSmoke}},
}

// machineKnobs are edits that take a machine down, and with it half a minute each.
var machineKnobs = []knob{
	{name: "CPUs of haproxy-a", old: ofBox("a") + "  cpus     = 1", new: []string{ofBox("a") + "  cpus     = 2"}},
	{name: "memory of haproxy-b", old: ofBox("b") + "  cpus     = 1\n  memory   = \"512MiB\"", new: []string{ofBox("b") + "  cpus     = 1\n  memory   = \"640MiB\""}},
}

func ofBox(site string) string {
	return "lb \"haproxy-" + site + "\" {\n  site     = site." + site + "\n  image    = image.debian\n  ssh      = ssh.lab\n"
}

// draft is a blueprint by the places of its knobs: 0 or none is what is shipped, n
// the n-th new text.
type draft map[string]int

// text is the blueprint's.
func (d draft) text(t *testing.T) string {
	t.Helper()
	shipped, err := os.ReadFile(blueprint)
	if err != nil {
		t.Fatal(err)
	}
	// Without a pause between reloads: how they are spaced has a test of its own.
	text := strings.Replace(string(shipped), inHAProxy, "    min_reload_gap = \"0s\"\n"+inHAProxy, 1)
	for _, k := range slices.Concat(knobs, machineKnobs) {
		if !strings.Contains(text, k.old) {
			t.Fatalf("the blueprint has no %q, which %s stands in place of", k.old, k.name)
		}
		if n := d[k.name]; n > 0 {
			text = strings.ReplaceAll(text, k.old, k.new[n-1])
		}
	}
	return text
}

// edit turns one to three knobs, and says which.
func (d draft) edit(r *rand.Rand) (draft, string) {
	next := maps.Clone(d)
	var said []string
	choice := knobs
	if r.IntN(16) == 0 {
		choice = slices.Concat(knobs[:0:0], machineKnobs)
	}
	for _, i := range r.Perm(len(choice))[:1+r.IntN(min(3, len(choice)))] {
		k := choice[i]
		n := (d[k.name] + 1 + r.IntN(len(k.new))) % (len(k.new) + 1)
		if k.inOrder {
			n = (d[k.name] + 1) % (len(k.new) + 1)
		}
		next[k.name] = n
		said = append(said, fmt.Sprintf("%s %d -> %d", k.name, d[k.name], n))
	}
	return next, strings.Join(said, ", ")
}
