package kubetest

import (
	"net/http"
	"testing"
)

// A test that stops the server must find it gone, and back after Restart.
func TestServer(t *testing.T) {
	s := Start(t)
	s.Stop()
	if r, err := http.Get(s.URL + "/readyz"); err == nil {
		r.Body.Close()
		t.Fatal("the server answers after Stop")
	}
	s.Restart() // fails the test unless the server is ready
}
