package main

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/steps"
	"github.com/ftpdeploy/ftpdeploy/steps/doctor"
)

// event is one thing that the command has to say. Its data is one of the types
// below; the human view and the JSON stream are two renderings of it.
type event struct {
	level string // debug, info, warn, error
	msg   string // the human line, without secrets
	data  any
}

// The data of events. Field names are those of the JSON stream, version 1:
// fields are only ever added.
type (
	runStart struct {
		Command   string `json:"command"`
		Version   string `json:"version"`
		Blueprint string `json:"blueprint,omitempty"`
		User      string `json:"user"`
		Host      string `json:"host"`
	}
	diagnostic struct {
		Severity string     `json:"severity"`
		Code     string     `json:"code,omitempty"`
		Summary  string     `json:"summary"`
		Detail   string     `json:"detail,omitempty"`
		Range    *textRange `json:"range,omitempty"`
	}
	textRange struct {
		File  string   `json:"file"`
		Start position `json:"start"`
		End   position `json:"end"`
	}
	position struct {
		Line int `json:"line"`
		Col  int `json:"col"`
		Byte int `json:"byte"`
	}
	observed struct {
		Address  string `json:"address"`
		Kind     string `json:"kind"`
		MS       int64  `json:"ms"`
		Turns    int    `json:"turns"`
		BytesIn  int64  `json:"bytes_in"`
		BytesOut int64  `json:"bytes_out"`
	}
	planChange struct {
		ID      string      `json:"id"`
		Address string      `json:"address"`
		Target  string      `json:"target"`
		Action  string      `json:"action"`
		Diff    []fieldDiff `json:"diff,omitempty"`
		Unified string      `json:"unified,omitempty"`
		Reason  reason      `json:"reason"`
		Effect  string      `json:"effect"`
		Impact  plan.Impact `json:"impact"`
		Needs   []string    `json:"needs_allow,omitempty"`
		From    string      `json:"from"`
		Want    string      `json:"want"`
		sign    string
	}
	reason struct {
		plan.Cause
		Text string `json:"text"`
	}
	fieldDiff struct {
		Path   string `json:"path"`
		Before string `json:"before"`
		After  string `json:"after"`
	}
	planSummary struct {
		Add       int    `json:"add"`
		Change    int    `json:"change"`
		Destroy   int    `json:"destroy"`
		Run       int    `json:"run"`
		Unchanged int    `json:"unchanged"`          // steps with nothing to do
		LeftOut   int    `json:"left_out,omitempty"` // steps with changes that --only or --skip left out
		Digest    string `json:"digest"`

		Deployment string `json:"deployment"`

		Impact *plan.Impact `json:"impact,omitempty"` // of all of it

		Needs []steps.Danger `json:"needs_allow,omitempty"`
	}
	action struct {
		phase     string // start, progress, end: the last word of the type
		sign      string
		ID        string `json:"id,omitempty"`
		Address   string `json:"address"`
		Step      string `json:"step,omitempty"`
		ElapsedMS int64  `json:"elapsed_ms"`
		Outcome   string `json:"outcome,omitempty"` // changed, failed, skipped
		Cause     string `json:"cause,omitempty"`
	}
	rollback struct {
		phase     string // start, end: the last word of the type
		Address   string `json:"address"` // the step
		ElapsedMS int64  `json:"elapsed_ms"`
		Outcome   string `json:"outcome,omitempty"` // done, failed
		Cause     string `json:"cause,omitempty"`
	}
	stepEnd struct {
		Step    string `json:"step"`
		Outcome string `json:"outcome"` // changed, failed, skipped
		index   int    // in the list of steps
	}
	lockState struct {
		State  string     `json:"state"` // acquired, waiting, taken_over, released
		Holder lockHolder `json:"holder"`
		TTLS   int        `json:"ttl_s"` // how long a lock in the cluster outlives its last renewal
	}
	lockHolder struct {
		Who     string `json:"who"`
		Command string `json:"command"`
		Since   string `json:"since,omitempty"`
		Expires string `json:"expires,omitempty"`
		Run     string `json:"run,omitempty"`
	}
	smokeCheck struct {
		Smoke string `json:"smoke"`
		Name  string `json:"name"`
		Box   string `json:"box,omitempty"`
		OK    bool   `json:"ok"`
		MS    int64  `json:"ms"`
		Bytes int64  `json:"bytes,omitempty"`
		Port  int    `json:"port,omitempty"`
		Text  string `json:"text,omitempty"`
	}
	drained struct {
		Box      string   `json:"box"`
		VIPs     []string `json:"vips"`
		WaitedMS int64    `json:"waited_ms"`
		Cut      int      `json:"cut"`               // sessions
		Clients  []string `json:"clients,omitempty"` // whose sessions or transfers were cut
	}
	output struct {
		Name      string `json:"name"`
		Value     string `json:"value"`
		Sensitive bool   `json:"sensitive"`
	}
	generation struct {
		Number    int      `json:"number"`
		Made      string   `json:"made"`
		Who       string   `json:"who"`
		Command   string   `json:"command"`
		RunID     string   `json:"made_by_run"`
		Ftpdeploy string   `json:"ftpdeploy"`
		Blueprint string   `json:"blueprint"` // digest
		Back      int      `json:"rollback_to,omitempty"`
		Differs   []string `json:"differs"` // names of what differs from the one before
		Current   bool     `json:"current"` // the newest
	}
	difference struct {
		Name    string `json:"name"`
		Unified string `json:"unified"`
	}
	diagnosis struct {
		doctor.Verdict
		Primary bool `json:"primary"` // what clients meet first
	}
	note     struct{} // a result in words
	progress struct{} // no result: people see it on stderr while it is true
	runEnd   struct {
		Exit    int    `json:"exit"`
		Outcome string `json:"outcome"` // ok, no_changes, changes, rolled_back, failed, partial
		Changed int    `json:"changed"`
		MS      int64  `json:"ms"`

		// What the changes were expected to cost, and what they did; neither where
		// nothing was applied, and no fact where it could not be measured.
		Forecast *plan.Impact `json:"forecast,omitempty"`
		Fact     *plan.Impact `json:"actual,omitempty"`

		Deployment string `json:"deployment,omitempty"` // "" where no blueprint was loaded

		RunDir string   `json:"run_dir,omitempty"`
		Next   []string `json:"next,omitempty"`
	}
)

func (e event) kind() string {
	switch d := e.data.(type) {
	case runStart:
		return "run.start"
	case diagnostic:
		return "diagnostic"
	case observed:
		return "observe.target"
	case planChange:
		return "plan.change"
	case planSummary:
		return "plan.summary"
	case action:
		return "action." + d.phase
	case rollback:
		return "rollback." + d.phase
	case stepEnd:
		return "step.end"
	case lockState:
		return "lock"
	case smokeCheck:
		return "smoke.check"
	case matrixCell:
		return "matrix.cell"
	case drained:
		return "drain"
	case output:
		return "output"
	case generation:
		return "generation"
	case difference:
		return "diff"
	case drillEvent:
		return "drill"
	case driftEvent:
		return "drift"
	case vipStatus:
		return "status.vip"
	case boxStatus:
		return "status.box"
	case clusterStatus:
		return "status.cluster"
	case serviceStatus:
		return "status.service"
	case lastRun:
		return "status.run"
	case diagnosis:
		return "diagnosis"
	case note:
		return "note"
	case progress:
		return "progress"
	case runEnd:
		return "run.end"
	}
	panic(fmt.Sprintf("event of type %T", e.data))
}

// jsonStream writes events as NDJSON: one object a line, seq without gaps.
type jsonStream struct {
	w   io.Writer
	run string
	now func() time.Time

	mu  sync.Mutex
	seq int
}

func (s *jsonStream) emit(e event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	head := struct {
		V     int    `json:"v"`
		Seq   int    `json:"seq"`
		TS    string `json:"ts"`
		Run   string `json:"run"`
		Type  string `json:"type"`
		Level string `json:"level"`
		Msg   string `json:"msg"`
	}{1, s.seq, s.now().UTC().Format("2006-01-02T15:04:05.000Z"), s.run, e.kind(), e.level, e.msg}
	line := join(head, e.data)
	_, _ = s.w.Write(append(line, '\n')) // a reader that went away is no reason to stop half-way
}

// join encodes two structs as one object, the fields of a first.
func join(a, b any) []byte {
	head, err := json.Marshal(a)
	if err != nil {
		panic(err)
	}
	tail, err := json.Marshal(b)
	if err != nil {
		panic(err)
	}
	if len(tail) > len("{}") {
		head = append(head[:len(head)-1], ',')
		head = append(head, tail[1:]...)
	}
	return head
}
