package steps

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/vsphere"
)

// placementStep keeps the DRS rules of a group: its VMs on different hosts, and
// each on the hosts of its site. They stand before a VM is powered on.
type placementStep struct {
	machine
	group *blueprints.Group
}

// newPlacement makes the step "placement/GROUP". The VMs of the group are all in one vCenter.
func newPlacement(t *blueprints.Topology, group *blueprints.Group, client func(context.Context) (*vsphere.Client, error), first *vsphere.Inventory) plan.Step {
	return &placementStep{machine{t, client, first}, group}
}

// groupVCenter is the vCenter of the VMs of a group, nil where it has none.
func groupVCenter(g *blueprints.Group) (*blueprints.VCenter, error) {
	var home *blueprints.VCenter
	for _, b := range g.Boxes {
		switch {
		case !b.Created(), home == b.Site.VCenter:
		case home == nil:
			home = b.Site.VCenter
		default:
			return nil, fmt.Errorf("lb_group %q has members in the vCenters %q and %q: DRS rules need them in one", g.Name, home.Name, b.Site.VCenter.Name)
		}
	}
	return home, nil
}

// groupPlacements are the rules of a group, one placement a cluster.
func groupPlacements(t *blueprints.Topology, g *blueprints.Group) []vsphere.Placement {
	var all []vsphere.Placement
	at := map[string]int{}
	for _, b := range g.Boxes {
		if !b.Created() {
			continue
		}
		n, ok := at[b.Site.Cluster]
		if !ok {
			n = len(all)
			at[b.Site.Cluster] = n
			p := vsphere.Placement{Deployment: t.ID, Name: g.Name, Cluster: b.Site.Cluster, AntiAffinity: g.AntiAffinity}
			if known := placedIn(t, b.Site); known[0] == g.Name {
				p.Known = known
			}
			all = append(all, p)
		}
		all[n].Members = append(all[n].Members, vsphere.Member{Name: b.Name, HostGroup: b.Site.HostGroup})
	}
	return all
}

// placedIn are the names of the groups with VMs in a site's cluster, in the order
// of the blueprint: the first answers for the rules of groups that are no more.
func placedIn(t *blueprints.Topology, site *blueprints.Site) []string {
	var names []string
	for _, g := range t.Groups {
		if slices.ContainsFunc(g.Boxes, func(b *blueprints.Box) bool {
			return b.Created() && b.Site.VCenter == site.VCenter && b.Site.Cluster == site.Cluster
		}) {
			names = append(names, g.Name)
		}
	}
	return names
}

// Name implements plan.Step.
func (s *placementStep) Name() string { return "placement/" + s.group.Name }

// After implements plan.Step.
func (s *placementStep) After() []string {
	var all []string
	for _, b := range s.group.Boxes {
		if b.Created() {
			all = append(all, "vm/"+b.Name)
		}
	}
	return all
}

// Plan implements plan.Step.
func (s *placementStep) Plan(ctx context.Context, goal plan.Goal) ([]plan.Change, error) {
	placements := groupPlacements(s.topology, s.group)
	i, err := s.observe(ctx, nil, placements)
	if err != nil {
		return nil, err
	}
	var changes []plan.Change
	for _, p := range placements {
		change, err := s.plan(i, p, goal)
		if err != nil {
			return nil, err
		}
		if change != nil {
			changes = append(changes, *change)
		}
	}
	return changes, nil
}

func (s *placementStep) plan(i *vsphere.Inventory, p vsphere.Placement, goal plan.Goal) (*plan.Change, error) {
	change := &plan.Change{Target: p.Cluster + ":rules", Want: placementDigest(p), Cause: asked(s.topology, "lb_group."+s.group.Name)}
	change.Do = s.do(p, goal, change)
	before, err := i.FormerRules(p)
	if err != nil {
		return nil, err
	}
	if goal == plan.Absent {
		e, err := i.NoRules(p)
		if err != nil || e == nil {
			return nil, err
		}
		change.Action, change.Reason, change.Want = plan.Delete, "are ours by their names", ""
		change.Detail.Fields = differences(e.Differences)
		change.From = beforeDigest(change.Detail.Fields)
		return change, nil
	}
	change.Action = plan.Create
	if before.Any() {
		change.Action = plan.Update
	}
	change.Undo = func(ctx context.Context) error {
		c, now, err := s.look(ctx, p)
		if err != nil {
			return err
		}
		e, err := now.RulesAsBefore(p, before)
		if err != nil || e == nil {
			return err
		}
		return c.ApplyRules(ctx, e)
	}
	e, err := i.Rules(p)
	switch {
	case errors.Is(err, vsphere.ErrNotFound): // a VM that is not made yet
		if len(p.Names()) == 0 && !before.Any() {
			return nil, nil
		}
		change.Reason, change.From = "for the VMs that are made", plan.Unseen
		for _, name := range p.Names() {
			change.Detail.Fields = append(change.Detail.Fields, plan.Field{Path: name, After: "for " + members(p)})
		}
		return change, nil
	case err != nil || e == nil:
		return nil, err
	}
	change.Detail.Fields = differences(e.Differences)
	change.From = beforeDigest(change.Detail.Fields)
	change.Reason = "not there"
	if before.Any() {
		change.Reason = "differs: " + paths(change.Detail.Fields)
	}
	return change, nil
}

// look reads the rules as they are now.
func (s *placementStep) look(ctx context.Context, p vsphere.Placement) (*vsphere.Client, *vsphere.Inventory, error) {
	c, err := s.client(ctx)
	if err != nil {
		return nil, nil, err
	}
	i, err := c.Observe(ctx, nil, []vsphere.Placement{p})
	return c, i, err
}

// do looks again, as the VMs may have been made since, and makes one reconfiguration.
func (s *placementStep) do(p vsphere.Placement, goal plan.Goal, planned *plan.Change) func(context.Context, func(string)) error {
	return func(ctx context.Context, _ func(string)) error {
		c, i, err := s.look(ctx, p)
		if err != nil {
			return err
		}
		look := i.Rules
		if goal == plan.Absent {
			look = i.NoRules
		}
		e, err := look(p)
		if err != nil || e == nil {
			return err
		}
		if planned.From != plan.Unseen && beforeDigest(differences(e.Differences)) != planned.From {
			return fmt.Errorf("the rules of %s: %w", p.Name, plan.ErrMoved)
		}
		return c.ApplyRules(ctx, e)
	}
}

func members(p vsphere.Placement) string {
	var all []string
	for _, m := range p.Members {
		all = append(all, m.Name)
	}
	return strings.Join(all, ", ")
}

// placementDigest is a fingerprint of what is wanted: the same before and after the VMs are made.
func placementDigest(p vsphere.Placement) string {
	fields := []plan.Field{{Path: "anti_affinity", After: fmt.Sprint(p.AntiAffinity)}}
	for _, m := range p.Members {
		fields = append(fields, plan.Field{Path: m.Name, After: m.HostGroup})
	}
	return fieldsDigest(fields)
}
