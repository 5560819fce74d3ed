package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/steps"
)

// planFormat is the version of a plan file's form. Another one is refused.
const planFormat = 1

// planFile is a plan as it is shown, and as it is kept in a file: everything that
// plan prints, and what apply holds it against.
type planFile struct {
	Format     int           `json:"format"`
	Ftpdeploy  string        `json:"ftpdeploy"` // version
	Made       time.Time     `json:"made"`
	Deployment string        `json:"deployment"`
	Blueprint  blueprintMark `json:"blueprint"`
	Scope      plan.Scope    `json:"scope"`
	Drain      string        `json:"drain,omitempty"` // --drain
	Allowed    []string      `json:"allowed,omitempty"`
	choices

	Head     string         `json:"head"` // what was looked at, in words
	Observed []observed     `json:"observed"`
	Scoped   []string       `json:"scoped,omitempty"` // what was not looked at, is kept, taken in or left out, in words
	Plan     *plan.Saved    `json:"plan"`
	Needs    []steps.Danger `json:"needs_allow,omitempty"`
	Impact   *plan.Impact   `json:"impact,omitempty"` // of all changes together
	Next     string         `json:"next,omitempty"`

	back *steps.Generation // that this goes back to; such a plan is in no file

	Digest string `json:"digest"`
	SHA256 string `json:"sha256"` // of all of this with "" here
}

// blueprintMark tells one blueprint from another.
type blueprintMark struct {
	File   string `json:"file"`
	Salt   string `json:"salt"`
	Digest string `json:"digest"`
}

// sum is what SHA256 should be.
func (f *planFile) sum() (string, error) {
	bare := *f
	bare.SHA256 = ""
	text, err := json.Marshal(bare)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", sha256.Sum256(text)), nil
}

// write puts f into a file that only its owner reads. An older one is replaced as
// a whole.
func (f *planFile) write(name string) (err error) {
	if f.SHA256, err = f.sum(); err != nil {
		return err
	}
	text, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), ".ftpdeploy-*") // with mode 0600
	if err != nil {
		return fmt.Errorf("write the plan: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(append(text, '\n'))
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("write the plan: %w", err)
	}
	return os.Rename(tmp.Name(), name)
}

// readPlan reads a file that write made. One of another form is refused; with
// run, one of another version of ftpdeploy too.
func readPlan(name string, run bool) (*planFile, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read the plan: %w", err)
	}
	var head struct {
		Format    int
		Ftpdeploy string
	}
	if err := json.Unmarshal(text, &head); err != nil || head.Format == 0 {
		return nil, fmt.Errorf("%s is no plan that ftpdeploy plan --out wrote", name)
	}
	if head.Format != planFormat || run && head.Ftpdeploy != version() {
		return nil, fmt.Errorf("%s was made by ftpdeploy %s (format %d), and this is ftpdeploy %s (format %d): use that version, or plan again with this one",
			name, head.Ftpdeploy, head.Format, version(), planFormat)
	}
	f := &planFile{}
	if err := json.Unmarshal(text, f); err != nil {
		return nil, fmt.Errorf("read the plan %s: %w", name, err)
	}
	sum, err := f.sum()
	if err != nil {
		return nil, err
	}
	if sum != f.SHA256 || f.Plan == nil || f.Plan.Digest() != f.Digest {
		return nil, fmt.Errorf("%s is not as ftpdeploy plan wrote it: it was edited or damaged; plan again", name)
	}
	return f, nil
}

// mark is that of the blueprint that was loaded; an empty salt is a new one.
func (a *app) mark(salt string) (blueprintMark, error) {
	if salt == "" {
		salt = rand.Text()
	}
	vars, err := a.variables()
	if err != nil {
		return blueprintMark{}, err
	}
	digest, err := a.sources.Digest([]byte(salt), vars)
	return blueprintMark{File: a.file, Salt: salt, Digest: digest}, err
}

// accept refuses a plan that was not made from this blueprint, or that the flags
// of this run are against.
func (d *deployment) accept(name string, f *planFile) error {
	if f.Deployment != d.topology.ID {
		return &exitError{1, fmt.Errorf("%s is a plan for deployment %q, and %s is %q", name, f.Deployment, d.file, d.topology.ID)}
	}
	now, err := d.mark(f.Blueprint.Salt)
	if err != nil {
		return err
	}
	if now.Digest != f.Blueprint.Digest {
		return &exitError{4, fmt.Errorf("%s was made from another blueprint: %s (there: %s), its variable files or --var are not what they were; nothing was changed. Plan again [FTP701]",
			name, d.file, f.Blueprint.File)}
	}
	return errors.Join(d.guard.check(), d.guard.within(f.Plan), d.guard.allows(f))
}

func (a *app) showCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show FILE", Short: "Print a saved plan exactly as plan printed it",
		Example:     "  ftpdeploy show prod.ftpplan\n  ftpdeploy show prod.ftpplan --json",
		Annotations: map[string]string{"events": "yes"},
		Args:        cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			f, err := readPlan(args[0], false)
			if err != nil {
				return err
			}
			a.present(f)
			a.suggest(f.Next)
			return nil
		},
	}
}

// present prints a plan in the order of its list.
func (a *app) present(f *planFile) {
	for _, o := range f.Observed {
		a.emit(event{level: "debug", data: o})
	}
	a.emit(event{level: "info", msg: f.Head + "\n", data: note{}})
	for i, line := range f.Scoped {
		if i == len(f.Scoped)-1 {
			line += "\n"
		}
		a.emit(event{level: "info", msg: line, data: note{}})
	}
	s := planSummary{Deployment: f.Deployment, Digest: f.Digest[:shownDigest], Needs: f.Needs, Impact: f.Impact}
	n := 0
	for _, step := range f.Plan.Steps {
		switch {
		case len(step.Left) > 0:
			s.LeftOut++
		case len(step.Changes) == 0:
			s.Unchanged++
		}
		for _, c := range step.Changes {
			n++
			a.emit(event{level: "info", msg: fmt.Sprintf("%s %s %s", c.Action, step.Name, c.Target), data: changeEvent(n, step.Name, c)})
			s.count(c.Action)
		}
	}
	a.emit(event{level: "info", msg: s.text(f, n), data: s})
}

// shownDigest is how much of a plan's digest people see.
const shownDigest = 6
