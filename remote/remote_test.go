package remote

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/ftpdeploy/ftpdeploy/remote/sshtest"
)

// config enters s without becoming root.
func config(s *sshtest.Server) Config {
	return Config{
		Name: "haproxy-a", Address: s.Address, User: s.User,
		IdentityFile: s.Identity, HostKeys: []string{s.HostKey},
	}
}

func enter(t *testing.T, c Config) *Host {
	t.Helper()
	h, err := Dial(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func TestRunSendsScriptAndInputOnStdin(t *testing.T) {
	s := sshtest.Start(t)
	h := enter(t, config(s))
	input := bytes.Repeat([]byte("a line with a canary\x00\n"), 20000)
	out, err := h.Run(t.Context(), "x='it''s'\necho \"$x\"; exec cat", input)
	if err != nil {
		t.Fatal(err)
	}
	if want := "its\n" + string(input); string(out) != want {
		t.Errorf("got %d bytes, want %d", len(out), len(want))
	}
	for _, c := range s.Commands() {
		if strings.Contains(c, "canary") || strings.Contains(c, "exec cat") {
			t.Errorf("script or input in the arguments: %s", c)
		}
	}
}

func TestRunTellsStatusAndStderr(t *testing.T) {
	h := enter(t, config(sshtest.Start(t)))
	_, err := h.Run(t.Context(), "echo out\necho 'line 7: no such server' >&2\nexit 3", nil)
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Status != 3 {
		t.Fatalf("got %v, want exit status 3", err)
	}
	if want := "on haproxy-a: exit status 3: line 7: no such server"; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	h := enter(t, config(sshtest.Start(t)))
	ctx, cancel := context.WithCancelCause(t.Context())
	started := filepath.Join(t.TempDir(), "started")
	enough := errors.New("enough")
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(started); err == nil {
				cancel(enough)
			}
			runtime.Gosched()
		}
	}()
	defer cancel(nil)
	if _, err := h.Run(ctx, "touch "+started+"; exec sleep 1000", nil); !errors.Is(err, enough) {
		t.Errorf("got %v, want the cause of the end", err)
	}
}

func TestRunEndsThoughTheServerIsSilent(t *testing.T) {
	s := sshtest.Start(t)
	h := enter(t, config(s))
	defer s.Freeze()()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("waited for haproxy-a"))
	defer cancel()
	if _, err := h.Run(ctx, "echo", nil); err == nil || !strings.Contains(err.Error(), "waited for haproxy-a") {
		t.Errorf("got %v, want the cause of the end", err)
	}
	for h.Alive() {
		runtime.Gosched()
	}
}

func TestRunTellsThatTheConnectionBroke(t *testing.T) {
	s := sshtest.Start(t)
	h, err := Dial(t.Context(), config(s))
	if err != nil {
		t.Fatal(err)
	}
	started := filepath.Join(t.TempDir(), "started")
	go func() {
		for t.Context().Err() == nil {
			if _, err := os.Stat(started); err == nil {
				s.Cut()
				return
			}
			runtime.Gosched()
		}
	}()
	_, err = h.Run(t.Context(), "touch "+started+"; exec sleep 1000", nil)
	var exit *ExitError
	if err == nil || errors.As(err, &exit) {
		t.Errorf("got %v, want an error of the connection", err)
	}
}

// fakeSudo acts as sudo does with -n and -S, for the user of FAKE_SUDO: "free"
// needs no password, "never" is not in the sudoers, all else is the password.
const fakeSudo = `#!/bin/sh
prompt=
case $1 in
-n) shift ;;
-S) [ "$2" = -p ] || exit 2; prompt=$3; shift 3 ;;
*) exit 2 ;;
esac
[ "$1" = -- ] || exit 2
shift
[ "$FAKE_SUDO" != free ] || exec "$@"
if [ -z "$prompt" ]; then echo 'sudo: a password is required' >&2; exit 1; fi
for try in 1 2 3; do
	printf %s "$prompt" >&2
	IFS= read -r given || { echo "sudo: no password was provided" >&2; exit 1; }
	echo "$given" >>"$FAKE_SUDO_LOG"
	[ "$given" != "$FAKE_SUDO" ] || exec "$@"
	printf 'Sorry, try again.\n\n' >&2
done
echo 'sudo: 3 incorrect password attempts' >&2
exit 1
`

func TestSudo(t *testing.T) {
	const password = "canary-pa$$'word"
	for _, test := range []struct {
		name, accepts, given string
		asked                int // passwords that sudo may have read
		want                 []string
	}{
		{name: "no password needed, none given", accepts: "free"},
		{name: "no password needed, one given", accepts: "free", given: password},
		{name: "password", accepts: password, given: password, asked: 1},
		{name: "password missing", accepts: password, want: []string{"a password is required", "deploy ALL=(ALL) NOPASSWD: ALL"}},
		{name: "wrong password", accepts: "other", given: password, asked: 1, want: []string{"check become_password", "deploy ALL=(ALL) ALL"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			bin := t.TempDir()
			log := filepath.Join(bin, "log")
			if err := os.WriteFile(filepath.Join(bin, "sudo"), []byte(fakeSudo), 0o755); err != nil {
				t.Fatal(err)
			}
			s := sshtest.Start(t)
			s.Env = append(s.Env, "PATH="+bin+":"+os.Getenv("PATH"), "FAKE_SUDO="+test.accepts, "FAKE_SUDO_LOG="+log)
			c := config(s)
			c.Become, c.BecomePassword = true, test.given
			out, err := enter(t, c).Run(t.Context(), "cat; exit 1", []byte("input"))
			if test.want == nil {
				var exit *ExitError
				if !errors.As(err, &exit) || exit.Stderr != "" {
					t.Errorf("got %q, %v, want the script's exit status 1", out, err)
				}
			} else if !errors.Is(err, ErrSudo) {
				t.Fatalf("got %v, want ErrSudo", err)
			}
			for _, w := range test.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
			if test.want != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("what sudo says is not on one line: %q", err)
			}
			if strings.Contains(err.Error(), password) || strings.Contains(fmt.Sprint(s.Commands()), password) {
				t.Error("the password is in the error or in the arguments")
			}
			read, _ := os.ReadFile(log)
			if n := strings.Count(string(read), "\n"); n != test.asked || strings.Contains(string(read), "cat") {
				t.Errorf("sudo read %q for passwords", read)
			}
		})
	}
}

func TestSudoSuccess(t *testing.T) {
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "sudo"), []byte(fakeSudo), 0o755); err != nil {
		t.Fatal(err)
	}
	s := sshtest.Start(t)
	s.Env = append(s.Env, "PATH="+bin+":"+os.Getenv("PATH"), "FAKE_SUDO=secret", "FAKE_SUDO_LOG=/dev/null")
	c := config(s)
	c.Become, c.BecomePassword = true, "secret"
	out, err := enter(t, c).Run(t.Context(), "cat", []byte("input"))
	if err != nil || string(out) != "input" {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestHostKeyIsVerifiedBeforeLogin(t *testing.T) {
	s := sshtest.Start(t)
	s.Password = "secret"
	other, _ := sshtest.NewKey(t)
	c := config(s)
	c.Password = "secret"
	knownHostsFile := func(lines ...string) string {
		file := filepath.Join(t.TempDir(), "known_hosts")
		if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(s.HostKey))
	if err != nil {
		t.Fatal(err)
	}
	addr := knownhosts.Normalize(s.Address)
	for _, test := range []struct {
		name   string
		pinned []string
		known  string
		want   string // "" = let in
	}{
		{name: "pinned", pinned: []string{s.HostKey}},
		{name: "one of several pinned", pinned: []string{sshtest.Line(other.PublicKey()), s.HostKey}},
		{name: "another pinned", pinned: []string{sshtest.Line(other.PublicKey())}, want: "pinned is ssh-ed25519 " + ssh.FingerprintSHA256(other.PublicKey())},
		{name: "pinned text is no key", pinned: []string{"ssh-ed25519 nonsense"}, want: "parse the pinned key"},
		{name: "nothing to trust", want: "no host key is pinned"},
		{name: "known", known: knownHostsFile(knownhosts.Line([]string{s.Address}, key))},
		{name: "known, hashed", known: knownHostsFile(knownhosts.HashHostname(addr) + " " + s.HostKey)},
		{name: "known by another key", known: knownHostsFile(knownhosts.Line([]string{s.Address}, other.PublicKey())), want: "line 1 has another"},
		{name: "unknown", known: knownHostsFile(knownhosts.Line([]string{"198.51.100.1"}, key)), want: "is not in"},
		{name: "revoked", known: knownHostsFile(knownhosts.Line([]string{s.Address}, key), "@revoked * "+s.HostKey), want: "is revoked in"},
		{name: "no such file", known: filepath.Join(t.TempDir(), "none"), want: "no such file"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := c
			c.HostKeys, c.KnownHosts = test.pinned, test.known
			before := s.Attempts()
			h, err := Dial(t.Context(), c)
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				h.Close()
				return
			}
			if !errors.Is(err, ErrHostKey) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want ErrHostKey with %q", err, test.want)
			}
			if s.Attempts() != before {
				t.Error("a login was tried with a machine that is not trusted")
			}
		})
	}
}

// TestAsksForKnownKeyTypes holds that a server with several keys is asked for
// the type that is known, and one that lacks it is not trusted.
func TestAsksForKnownKeyTypes(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	public, err := ssh.NewPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	rsaLine := sshtest.Line(public)
	trust, err := pinned([]string{rsaLine})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(trust.algorithms, " "); got != "rsa-sha2-512 rsa-sha2-256" {
		t.Errorf("asks for %s", got)
	}
	s := sshtest.Start(t)
	c := config(s)
	c.HostKeys = []string{rsaLine}
	if _, err := Dial(t.Context(), c); !errors.Is(err, ErrHostKey) || !strings.Contains(err.Error(), "rsa-sha2-512") {
		t.Errorf("got %v, want ErrHostKey that names the types", err)
	}
	if s.Attempts() != 0 {
		t.Error("a login was tried")
	}
}

func TestLogin(t *testing.T) {
	s := sshtest.Start(t)
	s.Password = "right"
	_, stranger := sshtest.NewKey(t)
	locked := lockedKey(t)
	for _, test := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{name: "key", change: func(*Config) {}},
		{name: "password", change: func(c *Config) { c.IdentityFile, c.Password = "", "right" }},
		{name: "password after key", change: func(c *Config) { c.IdentityFile, c.Password = stranger, "right" }},
		{name: "agent", change: func(c *Config) { c.AgentSocket, c.IdentityFile = startAgent(t, s.Identity), stranger }},
		{name: "agent beside a locked file", change: func(c *Config) { c.AgentSocket, c.IdentityFile = startAgent(t, s.Identity), locked }},
		{name: "wrong key", change: func(c *Config) { c.IdentityFile = stranger }, want: `for user "deploy" (offered: identity file ` + stranger + ")"},
		{name: "wrong password", change: func(c *Config) { c.IdentityFile, c.Password = "", "canary" }, want: "offered: password"},
		{name: "wrong user", change: func(c *Config) { c.User = "root" }, want: `for user "root"`},
		{name: "locked file", change: func(c *Config) { c.IdentityFile = locked }, want: "ssh-add"},
		{name: "no file", change: func(c *Config) { c.IdentityFile = "/nonexistent" }, want: "read the identity file"},
		{name: "nothing", change: func(c *Config) { c.IdentityFile = "" }, want: "neither"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := config(s)
			test.change(&c)
			h, err := Dial(t.Context(), c)
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				h.Close()
				return
			}
			if !errors.Is(err, ErrAuth) || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "canary") {
				t.Errorf("got %v, want ErrAuth with %q", err, test.want)
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	s := sshtest.Start(t)
	for _, test := range []struct{ name, address, want string }{
		{"refused", closed.Addr().String(), "connection refused"},
		{"silent", silent.Addr().String(), "no login within 100ms"},
	} {
		c := config(s)
		c.Address, c.ConnectTimeout = test.address, 100*time.Millisecond
		_, err := Dial(t.Context(), c)
		if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want ErrUnreachable with %q", test.name, err, test.want)
		}
	}
}

func TestBastion(t *testing.T) {
	bastion, box := sshtest.Start(t), sshtest.Start(t)
	through := config(bastion)
	through.Name = "jump"
	c := config(box)
	c.Bastion = &through
	h := enter(t, c)
	if out, err := h.Run(t.Context(), "echo hello", nil); err != nil || string(out) != "hello\n" {
		t.Fatalf("got %q, %v", out, err)
	}
	if len(bastion.Commands()) != 0 || len(box.Commands()) != 1 {
		t.Error("the command did not run on the box alone")
	}
	through.HostKeys = []string{box.HostKey}
	if _, err := Dial(t.Context(), c); !errors.Is(err, ErrHostKey) || !strings.Contains(err.Error(), "jump") {
		t.Errorf("got %v, want ErrHostKey of the bastion", err)
	}
}

func TestDialContext(t *testing.T) {
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		if c, err := echo.Accept(); err == nil {
			io.Copy(c, c)
			c.Close()
		}
	}()
	h := enter(t, config(sshtest.Start(t)))
	conn, err := h.DialContext(t.Context(), "tcp", echo.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "220 hello")
	got := make([]byte, 9)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "220 hello" {
		t.Errorf("got %q, %v", got, err)
	}
	echo.Close()
	if _, err := h.DialContext(t.Context(), "tcp", echo.Addr().String()); err == nil || !strings.Contains(err.Error(), "connect from haproxy-a to 127.0.0.1") {
		t.Errorf("got %v, want a refusal that names both ends", err)
	}
}

// lockedKey makes a file with a private key behind a passphrase.
func lockedKey(t *testing.T) string {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte("passphrase"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "locked")
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// startAgent runs an SSH agent that holds the key of file.
func startAgent(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.ParseRawPrivateKey(text)
	if err != nil {
		t.Fatal(err)
	}
	ring := agent.NewKeyring()
	if err := ring.Add(agent.AddedKey{PrivateKey: key}); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go agent.ServeAgent(ring, conn)
		}
	}()
	return socket
}
