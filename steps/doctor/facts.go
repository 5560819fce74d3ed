// Package doctor finds why an FTP service fails, from what was observed of it: a pure
// function from facts to verdicts. What is observed, and how, is not its matter.
package doctor

import (
	"net/netip"
	"time"

	"github.com/ftpdeploy/ftpdeploy/kube"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/steps/ftp"
)

// Facts are what was observed of one service. The zero value of a field that is
// observed means that it is not known, and proves nothing.
type Facts struct {
	Wanted

	Here    ftp.Sight // from here, or from where the smoke test runs, through the VIP
	Through Ports     // likewise, port by port
	Boxes   []Box
	Cells   []Cell // from each box that was entered to each worker
	Cluster *kube.Survey
	Away    string // why the cluster was not asked; "" = it was, or has no part in the service

	// PodHasSecret tells whether the pod was started with the account that the Secret
	// holds now, SecretIsWanted whether that is the blueprint's.
	PodHasSecret, SecretIsWanted Known
	// SecretWorks is how a login with the account of the Secret ended, where the
	// blueprint's was refused.
	SecretWorks ftp.Outcome
}

// Wanted is what the blueprint says of the service.
type Wanted struct {
	Service, Namespace string
	VIP                netip.Addr
	VIPName            string
	Prefix             int // of the VIP
	Control            int // ports
	First, Last        int
	ControlNodePort    int
	NodePortFirst      int
	User               string
	Workers            []string
	Client, Server     time.Duration // HAProxy's timeouts
}

func (w *Wanted) nodePort(p int) int { return w.NodePortFirst + p - w.First }

// Known is what may not be known.
type Known string

// What is known.
const (
	Unknown Known = ""
	Yes     Known = "yes"
	No      Known = "no"
)

// KnownIf is Yes or No.
func KnownIf(b bool) Known {
	if b {
		return Yes
	}
	return No
}

// Ports is what came of each passive port of a way in.
type Ports struct {
	OK     []int
	Failed map[int]Failure
	Err    string // of the control connection; "" = none, or not looked at
}

// Failure is why a port moves no data.
type Failure struct {
	Outcome ftp.Outcome
	Text    string
}

// Cell is the way from a box to a worker, without HAProxy.
type Cell struct {
	Box, Worker string
	Control     ftp.Sight // no listings
	Ports       Ports
	Proxy       ftp.Outcome // of a connection to kube-proxy's health port: OK, Refused, Silent
}

// answers tells whether a login to the worker's control NodePort gets as far as the server.
func (c *Cell) answers() bool { return c.Control.Greeting.Outcome == ftp.OK }

// Box is a box of the service's group.
type Box struct {
	Name string

	Off       bool   // it is powered off, or not there
	Unreached string // why it was not entered; "" = it was, and the rest is known
	Refused   bool   // it answers and does not let us in
	NoVCenter bool   // vCenter, which knows its host keys, was not reached

	HAProxy, Keepalived string        // states of the units: "active"
	Ahead               time.Duration // its clock before ours, as far as that can be told
	NonlocalBind        string        // the kernel setting: "1"
	Holds               bool          // the VIP
	Prefix              int           // of the VIP that it holds
	State               string        // of its VRRP instance, as keepalived has logged it last
	Fit                 Known         // keepalived's check succeeds
	Drained             string        // until when it is kept from the VIP; "" = it is not
	Log                 []string      // the end of keepalived's
	Said                []string      // what HAProxy complained of
	Servers             []remote.Proxy
	Cut                 []string // sessions that a timeout ended, in HAProxy's log
	Full                []string // directories on file systems that are full
	Firewall            string   // what firewalld is not told to let in; "" = nothing that we know of
	Filters             []string // rules on ports that refuse packets, as far as they can be seen
	Lacks               []string // packages

	Edits     []Edit // haproxy.cfg and keepalived.conf against what they are to be
	Edited    string // when and by whom, as the file system has it
	Pending   bool   // what HAProxy runs is not what is on disk
	Own       ftp.Sight
	OwnPorts  Ports
	PeerReach ftp.Outcome // of a connection to the next box's address in the VIP's network
}

func (b *Box) entered() bool { return b.Unreached == "" && !b.Off }

// Verdict names a fault.
type Verdict struct {
	ID         string     `json:"id"` // stable: docs/operations.md has all of them
	Confidence Confidence `json:"confidence"`
	Service    string     `json:"service,omitempty"` // the only one that is concerned
	Text       string     `json:"cause"`
	Evidence   []string   `json:"evidence"`
	Fix        string     `json:"fix"`
	breaks     bool       // clients meet it now
}

// Confidence says whether the evidence decides.
type Confidence string

// The confidences. Certain is only said where nothing else could show the same.
const (
	Certain Confidence = "certain"
	Likely  Confidence = "likely"
)
