package e2e

import (
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// sight is everything that a run may change, as it stands between two runs. What
// was written in between shows however short it was there: the kernel dates the
// last change of each file and of each directory's list of names.
type sight struct {
	boxes  map[string]boxSight
	writes []string // what vCenter and the API server were made to change so far
	volume map[string]string
}

type boxSight struct {
	boot     string
	clock    string            // its own time, in microseconds
	files    map[string]string // path -> what the file system knows of it
	settings map[string]string // of the kernel's network
	packets  string            // what filters them
	holds    bool              // the VIP
}

// aVIP is one of the addresses that the tests' blueprints give the VIP.
var aVIP = regexp.MustCompile(` 203\.0\.113\.1[56]/`)

// lookScript prints the parts of a boxSight, each below a line "@PART".
const lookScript = `
echo @boot; cat /proc/sys/kernel/random/boot_id
echo @clock; date +%s%6N
echo @files; find / /run /tmp -xdev ! -path '/run/host*' ! -path '/run/guestinfo*' -printf '%p\t%C@ %i %m %U:%G %y %l\n'
echo @settings; grep -rs . /proc/sys/net | grep -v -e _count: -e /rand | sed 's/:/\t/'
echo @packets; nft list ruleset 2>/dev/null || :
echo @addresses; ip -o addr`

// see looks at everything.
func see(t *testing.T) sight {
	t.Helper()
	s := sight{boxes: map[string]boxSight{}, volume: map[string]string{}}
	boxes := []string{boxA, boxB}
	texts := make([]string, len(boxes))
	var all sync.WaitGroup
	for i, box := range boxes {
		all.Go(func() { texts[i] = on(t, box, "sh", "-c", lookScript).stdout })
	}
	all.Wait()
	for i, box := range boxes {
		s.boxes[box] = seen(t, box, texts[i])
	}
	s.writes = writes(t)
	for line := range strings.Lines(shell(t, "worker-1", `find /srv -type f -printf '%P\t%s %C@\n'`)) {
		name, what, _ := strings.Cut(strings.TrimSpace(line), "\t")
		if name != "" {
			s.volume[name] = what
		}
	}
	return s
}

func seen(t *testing.T, box, text string) boxSight {
	t.Helper()
	parts := map[string][]string{}
	part := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if name, ok := strings.CutPrefix(line, "@"); ok {
			part = name
			continue
		}
		parts[part] = append(parts[part], line)
	}
	table := func(lines []string) map[string]string {
		m := map[string]string{}
		for _, l := range lines {
			name, what, _ := strings.Cut(l, "\t")
			m[name] = what
		}
		return m
	}
	b := boxSight{
		files: table(parts["files"]), settings: table(parts["settings"]), packets: strings.Join(parts["packets"], "\n"),
		holds: aVIP.MatchString(strings.Join(parts["addresses"], "\n")),
	}
	if len(parts["boot"]) != 1 || len(parts["clock"]) != 1 || len(b.files) < 1000 || len(b.settings) < 100 {
		t.Fatalf("%s could not be looked at: %.2000s", box, text)
	}
	b.boot, b.clock = parts["boot"][0], parts["clock"][0]
	return b
}

// lookingLeaves is what any login, and the look itself, writes on a box, and what
// systemd-networkd notes of links that come up.
var lookingLeaves = regexp.MustCompile(`^(/run|/run/systemd/netif(/.*)?|/run/motd\.dynamic|/run/sudo/ts|/run/sudo/ts/ansible|/var/log/(journal/.*|wtmp|lastlog|btmp)|/dev/shm|/tmp|/run/systemd)$`)

// bootLeaves is what a boot of the machine writes by itself.
var bootLeaves = regexp.MustCompile(`^(/run|/tmp|/dev|/proc|/sys|/var/tmp|/var/log|/var/lib/(cloud|systemd|dbus|private)|/etc/(netplan|systemd/network|resolv\.conf|hosts|mtab|ssh|cloud|\.pwd\.lock|udev))(/|$)|^(/|/etc|/var/lib|/root|/home/ansible(/.*)?)$`)

// mutations lists what is otherwise than before, sorted; one that was made twice
// is there twice.
func (s sight) mutations(t *testing.T, before sight) []string {
	t.Helper()
	var all []string
	add := func(format string, a ...any) { all = append(all, fmt.Sprintf(format, a...)) }
	for box, now := range s.boxes {
		old := before.boxes[box]
		booted := now.boot != old.boot
		if booted {
			add("%s boot", box)
		}
		for _, name := range differ(old.files, now.files) {
			switch kind := "file"; {
			case lookingLeaves.MatchString(name), booted && bootLeaves.MatchString(name):
			default:
				if strings.Contains(now.files[name]+old.files[name], " d ") {
					kind = "directory"
				}
				add("%s %s %s", box, kind, name)
			}
		}
		for _, name := range differ(old.settings, now.settings) {
			if !booted {
				add("%s setting %s", box, name)
			}
		}
		if now.packets != old.packets {
			add("%s packet filter", box)
		}
		if !booted { // which starts everything
			for _, job := range jobs(t, box, old.clock) {
				add("%s job %s", box, job)
			}
		}
	}
	for what, n := range count(s.writes) { // vCenter's stand before the cluster's
		for range n - count(before.writes)[what] {
			add("%s", short(what))
		}
	}
	for _, name := range differ(before.volume, s.volume) {
		add("volume file %s", name)
	}
	slices.Sort(all)
	return all
}

// moved tells whether the VIP changed its place.
func (s sight) moved(before sight) bool {
	return s.boxes[boxA].holds != before.boxes[boxA].holds || s.boxes[boxB].holds != before.boxes[boxB].holds
}

// differ lists the names that have not the same value in both.
func differ(a, b map[string]string) []string {
	var names []string
	for name, value := range a {
		if other, ok := b[name]; !ok || other != value {
			names = append(names, name)
		}
	}
	for name := range b {
		if _, ok := a[name]; !ok {
			names = append(names, name)
		}
	}
	return names
}

// jobs are what systemd did since a time of the box: "haproxy.service reload".
func jobs(t *testing.T, box, since string) []string {
	t.Helper()
	var all []string
	for line := range strings.Lines(on(t, box, "journalctl", "-q", "-o", "json", "--since", "@"+since[:len(since)-6], "_PID=1").must(t).stdout) {
		var e struct {
			At     string `json:"__REALTIME_TIMESTAMP"`
			Unit   string `json:"UNIT"`
			Type   string `json:"JOB_TYPE"`
			Result string `json:"JOB_RESULT"`
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%s: not an entry of a journal: %s", box, line)
		}
		if e.At > since && e.Result != "" && e.Unit != "systemd-tmpfiles-clean.service" { // a timer of the machine's own
			all = append(all, e.Unit+" "+e.Type)
		}
	}
	return all
}

var apiObject = regexp.MustCompile(`^(?:/api/v1|/apis/[a-z0-9.]+/v1)(?:/namespaces/([^/]+))?/([a-z]+)(?:/([^/]+))?$`)

// short is a write as ftplab lists it, without what is the same in all of them.
func short(w string) string {
	words := strings.Fields(w)
	if words[0] != "kubernetes:" || len(words) != 4 || !strings.HasPrefix(words[3], "20") {
		return w
	}
	uri, _, _ := strings.Cut(words[2], "?")
	if name, ok := strings.CutPrefix(uri, "/api/v1/namespaces/"); ok && !strings.Contains(name, "/") {
		return "kubernetes: " + words[1] + " namespaces " + strings.TrimSuffix(name, ":")
	}
	m := apiObject.FindStringSubmatch(strings.TrimSuffix(uri, ":"))
	if m == nil {
		return w
	}
	return strings.TrimSpace("kubernetes: " + words[1] + " " + m[2] + " " + path.Join(m[1], m[3]))
}

// count turns a list into how often each is in it.
func count(all []string) map[string]int {
	m := map[string]int{}
	for _, s := range all {
		m[s]++
	}
	return m
}
