package blueprints

import (
	"os"
	"path/filepath"
	"testing"
)

func TestDigestTellsBlueprintsApart(t *testing.T) {
	const text = "deployment \"lab\" {}\nvariable \"v\" {\n  default = \"x\"\n}\n"
	digest := func(src, varFile, salt string, vars map[string]string) string {
		t.Helper()
		dir := t.TempDir()
		o := Options{}
		for name, content := range map[string]string{"lab.ftp.hcl": src, "v.hcl": varFile} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if varFile != "" {
			o.VarFiles = []string{filepath.Join(dir, "v.hcl")}
		}
		_, files, _ := Load(filepath.Join(dir, "lab.ftp.hcl"), o)
		d, err := files.Digest([]byte(salt), vars)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	first := digest(text, "", "salt", nil)
	if again := digest(text, "", "salt", nil); again != first {
		t.Errorf("the same blueprint elsewhere: %s, %s", first, again)
	}
	seen := map[string]string{first: "the first"}
	for name, d := range map[string]string{
		"a comment":          digest(text+"# more\n", "", "salt", nil),
		"a variable file":    digest(text, "v = \"y\"\n", "salt", nil),
		"another value":      digest(text, "v = \"z\"\n", "salt", nil),
		"a variable":         digest(text, "", "salt", map[string]string{"v": "y"}),
		"a variable's value": digest(text, "", "salt", map[string]string{"v": "z"}),
		"another salt":       digest(text, "", "pepper", nil),
	} {
		if other := seen[d]; other != "" {
			t.Errorf("%s has the digest of %s", name, other)
		}
		seen[d] = name
	}
}
