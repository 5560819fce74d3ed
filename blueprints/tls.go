package blueprints

import (
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// renewBefore is how long before a certificate's end its renewal is asked for.
const renewBefore = 21 * 24 * time.Hour

// leastRSA is the shortest key, in bits, that an OpenSSL of today loads.
const leastRSA = 2048

// tls reads a tls block; nil where it is switched off.
func (l *loader) tls(b *block, s *Service) *TLS {
	mode := b.word("mode", "explicit", "off")
	t := &TLS{
		Required:   b.bool("required", true),
		PrivateKey: b.secretText("private_key"),
		MinVersion: b.word("min_version", "1.2", "1.3"),
		Range:      b.def,
	}
	// Over TLS 1.3 vsftpd's OpenSSL sends a ticket on each data connection. Clients that upload and close
	// without reading it, as lftp does, reset the connection, and what is under way is lost: 5 of 60 uploads
	// in the lab. TLS 1.2 has no such ticket.
	t.MaxVersion = take(b, "max_version", textType, t.MinVersion, parsed(oneOf("1.2", "1.3")))
	if t.MaxVersion < t.MinVersion && !b.failed["max_version"] && !b.failed["min_version"] {
		l.fail("FTP106", b.at("max_version"), "Not a range of versions", "min_version is %s, and max_version %s is older.", t.MinVersion, t.MaxVersion)
	}
	t.Certificate, t.Chain = b.certificates("certificate")
	if _, cas := b.certificates("ca_certificate"); cas != nil {
		t.Roots = x509.NewCertPool()
		for _, c := range cas {
			t.Roots.AddCert(c)
		}
	}
	b.word("reuse", "require") // there is no other: without it a data connection can be taken over
	own := ""
	if s.VIP != nil && s.VIP.Address.IsValid() {
		own = s.VIP.Address.String()
	}
	t.ServerName = take(b, "server_name", textType, own, parsed(parseServerName))
	l.blocks[t] = b
	if mode == "off" {
		return nil
	}
	return t
}

var parseDomain = matching(`^([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`,
	"a server's name", "is neither a DNS name nor an address")

func parseServerName(s string) (string, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.String(), nil
	}
	return parseDomain(s)
}

// certificates reads an argument of one or more certificates as PEM. Its value is
// never quoted: it may be a private key by mistake.
func (b *block) certificates(name string) (text string, all []*x509.Certificate) {
	attr := b.attrs[name]
	if attr == nil {
		return "", nil
	}
	value, ok := b.value(name, textType)
	if !ok {
		return "", nil
	}
	bare, _ := value.UnmarkDeep()
	if bare.IsNull() && !b.spec.requires(name) {
		return "", nil
	}
	var err error
	if !bare.IsNull() {
		text = bare.AsString()
	}
	if all, err = parseCertificates(text); err != nil {
		b.failed[name] = true
		b.loader.maskOrigins(attr.Expr, map[*local]bool{})
		b.loader.fail("FTP106", place{subject: attr.Expr.Range()}, "Not a certificate",
			"%q takes the text of certificates in PEM, as file(PATH) gives it, and %s.", name, err)
		return "", nil
	}
	return text, all
}

func parseCertificates(text string) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for rest := []byte(text); ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		switch {
		case block == nil && all == nil:
			return nil, errors.New("there is none in it")
		case block == nil:
			return all, nil
		case block.Type != "CERTIFICATE":
			return nil, fmt.Errorf("there is a %s in it, which does not belong there", strings.ToLower(block.Type))
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("number %d in it cannot be read: %w", len(all)+1, err)
		}
		all = append(all, c)
	}
}

// checkTLS holds what clients will see of a service's certificate.
func (l *loader) checkTLS(s *Service) {
	block, t := l.blocks[s], s.TLS
	switch {
	case t == nil && s.Server != "vsftpd":
		l.warn("FTP601", block.here(), "Plain FTP",
			"Passwords and files of ftp_service %q cross the network in clear text, as far as ftpdeploy knows. Keep it to networks that you trust.", s.Name)
		return
	case t == nil:
		l.warn("FTP601", block.here(), "Plain FTP",
			"Passwords and files of ftp_service %q cross the network in clear text. Give it a tls block, or keep it to networks that you trust.", s.Name)
		return
	case s.Server != "vsftpd":
		l.fail("FTP309", l.blocks[t].here(), "TLS is not ftpdeploy's to set up", "The server of ftp_service %q is external: its certificate is too. Remove the block.", s.Name)
		return
	case !s.LiveSettings && !block.failed["live_settings"]:
		l.fail("FTP309", l.blocks[t].here(), "The image takes no certificate",
			"The environment contract of fauria/vsftpd knows no TLS. Build the image of image/vsftpd, which takes certificate and key from files and a new one without a restart, and set live_settings = true.")
		return
	}
	if !t.Required {
		l.warn("FTP601", l.blocks[t].at("required"), "Plain FTP is let in",
			"Clients of ftp_service %q that do not ask for TLS send passwords and files in clear text. Leave required out once all of them do.", s.Name)
	}
	if len(t.Chain) > 0 {
		l.checkCertificate(t)
	}
}

func (l *loader) checkCertificate(t *TLS) {
	block, leaf, now := l.blocks[t], t.Chain[0], time.Now()
	// Without the expression: what it comes from is not quoted.
	at := func(arg string) place { return place{subject: block.at(arg).subject} }
	day := func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") }
	if !t.PrivateKey.IsZero() {
		if _, err := tls.X509KeyPair([]byte(t.Certificate), []byte(t.PrivateKey.Reveal())); err != nil {
			why := "It is not the private key of the certificate, in PEM and without a passphrase"
			if strings.Contains(t.PrivateKey.Reveal(), "ENCRYPTED") {
				why = "It has a passphrase, and nobody is there to type it when the server starts. Take it away: openssl pkey -in KEY -out KEY.plain"
			}
			l.fail("FTP605", at("private_key"), "Key does not fit the certificate", "%s (certificate: %s).", why, leaf.Subject)
		}
	}
	if key, ok := leaf.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() < leastRSA {
		l.fail("FTP605", at("certificate"), "Key is too short", "It has an RSA key of %d bits, and servers and clients of today take %d at least.", key.N.BitLen(), leastRSA)
	}
	switch left := leaf.NotAfter.Sub(now); {
	case left <= 0:
		l.fail("FTP605", at("certificate"), "Certificate has expired", "%s ended at %s. Clients refuse it: renew it.", leaf.Subject, day(leaf.NotAfter))
		return
	case now.Before(leaf.NotBefore):
		l.fail("FTP605", at("certificate"), "Certificate is not valid yet", "%s begins at %s, and the clock here says %s.", leaf.Subject, day(leaf.NotBefore), day(now))
		return
	case left < renewBefore:
		l.warn("FTP605", at("certificate"), "Certificate ends soon", "%s ends at %s, in %s. A renewed one is one edit and one apply, and cuts nothing.", leaf.Subject, day(leaf.NotAfter), days(left))
	}
	if t.ServerName != "" {
		if err := leaf.VerifyHostname(t.ServerName); err != nil {
			l.fail("FTP605", at("certificate"), "Certificate is for another name",
				"Clients connect to %s, and %s. Take one that is for it, or say by server_name what clients use.", t.ServerName, isFor(leaf))
			return
		}
	}
	if t.Roots == nil {
		return
	}
	intermediates := x509.NewCertPool()
	for _, c := range t.Chain[1:] {
		intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: t.Roots, Intermediates: intermediates, CurrentTime: now}); err != nil {
		l.fail("FTP605", at("certificate"), "Certificate is not trusted",
			"No chain of valid certificates leads from %s to ca_certificate: %s. Intermediate certificates stand in certificate, after the server's own.", leaf.Subject, err)
	}
}

func days(d time.Duration) string {
	if n := int(d / (24 * time.Hour)); n != 1 {
		return fmt.Sprintf("%d days", n)
	}
	return "1 day"
}

// isFor says for which hosts a certificate is.
func isFor(c *x509.Certificate) string {
	hosts := c.DNSNames
	for _, a := range c.IPAddresses {
		hosts = append(hosts, a.String())
	}
	if hosts == nil {
		return "it names no host (subjectAltName)"
	}
	return "it is for " + strings.Join(hosts, ", ")
}
