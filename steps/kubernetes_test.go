package steps

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/kube"
	"github.com/ftpdeploy/ftpdeploy/kube/kubetest"
	"github.com/ftpdeploy/ftpdeploy/plan"
)

// cluster is a real API server; the tests play its controllers.
type cluster struct {
	server *kubetest.Server
	api    *clientset.Clientset // as an administrator who uses kubectl
}

// TestKubernetes is everything that is tested against one real API server.
func TestKubernetes(t *testing.T) {
	server := kubetest.Start(t)
	config, err := clientcmd.BuildConfigFromFlags("", server.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	config.WarningHandler = rest.NoWarnings{}
	api, err := clientset.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	// The first connection silences client-go's logger, which the controllers'
	// client reads: that must not happen beside each other.
	if _, err := kube.Connect(kube.Config{Kubeconfig: server.Kubeconfig}); err != nil {
		t.Fatal(err)
	}
	c := &cluster{server, api}
	c.storageClass(t, "lab", true)
	for name, test := range map[string]func(*testing.T, *cluster){
		"converges":        testConverges,
		"plan in words":    testPlanInWords,
		"drift":            testDrift,
		"password":         testPassword,
		"certificate":      testCertificate,
		"dangers":          testObjectDangers,
		"saved secrets":    testSavedSecrets,
		"foreign":          testForeign,
		"node port taken":  testNodePortTaken,
		"storage class":    testStorageClass,
		"namespace":        testNamespace,
		"keep":             testKeep,
		"renamed":          testRenamed,
		"two services":     testTwoServices,
		"interrupted":      testInterrupted,
		"image":            testImage,
		"pod security":     testPodSecurity,
		"autoscaler":       testAutoscaler,
		"rights":           testRights,
		"undo":             testUndo,
		"edit meanwhile":   testEditMeanwhile,
		"undo deletion":    testUndoDeletion,
		"image missing":    testImageMissing,
		"former":           testFormer,
		"label taken away": testLabelTakenAway,
		"lock":             testLock,
		"removed":          testRemovedNamespace,
		"removed, blind":   testRemovedForbidden,
		"adopt":            testAdopt,
		"goes back":        testGoesBack,
	} {
		t.Run(name, func(t *testing.T) { test(t, c) })
	}
}

// fixture is a topology of its own namespace and NodePorts, and its step.
type fixture struct {
	*cluster
	t       *testing.T
	deploy  *blueprints.Topology
	service *blueprints.Service
}

var fixtures int

func newFixture(t *testing.T, c *cluster) *fixture {
	topology, s := ftpTopology()
	fixtures++
	s.Namespace = fmt.Sprintf("ftp-%d", fixtures)
	s.ControlNodePort, s.NodePortFirst = 30000+fixtures, 32000+10*fixtures
	s.Volumes = []blueprints.Volume{{Name: "home", Size: "1Gi", Mount: "/home/vsftpd", AccessMode: "ReadWriteOnce"}}
	return &fixture{c, t, topology, s}
}

func (f *fixture) step(deleteData ...string) plan.Step {
	return newKubernetes(f.deploy, f.service, f.connect, deleteData)
}

func (f *fixture) connect(context.Context) (*kube.Client, error) {
	return kube.Connect(kube.Config{Kubeconfig: f.server.Kubeconfig, UserAgent: "ftpdeploy/test"})
}

// apply reaches a goal with the controllers at work, and returns what was done.
func (f *fixture) apply(goal plan.Goal, steps ...plan.Step) []plan.Change {
	f.t.Helper()
	defer f.control()()
	if steps == nil {
		steps = []plan.Step{f.step()}
	}
	changes, err := apply(f.t.Context(), goal, steps...)
	if err != nil {
		f.t.Fatal(err)
	}
	return changes
}

func (f *fixture) plan(goal plan.Goal) []plan.Change {
	f.t.Helper()
	return planOnly(f.t, f.step(), goal, f.state)
}

// refused plans and returns the error that must come of it, with nothing changed.
func (f *fixture) refused(wants ...string) error {
	f.t.Helper()
	before := f.state()
	_, err := f.step().Plan(f.t.Context(), plan.Present)
	if err == nil {
		f.t.Fatalf("not refused, want %q", wants)
	}
	for _, want := range wants {
		if !strings.Contains(err.Error(), want) {
			f.t.Errorf("%q lacks %q", err, want)
		}
	}
	if after := f.state(); after != before {
		f.t.Errorf("a refused plan changed something:\n%s\nbecame\n%s", before, after)
	}
	return err
}

// state is every object of the namespace with its version.
func (f *fixture) state() string {
	f.t.Helper()
	var b strings.Builder
	for _, kind := range []string{"secrets", "persistentvolumeclaims", "services", "deployments"} {
		request := f.api.CoreV1().RESTClient().Get()
		if kind == "deployments" {
			request = f.api.AppsV1().RESTClient().Get()
		}
		var list metav1.PartialObjectMetadataList
		if err := request.Namespace(f.service.Namespace).Resource(kind).Do(f.t.Context()).Into(&list); err != nil {
			f.t.Fatal(err)
		}
		for _, o := range list.Items {
			fmt.Fprintf(&b, "%s %s %s\n", kind, o.Name, o.ResourceVersion)
		}
	}
	space, err := f.api.CoreV1().Namespaces().Get(f.t.Context(), f.service.Namespace, metav1.GetOptions{})
	if passing(err) != nil {
		f.t.Fatal(err)
	}
	fmt.Fprintf(&b, "namespace %s\n", space.ResourceVersion)
	return b.String()
}

// signs are changes as "+ Secret ftp-1/vsftpd-account", without the namespace.
func (f *fixture) signs(changes []plan.Change) []string {
	var all []string
	for _, c := range changes {
		all = append(all, string(c.Action)+" "+strings.Replace(c.Target, f.service.Namespace, "NS", 1))
	}
	return all
}

func (f *fixture) wantSigns(changes []plan.Change, want ...string) {
	f.t.Helper()
	if got := f.signs(changes); !slices.Equal(got, want) {
		f.t.Errorf("changes:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// everything is what a first apply makes.
var everything = []string{
	"+ Namespace NS", "+ Secret NS/vsftpd-account", "+ PersistentVolumeClaim NS/vsftpd-home", "+ Deployment NS/vsftpd", "+ Service NS/vsftpd",
}

// control plays the controllers in the fixture's namespace: every Deployment
// rolls out, and what is deleted goes.
func (f *fixture) control() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(30 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if err := f.controlOnce(ctx); err != nil && ctx.Err() == nil {
				f.t.Errorf("play the controllers: %v", err)
				return
			}
		}
	}()
	return func() { cancel(); <-ended }
}

func (f *fixture) controlOnce(ctx context.Context) error {
	ns := f.service.Namespace
	deployments, err := f.api.AppsV1().Deployments(ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, d := range deployments.Items {
		if d.DeletionTimestamp != nil {
			if strings.HasSuffix(d.Name, ".image") {
				now := int64(0)
				if err := f.api.CoreV1().Pods(ns).Delete(ctx, d.Name+"-1", metav1.DeleteOptions{GracePeriodSeconds: &now}); passing(err) != nil {
					return err
				}
			}
			if _, err := f.api.AppsV1().Deployments(ns).Patch(ctx, d.Name, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); passing(err) != nil {
				return err
			}
			continue
		}
		if strings.HasSuffix(d.Name, ".image") {
			if err := f.pull(ctx, &d); err != nil {
				return err
			}
			continue
		}
		n := *d.Spec.Replicas
		want := appsv1.DeploymentStatus{ObservedGeneration: d.Generation, Replicas: n, UpdatedReplicas: n, ReadyReplicas: n, AvailableReplicas: n}
		if d.Status.ObservedGeneration == want.ObservedGeneration && d.Status.AvailableReplicas == n {
			continue
		}
		if err := f.rollout(ctx, d.Name, want); err != nil {
			return err
		}
	}
	claims, err := f.api.CoreV1().PersistentVolumeClaims(ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, p := range claims.Items {
		if p.DeletionTimestamp == nil {
			continue
		}
		if _, err := f.api.CoreV1().PersistentVolumeClaims(ns).Patch(ctx, p.Name, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); passing(err) != nil {
			return err
		}
	}
	space, err := f.api.CoreV1().Namespaces().Get(ctx, ns, metav1.GetOptions{})
	if err == nil && space.DeletionTimestamp != nil {
		space.Spec.Finalizers = nil
		_, err = f.api.CoreV1().Namespaces().Finalize(ctx, space, metav1.UpdateOptions{})
	}
	return passing(err)
}

// missing is an image that nobody has.
const missing = "docker.io/ftpdeploy/vsftpd:missing"

// pull plays the kubelet for a Deployment whose pod only pulls an image.
func (f *fixture) pull(ctx context.Context, d *appsv1.Deployment) error {
	ns := f.service.Namespace
	pods := f.api.CoreV1().Pods(ns)
	c := d.Spec.Template.Spec.Containers[0]
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: d.Name + "-1", Labels: d.Spec.Template.Labels}, Spec: d.Spec.Template.Spec}
	if _, err := pods.Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		if !apierrors.IsAlreadyExists(err) {
			return passing(err)
		}
		return nil
	}
	state := corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 0}}
	if c.Image == missing {
		state = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "not found"}}
	}
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{Name: c.Name, Image: c.Image, State: state}}}
	if _, err := pods.UpdateStatus(ctx, pod, metav1.UpdateOptions{}); passing(err) != nil {
		return err
	}
	d.Status = appsv1.DeploymentStatus{ObservedGeneration: d.Generation}
	_, err := f.api.AppsV1().Deployments(ns).UpdateStatus(ctx, d, metav1.UpdateOptions{})
	return passing(err)
}

// passing drops the errors of an object that went or changed meanwhile: the next
// turn sees it as it is.
func passing(err error) error {
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

func (f *fixture) rollout(ctx context.Context, name string, status appsv1.DeploymentStatus) error {
	d, err := f.api.AppsV1().Deployments(f.service.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return passing(err)
	}
	d.Status = status
	_, err = f.api.AppsV1().Deployments(f.service.Namespace).UpdateStatus(ctx, d, metav1.UpdateOptions{})
	return passing(err)
}

// edit changes an object as kubectl edit would.
func (f *fixture) edit(r kube.Ref, patch string) {
	f.t.Helper()
	request := f.api.CoreV1().RESTClient().Patch(types.StrategicMergePatchType)
	resource := map[string]string{"Namespace": "namespaces", "Secret": "secrets", "Service": "services", "PersistentVolumeClaim": "persistentvolumeclaims", "Deployment": "deployments"}[r.Kind]
	if r.Kind == "Deployment" {
		request = f.api.AppsV1().RESTClient().Patch(types.StrategicMergePatchType)
	}
	if r.Namespace != "" {
		request = request.Namespace(r.Namespace)
	}
	err := request.Resource(resource).Name(r.Name).Param("fieldManager", "kubectl-edit").Body([]byte(patch)).Do(f.t.Context()).Error()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) ref(kind, name string) kube.Ref {
	return kube.Ref{Kind: kind, Namespace: f.service.Namespace, Name: name}
}

func (c *cluster) storageClass(t *testing.T, name string, standard bool) {
	t.Helper()
	_, err := c.api.StorageV1().StorageClasses().Create(t.Context(), &storagev1.StorageClass{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Annotations: map[string]string{"storageclass.kubernetes.io/is-default-class": fmt.Sprint(standard)}},
		Provisioner: "lab.example",
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) makeNamespace(labels map[string]string) {
	f.t.Helper()
	_, err := f.api.CoreV1().Namespaces().Create(f.t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: f.service.Namespace, Labels: labels}}, metav1.CreateOptions{})
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) makeService(name string, labels map[string]string, nodePort int32) {
	f.t.Helper()
	_, err := f.api.CoreV1().Services(f.service.Namespace).Create(f.t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 80, NodePort: nodePort}}},
	}, metav1.CreateOptions{FieldManager: "helm"})
	if err != nil {
		f.t.Fatal(err)
	}
}

func testConverges(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	defer f.control()()
	converges(t, f.step()) // the state moves by itself while the controllers work
}

func testPlanInWords(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	changes := f.plan(plan.Present)
	f.wantSigns(changes, everything...)
	for _, change := range changes {
		if change.From != "" || change.Want == "" || !strings.HasPrefix(change.Detail.Unified, "--- /dev/null\n+++ "+change.Target+"\n") {
			t.Errorf("%s: from %q, want %q, detail %.60q", change.Target, change.From, change.Want, change.Detail.Unified)
		}
	}
	if text := fmt.Sprintf("%+v", changes); strings.Contains(text, canary) || strings.Contains(text, base64Text(canary)) {
		t.Error("the password shows")
	}
	f.apply(plan.Present)
	if left := f.plan(plan.Present); len(left) > 0 {
		t.Errorf("after apply: %+v", left)
	}
	f.wantSigns(f.apply(plan.Absent), "- Service NS/vsftpd", "- Deployment NS/vsftpd", "- PersistentVolumeClaim NS/vsftpd-home", "- Secret NS/vsftpd-account", "- Namespace NS")
	if left := f.plan(plan.Absent); len(left) > 0 {
		t.Errorf("after destroy: %+v", left)
	}
}

// Whatever is changed by hand is named, with who did it, and nothing else is.
func testDrift(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	f.apply(plan.Present)
	port := f.service.NodePort(21101)
	for _, test := range []struct {
		object              kube.Ref
		patch               string
		path, before, after string
		reason              string
	}{
		{
			f.ref("Service", "vsftpd"), fmt.Sprintf(`{"spec":{"ports":[{"port":21101,"nodePort":%d}]}}`, port+5),
			`spec.ports[port=21101,protocol="TCP"].nodePort`, fmt.Sprint(port + 5), fmt.Sprint(port), fmt.Sprintf("nodePort %d -> %d by kubectl-edit at ", port, port+5),
		},
		{
			f.ref("Service", "vsftpd"), `{"spec":{"externalTrafficPolicy":"Local"}}`,
			"spec.externalTrafficPolicy", "Local", "Cluster", "externalTrafficPolicy Cluster -> Local by kubectl-edit at ",
		},
		{
			f.ref("Secret", "vsftpd-account"), `{"data":{"FTP_PASS":"ZHJpZnRlZA=="}}`,
			"data.FTP_PASS", "(sensitive)", "(sensitive)", "FTP_PASS changed by kubectl-edit at ",
		},
		{
			f.ref("Deployment", "vsftpd"), `{"spec":{"replicas":2}}`,
			"spec.replicas", "2", "1", "replicas 1 -> 2 by kubectl-edit at ",
		},
		{
			f.ref("Deployment", "vsftpd"), `{"spec":{"template":{"spec":{"containers":[{"name":"vsftpd","image":"other:1"}]}}}}`,
			`spec.template.spec.containers[name="vsftpd"].image`, "other:1", "docker.io/ftpdeploy/vsftpd:lab", "image docker.io/ftpdeploy/vsftpd:lab -> other:1 by kubectl-edit at ",
		},
		{
			f.ref("Deployment", "vsftpd"), `{"spec":{"template":{"spec":{"containers":[{"name":"vsftpd","env":[{"name":"PASV_ADDRESS","value":"192.0.2.1"}]}]}}}}`,
			`spec.template.spec.containers[name="vsftpd"].env[name="PASV_ADDRESS"].value`, "192.0.2.1", "203.0.113.15", "value 203.0.113.15 -> 192.0.2.1 by kubectl-edit at ",
		},
		{
			f.ref("Deployment", "vsftpd"), `{"spec":{"strategy":{"type":"RollingUpdate"}}}`,
			"spec.strategy.type", "RollingUpdate", "Recreate", "type Recreate -> RollingUpdate by kubectl-edit at ",
		},
		{
			f.ref("Deployment", "vsftpd"), `{"metadata":{"labels":{"app.kubernetes.io/name":null}}}`,
			"metadata.labels[app.kubernetes.io/name]", "", "vsftpd", "metadata.labels[app.kubernetes.io/name] differs",
		},
		{
			kube.Ref{Kind: "Namespace", Name: f.service.Namespace},
			`{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"restricted"}}}`,
			"metadata.labels[pod-security.kubernetes.io/enforce]", "restricted", "baseline", "restricted by kubectl-edit at ",
		},
	} {
		f.edit(test.object, test.patch)
		changes := f.apply(plan.Present) // which fails unless a plan after it is empty
		changes = slices.DeleteFunc(changes, func(c plan.Change) bool { return c.Target == "image "+f.service.Image })
		if len(changes) != 1 || changes[0].Action != plan.Update || changes[0].Target != test.object.String() {
			t.Errorf("%s: changes %q", test.path, f.signs(changes))
			continue
		}
		got := slices.DeleteFunc(changes[0].Detail.Fields, func(f plan.Field) bool { return f.Path == "warning" })
		if !slices.Equal(got, []plan.Field{{Path: test.path, Before: test.before, After: test.after}}) {
			t.Errorf("fields %q", got)
		}
		if !strings.Contains(changes[0].Reason, test.reason) {
			t.Errorf("reason %q, want %q", changes[0].Reason, test.reason)
		}
	}
}

// Another password changes the Secret and replaces the pod.
func testPassword(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	f.apply(plan.Present)
	f.service.Users[0].Password = blueprints.NewSecret(canary + "2")
	changes := f.apply(plan.Present)
	f.wantSigns(changes, "~ Secret NS/vsftpd-account", "~ Deployment NS/vsftpd")
	if len(changes) == 2 && changes[1].Effect != plan.Rollout {
		t.Errorf("effect %q", changes[1].Effect)
	}
	if text := fmt.Sprintf("%+v", changes); strings.Contains(text, canary) || strings.Contains(text, base64Text(canary)[:12]) {
		t.Errorf("the password shows in %s", text)
	}
	secret, err := f.api.CoreV1().Secrets(f.service.Namespace).Get(t.Context(), "vsftpd-account", metav1.GetOptions{})
	if err != nil || string(secret.Data["FTP_PASS"]) != canary+"2" || string(secret.Data["FTP_USER"]) != "partner" {
		t.Errorf("the Secret holds %v (%v)", secret.Data, err)
	}
}

func testForeign(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	f.makeNamespace(nil)
	f.makeService("vsftpd", nil, 31001)
	err := f.refused("Service "+f.service.Namespace+"/vsftpd", "not made by ftpdeploy", "helm")
	if foreign, ok := errors.AsType[*ForeignError](err); !ok || !slices.Equal(foreign.Managers, []string{"helm"}) {
		t.Errorf("%#v", err)
	}
	f.edit(f.ref("Service", "vsftpd"), `{"metadata":{"labels":{"ftpdeploy.dev/deployment":"theirs"}}}`)
	f.refused(`"theirs"`, `"lab"`, "FTP603")
	if changes := f.plan(plan.Absent); len(changes) > 0 {
		t.Errorf("destroy takes what is not ours: %q", f.signs(changes))
	}
}

func testNodePortTaken(t *testing.T, c *cluster) {
	f, shop := newFixture(t, c), newFixture(t, c)
	shop.makeNamespace(nil)
	shop.makeService("checkout", nil, int32(f.service.NodePort(21102)))
	f.refused(fmt.Sprintf("NodePort %d is taken by Service %s/checkout (since %s). [FTP502]",
		f.service.NodePort(21102), shop.service.Namespace, time.Now().UTC().Format(time.DateOnly)))
}

func testStorageClass(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	f.service.Volumes[0].StorageClass = "fast"
	f.refused(`volume "home" wants storage class "fast"`, "Classes here: lab (default).", "FTP503")
	f.service.Volumes[0].StorageClass = ""
	if err := c.api.StorageV1().StorageClasses().Delete(t.Context(), "lab", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	defer c.storageClass(t, "lab", true)
	f.refused("wants the cluster's default storage class and there is none", "There is no storage class here.", "FTP504")
}

func testNamespace(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	f.service.CreateNamespace = false
	f.refused("namespace \""+f.service.Namespace+"\" is not there", "create_namespace")

	// one that others made is used, and neither changed nor deleted
	f.makeNamespace(map[string]string{"pod-security.kubernetes.io/enforce": "baseline"})
	f.service.CreateNamespace = true
	f.wantSigns(f.apply(plan.Present), everything[1:]...)
	f.wantSigns(f.apply(plan.Absent), "- Service NS/vsftpd", "- Deployment NS/vsftpd", "- PersistentVolumeClaim NS/vsftpd-home", "- Secret NS/vsftpd-account")

	// one that we made stays while something of others is in it
	f = newFixture(t, c)
	f.apply(plan.Present)
	f.makeService("theirs", nil, 31004)
	f.wantSigns(f.apply(plan.Absent), "- Service NS/vsftpd", "- Deployment NS/vsftpd", "- PersistentVolumeClaim NS/vsftpd-home", "- Secret NS/vsftpd-account")
	if err := f.api.CoreV1().Services(f.service.Namespace).Delete(t.Context(), "theirs", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.wantSigns(f.apply(plan.Absent), "- Namespace NS")
}

func testKeep(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	f.service.Volumes = append(f.service.Volumes, blueprints.Volume{Name: "logs", Size: "1Gi", Mount: "/var/log/vsftpd", AccessMode: "ReadWriteOnce"})
	f.service.Volumes[0].Keep = true
	f.apply(plan.Present)

	// out of the blueprint: what is kept stays, the rest goes after the pod is without it
	volumes := f.service.Volumes
	f.service.Volumes = nil
	f.wantSigns(f.apply(plan.Present), "~ Deployment NS/vsftpd", "- PersistentVolumeClaim NS/vsftpd-logs")
	f.service.Volumes = volumes[:1]
	f.wantSigns(f.apply(plan.Present), "~ Deployment NS/vsftpd")

	f.wantSigns(f.apply(plan.Absent), "- Service NS/vsftpd", "- Deployment NS/vsftpd", "- Secret NS/vsftpd-account")
	if left := f.plan(plan.Absent); len(left) > 0 {
		t.Errorf("kept data are planned to go: %q", f.signs(left))
	}
	f.wantSigns(f.apply(plan.Absent, f.step("home")), "- PersistentVolumeClaim NS/vsftpd-home", "- Namespace NS")
}

// A service that has another name now: its old objects go, first of all those
// that hold its ports.
func testRenamed(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	f.apply(plan.Present)
	f.service.Name = "ftpd"
	f.wantSigns(f.apply(plan.Present),
		"- Service NS/vsftpd", "- Deployment NS/vsftpd",
		"+ Secret NS/ftpd-account", "+ PersistentVolumeClaim NS/ftpd-home", "+ Deployment NS/ftpd", "+ Service NS/ftpd",
		"- PersistentVolumeClaim NS/vsftpd-home", "- Secret NS/vsftpd-account")
	f.service.Server = "external"
	f.wantSigns(f.apply(plan.Present), "- Service NS/ftpd", "- Deployment NS/ftpd", "- PersistentVolumeClaim NS/ftpd-home", "- Secret NS/ftpd-account")
}

// Two services share a namespace; a second deployment beside them is left alone.
func testTwoServices(t *testing.T, c *cluster) {
	f, other := newFixture(t, c), newFixture(t, c)
	second := other.service
	second.Name, second.Namespace, second.Cluster = "second", f.service.Namespace, f.service.Cluster
	f.deploy.Services = append(f.deploy.Services, second)
	steps := []plan.Step{f.step(), newKubernetes(f.deploy, second, f.connect, nil)}
	if after := steps[1].After(); !slices.Equal(after, []string{"kubernetes/vsftpd"}) {
		t.Fatalf("after %q", after)
	}
	changes, err := steps[1].Plan(t.Context(), plan.Present)
	if err != nil || len(changes) != 4 || slices.ContainsFunc(changes, func(c plan.Change) bool { return c.From != plan.Unseen }) {
		t.Fatalf("%+v, %v", changes, err)
	}
	f.apply(plan.Present, steps...)
	f.edit(kube.Ref{Kind: "Namespace", Name: f.service.Namespace}, `{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"restricted"}}}`)
	for i, want := range []string{"~ Namespace NS", ""} {
		changes, err := steps[i].Plan(t.Context(), plan.Present)
		if got := strings.Join(f.signs(changes), " "); err != nil || got != want {
			t.Errorf("%s: the namespace that both share was changed: %q, %v; want %q", steps[i].Name(), got, err, want)
		}
	}
	f.apply(plan.Present, steps...)

	stranger := newFixture(t, c)
	stranger.deploy.ID, stranger.service.Name, stranger.service.Namespace = "theirs", "theirs", f.service.Namespace
	stranger.wantSigns(stranger.apply(plan.Present), "+ Secret NS/theirs-account", "+ PersistentVolumeClaim NS/theirs-home", "+ Deployment NS/theirs", "+ Service NS/theirs")
	if left := f.plan(plan.Present); len(left) > 0 {
		t.Errorf("two deployments want different things: %q", f.signs(left))
	}
	f.apply(plan.Absent, steps...)
	if left := stranger.plan(plan.Present); len(left) > 0 {
		t.Errorf("destroying one deployment hurt the other: %q", stranger.signs(left))
	}
}

// A run that ended before its pod served is taken up by the next one.
func testInterrupted(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	stop := f.control()
	if _, err := apply(t.Context(), plan.Present, f.step()); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := f.rollout(t.Context(), "vsftpd", appsv1.DeploymentStatus{ObservedGeneration: 1, Replicas: 1, UpdatedReplicas: 1}); err != nil {
		t.Fatal(err)
	}
	changes := f.plan(plan.Present)
	f.wantSigns(changes, "> Deployment NS/vsftpd")
	if len(changes) == 1 && changes[0].Reason != "wait until it serves: 0 of 1 pods serve" {
		t.Errorf("reason %q", changes[0].Reason)
	}
	f.apply(plan.Present)
}

// An image that is not to be had ends the wait within seconds, with the reason.
func testImage(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	f.makeNamespace(map[string]string{"pod-security.kubernetes.io/enforce": "baseline"})
	pod, err := f.api.CoreV1().Pods(f.service.Namespace).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "vsftpd-1", Labels: map[string]string{deploymentLabel: "lab", serviceLabel: "vsftpd"}},
		Spec:       corev1.PodSpec{NodeName: "worker-1", Containers: []corev1.Container{{Name: "vsftpd", Image: "x"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "vsftpd", Image: "x", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "no such tag"}}}}
	if _, err := f.api.CoreV1().Pods(f.service.Namespace).UpdateStatus(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	err = f.applyAgainst(appsv1.DeploymentStatus{ObservedGeneration: 1, Replicas: 1, UpdatedReplicas: 1})
	if stuck, ok := errors.AsType[*kube.StuckError](err); !ok || stuck.Reason != "ImagePullBackOff" || !strings.Contains(err.Error(), "no such tag") {
		t.Errorf("%v", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
}

// Pod Security that forbids the pods is named, with the way out.
func testPodSecurity(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	f.makeNamespace(nil)
	changes := f.plan(plan.Present)
	warned := slices.ContainsFunc(changes, func(c plan.Change) bool {
		return slices.ContainsFunc(c.Detail.Fields, func(f plan.Field) bool { return f.Path == "warning" && strings.Contains(f.After, "PodSecurity") })
	})
	if !warned {
		t.Error("the plan does not show the server's warning")
	}
	err := f.applyAgainst(appsv1.DeploymentStatus{ObservedGeneration: 1, Conditions: []appsv1.DeploymentCondition{{
		Type: appsv1.DeploymentReplicaFailure, Status: corev1.ConditionTrue, Reason: "FailedCreate", Message: `pods "x" is forbidden: violates PodSecurity "restricted"`,
	}}})
	if err == nil || !strings.Contains(err.Error(), `violates PodSecurity "restricted"`) || !strings.Contains(err.Error(), "kubectl label namespace "+f.service.Namespace) {
		t.Errorf("%v", err)
	}
}

// applyAgainst applies while the Deployment has this status and no other.
func (f *fixture) applyAgainst(status appsv1.DeploymentStatus) error {
	f.t.Helper()
	ended := make(chan error, 1)
	go func() {
		_, err := apply(f.t.Context(), plan.Present, f.step())
		ended <- err
	}()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			return err
		case <-tick.C:
			if err := f.rollout(f.t.Context(), "vsftpd", status); err != nil {
				f.t.Fatal(err)
			}
		}
	}
}

// A field that an autoscaler holds is not fought over.
func testAutoscaler(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	f.apply(plan.Present)
	_, err := f.api.AppsV1().Deployments(f.service.Namespace).Patch(t.Context(), "vsftpd", types.MergePatchType,
		[]byte(`{"spec":{"replicas":4}}`), metav1.PatchOptions{FieldManager: "kube-controller-manager"}, "scale")
	if err != nil {
		t.Fatal(err)
	}
	err = f.refused("spec.replicas is 4", "kube-controller-manager (scale)", "wanted 1")
	if _, ok := errors.AsType[*kube.ConflictError](err); !ok {
		t.Errorf("%T", err)
	}
}

func testRights(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	user := f.server.User("deployer")
	poor := newKubernetes(f.deploy, f.service, func(context.Context) (*kube.Client, error) {
		return kube.Connect(kube.Config{Kubeconfig: user})
	}, nil)
	_, err := poor.Plan(t.Context(), plan.Present)
	lacks, ok := errors.AsType[*kube.RightsError](err)
	if !ok || len(lacks.Missing) < 20 {
		t.Fatalf("%v", err)
	}
	// What the error prints, given, is enough for everything.
	var role rbacv1.ClusterRole
	role.Name = "deployer"
	for _, r := range lacks.Missing {
		role.Rules = append(role.Rules, rbacv1.PolicyRule{APIGroups: []string{r.Group}, Resources: []string{r.Resource}, Verbs: []string{r.Verb}})
	}
	if _, err := f.api.RbacV1().ClusterRoles().Create(t.Context(), &role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = f.api.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "deployer"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "deployer"},
		Subjects:   []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: "deployer"}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for err = lacks; err != nil && time.Now().Before(deadline); { // RBAC takes a moment
		_, err = poor.Plan(t.Context(), plan.Present)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.apply(plan.Present, poor)
	f.apply(plan.Absent, poor)
}

// Every change that can be put back is put back by its Undo.
func testUndo(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	nothing := f.plan(plan.Present)
	changes := f.apply(plan.Present)
	first := f.plan(plan.Absent)
	f.service.Users[0].Password = blueprints.NewSecret("another")
	f.service.PassiveLast++
	f.service.Image = "docker.io/ftpdeploy/vsftpd:next"
	second := f.apply(plan.Present)
	f.wantSigns(second, "> image docker.io/ftpdeploy/vsftpd:next", "~ Secret NS/vsftpd-account", "~ Deployment NS/vsftpd", "~ Service NS/vsftpd")
	f.undo(second)
	f.service.Users[0].Password = blueprints.NewSecret(canary)
	f.service.PassiveLast--
	f.service.Image = "docker.io/ftpdeploy/vsftpd:lab"
	if left := f.plan(plan.Present); len(left) > 0 {
		t.Errorf("undone, the first state is not there: %+v", left)
	}
	if now := f.plan(plan.Absent); !slices.Equal(f.signs(now), f.signs(first)) {
		t.Errorf("%q became %q", f.signs(first), f.signs(now))
	}
	f.undo(changes)
	if now := f.plan(plan.Present); !slices.Equal(f.signs(now), f.signs(nothing)) {
		t.Errorf("all undone: %q", f.signs(now))
	}
}

// testEditMeanwhile: someone edits the Service while the pod is replaced. The edit
// stays, and what was done before it goes back.
func testEditMeanwhile(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	f.apply(plan.Present)
	defer f.control()()
	image := f.service.Image
	f.service.PassiveLast++
	f.service.Image = "docker.io/ftpdeploy/vsftpd:next"
	at := f.ref("Service", "vsftpd")
	p, err := plan.Make(t.Context(), plan.Present, []plan.Step{f.step()}, plan.Options{Rollback: true, Observer: meanwhile{
		at.String(), func() { f.edit(at, `{"spec":{"externalTrafficPolicy":"Local"}}`) },
	}})
	if err != nil {
		t.Fatal(err)
	}
	err = p.Apply(t.Context(), nil)
	var drift *plan.DriftError
	var back *plan.RollbackError
	if !errors.As(err, &drift) || !errors.As(err, &back) || !back.Complete() || !strings.Contains(err.Error(), "Local by kubectl-edit") {
		t.Errorf("got %v", err)
	}
	service, err := f.api.CoreV1().Services(f.service.Namespace).Get(t.Context(), "vsftpd", metav1.GetOptions{})
	if err != nil || service.Spec.ExternalTrafficPolicy != "Local" {
		t.Errorf("the edit is gone: %v %v", service.Spec.ExternalTrafficPolicy, err)
	}
	f.service.PassiveLast--
	f.service.Image = image
	if left := f.signs(f.plan(plan.Present)); !slices.Equal(left, []string{"~ Service NS/vsftpd"}) {
		t.Errorf("not as before: %q", left)
	}
}

// What goes because the blueprint has it no more is made again by its Undo.
func testUndoDeletion(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	f.service.Volumes = nil
	f.apply(plan.Present)
	f.service.Server = "external"
	changes := f.apply(plan.Present)
	f.wantSigns(changes, "- Service NS/vsftpd", "- Deployment NS/vsftpd", "- Secret NS/vsftpd-account")
	f.undo(changes)
	f.service.Server = "vsftpd"
	if left := f.plan(plan.Present); len(left) > 0 {
		t.Errorf("undone, the first state is not there: %q", f.signs(left))
	}
}

// What is deployed is proven by its own account, range and VIP, not by the blueprint's.
func testFormer(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	live := Open(f.deploy, Options{Kubeconfig: f.server.Kubeconfig, Env: func(string) (string, bool) { return "", false }})
	smoke := &blueprints.Smoke{Service: f.service, User: f.service.Users[0], VIP: f.service.VIP}
	same := func(when string) {
		t.Helper()
		if was, err := live.former(t.Context(), smoke); was != nil || err != nil {
			t.Errorf("%s: %+v, %v; want that it is no other one", when, was, err)
		}
	}
	same("nothing is deployed")
	f.apply(plan.Present)
	same("it is as the blueprint says")
	before, vip := *f.service, *f.service.VIP
	f.service.VIP = &vip
	vip.Address = vip.Address.Next()
	f.service.PassiveFirst, f.service.PassiveLast, f.service.ControlPort = before.PassiveFirst+1, before.PassiveLast+1, before.ControlPort+1
	smoke = &blueprints.Smoke{Service: f.service, VIP: &vip, User: &blueprints.User{Name: "other", Password: blueprints.NewSecret("another")}}
	was, err := live.former(t.Context(), smoke)
	if err != nil || was == nil {
		t.Fatalf("%+v, %v", was, err)
	}
	s := was.Service
	if s.PassiveFirst != before.PassiveFirst || s.PassiveLast != before.PassiveLast || s.ControlPort != before.ControlPort ||
		s.VIP.Address != before.VIP.Address || was.VIP.Address != before.VIP.Address || was.User.Name != before.Users[0].Name || was.User.Password.Reveal() != canary {
		t.Errorf("%+v of %+v, want what was deployed", was, s)
	}
	if f.service.PassiveLast != before.PassiveLast+1 || vip.Address == before.VIP.Address {
		t.Error("the topology was written to")
	}
}

// An image that cannot be pulled is found out before anything is changed.
func testImageMissing(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	f.apply(plan.Present)
	f.service.Image = missing
	changes := f.plan(plan.Present)
	f.wantSigns(changes, "> image "+missing, "~ Deployment NS/vsftpd")
	stop := f.control()
	err := changes[0].Do(t.Context(), func(string) {})
	stop()
	var stuck *kube.StuckError
	if !errors.As(err, &stuck) || !stuck.Unpullable() || !strings.Contains(err.Error(), missing) {
		t.Errorf("got %v, want that the image cannot be pulled", err)
	}
	if now := f.plan(plan.Present); !slices.Equal(f.signs(now), f.signs(changes)) {
		t.Errorf("%q became %q", f.signs(changes), f.signs(now))
	}
}

func (f *fixture) undo(changes []plan.Change) {
	f.t.Helper()
	defer f.control()()
	for _, c := range slices.Backward(changes) {
		if err := c.Undo(f.t.Context()); err != nil {
			f.t.Fatalf("undo %s %s: %v", c.Action, c.Target, err)
		}
	}
}

// Without our label an object that we made is still known, repaired and destroyed.
func testLabelTakenAway(t *testing.T, c *cluster) {
	f := newFixture(t, c)
	f.apply(plan.Present)
	take := `{"metadata":{"labels":{"ftpdeploy.dev/deployment":null}}}`
	f.edit(f.ref("Secret", "vsftpd-account"), take)
	f.wantSigns(f.apply(plan.Present), "~ Secret NS/vsftpd-account")
	f.edit(f.ref("Deployment", "vsftpd"), take)
	changes := f.apply(plan.Absent)
	if got := f.signs(changes); !slices.Contains(got, "- Deployment NS/vsftpd") || cmp.Or(got...) != "- Service NS/vsftpd" {
		t.Errorf("%q", got)
	}
}
