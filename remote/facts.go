package remote

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Query says what Find looks at.
type Query struct {
	Packages []string
	Units    []string // with their suffix: "haproxy.service"
	Settings []string // kernel settings: "net.ipv4.ip_nonlocal_bind"
	Files    []FileQuery
	Newest   []string // directories of files whose names begin with a number
	Booleans []string // of SELinux
	Ports    []Ports  // whose connections are counted
}

// Ports are local TCP ports.
type Ports struct{ First, Last int }

// FileQuery asks for a file.
type FileQuery struct {
	Path    string
	Known   string // hex SHA-256: the content is not fetched where it is this one; "" = fetch
	Package string // the package that may have brought the file; "" = none
}

// Facts is what a machine is like. Each map has an entry for all that was asked.
type Facts struct {
	Now      time.Time // by the machine's clock
	OS       OS
	Packages map[string]PackageState
	Units    map[string]UnitState
	Settings map[string]string
	Files    map[string]FileState
	Newest   map[string]string // name of the file with the highest number, "" where the directory is not there or empty
	Links    []Link
	Firewall Firewall
	SELinux  SELinux
	Open     map[Ports]map[netip.Addr]int // established connections to the ports that were asked for, by local address
}

// OS is what /etc/os-release says.
type OS struct {
	ID      string // "debian"
	Version string // "12"
	Name    string // "Debian GNU/Linux 12 (bookworm)"
	Family  string // debian, rhel or photon: what packages are installed with
}

// PackageState is a package on a machine.
type PackageState struct {
	Version   string // installed, "" = not; Debian's with epoch and revision, else VERSION-RELEASE
	Candidate string // what would be installed, as far as the machine knows without asking its mirror; "" = not known
}

// UnitState is a systemd unit.
type UnitState struct {
	Exists  bool
	Active  string // active, activating, failed, inactive, ...
	Enabled string // enabled, disabled, static, masked, ...; "" where it does not exist
}

// FileState is a file.
type FileState struct {
	Exists   bool
	SHA256   string // hex
	Mode     string // octal: "644"
	Owner    string // user
	Group    string
	Modified time.Time // by the machine's clock
	// Identity changes with every write, also with one that puts back what was:
	// SHA256, inode and time of change. It is what a Daemon's Marker holds.
	Identity string
	Link     string // what it points to; "" = it is no symbolic link
	Pristine bool   // as its package brought it; only told where the content was fetched
	Content  []byte // nil where SHA256 is the Known one
}

// String is what tells one state of a file from another; "" = not there.
func (s FileState) String() string {
	if !s.Exists {
		return ""
	}
	return strings.Join([]string{s.SHA256, s.Mode, s.Owner, s.Group, s.Link}, " ")
}

// Link is a network interface with its addresses.
type Link struct {
	Name      string
	Addresses []netip.Prefix
}

// Firewall is what guards a machine's incoming traffic.
type Firewall struct {
	Firewalld bool
	Default   string            // zone of the interfaces that Links lacks
	Links     map[string]string // zone of an interface
	Zones     map[string]Zone   // the default and the active ones, by name
	NFT       []string          // input chains that can refuse, each with why; not looked at where firewalld runs
}

// Zone returns the name of the zone that an interface is in.
func (f Firewall) Zone(link string) string { return cmp.Or(f.Links[link], f.Default) }

// Zone is a zone of firewalld. A port is "21/tcp" or "21100-21110/tcp".
type Zone struct{ Runtime, Permanent ZoneRules }

// ZoneRules are what a zone lets in.
type ZoneRules struct {
	Target string
	Ports  []string
	Rich   []string
}

// SELinux is its state.
type SELinux struct {
	Mode     string          // Enforcing, Permissive, Disabled; "" = not there
	Booleans map[string]bool // empty where it is not there or disabled
}

//go:embed facts.sh
var factsScript string

// script is facts.sh as it is sent.
var script = bare(factsScript)

// bare is a script without what only a reader needs.
func bare(script string) string {
	var b strings.Builder
	for line := range strings.Lines(script) {
		if line = strings.TrimLeft(line, "\t"); line != "\n" && line[0] != '#' {
			b.WriteString(line)
		}
	}
	return b.String()
}

// Find looks at a machine, in one go and without changing anything there. What
// cannot be told is an error.
func (h *Host) Find(ctx context.Context, q Query) (*Facts, error) {
	out, err := h.Run(ctx, h.alone(q.script()+"firewall\necho @end\n", true), nil)
	if err != nil {
		return nil, fmt.Errorf("look at the machine: %w", err)
	}
	facts, err := parseFacts(out)
	if err != nil {
		return nil, fmt.Errorf("look at the machine: on %s: %w", h.name, err)
	}
	return facts, nil
}

// script asks for all but the firewall.
func (q Query) script() string {
	var b strings.Builder
	b.WriteString(script)
	call := func(words ...string) {
		for i, w := range words {
			if i > 0 {
				b.WriteByte(' ')
				w = quote(w)
			}
			b.WriteString(w)
		}
		b.WriteByte('\n')
	}
	call("clock")
	call("os")
	for _, p := range q.Packages {
		call("package", p)
	}
	if len(q.Units) > 0 {
		call(append([]string{"units"}, q.Units...)...)
	}
	for _, s := range q.Settings {
		call("setting", s, settingFile(s))
	}
	for _, f := range q.Files {
		call("file", f.Path, f.Known, f.Package)
	}
	for _, d := range q.Newest {
		call("newest", d)
	}
	call("addresses")
	for _, p := range q.Ports {
		call("connections", strconv.Itoa(p.First), strconv.Itoa(p.Last))
	}
	if len(q.Booleans) > 0 {
		call(append([]string{"selinux"}, q.Booleans...)...)
	}
	return b.String()
}

// section is one answer: what stands below "@kind name".
type section struct {
	kind, name string
	lines      []string
}

// parseFacts reads what the script wrote.
func parseFacts(out []byte) (*Facts, error) {
	f := newFacts()
	sections, err := sectionsOf(out)
	if err != nil {
		return nil, err
	}
	for _, s := range sections {
		if err := f.add(s); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func newFacts() *Facts {
	return &Facts{
		Packages: map[string]PackageState{},
		Units:    map[string]UnitState{},
		Settings: map[string]string{},
		Files:    map[string]FileState{},
		Newest:   map[string]string{},
		Firewall: Firewall{Zones: map[string]Zone{}, Links: map[string]string{}},
		SELinux:  SELinux{Booleans: map[string]bool{}},
		Open:     map[Ports]map[netip.Addr]int{},
	}
}

// sectionsOf takes apart what a script wrote, whose last section is "end".
func sectionsOf(out []byte) ([]section, error) {
	var sections []section
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		line := lines.Text()
		if head, ok := strings.CutPrefix(line, "@"); ok {
			kind, name, _ := strings.Cut(head, " ")
			sections = append(sections, section{kind: kind, name: name})
		} else if n := len(sections); n > 0 {
			sections[n-1].lines = append(sections[n-1].lines, line)
		} else if line != "" {
			return nil, fmt.Errorf("unexpected answer %q", line)
		}
	}
	if n := len(sections); n == 0 || sections[n-1].kind != "end" {
		return nil, fmt.Errorf("the answer was cut off after %d bytes", len(out))
	}
	return sections, nil
}

func (f *Facts) add(s section) error {
	switch s.kind {
	case "clock":
		now, err := strconv.ParseInt(s.name, 10, 64)
		if err != nil {
			return fmt.Errorf("the machine's clock says %q", s.name)
		}
		f.Now = time.Unix(now, 0)
	case "os":
		return f.addOS(s.lines)
	case "package":
		var p PackageState
		for _, line := range s.lines {
			if c, ok := strings.CutPrefix(line, "candidate "); !ok {
				p.Version = line
			} else if c != "(none)" {
				p.Candidate = c
			}
		}
		f.Packages[s.name] = p
	case "units":
		f.addUnits(s.lines)
	case "setting":
		f.Settings[s.name] = strings.Join(s.lines, "\n")
	case "file":
		return f.addFile(s)
	case "newest":
		f.Newest[s.name] = strings.Join(s.lines, "\n")
	case "addresses":
		return f.addLinks(s.lines)
	case "connections":
		return f.addOpen(s)
	case "zones":
		f.Firewall.Firewalld, f.Firewall.Default = true, s.name
		zone := ""
		for _, line := range s.lines {
			if links, ok := strings.CutPrefix(strings.TrimSpace(line), "interfaces:"); ok {
				for _, l := range strings.Fields(links) {
					f.Firewall.Links[l] = zone
				}
			} else if line != "" && line[0] != ' ' {
				zone = strings.Fields(line)[0] // newer ones add "(default)"
			}
		}
	case "zone":
		f.Firewall.Zones[s.name] = Zone{Runtime: zoneRules(s.lines)}
	case "permanent":
		z := f.Firewall.Zones[s.name]
		z.Permanent = zoneRules(s.lines)
		f.Firewall.Zones[s.name] = z
	case "nft":
		f.Firewall.NFT = s.lines
	case "selinux":
		if len(s.lines) == 0 {
			return fmt.Errorf("getenforce said nothing")
		}
		f.SELinux.Mode = s.lines[0]
		for _, line := range s.lines[1:] {
			name, state, ok := strings.Cut(line, " --> ")
			if !ok {
				return fmt.Errorf("getsebool said %q", line)
			}
			f.SELinux.Booleans[name] = state == "on"
		}
	case "end":
	default:
		return fmt.Errorf("unexpected answer %q", "@"+s.kind)
	}
	return nil
}

func (f *Facts) addOS(lines []string) error {
	if len(lines) != 4 {
		return fmt.Errorf("/etc/os-release: %q", lines)
	}
	f.OS = OS{ID: lines[0], Version: lines[2], Name: lines[3]}
	for _, id := range append([]string{lines[0]}, strings.Fields(lines[1])...) {
		switch id {
		case "debian", "ubuntu":
			f.OS.Family = "debian"
		case "rhel", "fedora", "centos":
			f.OS.Family = "rhel"
		case "photon":
			f.OS.Family = "photon"
		}
	}
	if f.OS.Family == "" {
		return fmt.Errorf("%s is neither of the Debian, nor the RHEL, nor the Photon family", cmp.Or(f.OS.Name, f.OS.ID))
	}
	return nil
}

func (f *Facts) addUnits(lines []string) {
	fields := map[string]string{}
	flush := func() {
		if id := fields["Id"]; id != "" {
			f.Units[id] = UnitState{
				Exists:  fields["LoadState"] != "not-found",
				Active:  fields["ActiveState"],
				Enabled: fields["UnitFileState"],
			}
		}
		clear(fields)
	}
	for _, line := range lines {
		if line == "" {
			flush()
		}
		key, value, _ := strings.Cut(line, "=")
		fields[key] = value
	}
	flush()
}

func (f *Facts) addFile(s section) error {
	var state FileState
	defer func() { f.Files[s.name] = state }()
	if len(s.lines) == 0 {
		return nil
	}
	// SHA256 mode owner group inode date time zone
	w := strings.Fields(s.lines[0])
	if len(w) != 8 {
		return fmt.Errorf("file %s: %q", s.name, s.lines[0])
	}
	modified, err := time.Parse("2006-01-02 15:04:05.999999999 -0700", strings.Join(w[5:], " "))
	if err != nil {
		return fmt.Errorf("file %s: %w", s.name, err)
	}
	state = FileState{
		Exists: true, SHA256: w[0], Mode: w[1], Owner: w[2], Group: w[3],
		Identity: strings.Join(append(w[:1:1], w[4:]...), " "), Modified: modified,
	}
	rest := s.lines[1:]
	if len(rest) > 0 {
		if target, ok := strings.CutPrefix(rest[0], "link "); ok {
			state.Link, rest = target, rest[1:]
		}
	}
	if len(rest) > 0 && rest[0] == "pristine" {
		state.Pristine = true
		rest = rest[1:]
	}
	if len(rest) > 0 && rest[0] == "content" {
		if state.Content, err = base64.StdEncoding.DecodeString(strings.Join(rest[1:], "")); err != nil {
			return fmt.Errorf("file %s: %w", s.name, err)
		}
	}
	return nil
}

// addLinks reads `ip -br addr`: "eth0@if7 UP 10.0.0.1/24 fe80::1/64 metric 100".
func (f *Facts) addLinks(lines []string) error {
	for _, line := range lines {
		w := strings.Fields(line)
		if len(w) < 2 {
			continue
		}
		name, _, _ := strings.Cut(w[0], "@")
		link := Link{Name: name}
		for _, word := range w[2:] {
			if !strings.Contains(word, "/") {
				continue // "peer", "metric 100"
			}
			address, err := netip.ParsePrefix(word)
			if err != nil {
				return fmt.Errorf("address of %s: %w", name, err)
			}
			link.Addresses = append(link.Addresses, address)
		}
		f.Links = append(f.Links, link)
	}
	return nil
}

// addOpen reads counts of connections with their local addresses, as uniq has them.
func (f *Facts) addOpen(s section) error {
	var ports Ports
	if _, err := fmt.Sscan(s.name, &ports.First, &ports.Last); err != nil {
		return fmt.Errorf("connections to %q: %w", s.name, err)
	}
	f.Open[ports] = map[netip.Addr]int{}
	for _, line := range s.lines {
		count, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		text, _, _ = strings.Cut(strings.Trim(text, "[]"), "%") // a link-local one has its interface
		n, err := strconv.Atoi(count)
		if err != nil {
			return fmt.Errorf("connections to ports %s: %q", s.name, line)
		}
		address, err := netip.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("connections to ports %s: %w", s.name, err)
		}
		f.Open[ports][address.Unmap()] += n
	}
	return nil
}

// zoneRules reads `firewall-cmd --list-all`.
func zoneRules(lines []string) ZoneRules {
	var z ZoneRules
	for _, line := range lines {
		text := strings.TrimSpace(line)
		switch key, value, _ := strings.Cut(text, ":"); {
		case key == "target":
			z.Target = strings.TrimSpace(value)
		case key == "ports":
			z.Ports = strings.Fields(value)
		case strings.HasPrefix(text, "rule "):
			z.Rich = append(z.Rich, text)
		}
	}
	return z
}

// Holds tells whether the machine has the address now, as the holder of a VIP does.
func (f *Facts) Holds(a netip.Addr) bool {
	return slices.ContainsFunc(f.Links, func(l Link) bool {
		return slices.ContainsFunc(l.Addresses, func(p netip.Prefix) bool { return p.Addr() == a })
	})
}

// settingFile is the file of a kernel setting.
func settingFile(name string) string { return "/proc/sys/" + strings.ReplaceAll(name, ".", "/") }
