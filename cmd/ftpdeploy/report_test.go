package main

import (
	"crypto/x509"
	"encoding/xml"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/steps"
	"github.com/ftpdeploy/ftpdeploy/steps/ftp"
)

// found is a verify whose smoke test passes on the VIP and fails on the standby, and
// whose matrix has a blocked port and a worker that is away.
func found() verdicts {
	s := &blueprints.Service{Name: "vsftpd", PassiveFirst: 21100, PassiveLast: 21102, NodePortFirst: 32100}
	a, b := &blueprints.Box{Name: "haproxy-a"}, &blueprints.Box{Name: "haproxy-b"}
	cell := func(box *blueprints.Box, worker string) *steps.Cell {
		return &steps.Cell{
			Service: s, Box: box, Worker: netip.MustParseAddr(worker), Took: 1500 * time.Millisecond,
			Ports: ftp.PortsReport{OK: []int{21100, 21101, 21102}},
		}
	}
	blocked, away, other := cell(a, "198.51.100.21"), cell(a, "198.51.100.22"), cell(b, "198.51.100.22")
	blocked.Ports = ftp.PortsReport{OK: []int{21100, 21102}, Failed: map[int]error{21101: errors.New("nothing came within 2s")}}
	for _, c := range []*steps.Cell{away, other} {
		c.Ports, c.Err = ftp.PortsReport{NotDrawn: []int{21100, 21101, 21102}}, errors.New("connection refused")
	}
	return verdicts{
		smokes: []steps.SmokeResult{
			{
				Smoke: &blueprints.Smoke{Name: "end-to-end"}, Address: "203.0.113.15:21", Took: 2 * time.Second,
				Report: ftp.Report{Certificate: &x509.Certificate{NotAfter: time.Unix(1900000000, 0)}},
			},
			{
				Smoke: &blueprints.Smoke{Name: "standby"}, Box: b, Address: "203.0.113.12:21", Took: time.Second,
				Report: ftp.Report{Transcript: []string{"> EPSV", "< 229 <ok>"}}, Err: errors.New(`connect: "refused"`),
			},
		},
		cells: []*steps.Cell{blocked, away, cell(b, "198.51.100.21"), other},
	}
}

func TestTable(t *testing.T) {
	v := found()
	want := `
ftp_service "vsftpd": passive ports that moved data, from each box to each worker

             198.51.100.21    198.51.100.22
  haproxy-a  2/3 FAIL 1       0/3 FAIL
  haproxy-b  3/3              0/3 FAIL
`
	if got := table(v.cells[0].Service, v.cells); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	lines := strings.Join(faults(v.cells), "\n")
	want = `haproxy-a -> 198.51.100.21  passive port 21101 (NodePort 32101): nothing came within 2s
haproxy-a -> 198.51.100.22, haproxy-b -> 198.51.100.22  ftp_service "vsftpd": connection refused`
	if lines != want {
		t.Errorf("got\n%s\nwant\n%s", lines, want)
	}
}

func TestRanges(t *testing.T) {
	if got := ftp.Ranges([]int{1, 2, 3, 7, 9, 10}); got != "1-3, 7, 9-10" {
		t.Error(got)
	}
}

func TestReports(t *testing.T) {
	dir := t.TempDir()
	files, err := parseReports([]string{"junit=" + filepath.Join(dir, "r.xml"), "prometheus=" + filepath.Join(dir, "r.prom")})
	if err != nil {
		t.Fatal(err)
	}
	if err := found().write(files, time.Unix(1800000000, 0)); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(files["junit"])
	if err != nil {
		t.Fatal(err)
	}
	var suite testSuite
	if err := xml.Unmarshal(text, &suite); err != nil {
		t.Fatal(err)
	}
	if suite.Tests != 6 || suite.Failures != 4 || len(suite.Cases) != 6 || suite.Time != "9.000" {
		t.Errorf("%+v", suite)
	}
	if c := suite.Cases[1]; c.Class != "smoke.standby" || c.Failure == nil || c.Failure.Message != `connect: "refused"` || !strings.Contains(c.Failure.Text, "229 <ok>") {
		t.Errorf("%+v", c)
	}
	text, err = os.ReadFile(files["prometheus"])
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"ftpdeploy_verify_timestamp_seconds 1800000000",
		`ftpdeploy_smoke_ok{smoke="end-to-end",address="203.0.113.15:21"} 1`,
		`ftpdeploy_smoke_ok{smoke="standby",address="203.0.113.12:21"} 0`,
		`ftpdeploy_certificate_expiry_timestamp_seconds{smoke="end-to-end",address="203.0.113.15:21"} 1900000000`,
		`ftpdeploy_path_ok{service="vsftpd",box="haproxy-a",worker="198.51.100.21",port="21101"} 0`,
		`ftpdeploy_path_ok{service="vsftpd",box="haproxy-b",worker="198.51.100.21",port="21102"} 1`,
		`ftpdeploy_control_ok{service="vsftpd",box="haproxy-b",worker="198.51.100.22"} 0`,
	} {
		if !strings.Contains(string(text), "\n"+line+"\n") {
			t.Errorf("no %q in\n%s", line, text)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("it left %v", left)
	}
	for _, bad := range []string{"junit", "junit=", "html=x"} {
		if _, err := parseReports([]string{bad}); exitCode(err, false) != 64 {
			t.Errorf("--report %s: %v", bad, err)
		}
	}
	if err := found().write(map[string]string{"junit": filepath.Join(dir, "none", "r.xml")}, time.Now()); err == nil {
		t.Error("a directory that is not there makes no error")
	}
}
