package remote

import (
	"context"
	_ "embed"
	"fmt"
	"time"
)

//go:embed drill.sh
var drillScript string

// mendUnit is the transient timer that ends a Crash.
const mendUnit = "ftpdeploy-mend"

// Crash has the machine lose its VIPs as one that loses its power does, for all who
// see it from the network: keepalived is killed, so that its peers hear no farewell
// and must find out by its silence, and the VIPs are taken from their interfaces, so
// that what comes to them is not answered. The machine's own addresses go on. It
// mends itself after within, without any help from here; Mend does it before. The
// result is what was open.
func (h *Host) Crash(ctx context.Context, d Drain, until time.Time, word string, within time.Duration) ([]Connection, error) {
	head := fmt.Sprintf("unit=%s until=%d word=%s within=%d\n", mendUnit, until.Unix(), quote(word), int(within.Seconds()))
	out, err := h.change(ctx, d.head()+head+drainScript+drillScript+"crash\n", nil)
	if err != nil {
		return nil, fmt.Errorf("lose the VIPs at once: %w", err)
	}
	open, err := connections(string(out))
	if err != nil {
		return nil, fmt.Errorf("lose the VIPs at once: on %s: %w", h.name, err)
	}
	return open, nil
}

// Mend ends a Crash. It may be asked again.
func (h *Host) Mend(ctx context.Context, d Drain) error {
	if _, err := h.change(ctx, d.head()+"unit="+mendUnit+"\n"+drainScript+drillScript+"mend\n", nil); err != nil {
		return fmt.Errorf("take part again: %w", err)
	}
	return nil
}
