package e2e

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// paths is how many passive ports, boxes and workers make.
const paths = passives * 2 * 3

// pathMatrix proves every path, blocks a single one at a worker for one of the
// boxes, and looks which cell is red.
func pathMatrix(t *testing.T) {
	report := filepath.Join(t.TempDir(), "ftp.prom")
	before := writes(t)
	r := deploy(t, "verify", "--matrix", "--report", "prometheus="+report).must(t).says(t, "66 of 66 paths proven", "11/11")
	for _, line := range strings.Split(r.stdout, "\n") {
		if strings.Contains(line, "paths proven") {
			t.Log(line)
		}
	}
	if n := strings.Count(shell(t, "jump", "cat "+report), "\nftpdeploy_path_ok{"); n != paths {
		t.Errorf("the report has %d paths, want %d", n, paths)
	}
	if after := writes(t); len(after) != len(before) {
		t.Errorf("verify wrote: %v", after[len(before):])
	}

	const rule = "PREROUTING -t raw -p tcp -s 198.51.100.11 --dport 32104 -j DROP"
	shell(t, "worker-2", "iptables -I "+rule)
	defer shell(t, "worker-2", "iptables -D "+rule)
	wrong := blockedPath(t)
	if wrong != nil { // a machine that stalled for the two seconds of a step makes cells red
		t.Logf("looked at again: %v", wrong)
		wrong = blockedPath(t)
	}
	if wrong != nil {
		t.Error(wrong)
	}
}

// blockedPath is nil if one path is told as blocked, in time, and no other.
func blockedPath(t *testing.T) error {
	t.Helper()
	start := time.Now()
	var wrong []error
	for _, c := range matrix(t, 7) {
		red := c.Box == boxA && c.Worker == "198.51.100.22"
		switch {
		case red && (len(c.OK) != passives-1 || len(c.Failed) != 1 || c.Failed[0].Port != 21104):
			wrong = append(wrong, fmt.Errorf("the blocked path is told as %+v", c))
		case !red && (len(c.OK) != passives || len(c.Failed) > 0 || c.Error != ""):
			wrong = append(wrong, fmt.Errorf("red without a fault: %+v", c))
		}
		if c.MS > 5000 {
			wrong = append(wrong, fmt.Errorf("a cell took %d ms", c.MS))
		}
	}
	t.Logf("with a blocked path: %.1f s with the smoke tests", time.Since(start).Seconds())
	return errors.Join(wrong...)
}

// cell is a matrix.cell event.
type cell struct {
	Box, Worker, Error string
	OK                 []int `json:"ports"`
	Failed             []struct{ Port int }
	MS                 int64
}

// matrix returns what verify --matrix finds.
func matrix(t *testing.T, code int) []cell {
	t.Helper()
	r := deploy(t, "verify", "--matrix", "--json").exits(t, code)
	cells := eventsOf[cell](t, r.stdout, "matrix.cell")
	if len(cells) != 6 {
		t.Fatalf("%d cells, want 6", len(cells))
	}
	return cells
}
