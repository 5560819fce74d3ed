package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
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
type cgroup struct {
	v1      []string
	unified []string // of version 2, which a machine may have beside version 1: systemd keeps its books there
}

func (c cgroup) dirs() []string { return append(slices.Clone(c.v1), c.unified...) }

// hierarchies lists the cgroup v1 hierarchies, which have a controller or a
// name, and those of version 2, of which the kernel has one.
func hierarchies() (v1, unified []hierarchy, err error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, nil, fmt.Errorf("list cgroup hierarchies: %w", err)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, nil, fmt.Errorf("list cgroup hierarchies: %w", err)
	}
	path := map[string]string{} // "memory", "cpu,cpuacct", "name=systemd", "" for version 2 -> "/user.slice"
	for line := range strings.Lines(string(own)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
			path[f[1]] = f[2]
		}
	}
	for line := range strings.Lines(string(mounts)) {
		before, after, _ := strings.Cut(line, " - ")
		mount, kind := strings.Fields(before), strings.Fields(after)
		if len(mount) < 5 || len(kind) < 3 || !strings.HasPrefix(kind[0], "cgroup") {
			continue
		}
		options := strings.Join(slices.DeleteFunc(strings.Split(kind[2], ","), func(o string) bool {
			return o == "rw" || o == "ro" || o == "xattr" || strings.HasPrefix(o, "release_agent=") || o == "clone_children"
		}), ",")
		if kind[0] == "cgroup2" {
			options = ""
		}
		p, ok := path[options]
		if !ok {
			return nil, nil, fmt.Errorf("list cgroup hierarchies: /proc/self/cgroup has no line for %s (%s)", mount[4], options)
		}
		if strings.HasPrefix(options, "name=") {
			options = "none," + options
		}
		// In a container the mount shows the container's cgroup as its root.
		p = strings.TrimPrefix(p, strings.TrimSuffix(mount[3], "/"))
		h := hierarchy{mount: mount[4], options: options, own: filepath.Join(mount[4], p)}
		if kind[0] == "cgroup2" {
			unified = append(unified, h)
		} else {
			v1 = append(v1, h)
		}
	}
	if len(v1) == 0 {
		return nil, nil, errors.New("no cgroup v1 hierarchy is mounted: the lab's nodes cannot run on a machine that has cgroup v2 only; start it with the kernel parameter systemd.unified_cgroup_hierarchy=0")
	}
	return v1, unified, nil
}

// newCgroup makes the cgroup name below that of this process. One that is there is taken as it is.
func newCgroup(name string) (cgroup, error) {
	v1, unified, err := hierarchies()
	if err != nil {
		return cgroup{}, err
	}
	var group cgroup
	for _, h := range unified {
		dir := filepath.Join(h.own, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return cgroup{}, fmt.Errorf("make cgroup %s: %w", name, err)
		}
		group.unified = append(group.unified, dir)
	}
	for _, h := range v1 {
		dir := filepath.Join(h.own, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return cgroup{}, fmt.Errorf("make cgroup %s: %w", name, err)
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
				return cgroup{}, fmt.Errorf("make cgroup %s: %w", name, err)
			}
		}
		group.v1 = append(group.v1, dir)
	}
	return group, nil
}

// findCgroups finds what is left of cgroups called name, wherever a lab was started from.
func findCgroups(name string) (cgroup, error) {
	v1, unified, err := hierarchies()
	if err != nil {
		return cgroup{}, err
	}
	var group cgroup
	for _, h := range append(v1, unified...) {
		err := filepath.WalkDir(h.mount, func(path string, d fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist): // somebody's cgroup that ended meanwhile
				return nil
			case err != nil:
				return err
			case d.IsDir() && d.Name() == name:
				group.v1 = append(group.v1, path)
				return fs.SkipDir
			}
			return nil
		})
		if err != nil {
			return cgroup{}, fmt.Errorf("find cgroup %s: %w", name, err)
		}
	}
	return group, nil
}

// join moves this process, all its threads, into the cgroup.
func (c cgroup) join() error { return joinEach(c.dirs(), "cgroup.procs") }

// joinThread moves only the calling thread, and that in version 1 only: what is
// started from it is born in the cgroup.
func (c cgroup) joinThread() error { return joinEach(c.v1, "tasks") }

func joinEach(dirs []string, file string) error {
	for _, dir := range dirs {
		if err := os.WriteFile(filepath.Join(dir, file), []byte("0"), 0); err != nil { // 0 is who writes
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	return nil
}

// start starts cmd in the cgroup, in that of version 2 too.
func (c cgroup) start(cmd *exec.Cmd) error {
	return onThread(func() error {
		if err := c.joinThread(); err != nil {
			return err
		}
		for _, dir := range c.unified {
			fd, err := os.Open(dir)
			if err != nil {
				return fmt.Errorf("join cgroup: %w", err)
			}
			defer fd.Close()
			if cmd.SysProcAttr == nil {
				cmd.SysProcAttr = &syscall.SysProcAttr{}
			}
			cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(fd.Fd())
		}
		return cmd.Start()
	})
}

// each calls f for every cgroup of the tree, the innermost first.
func (c cgroup) each(f func(dir string) error) error {
	for _, top := range c.dirs() {
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

// remove ends every process of the cgroup and removes it. Ourselves it waits for:
// a thread of ours that started something in the cgroup is about to end.
func (c cgroup) remove(ctx context.Context) error {
	return wait(ctx, "the processes of the lab's cgroup to end", 20*time.Second, 20*time.Millisecond, func(context.Context) error {
		return c.each(func(dir string) error {
			procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(procs)) {
				pid, err := strconv.Atoi(strings.TrimSpace(line))
				if err == nil && pid > 0 && pid != os.Getpid() { // 0 is a process of a namespace that we do not see
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
