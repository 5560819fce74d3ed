package blueprints

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// Whatever stands in a blueprint, loading it ends without a panic, either with a topology or
// with an error that can be rendered, and its secrets are not in the text.
func FuzzLoad(f *testing.F) {
	seeds, err := filepath.Glob("testdata/rules/*" + suffix)
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range append(seeds, "production.ftp.hcl", "lab.ftp.hcl") {
		src, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(src)
	}
	f.Add([]byte("deployment \"x\" {}\noutput \"o\" { value = cidrhost(\"::/0\", -1) }"))
	f.Add([]byte("\xef\xbb\xbfdeployment \"x\" {}\r\n"))
	env := map[string]string{}
	for name := range environment {
		env[name] = environment[name]
	}
	env["FTP_PASSWORD"] = canary
	path := filepath.Join(f.TempDir(), "fuzz"+suffix)
	f.Fuzz(func(t *testing.T, src []byte) {
		if bytes.Contains(src, []byte("nonsensitive")) || bytes.Contains(src, []byte(canary)) {
			return
		}
		if err := os.WriteFile(path, src, 0o600); err != nil {
			t.Fatal(err)
		}
		topology, files, diags := Load(path, Options{Env: from(env)})
		if (topology == nil) != diags.HasErrors() {
			t.Errorf("topology %v with %v", topology, diags)
		}
		if text := render(t, files, diags); bytes.Contains([]byte(text), []byte(canary)) {
			t.Errorf("a secret is shown:\n%s", text)
		}
		Format(src)
	})
}
