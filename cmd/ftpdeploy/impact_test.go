package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/plan"
)

// A change is shown with its cause and its cost, for people and for machines.
func TestChangeSaysWhyAndWhatItCosts(t *testing.T) {
	source := plan.Source{
		Address: "vip.ftp.address", File: "lab.ftp.hcl",
		Start: plan.Position{Line: 7, Col: 13, Byte: 90}, End: plan.Position{Line: 7, Col: 27, Byte: 104},
	}
	many := []plan.Source{source, source, {Address: "vip.ftp"}, source, source}
	for _, c := range []struct {
		change plan.Change
		want   string // the lines below the head
	}{
		{
			plan.Change{Reason: "the blueprint says otherwise", Cause: plan.Cause{Kind: plan.ByBlueprint, Source: []plan.Source{source}}},
			"because  the blueprint says otherwise\n         vip.ftp.address  lab.ftp.hcl:7,13-27",
		},
		{
			plan.Change{Reason: "differs", Cause: plan.Cause{Kind: plan.ByBlueprint, Source: many}},
			"because  differs\n         vip.ftp.address  lab.ftp.hcl:7,13-27\n         vip.ftp.address  lab.ftp.hcl:7,13-27\n         vip.ftp\n         and 2 more",
		},
		{
			plan.Change{Reason: "differs: memory_mb", Cause: plan.Cause{Kind: plan.ByDrift, At: time.Date(2026, 11, 20, 14, 2, 0, 0, time.UTC)}},
			"because  drift: differs: memory_mb, at 2026-11-20 14:02:00 UTC",
		},
		{
			plan.Change{Reason: "drift: edited at 14:02, owner alice", Cause: plan.Cause{Kind: plan.ByDrift, By: "alice", At: time.Now()}},
			"because  drift: edited at 14:02, owner alice",
		},
		{
			plan.Change{
				Reason: "its configuration changes", Effect: plan.Reload,
				Impact: plan.Impact{Sessions: 14, Transfers: 1, Holds: []string{"ftp"}, Note: "the worker that carries them may live up to 4h (hard_stop_after)"},
			},
			"because  its configuration changes\nimpact   holds vip ftp, 14 sessions, 1 transfer open: none is cut; the worker that carries them may live up to 4h (hard_stop_after)",
		},
		{
			plan.Change{Reason: "differs", Effect: plan.Reboot, Impact: plan.Impact{Sessions: 1, Cut: 1, VIPMoves: 2, Holds: []string{"ftp"}}},
			"because  differs\nimpact   holds vip ftp, 1 session, 0 transfers open: 1 cut, the VIP moves 2 times",
		},
		{plan.Change{Reason: "differs", Effect: plan.Reload}, "because  differs"}, // nothing is open
		{
			plan.Change{Reason: "goes", Effect: plan.Restart, Impact: plan.Impact{Note: "it is not looked into"}},
			"because  goes\nimpact   it is not looked into",
		},
	} {
		c.change.Action, c.change.Target = plan.Update, "x"
		if c.change.Effect == "" {
			c.change.Effect = plan.NoEffect
		}
		var out strings.Builder
		(&human{out: &out, now: time.Now}).change(changeEvent(1, "host/x", c.change))
		_, got, _ := strings.Cut(out.String(), "\n")
		got = strings.TrimSpace(strings.ReplaceAll("\n"+got, "\n      ", "\n"))
		if got != c.want {
			t.Errorf("shown as\n%s\nwant\n%s", got, c.want)
		}
	}
	line, err := json.Marshal(changeEvent(1, "host/x", plan.Change{
		Action: plan.Update, Target: "x", Reason: "differs", Effect: plan.Reload,
		Cause: plan.Cause{Kind: plan.ByBlueprint, Source: []plan.Source{source}}, Impact: plan.Impact{Sessions: 3, Transfers: 2, Seconds: 1.5},
	}))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"reason":{"kind":"blueprint","source":[{"address":"vip.ftp.address","file":"lab.ftp.hcl","start":{"line":7,"col":13,"byte":90},"end":{"line":7,"col":27,"byte":104}}],"text":"differs"}`,
		`"impact":{"sessions":3,"transfers":2,"cut":0,"vip_moves":0,"seconds":1.5}`,
	} {
		if !strings.Contains(string(line), want) {
			t.Errorf("no %s in\n%s", want, line)
		}
	}
}
