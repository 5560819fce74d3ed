package kube

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Holder is the Service that a NodePort belongs to.
type Holder struct {
	Namespace, Name string
	Since           time.Time // of the Service; the port may be younger
	Labels          map[string]string
}

// String is as in "Service shop/checkout (since 2025-03-02)".
func (h Holder) String() string {
	return fmt.Sprintf("Service %s/%s (since %s)", h.Namespace, h.Name, h.Since.Format(time.DateOnly))
}

// NodePorts returns who holds which TCP NodePort, in all namespaces.
func (c *Client) NodePorts(ctx context.Context) (map[int]Holder, error) {
	held := map[int]Holder{}
	err := c.try(ctx, "list the Services of all namespaces, for their NodePorts", func(ctx context.Context) error {
		clear(held)
		services, err := c.set.CoreV1().Services(metav1.NamespaceAll).List(ctx, everything)
		if err != nil {
			return err
		}
		for _, s := range services.Items {
			h := Holder{s.Namespace, s.Name, s.CreationTimestamp.UTC(), s.Labels}
			for _, p := range s.Spec.Ports {
				if p.NodePort != 0 && p.Protocol == corev1.ProtocolTCP {
					held[int(p.NodePort)] = h
				}
			}
			if p := s.Spec.HealthCheckNodePort; p != 0 {
				held[int(p)] = h
			}
		}
		return nil
	})
	return held, err
}

// Node is a machine of the cluster.
type Node struct {
	Name    string
	Address netip.Addr
	Ready   bool
}

// Nodes returns the nodes that a label selector matches, the oldest first, so
// that a new one comes last. AddressType is as in "InternalIP"; a node without
// such an address is an error.
func (c *Client) Nodes(ctx context.Context, selector, addressType string) ([]Node, error) {
	var found []Node
	what := fmt.Sprintf("list the nodes with selector %q", selector)
	err := c.try(ctx, what, func(ctx context.Context) error {
		list, err := c.set.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			return err
		}
		slices.SortFunc(list.Items, func(a, b corev1.Node) int {
			return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
		})
		found = nil
		for _, n := range list.Items {
			node := Node{Name: n.Name}
			for _, condition := range n.Status.Conditions {
				if condition.Type == corev1.NodeReady {
					node.Ready = condition.Status == corev1.ConditionTrue
				}
			}
			for _, a := range n.Status.Addresses {
				if string(a.Type) != addressType || node.Address.IsValid() {
					continue
				}
				if node.Address, err = netip.ParseAddr(a.Address); err != nil {
					return fmt.Errorf("node %s: %w", n.Name, err)
				}
			}
			if !node.Address.IsValid() {
				return fmt.Errorf("node %s has no address of type %s", n.Name, addressType)
			}
			found = append(found, node)
		}
		return nil
	})
	return found, err
}

// StorageClass is a way to get a volume.
type StorageClass struct {
	Name    string
	Default bool
}

// StorageClasses returns the cluster's classes in the order of their names.
func (c *Client) StorageClasses(ctx context.Context) ([]StorageClass, error) {
	var found []StorageClass
	err := c.try(ctx, "list the storage classes", func(ctx context.Context) error {
		list, err := c.set.StorageV1().StorageClasses().List(ctx, everything)
		if err != nil {
			return err
		}
		found = nil
		for _, s := range list.Items {
			found = append(found, StorageClass{s.Name, s.Annotations["storageclass.kubernetes.io/is-default-class"] == "true"})
		}
		slices.SortFunc(found, func(a, b StorageClass) int { return strings.Compare(a.Name, b.Name) })
		return nil
	})
	return found, err
}
