package main

import (
	"context"
	"errors"

	"github.com/ftpdeploy/ftpdeploy/kube"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/steps"
	"github.com/ftpdeploy/ftpdeploy/vsphere"
)

// exitError is an error that has decided on the exit code.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// errShown is an error whose text the user has already seen.
var errShown = errors.New("")

// errPending says, with --detailed-exitcode, that changes are pending.
var errPending = &exitError{2, errShown}

// message is what remains to be said about err.
func message(err error) string {
	if err == nil || errors.Is(err, errShown) {
		return ""
	}
	return err.Error()
}

// unreachable are the errors of targets that cannot be reached, entered or trusted.
var unreachable = []error{
	vsphere.ErrUnreachable, vsphere.ErrUntrusted, vsphere.ErrLogin, vsphere.ErrHostKeys,
	remote.ErrUnreachable, remote.ErrHostKey, remote.ErrAuth, remote.ErrSudo,
	kube.ErrUnreachable, kube.ErrAuth, steps.ErrSilent,
}

// exitCode maps an error to the exit code that the help promises. Changed tells
// whether a target was changed in this run.
func exitCode(err error, changed bool) int {
	var decided *exitError
	var drift *plan.DriftError
	var left *plan.NotConvergedError
	var back *plan.RollbackError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &decided):
		return decided.code
	case errors.Is(err, plan.ErrStopped), errors.Is(err, context.Canceled):
		return 130
	case errors.As(err, &left):
		return 6
	case errors.As(err, &back) && !back.Complete():
		return 6
	case errors.As(err, &drift):
		return 4
	case back != nil:
		return 5
	case changed:
		return 6
	}
	for _, u := range unreachable {
		if errors.Is(err, u) {
			return 9
		}
	}
	return 1
}
