// Package lab is everything that ftpdeploy talks to, on one machine: a vCenter
// whose VMs run, a Kubernetes cluster, a jump host and a client, in namespaces
// of their own. Nothing outside a lab's directory shows that it is there but
// its processes.
package lab

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// What the lab's own accounts are entered with. They guard nothing: whoever is
// root on this machine may read them, and nobody else reaches the lab.
const (
	vcenterUser     = "administrator@vsphere.local"
	vcenterPassword = "lab-Vcenter-b61f"
	sudoPassword    = "lab-Sudo-83da"
	ftpPassword     = "lab-Ftp-5c07"
)

// managedBalancer is a machine for a load balancer that others manage, beside our boxes.
// Nothing runs on it until a test says so.
const managedBalancer = "managed"

// Assets are the large things that a lab stands on. They are made outside the
// sandbox, which reaches no network, and kept in the user's cache.
type Assets struct {
	Version    string // of Kubernetes: "1.26"
	Kubernetes string // the binary of all components
	Images     string // archive of the nodes' images
	Template   Template
}

// Lab is the running lab, inside the sandbox.
type Lab struct {
	dir      string
	assets   Assets
	progress *progress

	hosts   []*Host // jump, client, cp, worker-1...
	kube    *kubernetes
	vcenter *VCenter

	faults  sync.Mutex // held while a fault is made or mended
	delayed map[string]delayedLink
}

// Run is the lab process: it brings the lab up, answers on the control socket
// and ends with ctx. What it says goes to the control socket's clients and to log.
func Run(ctx context.Context, dir string, log func(string)) error {
	lock := inherited("lock") // held until this process ends
	defer lock.Close()
	l := &Lab{dir: dir, progress: newProgress(log), delayed: map[string]delayedLink{}}
	assets, err := os.ReadFile(filepath.Join(dir, "assets.json"))
	if err == nil {
		err = json.Unmarshal(assets, &l.assets)
	}
	if err != nil {
		return fmt.Errorf("read what the lab stands on: %w", err)
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "unix", socketPath(dir))
	if err != nil {
		return fmt.Errorf("open the control socket: %w", err)
	}
	defer listener.Close()
	if err := os.Chmod(socketPath(dir), 0o600); err != nil {
		return fmt.Errorf("open the control socket: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		err := l.up(ctx)
		l.progress.end(err)
		if err != nil {
			cancel(err)
		}
	}()
	l.serve(ctx, listener)
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// up starts everything. vCenter and the cluster do not wait for each other.
func (l *Lab) up(ctx context.Context) error {
	ca, err := NewCA()
	if err != nil {
		return err
	}
	if err := cmp.Or(
		os.WriteFile(l.caFile(), ca.PEM, 0o644),
		run(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ftplab", "-f", l.keyFile()),
		startNetworks(ctx),
	); err != nil {
		return err
	}
	if err := l.makeHosts(ca); err != nil {
		return err
	}
	parts := []func() error{
		func() error { return l.startVCenter(ctx, ca) },
		func() error {
			if err := l.kube.start(ctx); err != nil {
				return err
			}
			go l.kube.provision(ctx)
			l.progress.say("Kubernetes " + l.assets.Version + " is ready")
			return nil
		},
		func() error {
			return cmp.Or(l.host("jump").boot(ctx), l.host("client").boot(ctx), l.host(managedBalancer).boot(ctx))
		},
	}
	ended := make(chan error, len(parts))
	for _, start := range parts {
		go func() { ended <- start() }()
	}
	for range parts {
		if err := <-ended; err != nil {
			return err
		}
	}
	return nil
}

// makeHosts makes every host; all are off.
func (l *Lab) makeHosts(ca *CA) error {
	names := hostNames{
		"vcenter.lab.example": LabAddress.String(),
		"haproxy-a":           "192.0.2.11",
		"haproxy-b":           "192.0.2.12",
		"ftp.lab.example":     "203.0.113.15",
	}
	for _, w := range workers {
		names[w.name] = w.address
	}
	for _, h := range []struct {
		name      string
		addresses []string
	}{
		{"jump", []string{"192.0.2.10", "203.0.113.10"}},
		{"client", []string{"203.0.113.50", "203.0.113.51"}},
		{managedBalancer, []string{"203.0.113.20", "198.51.100.20"}},
		{controlPlane, []string{apiOutside, apiInside}},
	} {
		made, err := newHost(l.dir, h.name, names, h.addresses...)
		if err != nil {
			return err
		}
		l.hosts = append(l.hosts, made)
	}
	client, err := newAPI(ca)
	if err != nil {
		return err
	}
	l.kube = &kubernetes{
		dir: filepath.Join(l.dir, "kubernetes"), sharedDir: filepath.Join(l.dir, "volumes"),
		version: l.assets.Version, binary: l.assets.Kubernetes, images: l.assets.Images,
		ca: ca, api: client, say: l.progress.say, cp: l.host(controlPlane),
	}
	if err := os.MkdirAll(l.kube.sharedDir, 0o755); err != nil {
		return fmt.Errorf("make the cluster's storage: %w", err)
	}
	for i := range workers {
		n, err := l.kube.newNode(l.dir, names, i)
		if err != nil {
			return err
		}
		l.kube.nodes = append(l.kube.nodes, n)
		l.hosts = append(l.hosts, n)
	}
	return nil
}

// startVCenter starts vCenter and the package mirror of its VMs.
func (l *Lab) startVCenter(ctx context.Context, ca *CA) error {
	certificate, err := ca.ServerCertificate(Subject{CommonName: "vcenter.lab.example", Names: []string{"vcenter.lab.example"}, Addresses: parseAddrs(LabAddress.String())})
	if err != nil {
		return err
	}
	if _, err := ServeMirror(l.assets.Template.Mirror, LabAddress.String()+":80"); err != nil {
		return err
	}
	l.vcenter, err = StartVCenter(ctx, VCenterConfig{
		Dir:             filepath.Join(l.dir, "vcenter"),
		Listen:          LabAddress.String() + ":443",
		Certificate:     certificate,
		Username:        vcenterUser,
		Password:        vcenterPassword,
		Template:        l.assets.Template,
		AccountPassword: sudoPassword,
		Bridges:         portGroups,
		Logf:            func(format string, args ...any) { l.progress.say(fmt.Sprintf(format, args...)) },
	})
	if err == nil {
		l.progress.say("vCenter is ready")
	}
	return err
}

// portGroups says which segment each port group of vCenter is.
var portGroups = map[string]string{
	"dvpg-mgmt":     Management.Bridge,
	"dvpg-workload": Workload.Bridge,
	"dvpg-frontend": Frontend.Bridge,
}

func (l *Lab) caFile() string  { return filepath.Join(l.dir, "ca.crt") }
func (l *Lab) keyFile() string { return filepath.Join(l.dir, "id_ed25519") }

// host is the host called name, or nil.
func (l *Lab) host(name string) *Host {
	for _, h := range l.hosts {
		if h.Name == name {
			return h
		}
	}
	return nil
}

// Environment is what a user of the lab sets on jump, as NAME=value.
func (l *Lab) environment() []string {
	return []string{
		"GOVC_URL=https://" + LabAddress.String(),
		"GOVC_USERNAME=" + vcenterUser,
		"GOVC_PASSWORD=" + vcenterPassword,
		"GOVC_TLS_CA_CERTS=" + l.caFile(),
		"KUBECONFIG=" + l.kube.adminKubeconfig(),
		"FTPDEPLOY_LAB_KEY=" + l.keyFile(),
		"FTPDEPLOY_LAB_SUDO_PASSWORD=" + sudoPassword,
		"FTPDEPLOY_VAR_ftp_password=" + ftpPassword,
	}
}

// writes lists what the vCenter and the API server were made to change since
// the lab is up: every task of vCenter, and what ftpdeploy wrote to the cluster,
// dry runs left out.
func (l *Lab) writes() ([]string, error) {
	var all []string
	for _, w := range l.vcenter.Writes() {
		all = append(all, "vcenter: "+w)
	}
	log, err := os.ReadFile(l.kube.auditLog())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the API server's audit log: %w", err)
	}
	for line := range strings.Lines(string(log)) {
		var event struct {
			Verb, RequestURI, UserAgent string
			ResponseStatus              struct{ Code int }
		}
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			return nil, fmt.Errorf("read the API server's audit log: %w", err)
		}
		if strings.HasPrefix(event.UserAgent, "ftpdeploy") && !strings.Contains(event.RequestURI, "dryRun=All") && !isReview(event.RequestURI) {
			all = append(all, fmt.Sprintf("kubernetes: %s %s: %d", event.Verb, event.RequestURI, event.ResponseStatus.Code))
		}
	}
	return all, nil
}

// isReview tells whether a request only asks what its sender may do: it is
// created, but never stored.
func isReview(uri string) bool {
	path, _, _ := strings.Cut(uri, "?")
	return strings.HasPrefix(path, "/apis/authorization.k8s.io/")
}

// HostState is one line of the lab's status.
type HostState struct {
	Name      string
	Kind      string // host, node or VM
	Addresses []string
	State     string   // on, off
	Services  []string `json:",omitempty"` // NAME=STATE
}

func (l *Lab) status(ctx context.Context) ([]HostState, error) {
	var all []HostState
	for _, h := range l.hosts {
		s := HostState{Name: h.Name, Kind: "host", State: "on"}
		if slices.Contains(l.kube.nodes, h) {
			s.Kind = "node"
		}
		if pid, _ := h.pid(); pid == 0 {
			s.State = "off"
		}
		for _, a := range h.Addresses {
			s.Addresses = append(s.Addresses, a.String())
		}
		s.Services = h.serviceStates()
		all = append(all, s)
	}
	vms, err := l.vmStates(ctx)
	return append(all, vms...), err
}

// vmStates lists the VMs as vCenter shows them, templates left out.
func (l *Lab) vmStates(ctx context.Context) ([]HostState, error) {
	views := view.NewManager(l.vcenter.client)
	all, err := views.CreateContainerView(ctx, l.vcenter.client.ServiceContent.RootFolder, []string{"VirtualMachine"}, true)
	if err != nil {
		return nil, fmt.Errorf("list the VMs: %w", err)
	}
	defer func() { _ = all.Destroy(ctx) }() // the session's end does it too
	var vms []mo.VirtualMachine
	if err := all.Retrieve(ctx, []string{"VirtualMachine"}, []string{"name", "config.template", "runtime.powerState", "guest.net"}, &vms); err != nil {
		return nil, fmt.Errorf("list the VMs: %w", err)
	}
	var states []HostState
	for _, vm := range vms {
		if vm.Config != nil && vm.Config.Template {
			continue
		}
		s := HostState{Name: vm.Name, Kind: "VM", State: "off"}
		if vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn {
			s.State = "on"
		}
		if vm.Guest != nil {
			for _, nic := range vm.Guest.Net {
				s.Addresses = append(s.Addresses, nic.IpAddress...)
			}
		}
		states = append(states, s)
	}
	return states, nil
}
