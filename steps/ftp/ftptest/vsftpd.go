// Package ftptest runs the real vsftpd for tests, without root.
package ftptest

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// User and Password enter the server.
const (
	User     = "anonymous"
	Password = "probe@example.com"
)

// Server is a vsftpd that listens on all IPv4 addresses and checks the source of
// data connections (pasv_promiscuous=NO). It ends with the test.
type Server struct {
	Port        int
	PassivePort int // the first; the others follow
	root        string
}

// Upload is a directory of the server. The client may write to it and beside it.
const Upload = "upload"

// Start runs vsftpd with a number of passive ports and further settings, each a
// line of vsftpd.conf, and returns when it listens.
func Start(t testing.TB, passivePorts int, settings ...string) Server {
	t.Helper()
	first := FreePorts(t, passivePorts+1)
	s := Server{Port: first, PassivePort: first + 1, root: t.TempDir()}
	if err := os.Mkdir(filepath.Join(s.root, Upload), 0o755); err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`listen=YES
listen_port=%d
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
`, s.Port, s.PassivePort, s.PassivePort+passivePorts-1, s.root, strings.Join(settings, "\n"))
	path := filepath.Join(t.TempDir(), "vsftpd.conf")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	s.run(t, path)
	return s
}

func (s Server) run(t testing.TB, config string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "/usr/sbin/vsftpd", config)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // its output says more than its status
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", s.Port))
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-tick.C:
		case <-ended:
			t.Fatalf("vsftpd ended: %s", out.String())
		case <-deadline:
			t.Fatal("waited 10 s for vsftpd to listen")
		}
	}
}

// Left returns the paths of the files that the server has.
func (s Server) Left(t testing.TB) []string {
	t.Helper()
	var paths []string
	err := fs.WalkDir(os.DirFS(s.root), ".", func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// FreePorts returns the first of n ports in a row that nothing uses, outside of the
// range from which the kernel gives ports to clients.
func FreePorts(t testing.TB, n int) int {
	t.Helper()
	row := ListenRow(t, n)
	for _, l := range row {
		l.Close()
	}
	return row[0].Addr().(*net.TCPAddr).Port
}

// ListenRow listens on n ports in a row of all IPv4 addresses until the test ends.
func ListenRow(t testing.TB, n int) []net.Listener {
	t.Helper()
	for range 100 {
		first := 20000 + rand.IntN(10000)
		var row []net.Listener
		for p := first; p < first+n; p++ {
			l, err := new(net.ListenConfig).Listen(t.Context(), "tcp4", fmt.Sprintf(":%d", p))
			if err != nil {
				break
			}
			row = append(row, l)
			t.Cleanup(func() { l.Close() })
		}
		if len(row) == n {
			return row
		}
		for _, l := range row {
			l.Close()
		}
	}
	t.Fatalf("no %d free ports in a row", n)
	return nil
}
