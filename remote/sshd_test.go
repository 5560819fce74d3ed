package remote

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/remote/sshtest"
	"github.com/ftpdeploy/ftpdeploy/steps/ftp/ftptest"
)

// realSSHD starts OpenSSH's sshd on loopback, as the user of the test and with a
// configuration of its own, and returns how it is entered. Its commands have PATH
// and BOX of env.
func realSSHD(t *testing.T, env []string) Config {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	host, hostFile := sshtest.NewKey(t)
	client, clientFile := sshtest.NewKey(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	port := ftptest.FreePorts(t, 1)
	var set []string
	for _, e := range env {
		if strings.HasPrefix(e, "PATH=") || strings.HasPrefix(e, "BOX=") {
			set = append(set, e)
		}
	}
	set = set[len(set)-2:] // the last ones count
	config := write("sshd_config", fmt.Sprintf(`ListenAddress 127.0.0.1:%d
HostKey %s
AuthorizedKeysFile %s
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
PermitRootLogin prohibit-password
SetEnv %s
`, port, hostFile, write("authorized_keys", sshtest.Line(client.PublicKey())+"\n"), strings.Join(set, " ")))

	if os.Geteuid() == 0 {
		// As root it wants the directory that its service unit makes.
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	sshd := exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", config)
	sshd.Stderr = &log
	if err := sshd.Start(); err != nil {
		t.Fatalf("start the real sshd (package openssh-server): %v", err)
	}
	t.Cleanup(func() {
		sshd.Process.Kill()
		sshd.Wait()
		if t.Failed() {
			t.Logf("sshd: %s", &log)
		}
	})
	c := Config{
		Name: "sshd", Address: fmt.Sprintf("127.0.0.1:%d", port), User: me.Username,
		IdentityFile: clientFile, HostKeys: []string{sshtest.Line(host.PublicKey())},
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		conn, err := net.Dial("tcp", c.Address)
		if err == nil {
			conn.Close()
			return c
		}
		if time.Now().After(deadline) {
			t.Fatalf("sshd does not listen: %v", err)
		}
	}
}
