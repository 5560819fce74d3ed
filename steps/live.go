package steps

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/kube"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/vsphere"
)

// Options say how the targets of a topology are reached.
type Options struct {
	Kubeconfig string   // instead of the blueprint's, "" = the blueprint's
	Context    string   // likewise
	DeleteData []string // names of volumes whose data goes although the blueprint keeps it
	SitesDown  []string // names of sites whose boxes are neither looked at nor changed; see CheckSitesDown
	Replace    []string // boxes that are made anew; see Replaced
	// Env answers for HOME, SSH_AUTH_SOCK and KUBECONFIG.
	Env     func(string) (string, bool)
	Drain   string // instead of rollout.drain: wait, deadline or cut; "" = the blueprint's
	Version string // of ftpdeploy, for the user agent
	// Waiting is told what a target is waited for that was there and is not just now;
	// nil = nobody asks.
	Waiting func(text string)
	// Keep keeps the evidence of a failure before anything is put back: name has
	// slashes, "haproxy-a/journal.txt". nil = nobody wants it.
	Keep func(name string, text []byte) error
	Run  Run // what a generation is said to be made by
	// Took tells how many seconds changes took in earlier runs, by ChangeKey: it makes
	// the forecast better, and nothing else rests on it. nil = nobody knows.
	Took func() map[string]float64
	// Blueprint is a digest of what the topology was loaded from, for the history.
	Blueprint func() (string, error)
	// Prove proves what the run has made so far, before it takes away for good what
	// the blueprint does not have any more. nil = nobody does.
	Prove func(ctx context.Context, report func(string)) error
}

// Live holds the connections of one run. Each is made when it is first needed,
// and made again when it broke. It may be used by several goroutines.
type Live struct {
	topology *blueprints.Topology
	options  Options
	vcenters map[*blueprints.VCenter]*connection[*vsphere.Client]
	hosts    map[*blueprints.Box]*connection[*remote.Host]
	clusters map[*blueprints.Cluster]*connection[*kube.Client]
	ways     map[*blueprints.SSH]*connection[*remote.Host] // to where smoke blocks are run from

	steps []*hostStep // of the last List
	notes []string    // likewise
	watch *Watch      // nil where nobody watches
	past  *Generation // that is gone back to; nil = the blueprint holds

	doomed map[*blueprints.Box]string // by box: the VM that goes, to be made anew
	left   litter

	mu       sync.Mutex
	observed []Observation
	drained  []Drained
}

// Observation is what looking at one target took.
type Observation struct {
	Address  string // as the blueprint has it: "vcenter.main", "lb.haproxy-a"
	Kind     string // vcenter, host, cluster
	Took     time.Duration
	Turns    int // network turns; 0 = not counted
	BytesIn  int64
	BytesOut int64
}

// connection is one that is made once for all who need it.
type connection[T any] struct {
	mu    sync.Mutex
	value T
	made  bool
	fresh bool // what it leads to was not there when it was first asked for
}

// get returns the connection, made by connect where there is none or where alive
// says that it broke.
func (c *connection[T]) get(ctx context.Context, alive func(T) bool, connect func(context.Context) (T, error)) (T, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.made && alive(c.value) {
		return c.value, nil
	}
	value, err := connect(ctx)
	if err != nil {
		var none T
		return none, err
	}
	c.value, c.made = value, true
	return value, nil
}

// Open prepares the connections of t. Nothing is reached yet.
func Open(t *blueprints.Topology, o Options) *Live {
	l := &Live{
		topology: t, options: o,
		vcenters: map[*blueprints.VCenter]*connection[*vsphere.Client]{},
		hosts:    map[*blueprints.Box]*connection[*remote.Host]{},
		clusters: map[*blueprints.Cluster]*connection[*kube.Client]{},
		ways:     map[*blueprints.SSH]*connection[*remote.Host]{},
	}
	for _, b := range t.Boxes {
		l.hosts[b] = &connection[*remote.Host]{}
		if b.Created() && !l.down(b) {
			l.vcenters[b.Site.VCenter] = &connection[*vsphere.Client]{}
		}
	}
	for _, c := range t.Clusters {
		l.clusters[c] = &connection[*kube.Client]{}
	}
	for _, s := range t.Smokes {
		if s.From != nil {
			l.ways[s.From] = &connection[*remote.Host]{}
		}
	}
	return l
}

// Close ends the connections that were made.
func (l *Live) Close(ctx context.Context) error {
	var errs []error
	for _, c := range slices.AppendSeq(slices.Collect(maps.Values(l.hosts)), maps.Values(l.ways)) {
		if c.made {
			errs = append(errs, c.value.Close())
		}
	}
	for _, c := range l.vcenters {
		if c.made {
			errs = append(errs, c.value.Close(ctx))
		}
	}
	return errors.Join(errs...)
}

// Observed tells what looking at the targets has taken so far.
func (l *Live) Observed() []Observation {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.observed
}

func (l *Live) note(o Observation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.observed = append(l.observed, o)
}

func (l *Live) vcenter(ctx context.Context, v *blueprints.VCenter) (*vsphere.Client, error) {
	always := func(*vsphere.Client) bool { return true } // it logs in again by itself
	return l.vcenters[v].get(ctx, always, func(ctx context.Context) (*vsphere.Client, error) {
		return vsphere.Connect(ctx, vsphere.Config{
			Server: v.Server, Username: v.Username, Password: v.Password.Reveal(), Datacenter: v.Datacenter,
			CAFile: v.CAFile, Thumbprint: v.Thumbprint, Insecure: v.Insecure, Waiting: l.waiting,
		})
	})
}

func (l *Live) cluster(ctx context.Context, c *blueprints.Cluster) (*kube.Client, error) {
	always := func(*kube.Client) bool { return true } // each of its calls stands alone
	return l.clusters[c].get(ctx, always, func(context.Context) (*kube.Client, error) {
		return kube.Connect(kube.Config{
			Kubeconfig: l.expand(cmp.Or(l.options.Kubeconfig, c.Kubeconfig)), Context: cmp.Or(l.options.Context, c.Context),
			UserAgent: "ftpdeploy/" + l.options.Version, Waiting: l.waiting,
		})
	})
}

// goingBound is how long a VM that is to be made anew may take to be entered: it may
// be lost.
const goingBound = 3 * time.Second

// going enters the VM that is to be made anew, while it is there, to see what its
// clients have open: nothing else is looked at there. The caller closes the connection.
func (l *Live) going(ctx context.Context, b *blueprints.Box) (*remote.Host, error) {
	if l.doomed[b] == "" {
		return nil, ErrAbsent
	}
	ctx, cancel := context.WithTimeout(ctx, goingBound)
	defer cancel()
	c, err := l.vcenter(ctx, b.Site.VCenter)
	if err != nil {
		return nil, err
	}
	vm, err := c.Find(ctx, l.topology.ID, b.Name)
	if err != nil {
		return nil, err
	}
	if vm.ID != l.doomed[b] || !vm.On || len(vm.HostKeys) == 0 {
		return nil, ErrAbsent
	}
	return remote.Dial(ctx, l.login(b, vm.HostKeys))
}

// bootBound is how long a machine that was not there, or that went away, has to
// take SSH connections.
const bootBound = 3 * time.Minute

// host enters a box. ErrAbsent says that there is no such machine to enter: it
// is not made yet, is off, or has not told who it is. A machine that came up, or
// broke the connection, in this run is given time to boot.
func (l *Live) host(ctx context.Context, b *blueprints.Box) (*remote.Host, error) {
	c := l.hosts[b]
	h, err := c.get(ctx, (*remote.Host).Alive, func(ctx context.Context) (*remote.Host, error) { return l.enter(ctx, b) })
	if errors.Is(err, ErrAbsent) {
		c.mu.Lock()
		c.fresh = true
		c.mu.Unlock()
	}
	return h, err
}

// enter makes the connection of host; the caller holds its lock.
func (l *Live) enter(ctx context.Context, b *blueprints.Box) (*remote.Host, error) {
	c, err := l.identify(ctx, b)
	if err != nil {
		return nil, err
	}
	if before := l.hosts[b]; !before.fresh && !before.made {
		h, err := remote.Dial(ctx, c)
		return h, advised(b, err)
	}
	bounded, cancel := context.WithTimeout(ctx, bootBound)
	defer cancel()
	for n := 0; ; n++ {
		h, err := remote.Dial(bounded, c)
		if err == nil || !errors.Is(err, remote.ErrUnreachable) {
			return h, advised(b, err)
		}
		if n == 0 {
			l.waiting(fmt.Sprintf("waiting for SSH of %s, at most %s: %v", b.Name, bootBound, err))
		}
		switch pauseFor(bounded, smokePause); {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case bounded.Err() != nil:
			return nil, advised(b, fmt.Errorf("wait %s for SSH of a machine that just came up: %w", bootBound, err))
		}
	}
}

// advised adds to the error of entering a machine that ftpdeploy made what can be
// done about it.
func advised(b *blueprints.Box, err error) error {
	switch {
	case !b.Created():
		return err
	case errors.Is(err, remote.ErrHostKey):
		return fmt.Errorf("%w. Nothing was sent to it. If its keys were changed on purpose, reboot it: "+
			"it then publishes them to vCenter, and the next plan says how to accept them", err)
	case errors.Is(err, remote.ErrUnreachable):
		return fmt.Errorf("%w. vCenter says that it is on: look at its console. "+
			"If it is lost: ftpdeploy apply --replace lb.%s makes it anew", err, b.Name)
	}
	return err
}

// identify says how a box is entered, and by which keys it proves who it is.
func (l *Live) identify(ctx context.Context, b *blueprints.Box) (remote.Config, error) {
	if !b.Created() {
		return l.login(b, nil), nil
	}
	c, err := l.vcenter(ctx, b.Site.VCenter)
	if err != nil {
		return remote.Config{}, err
	}
	vm, err := c.Find(ctx, l.topology.ID, b.Name)
	if errors.Is(err, vsphere.ErrNotFound) {
		return remote.Config{}, ErrAbsent
	}
	if err != nil {
		return remote.Config{}, err
	}
	if vm.ID == l.doomed[b] {
		return remote.Config{}, ErrAbsent
	}
	if !vm.On {
		return remote.Config{}, darkError("the machine is off")
	}
	if len(vm.HostKeys) == 0 {
		return remote.Config{}, darkError("the machine's SSH host keys are not pinned yet")
	}
	return l.login(b, vm.HostKeys), nil
}

func (l *Live) waiting(text string) {
	if l.options.Waiting != nil {
		l.options.Waiting(text)
	}
}

// login says how a box is entered; with keys nil, known_hosts vouches for it.
func (l *Live) login(b *blueprints.Box, keys []string) remote.Config {
	c := l.sshConfig(b.SSH, b.Address.String())
	c.Name, c.HostKeys, c.Lock = b.Name, keys, stateDir
	c.Waiting = func(text string) { l.waiting(b.Name + ": " + text) }
	if keys != nil {
		c.KnownHosts = ""
	}
	return c
}

func (l *Live) sshConfig(s *blueprints.SSH, address string) remote.Config {
	c := remote.Config{
		Address: net.JoinHostPort(address, strconv.Itoa(s.Port)), User: s.User,
		IdentityFile: l.expand(s.IdentityFile), Password: s.Password.Reveal(), KnownHosts: l.expand(s.KnownHosts),
		Become: s.Become == "sudo", BecomePassword: s.BecomePassword.Reveal(), ConnectTimeout: s.ConnectTimeout,
	}
	if s.Agent {
		c.AgentSocket, _ = l.options.Env("SSH_AUTH_SOCK")
	}
	if s.Bastion != nil {
		bastion := l.sshConfig(s.Bastion, s.Bastion.BastionAddress)
		bastion.Become = false
		c.Bastion = &bastion
	}
	return c
}

// expand puts the home directory in the place of "~/" in a file or a list of files.
func (l *Live) expand(paths string) string {
	home, _ := l.options.Env("HOME")
	list := filepath.SplitList(paths)
	for i, p := range list {
		if rest, ok := strings.CutPrefix(p, "~/"); ok {
			list[i] = filepath.Join(home, rest)
		}
	}
	return strings.Join(list, string(os.PathListSeparator))
}

// timed notes what look took of a target.
func (l *Live) timed(address, kind string, look func() (remote.Stats, error)) error {
	start := time.Now()
	stats, err := look()
	if err != nil {
		return fmt.Errorf("look at %s: %w", address, err)
	}
	l.note(Observation{
		Address: address, Kind: kind, Took: time.Since(start),
		Turns: int(stats.Turns), BytesIn: stats.BytesIn, BytesOut: stats.BytesOut,
	})
	return nil
}
