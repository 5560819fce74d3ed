package plan

import "fmt"

// Observer is told of what happens while a plan is made or applied. Observe may
// be called from several goroutines at the same time and must not block.
type Observer interface{ Observe(Event) }

// Event is one thing that happened.
type Event struct {
	Kind    EventKind
	Step    string
	Index   int      // of the step in the list
	Changes []Change // StepPlanned, StepStarted, StepSkipped
	Change  *Change  // Change...
	Text    string   // ChangeProgress: what is being waited for
	Err     error    // StepPlanned, StepSkipped, StepFailed, ChangeFailed, RollbackFailed
}

// EventKind says what happened.
type EventKind int

// The kinds of events.
const (
	StepPlanned EventKind = iota
	StepStarted
	StepDone
	StepFailed
	StepSkipped // not begun, because of another step's error or a request to stop
	ChangeStarted
	ChangeProgress
	ChangeDone
	ChangeFailed
	RollbackStarted // Changes: what the step has done
	RollbackDone    // the step's target is as it was
	RollbackFailed
)

func (k EventKind) String() string {
	names := []string{
		"step.planned", "step.started", "step.done", "step.failed", "step.skipped",
		"change.started", "change.progress", "change.done", "change.failed",
		"rollback.started", "rollback.done", "rollback.failed",
	}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("event(%d)", int(k))
}
