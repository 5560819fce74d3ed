package e2e

import (
	"strings"
	"testing"
)

// plansOnlyLook holds that no plan writes anything: on the boxes, in vCenter, in
// the cluster. The recorders are shown to work by an apply.
func plansOnlyLook(t *testing.T) {
	file := variant(t, `client  = "2h"`, `client  = "3h"`)
	recorded := func(verb ...string) map[string][]string {
		t.Helper()
		seen := map[string][]string{}
		before := writes(t)
		stops := map[string]func() []string{boxA: recordWrites(t, boxA), boxB: recordWrites(t, boxB)}
		for _, v := range verb {
			deploy(t, append(strings.Fields(v), "-f", file)...).must(t)
		}
		for box, stop := range stops {
			seen[box] = stop()
		}
		seen["vCenter and cluster"] = writes(t)[len(before):]
		return seen
	}
	for where, wrote := range recorded("plan", "plan -vv --json", "verify") {
		if len(wrote) != 0 {
			t.Errorf("a plan wrote on %s:\n%s", where, strings.Join(wrote, "\n"))
		}
	}
	control := recorded("apply --yes")
	for _, box := range []string{boxA, boxB} {
		all := strings.Join(control[box], "\n")
		for _, want := range []string{"rename /etc/haproxy/.haproxy.cfg.ftpdeploy.", " /etc/haproxy/haproxy.cfg", "write /run/systemd/transient/ftpdeploy-revert.timer", "mkdir /var/lib/ftpdeploy/"} {
			if !strings.Contains(all, want) {
				t.Errorf("the recorder does not see that apply does %q on %s:\n%s", want, box, all)
			}
		}
	}
	t.Logf("two plans and a verify: 0 writes on the boxes, in vCenter, in the cluster; an apply of one file: %d and %d on the boxes, %d elsewhere",
		len(control[boxA]), len(control[boxB]), len(control["vCenter and cluster"]))
	deploy(t, "apply", "--yes").must(t)
	planIsEmpty(t)
}
