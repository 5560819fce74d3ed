package steps

import (
	"slices"
	"strings"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/kube"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/steps/proxy"
)

// The kinds of danger that someone must allow by name.
const (
	VIPChange   = "vip-change"   // clients lose the address that they know
	BothBoxes   = "both-boxes"   // all boxes of a group are rebooted or replaced in one run
	RemoveBox   = "remove-box"   // a box goes that the blueprint does not have any more
	DeleteData  = "delete-data"  // a volume's data goes that nobody named
	ShrinkRange = "shrink-range" // passive ports go that a transfer may be using
)

// Kinds are all kinds of danger.
func Kinds() []string { return []string{VIPChange, BothBoxes, RemoveBox, DeleteData, ShrinkRange} }

// Danger is something in a plan that must be allowed by name.
type Danger struct {
	Kind  string   `json:"kind"`
	Where []string `json:"where"` // targets of changes, or names of boxes
}

// Dangers finds what of a plan must be allowed by name, in the order of Kinds.
// Boxes on sites that are down count as boxes that are away.
func Dangers(t *blueprints.Topology, p *plan.Plan, sitesDown []string) []Danger {
	where := map[string][]string{}
	for _, c := range p.Changes() {
		for _, kind := range c.Needs {
			where[kind] = append(where[kind], c.Target)
		}
	}
	if p.Goal == plan.Present {
		for _, g := range t.Groups {
			down := goingDown(g, p)
			away := slices.DeleteFunc(slices.Clone(g.Boxes), func(b *blueprints.Box) bool {
				return !isDown(b, sitesDown) && !slices.Contains(down, b.Name)
			})
			if len(down) > 0 && len(away) > 1 && len(away) == len(g.Boxes) {
				where[BothBoxes] = append(where[BothBoxes], down...)
			}
		}
	}
	var all []Danger
	for _, kind := range Kinds() {
		if where[kind] != nil {
			all = append(all, Danger{kind, where[kind]})
		}
	}
	return all
}

// goingDown are the boxes of a group that a plan reboots or replaces.
func goingDown(g *blueprints.Group, p *plan.Plan) []string {
	var down []string
	for _, b := range g.Boxes {
		for _, e := range p.Entries {
			_, box, _ := strings.Cut(e.Step.Name(), "/")
			if box == b.Name && slices.ContainsFunc(e.Changes, endsBox) {
				down = append(down, box)
				break
			}
		}
	}
	return down
}

func endsBox(c plan.Change) bool {
	return c.Effect == plan.Reboot || c.Effect == plan.Rebuild || c.Action == plan.Replace
}

// dangers are those of writing f over what is there.
func dangers(f proxy.File, before []byte) []string {
	switch {
	case f.Path == proxy.KeepalivedPath && proxy.MovesVIP(before, f.Content):
		return []string{VIPChange}
	case f.Path == proxy.HAProxyPath && proxy.ShrinksRange(before, f.Content):
		return []string{ShrinkRange}
	}
	return nil
}

// objectDangers are those of the correction of an object.
func objectDangers(kind string, deltas []kube.Delta) []string {
	var all []string
	for _, d := range deltas {
		switch {
		case (kind == "Deployment" && strings.Contains(d.Path, `[name="PASV_ADDRESS"]`) || kind == "ConfigMap" && d.Path == "data.PASV_ADDRESS") &&
			d.Before != "" && d.After != "": // not where the setting only moves to another object
			all = append(all, VIPChange)
		case kind == "Service" && strings.HasPrefix(d.Path, "spec.ports[") && d.After == "" && strings.Contains(d.Before, `"name":"passive-`):
			all = append(all, ShrinkRange)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
