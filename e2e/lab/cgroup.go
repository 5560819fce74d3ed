package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// hierarchy is one mounted cgroup v1 hierarchy.
type hierarchy struct {
	mount   string // "/sys/fs/cgroup/memory"
	options string // what mount(2) needs to mount it once more: "memory", "none,name=systemd"
	own     string // directory of this process's cgroup in it
}

// cgroup is one directory of the same name in every hierarchy.
type cgroup []string

// hierarchies lists the cgroup v1 hierarchies that have a controller or a name.
func hierarchies() ([]hierarchy, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list cgroup hierarchies: %w", err)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("list cgroup hierarchies: %w", err)
	}
	path := map[string]string{} // "memory", "cpu,cpuacct", "name=systemd" -> "/user.slice"
	for line := range strings.Lines(string(own)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
			path[f[1]] = f[2]
		}
	}
	var found []hierarchy
	for line := range strings.Lines(string(mounts)) {
		before, after, _ := strings.Cut(line, " - ")
		mount, kind := strings.Fields(before), strings.Fields(after)
		if len(mount) < 5 || len(kind) < 3 || kind[0] != "cgroup" {
			continue
		}
		options := strings.Join(slices.DeleteFunc(strings.Split(kind[2], ","), func(o string) bool {
			return o == "rw" || o == "ro" || o == "xattr" || strings.HasPrefix(o, "release_agent=") || o == "clone_children"
		}), ",")
		p, ok := path[options]
		if !ok {
			return nil, fmt.Errorf("list cgroup hierarchies: /proc/self/cgroup has no line for %s (%s)", mount[4], options)
		}
		if strings.HasPrefix(options, "name=") {
			options = "none," + options
		}
		// In a container the mount shows the container's cgroup as its root.
		p = strings.TrimPrefix(p, strings.TrimSuffix(mount[3], "/"))
		found = append(found, hierarchy{mount: mount[4], options: options, own: filepath.Join(mount[4], p)})
	}
	if len(found) == 0 {
		return nil, errors.New("no cgroup v1 hierarchy is mounted: the lab's nodes cannot run on a machine that has cgroup v2 only; start it with the kernel parameter systemd.unified_cgroup_hierarchy=0")
	}
	return found, nil
}

// newCgroup makes the cgroup name below that of this process. One that is there is taken as it is.
func newCgroup(name string) (cgroup, error) {
	all, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var group cgroup
	for _, h := range all {
		dir := filepath.Join(h.own, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make cgroup %s: %w", name, err)
		}
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} { // a new cpuset is empty and takes no process
			value, err := os.ReadFile(filepath.Join(h.own, file))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, file), value, 0)
			}
			if err != nil {
				return nil, fmt.Errorf("make cgroup %s: %w", name, err)
			}
		}
		group = append(group, dir)
	}
	return group, nil
}

// findCgroups finds what is left of cgroups called name, wherever a lab was started from.
func findCgroups(name string) (cgroup, error) {
	all, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var group cgroup
	for _, h := range all {
		err := filepath.WalkDir(h.mount, func(path string, d fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist): // somebody's cgroup that ended meanwhile
				return nil
			case err != nil:
				return err
			case d.IsDir() && d.Name() == name:
				group = append(group, path)
				return fs.SkipDir
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("find cgroup %s: %w", name, err)
		}
	}
	return group, nil
}

// join moves this process, all its threads, into the cgroup.
func (c cgroup) join() error { return c.write("cgroup.procs") }

// joinThread moves only the calling thread: what is started from it is born in the cgroup.
func (c cgroup) joinThread() error { return c.write("tasks") }

func (c cgroup) write(file string) error {
	for _, dir := range c {
		if err := os.WriteFile(filepath.Join(dir, file), []byte("0"), 0); err != nil { // 0 is who writes
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	return nil
}

// each calls f for every cgroup of the tree, the innermost first.
func (c cgroup) each(f func(dir string) error) error {
	for _, top := range c {
		var dirs []string
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return err
		})
		if err != nil {
			return err
		}
		for _, dir := range slices.Backward(dirs) {
			if err := f(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// remove ends every process of the cgroup and removes it.
func (c cgroup) remove(ctx context.Context) error {
	return wait(ctx, "the processes of the lab's cgroup to end", 20*time.Second, 20*time.Millisecond, func(context.Context) error {
		return c.each(func(dir string) error {
			procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(procs)) {
				pid, err := strconv.Atoi(strings.TrimSpace(line))
				if err == nil && pid > 0 { // 0 is a process of a namespace that we do not see
					err = syscall.Kill(pid, syscall.SIGKILL)
				}
				if err != nil && !errors.Is(err, syscall.ESRCH) {
					return fmt.Errorf("end process %d: %w", pid, err)
				}
			}
			return os.Remove(dir)
		})
	})
}
