package kube

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestPodOf(t *testing.T) {
	made := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "vsftpd-x", CreationTimestamp: metav1.NewTime(made)},
		Spec:       corev1.PodSpec{NodeName: "worker-1", Containers: []corev1.Container{{Name: "vsftpd", Image: "vsftpd:1"}, {Name: "beside", Image: "other:1"}}},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
			ContainerStatuses: []corev1.ContainerStatus{
				{Name: "beside", ImageID: "sha256:other", RestartCount: 7},
				{Name: "vsftpd", ImageID: "registry.example/vsftpd@sha256:abc", RestartCount: 2},
			},
		},
	}
	want := Pod{Name: "vsftpd-x", Node: "worker-1", State: "Running", Ready: true, Since: made, Restarts: 2, Image: "vsftpd:1", Digest: "sha256:abc"}
	if got := podOf(p); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	p.DeletionTimestamp, p.Status.ContainerStatuses, p.Status.Conditions = &p.CreationTimestamp, nil, nil
	want = Pod{Name: "vsftpd-x", Node: "worker-1", State: "Terminating", Since: made, Image: "vsftpd:1"}
	if got := podOf(p); got != want {
		t.Errorf("one that ends: got %+v, want %+v", got, want)
	}
}
