package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A node's own root holds this machine's programs and the node's own data:
// inside it /conf is its configuration, /k8s the Kubernetes binary and
// /images.tar the images, /var its disk and /srv the volumes.
const (
	nodeConf   = "/conf"
	nodeBinary = "/k8s"
	nodeImages = "/images.tar"
)

const containerdSocket = "unix:///run/containerd/containerd.sock"

// newNode makes worker i; it is off.
func (k *kubernetes) newNode(labDir string, names hostNames, i int) (*Host, error) {
	w := workers[i]
	h, err := newHost(labDir, w.name, names, w.address)
	if err != nil {
		return nil, err
	}
	all, _, err := hierarchies()
	if err != nil {
		return nil, err
	}
	root := filepath.Join(h.dir, "root")
	for _, dir := range []string{"root", "conf", "var/lib", "var/log", "var/tmp", "sysctl"} {
		if err := os.MkdirAll(filepath.Join(h.dir, dir), 0o755); err != nil {
			return nil, fmt.Errorf("make %s: %w", w.name, err)
		}
	}
	bind := func(source, target string) mount {
		return mount{Source: source, Target: filepath.Join(root, target), Flags: unix.MS_BIND | unix.MS_REC}
	}
	h.spec.Root = root
	h.spec.Links = map[string]string{filepath.Join(root, "var/run"): "/run"}
	h.spec.Mounts = []mount{
		{Target: "/", Flags: unix.MS_REC | unix.MS_PRIVATE},
		{Source: "tmpfs", Target: root, Kind: "tmpfs", Data: "mode=755"},
		bind("/usr", "usr"), bind("/etc", "etc"), bind("/dev", "dev"),
		bind(filepath.Join(h.dir, "hosts"), "etc/hosts"), bind(filepath.Join(h.dir, "resolv.conf"), "etc/resolv.conf"),
		bind(filepath.Join(h.dir, "var"), "var"), bind(filepath.Join(h.dir, "conf"), nodeConf), bind(k.sharedDir, "srv"),
		{Source: "tmpfs", Target: filepath.Join(root, "run"), Kind: "tmpfs", Data: "mode=755"},
		{Source: "tmpfs", Target: filepath.Join(root, "tmp"), Kind: "tmpfs", Data: "mode=1777"},
		{Source: "proc", Target: filepath.Join(root, "proc"), Kind: "proc"},
		{Source: "sysfs", Target: filepath.Join(root, "sys"), Kind: "sysfs"},
		{Source: "tmpfs", Target: filepath.Join(root, "sys/fs/cgroup"), Kind: "tmpfs", Data: "mode=755"},
	}
	for _, dir := range []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"} {
		if to, err := os.Readlink("/" + dir); err == nil {
			h.spec.Links[filepath.Join(root, dir)] = to
		} else if _, err := os.Stat("/" + dir); err == nil {
			h.spec.Mounts = append(h.spec.Mounts, bind("/"+dir, dir))
		}
	}
	for target, source := range map[string]string{nodeBinary: k.binary, nodeImages: k.images} {
		h.spec.Mounts = append(h.spec.Mounts, bind(source, target))
	}
	// In the node's cgroup namespace its own cgroup is the root of each
	// hierarchy, so that the pods of two nodes do not meet.
	for _, c := range all {
		h.spec.Mounts = append(h.spec.Mounts, mount{Source: "cgroup", Target: filepath.Join(root, "sys/fs/cgroup", filepath.Base(c.mount)), Kind: "cgroup", Data: c.options})
	}
	// The kubelet sets these where they differ, and they belong to the whole
	// machine: it is shown files that say what it wants.
	for name, value := range map[string]string{
		"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
	} {
		shown := filepath.Join(h.dir, "sysctl", strings.ReplaceAll(name, "/", "."))
		if err := os.WriteFile(shown, []byte(value+"\n"), 0o644); err != nil {
			return nil, fmt.Errorf("make %s: %w", w.name, err)
		}
		h.spec.Mounts = append(h.spec.Mounts, bind(shown, filepath.Join("proc/sys", name)))
	}
	h.spec.Sysctls = map[string]string{"net/ipv4/ip_forward": "1", "net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/default/rp_filter": "0"}
	return h, nil
}

// writeNodeCredentials gives the node's kubelet and kube-proxy their identities and configuration.
func (k *kubernetes) writeNodeCredentials(n *Host, server string) error {
	conf := filepath.Join(n.dir, "conf")
	identity := Subject{CommonName: "system:node:" + n.Name, Organization: "system:nodes"}
	serving := identity
	serving.Names, serving.Addresses = []string{n.Name}, n.Addresses
	certificate, key, err := k.ca.Issue(serving)
	if err != nil {
		return err
	}
	files := map[string][]byte{
		"ca.crt": k.ca.PEM, "kubelet.crt": certificate, "kubelet.key": key,
		"containerd.toml": []byte(containerdConfig),
	}
	subnet := "198.18." + strings.TrimPrefix(n.Name, "worker-") + ".0/24"
	for name, value := range map[string]any{
		"kubelet.json": kubeletConfig(n), "kube-proxy.json": proxyConfig(n), "cni/10-lab.conflist": cniConfig(subnet),
	} {
		if files[name], err = json.MarshalIndent(value, "", "  "); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Join(conf, "cni"), 0o755); err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(conf, name), content, 0o600); err != nil {
			return err
		}
	}
	if err := k.writeKubeconfig(filepath.Join(conf, "kubelet.kubeconfig"), server, identity); err != nil {
		return err
	}
	return k.writeKubeconfig(filepath.Join(conf, "kube-proxy.kubeconfig"), server, Subject{CommonName: "system:kube-proxy"})
}

// containerdConfig: without CAP_SYS_RESOURCE no process may lower its OOM
// score, which runc would otherwise do for every pod.
const containerdConfig = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + pauseImage + `"
  stream_server_address = "127.0.0.1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "` + nodeConf + `/cni"
`

func kubeletConfig(n *Host) map[string]any {
	return map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"address":    n.Addresses[0].String(),
		"authentication": map[string]any{
			"x509":      map[string]any{"clientCAFile": nodeConf + "/ca.crt"},
			"webhook":   map[string]any{"enabled": false},
			"anonymous": map[string]any{"enabled": false},
		},
		"authorization":                 map[string]any{"mode": "AlwaysAllow"},
		"tlsCertFile":                   nodeConf + "/kubelet.crt",
		"tlsPrivateKeyFile":             nodeConf + "/kubelet.key",
		"containerRuntimeEndpoint":      containerdSocket,
		"cgroupDriver":                  "cgroupfs",
		"failCgroupV1":                  false, // 1.37 refuses version 1 by default, 1.26 does not know the field
		"failSwapOn":                    false,
		"enforceNodeAllocatable":        []string{"pods"},
		"resolvConf":                    "",
		"readOnlyPort":                  0,
		"evictionHard":                  map[string]string{"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%"},
		"imageGCHighThresholdPercent":   100,
		"imageGCLowThresholdPercent":    99,
		"localStorageCapacityIsolation": false, // the disk is a bind mount, of which the kubelet finds no device
		"nodeStatusUpdateFrequency":     "2s",
		"nodeLeaseDurationSeconds":      8,
		"syncFrequency":                 "10s",
		"maxPods":                       30,
		"serializeImagePulls":           false,
	}
}

func proxyConfig(n *Host) map[string]any {
	return map[string]any{
		"apiVersion":         "kubeproxy.config.k8s.io/v1alpha1",
		"kind":               "KubeProxyConfiguration",
		"clientConnection":   map[string]any{"kubeconfig": nodeConf + "/kube-proxy.kubeconfig"},
		"hostnameOverride":   n.Name,
		"mode":               "iptables",
		"clusterCIDR":        podCIDR,
		"bindAddress":        n.Addresses[0].String(),
		"metricsBindAddress": "127.0.0.1:10249",
		"healthzBindAddress": n.Addresses[0].String() + ":10256",
		// The limits are the whole machine's and cannot be set from a network namespace.
		"conntrack": map[string]any{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
	}
}

func cniConfig(subnet string) map[string]any {
	return map[string]any{
		"cniVersion": "0.4.0",
		"name":       "lab",
		"plugins": []any{
			map[string]any{
				"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
				"ipam": map[string]any{
					"type":   "host-local",
					"ranges": []any{[]any{map[string]any{"subnet": subnet}}},
					"routes": []any{map[string]any{"dst": "0.0.0.0/0"}},
				},
			},
			map[string]any{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}},
		},
	}
}

// bootNode turns node i on and starts its container runtime with the lab's images.
func (k *kubernetes) bootNode(ctx context.Context, i int, n *Host) error {
	if err := n.boot(ctx); err != nil {
		return err
	}
	var routes strings.Builder
	for j, other := range k.nodes {
		if j != i {
			fmt.Fprintf(&routes, "route replace 198.18.%d.0/24 via %s\n", j+1, other.Addresses[0])
		}
	}
	if err := ip(ctx, n.Name, routes.String()); err != nil {
		return err
	}
	if _, err := n.serve("containerd", "containerd", "--config", nodeConf+"/containerd.toml", "--log-level", "warn"); err != nil {
		return err
	}
	err := wait(ctx, "containerd on "+n.Name, 60*time.Second, 100*time.Millisecond, func(ctx context.Context) error {
		return n.run(ctx, "ctr", "--timeout", "2s", "version")
	})
	if err != nil {
		return err
	}
	return n.run(ctx, "ctr", "-n", "k8s.io", "images", "import", nodeImages)
}

// startKubelet makes the node part of the cluster.
func (k *kubernetes) startKubelet(n *Host) error {
	kubelet := []string{
		nodeBinary, "kubelet", "--config=" + nodeConf + "/kubelet.json", "--kubeconfig=" + nodeConf + "/kubelet.kubeconfig",
		"--hostname-override=" + n.Name, "--node-ip=" + n.Addresses[0].String(),
	}
	if k.version == "1.26" { // later ones read it from their configuration
		kubelet = append(kubelet, "--container-runtime-endpoint="+containerdSocket)
	}
	if _, err := n.serve("kubelet", kubelet...); err != nil {
		return err
	}
	_, err := n.serve("kube-proxy", nodeBinary, "kube-proxy", "--config="+nodeConf+"/kube-proxy.json")
	return err
}

// waitNode waits until the node's kubelet, started at since, says that it is ready.
func (k *kubernetes) waitNode(ctx context.Context, n *Host, since time.Time) error {
	what := fmt.Sprintf("node %s to be ready (log: %s)", n.Name, filepath.Join(n.dir, "log", "kubelet.log"))
	return wait(ctx, what, 90*time.Second, 100*time.Millisecond, func(ctx context.Context) error {
		var node struct {
			Status struct {
				Conditions []struct {
					Type, Status, Message string
					LastHeartbeatTime     time.Time // in whole seconds
				}
			}
		}
		if err := k.api.call(ctx, "GET", "/api/v1/nodes/"+n.Name, nil, &node); err != nil {
			return err
		}
		for _, c := range node.Status.Conditions {
			switch {
			case c.Type != "Ready":
			case c.LastHeartbeatTime.Before(since.Truncate(time.Second)):
				return fmt.Errorf("its kubelet was heard last at %s", c.LastHeartbeatTime.Format(time.TimeOnly))
			case c.Status != "True":
				return errors.New(c.Message)
			default:
				return nil
			}
		}
		return errors.New("it has no Ready condition yet")
	})
}
