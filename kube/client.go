// Package kube reads, compares, applies and deletes a few kinds of Kubernetes
// objects and waits until they do their work. Objects are written by
// server-side apply with the field manager "ftpdeploy", and compared on exactly
// the fields that this manager owns.
package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

// FieldManager is the name under which the API server keeps the fields we own.
const FieldManager = "ftpdeploy"

// Bounds of single calls and of the tries that a call gets.
const (
	callTimeout = 30 * time.Second
	// How long a call that is safe to repeat is tried: at first, and once the server
	// has answered, when it will come back; a Lease that nobody renews lives longer.
	retryFor     = 8 * time.Second
	awayFor      = 45 * time.Second
	longestPause = 2 * time.Second
	poll         = 250 * time.Millisecond
)

var (
	// ErrUnreachable means that the API server did not answer, or that what
	// answered could not prove that it is the API server.
	ErrUnreachable = errors.New("cannot reach the Kubernetes API server")
	// ErrAuth means that the API server does not know who we are.
	ErrAuth = errors.New("the Kubernetes API server does not accept the credentials")
	// ErrForbidden means that the API server knows us and refuses the call: a right
	// is missing (see Check), or an admission rule stands against it.
	ErrForbidden = errors.New("refused by the Kubernetes API server")
	// ErrNotFound means that the object is certainly not there.
	ErrNotFound = errors.New("not found")
)

// Config says which cluster, and how to get there.
type Config struct {
	Kubeconfig string // a file or a KUBECONFIG list; "" = $KUBECONFIG, else ~/.kube/config, as kubectl does
	Context    string // "" = the current one
	UserAgent  string
	Dial       func(ctx context.Context, network, address string) (net.Conn, error) // nil = directly
	// Waiting is told what is waited for when the server cannot serve; nil = nobody asks.
	Waiting func(string)
}

// Client talks to one cluster. It may be used by several goroutines.
type Client struct {
	server   string
	context  string
	set      *kubernetes.Clientset
	objects  *dynamic.DynamicClient
	metadata metadata.Interface
	clock    *serverClock
	waiting  func(string)
	answered atomic.Bool // the server has served a call
}

// client-go logs to standard error by itself; what matters comes back as errors.
var silence = sync.OnceFunc(func() { klog.SetSlogLogger(slog.New(slog.DiscardHandler)) })

// Connect reads the kubeconfig. Nothing is sent before the first call.
func Connect(c Config) (*Client, error) {
	silence()
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.WarnIfAllMissing = false
	if c.Kubeconfig != "" {
		rules = &clientcmd.ClientConfigLoadingRules{Precedence: filepath.SplitList(c.Kubeconfig)}
	}
	raw, err := rules.Load()
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	files := strings.Join(rules.GetLoadingPrecedence(), ", ")
	if len(raw.Contexts) == 0 {
		return nil, fmt.Errorf("read kubeconfig: no context in %s: is the file there?", files)
	}
	name := c.Context
	if name == "" {
		name = raw.CurrentContext
	}
	if _, ok := raw.Contexts[name]; !ok {
		var names []string
		for n := range raw.Contexts {
			names = append(names, n)
		}
		slices.Sort(names)
		return nil, fmt.Errorf("read kubeconfig: no context %q in %s; contexts there: %s", name, files, strings.Join(names, ", "))
	}
	config, err := clientcmd.NewNonInteractiveClientConfig(*raw, name, nil, rules).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig, context %q: %w", name, err)
	}
	config.Timeout = callTimeout
	config.QPS = -1 // a run makes a few dozen calls
	config.UserAgent = c.UserAgent
	config.Dial = c.Dial
	config.WarningHandlerWithContext = collector{}

	clock := &serverClock{}
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		clock.next = next
		return clock
	})
	// One connection for all three.
	web, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("use kubeconfig, context %q: %w", name, err)
	}
	k := &Client{server: config.Host, context: name, clock: clock, waiting: c.Waiting}
	set, err1 := kubernetes.NewForConfigAndClient(config, web)
	objects, err2 := dynamic.NewForConfigAndClient(config, web)
	meta, err3 := metadata.NewForConfigAndClient(config, web)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, fmt.Errorf("use kubeconfig, context %q: %w", name, err)
	}
	k.set, k.objects, k.metadata = set, objects, meta
	return k, nil
}

// Server is the URL of the API server.
func (c *Client) Server() string { return c.server }

// Context is the name of the kubeconfig's context in use.
func (c *Client) Context() string { return c.context }

// Version asks the server for its version, as in "v1.26.13".
func (c *Client) Version(ctx context.Context) (string, error) {
	var info struct{ GitVersion string }
	err := c.try(ctx, "ask for the version", func(ctx context.Context) error {
		b, err := c.set.RESTClient().Get().AbsPath("/version").DoRaw(ctx)
		if err != nil {
			return err
		}
		return json.Unmarshal(b, &info)
	})
	return info.GitVersion, err
}

// try makes a call that changes nothing, or one that may be repeated (apply),
// and tries it again for a while when the server cannot serve just now.
func (c *Client) try(ctx context.Context, what string, call func(context.Context) error) error {
	bound := retryFor
	if c.answered.Load() {
		bound = awayFor
	}
	until := time.Now().Add(bound)
	pause := 100 * time.Millisecond
	var last error
	for {
		err := call(ctx)
		switch {
		case err == nil:
			c.answered.Store(true)
			return nil
		case ctx.Err() != nil && last != nil:
			return fmt.Errorf("%s: %w (last answer: %w)", what, context.Cause(ctx), last)
		case ctx.Err() != nil:
			return fmt.Errorf("%s: %w", what, context.Cause(ctx))
		case !transient(err) || time.Now().Add(pause).After(until):
			return c.explain(what, err)
		}
		if last == nil && c.waiting != nil {
			c.waiting(fmt.Sprintf("waiting for the Kubernetes API server at %s, at most %s: %v", c.server, bound, plain(err)))
		}
		last = err
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, longestPause)
	}
}

// transient tells whether the same call may succeed a moment later.
func transient(err error) bool {
	return apierrors.IsTooManyRequests(err) || apierrors.IsServerTimeout(err) || apierrors.IsServiceUnavailable(err) ||
		apierrors.IsInternalError(err) || apierrors.IsTimeout(err) ||
		utilnet.IsConnectionRefused(err) || utilnet.IsProbableEOF(err) || utilnet.IsHTTP2ConnectionLost(err) || utilnet.IsTimeout(err)
}

// plain is err without the URL and its query parameters.
func plain(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

// explain says what we were doing, and makes the errors that callers decide on.
func (c *Client) explain(what string, err error) error {
	var status apierrors.APIStatus
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded) && !timedOut(err):
		return fmt.Errorf("%s: %w", what, err)
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%s: %w: %w", what, ErrNotFound, err)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%s: %w: %w", what, ErrForbidden, err)
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("%s: %w (context %q at %s): %w", what, ErrAuth, c.context, c.server, err)
	case errors.As(err, &status):
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w at %s: %w", what, ErrUnreachable, c.server, plain(err))
}

// timedOut tells a call's own time limit from the end of the caller's context.
func timedOut(err error) bool {
	u, ok := errors.AsType[*url.Error](err)
	return ok && u.Timeout()
}

// warnings are what the API server says beside its answer; they travel in the
// context of the call that they belong to.
type warnings struct {
	mu    sync.Mutex
	texts []string
}

type warningsKey struct{}

// collect returns a context whose calls' warnings are kept in the second value.
func collect(ctx context.Context) (context.Context, *warnings) {
	w := &warnings{}
	return context.WithValue(ctx, warningsKey{}, w), w
}

// collector keeps warnings for those who asked for them; the rest are dropped.
type collector struct{}

func (collector) HandleWarningHeaderWithContext(ctx context.Context, _ int, _, text string) {
	w, ok := ctx.Value(warningsKey{}).(*warnings)
	if !ok {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Contains(w.texts, text) {
		w.texts = append(w.texts, text)
	}
}

var everything = metav1.ListOptions{}
