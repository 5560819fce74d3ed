// Package sshtest is an SSH server for tests, as net/http/httptest is an HTTP
// server: a real one at the protocol, which runs what it is sent with the sh of
// the machine that the test runs on. It refuses what it was not told about.
package sshtest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"
)

// Server is a running server. Its fields may be changed until the first login.
type Server struct {
	Address  string   // host:port
	HostKey  string   // its key, as authorized_keys has it
	Identity string   // file with the private key that User logs in with
	User     string   // "deploy"
	Password string   // "" = only the key is accepted
	Env      []string // of the commands; default: the test's own

	t        testing.TB
	host     ssh.Signer
	key      ssh.PublicKey
	listener net.Listener
	running  sync.WaitGroup

	frozen sync.RWMutex // held while the server answers nothing

	mu       sync.Mutex
	conns    []net.Conn
	ended    chan struct{} // closed at the end of the test
	cutAt    int           // command after whose start the connections are cut; 0 = none
	attempts int
	commands []string
}

// Start starts a server that ends with the test.
func Start(t testing.TB) *Server {
	t.Helper()
	s := &Server{t: t, User: "deploy", Env: os.Environ(), ended: make(chan struct{})}
	s.host, _ = NewKey(t)
	s.HostKey = Line(s.host.PublicKey())
	client, file := NewKey(t)
	s.key, s.Identity = client.PublicKey(), file
	var err error
	if s.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	s.Address = s.listener.Addr().String()
	s.running.Go(s.accept)
	t.Cleanup(func() {
		close(s.ended)
		s.listener.Close()
		s.Cut()
		s.running.Wait()
	})
	return s
}

// NewKey makes an Ed25519 key and a file that holds it.
func NewKey(t testing.TB) (ssh.Signer, string) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "id_ed25519")
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	return signer, file
}

// Line is a public key as authorized_keys has it.
func Line(key ssh.PublicKey) string { return string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(key))) }

// Cut breaks all connections, as a machine that loses its power does.
func (s *Server) Cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		c.Close()
	}
	s.conns = nil
}

// CutAt breaks all connections when the nth command from now on, counted from 1,
// has begun. The command goes on by itself, as one of a real sshd does.
func (s *Server) CutAt(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cutAt = n
	if n > 0 {
		s.cutAt += len(s.commands)
	}
}

// Freeze has the server answer no new command, as a machine that hangs; the
// result ends that.
func (s *Server) Freeze() (thaw func()) {
	s.frozen.Lock()
	return s.frozen.Unlock
}

func (s *Server) thawed() {
	s.frozen.RLock()
	defer s.frozen.RUnlock()
}

// Attempts is how often a login was tried, with whatever credential.
func (s *Server) Attempts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.attempts
}

// Commands returns the command lines that were run: what every user of the
// machine could see.
func (s *Server) Commands() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.commands...)
}

func (s *Server) accept() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns = append(s.conns, conn)
		s.mu.Unlock()
		s.running.Go(func() { s.serve(conn) })
	}
}

func (s *Server) config() *ssh.ServerConfig {
	refused := errors.New("refused")
	try := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.attempts++
	}
	c := &ssh.ServerConfig{
		PublicKeyCallback: func(m ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			try()
			if m.User() != s.User || !bytes.Equal(key.Marshal(), s.key.Marshal()) {
				return nil, refused
			}
			return nil, nil
		},
	}
	if s.Password != "" {
		c.PasswordCallback = func(m ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
			try()
			if m.User() != s.User || string(password) != s.Password {
				return nil, refused
			}
			return nil, nil
		}
	}
	c.AddHostKey(s.host)
	return c
}

func (s *Server) serve(conn net.Conn) {
	defer conn.Close()
	sc, channels, requests, err := ssh.NewServerConn(conn, s.config())
	if err != nil {
		return
	}
	defer sc.Close()
	go ssh.DiscardRequests(requests)
	for c := range channels {
		s.thawed()
		switch c.ChannelType() {
		case "session":
			s.running.Go(func() { s.session(c) })
		case "direct-tcpip":
			s.running.Go(func() { s.forward(c) })
		default:
			c.Reject(ssh.UnknownChannelType, c.ChannelType())
		}
	}
}

func (s *Server) session(c ssh.NewChannel) {
	channel, requests, err := c.Accept()
	if err != nil {
		return
	}
	defer channel.Close()
	for r := range requests {
		var command struct{ Line string }
		if r.Type != "exec" || ssh.Unmarshal(r.Payload, &command) != nil {
			r.Reply(false, nil)
			continue
		}
		r.Reply(true, nil)
		s.mu.Lock()
		s.commands = append(s.commands, command.Line)
		cut := s.cutAt == len(s.commands)
		s.mu.Unlock()
		s.exec(channel, requests, command.Line, cut)
		return
	}
}

func (s *Server) exec(channel ssh.Channel, requests <-chan *ssh.Request, line string, cut bool) {
	cmd := exec.Command("sh", "-c", line)
	cmd.Env = s.Env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stdout, cmd.Stderr = channel, channel.Stderr()
	in, err := cmd.StdinPipe()
	if err != nil {
		s.t.Error(err)
		return
	}
	if err := cmd.Start(); err != nil {
		s.t.Error(err)
		return
	}
	go func() {
		if cut { // once its input has come, which ends with the channel's end of file
			all, _ := io.ReadAll(channel)
			s.Cut()
			in.Write(all)
		} else {
			io.Copy(in, channel)
		}
		in.Close()
	}()
	over := make(chan struct{})
	go func() {
		for r := range requests {
			if r.Type == "signal" {
				syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
			}
		}
		select {
		case <-over:
		default: // the client is gone
			if cut {
				select {
				case <-over:
					return
				case <-s.ended:
				}
			}
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		}
	}()
	err = cmd.Wait()
	close(over)
	status := struct{ Code uint32 }{}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		status.Code = uint32(exit.ExitCode())
	}
	channel.SendRequest("exit-status", false, ssh.Marshal(status))
}

func (s *Server) forward(c ssh.NewChannel) {
	var to struct {
		Host     string
		Port     uint32
		FromHost string
		FromPort uint32
	}
	if err := ssh.Unmarshal(c.ExtraData(), &to); err != nil {
		c.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	target, err := net.Dial("tcp", net.JoinHostPort(strings.Trim(to.Host, "[]"), strconv.Itoa(int(to.Port))))
	if err != nil {
		c.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	defer target.Close()
	channel, requests, err := c.Accept()
	if err != nil {
		return
	}
	defer channel.Close()
	go ssh.DiscardRequests(requests)
	go func() {
		io.Copy(target, channel)
		target.(*net.TCPConn).CloseWrite()
	}()
	io.Copy(channel, target)
}
