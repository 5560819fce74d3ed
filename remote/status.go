package remote

import (
	"context"
	_ "embed"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// Doing says of which services Status tells what they do.
type Doing struct {
	Query
	Proxy      Daemon // HAProxy
	Keepalived string // its unit
	// Statistics is where HAProxy tells what it counts, on the machine itself: host,
	// port and path of an HTTP page of CSV.
	Host string
	Port int
	Path string
}

// Status is what a machine is like and does at one moment.
type Status struct {
	*Facts
	Masters []Mastery       // since it booted, as far as its journal goes back; the newest first
	Workers []time.Duration // ages of HAProxy's workers, the youngest first: all others only end what is open
	Proxies []Proxy         // what HAProxy counts; nil where it does not tell
}

// Proxy is a line of HAProxy's statistics (management.txt, "CSV format").
type Proxy struct {
	Name     string        // of the frontend or backend: pxname
	Server   string        // svname; FRONTEND and BACKEND for the whole
	Status   string        // "OPEN", "UP", "DOWN", "UP 1/2", "no check"
	Since    time.Duration // that the status has been so: lastchg
	Check    string        // how the last check ended: check_status, as in "L4TOUT"
	Answer   string        // what the check got: last_chk
	Sessions int           // now: scur
	Total    int           // stot
	Errors   int           // connections to servers that failed: econ
}

// Up tells whether the server gets new connections.
func (p Proxy) Up() bool { return strings.HasPrefix(p.Status, "UP") || p.Status == "no check" }

//go:embed status.sh
var statusScript string

// Status looks at a machine and what its services do, in one go, without changing
// anything there and without waiting for a change that is under way. Not told are
// the firewall's rules.
func (h *Host) Status(ctx context.Context, d Doing) (*Status, error) {
	var b strings.Builder
	b.WriteString(d.script())
	b.WriteString(bare(statusScript))
	fmt.Fprintf(&b, "masters %s\nstatistics %s %d %s\n", quote(d.Keepalived), quote(d.Host), d.Port, quote(d.Path))
	b.WriteString(d.Proxy.head() + daemonScript + "echo @workers\n" + agesScript + "echo @end\n")
	out, err := h.Run(ctx, b.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("look at what the machine does: %w", err)
	}
	s, err := parseStatus(out)
	if err != nil {
		return nil, fmt.Errorf("look at what the machine does: on %s: %w", h.name, err)
	}
	return s, nil
}

func parseStatus(out []byte) (*Status, error) {
	sections, err := sectionsOf(out)
	if err != nil {
		return nil, err
	}
	found := &Status{Facts: newFacts()}
	for _, s := range sections {
		switch s.kind {
		case "masters":
			found.Masters, err = mastersOf(s.lines)
		case "statistics":
			found.Proxies, err = proxiesOf(s.lines)
		case "workers":
			found.Workers, err = agesOf(s.lines)
		default:
			err = found.add(s)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.kind, err)
		}
	}
	return found, nil
}

// proxiesOf reads an HTTP answer with HAProxy's statistics. Another answer is none:
// the configuration may be one that does not have them.
func proxiesOf(lines []string) ([]Proxy, error) {
	body := strings.Join(lines, "\n")
	at := strings.Index(body, "# pxname,")
	if at < 0 {
		return nil, nil
	}
	r := csv.NewReader(strings.NewReader(body[at+len("# "):]))
	r.FieldsPerRecord = -1
	head, err := r.Read()
	if err != nil {
		return nil, err
	}
	column := map[string]int{}
	for i, name := range head {
		column[name] = i
	}
	var all []Proxy
	for {
		record, err := r.Read()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		text := func(name string) string {
			if i, ok := column[name]; ok && i < len(record) {
				return record[i]
			}
			return ""
		}
		number := func(name string) int {
			n, _ := strconv.Atoi(text(name)) // empty where a line does not count it
			return n
		}
		all = append(all, Proxy{
			Name: text("pxname"), Server: text("svname"), Status: text("status"), Check: text("check_status"), Answer: text("last_chk"),
			Since: time.Duration(number("lastchg")) * time.Second, Sessions: number("scur"), Total: number("stot"), Errors: number("econ"),
		})
	}
}
