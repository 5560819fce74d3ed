package steps

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/vsphere"
)

// sites are those of the boxes that ftpdeploy makes, in the order of the blueprint.
func sites(t *blueprints.Topology) []string {
	var names []string
	for _, b := range t.Boxes {
		if b.Created() && !slices.Contains(names, b.Site.Name) {
			names = append(names, b.Site.Name)
		}
	}
	return names
}

// CheckSitesDown refuses to leave out sites that no box is on, and those without
// which a group has no box that could hold its VIPs.
func CheckSitesDown(t *blueprints.Topology, down []string) error {
	for _, name := range down {
		if known := sites(t); !slices.Contains(known, name) {
			return fmt.Errorf("--site-down %s: no lb of the blueprint is on a site of that name; its boxes are on %s", name, strings.Join(known, ", "))
		}
	}
	for _, g := range t.Groups {
		if !slices.ContainsFunc(g.Boxes, func(b *blueprints.Box) bool { return !isDown(b, down) }) {
			return fmt.Errorf("--site-down %s: lb_group %q would have no box left", strings.Join(down, ","), g.Name)
		}
	}
	return nil
}

// isDown tells whether a box is on one of the sites that are left out.
func isDown(b *blueprints.Box, down []string) bool {
	return b.Created() && slices.Contains(down, b.Site.Name)
}

// down tells whether a box is neither looked at nor changed.
func (l *Live) down(b *blueprints.Box) bool { return isDown(b, l.options.SitesDown) }

// whole tells whether no box of a group is left out.
func (l *Live) whole(g *blueprints.Group) bool { return !slices.ContainsFunc(g.Boxes, l.down) }

// LeftOut says, line by line, what is not looked at because of a site that is down.
func (l *Live) LeftOut() []string {
	var lines []string
	for _, b := range l.topology.Boxes {
		if l.down(b) {
			lines = append(lines, fmt.Sprintf("not looked at: lb %s (--site-down %s)", b.Name, b.Site.Name))
		}
	}
	for _, g := range l.topology.Groups {
		if !l.whole(g) {
			lines = append(lines, fmt.Sprintf("not looked at: the placement of lb_group %s, and VMs that the blueprint does not have any more (--site-down)", g.Name))
		}
	}
	return lines
}

// siteAdvice adds to the error of a first look the flag that leaves out a site,
// where all its boxes are out of reach and those of another are not.
func siteAdvice(t *blueprints.Topology, failed map[*blueprints.Box]error, err error) error {
	var dark []string
	for _, name := range sites(t) {
		if !slices.ContainsFunc(t.Boxes, func(b *blueprints.Box) bool {
			return isDown(b, []string{name}) && !errors.Is(failed[b], remote.ErrUnreachable) && !errors.Is(failed[b], vsphere.ErrUnreachable)
		}) {
			dark = append(dark, name)
		}
	}
	if dark == nil || CheckSitesDown(t, dark) != nil {
		return err
	}
	return fmt.Errorf("%w\nno box of site %s can be reached. To leave it out and repair the rest: --site-down %s",
		err, strings.Join(dark, ", "), strings.Join(dark, ","))
}
