package remote

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Drain says how a machine is kept from taking its VIPs.
type Drain struct {
	// Mark is the file that keeps the machine away: keepalived's check fails while
	// the time in its first word, in seconds since 1970 by the machine's own clock,
	// is not over. So nothing has to run for a drain to end, and it outlives a reboot.
	Mark string
	Unit string       // keepalived's
	VIPs []netip.Addr // that leave, with whoever is connected to them
	// Except are clients whose connections are none: those who only watch.
	Except []netip.Addr
}

// Connection is an established TCP connection to a machine.
type Connection struct {
	Local, Client netip.AddrPort
}

// ErrBusy says that a machine has connections and was not to cut them.
var ErrBusy = errors.New("has open connections")

//go:embed drain.sh
var drainScript string

// Leave has the machine give its VIPs away in order, until then or for others to
// say in word, one line: keepalived tells its peers that it leaves, and does not
// take part any more. Where a connection to them is open and cut is false, that is
// waited for a second or two; the error is then ErrBusy with what is open, and
// nothing was changed. Else the result is what was cut: the last look and the
// leaving are one act on the machine.
func (h *Host) Leave(ctx context.Context, d Drain, until time.Time, word string, cut bool) ([]Connection, error) {
	out, err := h.change(ctx, fmt.Sprintf("%suntil=%d word=%s cut=%s\n%sleave\n", d.head(), until.Unix(), quote(word), flag(cut), drainScript), nil)
	if err != nil {
		return nil, fmt.Errorf("give the VIPs away: %w", err)
	}
	verdict, list, _ := strings.Cut(string(out), "\n")
	open, err := connections(list)
	switch {
	case err != nil:
		return nil, fmt.Errorf("give the VIPs away: on %s: %w", h.name, err)
	case verdict == "busy":
		return open, ErrBusy
	}
	return open, nil
}

// Return ends a drain. The machine takes part again when it returns; a VIP comes
// back to it only where keepalived decides so.
func (h *Host) Return(ctx context.Context, d Drain) error {
	if _, err := h.change(ctx, d.head()+drainScript+"back\n", nil); err != nil {
		return fmt.Errorf("take part again: %w", err)
	}
	return nil
}

// Unfit tells why the machine would not take a VIP now, "" where it would: unit
// does not run, or the command by which keepalived asks for the VIP fails.
func (h *Host) Unfit(ctx context.Context, unit string, check ...string) (string, error) {
	for i, w := range check {
		check[i] = quote(w)
	}
	out, err := h.Run(ctx, fmt.Sprintf("u=%s\n[ \"$(systemctl show -p ActiveState --value \"$u\")\" = active ] || { echo \"$u does not run\"; exit 0; }\n"+
		"%s >/dev/null 2>&1 </dev/null || echo 'what keepalived asks HAProxy fails'\n", quote(unit), strings.Join(check, " ")), nil)
	if err != nil {
		return "", fmt.Errorf("look whether the machine is fit: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// head gives the script what it works on.
func (d Drain) head() string {
	var vips, filter []string
	for _, v := range d.VIPs {
		vips = append(vips, v.String())
		filter = append(filter, "src "+bracketed(v))
	}
	text := strings.Join(filter, " or ")
	if len(filter) > 0 && len(d.Except) > 0 {
		text = "( " + text + " )"
		for _, a := range d.Except {
			text += " and not dst " + bracketed(a)
		}
	}
	return fmt.Sprintf("k=%s u=%s filter=%s vips=%s\n", quote(d.Mark), quote(d.Unit), quote(text), quote(strings.Join(vips, " ")))
}

// bracketed is an address as ss takes it.
func bracketed(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}

func flag(on bool) string {
	if on {
		return "1"
	}
	return ""
}

// connections reads pairs of addresses as ss has them.
func connections(text string) ([]Connection, error) {
	var all []Connection
	for line := range strings.Lines(text) {
		local, client, _ := strings.Cut(strings.TrimSpace(line), " ")
		c, err := connection(local, client)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}
