package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/aymanbagabas/go-udiff"
	"github.com/spf13/cobra"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
)

func (a *app) fmtCommand() *cobra.Command {
	var check, diff bool
	c := &cobra.Command{
		Use: "fmt", Short: "Put blueprints into their canonical form",
		Example: "  ftpdeploy fmt\n  ftpdeploy fmt --check --diff",
		RunE: func(*cobra.Command, []string) error {
			files, err := a.formatted()
			if err != nil {
				return &exitError{1, err}
			}
			pending := false
			for _, name := range files {
				changed, err := a.format(name, check, diff)
				if err != nil {
					return &exitError{1, err}
				}
				pending = pending || changed
			}
			if check && pending {
				return &exitError{1, errors.New("not formatted; run: ftpdeploy fmt")}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&check, "check", false, "write nothing; exit 1 when a file is not formatted")
	c.Flags().BoolVar(&diff, "diff", false, "print what changes")
	return c
}

// formatted lists the files that fmt works on.
func (a *app) formatted() ([]string, error) {
	path := a.file
	if path == "" {
		path = "."
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	files, err := filepath.Glob(filepath.Join(path, "*.hcl"))
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("no *.hcl file in %s", path)
	}
	return files, err
}

// format formats one file and tells whether that changes it.
func (a *app) format(name string, check, diff bool) (bool, error) {
	src, err := os.ReadFile(name)
	if err != nil {
		return false, err
	}
	out := blueprints.Format(src)
	if bytes.Equal(src, out) {
		return false, nil
	}
	if diff {
		fmt.Fprint(a.stdout, udiff.Unified(name, name+" (formatted)", string(src), string(out)))
	} else {
		fmt.Fprintln(a.stdout, name)
	}
	if check {
		return true, nil
	}
	info, err := os.Stat(name)
	if err != nil {
		return true, err
	}
	return true, replaceFile(name, out, info.Mode().Perm())
}

// replaceFile puts content in the place of a file, whole or not at all: who reads it
// meanwhile sees the one or the other.
func replaceFile(name string, content []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // gone already when all went well
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return fmt.Errorf("write %s: %w", f.Name(), err)
	}
	return os.Rename(f.Name(), name)
}
