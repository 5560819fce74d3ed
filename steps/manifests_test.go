package steps

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
)

var update = flag.Bool("update", false, "rewrite the golden files, and fail")

const canary = "c4nary-p4ssword"

// ftpTopology is a deployment "lab" with one FTP service as small as it can be.
func ftpTopology() (*blueprints.Topology, *blueprints.Service) {
	cluster := &blueprints.Cluster{Name: "tkg", NodePortFirst: 30000, NodePortLast: 32767}
	s := &blueprints.Service{
		Name: "vsftpd", Cluster: cluster, VIP: &blueprints.VIP{Name: "ftp", Address: netip.MustParseAddr("203.0.113.15")},
		Namespace: "ftp", CreateNamespace: true, Server: "vsftpd", Image: "docker.io/ftpdeploy/vsftpd:lab", PullPolicy: "IfNotPresent", Replicas: 1,
		ControlPort: 21, ControlNodePort: 30021, PassiveFirst: 21100, PassiveLast: 21102, NodePortFirst: 32100, SameSourceIP: true,
		Users: []*blueprints.User{{Name: "partner", Password: blueprints.NewSecret(canary), Home: "/home/vsftpd/partner", Writable: true}},
	}
	return &blueprints.Topology{ID: "lab", Clusters: []*blueprints.Cluster{cluster}, Services: []*blueprints.Service{s}}, s
}

func TestRenderManifests(t *testing.T) {
	for name, change := range map[string]func(*blueprints.Topology, *blueprints.Service){
		"small": func(*blueprints.Topology, *blueprints.Service) {},
		"full": func(t *blueprints.Topology, s *blueprints.Service) {
			t.Labels = map[string]string{"team": "files", "ftpdeploy.dev/deployment": "not-this"}
			s.CreateNamespace, s.SameSourceIP = false, false
			s.ControlPort = 2121
			s.Volumes = []blueprints.Volume{
				{Name: "home", Size: "50Gi", Mount: "/home/vsftpd", AccessMode: "ReadWriteOnce", Keep: true},
				{Name: "logs", Size: "1Gi", Mount: "/var/log/vsftpd", StorageClass: "gold", AccessMode: "ReadWriteOnce"},
			}
			s.Requests = map[string]string{"cpu": "100m", "memory": "64Mi"}
			s.Limits = map[string]string{"memory": "256Mi"}
			s.NodeSelector = map[string]string{"disk": "fast"}
			s.Tolerations = []blueprints.Toleration{{Key: "ftp", Operator: "Exists", Effect: "NoSchedule"}}
			s.Banner, s.MaxClients, s.MaxPerIP = "Welcome", 200, 20
			s.IdleSession, s.DataConnection = 5*time.Minute, 10*time.Minute
		},
		"live": func(_ *blueprints.Topology, s *blueprints.Service) { s.LiveSettings = true },
		"tls": func(_ *blueprints.Topology, s *blueprints.Service) {
			s.LiveSettings = true
			s.TLS = &blueprints.TLS{Required: true, Certificate: "the certificate", PrivateKey: blueprints.NewSecret(canary), MinVersion: "1.2", MaxVersion: "1.2"}
		},
		"external": func(_ *blueprints.Topology, s *blueprints.Service) { s.Server = "external" },
	} {
		t.Run(name, func(t *testing.T) {
			topology, s := ftpTopology()
			change(topology, s)
			got, err := RenderManifests(topology, s)
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(got, []byte(canary)) || bytes.Contains(got, []byte(base64Text(canary))) {
				t.Error("the password shows")
			}
			golden := filepath.Join("testdata", "kubernetes-"+name+".yaml")
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
				t.Fatalf("%s is rewritten", golden)
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("differs from %s; look at it, then run with -update:\n%s", golden, got)
			}
		})
	}
}

func TestRenderManifestsRefuses(t *testing.T) {
	for want, change := range map[string]func(*blueprints.Service){
		"NodePort 29999 of port 21 is not one of cluster \"tkg\", which allows 30000-32767": func(s *blueprints.Service) { s.ControlNodePort = 29999 },
		"NodePort 32101 is wanted twice, by ports 21 and 21101":                             func(s *blueprints.Service) { s.ControlNodePort = 32101 },
		"has 0 users": func(s *blueprints.Service) { s.Users = nil },
		"writable":    func(s *blueprints.Service) { s.Users[0].Writable = false },
		"FTP309":      func(s *blueprints.Service) { s.TLS = &blueprints.TLS{} },
	} {
		topology, s := ftpTopology()
		change(s)
		if _, err := RenderManifests(topology, s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// The checksum must differ for every account, and for the same account elsewhere.
func TestAccountChecksum(t *testing.T) {
	seen := map[string]string{}
	for name, change := range map[string]func(*blueprints.Topology, *blueprints.Service){
		"same":       func(*blueprints.Topology, *blueprints.Service) {},
		"password":   func(_ *blueprints.Topology, s *blueprints.Service) { s.Users[0].Password = blueprints.NewSecret("x") },
		"user":       func(_ *blueprints.Topology, s *blueprints.Service) { s.Users[0].Name = "x" },
		"deployment": func(t *blueprints.Topology, _ *blueprints.Service) { t.ID = "x" },
		"namespace":  func(_ *blueprints.Topology, s *blueprints.Service) { s.Namespace = "x" },
	} {
		topology, s := ftpTopology()
		change(topology, s)
		sum, err := workload{topology, s}.accountChecksum(s.Users[0])
		if err != nil || len(sum) != 32 {
			t.Fatalf("%s: %q, %v", name, sum, err)
		}
		if other, ok := seen[sum]; ok {
			t.Errorf("%s and %s have the same checksum", name, other)
		}
		seen[sum] = name
	}
}
