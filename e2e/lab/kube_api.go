package lab

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// api is the lab's own client of the API server.
type api struct {
	client http.Client
	server string
}

// newAPI is a client with all rights, under a name that the audit log leaves out.
func newAPI(ca *CA) (*api, error) {
	certificate, key, err := ca.Issue(Subject{CommonName: labUser, Organization: "system:masters"})
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.certificate)
	return &api{
		server: "https://" + net.JoinHostPort(apiOutside, "6443"),
		client: http.Client{
			Timeout: 10 * time.Second,
			Transport: &http.Transport{
				TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots},
				IdleConnTimeout: 30 * time.Second,
			},
		},
	}, nil
}

// apiStatus is an answer that is not 2xx.
type apiStatus struct {
	Code    int    `json:"code"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

func (s *apiStatus) Error() string { return fmt.Sprintf("%d %s: %s", s.Code, s.Reason, s.Message) }

// notFound tells whether the API server said that there is no such object.
func notFound(err error) bool {
	var status *apiStatus
	return errors.As(err, &status) && status.Code == http.StatusNotFound
}

// call makes one request: in, unless nil, is sent as JSON, and the answer is
// decoded into out, unless that is nil. POST of an object that exists is no error.
func (a *api) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
		body = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, a.server+path, body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	request.Header.Set("User-Agent", labUser)
	request.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		request.Header.Set("Content-Type", "application/merge-patch+json")
	}
	response, err := a.client.Do(request)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if response.StatusCode == http.StatusConflict && method == http.MethodPost {
		return nil
	}
	if response.StatusCode >= 300 {
		status := &apiStatus{Code: response.StatusCode, Message: string(answer)}
		if err := json.Unmarshal(answer, status); err != nil {
			status.Message = string(answer) // /readyz answers in plain text
		}
		return fmt.Errorf("%s %s: %w", method, path, status)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}
