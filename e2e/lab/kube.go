package lab

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// The cluster's addresses. The control plane is one host with a foot in both
// networks: jump reaches it over Management, the nodes over Workload.
const (
	controlPlane = "cp"
	apiOutside   = "192.0.2.5"
	apiInside    = "198.51.100.5"
	apiService   = "198.19.0.1" // the first of serviceCIDR
	podCIDR      = "198.18.0.0/16"
	serviceCIDR  = "198.19.0.0/16"
	storageClass = "lab"
)

// workers are the nodes in order: node N has pod range 198.18.N.0/24.
var workers = []struct{ name, address string }{
	{"worker-1", "198.51.100.21"},
	{"worker-2", "198.51.100.22"},
	{"worker-3", "198.51.100.23"},
}

// kubernetes is one cluster: the control plane's services on a host of their
// own, and the nodes.
type kubernetes struct {
	dir       string // certificates, kubeconfigs, etcd's data, the audit log
	version   string // "1.26" or "1.37"
	binary    string // holds every component
	images    string // archive that each node imports
	ca        *CA
	say       func(string)
	api       *api
	cp        *Host
	nodes     []*Host
	sharedDir string // every node's /srv: what a volume of a network storage is
}

// file is a path in the cluster's directory.
func (k *kubernetes) file(name string) string { return filepath.Join(k.dir, name) }

// AdminKubeconfig is for jump: all rights, by the API server's outside address.
func (k *kubernetes) adminKubeconfig() string { return k.file("admin.kubeconfig") }

// auditLog holds one JSON line for each write that is not the cluster's own.
func (k *kubernetes) auditLog() string { return k.file("audit.log") }

// start starts the control plane and the nodes and returns when every node is ready.
func (k *kubernetes) start(ctx context.Context) error {
	if err := k.writeCredentials(); err != nil {
		return err
	}
	nodes := make(chan error, len(k.nodes))
	for i, n := range k.nodes {
		go func() { nodes <- k.bootNode(ctx, i, n) }()
	}
	if err := k.startControlPlane(ctx); err != nil {
		return err
	}
	if err := k.bootstrap(ctx); err != nil {
		return err
	}
	var err error
	for range k.nodes {
		err = cmp.Or(err, <-nodes)
	}
	if err != nil {
		return err
	}
	since := time.Now()
	for _, n := range k.nodes {
		if err := k.startKubelet(n); err != nil {
			return err
		}
	}
	k.say("waiting for the nodes to be ready")
	for _, n := range k.nodes {
		if err := k.waitNode(ctx, n, since); err != nil {
			return err
		}
	}
	return nil
}

// writeCredentials makes every certificate, key and kubeconfig of the cluster.
func (k *kubernetes) writeCredentials() error {
	serving := Subject{
		CommonName: "kube-apiserver",
		Names:      []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"},
		Addresses:  parseAddrs("127.0.0.1", apiOutside, apiInside, apiService),
	}
	inside, outside := "https://"+apiInside+":6443", "https://"+apiOutside+":6443"
	err := cmp.Or(
		os.MkdirAll(k.dir, 0o700),
		os.WriteFile(k.file("ca.crt"), k.ca.PEM, 0o644),
		k.writePair("apiserver", serving),
		k.writePair("kubelet-client", Subject{CommonName: "kube-apiserver-kubelet-client", Organization: "system:masters"}),
		k.writeKubeconfig(k.adminKubeconfig(), outside, Subject{CommonName: "lab-admin", Organization: "system:masters"}),
		k.writeKubeconfig(k.file("controller-manager.kubeconfig"), inside, Subject{CommonName: "system:kube-controller-manager"}),
		k.writeKubeconfig(k.file("scheduler.kubeconfig"), inside, Subject{CommonName: "system:kube-scheduler"}),
		k.writeServiceAccountKey(),
		os.WriteFile(k.file("audit.yaml"), []byte(auditPolicy), 0o644),
		os.WriteFile(k.file("admission.yaml"), []byte(admission), 0o644),
	)
	if err != nil {
		return fmt.Errorf("write the cluster's credentials: %w", err)
	}
	for _, n := range k.nodes {
		if err := k.writeNodeCredentials(n, inside); err != nil {
			return fmt.Errorf("write the credentials of %s: %w", n.Name, err)
		}
	}
	return nil
}

func (k *kubernetes) writePair(name string, s Subject) error {
	certificate, key, err := k.ca.Issue(s)
	if err != nil {
		return err
	}
	return cmp.Or(os.WriteFile(k.file(name+".crt"), certificate, 0o644), os.WriteFile(k.file(name+".key"), key, 0o600))
}

// writeKubeconfig writes a kubeconfig that holds all it needs.
func (k *kubernetes) writeKubeconfig(path, server string, s Subject) error {
	certificate, key, err := k.ca.Issue(s)
	if err != nil {
		return err
	}
	encode := base64.StdEncoding.EncodeToString
	return os.WriteFile(path, fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters:
- name: lab
  cluster:
    server: %s
    certificate-authority-data: %s
users:
- name: %[3]s
  user:
    client-certificate-data: %[4]s
    client-key-data: %[5]s
contexts:
- name: lab
  context:
    cluster: lab
    user: %[3]s
current-context: lab
`, server, encode(k.ca.PEM), s.CommonName, encode(certificate), encode(key)), 0o600)
}

// writeServiceAccountKey makes the key that signs service account tokens.
func (k *kubernetes) writeServiceAccountKey() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	private, err := pemKey(key)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	return cmp.Or(os.WriteFile(k.file("sa.key"), private, 0o600), os.WriteFile(k.file("sa.pub"), pemBlock("PUBLIC KEY", public), 0o644))
}

// auditPolicy logs every write but those of the cluster's own parts.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  userGroups: ["system:nodes", "system:serviceaccounts:kube-system"]
- level: None
  users: ["system:kube-controller-manager", "system:kube-scheduler", "system:kube-proxy", "system:apiserver", "` + labUser + `"]
- level: Metadata
  verbs: [create, update, patch, delete, deletecollection]
- level: None
`

// labUser is the lab process itself.
const labUser = "ftplab"

// admission enforces Pod Security as vSphere's clusters from 1.26 on do.
const admission = `apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
- name: PodSecurity
  configuration:
    apiVersion: pod-security.admission.config.k8s.io/v1
    kind: PodSecurityConfiguration
    defaults:
      enforce: restricted
      enforce-version: latest
      audit: restricted
      audit-version: latest
      warn: restricted
      warn-version: latest
    exemptions:
      usernames: []
      runtimeClasses: []
      namespaces: [kube-system]
`

func (k *kubernetes) startControlPlane(ctx context.Context) error {
	if err := k.cp.boot(ctx); err != nil {
		return err
	}
	var routes strings.Builder
	for i, n := range k.nodes {
		fmt.Fprintf(&routes, "route replace 198.18.%d.0/24 via %s\n", i+1, n.Addresses[0])
	}
	if err := ip(ctx, k.cp.Name, routes.String()); err != nil {
		return err
	}
	k.say("starting etcd and the API server")
	manager, scheduler := k.file("controller-manager.kubeconfig"), k.file("scheduler.kubeconfig")
	services := [][]string{
		{"etcd", "--data-dir=" + k.file("etcd"), "--unsafe-no-fsync", "--log-level=warn"},
		{
			"kube-apiserver",
			"--etcd-servers=http://127.0.0.1:2379",
			"--bind-address=0.0.0.0", "--advertise-address=" + apiInside, "--secure-port=6443",
			"--service-cluster-ip-range=" + serviceCIDR, "--service-node-port-range=30000-32767",
			"--client-ca-file=" + k.file("ca.crt"),
			"--tls-cert-file=" + k.file("apiserver.crt"), "--tls-private-key-file=" + k.file("apiserver.key"),
			"--kubelet-certificate-authority=" + k.file("ca.crt"),
			"--kubelet-client-certificate=" + k.file("kubelet-client.crt"), "--kubelet-client-key=" + k.file("kubelet-client.key"),
			"--kubelet-preferred-address-types=InternalIP",
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-key-file=" + k.file("sa.pub"), "--service-account-signing-key-file=" + k.file("sa.key"),
			"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
			"--admission-control-config-file=" + k.file("admission.yaml"),
			"--audit-policy-file=" + k.file("audit.yaml"), "--audit-log-path=" + k.auditLog(), "--audit-log-mode=blocking",
			// A pod leaves a dead node after seconds, so that a test of it ends.
			"--default-not-ready-toleration-seconds=5", "--default-unreachable-toleration-seconds=5",
		},
		{
			"kube-controller-manager",
			"--kubeconfig=" + manager, "--authentication-kubeconfig=" + manager, "--authorization-kubeconfig=" + manager,
			"--service-account-private-key-file=" + k.file("sa.key"), "--root-ca-file=" + k.file("ca.crt"),
			"--leader-elect=false", "--use-service-account-credentials=true", "--allocate-node-cidrs=false",
			"--bind-address=127.0.0.1", "--node-monitor-period=1s", "--node-monitor-grace-period=8s",
		},
		{
			"kube-scheduler",
			"--kubeconfig=" + scheduler, "--authentication-kubeconfig=" + scheduler, "--authorization-kubeconfig=" + scheduler,
			"--leader-elect=false", "--bind-address=127.0.0.1",
		},
	}
	for _, s := range services {
		if _, err := k.cp.serve(s[0], append([]string{k.binary}, s...)...); err != nil {
			return err
		}
		if s[0] == "kube-apiserver" { // the others would only restart until it answers
			if err := k.waitAPI(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// waitAPI waits until the API server says that it is ready.
func (k *kubernetes) waitAPI(ctx context.Context) error {
	return wait(ctx, "the API server to be ready (log: "+filepath.Join(k.cp.dir, "log", "kube-apiserver.log")+")", 90*time.Second, 100*time.Millisecond, func(ctx context.Context) error {
		return k.api.call(ctx, "GET", "/readyz", nil, nil)
	})
}

// bootstrap makes what kubeadm would make with its addons, and the storage class.
func (k *kubernetes) bootstrap(ctx context.Context) error {
	objects := []struct {
		path   string
		object map[string]any
	}{
		{"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", map[string]any{
			"metadata": map[string]any{"name": "ftplab:kube-proxy"},
			"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-proxier"},
			"subjects": []any{map[string]any{"kind": "User", "name": "system:kube-proxy", "apiGroup": "rbac.authorization.k8s.io"}},
		}},
		{"/apis/storage.k8s.io/v1/storageclasses", map[string]any{
			"metadata":    map[string]any{"name": storageClass, "annotations": map[string]any{"storageclass.kubernetes.io/is-default-class": "true"}},
			"provisioner": provisioner,
			// A directory has no size, so a claim that grows has what it asks for.
			"allowVolumeExpansion": true,
		}},
	}
	for _, o := range objects {
		// Roles of a fresh API server come a moment after it is ready.
		err := wait(ctx, "the API server to take "+o.path, 30*time.Second, 100*time.Millisecond, func(ctx context.Context) error {
			return k.api.call(ctx, "POST", o.path, o.object, nil)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func parseAddrs(texts ...string) []netip.Addr {
	addrs := make([]netip.Addr, len(texts))
	for i, t := range texts {
		addrs[i] = netip.MustParseAddr(t)
	}
	return addrs
}
