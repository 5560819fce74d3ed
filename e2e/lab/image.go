package lab

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/ftpdeploy/ftpdeploy/image/vsftpd"
)

// References of the images that every node has. There is no registry: anything
// else fails to be pulled.
const (
	VsftpdImage = "docker.io/ftpdeploy/vsftpd:lab"
	fauriaImage = "docker.io/fauria/vsftpd:lab" // the same image under the name that others deploy
	otherImage  = "docker.io/ftpdeploy/vsftpd:" // and variants of it that do not do as they are told
	pauseImage  = "ftplab.test/pause:1"         // what holds a pod's namespaces
)

// imageRevision is part of an archive's name in the cache: raise it when this file makes other images.
const imageRevision = "2"

// prepareImages makes the archive of all images in cache, or finds it there,
// and returns its path. The packages are downloaded with this machine's own apt.
func prepareImages(ctx context.Context, cache string, say func(string)) (string, error) {
	recipe := sha256.New()
	for _, part := range []string{imageRevision, vsftpd.Packages, vsftpd.Start, vsftpd.PAM} {
		fmt.Fprintf(recipe, "%d %s\n", len(part), part)
	}
	archive := filepath.Join(cache, fmt.Sprintf("images-%.12x.tar", recipe.Sum(nil)))
	if _, err := os.Stat(archive); err == nil {
		return archive, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("find the images: %w", err)
	}
	say("building the vsftpd image from Debian's packages")
	work, err := os.MkdirTemp(cache, "images-")
	if err != nil {
		return "", fmt.Errorf("build the images: %w", err)
	}
	defer os.RemoveAll(work)
	root := filepath.Join(work, "root")
	if err := installVsftpd(ctx, work, root); err != nil {
		return "", fmt.Errorf("build the vsftpd image: %w", err)
	}
	pause := filepath.Join(work, "pause")
	if err := copyFile(filepath.Join(root, "usr/bin/busybox"), filepath.Join(pause, "busybox")); err != nil {
		return "", fmt.Errorf("build the pause image: %w", err)
	}
	volumes := []string{"/home/vsftpd", "/var/log/vsftpd"}
	images := []image{
		{references: []string{VsftpdImage, fauriaImage}, root: root, command: []string{"/" + vsftpd.StartPath}, volumes: volumes},
		{references: []string{pauseImage}, root: pause, command: []string{"/busybox", "sleep", "1000000000"}},
	}
	for _, v := range []struct{ tag, script string }{
		{"other-address", "PASV_ADDRESS=192.0.2.99 exec /" + vsftpd.StartPath},
		{"other-password", "FTP_PASS=of-another-time exec /" + vsftpd.StartPath},
		{"crash", "echo this image is broken; exit 1"},
	} {
		images = append(images, image{references: []string{otherImage + v.tag}, root: root, command: []string{"/usr/bin/busybox", "sh", "-c", v.script}, volumes: volumes})
	}
	made := filepath.Join(work, "images.tar")
	if err := writeImages(made, images); err != nil {
		return "", fmt.Errorf("write the images: %w", err)
	}
	if err := os.Rename(made, archive); err != nil {
		return "", fmt.Errorf("write the images: %w", err)
	}
	return archive, nil
}

// installVsftpd does to root what the Dockerfile does to Debian's base image,
// without the base image: the packages are laid out, and nothing of them is run.
func installVsftpd(ctx context.Context, work, root string) error {
	debs := filepath.Join(work, "debs")
	for _, dir := range []string{debs, filepath.Join(root, "usr")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	get := exec.CommandContext(ctx, "apt-get", append([]string{"download", "-q", "-o", "APT::Sandbox::User=root"}, strings.Fields(vsftpd.Packages)...)...)
	get.Dir = debs
	if err := runCmd(get); err != nil {
		return fmt.Errorf("%w (is the package list up to date? apt-get update)", err)
	}
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} { // as in Debian's base; packages name both places
		if err := os.Mkdir(filepath.Join(root, "usr", dir), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("usr/"+dir, filepath.Join(root, dir)); err != nil {
			return err
		}
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	for _, deb := range files {
		if err := run(ctx, "sh", "-c", `dpkg-deb --fsys-tarfile "$1" | tar -x --keep-directory-symlink -C "$2"`, "unpack", deb, root); err != nil {
			return err
		}
	}
	for _, dir := range []string{"usr/share", "usr/lib/systemd", "etc/init.d", "etc/logrotate.d"} {
		if err := os.RemoveAll(filepath.Join(root, dir)); err != nil {
			return err
		}
	}
	for dir, mode := range map[string]os.FileMode{"etc/pam.d": 0o755, "home/vsftpd": 0o755, "var/ftp": 0o755, "var/run": 0o755, "proc": 0o555, "sys": 0o555, "dev": 0o755, "root": 0o700, "tmp": 0o777 | os.ModeSticky} {
		path := filepath.Join(root, dir)
		if err := os.MkdirAll(path, mode); err != nil {
			return err
		}
		if err := os.Chmod(path, mode); err != nil { // whatever the umask
			return err
		}
	}
	for name, text := range map[string]string{
		"etc/passwd":        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\nftp:x:14:50::/var/ftp:/usr/sbin/nologin\n",
		"etc/group":         "root:x:0:\nstaff:x:50:\nnogroup:x:65534:\n",
		"etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
		vsftpd.PAMPath:      vsftpd.PAM,
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for _, tool := range []string{"sh", "cat", "ls", "ps", "id", "env"} {
		if err := os.Symlink("busybox", filepath.Join(root, "usr/bin", tool)); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(root, vsftpd.StartPath), []byte(vsftpd.Start), 0o755)
}

// image is a container image of one layer.
type image struct {
	references []string
	root       string // the layer's files
	command    []string
	volumes    []string
}

// writeImages writes a docker-archive, as docker save does. The same files give
// the same bytes, times apart.
func writeImages(path string, images []image) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	archive := tar.NewWriter(file)
	add := func(name string, content []byte) error {
		if err := archive.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), ModTime: imageTime}); err != nil {
			return err
		}
		_, err := archive.Write(content)
		return err
	}
	type manifest struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	var manifests []manifest
	layers := map[string]string{} // the digest of what is below a root
	for _, im := range images {
		digest := layers[im.root]
		if digest == "" {
			layer, err := writeLayer(im.root)
			if err != nil {
				return err
			}
			digest = fmt.Sprintf("%x", sha256.Sum256(layer))
			layers[im.root] = digest
			if err := add(digest+"/layer.tar", layer); err != nil {
				return err
			}
		}
		volumes := map[string]struct{}{}
		for _, v := range im.volumes {
			volumes[v] = struct{}{}
		}
		config, err := json.Marshal(map[string]any{
			"architecture": "amd64",
			"os":           "linux",
			"created":      imageTime.UTC().Format(time.RFC3339),
			"config": map[string]any{
				"Cmd":     im.command,
				"Env":     []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
				"Volumes": volumes,
			},
			"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest}},
		})
		if err != nil {
			return err
		}
		m := manifest{Config: fmt.Sprintf("%x.json", sha256.Sum256(config)), RepoTags: im.references, Layers: []string{digest + "/layer.tar"}}
		if err := add(m.Config, config); err != nil {
			return err
		}
		manifests = append(manifests, m)
	}
	index, err := json.Marshal(manifests)
	if err != nil {
		return err
	}
	return cmp.Or(add("manifest.json", index), archive.Close(), file.Close())
}

// imageTime is the time of every file in an image.
var imageTime = time.Unix(1700000000, 0)

// writeLayer makes a tar of what is below root.
func writeLayer(root string) ([]byte, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		link := ""
		if d.Type() == fs.ModeSymlink {
			if link, err = os.Readlink(path); err != nil {
				return err
			}
		}
		header, err := tar.FileInfoHeader(info, link)
		if err != nil {
			return err
		}
		if header.Name, err = filepath.Rel(root, path); err != nil {
			return err
		}
		if d.IsDir() {
			header.Name += "/"
		}
		header.ModTime, header.AccessTime, header.ChangeTime = imageTime, time.Time{}, time.Time{}
		header.Uname, header.Gname, header.Format = "", "", tar.FormatPAX
		if err := w.WriteHeader(header); err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path) //nolint:gosec // the tree is ours and nobody changes it meanwhile
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	})
	return layer.Bytes(), cmp.Or(err, w.Close())
}

func copyFile(from, to string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, content, info.Mode().Perm())
}
