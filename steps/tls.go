package steps

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/kube"
	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/steps/ftp"
)

// What a service's TLS Secret holds beside the pair that its type demands. All
// that TLS needs is in this one object, so a pod either has it or serves in clear text.
const (
	certificateFile = "tls.crt"
	keyFile         = "tls.key"
	tlsEnabled      = "SSL_ENABLE"
	tlsForced       = "FORCE_SSL"
	tlsLeast        = "TLS_MIN_VERSION"
	tlsMost         = "TLS_MAX_VERSION"
	tlsRevision     = "TLS_REVISION"
)

func (w workload) tlsName() string { return w.service.Name + "-tls" }

// tlsSecret is the Secret of certificate and private key.
func (w workload) tlsSecret() kube.Object {
	t := w.service.TLS
	forced := "NO"
	if t.Required {
		forced = "YES"
	}
	data := map[string]string{
		certificateFile: t.Certificate, keyFile: t.PrivateKey.Reveal(), tlsEnabled: "YES", tlsForced: forced, tlsLeast: t.MinVersion, tlsMost: t.MaxVersion,
	}
	digest := sha256.New()
	encoded := map[string]any{}
	for _, name := range []string{certificateFile, keyFile, tlsEnabled, tlsForced, tlsLeast, tlsMost} {
		fmt.Fprintf(digest, "%s=%d\n%s\n", name, len(data[name]), data[name])
		encoded[name] = base64Text(data[name])
	}
	encoded[tlsRevision] = base64Text(fmt.Sprintf("%x", digest.Sum(nil))[:16])
	return kube.Object{
		"apiVersion": "v1", "kind": "Secret", "metadata": w.metadata(w.tlsName()), "type": "kubernetes.io/tls", "data": encoded,
	}
}

func (w workload) tlsRef() kube.Ref {
	return kube.Ref{Kind: "Secret", Namespace: w.service.Namespace, Name: w.tlsName()}
}

func (w workload) isTLS(r kube.Ref) bool { return r == w.tlsRef() }

// tlsDetail is what a change from live, which may be nil, to a manifest of tlsSecret
// means.
func (w workload) tlsDetail(live *kube.Live, o kube.Object) ([]plan.Field, error) {
	var before tlsData
	if live != nil {
		if err := live.Decode(&before); err != nil {
			return nil, err
		}
	}
	after, err := decodeTLS(o)
	return tlsFields(before, after), err
}

// tlsData is what a TLS Secret holds, as the API has it.
type tlsData struct{ Data map[string][]byte }

func (d tlsData) chain() []*x509.Certificate {
	var all []*x509.Certificate
	for rest := d.Data[certificateFile]; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return all
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			all = append(all, c)
		}
	}
}

// facts are what a plan shows of a TLS Secret: of the key nothing.
func (d tlsData) facts() []plan.Field {
	facts := []plan.Field{{Path: "certificate.subject"}, {Path: "certificate.expires"}, {Path: "certificate.sha256"}}
	if chain := d.chain(); chain != nil {
		facts[0].After = chain[0].Subject.String()
		facts[1].After = chain[0].NotAfter.UTC().Format(time.RFC3339)
		facts[2].After = fmt.Sprintf("%x", sha256.Sum256(chain[0].Raw))
	}
	for _, name := range []string{tlsForced, tlsLeast, tlsMost, tlsRevision} {
		facts = append(facts, plan.Field{Path: name, After: string(d.Data[name])})
	}
	return facts
}

// tlsFields are what differs between two TLS Secrets, in words.
func tlsFields(before, after tlsData) []plan.Field {
	var fields []plan.Field
	was := before.facts()
	for i, f := range after.facts() {
		if f.Before = was[i].After; f.Before != f.After {
			fields = append(fields, f)
		}
	}
	if !bytes.Equal(before.Data[keyFile], after.Data[keyFile]) {
		fields = append(fields, plan.Field{Path: keyFile, Before: sensitiveIf(before.Data[keyFile]), After: sensitiveIf(after.Data[keyFile])})
	}
	return fields
}

func sensitiveIf(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	return "(sensitive)"
}

// decodeTLS reads a manifest of tlsSecret.
func decodeTLS(o kube.Object) (tlsData, error) {
	d := tlsData{Data: map[string][]byte{}}
	data, _ := o["data"].(map[string]any)
	for name, v := range data {
		encoded, _ := v.(string)
		text, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			return d, fmt.Errorf("read %s of %s: %w", name, o.Ref(), err)
		}
		d.Data[name] = text
	}
	return d, nil
}

// servedTLS is the TLS Secret of a service as the cluster has it; nil where there is
// none.
func servedTLS(ctx context.Context, c *kube.Client, w workload) (*tlsData, error) {
	live, err := find(ctx, c, w.tlsRef())
	if err != nil || live == nil {
		return nil, err
	}
	var d tlsData
	return &d, live.Decode(&d)
}

// Certificate returns the certificate of a service as the cluster has it; nil where
// it serves in clear text.
func (l *Live) Certificate(ctx context.Context, s *blueprints.Service) (*x509.Certificate, error) {
	c, err := l.cluster(ctx, s.Cluster)
	if err != nil {
		return nil, err
	}
	d, err := servedTLS(ctx, c, workload{l.topology, s})
	if err != nil || d == nil {
		return nil, err
	}
	if chain := d.chain(); chain != nil {
		return chain[0], nil
	}
	return nil, fmt.Errorf("%s holds no certificate", workload{l.topology, s}.tlsRef())
}

// DaysLeft is how many whole days a certificate is still good for; negative when it
// has expired.
func DaysLeft(c *x509.Certificate, now time.Time) int {
	left := c.NotAfter.Sub(now)
	if left < 0 {
		return -1 - int(-left/(24*time.Hour))
	}
	return int(left / (24 * time.Hour))
}

// formerTLS is how clients reach a service that has these certificates, whoever
// else may trust them.
func (d tlsData) formerTLS(now *blueprints.TLS) *blueprints.TLS {
	t := &blueprints.TLS{Required: string(d.Data[tlsForced]) == "YES", MinVersion: string(d.Data[tlsLeast]), MaxVersion: string(d.Data[tlsMost]), Chain: d.chain(), Roots: x509.NewCertPool()}
	for _, c := range t.Chain {
		t.Roots.AddCert(c)
	}
	switch {
	case now != nil:
		t.ServerName = now.ServerName
	case len(t.Chain) > 0 && len(t.Chain[0].DNSNames) > 0:
		t.ServerName = t.Chain[0].DNSNames[0]
	case len(t.Chain) > 0 && len(t.Chain[0].IPAddresses) > 0:
		t.ServerName = t.Chain[0].IPAddresses[0].String()
	}
	return t
}

// sameTLS tells whether clients find the same at both.
func sameTLS(a, b *blueprints.TLS) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Required == b.Required && a.MinVersion == b.MinVersion && a.MaxVersion == b.MaxVersion && len(a.Chain) > 0 && len(b.Chain) > 0 && a.Chain[0].Equal(b.Chain[0])
}

// clientTLS is how the proofs encrypt; nil in clear text.
func clientTLS(t *blueprints.TLS) *ftp.TLS {
	if t == nil {
		return nil
	}
	least := uint16(tls.VersionTLS12)
	if t.MinVersion == "1.3" {
		least = tls.VersionTLS13
	}
	return &ftp.TLS{Name: t.ServerName, Roots: t.Roots, MinVersion: least}
}
