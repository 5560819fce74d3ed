package blueprints

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
)

// partner is a second service beside the production blueprint's, on the same
// boxes, with a range of 400 ports.
const partner = `
vip "partner" {
  lb_group       = lb_group.ftp
  address        = "203.0.113.16"
  network        = network.frontend
  virtual_router = 52
}

ftp_service "partner" {
  cluster   = cluster.tkg
  vip       = vip.partner
  namespace = "partner"
  image     = "registry.example/vsftpd@sha256:7f0c1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7"

  control {
    port      = 21
    node_port = 30022
  }

  passive {
    ports           = "30100-30499"
    node_port_first = 32200
  }

  user "partner" {
    password = var.ftp_password
  }

  volume "home" {
    size  = "1Gi"
    mount = "/home/vsftpd"
  }
}
`

// Two services on one pair of boxes are fine, and each thing that both want is told
// where it stands in the file: line and column.
func TestTwoServices(t *testing.T) {
	first, err := os.ReadFile("production.ftp.hcl")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ from, to, code, at string }{
		"no clash":                        {`= 52`, `= 52`, "", ""},
		"same ports, another VIP":         {`"30100-30499"`, `"21100-21110"`, "", ""},
		"VIP":                             {`"203.0.113.16"`, `"203.0.113.15"`, "FTP203", `"203.0.113.15"`},
		"VIP of a box":                    {`"203.0.113.16"`, `"203.0.113.11"`, "FTP202", `"203.0.113.11"`},
		"virtual router":                  {`= 52`, `= 51`, "FTP211", "51"},
		"control NodePort":                {`= 30022`, `= 30021`, "FTP205", "30021"},
		"control NodePort in their range": {`= 30022`, `= 32105`, "FTP205", "32105"},
		"passive NodePorts":               {`= 32200`, `= 32110`, "FTP205", "32110"},
		"passive NodePorts take control":  {`= 32200`, `= 30000`, "FTP205", "30000"},
		"more than the cluster gives out": {`= 32200`, `= 32400`, "FTP204", "32400"},
		"port of the VIP":                 {`= vip.partner`, `= vip.ftp`, "FTP206", "21"},
		"name":                            {`ftp_service "partner"`, `ftp_service "vsftpd"`, "FTP109", `"vsftpd"`},
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(partner, c.from) {
				t.Fatalf("the second service has no %q", c.from)
			}
			text := string(first) + strings.Replace(partner, c.from, c.to, 1)
			path := filepath.Join(t.TempDir(), "two"+suffix)
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			topology, _, diags := Load(path, Options{Env: from(environment), Version: "1.0.0"})
			told := false
			for _, d := range diags {
				if d.Severity != hcl.DiagError {
					continue
				}
				told = true
				at := strings.SplitAfter(text, "\n")[d.Subject.Start.Line-1][d.Subject.Start.Column-1:]
				if Code(d) != c.code || d.Subject.Filename != path || d.Subject.Start.Line <= strings.Count(string(first), "\n") || !strings.HasPrefix(at, c.at) {
					t.Errorf("%s, which is %q: %s [%s] %s", d.Subject, at, d.Summary, Code(d), d.Detail)
				}
			}
			if told != (c.code != "") || told == (topology != nil && len(topology.Services) == 2) {
				t.Errorf("told: %v, topology: %v", told, topology)
			}
		})
	}
}
