package vsphere

import (
	"context"
	"crypto/sha1" //nolint:gosec // a thumbprint as vCenter shows it, not a signature
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// connectBound is how long a connection may take to be made and verified.
const connectBound = 30 * time.Second

// trust opens TLS connections to a server that has been verified.
type trust struct {
	dialer func(ctx context.Context, network, address string) (net.Conn, error)
	config *tls.Config
}

func newTrust(config Config) (*trust, error) {
	t := &trust{dialer: config.Dial, config: &tls.Config{MinVersion: tls.VersionTLS12}}
	if t.dialer == nil {
		t.dialer = (&net.Dialer{}).DialContext
	}
	switch {
	case config.Insecure:
		t.config.InsecureSkipVerify = true
	case config.Thumbprint != "":
		want := strings.ToUpper(strings.ReplaceAll(config.Thumbprint, ":", ""))
		t.config.InsecureSkipVerify = true // VerifyConnection decides
		t.config.VerifyConnection = func(state tls.ConnectionState) error {
			sum256 := sha256.Sum256(state.PeerCertificates[0].Raw)
			sum1 := sha1.Sum(state.PeerCertificates[0].Raw) //nolint:gosec // as above
			if want == fmt.Sprintf("%X", sum256) || want == fmt.Sprintf("%X", sum1) {
				return nil
			}
			return fmt.Errorf("%w: its SHA-256 thumbprint is %s, the blueprint says %s", ErrUntrusted, colons(sum256[:]), config.Thumbprint)
		}
	case config.CAFile != "":
		pem, err := os.ReadFile(config.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read ca_file: %w", err)
		}
		t.config.RootCAs = x509.NewCertPool()
		if !t.config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca_file %s holds no PEM certificate", config.CAFile)
		}
	}
	return t, nil
}

func colons(sum []byte) string {
	return strings.ReplaceAll(fmt.Sprintf("% X", sum), " ", ":")
}

func (t *trust) dial(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectBound)
	defer cancel()
	plain, err := t.dialer(ctx, network, address)
	if err != nil {
		return nil, err
	}
	config := t.config.Clone()
	if config.ServerName, _, err = net.SplitHostPort(address); err != nil {
		config.ServerName = address
	}
	connection := tls.Client(plain, config)
	if err := connection.HandshakeContext(ctx); err != nil {
		_ = plain.Close()
		var unverified *tls.CertificateVerificationError
		if errors.As(err, &unverified) && len(unverified.UnverifiedCertificates) > 0 {
			sum := sha256.Sum256(unverified.UnverifiedCertificates[0].Raw)
			return nil, fmt.Errorf("%w: %w; its SHA-256 thumbprint is %s: set ca_file, or thumbprint once you have compared it", ErrUntrusted, unverified.Err, colons(sum[:]))
		}
		return nil, err
	}
	return connection, nil
}
