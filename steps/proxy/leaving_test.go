package proxy

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
)

// A worker that leaves is kept for the data connections of its sessions, and only
// there, until a later change finds it unused.
func TestKeepLeaving(t *testing.T) {
	topology := production()
	group := topology.Groups[0]
	config := func(workers ...string) []byte {
		t.Helper()
		var nodes []netip.Addr
		for _, w := range workers {
			nodes = append(nodes, netip.MustParseAddr(w))
		}
		files, err := Files(topology, group, group.Boxes[0], map[*blueprints.Cluster][]netip.Addr{topology.Clusters[0]: nodes})
		if err != nil {
			t.Fatal(err)
		}
		return files[1].Content
	}
	always := func(string) bool { return true }
	never := func(string) bool { return false }
	three, two := config("10.20.0.21", "10.20.0.22", "10.20.0.23"), config("10.20.0.21", "10.20.0.22")

	left := KeepLeaving(three, two, never)
	const line = "    server 10.20.0.23 10.20.0.23:+11000 id 262167 weight 0 # has left: for the sessions that came through it\n"
	if strings.Count(string(left), "10.20.0.23") != 2 || !bytes.Contains(left, []byte(line)) || !HasLeft(left) || HasLeft(three) {
		t.Fatalf("want one line %q in:\n%s", line, left)
	}
	if got := bytes.ReplaceAll(left, []byte(line), nil); !bytes.Equal(got, two) {
		t.Errorf("more than the line differs:\n%s", got)
	}
	if got := KeepLeaving(left, two, always); !bytes.Equal(got, left) {
		t.Errorf("in use, and not kept as it was:\n%s", got)
	}
	if got := KeepLeaving(left, two, never); !bytes.Equal(got, two) {
		t.Errorf("not in use, and kept:\n%s", got)
	}
	if got := KeepLeaving(left, three, always); !bytes.Equal(got, three) {
		t.Errorf("it is a worker again, and stays as one that left:\n%s", got)
	}
	for name, before := range map[string][]byte{"nothing": nil, "someone else's": []byte("backend vsftpd_passive\n    server web 10.1.1.1:80 check\n")} {
		if got := KeepLeaving(before, two, always); !bytes.Equal(got, two) {
			t.Errorf("after %s:\n%s", name, got)
		}
	}
}
