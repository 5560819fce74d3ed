package blueprints

import (
	"bytes"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
)

var update = flag.Bool("update", false, "rewrite the golden files, and fail")

// environment is what the blueprints under test find in it.
var environment = map[string]string{
	"HOME":                        "/home/operator",
	"GOVC_URL":                    "vcenter.example",
	"GOVC_USERNAME":               "deploy",
	"GOVC_PASSWORD":               "vcenter-password",
	"GOVC_TLS_CA_CERTS":           "/etc/ca.pem",
	"FTPDEPLOY_LAB_KEY":           "/nowhere/id_ed25519",
	"FTPDEPLOY_LAB_SUDO_PASSWORD": "sudo-password",
	"KUBECONFIG":                  "/etc/kube/config",
	"FTP_PASSWORD":                "ftp-password",
	"FTPDEPLOY_VAR_ftp_password":  "ftp-password",
}

// from makes an Options.Env of maps; the last one wins.
func from(layers ...map[string]string) func(string) (string, bool) {
	all := map[string]string{}
	for _, layer := range layers {
		maps.Copy(all, layer)
	}
	return func(name string) (string, bool) {
		value, set := all[name]
		return value, set
	}
}

func render(t *testing.T, files *Files, diags hcl.Diagnostics) string {
	t.Helper()
	var out bytes.Buffer
	if err := files.Write(&out, diags, 100, false); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// Every rule has a blueprint that breaks it, and nothing else, beside the exact text that this gives.
func TestRules(t *testing.T) {
	paths, err := filepath.Glob("testdata/rules/*" + suffix)
	if err != nil {
		t.Fatal(err)
	}
	tested := map[string]bool{}
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), suffix)
		want, _, _ := strings.Cut(name, "-")
		tested[want] = true
		t.Run(name, func(t *testing.T) {
			env := maps.Clone(environment)
			delete(env, "FTPDEPLOY_VAR_ftp_password")
			topology, files, diags := Load(path, Options{Env: from(env), Version: "1.0.0"})
			if (topology == nil) != diags.HasErrors() {
				t.Errorf("topology %v with errors %v", topology, diags.HasErrors())
			}
			if want != "FTP601" { // every service gives this one
				diags = slices.DeleteFunc(diags, func(d *hcl.Diagnostic) bool { return Code(d) == "FTP601" })
			}
			for _, d := range diags {
				if strings.HasPrefix(want, "FTP") && Code(d) != want || want == "none" && Code(d) != "" {
					t.Errorf("%s: %s [%s] %s", d.Subject, d.Summary, Code(d), d.Detail)
				}
			}
			if len(diags) == 0 && want != "base" {
				t.Error("nothing is reported")
			}
			golden(t, strings.TrimSuffix(path, suffix)+".golden", render(t, files, diags))
		})
	}
	for _, rule := range strings.Fields(`FTP101 FTP102 FTP103 FTP104 FTP105 FTP106 FTP107 FTP108 FTP109 FTP110 FTP111 FTP112
		FTP201 FTP202 FTP203 FTP204 FTP205 FTP206 FTP208 FTP209 FTP210 FTP211 FTP212 FTP213 FTP214 FTP215 FTP216 FTP217 FTP218
		FTP301 FTP302 FTP303 FTP304 FTP305 FTP306 FTP307 FTP308 FTP309 FTP311 FTP312 FTP313 FTP314 FTP403 FTP503 FTP505 FTP601 FTP602 FTP603 FTP605`) {
		if !tested[rule] {
			t.Errorf("no testdata/rules/%s*", rule)
		}
	}
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	want, err := os.ReadFile(path)
	if err == nil && string(want) == got {
		return
	}
	if !*update {
		t.Errorf("%s differs (-update rewrites it):\n%s", path, got)
		return
	}
	if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Errorf("%s rewritten", path)
}
