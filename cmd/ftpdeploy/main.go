// Command ftpdeploy deploys passive FTP for Kubernetes behind a pair of HAProxy
// machines: from one blueprint it plans, applies, proves and removes virtual
// machines, their configuration and the FTP server.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"os/user"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/steps"
)

func main() {
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, env: os.LookupEnv, now: time.Now, list: (*steps.Live).List, history: (*steps.Live).History}
	os.Exit(a.run(context.Background(), os.Args[1:]))
}

// app is one run of the command: its surroundings and its flags.
type app struct {
	stdin          *os.File
	stdout, stderr io.Writer
	env            func(string) (string, bool)
	now            func() time.Time
	list           func(*steps.Live, context.Context, plan.Goal) ([]plan.Step, error)
	history        func(*steps.Live, context.Context) ([]*steps.Generation, error)

	file       string
	vars       []string
	varFiles   []string
	output     string
	json       bool
	quiet      bool
	verbose    int
	color      string
	noInput    bool
	timeout    time.Duration
	parallel   int
	kubeconfig string
	context    string
	runDir     string
	drain      string

	onFailure     string
	confirmWithin time.Duration

	started    time.Time
	verb       string // the command, as others are told of it
	runID      string
	user, host string
	emit       func(event)
	view       *human        // nil when the output is JSON
	recorded   string        // directory of the run's records; "" = none
	events     *os.File      // in it
	stop       chan struct{} // closed when nothing more may begin
	stopping   sync.Once
	why        error        // that stop is closed; written before
	changed    int          // changes made so far
	forecast   *plan.Impact // of what is applied
	fact       *plan.Impact // what it did cost
	next       []string
	sources    *blueprints.Files // of the blueprint that was loaded
	deployment string            // its ID, "" = none was loaded
}

// run runs the command and returns its exit code.
func (a *app) run(ctx context.Context, args []string) int {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a.started = a.now()
	a.stop = make(chan struct{})
	a.emit = (&human{out: a.stdout, err: a.stderr, now: a.now}).emit // until the flags are known
	root := a.command()
	root.SetArgs(longFlags(args))
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	defer a.signals(cancel)()

	cmd, err := root.ExecuteContextC(ctx)
	err = a.stoppedBy(err)
	code := exitCode(err, a.changed > 0)
	if cmd.Annotations["events"] == "" && err == nil {
		return code
	}
	if by, ok := errors.AsType[*interruption](a.halted()); ok && err != nil {
		code = by.code
	}
	a.end(code, err)
	return code
}

// end says how the run ended: the error last, with what to do next.
func (a *app) end(code int, err error) {
	if text := message(err); text != "" {
		a.emit(event{level: "error", msg: "Error: " + text, data: note{}})
	}
	outcome := map[int]string{0: "ok", 2: "changes", 5: "rolled_back"}[code]
	if outcome == "" {
		outcome = "failed"
		if a.changed > 0 {
			outcome = "partial"
		}
	}
	if code != 0 && a.recorded != "" {
		a.emit(event{level: "info", msg: "kept    " + a.recorded + " has all that was said", data: progress{}})
	}
	a.emit(event{level: "info", data: runEnd{
		Exit: code, Outcome: outcome, Changed: a.changed, MS: a.now().Sub(a.started).Milliseconds(), Deployment: a.deployment, RunDir: a.recorded, Next: a.next,
		Forecast: a.forecast, Fact: a.fact,
	}})
	if a.events != nil {
		_ = a.events.Close() // every event was written when it happened
	}
}

// signals makes the first SIGINT, SIGTERM or SIGHUP stop the run at the next safe
// point and the second one stop it now. It returns what ends that.
func (a *app) signals(cancel context.CancelCauseFunc) func() {
	ch := make(chan os.Signal, 2)
	signal.Notify(ch, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	// Else a reader of the output that goes away would end the run in the middle of a change.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	over := make(chan struct{})
	go func() {
		for n := 0; ; n++ {
			var why *interruption
			select {
			case <-over:
				return
			case s := <-ch:
				why = &interruption{code: 143}
				if s == os.Interrupt {
					why.code = 130
				}
			}
			switch n {
			case 0:
				a.emit(event{level: "warn", msg: "Stopping at the next safe point. Interrupt again to stop now.", data: note{}})
				a.halt(why)
			case 1:
				a.emit(event{level: "warn", msg: "Stopping now.", data: note{}})
				cancel(why)
			}
		}
	}()
	return func() { signal.Stop(ch); close(over) }
}

// interruption is why a run stops that was sent a signal; code is its exit code.
type interruption struct{ code int }

func (i *interruption) Error() string { return "interrupted" }

// halt lets nothing more begin; the first reason counts.
func (a *app) halt(why error) {
	a.stopping.Do(func() {
		a.why = why
		close(a.stop)
	})
}

// halted is why nothing more may begin, nil while it may.
func (a *app) halted() error {
	select {
	case <-a.stop:
		return a.why
	default:
		return nil
	}
}

// cancelOnStop gives a context for work that changes nothing: there, the first
// interrupt ends it at once.
func (a *app) cancelOnStop(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-a.stop:
			cancel(a.why)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// longFlags accepts the single-dash spellings that Terraform's users type.
func longFlags(args []string) []string {
	out := make([]string, len(args))
	for i, s := range args {
		name, _, _ := strings.Cut(s, "=")
		switch name {
		case "-var", "-var-file", "-json", "-detailed-exitcode", "-out", "-destroy":
			s = "-" + s
		}
		out[i] = s
	}
	return out
}

const longHelp = `ftpdeploy deploys passive FTP for Kubernetes behind a pair of HAProxy machines.

One blueprint (*.ftp.hcl) says what should exist: two virtual machines with HAProxy and a
keepalived VIP, explicit NodePorts, and vsftpd behind them. ftpdeploy plans, applies, proves
and removes it. It keeps no state file: what it owns bears its mark.

Exit codes:
  0    done (plan, drift --detailed-exitcode: nothing to change)
  1    error before any change
  2    with --detailed-exitcode: changes are pending, or there is drift
  3    blueprint or variable invalid
  4    the world or the blueprint changed since the plan; stopped at a safe point
  5    apply or its smoke test failed; all was rolled back, and looked at again
  6    apply failed part-way, or the result differs from the plan: a human is needed
  7    verify, doctor or drill found a fault
  8    locked by another run; nothing was changed
  9    cannot reach or log in to a target, or it is not the one that is trusted
  64   usage
  130  interrupted by Ctrl-C (143 by SIGTERM or SIGHUP); the summary says what is done`

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use: "ftpdeploy", Short: "Passive FTP for Kubernetes behind a pair of HAProxy machines", Long: longHelp,
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRunE: a.prepare,
		Args:              cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			text := fmt.Sprintf("unknown command %q", args[0])
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				text += "; did you mean " + strings.Join(near, " or ") + "?"
			}
			return &exitError{64, errors.New(text)}
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &exitError{64, err} })
	f := root.PersistentFlags()
	f.StringVarP(&a.file, "file", "f", "", "blueprint `file` or directory (default: the single *.ftp.hcl here)")
	f.StringArrayVar(&a.vars, "var", nil, "set a variable: `name=value` (refused for sensitive ones)")
	f.StringArrayVar(&a.varFiles, "var-file", nil, "read variables from a `file`")
	f.StringVarP(&a.output, "output", "o", "text", "output `format`: text, plain or json")
	f.BoolVar(&a.json, "json", false, "same as --output json: one event a line on stdout")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "no progress on stderr")
	f.CountVarP(&a.verbose, "verbose", "v", "say more; twice: still more")
	f.StringVar(&a.color, "color", "auto", "`when` to colour: auto, always or never")
	f.BoolVar(&a.noInput, "no-input", false, "never ask")
	f.DurationVar(&a.timeout, "timeout", time.Hour, "`bound` on each of looking, changing and proving")
	f.IntVar(&a.parallel, "parallel", 8, "steps at the same time, at most `N`")
	f.StringVar(&a.kubeconfig, "kubeconfig", "", "kubeconfig `file` instead of the blueprint's")
	f.StringVar(&a.context, "context", "", "kubeconfig context `name` instead of the blueprint's")
	f.StringVar(&a.runDir, "run-dir", "", "`directory` for the records of this apply or destroy (default: one a run, under the state directory)")
	for _, c := range []*cobra.Command{
		a.validateCommand(), a.fmtCommand(), a.renderCommand(), a.planCommand(), a.showCommand(), a.applyCommand(),
		a.destroyCommand(), a.adoptCommand(), a.verifyCommand(), a.doctorCommand(), a.statusCommand(), a.driftCommand(), a.historyCommand(), a.diffCommand(), a.rollbackCommand(),
		a.drainCommand(), a.resumeCommand(), a.drillCommand(), a.versionCommand(),
	} {
		if c.Args == nil {
			c.Args = cobra.NoArgs
		}
		c.Args = usage(c.Args)
		root.AddCommand(c)
	}
	return root
}

// prepare reads FTPDEPLOY_* for the flags that were not given and chooses how
// to speak.
func (a *app) prepare(cmd *cobra.Command, _ []string) error {
	var bad error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		name := "FTPDEPLOY_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if v, _ := a.env(name); v != "" && !f.Changed && bad == nil {
			if err := cmd.Flags().Set(f.Name, v); err != nil {
				bad = fmt.Errorf("%s=%q: %w", name, v, err)
			}
		}
	})
	if bad != nil {
		return &exitError{64, bad}
	}
	if a.json {
		a.output = "json"
	}
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("make a run id: %w", err)
	}
	a.runID, a.verb = id.String(), strings.TrimPrefix(cmd.CommandPath(), "ftpdeploy ")
	ci, _ := a.env("CI")
	if ci == "true" {
		a.noInput = true
		if a.output == "text" {
			a.output = "plain"
		}
	}
	switch a.output {
	case "text", "plain":
		a.view = &human{out: a.stdout, err: a.stderr, quiet: a.quiet, now: a.now}
		if f, ok := a.stderr.(*os.File); ok && a.output == "text" && term.IsTerminal(int(f.Fd())) {
			a.view.live = !a.envIs("TERM", "dumb")
			a.view.width, _, _ = term.GetSize(int(f.Fd()))
		}
		color, err := a.wantColor()
		if err != nil {
			return err
		}
		a.view.color = color
		a.emit = a.view.emit
	case "json":
		a.emit = (&jsonStream{w: a.stdout, run: a.runID, now: a.now}).emit
	default:
		return &exitError{64, fmt.Errorf("--output %s: want text, plain or json", a.output)}
	}
	if cmd.Annotations["events"] != "" {
		a.begin(cmd.Annotations["changes"] != "")
	}
	return nil
}

// usage makes the error of an argument that is not wanted one of usage.
func usage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return &exitError{64, err}
		}
		return nil
	}
}

// begin says who runs what. A run that changes something is recorded.
func (a *app) begin(changes bool) {
	a.host, _ = os.Hostname()
	if u, err := user.Current(); err == nil {
		a.user = u.Username
	}
	var unrecorded error
	if changes {
		unrecorded = a.record()
	}
	a.emit(event{level: "info", data: runStart{Command: a.verb, Version: version(), Blueprint: a.file, User: a.user, Host: a.host}})
	if unrecorded != nil {
		a.emit(event{level: "warn", msg: "This run is not recorded: " + unrecorded.Error(), data: note{}})
	}
}

func (a *app) envIs(name, value string) bool {
	v, _ := a.env(name)
	return v == value
}

// wantColor follows --color, NO_COLOR (https://no-color.org), CLICOLOR_FORCE and TERM.
func (a *app) wantColor() (bool, error) {
	switch a.color {
	case "always":
		return true, nil
	case "never":
		return false, nil
	case "auto":
	default:
		return false, &exitError{64, fmt.Errorf("--color %s: want auto, always or never", a.color)}
	}
	if v, _ := a.env("NO_COLOR"); v != "" || a.output == "plain" || a.envIs("TERM", "dumb") {
		return false, nil
	}
	if v, _ := a.env("CLICOLOR_FORCE"); v != "" && v != "0" {
		return true, nil
	}
	f, ok := a.stdout.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())), nil
}

// variables are those that --var gives.
func (a *app) variables() (map[string]string, error) {
	vars := map[string]string{}
	for _, v := range a.vars {
		name, value, ok := strings.Cut(v, "=")
		if !ok {
			return nil, &exitError{64, fmt.Errorf("--var %s: want name=value", name)}
		}
		vars[name] = value
	}
	return vars, nil
}

// load loads the blueprint and prints what is wrong with it.
func (a *app) load() (*blueprints.Topology, error) {
	if a.file == "" {
		found, err := blueprints.Find(".")
		if err != nil {
			return nil, &exitError{3, err}
		}
		a.file = found
	}
	vars, err := a.variables()
	if err != nil {
		return nil, err
	}
	t, files, diags := blueprints.Load(a.file, blueprints.Options{
		Vars: vars, VarFiles: a.varFiles, Env: a.env, Version: version(), OnFailure: a.onFailure, ConfirmWithin: a.confirmWithin,
	})
	a.sources = files
	if t != nil {
		a.deployment = t.ID
	}
	for i, d := range diags {
		e := diagnostic{Severity: "error", Code: blueprints.Code(d), Summary: d.Summary, Detail: d.Detail}
		level := "error"
		if !diags[i : i+1].HasErrors() {
			e.Severity, level = "warning", "warn"
		}
		if r := d.Subject; r != nil {
			e.Range = &textRange{
				r.Filename, position{r.Start.Line, r.Start.Column, r.Start.Byte}, position{r.End.Line, r.End.Column, r.End.Byte},
			}
		}
		a.emit(event{level: level, msg: d.Summary, data: e})
	}
	if a.view != nil && len(diags) > 0 {
		if err := files.Write(a.stderr, diags, max(a.view.width, 78), a.view.color); err != nil {
			return nil, fmt.Errorf("print diagnostics: %w", err)
		}
	}
	if diags.HasErrors() {
		return nil, &exitError{3, errShown}
	}
	return t, nil
}

// confirm asks a yes-or-no question. Without a terminal, or with --no-input, it
// says how to answer in advance.
func (a *app) confirm(question string) error {
	if a.noInput || a.view == nil || !term.IsTerminal(int(a.stdin.Fd())) {
		return &exitError{1, errors.New("there is nobody to ask; say --yes to go ahead without a question")}
	}
	fmt.Fprint(a.stderr, question+" Only \"yes\" is taken as a yes: ")
	answers := make(chan string, 1)
	go func() {
		var answer string
		_, _ = fmt.Fscanln(a.stdin, &answer) // an error is no yes
		answers <- answer
	}()
	select {
	case <-a.stop:
	case answer := <-answers:
		if answer == "yes" && a.halted() == nil {
			return nil
		}
	}
	return &exitError{1, errors.New("not confirmed; nothing was changed")}
}
