package blueprints

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/typeexpr"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// variable is an input of the blueprint.
type variable struct {
	name      string
	block     *block
	typ       cty.Type
	defaults  *typeexpr.Defaults
	sensitive bool
	value     cty.Value
	ok        bool      // value is there; else why not has been reported
	origin    string    // where value came from: "default, line 22"
	source    hcl.Range // of the value, where it stands in a file
}

// local is a named expression.
type local struct {
	name  string
	expr  hcl.Expression
	at    hcl.Range
	state int // unvisited, visiting, done
	value cty.Value
	ok    bool
}

const (
	unvisited = iota
	visiting
	done
)

// given is a value for a variable from outside the blueprint.
type given struct {
	value  cty.Value
	raw    string // of the command line or environment; value is then cty.NilVal
	origin string
	at     place // the zero place where it has no source
}

// variables declares the blueprint's variables and gives them their values.
func (l *loader) variables(blocks []*hcl.Block) {
	l.scope = &hcl.EvalContext{Functions: l.functions()} // a default may call functions, and refer to nothing
	for _, b := range blocks {
		if block := l.open(b, schema["variable"]); block != nil {
			l.declare(block)
		}
	}
	values := l.given()
	for _, name := range l.declared["variable"] {
		l.assign(l.vars[name], values[name])
	}
	l.rescope()
	for _, name := range l.declared["variable"] {
		l.validate(l.vars[name])
	}
}

func (l *loader) declare(b *block) {
	v := &variable{name: b.name, block: b, typ: cty.DynamicPseudoType, value: cty.DynamicVal}
	l.vars[b.name] = v
	v.sensitive = take(b, "sensitive", cty.Bool, false, truth)
	take(b, "description", textType, "", plain)
	if attr := b.attrs["type"]; attr != nil {
		var diags hcl.Diagnostics
		v.typ, v.defaults, diags = typeexpr.TypeConstraintWithDefaults(attr.Expr)
		l.native(diags)
	}
	if attr := b.attrs["default"]; attr != nil && v.sensitive {
		l.files.mask(attr.Expr.Range())
	}
}

// given collects the values from outside the blueprint, those that win last.
func (l *loader) given() map[string]given {
	values := map[string]given{}
	auto, err := list(l.dir, autoVarSuffix)
	if err != nil {
		l.fail("FTP105", place{}, "Cannot look for variable files", "%s: %s.", l.dir, reason(err))
	}
	for _, name := range auto {
		l.varFile(filepath.Join(l.dir, name), values)
	}
	for _, name := range l.declared["variable"] {
		env := "FTPDEPLOY_VAR_" + name
		if raw, set := l.getenv(env); set {
			values[name] = given{raw: raw, origin: env}
		}
	}
	for _, name := range l.options.VarFiles {
		l.varFile(name, values)
	}
	for _, name := range slices.Sorted(maps.Keys(l.options.Vars)) {
		switch v := l.vars[name]; {
		case v == nil:
			l.fail("FTP102", place{}, "No such variable", "--var names %q. %s", name, l.offer("variable", name, ""))
		case v.sensitive:
			l.fail("FTP104", place{subject: v.block.def}, "Sensitive variable on the command line",
				"--var is refused for variable %q: other users can read argv. Set FTPDEPLOY_VAR_%s or use a var file.", name, name)
			values[name] = given{value: cty.NilVal, origin: "refused"}
		default:
			values[name] = given{raw: l.options.Vars[name], origin: "--var"}
		}
	}
	return values
}

// varFile reads NAME = VALUE lines; values are literals and function calls.
func (l *loader) varFile(name string, values map[string]given) {
	body := l.parseFile(name)
	if body == nil {
		return
	}
	attrs, diags := body.JustAttributes()
	l.native(diags)
	for _, key := range slices.Sorted(maps.Keys(attrs)) {
		attr := attrs[key]
		v := l.vars[key]
		if v == nil {
			l.fail("FTP102", place{subject: attr.NameRange}, "No such variable", "%s", l.offer("variable", key, ""))
			continue
		}
		if v.sensitive {
			l.files.mask(attr.Expr.Range())
		}
		value, ok := l.constant(attr.Expr, "A var file")
		if !ok {
			values[key] = given{value: cty.NilVal, origin: "refused"}
			continue
		}
		values[key] = given{value: value, origin: l.line(attr.Range, ""), at: place{subject: attr.Expr.Range()}}
	}
}

// line names a line for an origin, with its file unless that is the one given.
func (l *loader) line(r hcl.Range, file string) string {
	if r.Filename == file {
		return fmt.Sprintf("line %d", r.Start.Line)
	}
	return fmt.Sprintf("%s line %d", r.Filename, r.Start.Line)
}

// constant evaluates an expression that may call functions and refer to nothing.
func (l *loader) constant(expr hcl.Expression, who string) (cty.Value, bool) {
	for _, t := range expr.Variables() {
		l.fail("FTP102", place{subject: t.SourceRange()}, "Nothing to refer to here",
			"%s holds literals and calls of functions; it cannot refer to %s.", who, traversalText(t))
		return cty.DynamicVal, false
	}
	value, diags := expr.Value(&hcl.EvalContext{Functions: l.scope.Functions})
	l.native(diags)
	return value, !diags.HasErrors()
}

// assign gives a variable its value.
func (l *loader) assign(v *variable, from given) {
	at := place{subject: v.block.def}
	switch attr := v.block.attrs["default"]; {
	case from.origin == "refused":
		return
	case from.origin == "" && attr == nil:
		detail := fmt.Sprintf("Use --var %s=VALUE, set FTPDEPLOY_VAR_%s or use a var file.", v.name, v.name)
		if v.sensitive {
			detail = fmt.Sprintf("Set FTPDEPLOY_VAR_%s or use a var file. --var is refused for sensitive variables: other users can read argv.", v.name)
		}
		l.fail("FTP104", at, "No value for a variable", "Variable %q has no default and was given no value. %s", v.name, detail)
		return
	case from.origin == "":
		value, ok := l.constant(attr.Expr, "A default")
		if !ok {
			return
		}
		v.source = attr.Expr.Range()
		at = place{subject: v.source}
		from = given{value: value, origin: "default, " + l.line(attr.Range, v.block.def.Filename)}
		if v.sensitive && !value.IsNull() && len(marksOf(value)) == 0 {
			l.fail("FTP602", at, "Secret in the blueprint",
				"The default of sensitive variable %q is written here for all to read. Remove it, and set FTPDEPLOY_VAR_%s or use a var file.", v.name, v.name)
			return
		}
	case from.value == cty.NilVal:
		value, ok := l.fromText(v, from)
		if !ok {
			return
		}
		from.value = value
	default:
		v.source, at = from.at.subject, from.at
	}
	if v.defaults != nil {
		from.value = v.defaults.Apply(from.value)
	}
	value, err := convert.Convert(from.value, v.typ)
	if err != nil {
		l.fail("FTP108", at, "Not a value for this variable", "Variable %q takes %s, and its value (%s) is none: %s.",
			v.name, typeexpr.TypeString(v.typ), from.origin, err)
		return
	}
	if v.sensitive {
		l.conceal(value)
		value = value.Mark(sensitive)
	}
	v.value, v.ok, v.origin = value, true, from.origin
}

// fromText makes a value of a command line's or environment's text: text as it is for simple
// types, an HCL literal for the others.
func (l *loader) fromText(v *variable, from given) (cty.Value, bool) {
	if v.typ.IsPrimitiveType() || v.typ == cty.DynamicPseudoType {
		return cty.StringVal(from.raw), true
	}
	expr, diags := hclsyntax.ParseExpression([]byte(from.raw), from.origin, hcl.InitialPos)
	var value cty.Value
	if !diags.HasErrors() {
		value, diags = expr.Value(nil)
	}
	if diags.HasErrors() {
		l.fail("FTP108", place{subject: v.block.def}, "Not a value for this variable",
			"Variable %q takes %s, and its value (%s) is no literal of HCL: %s.", v.name, typeexpr.TypeString(v.typ), from.origin, diags[0].Summary)
		return cty.DynamicVal, false
	}
	return value, true
}

// validate runs a variable's own rules.
func (l *loader) validate(v *variable) {
	if !v.ok {
		return
	}
	for _, rule := range v.block.children["validation"] {
		attr := rule.attrs["condition"]
		if attr == nil {
			continue
		}
		holds := take(rule, "condition", cty.Bool, true, truth)
		if holds || rule.failed["condition"] {
			continue
		}
		detail := "The condition does not hold."
		if message := rule.attrs["error_message"]; message != nil {
			if value, ok := l.eval(message.Expr); ok && !isSensitive(value) {
				if text, err := convert.Convert(value, cty.String); err == nil && !text.IsNull() {
					detail = text.AsString()
				}
			}
		}
		l.fail("FTP108", place{subject: attr.Expr.Range(), expr: attr.Expr}, "Not a value for this variable", "%s", detail)
		v.ok = false // so that whoever uses it does not tell it once more
		return
	}
}

// evaluateLocals evaluates every local value, each after those that it refers to.
func (l *loader) evaluateLocals(blocks []*hcl.Block) {
	var order []*local
	for _, b := range blocks {
		attrs, diags := b.Body.JustAttributes()
		l.native(diags)
		for _, attr := range attrs {
			if other := l.locals[attr.Name]; other != nil {
				at := place{subject: attr.NameRange}
				l.fail("FTP109", at, "Declared twice", "There is another local.%s (%s).", attr.Name, place{subject: other.at}.seenFrom(at))
				continue
			}
			v := &local{name: attr.Name, expr: attr.Expr, at: attr.NameRange, value: cty.DynamicVal}
			l.locals[attr.Name] = v
			order = append(order, v)
		}
	}
	slices.SortFunc(order, func(a, b *local) int { return strings.Compare(a.name, b.name) })
	for _, v := range order {
		l.declared["local"] = append(l.declared["local"], v.name)
	}
	for _, v := range order {
		l.evaluate(v, nil)
	}
	l.rescope()
}

// evaluate gives one local value its value; path are those that are waiting for it.
func (l *loader) evaluate(v *local, path []*local) {
	switch v.state {
	case done:
		return
	case visiting:
		from := slices.Index(path, v)
		var hops []string
		for _, hop := range path[from:] {
			hops = append(hops, fmt.Sprintf("local.%s (%d,%d)", hop.name, hop.at.Start.Line, hop.at.Start.Column))
		}
		l.fail("FTP103", place{subject: v.expr.Range()}, "Values depend on each other",
			"%s -> local.%s. Break the circle at one of them.", strings.Join(hops, " -> "), v.name)
		return
	}
	v.state = visiting
	path = append(slices.Clone(path), v)
	for _, t := range v.expr.Variables() {
		if name, ok := rootedAt(t, "local"); ok {
			if next := l.locals[name]; next != nil {
				l.evaluate(next, path)
			}
		}
	}
	l.rescope()
	v.value, v.ok = l.eval(v.expr)
	v.state = done
}

// rescope makes the values known so far visible to expressions.
func (l *loader) rescope() {
	vars, locals := map[string]cty.Value{}, map[string]cty.Value{}
	for name, v := range l.vars {
		vars[name] = v.value
	}
	for name, v := range l.locals {
		locals[name] = v.value
	}
	l.scope = &hcl.EvalContext{
		Functions: l.scope.Functions,
		Variables: map[string]cty.Value{"var": cty.ObjectVal(vars), "local": cty.ObjectVal(locals)},
	}
}

// rootedAt returns x of a traversal root.x...
func rootedAt(t hcl.Traversal, root string) (string, bool) {
	if len(t) < 2 || t.IsRelative() || t.RootName() != root {
		return "", false
	}
	attr, ok := t[1].(hcl.TraverseAttr)
	return attr.Name, ok
}

// eval returns the value of an expression. Where it is false there is none: it has been reported, here or
// where a value that the expression refers to could not be had.
func (l *loader) eval(expr hcl.Expression) (cty.Value, bool) {
	ok := true
	for _, t := range expr.Variables() {
		if !l.reachable(t) {
			ok = false
		}
	}
	if !ok {
		return cty.DynamicVal, false
	}
	value, diags := expr.Value(l.scope)
	l.native(diags)
	if diags.HasErrors() {
		return cty.DynamicVal, false
	}
	if !value.IsWhollyKnown() {
		l.fail("FTP106", place{subject: expr.Range()}, "Value is not known", "It cannot be worked out before anything is deployed.")
		return cty.DynamicVal, false
	}
	return value, true
}

// reachable tells whether what a traversal starts from has a value, and reports a name that there is not.
func (l *loader) reachable(t hcl.Traversal) bool {
	at := place{subject: t.SourceRange()}
	for _, kind := range []struct {
		root, block string
		ok          func(string) (declared, ok bool)
	}{
		{"var", "variable", func(name string) (bool, bool) { v := l.vars[name]; return v != nil, v != nil && v.ok }},
		{"local", "local", func(name string) (bool, bool) { v := l.locals[name]; return v != nil, v != nil && v.ok }},
	} {
		if t.RootName() != kind.root {
			continue
		}
		name, isName := rootedAt(t, kind.root)
		if !isName {
			l.fail("FTP102", at, "Not a reference", "%s needs a name: %s.NAME.", kind.root, kind.root)
			return false
		}
		declared, ok := kind.ok(name)
		if !declared {
			l.fail("FTP102", at, "No such "+kind.block, "%s", l.offer(kind.block, name, kind.root+"."))
		}
		return ok
	}
	if _, isBlock := schema[t.RootName()]; isBlock {
		l.fail("FTP102", at, "Not a value", "%s is a block: only an argument that takes such a block can refer to it. Put the value that both need into locals.", traversalText(t))
		return false
	}
	l.fail("FTP102", at, "No such name", "Nothing is called %q here. Values are var.NAME and local.NAME; text goes into double quotes.", t.RootName())
	return false
}

// offer says that a name is not declared, and what is.
func (l *loader) offer(typ, name, prefix string) string {
	var names []string
	for _, n := range l.declared[typ] {
		names = append(names, prefix+n)
	}
	if len(names) == 0 {
		return fmt.Sprintf("%q is not declared, nor is any other %s.", prefix+name, typ)
	}
	return fmt.Sprintf("%q is not declared.%s Declared: %s.", prefix+name, didYouMean(prefix, name, l.declared[typ]), strings.Join(names, ", "))
}
