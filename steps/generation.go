package steps

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aymanbagabas/go-udiff"
	"sigs.k8s.io/yaml"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/kube"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/steps/proxy"
)

// generationFormat is the version of the form in which a generation is kept.
const generationFormat = 1

// Generation is what one apply made of a deployment: what all its boxes and its
// part of the cluster should be like, without secrets.
type Generation struct {
	Format    int       `json:"format"`
	Number    int       `json:"number"`
	Made      time.Time `json:"made"`
	Run       Run       `json:"run"`
	Ftpdeploy string    `json:"ftpdeploy"`             // version
	Blueprint string    `json:"blueprint"`             // digest of the one that it was made from; see Options
	Back      int       `json:"rollback_to,omitempty"` // the generation that it went back to

	// Texts are the files of the boxes and the manifests, by names with slashes:
	// "haproxy-a/etc/haproxy/haproxy.cfg", "kubernetes/vsftpd/Service vsftpd". What
	// a rollback leaves alone is among them: machines and claims.
	Texts   map[string]string `json:"texts"`
	Changed []string          `json:"changed"` // names of Texts that differ from the generation before it

	Groups   map[string]Listening `json:"lb_groups"`
	Services map[string]Serving   `json:"ftp_services"`
}

// Listening is what the boxes of a group are reached at beside their services.
type Listening struct {
	Boxes     []string `json:"boxes"`
	PeersPort int      `json:"peers_port"`
	StatsRole string   `json:"stats_role,omitempty"`
	StatsPort int      `json:"stats_port,omitempty"`
}

// Serving is where a service is reached.
type Serving struct {
	Address         netip.Addr `json:"address"`
	ControlPort     int        `json:"control_port"`
	ControlNodePort int        `json:"control_node_port"`
	PassiveFirst    int        `json:"passive_first"`
	PassiveLast     int        `json:"passive_last"`
	NodePortFirst   int        `json:"node_port_first"`
	TLS             bool       `json:"tls,omitempty"`
}

// digest is a fingerprint of what a generation is: two of the same one are the same
// deployment.
func digest(texts map[string]string) (string, error) {
	text, err := json.Marshal(texts)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", sha256.Sum256(text))[:16], nil
}

// generationName is that of the file that holds a generation.
type generationName struct {
	number int
	made   time.Time // to the second
	digest string
}

const nameTime = "20060102T150405Z"

func (n generationName) String() string {
	if n.number == 0 {
		return ""
	}
	return fmt.Sprintf("%d-%s-%s", n.number, n.made.UTC().Format(nameTime), n.digest)
}

func parseName(s string) (generationName, error) {
	words := strings.Split(s, "-")
	if len(words) == 3 {
		number, err1 := strconv.Atoi(words[0])
		made, err2 := time.Parse(nameTime, words[1])
		if n := (generationName{number, made, words[2]}); err1 == nil && err2 == nil && number > 0 && n.String() == s {
			return n, nil
		}
	}
	return generationName{}, fmt.Errorf("%s in %s is none of ftpdeploy's: remove it", s, historyAt)
}

// later orders names: a number that two runs have used is the later one's.
func later(a, b generationName) int {
	return cmp.Or(a.number-b.number, a.made.Compare(b.made), strings.Compare(a.digest, b.digest))
}

// encode is the content of the file of a generation, and decode reads it.
func (g *Generation) encode() ([]byte, error) {
	text, err := json.Marshal(g)
	return append(text, '\n'), err
}

func decode(n generationName, text []byte) (*Generation, error) {
	g := &Generation{}
	err := json.Unmarshal(text, g)
	if err == nil && g.Format != generationFormat {
		return nil, fmt.Errorf("generation %d was kept by ftpdeploy %s in another form (%d, here %d): use that version", n.number, g.Ftpdeploy, g.Format, generationFormat)
	}
	var sum string
	if err == nil {
		sum, err = digest(g.Texts)
	}
	if err == nil && (sum != n.digest || g.Number != n.number) {
		err = errors.New("its content is not what its name says")
	}
	if err != nil {
		return nil, fmt.Errorf("%s/%s is not as ftpdeploy wrote it: %w; remove it", historyAt, n, err)
	}
	return g, nil
}

// machineName is the name of the text that stands for what a box runs on.
func machineName(box string) string { return path.Join(box, "machine") }

// machineText is what a box runs on, as far as the blueprint says it.
func machineText(g *blueprints.Group, b *blueprints.Box) string {
	var parts []string
	if b.Created() {
		parts = append(parts, fmt.Sprintf("%d CPUs", b.CPUs), fmt.Sprintf("%d MiB memory", b.MemoryMB))
		if b.DiskGB > 0 {
			parts = append(parts, fmt.Sprintf("%d GiB disk", b.DiskGB))
		}
		for _, n := range b.NICs {
			parts = append(parts, fmt.Sprintf("nic %s %s in %s", n.Role, n.Address, n.Network.Name))
		}
	}
	for _, p := range []blueprints.Package{g.HAProxy.Package, g.Keepalived} {
		parts = append(parts, strings.TrimSpace(p.Name+" "+p.Version))
	}
	return strings.Join(parts, ", ") + "\n"
}

// objectName is the name of the text of an object of a service.
func objectName(s *blueprints.Service, r kube.Ref) string {
	return path.Join("kubernetes", s.Name, r.Kind+" "+r.Name)
}

// goesBack tells whether a rollback puts back the text of this name.
func goesBack(text string) bool {
	base := path.Base(text)
	if strings.HasPrefix(text, "kubernetes/") {
		kind, _, _ := strings.Cut(base, " ")
		return objectGoesBack(kind)
	}
	return base != "machine"
}

// objectGoesBack tells whether a rollback puts back objects of this kind.
func objectGoesBack(kind string) bool {
	return kind == "Deployment" || kind == "Service" || kind == "ConfigMap"
}

// objectTexts are the manifests of a service without its Secret.
func objectTexts(s *blueprints.Service, m *manifests) (map[string]string, error) {
	texts := map[string]string{}
	all := m.objects
	if m.namespace != nil {
		all = append([]kube.Object{m.namespace}, all...)
	}
	for _, o := range all {
		if o.Ref().Kind == "Secret" {
			continue
		}
		text, err := manifestText(o)
		if err != nil {
			return nil, err
		}
		texts[objectName(s, o.Ref())] = text
	}
	return texts, nil
}

// describe fills in what the topology says of where it is reached.
func (g *Generation) describe(t *blueprints.Topology) {
	g.Groups, g.Services = map[string]Listening{}, map[string]Serving{}
	for _, group := range t.Groups {
		l := Listening{PeersPort: group.HAProxy.PeersPort, StatsRole: group.HAProxy.StatsRole, StatsPort: group.HAProxy.StatsPort}
		for _, b := range group.Boxes {
			l.Boxes = append(l.Boxes, b.Name)
		}
		slices.Sort(l.Boxes)
		g.Groups[group.Name] = l
	}
	for _, s := range t.Services {
		g.Services[s.Name] = Serving{s.VIP.Address, s.ControlPort, s.ControlNodePort, s.PassiveFirst, s.PassiveLast, s.NodePortFirst, s.TLS != nil}
	}
}

// at is the deployment of t as it was reached at generation g: the addresses and
// ports that the firewall must let in and the proofs take. An error says why g
// cannot be gone back to.
func (g *Generation) at(t *blueprints.Topology) (*blueprints.Topology, error) {
	var now Generation
	now.describe(t)
	var errs []error
	refuse := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("generation %d %s: apply a blueprint of that kind instead", g.Number, fmt.Sprintf(format, args...)))
	}
	for _, name := range names(g.Groups, now.Groups) {
		if a, b := g.Groups[name].Boxes, now.Groups[name].Boxes; !slices.Equal(a, b) {
			refuse("has in lb_group %q %s, and the blueprint %s. Machines do not go back", name, strings.Join(a, ", "), strings.Join(b, ", "))
		}
	}
	for _, name := range names(g.Services, now.Services) {
		was, then := g.Services[name]
		wanted, is := now.Services[name]
		if then != is {
			has, lacks := "has", "the blueprint has not"
			if is {
				has, lacks = "has not", "the blueprint has"
			}
			refuse("%s ftp_service %q, and %s. Passwords and claims do not go back", has, name, lacks)
		}
		if then && is && was.TLS != wanted.TLS {
			how := map[bool]string{true: "with TLS", false: "in clear text"}
			refuse("has ftp_service %q %s, and the blueprint %s. Certificates do not go back", name, how[was.TLS], how[wanted.TLS])
		}
	}
	if errs != nil {
		return nil, errors.Join(errs...)
	}

	then := *t
	then.Outputs = nil // they are the blueprint's
	groups, vips, services := map[*blueprints.Group]*blueprints.Group{}, map[*blueprints.VIP]*blueprints.VIP{}, map[*blueprints.Service]*blueprints.Service{}
	then.Groups, then.VIPs, then.Services, then.Smokes = nil, nil, nil, nil
	for _, old := range t.Groups {
		group, l := *old, g.Groups[old.Name]
		group.HAProxy.PeersPort, group.HAProxy.StatsRole, group.HAProxy.StatsPort = l.PeersPort, l.StatsRole, l.StatsPort
		groups[old] = &group
		then.Groups = append(then.Groups, &group)
	}
	for _, old := range t.VIPs {
		vip := *old
		vip.Group = groups[old.Group]
		vips[old] = &vip
		then.VIPs = append(then.VIPs, &vip)
	}
	for _, old := range t.Services {
		s, was := *old, g.Services[old.Name]
		s.VIP = vips[old.VIP]
		s.VIP.Address = was.Address
		s.ControlPort, s.ControlNodePort = was.ControlPort, was.ControlNodePort
		s.PassiveFirst, s.PassiveLast, s.NodePortFirst = was.PassiveFirst, was.PassiveLast, was.NodePortFirst
		services[old] = &s
		then.Services = append(then.Services, &s)
	}
	for _, old := range t.Smokes {
		smoke := *old
		smoke.VIP, smoke.Standby, smoke.Service = vips[old.VIP], groups[old.Standby], services[old.Service]
		then.Smokes = append(then.Smokes, &smoke)
	}
	return &then, nil
}

// names are the keys of a and b, sorted.
func names[T any](a, b map[string]T) []string {
	all := slices.AppendSeq(slices.Collect(maps.Keys(a)), maps.Keys(b))
	slices.Sort(all)
	return slices.Compact(all)
}

// files are those of a box as they were at generation g; with what they are
// checked and read by, as files has it.
func (g *Generation) files(box string, files []proxy.File) ([]proxy.File, error) {
	then := slices.Clone(files)
	for i, f := range then {
		text, ok := g.Texts[path.Join(box, f.Path)]
		if !ok {
			return nil, fmt.Errorf("generation %d, kept by ftpdeploy %s, has no %s of %s", g.Number, g.Ftpdeploy, f.Path, box)
		}
		then[i].Content = []byte(text)
	}
	return then, nil
}

// manifests are those of a service as they were at generation g, but for what does
// not go back: namespace, account and claims stay those of m.
func (g *Generation) manifests(s *blueprints.Service, m *manifests) (*manifests, error) {
	then := *m
	then.objects = slices.Clone(m.objects)
	claims := map[string]bool{}
	for i, o := range then.objects {
		r := o.Ref()
		if r.Kind == "PersistentVolumeClaim" {
			claims[r.Name] = true
		}
		text, ok := g.Texts[objectName(s, r)]
		switch {
		case !objectGoesBack(r.Kind):
			continue
		case !ok:
			return nil, fmt.Errorf("generation %d has no %s: ftp_service %q was of another kind then", g.Number, r, s.Name)
		}
		var was kube.Object
		if err := yaml.Unmarshal([]byte(text), &was); err != nil {
			return nil, fmt.Errorf("read %s of generation %d: %w", r, g.Number, err)
		}
		if was.Ref() != r {
			return nil, fmt.Errorf("generation %d has %s, and the blueprint %s: claims and accounts do not move", g.Number, was.Ref(), r)
		}
		if r.Kind == "Deployment" {
			for _, name := range claimsOf(was) {
				if !claims[name] {
					return nil, fmt.Errorf("the pod of generation %d uses claim %s, and no volume of ftp_service %q is called so any more: put it back into the blueprint", g.Number, name, s.Name)
				}
			}
			setChecksum(was, m.checksum)
		}
		then.objects[i] = was
	}
	for _, name := range slices.Sorted(maps.Keys(g.Texts)) {
		has := func(o kube.Object) bool { return objectName(s, o.Ref()) == name }
		if path.Dir(name) == path.Join("kubernetes", s.Name) && goesBack(name) && !slices.ContainsFunc(m.objects, has) {
			return nil, fmt.Errorf("generation %d has %s, and the blueprint has none: ftp_service %q was of another kind then", g.Number, path.Base(name), s.Name)
		}
	}
	return &then, nil
}

// podOf is the template of a Deployment's pod.
func podOf(deployment kube.Object) map[string]any {
	spec, _ := deployment["spec"].(map[string]any)
	template, _ := spec["template"].(map[string]any)
	return template
}

// claimsOf are the names of the claims that a Deployment's pod uses.
func claimsOf(deployment kube.Object) []string {
	var names []string
	spec, _ := podOf(deployment)["spec"].(map[string]any)
	volumes, _ := spec["volumes"].([]any)
	for _, v := range volumes {
		volume, _ := v.(map[string]any)
		claim, _ := volume["persistentVolumeClaim"].(map[string]any)
		if name, ok := claim["claimName"].(string); ok {
			names = append(names, name)
		}
	}
	return names
}

// setChecksum has the pod of a Deployment stand for the account of now, which is
// the one that it will read.
func setChecksum(deployment kube.Object, checksum string) {
	meta, _ := podOf(deployment)["metadata"].(map[string]any)
	if annotations, ok := meta["annotations"].(map[string]any); ok {
		annotations[secretChecksum] = checksum
	}
}

// stays says what of g does not go back although it differs: now are the texts of
// the blueprint.
func (g *Generation) stays(now map[string]string) []string {
	var lines []string
	for _, name := range differing(g.Texts, now) {
		if goesBack(name) {
			continue
		}
		line := name + ": not as it was then"
		if then, is := strings.TrimSpace(g.Texts[name]), strings.TrimSpace(now[name]); path.Base(name) == "machine" {
			line = fmt.Sprintf("%s: %s; it was %s", name, is, then)
		}
		lines = append(lines, line)
	}
	for _, name := range slices.Sorted(maps.Keys(now)) {
		a, b := checksumIn(g.Texts[name]), checksumIn(now[name])
		if a != "" && b != "" && a != b {
			lines = append(lines, path.Dir(name)+": the account; its name or password was another")
		}
	}
	return lines
}

// checksumIn is the account's checksum in the text of a Deployment, else "".
func checksumIn(text string) string {
	_, rest, _ := strings.Cut(text, secretChecksum+": ")
	sum, _, _ := strings.Cut(rest, "\n")
	return sum
}

// differing are the names under which a and b have different texts, sorted.
func differing(a, b map[string]string) []string {
	var all []string
	for _, name := range names(a, b) {
		x, in := a[name]
		y, too := b[name]
		if x != y || in != too {
			all = append(all, name)
		}
	}
	return all
}

// Difference is one text of a deployment that two of its generations have
// otherwise.
type Difference struct {
	Name    string `json:"name"`
	Unified string `json:"unified"` // as diff -u prints it, with its header lines
}

// Diff compares the texts of two generations, or of one and of Live.Now, in the
// order of their names; from and to say which is which.
func Diff(from string, a map[string]string, to string, b map[string]string) []Difference {
	var all []Difference
	for _, name := range differing(a, b) {
		label := func(of string, texts map[string]string) string {
			if _, there := texts[name]; !there {
				return "/dev/null"
			}
			return of + "/" + name
		}
		all = append(all, Difference{name, udiff.Unified(label(from, a), label(to, b), a[name], b[name])})
	}
	return all
}

// GoingBack are the texts that a rollback puts back.
func (g *Generation) GoingBack() map[string]string {
	texts := maps.Clone(g.Texts)
	maps.DeleteFunc(texts, func(name, _ string) bool { return !goesBack(name) })
	return texts
}

// Words say what changed with g, in a few.
func (g *Generation) Words() string {
	if g.Number == 1 {
		return "the first"
	}
	var words []string
	for _, name := range g.Changed {
		if w := path.Base(name); !slices.Contains(words, w) {
			words = append(words, w)
		}
	}
	return strings.Join(words, ", ")
}

// Now are the texts of g that go back, as the boxes and the cluster have them now.
// Of an object these are the fields that we own.
func (l *Live) Now(ctx context.Context, g *Generation) (map[string]string, error) {
	boxes, services := l.topology.Boxes, l.topology.Services
	found := make([]map[string]string, len(boxes)+len(services))
	var looks []func(context.Context) error
	for i, b := range boxes {
		looks = append(looks, func(ctx context.Context) (err error) {
			found[i], err = l.filesNow(ctx, b, g)
			return err
		})
	}
	for i, s := range services {
		looks = append(looks, func(ctx context.Context) (err error) {
			found[len(boxes)+i], err = l.objectsNow(ctx, s, g)
			return err
		})
	}
	err := together(ctx, looks)
	now := map[string]string{}
	for _, texts := range found {
		maps.Copy(now, texts)
	}
	return now, err
}

// filesNow are the files of g as a box has them; none where there is no box.
func (l *Live) filesNow(ctx context.Context, b *blueprints.Box, g *Generation) (map[string]string, error) {
	var q remote.Query
	for name := range g.Texts {
		if file, ok := strings.CutPrefix(name, b.Name); ok && file[0] == '/' && goesBack(name) {
			q.Files = append(q.Files, remote.FileQuery{Path: file})
		}
	}
	h, err := l.host(ctx, b)
	if errors.Is(err, ErrAbsent) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	facts, err := h.Find(ctx, q)
	if err != nil {
		return nil, err
	}
	texts := map[string]string{}
	for file, state := range facts.Files {
		if state.Exists {
			texts[b.Name+file] = string(state.Content)
		}
	}
	return texts, nil
}

// objectsNow are the objects of g as the cluster of a service has them.
func (l *Live) objectsNow(ctx context.Context, s *blueprints.Service, g *Generation) (map[string]string, error) {
	texts := map[string]string{}
	for name, text := range g.Texts {
		if path.Dir(name) != path.Join("kubernetes", s.Name) || !goesBack(name) {
			continue
		}
		var o kube.Object
		if err := yaml.Unmarshal([]byte(text), &o); err != nil {
			return nil, fmt.Errorf("read %s of generation %d: %w", name, g.Number, err)
		}
		c, err := l.cluster(ctx, s.Cluster)
		if err != nil {
			return nil, err
		}
		live, err := find(ctx, c, o.Ref())
		if err != nil {
			return nil, err
		}
		if live == nil {
			continue
		}
		p, err := c.Preview(ctx, live, o)
		if err != nil {
			return nil, err
		}
		if texts[name] = text; len(p.Deltas) > 0 {
			if texts[name], err = manifestText(p.Before()); err != nil {
				return nil, err
			}
		}
	}
	return texts, nil
}
