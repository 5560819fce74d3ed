package blueprints

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/agext/levenshtein"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"golang.org/x/crypto/scrypt"
)

// code is the Extra of a diagnostic that one of our rules made. Codes are never used for something
// else later. 1xx is the language, 2xx addresses and ports, 3xx the FTP service and its times, 4xx
// vCenter, 5xx Kubernetes, 6xx secrets and ownership. E is an error, W a warning.
//
//	101 E unknown argument or block          213 W a group of one machine
//	102 E reference to nothing               214 W all machines on one site
//	103 E values depend on each other        215 E passive range takes a port in use
//	104 E variable without a value           216 E equal priorities
//	105 E no such file, environment          217 E image in another vCenter than the site
//	106 E not a value for the argument       218 E machine without a NIC for the VIP
//	107 E not exactly one deployment         301 E more than one pod
//	108 E not a value for the variable       302 W few passive ports
//	109 E declared twice                     303 W many passive ports
//	110 E another version is needed          304 E PASV cannot announce the VIP
//	111 E arguments exclude each other       305 W data connections from anywhere
//	112 E bastion without an address         306 E user that the image cannot have
//	201 E address outside its network        307 E smoke test of another path
//	202 E address of something else          308 E two volumes are one claim
//	203 E address used twice                 311 W control channel cut while idle
//	204 E NodePort outside the range         312 E reloads cut transfers
//	205 E NodePort wanted twice              313 E reverted before proven
//	206 E port bound twice                   314 W reloads too close
//	208 E no path to the workers             403 W vCenter not verified
//	      (W where a gateway may route)      503 E empty storage class
//	209 E not exactly one way in             505 W image by tag
//	210 E default routes                     601 W plain FTP
//	211 E virtual router used twice          602 E secret in the blueprint
//	212 E workers                            603 E not a deployment id
type code string

// Code returns the code of the rule that made a diagnostic, such as "FTP204", or ""
// for a mistake in the HCL itself.
func Code(d *hcl.Diagnostic) string {
	c, _ := hcl.DiagnosticExtra[code](d)
	return string(c)
}

// nativeCodes are the codes of diagnostics that hcl makes, by their summary: it gives nothing else to tell them by.
var nativeCodes = map[string]code{
	"Unsupported argument":     "FTP101",
	"Unsupported block type":   "FTP101",
	"Unsupported attribute":    "FTP102",
	"Call to unknown function": "FTP102",
}

// Files are the sources that a blueprint was loaded from, as its diagnostics quote them.
type Files struct {
	sources map[string]*hcl.File
	hidden  []hcl.Range // where secrets stand that maskLiterals does not know of
}

// Write renders diagnostics for people: severity, summary, code, the lines they are about
// and what to do. Width 0 is no wrapping. Literals given to arguments that hold secrets
// are masked in the lines.
func (f *Files) Write(w io.Writer, diags hcl.Diagnostics, width int, color bool) error {
	masked := map[string]*hcl.File{}
	for _, d := range diags {
		if d.Subject != nil && masked[d.Subject.Filename] == nil && f.sources[d.Subject.Filename] != nil {
			masked[d.Subject.Filename] = f.masked(d.Subject.Filename)
		}
	}
	out := hcl.NewDiagnosticTextWriter(w, masked, uint(max(width, 0)), color)
	for _, d := range diags {
		shown := *d
		if c := Code(d); c != "" {
			shown.Summary += " [" + c + "]"
		}
		if err := out.WriteDiagnostic(&shown); err != nil {
			return fmt.Errorf("write diagnostics: %w", err)
		}
	}
	return nil
}

// Digest is a fingerprint of what a blueprint was loaded from: its own files, the
// variable files, and vars. Where the files lie is no part of it. As there may be
// passwords among them it is salted and slow to guess from (scrypt, 2^15 rounds).
func (f *Files) Digest(salt []byte, vars map[string]string) (string, error) {
	var sums []string
	for name, value := range vars {
		sums = append(sums, fmt.Sprintf("--var %s %x\n", name, sha256.Sum256([]byte(value))))
	}
	for name, file := range f.sources {
		sums = append(sums, fmt.Sprintf("%s %x\n", filepath.Base(name), sha256.Sum256(file.Bytes)))
	}
	slices.Sort(sums)
	key, err := scrypt.Key([]byte(strings.Join(sums, "")), salt, 1<<15, 8, 1, 16)
	if err != nil {
		return "", fmt.Errorf("make the digest of the blueprint: %w", err)
	}
	return hex.EncodeToString(key), nil
}

// masked returns a source whose secrets are hidden.
func (f *Files) masked(name string) *hcl.File {
	file := *f.sources[name]
	file.Bytes = maskLiterals(name, file.Bytes)
	for _, r := range f.hidden {
		if r.Filename == name && r.CanSliceBytes(file.Bytes) {
			maskBytes(file.Bytes[r.Start.Byte:r.End.Byte])
		}
	}
	return &file
}

// mask hides a range of a source.
func (f *Files) mask(r hcl.Range) { f.hidden = append(f.hidden, r) }

// maskBytes overwrites in place, so that positions stay what they were.
func maskBytes(b []byte) {
	for i, c := range b {
		if c != '\n' && c != '"' && c != ' ' {
			b[i] = '*'
		}
	}
}

// maskLiterals returns a copy of src in which the literals after NAME = are hidden, for every
// NAME that reads like a secret's. It works on tokens, so a file with syntax errors is masked too.
func maskLiterals(name string, src []byte) []byte {
	out := slices.Clone(src)
	tokens, _ := hclsyntax.LexConfig(src, name, hcl.InitialPos) // what is wrong with it is the parser's to say
	secret, depth := false, 0
	for i, t := range tokens {
		switch t.Type {
		case hclsyntax.TokenEqual, hclsyntax.TokenColon:
			if !secret && i > 0 {
				secret, depth = secretName.Match(bareName(tokens, i-1)), 0
			}
		case hclsyntax.TokenOBrace, hclsyntax.TokenOBrack, hclsyntax.TokenOParen:
			depth++
		case hclsyntax.TokenCBrace, hclsyntax.TokenCBrack, hclsyntax.TokenCParen:
			depth--
		case hclsyntax.TokenNewline:
			secret = secret && depth > 0
		}
		literal := t.Type == hclsyntax.TokenQuotedLit || t.Type == hclsyntax.TokenStringLit ||
			t.Type == hclsyntax.TokenNumberLit || t.Type == hclsyntax.TokenInvalid
		if secret && literal && !namesSource(tokens[:i]) {
			maskBytes(out[t.Range.Start.Byte:t.Range.End.Byte])
		}
	}
	return out
}

// namesSource tells whether a literal after these tokens names where a secret is, as in env("NAME").
func namesSource(before hclsyntax.Tokens) bool {
	n := len(before)
	return n >= 3 && before[n-1].Type == hclsyntax.TokenOQuote && before[n-2].Type == hclsyntax.TokenOParen &&
		(string(before[n-3].Bytes) == "env" || string(before[n-3].Bytes) == "file")
}

func bareName(tokens hclsyntax.Tokens, i int) []byte {
	if tokens[i].Type == hclsyntax.TokenCQuote && i > 0 {
		i--
	}
	return tokens[i].Bytes
}

// A place is what a diagnostic is about: an expression, or a whole block. The zero place is
// outside every file.
type place struct {
	subject hcl.Range
	expr    hcl.Expression // nil for a block
}

// seenFrom names the line of a place, and its file where that is another one.
func (p place) seenFrom(at place) string {
	if p.subject.Filename == at.subject.Filename {
		return fmt.Sprintf("line %d", p.subject.Start.Line)
	}
	return fmt.Sprintf("%s line %d", p.subject.Filename, p.subject.Start.Line)
}

func (l *loader) fail(c code, at place, summary, format string, args ...any) {
	l.report(hcl.DiagError, c, at, summary, format, args...)
}

func (l *loader) warn(c code, at place, summary, format string, args ...any) {
	l.report(hcl.DiagWarning, c, at, summary, format, args...)
}

func (l *loader) report(s hcl.DiagnosticSeverity, c code, at place, summary, format string, args ...any) {
	detail := fmt.Sprintf(format, args...)
	if at.expr != nil {
		for _, line := range l.provenance(at.expr) {
			detail += "\n" + line
		}
	}
	d := &hcl.Diagnostic{Severity: s, Summary: summary, Detail: detail, Extra: c}
	if at.subject.Filename != "" {
		d.Subject, d.Context = at.subject.Ptr(), l.context(at.subject)
	}
	l.diags = append(l.diags, d)
}

// conceal remembers the texts in a value that is about to be marked sensitive. Our own messages go
// by the mark, but some of hcl's quote values, marked or not (a duplicate key of a for expression).
func (l *loader) conceal(v cty.Value) {
	v, _ = v.UnmarkDeep()
	_ = cty.Walk(v, func(_ cty.Path, part cty.Value) (bool, error) {
		if part.Type() == cty.String && part.IsKnown() && !part.IsNull() && part.AsString() != "" {
			l.secrets = append(l.secrets, part.AsString())
		}
		return true, nil
	})
}

// native passes on what hcl found, under our codes where there is one.
func (l *loader) native(diags hcl.Diagnostics) {
	for _, d := range diags {
		for _, secret := range l.secrets {
			d.Detail = strings.ReplaceAll(d.Detail, quoted(secret), "(sensitive)")
			if len(secret) > 3 { // a shorter one would be found in any text
				d.Detail = strings.ReplaceAll(d.Detail, secret, "(sensitive)")
			}
		}
		if d.Subject == nil && d.Severity == hcl.DiagError {
			d.Subject = d.Context
		}
		if c, ok := nativeCodes[d.Summary]; ok {
			d.Extra = c
		}
		if call, ok := hcl.DiagnosticExtra[hclsyntax.FunctionCallDiagExtra](d); ok {
			if e := (*callError)(nil); errors.As(call.FunctionCallError(), &e) {
				d.Summary, d.Detail, d.Extra = e.summary, e.detail, code(e.code)
			}
		}
		d.Expression, d.EvalContext = nil, nil
		l.diags = append(l.diags, d)
	}
}

// context is what to show around a subject: two lines before and one after, within its block.
func (l *loader) context(subject hcl.Range) *hcl.Range {
	file := l.files.sources[subject.Filename]
	if file == nil || !subject.CanSliceBytes(file.Bytes) {
		return nil
	}
	body, ok := file.Body.(*hclsyntax.Body)
	if !ok {
		return nil
	}
	first, last := subject.Start.Line, subject.End.Line
	for body != nil {
		var inner *hclsyntax.Body
		for _, b := range body.Blocks {
			if r := b.Range(); r.Start.Byte <= subject.Start.Byte && subject.End.Byte <= r.End.Byte {
				inner = b.Body
				if b.DefRange().Start.Line == subject.Start.Line {
					return nil
				}
				first = max(subject.Start.Line-2, r.Start.Line)
				last = min(subject.End.Line+1, r.End.Line-1)
			}
		}
		body = inner
	}
	if blank := bytes.TrimSpace(file.Bytes[lineStart(file.Bytes, last):lineStart(file.Bytes, last+1)]); len(blank) == 0 {
		last--
	}
	last = max(last, subject.End.Line)
	r := subject
	r.Start = hcl.Pos{Line: first, Column: 1, Byte: lineStart(file.Bytes, first)}
	r.End = hcl.Pos{Line: last, Column: 2, Byte: max(lineStart(file.Bytes, last)+1, subject.End.Byte)}
	return &r
}

// lineStart is the offset at which a line begins; lines count from 1.
func lineStart(src []byte, line int) int {
	at := 0
	for ; line > 1; line-- {
		i := bytes.IndexByte(src[at:], '\n')
		if i < 0 {
			return len(src)
		}
		at += i + 1
	}
	return at
}

// provenance says which variables a value was made from and where those got theirs.
func (l *loader) provenance(expr hcl.Expression) []string {
	var lines []string
	seen := map[string]bool{}
	var visit func(hcl.Expression)
	visit = func(expr hcl.Expression) {
		for _, t := range expr.Variables() {
			words := traversalText(t)
			if seen[words] || len(t) < 2 {
				continue
			}
			seen[words] = true
			attr, ok := t[1].(hcl.TraverseAttr)
			if !ok {
				continue
			}
			switch t.RootName() {
			case "local":
				if local := l.locals[attr.Name]; local != nil {
					visit(local.expr)
				}
			case "var":
				v := l.vars[attr.Name]
				if v == nil || v.origin == "" {
					continue
				}
				value, diags := t[2:].TraverseRel(v.value)
				if diags.HasErrors() {
					continue
				}
				lines = append(lines, fmt.Sprintf("%s = %s (%s)", words, shown(value), v.origin))
			}
		}
	}
	visit(expr)
	return lines
}

// shown is a value as a diagnostic may quote it.
func shown(v cty.Value) string {
	if isSensitive(v) {
		return "(sensitive)"
	}
	v, _ = v.UnmarkDeep()
	switch {
	case v.IsNull():
		return "null"
	case !v.IsKnown():
		return "(unknown)"
	case v.Type() == cty.String:
		return quoted(v.AsString())
	case v.Type() == cty.Number:
		return v.AsBigFloat().Text('g', 12)
	case v.Type() == cty.Bool:
		return fmt.Sprint(v.True())
	}
	return "{...}"
}

// quoted is a string in quotes, cut where it is long.
func quoted(s string) string {
	if r := []rune(s); len(r) > 80 {
		s = string(r[:77]) + "..."
	}
	return fmt.Sprintf("%q", s)
}

func traversalText(t hcl.Traversal) string {
	var b strings.Builder
	for _, step := range t {
		switch step := step.(type) {
		case hcl.TraverseRoot:
			b.WriteString(step.Name)
		case hcl.TraverseAttr:
			b.WriteString("." + step.Name)
		case hcl.TraverseIndex:
			b.WriteString("[" + shown(step.Key) + "]")
		default:
			b.WriteString("[*]")
		}
	}
	return b.String()
}

// didYouMean is " Did you mean ...?" with the name that is closest, if one is close, else "".
func didYouMean(prefix, given string, names []string) string {
	best, least := "", 3
	for _, name := range names {
		if d := levenshtein.Distance(given, name, nil); d < least && d < len(name) {
			best, least = name, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" Did you mean %q?", prefix+best)
}
