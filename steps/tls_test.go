package steps

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/steps/ftp"
	"github.com/ftpdeploy/ftpdeploy/steps/ftp/ftptest"
)

// issued is a tls block with a certificate of ca.
func issued(t *testing.T, ca *ftptest.Authority, life time.Duration, hosts ...string) *blueprints.TLS {
	t.Helper()
	certificate, key := ca.Issue(t, life, hosts...)
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	return &blueprints.TLS{
		Required: true, Certificate: string(certificate), Chain: []*x509.Certificate{pair.Leaf}, PrivateKey: blueprints.NewSecret(string(key)),
		Roots: ca.Roots, ServerName: hosts[0], MinVersion: "1.2", MaxVersion: "1.2",
	}
}

// testCertificate gives a service a certificate, another one, and takes it away.
func testCertificate(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	ca := ftptest.NewAuthority(t)
	f.service.LiveSettings = true
	f.apply(plan.Present)
	live := Open(f.deploy, Options{Kubeconfig: f.server.Kubeconfig, Env: func(string) (string, bool) { return "", false }})
	if c, err := live.Certificate(t.Context(), f.service); c != nil || err != nil {
		t.Errorf("certificate %v, %v; want none", c, err)
	}
	said := ""
	act := func(signs ...string) []plan.Change {
		t.Helper()
		changes := f.apply(plan.Present)
		f.wantSigns(changes, signs...)
		said += fmt.Sprintf("%+v", changes)
		return changes
	}

	first := issued(t, ca, 90*day, "203.0.113.15", "ftp.example.org")
	f.service.TLS = first
	smoke := &blueprints.Smoke{Service: f.service, User: f.service.Users[0], VIP: f.service.VIP}
	if was, err := live.former(t.Context(), smoke); err != nil || was == nil || was.Service.TLS != nil {
		t.Errorf("%+v, %v; want the service as it was, in clear text", was, err)
	}
	changes := act("+ Secret NS/vsftpd-tls", "~ Deployment NS/vsftpd")
	if changes[0].Cause.Kind != plan.ByBlueprint || changes[0].Cause.Source[0].Address != "ftp_service.vsftpd.tls" {
		t.Errorf("the Secret's cause is %+v", changes[0].Cause)
	}
	if s := changes[1].Cause.Source; changes[1].Effect != plan.Rollout || len(s) != 1 || s[0].Address != "ftp_service.vsftpd.tls" {
		t.Errorf("the Deployment's effect is %s, its cause %+v", changes[1].Effect, s)
	}
	secret, err := f.api.CoreV1().Secrets(f.service.Namespace).Get(t.Context(), "vsftpd-tls", metav1.GetOptions{})
	if err != nil || secret.Type != "kubernetes.io/tls" || string(secret.Data["tls.crt"]) != first.Certificate || string(secret.Data["tls.key"]) != first.PrivateKey.Reveal() {
		t.Errorf("the Secret is %+v, %v", secret, err)
	}
	if was, err := live.former(t.Context(), smoke); was != nil || err != nil {
		t.Errorf("%+v, %v; want that it is no other one", was, err)
	}

	second := issued(t, ca, 200*day, "203.0.113.15")
	f.service.TLS = second
	changes = act("~ Secret NS/vsftpd-tls")
	if changes[0].Effect != plan.Reload || len(changes[0].Cause.Source) == 0 {
		t.Errorf("effect %s, cause %+v", changes[0].Effect, changes[0].Cause)
	}
	want := map[string][2]string{
		"certificate.expires": {first.Chain[0].NotAfter.UTC().Format(time.RFC3339), second.Chain[0].NotAfter.UTC().Format(time.RFC3339)},
		"tls.key":             {"(sensitive)", "(sensitive)"},
	}
	for _, field := range changes[0].Detail.Fields {
		if w, ok := want[field.Path]; ok && w != [2]string{field.Before, field.After} {
			t.Errorf("%s: %s -> %s, want %s", field.Path, field.Before, field.After, w)
		}
		delete(want, field.Path)
	}
	if len(want) > 0 {
		t.Errorf("the plan does not show %v: %+v", want, changes[0].Detail.Fields)
	}
	if c, err := live.Certificate(t.Context(), f.service); err != nil || !c.Equal(second.Chain[0]) {
		t.Errorf("certificate %v, %v", c, err)
	}

	// What was served before is known although the blueprint has it no more.
	f.service.TLS = nil
	was, err := live.former(t.Context(), smoke)
	if err != nil || was == nil || was.Service.TLS == nil || was.Service.TLS.ServerName != "203.0.113.15" || !was.Service.TLS.Required {
		t.Fatalf("%+v, %v", was, err)
	}
	act("~ Deployment NS/vsftpd", "- Secret NS/vsftpd-tls")
	for _, s := range []*blueprints.TLS{first, second} {
		for _, line := range strings.Split(s.PrivateKey.Reveal(), "\n")[1:3] {
			if strings.Contains(said, line) || strings.Contains(said, base64Text(line)[:12]) {
				t.Error("a private key shows")
			}
		}
	}

	f.service.TLS = first
	f.apply(plan.Present)
	f.apply(plan.Absent)
}

const day = 24 * time.Hour

func TestSmokeByTLS(t *testing.T) {
	ca := ftptest.NewAuthority(t)
	top, _ := smokeTopology(t, ca.TLS(t, 90*day, "ftp.example.org")...)
	top.Services[0].TLS = issued(t, ca, 90*day, "ftp.example.org")
	results, err := Smoke(t.Context(), top, SmokeOptions{Holder: held(top.Boxes[0])})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		if c := r.Report.Certificate; c == nil || DaysLeft(c, time.Now()) != 89 {
			t.Errorf("%s: certificate %v", r.Smoke.Name, c)
		}
	}
	top.Services[0].TLS.ServerName = "files.example.org"
	_, err = Smoke(t.Context(), top, SmokeOptions{Holder: held(top.Boxes[0])})
	var bad *ftp.TLSError
	if !errors.As(err, &bad) || bad.Code != "FTP612" {
		t.Errorf("error %v, want FTP612", err)
	}
}

func TestDaysLeft(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		left time.Duration
		want int
	}{{21 * day, 21}, {21*day - 1, 20}, {0, 0}, {-1, -1}, {-day, -2}} {
		if got := DaysLeft(&x509.Certificate{NotAfter: now.Add(c.left)}, now); got != c.want {
			t.Errorf("%s: %d, want %d", c.left, got, c.want)
		}
	}
}
