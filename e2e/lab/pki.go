package lab

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/netip"
	"time"
)

// certificateLife outlasts any lab; a day before now allows for a clock that is set back.
const certificateLife = 30 * 24 * time.Hour

// CA signs every certificate of one lab: those of the API server and its
// clients, and that of vCenter. It lives in memory only.
type CA struct {
	PEM []byte // the CA's own certificate

	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// NewCA makes a CA with a fresh key.
func NewCA() (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the lab's CA: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "ftplab CA"},
		NotBefore:             now.Add(-24 * time.Hour),
		NotAfter:              now.Add(certificateLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the lab's CA: %w", err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make the lab's CA: %w", err)
	}
	return &CA{PEM: pemBlock("CERTIFICATE", der), certificate: certificate, key: key}, nil
}

// Subject says whom a certificate is for. One with Names or Addresses is good
// for a server and for a client, one without only for a client.
type Subject struct {
	CommonName   string
	Organization string // a Kubernetes client's group
	Names        []string
	Addresses    []netip.Addr
	Life         time.Duration // from now, negative for one that has ended; 0 = as long as the CA's
}

// Issue makes a key and signs its certificate; both are returned as PEM.
func (ca *CA) Issue(s Subject) (certificate, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("issue a certificate for %q: %w", s.CommonName, err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, fmt.Errorf("issue a certificate for %q: %w", s.CommonName, err)
	}
	end := ca.certificate.NotAfter
	if s.Life != 0 {
		end = time.Now().Add(s.Life)
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: s.CommonName},
		NotBefore:    ca.certificate.NotBefore,
		NotAfter:     end,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		DNSNames:     s.Names,
	}
	if s.Organization != "" {
		template.Subject.Organization = []string{s.Organization}
	}
	for _, a := range s.Addresses {
		template.IPAddresses = append(template.IPAddresses, a.AsSlice())
	}
	if len(s.Names)+len(s.Addresses) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.certificate, private.Public(), ca.key)
	if err != nil {
		return nil, nil, fmt.Errorf("issue a certificate for %q: %w", s.CommonName, err)
	}
	if key, err = pemKey(private); err != nil {
		return nil, nil, fmt.Errorf("issue a certificate for %q: %w", s.CommonName, err)
	}
	return pemBlock("CERTIFICATE", der), key, nil
}

// ServerCertificate issues a certificate for a TLS server of the lab process itself.
func (ca *CA) ServerCertificate(s Subject) (tls.Certificate, error) {
	certificate, key, err := ca.Issue(s)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(certificate, key)
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func pemKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pemBlock("PRIVATE KEY", der), nil
}
