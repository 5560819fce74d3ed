package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// causes is the whole of what a change of a plan may do to the world: what must be
// seen of it, once each, and what may be. Nothing else may. $1 and so on are the
// groups of target, DIR(x) is the directory of x.
var causes = []struct {
	target, effect string // of the change; "" = any effect
	must, may      []string
}{
	{
		target: `(\S+):generation`,
		must: []string{
			"$1 job ftpdeploy-revert.timer start", "$1 directory /var/lib/ftpdeploy/generations", "$1 file /var/lib/ftpdeploy/generation", "$1 directory /var/lib/ftpdeploy",
			"$1 directory /run/systemd/transient",
		},
		may: []string{"$1 KEPT"},
	},
	{target: `(\S+):history`, must: []string{"$1 directory /var/lib/ftpdeploy/history"}, may: []string{"$1 GENERATION", "$1 directory /var/lib/ftpdeploy"}},
	{target: `(\S+):proof`, must: []string{"$1 job ftpdeploy-revert.timer stop"}},
	{target: `(\S+):smoke`},
	// The file that keeps a box away is gone again at the end.
	{target: `(\S+):(?:drain|resume)`, must: []string{"$1 directory /var/lib/ftpdeploy"}, may: []string{"$1 job keepalived.service restart"}},
	{target: `(\S+):serves`},
	{target: `(\S+):(/\S+)`, must: []string{"$1 file $2", "$1 directory DIR($2)"}},
	{target: `(\S+):sysctl (\S+)`, must: []string{"$1 setting $2"}},
	{
		target: `(\S+):haproxy.service`, effect: "reload",
		must: []string{"$1 job haproxy.service reload", "$1 file /var/lib/ftpdeploy/loaded-haproxy", "$1 file /run/haproxy.pid", "$1 file /run/haproxy-master.sock"},
		may:  []string{"$1 directory /run/systemd/journal/streams", "$1 directory /var/lib/haproxy", "$1 directory /run/haproxy"},
	},
	{
		target: `(\S+):keepalived.service`, effect: "reload",
		must: []string{"$1 job keepalived.service reload", "$1 file /var/lib/ftpdeploy/loaded-keepalived"},
		may:  []string{"$1 directory /run/systemd/journal/streams"},
	},
	{target: `(haproxy-[ab])`, effect: "none", must: []string{"vcenter: ReconfigVM_Task $1"}},
	{
		target: `(haproxy-[ab])`, effect: "reboot",
		must: []string{"vcenter: ShutdownGuest $1", "vcenter: ReconfigVM_Task $1", "vcenter: PowerOnVM_Task $1", "$1 boot"},
	},
	{target: `(\S+):rules`, must: []string{"vcenter: ReconfigureComputeResource_Task $1"}},
	{target: `image \S+`, must: []string{"kubernetes: patch deployments ftp/vsftpd.image", "kubernetes: delete deployments ftp/vsftpd.image"}},
	{target: `Namespace (\S+)`, must: []string{"kubernetes: patch namespaces $1"}},
	{target: `Secret (\S+)`, must: []string{"kubernetes: VERB secrets $1"}},
	{target: `PersistentVolumeClaim (\S+)`, must: []string{"kubernetes: VERB persistentvolumeclaims $1"}},
	{target: `Deployment (\S+)`, must: []string{"kubernetes: VERB deployments $1"}},
	{target: `Service (\S+)`, must: []string{"kubernetes: VERB services $1"}},
}

// theLock is what a run with changes does for its lock.
var theLock = []string{"kubernetes: create leases default", "kubernetes: delete leases default/ftpdeploy-lab"}

const lockRenewal = "kubernetes: update leases default/ftpdeploy-lab"

var afterBoot = regexp.MustCompile(`^\S+ (job|file /run/|directory /run/)`)

var directoryOf = regexp.MustCompile(`DIR\((\S+)\)`)

// caused tells what changes must and may do.
func caused(t *testing.T, changes []change) (must, may map[string]bool) {
	t.Helper()
	must, may = map[string]bool{}, map[string]bool{}
	for _, c := range changes {
		known := false
		for _, cause := range causes {
			target := regexp.MustCompile("^" + cause.target + "$")
			at := target.FindStringSubmatchIndex(c.Target)
			if at == nil || cause.effect != "" && cause.effect != c.Effect {
				continue
			}
			known = true
			verb := "patch"
			if c.Action == "delete" {
				verb = "delete"
			}
			fill := func(into map[string]bool, texts []string) {
				for _, text := range texts {
					text = string(target.ExpandString(nil, strings.ReplaceAll(text, "VERB", verb), c.Target, at))
					text = directoryOf.ReplaceAllStringFunc(text, func(d string) string { return path.Dir(directoryOf.FindStringSubmatch(d)[1]) })
					into[text] = true
				}
			}
			fill(must, cause.must)
			fill(may, cause.may)
			break
		}
		if !known {
			t.Errorf("nobody has said what this change may do: %+v", c)
		}
	}
	for what := range must { // a boot begins /run and the services anew, whatever was there
		if box, _, _ := strings.Cut(what, " "); must[box+" boot"] && afterBoot.MatchString(what) {
			delete(must, what)
		}
	}
	if len(changes) > 0 {
		for _, text := range theLock {
			must[text] = true
		}
		may[lockRenewal] = true
	}
	return must, may
}

var (
	keptFile   = regexp.MustCompile(`^(\S+) (?:file|directory) /var/lib/ftpdeploy/generations/\d+(?:/\S+)?$`)
	generation = regexp.MustCompile(`^(\S+) file /var/lib/ftpdeploy/history/\d+-\w+-\w+$`)
)

// account holds what was seen against what changes may do, and says what is too
// much and what is missing.
func account(t *testing.T, changes []change, seen []string) (extra, missing []string) {
	t.Helper()
	must, may := caused(t, changes)
	times := count(seen)
	for what, n := range times {
		kept := generation.ReplaceAllString(keptFile.ReplaceAllString(what, "$1 KEPT"), "$1 GENERATION")
		switch {
		case may[what], may[kept], must[what] && (n == 1 || what == lockRenewal):
		case must[what]:
			extra = append(extra, fmt.Sprintf("%s, %d times", what, n))
		default:
			extra = append(extra, what)
		}
	}
	for what := range must {
		if times[what] == 0 {
			missing = append(missing, what)
		}
	}
	slices.Sort(extra)
	slices.Sort(missing)
	return extra, missing
}

// movesVIP names the edits that may move the VIP without a forecast of it.
var movesVIP = regexp.MustCompile(`VIP|priority|preempt|virtual_router|advert_interval|CPUs|memory|as shipped`)

// anyDanger allows what a random edit may ask for.
const anyDanger = "vip-change,both-boxes,remove-box,delete-data,shrink-range"

// walk is a number of random edits one after the other, from the blueprint that is
// shipped and back to it.
type walk struct {
	dir                             string
	last                            sight // what the step before left; its look is the next one's too
	runs, changes, mutations, moves int
	empty                           int // edits that change nothing in the world
	extra, missing                  int
	slowest                         time.Duration
}

// step has the lab made as d says, by a saved plan, and accounts for it.
func (w *walk) step(t *testing.T, d draft, what string) {
	t.Helper()
	file, saved := filepath.Join(w.dir, "edited.ftp.hcl"), filepath.Join(w.dir, "p.ftpplan")
	if err := os.WriteFile(file, []byte(d.text(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	before := w.last
	w.last = sight{} // until this step has gone well
	if before.boxes == nil {
		before = see(t)
	}
	changes := planned(t, "-f", file, "--out", saved)
	holdsNoSecret(t, saved)
	r := deploy(t, "apply", "-f", file, saved, "--allow", anyDanger, "--json")
	if strings.Contains(d.text(t), "preempt = true") {
		settled(t)
	}
	if r.code != 0 {
		t.Fatalf("%s: apply ends with %d\n%s\n%s", what, r.code, r.stderr, tail(r.stdout))
	}
	deploy(t, "plan", "-f", file, "--detailed-exitcode").exits(t, 0)
	after := see(t)
	w.last = after
	seen := after.mutations(t, before)
	extra, missing := account(t, changes, seen)
	if extra != nil || missing != nil {
		t.Errorf("%s: the plan was %v\n  extra:   %s\n  missing: %s", what, targets(changes), strings.Join(extra, "\n           "), strings.Join(missing, "\n           "))
	}
	w.runs++
	w.changes += len(changes)
	w.mutations += len(seen)
	w.extra += len(extra)
	w.missing += len(missing)
	w.slowest = max(w.slowest, r.took)
	if len(changes) == 0 {
		w.empty++
	}
	if after.moved(before) {
		w.moves++
		ends := eventsOf[struct{ Forecast *impact }](t, r.stdout, "run.end")
		if foretold := len(ends) == 1 && ends[0].Forecast != nil && ends[0].Forecast.VIPMoves > 0; !foretold && !movesVIP.MatchString(what) {
			t.Errorf("%s: the VIP moved, which was not foretold", what)
		}
	}
	t.Logf("%s: %d changes, %d mutations, %.1f s", what, len(changes), len(seen), r.took.Seconds())
}

// settled waits until the VIP has stayed where it is for longer than a box takes that
// preempts another one.
func settled(t *testing.T) {
	t.Helper()
	var before string
	var since time.Time
	within(t, time.Minute, "the VIP stays on one box", func() bool {
		if now := shell(t, boxA, "ip -br -4 addr") + shell(t, boxB, "ip -br -4 addr"); now != before {
			before, since = now, time.Now()
		}
		return time.Since(since) > 5*time.Second
	})
}

func targets(changes []change) []string {
	var all []string
	for _, c := range changes {
		all = append(all, c.Target+" ("+c.Action+")")
	}
	return all
}

// seed is where the random choices of a test begin: FTPDEPLOY_SEED, or a fixed one.
func seed(t *testing.T) uint64 {
	t.Helper()
	text := os.Getenv("FTPDEPLOY_SEED")
	if text == "" {
		return 1
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("FTPDEPLOY_SEED: %v", err)
	}
	return n
}

// accuracy makes random edits of the blueprint and holds that what each apply does
// to the world is what its plan says, no more and no less. A walk that went wrong
// is run again alone by its seed.
func accuracy(t *testing.T) {
	w := walk{dir: t.TempDir()}
	turned := map[string]int{}
	for i := range times(1, 25) {
		s := seed(t) + uint64(i)
		t.Run(fmt.Sprintf("FTPDEPLOY_SEED=%d", s), func(t *testing.T) {
			r := rand.New(rand.NewPCG(s, 0))
			d := draft{}
			w.step(t, d, "as shipped")
			for n := range times(4, 8) {
				next, what := d.edit(r)
				for name, at := range next {
					if at != d[name] {
						turned[name]++
					}
				}
				d = next
				w.step(t, d, fmt.Sprintf("edit %d (%s)", n+1, what))
			}
		})
	}
	deploy(t, "apply", "--yes", "--allow", anyDanger).must(t)
	t.Logf("%d saved plans applied, %d of them empty: %d changes made %d mutations; extra %d, missing %d; the VIP moved in %d; slowest apply %.1f s; turned: %v",
		w.runs, w.empty, w.changes, w.mutations, w.extra, w.missing, w.moves, w.slowest.Seconds(), turned)
}
