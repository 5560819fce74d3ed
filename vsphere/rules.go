package vsphere

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
)

// Placement is how DRS should place some VMs in one cluster. Its rules and VM
// groups are known by their names, which begin with "ftpdeploy.DEPLOYMENT.NAME.".
type Placement struct {
	Deployment string
	Name       string
	Cluster    string // path below the datacenter's host folder
	Members    []Member
	// AntiAffinity keeps the members on different hosts: always where the cluster
	// has three hosts or more, else where it can be done, so that one host that is
	// down does not keep a VM from starting.
	AntiAffinity bool
	// Known are the names of all placements of the deployment in this cluster, this
	// one among them, where it answers too for the rules and VM groups that are of
	// none of them; nil = it does not.
	Known []string
}

// Member is a VM of a Placement.
type Member struct {
	Name      string
	HostGroup string // existing host group where it should run; "" = anywhere
}

func (p Placement) prefix() string { return p.prefixOf(p.Name) }

func (p Placement) prefixOf(name string) string {
	return "ftpdeploy." + p.Deployment + "." + name + "."
}

// owns tells whether the placement answers for the rule or VM group of that name.
func (p Placement) owns(name string) bool {
	if strings.HasPrefix(name, p.prefix()) {
		return true
	}
	return p.Known != nil && strings.HasPrefix(name, "ftpdeploy."+p.Deployment+".") &&
		!slices.ContainsFunc(p.Known, func(known string) bool { return strings.HasPrefix(name, p.prefixOf(known)) })
}

// Names lists the rules and VM groups that the placement consists of.
func (p Placement) Names() []string {
	var names []string
	for _, g := range p.hostGroups() {
		names = append(names, "VM group "+p.prefix()+g, "rule "+p.prefix()+g)
	}
	if p.separates() {
		names = append(names, "rule "+p.prefix()+separate)
	}
	return names
}

// separate ends the name of the anti-affinity rule. A host group of that name would clash, hence the sign.
const separate = "#separate"

// separates tells whether there is an anti-affinity rule; vCenter refuses one of a single VM.
func (p Placement) separates() bool { return p.AntiAffinity && len(p.Members) > 1 }

func (p Placement) hostGroups() []string {
	groups := map[string]bool{}
	for _, m := range p.Members {
		if m.HostGroup != "" {
			groups[m.HostGroup] = true
		}
	}
	return slices.Sorted(maps.Keys(groups))
}

// RulesEdit is what brings the rules of a placement to what they should be, in
// one reconfiguration of the cluster.
type RulesEdit struct {
	Differences []Difference
	cluster     ref
	name        string
	spec        types.ClusterConfigSpecEx
}

// Rules compares the rules of a placement with those of its cluster; nil means
// that nothing differs. A host group that is not there is ErrMissing, a member
// that is not there ErrNotFound.
func (i *Inventory) Rules(p Placement) (*RulesEdit, error) {
	w, err := i.ruleWork(p)
	if err != nil {
		return nil, err
	}
	for _, hosts := range p.hostGroups() {
		if !slices.Contains(w.hostGroups, hosts) {
			return nil, missingIn("host group", hosts, "cluster "+p.Cluster, w.hostGroups)
		}
	}
	vms := map[string]ref{}
	var all []ref
	for _, m := range p.Members {
		vm, err := i.VM(p.Deployment, m.Name)
		if err != nil {
			return nil, err
		}
		if vm == nil {
			return nil, fmt.Errorf("place VM %s: %w", m.Name, ErrNotFound)
		}
		if vm.host != nil && !slices.Contains(w.hosts, *vm.host) {
			return nil, fmt.Errorf("VM %s runs outside cluster %s, where the blueprint places it: move it there, or destroy it to have it made anew", m.Name, p.Cluster)
		}
		vms[m.Name] = vm.reference
		all = append(all, vm.reference)
	}
	for _, hosts := range p.hostGroups() {
		var members []ref
		for _, m := range p.Members {
			if m.HostGroup == hosts {
				members = append(members, vms[m.Name])
			}
		}
		name := p.prefix() + hosts
		w.group(name, members)
		w.rule(&types.ClusterVmHostRuleInfo{
			ClusterRuleInfo: ruleInfo(name, false), VmGroupName: name, AffineHostGroupName: hosts,
		})
	}
	if p.separates() {
		w.rule(&types.ClusterAntiAffinityRuleSpec{ClusterRuleInfo: ruleInfo(p.prefix()+separate, len(w.hosts) >= 3), Vm: all})
	}
	return w.edit(), nil
}

// NoRules is what removes every rule and VM group of the placement; nil means
// that there is none.
func (i *Inventory) NoRules(p Placement) (*RulesEdit, error) {
	w, err := i.ruleWork(p)
	if err != nil {
		return nil, err
	}
	return w.edit(), nil
}

// FormerRules are the rules and VM groups of a placement as they were once.
type FormerRules struct {
	rules  []types.BaseClusterRuleInfo
	groups []*types.ClusterVmGroup
}

// Any tells whether there was any.
func (f FormerRules) Any() bool { return len(f.rules)+len(f.groups) > 0 }

// FormerRules are the rules and VM groups of the placement that are there.
func (i *Inventory) FormerRules(p Placement) (FormerRules, error) {
	w, err := i.ruleWork(p)
	if err != nil {
		return FormerRules{}, err
	}
	return FormerRules{slices.Collect(maps.Values(w.ours)), slices.Collect(maps.Values(w.groups))}, nil
}

// RulesAsBefore is what brings back the rules and VM groups of the placement as they
// were; nil means that nothing differs. A rule that is gone gets another key.
func (i *Inventory) RulesAsBefore(p Placement, before FormerRules) (*RulesEdit, error) {
	w, err := i.ruleWork(p)
	if err != nil {
		return nil, err
	}
	for _, g := range before.groups {
		w.group(g.Name, g.Vm)
	}
	for _, r := range before.rules {
		info := r.GetClusterRuleInfo()
		info.Key, info.RuleUuid = 0, "" // vCenter gives them
		w.rule(r)
	}
	return w.edit(), nil
}

// ApplyRules makes an edit in one task. vCenter does not undo the part that was
// done when another part fails: look again after an error.
func (c *Client) ApplyRules(ctx context.Context, e *RulesEdit) error {
	started, err := object.NewClusterComputeResource(c.vim, e.cluster).Reconfigure(ctx, &e.spec, true)
	return c.task(ctx, "set the rules of cluster "+e.name, taskBound, started, err, nil)
}

func ruleInfo(name string, mandatory bool) types.ClusterRuleInfo {
	return types.ClusterRuleInfo{Name: name, Enabled: types.NewBool(true), Mandatory: &mandatory, UserCreated: types.NewBool(true)}
}

// ruleWork compares what is wanted, one by one; what of ours is then still in
// its maps is not wanted.
type ruleWork struct {
	result     *RulesEdit
	hosts      []ref
	hostGroups []string
	ours       map[string]types.BaseClusterRuleInfo
	groups     map[string]*types.ClusterVmGroup
}

func (i *Inventory) ruleWork(p Placement) (*ruleWork, error) {
	path := i.client.clusterPath(p.Cluster)
	r := i.refs[path]
	if r == nil {
		return nil, i.missing[path]
	}
	if r.Type != "ClusterComputeResource" {
		return nil, fmt.Errorf("%s is a %s: rules need a cluster", path, r.Type)
	}
	cluster := i.clusters[*r]
	if cluster == nil {
		return nil, fmt.Errorf("cluster %s could not be read", path)
	}
	config, ok := cluster.ConfigurationEx.(*types.ClusterConfigInfoEx)
	if !ok {
		return nil, fmt.Errorf("the configuration of cluster %s could not be read: the account may not see it", path)
	}
	w := &ruleWork{
		result: &RulesEdit{cluster: *r, name: p.Cluster}, hosts: cluster.Host,
		ours: map[string]types.BaseClusterRuleInfo{}, groups: map[string]*types.ClusterVmGroup{},
	}
	for _, g := range config.Group {
		switch g := g.(type) {
		case *types.ClusterHostGroup:
			w.hostGroups = append(w.hostGroups, g.Name)
		case *types.ClusterVmGroup:
			if p.owns(g.Name) {
				w.groups[g.Name] = g
			}
		}
	}
	for _, r := range config.Rule {
		if info := r.GetClusterRuleInfo(); p.owns(info.Name) {
			w.ours[info.Name] = r
		}
	}
	return w, nil
}

func (w *ruleWork) differ(path, before, after string) {
	w.result.Differences = append(w.result.Differences, Difference{path, before, after})
}

func (w *ruleWork) group(name string, members []ref) {
	have := w.groups[name]
	delete(w.groups, name)
	operation := types.ArrayUpdateOperationEdit
	switch {
	case have == nil:
		operation = types.ArrayUpdateOperationAdd
		w.differ("VM group "+name, "", count(members))
	case sameRefs(have.Vm, members):
		return
	default:
		w.differ("VM group "+name, count(have.Vm), count(members)+", not all the same")
	}
	w.result.spec.GroupSpec = append(w.result.spec.GroupSpec, types.ClusterGroupSpec{
		ArrayUpdateSpec: types.ArrayUpdateSpec{Operation: operation},
		Info: &types.ClusterVmGroup{
			ClusterGroupInfo: types.ClusterGroupInfo{Name: name, UserCreated: types.NewBool(true)}, Vm: members,
		},
	})
}

func count(vms []ref) string { return fmt.Sprintf("%d VMs", len(vms)) }

// rule wants a rule.
func (w *ruleWork) rule(want types.BaseClusterRuleInfo) {
	info := want.GetClusterRuleInfo()
	have := w.ours[info.Name]
	path := "rule " + info.Name
	remove := false
	switch {
	case have == nil:
		w.differ(path, "", describe(want))
	case sameRule(have, want):
		delete(w.ours, info.Name)
		return
	default:
		w.differ(path, describe(have), describe(want))
		// A rule of another kind cannot be edited into this one.
		remove = fmt.Sprintf("%T", have) != fmt.Sprintf("%T", want)
	}
	operation := types.ArrayUpdateOperationAdd
	if have != nil && !remove {
		operation = types.ArrayUpdateOperationEdit
		info.Key, info.RuleUuid = have.GetClusterRuleInfo().Key, have.GetClusterRuleInfo().RuleUuid // vCenter edits by key
	}
	if remove {
		w.removeRule(have)
	}
	delete(w.ours, info.Name)
	w.result.spec.RulesSpec = append(w.result.spec.RulesSpec, types.ClusterRuleSpec{
		ArrayUpdateSpec: types.ArrayUpdateSpec{Operation: operation}, Info: want,
	})
}

func (w *ruleWork) removeRule(r types.BaseClusterRuleInfo) {
	w.result.spec.RulesSpec = append(w.result.spec.RulesSpec, types.ClusterRuleSpec{
		ArrayUpdateSpec: types.ArrayUpdateSpec{Operation: types.ArrayUpdateOperationRemove, RemoveKey: r.GetClusterRuleInfo().Key},
	})
}

// edit ends the comparison: what of ours was not wanted is removed.
func (w *ruleWork) edit() *RulesEdit {
	for _, name := range slices.Sorted(maps.Keys(w.ours)) {
		w.differ("rule "+name, describe(w.ours[name]), "")
		w.removeRule(w.ours[name])
	}
	for _, name := range slices.Sorted(maps.Keys(w.groups)) {
		w.differ("VM group "+name, count(w.groups[name].Vm), "")
		w.result.spec.GroupSpec = append(w.result.spec.GroupSpec, types.ClusterGroupSpec{
			ArrayUpdateSpec: types.ArrayUpdateSpec{Operation: types.ArrayUpdateOperationRemove, RemoveKey: name},
		})
	}
	if len(w.result.Differences) == 0 {
		return nil
	}
	return w.result
}

// sameRule compares everything about a rule that we set.
func sameRule(have, want types.BaseClusterRuleInfo) bool {
	h, w := have.GetClusterRuleInfo(), want.GetClusterRuleInfo()
	if !isTrue(h.Enabled) || isTrue(h.Mandatory) != isTrue(w.Mandatory) {
		return false
	}
	switch want := want.(type) {
	case *types.ClusterVmHostRuleInfo:
		have, ok := have.(*types.ClusterVmHostRuleInfo)
		return ok && have.VmGroupName == want.VmGroupName && have.AffineHostGroupName == want.AffineHostGroupName && have.AntiAffineHostGroupName == ""
	case *types.ClusterAntiAffinityRuleSpec:
		have, ok := have.(*types.ClusterAntiAffinityRuleSpec)
		return ok && sameRefs(have.Vm, want.Vm)
	}
	return false
}

func describe(r types.BaseClusterRuleInfo) string {
	info := r.GetClusterRuleInfo()
	text := "should"
	if isTrue(info.Mandatory) {
		text = "must"
	}
	if !isTrue(info.Enabled) {
		text = "disabled, " + text
	}
	switch r := r.(type) {
	case *types.ClusterVmHostRuleInfo:
		return fmt.Sprintf("%s run on hosts of %s%s", text, r.AffineHostGroupName, r.AntiAffineHostGroupName)
	case *types.ClusterAntiAffinityRuleSpec:
		return fmt.Sprintf("%s be on different hosts (%s)", text, count(r.Vm))
	}
	return fmt.Sprintf("%s, a %T", text, r)
}

func isTrue(b *bool) bool { return b != nil && *b }

func sameRefs(a, b []ref) bool {
	order := func(x, y ref) int { return cmp.Compare(x.Value, y.Value) }
	return slices.Equal(slices.SortedFunc(slices.Values(a), order), slices.SortedFunc(slices.Values(b), order))
}
