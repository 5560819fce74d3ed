package lab

import (
	"crypto/x509"
	"encoding/pem"
	"testing"
)

// TestIssue holds that a certificate is good for what it was issued for, and for
// nothing else.
func TestIssue(t *testing.T) {
	ca, err := NewCA()
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := NewCA()
	if err != nil {
		t.Fatal(err)
	}
	server := Subject{CommonName: "api", Names: []string{"api.lab.example"}, Addresses: parseAddrs("192.0.2.5")}
	client := Subject{CommonName: "system:node:worker-1", Organization: "system:nodes"}
	for _, c := range []struct {
		name    string
		subject Subject
		trusted *CA
		host    string
		usage   x509.ExtKeyUsage
		good    bool
	}{
		{"server by name", server, ca, "api.lab.example", x509.ExtKeyUsageServerAuth, true},
		{"server by address", server, ca, "192.0.2.5", x509.ExtKeyUsageServerAuth, true},
		{"server as client", server, ca, "", x509.ExtKeyUsageClientAuth, true},
		{"server of another name", server, ca, "vcenter.lab.example", x509.ExtKeyUsageServerAuth, false},
		{"client", client, ca, "", x509.ExtKeyUsageClientAuth, true},
		{"client as server", client, ca, "", x509.ExtKeyUsageServerAuth, false},
		{"another lab", server, stranger, "192.0.2.5", x509.ExtKeyUsageServerAuth, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			certificatePEM, _, err := ca.Issue(c.subject)
			if err != nil {
				t.Fatal(err)
			}
			block, _ := pem.Decode(certificatePEM)
			certificate, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(c.trusted.PEM)
			_, err = certificate.Verify(x509.VerifyOptions{Roots: roots, DNSName: c.host, KeyUsages: []x509.ExtKeyUsage{c.usage}})
			if (err == nil) != c.good {
				t.Errorf("verified: %v, want good = %t", err, c.good)
			}
			if certificate.Subject.CommonName != c.subject.CommonName {
				t.Errorf("issued for %q", certificate.Subject)
			}
		})
	}
}
