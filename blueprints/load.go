package blueprints

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/dynblock"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
)

const (
	suffix        = ".ftp.hcl"
	autoVarSuffix = ".auto.ftpvars.hcl"
)

// Options are what a blueprint may take from outside its own files. A variable's value comes
// from Vars, else VarFiles (the last one wins), else the environment's FTPDEPLOY_VAR_NAME, else the
// *.auto.ftpvars.hcl files beside the blueprint, else its default.
type Options struct {
	Vars     map[string]string           // --var NAME=VALUE; refused for sensitive variables
	VarFiles []string                    // --var-file, in their order
	Env      func(string) (string, bool) // the environment, as os.LookupEnv; nil is an empty one
	Version  string                      // of this program, for required_version; one that is not x.y.z satisfies all

	// In the place of what the rollout block says, "" and 0 for that.
	OnFailure     string // --on-failure: rollback or halt
	ConfirmWithin time.Duration
}

// Load reads a blueprint from a file, or from all *.ftp.hcl files of a directory, and checks it.
// It reports everything that it finds, not only the first mistake; the Topology is nil exactly
// when there is an error among the diagnostics. Files is never nil.
func Load(path string, o Options) (*Topology, *Files, hcl.Diagnostics) {
	l := &loader{
		options: o,
		files:   &Files{sources: map[string]*hcl.File{}},
		topology: &Topology{
			File:    path,
			Labels:  map[string]string{},
			Rollout: defaultRollout,
		},
		vars:     map[string]*variable{},
		locals:   map[string]*local{},
		declared: map[string][]string{},
		blocks:   map[any]*block{},
		vcenters: map[string]*VCenter{}, sites: map[string]*Site{}, networks: map[string]*Network{},
		images: map[string]*Image{}, sshs: map[string]*SSH{}, boxes: map[string]*Box{},
		groups: map[string]*Group{}, vips: map[string]*VIP{}, clusters: map[string]*Cluster{},
		services: map[string]*Service{},
	}
	l.load(path)
	slices.SortStableFunc(l.diags, inOrder)
	if l.diags.HasErrors() {
		return nil, l.files, l.diags
	}
	return l.topology, l.files, l.diags
}

// inOrder sorts diagnostics as their places stand in the files, those of no place first.
func inOrder(a, b *hcl.Diagnostic) int {
	var none hcl.Range
	x, y := cmp.Or(a.Subject, &none), cmp.Or(b.Subject, &none)
	return cmp.Or(strings.Compare(x.Filename, y.Filename), cmp.Compare(x.Start.Byte, y.Start.Byte))
}

// Find returns the blueprint of a directory: its only *.ftp.hcl file.
func Find(dir string) (string, error) {
	names, err := list(dir, suffix)
	switch {
	case err != nil:
		return "", fmt.Errorf("find a blueprint: %w", err)
	case len(names) == 0:
		return "", fmt.Errorf("find a blueprint: no *%s file in %s; name one with -f", suffix, dir)
	case len(names) > 1:
		return "", fmt.Errorf("find a blueprint: %d of them in %s (%s); name one with -f", len(names), dir, strings.Join(names, ", "))
	}
	return filepath.Join(dir, names[0]), nil
}

// Format returns a blueprint in its canonical layout: indentation and alignment only.
func Format(src []byte) []byte { return hclwrite.Format(src) }

// list returns the names, sorted, of the files in a directory that end with a suffix.
func list(dir, suffix string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), suffix) && !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// loader holds what is known while one blueprint is loaded.
type loader struct {
	options  Options
	dir      string // the blueprint's directory
	files    *Files
	diags    hcl.Diagnostics
	topology *Topology

	vars     map[string]*variable
	locals   map[string]*local
	scope    *hcl.EvalContext
	declared map[string][]string // names of blocks by type, in order
	blocks   map[any]*block      // what a *Box, *VIP ... was read from
	roots    []*block            // those that are in no other
	secrets  []string            // texts that hcl must not quote; see conceal

	vcenters map[string]*VCenter
	sites    map[string]*Site
	networks map[string]*Network
	images   map[string]*Image
	sshs     map[string]*SSH
	boxes    map[string]*Box
	groups   map[string]*Group
	vips     map[string]*VIP
	clusters map[string]*Cluster
	services map[string]*Service
}

func (l *loader) getenv(name string) (string, bool) {
	if l.options.Env == nil {
		return "", false
	}
	return l.options.Env(name)
}

func (l *loader) load(path string) {
	bodies := l.parse(path)
	if l.diags.HasErrors() {
		return // what is missing now would only lead to mistakes that are none
	}
	roots := map[string][]*hcl.Block{}
	for _, body := range bodies {
		content, diags := body.Content(rootSchema())
		l.native(diags)
		for _, b := range content.Blocks {
			roots[b.Type] = append(roots[b.Type], b)
		}
	}
	l.variables(roots["variable"])
	l.evaluateLocals(roots["locals"])
	l.deployment(roots["deployment"])
	for _, d := range decoders {
		for _, b := range roots[d.typ] {
			if block := l.open(b, schema[d.typ]); block != nil {
				d.decode(l, block)
			}
		}
	}
	l.bastions()
	r := &l.topology.Rollout
	r.OnFailure = cmp.Or(l.options.OnFailure, r.OnFailure)
	r.ConfirmWithin = cmp.Or(l.options.ConfirmWithin, r.ConfirmWithin)
	l.check()
	if !l.diags.HasErrors() {
		l.record()
	}
}

// parse reads the blueprint's files.
func (l *loader) parse(path string) []hcl.Body {
	info, err := os.Stat(path)
	if err != nil {
		l.fail("FTP105", place{}, "Cannot read the blueprint", "%s: %s.", path, reason(err))
		return nil
	}
	names := []string{path}
	l.dir = filepath.Dir(path)
	if info.IsDir() {
		l.dir = path
		found, err := list(path, suffix)
		if err == nil && len(found) == 0 {
			err = errors.New("no *" + suffix + " file in it")
		}
		if err != nil {
			l.fail("FTP105", place{}, "Cannot read the blueprint", "%s: %s.", path, reason(err))
			return nil
		}
		names = names[:0]
		for _, name := range found {
			names = append(names, filepath.Join(path, name))
		}
	}
	var bodies []hcl.Body
	for _, name := range names {
		if body := l.parseFile(name); body != nil {
			bodies = append(bodies, body)
		}
	}
	return bodies
}

func (l *loader) parseFile(name string) hcl.Body {
	src, err := readRegular(name, func(why string) error { return errors.New(why) })
	if err != nil {
		l.fail("FTP105", place{}, "Cannot read a file", "%s: %s.", name, err)
		return nil
	}
	file, diags := hclsyntax.ParseConfig(src, name, hcl.InitialPos)
	l.files.sources[name] = file
	l.native(diags)
	return file.Body
}

// open reads a block by its schema; it is nil, which has been reported, where it has no usable name.
func (l *loader) open(b *hcl.Block, s spec) *block {
	out := &block{loader: l, typ: b.Type, def: b.DefRange, spec: s}
	if s.label {
		out.name = b.Labels[0]
		at := place{subject: b.LabelRanges[0]}
		if !hclsyntax.ValidIdentifier(out.name) {
			l.fail("FTP106", at, "Not a name", "%s is not letters, digits, - and _ starting with a letter, so nothing could refer to it.", quoted(out.name))
			return nil
		}
		if slices.Contains(l.declared[b.Type], out.name) {
			l.fail("FTP109", at, "Declared twice", "There is another %s %q. Give one of them another name.", b.Type, out.name)
			return nil
		}
		l.declared[b.Type] = append(l.declared[b.Type], out.name)
	}
	out.read(dynblock.Expand(b.Body, l.scope))
	l.roots = append(l.roots, out)
	return out
}

func (l *loader) deployment(blocks []*hcl.Block) {
	if len(blocks) == 0 {
		l.fail("FTP107", place{}, "No deployment", "%s has no deployment block. Exactly one, such as deployment \"ftp-prod\" {}, names what the blueprint owns.", l.topology.File)
		return
	}
	for _, other := range blocks[1:] {
		at := place{subject: other.DefRange}
		l.fail("FTP107", at, "More than one deployment",
			"There is another one (%s). A blueprint describes exactly one deployment: remove this block, or move it into a directory of its own.",
			place{subject: blocks[0].DefRange}.seenFrom(at))
	}
	out := &block{loader: l, typ: "deployment", name: blocks[0].Labels[0], def: blocks[0].DefRange, spec: schema["deployment"]}
	out.read(dynblock.Expand(blocks[0].Body, l.scope))
	l.roots = append(l.roots, out)
	if id, err := parseID(out.name); err != nil {
		l.fail("FTP603", place{subject: blocks[0].LabelRanges[0]}, "Not a deployment id",
			"%s is not 1 to 40 lower case letters, digits and inner dashes. It marks everything that ftpdeploy owns, in vCenter and in Kubernetes labels.", quoted(out.name))
	} else {
		l.topology.ID = id
	}
	l.topology.Labels = take(out, "labels", stringMap, map[string]string{}, stringsByName)
	constraint := take(out, "required_version", textType, "", parsed(func(s string) (string, error) {
		_, err := satisfies("", s)
		return s, err
	}))
	l.topology.RequiredVersion = constraint
	if constraint == "" {
		return
	}
	if ok, err := satisfies(l.options.Version, constraint); err == nil && !ok {
		l.fail("FTP110", out.at("required_version"), "Another version of ftpdeploy is needed",
			"This is ftpdeploy %s, and the blueprint asks for %s.", l.options.Version, constraint)
	}
}
