package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
)

// keeping returns what keeps evidence beside the records of the run, without the
// secrets of t.
func (a *app) keeping(t *blueprints.Topology) func(name string, text []byte) error {
	secrets := secretsOf(t)
	return func(name string, text []byte) error {
		if a.recorded == "" {
			return errors.New("keep " + name + ": this run is not recorded")
		}
		for _, s := range secrets {
			text = bytes.ReplaceAll(text, s, []byte("(sensitive)"))
		}
		file := filepath.Join(a.recorded, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return fmt.Errorf("keep %s: %w", name, err)
		}
		if err := os.WriteFile(file, text, 0o600); err != nil {
			return fmt.Errorf("keep %s: %w", name, err)
		}
		return nil
	}
}

// secretsOf are those of a blueprint, the longest first: one may be a part of another.
func secretsOf(t *blueprints.Topology) [][]byte {
	var secrets [][]byte
	add := func(s blueprints.Secret) {
		if len(s.Reveal()) >= 4 { // a shorter one is in every text
			secrets = append(secrets, []byte(s.Reveal()))
		}
	}
	login := func(s *blueprints.SSH) {
		for ; s != nil; s = s.Bastion {
			add(s.Password)
			add(s.BecomePassword)
		}
	}
	for _, b := range t.Boxes {
		login(b.SSH)
		if b.Created() {
			add(b.Site.VCenter.Password)
		}
	}
	for _, s := range t.Services {
		for _, u := range s.Users {
			add(u.Password)
		}
	}
	for _, s := range t.Smokes {
		login(s.From)
	}
	slices.SortFunc(secrets, func(a, b []byte) int { return len(b) - len(a) })
	return secrets
}
