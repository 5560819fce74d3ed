package ftp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestProbe(t *testing.T) {
	s := newServer(t, 3)
	s.breakIt(func(f *faults) { f.echo = true })
	p := s.probe()
	p.ExpectAddress = netip.MustParseAddr("127.0.0.1")
	p.EveryPort = true
	p.LongIdle = 20 * time.Millisecond
	report, err := p.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range report.Checks {
		names = append(names, c.Name)
		if !c.OK {
			t.Errorf("check %+v is not ok without an error", c)
		}
		if strings.HasSuffix(c.Name, "load") && (c.Bytes != p.Upload || c.BytesPerSecond() <= 0 || c.Port < p.PortFirst) {
			t.Errorf("check %+v", c)
		}
	}
	want := "pasv connect, pasv greeting, pasv login, pasv list, pasv upload, pasv download, pasv list again, pasv every port, " +
		"pasv delete, pasv long transfer, pasv delete long, pasv quit, " +
		"epsv connect, epsv greeting, epsv login, epsv list, epsv upload, epsv download, epsv list again, epsv delete, epsv quit"
	if got := strings.Join(names, ", "); got != want {
		t.Errorf("checks\n%s, want\n%s", got, want)
	}
	if want := []int{p.PortFirst, p.PortFirst + 1, p.PortLast}; !reflect.DeepEqual(report.Ports, want) || report.NotDrawn != nil {
		t.Errorf("ports %v, not drawn %v, want %v", report.Ports, report.NotDrawn, want)
	}
	transcript := strings.Join(report.Transcript, "\n")
	if strings.Contains(transcript, password) || !strings.Contains(transcript, "> PASS (sensitive)") ||
		!strings.Contains(transcript, "< 230 Welcome, (sensitive)") || !strings.Contains(transcript, "< 221 Goodbye.") {
		t.Errorf("transcript\n%s", transcript)
	}
	if left := s.left(); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

func TestProbeNamesTheBrokenHop(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault func(*server, *faults, *Probe)
		want  string // with PORT for the first data port
		left  bool   // the file cannot be removed
	}{
		{"nobody listens", func(s *server, _ *faults, _ *Probe) {
			s.control.Close()
		}, `pasv connect: connect to ADDRESS: dial tcp ADDRESS: connect: connection refused`, false},
		{"no greeting", func(_ *server, f *faults, p *Probe) {
			f.greeting, p.Timeout = "-", time.Second
		}, `pasv greeting: greeting of ADDRESS: nothing came within 1s`, false},
		{"full", func(_ *server, f *faults, _ *Probe) {
			f.greeting = "421 There are too many connected users, please try later."
		}, `pasv greeting: greeting of ADDRESS: 421 There are too many connected users, please try later.`, false},
		{"wrong password", func(_ *server, f *faults, _ *Probe) {
			f.login = "530 Login incorrect."
		}, `pasv login: user "partner": PASS: 530 Login incorrect.`, false},
		{"echoed password", func(_ *server, f *faults, _ *Probe) {
			f.login = "530 No " + password
		}, `pasv login: user "partner": PASS: 530 No (sensitive)`, false},
		{"wrong address", func(_ *server, f *faults, _ *Probe) {
			f.announce = "10,42,0,9"
		}, `pasv list: the server announces 10.42.0.9, clients need 127.0.0.1 (last reply: 227 Entering Passive Mode (10,42,0,9,HI,LO).)`, false},
		{"no address", func(_ *server, f *faults, _ *Probe) {
			f.passive = "227 Entering Passive Mode 127,0,0,1,4,1"
		}, `pasv list: reply 227 "Entering Passive Mode 127,0,0,1,4,1" has no address of the form (h1,h2,h3,h4,p1,p2)`, false},
		{"passive mode off", func(_ *server, f *faults, _ *Probe) {
			f.passive = "550 Permission denied."
		}, `pasv list: PASV: 550 Permission denied.`, false},
		{"port out of range", func(_ *server, f *faults, _ *Probe) {
			f.passive = "227 Entering Passive Mode (127,0,0,1,4,1)."
		}, `pasv list: the server announces port 1025, outside FIRST-LAST (last reply: 227 Entering Passive Mode (127,0,0,1,4,1).)`, false},
		{"epsv port out of range", func(_ *server, f *faults, p *Probe) {
			f.passive, p.Modes = "229 Entering Extended Passive Mode (|||1025|)", []string{EPSV}
		}, `epsv list: the server announces port 1025, outside FIRST-LAST (last reply: 229 Entering Extended Passive Mode (|||1025|))`, false},
		{"data refused", func(s *server, _ *faults, _ *Probe) {
			s.ports[0].Close()
		}, `pasv list: data connection to 127.0.0.1:FIRST: dial tcp 127.0.0.1:FIRST: connect: connection refused (last reply: 227 Entering Passive Mode (127,0,0,1,HI,LO).)`, false},
		{"425", func(_ *server, f *faults, _ *Probe) {
			f.refuseData = "425 Security: Bad IP connecting."
		}, `pasv list: data port FIRST: LIST: 425 Security: Bad IP connecting.`, false},
		{"nobody behind the proxy", func(_ *server, f *faults, p *Probe) {
			f.dropData, p.Timeout = true, time.Second
		}, `pasv list: data port FIRST: LIST: nothing came within 1s (its data connection to 127.0.0.1:FIRST was closed before) (last reply: 227 Entering Passive Mode (127,0,0,1,HI,LO).)`, false},
		{"nobody behind the proxy, and patience", func(_ *server, f *faults, _ *Probe) {
			f.dropData = true
		}, `pasv list: data port FIRST: LIST: nothing came within 2s (its data connection to 127.0.0.1:FIRST was closed before) (last reply: 227 Entering Passive Mode (127,0,0,1,HI,LO).)`, false},
		{"cut upload", func(_ *server, f *faults, p *Probe) {
			f.cutStore, p.Upload = true, 50_000_000
		}, `pasv upload: data port SECOND: data connection to 127.0.0.1:SECOND after `, false},
		{"cut download", func(_ *server, f *faults, _ *Probe) {
			f.cutRetrieve = 1000
		}, `pasv download: data port FIRST: data connection to 127.0.0.1:FIRST after `, false},
		{"short download", func(_ *server, f *faults, _ *Probe) {
			f.shorten = true
		}, ` has 299999 bytes, uploaded were 300000 (last reply: 226 Transfer complete.)`, false},
		{"corrupted byte", func(_ *server, f *faults, _ *Probe) {
			f.corrupt = true
		}, ` came back changed: sha256 `, false},
		{"deletion refused", func(_ *server, f *faults, _ *Probe) {
			f.del = "450 Busy."
		}, `pasv delete: DELE: 450 Busy.`, true},
		{"deletion without effect", func(_ *server, f *faults, _ *Probe) {
			f.keep = true
		}, ` is still there after its deletion, with 300000 bytes (last reply: 213 300000)`, true},
		{"a port is never chosen", func(_ *server, f *faults, p *Probe) {
			f.fewPorts, p.EveryPort = true, true
		}, `pasv every port: the server did not choose a port: LAST, in 21 draws (last reply: 226 Transfer complete.)`, false},
		{"unknown mode", func(_ *server, _ *faults, p *Probe) {
			p.Modes = []string{"port"}
		}, `port list: no mode "port": there are pasv and epsv`, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, 2)
			p := s.probe()
			p.ExpectAddress = netip.MustParseAddr("127.0.0.1")
			s.breakIt(func(f *faults) { c.fault(s, f, &p) })
			report, err := p.Run(t.Context())
			if err == nil {
				t.Fatal("the probe succeeds")
			}
			first := port(s.ports[0])
			want := strings.NewReplacer("ADDRESS", p.Address, "FIRST", fmt.Sprint(first), "SECOND", fmt.Sprint(first+1),
				"LAST", fmt.Sprint(p.PortLast), "HI", fmt.Sprint(first>>8), "LO", fmt.Sprint(first&255)).Replace(c.want)
			if !strings.Contains(err.Error(), want) {
				t.Errorf("error\n%s, want\n%s", err, want)
			}
			var fault *Fault
			if !errors.As(err, &fault) {
				t.Errorf("%T is no fault", err)
			}
			if strings.Contains(err.Error(), password) || strings.Contains(strings.Join(report.Transcript, "\n"), password) {
				t.Error("the password is shown")
			}
			failed := 0
			for _, check := range report.Checks {
				if !check.OK {
					failed++
				}
			}
			if failed == 0 {
				t.Errorf("no check failed: %+v", report.Checks)
			}
			if left := s.left(); (left != nil) != c.left {
				t.Errorf("left behind: %v, want %v", left, c.left)
			}
			if saysLeft := strings.Contains(err.Error(), "may be left at"); saysLeft != c.left {
				t.Errorf("says that something is left: %v: %s", saysLeft, err)
			}
		})
	}
}

func TestProbeCleansUpAfterCancel(t *testing.T) {
	s := newServer(t, 2)
	stalled := make(chan struct{})
	s.breakIt(func(f *faults) { f.stallStore = stalled })
	p := s.probe()
	p.Upload = 50_000_000
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		<-stalled
		cancel(errors.New("the operator has gone"))
	}()
	report, err := p.Run(ctx)
	if err == nil || !strings.Contains(err.Error(), "the operator has gone") {
		t.Errorf("error %v", err)
	}
	if last := report.Checks[len(report.Checks)-1]; last.Name != "clean up" || !last.OK {
		t.Errorf("last check %+v", last)
	}
	if left := s.left(); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

// noDeadlines is a connection like that of an SSH channel.
type noDeadlines struct{ net.Conn }

func (noDeadlines) SetDeadline(time.Time) error      { return errors.New("deadline not supported") }
func (noDeadlines) SetReadDeadline(time.Time) error  { return errors.New("deadline not supported") }
func (noDeadlines) SetWriteDeadline(time.Time) error { return errors.New("deadline not supported") }

func TestProbeThroughADialer(t *testing.T) {
	s := newServer(t, 2)
	p := s.probe()
	p.Address = "203.0.113.15:21" // known to the dialer alone
	p.Modes = []string{EPSV}
	p.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(address)
		if err != nil || host != "203.0.113.15" {
			return nil, fmt.Errorf("no route to %s", address)
		}
		if port == "21" {
			address = s.address()
		} else {
			address = "127.0.0.1:" + port
		}
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		return noDeadlines{c}, err
	}
	if _, err := p.Run(t.Context()); err != nil {
		t.Error(err)
	}
	s.breakIt(func(f *faults) { f.greeting = "-" })
	p.Timeout = 50 * time.Millisecond
	if _, err := p.Run(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v without a greeting", err)
	}
}

func TestReadOnlyProbe(t *testing.T) {
	s := newServer(t, 2)
	p := s.probe()
	p.Upload = 0
	report, err := p.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if transcript := strings.Join(report.Transcript, "\n"); strings.Contains(transcript, "STOR") || strings.Count(transcript, "> LIST") != 4 {
		t.Errorf("transcript\n%s", transcript)
	}
}

func TestProbeRefusesWhatProvesNothing(t *testing.T) {
	for _, p := range []Probe{{Upload: 1}, {Modes: []string{PASV}, LongIdle: time.Second}} {
		if report, err := p.Run(t.Context()); err == nil || report.Transcript != nil {
			t.Errorf("error %v, transcript %v", err, report.Transcript)
		}
	}
}

func TestBeyondThirtyTwoPortsIsASample(t *testing.T) {
	s := newServer(t, 34)
	s.breakIt(func(f *faults) { f.fewPorts = true })
	p := s.probe()
	p.Modes, p.EveryPort, p.Upload = []string{PASV}, true, 10
	report, err := p.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Ports) != 33 || !reflect.DeepEqual(report.NotDrawn, []int{p.PortLast}) {
		t.Errorf("ports %v, not drawn %v", report.Ports, report.NotDrawn)
	}
	for _, c := range report.Checks {
		if c.Name == "pasv every port" && c.Detail != "33 of 34 ports in 100 draws" {
			t.Errorf("detail %q", c.Detail)
		}
	}
}

// TestProbeRemovesWhatOthersLeft holds that a file which a probe cannot remove is named, and
// that the next probe removes it.
func TestProbeRemovesWhatOthersLeft(t *testing.T) {
	s := newServer(t, 1)
	s.breakIt(func(f *faults) { f.keep = true })
	p := s.probe()
	p.Modes, p.Upload = []string{EPSV}, 10
	report, err := p.Run(t.Context())
	if err == nil || len(report.Left) != 1 || !reflect.DeepEqual(report.Left, s.left()) {
		t.Fatalf("left %q and there is %q: %v", report.Left, s.left(), err)
	}
	p.Remove, p.Upload = report.Left, 0
	if again, err := p.Run(t.Context()); err != nil || !reflect.DeepEqual(again.Left, report.Left) {
		t.Errorf("what cannot be removed still: %v, left %q", err, again.Left)
	}
	s.breakIt(func(f *faults) { f.keep = false })
	if again, err := p.Run(t.Context()); err != nil || again.Left != nil || s.left() != nil {
		t.Errorf("left %q and there is %q: %v", again.Left, s.left(), err)
	}
}

// TestPortInUse holds that a port which a client's transfer keeps counts as used, and that
// one which nobody uses is missed.
func TestPortInUse(t *testing.T) {
	s := newServer(t, 3)
	s.breakIt(func(f *faults) { f.fewPorts = true })
	p := s.probe()
	p.Modes, p.EveryPort, p.Upload = []string{PASV}, true, 0
	in := func(err error, ports ...int) InUse { return func(context.Context) ([]int, error) { return ports, err } }
	unknown := errors.New("no way in")
	for _, c := range []struct {
		name string
		use  InUse
		want string // of the error; "" = none
	}{
		{"its own", in(nil, p.PortFirst, p.PortLast), ""},
		{"its own, and a box is away", in(unknown, p.PortLast), ""},
		{"another", in(nil, p.PortFirst), "draws"},
		{"nobody knows", nil, "draws"},
		{"a box is away", in(unknown), "cannot be told: no way in"},
	} {
		p.InUse = c.use
		report, err := p.Run(t.Context())
		if !reflect.DeepEqual(report.NotDrawn, []int{p.PortLast}) {
			t.Errorf("%s: not drawn %v", c.name, report.NotDrawn)
		}
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, ErrNotDrawn) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestParsePassive(t *testing.T) {
	for text, want := range map[string]string{
		"Entering Passive Mode (203,0,113,15,82,108).": "203.0.113.15:21100",
		"ok (0,0,0,0,0,1)":                             "0.0.0.0:1",
		"Entering Passive Mode 203,0,113,15,82,108":    "",
		"Entering Passive Mode (203,0,113,15,82)":      "",
		"Entering Passive Mode (203,0,113,256,82,108)": "",
		"Entering Passive Mode (203,0,113,-1,82,108)":  "",
		"Entering Passive Mode (203, 0,113,1,82,108)":  "",
		"Entering Passive Mode (203,0,113,15,82,108":   "",
		"": "",
	} {
		got, err := parsePassive(text)
		if (err == nil) != (want != "") || err == nil && got.String() != want {
			t.Errorf("%q: %v %v, want %q", text, got, err, want)
		}
	}
}

func TestParseExtendedPassive(t *testing.T) {
	for text, want := range map[string]int{
		"Entering Extended Passive Mode (|||21100|)": 21100,
		"ok (!!!65535!)":      65535,
		"ok (|||65536|)":      0,
		"ok (|||0|)":          0,
		"ok (||21100|)":       0,
		"ok (|||21100)":       0,
		"ok (||||21100|)":     0,
		"ok (|1|a|21100|)":    0,
		"ok |||21100|":        0,
		"ok (|||)":            0,
		"ok (|||21100|":       0,
		"ok (   21100 )":      0,
		"ok (|||-1|)":         0,
		"ok (|||21100!) (x |": 0,
	} {
		got, err := parseExtendedPassive(text)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %v %v, want %v", text, got, err, want)
		}
	}
}

func TestControlCharactersAreRefused(t *testing.T) {
	s := newServer(t, 1)
	c, err := Dial(t.Context(), Config{Address: s.address()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	err = c.Login(t.Context(), "a\r\nQUIT", password)
	if want := "USER: its argument holds a control character"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}
