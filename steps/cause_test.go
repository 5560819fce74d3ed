package steps

import (
	"os"
	"strings"
	"testing"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/kube"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/steps/ftp/ftptest"
)

// Every attribute that the tables name is one of the language: a blueprint that
// uses all of it has a place for it, other than the block around it.
func TestSourcesAreOfTheLanguage(t *testing.T) {
	src, err := os.ReadFile("../blueprints/testdata/everything.ftp.hcl")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	ca := ftptest.NewAuthority(t)
	certificate, key := ca.Issue(t, 90*day, "ftp.example.org")
	for name, text := range map[string]string{
		"x.ftp.hcl": string(src), "password.txt": "from-a-file", "ftp.crt": string(certificate), "ftp.key": string(key), "ca.crt": string(ca.PEM),
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	top, _, diags := blueprints.Load(".", blueprints.Options{Version: "1.0.0", Env: func(name string) (string, bool) {
		return "/" + name, !strings.HasPrefix(name, "FTPDEPLOY_VAR_")
	}})
	if top == nil {
		t.Fatal(diags)
	}
	placed := func(address string) {
		t.Helper()
		above := address[:max(0, strings.LastIndexByte(address, '.'))]
		if at := top.Source(address); at.Filename == "" || at == top.Source(above) {
			t.Errorf("the language has no %s", address)
		}
	}
	k := &kubernetes{workload: workload{top, top.Services[0]}}
	for _, o := range objectSources {
		ref := kube.Ref{Kind: o.kind, Name: k.claimName(top.Services[0].Volumes[0])}
		path := strings.ReplaceAll(o.part, "CONTROL", "2121")
		placed(k.source(ref, path))
	}
	var fields []plan.Field
	for _, path := range []string{"cpus", "memory_mb", "disk_gb", "nic.frontend", "nic.frontend.port_group", "name"} {
		fields = append(fields, plan.Field{Path: path})
	}
	for _, address := range vmSources(top.Boxes[0], fields) {
		placed(address)
	}
}
