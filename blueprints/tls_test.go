package blueprints

import (
	"strings"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/steps/ftp/ftptest"
)

const aDay = 24 * time.Hour

// What validate says of a certificate, each time for the argument that is at fault.
func TestCertificates(t *testing.T) {
	ca, other := ftptest.NewAuthority(t), ftptest.NewAuthority(t)
	pair := func(a *ftptest.Authority, life time.Duration, hosts ...string) [2]string {
		certificate, key := a.Issue(t, life, hosts...)
		return [2]string{string(certificate), string(key)}
	}
	const vip = "203.0.113.15"
	good := pair(ca, 90*aDay, vip, "ftp.example.org")
	for _, c := range []struct {
		name  string
		pair  [2]string
		extra string // arguments of the tls block
		code  string // "" = nothing is said
		level string // of it
		at    string // what it points at
		want  string
	}{
		{name: "good", pair: good},
		{name: "good by its name", pair: good, extra: `server_name = "ftp.example.org"`},
		{name: "good with its CA", pair: good, extra: `ca_certificate = file("ca.crt")`},
		{"another key", [2]string{good[0], pair(ca, aDay, vip)[1]}, "", "FTP605", "Error", `file("ftp.key")`, "Key does not fit the certificate"},
		{"no key", [2]string{good[0], good[0]}, "", "FTP605", "Error", `file("ftp.key")`, "not the private key"},
		{"key with a passphrase", [2]string{good[0], strings.NewReplacer("PRIVATE", "ENCRYPTED PRIVATE", "MI", "NI").Replace(good[1])}, "", "FTP605", "Error", `file("ftp.key")`, "openssl pkey"},
		{"expired", pair(ca, -aDay, vip), "", "FTP605", "Error", `file("ftp.crt")`, "ended at"},
		{"ends soon", pair(ca, 20*aDay+time.Hour, vip), "", "FTP605", "Warning", `file("ftp.crt")`, "in 20 days"},
		{"does not end soon", pair(ca, 22*aDay, vip), "", "", "", "", ""},
		{"for another name", pair(ca, 90*aDay, "ftp.example.org"), "", "FTP605", "Error", `file("ftp.crt")`, "Clients connect to 203.0.113.15, and it is for ftp.example.org"},
		{"not for server_name", good, `server_name = "files.example.org"`, "FTP605", "Error", `file("ftp.crt")`, "it is for ftp.example.org, 203.0.113.15"},
		{"another CA's", pair(other, 90*aDay, vip), `ca_certificate = file("ca.crt")`, "FTP605", "Error", `file("ftp.crt")`, "not trusted"},
		{"no certificate", [2]string{"nothing", good[1]}, "", "FTP106", "Error", `file("ftp.crt")`, "there is none in it"},
		{"key beside the certificate", [2]string{good[0] + good[1], good[1]}, "", "FTP106", "Error", `file("ftp.crt")`, "there is a private key in it"},
		{"no version", good, "min_version = \"1.3\"\nmax_version = \"1.2\"", "FTP106", "Error", `"1.2"`, "min_version is 1.3, and max_version 1.2 is older"},
		{"not a name", good, `server_name = "ftp://x"`, "FTP106", "Error", `"ftp://x"`, "neither a DNS name nor an address"},
		{"literal key", good, `server_name = "203.0.113.15"`, "FTP602", "Error", `"KEY"`, "Secret in the blueprint"},
		{"clear text too", good, `required = false`, "FTP601", "Warning", "false", "do not ask for TLS"},
		{"switched off", good, `mode = "off"`, "FTP601", "Warning", `ftp_service "vsftpd"`, "Give it a tls block"},
	} {
		t.Run(c.name, func(t *testing.T) {
			key := `file("ftp.key")`
			if c.code == "FTP602" {
				key = `"KEY"`
			}
			src := base(t, `  control {
    node_port = 30021`, "  live_settings = true\n  tls {\n    certificate = file(\"ftp.crt\")\n    private_key = "+key+"\n    "+c.extra+"\n  }\n  control {\n    node_port = 30021")
			dir := write(t, map[string]string{"x.ftp.hcl": src, "ftp.crt": c.pair[0], "ftp.key": c.pair[1], "ca.crt": string(ca.PEM)})
			topology, files, diags := Load(dir, Options{Env: from(environment)})
			text := render(t, files, diags)
			if strings.Contains(text, strings.Split(good[1], "\n")[1]) {
				t.Error("the private key is shown")
			}
			if c.code == "" {
				if len(diags) > 0 {
					t.Error(text)
				}
				return
			}
			if len(diags) != 1 || Code(diags[0]) != c.code || !strings.HasPrefix(text, c.level) || !strings.Contains(strings.Join(strings.Fields(text), " "), c.want) {
				t.Fatalf("want one %s %s with %q:\n%s", c.level, c.code, c.want, text)
			}
			if at := string(diags[0].Subject.SliceBytes([]byte(src))); at != c.at {
				t.Errorf("it points at %q, want %q", at, c.at)
			}
			if (topology == nil) != (c.level == "Error") {
				t.Errorf("topology %v", topology)
			}
		})
	}
}
