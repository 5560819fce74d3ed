package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// kept is a generation as history --json tells of it.
type kept struct {
	Number  int
	Who     string
	Command string
	Back    int `json:"rollback_to"`
	Differs []string
	Current bool
}

// generations asks a jump host that knows nothing.
func generations(t *testing.T) []kept {
	t.Helper()
	shell(t, "jump", `find "$HOME" -mindepth 1 -delete`)
	all := eventsOf[kept](t, deploy(t, "history", "--json").must(t).stdout, "generation")
	for i, k := range all {
		if k.Current != (i == len(all)-1) || i > 0 && k.Number != all[i-1].Number+1 {
			t.Errorf("generation %d of %d: %+v", i, len(all), k)
		}
	}
	return all
}

// historyGoesBack makes three generations and goes back to the first of them while
// clients are at work. From there it goes on to one with a single worker and
// forward again; then back to that one, whose worker is out of reach now, and to the
// one before them all, which has other NodePorts.
func historyGoesBack(t *testing.T) {
	before := generations(t)
	if len(before) == 0 {
		t.Fatal("the applies so far have left no history")
	}
	const all = `["198.51.100.21", "198.51.100.22", "198.51.100.23"]`
	version := func(client, workers string) string {
		return variant(t, `client  = "2h"`, `client  = "`+client+`"`, `node_port = 30021`, `node_port = 30022`, all, workers)
	}
	number := strconv.Itoa
	n := before[len(before)-1].Number
	present := version("3h", all)
	apply := func(to int, file string) {
		t.Helper()
		deploy(t, "apply", "--yes", "-f", file).must(t).says(t, fmt.Sprintf("generation: %d -> %d", to-1, to))
	}
	apply(n+1, version("1h", all))
	apply(n+2, version("90m", all))
	apply(n+3, present)
	kept := generations(t)
	for _, k := range kept[len(kept)-3:] {
		if k.Number <= n || !strings.Contains(k.Who, "@jump") || !strings.Contains(k.Command, "ftpdeploy apply -f ") {
			t.Errorf("%+v, want one of %d to %d", k, n+1, n+3)
		}
	}
	deploy(t, "diff", number(n+1), number(n+3)).must(t).says(t, "-    timeout client 1h", "+    timeout client 3h", "haproxy-b/etc/haproxy/haproxy.cfg")
	deploy(t, "diff", number(n+3)).must(t).says(t, "No differences")

	back := func(to int) result { return deploy(t, "rollback", "--to", number(to), "--yes", "-f", present) }
	var r result
	gap, failed, total := watchEvery(t, unhurried, patience, 25, func() { r = back(n + 1) })
	r.must(t).says(t, "PASS", "timeout client 1h", fmt.Sprintf("generation: %d -> %d", n+3, n+4), "The blueprint is ahead of generation")
	if failed != 0 {
		t.Errorf("%d of %d sessions failed", failed, total)
	}
	t.Logf("a rollback of HAProxy's timeouts took %.1f s: %d of %d sessions with a transfer failed, longest gap %.2f s", r.took.Seconds(), failed, total, gap.Seconds())
	if kept = generations(t); kept[len(kept)-1].Back != n+1 || kept[len(kept)-1].Number != n+4 {
		t.Errorf("the newest generation: %+v", kept[len(kept)-1])
	}
	deploy(t, "diff", number(n+1), number(n+4)).must(t).says(t, "No differences")

	apply(n+5, version("4h", `["198.51.100.21"]`))
	apply(n+6, present)
	deploy(t, "plan", "--detailed-exitcode", "-f", present).exits(t, 0)
	lab(t, "fault", "drop-port", "worker-1", "30022")
	r = back(n+5).exits(t, 5).says(t, "the box does not serve", "rolled back, and as before")
	lab(t, "fault", "undrop-port", "worker-1", "30022")
	t.Logf("a rollback that cannot be proven ended with 5 after %.1f s", r.took.Seconds())
	if kept = generations(t); kept[len(kept)-1].Number != n+6 {
		t.Errorf("what failed is kept: %+v", kept[len(kept)-1])
	}

	r = back(n).must(t).says(t, "nodePort: 30022 -> 30021", "PASS")
	t.Logf("a rollback to other NodePorts took %.1f s", r.took.Seconds())
	planIsEmpty(t)
}
