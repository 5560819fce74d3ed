package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/ftpdeploy/ftpdeploy/plan"
)

// human renders events for people: results on out, progress on err.
type human struct {
	out, err io.Writer
	color    bool // out takes colour
	live     bool // err is a terminal that can redraw a line
	quiet    bool // no progress
	width    int  // columns of err
	now      func() time.Time

	mu     sync.Mutex
	status string               // the redrawn line that stands on err now
	said   map[string]time.Time // step -> when its progress was last said on a pipe
	held   map[int][]string     // lines of steps that are over before the ones listed first
	lines  map[string][]string  // step -> its lines so far
	next   int                  // index of the step whose lines come next
	order  []int                // indexes of the steps that act, in list order
}

const (
	green  = "32"
	yellow = "33"
	red    = "31"
	dim    = "2"
	bold   = "1"
)

func (h *human) paint(code, text string) string {
	if !h.color || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func signColor(sign string) string {
	switch sign {
	case "+":
		return green
	case "-":
		return red
	}
	return yellow
}

func (h *human) emit(e event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch d := e.data.(type) {
	case runStart, observed, matrixCell: // the table has all cells
	case progress:
		h.progress(e.msg)
	case planChange:
		h.clear()
		h.change(d)
	case difference:
		h.clear()
		h.unified("", d.Unified)
	case driftEvent:
		h.clear()
		fmt.Fprintln(h.out, e.msg)
		h.unified("      ", d.Unified)
	case planSummary, drained, drillEvent, output, generation, diagnosis, vipStatus, boxStatus, clusterStatus, serviceStatus, lastRun:
		h.clear()
		fmt.Fprintln(h.out, e.msg)
	case note:
		h.clear()
		if e.level == "info" {
			fmt.Fprintln(h.out, e.msg)
		} else {
			fmt.Fprintln(h.err, e.msg)
		}
	case diagnostic: // printed with its source excerpt by diagnose
	case lockState:
		h.lock(e, d)
	case action:
		h.action(e, d)
	case rollback:
		h.clear()
		fmt.Fprintln(h.err, e.msg)
	case stepEnd:
		h.stepEnd(e, d)
	case smokeCheck:
		h.clear()
		mark := h.paint(green, "ok  ")
		if !d.OK {
			mark = h.paint(red, "FAIL")
		}
		fmt.Fprintf(h.out, "  %s %-34s %6d ms  %s\n", mark, d.Name, d.MS, d.Text)
	case runEnd:
		h.clear()
		if e.msg != "" {
			fmt.Fprintln(h.out, e.msg)
		}
	}
}

// lock says whose the deployment is.
func (h *human) lock(e event, l lockState) {
	switch {
	case l.State == "waiting":
		h.progress(e.msg)
	case e.level == "warn", l.State == "acquired" && !h.quiet:
		h.clear()
		fmt.Fprintln(h.err, e.msg)
	}
}

// change prints one change of a plan.
func (h *human) change(c planChange) {
	head := fmt.Sprintf("  %s %-22s %s", h.paint(signColor(c.sign), c.sign), c.Address, c.Target)
	if c.Effect != "none" {
		head += "   " + h.paint(bold, "effect: "+c.Effect)
	}
	fmt.Fprintln(h.out, head)
	for _, f := range c.Diff {
		switch f.Before {
		case "":
			fmt.Fprintf(h.out, "      %s: %s\n", f.Path, f.After)
		default:
			fmt.Fprintf(h.out, "      %s: %s -> %s\n", f.Path, f.Before, f.After)
		}
	}
	h.unified("      ", c.Unified)
	for i, line := range c.Reason.lines() {
		word := h.paint(dim, "because")
		if i > 0 {
			word = "       "
		}
		fmt.Fprintln(h.out, "      "+word+"  "+line)
	}
	if c.Effect != "none" && (c.Impact.Sessions+c.Impact.Transfers+c.Impact.VIPMoves > 0 || c.Impact.Note != "") {
		fmt.Fprintln(h.out, "      "+h.paint(dim, "impact")+"   "+impactText(c.Impact))
	}
	for _, kind := range c.Needs {
		fmt.Fprintln(h.out, "      "+h.paint(yellow, "needs")+"    --allow "+kind)
	}
}

// impactText says what one change costs.
func impactText(i plan.Impact) string {
	if i.Sessions+i.Transfers+i.VIPMoves == 0 && i.Note != "" {
		return i.Note
	}
	var parts []string
	if len(i.Holds) > 0 {
		parts = append(parts, "holds vip "+strings.Join(i.Holds, ", "))
	}
	text := strings.Join(append(parts, opened(i)+" open"), ", ")
	if i.Cut == 0 {
		text += ": none is cut"
	} else {
		text += fmt.Sprintf(": %d cut", i.Cut)
	}
	if i.VIPMoves > 0 {
		text += ", the VIP moves"
	}
	if i.VIPMoves > 1 {
		text += fmt.Sprintf(" %d times", i.VIPMoves)
	}
	if i.Note != "" {
		text += "; " + i.Note
	}
	return text
}

// unified prints a diff, each line behind an indent.
func (h *human) unified(indent, diff string) {
	for line := range strings.Lines(diff) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "+++"), strings.HasPrefix(line, "---"):
			line = h.paint(dim, line)
		case strings.HasPrefix(line, "+"):
			line = h.paint(green, line)
		case strings.HasPrefix(line, "-"):
			line = h.paint(red, line)
		}
		fmt.Fprintln(h.out, indent+line)
	}
}

// lines are a reason for people: why, then where the blueprint says so.
func (r reason) lines() []string {
	text := r.Text
	if r.Kind == plan.ByDrift {
		if !strings.HasPrefix(text, "drift: ") {
			text = "drift: " + text
		}
		if r.By != "" && !strings.Contains(text, r.By) {
			text += ", by " + r.By
		}
		if !r.At.IsZero() && !strings.Contains(text, " at ") {
			text += ", at " + r.At.Format("2006-01-02 15:04:05 MST")
		}
	}
	lines := []string{text}
	const shown = 3
	for i, s := range r.Source {
		if i == shown {
			lines = append(lines, fmt.Sprintf("and %d more", len(r.Source)-shown))
			break
		}
		line := s.Address
		if s.File != "" {
			line += fmt.Sprintf("  %s:%d,%d-%d", s.File, s.Start.Line, s.Start.Col, s.End.Col)
			if s.End.Line != s.Start.Line {
				line = fmt.Sprintf("%s  %s:%d-%d", s.Address, s.File, s.Start.Line, s.End.Line)
			}
		}
		lines = append(lines, line)
	}
	return lines
}

// expect tells which steps of a plan will act, so that their lines can be
// printed in the order of the list, whichever is over first.
func (h *human) expect(steps []int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.order, h.next = steps, 0
	h.held, h.lines = map[int][]string{}, map[string][]string{}
}

func (h *human) action(e event, a action) {
	switch a.phase {
	case "end":
		mark := h.paint(signColor(a.sign), a.sign)
		line := fmt.Sprintf("  %s %-22s %-52s %7.1f s", mark, a.Step, a.Address, float64(a.ElapsedMS)/1000)
		if a.Outcome == "failed" {
			line += "  " + h.paint(red, "FAILED")
		}
		h.lines[a.Step] = append(h.lines[a.Step], line)
	case "start", "progress":
		if h.live {
			h.progress(e.msg)
			return
		}
		// On a pipe a wait is said when it begins and every ten seconds.
		if last, ok := h.said[a.Step]; a.phase == "progress" && ok && h.now().Sub(last) < 10*time.Second {
			return
		}
		if h.said == nil {
			h.said = map[string]time.Time{}
		}
		h.said[a.Step] = h.now()
		h.progress(e.msg)
	}
}

func (h *human) stepEnd(e event, s stepEnd) {
	lines := h.lines[s.Step]
	if s.Outcome == "skipped" {
		lines = append(lines, fmt.Sprintf("    %-22s %s", s.Step, e.msg))
	}
	h.held[s.index] = lines
	for h.next < len(h.order) {
		lines, over := h.held[h.order[h.next]]
		if !over {
			return
		}
		h.clear()
		for _, l := range lines {
			fmt.Fprintln(h.out, l)
		}
		h.next++
	}
}

// progress says on err what is going on: a line that is redrawn on a terminal.
func (h *human) progress(text string) {
	if h.quiet || text == "" {
		return
	}
	if !h.live {
		fmt.Fprintln(h.err, text)
		return
	}
	h.clear()
	if h.width > 1 && utf8.RuneCountInString(text) >= h.width {
		text = string([]rune(text)[:h.width-2]) + "…"
	}
	h.status = text
	fmt.Fprint(h.err, text)
}

// clear takes the redrawn line away before something else is printed.
func (h *human) clear() {
	if h.status != "" {
		fmt.Fprint(h.err, "\r\x1b[K")
		h.status = ""
	}
}
