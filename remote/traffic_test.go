package remote

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
)

func TestTraffic(t *testing.T) {
	_, h, _ := startBox(t)
	l, err := net.Listen("tcp", "127.0.9.3:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(l.Addr().String())
	ports := []Ports{{int(at.Port()), int(at.Port())}}
	want := Connection{at, netip.MustParseAddrPort(client.LocalAddr().String())}
	before, err := h.Traffic(t.Context(), ports, 0)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(before.Open, []Connection{want}) || before.Closing != nil || before.At == 0 || len(before.Links) == 0 {
		t.Errorf("open: %+v, want %v", before, want)
	}
	server.Close()
	after, err := h.Traffic(t.Context(), ports, 0)
	if err != nil {
		t.Fatal(err)
	}
	if after.Open != nil || !slices.Equal(after.Closing, []Connection{want}) {
		t.Errorf("after the server's end: %+v, want %v closing", after, want)
	}
}

func TestParseTraffic(t *testing.T) {
	got, err := parseTraffic([]byte(`@now 1700000000
@sockets
LISTEN    0 4096 203.0.113.15:21    0.0.0.0:*
ESTAB     0 0    203.0.113.15:21    203.0.113.50:40384
TIME-WAIT 0 0    203.0.113.15:21    203.0.113.50:40386
@sockets
CLOSE-WAIT 0 0   [2001:db8::15]:21100 [2001:db8::50]:5000
@addresses
frontend UP 203.0.113.15/24
@ended
203.0.113.50:40380 --
203.0.113.50:40382 SD
@masters
1700000001.5 (ftp)
@end
`))
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("%d %v %v %v %v %v", got.At, got.Open, got.Closing, got.Links, got.Ended, got.Masters)
	if want := "1700000000 [{203.0.113.15:21 203.0.113.50:40384}] [{[2001:db8::15]:21100 [2001:db8::50]:5000}] [{frontend [203.0.113.15/24]}] " +
		"[{203.0.113.50:40380 --} {203.0.113.50:40382 SD}] [{1.7000000015e+09 ftp}]"; text != want {
		t.Errorf("got  %s\nwant %s", text, want)
	}
	for _, broken := range []string{"@now 1\n@sockets\n", "@now x\n@end\n", "@sockets\nESTAB 0 0 here there\n@end\n", "@ended\nnobody --\n@end\n", "@masters\nsoon (ftp)\n@end\n"} {
		if got, err := parseTraffic([]byte(broken)); err == nil {
			t.Errorf("%q is taken for %+v", broken, got)
		}
	}
}
