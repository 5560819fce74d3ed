package ftp

import (
	"crypto/tls"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/steps/ftp/ftptest"
)

const day = 24 * time.Hour

// probeTLS is a probe by FTPS of a vsftpd with settings, and the CA that it takes.
func probeTLS(t *testing.T, ca *ftptest.Authority, settings ...string) Probe {
	t.Helper()
	p, _ := vsftpd(t, 3, settings...)
	p.TLS, p.OnlyTLS = &TLS{Name: "127.0.0.1", Roots: ca.Roots, MinVersion: tls.VersionTLS12}, true
	return p
}

// protocols limits what the OpenSSL of processes that are started from here speaks.
func protocols(t *testing.T, least, most string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "openssl.cnf")
	text := "openssl_conf = all\n[all]\nssl_conf = ssl\n[ssl]\nsystem_default = limits\n[limits]\nMinProtocol = " + least + "\nMaxProtocol = " + most + "\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("OPENSSL_CONF", file)
}

func TestProbeByTLS(t *testing.T) {
	for _, version := range []string{"1.2", "1.3"} {
		t.Run(version, func(t *testing.T) {
			protocols(t, "TLSv"+version, "TLSv"+version)
			ca := ftptest.NewAuthority(t)
			p := probeTLS(t, ca, ca.TLS(t, 90*day, "127.0.0.1")...)
			p.EveryPort = true
			report, err := p.Run(t.Context())
			if err != nil {
				t.Fatalf("%v\n%s", err, strings.Join(report.Transcript, "\n"))
			}
			if report.Certificate == nil || report.Certificate.Subject.CommonName != "127.0.0.1" {
				t.Errorf("certificate %v", report.Certificate)
			}
			seen := map[string]string{}
			for _, c := range report.Checks {
				seen[c.Name] = c.Detail
			}
			if !strings.HasPrefix(seen["epsv tls"], "TLS "+version+", certificate until ") {
				t.Errorf("epsv tls: %q", seen["epsv tls"])
			}
			for _, name := range []string{"clear text refused", "reuse demanded", "pasv every port"} {
				if _, ok := seen[name]; !ok {
					t.Errorf("no check %q", name)
				}
			}
			transcript := strings.Join(report.Transcript, "\n")
			if resumed, data := strings.Count(transcript, ", resumed"), strings.Count(transcript, "< 150 "); resumed != data-1 {
				t.Errorf("%d of %d data connections resumed, want all but that of the stranger\n%s", resumed, data, transcript)
			}
			if !strings.Contains(transcript, "< 522 SSL connection failed: session reuse required") {
				t.Errorf("the stranger was not refused:\n%s", transcript)
			}
		})
	}
}

// Each way in which TLS breaks has a code and words of its own.
func TestProbeNamesWhatIsWrongWithTLS(t *testing.T) {
	ca, other := ftptest.NewAuthority(t), ftptest.NewAuthority(t)
	for _, c := range []struct {
		name  string
		ca    *ftptest.Authority
		life  time.Duration
		host  string
		most  string // protocol
		probe func(*Probe)
		extra string // a setting that wins
		code  string
		want  string
	}{
		{"expired", ca, -day, "127.0.0.1", "TLSv1.3", nil, "", "FTP611", "pasv tls: the certificate expired at "},
		{"wrong name", ca, day, "ftp.example.org", "TLSv1.3", nil, "", "FTP612", "pasv tls: the certificate is not for 127.0.0.1"},
		{"untrusted", other, day, "127.0.0.1", "TLSv1.3", nil, "", "FTP613", "pasv tls: the certificate is not trusted"},
		{"no reuse asked", ca, day, "127.0.0.1", "TLSv1.3", nil, "require_ssl_reuse=NO", "FTP614", "reuse demanded: data port "},
		{"no reuse given", ca, day, "127.0.0.1", "TLSv1.3", func(p *Probe) { p.TLS.Fresh = true }, "", "FTP614", "pasv list: data port "},
		{"no TLS", ca, day, "127.0.0.1", "TLSv1.3", nil, "ssl_enable=NO", "FTP615", "pasv tls: the server offers no TLS"},
		{"clear text", ca, day, "127.0.0.1", "TLSv1.3", nil, "force_anon_logins_ssl=NO", "FTP615", "clear text refused: the server takes a login in clear text"},
		{"too old", ca, day, "127.0.0.1", "TLSv1.2", func(p *Probe) { p.TLS.MinVersion = tls.VersionTLS13 }, "", "FTP616", "pasv tls: the server does not speak TLS 1.3 or newer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			protocols(t, "TLSv1.2", c.most)
			p := probeTLS(t, ca, append(c.ca.TLS(t, c.life, c.host), c.extra)...)
			if c.probe != nil {
				c.probe(&p)
			}
			report, err := p.Run(t.Context())
			var refused *TLSError
			if !errors.As(err, &refused) || refused.Code != c.code || !strings.HasPrefix(err.Error(), c.want) || !strings.Contains(err.Error(), "["+c.code+"]") {
				t.Errorf("error %v, want %s with %s\n%s", err, c.want, c.code, strings.Join(report.Transcript, "\n"))
			}
			t.Log(err)
			if !Final(err) && c.code != "FTP616" && c.name != "no reuse asked" && c.name != "clear text" {
				t.Errorf("%v would be tried again", err)
			}
			if bad := c.code == "FTP611" || c.code == "FTP612" || c.code == "FTP613"; bad && report.Certificate == nil {
				t.Error("the report has no certificate")
			}
		})
	}
}

func TestLookByTLS(t *testing.T) {
	ca := ftptest.NewAuthority(t)
	p := probeTLS(t, ca, ca.TLS(t, 90*day, "127.0.0.1")...)
	l := Look{Address: p.Address, User: p.User, Password: p.Password, Modes: []string{PASV, EPSV}, TLS: p.TLS}
	if s := l.Run(t.Context()); s.Login.Outcome != OK || len(s.Tries) != 2 || !s.Tries[0].OK() || !s.Tries[1].OK() {
		t.Errorf("%+v", s)
	}
	other := *p.TLS
	other.Name, l.TLS = "ftp.example.org", &other
	if s := l.Run(t.Context()); s.Login.Outcome != Unsafe || !strings.Contains(s.Login.Text, "FTP612") {
		t.Errorf("%+v", s.Login)
	}
	fresh := *p.TLS
	fresh.Fresh, l.TLS = true, &fresh
	if s := l.Run(t.Context()); len(s.Tries) == 0 || s.Tries[0].List.Outcome != Unsafe || !strings.Contains(s.Tries[0].List.Text, "FTP614") {
		t.Errorf("%+v", s.Tries)
	}
}
