package steps

import (
	"errors"
	"strings"
	"testing"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/vsphere"
)

func TestCheckSitesDown(t *testing.T) {
	p := newPair(t)
	for _, tt := range []struct {
		down []string
		says string
	}{
		{nil, ""},
		{[]string{"haproxy-a"}, ""},
		{[]string{"c"}, "--site-down c: no lb of the blueprint is on a site of that name; its boxes are on haproxy-a, haproxy-b"},
		{[]string{"haproxy-a", "haproxy-b"}, `lb_group "ftp" would have no box left`},
	} {
		if err := CheckSitesDown(p.topology, tt.down); (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%v: %v, want %q", tt.down, err, tt.says)
		}
	}
}

// The advice is given where one site is dark and another is not.
func TestSiteAdvice(t *testing.T) {
	p := newPair(t)
	a, b := p.topology.Boxes[0], p.topology.Boxes[1]
	for name, tt := range map[string]struct {
		failed map[*blueprints.Box]error
		says   string
	}{
		"one site":  {map[*blueprints.Box]error{a: remote.ErrUnreachable}, "--site-down haproxy-a"},
		"a vCenter": {map[*blueprints.Box]error{b: vsphere.ErrUnreachable}, "--site-down haproxy-b"},
		"both":      {map[*blueprints.Box]error{a: remote.ErrUnreachable, b: remote.ErrUnreachable}, ""},
		"a login":   {map[*blueprints.Box]error{a: remote.ErrAuth}, ""},
	} {
		err := siteAdvice(p.topology, tt.failed, remote.ErrUnreachable)
		if _, advice, _ := strings.Cut(err.Error(), "To leave it out and repair the rest: "); advice != tt.says || !errors.Is(err, remote.ErrUnreachable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A site that is down is not looked at: its VM may be lost, and nobody calls its box.
func TestSiteDown(t *testing.T) {
	p := newPair(t)
	p.up(t)
	a := p.topology.Boxes[0]
	l := Open(p.topology, Options{SitesDown: []string{a.Site.Name}, Env: func(string) (string, bool) { return "", false }})
	if err := p.calls.Destroy(t.Context(), p.topology.ID, a.Name); err != nil {
		t.Fatal(err)
	}
	p.PowerOff(t, p.path(1))
	list, err := l.List(t.Context(), plan.Present)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range list {
		names = append(names, s.Name())
	}
	if got := strings.Join(names, " "); got != "vm/haproxy-b power/haproxy-b host/haproxy-b" {
		t.Errorf("steps %s", got)
	}
	if notes := strings.Join(l.Notes(), "\n"); !strings.HasPrefix(notes, "not looked at: lb haproxy-a (--site-down haproxy-a)\nnot looked at: the placement of lb_group ftp") {
		t.Errorf("notes:\n%s", notes)
	}
	if _, err := plan.Make(t.Context(), plan.Present, list, plan.Options{}); err != nil {
		t.Error(err)
	}
}
