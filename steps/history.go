package steps

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/remote"
)

// historyAt is where a box keeps the generations of its deployment, each in a
// file of its own. Every box has all of them.
const historyAt = stateDir + "/history"

// keptGenerations is how many generations stay when another one is kept.
const keptGenerations = 10

// HistoryStep is the name of the step that keeps the generations of a deployment.
func HistoryStep(t *blueprints.Topology) string { return "history/" + t.ID }

// history keeps what was applied as a generation, when all the others are done. It
// wants nothing while the newest generation is what the others lead to: how often
// that was applied, and what was repaired, makes no new one.
type history struct {
	topology *blueprints.Topology
	after    []string
	hosts    []*hostStep
	first    []*remote.Facts // of hosts, from the start of the run; nil once they were used
	texts    func(context.Context) (map[string]string, error)
	draft    func() (*Generation, error) // the next generation: who makes it, without what it is
}

// Name implements plan.Step.
func (s *history) Name() string { return HistoryStep(s.topology) }

// After implements plan.Step.
func (s *history) After() []string { return s.after }

// store is what one box keeps.
type store struct {
	host   *hostStep
	names  []generationName // in the order of later
	absent bool             // there is no box to look at
}

func (s store) newest() generationName {
	if len(s.names) == 0 {
		return generationName{}
	}
	return s.names[len(s.names)-1]
}

// Plan implements plan.Step. With goal Absent nothing is needed: the history goes
// with the boxes, or with what we keep on them.
func (s *history) Plan(ctx context.Context, goal plan.Goal) ([]plan.Change, error) {
	if goal == plan.Absent {
		return nil, nil
	}
	texts, err := s.texts(ctx)
	if err != nil {
		return nil, err
	}
	wanted, err := digest(texts)
	if err != nil {
		return nil, err
	}
	if s.settled(wanted) {
		return nil, nil
	}
	stores, err := s.look(ctx)
	if err != nil {
		return nil, err
	}
	var newest generationName
	var holder string
	for _, st := range stores {
		if n := st.newest(); later(n, newest) > 0 {
			newest, holder = n, st.host.box.Name
		}
	}
	r := &record{history: s, stores: stores, newest: newest}
	number, reason := newest.number, fmt.Sprintf("it lacks what %s keeps: generation %d", holder, newest.number)
	if newest.digest != wanted {
		number++
		r.texts, r.next = texts, generationName{number, time.Now().UTC().Truncate(time.Second), wanted}
		reason = fmt.Sprintf("what is applied is not generation %d", newest.number)
		if newest.number == 0 {
			reason = "nothing is kept yet"
		}
	}
	var changes []plan.Change
	for _, st := range stores {
		has := st.newest()
		if has == newest && newest.digest == wanted && !st.absent {
			continue
		}
		c := plan.Change{
			Action: plan.Create, Target: st.host.box.Name + ":history", Reason: reason, From: has.String(), Want: wanted,
			Do:   func(ctx context.Context, _ func(string)) error { return r.keep(ctx, st) },
			Undo: func(ctx context.Context) error { return r.drop(ctx, st) },
		}
		before := ""
		if has.number > 0 {
			before = strconv.Itoa(has.number)
		}
		c.Detail.Fields = []plan.Field{{Path: "generation", Before: before, After: strconv.Itoa(number)}}
		if st.absent {
			c.From = plan.Unseen
		}
		changes = append(changes, c)
	}
	return changes, nil
}

// settled tells, once and from the look that the run began with, that all boxes have
// the same newest generation and it is the wanted one. So no further look is needed
// where nothing is to do.
func (s *history) settled(wanted string) bool {
	first := s.first
	s.first = nil
	var newest string
	for i, facts := range first {
		if facts == nil {
			return false
		}
		file := facts.Newest[s.hosts[i].root+historyAt]
		if n, err := parseName(file); err != nil || n.digest != wanted || i > 0 && file != newest {
			return false
		}
		newest = file
	}
	return len(first) > 0
}

// look lists what the boxes keep.
func (s *history) look(ctx context.Context) ([]store, error) {
	stores := make([]store, len(s.hosts))
	var looks []func(context.Context) error
	for i, h := range s.hosts {
		looks = append(looks, func(ctx context.Context) error {
			var err error
			stores[i], err = h.store(ctx)
			return err
		})
	}
	return stores, together(ctx, looks)
}

// store lists the generations that a box keeps.
func (s *hostStep) store(ctx context.Context) (store, error) {
	st := store{host: s}
	h, err := s.connect(ctx)
	if errors.Is(err, ErrAbsent) {
		st.absent = true
		return st, nil
	}
	if err != nil {
		return st, err
	}
	files, err := h.List(ctx, s.root+historyAt)
	if err != nil {
		return st, err
	}
	for _, file := range files {
		n, err := parseName(file)
		if err != nil {
			return st, fmt.Errorf("on %s: %w", s.box.Name, err)
		}
		st.names = append(st.names, n)
	}
	slices.SortFunc(st.names, later)
	return st, nil
}

// read returns generations that a box keeps.
func (s store) read(ctx context.Context, names ...generationName) ([]*Generation, error) {
	h, err := s.host.connect(ctx)
	if err != nil {
		return nil, err
	}
	files := make([]string, len(names))
	for i, n := range names {
		files[i] = n.String()
	}
	texts, err := h.Read(ctx, s.host.root+historyAt, files...)
	if err != nil {
		return nil, err
	}
	all := make([]*Generation, len(names))
	for i, n := range names {
		if all[i], err = decode(n, texts[i]); err != nil {
			return nil, fmt.Errorf("on %s: %w", s.host.box.Name, err)
		}
	}
	return all, nil
}

// record is one generation on its way to all boxes.
type record struct {
	*history
	stores []store
	newest generationName    // that any box keeps
	next   generationName    // the one to be made, zero where none is
	texts  map[string]string // of it
	made   *Generation       // once it is
}

// keep has a box keep the generations that the others do, and the next one.
func (r *record) keep(ctx context.Context, st store) error {
	ctx, cancel := bounded(ctx, actBound, st.host.box.Name+" to keep the generation")
	defer cancel()
	h, err := st.host.connect(ctx)
	if err != nil {
		return err
	}
	var needless []string
	for _, n := range st.names {
		if !slices.Contains(r.wanted(), n) {
			needless = append(needless, n.String())
		}
	}
	dir := st.host.root + historyAt
	if len(needless) > 0 {
		if err := h.Remove(ctx, dir, needless...); err != nil {
			return err
		}
	}
	for _, n := range r.wanted() {
		if slices.Contains(st.names, n) {
			continue
		}
		g, err := r.generation(ctx, n)
		if err != nil {
			return err
		}
		text, err := g.encode()
		if err != nil {
			return err
		}
		file := remote.File{Path: dir + "/" + n.String(), Mode: "0600", Content: text}
		if st.host.root != "" {
			file.Owner = ":"
		}
		if err := h.Put(ctx, file); err != nil {
			return err
		}
	}
	return nil
}

// drop takes from a box what keep gave it.
func (r *record) drop(ctx context.Context, st store) error {
	h, err := st.host.connect(ctx)
	if err != nil {
		return err
	}
	var given []string
	for _, n := range r.wanted() {
		if !slices.Contains(st.names, n) {
			given = append(given, n.String())
		}
	}
	return h.Remove(ctx, st.host.root+historyAt, given...)
}

// wanted are the generations that every box is to keep. One that another run made
// under the same number is not among them.
func (r *record) wanted() []generationName {
	byNumber := map[int]generationName{}
	for _, st := range r.stores {
		for _, n := range st.names {
			if n.number > r.newest.number-keptGenerations && later(n, byNumber[n.number]) > 0 {
				byNumber[n.number] = n
			}
		}
	}
	if r.next.number > 0 {
		byNumber[r.next.number] = r.next
	}
	return slices.SortedFunc(maps.Values(byNumber), later)
}

// generation is the one of that name: the next one, or what a box keeps.
func (r *record) generation(ctx context.Context, n generationName) (*Generation, error) {
	if n != r.next {
		for _, st := range r.stores {
			if slices.Contains(st.names, n) {
				found, err := st.read(ctx, n)
				if err != nil {
					return nil, err
				}
				return found[0], nil
			}
		}
		return nil, fmt.Errorf("bug: no box keeps generation %d", n.number)
	}
	if r.made != nil {
		return r.made, nil
	}
	g, err := r.draft()
	if err != nil {
		return nil, err
	}
	g.Format, g.Number, g.Made, g.Texts = generationFormat, n.number, n.made, r.texts
	g.describe(r.topology)
	var before map[string]string
	if r.newest.number > 0 {
		last, err := r.generation(ctx, r.newest)
		if err != nil {
			return nil, err
		}
		before = last.Texts
	}
	g.Changed = differing(before, g.Texts)
	r.made = g
	return g, nil
}

// history makes the step that keeps what those of the boxes and the services lead to.
func (l *Live) history(hosts []*hostStep, services []*kubernetes, after []string) *history {
	s := &history{topology: l.topology, after: after, hosts: hosts}
	for _, h := range hosts {
		s.first = append(s.first, h.first)
	}
	s.texts = func(ctx context.Context) (map[string]string, error) { return textsOf(ctx, hosts, services) }
	s.draft = func() (*Generation, error) {
		g := &Generation{Run: l.options.Run, Ftpdeploy: l.options.Version}
		if l.past != nil {
			g.Back, g.Blueprint = l.past.Number, l.past.Blueprint
			return g, nil
		}
		var err error
		g.Blueprint, err = l.options.Blueprint()
		return g, err
	}
	return s
}

// textsOf are what the steps of the boxes and the services lead to.
func textsOf(ctx context.Context, hosts []*hostStep, services []*kubernetes) (map[string]string, error) {
	texts := map[string]string{}
	for _, h := range hosts {
		files, err := h.files(ctx)
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			texts[h.box.Name+f.Path] = string(f.Content)
		}
		texts[machineName(h.box.Name)] = machineText(h.group, h.box)
	}
	for _, k := range services {
		m, err := k.wanted()
		if err != nil {
			return nil, err
		}
		objects, err := objectTexts(k.service, m)
		if err != nil {
			return nil, err
		}
		maps.Copy(texts, objects)
	}
	return texts, nil
}

// History reads the generations that the boxes keep, the oldest first. The error
// tells of boxes that could not be asked; what the others keep is returned all the
// same.
func (l *Live) History(ctx context.Context) ([]*Generation, error) {
	stores := make([]store, len(l.topology.Boxes))
	var looks []func(context.Context) error
	for i, b := range l.topology.Boxes {
		h := &hostStep{box: b, connect: func(ctx context.Context) (*remote.Host, error) { return l.host(ctx, b) }}
		looks = append(looks, func(ctx context.Context) error {
			var err error
			if stores[i], err = h.store(ctx); err != nil {
				stores[i].names = nil
				return fmt.Errorf("look at lb.%s: %w", b.Name, err)
			}
			return nil
		})
	}
	err := together(ctx, looks)
	from := map[generationName]int{}
	names := map[int]generationName{}
	for i, st := range stores {
		for _, n := range st.names {
			if later(n, names[n.number]) >= 0 {
				names[n.number], from[n] = n, i
			}
		}
	}
	var all []*Generation
	for i, st := range stores {
		var wanted []generationName
		for _, n := range names {
			if from[n] == i {
				wanted = append(wanted, n)
			}
		}
		if len(wanted) == 0 {
			continue
		}
		found, bad := st.read(ctx, wanted...)
		err = errors.Join(err, bad)
		all = append(all, found...)
	}
	slices.SortFunc(all, func(a, b *Generation) int { return a.Number - b.Number })
	return all, err
}

// BackTo has the lists that are made from now on lead to generation g, as far as
// it can be gone back to, and returns the topology by which that is proven. The
// second result says what stays as the blueprint has it although g has it
// otherwise.
func (l *Live) BackTo(g *Generation) (*blueprints.Topology, []string, error) {
	then, err := g.at(l.topology)
	if err != nil {
		return nil, nil, err
	}
	now := map[string]string{}
	for _, group := range l.topology.Groups {
		for _, b := range group.Boxes {
			now[machineName(b.Name)] = machineText(group, b)
		}
	}
	for _, s := range l.topology.Services {
		if s.Server != "vsftpd" {
			continue
		}
		m, err := workload{l.topology, s}.manifests()
		if err == nil {
			_, err = g.manifests(s, m)
		}
		if err != nil {
			return nil, nil, err
		}
		objects, err := objectTexts(s, m)
		if err != nil {
			return nil, nil, err
		}
		maps.Copy(now, objects)
	}
	l.topology, l.past = then, g
	return then, g.stays(now), nil
}
