package steps

import (
	"context"
	"testing"

	"github.com/ftpdeploy/ftpdeploy/plan"
)

// What the same change took before from here is what it will take; what the lab says
// is a range where the site decides. What waits is not learned from.
func TestForecastSeconds(t *testing.T) {
	change := func(target string, effect plan.Effect) plan.Change {
		return plan.Change{
			Action: plan.Run, Target: target, Reason: "because", Effect: effect,
			Do: func(context.Context, func(string)) error { return nil },
		}
	}
	before := map[string]float64{
		"kubernetes/vsftpd run Deployment ftp/vsftpd rollout": 21,
		"host/haproxy-a run haproxy-a:haproxy.service reload": 9,
		"host/haproxy-a run haproxy-a:drain restart":          300,
		"host/haproxy-a run haproxy-a:proof none":             1.5,
	}
	for name, c := range map[string]struct {
		step           string
		change         plan.Change
		took           map[string]float64
		about, longest float64
	}{
		"a rollout for the first time": {"kubernetes/vsftpd", change("Deployment ftp/vsftpd", plan.Rollout), nil, 5.4, 25.4},
		"a rollout as before":          {"kubernetes/vsftpd", change("Deployment ftp/vsftpd", plan.Rollout), before, 21.4, 0},
		"of another service":           {"kubernetes/other", change("Deployment ftp/other", plan.Rollout), before, 5.4, 25.4},
		"a reload, which waits":        {"host/haproxy-a", change("haproxy-a:haproxy.service", plan.Reload), before, 11, 0},
		"a drain, which may wait":      {"host/haproxy-a", change("haproxy-a:drain", plan.Restart), before, 2.9, 0},
		"a proof, which may wait":      {"host/haproxy-a", change("haproxy-a:proof", plan.NoEffect), before, 0.8, 0},
		"a proof for the first time":   {"host/haproxy-a", change("haproxy-a:proof", plan.NoEffect), nil, 0.8, 0},
		"a package":                    {"host/haproxy-a", change("haproxy-a:packages", plan.NoEffect), nil, 2.4, 10.4},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := plan.Make(t.Context(), plan.Present, []plan.Step{planned{c.step, []plan.Change{c.change}}}, plan.Options{})
			if err != nil {
				t.Fatal(err)
			}
			src := fromLab(t)
			l := &Live{topology: load(t, src), steps: []*hostStep{asApplied(t, load(t, src), 0)}}
			l.options.Took = func() map[string]float64 { return c.took }
			all := l.Forecast(p)
			if all.Seconds != c.about || all.Longest != c.longest {
				t.Errorf("%.1f to %.1f s, want %.1f to %.1f s", all.Seconds, all.Longest, c.about, c.longest)
			}
		})
	}
}
