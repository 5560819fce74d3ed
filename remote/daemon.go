package remote

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Daemon is a systemd service that reads one configuration file when it starts
// or reloads.
type Daemon struct {
	Unit   string // "haproxy.service"
	Config string // what it reads
	// Marker is the file that remembers which Config the daemon has loaded: its
	// FileState.Identity. It is written only when a load has proven real, so a
	// crash at any moment leaves it different from Config, and a file that was
	// not touched since is what every later restart of the daemon loads too.
	Marker string
	// Worker is the name of the processes that a reload replaces ("haproxy"); ""
	// for a daemon that reloads in place, and says so in its log.
	Worker string
}

// ErrReload says that a daemon did not take its configuration; it goes on with
// the one that it had, if it ran.
var ErrReload = errors.New("the configuration was not loaded")

// loadWait bounds how long a daemon may take to come up or to reload.
const loadWait = 20 * time.Second

// daemonScript has what the scripts of a daemon share.
const daemonScript = `die() { echo "$1" >&2; exit "${2:-1}"; }
show() { systemctl show -p "$1" --value "$u"; }
log() { journalctl -q -o cat -u "$u" --since "@$began" 2>/dev/null; }
lost() { log | tail -n 12 >&2; die "$1" 75; }
# workers: PID and start (clock ticks since boot) of each worker of process $m
workers() {
	for f in /proc/[0-9]*/stat; do
		{ read -r s <"$f"; } 2>/dev/null || continue
		case $s in *" ($w) "*) ;; *) continue ;; esac
		p=${s%% *}
		set -- ${s##*) }
		[ "$2" != "$m" ] || echo "$p ${20}"
	done
}
identity() {
	s=$(sha256sum <"$c") && i=$(stat -L -c '%i %y' "$c") || die "read $c"
	echo "${s%% *} $i"
}
`

// loadScript does $verb, start or reload, waits until it has become real, and
// then marks the configuration as the loaded one.
const loadScript = `began=$(date +%s)
id=$(identity)
m=$(show MainPID)
old=" $(workers | while read -r p _; do printf '%s ' "$p"; done)"
systemctl "$verb" "$u" >&2 || lost "systemctl $verb $u"
n=0
while :; do
	[ $n -lt $((5 * wait)) ] || lost "$u: no sign of a $verb within $wait s: $(show ActiveState)"
	m=$(show MainPID)
	case $(show ActiveState) in
	active)
		if [ "$verb" = start ]; then break; fi
		if [ "$w" ]; then
			new=$(workers | while read -r p _; do case $old in *" $p "*) ;; *) echo "$p" ;; esac; done)
			[ -z "$new" ] || break
			case $(log) in *'Loading failure'*) lost "$u goes on with its former configuration" ;; esac
		else
			case $(log) in
			*'Reload complete'* | *'Reload finished'*) break ;;
			*Reloading*) [ $n -lt 25 ] || break ;; # a version with other words
			esac
		fi
		;;
	failed | inactive) lost "$u is $(show ActiveState) after $verb" ;;
	esac
	n=$((n + 1))
	# A signal that meets HAProxy's master while it executes itself anew, as it does
	# once it has started, is lost: ask once more.
	if [ "$verb $n" = "reload $((5 * wait / 2))" ]; then systemctl reload "$u" >&2 || lost "systemctl reload $u"; fi
	sleep 0.2
done
[ "$(identity)" = "$id" ] || die "$c was changed by someone else while $u read it"
umask 077
mkdir -p "${k%/*}" && echo "$id" >"$k.new" && sync "$k.new" && mv "$k.new" "$k" || die "write $k"
`

const notLoaded = 75 // EX_TEMPFAIL of sysexits.h: the exit status that stands for ErrReload

// Start starts a daemon and returns when it runs.
func (h *Host) Start(ctx context.Context, d Daemon) error { return h.load(ctx, d, "start") }

// Running tells whether a daemon runs now.
func (h *Host) Running(ctx context.Context, d Daemon) (bool, error) {
	out, err := h.Run(ctx, d.head()+daemonScript+"show ActiveState", nil)
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", d.Unit, err)
	}
	return strings.TrimSpace(string(out)) == "active", nil
}

// Reload makes a running daemon load its configuration and returns when it has:
// when a new worker runs, or when the log says so. It never restarts.
func (h *Host) Reload(ctx context.Context, d Daemon) error { return h.load(ctx, d, "reload") }

func (h *Host) load(ctx context.Context, d Daemon, verb string) error {
	_, err := h.change(ctx, d.head()+fmt.Sprintf("verb=%s wait=%d\n", verb, int(loadWait.Seconds()))+daemonScript+loadScript, nil)
	var exit *ExitError
	if errors.As(err, &exit) && exit.Status == notLoaded {
		return fmt.Errorf("%s %s on %s: %w: %s", verb, d.Unit, h.name, ErrReload, exit.Stderr)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", verb, d.Unit, err)
	}
	return nil
}

// Age tells how long the youngest worker of a daemon has been running, by the
// machine's own clock since boot; ok is false where there is none.
func (h *Host) Age(ctx context.Context, d Daemon) (age time.Duration, ok bool, err error) {
	out, err := h.Run(ctx, d.head()+daemonScript+agesScript, nil)
	if err != nil {
		return 0, false, fmt.Errorf("look at the workers of %s: %w", d.Unit, err)
	}
	ages, err := agesOf(strings.Split(strings.TrimSpace(string(out)), "\n"))
	if err != nil {
		return 0, false, fmt.Errorf("look at the workers of %s on %s: %w", d.Unit, h.name, err)
	}
	if len(ages) == 0 {
		return 0, false, nil
	}
	return ages[0], true, nil
}

// agesScript says when the machine booted, and when each worker began.
const agesScript = "m=$(show MainPID) || exit 1\ncat /proc/uptime\nworkers\n"

// agesOf reads how long workers have been running, the youngest first.
func agesOf(lines []string) ([]time.Duration, error) {
	up, _, _ := strings.Cut(lines[0], " ")
	now, err := strconv.ParseFloat(up, 64)
	if err != nil {
		return nil, fmt.Errorf("/proc/uptime: %w", err)
	}
	var ages []time.Duration
	for _, line := range lines[1:] {
		_, ticks, _ := strings.Cut(line, " ")
		start, err := strconv.ParseFloat(ticks, 64)
		if err != nil {
			return nil, err
		}
		// USER_HZ is 100 on every platform that these machines are made for.
		ages = append(ages, time.Duration((now-start/100)*float64(time.Second)))
	}
	slices.Sort(ages)
	return ages, nil
}

// Enable has units start at boot.
func (h *Host) Enable(ctx context.Context, units ...string) error {
	return h.systemctl(ctx, "enable", units)
}

// Disable stops units and has them not start at boot.
func (h *Host) Disable(ctx context.Context, units ...string) error {
	return h.systemctl(ctx, "disable --now", units)
}

// LetGo has a running service go on with the configuration that others gave it,
// or stops it where there is none.
func (h *Host) LetGo(ctx context.Context, unit, config string) error {
	script := fmt.Sprintf("if [ -f %s ]; then systemctl reload %s >&2; else systemctl stop %[2]s >&2; fi", quote(config), quote(unit))
	if _, err := h.change(ctx, script, nil); err != nil {
		return fmt.Errorf("give %s back its former configuration: %w", unit, err)
	}
	return nil
}

func (h *Host) systemctl(ctx context.Context, verb string, units []string) error {
	list := strings.Join(units, " ")
	if _, err := h.change(ctx, "systemctl "+verb+" "+list+" >&2", nil); err != nil {
		return fmt.Errorf("systemctl %s %s: %w", verb, list, err)
	}
	return nil
}

func (d Daemon) head() string {
	return fmt.Sprintf("u=%s c=%s k=%s w=%s\n", quote(d.Unit), quote(d.Config), quote(d.Marker), quote(d.Worker))
}
