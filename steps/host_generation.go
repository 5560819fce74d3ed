package steps

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/steps/ftp"
	"github.com/ftpdeploy/ftpdeploy/steps/proxy"
)

// What the store of generations keeps beside them.
const (
	generationAt = stateDir + "/generation" // number of the last one
	armedAt      = stateDir + "/armed"      // number of the one that nobody has confirmed yet
)

// How long a proof is tried again, and what it leaves of the timer's time.
const (
	settleBound  = 20 * time.Second // once the cluster's part is there: health checks and NodePorts follow
	revertTime   = 15 * time.Second // of confirm_within, for the way back
	baselineTime = 15 * time.Second
	backTime     = 15 * time.Second // until the former service answers when all is put back
)

// When a proof is made.
const (
	beforeChange = "before"
	afterChange  = "after"
	backFrom     = "back from"
)

// newBox stands, among what worked before, for a box that has never carried a
// service of ours.
const newBox = "(new)"

// trial is one set of changes of a box from the arming of its timer to the proof.
type trial struct {
	generation remote.Generation
	n          int                          // 0 = not armed
	until      time.Time                    // the end of proving; zero = no timer runs
	proven     []string                     // services that worked before
	as         map[string]*blueprints.Smoke // how they did, where not as the blueprint has it
	transcript []string                     // of every proof
}

// number reads a file that holds one.
func (l *hostLook) number(file string) int {
	n, err := strconv.Atoi(strings.TrimSpace(string(l.state(file).Content)))
	if err != nil {
		return 0
	}
	return n
}

// guarded puts the keeping of what is there before the changes of a box, and its
// proof behind them; with upgraded a proof is due although there may be none.
func (l *hostLook) guarded(changes []plan.Change, upgraded bool) []plan.Change {
	pending := l.number(armedAt)
	if len(changes) == 0 && pending == 0 && !upgraded {
		return nil
	}
	t := &trial{generation: l.generation()}
	t.generation.Token = rand.Text()
	for i := range changes {
		changes[i].Covered = true
	}
	arm := plan.Change{
		Action: plan.Run, Target: l.target("generation"), Want: "kept", Reason: "the box changes",
		Do: l.act(actBound, func(ctx context.Context, h *remote.Host, report func(string)) error {
			report("looking what works now")
			return l.arm(ctx, h, t, report)
		}),
		Undo: func(ctx context.Context) error { return l.revert(ctx, t) },
	}
	prove := plan.Change{
		Action: plan.Run, Target: l.target("proof"), Want: "confirmed", Covered: true,
		Reason: "its own address is proven before it is left to itself",
		Do: func(ctx context.Context, report func(string)) error {
			return l.enter(ctx, func(h *remote.Host) error { return l.confirm(ctx, h, t, report) })
		},
	}
	last := l.number(generationAt)
	number := plan.Field{Path: "kept as generation", After: strconv.Itoa(last + 1)}
	if pending > 0 {
		arm.From, prove.From = fmt.Sprintf("armed %d", pending), "not confirmed"
		arm.Cause = drifted("", time.Time{})
		arm.Reason = fmt.Sprintf("generation %d was never confirmed: the run that began it broke off", pending)
		number.After = strconv.Itoa(pending)
	}
	timer := plan.Field{Path: "reverts by itself", After: "never: on_failure is \"halt\""}
	if t.generation.Within > 0 {
		timer.After = fmt.Sprintf("%s later, unless it is proven", t.generation.Within)
	}
	arm.Detail.Fields = []plan.Field{number, timer}
	return slices.Concat([]plan.Change{arm}, changes, []plan.Change{prove})
}

// generation is what the changes of the box may touch.
func (l *hostLook) generation() remote.Generation {
	g := remote.Generation{Dir: l.root + stateDir, Settings: l.settings(), Pending: l.number(armedAt)}
	if l.topology.Rollout.OnFailure != "halt" {
		g.Within = cmp.Or(l.topology.Rollout.ConfirmWithin, 90*time.Second)
	}
	for _, f := range l.files {
		g.Files = append(g.Files, l.root+f.Path)
	}
	for _, f := range []string{enabledAt, openedAt, booleanAt} {
		g.Files = append(g.Files, l.root+f)
	}
	installed := l.lines(installedAt)
	for _, d := range l.daemons() {
		ours := l.facts.Packages[d.pkg].Version == "" || slices.Contains(installed, d.pkg)
		g.Services = append(g.Services, remote.Service{Daemon: d.Daemon, Stop: ours && !l.facts.Files[d.Marker].Exists})
	}
	g.Rules = l.missingRules()
	if on, known := l.facts.SELinux.Booleans[connectAny]; known && !on && l.group.SELinux == "manage" {
		g.Booleans = []string{connectAny}
	}
	return g
}

// arm looks what works, keeps what is there and starts the timer.
func (l *hostLook) arm(ctx context.Context, h *remote.Host, t *trial, report func(string)) error {
	worked := l.worked
	if worked == nil {
		worked = l.measure(ctx, h)
	}
	t.transcript, t.as = slices.Clone(worked.transcript), worked.as
	t.generation.Proven = slices.Clone(worked.proven)
	if d := l.daemons()[0]; !l.facts.Files[d.Marker].Exists {
		t.generation.Proven = append(t.generation.Proven, newBox)
	}
	report("keeping what is there")
	start := time.Now()
	n, proven, err := h.Arm(ctx, t.generation)
	if err != nil {
		return err
	}
	t.n, t.proven = n, proven
	if within := t.generation.Within; within > 0 {
		t.until = start.Add(within - min(revertTime, within/3))
	}
	return nil
}

// measure proves the box as it is.
func (s *hostStep) measure(ctx context.Context, h *remote.Host) *trial {
	ctx, cancel := context.WithTimeout(ctx, baselineTime)
	defer cancel()
	t := &trial{as: map[string]*blueprints.Smoke{}}
	for _, smoke := range s.proofs() {
		if s.prove(ctx, h, smoke, t, beforeChange) == nil {
			t.proven = append(t.proven, smoke.Service.Name)
		}
	}
	return t
}

// Baseline proves every box at its own addresses, before the first step of the
// list acts: what is broken afterwards is then known to have worked. A box that
// cannot be entered has carried nothing. It tells whether any can.
func (l *Live) Baseline(ctx context.Context) bool {
	var looks []func(context.Context) error
	var entered atomic.Bool
	for _, s := range l.steps {
		looks = append(looks, func(ctx context.Context) error {
			if h, err := s.connect(ctx); err == nil {
				entered.Store(true)
				if worked := s.measure(ctx, h); h.Alive() {
					s.worked = worked
				}
			}
			return nil
		})
	}
	_ = together(ctx, looks)
	return entered.Load()
}

// confirm proves the box and stops the timer. A service whose own change is still to
// come in this run is proven as it is deployed. Which service must work:
//
//   - one that worked before the first change, always;
//   - one that the box has never carried, once the cluster's part of it is as the
//     blueprint says. On the first day that part is made at the same time, so it
//     may not be there yet.
//
// One that did not work before and does not work now was broken by others: the
// smoke tests at the end of the run tell that.
func (l *hostLook) confirm(ctx context.Context, h *remote.Host, t *trial, report func(string)) error {
	if t.n == 0 {
		return errors.New("bug: a box is proven whose generation was not kept")
	}
	for _, s := range l.proofs() {
		if err := l.settle(ctx, h, s, t, report); err != nil {
			return err
		}
	}
	if t.until.IsZero() {
		return nil
	}
	report("confirming generation " + strconv.Itoa(t.n))
	return h.Confirm(ctx, t.generation, t.n)
}

// settle proves one service, again and again while its parts may still come up.
func (l *hostLook) settle(ctx context.Context, h *remote.Host, s *blueprints.Smoke, t *trial, report func(string)) error {
	until := t.until
	if until.IsZero() {
		until = time.Now().Add(settleBound)
	}
	ctx, cancel := context.WithDeadlineCause(ctx, until, errors.New("the time that confirm_within leaves for proving is over"))
	defer cancel()
	var steady time.Time // since when the cluster's part is known to be there
	var last error
	for {
		part := l.serving(ctx, s.Service)
		if part == rolling && ctx.Err() == nil {
			// A session that the pod's end cuts off can cost a passive port for a minute.
			report("not yet: the pod of ftp_service " + s.Service.Name + " is being replaced")
			pauseFor(ctx, smokePause)
			continue
		}
		err := l.prove(ctx, h, s, t, afterChange)
		if err != nil && part == pending {
			err = l.proveDeployed(ctx, h, s, t, err)
		}
		if err == nil {
			return nil
		}
		if !h.Alive() {
			return fmt.Errorf("%w: %w", remote.ErrBroken, err)
		}
		if ctx.Err() != nil && last != nil {
			err = last // what was seen, rather than that the time is over
		}
		last = err
		worked := slices.Contains(t.proven, s.Service.Name)
		fresh := slices.Contains(t.proven, newBox) && part == ready
		switch {
		case !worked && !fresh:
			report(fmt.Sprintf("not proven, and it did not work before: %v", err))
			return nil
		case part != ready:
			steady = time.Time{}
		case steady.IsZero():
			steady = time.Now()
		}
		patience := settleBound
		if ftp.Final(err) {
			patience = finalBound
		}
		if ctx.Err() != nil || !steady.IsZero() && time.Since(steady) > patience {
			return fmt.Errorf("the box does not serve: %w", err)
		}
		report("not yet: " + err.Error())
		pauseFor(ctx, smokePause)
	}
}

// pauseFor returns after d, or when ctx is done.
func pauseFor(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// proofs are the smoke blocks by which the box is proven at its own addresses,
// one a service: the standby's where there is one.
func (s *hostStep) proofs() []*blueprints.Smoke {
	var all []*blueprints.Smoke
	for _, service := range s.topology.Services {
		if service.VIP.Group != s.group {
			continue
		}
		var chosen *blueprints.Smoke
		for _, smoke := range s.topology.Smokes {
			if smoke.Service == service && (chosen == nil || chosen.Standby == nil && smoke.Standby != nil) {
				chosen = smoke
			}
		}
		if _, ok := proxy.Direct(s.topology, s.box, service); ok && chosen != nil {
			short := *chosen
			short.LongIdle = 0
			all = append(all, &short)
		}
	}
	return all
}

// prove moves a file through the box's own address. Before the change the box
// serves, too, if it does so as it is deployed, and must do that again when it is
// put back. The connections are opened by the
// box itself: whether a client may come is not what its changes decide. Where it
// forwards none they are opened here.
func (s *hostStep) prove(ctx context.Context, h *remote.Host, smoke *blueprints.Smoke, t *trial, when string) error {
	own, _ := proxy.Direct(s.topology, s.box, smoke.Service)
	dial := s.dialFrom(h)
	as := smoke
	if when == backFrom {
		// A session that the way back cut off keeps a passive port for a minute.
		once := *cmp.Or(t.as[smoke.Service.Name], smoke)
		once.EveryPort = false
		as = &once
	}
	r := prove(ctx, as, s.box, own.String(), way{dial: dial, left: s.left})
	t.note(r, when)
	if errors.Is(r.Err, ftp.ErrNotDrawn) {
		return nil // what was drawn works, and a client or a cut session holds the rest: the smoke tests at the end see to it
	}
	if r.Err == nil || when != beforeChange || s.former == nil {
		return r.Err
	}
	former, err := s.former(ctx, smoke)
	if err != nil || former == nil {
		return r.Err
	}
	r = prove(ctx, former, s.box, own.String(), way{dial: dial, left: s.left})
	t.note(r, when)
	if r.Err == nil {
		t.as[smoke.Service.Name] = former
	}
	return r.Err
}

// dialFrom opens connections from a box, or from here where it forwards none.
func (s *hostStep) dialFrom(h *remote.Host) ftp.DialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := h.DialContext(ctx, network, address)
		if errors.Is(err, remote.ErrForwarding) {
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}
		return conn, err
	}
}

// note adds a proof to the transcript.
func (t *trial) note(r SmokeResult, when string) {
	t.transcript = append(t.transcript, fmt.Sprintf("== %s, %s the change, %s", time.Now().UTC().Format(time.RFC3339), when, r.Address))
	t.transcript = append(t.transcript, r.Report.Transcript...)
	if r.Err != nil {
		t.transcript = append(t.transcript, r.Err.Error())
	}
}

// proveDeployed proves a box whose services change after it: by the account that is
// deployed, and by those of the passive ports that the box forwards before and after.
// Where the server chooses another one, the login has to do: the smoke tests at the end
// of the run prove the rest. The error of the service as the blueprint has it
// stays where it is deployed so.
func (l *hostLook) proveDeployed(ctx context.Context, h *remote.Host, smoke *blueprints.Smoke, t *trial, asWanted error) error {
	if l.former == nil {
		return asWanted
	}
	former, err := l.former(ctx, smoke)
	if err != nil || former == nil {
		return asWanted
	}
	service := *former.Service
	service.PassiveFirst = max(service.PassiveFirst, smoke.Service.PassiveFirst)
	service.PassiveLast = min(service.PassiveLast, smoke.Service.PassiveLast)
	former.Service, former.EveryPort = &service, false
	own, _ := proxy.Direct(l.topology, l.box, smoke.Service)
	r := prove(ctx, former, l.box, own.String(), way{dial: l.dialFrom(h), left: l.left})
	t.note(r, afterChange)
	if errors.Is(r.Err, ftp.ErrAnnounced) {
		return nil
	}
	return r.Err
}

// What the cluster's part of a service is while a box is proven.
const (
	foreign = iota // not ours to know, or not known
	pending        // something of it is still to be changed
	rolling        // its pod is about to be as the blueprint says
	ready          // as the blueprint says
)

// serving tells which of these the cluster's part of a service is.
func (l *hostLook) serving(ctx context.Context, s *blueprints.Service) int {
	if l.cluster == nil {
		return foreign
	}
	step := l.cluster(s)
	if step == nil {
		return foreign
	}
	changes, err := step.Plan(ctx, plan.Present)
	switch {
	case err != nil:
		return foreign
	case len(changes) == 0:
		return ready
	case slices.ContainsFunc(changes, func(c plan.Change) bool { return c.Want == servingPod }):
		return rolling
	}
	return pending
}

// revert keeps the evidence and puts back what the box had. Whether what worked
// before works again is for Returned to find out: other steps may still have to be
// put back for that.
func (l *hostLook) revert(ctx context.Context, t *trial) error {
	if t.n == 0 {
		return nil // nothing was changed
	}
	entered := false
	err := l.enter(ctx, func(h *remote.Host) error {
		entered = true
		return l.goBack(ctx, h, t)
	})
	if !entered {
		err = fmt.Errorf("%w: it reverts by itself", err)
	}
	return err
}

func (l *hostLook) goBack(ctx context.Context, h *remote.Host, t *trial) error {
	evidence := l.evidence(ctx, h, t)
	if err := h.Revert(ctx, t.generation, t.n, l.spared...); err != nil {
		return errors.Join(err, evidence)
	}
	l.reverted = t
	if n := t.generation.Pending; n > 0 {
		return fmt.Errorf("generation %d was begun by a run that broke off: %s is as it was before that run, and not as this one found it", n, l.box.Name)
	}
	if !l.marked() {
		return h.RemoveAll(ctx, l.root+stateDir)
	}
	return nil
}

// Returned proves the boxes that were put back, when all else was too: what worked
// on them before works again.
func (l *Live) Returned(ctx context.Context) error {
	var looks []func(context.Context) error
	for _, s := range l.steps {
		if s.reverted != nil {
			looks = append(looks, s.returned)
		}
	}
	return together(ctx, looks)
}

func (s *hostStep) returned(ctx context.Context) error {
	for _, smoke := range s.proofs() {
		if !slices.Contains(s.reverted.proven, smoke.Service.Name) {
			continue
		}
		h, err := s.connect(ctx)
		if err == nil {
			err = s.again(ctx, h, smoke, s.reverted)
		}
		if err != nil {
			return fmt.Errorf("%s was put back, and what worked before does not: %w", s.box.Name, err)
		}
	}
	return nil
}

// again proves what worked before, after a revert or a reboot.
func (s *hostStep) again(ctx context.Context, h *remote.Host, smoke *blueprints.Smoke, t *trial) error {
	ctx, cancel := bounded(ctx, backTime, s.box.Name+" to serve as before")
	defer cancel()
	for {
		err := s.prove(ctx, h, smoke, t, backFrom)
		if err == nil || ctx.Err() != nil {
			return err
		}
		pauseFor(ctx, smokePause)
	}
}

// evidenceBound is how long the evidence may hold up the way back.
const evidenceBound = 10 * time.Second

// evidence keeps what tells why the change failed, before anything is put back.
func (l *hostLook) evidence(ctx context.Context, h *remote.Host, t *trial) error {
	if l.keep == nil {
		return nil
	}
	ctx, cancel := bounded(ctx, evidenceBound, "the evidence on "+l.box.Name)
	defer cancel()
	var files, checks, units []string
	for _, f := range l.files {
		files = append(files, l.root+f.Path)
		if r := l.file(f); r.Check != "" {
			checks = append(checks, "echo '== "+f.Path+"'; "+strings.ReplaceAll(r.Check, "{}", "'"+r.Path+"'")+" 2>&1 </dev/null; echo \"exit status $?\"")
		}
	}
	for _, d := range l.daemons() {
		units = append(units, d.Unit)
	}
	found, err := h.Look(ctx, files, checks, units)
	found = append(found, remote.Evidence{Name: "ftp-transcript.txt", Text: []byte(strings.Join(t.transcript, "\n") + "\n")})
	for _, e := range found {
		err = errors.Join(err, l.keep(l.box.Name+"/"+e.Name, e.Text))
	}
	return err
}
