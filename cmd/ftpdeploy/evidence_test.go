package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
)

func TestEvidenceHoldsNoSecret(t *testing.T) {
	const canary, longer = "canary-secret", "canary-secret-and-more"
	top := &blueprints.Topology{
		Boxes:    []*blueprints.Box{{SSH: &blueprints.SSH{BecomePassword: blueprints.NewSecret(canary)}}},
		Services: []*blueprints.Service{{Users: []*blueprints.User{{Password: blueprints.NewSecret(longer)}}}},
	}
	a := &app{}
	keep := a.keeping(top)
	if err := keep("haproxy-a/journal.txt", nil); err == nil {
		t.Error("kept without a place")
	}
	a.recorded = t.TempDir()
	if err := keep("haproxy-a/journal.txt", []byte("x "+longer+" y "+canary+" z\n")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(a.recorded, "haproxy-a", "journal.txt")
	if text, err := os.ReadFile(file); err != nil || string(text) != "x (sensitive) y (sensitive) z\n" {
		t.Errorf("kept %q, %v", text, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}
