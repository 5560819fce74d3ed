// Package ftp moves files over FTP (RFC 959, RFC 2428) and explicit FTPS (RFC 4217)
// in the passive modes, and proves by it that an FTP service works from end to end.
// It uses the standard library only.
package ftp

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/textproto"
	"strconv"
	"strings"
	"time"
)

// DefaultTimeout bounds a step of a session where Config or Probe give no bound.
const DefaultTimeout = 10 * time.Second

// DialFunc opens a connection as net.Dialer.DialContext does. It may lead through
// another machine; the connections need not support deadlines.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Config is how a session is opened.
type Config struct {
	Address string            // host:port of the control connection
	Dial    DialFunc          // for control and data; nil = directly
	TLS     *TLS              // nil = in clear text
	Timeout time.Duration     // for each connect, handshake, reply, read and write; 0 = DefaultTimeout
	Trace   func(line string) // called with each command ("> "), reply ("< ") and connection ("* "); no passwords
}

// errGone says that a control connection was ended by the other side.
var errGone = errors.New("the other side closed the control connection")

// Reply is an answer of the server that is an error here.
type Reply struct {
	Code int    // RFC 959, section 4.2
	Text string // lines are parted by "\n"
}

func (r *Reply) Error() string { return fmt.Sprintf("%03d %s", r.Code, r.Text) }

// Client is a session. It is not safe for concurrent use. After an error that is
// not a *Reply the session is of no more use.
type Client struct {
	config   Config
	conn     net.Conn
	text     *textproto.Conn
	tls      *tls.Config // of an encrypted session, else nil
	last     *Reply      // nil before the greeting
	password string
}

// Dial opens a session, reads the server's greeting and, with TLS, encrypts what
// follows.
func Dial(ctx context.Context, config Config) (*Client, error) {
	c, err := connect(ctx, config)
	if err != nil {
		return nil, err
	}
	err = c.greeting(ctx)
	if err == nil && config.TLS != nil {
		err = c.encrypt(ctx)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// connect opens the control connection.
func connect(ctx context.Context, config Config) (*Client, error) {
	if config.Dial == nil {
		config.Dial = new(net.Dialer).DialContext
	}
	if config.Timeout == 0 {
		config.Timeout = DefaultTimeout
	}
	if config.Trace == nil {
		config.Trace = func(string) {}
	}
	c := &Client{config: config}
	conn, err := c.dial(ctx, config.Address)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", config.Address, err)
	}
	c.conn, c.text = conn, textproto.NewConn(conn)
	return c, nil
}

// greeting reads the reply that the server gives to a new connection.
func (c *Client) greeting(ctx context.Context) error {
	for {
		if _, err := c.read(ctx, 0); err != nil {
			return fmt.Errorf("greeting of %s: %w", c.config.Address, err)
		}
		switch c.last.Code {
		case 220:
			return nil
		case 120: // ready in some minutes
		default:
			return fmt.Errorf("greeting of %s: %w", c.config.Address, c.last)
		}
	}
}

// Close ends the session without a word. It may be called again.
func (c *Client) Close() { _ = c.conn.Close() } // nothing that was sent is lost by its error

// LastReply is what the server said last, as "425 Failed to establish connection.";
// "" before its greeting.
func (c *Client) LastReply() string {
	if c.last == nil {
		return ""
	}
	return c.last.Error()
}

// Login enters, and switches to binary transfers; with TLS to encrypted ones.
func (c *Client) Login(ctx context.Context, user, password string) error {
	c.password = password
	if _, err := c.command(ctx, 0, "USER "+user); err != nil {
		return err
	}
	switch c.last.Code / 100 {
	case 2: // no password wanted
	case 3:
		if _, err := c.command(ctx, 2, "PASS "+password); err != nil {
			return err
		}
	default:
		return fmt.Errorf("USER: %w", c.last)
	}
	if c.tls != nil {
		for _, line := range []string{"PBSZ 0", "PROT P"} { // RFC 4217, section 9
			if _, err := c.command(ctx, 2, line); err != nil {
				return err
			}
		}
	}
	_, err := c.command(ctx, 2, "TYPE I")
	return err
}

// Passive asks for a data port (PASV) and returns the address that the server
// announces.
func (c *Client) Passive(ctx context.Context) (netip.AddrPort, error) {
	text, err := c.command(ctx, 227, "PASV")
	if err != nil {
		return netip.AddrPort{}, err
	}
	return parsePassive(text)
}

// parsePassive reads the text of a 227 reply: RFC 959, section 4.1.2, PORT and PASV.
func parsePassive(text string) (netip.AddrPort, error) {
	malformed := fmt.Errorf("reply 227 %q has no address of the form (h1,h2,h3,h4,p1,p2)", text)
	_, rest, ok := strings.Cut(text, "(")
	list, _, ok2 := strings.Cut(rest, ")")
	fields := strings.Split(list, ",")
	if !ok || !ok2 || len(fields) != 6 {
		return netip.AddrPort{}, malformed
	}
	var b [6]byte
	for i, f := range fields {
		n, err := strconv.ParseUint(f, 10, 8)
		if err != nil {
			return netip.AddrPort{}, malformed
		}
		b[i] = byte(n)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[:4])), uint16(b[4])<<8|uint16(b[5])), nil
}

// ExtendedPassive asks for a data port (EPSV). It is at the address of the control
// connection.
func (c *Client) ExtendedPassive(ctx context.Context) (port int, err error) {
	text, err := c.command(ctx, 229, "EPSV")
	if err != nil {
		return 0, err
	}
	return parseExtendedPassive(text)
}

// parseExtendedPassive reads the text of a 229 reply: RFC 2428, section 3.
func parseExtendedPassive(text string) (int, error) {
	malformed := fmt.Errorf("reply 229 %q has no port of the form (|||port|)", text)
	_, rest, ok := strings.Cut(text, "(")
	field, _, ok2 := strings.Cut(rest, ")")
	if !ok || !ok2 || len(field) < 5 {
		return 0, malformed
	}
	delimiter := field[0]
	if delimiter < 33 || delimiter > 126 || strings.Trim(field, field[:1]) != field[3:len(field)-1] || field[len(field)-1] != delimiter {
		return 0, malformed
	}
	port, err := strconv.ParseUint(field[3:len(field)-1], 10, 16)
	if err != nil || port == 0 {
		return 0, malformed
	}
	return int(port), nil
}

// DialData opens the data connection that Passive or ExtendedPassive led to.
func (c *Client) DialData(ctx context.Context, address string) (net.Conn, error) {
	data, err := c.dial(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("data connection to %s: %w", address, err)
	}
	return data, nil
}

// List returns the listing of a path (LIST), "" = the working directory.
// Like Store and Retrieve it closes the data connection.
func (c *Client) List(ctx context.Context, data net.Conn, path string) ([]byte, error) {
	var listing bytes.Buffer
	_, err := c.transfer(ctx, data, strings.TrimSpace("LIST "+path), func(data net.Conn) (int64, error) {
		return c.receive(ctx, &listing, data)
	})
	return listing.Bytes(), err
}

// Store writes a file (STOR) and returns the number of bytes sent.
func (c *Client) Store(ctx context.Context, data net.Conn, path string, from io.Reader) (int64, error) {
	return c.transfer(ctx, data, "STOR "+path, func(data net.Conn) (int64, error) {
		return c.send(ctx, data, from)
	})
}

// Retrieve reads a file (RETR) and returns the number of bytes received. The server
// says by its last reply that this is all, but it cannot see what the network dropped:
// compare with what is expected.
func (c *Client) Retrieve(ctx context.Context, data net.Conn, path string, to io.Writer) (int64, error) {
	return c.transfer(ctx, data, "RETR "+path, func(data net.Conn) (int64, error) {
		return c.receive(ctx, to, data)
	})
}

// Delete removes a file (DELE).
func (c *Client) Delete(ctx context.Context, path string) error {
	_, err := c.command(ctx, 250, "DELE "+path)
	return err
}

// Size returns the size of a file in bytes (SIZE, RFC 3659). For a file that is not
// there the error is a *Reply with code 550.
func (c *Client) Size(ctx context.Context, path string) (int64, error) {
	text, err := c.command(ctx, 213, "SIZE "+path)
	if err != nil {
		return 0, err
	}
	size, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("reply 213 %q is not a size", text)
	}
	return size, nil
}

// Quit takes leave and closes the session.
func (c *Client) Quit(ctx context.Context) error {
	_, err := c.command(ctx, 221, "QUIT")
	c.Close()
	return err
}

// transfer gives a command that moves data, moves them, and reads the server's
// verdict.
func (c *Client) transfer(ctx context.Context, conn net.Conn, line string, move func(data net.Conn) (int64, error)) (int64, error) {
	data := readAhead(conn)
	defer data.Close()
	begin, end := context.WithCancelCause(ctx)
	defer end(nil)
	go data.whenGone(begin, func() { end(timeoutError(goneGrace)) })
	_, err := c.command(begin, 1, line)
	end(nil)
	if err != nil {
		if data.gone() {
			return 0, fmt.Errorf("%w (its data connection to %s was closed before)", err, data.RemoteAddr())
		}
		return 0, err
	}
	to := net.Conn(data)
	resumed := true
	if c.tls != nil {
		protected, err := c.protect(ctx, data)
		if err != nil {
			return 0, c.unprotected(ctx, data, err)
		}
		to, resumed = protected, protected.ConnectionState().DidResume
	}
	n, moved := move(to)
	c.finish(ctx, to)
	_, err = c.read(ctx, 2)
	switch {
	case !resumed:
		return n, notResumed(err)
	case moved != nil && err != nil:
		return n, fmt.Errorf("data connection to %s after %d bytes: %w; then %w", data.RemoteAddr(), n, moved, err)
	case moved != nil:
		return n, fmt.Errorf("data connection to %s after %d bytes: %w", data.RemoteAddr(), n, moved)
	case err != nil:
		return n, fmt.Errorf("after %d bytes: %w", n, err)
	}
	return n, nil
}

func (c *Client) receive(ctx context.Context, to io.Writer, data net.Conn) (int64, error) {
	var total int64
	buf := make([]byte, 64<<10)
	for {
		var n int
		err := c.within(ctx, data, func() (err error) {
			n, err = data.Read(buf)
			return err
		})
		total += int64(n)
		if _, err := to.Write(buf[:n]); err != nil {
			return total, err
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

func (c *Client) send(ctx context.Context, data net.Conn, from io.Reader) (int64, error) {
	var total int64
	buf := make([]byte, 64<<10)
	for {
		n, end := from.Read(buf)
		err := c.within(ctx, data, func() error {
			written, err := data.Write(buf[:n])
			total += int64(written)
			return err
		})
		if err != nil {
			return total, err
		}
		if errors.Is(end, io.EOF) {
			return total, nil
		}
		if end != nil {
			return total, end
		}
	}
}

// command sends a line and reads the reply, which must be of the wanted kind: 2 is
// any 2xx, 227 only this, 0 any. The error of an unwanted reply is a *Reply.
func (c *Client) command(ctx context.Context, want int, line string) (text string, err error) {
	verb, _, _ := strings.Cut(line, " ")
	if strings.ContainsAny(line, "\r\n\x00") {
		return "", fmt.Errorf("%s: its argument holds a control character", verb)
	}
	if verb == "PASS" {
		c.config.Trace("> PASS (sensitive)")
	} else {
		c.config.Trace("> " + c.mask(line))
	}
	err = c.within(ctx, c.conn, func() error { return c.text.PrintfLine("%s", line) })
	if err != nil {
		return "", fmt.Errorf("send %s: %w", verb, err)
	}
	text, err = c.read(ctx, want)
	if err != nil {
		return "", fmt.Errorf("%s: %w", verb, err)
	}
	return text, nil
}

// read reads a reply.
func (c *Client) read(ctx context.Context, want int) (text string, err error) {
	var code int
	err = c.within(ctx, c.conn, func() (err error) {
		code, text, err = c.text.ReadResponse(0)
		return err
	})
	if errors.Is(err, io.EOF) {
		return "", errGone
	}
	if err != nil {
		return "", err
	}
	c.last = &Reply{Code: code, Text: c.mask(text)}
	c.config.Trace("< " + c.last.Error())
	if want != 0 && code != want && code/100 != want {
		return "", c.last
	}
	return text, nil
}

// mask hides the password where a server repeats it.
func (c *Client) mask(s string) string {
	if c.password == "" {
		return s
	}
	return strings.ReplaceAll(s, c.password, "(sensitive)")
}

func (c *Client) dial(ctx context.Context, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.config.Timeout, timeoutError(c.config.Timeout))
	defer cancel()
	conn, err := c.config.Dial(ctx, "tcp", address)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		c.config.Trace("* connect to " + address + ": " + err.Error())
		return nil, err
	}
	c.config.Trace("* connected to " + address)
	return conn, nil
}

// within bounds f, which reads or writes conn, by the session's timeout and by ctx:
// either ends it by closing conn, since not every connection has deadlines.
func (c *Client) within(ctx context.Context, conn net.Conn, f func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.config.Timeout, timeoutError(c.config.Timeout))
	defer cancel()
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn() // whose end waits for nothing
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	err := f()
	if !stop() {
		return context.Cause(ctx)
	}
	return err
}

// timeoutError says how long was waited in vain; it is a context.DeadlineExceeded.
type timeoutError time.Duration

func (e timeoutError) Error() string { return "nothing came within " + time.Duration(e).String() }
func (timeoutError) Unwrap() error   { return context.DeadlineExceeded }
func (timeoutError) Timeout() bool   { return true }
