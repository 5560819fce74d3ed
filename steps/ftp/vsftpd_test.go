package ftp

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// vsftpd runs the real server, without root, with its source check on; it returns
// a probe of it and the directory that the probe uses.
func vsftpd(t *testing.T, passivePorts int, more ...string) (Probe, string) {
	t.Helper()
	root, dir := t.TempDir(), "upload"
	if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
		t.Fatal(err)
	}
	first := consecutive(t, passivePorts+1)
	config := fmt.Sprintf(`listen=YES
listen_address=127.0.0.1
listen_port=%[1]d
background=NO
run_as_launching_user=YES
seccomp_sandbox=NO
isolate=NO
isolate_network=NO
secure_chroot_dir=%[4]s
anonymous_enable=YES
local_enable=NO
anon_root=%[4]s
write_enable=YES
anon_upload_enable=YES
anon_other_write_enable=YES
anon_world_readable_only=NO
pasv_min_port=%[2]d
pasv_max_port=%[3]d
pasv_promiscuous=NO
%[5]s
`, first, first+1, first+passivePorts, root, strings.Join(more, "\n"))
	path := filepath.Join(t.TempDir(), "vsftpd.conf")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "/usr/sbin/vsftpd", path)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	p := Probe{
		Address: fmt.Sprintf("127.0.0.1:%d", first), User: "anonymous", Password: "probe@example.com", Modes: []string{PASV, EPSV},
		ExpectAddress: netip.MustParseAddr("127.0.0.1"), PortFirst: first + 1, PortLast: first + passivePorts,
		Upload: 1 << 20, Dir: dir,
	}
	deadline := time.After(10 * time.Second)
	for tick := time.NewTicker(10 * time.Millisecond); ; {
		c, err := net.Dial("tcp", p.Address)
		if err == nil {
			c.Close()
			return p, filepath.Join(root, dir)
		}
		select {
		case <-tick.C:
		case err := <-ended:
			ended <- err
			t.Fatalf("vsftpd ended: %v\n%s", err, out.String())
		case <-deadline:
			t.Fatal("waited for vsftpd to listen")
		}
	}
}

func entries(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func TestVsftpd(t *testing.T) {
	p, dir := vsftpd(t, 11)
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
	if left := entries(t, dir); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

func TestVsftpdLongTransfer(t *testing.T) {
	p, dir := vsftpd(t, 3)
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
	if left := entries(t, dir); left != nil {
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
			p, dir := vsftpd(t, 3, c.setting)
			if c.fault != nil {
				c.fault(&p)
			}
			_, err := p.Run(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %s", err, c.want)
			}
			left := entries(t, dir)
			saysLeft := err != nil && strings.Contains(err.Error(), "may be left")
			if wantLeft := c.name == "no deletion"; (left != nil) != wantLeft || saysLeft != wantLeft {
				t.Errorf("left behind %v, says so: %v; want %v\n%v", left, saysLeft, wantLeft, err)
			}
		})
	}
}
