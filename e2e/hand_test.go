package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ktypes "k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// handEnv, when set, makes the test binary do one act by hand and end: what a
// person would do with vCenter's or the cluster's own tools, or the prober that
// runs on the client.
const handEnv = "FTPDEPLOY_E2E_HAND"

func hand(act string, args []string) int {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	acts := map[string]func(context.Context, []string) error{
		"vm-destroy": vmDestroy, "vm-memory": vmMemory, "vm-foreign": vmForeign, "vms": vms, "rules": rules,
		"vm-show": showVMs, "vm-extra": reconfigure(extraConfig), "rule-add": addRule, "rule-delete": deleteRule,
		"vm-rename": reconfigure(func(s *types.VirtualMachineConfigSpec, name string) { s.Name = name }),
		"vm-notes":  reconfigure(func(s *types.VirtualMachineConfigSpec, text string) { s.Annotation = text }),
		"login": func(ctx context.Context, _ []string) error {
			_, err := vcenter(ctx)
			return err
		},
		"sessions-end": endSessions, "vcenter-dump": dumpVCenter,
		"taint": taint, "untaint": untaint, "get-version": getVersion,
		"probe": probe, "crash": crash, "sessions": sessions, "clients": loopClients, "knock": knock, "stranger": stranger,
	}
	for name, do := range map[string]func(context.Context, *kubernetes.Clientset, []string) error{
		"api": api, "objects": objects, "cluster-dump": dumpCluster, "namespace-delete": deleteNamespace, "lease-delete": deleteLease,
		"deploy-first": deployFirst, "service-foreign": foreignService, "service-delete": deleteService, "service-unmark": unmarkService,
		"node-port": nodePort, "secret": setSecret, "secret-get": getSecret, "pod": podAddress, "pod-env": podEnv,
	} {
		acts[name] = func(ctx context.Context, args []string) error {
			c, err := cluster()
			if err != nil {
				return err
			}
			return do(ctx, c, args)
		}
	}
	do, ok := acts[act]
	if !ok {
		return fail(fmt.Errorf("no act %q", act))
	}
	if err := do(ctx, args); err != nil {
		return fail(fmt.Errorf("%s: %w", act, err))
	}
	return 0
}

func vcenter(ctx context.Context) (*govmomi.Client, error) {
	u, err := soap.ParseURL(os.Getenv("GOVC_URL"))
	if err != nil {
		return nil, err
	}
	u.User = url.UserPassword(os.Getenv("GOVC_USERNAME"), os.Getenv("GOVC_PASSWORD"))
	s := soap.NewClient(u, false)
	if err := s.SetRootCAs(os.Getenv("GOVC_TLS_CA_CERTS")); err != nil {
		return nil, err
	}
	v, err := vim25.NewClient(ctx, s)
	if err != nil {
		return nil, err
	}
	c := &govmomi.Client{Client: v, SessionManager: session.NewManager(v)}
	return c, c.Login(ctx, u.User)
}

func finder(ctx context.Context) (*find.Finder, error) {
	c, err := vcenter(ctx)
	if err != nil {
		return nil, err
	}
	f := find.NewFinder(c.Client)
	dc, err := f.Datacenter(ctx, "DC1")
	if err != nil {
		return nil, err
	}
	return f.SetDatacenter(dc), nil
}

func vm(ctx context.Context, name string) (*object.VirtualMachine, error) {
	f, err := finder(ctx)
	if err != nil {
		return nil, err
	}
	return f.VirtualMachine(ctx, "infra/ftp/"+name)
}

func wait(ctx context.Context, task *object.Task, err error) error {
	if err != nil {
		return err
	}
	return task.Wait(ctx)
}

func vmDestroy(ctx context.Context, args []string) error {
	v, err := vm(ctx, args[0])
	if err != nil {
		return err
	}
	state, err := v.PowerState(ctx)
	if err != nil {
		return err
	}
	if state == types.VirtualMachinePowerStatePoweredOn {
		task, err := v.PowerOff(ctx)
		if err := wait(ctx, task, err); err != nil {
			return err
		}
	}
	task, err := v.Destroy(ctx)
	return wait(ctx, task, err)
}

func vmMemory(ctx context.Context, args []string) error {
	v, err := vm(ctx, args[0])
	if err != nil {
		return err
	}
	mb, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	task, err := v.PowerOff(ctx) // without hot-plug, memory changes while the VM is off
	if err := wait(ctx, task, err); err != nil {
		return err
	}
	task, err = v.Reconfigure(ctx, types.VirtualMachineConfigSpec{MemoryMB: mb})
	if err := wait(ctx, task, err); err != nil {
		return err
	}
	task, err = v.PowerOn(ctx)
	return wait(ctx, task, err)
}

// vmForeign clones the template under one of our names, without our marks.
func vmForeign(ctx context.Context, args []string) error {
	f, err := finder(ctx)
	if err != nil {
		return err
	}
	template, err := f.VirtualMachine(ctx, "templates/debian-12-cloudinit")
	if err != nil {
		return err
	}
	folder, err := f.Folder(ctx, "vm/infra/ftp")
	if err != nil {
		return err
	}
	pool, err := f.ResourcePool(ctx, "stretched-01/Resources/infra")
	if err != nil {
		return err
	}
	ref := pool.Reference()
	task, err := template.Clone(ctx, folder, args[0], types.VirtualMachineCloneSpec{
		Location: types.VirtualMachineRelocateSpec{Pool: &ref},
	})
	return wait(ctx, task, err)
}

// vms prints the VMs of the folder.
func vms(ctx context.Context, _ []string) error {
	f, err := finder(ctx)
	if err != nil {
		return err
	}
	list, err := f.VirtualMachineList(ctx, "infra/ftp/*")
	var none *find.NotFoundError
	if errors.As(err, &none) {
		return nil
	}
	for _, v := range list {
		fmt.Println(v.Name())
	}
	return err
}

// clusterConfig reads the configuration of the vSphere cluster.
func clusterConfig(ctx context.Context) (*types.ClusterConfigInfoEx, error) {
	f, err := finder(ctx)
	if err != nil {
		return nil, err
	}
	cluster, err := f.ClusterComputeResource(ctx, "stretched-01")
	if err != nil {
		return nil, err
	}
	var c mo.ClusterComputeResource
	if err := cluster.Properties(ctx, cluster.Reference(), []string{"configurationEx"}, &c); err != nil {
		return nil, err
	}
	config, ok := c.ConfigurationEx.(*types.ClusterConfigInfoEx)
	if !ok {
		return nil, fmt.Errorf("the cluster's configuration is a %T", c.ConfigurationEx)
	}
	return config, nil
}

// rules prints the DRS rules and groups of the cluster.
func rules(ctx context.Context, _ []string) error {
	config, err := clusterConfig(ctx)
	if err != nil {
		return err
	}
	for _, r := range config.Rule {
		fmt.Println("rule", r.GetClusterRuleInfo().Name)
	}
	for _, g := range config.Group {
		if _, ours := g.(*types.ClusterVmGroup); ours {
			fmt.Println("group", g.GetClusterGroupInfo().Name)
		}
	}
	return nil
}

func cluster() (*kubernetes.Clientset, error) {
	c, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		return nil, err
	}
	c.UserAgent = "kubectl-edit"
	return kubernetes.NewForConfig(c)
}

func getVersion(context.Context, []string) error {
	c, err := cluster()
	if err != nil {
		return err
	}
	v, err := c.ServerVersion()
	if err == nil {
		fmt.Println(v.GitVersion)
	}
	return err
}

// byEdit is how a person changes an object: under another field manager.
var byEdit = metav1.PatchOptions{FieldManager: "kubectl-edit"}

// nodePort changes the NodePort of the service port with the given number.
func nodePort(ctx context.Context, c *kubernetes.Clientset, args []string) error {
	list, err := c.CoreV1().Services("ftp").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, s := range list.Items {
		for _, p := range s.Spec.Ports {
			if strconv.Itoa(int(p.Port)) != args[0] {
				continue
			}
			patch := fmt.Sprintf(`{"spec":{"ports":[{"port":%s,"protocol":"TCP","nodePort":%s}]}}`, args[0], args[1])
			_, err := c.CoreV1().Services("ftp").Patch(ctx, s.Name, ktypes.StrategicMergePatchType, []byte(patch), byEdit)
			return err
		}
	}
	return fmt.Errorf("no service port %s", args[0])
}

// setSecret changes a key of the only Secret of the namespace that has it.
func setSecret(ctx context.Context, c *kubernetes.Clientset, args []string) error {
	list, err := c.CoreV1().Secrets("ftp").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, s := range list.Items {
		if _, ok := s.Data[args[0]]; !ok {
			continue
		}
		patch, err := json.Marshal(map[string]any{"stringData": map[string]string{args[0]: args[1]}})
		if err != nil {
			return err
		}
		_, err = c.CoreV1().Secrets("ftp").Patch(ctx, s.Name, ktypes.StrategicMergePatchType, patch, byEdit)
		return err
	}
	return fmt.Errorf("no Secret with the key %s", args[0])
}

// foreignService makes Service shop/checkout with the NodePort given.
func foreignService(ctx context.Context, c *kubernetes.Clientset, args []string) error {
	port, err := strconv.ParseInt(args[0], 10, 32)
	if err != nil {
		return err
	}
	_, err = c.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	_, err = c.CoreV1().Services("shop").Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "checkout"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 80, NodePort: int32(port)}}},
	}, metav1.CreateOptions{})
	return err
}

func deleteService(ctx context.Context, c *kubernetes.Clientset, args []string) error {
	return c.CoreV1().Services(args[0]).Delete(ctx, args[1], metav1.DeleteOptions{})
}

// unmarkService makes a Service of the namespace anew, as it is but without any
// mark: as somebody else would have made it.
func unmarkService(ctx context.Context, c *kubernetes.Clientset, args []string) error {
	s, err := c.CoreV1().Services("ftp").Get(ctx, args[0], metav1.GetOptions{})
	if err != nil {
		return err
	}
	if err := c.CoreV1().Services("ftp").Delete(ctx, s.Name, metav1.DeleteOptions{}); err != nil {
		return err
	}
	s.ObjectMeta = metav1.ObjectMeta{Name: s.Name}
	_, err = c.CoreV1().Services("ftp").Create(ctx, s, metav1.CreateOptions{FieldManager: "kubectl-create"})
	return err
}

func deleteLease(ctx context.Context, c *kubernetes.Clientset, args []string) error {
	return c.CoordinationV1().Leases(args[0]).Delete(ctx, args[1], metav1.DeleteOptions{})
}

// taint keeps pods that do not tolerate it off a node, from now on.
func taint(ctx context.Context, args []string) error {
	return setTaints(ctx, args[0], []corev1.Taint{{Key: "ftplab.test/reserved", Effect: corev1.TaintEffectNoSchedule}})
}

func untaint(ctx context.Context, args []string) error { return setTaints(ctx, args[0], nil) }

func setTaints(ctx context.Context, node string, taints []corev1.Taint) error {
	c, err := cluster()
	if err != nil {
		return err
	}
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"taints": taints}})
	if err != nil {
		return err
	}
	_, err = c.CoreV1().Nodes().Patch(ctx, node, ktypes.MergePatchType, patch, byEdit)
	return err
}

// podEnv prints an environment variable of the FTP server's Deployment.
func podEnv(ctx context.Context, c *kubernetes.Clientset, args []string) error {
	list, err := c.AppsV1().Deployments("ftp").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, d := range list.Items {
		for _, e := range d.Spec.Template.Spec.Containers[0].Env {
			if e.Name == args[0] {
				fmt.Println(e.Value)
			}
		}
	}
	return nil
}

// podAddress prints the address of vsftpd's pod and its node.
func podAddress(ctx context.Context, c *kubernetes.Clientset, _ []string) error {
	list, err := c.CoreV1().Pods("ftp").List(ctx, metav1.ListOptions{FieldSelector: "status.phase=Running"})
	if err != nil {
		return err
	}
	for _, p := range list.Items {
		fmt.Println(p.Status.PodIP, p.Spec.NodeName)
	}
	return nil
}

// objects prints what of ours is in the cluster.
func objects(ctx context.Context, c *kubernetes.Clientset, _ []string) error {
	ours := metav1.ListOptions{LabelSelector: "app.kubernetes.io/managed-by=ftpdeploy"}
	var found []string
	add := func(kind string, meta metav1.ObjectMeta) {
		found = append(found, strings.TrimPrefix(kind+"/"+meta.Namespace+"/"+meta.Name, "/"))
	}
	namespaces, err := c.CoreV1().Namespaces().List(ctx, ours)
	if err != nil {
		return err
	}
	for _, o := range namespaces.Items {
		add("Namespace", o.ObjectMeta)
	}
	secrets, err := c.CoreV1().Secrets("").List(ctx, ours)
	if err != nil {
		return err
	}
	for _, o := range secrets.Items {
		add("Secret", o.ObjectMeta)
	}
	claims, err := c.CoreV1().PersistentVolumeClaims("").List(ctx, ours)
	if err != nil {
		return err
	}
	for _, o := range claims.Items {
		add("PersistentVolumeClaim", o.ObjectMeta)
	}
	services, err := c.CoreV1().Services("").List(ctx, ours)
	if err != nil {
		return err
	}
	for _, o := range services.Items {
		add("Service", o.ObjectMeta)
	}
	deployments, err := c.AppsV1().Deployments("").List(ctx, ours)
	if err != nil {
		return err
	}
	for _, o := range deployments.Items {
		add("Deployment", o.ObjectMeta)
	}
	leases, err := c.CoordinationV1().Leases("").List(ctx, ours)
	if err != nil {
		return err
	}
	for _, o := range leases.Items {
		add("Lease", o.ObjectMeta)
	}
	pods, err := c.CoreV1().Pods("ftp").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, o := range pods.Items {
		add("Pod", o.ObjectMeta)
	}
	slices.Sort(found)
	fmt.Println(strings.Join(found, "\n"))
	return nil
}

// api is one request to the API server: METHOD PATH [PATCH or object]. It prints the answer.
func api(ctx context.Context, c *kubernetes.Clientset, args []string) error {
	r := c.CoreV1().RESTClient().Verb(args[0]).AbsPath(args[1])
	if len(args) > 2 {
		form := string(ktypes.StrategicMergePatchType)
		if args[0] == "POST" {
			form = "application/json"
		}
		r = r.Param("fieldManager", byEdit.FieldManager).SetHeader("Content-Type", form).Body([]byte(args[2]))
	}
	answer, err := r.DoRaw(ctx)
	if err != nil {
		return fmt.Errorf("%w: %s", err, answer)
	}
	fmt.Println(string(answer))
	return nil
}

// reconfigure changes the VM whose name begins as args[0] says.
func reconfigure(edit func(*types.VirtualMachineConfigSpec, string)) func(context.Context, []string) error {
	return func(ctx context.Context, args []string) error {
		v, err := vm(ctx, args[0]+"*")
		if err != nil {
			return err
		}
		var spec types.VirtualMachineConfigSpec
		edit(&spec, args[1])
		task, err := v.Reconfigure(ctx, spec)
		return wait(ctx, task, err)
	}
}

func extraConfig(spec *types.VirtualMachineConfigSpec, setting string) {
	key, value, _ := strings.Cut(setting, "=")
	spec.ExtraConfig = []types.BaseOptionValue{&types.OptionValue{Key: key, Value: value}}
}

// showVMs prints the names, notes and advanced configuration of the VMs.
func showVMs(ctx context.Context, _ []string) error {
	f, err := finder(ctx)
	if err != nil {
		return err
	}
	list, err := f.VirtualMachineList(ctx, "infra/ftp/*")
	if err != nil {
		return err
	}
	for _, v := range list {
		var m mo.VirtualMachine
		if err := v.Properties(ctx, v.Reference(), []string{"name", "config"}, &m); err != nil {
			return err
		}
		fmt.Println(m.Name, m.Config.Annotation)
		for _, o := range m.Config.ExtraConfig {
			fmt.Printf("%s=%v\n", o.GetOptionValue().Key, o.GetOptionValue().Value)
		}
	}
	return nil
}

// addRule keeps the VMs of the folder on different hosts by a rule of its own.
func addRule(ctx context.Context, args []string) error {
	f, err := finder(ctx)
	if err != nil {
		return err
	}
	list, err := f.VirtualMachineList(ctx, "infra/ftp/*")
	if err != nil {
		return err
	}
	rule := &types.ClusterAntiAffinityRuleSpec{ClusterRuleInfo: types.ClusterRuleInfo{Name: args[0], Enabled: types.NewBool(true)}}
	for _, v := range list {
		rule.Vm = append(rule.Vm, v.Reference())
	}
	return editRules(ctx, &types.ClusterRuleSpec{ArrayUpdateSpec: types.ArrayUpdateSpec{Operation: types.ArrayUpdateOperationAdd}, Info: rule})
}

// deleteRule deletes the first rule whose name has args[0] in it.
func deleteRule(ctx context.Context, args []string) error {
	config, err := clusterConfig(ctx)
	if err != nil {
		return err
	}
	for _, r := range config.Rule {
		if info := r.GetClusterRuleInfo(); strings.Contains(info.Name, args[0]) {
			return editRules(ctx, &types.ClusterRuleSpec{ArrayUpdateSpec: types.ArrayUpdateSpec{Operation: types.ArrayUpdateOperationRemove, RemoveKey: info.Key}})
		}
	}
	return fmt.Errorf("no rule %s", args[0])
}

func editRules(ctx context.Context, spec *types.ClusterRuleSpec) error {
	f, err := finder(ctx)
	if err != nil {
		return err
	}
	cluster, err := f.ClusterComputeResource(ctx, "stretched-01")
	if err != nil {
		return err
	}
	task, err := cluster.Reconfigure(ctx, &types.ClusterConfigSpecEx{RulesSpec: []types.ClusterRuleSpec{*spec}}, true)
	return wait(ctx, task, err)
}

// getSecret prints a key of the only Secret of the namespace that has it.
func getSecret(ctx context.Context, c *kubernetes.Clientset, args []string) error {
	list, err := c.CoreV1().Secrets("ftp").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, s := range list.Items {
		if value, ok := s.Data[args[0]]; ok {
			fmt.Println(string(value))
			return nil
		}
	}
	return fmt.Errorf("no Secret with the key %s", args[0])
}

// deployFirst deploys an FTP server without ftpdeploy, with the password given: in
// namespace seed, for clients that come to 203.0.113.20.
func deployFirst(ctx context.Context, c *kubernetes.Clientset, args []string) error {
	meta := metav1.ObjectMeta{Name: "vsftpd", Namespace: "seed"}
	labels := map[string]string{"app": "vsftpd"}
	service := &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeNodePort, Selector: labels, Ports: []corev1.ServicePort{{Name: "control", Port: 21, NodePort: 30121}},
	}}
	for i := range int32(passives) {
		service.Spec.Ports = append(service.Spec.Ports, corev1.ServicePort{Name: fmt.Sprintf("data-%d", i), Port: 21200 + i, NodePort: 32200 + i})
	}
	server := corev1.Container{
		Name: "vsftpd", Image: "docker.io/fauria/vsftpd:lab", ImagePullPolicy: corev1.PullIfNotPresent,
		Env: []corev1.EnvVar{
			{Name: "FTP_USER", Value: "partner"},
			{Name: "FTP_PASS", Value: args[0]},
			{Name: "PASV_ADDRESS", Value: "203.0.113.20"},
			{Name: "PASV_MIN_PORT", Value: "21200"},
			{Name: "PASV_MAX_PORT", Value: "21210"},
		},
	}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "seed", Labels: map[string]string{"pod-security.kubernetes.io/enforce": "baseline"}}}
	deployment := &appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{
		Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{server}}},
	}}
	if _, err := c.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
		return err
	}
	if _, err := c.CoreV1().Services("seed").Create(ctx, service, metav1.CreateOptions{}); err != nil {
		return err
	}
	_, err := c.AppsV1().Deployments("seed").Create(ctx, deployment, metav1.CreateOptions{})
	return err
}
