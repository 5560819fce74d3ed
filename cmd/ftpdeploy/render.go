package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/ftpdeploy/ftpdeploy/steps"
)

func (a *app) renderCommand() *cobra.Command {
	var to string
	c := &cobra.Command{
		Use: "render --to DIR", Short: "Write the exact files that apply would put on the targets",
		Example:     "  ftpdeploy render --to out",
		Annotations: map[string]string{"events": "yes"},
		RunE: func(*cobra.Command, []string) error {
			if to == "" {
				return &exitError{64, errors.New("--to is required: the directory to write to")}
			}
			t, err := a.load()
			if err != nil {
				return err
			}
			files, err := steps.Render(t)
			if err != nil {
				return err
			}
			for _, f := range files {
				path := filepath.Join(to, filepath.FromSlash(f.Name))
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					return err
				}
				if err := os.WriteFile(path, f.Content, 0o644); err != nil {
					return err
				}
				a.emit(event{level: "info", msg: fmt.Sprintf("%s  %d bytes", path, len(f.Content)), data: note{}})
			}
			return nil
		},
	}
	c.Flags().StringVar(&to, "to", "", "`directory` to write to; it is made if it is not there")
	return c
}
