package ftp

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"reflect"
	"sync"
	"time"
)

// TLS is how a session is encrypted: explicit FTPS, that is AUTH TLS and PROT P of
// RFC 4217. Each data connection resumes the TLS session of the control connection,
// by which a server knows that both come from the same client (RFC 4217, section 10.2;
// vsftpd's require_ssl_reuse).
type TLS struct {
	Name       string         // a DNS name or an address that the certificate must be for
	Roots      *x509.CertPool // that it must lead to; nil = those of this machine
	MinVersion uint16         // tls.VersionTLS12, ...
	// Fresh begins a TLS session of its own on each data connection, as clients do
	// that cannot resume one.
	Fresh bool
}

// TLSError says what is wrong with the encryption of a session. Each cause has a
// code of its own.
type TLSError struct {
	Code string // FTP611 to FTP616
	Text string // in plain words, with what to do
	Err  error  // what it was told by; may be nil
}

func (e *TLSError) Error() string {
	text := e.Text
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text + " [" + e.Code + "]"
}

func (e *TLSError) Unwrap() error { return e.Err }

// sessions is the cache of one FTP session. crypto/tls takes a ticket of TLS 1.3 away
// when it is used, and of an upload's connection, which is never read, no new one
// comes: so the last one stays.
type sessions struct {
	mu   sync.Mutex
	last *tls.ClientSessionState
}

func (s *sessions) Get(string) (*tls.ClientSessionState, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last, s.last != nil
}

func (s *sessions) Put(_ string, state *tls.ClientSessionState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state != nil {
		s.last = state
	}
}

// encrypt asks for TLS and makes the control connection one of it.
func (c *Client) encrypt(ctx context.Context) error {
	if _, err := c.command(ctx, 234, "AUTH TLS"); err != nil {
		return &TLSError{"FTP615", "the server offers no TLS: it does not run with the certificate, or is another one", err}
	}
	if n := c.text.R.Buffered(); n > 0 {
		return &TLSError{"FTP615", fmt.Sprintf("%d bytes came in clear text after the server's word for TLS: something on the way adds them", n), nil}
	}
	c.tls = &tls.Config{
		ServerName: c.config.TLS.Name, RootCAs: c.config.TLS.Roots, MinVersion: c.config.TLS.MinVersion, ClientSessionCache: &sessions{},
	}
	protected := tls.Client(c.conn, c.tls)
	if err := c.handshake(ctx, protected); err != nil {
		return c.explain(err)
	}
	c.conn, c.text = protected, textproto.NewConn(protected)
	return nil
}

func (c *Client) handshake(ctx context.Context, conn *tls.Conn) error {
	err := c.within(ctx, conn, func() error { return conn.HandshakeContext(ctx) })
	if err != nil {
		c.config.Trace("* TLS: " + err.Error())
		return err
	}
	s := conn.ConnectionState()
	how := "a new session"
	if s.DidResume {
		how = "resumed"
	}
	c.config.Trace(fmt.Sprintf("* %s, %s, %s", tls.VersionName(s.Version), tls.CipherSuiteName(s.CipherSuite), how))
	return nil
}

// explain gives an error of a handshake its code.
func (c *Client) explain(err error) error {
	var (
		invalid x509.CertificateInvalidError
		name    x509.HostnameError
		unknown x509.UnknownAuthorityError
	)
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		day := func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") }
		if now := time.Now(); now.Before(invalid.Cert.NotBefore) {
			return &TLSError{"FTP611", fmt.Sprintf("the certificate is not valid yet: it begins at %s, and here it is %s", day(invalid.Cert.NotBefore), day(now)), err}
		}
		return &TLSError{"FTP611", fmt.Sprintf("the certificate expired at %s: clients refuse it; renew it and apply", day(invalid.Cert.NotAfter)), err}
	case errors.As(err, &name):
		return &TLSError{"FTP612", fmt.Sprintf("the certificate is not for %s, where clients connect to", c.config.TLS.Name), err}
	case errors.As(err, &unknown), errors.As(err, &invalid):
		return &TLSError{"FTP613", "the certificate is not trusted: no chain of valid certificates leads from it to a CA that clients know; is an intermediate certificate missing in it?", err}
	case tooOld(err):
		return &TLSError{"FTP616", fmt.Sprintf("the server does not speak %s or newer", tls.VersionName(c.config.TLS.MinVersion)), err}
	}
	return &TLSError{"FTP615", "the TLS handshake failed", err}
}

// tooOld tells whether the other side's last word was that it speaks none of our
// versions: the alert protocol_version of RFC 8446, section 6, which crypto/tls has in
// a type that it keeps to itself.
func tooOld(err error) bool {
	var alert *net.OpError
	if !errors.As(err, &alert) || alert.Op != "remote error" {
		return false
	}
	v := reflect.ValueOf(alert.Err)
	return v.Kind() == reflect.Uint8 && v.Uint() == 70
}

// protect makes a data connection one of TLS.
func (c *Client) protect(ctx context.Context, data net.Conn) (*tls.Conn, error) {
	config := c.tls
	if c.config.TLS.Fresh {
		config = config.Clone()
		config.ClientSessionCache = nil
	}
	protected := tls.Client(data, config)
	return protected, c.handshake(ctx, protected)
}

// unprotected is the error of a data connection whose handshake failed, with what
// the server says of it.
func (c *Client) unprotected(ctx context.Context, data net.Conn, err error) error {
	data.Close()
	if _, verdict := c.read(ctx, 2); verdict != nil {
		err = fmt.Errorf("%w; then %w", err, verdict)
	}
	return fmt.Errorf("data connection to %s: %w", data.RemoteAddr(), c.explain(err))
}

// notResumed is the error of a transfer over a data connection that did not resume
// the session of the control connection; verdict is what the server said of it.
func notResumed(verdict error) error {
	if verdict == nil {
		return &TLSError{"FTP614", "the server let a data connection in that did not resume the TLS session of its control connection: " +
			"whoever guesses the port can take it over; is TLS ended by something before the server?", nil}
	}
	return &TLSError{"FTP614", "the data connection did not resume the TLS session of the control connection, and the server wants that: " +
		"the client cannot, or has it switched off, or TLS is ended by something before the server", verdict}
}

// finish ends what we send over a data connection. Of TLS the other side's end is
// waited for too: a connection that is closed with tickets unread is reset, and with
// it may go what is under way.
func (c *Client) finish(ctx context.Context, data net.Conn) {
	if t, ok := data.(*tls.Conn); ok {
		_ = c.within(ctx, data, func() error { // the server's verdict follows
			if err := t.CloseWrite(); err != nil {
				return err
			}
			_, err := io.Copy(io.Discard, t)
			return err
		})
	}
	data.Close()
}
