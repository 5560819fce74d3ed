package steps

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/steps/ftp"
	"github.com/ftpdeploy/ftpdeploy/steps/ftp/ftptest"
)

// smokeTopology is a pair whose VIP and own addresses all lead to one vsftpd, which
// announces the VIP.
func smokeTopology(t *testing.T, settings ...string) (*blueprints.Topology, ftptest.Server) {
	t.Helper()
	server := ftptest.Start(t, 3, append([]string{"pasv_address=127.0.7.15"}, settings...)...)
	return smokeAt(server.Port, server.PassivePort), server
}

func smokeAt(port, passive int) *blueprints.Topology {
	network := &blueprints.Network{Name: "frontend", CIDR: netip.MustParsePrefix("127.0.7.0/24")}
	box := func(name, address string) *blueprints.Box {
		return &blueprints.Box{Name: name, NICs: []blueprints.NIC{{Network: network, Address: netip.MustParseAddr(address)}}}
	}
	group := &blueprints.Group{Name: "ftp", Boxes: []*blueprints.Box{box("haproxy-a", "127.0.7.11"), box("haproxy-b", "127.0.7.12")}}
	vip := &blueprints.VIP{Name: "ftp", Group: group, Address: netip.MustParseAddr("127.0.7.15"), Network: network}
	user := &blueprints.User{Name: ftptest.User, Password: blueprints.NewSecret(ftptest.Password), Writable: true}
	service := &blueprints.Service{
		Name: "vsftpd", VIP: vip, ControlPort: port, PassiveFirst: passive, PassiveLast: passive + 2,
		Users: []*blueprints.User{user},
	}
	return &blueprints.Topology{
		Boxes: group.Boxes, Groups: []*blueprints.Group{group}, VIPs: []*blueprints.VIP{vip}, Services: []*blueprints.Service{service},
		Smokes: []*blueprints.Smoke{
			{
				Name: "end-to-end", VIP: vip, Service: service, User: user, Modes: []string{ftp.PASV, ftp.EPSV},
				Upload: 1 << 16, EveryPort: true, Timeout: 20 * time.Second,
			},
			{
				Name: "standby", Standby: group, Service: service, User: user, Modes: []string{ftp.PASV, ftp.EPSV},
				Upload: 1 << 10, Timeout: 20 * time.Second,
			},
		},
	}
}

// held says that a box holds every VIP; nil = nobody does.
func held(box *blueprints.Box) func(context.Context, *blueprints.VIP) (*blueprints.Box, error) {
	return func(context.Context, *blueprints.VIP) (*blueprints.Box, error) { return box, nil }
}

// TestSmokeHeldPort has a session break off when its data connection is waited for:
// its port is away for vsftpd's accept_timeout, and comes back.
func TestSmokeHeldPort(t *testing.T) {
	top, server := smokeTopology(t, "accept_timeout=4")
	conn, err := textproto.Dial("tcp", fmt.Sprintf("127.0.7.15:%d", server.Port))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"USER " + ftptest.User, "PASS " + ftptest.Password, "EPSV"} {
		if err := conn.PrintfLine("%s", line); err != nil {
			t.Fatal(err)
		}
	}
	for _, code := range []int{220, 331, 230, 229} {
		if _, _, err := conn.ReadResponse(code); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(conn.PrintfLine("LIST"), conn.Close()); err != nil {
		t.Fatal(err)
	}
	var reports []string
	top.Smokes = top.Smokes[:1]
	_, err = Smoke(t.Context(), top, SmokeOptions{Holder: held(top.Boxes[0]), Report: func(text string) { reports = append(reports, text) }})
	if err != nil {
		t.Error(err)
	}
	if len(reports) == 0 || !strings.Contains(reports[0], ftp.ErrNotDrawn.Error()) {
		t.Errorf("told of %q", reports)
	}
}

func TestSmoke(t *testing.T) {
	top, server := smokeTopology(t)
	results, err := Smoke(t.Context(), top, SmokeOptions{Holder: held(top.Boxes[0])})
	if err != nil {
		t.Fatal(err)
	}
	if len(results) != 2 {
		t.Fatalf("%d results, want 2", len(results))
	}
	vip, standby := results[0], results[1]
	if want := fmt.Sprintf("127.0.7.15:%d", server.Port); vip.Smoke != top.Smokes[0] || vip.Box != nil || vip.Address != want {
		t.Errorf("result %+v, want address %s", vip, want)
	}
	if len(vip.Report.Ports) != 3 || vip.Took == 0 {
		t.Errorf("ports %v, took %v", vip.Report.Ports, vip.Took)
	}
	if want := fmt.Sprintf("127.0.7.12:%d", server.Port); standby.Smoke != top.Smokes[1] || standby.Box != top.Boxes[1] || standby.Address != want {
		t.Errorf("result %+v, want address %s", standby, want)
	}
	for _, line := range standby.Report.Transcript {
		if line == "> PASV" || strings.HasPrefix(line, "* ") && !strings.HasPrefix(line, "* connected to 127.0.7.12:") {
			t.Errorf("the standby's transcript has %q", line)
		}
	}
	if left := server.Left(t); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

func TestSmokeRunsWhatIsNamed(t *testing.T) {
	top, _ := smokeTopology(t)
	results, err := Smoke(t.Context(), top, SmokeOptions{Names: []string{"standby"}, Holder: held(nil)})
	if err != nil {
		t.Fatal(err)
	}
	if len(results) != 2 || results[0].Box != top.Boxes[0] || results[1].Box != top.Boxes[1] {
		t.Errorf("results %+v, want both boxes, as nobody holds the VIP", results)
	}
}

// TestSmokeFormer proves a service by what is deployed where the blueprint has it otherwise.
func TestSmokeFormer(t *testing.T) {
	top, _ := smokeTopology(t)
	deployed := *top.Smokes[0]
	changed := *deployed.Service
	changed.PassiveFirst, changed.PassiveLast = changed.PassiveFirst+100, changed.PassiveLast+100
	top.Smokes[0].Service = &changed
	o := SmokeOptions{Names: []string{"end-to-end"}, Holder: held(nil), Settle: time.Minute}
	start := time.Now()
	if _, err := Smoke(t.Context(), top, o); err == nil || !ftp.Final(err) || time.Since(start) > 20*time.Second {
		t.Errorf("got %v after %s, want that the server refuses for good", err, time.Since(start))
	}
	o.Former = func(context.Context, *blueprints.Smoke) (*blueprints.Smoke, error) { return &deployed, nil }
	results, err := Smoke(t.Context(), top, o)
	if err != nil || results[0].Smoke != &deployed {
		t.Errorf("got %v, %+v; want the one that is deployed", err, results)
	}
	o.Former, o.As = nil, map[string]*blueprints.Smoke{"end-to-end": &deployed}
	if _, err := Smoke(t.Context(), top, o); err != nil {
		t.Error(err)
	}
}

func TestSmokeReadOnlyUser(t *testing.T) {
	top, _ := smokeTopology(t, "write_enable=NO")
	top.Services[0].Users[0].Writable = false
	if _, err := Smoke(t.Context(), top, SmokeOptions{Holder: held(top.Boxes[0])}); err != nil {
		t.Error(err)
	}
}

func TestSmokeFrom(t *testing.T) {
	top, _ := smokeTopology(t)
	jump := &blueprints.SSH{Name: "jump"}
	top.Smokes[0].From = jump
	var dialled []string
	o := SmokeOptions{Names: []string{"end-to-end"}, Holder: held(nil)}
	o.DialFrom = func(_ context.Context, s *blueprints.SSH) (ftp.DialFunc, error) {
		return func(ctx context.Context, network, address string) (net.Conn, error) {
			dialled = append(dialled, s.Name+" "+address)
			return new(net.Dialer).DialContext(ctx, network, address)
		}, nil
	}
	results, err := Smoke(t.Context(), top, o)
	if err != nil {
		t.Fatal(err)
	}
	if len(dialled) < 6 || dialled[0] != "jump "+results[0].Address {
		t.Errorf("dialled %v", dialled)
	}

	o.DialFrom = func(context.Context, *blueprints.SSH) (ftp.DialFunc, error) {
		return nil, errors.New("host key differs")
	}
	_, err = Smoke(t.Context(), top, o)
	if want := `smoke "end-to-end": reach ssh "jump", from where it is run: host key differs`; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestSmokeNamesTheBrokenHop(t *testing.T) {
	nobody := ftptest.FreePorts(t, 4)
	for _, c := range []struct {
		name  string
		setup func(*testing.T, *SmokeOptions) *blueprints.Topology
		want  []string
	}{
		{"nobody holds the VIP", func(_ *testing.T, o *SmokeOptions) *blueprints.Topology {
			o.Names, o.Holder = []string{"end-to-end"}, held(nil)
			return smokeAt(nobody, nobody+1)
		}, []string{`smoke "end-to-end" at 127.0.7.15:PORT: pasv connect: `, `connection refused (no box holds vip "ftp")`}},
		{"the holder does not answer", func(_ *testing.T, o *SmokeOptions) *blueprints.Topology {
			top := smokeAt(nobody, nobody+1)
			o.Names, o.Holder = []string{"end-to-end"}, held(top.Boxes[1])
			return top
		}, []string{`connection refused (lb "haproxy-b" holds vip "ftp")`}},
		{"the standby does not answer", func(_ *testing.T, o *SmokeOptions) *blueprints.Topology {
			top := smokeAt(nobody, nobody+1)
			o.Names, o.Holder = []string{"standby"}, held(top.Boxes[0])
			return top
		}, []string{`smoke "standby" at 127.0.7.12:PORT (lb "haproxy-b"): epsv connect: `, `connection refused`}},
		{"the holder is not known", func(_ *testing.T, o *SmokeOptions) *blueprints.Topology {
			o.Names = []string{"standby"}
			o.Holder = func(context.Context, *blueprints.VIP) (*blueprints.Box, error) { return nil, errors.New("no facts") }
			return smokeAt(nobody, nobody+1)
		}, []string{`smoke "standby": find the box that holds vip "ftp": no facts`}},
		{"the standby has no address of its own for it", func(_ *testing.T, o *SmokeOptions) *blueprints.Topology {
			top := smokeAt(nobody, nobody+1)
			earlier := *top.Services[0]
			earlier.Name = "earlier"
			top.Services = []*blueprints.Service{&earlier, top.Services[0]}
			o.Names, o.Holder = []string{"standby"}, held(top.Boxes[0])
			return top
		}, []string{`smoke "standby" on lb "haproxy-b": ftp_service "vsftpd" cannot be reached at the box's own address`}},
		{"the server announces another address", func(t *testing.T, o *SmokeOptions) *blueprints.Topology {
			top, _ := smokeTopology(t, "pasv_address=10.42.0.9")
			o.Names, o.Holder = []string{"end-to-end"}, held(top.Boxes[0])
			return top
		}, []string{`pasv list: the server announces 10.42.0.9, clients need 127.0.7.15`}},
		{"it takes too long", func(t *testing.T, o *SmokeOptions) *blueprints.Topology {
			top, _ := smokeTopology(t, "anon_max_rate=1000")
			top.Smokes[0].Upload, top.Smokes[0].Timeout = 10_000, 300*time.Millisecond
			o.Names, o.Holder = []string{"end-to-end"}, held(top.Boxes[0])
			return top
		}, []string{`not done within its timeout of 300ms`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var o SmokeOptions
			top := c.setup(t, &o)
			results, err := Smoke(t.Context(), top, o)
			if err == nil || len(results) != 1 || results[0].Err == nil {
				t.Fatalf("error %v, results %+v", err, results)
			}
			for _, want := range c.want {
				if want = strings.ReplaceAll(want, "PORT", fmt.Sprint(nobody)); !strings.Contains(err.Error(), want) {
					t.Errorf("error\n%s, want\n%s", err, want)
				}
			}
			if strings.Contains(err.Error(), ftptest.Password) {
				t.Error("the password is shown")
			}
		})
	}
}

// TestSmokeSettles starts the server after the first try has failed.
func TestSmokeSettles(t *testing.T) {
	top := smokeAt(0, 0)
	reports := 0
	o := SmokeOptions{Names: []string{"end-to-end"}, Holder: held(nil), Settle: 20 * time.Second}
	o.Report = func(text string) {
		if reports++; reports > 1 {
			return
		}
		if !strings.HasPrefix(text, `smoke "end-to-end" at 127.0.7.15:0: pasv connect: `) {
			t.Errorf("report %q", text)
		}
		later, _ := smokeTopology(t)
		*top.Services[0] = *later.Services[0]
		top.Services[0].VIP = top.VIPs[0]
	}
	results, err := Smoke(t.Context(), top, o)
	if err != nil || len(results) != 1 || reports != 1 {
		t.Errorf("error %v, results %+v after %d reports", err, results, reports)
	}
}

func TestSmokeEndsWithItsContext(t *testing.T) {
	top := smokeAt(0, 0)
	ctx, cancel := context.WithCancel(t.Context())
	o := SmokeOptions{Holder: held(nil), Settle: time.Hour, Report: func(string) { cancel() }}
	results, err := Smoke(ctx, top, o)
	if err == nil || len(results) != 1 {
		t.Errorf("error %v, results %+v", err, results)
	}
}
