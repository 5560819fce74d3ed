package blueprints

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The place of every attribute of the example holds what the example says there.
func TestSource(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "x.ftp.hcl")
	src, err := os.ReadFile("lab.ftp.hcl")
	if err != nil {
		t.Fatal(err)
	}
	workers := regexp.MustCompile(`(?m)^  workers .*$`)
	text := string(workers.ReplaceAll(src, []byte("  workers = local.nodes"))) + `
locals {
  nodes = var.nodes
}
variable "nodes" {
  type = list(string)
}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	vars := filepath.Join(dir, "nodes.auto.ftpvars.hcl")
	if err := os.WriteFile(vars, []byte(`nodes = ["198.51.100.21"]`), 0o600); err != nil {
		t.Fatal(err)
	}
	env := func(name string) (string, bool) { return "/" + strings.ToLower(name), name != "FTPDEPLOY_VAR_nodes" }
	topology, files, diags := Load(file, Options{Env: env})
	if topology == nil {
		t.Fatal(render(t, files, diags))
	}
	for address, want := range map[string]string{
		"deployment.lab":                           `deployment "lab"`,
		"vip.ftp.address":                          `"203.0.113.15"`,
		"vip.ftp.preempt":                          `vip "ftp"`, // left out
		"lb.haproxy-a.nic.frontend.address":        `"203.0.113.11"`,
		"lb.haproxy-a.nic.frontend.mtu":            `nic "frontend"`,
		"lb_group.ftp.haproxy.timeouts.client":     `"2h"`,
		"ftp_service.vsftpd.user.partner.password": `var.ftp_password`, // from the environment: no file has it
		"cluster.lab.workers":                      `["198.51.100.21"]`,
		"cluster.lab":                              `cluster "lab"`,
		"nothing.of.this":                          "",
	} {
		r := topology.Source(address)
		got := ""
		switch r.Filename {
		case file:
			got = text[r.Start.Byte:r.End.Byte]
		case vars:
			got = string(r.SliceBytes([]byte(`nodes = ["198.51.100.21"]`)))
		}
		if got != want {
			t.Errorf("%s is at %q (%s), want %q", address, got, r, want)
		}
	}
	if r := (&Topology{}).Source("vip.ftp"); r.Filename != "" {
		t.Errorf("a topology that was not loaded has a place: %s", r)
	}
}
