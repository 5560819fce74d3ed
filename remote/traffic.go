package remote

import (
	"context"
	_ "embed"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Traffic is what clients have open on a machine at one moment.
type Traffic struct {
	At      int64         // by the machine's clock, in seconds
	Open    []Connection  // established
	Closing []Connection  // one side has ended it, the other has not yet
	Links   []Link        // see Facts.Holds
	Ended   []Termination // that HAProxy has logged since the moment that was asked for
	Masters []Mastery     // of the machine since then, in their order
}

// Mastery is the moment at which a VRRP instance became master.
type Mastery struct {
	At       float64 // by the machine's clock, in seconds
	Instance string
}

// Termination is the end of a session as HAProxy has logged it.
type Termination struct {
	Peer netip.AddrPort // of the client
	How  string         // the first two letters of its termination state: "--", "cD", "SD"
}

//go:embed traffic.sh
var trafficScript string

// Traffic looks at the connections to some ports, and what became of others since
// a moment of the machine's clock; 0 = not asked for. Nothing is changed there.
func (h *Host) Traffic(ctx context.Context, ports []Ports, since int64) (*Traffic, error) {
	var script strings.Builder
	script.WriteString(bare(trafficScript))
	for _, p := range ports {
		fmt.Fprintf(&script, "sockets %d %d\n", p.First, p.Last)
	}
	script.WriteString("addresses\n")
	if since != 0 {
		fmt.Fprintf(&script, "since %d\n", since)
	}
	script.WriteString("echo @end\n")
	out, err := h.Run(ctx, script.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("look at the connections: %w", err)
	}
	t, err := parseTraffic(out)
	if err != nil {
		return nil, fmt.Errorf("look at the connections: on %s: %w", h.name, err)
	}
	return t, nil
}

func parseTraffic(out []byte) (*Traffic, error) {
	sections, err := sectionsOf(out)
	if err != nil {
		return nil, err
	}
	t := &Traffic{}
	for _, s := range sections {
		switch s.kind {
		case "now":
			t.At, err = strconv.ParseInt(s.name, 10, 64)
		case "sockets":
			err = t.addSockets(s.lines)
		case "addresses":
			f := &Facts{}
			err = f.addLinks(s.lines)
			t.Links = f.Links
		case "ended":
			err = t.addEnded(s.lines)
		case "masters":
			t.Masters, err = mastersOf(s.lines)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.kind, err)
		}
	}
	return t, nil
}

// addSockets reads ss: "ESTAB 0 0 203.0.113.15:21 203.0.113.50:40384".
func (t *Traffic) addSockets(lines []string) error {
	for _, line := range lines {
		w := strings.Fields(line)
		if len(w) < 5 || w[0] == "LISTEN" || w[0] == "TIME-WAIT" {
			continue
		}
		c, err := connection(w[3], w[4])
		if err != nil {
			return err
		}
		switch w[0] {
		case "ESTAB":
			t.Open = append(t.Open, c)
		case "SYN-RECV", "SYN-SENT": // not open yet
		default:
			t.Closing = append(t.Closing, c)
		}
	}
	return nil
}

func (t *Traffic) addEnded(lines []string) error {
	for _, line := range lines {
		client, how, _ := strings.Cut(line, " ")
		peer, err := endpoint(client)
		if err != nil {
			return err
		}
		t.Ended = append(t.Ended, Termination{peer, how})
	}
	return nil
}

// mastersOf reads times and instances: "1700000001.5 (ftp)".
func mastersOf(lines []string) ([]Mastery, error) {
	var all []Mastery
	for _, line := range lines {
		at, instance, _ := strings.Cut(line, " ")
		seconds, err := strconv.ParseFloat(at, 64)
		if err != nil {
			return nil, err
		}
		all = append(all, Mastery{seconds, strings.Trim(instance, "()")})
	}
	return all, nil
}

// connection reads the two ends of one.
func connection(local, client string) (Connection, error) {
	l, err := endpoint(local)
	if err != nil {
		return Connection{}, err
	}
	c, err := endpoint(client)
	return Connection{l, c}, err
}

// endpoint reads an address with its port as ss and HAProxy write it: an IPv6
// address may stand in brackets or not, and may have its interface.
func endpoint(s string) (netip.AddrPort, error) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return netip.AddrPort{}, fmt.Errorf("%q is no address with a port", s)
	}
	text, _, _ := strings.Cut(strings.Trim(s[:i], "[]"), "%")
	address, err := netip.ParseAddr(text)
	if err != nil {
		return netip.AddrPort{}, err
	}
	port, err := strconv.ParseUint(s[i+1:], 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is no address with a port", s)
	}
	return netip.AddrPortFrom(address.Unmap(), uint16(port)), nil
}
