package ftp

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/steps/ftp/ftptest"
)

// server is an FTP server that keeps files in memory, knows the commands that the
// client gives and no other, and has a switch for each way to break.
type server struct {
	t       *testing.T
	control net.Listener
	ports   []net.Listener // the passive ports

	mu    sync.Mutex
	fault faults
	files map[string][]byte
	drawn int
}

// faults are what the server does wrong.
type faults struct {
	greeting    string        // instead of 220; "-" = none ever
	login       string        // reply to PASS
	passive     string        // reply to PASV and EPSV
	announce    string        // host in 227, as "10,42,0,9"
	refuseData  string        // reply to LIST, STOR and RETR instead of moving data
	dropData    bool          // accept data connections, close them, and never reply
	cutRetrieve int           // RETR sends so many bytes and dies
	shorten     bool          // RETR leaves the last byte out and says 226
	corrupt     bool          // RETR changes a byte
	cutStore    bool          // the session dies in the middle of STOR
	stallStore  chan struct{} // STOR reads nothing, closes the channel
	del         string        // reply to DELE instead of deleting
	keep        bool          // DELE says 250 and deletes nothing
	fewPorts    bool          // never choose the last port
	echo        bool          // repeat the password in replies
}

// breakIt changes what the server does wrong from its next command on.
func (s *server) breakIt(change func(*faults)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.fault)
}

func (s *server) faults() faults {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fault
}

const password = "s3cret-word"

func newServer(t *testing.T, passivePorts int) *server {
	t.Helper()
	s := &server{t: t, files: map[string][]byte{}}
	row := ftptest.ListenRow(t, passivePorts+1)
	s.control, s.ports = row[0], row[1:]
	go func() {
		for {
			c, err := s.control.Accept()
			if err != nil {
				return
			}
			go s.session(c)
		}
	}()
	return s
}

func (s *server) address() string { return fmt.Sprintf("127.0.0.1:%d", port(s.control)) }

func port(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }

// left returns the names of the files that are there.
func (s *server) left() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for name := range s.files {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

func (s *server) session(conn net.Conn) {
	defer conn.Close()
	reply := func(line string) { fmt.Fprintf(conn, "%s\r\n", line) }
	f := s.faults()
	switch f.greeting {
	case "":
		reply("220-Welcome\r\n220 to the test")
	case "-":
		io.Copy(io.Discard, conn)
		return
	default:
		reply(f.greeting)
	}
	var data net.Listener
	accept := func() net.Conn {
		c, err := data.Accept()
		if err != nil {
			s.t.Error(err)
		}
		return c
	}
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		f = s.faults()
		verb, arg, _ := strings.Cut(lines.Text(), " ")
		switch verb {
		case "USER":
			reply("331 Please specify the password.")
		case "PASS":
			switch {
			case f.login != "":
				reply(f.login)
			case f.echo:
				reply("230 Welcome, " + arg)
			default:
				reply("230 Login successful.")
			}
		case "TYPE":
			reply("200 Switching to Binary mode.")
		case "PASV", "EPSV":
			if f.passive != "" {
				reply(f.passive)
				continue
			}
			s.mu.Lock()
			n := len(s.ports)
			if f.fewPorts {
				n--
			}
			data = s.ports[s.drawn%n]
			s.drawn++
			s.mu.Unlock()
			host := "127,0,0,1"
			if f.announce != "" {
				host = f.announce
			}
			if p := port(data); verb == "PASV" {
				reply(fmt.Sprintf("227 Entering Passive Mode (%s,%d,%d).", host, p>>8, p&255))
			} else {
				reply(fmt.Sprintf("229 Entering Extended Passive Mode (|||%d|)", p))
			}
		case "LIST", "STOR", "RETR":
			if f.dropData {
				accept().Close()
				continue
			}
			if f.refuseData != "" {
				defer accept().Close()
				reply(f.refuseData)
				continue
			}
			reply("150 Here it comes.")
			c := accept()
			if !s.move(c, verb, arg) {
				c.Close()
				return
			}
			c.Close()
			reply("226 Transfer complete.")
		case "DELE":
			s.mu.Lock()
			_, there := s.files[arg]
			if !f.keep && f.del == "" {
				delete(s.files, arg)
			}
			s.mu.Unlock()
			switch {
			case f.del != "":
				reply(f.del)
			case !there:
				reply("550 Delete operation failed.")
			default:
				reply("250 Delete operation successful.")
			}
		case "SIZE":
			s.mu.Lock()
			content, there := s.files[arg]
			s.mu.Unlock()
			if there {
				reply(fmt.Sprintf("213 %d", len(content)))
			} else {
				reply("550 Could not get file size.")
			}
		case "QUIT":
			reply("221 Goodbye.")
			return
		default:
			s.t.Errorf("the client says %q", lines.Text())
			reply("500 Unknown command.")
		}
	}
}

// move moves data as the command says; false means that the session dies here.
func (s *server) move(c net.Conn, verb, name string) bool {
	s.mu.Lock()
	content, f := s.files[name], s.fault
	s.mu.Unlock()
	switch verb {
	case "LIST":
		for _, file := range s.left() {
			if name == "" || name == file {
				fmt.Fprintf(c, "-rw-------    1 1000     1000            1 Nov 23 04:00 %s\r\n", file)
			}
		}
	case "STOR":
		s.mu.Lock()
		s.files[name] = nil
		s.mu.Unlock()
		if f.stallStore != nil {
			s.breakIt(func(f *faults) { f.stallStore = nil })
			close(f.stallStore)
			io.Copy(io.Discard, c)
			return false
		}
		if f.cutStore {
			s.breakIt(func(f *faults) { f.cutStore = false })
			io.CopyN(io.Discard, c, 10)
			c.(*net.TCPConn).SetLinger(0)
			return false
		}
		content, err := io.ReadAll(c)
		if err != nil {
			s.t.Error(err)
		}
		s.mu.Lock()
		s.files[name] = content
		s.mu.Unlock()
	case "RETR":
		switch {
		case f.cutRetrieve > 0:
			c.Write(content[:f.cutRetrieve])
			c.(*net.TCPConn).SetLinger(0)
			return false
		case f.shorten:
			content = content[:len(content)-1]
		case f.corrupt:
			content = append([]byte{content[0] ^ 1}, content[1:]...)
		}
		c.Write(content)
	}
	return true
}

// probe returns a probe of the server.
func (s *server) probe() Probe {
	return Probe{
		Address: s.address(), User: "partner", Password: password, Modes: []string{PASV, EPSV},
		PortFirst: port(s.ports[0]), PortLast: port(s.ports[len(s.ports)-1]), Upload: 300_000, Timeout: 10 * time.Second,
	}
}
