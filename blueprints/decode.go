package blueprints

import (
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
)

// schema is the language: the blocks of a blueprint and their arguments.
var schema = map[string]spec{
	"deployment": {label: true, args: "required_version labels"},
	"variable": {label: true, args: "type default description sensitive", blocks: map[string]spec{
		"validation": {args: "condition! error_message!"},
	}},
	"locals":  {},
	"vcenter": {label: true, args: "server! username password datacenter! ca_file thumbprint insecure"},
	"site":    {label: true, args: "vcenter! cluster! host_group resource_pool datastore! folder"},
	"network": {label: true, args: "port_group cidr! gateway dns mtu"},
	"image":   {label: true, args: "vcenter! template library_item os_family!"},
	"ssh": {label: true, args: "user! port address agent identity_file password known_hosts host_key authorized_keys " +
		"bastion become become_password connect_timeout"},
	"lb": {label: true, args: "site image ssh! address cpus memory disk priority", blocks: map[string]spec{
		"nic": {label: true, args: "network! address! interface default ssh"},
	}},
	"lb_group": {label: true, args: "members! anti_affinity firewall selinux", blocks: map[string]spec{
		"haproxy": {max: 1, args: "package version min_version max_sessions layout tcp_keepalive hard_stop_after " +
			"min_reload_gap stats_bind peers_port extra_global extra_defaults", blocks: map[string]spec{
			"timeouts": {max: 1, args: "connect client server"},
		}},
		"keepalived": {max: 1, args: "package version"},
	}},
	"vip":     {label: true, args: "lb_group! address! network! prefix virtual_router! advert_interval preempt transport probe garp_refresh"},
	"cluster": {label: true, args: "kubeconfig context workers worker_selector node_ports node_address_type"},
	"ftp_service": {label: true, args: "cluster! vip! namespace! create_namespace server image live_settings pull_policy replicas node_selector " +
		"tolerations banner max_clients max_per_ip idle_session data_connection", blocks: map[string]spec{
		"control":   {min: 1, max: 1, args: "port node_port!"},
		"passive":   {min: 1, max: 1, args: "ports! node_port_first! same_source_ip"},
		"user":      {label: true, min: 1, args: "password! home writable"},
		"volume":    {label: true, args: "size! mount! storage_class access_mode keep"},
		"resources": {max: 1, args: "requests limits"},
		"tls":       {max: 1, args: "mode required certificate! private_key! ca_certificate server_name reuse min_version max_version"},
	}},
	"rollout": {args: "order max_unavailable drain drain_deadline on_failure confirm_within"},
	"smoke":   {label: true, args: "target! user! modes upload every_port long_idle timeout from"},
	"output":  {label: true, args: "value! sensitive description"},
}

// decoders read the blocks, those that others refer to first.
var decoders = []struct {
	typ    string
	decode func(*loader, *block)
}{
	{"vcenter", (*loader).vcenter},
	{"site", (*loader).site},
	{"network", (*loader).network},
	{"image", (*loader).image},
	{"ssh", (*loader).ssh},
	{"lb", (*loader).box},
	{"lb_group", (*loader).group},
	{"vip", (*loader).vip},
	{"cluster", (*loader).cluster},
	{"ftp_service", (*loader).service},
	{"rollout", (*loader).rollout},
	{"smoke", (*loader).smoke},
	{"output", (*loader).output},
}

// defaultAdvertInterval is chosen on purpose. A frozen holder of the VIP is noticed after about
// three and a half intervals: 0.75 s with 200ms, 1.75 s with 500ms, 3.65 s with 1s. But a VM is also
// silent while vMotion or a snapshot stuns it, for 0.5 to 2 s, and a VIP that moves meanwhile breaks
// every session: a stun of 1 s moves it with 200ms, one of 2 s with 500ms, neither with 1s. 500ms
// rides out the usual stun and still moves within two seconds.
const defaultAdvertInterval = 500 * time.Millisecond

var defaultRollout = Rollout{
	Order: "standby-first", MaxUnavailable: 1, Drain: "wait", DrainDeadline: 30 * time.Minute,
	OnFailure: "rollback", ConfirmWithin: 90 * time.Second,
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func (b *block) duration(name string, fallback time.Duration) time.Duration {
	return take(b, name, textType, fallback, parsed(parseDuration))
}

// atLeast reads a duration that means something only from some length on.
func (b *block) atLeast(name string, fallback, least time.Duration) time.Duration {
	return take(b, name, textType, fallback, parsed(func(s string) (time.Duration, error) {
		d, err := parseDuration(s)
		if err == nil && d < least {
			err = &unfit{"a duration that fits", "is shorter than " + shortDuration(least)}
		}
		return d, err
	}))
}

func (b *block) addr(name string) netip.Addr {
	return take(b, name, textType, netip.Addr{}, parsed(parseAddr))
}

// line reads text that ends up in one line of a file or of a command.
func (b *block) line(name, fallback string) string {
	return take(b, name, textType, fallback, parsed(parseLine))
}

// exclusive reports arguments of which only one may be given, and tells how many are.
func (b *block) exclusive(names ...string) int {
	var given []string
	for _, name := range names {
		if b.has(name) {
			given = append(given, name)
		}
	}
	if len(given) > 1 {
		b.loader.fail("FTP111", b.at(given[1]), "Arguments exclude each other", "Only one of %s can be given here.", strings.Join(names, ", "))
	}
	return len(given)
}

// missing reports that none of some arguments is given.
func (b *block) missing(what string) {
	b.loader.fail("", b.here(), "Missing required argument", "The argument %s is required, but no definition was found.", what)
}

func (l *loader) vcenter(b *block) {
	v := &VCenter{
		Name:       b.name,
		Server:     b.line("server", ""),
		Username:   b.line("username", ""),
		Password:   b.secret("password"),
		Datacenter: b.line("datacenter", ""),
		CAFile:     b.file("ca_file", ""),
		Thumbprint: take(b, "thumbprint", textType, "", parsed(parseThumbprint)),
		Insecure:   b.bool("insecure", false),
		Range:      b.def,
	}
	l.vcenters[b.name], l.blocks[v] = v, b
	l.account(b, v)
	if v.Username == "" && !b.failed["username"] {
		b.missing(`"username"`)
	}
	if v.Password.IsZero() && !b.failed["password"] {
		b.missing(`"password"`)
	}
	if v.Insecure {
		b.exclusive("insecure", "ca_file", "thumbprint")
		l.warn("FTP403", b.at("insecure"), "vCenter is not verified",
			"Whoever answers at that address gets the password. Give ca_file, or thumbprint, instead of insecure.")
	} else {
		b.exclusive("ca_file", "thumbprint")
	}
}

// account takes a user and password out of a server's URL, where govc's GOVC_URL may have them.
func (l *loader) account(b *block, v *VCenter) {
	u, err := url.Parse(v.Server)
	if err != nil || u.User == nil {
		return
	}
	password, set := u.User.Password()
	if value, ok := b.value("server", textType); ok && set && len(marksOf(value)) == 0 {
		b.failed["password"] = true
		l.maskOrigins(b.attrs["server"].Expr, map[*local]bool{})
		l.fail("FTP602", place{subject: b.at("server").subject}, "Secret in the blueprint",
			"The URL holds a password. Write secrets outside the blueprint: give it by password, with env(), file() or a sensitive variable.")
	}
	v.Username = cmp.Or(v.Username, u.User.Username())
	if v.Password.IsZero() {
		v.Password = NewSecret(password)
	}
	u.User = nil
	v.Server = u.String()
}

var parseThumbprint = matching(`^([0-9A-Fa-f]{2}:){19}([0-9A-Fa-f]{2}:){0,12}[0-9A-Fa-f]{2}$`, "a thumbprint",
	"is not the SHA-256 or SHA-1 of a certificate, written AA:BB:...")

func (l *loader) site(b *block) {
	s := &Site{
		Name:         b.name,
		VCenter:      refer(b, "vcenter", "vcenter", l.vcenters),
		Cluster:      b.line("cluster", ""),
		HostGroup:    b.line("host_group", ""),
		ResourcePool: b.line("resource_pool", ""),
		Datastore:    b.line("datastore", ""),
		Folder:       b.line("folder", ""),
		Range:        b.def,
	}
	l.sites[b.name], l.blocks[s] = s, b
}

func (l *loader) network(b *block) {
	n := &Network{
		Name:      b.name,
		PortGroup: b.line("port_group", ""),
		CIDR:      take(b, "cidr", textType, netip.Prefix{}, parsed(parsePrefix)),
		Gateway:   b.addr("gateway"),
		DNS:       take(b, "dns", stringList, nil, each(parseAddr)),
		MTU:       b.int("mtu", 1500, 576, 9216),
		Range:     b.def,
	}
	l.networks[b.name], l.blocks[n] = n, b
}

func (l *loader) image(b *block) {
	i := &Image{
		Name:        b.name,
		VCenter:     refer(b, "vcenter", "vcenter", l.vcenters),
		Template:    b.line("template", ""),
		LibraryItem: b.line("library_item", ""),
		OSFamily:    take(b, "os_family", textType, "", parsed(oneOf("debian", "rhel", "photon"))),
		Range:       b.def,
	}
	l.images[b.name], l.blocks[i] = i, b
	if b.exclusive("template", "library_item") == 0 {
		b.missing(`"template" or "library_item"`)
	}
}

func (l *loader) ssh(b *block) {
	knownHosts := ""
	if p, err := l.path("~/.ssh/known_hosts"); err == nil {
		knownHosts = p
	}
	s := &SSH{
		Name:           b.name,
		User:           b.line("user", ""),
		Port:           b.int("port", 22, 1, 65535),
		Agent:          b.bool("agent", true),
		IdentityFile:   b.file("identity_file", ""),
		Password:       b.secret("password"),
		KnownHosts:     b.file("known_hosts", knownHosts),
		HostKey:        b.word("host_key", "pin-at-create", "strict"),
		BastionAddress: b.line("address", ""),
		Become:         b.word("become", "sudo", "none"),
		BecomePassword: b.secret("become_password"),
		ConnectTimeout: b.atLeast("connect_timeout", 10*time.Second, time.Second),
		Range:          b.def,
	}
	s.AuthorizedKeys = take(b, "authorized_keys", stringList, nil, each(parseAuthorizedKey))
	if !b.has("authorized_keys") {
		if key, ok := publicKey(s.IdentityFile); ok {
			s.AuthorizedKeys = []string{key}
		}
	}
	l.sshs[b.name], l.blocks[s] = s, b
}

var parseAuthorizedKey = matching(`^[a-z0-9@.-]+ [A-Za-z0-9+/]+=*( [^\x00-\x1f]*)?$`, "a public key",
	`is not a line such as "ssh-ed25519 AAAA... name"`)

// publicKey returns the authorized_keys line of a private key file: that of FILE.pub, else the one that
// OpenSSH's own format holds in clear (PROTOCOL.key) even where the private half is encrypted. It is
// false where neither can be read: whether the key works is for whoever logs in with it to find out.
func publicKey(file string) (string, bool) {
	if file == "" {
		return "", false
	}
	silent := func(why string) error { return fmt.Errorf("read %s: %s", file, why) }
	if src, err := readRegular(file+".pub", silent); err == nil {
		line, err := parseAuthorizedKey(strings.TrimSpace(string(src)))
		return line, err == nil
	}
	src, err := readRegular(file, silent)
	if err != nil {
		return "", false
	}
	block, _ := pem.Decode(src)
	if block == nil || block.Type != "OPENSSH PRIVATE KEY" {
		return "", false
	}
	rest, ok := strings.CutPrefix(string(block.Bytes), "openssh-key-v1\x00")
	for range 3 { // cipher, kdf, its options
		_, rest, ok = sshString(rest, ok)
	}
	if !ok || len(rest) < 4 {
		return "", false
	}
	blob, _, ok := sshString(rest[4:], true) // after the number of keys
	typ, _, ok := sshString(blob, ok)
	if !ok {
		return "", false
	}
	line, err := parseAuthorizedKey(typ + " " + base64.StdEncoding.EncodeToString([]byte(blob)))
	return line, err == nil
}

// sshString splits the first string (RFC 4251, section 5) from wire data.
func sshString(wire string, ok bool) (string, string, bool) {
	if !ok || len(wire) < 4 {
		return "", "", false
	}
	n := int64(binary.BigEndian.Uint32([]byte(wire[:4])))
	if int64(len(wire)-4) < n {
		return "", "", false
	}
	return wire[4 : 4+n], wire[4+n:], true
}

// bastions connects ssh blocks to those that they go through, once all are there.
func (l *loader) bastions() {
	for _, name := range l.declared["ssh"] {
		s := l.sshs[name]
		b := l.blocks[s]
		s.Bastion = refer(b, "bastion", "ssh", l.sshs)
		if s.Bastion != nil && s.Bastion.BastionAddress == "" && !l.blocks[s.Bastion].failed["address"] {
			l.fail("FTP112", b.at("bastion"), "Bastion without an address", "ssh %q says how to log in but not where. Give it the argument address.", s.Bastion.Name)
		}
	}
	told := map[*SSH]bool{}
	for _, name := range l.declared["ssh"] {
		var path []*SSH
		for s := l.sshs[name]; s != nil; s = s.Bastion {
			if at := slices.Index(path, s); at >= 0 {
				if !told[s] {
					var hops []string
					for _, hop := range path[at:] {
						told[hop] = true
						r := l.blocks[hop].at("bastion").subject
						hops = append(hops, fmt.Sprintf("ssh.%s (%d,%d)", hop.Name, r.Start.Line, r.Start.Column))
					}
					l.fail("FTP103", l.blocks[s].at("bastion"), "Values depend on each other", "%s -> ssh.%s. Break the circle at one of them.", strings.Join(hops, " -> "), s.Name)
				}
				break
			}
			path = append(path, s)
		}
	}
}

func (l *loader) box(b *block) {
	x := &Box{
		Name:     b.name,
		Site:     refer(b, "site", "site", l.sites),
		Image:    refer(b, "image", "image", l.images),
		SSH:      refer(b, "ssh", "ssh", l.sshs),
		CPUs:     b.int("cpus", 2, 1, 768),
		MemoryMB: take(b, "memory", textType, 2048, parsed(wholeUnits(1<<20, 256<<20, "a size of at least 256MiB in whole MiB"))),
		DiskGB:   take(b, "disk", textType, 0, parsed(wholeUnits(1<<30, 1<<30, "a size in whole GiB"))),
		Priority: b.int("priority", max(1, 100-10*len(l.topology.Boxes)), 1, 254),
		Range:    b.def,
	}
	l.boxes[b.name], l.blocks[x] = x, b
	l.topology.Boxes = append(l.topology.Boxes, x)
	l.named(b, parseDNSLabel)
	if x.MemoryMB%4 != 0 {
		l.fail("FTP106", b.at("memory"), "Not a size that fits", "%d MiB is not a multiple of 4 MiB, in which vSphere gives memory.", x.MemoryMB)
	}
	ours := b.attrs["address"] == nil
	if ours {
		if b.attrs["site"] == nil {
			b.missing(`"site" (or "address", for a machine that ftpdeploy does not create)`)
		}
		if b.attrs["image"] == nil {
			b.missing(`"image"`)
		}
	} else {
		b.exclusive("address", "site")
		b.exclusive("address", "image")
		x.Address = b.addr("address")
	}
	for _, nb := range b.children["nic"] {
		n := NIC{
			Role:    nb.name,
			Network: refer(nb, "network", "network", l.networks),
			Address: nb.addr("address"),
			Default: nb.bool("default", false),
			SSH:     nb.bool("ssh", false),
			Range:   nb.def,
		}
		n.Interface = take(nb, "interface", textType, n.Role, parsed(parseInterface))
		switch {
		case !ours && nb.attrs["interface"] == nil:
			nb.missing(`"interface" of a machine that ftpdeploy does not create`)
		case nb.attrs["interface"] == nil:
			if _, err := parseInterface(n.Role); err != nil {
				l.fail("FTP106", nb.here(), "Not an interface name", "Role %q, which becomes the interface's name in the guest, is not 1 to 15 letters, digits and dashes. Rename it or give the argument interface.", n.Role)
			}
		}
		if ours && n.Network != nil && n.Network.PortGroup == "" {
			if nw := l.blocks[n.Network]; nw.attrs["port_group"] == nil {
				nw.missing(`"port_group"`)
				nw.attrs["port_group"] = nw.attrs["cidr"] // told once
			}
		}
		x.NICs = append(x.NICs, n)
	}
}

// The kernel's IFNAMSIZ is 16 with the final NUL.
var parseInterface = matching(`^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$`, "an interface name", "is not 1 to 15 letters, digits and dashes")

// named reports a label that becomes a name elsewhere and cannot.
func (l *loader) named(b *block, parse func(string) (string, error)) {
	var u *unfit
	if _, err := parse(b.name); errors.As(err, &u) {
		l.fail("FTP106", b.here(), "Not "+u.what, "%s %s.", quoted(b.name), u.why)
	}
}

func (l *loader) group(b *block) {
	h, k := b.child("haproxy"), b.child("keepalived")
	t := h.child("timeouts")
	g := &Group{
		Name:         b.name,
		Boxes:        l.members(b),
		AntiAffinity: b.bool("anti_affinity", true),
		Firewall:     b.word("firewall", "detected", "firewalld", "nftables", "none"),
		SELinux:      b.word("selinux", "manage", "leave"),
		HAProxy: HAProxy{
			Package:       packageOf(h, "haproxy"),
			MinVersion:    take(h, "min_version", textType, "2.4", parsed(parseVersion)),
			MaxSessions:   h.int("max_sessions", 4096, 10, 1<<20),
			Layout:        h.word("layout", "compact"),
			Connect:       t.atLeast("connect", 5*time.Second, 100*time.Millisecond),
			Client:        t.atLeast("client", 2*time.Hour, time.Second),
			Server:        t.atLeast("server", 2*time.Hour, time.Second),
			TCPKeepalive:  h.atLeast("tcp_keepalive", time.Minute, time.Second),
			HardStopAfter: h.atLeast("hard_stop_after", 4*time.Hour, time.Second),
			MinReloadGap:  h.duration("min_reload_gap", 10*time.Second),
			PeersPort:     h.int("peers_port", 10000, 1, 65535),
			ExtraGlobal:   h.text("extra_global", ""),
			ExtraDefaults: h.text("extra_defaults", ""),
		},
		Keepalived: packageOf(k, "keepalived"),
		Range:      b.def,
	}
	stats := take(h, "stats_bind", textType, statsBind{}, parsed(parseStatsBind))
	g.HAProxy.StatsRole, g.HAProxy.StatsPort = stats.role, stats.port
	l.groups[b.name], l.blocks[g] = g, b
	l.topology.Groups = append(l.topology.Groups, g)
}

func packageOf(b *block, name string) Package {
	return Package{
		Name:    take(b, "package", textType, name, parsed(parsePackage)),
		Version: take(b, "version", textType, "", parsed(parsePackageVersion)),
	}
}

var (
	parsePackage        = matching(`^[a-z0-9][A-Za-z0-9+._-]*$`, "a package name", `is not a name such as "haproxy"`)
	parsePackageVersion = matching(`^[A-Za-z0-9][A-Za-z0-9+.:~_-]*$`, "a package version", `is not a version such as "2.6.12-1+deb12u1"`)
)

type statsBind struct {
	role string
	port int
}

func parseStatsBind(s string) (statsBind, error) {
	role, port, _ := strings.Cut(s, ":")
	r, err := parsePorts(port)
	if err != nil || r.first != r.last || role == "" {
		return statsBind{}, &unfit{"a NIC and a port", `is not NIC:PORT, such as "management:8404"`}
	}
	return statsBind{role, r.first}, nil
}

// members follows the list of references of an lb_group.
func (l *loader) members(b *block) []*Box {
	attr := b.attrs["members"]
	if attr == nil {
		return nil
	}
	elements, diags := hcl.ExprList(attr.Expr)
	if diags.HasErrors() {
		l.fail("FTP102", place{subject: attr.Expr.Range()}, "Not a list of references", "members takes a list such as [lb.a, lb.b].")
		b.failed["members"] = true
		return nil
	}
	var boxes []*Box
	for _, e := range elements {
		steps, ok := l.reference(e, "lb.NAME")
		var x *Box
		if ok {
			x = lookUp(l, e, "lb", steps[1], l.boxes)
		}
		switch {
		case x == nil:
			b.failed["members"] = true
		case slices.Contains(boxes, x):
			l.fail("FTP109", place{subject: e.Range()}, "Declared twice", "lb.%s is already a member.", x.Name)
		default:
			boxes = append(boxes, x)
		}
	}
	if len(elements) == 0 {
		l.fail("FTP106", b.at("members"), "Group without members", "A VIP needs a machine to live on: name one lb, or two for failover.")
	}
	return boxes
}

func (l *loader) vip(b *block) {
	v := &VIP{
		Name:           b.name,
		Group:          refer(b, "lb_group", "lb_group", l.groups),
		Address:        b.addr("address"),
		Network:        refer(b, "network", "network", l.networks),
		VirtualRouter:  b.int("virtual_router", 0, 1, 255),
		AdvertInterval: b.atLeast("advert_interval", defaultAdvertInterval, 100*time.Millisecond),
		Preempt:        b.bool("preempt", false),
		Transport:      b.word("transport", "unicast", "multicast"),
		Probe:          b.word("probe", "frontend-and-backend", "frontend"),
		GARPRefresh:    b.duration("garp_refresh", time.Minute),
		Range:          b.def,
	}
	// RFC 5798, section 5.2.7: 12 bits of centiseconds.
	if v.AdvertInterval > 40950*time.Millisecond || v.AdvertInterval%(10*time.Millisecond) != 0 {
		l.fail("FTP106", b.at("advert_interval"), "Not an advert interval", "VRRPv3 sends it as hundredths of a second, at most 40.95 s; %s does not fit.", shortDuration(v.AdvertInterval))
	}
	if v.Network != nil && v.Network.CIDR.IsValid() {
		v.Prefix = b.int("prefix", v.Network.CIDR.Bits(), 1, v.Network.CIDR.Addr().BitLen())
	}
	l.vips[b.name], l.blocks[v] = v, b
	l.topology.VIPs = append(l.topology.VIPs, v)
}

func (l *loader) cluster(b *block) {
	ports := take(b, "node_ports", textType, portRange{30000, 32767}, parsed(parsePorts))
	c := &Cluster{
		Name:            b.name,
		Kubeconfig:      take(b, "kubeconfig", textType, "", parsed(l.pathList)),
		Context:         b.line("context", ""),
		Workers:         take(b, "workers", stringList, nil, each(parseAddr)),
		WorkerSelector:  b.line("worker_selector", ""),
		NodePortFirst:   ports.first,
		NodePortLast:    ports.last,
		NodeAddressType: b.word("node_address_type", "InternalIP", "ExternalIP"),
		Range:           b.def,
	}
	l.clusters[b.name], l.blocks[c] = c, b
	l.topology.Clusters = append(l.topology.Clusters, c)
	if b.exclusive("workers", "worker_selector") == 0 {
		b.missing(`"workers" or "worker_selector"`)
	}
}

// pathList resolves each path of a list as KUBECONFIG holds it.
func (l *loader) pathList(s string) (string, error) {
	var out []string
	for _, p := range filepath.SplitList(s) {
		if p == "" {
			continue
		}
		full, err := l.path(p)
		if err != nil {
			return "", err
		}
		out = append(out, full)
	}
	return strings.Join(out, string(filepath.ListSeparator)), nil
}

func (l *loader) service(b *block) {
	control, passive, resources := b.child("control"), b.child("passive"), b.child("resources")
	ports := take(passive, "ports", textType, portRange{}, parsed(parsePorts))
	s := &Service{
		Name:            b.name,
		Cluster:         refer(b, "cluster", "cluster", l.clusters),
		VIP:             refer(b, "vip", "vip", l.vips),
		Namespace:       take(b, "namespace", textType, "", parsed(parseNamespace)),
		CreateNamespace: b.bool("create_namespace", true),
		Server:          b.word("server", "vsftpd", "external"),
		Image:           take(b, "image", textType, "", parsed(parseImage)),
		LiveSettings:    b.bool("live_settings", false),
		PullPolicy:      b.word("pull_policy", "IfNotPresent", "Always", "Never"),
		Replicas:        b.int("replicas", 1, 1, 1000),
		ControlPort:     control.int("port", 21, 1, 65535),
		ControlNodePort: control.int("node_port", 0, 1, 65535),
		PassiveFirst:    ports.first,
		PassiveLast:     ports.last,
		NodePortFirst:   passive.int("node_port_first", 0, 1, 65535),
		SameSourceIP:    passive.bool("same_source_ip", true),
		Requests:        take(resources, "requests", stringMap, nil, stringsByName),
		Limits:          take(resources, "limits", stringMap, nil, stringsByName),
		NodeSelector:    take(b, "node_selector", stringMap, nil, stringsByName),
		Tolerations:     take(b, "tolerations", cty.List(tolerationType), nil, tolerations),
		Banner:          b.line("banner", ""),
		MaxClients:      b.int("max_clients", 0, 0, 1<<20),
		MaxPerIP:        b.int("max_per_ip", 0, 0, 1<<20),
		IdleSession:     b.atLeast("idle_session", 5*time.Minute, time.Second),
		DataConnection:  b.atLeast("data_connection", 5*time.Minute, time.Second),
		Range:           b.def,
	}
	l.services[b.name], l.blocks[s] = s, b
	l.topology.Services = append(l.topology.Services, s)
	l.named(b, parseDNSLabel)
	if s.Server == "vsftpd" && b.attrs["image"] == nil {
		b.missing(`"image"`)
	}
	for _, ub := range b.children["user"] {
		u := &User{
			Name:     ub.name,
			Password: ub.secret("password"),
			Home:     take(ub, "home", textType, "/home/vsftpd/"+ub.name, parsed(parseMount)),
			Writable: ub.bool("writable", true),
			Range:    ub.def,
		}
		l.named(ub, parseUserName)
		l.blocks[u] = ub
		s.Users = append(s.Users, u)
	}
	for _, tb := range b.children["tls"] {
		s.TLS = l.tls(tb, s)
	}
	mounts := map[string]string{}
	for _, vb := range b.children["volume"] {
		v := Volume{
			Name:       vb.name,
			Size:       take(vb, "size", textType, "", parsed(parseQuantity)),
			Mount:      take(vb, "mount", textType, "", parsed(parseMount)),
			AccessMode: vb.word("access_mode", "ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"),
			Keep:       vb.bool("keep", true),
			Range:      vb.def,
		}
		l.named(vb, parseDNSLabel)
		v.StorageClass = l.storageClass(vb)
		if other, taken := mounts[v.Mount]; taken && v.Mount != "" {
			l.fail("FTP109", vb.at("mount"), "Declared twice", "%s is already the mount of volume %q.", v.Mount, other)
		}
		mounts[v.Mount] = v.Name
		s.Volumes = append(s.Volumes, v)
	}
}

func (l *loader) storageClass(b *block) string {
	class := b.line("storage_class", "")
	if class == "" && !b.failed["storage_class"] && b.has("storage_class") {
		l.fail("FTP503", b.at("storage_class"), "Empty storage class",
			"An empty storage class turns dynamic provisioning off; the claim would stay Pending. Use default() or a name.")
	}
	return class
}

var tolerationType = cty.ObjectWithOptionalAttrs(map[string]cty.Type{
	"key": cty.String, "operator": cty.String, "value": cty.String, "effect": cty.String,
}, []string{"key", "operator", "value", "effect"})

func tolerations(v cty.Value) ([]Toleration, error) {
	var out []Toleration
	for _, e := range v.AsValueSlice() {
		if e.IsNull() {
			return nil, fmt.Errorf("an element is null")
		}
		get := func(name string) string {
			if a := e.GetAttr(name); !a.IsNull() {
				return a.AsString()
			}
			return ""
		}
		t := Toleration{Key: get("key"), Operator: get("operator"), Value: get("value"), Effect: get("effect")}
		if !slices.Contains([]string{"", "Equal", "Exists"}, t.Operator) {
			return nil, fmt.Errorf("operator %s is not Equal or Exists", quoted(t.Operator))
		}
		if !slices.Contains([]string{"", "NoSchedule", "PreferNoSchedule", "NoExecute"}, t.Effect) {
			return nil, fmt.Errorf("effect %s is not NoSchedule, PreferNoSchedule or NoExecute", quoted(t.Effect))
		}
		out = append(out, t)
	}
	return out, nil
}

func (l *loader) rollout(b *block) {
	if other := l.blocks[&l.topology.Rollout]; other != nil {
		l.fail("FTP109", b.here(), "Declared twice", "There is another rollout block (%s).", other.here().seenFrom(b.here()))
		return
	}
	l.blocks[&l.topology.Rollout] = b
	d := defaultRollout
	l.topology.Rollout = Rollout{
		Order:          b.word("order", d.Order),
		MaxUnavailable: take(b, "max_unavailable", cty.Number, d.MaxUnavailable, onlyOne),
		Drain:          b.word("drain", d.Drain, "deadline", "cut"),
		DrainDeadline:  b.duration("drain_deadline", d.DrainDeadline),
		OnFailure:      b.word("on_failure", d.OnFailure, "halt"),
		ConfirmWithin:  b.atLeast("confirm_within", d.ConfirmWithin, time.Second),
	}
}

// onlyOne is for a number of boxes: VIPs have one place to go while another box is away.
func onlyOne(v cty.Value) (int, error) {
	if n, err := wholeNumber(v); err != nil || n != 1 {
		return 0, &unfit{"the number of boxes at a time", "is not 1: the boxes of a group are changed one after the other"}
	}
	return 1, nil
}

func (l *loader) smoke(b *block) {
	s := &Smoke{
		Name:      b.name,
		Modes:     take(b, "modes", stringList, []string{"pasv", "epsv"}, each(oneOf("pasv", "epsv"))),
		Upload:    take(b, "upload", textType, 1<<20, parsed(parseSize)),
		EveryPort: b.bool("every_port", true),
		LongIdle:  b.duration("long_idle", 0),
		Timeout:   b.atLeast("timeout", time.Minute, time.Second),
		From:      refer(b, "from", "ssh", l.sshs),
		Range:     b.def,
	}
	l.blocks[s] = b
	l.topology.Smokes = append(l.topology.Smokes, s)
	if s.From != nil && s.From.BastionAddress == "" && !l.blocks[s.From].failed["address"] {
		l.fail("FTP112", b.at("from"), "Machine without an address", "ssh %q says how to log in but not where. Give it the argument address.", s.From.Name)
	}
	if attr := b.attrs["modes"]; attr != nil && len(s.Modes) == 0 && !b.failed["modes"] {
		l.fail("FTP106", b.at("modes"), "No modes", "Name pasv, epsv or both.")
	}
	if attr := b.attrs["target"]; attr != nil {
		if steps, ok := l.reference(attr.Expr, "vip.NAME", "lb_group.NAME.standby"); ok && steps[0] == "vip" {
			s.VIP = lookUp(l, attr.Expr, "vip", steps[1], l.vips)
		} else if ok {
			s.Standby = lookUp(l, attr.Expr, "lb_group", steps[1], l.groups)
		}
	}
	attr := b.attrs["user"]
	if attr == nil {
		return
	}
	steps, ok := l.reference(attr.Expr, "ftp_service.NAME.user.NAME")
	if !ok {
		return
	}
	if s.Service = lookUp(l, attr.Expr, "ftp_service", steps[1], l.services); s.Service == nil {
		return
	}
	prefix := "ftp_service." + steps[1] + ".user."
	var names []string
	for _, u := range s.Service.Users {
		if u.Name == steps[3] {
			s.User = u
		}
		names = append(names, u.Name)
	}
	if s.User == nil && len(names) > 0 {
		l.fail("FTP102", b.at("user"), "No such user", "%q is not declared.%s Declared: %s.",
			prefix+steps[3], didYouMean(prefix, steps[3], names), prefix+strings.Join(names, ", "+prefix))
	}
}

func (l *loader) output(b *block) {
	o := Output{Name: b.name, Sensitive: b.bool("sensitive", false), Description: b.text("description", "")}
	o.Value = b.text("value", "")
	if b.attrs["value"] != nil && !b.failed["value"] {
		if v, ok := b.value("value", textType); ok && isSensitive(v) {
			o.Sensitive = true
		}
	}
	l.topology.Outputs = append(l.topology.Outputs, o)
}
