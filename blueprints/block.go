package blueprints

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// spec is what a block of the language may hold.
type spec struct {
	label  bool
	args   string // names; one with ! is required
	blocks map[string]spec
	min    int // how many of this block its parent must hold
	max    int // and may hold; 0 is any number
}

// requires tells whether the block must have an argument.
func (s spec) requires(name string) bool {
	return slices.Contains(strings.Fields(s.args), name+"!")
}

func (s spec) body() *hcl.BodySchema {
	out := &hcl.BodySchema{}
	for name := range strings.FieldsSeq(s.args) {
		bare := strings.TrimSuffix(name, "!")
		out.Attributes = append(out.Attributes, hcl.AttributeSchema{Name: bare, Required: bare != name})
	}
	for typ, inner := range s.blocks {
		out.Blocks = append(out.Blocks, inner.header(typ))
	}
	return out
}

func (s spec) header(typ string) hcl.BlockHeaderSchema {
	if s.label {
		return hcl.BlockHeaderSchema{Type: typ, LabelNames: []string{"name"}}
	}
	return hcl.BlockHeaderSchema{Type: typ}
}

func rootSchema() *hcl.BodySchema { return spec{blocks: schema}.body() }

// block is a block of a blueprint, read by its schema. Its methods read one argument each. Where
// an argument cannot be read they report it and return the zero value, which the rules take for
// "not known" and pass over, so that a mistake is told once.
type block struct {
	loader   *loader
	typ      string
	name     string
	def      hcl.Range
	spec     spec
	attrs    hcl.Attributes
	children map[string][]*block
	failed   map[string]bool // arguments that could not be read
}

func (b *block) read(body hcl.Body) {
	b.children, b.failed = map[string][]*block{}, map[string]bool{}
	content, diags := body.Content(b.spec.body())
	b.loader.native(diags)
	b.attrs = content.Attributes
	for _, inner := range content.Blocks {
		child := &block{loader: b.loader, typ: inner.Type, def: inner.DefRange, spec: b.spec.blocks[inner.Type]}
		if child.spec.label {
			child.name = inner.Labels[0]
			if slices.ContainsFunc(b.children[inner.Type], func(other *block) bool { return other.name == child.name }) {
				b.loader.fail("FTP109", place{subject: inner.LabelRanges[0]}, "Declared twice", "This %s has another %s %q.", b.typ, inner.Type, child.name)
				continue
			}
		}
		if n := child.spec.max; n > 0 && len(b.children[inner.Type]) == n {
			b.loader.fail("FTP109", place{subject: inner.DefRange}, "Declared twice", "Block %s has only one %s block in it.", b.typ, inner.Type)
			continue
		}
		child.read(inner.Body)
		b.children[inner.Type] = append(b.children[inner.Type], child)
	}
	for _, typ := range sortedKeys(b.spec.blocks) {
		if len(b.children[typ]) < b.spec.blocks[typ].min {
			b.loader.fail("", b.here(), "Missing "+typ+" block", "Block %s needs a block of type %q in it.", b.typ, typ)
		}
	}
}

// child returns the only block of a type, or an empty one.
func (b *block) child(typ string) *block {
	if found := b.children[typ]; len(found) > 0 {
		return found[0]
	}
	return &block{loader: b.loader, typ: typ, def: b.def, spec: b.spec.blocks[typ], failed: map[string]bool{}}
}

// at is the place of an argument: its expression, or the block where it is not given.
func (b *block) at(name string) place {
	if attr := b.attrs[name]; attr != nil {
		return place{subject: attr.Expr.Range(), expr: attr.Expr}
	}
	return place{subject: b.def}
}

// here is the place of the block itself.
func (b *block) here() place { return place{subject: b.def} }

// has tells whether an argument is given a value other than null, or tried to.
func (b *block) has(name string) bool {
	attr := b.attrs[name]
	if attr == nil {
		return false
	}
	value, ok := b.value(name, cty.DynamicPseudoType)
	return !ok || !value.IsNull()
}

// value evaluates an argument that is given, with its marks.
func (b *block) value(name string, want cty.Type) (cty.Value, bool) {
	if b.failed[name] {
		return cty.DynamicVal, false
	}
	attr := b.attrs[name]
	value, ok := b.loader.eval(attr.Expr)
	if !ok {
		b.failed[name] = true
		return cty.DynamicVal, false
	}
	converted, err := convert.Convert(value, want)
	if err != nil {
		b.failed[name] = true
		b.loader.fail("FTP106", b.at(name), "Not a value for this argument", "%q takes %s, and this is %s: %s.",
			name, want.FriendlyNameForConstraint(), value.Type().FriendlyName(), err)
		return cty.DynamicVal, false
	}
	return converted, true
}

var (
	textType   = cty.String
	stringMap  = cty.Map(cty.String)
	stringList = cty.List(cty.String)
)

func plain(v cty.Value) (string, error) { return v.AsString(), nil }
func truth(v cty.Value) (bool, error)   { return v.True(), nil }

// take reads an argument: fallback where it is not given, else what use makes of its value.
func take[T any](b *block, name string, want cty.Type, fallback T, use func(cty.Value) (T, error)) T {
	var zero T
	attr := b.attrs[name]
	if attr == nil {
		return fallback
	}
	value, ok := b.value(name, want)
	if !ok {
		return zero
	}
	bare, _ := value.UnmarkDeep()
	if b.spec.requires(name) && (bare.IsNull() || bare.Type() == cty.String && bare.AsString() == "") {
		b.failed[name] = true
		b.loader.fail("FTP106", b.at(name), "Empty argument", "The argument %q is required, and its value is empty.", name)
		return zero
	}
	if bare.IsNull() {
		return fallback
	}
	out, err := use(bare)
	if err == nil {
		return out
	}
	b.failed[name] = true
	quote := shown(value)
	if e := (*elementError)(nil); errors.As(err, &e) {
		quote = shown(e.element)
	}
	if isSensitive(value) {
		quote = "The value, which is sensitive,"
	}
	var u *unfit
	if errors.As(err, &u) {
		b.loader.fail("FTP106", b.at(name), "Not "+u.what, "%s", sentence(quote+" "+u.why))
	} else {
		b.loader.fail("FTP106", b.at(name), "Not a value for this argument", "%s", sentence(quote+": "+err.Error()))
	}
	return zero
}

func sentence(s string) string {
	if strings.HasSuffix(s, ".") || strings.HasSuffix(s, "?") {
		return s
	}
	return s + "."
}

func (b *block) text(name, fallback string) string { return take(b, name, textType, fallback, plain) }

func (b *block) bool(name string, fallback bool) bool {
	return take(b, name, cty.Bool, fallback, truth)
}

func (b *block) int(name string, fallback, least, most int) int {
	return take(b, name, cty.Number, fallback, number(least, most))
}

// word reads one of some words, of which the first is the default.
func (b *block) word(name string, words ...string) string {
	return take(b, name, textType, words[0], parsed(oneOf(words...)))
}

// file reads a path; see loader.path.
func (b *block) file(name, fallback string) string {
	return take(b, name, textType, fallback, parsed(func(s string) (string, error) {
		p, err := b.loader.path(s)
		if err != nil {
			return "", err
		}
		return p, nil
	}))
}

// secret reads a line that must come from outside the blueprint.
func (b *block) secret(name string) Secret {
	s := b.secretText(name)
	if _, err := parseLine(s.Reveal()); err != nil {
		b.failed[name] = true
		b.loader.fail("FTP106", place{subject: b.attrs[name].Expr.Range()}, "Not one line",
			"The value of %q holds a line break or another control character. A file's last line break goes away with chomp(file(PATH)).", name)
		return Secret{}
	}
	return s
}

// secretText reads a text that must come from outside the blueprint.
func (b *block) secretText(name string) Secret {
	attr := b.attrs[name]
	if attr == nil {
		return Secret{}
	}
	value, ok := b.value(name, textType)
	if !ok {
		return Secret{}
	}
	bare, marks := value.UnmarkDeep()
	switch {
	case bare.IsNull() && !b.spec.requires(name):
		return Secret{}
	case !bare.IsNull() && len(marks) == 0:
		b.failed[name] = true
		b.loader.maskOrigins(attr.Expr, map[*local]bool{})
		b.loader.fail("FTP602", place{subject: attr.Expr.Range()}, "Secret in the blueprint",
			"Write secrets outside the blueprint: use env(), file() or a sensitive variable.")
		return Secret{}
	case bare.IsNull() || bare.AsString() == "":
		b.failed[name] = true
		b.loader.fail("FTP106", place{subject: attr.Expr.Range()}, "Empty secret", "The value of %q is empty.", name)
		return Secret{}
	}
	return NewSecret(bare.AsString())
}

// maskOrigins hides the literals that an expression got a secret from.
func (l *loader) maskOrigins(expr hcl.Expression, seen map[*local]bool) {
	for _, t := range expr.Variables() {
		if name, ok := rootedAt(t, "local"); ok && l.locals[name] != nil && !seen[l.locals[name]] {
			from := l.locals[name]
			seen[from] = true
			l.maskOrigins(from.expr, seen)
		}
		if name, ok := rootedAt(t, "var"); ok && l.vars[name] != nil {
			l.vars[name].sensitive = true
			l.files.mask(l.vars[name].source)
		}
	}
	if len(expr.Variables()) == 0 {
		l.files.mask(expr.Range())
	}
}

func marksOf(v cty.Value) cty.ValueMarks {
	_, marks := v.UnmarkDeep()
	return marks
}

func stringsByName(v cty.Value) (map[string]string, error) {
	out := map[string]string{}
	for key, element := range v.AsValueMap() {
		if element.IsNull() {
			return nil, fmt.Errorf("%q is null", key)
		}
		out[key] = element.AsString()
	}
	return out, nil
}

// elementError says which element of a list is wrong.
type elementError struct {
	element cty.Value
	err     error
}

func (e *elementError) Error() string { return e.err.Error() }
func (e *elementError) Unwrap() error { return e.err }

// each parses the elements of a list of strings.
func each[T any](parse func(string) (T, error)) func(cty.Value) ([]T, error) {
	return func(v cty.Value) ([]T, error) {
		out := []T{}
		for _, element := range v.AsValueSlice() {
			if element.IsNull() {
				return nil, errors.New("an element is null")
			}
			one, err := parse(element.AsString())
			if err != nil {
				return nil, &elementError{element, err}
			}
			out = append(out, one)
		}
		return out, nil
	}
}

// refer follows an argument that refers to a block, such as site = site.a. It returns nil
// where the argument is not given, and where there is no such block, which it reports.
func refer[T any](b *block, name, typ string, table map[string]*T) *T {
	attr := b.attrs[name]
	if attr == nil {
		return nil
	}
	steps, ok := b.loader.reference(attr.Expr, typ+".NAME")
	if !ok {
		return nil
	}
	return lookUp(b.loader, attr.Expr, typ, steps[1], table)
}

func lookUp[T any](l *loader, expr hcl.Expression, typ, name string, table map[string]*T) *T {
	found := table[name]
	if found == nil && !slices.Contains(l.declared[typ], name) {
		l.fail("FTP102", place{subject: expr.Range()}, "No such "+typ, "%s", l.offer(typ, name, typ+"."))
	}
	return found
}

// reference splits a reference that is made like one of the forms, such as "site.NAME".
func (l *loader) reference(expr hcl.Expression, forms ...string) ([]string, bool) {
	t, diags := hcl.AbsTraversalForExpr(expr)
	var steps []string
	for _, step := range t {
		switch step := step.(type) {
		case hcl.TraverseRoot:
			steps = append(steps, step.Name)
		case hcl.TraverseAttr:
			steps = append(steps, step.Name)
		}
	}
	if !diags.HasErrors() && len(steps) == len(t) {
		for _, form := range forms {
			if words := strings.Split(form, "."); len(words) == len(steps) && fits(words, steps) {
				return steps, true
			}
		}
	}
	l.fail("FTP102", place{subject: expr.Range()}, "Not a reference",
		"This takes a reference %s, without quotes.", strings.Join(forms, " or "))
	return nil, false
}

// fits tells whether the lower case words of a form are those of a reference.
func fits(form, steps []string) bool {
	for i, word := range form {
		if word != strings.ToUpper(word) && word != steps[i] {
			return false
		}
	}
	return true
}
