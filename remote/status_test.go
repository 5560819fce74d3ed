package remote

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

const counters = `# pxname,svname,qcur,qmax,scur,smax,slim,stot,bin,bout,dreq,dresp,ereq,econ,eresp,wretr,wredis,status,weight,act,bck,chkfail,chkdown,lastchg,check_status,last_chk,
ftp_control_fe,FRONTEND,,,2,3,4096,17,0,0,0,0,0,,,,,OPEN,,,,,,,,,
ftp_control,10.20.0.21,0,0,2,3,,17,0,0,,0,,4,0,0,0,UP,1,1,0,0,0,95,L7OK,"220 (vsFTPd 3.0.3), ready",
ftp_control,10.20.0.22,0,0,0,0,,0,0,0,,0,,0,0,0,0,DOWN,1,1,0,2,1,7,L4CON,Connection refused,
`

func TestStatus(t *testing.T) {
	b, h, _ := startBox(t)
	for _, name := range []string{"haproxy", "keepalived"} {
		if err := h.Install(t.Context(), "debian", Package{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	page := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/-/stats;csv" {
			fmt.Fprint(w, counters)
		}
	})}
	go page.Serve(l)
	defer page.Close()
	b.Set("journal/keepalived", "1700000005.25 haproxy-a Keepalived_vrrp[812]: (ftp) Entering MASTER STATE\n"+
		"1700000003.50 haproxy-a Keepalived_vrrp[812]: (ftp) Entering BACKUP STATE (init)\n")
	d := Doing{
		Query: Query{Packages: []string{"haproxy"}, Files: []FileQuery{{Path: b.Root + "/var/lib/ftpdeploy/drained"}}},
		Proxy: Daemon{Unit: "haproxy.service", Worker: "haproxy"}, Keepalived: "keepalived.service",
		Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port, Path: "/-/stats;csv",
	}
	before := b.Snapshot()
	s, err := h.Status(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	if b.Snapshot() != before {
		t.Error("the look changed the box")
	}
	if want := []Mastery{{1700000005.25, "ftp"}}; !slices.Equal(s.Masters, want) {
		t.Errorf("masters %v, want %v", s.Masters, want)
	}
	if len(s.Workers) != 1 || s.Workers[0] < 0 || s.Workers[0] > time.Minute {
		t.Errorf("workers of the ages %v", s.Workers)
	}
	want := Proxy{Name: "ftp_control", Server: "10.20.0.21", Status: "UP", Since: 95 * time.Second, Check: "L7OK", Answer: "220 (vsFTPd 3.0.3), ready", Sessions: 2, Total: 17, Errors: 4}
	if len(s.Proxies) != 3 || s.Proxies[1] != want || !s.Proxies[1].Up() || s.Proxies[2].Up() {
		t.Errorf("counters %+v, want %+v", s.Proxies, want)
	}
	if s.Packages["haproxy"].Version == "" || s.OS.Family != "debian" || len(s.Links) == 0 {
		t.Errorf("facts: %+v", s.Facts)
	}

	b.Kill("haproxy")
	page.Close()
	s, err = h.Status(t.Context(), d)
	if err != nil || s.Proxies != nil || len(s.Workers) != 0 {
		t.Errorf("without HAProxy: %+v, %v", s, err)
	}
}

func TestParseStatus(t *testing.T) {
	for _, broken := range []string{"", "@workers\nup\n@end\n", "@masters\nsoon (ftp)\n@end\n", "@statistics\n# pxname,svname\n\"\n@end\n", "@clock then\n@end\n"} {
		if got, err := parseStatus([]byte(broken)); err == nil {
			t.Errorf("%q is taken for %+v", broken, got)
		}
	}
	got, err := parseStatus([]byte("@statistics\nHTTP/1.1 503 Service Unavailable\r\n\r\n@workers\n100.5 1\n812 9900\n900 9950\n@end\n"))
	if err != nil || got.Proxies != nil || strings.Join(strings.Fields(fmt.Sprint(got.Workers)), " ") != "[1s 1.5s]" {
		t.Errorf("got %+v, %v", got, err)
	}
}
