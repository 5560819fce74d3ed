package steps

import (
	"context"
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ftpdeploy/ftpdeploy/plan"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/steps/proxy"
	"github.com/ftpdeploy/ftpdeploy/vsphere"
)

func TestAdoptNothing(t *testing.T) {
	p := newPair(t)
	p.up(t)
	for _, address := range []string{"haproxy-a", "lb.haproxy-c", "ftp_service.vsftpd", "vip.ftp"} {
		if _, err := p.live().Adopt(address); err == nil {
			t.Errorf("adopted %s", address)
		}
	}
	step := &adoption{address: "lb.haproxy-a", look: func(ctx context.Context) ([]plan.Change, error) { return p.live().adoptVM(ctx, p.topology.Boxes[0]) }}
	if changes, err := step.Plan(t.Context(), plan.Present); err == nil || !strings.Contains(err.Error(), "nothing to adopt") {
		t.Errorf("%+v, %v", changes, err)
	}
}

// A VM that stands under our name gets both marks and keeps all else; one of
// another deployment is left alone.
func TestAdoptVM(t *testing.T) {
	p := newPair(t)
	p.up(t)
	box := p.topology.Boxes[0]
	p.topology.ID = "ours"
	look := &adoption{address: "lb.haproxy-a", look: func(ctx context.Context) ([]plan.Change, error) { return p.live().adoptVM(ctx, box) }}
	if _, err := look.Plan(t.Context(), plan.Present); !errors.Is(err, vsphere.ErrForeign) {
		t.Fatalf("another deployment's VM: %v", err)
	}
	p.SetExtra(t, p.path(0), "ftpdeploy.deployment", "")
	p.SetExtra(t, p.path(0), "ftpdeploy.name", "")
	_, before := p.VM(t, p.path(0))
	writes := p.Writes()
	if changes := reaches(t, look, plan.Present, p.writes); len(changes) != 1 {
		t.Errorf("%+v", changes)
	}
	if n := p.Writes() - writes; n != 1 {
		t.Errorf("%d writes, want one", n)
	}
	_, after := p.VM(t, p.path(0))
	if after.Config.Hardware.MemoryMB != before.Config.Hardware.MemoryMB || after.Name != before.Name || after.Runtime.PowerState != before.Runtime.PowerState {
		t.Errorf("%+v became %+v", before.Config, after.Config)
	}
	if vm, err := p.calls.Find(t.Context(), "ours", box.Name); err != nil || vm.ID != before.Self.Value {
		t.Errorf("%+v, %v", vm, err)
	}
}

// A file that others wrote gets our mark and keeps its words; destroy puts back
// what it was.
func TestAdoptFile(t *testing.T) {
	p := startHost(t)
	const theirs = "global\n\tmaxconn 17\n"
	if err := p.host.Install(t.Context(), "debian", remote.Package{Name: "haproxy"}); err != nil {
		t.Fatal(err)
	}
	p.edit(t, proxy.HAProxyPath, theirs)
	step := &adoption{address: "lb." + p.box.Name, look: p.hostStep.adopt}
	if _, err := p.hostStep.Plan(t.Context(), plan.Present); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "ftpdeploy adopt lb."+p.box.Name) {
		t.Fatalf("got %v", err)
	}
	if changes := reaches(t, step, plan.Present); targets(changes) != "~"+proxy.HAProxyPath {
		t.Errorf("%+v", changes)
	}
	if now := p.has(t, proxy.HAProxyPath); now != string(proxy.Mark(p.topology, p.box, []byte(theirs))) {
		t.Errorf("the file is %q", now)
	}
	reaches(t, p.hostStep, plan.Present)
	reaches(t, p.hostStep, plan.Absent)
	if now := p.has(t, proxy.HAProxyPath); now != theirs {
		t.Errorf("destroy put back %q", now)
	}

	p.edit(t, proxy.HAProxyPath, "# ftpdeploy deployment=another lb=x\n")
	if _, err := step.Plan(t.Context(), plan.Present); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "FTP603") {
		t.Errorf("another deployment's file: %v", err)
	}
}

// Objects of our names get our labels; what could not become ours is refused.
func testAdopt(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	f.makeNamespace(nil)
	_, err := f.api.CoreV1().Services(f.service.Namespace).Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: f.service.Name, Labels: map[string]string{"app": "theirs"}},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Name: "http", Port: 80, NodePort: 31002}}},
	}, metav1.CreateOptions{FieldManager: "helm"})
	if err != nil {
		t.Fatal(err)
	}
	f.refused("was not made by ftpdeploy", "ftpdeploy adopt ftp_service.vsftpd")
	l := Open(f.deploy, Options{Kubeconfig: f.server.Kubeconfig, Env: func(string) (string, bool) { return "", false }})
	step, err := l.Adopt("ftp_service.vsftpd")
	if err != nil {
		t.Fatal(err)
	}
	f.wantSigns(reaches(t, step, plan.Present), "~ Service NS/vsftpd")
	live, err := f.api.CoreV1().Services(f.service.Namespace).Get(t.Context(), f.service.Name, metav1.GetOptions{})
	if err != nil || live.Labels["app"] != "theirs" || live.Labels[deploymentLabel] != f.deploy.ID || len(live.Spec.Ports) != 1 {
		t.Errorf("%+v, %v", live, err)
	}
	changes := f.plan(plan.Present)
	if len(changes) == 0 || changes[len(changes)-1].Action != plan.Update {
		t.Errorf("the next plan does not show the differences: %q", f.signs(changes))
	}

	other := newFixture(t, c)
	other.makeNamespace(nil)
	other.makeService("vsftpd", map[string]string{deploymentLabel: "theirs"}, 31003)
	if step, err = Open(other.deploy, Options{Kubeconfig: f.server.Kubeconfig, Env: func(string) (string, bool) { return "", false }}).Adopt("ftp_service.vsftpd"); err != nil {
		t.Fatal(err)
	}
	if _, err := step.Plan(t.Context(), plan.Present); err == nil || !strings.Contains(err.Error(), "FTP603") {
		t.Errorf("another deployment's object: %v", err)
	}
}
