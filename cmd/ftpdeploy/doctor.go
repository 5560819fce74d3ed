package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ftpdeploy/ftpdeploy/steps/doctor"
)

// ftpPasswordEnv holds the password for doctor --address.
const ftpPasswordEnv = "FTPDEPLOY_FTP_PASSWORD"

func (a *app) doctorCommand() *cobra.Command {
	var address, user, passwordFile string
	var wishes choices
	c := &cobra.Command{
		Use: "doctor", Short: "Find why a client fails, and say what to do",
		Long: `Look at everything that a client's transfer goes through, from all sides, and name the first hop
that fails: its cause, whether that is certain or only likely, what was seen, and the fix. It
changes nothing, on no target, and takes 20 s at most. Exit code 7 when a fault is found.

With --address it looks at any FTP service from outside, whoever owns it, and needs no blueprint.
The password then comes from the variable ` + ftpPasswordEnv + ` or from --password-file; without
--user the login is anonymous, or the first user of the blueprint that --file names.`,
		Example: "  ftpdeploy doctor\n  ftpdeploy doctor --json\n" +
			"  " + ftpPasswordEnv + "=... ftpdeploy doctor --address 203.0.113.20 --user partner",
		Annotations: map[string]string{"events": "yes"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			start := a.now()
			if address == "" {
				if user != "" || passwordFile != "" {
					return &exitError{64, errors.New("--user and --password-file go with --address: else the blueprint has them")}
				}
				return a.reading(cmd.Context(), wishes, func(ctx context.Context, d *deployment) error {
					for _, line := range d.live.LeftOut() {
						d.emit(event{level: "warn", msg: line, data: note{}})
					}
					d.emit(event{level: "info", msg: "Looking at " + d.targets() + " …", data: progress{}})
					found := d.live.Doctor(ctx)
					if ctx.Err() != nil {
						return context.Cause(ctx)
					}
					return d.pronounce(found, d.topology.ID, "clients are served, and every hop between them and the server is as it should be", start)
				})
			}
			at, err := a.outside(address, user, passwordFile)
			if err != nil {
				return err
			}
			ctx, cancel := a.cancelOnStop(cmd.Context())
			defer cancel()
			a.emit(event{level: "info", msg: "Looking at " + address + " …", data: progress{}})
			seen := at.Look(ctx)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if a.verbose > 0 {
				a.emit(event{level: "info", msg: strings.Join(seen.Sight.Transcript, "\n"), data: note{}})
			}
			return a.pronounce(doctor.Judge(seen), address, "login and listings work, in both passive modes", start)
		},
	}
	c.Flags().StringVar(&address, "address", "", "look from outside at the FTP service at `IP[:PORT]`, whoever owns it")
	c.Flags().StringVar(&user, "user", "", "log in there as `NAME`")
	c.Flags().StringVar(&passwordFile, "password-file", "", "read the password for --address from the first line of `FILE`; - is standard input")
	wishes.flagSitesDown(c.Flags())
	return c
}

// outside is the service that --address and the flags with it name.
func (a *app) outside(address, user, passwordFile string) (doctor.Address, error) {
	at := doctor.Address{Host: strings.Trim(address, "[]"), Port: 21, User: user}
	if host, port, err := net.SplitHostPort(address); err == nil {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return at, &exitError{64, fmt.Errorf("--address %s: %q is no port", address, port)}
		}
		at.Host, at.Port = host, int(n)
	}
	if user == "" && a.file != "" {
		t, err := a.load()
		if err != nil {
			return at, err
		}
		if len(t.Services) > 0 {
			u := t.Services[0].Users[0]
			at.User, at.Password = u.Name, u.Password.Reveal()
		}
		return at, nil
	}
	at.User = cmp.Or(user, "anonymous")
	at.Password, _ = a.env(ftpPasswordEnv)
	if user == "" {
		at.Password = "ftpdeploy@" // RFC 1635 asks for an address; no one reads it
	}
	if passwordFile == "" {
		return at, nil
	}
	in := a.stdin
	if passwordFile != "-" {
		f, err := os.Open(passwordFile)
		if err != nil {
			return at, &exitError{1, fmt.Errorf("read the password: %w", err)}
		}
		defer f.Close()
		in = f
	}
	line := bufio.NewScanner(in)
	line.Scan()
	if err := line.Err(); err != nil {
		return at, &exitError{1, fmt.Errorf("read the password: %w", err)}
	}
	at.Password = line.Text()
	return at, nil
}

// pronounce shows verdicts, the primary one first.
func (a *app) pronounce(found []doctor.Verdict, what, healthy string, start time.Time) error {
	took := a.now().Sub(start).Seconds()
	if len(found) == 0 {
		a.emit(event{level: "info", msg: fmt.Sprintf("Healthy: %s: %s (%.1f s)", what, healthy, took), data: note{}})
		return nil
	}
	for i, v := range found {
		var text strings.Builder
		head := "Cause"
		if i > 0 {
			head = "\nAlso"
		}
		fmt.Fprintf(&text, "%s (%s): %s [%s]\n", head, v.Confidence, v.Text, v.ID)
		for _, line := range v.Evidence {
			fmt.Fprintf(&text, "  %s\n", strings.ReplaceAll(strings.TrimSpace(line), "\n", "\n  "))
		}
		fmt.Fprintf(&text, "Fix: %s", v.Fix)
		a.emit(event{level: "error", msg: text.String(), data: diagnosis{v, i == 0}})
	}
	a.emit(event{level: "info", msg: fmt.Sprintf("\n%s: %s, found in %.1f s", what, count(len(found), "fault", "faults"), took), data: note{}})
	return &exitError{7, errShown}
}
