package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Of the records of runs these are kept: the newest so many, as far as they are
// not older than that.
const (
	keptRuns = 50
	keptFor  = 30 * 24 * time.Hour
)

// stateDir is where ftpdeploy keeps what should outlive a run
// (https://specifications.freedesktop.org/basedir-spec).
func (a *app) stateDir() (string, error) {
	if dir, _ := a.env("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "ftpdeploy"), nil
	}
	if home, _ := a.env("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, ".local", "state", "ftpdeploy"), nil
	}
	return "", errors.New("neither XDG_STATE_HOME nor HOME names a directory")
}

// record makes the run's directory, lets every event from now on be written
// there too, and clears away the oldest of the other runs.
func (a *app) record() error {
	dir := a.runDir
	if dir == "" {
		state, err := a.stateDir()
		if err != nil {
			return err
		}
		runs := filepath.Join(state, "runs")
		dir = filepath.Join(runs, a.runID)
		defer prune(runs, a.now())
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	file, err := os.OpenFile(filepath.Join(dir, "events.ndjson"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	a.recorded, a.events = dir, file
	show, keep := a.emit, (&jsonStream{w: file, run: a.runID, now: a.now}).emit
	a.emit = func(e event) {
		show(e)
		keep(e)
	}
	return nil
}

// prune removes the records of runs that are not to be kept. What else is in the
// directory is left alone; so is what cannot be removed, until the next run.
func prune(runs string, now time.Time) {
	entries, err := os.ReadDir(runs)
	if err != nil {
		return
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(b.Name(), a.Name()) }) // a run's id begins with its time
	n := 0
	for _, e := range entries {
		id, err := uuid.Parse(e.Name())
		if err != nil || id.Version() != 7 || !e.IsDir() || id.String() != e.Name() {
			continue
		}
		n++
		sec, nsec := id.Time().UnixTime()
		if n > keptRuns || now.Sub(time.Unix(sec, nsec)) > keptFor {
			_ = os.RemoveAll(filepath.Join(runs, e.Name()))
		}
	}
}
