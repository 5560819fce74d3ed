package plan

import "time"

// Cause says what makes a change needed, for machines; Change.Reason says it in
// words.
type Cause struct {
	Kind   CauseKind `json:"kind"`
	Source []Source  `json:"source,omitempty"` // ByBlueprint: the values that lead to the change; never empty
	By     string    `json:"by,omitempty"`     // ByDrift: who made it so, "" where the target does not know
	How    string    `json:"how,omitempty"`    // ByDrift: what tells so: "the file's owner", "field manager", "vCenter's VmReconfiguredEvent"
	At     time.Time `json:"at,omitzero"`      // ByDrift: when, likewise
}

// CauseKind is the kind of a cause.
type CauseKind string

// The kinds of causes.
const (
	ByBlueprint  CauseKind = "blueprint"  // the blueprint asks for something else than was made from it
	ByDrift      CauseKind = "drift"      // the target was changed by others
	ByRollback   CauseKind = "rollback"   // a generation that is gone back to had it otherwise
	ByDependency CauseKind = "dependency" // another change of the plan makes this one needed
)

// Source is a place in the blueprint.
type Source struct {
	Address string   `json:"address"` // of the attribute or block: "lb_group.ftp.haproxy.timeouts.client"
	File    string   `json:"file"`    // "" for a topology that was not loaded from a file
	Start   Position `json:"start"`
	End     Position `json:"end"`
}

// Position is one in a file: lines and columns count from 1, bytes from 0.
type Position struct {
	Line int `json:"line"`
	Col  int `json:"col"`
	Byte int `json:"byte"`
}
