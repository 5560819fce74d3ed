package proxy

import (
	"slices"
	"strings"
)

// leaving ends the line of a worker that has left. Without weight no new client
// comes to it, but a client whose control connection came through it before still
// finds it in the stick table, and so its data connections take the same way.
const leaving = " weight 0 # has left: for the sessions that came through it"

// KeepLeaving is the haproxy.cfg after with the workers that only before has kept
// for the data connections of their sessions. A worker that had left in before
// already is kept if used says so.
func KeepLeaving(before, after []byte, used func(worker string) bool) []byte {
	gone := map[string][]string{} // lines by backend
	now := passiveServers(after)
	for backend, servers := range passiveServers(before) {
		for _, s := range servers {
			there := slices.ContainsFunc(now[backend], func(n server) bool { return n.name == s.name || n.id == s.id })
			if len(now[backend]) > 0 && !there && (!s.left || used(s.name)) {
				gone[backend] = append(gone[backend], s.line())
			}
		}
	}
	var kept []byte
	backend, rest := "", 0
	for line := range strings.Lines(string(after)) {
		if section(line) != "" {
			backend = section(line)
			rest = len(now[backend])
		}
		kept = append(kept, line...)
		if _, ok := parseServer(line); !ok {
			continue
		}
		if rest--; rest == 0 {
			for _, l := range gone[backend] {
				kept = append(kept, "    "+l+"\n"...)
			}
		}
	}
	return kept
}

// HasLeft tells whether a haproxy.cfg keeps workers that have left.
func HasLeft(haproxy []byte) bool {
	for _, servers := range passiveServers(haproxy) {
		if slices.ContainsFunc(servers, func(s server) bool { return s.left }) {
			return true
		}
	}
	return false
}

// server is one of a passive backend.
type server struct {
	name, address, id string
	left              bool
}

func (s server) line() string { return "server " + s.name + " " + s.address + " id " + s.id + leaving }

// parseServer reads a line "server NAME ADDRESS id ID ..." as we write it.
func parseServer(line string) (server, bool) {
	w := strings.Fields(line)
	if len(w) < 5 || w[0] != "server" || w[3] != "id" {
		return server{}, false
	}
	return server{name: w[1], address: w[2], id: w[4], left: strings.HasSuffix(strings.TrimRight(line, "\n"), leaving)}, true
}

// passiveServers are the servers of the passive backends, by their names.
func passiveServers(haproxy []byte) map[string][]server {
	all := map[string][]server{}
	backend := ""
	for line := range strings.Lines(string(haproxy)) {
		if name := section(line); name != "" {
			backend = name
		}
		if s, ok := parseServer(line); ok && strings.HasSuffix(backend, "_passive") {
			all[backend] = append(all[backend], s)
		}
	}
	return all
}

// section is the name of the backend that begins with a line, another text where
// another section does, "" within one.
func section(line string) string {
	w := strings.Fields(line)
	switch {
	case len(w) == 0 || line[0] == ' ' || line[0] == '\t' || line[0] == '#':
		return ""
	case w[0] == "backend" && len(w) > 1:
		return w[1]
	default:
		return line
	}
}
