package vcsim

import (
	"bytes"
	"context"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmware/govmomi/vapi/library"
	"github.com/vmware/govmomi/vapi/rest"
	_ "github.com/vmware/govmomi/vapi/simulator" // serves the content libraries
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vmdk"
)

// AddLibraryItem makes a content library with an OVF template of one disk of 1 MiB.
func (s *Server) AddLibraryItem(t testing.TB, inLibrary, name string) {
	t.Helper()
	ctx := context.Background()
	client := rest.NewClient(s.Client.Client)
	must(t, client.Login(ctx, url.UserPassword(Username, Password)))
	manager := library.NewManager(client)
	datastore, err := s.Finder.Datastore(ctx, Datastore)
	must(t, err)
	id, err := manager.CreateLibrary(ctx, library.Library{
		Name: inLibrary, Type: "LOCAL",
		Storage: []library.StorageBacking{{DatastoreID: datastore.Reference().Value, Type: "DATASTORE"}},
	})
	must(t, err)
	item, err := manager.CreateLibraryItem(ctx, library.Item{Name: name, Type: library.ItemTypeOVF, LibraryID: id})
	must(t, err)

	disk := filepath.Join(t.TempDir(), name+".vmdk")
	writer, err := vmdk.NewStreamOptimizedWriter(disk, 1<<20)
	must(t, err)
	must(t, writer.Write(strings.NewReader("disk")))
	must(t, writer.Close())
	about, err := vmdk.Stat(disk)
	must(t, err)
	descriptor, err := about.OVF()
	must(t, err)
	content, err := os.ReadFile(disk)
	must(t, err)

	session, err := manager.CreateLibraryItemUpdateSession(ctx, library.Session{LibraryItemID: item})
	must(t, err)
	for file, body := range map[string][]byte{name + ".ovf": []byte(descriptor), about.Name: content} {
		update, err := manager.AddLibraryItemFile(ctx, session, library.UpdateFile{Name: file, SourceType: "PUSH", Size: int64(len(body))})
		must(t, err)
		address, err := url.Parse(update.UploadEndpoint.URI)
		must(t, err)
		upload := soap.DefaultUpload
		upload.ContentLength = int64(len(body))
		must(t, client.Upload(ctx, bytes.NewReader(body), address, &upload))
	}
	must(t, manager.CompleteLibraryItemUpdateSession(ctx, session))
}
