package ftp

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/steps/ftp/ftptest"
)

// vsftpd runs the real server and returns a probe of it.
func vsftpd(t *testing.T, passivePorts int, settings ...string) (Probe, ftptest.Server) {
	t.Helper()
	s := ftptest.Start(t, passivePorts, settings...)
	return Probe{
		Address: fmt.Sprintf("127.0.0.1:%d", s.Port), User: ftptest.User, Password: ftptest.Password, Modes: []string{PASV, EPSV},
		ExpectAddress: netip.MustParseAddr("127.0.0.1"), PortFirst: s.PassivePort, PortLast: s.PassivePort + passivePorts - 1,
		Upload: 1 << 20, Dir: ftptest.Upload,
	}, s
}

func TestVsftpd(t *testing.T) {
	p, server := vsftpd(t, 11)
	p.EveryPort = true
	report, err := p.Run(t.Context())
	if err != nil {
		t.Fatalf("%v\n%s", err, strings.Join(report.Transcript, "\n"))
	}
	var want []int
	for port := p.PortFirst; port <= p.PortLast; port++ {
		want = append(want, port)
	}
	if !reflect.DeepEqual(report.Ports, want) {
		t.Errorf("ports %v, want %v", report.Ports, want)
	}
	if left := server.Left(t); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

func TestVsftpdLongTransfer(t *testing.T) {
	p, server := vsftpd(t, 3)
	p.Modes, p.LongIdle = []string{EPSV}, 1500*time.Millisecond
	report, err := p.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range report.Checks {
		if c.Name == "epsv long transfer" && (c.Duration < p.LongIdle || c.Bytes == 0) {
			t.Errorf("check %+v", c)
		}
	}
	if left := server.Left(t); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

func TestVsftpdFaults(t *testing.T) {
	for _, c := range []struct {
		name, setting, want string
		fault               func(*Probe)
	}{
		{"wrong address", "pasv_address=10.42.0.9", "pasv list: the server announces 10.42.0.9, clients need 127.0.0.1", nil},
		{"no upload", "anon_upload_enable=NO", "STOR: 550 Permission denied.", nil},
		{"no deletion", "anon_other_write_enable=NO", "pasv delete: DELE: 550 Permission denied.", nil},
		{"no such account", "", `pasv login: user "partner": USER: 530 This FTP server is anonymous only.`, func(p *Probe) {
			p.User = "partner"
		}},
		{"no such directory", "", "STOR: 553 Could not create file.", func(p *Probe) {
			p.Dir = "nowhere"
		}},
		// The data connection comes from another address than the control connection.
		{"two sources", "", "LIST: 425 Security: Bad IP connecting.", func(p *Probe) {
			control := p.Address
			p.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
				if address == control {
					d.LocalAddr = nil
				}
				return d.DialContext(ctx, network, address)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, server := vsftpd(t, 3, c.setting)
			if c.fault != nil {
				c.fault(&p)
			}
			_, err := p.Run(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %s", err, c.want)
			}
			left := server.Left(t)
			saysLeft := err != nil && strings.Contains(err.Error(), "may be left")
			if wantLeft := c.name == "no deletion"; (left != nil) != wantLeft || saysLeft != wantLeft {
				t.Errorf("left behind %v, says so: %v; want %v\n%v", left, saysLeft, wantLeft, err)
			}
		})
	}
}
