package blueprints

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/zclconf/go-cty/cty"
)

// An unfit error says why a value cannot be used. It never holds the value: whoever
// reports it knows whether the value may be shown, and puts it before the reason.
type unfit struct {
	what string // what was wanted, with its article: "a duration"
	why  string // goes on from the value: "ends before it starts"
}

func (u *unfit) Error() string { return "not " + u.what + ": it " + u.why }

var errNotWhole = errors.New("a whole number is required")

// wholeNumber converts a known cty.Number.
func wholeNumber(v cty.Value) (int, error) {
	n, accuracy := v.AsBigFloat().Int64()
	if accuracy != big.Exact || n > math.MaxInt32 || n < math.MinInt32 {
		return 0, errNotWhole
	}
	return int(n), nil
}

func number(least, most int) func(cty.Value) (int, error) {
	return func(v cty.Value) (int, error) {
		n, err := wholeNumber(v)
		if err != nil || n < least || n > most {
			return 0, &unfit{"a number in range", fmt.Sprintf("is not a whole number from %d to %d", least, most)}
		}
		return n, nil
	}
}

func parsed[T any](parse func(string) (T, error)) func(cty.Value) (T, error) {
	return func(v cty.Value) (T, error) { return parse(v.AsString()) }
}

func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, &unfit{"a duration", `is not a duration such as "500ms", "30s" or "2h"`}
	}
	if d < 0 {
		return 0, &unfit{"a duration", "is negative"}
	}
	return d, nil
}

// shortDuration writes 2h and not 2h0m0s.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

var sizePattern = regexp.MustCompile(`^([0-9]{1,12}) ?(B|KiB|MiB|GiB|TiB)$`)

// parseSize returns bytes.
func parseSize(s string) (int64, error) {
	m := sizePattern.FindStringSubmatch(s)
	if m == nil {
		return 0, &unfit{"a size", `is not a size such as "64KiB", "512MiB" or "2GiB"`}
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		return 0, &unfit{"a size", "is too large"}
	}
	unit := map[string]int64{"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}[m[2]]
	if n > math.MaxInt64/unit {
		return 0, &unfit{"a size", "is too large"}
	}
	return n * unit, nil
}

// wholeUnits converts a size to a number of units of that many bytes.
func wholeUnits(unit, least int64, words string) func(string) (int, error) {
	return func(s string) (int, error) {
		n, err := parseSize(s)
		if err != nil {
			return 0, err
		}
		if n%unit != 0 || n < least || n/unit > math.MaxInt32 {
			return 0, &unfit{"a size that fits", "is not " + words}
		}
		return int(n / unit), nil
	}
}

// portRange is an inclusive range of TCP ports; the zero value is none.
type portRange struct{ first, last int }

func (r portRange) has(port int) bool { return r.first != 0 && r.first <= port && port <= r.last }

func (r portRange) String() string { return fmt.Sprintf("%d-%d", r.first, r.last) }

func parsePorts(s string) (portRange, error) {
	const what = "a port range"
	low, high, found := strings.Cut(s, "-")
	if !found {
		high = low
	}
	first, errFirst := strconv.Atoi(strings.TrimSpace(low))
	last, errLast := strconv.Atoi(strings.TrimSpace(high))
	switch {
	case errFirst != nil || errLast != nil:
		return portRange{}, &unfit{what, `is not a range of ports such as "21100-21110"`}
	case first < 1 || first > 65535 || last < 1 || last > 65535:
		return portRange{}, &unfit{what, "leaves the ports there are, 1-65535"}
	case last < first:
		return portRange{}, &unfit{what, "ends before it starts"}
	}
	return portRange{first, last}, nil
}

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, &unfit{"an address", `is not an IP address such as "192.0.2.10"`}
	}
	if a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
		return netip.Addr{}, &unfit{"an address", "cannot be the address of one machine on a network"}
	}
	return a.Unmap(), nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, &unfit{"a network", `is not a network such as "192.0.2.0/24"`}
	}
	if p != p.Masked() {
		return netip.Prefix{}, &unfit{"a network", fmt.Sprintf("has bits set after its first %d; the network is %s", p.Bits(), p.Masked())}
	}
	return p, nil
}

// lastAddr is the broadcast address of an IPv4 network that has one; else it is invalid.
func lastAddr(p netip.Prefix) netip.Addr {
	if !p.IsValid() || !p.Addr().Is4() || p.Bits() > 30 {
		return netip.Addr{}
	}
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

func matching(pattern, what, why string) func(string) (string, error) {
	re := regexp.MustCompile(pattern)
	return func(s string) (string, error) {
		if !re.MatchString(s) {
			return "", &unfit{what, why}
		}
		return s, nil
	}
}

var (
	// RFC 1123 and 1035: names of hosts, of namespaces and of Services.
	parseDNSLabel = matching(`^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`, "a DNS name",
		"is not 1 to 63 lower case letters, digits and dashes, starting with a letter and not ending with a dash")
	parseNamespace = matching(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`, "a namespace",
		"is not 1 to 63 lower case letters, digits and inner dashes")
	parseQuantity = matching(`^[1-9][0-9]*(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$`, "a Kubernetes quantity",
		`is not a quantity such as "50Gi"`)
	parseUserName = matching(`^[A-Za-z_][A-Za-z0-9_.@-]{0,31}$`, "an FTP user name",
		"is not 1 to 32 letters, digits and the signs . _ - @, starting with a letter or _")
	parseMount = matching(`^(/[^/\x00-\x1f:]+)+$`, "an absolute path",
		"is not an absolute path without a slash at its end")
	parseVersion = matching(`^[0-9]+(\.[0-9]+)*$`, "a version", `is not a version such as "2.4"`)
	// The ownership key goes into Kubernetes labels, which start and end with a letter or digit.
	parseID = matching(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`, "a deployment id",
		"is not 1 to 40 lower case letters, digits and inner dashes")
	parseImage = matching(`^[a-z0-9]([a-zA-Z0-9._:/-]*[a-zA-Z0-9])?(@sha256:[0-9a-f]{64})?$`, "an image",
		`is not an image reference such as "registry.example/ftp/vsftpd@sha256:..." with 64 hex digits`)
	parseLine = matching(`^[^\x00-\x1f\x7f]*$`, "one line", "holds a line break or another control character")
)

// oneOf accepts the words that an argument knows.
func oneOf(words ...string) func(string) (string, error) {
	return func(s string) (string, error) {
		for _, w := range words {
			if s == w {
				return s, nil
			}
		}
		return "", &unfit{"a known setting", "is not one of " + strings.Join(words, ", ") + "." + didYouMean("", s, words)}
	}
}

var (
	constraintPattern = regexp.MustCompile(`^(=|!=|>=|<=|>|<)? *v?([0-9]{1,6})(?:\.([0-9]{1,6}))?(?:\.([0-9]{1,6}))?$`)
	releasePattern    = regexp.MustCompile(`^v?([0-9]{1,6})\.([0-9]{1,6})\.([0-9]{1,6})`)
)

// satisfies tells whether a version fulfils every part of a constraint such as ">= 0.1.0, < 2".
// A version that is no release (of a development build) satisfies all.
func satisfies(version, constraint string) (bool, error) {
	release := releasePattern.FindStringSubmatch(version)
	for part := range strings.SplitSeq(constraint, ",") {
		m := constraintPattern.FindStringSubmatch(strings.TrimSpace(part))
		if m == nil {
			return false, &unfit{"a version constraint", `is not a constraint such as ">= 0.1.0" or ">= 1.2, < 2"`}
		}
		if release == nil {
			continue
		}
		order := 0
		for i := 1; i <= 3 && order == 0; i++ {
			have, _ := strconv.Atoi(release[i])
			want, _ := strconv.Atoi(m[i+1])
			order = have - want
		}
		holds := map[string]bool{
			"": order == 0, "=": order == 0, "!=": order != 0,
			">=": order >= 0, "<=": order <= 0, ">": order > 0, "<": order < 0,
		}[m[1]]
		if !holds {
			return false, nil
		}
	}
	return true, nil
}
