package doctor

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ftpdeploy/ftpdeploy/steps/ftp"
)

// Address is an FTP service that is looked at from outside, whoever owns it.
type Address struct {
	Host           string
	Port           int
	User, Password string
	Dial           ftp.DialFunc // nil = directly
}

// Outside is what was observed of it.
type Outside struct {
	Host  string
	Port  int
	User  string
	Sight ftp.Sight
	// Watched are announced ports, from the moment when the server listens there.
	Watched []Watch
	// Idle is what connections to the same ports came to when no session had asked for one.
	Idle []Knock
	// Taken are the replies of the server to listings for which nobody here had opened
	// a data connection; "" = it waited, as it must.
	Taken []string
}

// Knock is a connection over which nothing was said.
type Knock struct {
	Port int
	ftp.Stage
}

// Watch is what connections to an announced port came to, one after the other, while
// no transfer was asked for: the server listens there all the time.
type Watch struct {
	Port   int
	First  ftp.Stage     // right after the reply that announced it
	Opened time.Duration // after which one was held that had not been before; 0 = none was
}

// Bounds of the parts of a look from outside.
const (
	outsideTimeout = 6 * time.Second
	outsideData    = 3 * time.Second
	knockHold      = 600 * time.Millisecond
	watchBound     = 9 * time.Second // longer than a health check takes to find a server alive
	takenBound     = 7 * time.Second // longer than health checks are apart
	watches        = 4               // at the same time: one that finds a port alive of before tells nothing
	takenTries     = 2
	atOnce         = 250 * time.Millisecond
)

// Look looks at the service. It lists, and writes nothing.
func (a Address) Look(ctx context.Context) Outside {
	o := Outside{Host: a.Host, Port: a.Port, User: a.User}
	l := ftp.Look{
		Address: net.JoinHostPort(a.Host, strconv.Itoa(a.Port)), User: a.User, Password: a.Password, Dial: a.Dial,
		Timeout: outsideTimeout, DataTimeout: outsideData,
		Modes: []string{ftp.PASV, ftp.EPSV},
	}
	look, cancel := context.WithTimeout(ctx, outsideTimeout+3*outsideData)
	defer cancel()
	// Two sessions at the same time: of two transfers one after the other, both may pass by luck.
	var sights [2]ftp.Sight
	var both sync.WaitGroup
	for i := range sights {
		both.Go(func() { sights[i] = l.Run(look) })
	}
	both.Wait()
	o.Sight = sights[0]
	if sights[1].Login.Outcome == ftp.OK {
		o.Sight.Tries = append(o.Sight.Tries, sights[1].Tries...)
	}
	if o.Sight.Login.Outcome != ftp.OK || !slices.ContainsFunc(o.Sight.Tries, func(t ftp.Try) bool { return !t.OK() }) {
		return o
	}
	var ports []int
	for _, t := range o.Sight.Tries {
		if p := int(t.Announced.Port()); p > 0 && !slices.Contains(ports, p) {
			ports = append(ports, p)
		}
	}
	var rest sync.WaitGroup
	idle := make([]Knock, min(3, len(ports)))
	for i := range idle {
		rest.Go(func() { idle[i] = Knock{ports[i], a.knock(ctx, ports[i])} })
	}
	rest.Wait()
	o.Idle = idle
	watched, taken := make([]Watch, watches), make([]string, takenTries)
	for i := range watched {
		rest.Go(func() { watched[i] = a.watch(ctx, l) })
	}
	for i := range taken {
		rest.Go(func() { taken[i], _ = l.Await(ctx, ftp.EPSV, takenBound) })
	}
	rest.Wait()
	o.Watched = slices.DeleteFunc(watched, func(w Watch) bool { return w.Port == 0 })
	o.Taken = taken
	return o
}

// watch asks for a port and connects to it until a connection is held. Those that are
// ended at once have not come to the server, which waits for the first.
func (a Address) watch(ctx context.Context, l ftp.Look) (w Watch) {
	_ = l.Ask(ctx, ftp.EPSV, func(port int) {
		w.Port = port
		w.First = a.knock(ctx, port)
		start := time.Now()
		for last := w.First; last.Outcome == ftp.Closed || last.Outcome == ftp.Refused; last = a.knock(ctx, port) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
			if time.Since(start) > watchBound {
				return
			}
		}
		if w.First.Outcome != ftp.OK {
			w.Opened = time.Since(start)
		}
	})
	return w
}

func (a Address) knock(ctx context.Context, port int) ftp.Stage {
	return ftp.Knock(ctx, a.Dial, net.JoinHostPort(a.Host, strconv.Itoa(port)), outsideData, knockHold)
}

// Judge says why a service fails that was looked at from outside. No verdict means that
// it served.
func Judge(o Outside) []Verdict {
	at := net.JoinHostPort(o.Host, strconv.Itoa(o.Port))
	one := func(id string, confidence Confidence, text, fix string, evidence ...string) []Verdict {
		return []Verdict{{ID: id, Confidence: confidence, Text: text, Fix: fix, Evidence: evidence}}
	}
	s := o.Sight
	switch {
	case s.Connect.Outcome == ftp.Refused:
		return one("control-refused", Likely, "nobody listens at "+at,
			"Look whether the server, or the load balancer before it, runs", "connect: refused")
	case s.Connect.Outcome != ftp.OK:
		return one("control-silent", Likely, at+" does not answer: packets are dropped on the way, or no machine has the address",
			"Look who has the address, then at firewalls", "connect: "+string(s.Connect.Outcome)+" "+s.Connect.Text)
	case s.Greeting.Outcome == ftp.Closed:
		return one("control-closed", Likely, at+" takes connections and ends them without a word: so does a load balancer that has no server left",
			"Look at the load balancer's servers, and at the pods behind it", fmt.Sprintf("connected, and closed after %d ms", s.Greeting.Took.Milliseconds()))
	case s.Greeting.Outcome == ftp.Silent:
		return one("greeting-slow", Likely, at+" takes connections and does not greet: so does a server that looks up its clients' names where no DNS answers",
			"Switch the lookup of names off (REVERSE_LOOKUP_ENABLE=NO, tcp_wrappers)", fmt.Sprintf("no greeting within %s", outsideTimeout))
	case s.Greeting.Outcome != ftp.OK:
		return one("no-ftp", Likely, at+" does not speak FTP, or refuses service", "Check the address and the port", s.Greeting.Text)
	case s.Login.Outcome != ftp.OK:
		return one("login-refused", Likely, fmt.Sprintf("the server does not let user %q in", o.User),
			"Check user and password: --user, FTPDEPLOY_FTP_PASSWORD or --password-file", s.Login.Text)
	}
	var all []Verdict
	if v, ok := astray(o); ok {
		all = append(all, v)
	}
	if s.Greeting.Took > slowGreeting {
		all = append(all, one("greeting-slow", Likely, "the server is slow to greet: so it is where it looks up its clients' names and no DNS answers",
			"Switch the lookup of names off (REVERSE_LOOKUP_ENABLE=NO, tcp_wrappers)", fmt.Sprintf("greeted after %.1f s", s.Greeting.Took.Seconds()))...)
	}
	if v, ok := lost(o); ok {
		all = append(all, v)
	}
	return all
}

// astray judges the addresses that the server announces.
func astray(o Outside) (Verdict, bool) {
	for _, t := range o.Sight.Tries {
		host, err := netip.ParseAddr(o.Host)
		if t.Mode != ftp.PASV || !t.Announced.IsValid() || err == nil && t.Announced.Addr() == host {
			continue
		}
		if err != nil && t.OK() {
			continue // a name: where it leads was not looked up, and data came
		}
		v := Verdict{
			ID: "pasv-address", Confidence: sure(!t.OK() && t.Announced.Addr().IsPrivate() && host.IsValid() && !host.IsPrivate()),
			Text:     fmt.Sprintf("the server sends its clients to %s, and they came to %s", t.Announced.Addr(), o.Host),
			Evidence: []string{"227 announces " + t.Announced.String(), fmt.Sprintf("a listing there: %s %s", cmp.Or(t.List.Outcome, t.Connect.Outcome), cmp.Or(t.List.Text, t.Connect.Text))},
			Fix:      "Set the server's pasv_address (PASV_ADDRESS) to the address that its clients use",
		}
		return v, true
	}
	return Verdict{}, false
}

// lost judges data connections that fail. What decides is what announced ports do when
// they should listen and when they should not, and whether someone else connects to them.
func lost(o Outside) (Verdict, bool) {
	var failed, worked int
	count := map[string]int{}
	var order []string
	note := func(text string) {
		if count[text] == 0 {
			order = append(order, text)
		}
		count[text]++
	}
	badIP := false
	for _, t := range o.Sight.Tries {
		host, _ := netip.ParseAddr(o.Host)
		if t.Mode == ftp.PASV && host.IsValid() && t.Announced.IsValid() && t.Announced.Addr() != host {
			continue // that is astray's matter
		}
		switch {
		case t.OK():
			worked++
			continue
		case t.Connect.Outcome != ftp.OK && t.Connect.Outcome != ftp.Unasked:
			note("data connection: " + string(t.Connect.Outcome))
		default:
			note("listing: " + t.List.Text)
		}
		failed++
		badIP = badIP || strings.Contains(t.List.Text, "Bad IP")
	}
	if failed == 0 {
		return Verdict{}, false
	}
	v := Verdict{
		ID: "data-lost", Confidence: Likely, Text: "control connections work, and data connections fail",
		Evidence: []string{fmt.Sprintf("%d of %d listings fail", failed, failed+worked)},
		Fix:      "Open the server's passive ports on every hop between, and let each lead to the same server as the control connection",
	}
	for _, text := range order {
		v.Evidence = append(v.Evidence, fmt.Sprintf("%d × %s", count[text], text))
	}
	ended, refused, silent, opened, alive := 0, 0, 0, 0, 0 // of ports that listen, as the server says
	for _, k := range o.Watched {
		switch {
		case k.First.Outcome == ftp.Closed && k.First.Took < atOnce:
			ended++
		case k.First.Outcome == ftp.Refused:
			refused++
		case k.First.Outcome == ftp.Silent:
			silent++
		case k.First.Outcome == ftp.OK:
			alive++
		}
		text := fmt.Sprintf("port %d right after it was announced: %s", k.Port, stageText(k.First))
		if k.Opened > 0 {
			opened++
			text += fmt.Sprintf("; after %.1f s: held", k.Opened.Seconds())
		}
		v.Evidence = append(v.Evidence, text)
	}
	idleTaken := 0
	for _, k := range o.Idle {
		if k.Outcome == ftp.Closed || k.Outcome == ftp.OK {
			idleTaken++
		}
		v.Evidence = append(v.Evidence, fmt.Sprintf("port %d while nothing listens there: %s", k.Port, stageText(k.Stage)))
	}
	stolen := 0
	for _, reply := range o.Taken {
		// A server may be impatient and say 425; to say that the address was a wrong one, or that it has sent all, takes a connection.
		if reply != "" && (!strings.HasPrefix(reply, "425") || strings.Contains(reply, "Bad IP")) {
			stolen++
			v.Evidence = append(v.Evidence, "a listing for which nobody here opened a data connection: \""+reply+"\"")
		}
	}
	const checks = "Have the load balancer send passive ports on without a check of their own (with HAProxy: \"track\" the control port's servers), and keep a client on one server for control and data. " +
		"Where the load balancer is managed and cannot be told so, put a pair of your own before the NodePorts: that is what ftpdeploy deploys"
	closed := ended + refused
	switch {
	case opened > 1 && opened+alive == len(o.Watched), closed > 0 && stolen > 1:
		v.ID, v.Confidence, v.Fix = "passive-health-checked", Certain, checks
		v.Text = "a load balancer health-checks the passive ports (tcp-check), although they listen only during a transfer: it holds their servers for dead, " +
			"and ends data connections at once until its checks have seen the port listen for a while. The server waits for them in vain, and says 425"
	case opened > 0, closed > 0 && stolen > 0, stolen > 1:
		v.ID, v.Fix = "passive-health-checked", checks
		v.Text = "a load balancer seems to health-check the passive ports (tcp-check), although they listen only during a transfer"
	case ended == len(o.Watched) && ended > 0 && idleTaken > 0:
		v.ID, v.Fix = "passive-health-checked", checks
		v.Text = "something before the server takes data connections and ends them at once, also while the server listens: so does a load balancer that health-checks passive ports, which listen only during a transfer"
	case badIP:
		v.ID, v.Text = "data-other-source", "the server sees control and data come from different addresses: a load balancer leads them over different nodes, or this client leaves by several addresses"
		v.Fix = "Keep a client on one node for control and data (source affinity over all ports), or, with less protection, set pasv_promiscuous"
	case silent > 0 && refused+ended == 0:
		v.ID, v.Text = "passive-dropped", "packets to the passive ports are dropped on the way"
		v.Fix = "Open the server's passive range in every firewall between"
	case refused > 0 && ended == 0 && worked == 0:
		v.ID, v.Text = "passive-refused", "the passive ports are refused although the server listens: nothing between leads them to it"
		v.Fix = "Lead the whole passive range to the server: Service ports, port forwarding"
	case worked > 0:
		v.ID, v.Text = "data-sometimes", "data connections work only sometimes: some of the ways to the passive ports, or some of the ports, lead elsewhere"
	}
	if n := len(v.Evidence); n > 9 {
		v.Evidence = v.Evidence[:9]
	}
	return v, true
}

func stageText(s ftp.Stage) string {
	switch s.Outcome {
	case ftp.OK:
		return fmt.Sprintf("taken, and held for %s", s.Took.Round(100*time.Millisecond))
	case ftp.Closed:
		return fmt.Sprintf("taken, and ended by the other side after %d ms", s.Took.Milliseconds())
	}
	return string(s.Outcome)
}
