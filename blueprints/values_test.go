package blueprints

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
)

// result loads a blueprint of nothing but a deployment, the given source and an output of the expression.
func result(t *testing.T, source, expression string, o Options, files map[string]string) (Output, hcl.Diagnostics) {
	t.Helper()
	all := map[string]string{"x.ftp.hcl": fmt.Sprintf("deployment \"x\" {}\n%s\noutput \"o\" {\n  value = %s\n}\n", source, expression)}
	for name, content := range files {
		all[name] = content
	}
	dir := write(t, all)
	for i, name := range o.VarFiles {
		o.VarFiles[i] = filepath.Join(dir, name)
	}
	topology, _, diags := Load(dir, o)
	if diags.HasErrors() {
		return Output{}, diags
	}
	return topology.Outputs[0], diags
}

// --var wins over --var-file, that over the environment, that over *.auto.ftpvars.hcl, that over the default.
func TestPrecedence(t *testing.T) {
	all := []string{"flag", "file", "env", "auto", "default"}
	for given := range 1 << len(all) {
		var sources []string
		for i, name := range all {
			if given>>i&1 == 1 {
				sources = append(sources, name)
			}
		}
		t.Run(strings.Join(sources, "+"), func(t *testing.T) {
			o, files, env, variable := Options{}, map[string]string{}, map[string]string{}, "variable \"v\" {}"
			for _, name := range sources {
				switch name {
				case "flag":
					o.Vars = map[string]string{"v": "flag"}
				case "file":
					files["one.hcl"], files["two.hcl"] = `v = "first file"`, `v = "file"`
					o.VarFiles = []string{"one.hcl", "two.hcl"}
				case "env":
					env["FTPDEPLOY_VAR_v"] = "env"
				case "auto":
					files["a.auto.ftpvars.hcl"], files["b.auto.ftpvars.hcl"] = `v = "first auto"`, `v = "auto"`
				case "default":
					variable = `variable "v" { default = "default" }`
				}
			}
			o.Env = from(env)
			got, diags := result(t, variable, "var.v", o, files)
			if len(sources) == 0 {
				if !slices.Equal(codes(diags), []string{"FTP104"}) {
					t.Errorf("no value gives %v", diags)
				}
				return
			}
			if diags.HasErrors() {
				t.Fatal(diags)
			}
			equal(t, "value", got.Value, sources[0])
		})
	}
}

func TestVariables(t *testing.T) {
	for _, test := range []struct {
		name     string
		variable string
		o        Options
		files    map[string]string
		want     string // the value as JSON
		codes    []string
	}{
		{name: "number of a flag", variable: `type = number`, o: Options{Vars: map[string]string{"v": "12"}}, want: "12"},
		{name: "flag that is text", variable: `type = string`, o: Options{Vars: map[string]string{"v": "[1]"}}, want: `"[1]"`},
		{name: "list of a flag", variable: `type = list(number)`, o: Options{Vars: map[string]string{"v": "[1, 2]"}}, want: "[1,2]"},
		{
			name: "object of the environment", variable: `type = object({ a = number, b = optional(string, "x") })`,
			o: Options{Env: from(map[string]string{"FTPDEPLOY_VAR_v": "{ a = 1 }"})}, want: `{"a":1,"b":"x"}`,
		},
		{name: "null default", variable: `default = null`, want: "null"},
		{name: "default calls a function", variable: `default = upper("a")`, want: `"A"`},
		{name: "default refers", variable: `default = local.x`, codes: []string{"FTP102"}},
		{name: "not HCL", variable: `type = list(number)`, o: Options{Vars: map[string]string{"v": "[1,"}}, codes: []string{"FTP108"}},
		{name: "wrong type", variable: `type = number`, o: Options{Vars: map[string]string{"v": "many"}}, codes: []string{"FTP108"}},
		{name: "wrong type in a file", variable: `type = number`, files: map[string]string{"x.auto.ftpvars.hcl": "v = []"}, codes: []string{"FTP108"}},
		{name: "no such type", variable: `type = strin`, codes: []string{"FTP104", ""}},
		{name: "no such flag", variable: `default = 1`, o: Options{Vars: map[string]string{"w": "1"}}, codes: []string{"FTP102"}},
		{name: "no such name in a file", variable: `default = 1`, files: map[string]string{"x.auto.ftpvars.hcl": "w = 1"}, codes: []string{"FTP102"}},
		{name: "file refers", variable: ``, files: map[string]string{"x.auto.ftpvars.hcl": "v = var.w"}, codes: []string{"FTP102"}},
		{name: "file is not there", variable: `default = 1`, o: Options{VarFiles: []string{"no.hcl"}}, codes: []string{"FTP105"}},
		{name: "sensitive flag", variable: `sensitive = true`, o: Options{Vars: map[string]string{"v": "x"}}, codes: []string{"FTP104"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			source := fmt.Sprintf("variable \"v\" {\n%s\n}", test.variable)
			got, diags := result(t, source, "jsonencode(var.v)", test.o, test.files)
			if !slices.Equal(codes(diags), test.codes) {
				t.Fatalf("codes %q, want %q: %v", codes(diags), test.codes, diags)
			}
			equal(t, "value", got.Value, test.want)
		})
	}
}

func TestValidationRules(t *testing.T) {
	variable := `variable "n" {
  type = number
  validation {
    condition     = var.n > 1
    error_message = "n must be more than 1."
  }
  validation {
    condition     = var.n < var.max
    error_message = "n must be less than max."
  }
}
variable "max" { default = 10 }`
	for n, want := range map[string]string{"1": "n must be more than 1.", "10": "n must be less than max.", "5": ""} {
		_, diags := result(t, variable, "var.n", Options{Vars: map[string]string{"n": n}}, nil)
		if want == "" {
			if len(diags) > 0 {
				t.Errorf("n = %s gives %v", n, diags)
			}
			continue
		}
		if len(diags) != 1 || !strings.HasPrefix(diags[0].Detail, want) || Code(diags[0]) != "FTP108" {
			t.Errorf("n = %s gives %v", n, diags)
		}
		if len(diags) == 1 && !strings.Contains(diags[0].Detail, "var.n = "+n+" (--var)") {
			t.Errorf("n = %s does not say where it came from: %s", n, diags[0].Detail)
		}
	}
}

func TestFunctions(t *testing.T) {
	env := from(map[string]string{"SET": "set", "MY_TOKEN": "tok", "HOME": "/home/u"})
	files := map[string]string{"hello.txt": "hello\n"}
	for expression, want := range map[string]string{
		`env("SET")`:                                  "set (sensitive)",
		`env("SET", "x")`:                             "set",
		`env("UNSET", "x")`:                           "x",
		`env("MY_TOKEN", "x")`:                        "tok (sensitive)",
		`env("OTHER_TOKEN", "x")`:                     "x",
		`nonsensitive(env("SET"))`:                    "set",
		`sensitive("x")`:                              "x (sensitive)",
		`"a-${env("SET")}"`:                           "a-set (sensitive)",
		`env("UNSET")`:                                "FTP105",
		`chomp(file("hello.txt"))`:                    "hello",
		`file("nothing.txt")`:                         "FTP105",
		`file("/dev/zero")`:                           "FTP105",
		`file(".")`:                                   "FTP105",
		`substr(filesha256("hello.txt"), 0, 8)`:       "5891b5b5",
		`can_ipv4("192.0.2.1")`:                       "true",
		`can_ipv4("2001:db8::1")`:                     "false",
		`can_ipv4("ftp.example")`:                     "false",
		`cidr_contains("192.0.2.0/24", "192.0.2.77")`: "true",
		`cidr_contains("192.0.2.0/24", "192.0.3.77")`: "false",
		`cidr_contains("192.0.2.0", "192.0.3.77")`:    "",
		`cidrhost("10.20.0.0/22", 300)`:               "10.20.1.44",
		`cidrhost("10.20.0.0/22", -2)`:                "10.20.3.254",
		`cidrhost("2001:db8::/64", 5)`:                "2001:db8::5",
		`cidrhost("192.0.2.0/30", 4)`:                 "",
		`ports(21100, 11)`:                            "21100-21110",
		`ports(21100, 0)`:                             "",
		`ports(1.5, 2)`:                               "",
		`coalesce(default(), "fallback")`:             "fallback",
		`try(tonumber("x"), "fallback")`:              "fallback",
		`try(local.o.missing, "fallback")`:            "fallback",
		`can(local.o.missing)`:                        "false",
		`join(",", [for n in range(3) : n * 2])`:      "0,2,4",
		`length(setproduct(["a", "b"], [1, 2, 3]))`:   "6",
		`parseint("x", 10)`:                           "",
		`upper(null)`:                                 "",
	} {
		t.Run(expression, func(t *testing.T) {
			got, diags := result(t, "locals {\n  o = {}\n}", expression, Options{Env: env}, files)
			shown := got.Value
			if got.Sensitive {
				shown += " (sensitive)"
			}
			if diags.HasErrors() {
				shown = strings.Join(codes(diags), " ")
			}
			if shown != want {
				t.Errorf("gives %q, want %q %v", shown, want, diags)
			}
		})
	}
}

// Locals are evaluated in the order that they need, whatever order they stand in.
func TestLocalsReferToEachOther(t *testing.T) {
	got, diags := result(t, "locals {\n  c = \"${local.b}c\"\n  a = \"a\"\n}\nlocals {\n  b = \"${local.a}b\"\n}", "local.c", Options{}, nil)
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	equal(t, "value", got.Value, "abc")
}

// A value that could not be had is told where it failed, and nowhere else.
func TestOneMistakeIsToldOnce(t *testing.T) {
	for _, test := range []struct{ name, source, code string }{
		{"environment", "locals {\n  a = env(\"NOPE\")\n  b = \"${local.a}!\"\n  c = [local.a, local.b]\n}\noutput \"p\" { value = local.b }", "FTP105"},
		{"variable", "variable \"a\" {}\nlocals {\n  b = var.a\n  c = var.a\n}", "FTP104"},
		{"cycle", "locals {\n  a = local.b\n  b = local.a\n  c = local.a\n}", "FTP103"},
		{"name", "locals {\n  a = nope\n  b = local.a\n}", "FTP102"},
	} {
		t.Run(test.name, func(t *testing.T) {
			expression := "local.c"
			if test.name == "name" {
				expression = "local.b"
			}
			_, diags := result(t, test.source, expression, Options{}, nil)
			if !slices.Equal(codes(diags), []string{test.code}) {
				t.Errorf("gives %v, want one %s", diags, test.code)
			}
		})
	}
}
