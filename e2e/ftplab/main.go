// Command ftplab runs the lab: everything that ftpdeploy talks to, on one machine.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/ftpdeploy/ftpdeploy/e2e/lab"
)

const usage = `usage: ftplab COMMAND

  up                     start the lab; one that is up is left as it is
  down                   end it; nothing is left but the cache
  status                 list its hosts and their services
  env                    print what is set on jump, for a shell to read
  exec HOST -- COMMAND   run a command on a host: jump, client, cp, worker-1, haproxy-a, ...
  fault FAULT ...        make or mend a fault; alone it lists them
  writes                 list what vCenter and the cluster were made to change
  build-kubernetes       build what the lab's nodes run and print its path (no root)

The lab lives in $FTPLAB_DIR, by default ` + defaultDir + `, and keeps what it
makes once in ${XDG_CACHE_HOME:-~/.cache}/ftpdeploy. FTPLAB_KUBERNETES is the
cluster's version, by default ` + defaultKubernetes + `.
`

const (
	defaultDir        = "/run/ftplab"
	defaultKubernetes = "1.26"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	code, err := command(ctx, os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "ftplab:", err)
		code = cmp.Or(code, 1)
	}
	os.Exit(code)
}

// exitUsage is the exit code for a command line that makes no sense (sysexits.h).
const exitUsage = 64

func command(ctx context.Context, args []string) (int, error) {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return exitUsage, nil
	}
	config, err := config()
	if err != nil {
		return 1, err
	}
	switch name, rest := args[0], args[1:]; name {
	case "up":
		return 0, up(ctx, config)
	case "down":
		return 0, lab.Down(ctx, config.Dir)
	case "status":
		return 0, status(ctx, config.Dir)
	case "env":
		environment, err := lab.Environment(ctx, config.Dir)
		for _, e := range environment {
			name, value, _ := strings.Cut(e, "=")
			fmt.Fprintf(os.Stdout, "export %s='%s'\n", name, strings.ReplaceAll(value, "'", `'\''`))
		}
		return 0, err
	case "exec":
		if len(rest) < 3 || rest[1] != "--" {
			fmt.Fprintln(os.Stderr, "usage: ftplab exec HOST -- COMMAND")
			return exitUsage, nil
		}
		return lab.Exec(ctx, config.Dir, rest[0], environment(), rest[2:])
	case "fault":
		if len(rest) == 0 {
			fmt.Fprint(os.Stdout, lab.FaultUsage())
			return 0, nil
		}
		return 0, lab.Fault(ctx, config.Dir, rest)
	case "writes":
		writes, err := lab.Writes(ctx, config.Dir)
		for _, w := range writes {
			fmt.Fprintln(os.Stdout, w)
		}
		return 0, err
	case "build-kubernetes":
		binary, err := lab.BuildKubernetes(ctx, config)
		if err == nil {
			fmt.Fprintln(os.Stdout, binary)
		}
		return 0, err

	// What the lab starts itself as: see lab/sandbox.go.
	case "sandbox":
		return 0, lab.Sandbox(ctx, rest[0])
	case "daemon":
		return 0, lab.Run(ctx, rest[0], config.Say)
	case "host":
		return 0, lab.RunHost(os.Stdin, os.Stdout)
	}
	fmt.Fprint(os.Stderr, usage)
	return exitUsage, nil
}

// config reads the environment. Progress is told on standard error, with the
// seconds since the start.
func config() (lab.Config, error) {
	cache := os.Getenv("XDG_CACHE_HOME")
	if cache == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return lab.Config{}, errors.New("set HOME or XDG_CACHE_HOME: the lab keeps what it makes once in a cache")
		}
		cache = filepath.Join(home, ".cache")
	}
	dir, err := filepath.Abs(cmp.Or(os.Getenv("FTPLAB_DIR"), defaultDir))
	if err != nil {
		return lab.Config{}, err
	}
	start := time.Now()
	return lab.Config{
		Dir:        dir,
		Cache:      filepath.Join(cache, "ftpdeploy"),
		Kubernetes: cmp.Or(os.Getenv("FTPLAB_KUBERNETES"), defaultKubernetes),
		Say:        func(line string) { fmt.Fprintf(os.Stderr, "%6.1f s  %s\n", time.Since(start).Seconds(), line) },
	}, nil
}

// environment is what a command on a host gets besides the host's own: what
// says how to show things, where programs are, and ftpdeploy's own settings.
func environment() []string {
	path := os.Getenv("PATH") + ":/usr/local/sbin:/usr/sbin:/sbin"
	if program, err := os.Executable(); err == nil {
		path += ":" + filepath.Dir(program) // ftpdeploy is built beside it
	}
	os.Setenv("PATH", path) // the command itself is looked for there too
	keep := []string{"PATH=" + path}
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		switch {
		case name == "TERM", name == "NO_COLOR", name == "CLICOLOR_FORCE", name == "CI", name == "TZ", name == "GOCOVERDIR",
			name == "LANG", strings.HasPrefix(name, "LC_"), strings.HasPrefix(name, "FTPDEPLOY_"):
			keep = append(keep, e)
		}
	}
	return keep
}

func up(ctx context.Context, config lab.Config) error {
	fresh, err := lab.Up(ctx, config)
	if err != nil {
		return err
	}
	if fresh {
		config.Say("the lab is up: ftplab exec jump -- ftpdeploy plan")
	} else {
		config.Say("the lab was up already")
	}
	return nil
}

func status(ctx context.Context, dir string) error {
	hosts, err := lab.Status(ctx, dir)
	if err != nil {
		return err
	}
	columns := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	for _, h := range hosts {
		fmt.Fprintf(columns, "%s\t%s\t%s\t%s\t%s\n", h.Name, h.Kind, h.State, strings.Join(h.Addresses, " "), strings.Join(h.Services, " "))
	}
	return columns.Flush()
}
