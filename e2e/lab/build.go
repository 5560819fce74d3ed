package lab

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// kubernetesModules are the Kubernetes versions that a lab can have: Go modules
// of their own below e2e, which build to one binary that holds every component.
var kubernetesModules = map[string]struct{ dir, version string }{
	"1.26": {"k8s126", "v1.26.13"}, // what the first user runs
	"1.37": {"k8s137", "v1.37.2"},
}

// BuildKubernetes returns the binary of all components of config.Kubernetes.
// It is taken from the cache, where its name holds a hash of all that it is made
// from, or else built with this machine's Go, which takes minutes. It needs no
// root. The source is looked for in the repository that holds this program or
// the working directory.
func BuildKubernetes(ctx context.Context, config Config) (string, error) {
	module, ok := kubernetesModules[config.Kubernetes]
	if !ok {
		return "", fmt.Errorf("the lab has no Kubernetes %q, only 1.26 and 1.37", config.Kubernetes)
	}
	source, err := findSource(module.dir)
	if err != nil {
		return "", err
	}
	compiler, err := goCommand(ctx, source, "version").Output()
	if err != nil {
		return "", fmt.Errorf("find Go to build Kubernetes with: %w", err)
	}
	inputs := sha256.New()
	inputs.Write(compiler)
	for _, name := range []string{"go.mod", "go.sum", "main.go"} {
		text, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			return "", fmt.Errorf("read what Kubernetes is built from: %w", err)
		}
		fmt.Fprintf(inputs, "%s %d\n%s", name, len(text), text)
	}
	binary := filepath.Join(config.Cache, fmt.Sprintf("%s-%.12x", module.dir, inputs.Sum(nil)))
	if _, err := os.Stat(binary); err == nil {
		return binary, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("find Kubernetes in the cache: %w", err)
	}
	config.Say("building Kubernetes " + module.version + " from its Go module, once: 6 to 8 minutes on 2 cores, and half a minute to download")
	if err := os.MkdirAll(config.Cache, 0o755); err != nil {
		return "", fmt.Errorf("build Kubernetes: %w", err)
	}
	work, err := os.MkdirTemp(config.Cache, module.dir+"-new-")
	if err != nil {
		return "", fmt.Errorf("build Kubernetes: %w", err)
	}
	defer os.RemoveAll(work)
	made := filepath.Join(work, module.dir)
	if err := runCmd(goCommand(ctx, source, "build", "-trimpath", "-ldflags", versionFlags(module.version), "-o", made, ".")); err != nil {
		return "", fmt.Errorf("build Kubernetes: %w", err)
	}
	if err := os.Rename(made, binary); err != nil {
		return "", fmt.Errorf("build Kubernetes: %w", err)
	}
	return binary, nil
}

// goCommand runs this machine's Go with settings that all of the project's
// builds share: others would compile everything twice.
func goCommand(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(cmd.Environ(), "GOTOOLCHAIN=local", "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOWORK=off")
	return cmd
}

// versionFlags makes the components say which version they are: a build outside
// Kubernetes' own tree does not know.
func versionFlags(version string) string {
	number := strings.Split(strings.TrimPrefix(version, "v"), ".")
	flags := []string{"-s", "-w", "-X", "k8s.io/client-go/pkg/version.gitVersion=" + version}
	for _, v := range []string{"gitVersion=" + version, "gitMajor=" + number[0], "gitMinor=" + number[1], "gitTreeState=clean", "gitCommit=lab"} {
		flags = append(flags, "-X", "k8s.io/component-base/version."+v)
	}
	return strings.Join(flags, " ")
}

// findSource finds the module e2e/name of this repository.
func findSource(name string) (string, error) {
	program, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find the repository: %w", err)
	}
	working, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the repository: %w", err)
	}
	for _, start := range []string{filepath.Dir(program), working} {
		for dir := start; ; dir = filepath.Dir(dir) {
			source := filepath.Join(dir, "e2e", name)
			if _, err := os.Stat(filepath.Join(source, "go.mod")); err == nil {
				return source, nil
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return "", fmt.Errorf("no e2e/%s above %s or %s: run ftplab from its repository", name, filepath.Dir(program), working)
}

// packages lists the Debian packages that the lab needs.
//
//go:embed packages.txt
var packages string

// checkMachine tells what this machine lacks for a lab.
func checkMachine(context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("the lab needs root: it makes network namespaces, mounts and machines")
	}
	var missing []string
	for _, program := range []string{"apt-get", "containerd", "ctr", "debootstrap", "dpkg-deb", "dpkg-scanpackages", "ip", "iptables", "runc", "ssh-keygen", "systemd-nspawn", "/usr/lib/cni/bridge"} {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, program)
		}
	}
	if len(missing) == 0 {
		_, _, err := hierarchies()
		return err
	}
	var wanted []string
	for line := range strings.Lines(packages) {
		if name := strings.TrimSpace(line); name != "" && !strings.HasPrefix(name, "#") {
			wanted = append(wanted, name)
		}
	}
	return fmt.Errorf("this machine has no %s; run: apt-get install --no-install-recommends %s", strings.Join(missing, ", "), strings.Join(wanted, " "))
}

// inotifyInstances is what a lab with its nodes and two VMs uses at most.
const inotifyInstances = 64

// checkInotify tells whether root has inotify instances left for a lab. A VM that
// gets none boots only in part, which nothing says but its console.
func checkInotify() error {
	var files []int
	defer func() {
		for _, f := range files {
			_ = unix.Close(f)
		}
	}()
	for range inotifyInstances {
		f, err := unix.InotifyInit1(unix.IN_CLOEXEC)
		if err != nil {
			return fmt.Errorf("the lab needs %d inotify instances and %d are left (%w): end another lab, or run: sysctl fs.inotify.max_user_instances=512",
				inotifyInstances, len(files), err)
		}
		files = append(files, f)
	}
	return nil
}
