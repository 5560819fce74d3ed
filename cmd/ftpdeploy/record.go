package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/ftpdeploy/ftpdeploy/steps"
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

// Of earlier runs the newest so many are read for how long changes took, and of each
// change the newest so many times count.
const (
	timedRuns    = 20
	timedChanges = 5
)

// took reads from the records of earlier runs how many seconds each change of a
// deployment took, by steps.ChangeKey: the median. What cannot be read is passed over, as
// only the forecast knows of it.
func (a *app) took(deployment string) map[string]float64 {
	state, err := a.stateDir()
	if err != nil {
		return nil
	}
	runs := filepath.Join(state, "runs")
	entries, err := os.ReadDir(runs)
	if err != nil {
		return nil
	}
	times := map[string][]float64{}
	for _, e := range slices.Backward(entries[max(0, len(entries)-timedRuns):]) { // a run's id begins with its time
		for key, seconds := range timed(filepath.Join(runs, e.Name(), "events.ndjson"), deployment) {
			if len(times[key]) < timedChanges {
				times[key] = append(times[key], seconds)
			}
		}
	}
	median := map[string]float64{}
	for key, all := range times {
		slices.Sort(all)
		median[key] = all[len(all)/2]
	}
	return median
}

// timed reads from the record of one run how long the changes took that it made, if
// they were of that deployment.
func timed(events, deployment string) map[string]float64 {
	f, err := os.Open(events)
	if err != nil {
		return nil
	}
	defer f.Close()
	keys, took := map[string]string{}, map[string]float64{}
	for in := json.NewDecoder(f); ; {
		var e struct {
			Type, Address, Target, Step, Action, Effect, Outcome, Deployment string

			ElapsedMS int64 `json:"elapsed_ms"`
		}
		if in.Decode(&e) != nil {
			return took
		}
		switch {
		case e.Type == "plan.summary" && e.Deployment != deployment:
			return nil
		case e.Type == "plan.change": // the address is the step
			keys[e.Address+" "+e.Target] = steps.ChangeKey(e.Address, e.Target, e.Action, e.Effect)
		case e.Type == "action.end" && e.Outcome == "changed": // the address is the target
			if key := keys[e.Step+" "+e.Address]; key != "" {
				took[key] = float64(e.ElapsedMS) / 1000
			}
		}
	}
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
