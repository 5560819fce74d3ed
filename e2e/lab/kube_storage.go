package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// provisioner is the lab's own maker of volumes, of class storageClass.
const provisioner = "ftplab.test/shared-directory"

type claim struct {
	Metadata struct{ Name, Namespace, UID string }
	Spec     struct {
		StorageClassName string
		AccessModes      []string
		Resources        struct{ Requests struct{ Storage string } }
	}
	Status struct{ Phase string }
}

type volume struct {
	Metadata struct {
		Name        string
		Annotations map[string]string
	}
	Status struct{ Phase string }
}

// provision plays the storage system until ctx ends: it makes a volume for each
// claim of the lab's class, and deletes it when the claim is gone. A volume is a
// directory that every node sees, so that data follow a pod from node to node.
func (k *kubernetes) provision(ctx context.Context) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	said := ""
	for {
		err := errors.Join(k.makeVolumes(ctx), k.deleteVolumes(ctx))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err == nil {
			said = ""
		} else if err.Error() != said { // an API server that is down is said once
			said = err.Error()
			k.say("storage: " + said)
		}
	}
}

func (k *kubernetes) makeVolumes(ctx context.Context) error {
	var claims struct{ Items []claim }
	if err := k.api.call(ctx, "GET", "/api/v1/persistentvolumeclaims", nil, &claims); err != nil {
		return err
	}
	for _, c := range claims.Items {
		if c.Status.Phase != "Pending" || c.Spec.StorageClassName != storageClass {
			continue
		}
		name := "pvc-" + c.Metadata.UID
		dir := filepath.Join(k.sharedDir, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make volume %s: %w", name, err)
		}
		if err := os.Chmod(dir, 0o777); err != nil { //nolint:gosec // for any user of any pod: fsGroup is not for host paths
			return fmt.Errorf("make volume %s: %w", name, err)
		}
		err := k.api.call(ctx, "POST", "/api/v1/persistentvolumes", map[string]any{
			"metadata": map[string]any{
				"name":        name,
				"annotations": map[string]string{"pv.kubernetes.io/provisioned-by": provisioner},
			},
			"spec": map[string]any{
				"capacity":                      map[string]string{"storage": c.Spec.Resources.Requests.Storage},
				"accessModes":                   c.Spec.AccessModes,
				"storageClassName":              storageClass,
				"persistentVolumeReclaimPolicy": "Delete",
				"hostPath":                      map[string]string{"path": "/srv/" + name, "type": "Directory"},
				"claimRef":                      map[string]string{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": c.Metadata.Namespace, "name": c.Metadata.Name, "uid": c.Metadata.UID},
			},
		}, nil)
		if err != nil {
			return err
		}
	}
	return nil
}

func (k *kubernetes) deleteVolumes(ctx context.Context) error {
	var volumes struct{ Items []volume }
	if err := k.api.call(ctx, "GET", "/api/v1/persistentvolumes", nil, &volumes); err != nil {
		return err
	}
	for _, v := range volumes.Items {
		if v.Status.Phase != "Released" || v.Metadata.Annotations["pv.kubernetes.io/provisioned-by"] != provisioner {
			continue
		}
		if err := os.RemoveAll(filepath.Join(k.sharedDir, v.Metadata.Name)); err != nil {
			return fmt.Errorf("delete volume %s: %w", v.Metadata.Name, err)
		}
		if err := k.api.call(ctx, "DELETE", "/api/v1/persistentvolumes/"+v.Metadata.Name, nil, nil); err != nil && !notFound(err) {
			return err
		}
	}
	return nil
}
