package remote

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Generation is what one set of changes may touch on a machine. Arm keeps it as
// it is, and has the machine put it back by itself unless Confirm is called in time.
type Generation struct {
	Dir      string        // directory of the store; generation N is in Dir/generations/N
	Token    string        // of this set of changes, and of no other: Arm may be asked again with it
	Within   time.Duration // until the machine reverts by itself; 0 = it never does
	Proven   []string      // names of what works now; kept for a run that goes on with the generation
	Pending  int           // the generation that is armed already and goes on, 0 = none
	Files    []string
	Settings []string // kernel settings
	Services []Service
	Rules    []FirewallRule // that will be added
	Booleans []string       // of SELinux that will be switched on
}

// Service is a Daemon of a generation.
type Service struct {
	Daemon
	// Stop says that it goes back to not running, although it runs: its package,
	// which started it, is ours.
	Stop bool
}

// ErrReverted says that the machine has put back a generation already.
var ErrReverted = errors.New("the machine went back to what it was before, because nobody confirmed the change in time")

// keptGenerations is how many generations a machine keeps.
const keptGenerations = 10

// revertGrace bounds how long a machine takes to put a generation back.
const revertGrace = 90 * time.Second

const notArmed = 76 // EX_PROTOCOL of sysexits.h: the exit status that stands for ErrReverted

// revertUnit is the transient timer, and the service that it starts.
const revertUnit = "ftpdeploy-revert"

//go:embed generation.sh
var generationScript string

//go:embed revert.sh
var revertScript string

// head gives the scripts what they work on.
func (g Generation) head() string {
	var b strings.Builder
	fmt.Fprintf(&b, "g=%s unit=%s wait=%d\n", quote(g.Dir), revertUnit, int(loadWait.Seconds()))
	list := func(name, item string, n int, each func(int) []string) {
		fmt.Fprintf(&b, "%s() {\n:\n", name)
		for i := range n {
			b.WriteString(item)
			for _, w := range each(i) {
				b.WriteString(" " + quote(w))
			}
			b.WriteByte('\n')
		}
		b.WriteString("}\n")
	}
	list("files", `"$1"`, len(g.Files), func(i int) []string { return []string{strconv.Itoa(i), g.Files[i]} })
	list("settings", `"$1"`, len(g.Settings), func(i int) []string { return []string{strconv.Itoa(i), settingFile(g.Settings[i])} })
	service := func(i int) []string {
		d := g.Services[i]
		stop := ""
		if d.Stop {
			stop = "stop"
		}
		return []string{strconv.Itoa(i), d.Unit, d.Config, d.Marker, d.Worker, stop}
	}
	list("services", `"$1"`, len(g.Services), service)
	last := len(g.Services) - 1
	list("services_down", `"$1"`, len(g.Services), func(i int) []string { return service(last - i) })
	return b.String()
}

// undoing are the commands that take back rules and booleans, one a line.
func (g Generation) undoing() string {
	var b strings.Builder
	for _, r := range g.Rules {
		what := "--remove-port=" + r.Port
		if r.Rich != "" {
			what = "--remove-rich-rule=" + r.Rich
		}
		fmt.Fprintf(&b, "firewall-cmd --zone=%s %s; firewall-cmd --permanent --zone=%[1]s %[2]s\n", quote(r.Zone), quote(what))
	}
	for _, name := range g.Booleans {
		fmt.Fprintf(&b, "setsebool -P %s off\n", quote(name))
	}
	return b.String()
}

// Arm keeps what is there as a new generation and starts the timer that puts it
// back, on the machine itself and without any help from here. It returns the
// generation's number, and what was Proven when that was begun. A generation that
// is Pending goes on, with a new timer, and so does one that was armed with the same
// Token; the error is ErrReverted where the machine has put that one back meanwhile.
func (h *Host) Arm(ctx context.Context, g Generation) (n int, proven []string, err error) {
	revert := g.head() + daemonScript + "load() (\nu=$1 c=$2 k=$3 w=$4 verb=$5\n" + loadScript + ")\n" + revertScript
	head := fmt.Sprintf("token=%s within=%d pending=%d keep=%d undoing=%s proven=%s\n",
		quote(g.Token), int(g.Within.Seconds()), g.Pending, keptGenerations, quote(g.undoing()), quote(strings.Join(g.Proven, " ")))
	out, err := h.change(ctx, g.head()+head+daemonScript+generationScript+"arm\n", []byte(revert))
	if err != nil {
		return 0, nil, fmt.Errorf("keep what is there as a generation: %w", reverted(err))
	}
	words := strings.Fields(string(out))
	if len(words) > 0 {
		n, err = strconv.Atoi(words[0])
	}
	if n == 0 {
		return 0, nil, fmt.Errorf("keep what is there as a generation: on %s: answer %q: %w", h.name, out, err)
	}
	return n, words[1:], nil
}

// Confirm stops the timer of generation n: what was done since Arm stays. It may be
// asked again. The error is ErrReverted where the timer was faster.
func (h *Host) Confirm(ctx context.Context, g Generation, n int) error {
	head := fmt.Sprintf("n=%d keep=%d\n", n, keptGenerations)
	if _, err := h.change(ctx, g.head()+head+daemonScript+generationScript+"confirm\n", nil); err != nil {
		return fmt.Errorf("confirm generation %d: %w", n, reverted(err))
	}
	return nil
}

// Revert puts generation n back, confirmed or not, and returns when its services
// run with it. Where the machine is doing that already, or has, that is waited for.
// The files that are spared stay as they are.
func (h *Host) Revert(ctx context.Context, g Generation, n int, spared ...string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, revertGrace, fmt.Errorf("waited %s for %s to put generation %d back", revertGrace, h.name, n))
	defer cancel()
	script := "sh " + quote(fmt.Sprintf("%s/generations/%d/revert", g.Dir, n)) + " now"
	for _, file := range spared {
		script += " " + quote(file)
	}
	script += " >&2 </dev/null"
	if _, err := h.change(ctx, script, nil); err != nil {
		return fmt.Errorf("put generation %d back: %w", n, err)
	}
	return nil
}

// Disarm stops a timer that may be armed; nothing is put back.
func (h *Host) Disarm(ctx context.Context, g Generation) error {
	if _, err := h.change(ctx, g.head()+daemonScript+generationScript+"quiet\nrm -f \"$g/armed\"\n", nil); err != nil {
		return fmt.Errorf("stop the timer of a change that was not confirmed: %w", err)
	}
	return nil
}

func reverted(err error) error {
	var exit *ExitError
	if errors.As(err, &exit) && exit.Status == notArmed {
		return fmt.Errorf("%w: %w", ErrReverted, err)
	}
	return err
}

// Evidence is what a failure left behind: what a name stands for, and the text.
type Evidence struct {
	Name string // "haproxy.cfg", "journal.txt"
	Text []byte
}

// Look collects what tells why a change failed: the files, what the commands of
// checks say of them, the services' state, and their journal since the time given
// (the machine's own journal, so by its clock; 10 minutes are enough). It changes nothing.
func (h *Host) Look(ctx context.Context, files []string, checks, units []string) ([]Evidence, error) {
	var all []Evidence
	var errs []error
	ask := func(name, script string) {
		out, err := h.Run(ctx, script, nil)
		if err != nil {
			errs = append(errs, fmt.Errorf("look at %s: %w", name, err))
			return
		}
		all = append(all, Evidence{name, out})
	}
	for _, f := range files {
		ask(f[strings.LastIndexByte(f, '/')+1:], fmt.Sprintf("if [ -f %s ]; then cat %[1]s; else echo 'not there'; fi", quote(f)))
	}
	ask("checks.txt", strings.Join(checks, "\n")+"\n:")
	list := strings.Join(units, " ")
	ask("state.txt", "systemctl show -p Id,LoadState,ActiveState,UnitFileState "+list+" 2>&1; ip -br addr; :")
	var journal strings.Builder
	for _, u := range units {
		fmt.Fprintf(&journal, "echo '== %s'; journalctl -q -o cat -u %[1]s --since -10min 2>&1 | tail -n 300\n", u)
	}
	ask("journal.txt", journal.String()+":")
	return all, errors.Join(errs...)
}
