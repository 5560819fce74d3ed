package proxy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
)

// text is a configuration of sections with indented lines, which knows what each
// line is made from.
type text struct {
	content []byte
	section string
	values  map[place][]value
}

// place is a line of a configuration.
type place struct{ section, line string }

// value is what stands in a line, and which attributes of the blueprint it comes from.
type value struct {
	text  string
	from  []string // addresses
	apart bool     // it does not stand in the line, but the line is there because of it
}

func (v value) String() string { return v.text }

// of is a value that a line shows.
func of(v any, from ...string) value { return value{text: fmt.Sprint(v), from: from} }

// by is what a line is there for, and does not show.
func by(from ...string) value { return value{from: from, apart: true} }

func (t *text) raw(s string) { t.content = append(t.content, s...) }

// head begins a section. Of its args, as of those of line, what by made comes last.
func (t *text) head(format string, args ...any) {
	head, values := split(format, args)
	t.section = head
	t.raw("\n" + head + "\n")
	t.note("", values)
}

// line adds a line to the section.
func (t *text) line(format string, args ...any) {
	line, values := split(format, args)
	t.raw("    " + line + "\n")
	t.note(strings.TrimSpace(line), values)
}

func (t *text) note(line string, values []value) {
	if t.values == nil {
		t.values = map[place][]value{}
	}
	at := place{t.section, line}
	t.values[at] = append(t.values[at], values...)
}

func split(format string, args []any) (line string, values []value) {
	shown := slices.DeleteFunc(args, func(a any) bool {
		v, ok := a.(value)
		if ok {
			values = append(values, v)
		}
		return v.apart
	})
	return fmt.Sprintf(format, shown...), values
}

// lines adds the lines of an operator's own text.
func (t *text) lines(s, from string) {
	for line := range strings.Lines(strings.TrimSpace(s)) {
		t.line("%s", of(strings.TrimSpace(line), from))
	}
}

// Because names the attributes of the blueprint, by their addresses, that lead to
// what differs between the file and what was there before it. Where none does it
// is the group of boxes.
func (f File) Because(before []byte) []string {
	was, is := places(before), places(f.Content)
	var found []string
	covered := map[place]bool{} // section and statement, of which a new line tells why
	for _, p := range is {
		if !slices.Contains(was, p) {
			found = append(found, fresh(f.values[p], p, was)...)
			covered[p.statement()] = true
		}
	}
	for _, p := range was {
		if slices.Contains(is, p) || covered[p.statement()] {
			continue
		}
		// What is gone tells no more where it came from; its like does, or its section.
		like := slices.IndexFunc(is, func(other place) bool { return other.statement() == p.statement() && len(f.values[other]) > 0 })
		var values []value
		if like >= 0 {
			values = f.values[is[like]]
		} else {
			values = f.values[place{section: p.section}]
		}
		if len(values) > 0 {
			found = append(found, values[0].from...)
		}
	}
	var unique []string
	for _, address := range found {
		if !slices.Contains(unique, address) {
			unique = append(unique, address)
		}
	}
	if unique == nil {
		return []string{f.group}
	}
	return unique
}

// places are the lines of a configuration with their sections.
func places(content []byte) []place {
	var all []place
	section := ""
	for line := range strings.Lines(string(content)) {
		bare := strings.TrimSpace(line)
		switch {
		case bare == "", bare == "}", bare[0] == '#':
		case line[0] != ' ' && line[0] != '\t':
			section = bare
		default:
			all = append(all, place{section, bare})
		}
	}
	return all
}

// statement is a line without its values: the words by which its likes are known.
func (p place) statement() place {
	words := strings.Fields(p.line)
	n := 1
	if words[0] == "timeout" || words[0] == "http-request" {
		n = 2
	}
	if strings.ContainsAny(words[0][:1], "0123456789") { // an address in a list
		return place{p.section, ""}
	}
	return place{p.section, strings.Join(words[:min(n, len(words))], " ")}
}

// fresh are the attributes of those values of a new line that no line of its kind
// had before; all of them where every value was there.
func fresh(values []value, p place, was []place) []string {
	before := map[string]bool{}
	for _, w := range was {
		if w.statement() == p.statement() {
			for _, word := range words(w.line) {
				before[word] = true
			}
		}
	}
	var all, some []string
	for _, v := range values {
		all = append(all, v.from...)
		if slices.ContainsFunc(words(v.text), func(w string) bool { return !before[w] }) {
			some = append(some, v.from...)
		}
	}
	if some == nil {
		return all
	}
	return some
}

// words are what a line is compared by: an address, a port, a time.
func words(line string) []string {
	return strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" :/+-(){}", r) })
}

// The addresses of blocks.
func groupOf(g *blueprints.Group) string     { return "lb_group." + g.Name }
func vipOf(v *blueprints.VIP) string         { return "vip." + v.Name }
func serviceOf(s *blueprints.Service) string { return "ftp_service." + s.Name }
func clusterOf(c *blueprints.Cluster) string {
	if c.WorkerSelector != "" {
		return "cluster." + c.Name + ".worker_selector"
	}
	return "cluster." + c.Name + ".workers"
}

func nicOf(b *blueprints.Box, n *blueprints.NIC) string { return "lb." + b.Name + ".nic." + n.Role }
