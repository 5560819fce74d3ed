package remote

import (
	"context"
	_ "embed"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Ask says what Condition looks at.
type Ask struct {
	Host  string // where HAProxy tells what it counts: see Doing
	Port  int
	Path  string
	Check string        // the command by which keepalived asks for a VIP
	VIPs  []string      // names, each an argument of Check
	Since time.Duration // of HAProxy's log
	Disks []string      // directories whose file systems matter
}

// Condition is what tells why a box does not serve.
type Condition struct {
	Now     time.Time         // by the box's clock
	Servers []Proxy           // what HAProxy counts; nil where it does not tell
	Cut     []string          // sessions that a timeout of HAProxy has ended, as it has logged them
	Said    []string          // what HAProxy complained of
	States  map[string]string // the last state of a VRRP instance that keepalived has logged: MASTER, BACKUP, FAULT
	Log     []string          // the end of keepalived's log
	Unfit   []string          // names of VIPs for which keepalived's check fails
	Disks   map[string]Disk   // by the directory that was asked for
	Filters []string          // rules on ports that refuse packets, as far as they can be seen
}

// Disk is a file system.
type Disk struct {
	Full   bool   // of bytes, or of inodes
	Device string // as df names it
}

//go:embed condition.sh
var conditionScript string

// Condition looks at why a box does not serve, in one go and without changing
// anything there. What cannot be asked on the box is missing.
func (h *Host) Condition(ctx context.Context, a Ask) (*Condition, error) {
	var script strings.Builder
	script.WriteString(bare(statusScript) + bare(conditionScript))
	fmt.Fprintf(&script, "statistics %s %d %s\nhaproxy %d\nkeepalived\n", quote(a.Host), a.Port, quote(a.Path), int(a.Since.Seconds()))
	for _, v := range a.VIPs {
		fmt.Fprintf(&script, "check %s %s\n", quote(a.Check), quote(v))
	}
	script.WriteString("disk")
	for _, d := range a.Disks {
		script.WriteString(" " + quote(d))
	}
	script.WriteString("\nfilters\necho @end\n")
	out, err := h.Run(ctx, script.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("look at the condition of the machine: %w", err)
	}
	c, err := parseCondition(out)
	if err != nil {
		return nil, fmt.Errorf("look at the condition of the machine: on %s: %w", h.name, err)
	}
	return c, nil
}

func parseCondition(out []byte) (*Condition, error) {
	sections, err := sectionsOf(out)
	if err != nil {
		return nil, err
	}
	c := &Condition{States: map[string]string{}, Disks: map[string]Disk{}}
	for _, s := range sections {
		lines := slices.DeleteFunc(s.lines, func(l string) bool { return l == "" })
		switch s.kind {
		case "now":
			seconds, err := strconv.ParseInt(s.name, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("the machine's clock says %q", s.name)
			}
			c.Now = time.Unix(seconds, 0)
		case "statistics":
			if c.Servers, err = proxiesOf(lines); err != nil {
				return nil, fmt.Errorf("HAProxy's statistics: %w", err)
			}
		case "cut":
			c.Cut = lines
		case "complaints":
			c.Said = lines
		case "keepalived":
			c.addStates(lines)
		case "check":
			if name, status, _ := strings.Cut(s.name, " "); status != "0" {
				c.Unfit = append(c.Unfit, name)
			}
		case "disk":
			c.addDisk(s.name, lines)
		case "filters":
			c.Filters = lines
		}
	}
	return c, nil
}

// addStates reads "TIME HOST Keepalived_vrrp[PID]: (INSTANCE) Entering MASTER STATE".
func (c *Condition) addStates(lines []string) {
	for _, line := range lines {
		before, state, ok := strings.Cut(line, " Entering ")
		if !ok {
			continue
		}
		i := strings.LastIndexByte(before, '(')
		if state, _, ok = strings.Cut(state, " STATE"); ok && i >= 0 { // "(init)" may follow
			name, _, _ := strings.Cut(before[i+1:], ")")
			c.States[name] = state
		}
	}
	c.Log = lines[max(0, len(lines)-8):]
}

// addDisk reads two lines of df: KiB and inodes.
func (c *Condition) addDisk(dir string, lines []string) {
	if len(lines) != 2 {
		return
	}
	kib, inodes := strings.Fields(lines[0]), strings.Fields(lines[1])
	if len(kib) < 6 || len(inodes) < 6 {
		return
	}
	c.Disks[dir] = Disk{Full: kib[3] == "0" || inodes[3] == "0" && inodes[1] != "0", Device: kib[0]}
}
