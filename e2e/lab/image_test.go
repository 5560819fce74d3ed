package lab

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestWriteImages holds that the same files give the same archive whenever they
// were written, and that a layer keeps modes and links.
func TestWriteImages(t *testing.T) {
	archive := func(made time.Time) []byte {
		t.Helper()
		root := t.TempDir()
		program := filepath.Join(root, "usr/bin/program")
		for _, err := range []error{
			os.MkdirAll(filepath.Dir(program), 0o755),
			os.WriteFile(program, []byte("#!"), 0o600),
			os.Chmod(program, 0o755),
			os.Symlink("usr/bin", filepath.Join(root, "bin")),
			os.Mkdir(filepath.Join(root, "tmp"), 0o755),
			os.Chmod(filepath.Join(root, "tmp"), 0o777|os.ModeSticky),
			os.Chtimes(program, made, made),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		path := filepath.Join(t.TempDir(), "images.tar")
		if err := writeImages(path, []image{{references: []string{"lab.test/a:1", "lab.test/b:1"}, root: root, command: []string{"/bin/program"}}}); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return content
	}
	first := archive(time.Unix(1, 0))
	if !bytes.Equal(first, archive(time.Now())) {
		t.Error("the same files give another archive at another time")
	}

	files := untar(t, first)
	var manifests []struct {
		Config           string
		RepoTags, Layers []string
	}
	if err := json.Unmarshal(files["manifest.json"].content, &manifests); err != nil {
		t.Fatal(err)
	}
	if len(manifests) != 1 || len(manifests[0].RepoTags) != 2 || len(manifests[0].Layers) != 1 {
		t.Fatalf("manifest: %+v", manifests)
	}
	layer := untar(t, files[manifests[0].Layers[0]].content)
	for name, want := range map[string]tar.Header{
		"usr/bin/program": {Typeflag: tar.TypeReg, Mode: 0o755},
		"bin":             {Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: "usr/bin"},
		"tmp/":            {Typeflag: tar.TypeDir, Mode: 0o1777},
	} {
		got := layer[name].header
		if got == nil || got.Typeflag != want.Typeflag || got.Mode != want.Mode || got.Linkname != want.Linkname {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
}

type tarFile struct {
	header  *tar.Header
	content []byte
}

func untar(t *testing.T, archive []byte) map[string]tarFile {
	t.Helper()
	files := map[string]tarFile{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[header.Name] = tarFile{header, content}
	}
}
