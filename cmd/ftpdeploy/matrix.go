package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/steps"
	"github.com/ftpdeploy/ftpdeploy/steps/ftp"
)

// matrixCell is what one box found of one worker.
type matrixCell struct {
	Service  string       `json:"service"`
	Box      string       `json:"box"`
	Worker   string       `json:"worker,omitempty"` // absent: its HAProxy chose
	OK       []int        `json:"ports"`            // that moved data
	Failed   []failedPath `json:"failed,omitempty"`
	NotDrawn []int        `json:"not_drawn,omitempty"`
	Error    string       `json:"error,omitempty"` // of the control connection
	MS       int64        `json:"ms"`
}

type failedPath struct {
	Port     int    `json:"port"`
	NodePort int    `json:"node_port"`
	Error    string `json:"error"`
}

// matrix proves every path from every box to every worker, and shows them.
func (d *deployment) matrix(ctx context.Context) ([]*steps.Cell, error) {
	start := d.now()
	cells, err := d.live.Matrix(ctx)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	took := d.now().Sub(start)
	broken := err != nil
	for _, c := range cells {
		e := cellEvent(c)
		level := "info"
		if c.Err != nil || len(c.Ports.Failed) > 0 {
			level, broken = "error", true
		}
		d.emit(event{level: level, msg: fmt.Sprintf("%s -> %s: %d of %d passive ports", e.Box, e.Worker, len(e.OK), c.Service.PassivePorts()), data: e})
	}
	for _, s := range d.topology.Services {
		if text := table(s, cells); text != "" {
			d.emit(event{level: "info", msg: text, data: note{}})
		}
	}
	for _, line := range faults(cells) {
		d.emit(event{level: "error", msg: "FAIL  " + line, data: note{}})
	}
	if err != nil {
		d.emit(event{level: "error", msg: err.Error(), data: note{}})
	}
	ok, all := 0, 0
	for _, c := range cells {
		o, a := c.Paths()
		ok, all = ok+o, all+a
	}
	d.emit(event{level: "info", msg: fmt.Sprintf("%d of %s proven in %.1f s", ok, count(all, "path", "paths"), took.Seconds()), data: note{}})
	if broken {
		return cells, errPaths
	}
	return cells, nil
}

func cellEvent(c *steps.Cell) matrixCell {
	e := matrixCell{
		Service: c.Service.Name, Box: c.Box.Name, OK: c.Ports.OK, NotDrawn: c.Ports.NotDrawn, MS: c.Took.Milliseconds(),
	}
	if c.Worker.IsValid() {
		e.Worker = c.Worker.String()
	}
	if c.Err != nil {
		e.Error = c.Err.Error()
	}
	for _, p := range slices.Sorted(maps.Keys(c.Ports.Failed)) {
		e.Failed = append(e.Failed, failedPath{p, c.Service.NodePort(p), c.Ports.Failed[p].Error()})
	}
	return e
}

// table has a row for each box and a column for each worker of a service.
func table(s *blueprints.Service, cells []*steps.Cell) string {
	var boxes, workers []string
	at := map[[2]string]string{}
	for _, c := range cells {
		if c.Service != s {
			continue
		}
		worker := "its HAProxy's choice"
		if c.Worker.IsValid() {
			worker = c.Worker.String()
		}
		if !slices.Contains(boxes, c.Box.Name) {
			boxes = append(boxes, c.Box.Name)
		}
		if !slices.Contains(workers, worker) {
			workers = append(workers, worker)
		}
		ok, all := c.Paths()
		text := fmt.Sprintf("%d/%d", ok, all)
		switch {
		case c.Err != nil:
			text += " FAIL"
		case len(c.Ports.Failed) > 0:
			text += fmt.Sprintf(" FAIL %d", len(c.Ports.Failed))
		}
		at[[2]string{c.Box.Name, worker}] = text
	}
	if len(boxes) == 0 {
		return ""
	}
	wide := len("box")
	for _, b := range boxes {
		wide = max(wide, len(b))
	}
	var t strings.Builder
	fmt.Fprintf(&t, "\nftp_service %q: passive ports that moved data, from each box to each worker\n\n  %-*s", s.Name, wide, "")
	for _, w := range workers {
		fmt.Fprintf(&t, "  %-15s", w)
	}
	for _, b := range boxes {
		fmt.Fprintf(&t, "\n  %-*s", wide, b)
		for _, w := range workers {
			fmt.Fprintf(&t, "  %-15s", at[[2]string{b, w}])
		}
	}
	for _, c := range cells {
		if n := len(c.Ports.NotDrawn); c.Service == s && c.Err == nil && n > 0 {
			fmt.Fprintf(&t, "\n  %s did not see %s: clients' transfers use them, or there are more than 32 and the server drew a sample", c.Box.Name, ftp.Ranges(c.Ports.NotDrawn))
		}
	}
	var lines strings.Builder
	for line := range strings.Lines(t.String()) {
		lines.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	return lines.String()
}

// faults names each broken path once: a fault that several have in common is one line.
func faults(cells []*steps.Cell) []string {
	var order []string
	where := map[string][]string{}
	add := func(what, place string) {
		if where[what] == nil {
			order = append(order, what)
		}
		where[what] = append(where[what], place)
	}
	for _, c := range cells {
		way := c.Box.Name
		if c.Worker.IsValid() {
			way += " -> " + c.Worker.String()
		}
		if c.Err != nil {
			add(fmt.Sprintf("ftp_service %q: %v", c.Service.Name, c.Err), way)
		}
		for _, p := range slices.Sorted(maps.Keys(c.Ports.Failed)) {
			add(fmt.Sprintf("passive port %d (NodePort %d): %v", p, c.Service.NodePort(p), c.Ports.Failed[p]), way)
		}
	}
	var lines []string
	for _, what := range order {
		lines = append(lines, strings.Join(where[what], ", ")+"  "+what)
	}
	return lines
}
