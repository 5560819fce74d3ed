package steps

import (
	"bytes"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/vsphere/vcsim"
)

const metadata = `instance-id: fe276062-4dae-5ac0-96cc-0b082fe978d6
local-hostname: haproxy-a
network:
  ethernets:
    eth-front:
      accept-ra: false
      addresses:
      - 198.18.0.11/24
      dhcp4: false
      dhcp6: false
      link-local: []
      match:
        macaddress: "00:50:56:00:00:01"
      mtu: 1400
      nameservers:
        addresses:
        - 198.18.0.53
      routes:
      - to: 0.0.0.0/0
        via: 198.18.0.254
      set-name: eth-front
    workload:
      accept-ra: false
      addresses:
      - 198.18.1.11/24
      dhcp4: false
      dhcp6: false
      link-local: []
      match:
        macaddress: "00:50:56:00:00:02"
      set-name: workload
  version: 2
`

func cloudInitBox(t *testing.T) *blueprints.Box {
	t.Helper()
	box := newPair(t).topology.Boxes[0]
	box.NICs = box.NICs[:2]
	box.NICs[0].Interface = "eth-front"
	return box
}

func TestMetadata(t *testing.T) {
	box := cloudInitBox(t)
	got, _ := RenderCloudInit(box, "ftp-test", []string{"00:50:56:00:00:01", "00:50:56:00:00:02"})
	if string(got) != metadata {
		t.Errorf("got\n%s\nwant\n%s", got, metadata)
	}
	got, _ = RenderCloudInit(box, "ftp-test", nil)
	want := strings.NewReplacer(`"00:50:56:00:00:01"`, "(MAC 1)", `"00:50:56:00:00:02"`, "(MAC 2)").Replace(metadata)
	if string(got) != want {
		t.Errorf("without MAC addresses: got\n%s\nwant\n%s", got, want)
	}
}

type cloudConfig struct {
	DisableRoot *bool `json:"disable_root"`
	DeleteKeys  bool  `json:"ssh_deletekeys"`
	Users       []struct {
		Name, Sudo string
		LockPasswd *bool    `json:"lock_passwd"`
		Keys       []string `json:"ssh_authorized_keys"`
	}
	WriteFiles []struct{ Path, Permissions, Content string } `json:"write_files"`
	RunCmd     [][]string
}

func userdata(t *testing.T, box *blueprints.Box) (cloudConfig, []byte) {
	t.Helper()
	_, text := RenderCloudInit(box, "ftp-test", nil)
	_, again := RenderCloudInit(box, "ftp-test", nil)
	if !bytes.Equal(text, again) {
		t.Error("not the same twice")
	}
	body, ok := bytes.CutPrefix(text, []byte("#cloud-config\n"))
	var c cloudConfig
	if err := yaml.Unmarshal(body, &c); err != nil || !ok {
		t.Fatalf("%v:\n%s", err, text)
	}
	return c, text
}

func TestUserdata(t *testing.T) {
	box := cloudInitBox(t)
	c, _ := userdata(t, box)
	if len(c.Users) != 1 || c.Users[0].Name != "deploy" || c.Users[0].LockPasswd == nil || *c.Users[0].LockPasswd ||
		c.Users[0].Sudo != "ALL=(ALL) NOPASSWD:ALL" || len(c.Users[0].Keys) != 1 || !c.DeleteKeys || c.DisableRoot != nil {
		t.Errorf("%+v", c)
	}

	box.SSH.BecomePassword, box.SSH.Password = blueprints.NewSecret("sudo-secret"), blueprints.NewSecret("ssh-secret")
	c, text := userdata(t, box)
	if c.Users[0].Sudo != "" {
		t.Errorf("an account with a password of its own gets the rule %q", c.Users[0].Sudo)
	}
	for _, secret := range []string{"sudo-secret", "ssh-secret", "sensitive", vcsim.Password} {
		if bytes.Contains(text, []byte(secret)) {
			t.Errorf("%q is in the user data", secret)
		}
	}

	box.SSH.User, box.SSH.Become, box.SSH.BecomePassword = "root", "none", blueprints.Secret{}
	if c, _ := userdata(t, box); c.Users[0].Name != "root" || c.Users[0].Sudo != "" || c.DisableRoot == nil || *c.DisableRoot {
		t.Errorf("root: %+v", c)
	}
}

// The guest asks for a neighbour on each network, its gateway where there is one
// and never itself, before it says that it can be reached.
func TestAnnouncement(t *testing.T) {
	box := cloudInitBox(t)
	box.NICs[1].Address = netip.MustParseAddr("198.18.1.1")
	c, _ := userdata(t, box)
	want := []string{"bash", "-c", "echo >/dev/udp/198.18.0.254/9; echo >/dev/udp/198.18.1.2/9; :"}
	if len(c.RunCmd) == 0 || !slices.Equal(c.RunCmd[0], want) {
		t.Errorf("%q, want %q first", c.RunCmd, want)
	}
	box.NICs[1].Address = netip.MustParseAddr("198.18.1.11")
	if c, _ := userdata(t, box); !strings.Contains(c.RunCmd[0][2], "/198.18.1.1/") {
		t.Errorf("%q", c.RunCmd)
	}
}

// The script that the guest runs publishes what the pin is made of.
func TestHostKeysScript(t *testing.T) {
	c, _ := userdata(t, cloudInitBox(t))
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write("vmware-rpctool", "#!/bin/sh\nprintf '%s|' \"$@\"\n")
	run := func() (string, error) {
		script := exec.Command("sh", "-c", strings.ReplaceAll(c.WriteFiles[0].Content, "/etc/ssh/", dir+"/"))
		script.Env = []string{"PATH=" + dir + ":/usr/bin:/bin"}
		out, err := script.Output()
		return string(out), err
	}
	if out, err := run(); err == nil {
		t.Errorf("without keys it published %q", out)
	}
	write("ssh_host_ecdsa_key.pub", "ecdsa-sha2-nistp256 AAAAE2VjZHNh root@haproxy-a\n")
	write("ssh_host_ed25519_key.pub", vcsim.HostKeys+" root@haproxy-a\n")
	out, err := run()
	if want := "info-set guestinfo.ftpdeploy.hostkeys ecdsa-sha2-nistp256 AAAAE2VjZHNh;" + vcsim.HostKeys + ";|"; err != nil || out != want {
		t.Errorf("it published %q, %v; want %q", out, err, want)
	}
	if c.WriteFiles[0].Permissions != "0755" || !strings.Contains(c.WriteFiles[1].Content, "ExecStart="+c.WriteFiles[0].Path+"\n") {
		t.Errorf("the unit does not start the script: %+v", c.WriteFiles)
	}
}
