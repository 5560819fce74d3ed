package blueprints

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// literal is a number or address that stands in a blueprint.
type literal struct {
	key  string // the blocks and argument that it stands in: "vip.ftp.address"
	r    hcl.Range
	text string
}

var interesting = regexp.MustCompile(`[0-9]`)

// literals returns the numbers and addresses of a blueprint, by what they are of.
func literals(t *testing.T, src []byte) []literal {
	t.Helper()
	file, diags := hclsyntax.ParseConfig(src, "x", hcl.InitialPos)
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	var out []literal
	var body func(prefix string, b *hclsyntax.Body)
	var expr func(key string, e hclsyntax.Expression)
	expr = func(key string, e hclsyntax.Expression) {
		switch e := e.(type) {
		case *hclsyntax.LiteralValueExpr:
			if text := string(e.Range().SliceBytes(src)); interesting.MatchString(text) {
				out = append(out, literal{key, e.Range(), text})
			}
		case *hclsyntax.TemplateExpr:
			if text := string(e.Range().SliceBytes(src)); e.IsStringLiteral() && interesting.MatchString(text) {
				r := e.Range()
				r.Start.Byte, r.End.Byte = r.Start.Byte+1, r.End.Byte-1
				out = append(out, literal{key, r, strings.Trim(text, `"`)})
			}
		case *hclsyntax.TupleConsExpr:
			for i, element := range e.Exprs {
				expr(fmt.Sprintf("%s.%d", key, i), element)
			}
		case *hclsyntax.ObjectConsExpr:
			for _, item := range e.Items {
				name, _ := item.KeyExpr.Value(nil)
				expr(key+"."+name.AsString(), item.ValueExpr)
			}
		}
	}
	body = func(prefix string, b *hclsyntax.Body) {
		for _, name := range sortedKeys(b.Attributes) {
			expr(prefix+name, b.Attributes[name].Expr)
		}
		for _, inner := range b.Blocks {
			body(prefix+strings.Join(append([]string{inner.Type}, inner.Labels...), ".")+".", inner.Body)
		}
	}
	body("", file.Body.(*hclsyntax.Body))
	return out
}

// agree is what must hold between the layers of the shipped production blueprint, written down from
// what they do on a network and not from the rules; it says what does not hold.
func agree(v func(key string) string) []string {
	var broken []string
	must := func(holds bool, format string, args ...any) {
		if !holds {
			broken = append(broken, fmt.Sprintf(format, args...))
		}
	}
	whole := func(key string) int {
		n, err := strconv.Atoi(v(key))
		must(err == nil, "%s is a whole number", key)
		return n
	}
	span := func(key string) time.Duration {
		d, err := time.ParseDuration(v(key))
		must(err == nil && d >= 0, "%s is a time", key)
		return d
	}
	prefix := func(key string) netip.Prefix {
		p, err := netip.ParsePrefix(v(key))
		must(err == nil && p == p.Masked(), "%s is a network", key)
		return p
	}
	owner := map[netip.Addr]string{}
	host := func(key string, in netip.Prefix) {
		a, err := netip.ParseAddr(v(key))
		must(err == nil, "%s is an address", key)
		must(owner[a] == "", "%s and %s differ", key, owner[a])
		owner[a] = key
		must(in.Contains(a), "%s is in %s", key, in)
		must(a != in.Addr() && in.Contains(a.Next()), "%s is a host's address", key)
	}

	frontend, workload, management := prefix("network.frontend.cidr"), prefix("network.workload.cidr"), prefix("network.management.cidr")
	host("network.frontend.gateway", frontend)
	for _, box := range []string{"haproxy-a", "haproxy-b"} {
		host("lb."+box+".nic.frontend.address", frontend)
		host("lb."+box+".nic.workload.address", workload)
		host("lb."+box+".nic.management.address", management)
		priority := whole("lb." + box + ".priority")
		must(priority >= 1 && priority <= 254, "VRRP priority")
	}
	host("variable.vip.default", frontend)
	for i := range 3 {
		worker := fmt.Sprintf("locals.workers.%d", i)
		a, err := netip.ParseAddr(v(worker))
		must(err == nil, "%s is an address", worker)
		must(owner[a] == "", "%s and %s differ", worker, owner[a])
		owner[a] = worker // another network is no contradiction: the boxes have a default route
	}
	must(v("lb.haproxy-a.priority") != v("lb.haproxy-b.priority"), "priorities differ")
	router := whole("vip.ftp.virtual_router")
	must(router >= 1 && router <= 255, "VRRP router")
	advert := span("vip.ftp.advert_interval")
	must(advert > 0 && advert <= 40950*time.Millisecond, "VRRPv3 advert interval")

	low, high, _ := strings.Cut(v("cluster.tkg.node_ports"), "-")
	lowest, errLow := strconv.Atoi(low)
	highest, errHigh := strconv.Atoi(high)
	must(errLow == nil && errHigh == nil && lowest <= highest && highest < 65536, "NodePort range")
	first, count, start := whole("variable.passive.default.first"), whole("variable.passive.default.count"), whole("variable.passive.default.node_port_first")
	last, end := first+count-1, start+count-1
	must(count >= 1 && first >= 1 && last <= 65535, "passive ports are ports")
	must(start >= lowest && end <= highest, "passive NodePorts are NodePorts")
	control, node := whole("ftp_service.vsftpd.control.port"), whole("ftp_service.vsftpd.control.node_port")
	must(control >= 1 && control <= 65535, "control port is a port")
	must(node >= lowest && node <= highest, "control NodePort is a NodePort")
	must(node < start || node > end, "control and passive NodePorts differ")
	_, text, _ := strings.Cut(v("lb_group.ftp.haproxy.stats_bind"), ":")
	stats, err := strconv.Atoi(text)
	must(err == nil && stats >= 1 && stats <= 65535, "statistics port is a port")
	must(stats != 10000, "statistics and peers differ")
	sshd := whole("ssh.lab.port")
	must(sshd >= 1 && sshd <= 65535, "SSH port is a port")
	for _, other := range []int{control, stats, 10000, 20, 21, 22, sshd} {
		must(other < first || other > last, "passive ports and port %d differ", other)
	}
	for _, other := range []int{stats, 10000, sshd} {
		must(control != other, "control port and port %d differ", other)
	}

	client, server := span("lb_group.ftp.haproxy.timeouts.client"), span("lb_group.ftp.haproxy.timeouts.server")
	must(span("lb_group.ftp.haproxy.hard_stop_after") >= max(client, server), "reloads outlive transfers")
	must(client > 0 && server > 0 && span("lb_group.ftp.haproxy.timeouts.connect") > 0, "timeouts are not nothing")
	idle := span("smoke.end-to-end.long_idle")
	must(span("rollout.confirm_within") >= max(span("smoke.end-to-end.timeout")+idle, time.Minute), "proofs end before the dead-man timer")
	must(v("ftp_service.vsftpd.replicas") == "1", "one pod")
	return broken
}

// mutants of a literal: near values, far values, values of the other literals of its kind.
func mutants(l literal, all []literal) []string {
	out := map[string]bool{}
	switch {
	case strings.Contains(l.text, "/"):
		p, err := netip.ParsePrefix(l.text)
		if err != nil {
			return nil
		}
		b := p.Addr().As4()
		for i := range 3 {
			c := b
			c[i]++
			out[netip.PrefixFrom(netip.AddrFrom4(c), p.Bits()).String()] = true
		}
		for _, bits := range []int{30, 29, 28, 16} {
			out[netip.PrefixFrom(p.Addr(), bits).Masked().String()] = true
		}
		for _, other := range all {
			if _, err := netip.ParsePrefix(other.text); err == nil {
				out[other.text] = true
			}
		}
	case isAddr(l.text):
		b := netip.MustParseAddr(l.text).As4()
		for i := range b {
			for _, by := range []byte{1, 4, 0xff} {
				c := b
				c[i] += by
				out[netip.AddrFrom4(c).String()] = true
			}
		}
		for _, end := range []byte{0, 255} {
			c := b
			c[3] = end
			out[netip.AddrFrom4(c).String()] = true
		}
		for _, other := range all {
			if isAddr(other.text) {
				out[other.text] = true
			}
		}
	default:
		// each number in the text: 21, 21100-21110, 2h, management:8404
		for _, at := range regexp.MustCompile(`[0-9]+`).FindAllStringIndex(l.text, -1) {
			n, err := strconv.Atoi(l.text[at[0]:at[1]])
			if err != nil {
				continue
			}
			values := []int{0, 1, n - 1, n + 1, n + 9, n * 2, n * 10, n / 2, n / 10, 65535, 70000}
			for _, other := range all {
				if m, err := strconv.Atoi(other.text); err == nil {
					values = append(values, m)
				}
			}
			for _, value := range values {
				if value >= 0 {
					out[l.text[:at[0]]+strconv.Itoa(value)+l.text[at[1]:]] = true
				}
			}
		}
	}
	delete(out, l.text)
	return slices.Sorted(maps.Keys(out))
}

func isAddr(s string) bool { _, err := netip.ParseAddr(s); return err == nil }

// Change any one number or address of the shipped blueprint so that the layers disagree, and loading it fails.
func TestMutants(t *testing.T) {
	src, err := os.ReadFile("production.ftp.hcl")
	if err != nil {
		t.Fatal(err)
	}
	all := literals(t, src)
	values := map[string]string{}
	for _, l := range all {
		values[l.key] = l.text
	}
	read := map[string]bool{} // what agree says something about
	broken := agree(func(key string) string { read[key] = true; return values[key] })
	if len(broken) > 0 {
		t.Fatalf("the blueprint itself does not agree: %q", broken)
	}
	path := filepath.Join(t.TempDir(), "mutant"+suffix)
	disagreeing, caught, agreeing, refused := 0, 0, 0, 0
	touched := map[string]bool{}
	for _, l := range all {
		if !read[l.key] {
			continue
		}
		for _, mutant := range mutants(l, all) {
			if err := os.WriteFile(path, []byte(string(src[:l.r.Start.Byte])+mutant+string(src[l.r.End.Byte:])), 0o600); err != nil {
				t.Fatal(err)
			}
			topology, _, _ := Load(path, Options{Env: from(environment), Version: "0.1.0"})
			broken := agree(func(key string) string {
				if key == l.key {
					return mutant
				}
				return values[key]
			})
			switch {
			case len(broken) > 0 && topology == nil:
				disagreeing++
				caught++
				touched[l.key] = true
			case len(broken) > 0:
				disagreeing++
				t.Logf("not caught: %s = %s: %q", l.key, mutant, broken)
			case topology == nil:
				agreeing++
				refused++
			default:
				agreeing++
			}
		}
	}
	rate := 100 * float64(caught) / float64(disagreeing)
	t.Logf("%d of %d mutants whose layers disagree are refused (%.1f %%), of %d values; of the %d others %d are refused",
		caught, disagreeing, rate, len(touched), agreeing, refused)
	if rate < 95 {
		t.Errorf("%.1f %% of the disagreeing mutants are refused, want at least 95 %%", rate)
	}
	if disagreeing < 300 || len(touched) < 25 {
		t.Errorf("%d disagreeing mutants of %d values are too few to tell", disagreeing, len(touched))
	}
}
