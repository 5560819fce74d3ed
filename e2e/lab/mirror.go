package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// indexPackages writes apt's index files for the packages in dir: a flat
// repository without a signature.
func indexPackages(ctx context.Context, dir string) error {
	for _, index := range []struct{ command, file string }{
		{"packages", "Packages"},
		{"release", "Release"}, // covers Packages, so it comes second
	} {
		// Written beside dir and moved in, as Release would list itself half done.
		file, err := os.CreateTemp(filepath.Dir(dir), "index-")
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, "apt-ftparchive", index.command, ".")
		cmd.Dir, cmd.Stdout = dir, file
		if err := errors.Join(runCmd(cmd), file.Chmod(0o644), file.Close()); err != nil {
			return err
		}
		if err := os.Rename(file.Name(), filepath.Join(dir, index.file)); err != nil {
			return err
		}
	}
	return nil
}

// ServeMirror serves the packages in dir to the apt of the lab's VMs, by HTTP
// on address listen. It returns a function that ends that.
func ServeMirror(dir, listen string) (stop func() error, err error) {
	listener, err := new(net.ListenConfig).Listen(context.Background(), "tcp", listen)
	if err != nil {
		return nil, fmt.Errorf("serve the package mirror: %w", err)
	}
	server := &http.Server{Handler: http.FileServer(http.Dir(dir)), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(listener) }() // ends when stop is called
	return server.Close, nil
}
