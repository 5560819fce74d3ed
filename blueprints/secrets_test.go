package blueprints

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

const canary = "21x-CaNaRy-9f3"

// expressions returns the range of every argument's expression in a blueprint.
func expressions(t *testing.T, src []byte) []hcl.Range {
	t.Helper()
	file, diags := hclsyntax.ParseConfig(src, "x", hcl.InitialPos)
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	var out []hcl.Range
	var visit func(*hclsyntax.Body)
	visit = func(body *hclsyntax.Body) {
		for _, attr := range body.Attributes {
			out = append(out, attr.Expr.Range())
		}
		for _, b := range body.Blocks {
			visit(b.Body)
		}
	}
	visit(file.Body.(*hclsyntax.Body))
	return out
}

// A secret put where any argument of the blueprint belongs is not in what is reported.
func TestSecretsAreNeverShown(t *testing.T) {
	src, err := os.ReadFile("production.ftp.hcl")
	if err != nil {
		t.Fatal(err)
	}
	env := from(environment, map[string]string{"CANARY": canary})
	dir := t.TempDir()
	path := dir + "/x.ftp.hcl"
	everywhere := []string{`env("CANARY")`, `"${env("CANARY")}-1"`, `[env("CANARY")]`}
	once := []string{
		`sensitive(env("CANARY", "x"))`, `{ (env("CANARY")) = 1 }`,
		`parseint(env("CANARY"), 10)`, `jsondecode(env("CANARY"))`, `cidrhost(env("CANARY"), 1)`, `cidr_contains("192.0.2.0/24", env("CANARY"))`,
		`file(env("CANARY"))`, `env(env("CANARY"))`, `{ a = 1 }[env("CANARY")]`, `regex(env("CANARY"), "a")`, `lookup({ a = 1 }, env("CANARY"))`,
		`index(["a"], env("CANARY"))`, `element([1], env("CANARY"))`, `-env("CANARY")`, `env("CANARY") ? 1 : 2`, `csvdecode("${env("CANARY")},\n\"")`,
		`format("%d", env("CANARY"))`, `formatlist("%d", [env("CANARY")])`, `[for k, v in env("CANARY") : v]`, `zipmap([env("CANARY")], [1, 2])`,
		`merge(env("CANARY"), {})`, `substr(env("CANARY"), -1, "x")`, `try(parseint(env("CANARY"), 10), jsondecode(env("CANARY")))`,
		`tonumber(env("CANARY"))`, `{ for x in [env("CANARY"), env("CANARY")] : x => x }`, `[for x in [env("CANARY")] : x.y]`,
	}
	refused := 0
	for i, r := range expressions(t, src) {
		for _, expression := range slices.Concat(everywhere, once) {
			if i > 0 && !slices.Contains(everywhere, expression) {
				continue
			}
			mutant := string(src[:r.Start.Byte]) + expression + string(src[r.End.Byte:])
			if err := os.WriteFile(path, []byte(mutant), 0o600); err != nil {
				t.Fatal(err)
			}
			_, _, diags := Load(path, Options{Env: env})
			if diags.HasErrors() {
				refused++
			}
			for _, d := range diags { // the source does not hold it
				if strings.Contains(d.Summary+d.Detail, canary) {
					t.Errorf("%s at line %d is shown: %s", expression, r.Start.Line, d)
				}
			}
		}
	}
	if refused < 100 {
		t.Errorf("only %d blueprints were refused: the secret was not tried where it matters", refused)
	}
}

// Literals that should not be there are masked in every excerpt, also where the file cannot be parsed.
func TestLiteralSecretsAreMasked(t *testing.T) {
	quoted := `"` + canary + `"`
	for name, src := range map[string]string{
		"password":         base(t, `env("FTP_PASSWORD")`, quoted, `"1Gi"`, `"x"`),
		"in a call":        base(t, `env("FTP_PASSWORD")`, `upper(`+quoted+`)`),
		"in a template":    base(t, `env("FTP_PASSWORD")`, `"${1}`+canary+`"`),
		"in a URL":         base(t, `"vcenter.example"`, `"https://deploy:`+canary+`@vcenter.example"`),
		"in a heredoc":     base(t, `env("FTP_PASSWORD")`, "<<EOT\n"+canary+"\nEOT"),
		"in a local":       base(t, `env("FTP_PASSWORD")`, "local.x", "deployment \"rules\" {}", "deployment \"rules\" {}\nlocals {\n  y = \"a\"\n  x = "+quoted+"\n  z = nope\n}"),
		"in a variable":    base(t, `env("FTP_PASSWORD")`, "var.x", "deployment \"rules\" {}", "deployment \"rules\" {}\nvariable \"x\" {\n  default = "+quoted+"\n}\nlocals {\n  z = \"${var.x}\" + 1\n}"),
		"sensitive":        base(t, "deployment \"rules\" {}", "deployment \"rules\" {}\nvariable \"x\" {\n  default = "+quoted+"\n  sensitive = true\n}"),
		"syntax error":     base(t, `env("FTP_PASSWORD")`, quoted+" oops"),
		"unclosed":         base(t, `env("FTP_PASSWORD")`, `"`+canary),
		"wrong type":       base(t, `env("FTP_PASSWORD")`, `[`+quoted+`]`),
		"in an object":     base(t, "namespace = \"ftp\"", "namespace = { password = "+quoted+" }"),
		"unsupported":      base(t, "namespace = \"ftp\"", "namespace = \"ftp\"\n  passwort_x = "+quoted+"\n  my_password = "+quoted),
		"become_password":  base(t, `user = "ansible"`, "user = \"ansible\"\n  become_password = "+quoted),
		"not allowed here": base(t, "deployment \"rules\" {}", "deployment \"rules\" {\n  password = "+quoted+"\n}"),
	} {
		t.Run(name, func(t *testing.T) {
			src = strings.ReplaceAll(src, "passwort_x = "+quoted, "passwort_x = 1")
			topology, files, diags := Load(write(t, map[string]string{"x.ftp.hcl": src}), Options{Env: from(environment)})
			if topology != nil {
				t.Error("it is accepted")
			}
			if text := render(t, files, diags); strings.Contains(text, canary) {
				t.Errorf("it is shown:\n%s", text)
			}
		})
	}
}

func TestVarFileSecretsAreMasked(t *testing.T) {
	src := base(t, `env("FTP_PASSWORD")`, "var.entry", "deployment \"rules\" {}", "deployment \"rules\" {}\nvariable \"entry\" {\n  type = number\n  sensitive = true\n}")
	dir := write(t, map[string]string{"x.ftp.hcl": src, "x.auto.ftpvars.hcl": "entry = \"" + canary + "\"\n"})
	_, files, diags := Load(dir, Options{Env: from(environment)})
	text := render(t, files, diags)
	if !strings.Contains(text, "entry = \"***") || strings.Contains(text, canary) {
		t.Errorf("the diagnostics are\n%s", text)
	}
}

func TestSecretFormatsAsSensitive(t *testing.T) {
	s := struct{ S, hidden Secret }{NewSecret(canary), NewSecret(canary)}
	encoded, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{fmt.Sprint(s), fmt.Sprintf("%+v %#v %q %x %d", s, s, s.S, s.S, s.S), string(encoded)} {
		if strings.Contains(text, canary) || strings.Contains(text, fmt.Sprintf("%x", canary)) {
			t.Errorf("shows it: %s", text)
		}
	}
	equal(t, "revealed", s.S.Reveal(), canary)
}

func TestSecretsOfOneLine(t *testing.T) {
	for value, want := range map[string]string{"": "Empty secret", "a\nb": "Not one line", "a\n": "Not one line"} {
		_, _, diags := Load("testdata/rules/base.ftp.hcl", Options{Env: from(environment, map[string]string{"FTP_PASSWORD": value})})
		if len(diags) == 0 || diags[len(diags)-1].Summary != want {
			t.Errorf("%q gives %v, want %q", value, diags, want)
		}
	}
}
