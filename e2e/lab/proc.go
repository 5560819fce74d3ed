package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// run runs a command to its end. Its error holds what the command said.
func run(ctx context.Context, argv ...string) error {
	return runCmd(exec.CommandContext(ctx, argv[0], argv[1:]...))
}

// output runs a command to its end and returns its standard output.
func output(ctx context.Context, argv ...string) ([]byte, error) {
	var stdout bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout = &stdout
	err := runCmd(cmd)
	return stdout.Bytes(), err
}

// runCmd runs cmd. What it writes to standard error, and to standard output
// where the caller does not take that, is part of the error.
func runCmd(cmd *exec.Cmd) error {
	var said bytes.Buffer
	cmd.Stderr = &said
	if cmd.Stdout == nil {
		cmd.Stdout = &said
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(said.Bytes()))
	}
	return nil
}

// wait calls try every interval until it returns nil. It gives up when limit
// has passed or ctx ends, and then says what it waited for and what try said last.
func wait(ctx context.Context, what string, limit, interval time.Duration, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not within %s", limit))
	defer cancel()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var last error
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil { // one that the end of the wait made says nothing
			last = err
		}
		if stop := (permanent{}); errors.As(err, &stop) {
			return fmt.Errorf("wait for %s: %w", what, stop.error)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w: %w", what, context.Cause(ctx), last)
		case <-tick.C:
		}
	}
}

// permanent marks an error that waiting longer does not cure.
type permanent struct{ error }
