package steps

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"golang.org/x/crypto/scrypt"
	"sigs.k8s.io/yaml"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/kube"
)

// Labels and annotations by which ftpdeploy knows its objects again.
const (
	deploymentLabel = "ftpdeploy.dev/deployment" // deployment "ID"
	serviceLabel    = "ftpdeploy.dev/service"    // ftp_service "NAME"
	volumeLabel     = "ftpdeploy.dev/volume"     // volume "NAME", on its claim
	keepAnnotation  = "ftpdeploy.dev/keep"       // "true" on a claim that destroy leaves
	secretChecksum  = "ftpdeploy.dev/secret-checksum"
	requestMark     = "ftpdeploy.dev/settings-request" // on a pod: changes when it is to look at its settings
)

// Where a pod with live settings finds them, as files that its image watches:
// volume and directory, and what its image repeats in its log once they are in force.
const (
	settingsVolume   = "ftpdeploy-settings"
	settingsDir      = "/etc/vsftpd-settings"
	requestFile      = "REQUEST"
	accountRevision  = "ACCOUNT_REVISION"
	settingsRevision = "SETTINGS_REVISION"
)

// ftpPort is where vsftpd listens in its pod. fauria/vsftpd knows no other, so a
// Service maps every other control port to it.
const ftpPort = 21

// workload is an FTP service as it stands in Kubernetes.
type workload struct {
	topology *blueprints.Topology
	service  *blueprints.Service
}

// manifests are the objects of one service, each with exactly the fields that
// ftpdeploy owns.
type manifests struct {
	namespace kube.Object   // nil unless the blueprint has it made
	objects   []kube.Object // in the order in which they are made
	checksum  string        // stands for the account, see accountChecksum
}

func (w workload) manifests() (*manifests, error) {
	s, m := w.service, &manifests{}
	if s.Server != "vsftpd" {
		return m, nil
	}
	if len(s.Users) != 1 {
		return nil, fmt.Errorf("ftp_service %q has %d users: an image with the environment of fauria/vsftpd serves exactly one", s.Name, len(s.Users))
	}
	user := s.Users[0]
	if !user.Writable {
		return nil, fmt.Errorf("user %q of ftp_service %q: writable = false is nothing that an image with the environment of fauria/vsftpd can do", user.Name, s.Name)
	}
	if err := w.checkNodePorts(); err != nil {
		return nil, err
	}
	var err error
	if m.checksum, err = w.accountChecksum(user); err != nil {
		return nil, err
	}
	if s.CreateNamespace {
		m.namespace = kube.Object{
			"apiVersion": "v1", "kind": "Namespace",
			"metadata": map[string]any{"name": s.Namespace, "labels": joined(w.labels(), map[string]any{
				// vsftpd begins as root and drops to the account; vSphere enforces "restricted" where nothing is said.
				"pod-security.kubernetes.io/enforce": "baseline",
			})},
		}
	}
	account := map[string]any{"FTP_USER": base64Text(user.Name), "FTP_PASS": base64Text(user.Password.Reveal())}
	if s.LiveSettings {
		account[accountRevision] = base64Text(m.checksum)
	}
	m.objects = append(m.objects, kube.Object{
		"apiVersion": "v1", "kind": "Secret", "metadata": w.metadata(w.accountName()), "type": "Opaque", "data": account,
	})
	if s.TLS != nil {
		if !s.LiveSettings {
			return nil, fmt.Errorf("ftp_service %q has a tls block and an image without live settings, which takes no certificate [FTP309]", s.Name)
		}
		m.objects = append(m.objects, w.tlsSecret())
	}
	for _, v := range s.Volumes {
		m.objects = append(m.objects, w.claim(v))
	}
	if s.LiveSettings { // a port leads to the pod before a running vsftpd may announce it
		m.objects = append(m.objects, w.nodePorts(), w.liveSettings(), w.deployment(m.checksum))
	} else {
		m.objects = append(m.objects, w.deployment(m.checksum), w.nodePorts())
	}
	return m, nil
}

// RenderManifests is the YAML of everything that is applied for a service, in
// that order; the Secret's values read "(sensitive)". It is empty for a service
// whose server is external.
func RenderManifests(t *blueprints.Topology, s *blueprints.Service) ([]byte, error) {
	m, err := workload{t, s}.manifests()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	all := m.objects
	if m.namespace != nil {
		all = append([]kube.Object{m.namespace}, all...)
	}
	for i, o := range all {
		if i > 0 {
			b.WriteString("---\n")
		}
		text, err := manifestText(o)
		if err != nil {
			return nil, err
		}
		b.WriteString(text)
	}
	return b.Bytes(), nil
}

// manifestText is the YAML of one object with the Secret's values masked.
func manifestText(o kube.Object) (string, error) {
	if data, ok := o["data"].(map[string]any); ok && o["kind"] == "Secret" {
		masked := map[string]any{}
		for k := range data {
			masked[k] = "(sensitive)"
		}
		o = maps.Clone(o)
		o["data"] = masked
	}
	b, err := yaml.Marshal(o)
	if err != nil {
		return "", fmt.Errorf("render %s: %w", o.Ref(), err)
	}
	return string(b), nil
}

func (w workload) accountName() string { return w.service.Name + "-account" }

func (w workload) settingsName() string { return w.service.Name + "-settings" }

func (w workload) claimName(v blueprints.Volume) string { return w.service.Name + "-" + v.Name }

func base64Text(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// checkNodePorts refuses what a dry run lets pass (out of range) or answers with
// an internal error (twice the same).
func (w workload) checkNodePorts() error {
	s := w.service
	first, last := s.Cluster.NodePortFirst, s.Cluster.NodePortLast
	taken := map[int]int{}
	for _, p := range w.ports() {
		if p.node < first || p.node > last {
			return fmt.Errorf("NodePort %d of port %d is not one of cluster %q, which allows %d-%d [FTP204]", p.node, p.port, s.Cluster.Name, first, last)
		}
		if other, ok := taken[p.node]; ok {
			return fmt.Errorf("NodePort %d is wanted twice, by ports %d and %d [FTP205]", p.node, other, p.port)
		}
		taken[p.node] = p.port
	}
	return nil
}

// servicePort is a port of the Service: what clients ask for, where the pod
// listens and where the nodes do.
type servicePort struct {
	name               string
	port, target, node int
}

func (w workload) ports() []servicePort {
	s := w.service
	ports := []servicePort{{"control", s.ControlPort, ftpPort, s.ControlNodePort}}
	for p := s.PassiveFirst; p <= s.PassiveLast; p++ {
		ports = append(ports, servicePort{"passive-" + strconv.Itoa(p), p, p, s.NodePort(p)})
	}
	return ports
}

// accountChecksum changes when the account does, so that the pod is replaced
// then, or with live settings says that it has it. It stands in an annotation, or
// in the pod's log, which many may read, so it is made slow to guess from (scrypt, 2^15 rounds, salted with
// whose it is).
func (w workload) accountChecksum(u *blueprints.User) (string, error) {
	salt := w.topology.ID + "/" + w.service.Namespace + "/" + w.service.Name
	key, err := scrypt.Key([]byte(u.Name+"\x00"+u.Password.Reveal()), []byte(salt), 1<<15, 8, 1, 16)
	if err != nil {
		return "", fmt.Errorf("make the checksum of the account: %w", err)
	}
	return fmt.Sprintf("%x", key), nil
}

// labels are those of everything of a deployment; ours win over the blueprint's.
func (w workload) labels() map[string]any {
	return joined(anyMap(w.topology.Labels), map[string]any{"app.kubernetes.io/managed-by": "ftpdeploy", deploymentLabel: w.topology.ID})
}

// selector picks the pods of a service. It can never be changed on a live Deployment.
func (w workload) selector() map[string]any {
	return map[string]any{deploymentLabel: w.topology.ID, serviceLabel: w.service.Name}
}

// identity are the labels of all objects of a service, and alone those of its
// pods: a label of the blueprint must not replace a pod.
func (w workload) identity() map[string]any {
	return joined(w.selector(), map[string]any{
		"app.kubernetes.io/name": "vsftpd", "app.kubernetes.io/instance": w.service.Name, "app.kubernetes.io/managed-by": "ftpdeploy",
	})
}

func (w workload) metadata(name string) map[string]any {
	return map[string]any{"namespace": w.service.Namespace, "name": name, "labels": joined(w.labels(), w.identity())}
}

// joined is a new map with what both hold; b wins.
func joined(a, b map[string]any) map[string]any {
	m := map[string]any{}
	maps.Copy(m, a)
	maps.Copy(m, b)
	return m
}

func (w workload) claim(v blueprints.Volume) kube.Object {
	meta := w.metadata(w.claimName(v))
	meta["labels"] = joined(joined(w.labels(), w.identity()), map[string]any{volumeLabel: v.Name})
	meta["annotations"] = map[string]any{keepAnnotation: strconv.FormatBool(v.Keep)}
	spec := map[string]any{
		"accessModes": []any{v.AccessMode},
		"resources":   map[string]any{"requests": map[string]any{"storage": v.Size}},
	}
	if v.StorageClass != "" {
		spec["storageClassName"] = v.StorageClass
	}
	return kube.Object{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec}
}

// nodePorts is the one Service of all ports.
func (w workload) nodePorts() kube.Object {
	var ports []any
	for _, p := range w.ports() {
		ports = append(ports, map[string]any{"name": p.name, "protocol": "TCP", "port": p.port, "targetPort": p.target, "nodePort": p.node})
	}
	return kube.Object{
		"apiVersion": "v1", "kind": "Service", "metadata": w.metadata(w.service.Name),
		"spec": map[string]any{
			"type": "NodePort", "externalTrafficPolicy": "Cluster", "sessionAffinity": "None",
			"selector": w.selector(), "ports": ports,
		},
	}
}

// vsftpdCapabilities are what vsftpd and its start script need of root's: to give the
// home directory to the account, to log in, to go into it and to become it, and
// to use ports below 1024. Pod Security "baseline" allows them all.
var vsftpdCapabilities = []any{
	"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID", "SYS_CHROOT",
}

func (w workload) deployment(checksum string) kube.Object {
	s := w.service
	container := map[string]any{
		"name": "vsftpd", "image": s.Image, "imagePullPolicy": s.PullPolicy,
		"ports": []any{
			map[string]any{"name": "control", "containerPort": ftpPort, "protocol": "TCP"},
		},
		// vsftpd forks for every probe: often while it starts, seldom later.
		"startupProbe":   map[string]any{"tcpSocket": map[string]any{"port": ftpPort}, "periodSeconds": 1, "failureThreshold": 600},
		"readinessProbe": map[string]any{"tcpSocket": map[string]any{"port": ftpPort}, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 2},
		"securityContext": map[string]any{
			"allowPrivilegeEscalation": false,
			"capabilities":             map[string]any{"drop": []any{"ALL"}, "add": vsftpdCapabilities},
		},
	}
	var mounts, volumes []any
	meta := map[string]any{"labels": w.identity()}
	if s.LiveSettings {
		sources := []any{
			map[string]any{"secret": map[string]any{"name": w.accountName()}},
			map[string]any{"configMap": map[string]any{"name": w.settingsName()}},
			map[string]any{"downwardAPI": map[string]any{"items": []any{
				map[string]any{"path": requestFile, "fieldRef": map[string]any{"fieldPath": "metadata.annotations['" + requestMark + "']"}},
			}}},
		}
		if s.TLS != nil {
			sources = append(sources, map[string]any{"secret": map[string]any{"name": w.tlsName()}})
		}
		mounts = append(mounts, map[string]any{"name": settingsVolume, "mountPath": settingsDir, "readOnly": true})
		volumes = append(volumes, map[string]any{"name": settingsVolume, "projected": map[string]any{"defaultMode": 0o400, "sources": sources}})
	} else {
		container["env"] = w.environment()
		meta["annotations"] = map[string]any{secretChecksum: checksum}
	}
	resources := map[string]any{}
	if len(s.Requests) > 0 {
		resources["requests"] = anyMap(s.Requests)
	}
	if len(s.Limits) > 0 {
		resources["limits"] = anyMap(s.Limits)
	}
	if len(resources) > 0 {
		container["resources"] = resources
	}
	pod := map[string]any{
		"automountServiceAccountToken": false,
		"enableServiceLinks":           false,
		// fauria's shell at PID 1 does not hear SIGTERM: each end of a pod takes this long.
		"terminationGracePeriodSeconds": 5,
		"containers":                    []any{container},
	}
	for _, v := range s.Volumes {
		mounts = append(mounts, map[string]any{"name": v.Name, "mountPath": v.Mount})
		volumes = append(volumes, map[string]any{"name": v.Name, "persistentVolumeClaim": map[string]any{"claimName": w.claimName(v)}})
	}
	if len(volumes) > 0 {
		container["volumeMounts"], pod["volumes"] = mounts, volumes
	}
	w.place(pod)
	return kube.Object{
		"apiVersion": "apps/v1", "kind": "Deployment", "metadata": w.metadata(w.service.Name),
		"spec": map[string]any{
			"replicas": s.Replicas,
			// Two pods, even for a moment, break passive mode: the data connection may reach the other one.
			"strategy": map[string]any{"type": "Recreate"},
			"selector": map[string]any{"matchLabels": w.selector()},
			"template": map[string]any{"metadata": meta, "spec": pod},
		},
	}
}

// place says on which nodes a pod may be.
func (w workload) place(pod map[string]any) {
	s := w.service
	if len(s.NodeSelector) > 0 {
		pod["nodeSelector"] = anyMap(s.NodeSelector)
	}
	var tolerations []any
	for _, x := range s.Tolerations {
		toleration := map[string]any{}
		for k, v := range map[string]string{"key": x.Key, "operator": x.Operator, "value": x.Value, "effect": x.Effect} {
			if v != "" {
				toleration[k] = v
			}
		}
		tolerations = append(tolerations, toleration)
	}
	if len(tolerations) > 0 {
		pod["tolerations"] = tolerations
	}
}

// environment is the contract of fauria/vsftpd.
func (w workload) environment() []any {
	var env []any
	for _, key := range []string{"FTP_USER", "FTP_PASS"} {
		env = append(env, map[string]any{"name": key, "valueFrom": map[string]any{"secretKeyRef": map[string]any{"name": w.accountName(), "key": key}}})
	}
	for _, e := range w.settings() {
		env = append(env, map[string]any{"name": e.name, "value": e.value})
	}
	return env
}

// liveSettings holds in files what the environment holds otherwise.
func (w workload) liveSettings() kube.Object {
	data := map[string]any{}
	digest := sha256.New()
	for _, e := range w.settings() {
		data[e.name] = e.value
		fmt.Fprintf(digest, "%s=%s\n", e.name, e.value)
	}
	data[settingsRevision] = fmt.Sprintf("%x", digest.Sum(nil))[:16]
	return kube.Object{"apiVersion": "v1", "kind": "ConfigMap", "metadata": w.metadata(w.settingsName()), "data": data}
}

// setting is one that the image takes beside the account.
type setting struct{ name, value string }

// settings are all of a service's. What the blueprint may leave open, and only
// ftpdeploy's own image understands, is named only where it is set.
func (w workload) settings() []setting {
	s := w.service
	promiscuous := "YES"
	if s.SameSourceIP {
		promiscuous = "NO"
	}
	return slices.DeleteFunc([]setting{
		{"PASV_ADDRESS", s.VIP.Address.String()},
		{"PASV_ADDR_RESOLVE", "NO"},
		{"PASV_ENABLE", "YES"},
		{"PASV_MIN_PORT", strconv.Itoa(s.PassiveFirst)},
		{"PASV_MAX_PORT", strconv.Itoa(s.PassiveLast)},
		{"PASV_PROMISCUOUS", promiscuous},
		{"PORT_PROMISCUOUS", "NO"},
		{"REVERSE_LOOKUP_ENABLE", "NO"},
		{"FILE_OPEN_MODE", "0666"},
		{"LOCAL_UMASK", "077"},
		{"XFERLOG_STD_FORMAT", "NO"},
		{"LOG_STDOUT", "YES"},
		{"MAX_CLIENTS", orUnset(s.MaxClients)},
		{"MAX_PER_IP", orUnset(s.MaxPerIP)},
		{"IDLE_SESSION_TIMEOUT", orUnset(int(s.IdleSession / time.Second))},
		{"DATA_CONNECTION_TIMEOUT", orUnset(int(s.DataConnection / time.Second))},
		{"BANNER", s.Banner},
	}, func(e setting) bool { return e.value == "" })
}

// orUnset is n as text, and "" for 0, which stands for not set.
func orUnset(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

func anyMap(m map[string]string) map[string]any {
	a := map[string]any{}
	for k, v := range m {
		a[k] = v
	}
	return a
}
