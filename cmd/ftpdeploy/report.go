package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ftpdeploy/ftpdeploy/steps"
)

// verdicts is what verify found.
type verdicts struct {
	smokes []steps.SmokeResult
	cells  []*steps.Cell
}

// reportWriters are the forms of a report.
var reportWriters = map[string]func(verdicts, time.Time) []byte{"junit": junit, "prometheus": prometheus}

// parseReports splits the values of --report.
func parseReports(flags []string) (map[string]string, error) {
	files := map[string]string{}
	for _, f := range flags {
		form, file, _ := strings.Cut(f, "=")
		if reportWriters[form] == nil || file == "" {
			return nil, &exitError{64, fmt.Errorf("--report %s: want junit=FILE or prometheus=FILE", f)}
		}
		files[form] = file
	}
	return files, nil
}

// write writes the reports; a collector may read them at any time.
func (v verdicts) write(files map[string]string, now time.Time) error {
	var errs []error
	for _, form := range slices.Sorted(maps.Keys(files)) {
		if err := replaceFile(files[form], reportWriters[form](v, now), 0o644); err != nil {
			errs = append(errs, fmt.Errorf("write the %s report: %w", form, err))
		}
	}
	return errors.Join(errs...)
}

type (
	testSuite struct {
		XMLName  xml.Name   `xml:"testsuite"`
		Name     string     `xml:"name,attr"`
		Tests    int        `xml:"tests,attr"`
		Failures int        `xml:"failures,attr"`
		Time     string     `xml:"time,attr"`
		Stamp    string     `xml:"timestamp,attr"`
		Cases    []testCase `xml:"testcase"`
	}
	testCase struct {
		Class   string   `xml:"classname,attr"`
		Name    string   `xml:"name,attr"`
		Time    string   `xml:"time,attr"`
		Failure *failure `xml:"failure,omitempty"`
	}
	failure struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
)

// junit is a test suite with a case for each smoke block and address, and for each
// pair of box and worker.
func junit(v verdicts, now time.Time) []byte {
	suite := testSuite{Name: "ftpdeploy verify", Stamp: now.UTC().Format("2006-01-02T15:04:05")}
	var total time.Duration
	add := func(class, name string, took time.Duration, message, text string) {
		c := testCase{Class: class, Name: name, Time: fmt.Sprintf("%.3f", took.Seconds())}
		if message != "" {
			c.Failure = &failure{message, text}
			suite.Failures++
		}
		suite.Cases = append(suite.Cases, c)
		total += took
	}
	for _, r := range v.smokes {
		message, text := "", ""
		if r.Err != nil {
			message, text = r.Err.Error(), strings.Join(r.Report.Transcript, "\n")
		}
		add("smoke."+r.Smoke.Name, r.Address, r.Took, message, text)
	}
	for _, c := range v.cells {
		name := c.Box.Name
		if c.Worker.IsValid() {
			name += " to " + c.Worker.String()
		}
		lines := faults([]*steps.Cell{c})
		message := ""
		if len(lines) > 0 {
			message = lines[0]
		}
		add("matrix."+c.Service.Name, name, c.Took, message, strings.Join(lines, "\n"))
	}
	suite.Tests, suite.Time = len(suite.Cases), fmt.Sprintf("%.3f", total.Seconds())
	out, err := xml.MarshalIndent(suite, "", "  ")
	if err != nil {
		panic(err) // of our own struct
	}
	return append([]byte(xml.Header), append(out, '\n')...)
}

// prometheus is a file for node_exporter's textfile collector.
func prometheus(v verdicts, now time.Time) []byte {
	var b bytes.Buffer
	head := func(name, help string) { fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s gauge\n", name, help, name) }
	one := func(ok bool) int {
		if ok {
			return 1
		}
		return 0
	}
	head("ftpdeploy_verify_timestamp_seconds", "When verify ended.")
	fmt.Fprintf(&b, "ftpdeploy_verify_timestamp_seconds %d\n", now.Unix())
	if len(v.smokes) > 0 {
		head("ftpdeploy_smoke_ok", "Whether the smoke test passed.")
		for _, r := range v.smokes {
			fmt.Fprintf(&b, "ftpdeploy_smoke_ok{smoke=%q,address=%q} %d\n", r.Smoke.Name, r.Address, one(r.Err == nil))
		}
		head("ftpdeploy_smoke_seconds", "How long the smoke test took.")
		for _, r := range v.smokes {
			fmt.Fprintf(&b, "ftpdeploy_smoke_seconds{smoke=%q,address=%q} %.3f\n", r.Smoke.Name, r.Address, r.Took.Seconds())
		}
	}
	if slices.ContainsFunc(v.smokes, func(r steps.SmokeResult) bool { return r.Report.Certificate != nil }) {
		head("ftpdeploy_certificate_expiry_timestamp_seconds", "When the certificate ends that the server showed, good or not.")
		for _, r := range v.smokes {
			if c := r.Report.Certificate; c != nil {
				fmt.Fprintf(&b, "ftpdeploy_certificate_expiry_timestamp_seconds{smoke=%q,address=%q} %d\n", r.Smoke.Name, r.Address, c.NotAfter.Unix())
			}
		}
	}
	if len(v.cells) > 0 {
		head("ftpdeploy_path_ok", "Whether a passive port moved data from a box to a worker; a port that was not drawn has no sample.")
		for _, c := range v.cells {
			e := cellEvent(c)
			sample := func(port int, ok bool) {
				fmt.Fprintf(&b, "ftpdeploy_path_ok{service=%q,box=%q,worker=%q,port=\"%d\"} %d\n", e.Service, e.Box, e.Worker, port, one(ok))
			}
			for _, p := range e.OK {
				sample(p, true)
			}
			for _, p := range e.Failed {
				sample(p.Port, false)
			}
		}
		head("ftpdeploy_control_ok", "Whether the control connection from a box to a worker works.")
		for _, c := range v.cells {
			e := cellEvent(c)
			fmt.Fprintf(&b, "ftpdeploy_control_ok{service=%q,box=%q,worker=%q} %d\n", e.Service, e.Box, e.Worker, one(c.Err == nil))
		}
	}
	return b.Bytes()
}
