package e2e

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/vmware/govmomi/event"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// deleteNamespace deletes a namespace and waits until all of it is gone.
func deleteNamespace(ctx context.Context, c *kubernetes.Clientset, args []string) error {
	if err := c.CoreV1().Namespaces().Delete(ctx, args[0], metav1.DeleteOptions{}); err != nil {
		return err
	}
	for {
		if _, err := c.CoreV1().Namespaces().Get(ctx, args[0], metav1.GetOptions{}); apierrors.IsNotFound(err) {
			return nil
		} else if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("namespace %s does not go: %w", args[0], ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// endSessions ends every session of vCenter but its own.
func endSessions(ctx context.Context, _ []string) error {
	c, err := vcenter(ctx)
	if err != nil {
		return err
	}
	own, err := c.SessionManager.UserSession(ctx)
	if err != nil {
		return err
	}
	var manager mo.SessionManager
	if err := property.DefaultCollector(c.Client).RetrieveOne(ctx, *c.ServiceContent.SessionManager, []string{"sessionList"}, &manager); err != nil {
		return err
	}
	var others []string
	for _, s := range manager.SessionList {
		if s.Key != own.Key {
			others = append(others, s.Key)
		}
	}
	return c.SessionManager.TerminateSession(ctx, others)
}

// dumpVCenter prints all that vCenter holds of VMs, clusters, tasks and events.
func dumpVCenter(ctx context.Context, _ []string) error {
	c, err := vcenter(ctx)
	if err != nil {
		return err
	}
	all, err := view.NewManager(c.Client).CreateContainerView(ctx, c.ServiceContent.RootFolder, nil, true)
	if err != nil {
		return err
	}
	objects, err := all.Find(ctx, nil, property.Match{})
	if err != nil {
		return err
	}
	objects = append(objects, *c.ServiceContent.TaskManager, *c.ServiceContent.EventManager)
	for _, o := range objects {
		var content []types.ObjectContent
		if err := property.DefaultCollector(c.Client).Retrieve(ctx, []types.ManagedObjectReference{o}, nil, &content); err != nil {
			return err
		}
		if err := xml.NewEncoder(os.Stdout).Encode(content); err != nil {
			return err
		}
	}
	events, err := event.NewManager(c.Client).QueryEvents(ctx, types.EventFilterSpec{})
	if err != nil {
		return err
	}
	for _, e := range events {
		if err := xml.NewEncoder(os.Stdout).Encode(e); err != nil {
			return err
		}
	}
	return nil
}

// dumpCluster prints every object of the cluster but the Secrets that are given as
// NAMESPACE/NAME.
func dumpCluster(ctx context.Context, c *kubernetes.Clientset, args []string) error {
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		return err
	}
	objects, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	lists, err := c.Discovery().ServerPreferredResources()
	if err != nil {
		return err
	}
	for _, l := range lists {
		group, err := schema.ParseGroupVersion(l.GroupVersion)
		if err != nil {
			return err
		}
		for _, r := range l.APIResources {
			if !slices.Contains(r.Verbs, "list") {
				continue
			}
			all, err := objects.Resource(group.WithResource(r.Name)).List(ctx, metav1.ListOptions{})
			if err != nil {
				return fmt.Errorf("list %s: %w", r.Name, err)
			}
			for _, o := range all.Items {
				if r.Kind == "Secret" && slices.Contains(args, o.GetNamespace()+"/"+o.GetName()) {
					continue
				}
				if err := json.NewEncoder(os.Stdout).Encode(o.Object); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
