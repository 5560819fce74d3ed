package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// templateRelease is the Debian release that VMs run: the one of the lab's own
// machine, whose apt supplies the packages.
const templateRelease = "bookworm"

// templateRecipe is everything that a template is made from, besides Debian.
//
//go:embed template
var templateRecipe embed.FS

// Template is what the lab's VMs are cloned from, and what they install from.
type Template struct {
	Root   string // root file system; read only
	Mirror string // directory of the packages that it lacks, with apt's index files
}

// BuildTemplate returns the template in directory cache, and makes it first
// where it is not there or its recipe has changed. Making it takes about one
// minute, root, and a network by which this machine's own apt gets packages;
// progress is told to logf.
func BuildTemplate(ctx context.Context, cache string, logf func(format string, args ...any)) (Template, error) {
	hash, err := recipeHash()
	if err != nil {
		return Template{}, fmt.Errorf("read the recipe of the VM template: %w", err)
	}
	dir := filepath.Join(cache, "template-"+hash)
	done := Template{Root: filepath.Join(dir, "root"), Mirror: filepath.Join(dir, "mirror")}
	if _, err := os.Stat(dir); err == nil {
		return done, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return Template{}, fmt.Errorf("look for the VM template: %w", err)
	}

	if err := os.MkdirAll(cache, 0o755); err != nil {
		return Template{}, fmt.Errorf("make the VM template: %w", err)
	}
	temporary, err := os.MkdirTemp(cache, "template-new-")
	if err != nil {
		return Template{}, fmt.Errorf("make the VM template: %w", err)
	}
	defer os.RemoveAll(temporary)
	if err := makeTemplate(ctx, temporary, logf); err != nil {
		return Template{}, fmt.Errorf("make the VM template: %w", err)
	}
	// Another lab may have been faster; its template is as good as ours.
	if err := os.Rename(temporary, dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return Template{}, fmt.Errorf("keep the VM template: %w", err)
	}
	return done, nil
}

// recipeHash is a short name for the recipe's content.
func recipeHash() (string, error) {
	sum := sha256.New()
	fmt.Fprintln(sum, templateRelease)
	err := fs.WalkDir(templateRecipe, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := templateRecipe.ReadFile(name)
		fmt.Fprintf(sum, "%s %d\n%s", name, len(text), text)
		return err
	})
	return hex.EncodeToString(sum.Sum(nil))[:12], err
}

func makeTemplate(ctx context.Context, dir string, logf func(format string, args ...any)) error {
	root := filepath.Join(dir, "root")
	source, err := debianSource(ctx)
	if err != nil {
		return err
	}
	logf("making the VM template, once: a minimal Debian %s", templateRelease)
	if err := run(ctx, "debootstrap", "--variant=minbase", templateRelease, root, source); err != nil {
		return err
	}

	logf("making the VM template: cloud-init, sshd and what they need")
	archives := filepath.Join(root, "var/cache/apt/archives")
	if err := download(ctx, root, archives, "packages.txt"); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(archives, "*.deb"))
	if err != nil {
		return err
	}
	// Debian's mirror is known to this machine's apt only: what is installed
	// here lies in the root already.
	install := []string{"apt-get", "install", "--yes", "--quiet", "--no-install-recommends"}
	for _, deb := range debs {
		install = append(install, strings.TrimPrefix(deb, root))
	}
	if err := os.WriteFile(filepath.Join(root, "etc/apt/sources.list"), nil, 0o644); err != nil {
		return err
	}
	if err := inRoot(ctx, root, nil, install...); err != nil {
		return err
	}
	if err := copyRecipe(root); err != nil {
		return err
	}
	setup, err := templateRecipe.ReadFile("template/setup.sh")
	if err != nil {
		return err
	}
	if err := inRoot(ctx, root, setup, "sh"); err != nil {
		return err
	}

	logf("making the VM template: the mirror of the packages that VMs install")
	mirror := filepath.Join(dir, "mirror")
	if err := download(ctx, root, mirror, "mirror.txt"); err != nil {
		return err
	}
	return indexPackages(ctx, mirror)
}

// debianSource asks this machine's apt where it gets Debian from.
func debianSource(ctx context.Context) (string, error) {
	out, err := output(ctx, "apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(REPO_URI)", "Created-By: Packages")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == templateRelease && f[1] == "main" {
			return f[2], nil
		}
	}
	return "", fmt.Errorf("this machine's apt has no source for Debian %s main: the lab runs on that release", templateRelease)
}

// download puts into dir the packages of a list of the recipe, and all that
// they need and root has not installed, with this machine's apt.
func download(ctx context.Context, root, dir, list string) error {
	if err := os.MkdirAll(filepath.Join(dir, "partial"), 0o755); err != nil {
		return err
	}
	text, err := templateRecipe.ReadFile("template/" + list)
	if err != nil {
		return err
	}
	argv := []string{
		"apt-get", "install", "--download-only", "--yes", "--quiet", "--no-install-recommends",
		"-o", "Dir::State::status=" + filepath.Join(root, "var/lib/dpkg/status"),
		"-o", "Dir::Cache::archives=" + dir,
		"-o", "APT::Sandbox::User=root", // the directory may be closed to others
	}
	if err := run(ctx, slices.Concat(argv, strings.Fields(string(text)))...); err != nil {
		return fmt.Errorf("%w\n(where apt does not find a package, run apt-get update)", err)
	}
	for _, name := range []string{"partial", "lock"} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// copyRecipe puts the files of the recipe into root. Programs are those below usr/bin.
func copyRecipe(root string) error {
	files, err := fs.Sub(templateRecipe, "template/files")
	if err != nil {
		return err
	}
	return fs.WalkDir(files, ".", func(name string, d fs.DirEntry, err error) error {
		target := filepath.Join(root, name)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if strings.HasPrefix(name, "usr/bin/") {
			mode = 0o755
		}
		if err := os.WriteFile(target, text, mode); err != nil {
			return err
		}
		return os.Chmod(target, mode)
	})
}

// inRoot runs a command in root with input as its standard input.
func inRoot(ctx context.Context, root string, input []byte, argv ...string) error {
	cmd := exec.CommandContext(ctx, "chroot", append([]string{root}, argv...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}
	cmd.Stdin = bytes.NewReader(input)
	return runCmd(cmd)
}
