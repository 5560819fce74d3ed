// Package blueprints loads a deployment blueprint, written in HCL, into a
// complete and validated Topology. Nothing outside the blueprint's own files,
// the files it names and the environment is read: no socket is opened.
package blueprints

import (
	"crypto/x509"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/hashicorp/hcl/v2"
)

// Topology is everything that a blueprint says should exist. It is complete
// (defaults are filled in), validated, and must not be changed by its readers.
// Slices keep the order of the blueprint.
type Topology struct {
	File            string // the file or directory it was loaded from, as given
	ID              string // deployment "ID": the ownership key, [a-z0-9-]{1,40}
	RequiredVersion string
	Labels          map[string]string

	Boxes    []*Box
	Groups   []*Group
	VIPs     []*VIP
	Clusters []*Cluster
	Services []*Service
	Smokes   []*Smoke
	Rollout  Rollout
	Outputs  []Output

	sources map[string]hcl.Range // by the address of an attribute or block; see Source
}

// Secret is a value that must never be shown. Every way to format or encode it
// gives "(sensitive)", or an address where it is deep in a value that is printed;
// only Reveal returns it, and only code that writes to a target or logs in to one
// calls that.
type Secret struct{ value *string }

// NewSecret wraps a value.
func NewSecret(value string) Secret { return Secret{&value} }

// Reveal returns the value, "" where there is none.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// IsZero tells whether no value was given.
func (s Secret) IsZero() bool { return s.Reveal() == "" }

// String implements fmt.Stringer.
func (Secret) String() string { return "(sensitive)" }

// Format implements fmt.Formatter: no verb shows the value.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(sensitive)") }

// MarshalText implements encoding.TextMarshaler.
func (Secret) MarshalText() ([]byte, error) { return []byte("(sensitive)"), nil }

// VCenter is a vCenter server and how to trust and enter it.
type VCenter struct {
	Name       string
	Server     string // host or host:port, or a URL as GOVC_URL has it
	Username   string
	Password   Secret
	Datacenter string
	CAFile     string // at most one of CAFile, Thumbprint and Insecure is set
	Thumbprint string // SHA-256 (or SHA-1) of the certificate, AA:BB:...
	Insecure   bool
	Range      hcl.Range
}

// Site is a place in a vCenter where a box may live.
type Site struct {
	Name         string
	VCenter      *VCenter
	Cluster      string // name or inventory path below the datacenter's host folder
	HostGroup    string // existing DRS host group for a VM-Host "should" rule; "" = no rule
	ResourcePool string // name below the cluster's root pool; "" = the root pool
	Datastore    string
	Folder       string // path below the datacenter's vm folder; "" = that folder
	Range        hcl.Range
}

// Network is a layer 2 segment.
type Network struct {
	Name      string
	PortGroup string
	CIDR      netip.Prefix // masked
	Gateway   netip.Addr   // invalid = none
	DNS       []netip.Addr
	MTU       int
	Range     hcl.Range
}

// Image is what a box is cloned from.
type Image struct {
	Name        string
	VCenter     *VCenter
	Template    string // inventory path below the datacenter's vm folder
	LibraryItem string // exactly one of Template and LibraryItem is set
	OSFamily    string // debian | rhel | photon
	Range       hcl.Range
}

// SSH is how a box is entered.
type SSH struct {
	Name           string
	User           string
	Port           int
	Agent          bool   // use SSH_AUTH_SOCK where it is set
	IdentityFile   string // private key file, "" = none; "~/" is expanded
	Password       Secret
	KnownHosts     string   // file, "~/" is expanded; only for boxes that ftpdeploy does not create
	HostKey        string   // strict | pin-at-create
	AuthorizedKeys []string // public keys that cloud-init gives to User on a new VM; default: that of IdentityFile
	Bastion        *SSH     // nil = direct
	BastionAddress string   // host of this ssh block when it serves as a bastion
	Become         string   // sudo | none
	BecomePassword Secret
	ConnectTimeout time.Duration
	Range          hcl.Range
}

// Box is one HAProxy machine (block lb).
type Box struct {
	Name     string
	Site     *Site  // nil for a machine that ftpdeploy does not create
	Image    *Image // nil likewise
	SSH      *SSH
	Address  netip.Addr // where SSH connects: the address of the ssh = true NIC, or the address attribute
	CPUs     int
	MemoryMB int
	DiskGB   int // 0 = the template's
	Priority int // VRRP, 1-254
	NICs     []NIC
	Range    hcl.Range
}

// Created tells whether ftpdeploy makes this machine.
func (b *Box) Created() bool { return b.Site != nil }

// NIC returns the NIC of the box in network n, or nil.
func (b *Box) NIC(n *Network) *NIC {
	for i := range b.NICs {
		if b.NICs[i].Network == n {
			return &b.NICs[i]
		}
	}
	return nil
}

// NIC is a network interface of a box.
type NIC struct {
	Role      string // the block's label
	Interface string // name inside the guest; default Role, which cloud-init sets on machines that ftpdeploy makes
	Network   *Network
	Address   netip.Addr
	Default   bool // holds the default route (its network has a gateway)
	SSH       bool
	Range     hcl.Range
}

// Group is a set of boxes that share their VIPs (block lb_group).
type Group struct {
	Name         string
	Boxes        []*Box
	AntiAffinity bool
	Firewall     string // detected | firewalld | nftables | none
	SELinux      string // manage | leave
	HAProxy      HAProxy
	Keepalived   Package
	Range        hcl.Range
}

// Package is an operating system package.
type Package struct {
	Name    string
	Version string // "" = keep what is there, else install the repository's candidate
}

// HAProxy holds the settings of the haproxy block.
type HAProxy struct {
	Package       Package
	MinVersion    string
	MaxSessions   int
	Layout        string // compact
	Connect       time.Duration
	Client        time.Duration
	Server        time.Duration
	TCPKeepalive  time.Duration
	HardStopAfter time.Duration
	MinReloadGap  time.Duration
	StatsRole     string // NIC role of stats_bind, "" = none
	StatsPort     int
	PeersPort     int // 10000
	ExtraGlobal   string
	ExtraDefaults string
}

// VIP is a floating address (block vip).
type VIP struct {
	Name           string
	Group          *Group
	Address        netip.Addr
	Network        *Network
	Prefix         int // bits
	VirtualRouter  int
	AdvertInterval time.Duration
	Preempt        bool
	Transport      string // unicast | multicast
	Probe          string // frontend-and-backend | frontend
	GARPRefresh    time.Duration
	Range          hcl.Range
}

// Cluster is a Kubernetes cluster.
type Cluster struct {
	Name            string
	Kubeconfig      string // a KUBECONFIG list or file, "~/" is expanded; "" = the usual rules
	Context         string // "" = the current one
	Workers         []netip.Addr
	WorkerSelector  string // label selector; exactly one of Workers and WorkerSelector is set
	NodePortFirst   int
	NodePortLast    int
	NodeAddressType string
	Range           hcl.Range
}

// Service is an FTP server behind a VIP (block ftp_service).
type Service struct {
	Name            string
	Cluster         *Cluster
	VIP             *VIP
	Namespace       string
	CreateNamespace bool
	Server          string // vsftpd | external
	Image           string
	LiveSettings    bool   // the image takes account and settings from files, and their changes without a restart
	PullPolicy      string // IfNotPresent | Always | Never
	Replicas        int
	ControlPort     int
	ControlNodePort int
	PassiveFirst    int
	PassiveLast     int
	NodePortFirst   int  // NodePort of PassiveFirst; the rest follow in order
	SameSourceIP    bool // vsftpd's check of the data connection's source (pasv_promiscuous=NO)
	Users           []*User
	TLS             *TLS // nil = in clear text
	Volumes         []Volume
	Requests        map[string]string // resources, as Kubernetes quantities
	Limits          map[string]string
	NodeSelector    map[string]string
	Tolerations     []Toleration
	Banner          string
	MaxClients      int
	MaxPerIP        int
	IdleSession     time.Duration
	DataConnection  time.Duration
	Range           hcl.Range
}

// PassivePorts is the number of passive ports.
func (s *Service) PassivePorts() int { return s.PassiveLast - s.PassiveFirst + 1 }

// NodePort returns the NodePort of passive port p.
func (s *Service) NodePort(p int) int { return s.NodePortFirst + p - s.PassiveFirst }

// User is an FTP account.
type User struct {
	Name     string
	Password Secret
	Home     string
	Writable bool
	Range    hcl.Range
}

// TLS is how an FTP service is encrypted: explicit FTPS (block tls).
type TLS struct {
	Required    bool                // refuse logins and data in clear text
	Certificate string              // PEM, the server's own first
	Chain       []*x509.Certificate // the same, read
	PrivateKey  Secret              // PEM
	Roots       *x509.CertPool      // that clients trust; nil = those of the machine where the client is
	ServerName  string              // where clients connect to, a DNS name or an address: what the certificate is for
	MinVersion  string              // 1.2 | 1.3
	MaxVersion  string              // likewise, not before MinVersion
	Range       hcl.Range
}

// Volume is a PersistentVolumeClaim of the service's pod.
type Volume struct {
	Name         string
	Size         string // Kubernetes quantity
	Mount        string
	StorageClass string // "" = the cluster's default class (default())
	AccessMode   string
	Keep         bool // destroy leaves it
	Range        hcl.Range
}

// Toleration is a Kubernetes toleration.
type Toleration struct{ Key, Operator, Value, Effect string }

// Rollout says how changes reach the boxes.
type Rollout struct {
	Order          string // standby-first
	MaxUnavailable int    // 1: the boxes of a group are changed one after the other
	Drain          string // wait | deadline | cut
	DrainDeadline  time.Duration
	OnFailure      string
	ConfirmWithin  time.Duration
}

// Smoke is a proof by a real transfer.
type Smoke struct {
	Name      string
	VIP       *VIP   // exactly one of VIP and Standby is set
	Standby   *Group // target = lb_group.x.standby: each box that does not hold the VIP
	Service   *Service
	User      *User
	Modes     []string // pasv, epsv
	Upload    int64    // bytes
	EveryPort bool
	LongIdle  time.Duration
	Timeout   time.Duration
	From      *SSH // nil = the machine that ftpdeploy runs on
	Range     hcl.Range
}

// Output is a named value shown after apply.
type Output struct {
	Name        string
	Value       string
	Sensitive   bool
	Description string
}
