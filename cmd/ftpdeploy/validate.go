package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) validateCommand() *cobra.Command {
	return &cobra.Command{
		Use: "validate", Short: "Check the blueprint without touching any target",
		Example:     "  ftpdeploy validate\n  ftpdeploy validate -f prod.ftp.hcl --json",
		Annotations: map[string]string{"events": "yes"},
		RunE: func(*cobra.Command, []string) error {
			t, err := a.load()
			if err != nil {
				return err
			}
			a.emit(event{level: "info", data: note{}, msg: fmt.Sprintf("%s is valid: deployment %s, %d boxes, %d services.",
				a.file, t.ID, len(t.Boxes), len(t.Services))})
			return nil
		},
	}
}
