package steps

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/aymanbagabas/go-udiff"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/steps/proxy"
)

var (
	// ErrAbsent says that there is no machine to enter: it is not made yet, is off,
	// or has not told who it is.
	ErrAbsent = errors.New("the machine is not there")
	// ErrForeign says that a file of a box is someone else's: nothing was changed.
	ErrForeign = errors.New("is not ours")
)

// darkError is ErrAbsent for a machine that exists: nobody can tell what is in it.
type darkError string

func (e darkError) Error() string { return string(e) }
func (darkError) Unwrap() error   { return ErrAbsent }

// What the step keeps on a box, beside what it installs.
const (
	stateDir    = "/var/lib/ftpdeploy"
	installedAt = stateDir + "/installed" // packages that were not there before us, one a line
	enabledAt   = stateDir + "/enabled"   // units that did not start at boot before us
	openedAt    = stateDir + "/opened"    // rules that we gave firewalld, as fieldsOf writes them
	booleanAt   = stateDir + "/boolean"   // the SELinux boolean that we switched on
	sysctlPath  = "/etc/sysctl.d/90-ftpdeploy.conf"

	// connectAny lets HAProxy, confined by SELinux, bind and connect to ports that
	// are not HTTP's. Labelling the ports instead would need semanage, which is
	// Python, and cannot give 21 a second label.
	connectAny = "haproxy_connect_any"
)

// How long the acts on a box may take.
const (
	installBound = 15 * time.Minute
	actBound     = 2 * time.Minute
	lookBound    = 6 * time.Minute // an installation that a broken run has left is waited for
)

// hostStep keeps what is inside a box: packages, kernel settings, firewall,
// SELinux, configurations and services.
type hostStep struct {
	topology *blueprints.Topology
	group    *blueprints.Group
	box      *blueprints.Box
	connect  func(context.Context) (*remote.Host, error)
	rendered func(context.Context) ([]proxy.File, error)
	first    *remote.Facts // nil once it was used
	seen     *remote.Facts // what was seen at the start of the run; nil where the box was not there
	seenAt   time.Time     // by our clock
	going    *remote.Facts // of the machine that is to be made anew: its addresses and connections; nil where nobody could look
	after    []string
	root     string // "" but in tests: put before the path of every file

	// cluster is the step that keeps the cluster's part of a service; nil where none does.
	cluster func(*blueprints.Service) plan.Step
	peers   []*hostStep // of the other boxes of the group
	start   position    // at the start of the run
	moves   bool        // a box of the group that holds a VIP goes down before this step acts
	drain   drainPolicy
	drained func(Drained) // is told when the box has given its VIPs away; nil = nobody is
	except  []netip.Addr  // clients whose sessions a drain does not count
	// former gives a smoke block as it fits what is deployed, nil where that is no
	// other one; nil where nobody can tell.
	former func(context.Context, *blueprints.Smoke) (*blueprints.Smoke, error)
	left   *litter // of its proofs
	// worked is what the box carried before the run acted; nil where nobody has looked.
	worked *trial
	// reverted is what was put back; nil where nothing was.
	reverted *trial
	// keep keeps the evidence of a failure; nil where nobody wants it.
	keep func(name string, text []byte) error
	past *Generation // that is gone back to; nil = the blueprint holds
}

// newHost makes the step "host/NAME". Connect enters the box, or returns
// ErrAbsent. Rendered gives the files that it must have. First, if it is not nil,
// is what hostQuery found at the start of the run.
func newHost(t *blueprints.Topology, g *blueprints.Group, box *blueprints.Box,
	connect func(context.Context) (*remote.Host, error), rendered func(context.Context) ([]proxy.File, error),
	first *remote.Facts, after []string,
) *hostStep {
	return &hostStep{
		topology: t, group: g, box: box, connect: connect, rendered: rendered, first: first, after: after,
		drain: drainPolicy{t.Rollout.Drain, t.Rollout.DrainDeadline},
	}
}

// Name implements plan.Step.
func (s *hostStep) Name() string { return "host/" + s.box.Name }

// After implements plan.Step.
func (s *hostStep) After() []string { return s.after }

// Plan implements plan.Step. A machine that ftpdeploy made goes as a whole, so
// with goal Absent nothing is done in it.
func (s *hostStep) Plan(ctx context.Context, goal plan.Goal) ([]plan.Change, error) {
	if goal == plan.Absent && s.box.Created() {
		return nil, nil
	}
	files, err := s.files(ctx)
	if err != nil {
		return nil, err
	}
	facts, err := s.observe(ctx, files)
	absent := errors.Is(err, ErrAbsent)
	var dark darkError
	exists := errors.As(err, &dark)
	switch {
	case absent && goal == plan.Absent:
		return nil, nil
	case absent:
		facts = s.predicted()
	case err != nil:
		return nil, err
	}
	if err := s.keepLeaving(ctx, files, facts); err != nil {
		return nil, err
	}
	look := &hostLook{hostStep: s, files: files, facts: facts}
	if err := look.refuse(goal); err != nil {
		return nil, err
	}
	if goal == plan.Absent {
		return look.removal(), nil
	}
	changes, err := look.changes()
	if absent {
		for i := range changes {
			changes[i].From = plan.Unseen
			if exists {
				changes[i].Reason = "unless it is so already: nobody can look, " + dark.Error()
			}
		}
	}
	return changes, err
}

// files are those that the box must have, the kernel settings' among them.
func (s *hostStep) files(ctx context.Context) ([]proxy.File, error) {
	files, err := s.rendered(ctx)
	if err != nil {
		return nil, err
	}
	var text strings.Builder
	fmt.Fprintf(&text, "# ftpdeploy deployment=%s lb=%s (an edit by hand is undone by the next apply)\n", s.topology.ID, s.box.Name)
	for _, name := range s.settings() {
		fmt.Fprintf(&text, "%s = 1\n", name)
	}
	sysctl := proxy.File{Path: sysctlPath, Mode: 0o644, Content: []byte(text.String())}
	return append([]proxy.File{sysctl}, files...), nil
}

// keepLeaving has haproxy.cfg go on with the workers that leave it, for the sessions
// that came through them (see proxy.KeepLeaving). Which of those that left earlier
// are in use is asked only when the file changes anyway: such a line is no reason
// for a reload, and harmless.
func (s *hostStep) keepLeaving(ctx context.Context, files []proxy.File, facts *remote.Facts) error {
	i := slices.IndexFunc(files, func(f proxy.File) bool { return f.Path == proxy.HAProxyPath })
	live := facts.Files[s.root+proxy.HAProxyPath].Content
	if owner, _ := proxy.Owner(live); i < 0 || owner != s.topology.ID {
		return nil
	}
	want := files[i].Content
	files[i].Content = proxy.KeepLeaving(live, want, func(string) bool { return true })
	if !proxy.HasLeft(live) || bytes.Equal(files[i].Content, live) {
		return nil
	}
	h, err := s.connect(ctx)
	if err != nil {
		return err
	}
	var used []netip.Addr
	for _, service := range s.topology.Services {
		if service.VIP.Group != s.group {
			continue
		}
		peers, err := h.Peers(ctx, service.ControlNodePort)
		if err != nil {
			return err
		}
		used = append(used, peers...)
	}
	files[i].Content = proxy.KeepLeaving(live, want, func(worker string) bool {
		return slices.ContainsFunc(used, func(a netip.Addr) bool { return a.String() == worker })
	})
	return nil
}

// settings are the kernel settings, all 1, by which a standby binds a VIP that it
// does not hold.
func (s *hostStep) settings() []string {
	var names []string
	for _, v := range s.topology.VIPs {
		name := "net.ipv4.ip_nonlocal_bind"
		if v.Address.Is6() {
			name = "net.ipv6.ip_nonlocal_bind"
		}
		if v.Group == s.group && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// services are those that the box carries.
func (s *hostStep) services() []*blueprints.Service {
	var all []*blueprints.Service
	for _, service := range s.topology.Services {
		if service.VIP.Group == s.group {
			all = append(all, service)
		}
	}
	return all
}

// packages are what the box must have installed.
func (s *hostStep) packages() []remote.Package {
	h, k := s.group.HAProxy.Package, s.group.Keepalived
	return []remote.Package{{Name: h.Name, Version: h.Version}, {Name: k.Name, Version: k.Version}}
}

// daemons are the services, in the order in which they come up.
func (s *hostStep) daemons() []daemon {
	return []daemon{
		{
			Daemon: remote.Daemon{
				Unit: "haproxy.service", Config: s.root + proxy.HAProxyPath,
				Marker: s.root + stateDir + "/loaded-haproxy", Worker: "haproxy",
			},
			service: "haproxy", pkg: s.group.HAProxy.Package.Name, gap: s.group.HAProxy.MinReloadGap,
		},
		{
			Daemon: remote.Daemon{
				Unit: "keepalived.service", Config: s.root + proxy.KeepalivedPath,
				Marker: s.root + stateDir + "/loaded-keepalived",
			},
			service: "keepalived", pkg: s.group.Keepalived.Name,
		},
	}
}

// daemon is a service that reads one of the files.
type daemon struct {
	remote.Daemon
	service string        // as proxy.File names it
	pkg     string        // that brings it
	gap     time.Duration // least age of its worker at a reload
}

// packageOf names the package that may have brought a file.
func (s *hostStep) packageOf(file string) string {
	for _, d := range s.daemons() {
		if d.Config == s.root+file {
			return d.pkg
		}
	}
	return ""
}

// observe returns the facts of the start of the run, once, and then what is there now.
func (s *hostStep) observe(ctx context.Context, files []proxy.File) (*remote.Facts, error) {
	if f := s.first; f != nil {
		s.first = nil
		return f, nil
	}
	ctx, cancel := bounded(ctx, lookBound, "an answer of "+s.box.Name)
	defer cancel()
	var facts *remote.Facts
	err := s.enter(ctx, func(h *remote.Host) (err error) {
		facts, err = h.Find(ctx, s.query(files))
		return err
	})
	return facts, err
}

// entries is how often a box is entered for one act.
const entries = 3

// enter has do act in the box. Where the connection breaks the box is entered
// again and do begins anew: it must be right also where it was done already.
func (s *hostStep) enter(ctx context.Context, do func(*remote.Host) error) error {
	for n := 1; ; n++ {
		h, err := s.connect(ctx)
		if err != nil {
			return err
		}
		if err = do(h); n == entries || !errors.Is(err, remote.ErrBroken) {
			return err
		}
	}
}

// query asks for everything that the step compares.
func (s *hostStep) query(files []proxy.File) remote.Query {
	q := remote.Query{Settings: s.settings()}
	for _, p := range s.packages() {
		q.Packages = append(q.Packages, p.Name)
	}
	for _, f := range files {
		sum := sha256.Sum256(f.Content)
		q.Files = append(q.Files, remote.FileQuery{
			Path: s.root + f.Path, Known: hex.EncodeToString(sum[:]), Package: s.packageOf(f.Path),
		})
	}
	for _, d := range s.daemons() {
		q.Units = append(q.Units, d.Unit)
		q.Files = append(q.Files, remote.FileQuery{Path: d.Marker})
	}
	q.Ports = s.ports()
	for _, p := range []string{installedAt, enabledAt, openedAt, booleanAt, generationAt, armedAt, proxy.DrainedPath} {
		q.Files = append(q.Files, remote.FileQuery{Path: s.root + p})
	}
	q.Newest = []string{s.root + historyAt}
	if s.group.SELinux == "manage" {
		q.Booleans = []string{connectAny}
	}
	return q
}

// predicted is what a machine is taken for that cannot be looked at: just made
// from its image.
func (s *hostStep) predicted() *remote.Facts {
	f := &remote.Facts{OS: remote.OS{Family: "debian"}}
	if s.box.Image != nil {
		f.OS.Family = s.box.Image.OSFamily
	}
	f.Firewall.Firewalld = s.group.Firewall == "firewalld" || s.group.Firewall == "detected" && f.OS.Family == "rhel"
	if f.OS.Family == "rhel" {
		f.SELinux = remote.SELinux{Mode: "Enforcing", Booleans: map[string]bool{connectAny: false}}
	}
	return f
}

// hostLook is the step with what one look has shown: it makes the changes.
type hostLook struct {
	*hostStep
	files []proxy.File
	facts *remote.Facts

	spared []string // files that others have changed meanwhile: no rollback touches them
}

func (l *hostLook) target(what string) string { return l.box.Name + ":" + what }

func (l *hostLook) state(file string) remote.FileState { return l.facts.Files[l.root+file] }

// lines are those of a file in stateDir.
func (l *hostLook) lines(file string) []string {
	var lines []string
	for line := range strings.Lines(string(l.state(file).Content)) {
		lines = append(lines, strings.TrimSuffix(line, "\n"))
	}
	return lines
}

// refuse returns an error where a file of the box, or its version of HAProxy, is
// none that we may touch or use. With goal Absent a file of others is left alone,
// unless it would go with a package that we installed.
func (l *hostLook) refuse(goal plan.Goal) error {
	var errs []error
	for _, f := range l.files {
		s := l.state(f.Path)
		if !s.Exists || s.Content == nil || s.Pristine {
			continue
		}
		owner, ours := proxy.Owner(s.Content)
		switch {
		case !ours && goal == plan.Absent && len(l.ourPackages()) == 0:
		case !ours:
			first, _, _ := strings.Cut(string(s.Content), "\n")
			errs = append(errs, fmt.Errorf("%s on %s was not written by ftpdeploy (first line: %.80q%s): it %w. Nothing was changed. "+
				"To take it over: ftpdeploy adopt lb.%s. If nobody needs it, move it away and plan again [FTP604]", f.Path, l.box.Name, first, writer(first), ErrForeign, l.box.Name))
		case owner != l.topology.ID:
			errs = append(errs, l.anothers(f, owner))
		}
	}
	if i := l.box.Image; i != nil && l.facts.OS.Family != i.OSFamily {
		errs = append(errs, fmt.Errorf("%s runs %s, of the %s family, and image %q says os_family = %q: correct that in the blueprint",
			l.box.Name, l.facts.OS.Name, l.facts.OS.Family, i.Name, i.OSFamily))
	}
	h := l.group.HAProxy
	if v := l.facts.Packages[h.Package.Name]; h.MinVersion != "" && h.Package.Version == "" {
		if has := v.Version; has == "" && v.Candidate != "" && older(v.Candidate, h.MinVersion) {
			errs = append(errs, fmt.Errorf("package %s of %s would be %s, and min_version is %s", h.Package.Name, l.box.Name, v.Candidate, h.MinVersion))
		} else if has != "" && older(has, h.MinVersion) {
			errs = append(errs, fmt.Errorf("package %s on %s is %s, and min_version is %s: give haproxy.version", h.Package.Name, l.box.Name, has, h.MinVersion))
		}
	}
	return errors.Join(errs...)
}

// anothers is the error of a file that bears another deployment's mark.
func (l *hostLook) anothers(f proxy.File, owner string) error {
	return fmt.Errorf("%s on %s belongs to deployment %q and this is %q: it %w. Nothing was changed [FTP603]",
		f.Path, l.box.Name, owner, l.topology.ID, ErrForeign)
}

// writer names who wrote a file, by its first line, as far as that can be told.
func writer(first string) string {
	for _, w := range []struct{ mark, name string }{
		{"_version=", "Data Plane API"}, {"ansible", "Ansible"}, {"puppet", "Puppet"}, {"chef", "Chef"},
	} {
		if strings.Contains(strings.ToLower(first), w.mark) {
			return ", " + w.name
		}
	}
	return ""
}

// older compares the upstream part of a package's version with a minimum like "2.2".
func older(version, minimum string) bool {
	if _, rest, ok := strings.Cut(version, ":"); ok { // Debian's epoch
		version = rest
	}
	version, _, _ = strings.Cut(version, "-")
	have, want := strings.Split(version, "."), strings.Split(minimum, ".")
	for i, w := range want {
		var h string
		if i < len(have) {
			h = have[i]
		}
		if a, b := leadingInt(h), leadingInt(w); a != b {
			return a < b
		}
	}
	return false
}

func leadingInt(s string) int {
	n := 0
	for _, c := range s {
		if c < '0' || c > '9' {
			break
		}
		n = n*10 + int(c-'0')
	}
	return n
}

// changes are what the box lacks, in the order in which it must be done: a
// configuration can be checked only by the program that will read it.
func (l *hostLook) changes() ([]plan.Change, error) {
	var all []plan.Change
	sysctl, configs := l.files[0], l.files[1:]
	if c, ok := l.write(sysctl); ok {
		all = append(all, c)
	}
	for _, name := range l.settings() {
		if c, ok := l.set(name); ok {
			all = append(all, c)
		}
	}
	guard, err := l.guard()
	if err != nil {
		return nil, err
	}
	all = append(all, guard...)
	written := map[string]bool{}
	for _, f := range configs {
		if c, ok := l.write(f); ok {
			all = append(all, c)
			written[f.Service] = true
		}
	}
	for _, d := range l.daemons() {
		if c, ok := l.enable(d); ok {
			all = append(all, c)
		}
	}
	for _, d := range l.daemons() {
		if c, ok := l.load(d, written[d.service]); ok {
			all = append(all, c)
		}
	}
	install, ok := l.install()
	ends := ok && install.Effect == plan.Restart
	all = l.guarded(all, ends)
	if ok {
		all = slices.Insert(all, 0, install)
	}
	return l.around(l.position(l.facts), all, ends, l.moves)
}

func (l *hostLook) install() (plan.Change, bool) {
	var fields []plan.Field
	var missing []string
	var old []string
	var former []remote.Package // of what gets another version
	effect, reason := plan.NoEffect, "not installed"
	var from []string // the attributes that ask for it
	removed := true   // all that is missing was installed by us before
	want := sha256.New()
	for _, p := range l.packages() {
		fmt.Fprintf(want, "%s=%s\n", p.Name, p.Version)
		has := l.facts.Packages[p.Name]
		switch {
		case has.Version == "":
			missing = append(missing, p.Name)
			from = append(from, l.packageFrom(p))
			removed = removed && slices.Contains(l.lines(installedAt), p.Name)
			after := p.Version
			if after == "" {
				after = has.Candidate
			}
			if after == "" {
				after = "the repository's candidate"
			}
			fields = append(fields, plan.Field{Path: p.Name, After: after})
		case p.Version != "" && has.Version != p.Version:
			fields = append(fields, plan.Field{Path: p.Name, Before: has.Version, After: p.Version})
			effect, reason, removed = plan.Restart, "another version is installed", false
			from = append(from, l.packageFrom(p)+".version")
			former = append(former, remote.Package{Name: p.Name, Version: has.Version})
		}
		old = append(old, p.Name+"="+has.Version)
	}
	if len(fields) == 0 {
		return plan.Change{}, false
	}
	c := plan.Change{
		Action: plan.Create, Target: l.target("packages"), Reason: reason, Cause: asked(l.topology, from...), Effect: effect,
		Detail: plan.Diff{Fields: fields}, Want: fmt.Sprintf("sha256:%.8x", want.Sum(nil)),
		Do: l.act(installBound, func(ctx context.Context, h *remote.Host, report func(string)) error {
			report("installing " + paths(fields))
			// Noted first: an installation that breaks off is still ours to remove.
			if len(missing) > 0 {
				if err := h.Note(ctx, l.root+installedAt, missing...); err != nil {
					return err
				}
			}
			return h.Install(ctx, l.facts.OS.Family, l.packages()...)
		}),
		Undo: func(ctx context.Context) error {
			return l.act(installBound, func(ctx context.Context, h *remote.Host, _ func(string)) error {
				if len(missing) > 0 {
					if err := h.Uninstall(ctx, l.facts.OS.Family, missing...); err != nil {
						return err
					}
				}
				if len(former) == 0 {
					return nil
				}
				return h.Install(ctx, l.facts.OS.Family, former...)
			})(ctx, func(string) {})
		},
	}
	if effect == plan.Restart {
		c.Action = plan.Update
	}
	if removed {
		c.Cause = drifted("", time.Time{})
	}
	if len(missing) < len(l.packages()) {
		c.From = strings.Join(old, " ")
	}
	return c, true
}

func (l *hostLook) set(name string) (plan.Change, bool) {
	now := l.facts.Settings[name]
	if now == "1" {
		return plan.Change{}, false
	}
	return plan.Change{
		Action: plan.Update, Target: l.target("sysctl " + name), From: now, Want: "1",
		Reason: "a standby binds the VIP that it does not hold", Cause: l.since("lb_group." + l.group.Name),
		Detail: plan.Diff{Fields: []plan.Field{{Path: name, Before: now, After: "1"}}},
		Do: l.act(actBound, func(ctx context.Context, h *remote.Host, _ func(string)) error {
			return h.Set(ctx, name, "1")
		}),
	}, true
}

func (l *hostLook) write(f proxy.File) (plan.Change, bool) {
	s := l.state(f.Path)
	sum := sha256.Sum256(f.Content)
	mode := fmt.Sprintf("%o", f.Mode.Perm())
	c := plan.Change{
		Action: plan.Update, Target: l.target(f.Path), From: strings.TrimSpace(s.String()), Want: hex.EncodeToString(sum[:]) + " " + mode,
		Do: l.act(actBound, func(ctx context.Context, h *remote.Host, _ func(string)) error {
			err := h.Put(ctx, l.file(f))
			if errors.Is(err, remote.ErrChanged) {
				l.spared = append(l.spared, l.root+f.Path)
				err = fmt.Errorf("%w: %w", plan.ErrMoved, err)
			}
			return err
		}),
	}
	ours := l.root != "" || s.Owner == "root" && s.Group == "root"
	switch {
	case !s.Exists:
		c.Action, c.Reason, c.Cause = plan.Create, "not there", l.since("lb_group."+l.group.Name)
	case s.SHA256 != hex.EncodeToString(sum[:]):
		c.Reason, c.Cause = l.blame(f, s)
	case s.Link != "":
		c.Reason, c.Cause = "is a symbolic link, made by "+s.Owner, drifted(s.Owner, time.Time{})
		c.Detail.Fields = []plan.Field{{Path: "link", Before: s.Link}}
		return c, true
	case s.Mode != mode || !ours:
		c.Reason, c.Cause = fmt.Sprintf("mode %s, owner %s:%s: should be %s, root:root", s.Mode, s.Owner, s.Group, mode), drifted("", time.Time{})
		c.Detail.Fields = []plan.Field{{Path: "mode", Before: s.Mode, After: mode}, {Path: "owner", Before: s.Owner + ":" + s.Group, After: "root:root"}}
		return c, true
	default:
		return plan.Change{}, false
	}
	if !s.Pristine {
		c.Needs = dangers(f, s.Content)
	}
	from := f.Path
	if !s.Exists {
		from = "/dev/null"
	}
	c.Detail.Unified = udiff.Unified(from, f.Path, string(s.Content), string(f.Content))
	return c, true
}

// blame tells why a file differs: the blueprint was changed since we wrote it, or
// someone edited it. A configuration that was loaded as it stands is our own.
func (l *hostLook) blame(f proxy.File, s remote.FileState) (string, plan.Cause) {
	if s.Pristine {
		return "still as its package brought it", asked(l.topology, "lb_group."+l.group.Name)
	}
	when := s.Modified.UTC().Format("2006-01-02 15:04:05 MST")
	for _, d := range l.daemons() {
		if d.service != f.Service {
			continue
		}
		switch loaded := l.facts.Files[d.Marker]; {
		case loaded.Exists && strings.TrimSpace(string(loaded.Content)) == s.Identity:
			return l.source() + " says otherwise", l.wish(f.Because(s.Content)...)
		case loaded.Exists:
			return fmt.Sprintf("drift: edited at %s, owner %s", when, s.Owner), edited(s)
		}
	}
	return fmt.Sprintf("differs from %s: last written at %s, owner %s", l.source(), when, s.Owner), edited(s)
}

// since is the cause of what a box lacks: the blueprint's wish at an address, or
// drift where the box was once as it should be.
func (l *hostLook) since(address string) plan.Cause {
	if l.marked() {
		return drifted("", time.Time{})
	}
	return asked(l.topology, address)
}

// packageFrom is the address of the block that names a package.
func (l *hostLook) packageFrom(p remote.Package) string {
	if p.Name == l.group.Keepalived.Name {
		return "lb_group." + l.group.Name + ".keepalived"
	}
	return "lb_group." + l.group.Name + ".haproxy"
}

// source is what says how the box should be.
func (s *hostStep) source() string {
	if s.past != nil {
		return fmt.Sprintf("generation %d", s.past.Number)
	}
	return "the blueprint"
}

// wish is the cause of a change to a file: the blueprint's values at some
// addresses, or the generation that is gone back to.
func (s *hostStep) wish(addresses ...string) plan.Cause {
	if s.past != nil {
		return plan.Cause{Kind: plan.ByRollback}
	}
	return asked(s.topology, addresses...)
}

// file is what remote puts for f: what it replaces is kept, for the way back.
func (l *hostLook) file(f proxy.File) remote.File {
	s := l.state(f.Path)
	r := remote.File{Path: l.root + f.Path, Mode: fmt.Sprintf("%04o", f.Mode&fs.ModePerm), Content: f.Content, Was: &s, Keep: l.kept(f.Path)}
	if s.Exists && !s.Pristine {
		r.Keep = "" // our own
	}
	if pkg := l.packageOf(f.Path); pkg != "" && l.facts.Packages[pkg].Version == "" {
		r.Was = nil // what the package brings
	}
	for _, word := range f.Check {
		r.Check += "'" + word + "' "
	}
	if r.Check != "" {
		r.Check += "{}"
	}
	if l.root != "" {
		r.Owner = ":"
	}
	return r
}

func (l *hostLook) kept(file string) string { return l.root + stateDir + "/kept/" + path.Base(file) }

func (l *hostLook) enable(d daemon) (plan.Change, bool) {
	u := l.facts.Units[d.Unit]
	if u.Enabled == "enabled" {
		return plan.Change{}, false
	}
	return plan.Change{
		Action: plan.Update, Target: l.target(d.Unit + " enabled"), From: u.Enabled, Want: "enabled",
		Reason: "does not start at boot", Cause: l.since("lb_group." + l.group.Name),
		Detail: plan.Diff{Fields: []plan.Field{{Path: "enabled", Before: u.Enabled, After: "enabled"}}},
		Do: l.act(actBound, func(ctx context.Context, h *remote.Host, _ func(string)) error {
			if u.Exists {
				if err := h.Note(ctx, l.root+enabledAt, d.Unit); err != nil {
					return err
				}
			}
			return h.Enable(ctx, d.Unit)
		}),
	}, true
}

// load makes a daemon run what is on disk. What it has loaded is compared with
// that, so a run that was broken off between writing and reloading is repaired.
func (l *hostLook) load(d daemon, written bool) (plan.Change, bool) {
	u, loaded, config := l.facts.Units[d.Unit], l.facts.Files[d.Marker], l.facts.Files[d.Config]
	current := config.Exists && strings.TrimSpace(string(loaded.Content)) == config.Identity
	if u.Active == "active" && current && !written {
		return plan.Change{}, false
	}
	c := plan.Change{
		Action: plan.Run, Target: l.target(d.Unit), From: u.Active,
		Want: "runs what is on disk", Reason: "is " + u.Active,
		Do: l.act(actBound, func(ctx context.Context, h *remote.Host, report func(string)) error {
			running, err := h.Running(ctx, d.Daemon)
			if err != nil {
				return err
			}
			if !running {
				report("starting")
				return h.Start(ctx, d.Daemon)
			}
			if err := l.pause(ctx, h, d, report); err != nil {
				return err
			}
			report("reloading")
			return h.Reload(ctx, d.Daemon)
		}),
	}
	switch {
	case u.Active == "":
		c.Reason = "not there yet"
	case u.Active != "active":
		if loaded.Exists {
			c.Cause = drifted("", time.Time{})
		}
	case written:
		c.Effect, c.Reason = plan.Reload, "its configuration changes"
	default:
		c.Effect, c.Reason = plan.Reload, "its configuration on disk is not the one that it has loaded"
		c.Cause = edited(config)
	}
	return c, true
}

// pause waits until the daemon's worker is old enough for a reload: a younger one
// has not yet got the stick table of the one before it.
func (l *hostLook) pause(ctx context.Context, h *remote.Host, d daemon, report func(string)) error {
	if d.gap <= 0 {
		return nil
	}
	age, ok, err := h.Age(ctx, d.Daemon)
	if err != nil || !ok || age >= d.gap {
		return err
	}
	wait := d.gap - age
	report(fmt.Sprintf("waiting %s: its worker is %s old, and min_reload_gap is %s", wait.Round(time.Second), age.Round(time.Second), d.gap))
	pauseFor(ctx, wait)
	return context.Cause(ctx)
}

// act makes the act of a change: the box is entered, again where the connection
// breaks, and the bound holds.
func (l *hostLook) act(bound time.Duration, do func(context.Context, *remote.Host, func(string)) error) func(context.Context, func(string)) error {
	return func(ctx context.Context, report func(string)) error {
		ctx, cancel := bounded(ctx, bound, l.box.Name+" to finish")
		defer cancel()
		return l.enter(ctx, func(h *remote.Host) error { return do(ctx, h, report) })
	}
}

// bounded is a ctx whose end after d says what was waited for.
func bounded(ctx context.Context, d time.Duration, what string) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("waited %s for %s", d, what))
}

// removal is the way back: what we enabled is stopped, files are as they were
// before us, and what we installed goes.
func (l *hostLook) removal() []plan.Change {
	var all []plan.Change
	if n := l.number(armedAt); n > 0 {
		all = append(all, l.undo("generation", plan.Run, "it was never confirmed, and would be put back", fmt.Sprintf("armed %d", n),
			func(ctx context.Context, h *remote.Host, _ func(string)) error {
				return h.Disarm(ctx, remote.Generation{Dir: l.root + stateDir})
			}))
	}
	installed, enabled := l.lines(installedAt), l.lines(enabledAt)
	daemons := l.daemons()
	slices.Reverse(daemons) // the VIP leaves before what serves it
	var kept []daemon       // that ran before us, and go on
	for _, d := range daemons {
		u := l.facts.Units[d.Unit]
		switch {
		case u.Active != "active" && u.Enabled != "enabled":
		case slices.Contains(installed, d.pkg), slices.Contains(enabled, d.Unit):
			all = append(all, l.undo(d.Unit, plan.Run, "we set it up", u.Active+" "+u.Enabled, func(ctx context.Context, h *remote.Host, _ func(string)) error {
				return h.Disable(ctx, d.Unit)
			}))
		case l.facts.Files[d.Marker].Exists && u.Active == "active":
			kept = append(kept, d)
		}
	}
	for _, f := range slices.Backward(l.files) {
		s := l.state(f.Path)
		if !s.Exists || s.Pristine {
			continue
		}
		if _, ours := proxy.Owner(s.Content); s.Content != nil && !ours {
			continue
		}
		all = append(all, l.undo(f.Path, plan.Delete, "bears our mark", s.SHA256, func(ctx context.Context, h *remote.Host, _ func(string)) error {
			return h.Restore(ctx, l.root+f.Path, l.kept(f.Path))
		}))
	}
	for _, d := range kept {
		all = append(all, l.undo(d.Unit, plan.Run, "its former configuration is back", l.facts.Units[d.Unit].Active, func(ctx context.Context, h *remote.Host, _ func(string)) error {
			return h.LetGo(ctx, d.Unit, d.Config)
		}))
	}
	if l.state(sysctlPath).Exists {
		for _, name := range l.settings() {
			if now := l.facts.Settings[name]; now == "1" {
				all = append(all, l.undo("sysctl "+name, plan.Update, "our file set it", now, func(ctx context.Context, h *remote.Host, _ func(string)) error {
					return h.Set(ctx, name, "0")
				}))
			}
		}
	}
	all = append(all, l.unguard()...)
	if there := l.ourPackages(); len(there) > 0 {
		all = append(all, l.undo("packages", plan.Delete, "we installed them: "+strings.Join(there, ", "), strings.Join(there, " "),
			func(ctx context.Context, h *remote.Host, _ func(string)) error {
				return h.Uninstall(ctx, l.facts.OS.Family, there...)
			}))
	}
	if l.marked() {
		all = append(all, l.undo(stateDir, plan.Delete, "is ours", "there", func(ctx context.Context, h *remote.Host, _ func(string)) error {
			return h.RemoveAll(ctx, l.root+stateDir)
		}))
	}
	return all
}

// ourPackages are those that we installed and that are there.
func (l *hostLook) ourPackages() []string {
	installed := l.lines(installedAt)
	var there []string
	for _, p := range l.packages() {
		if l.facts.Packages[p.Name].Version != "" && slices.Contains(installed, p.Name) {
			there = append(there, p.Name)
		}
	}
	return there
}

// marked tells whether stateDir is there.
func (l *hostLook) marked() bool {
	files := []string{installedAt, enabledAt, openedAt, booleanAt, generationAt, proxy.DrainedPath}
	for _, d := range l.daemons() {
		files = append(files, strings.TrimPrefix(d.Marker, l.root))
	}
	return l.facts.Newest[l.root+historyAt] != "" || slices.ContainsFunc(files, func(f string) bool { return l.state(f).Exists })
}

func (l *hostLook) undo(what string, action plan.Action, reason, from string, do func(context.Context, *remote.Host, func(string)) error) plan.Change {
	return plan.Change{Action: action, Target: l.target(what), Reason: reason, Cause: destroyed(l.topology), From: from, Do: l.act(installBound, do)}
}
