package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/ftpdeploy/ftpdeploy/plan"
)

// Of the changes of one deployment the record says how long they take now: what
// failed, what is of another deployment and what is long ago does not count.
func TestTook(t *testing.T) {
	state := t.TempDir()
	a := &app{env: func(string) (string, bool) { return state, true }}
	if got := a.took("lab"); len(got) != 0 {
		t.Errorf("without a record: %v", got)
	}
	run := func(deployment string, ms int64, outcome string) {
		t.Helper()
		dir := filepath.Join(state, "ftpdeploy", "runs", uuid.Must(uuid.NewV7()).String())
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(filepath.Join(dir, "events.ndjson"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		emit := (&jsonStream{w: f, now: time.Now}).emit
		c := plan.Change{Action: plan.Update, Target: "Deployment ftp/vsftpd", Effect: plan.Rollout}
		emit(event{data: changeEvent(1, "kubernetes/vsftpd", c)})
		emit(event{data: planSummary{Deployment: deployment}})
		emit(event{data: action{phase: "end", Step: "kubernetes/vsftpd", Address: c.Target, ElapsedMS: ms, Outcome: outcome}})
		fmt.Fprint(f, `{"v":1,"type":"act`) // it was killed
	}
	run("lab", 90_000, "changed")
	for _, ms := range []int64{4000, 9000, 5000, 6000, 7000} {
		run("lab", ms, "changed")
		run("other", 60_000, "changed")
		run("lab", 50_000, "failed")
	}
	want := map[string]float64{"kubernetes/vsftpd update Deployment ftp/vsftpd rollout": 6}
	if got := a.took("lab"); !maps.Equal(got, want) {
		t.Errorf("took %v, want %v", got, want)
	}
}
