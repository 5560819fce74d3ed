package doctor

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ftpdeploy/ftpdeploy/steps/ftp"
)

// What counts as too much.
const (
	slowGreeting = 3 * time.Second  // until the server speaks
	clockSlack   = 10 * time.Second // between a box and here
	shortTimeout = time.Minute      // of a silent control connection
)

// Diagnose names what is wrong, the cause of what clients meet first. No verdict means
// that nothing is wrong that the facts could show.
func Diagnose(f Facts) []Verdict {
	d := &diagnosis{Facts: f, explained: map[string]bool{}}
	// From the server to the client: what is broken behind explains what is seen in front.
	d.pod()
	d.service()
	d.nodes()
	d.workers()
	d.server()
	d.reach()
	d.daemons()
	d.configs()
	d.machines()
	d.vip()
	d.entrances()
	d.data()
	d.rest()
	broken := !d.works()
	slices.SortStableFunc(d.verdicts, func(a, b Verdict) int {
		switch {
		case a.breaks == b.breaks || !broken:
			return 0
		case a.breaks:
			return -1
		}
		return 1
	})
	return d.verdicts
}

// diagnosis is a Diagnose that runs.
type diagnosis struct {
	Facts
	verdicts  []Verdict
	explained map[string]bool // what is seen and needs no further cause
}

// say adds a verdict, which explains some of what is seen: "pod", "workers",
// "worker ADDRESS", "box NAME", "holder", "login", "data", "greeting".
func (d *diagnosis) say(v Verdict, explains ...string) {
	v.Service = d.Service
	v.Evidence = slices.DeleteFunc(v.Evidence, func(line string) bool { return line == "" })
	if n := len(v.Evidence); n > 8 {
		v.Evidence = append(v.Evidence[:7], fmt.Sprintf("and %d more of the kind", n-7))
	}
	d.verdicts = append(d.verdicts, v)
	for _, e := range explains {
		d.explained[e] = true
	}
}

func sure(certain bool) Confidence {
	if certain {
		return Certain
	}
	return Likely
}

// works tells whether a client is served, as far as was looked.
func (d *diagnosis) works() bool {
	if d.Here.Login.Outcome != ftp.OK || len(d.Through.Failed) > 0 || d.Through.Err != "" {
		return false
	}
	return !slices.ContainsFunc(d.Here.Tries, func(t ftp.Try) bool { return !t.OK() })
}

// carries tells whether a fault of a box is met by clients: it holds the VIP, or none does.
func (d *diagnosis) carries(b *Box) bool {
	return b.Holds || !slices.ContainsFunc(d.Boxes, func(o Box) bool { return o.Holds })
}

// pod looks at the Deployment and its pods.
func (d *diagnosis) pod() {
	s := d.Cluster
	if d.Away != "" {
		d.say(Verdict{
			ID: "cluster-unreachable", Confidence: Likely, Text: "the API server cannot be asked about the pod",
			Evidence: []string{d.Away},
			Fix:      "Check the kubeconfig, the account and the network to the API server. FTP goes on without it, and so do the probes below.",
		})
	}
	if s == nil {
		return
	}
	object := fmt.Sprintf("deployment/%s -n %s", d.Service, d.Namespace)
	v := Verdict{Confidence: Certain, breaks: true}
	switch {
	case !s.Deployment:
		v.ID, v.Text = "deployment-missing", fmt.Sprintf("there is no Deployment %s/%s, so no FTP server", d.Namespace, d.Service)
		v.Evidence = []string{"the API server answers: not found"}
		v.Fix = "ftpdeploy apply"
	case s.Replicas == 0:
		v.ID, v.Text = "pod-scaled-down", fmt.Sprintf("Deployment %s/%s is scaled to 0", d.Namespace, d.Service)
		v.Evidence = []string{"spec.replicas is 0"}
		v.Fix = "kubectl scale " + object + " --replicas 1"
	case s.Serving && len(s.Pods) > 1 && slices.ContainsFunc(s.Pods[1:], func(p podState) bool { return p.Ready && !p.Deleting }), s.Replicas > 1:
		v.ID, v.Confidence = "pods-many", sure(s.Endpoints > 1)
		v.Text = fmt.Sprintf("%d pods are behind one Service: a data connection may reach another one than its control connection", max(s.Replicas, s.Endpoints))
		v.Evidence = []string{fmt.Sprintf("spec.replicas is %d, and %d endpoints are ready", s.Replicas, s.Endpoints)}
		v.Fix = "kubectl scale " + object + " --replicas 1"
		d.say(v, "data")
		return
	case s.Serving:
		return
	default:
		d.stuck(&v)
	}
	d.say(v, "pod", "workers")
}

// stuck says why a pod does not serve, as Kubernetes has it.
func (d *diagnosis) stuck(v *Verdict) {
	s := d.Cluster
	v.Evidence = []string{fmt.Sprintf("Deployment %s/%s: %s", d.Namespace, d.Service, s.Progress)}
	var newest podState
	if len(s.Pods) > 0 {
		newest = s.Pods[0]
	}
	if s.Stuck == nil {
		v.ID, v.Confidence = "pod-not-ready", sure(strings.Contains(s.Note, "Unhealthy"))
		v.Text = "the pod is not ready: " + cmp.Or(s.Note, "it has only just begun")
		v.Evidence = append(v.Evidence, s.Note)
		v.Fix = fmt.Sprintf("kubectl -n %s describe pod %s; kubectl -n %[1]s logs %s", d.Namespace, newest.Name, newest.Name)
		return
	}
	v.Evidence = append(v.Evidence, fmt.Sprintf("%s: %s", s.Stuck.Object, s.Stuck.Reason), s.Stuck.Detail)
	v.Fix = fmt.Sprintf("kubectl -n %s describe %s/%s", d.Namespace, strings.ToLower(s.Stuck.Object.Kind), s.Stuck.Object.Name)
	switch reason := s.Stuck.Reason; {
	case s.Stuck.Unpullable():
		v.ID, v.Text = "pod-image", "the pod does not start: its image cannot be pulled"
		v.Fix = "Correct ftp_service \"" + d.Service + "\".image or the registry, then: ftpdeploy apply"
	case reason == "CrashLoopBackOff" && newest.ExitReason == "OOMKilled":
		v.ID, v.Text = "pod-memory", "the server is killed again and again: it needs more memory than its limit"
		v.Fix = "Raise resources.limits.memory of ftp_service \"" + d.Service + "\", then: ftpdeploy apply"
	case reason == "CrashLoopBackOff" && newest.Exit == 2 && strings.Contains(s.Stuck.Detail, "log is empty"):
		v.ID, v.Confidence, v.Text = "pod-crash", Likely, "the server ends again and again with code 2 and says nothing: so does vsftpd where it rejects its configuration"
		v.Fix = "Look at what the image makes of its settings: vsftpd says what it rejects on file descriptor 0"
	case reason == "CrashLoopBackOff", reason == "RunContainerError":
		v.ID, v.Text = "pod-crash", "the server ends again and again"
		v.Fix = fmt.Sprintf("kubectl -n %s logs %s --previous", d.Namespace, newest.Name)
	case strings.HasPrefix(reason, "CreateContainer"):
		v.ID, v.Text = "pod-config", "the container cannot be made: "+reason
		v.Fix = "ftpdeploy apply, which makes what of ours is missing"
	case s.Stuck.Object.Kind == "PersistentVolumeClaim":
		v.ID, v.Text = "pod-volume", fmt.Sprintf("the pod waits for claim %s, which nobody serves", s.Stuck.Object.Name)
		v.Fix = fmt.Sprintf("kubectl -n %s describe pvc %s; correct the volume's storage_class, then: ftpdeploy apply", d.Namespace, s.Stuck.Object.Name)
	case reason == "Unschedulable":
		v.ID, v.Text = "pod-unschedulable", "no node takes the pod"
		v.Fix = "Make room or take the taint away, or correct node_selector, tolerations or resources, then: ftpdeploy apply"
	case reason == "FailedCreate":
		v.ID, v.Text = "pod-refused", "the cluster does not let the pod be made: Pod Security, quota or another admission rule"
		v.Fix = fmt.Sprintf("kubectl label namespace %s pod-security.kubernetes.io/enforce=baseline, or raise the quota", d.Namespace)
	default:
		v.ID, v.Confidence, v.Text = "pod-not-ready", Likely, "the pod does not serve: "+reason
	}
}

// service looks at the Service.
func (d *diagnosis) service() {
	s := d.Cluster
	if s == nil || !s.Deployment && !s.Service {
		return
	}
	v := Verdict{Confidence: Certain, breaks: true, Fix: "ftpdeploy apply"}
	if !s.Service {
		if len(s.Unasked) == 0 {
			v.ID, v.Text = "service-missing", fmt.Sprintf("there is no Service %s/%s, so no NodePort leads to the pod", d.Namespace, d.Service)
			v.Evidence = []string{"the API server answers: not found"}
			d.say(v, "workers")
		}
		return
	}
	if s.Serving && s.Matched == 0 && s.Endpoints == 0 {
		v.ID, v.Text = "service-selector", "the Service selects no pod: its selector is not that of the Deployment"
		v.Evidence = []string{"the pod is ready", "endpoints of the Service: 0", "pods of the Deployment that its selector matches: 0"}
		d.say(v, "workers")
		return
	}
	var wrong []string
	compare := func(port, want int) bool {
		has, there := s.NodePorts[port]
		switch {
		case !there:
			wrong = append(wrong, fmt.Sprintf("port %d is not in the Service; boxes send it to NodePort %d", port, want))
		case has != want:
			wrong = append(wrong, fmt.Sprintf("port %d has NodePort %d; boxes send it to %d", port, has, want))
		}
		return there && has == want
	}
	control := !compare(d.Control, d.ControlNodePort)
	for p := d.First; p <= d.Last; p++ {
		compare(p, d.nodePort(p))
	}
	if len(wrong) > 0 {
		v.ID, v.Text, v.Evidence = "wrong-node-port", fmt.Sprintf("Service %s/%s has other NodePorts than the boxes use", d.Namespace, d.Service), wrong
		explains := []string{"nodeports"}
		if control {
			explains = append(explains, "workers")
		}
		d.say(v, explains...)
	}
	if s.Policy == "Local" && len(d.Workers) > 1 {
		d.say(Verdict{
			ID: "traffic-policy", Confidence: Certain, breaks: true, Text: "the Service has externalTrafficPolicy Local: only the pod's node answers, and the others drop",
			Evidence: []string{"spec.externalTrafficPolicy is Local"}, Fix: "ftpdeploy apply",
		}, "workers")
	}
}

// nodes looks at what the cluster says of the workers.
func (d *diagnosis) nodes() {
	if d.Cluster == nil || len(d.Cluster.Nodes) == 0 {
		return
	}
	var unknown []string
	for _, w := range d.Workers {
		i := slices.IndexFunc(d.Cluster.Nodes, func(n nodeState) bool { return slices.Contains(n.Addresses, w) })
		if i < 0 {
			unknown = append(unknown, w+" is the address of no node of the cluster")
			d.explained["worker "+w] = true
			continue
		}
		n := d.Cluster.Nodes[i]
		if n.Ready {
			continue
		}
		v := Verdict{
			ID: "node-down", Confidence: Certain, Text: fmt.Sprintf("worker %s (%s) is not ready", n.Name, w),
			Evidence: []string{fmt.Sprintf("%s, since %s", n.Why, n.Since.Format("2006-01-02 15:04:05 MST"))},
			Fix:      fmt.Sprintf("Look at node %s. HAProxy leaves it out, so the service goes on through the other workers", n.Name),
		}
		answers := false
		for _, c := range d.Cells {
			if c.Worker == w {
				answers = answers || c.answers()
				v.Evidence = append(v.Evidence, line(c.Box, w, d.ControlNodePort, c.Control.Connect))
			}
		}
		if answers {
			v.Text += ", but forwards for now"
		}
		v.breaks = d.allSilent()
		d.say(v, "worker "+w)
	}
	if unknown != nil {
		d.say(Verdict{
			ID: "node-list", Confidence: Certain, breaks: len(unknown) == len(d.Workers),
			Text: "the boxes send to workers that are none", Evidence: unknown,
			Fix: fmt.Sprintf("Correct workers of the cluster block, or use worker_selector, then: ftpdeploy apply. Nodes: %s", d.nodeNames()),
		})
	}
}

func (d *diagnosis) nodeNames() string {
	var all []string
	for _, n := range d.Cluster.Nodes {
		all = append(all, n.Name+" "+strings.Join(n.Addresses[:min(1, len(n.Addresses))], ""))
	}
	return strings.Join(all, ", ")
}

// allSilent tells whether no worker answers any box.
func (d *diagnosis) allSilent() bool {
	return len(d.Cells) > 0 && !slices.ContainsFunc(d.Cells, func(c Cell) bool { return c.answers() })
}

// line is what a connection came to, as evidence.
func line(from, to string, port int, s ftp.Stage) string {
	text := string(s.Outcome)
	if s.Outcome == ftp.OK {
		text = fmt.Sprintf("ok, %d ms", s.Took.Milliseconds())
	}
	return fmt.Sprintf("%s -> %s:%d  %s", from, to, port, text)
}

// workers looks at the ways from the boxes to the workers.
func (d *diagnosis) workers() {
	if len(d.Cells) == 0 || d.explained["workers"] {
		return
	}
	by := func(pick func(Cell) string) (names []string, cells map[string][]Cell) {
		cells = map[string][]Cell{}
		for _, c := range d.Cells {
			n := pick(c)
			if cells[n] == nil {
				names = append(names, n)
			}
			cells[n] = append(cells[n], c)
		}
		return names, cells
	}
	workers, ofWorker := by(func(c Cell) string { return c.Worker })
	boxes, ofBox := by(func(c Cell) string { return c.Box })
	dead := func(cells []Cell) bool { return !slices.ContainsFunc(cells, func(c Cell) bool { return c.answers() }) }
	evidence := func(cells []Cell) []string {
		var all []string
		for _, c := range cells {
			all = append(all, line(c.Box, c.Worker, d.ControlNodePort, d.reached(c)))
		}
		return all
	}
	if d.allSilent() {
		if len(workers) == len(d.explainedWorkers(workers)) || d.slow() {
			d.explained["workers"] = true
			return
		}
		d.noWorker(evidence(d.Cells))
		return
	}
	for _, b := range boxes {
		if dead(ofBox[b]) {
			box := d.box(b)
			d.say(Verdict{
				ID: "box-to-workers", Confidence: Certain, breaks: box != nil && d.carries(box),
				Text:     b + " reaches no worker, and the other box does: its route or link to the workers' network is broken, or a filter on that way",
				Evidence: append(evidence(ofBox[b]), evidence(slices.DeleteFunc(slices.Clone(d.Cells), func(c Cell) bool { return c.Box == b }))...),
				Fix:      fmt.Sprintf("On %s: ip -br addr; ip route get %s", b, workers[0]),
			}, "box "+b)
		}
	}
	for _, w := range workers {
		if !dead(ofWorker[w]) || d.explained["worker "+w] {
			continue
		}
		d.deadWorker(w, ofWorker[w], evidence(ofWorker[w]), evidence(slices.DeleteFunc(slices.Clone(d.Cells), func(c Cell) bool { return c.Worker == w || !c.answers() })))
	}
	d.deadPorts(workers, ofWorker)
}

// reached is the stage at which a control connection ended, or its last.
func (d *diagnosis) reached(c Cell) ftp.Stage {
	if c.Control.Connect.Outcome == ftp.OK && c.Control.Greeting.Outcome != ftp.OK {
		return ftp.Stage{Outcome: c.Control.Greeting.Outcome + ", but connected", Took: c.Control.Greeting.Took}
	}
	return c.Control.Connect
}

func (d *diagnosis) explainedWorkers(workers []string) []string {
	return slices.DeleteFunc(slices.Clone(workers), func(w string) bool { return !d.explained["worker "+w] })
}

// noWorker says why no worker answers although the pod serves.
func (d *diagnosis) noWorker(evidence []string) {
	v := Verdict{ID: "workers-unreachable", Confidence: Likely, breaks: true, Text: "no box reaches a worker on its control NodePort", Evidence: evidence}
	all := func(o ftp.Outcome) bool {
		return !slices.ContainsFunc(d.Cells, func(c Cell) bool { return c.Control.Connect.Outcome != o })
	}
	serving := d.Cluster != nil && d.Cluster.Serving
	switch {
	case all(ftp.Refused) && serving:
		v.ID, v.Text = "kube-proxy-down", "every worker refuses the control NodePort although the pod is ready: no kube-proxy has a rule for the Service"
		v.Fix = "Look at kube-proxy on the workers: kubectl -n kube-system get pods -l k8s-app=kube-proxy -o wide"
	case all(ftp.Silent):
		v.Text += ": packets are dropped"
		v.Fix = "Look for a filter between the boxes and the workers, or a NetworkPolicy before the pod"
		if d.Cluster != nil && len(d.Cluster.Policies) > 0 {
			v.ID, v.Text = "network-policy", "no worker leads to the pod, and a NetworkPolicy holds for its incoming traffic"
			v.Evidence = append(v.Evidence, "NetworkPolicy "+strings.Join(d.Cluster.Policies, ", "))
			v.Fix = fmt.Sprintf("kubectl -n %s describe networkpolicy %s", d.Namespace, d.Cluster.Policies[0])
		}
	default:
		v.Fix = "Look at the workers, and at the server's log"
	}
	d.say(v, "workers")
}

// deadWorker says why one worker does not answer and others do.
func (d *diagnosis) deadWorker(w string, cells []Cell, evidence, others []string) {
	v := Verdict{
		ID: "worker-refuses", Confidence: Likely, Evidence: slices.Concat(evidence, others[:min(2, len(others))]),
		Text: fmt.Sprintf("worker %s does not answer on the control NodePort, and others do", w),
		Fix:  fmt.Sprintf("Look at worker %s. HAProxy leaves it out, so the service goes on through the others", w),
	}
	every := func(o ftp.Outcome, of func(Cell) ftp.Outcome) bool {
		return !slices.ContainsFunc(cells, func(c Cell) bool { return of(c) != o })
	}
	connect := func(c Cell) ftp.Outcome { return c.Control.Connect.Outcome }
	proxy := func(c Cell) ftp.Outcome { return c.Proxy }
	elsewhere := slices.ContainsFunc(d.Cells, func(c Cell) bool { return c.Worker != w && c.Proxy == ftp.OK })
	switch {
	case every(ftp.Refused, connect) && every(ftp.Refused, proxy) && elsewhere:
		v.ID, v.Confidence = "kube-proxy-down", Certain
		v.Text = fmt.Sprintf("kube-proxy does not run on worker %s, and it has no rule for the Service", w)
		v.Evidence = append(v.Evidence, fmt.Sprintf("%s:10256 (kube-proxy's health) refuses too; on other workers it answers", w))
		v.Fix = fmt.Sprintf("Start kube-proxy on worker %s: kubectl -n kube-system get pods -l k8s-app=kube-proxy -o wide", w)
	case every(ftp.Refused, connect):
		v.ID, v.Confidence = "kube-proxy-rules", sure(every(ftp.OK, proxy) && len(cells) > 1)
		v.Text = fmt.Sprintf("worker %s refuses the control NodePort: it has no rule for the Service", w)
		if every(ftp.OK, proxy) {
			v.Evidence = append(v.Evidence, w+":10256 (kube-proxy's health) answers: it runs, and its rules are not there")
		}
		v.Fix = fmt.Sprintf("Look at kube-proxy's log on worker %s, and restart it there", w)
	case every(ftp.Silent, connect) && every(ftp.OK, proxy):
		v.ID, v.Confidence = "node-port-closed", sure(len(cells) > 1)
		v.Text = fmt.Sprintf("worker %s drops the control NodePort %d, and answers on other ports", w, d.ControlNodePort)
		v.Fix = fmt.Sprintf("Look for a packet filter on worker %s that drops %d/tcp", w, d.ControlNodePort)
	case every(ftp.Silent, connect):
		v.ID, v.Text = "worker-unreachable", fmt.Sprintf("worker %s does not answer at all: it is off, or its network or a filter before it drops everything", w)
	}
	d.say(v, "worker "+w)
}

// deadPorts names passive ports that are closed on the way to workers that answer.
func (d *diagnosis) deadPorts(workers []string, cells map[string][]Cell) {
	if d.explained["nodeports"] {
		return
	}
	ways := map[int][]Cell{} // where a port failed
	tried := 0
	for _, w := range workers {
		for _, c := range cells[w] {
			if !c.answers() || len(c.Ports.OK)+len(c.Ports.Failed) == 0 {
				continue
			}
			tried++
			for p, f := range c.Ports.Failed {
				if f.Outcome != ftp.Unsafe { // the server answered there: encryption tells why
					ways[p] = append(ways[p], c)
				}
			}
		}
	}
	if len(ways) == 0 {
		return
	}
	// Ports that fail in the same places have one cause.
	groups := map[string][]int{}
	places := map[string][]Cell{}
	for _, p := range slices.Sorted(maps.Keys(ways)) {
		var names []string
		for _, c := range ways[p] {
			names = append(names, c.Box+" -> "+c.Worker)
		}
		k := strings.Join(names, ", ")
		groups[k], places[k] = append(groups[k], p), ways[p]
	}
	for _, k := range slices.Sorted(maps.Keys(groups)) {
		ports, at := groups[k], places[k]
		var evidence []string
		count := map[string]int{}
		denied := false
		for _, c := range at {
			count[c.Worker]++
			f := c.Ports.Failed[ports[0]]
			denied = denied || f.Outcome == ftp.Denied
			evidence = append(evidence, line(c.Box, c.Worker, d.nodePort(ports[0]), ftp.Stage{Outcome: f.Outcome}))
		}
		for _, c := range d.Cells {
			if slices.Contains(c.Ports.OK, ports[0]) && len(evidence) < 6 {
				evidence = append(evidence, line(c.Box, c.Worker, d.nodePort(ports[0]), ftp.Stage{Outcome: "ok"}))
			}
		}
		v := Verdict{ID: "node-port-closed", Confidence: Likely, Evidence: evidence}
		ported := fmt.Sprintf("passive port %s (NodePort %s)", ftp.Ranges(ports), ftp.Ranges(d.nodePorts(ports)))
		switch {
		case denied:
			v.ID, v.Text = "data-refused-by-server", ported+": the server itself refuses the transfer: "+at[0].Ports.Failed[ports[0]].Text
			v.Fix = "Look at the server's log"
			v.breaks = true
		case len(at) == tried && tried > 1:
			v.ID, v.Text, v.breaks = "port-closed-everywhere", ported+" leads nowhere on any worker", true
			v.Fix = "Look at the Service and the range that the server announces: ftpdeploy plan"
		case len(count) == 1 && !d.opens(at[0].Worker, ports):
			// One box alone could not tell the worker from the way there.
			boxes := len(d.boxesTo(at[0].Worker))
			v.Confidence, v.breaks = sure(boxes > 1 && boxes == count[at[0].Worker] && len(d.Cells) > boxes), true
			v.Text = fmt.Sprintf("%s is closed on worker %s: no box gets through there, and other workers let it through", ported, at[0].Worker)
			v.Fix = fmt.Sprintf("Look for a packet filter, or a missing rule of kube-proxy, on worker %s for %s/tcp", at[0].Worker, ftp.Ranges(d.nodePorts(ports)))
		default:
			v.ID, v.Text, v.breaks = "path-closed", ported+" is closed on the way "+k, true
			v.Fix = "Look for a packet filter on that way"
		}
		d.say(v, "ports "+ftp.Ranges(ports), "data")
	}
}

// opens tells whether a box gets through to a worker on one of some ports.
func (d *diagnosis) opens(worker string, ports []int) bool {
	return slices.ContainsFunc(d.Cells, func(c Cell) bool {
		return c.Worker == worker && slices.ContainsFunc(ports, func(p int) bool { return slices.Contains(c.Ports.OK, p) })
	})
}

func (d *diagnosis) boxesTo(worker string) []string {
	var all []string
	for _, c := range d.Cells {
		if c.Worker == worker && c.answers() {
			all = append(all, c.Box)
		}
	}
	return all
}

func (d *diagnosis) nodePorts(ports []int) []int {
	var all []int
	for _, p := range ports {
		all = append(all, d.nodePort(p))
	}
	return all
}

// slow tells whether the server takes long to greet, also without HAProxy.
func (d *diagnosis) slow() bool {
	slow := func(s ftp.Sight) bool { return s.Connect.Outcome == ftp.OK && s.Greeting.Took > slowGreeting }
	return slices.ContainsFunc(d.Cells, func(c Cell) bool { return slow(c.Control) }) &&
		!slices.ContainsFunc(d.Cells, func(c Cell) bool { return c.answers() && !slow(c.Control) })
}

// server looks at what the server says.
func (d *diagnosis) server() {
	if d.slow() {
		var evidence []string
		for _, c := range d.Cells {
			evidence = append(evidence, fmt.Sprintf("%s -> %s:%d  connected in %d ms, greeted after %.1f s (%s)", c.Box, c.Worker, d.ControlNodePort,
				c.Control.Connect.Took.Milliseconds(), c.Control.Greeting.Took.Seconds(), c.Control.Greeting.Outcome))
		}
		fix := "Look what the server does before it greets: the names of its clients (REVERSE_LOOKUP_ENABLE=NO, tcp_wrappers), or a node without CPU"
		if d.env("REVERSE_LOOKUP_ENABLE") != "" {
			evidence = append(evidence, "the pod has REVERSE_LOOKUP_ENABLE="+d.env("REVERSE_LOOKUP_ENABLE"))
		}
		d.say(Verdict{
			ID: "greeting-slow", Confidence: Likely, breaks: true, Text: "the server is slow to greet, also without the boxes: so it is where it looks up its clients' names and no DNS answers",
			Evidence: evidence, Fix: fix,
		}, "greeting", "workers", "login", "data")
		return
	}
	d.encryption()
	d.login()
	d.announced()
}

func (d *diagnosis) env(name string) string {
	if d.Cluster == nil {
		return ""
	}
	for _, p := range d.Cluster.Pods {
		if !p.Deleting {
			return p.Env[name]
		}
	}
	return ""
}

// encryption looks at TLS, whose errors say in words what is wrong and what to do.
func (d *diagnosis) encryption() {
	seen := []ftp.Stage{d.Here.Login}
	for _, t := range d.Here.Tries {
		seen = append(seen, t.List)
	}
	for _, c := range d.Cells {
		seen = append(seen, c.Control.Login)
	}
	i := slices.IndexFunc(seen, func(s ftp.Stage) bool { return s.Outcome == ftp.Unsafe })
	if i < 0 {
		return
	}
	d.say(Verdict{
		ID: "tls", Confidence: Likely, breaks: true, Text: "TLS fails: " + seen[i].Text, Evidence: []string{d.VIP.String() + "  " + seen[i].Text},
		Fix: "docs/blueprint.md says for each code, FTP611 to FTP616, what to do",
	}, "login", "data")
}

// login looks at the account.
func (d *diagnosis) login() {
	var denied []string
	for _, c := range d.Cells {
		if c.Control.Login.Outcome == ftp.Denied {
			denied = append(denied, fmt.Sprintf("%s -> %s:%d  %s", c.Box, c.Worker, d.ControlNodePort, c.Control.Login.Text))
		}
	}
	if d.Here.Login.Outcome == ftp.Denied {
		denied = append(denied, "here -> "+d.VIP.String()+"  "+d.Here.Login.Text)
	}
	rotated := Verdict{
		ID: "secret-not-rolled", Confidence: Certain, breaks: len(denied) > 0,
		Text:     "the pod runs with an account of before: the Secret has been changed since it started",
		Evidence: append([]string{"the pod's checksum of the account is not that of the Secret as it is now"}, denied...),
		Fix:      fmt.Sprintf("ftpdeploy apply, or for the Secret as it is: kubectl -n %s rollout restart deployment/%s", d.Namespace, d.Service),
	}
	switch {
	case d.PodHasSecret == No:
		if d.SecretIsWanted == No {
			rotated.Evidence = append(rotated.Evidence, "the Secret is not as the blueprint has it")
		}
		d.say(rotated, "login", "data")
	case len(denied) == 0:
	case d.SecretIsWanted == No && d.SecretWorks == ftp.OK:
		d.say(Verdict{
			ID: "password-pending", Confidence: Certain, breaks: true, Text: "the account of the blueprint is not the one that is deployed",
			Evidence: append([]string{"a login with the account of the Secret works"}, denied...), Fix: "ftpdeploy apply",
		}, "login", "data")
	default:
		v := Verdict{
			ID: "login-refused", Confidence: Likely, breaks: true, Text: fmt.Sprintf("the server refuses user %q", d.User), Evidence: denied,
			Fix: "Look at the server's log. An image that takes its account from elsewhere does not see the Secret",
		}
		if d.PodHasSecret == Yes && d.SecretIsWanted == Yes {
			v.Text += ", although the pod was started with the account of the blueprint"
			v.Evidence = append(v.Evidence, "pod, Secret and blueprint have the same account")
		}
		d.say(v, "login", "data")
	}
}

// announced looks where the server sends its clients.
func (d *diagnosis) announced() {
	for _, t := range d.Here.Tries {
		port := int(t.Announced.Port())
		switch {
		case !t.Announced.IsValid() && port == 0:
		case t.Mode == ftp.PASV && d.VIP.Is4() && t.Announced.Addr() != d.VIP:
			v := Verdict{
				ID: "pasv-address", Confidence: Certain, breaks: true,
				Text:     fmt.Sprintf("the server sends its clients to %s, and they need %s", t.Announced.Addr(), d.VIP),
				Evidence: []string{"227 announces " + t.Announced.String()}, Fix: "ftpdeploy apply",
			}
			switch env := d.env("PASV_ADDRESS"); env {
			case "":
			case d.VIP.String():
				v.Evidence = append(v.Evidence, "the pod has PASV_ADDRESS="+env+": the image does not follow it, or something between rewrites 227")
				v.Fix = "Look at the image, and for a device between that rewrites FTP"
			default:
				v.Evidence = append(v.Evidence, "the pod has PASV_ADDRESS="+env)
			}
			d.say(v, "data")
			return
		case port < d.First || port > d.Last:
			d.say(Verdict{
				ID: "pasv-range", Confidence: Certain, breaks: true, Text: fmt.Sprintf("the server announces port %d, and the boxes serve %d-%d", port, d.First, d.Last),
				Evidence: []string{
					fmt.Sprintf("the server announces port %d", port),
					fmt.Sprintf("the pod has PASV_MIN_PORT=%s PASV_MAX_PORT=%s", d.env("PASV_MIN_PORT"), d.env("PASV_MAX_PORT")),
				},
				Fix: "ftpdeploy apply",
			}, "data")
			return
		}
	}
	if env := d.env("PASV_ADDRESS"); env != "" && env != d.VIP.String() && d.VIP.Is4() {
		d.say(Verdict{
			ID: "pasv-address", Confidence: Certain, breaks: true, Text: fmt.Sprintf("the pod is told to send clients to %s, and they need %s", env, d.VIP),
			Evidence: []string{"the pod has PASV_ADDRESS=" + env}, Fix: "ftpdeploy apply",
		}, "data")
	}
}
