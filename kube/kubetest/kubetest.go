// Package kubetest runs a real Kubernetes API server for tests: etcd and
// kube-apiserver on loopback, without root. There are no controllers and no
// nodes; a test that needs one plays it. Pod Security enforces "restricted"
// unless a namespace says otherwise, as vSphere sets it.
package kubetest

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Server is a running API server.
type Server struct {
	URL        string
	Kubeconfig string // of a cluster administrator

	t         testing.TB
	dir       string
	authority *authority
	apiserver []string // its command line
	process   *process
}

// Start starts etcd and kube-apiserver and returns when the server is ready;
// both end with the test. The environment variable FTPDEPLOY_K8S names the
// multi-call Kubernetes binary; a test without it fails.
func Start(t testing.TB) *Server {
	t.Helper()
	binary := os.Getenv("FTPDEPLOY_K8S")
	if binary == "" {
		t.Fatal("FTPDEPLOY_K8S does not name a Kubernetes binary: run `make test`, which builds it and sets the variable")
	}
	s := &Server{t: t, dir: t.TempDir()}
	address := loopback()
	s.URL = "https://" + address + ":6443"

	var err error
	if s.authority, err = newAuthority(s.dir, address); err != nil {
		t.Fatalf("make certificates: %v", err)
	}
	s.Kubeconfig = s.User("admin", "system:masters")
	admission := filepath.Join(s.dir, "admission.json")
	if err := os.WriteFile(admission, []byte(podSecurity), 0o600); err != nil {
		t.Fatal(err)
	}

	client, peer := "http://"+address+":2379", "http://"+address+":2380"
	s.run("etcd", binary, "etcd", "--data-dir="+filepath.Join(s.dir, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=default="+peer)
	file := func(name string) string { return filepath.Join(s.dir, name) }
	s.apiserver = []string{
		binary, "kube-apiserver", "--etcd-servers=" + client,
		"--bind-address=" + address, "--secure-port=6443",
		"--advertise-address=192.0.2.1", "--endpoint-reconciler-type=none",
		"--service-cluster-ip-range=10.96.0.0/16", "--service-node-port-range=30000-32767",
		"--client-ca-file=" + file("ca.crt"),
		"--tls-cert-file=" + file("server.crt"), "--tls-private-key-file=" + file("server.key"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + file("server.crt"), "--service-account-signing-key-file=" + file("server.key"),
		"--authorization-mode=RBAC", "--disable-admission-plugins=ServiceAccount",
		"--admission-control-config-file=" + admission,
	}
	s.Restart()
	return s
}

// podSecurity enforces "restricted" everywhere by default.
const podSecurity = `{
  "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AdmissionConfiguration",
  "plugins": [{"name": "PodSecurity", "configuration": {
    "apiVersion": "pod-security.admission.config.k8s.io/v1", "kind": "PodSecurityConfiguration",
    "defaults": {"enforce": "restricted", "warn": "restricted"}
  }}]
}`

// User returns a kubeconfig file of a user that the server authenticates; what
// it may do is a matter of RBAC.
func (s *Server) User(name string, groups ...string) string {
	s.t.Helper()
	crt, key, err := s.authority.issue(name, groups, nil)
	if err != nil {
		s.t.Fatalf("issue a certificate for %s: %v", name, err)
	}
	config, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "test",
		"clusters": []any{map[string]any{"name": "test", "cluster": map[string]any{"server": s.URL, "certificate-authority-data": s.authority.pem}}},
		"users":    []any{map[string]any{"name": name, "user": map[string]any{"client-certificate-data": crt, "client-key-data": key}}},
		"contexts": []any{map[string]any{"name": "test", "context": map[string]any{"cluster": "test", "user": name}}},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	path := filepath.Join(s.dir, name+".kubeconfig")
	if err := os.WriteFile(path, config, 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// Stop kills the API server; etcd keeps what it knew.
func (s *Server) Stop() { s.process.stop() }

// Restart starts the API server again and waits until it is ready.
func (s *Server) Restart() {
	s.t.Helper()
	s.process = s.run("kube-apiserver", s.apiserver...)
	s.waitReady()
}

// loopback picks an address that no other test uses at the same time.
func loopback() string {
	var b [3]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic(err)
	}
	return fmt.Sprintf("127.%d.%d.%d", 1+b[0]%250, b[1], 1+b[2]%250)
}

func (s *Server) waitReady() {
	s.t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.authority.pem)
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true}}
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	last := errors.New("not asked yet")
	for {
		select {
		case <-s.process.done:
			s.t.Fatalf("kube-apiserver ended: %v\n%s", s.process.err, s.process.tail())
		case <-ctx.Done():
			s.t.Fatalf("kube-apiserver is not ready after 90 s: %v\n%s", last, s.process.tail())
		case <-tick.C:
		}
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/readyz", nil)
		if err != nil {
			s.t.Fatal(err)
		}
		reply, err := client.Do(request)
		if err != nil {
			last = err
			continue
		}
		_ = reply.Body.Close() // nothing in it is read
		if reply.StatusCode == http.StatusOK {
			return
		}
		last = errors.New(reply.Status)
	}
}

// process is a child that dies with the test, whatever ends it.
type process struct {
	log     string
	pid     int
	done    chan struct{} // closed when it has ended
	err     error         // why it ended
	started chan error
}

// run starts a child; it is stopped when the test ends.
func (s *Server) run(name string, args ...string) *process {
	s.t.Helper()
	p := &process{log: filepath.Join(s.dir, name+".log"), done: make(chan struct{}), started: make(chan error, 1)}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		// The parent-death signal is sent when the thread that started the child
		// ends, so that thread is kept until then.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		c := exec.CommandContext(context.Background(), args[0], args[1:]...)
		c.Stdout, c.Stderr = log, log
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		err := c.Start()
		if err == nil {
			p.pid = c.Process.Pid
		}
		p.started <- err
		if err == nil {
			p.err = c.Wait()
		}
		p.err = errors.Join(p.err, log.Close())
	}()
	if err := <-p.started; err != nil {
		s.t.Fatalf("start %s: %v", name, err)
	}
	s.t.Cleanup(p.stop)
	return p
}

// stop kills the child and waits for its end. There is nothing worth saving.
func (p *process) stop() {
	select {
	case <-p.done:
		return
	default:
	}
	_ = syscall.Kill(p.pid, syscall.SIGKILL) // it may have ended in between
	<-p.done
}

// tail is the end of the child's log.
func (p *process) tail() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}
