package remote

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

// What Debian 12's HAProxy 2.6, keepalived 2.2 and coreutils say.
const conditionSaid = `@now 1700000000
@statistics
# pxname,svname,qcur,status,check_status,last_chk,
vsftpd_control,FRONTEND,,OPEN,,,
vsftpd_control,198.51.100.21,0,UP,L7OK,Layer7 check passed,
vsftpd_control,198.51.100.22,0,DOWN,L4CON,"Connection refused, at step 1",
vsftpd_control,BACKEND,0,UP,,,

@cut
1700000000.1 haproxy-a haproxy[9]: 203.0.113.10:40000 [14/Nov/2023:22:13:20.000] vsftpd_control vsftpd_control/198.51.100.22 1/0/1000 95 cD 1/1/0/0/0 0/0
@complaints

@keepalived
1699999990.0 haproxy-a Keepalived_vrrp[7]: (ftp) Entering BACKUP STATE
1699999999.0 haproxy-a Keepalived_vrrp[7]: (other) Entering FAULT STATE
1700000000.0 haproxy-a Keepalived_vrrp[7]: (ftp) Entering MASTER STATE
1700000000.5 haproxy-a Keepalived_vrrp[7]: (third) Entering MASTER STATE
1700000000.6 haproxy-a Keepalived_vrrp[7]: (third) Entering BACKUP STATE (init)
@check ftp 0
@check other 1
@disk /var/log
tmpfs                64    64         0     100% /var/log
tmpfs            1528018     2 1528016       1% /var/log
@disk /
/dev/vda         8000000 50000   7950000       1% /
-                      0     0         0       - /
@filters
-A INPUT -p tcp -m tcp --dport 21102:21110 -j DROP
@end
`

func TestParseCondition(t *testing.T) {
	c, err := parseCondition([]byte(conditionSaid))
	if err != nil {
		t.Fatal(err)
	}
	if !c.Now.Equal(time.Unix(1700000000, 0)) {
		t.Errorf("now is %s", c.Now)
	}
	if len(c.Servers) != 4 || c.Servers[2].Server != "198.51.100.22" || c.Servers[2].Up() || c.Servers[2].Answer != "Connection refused, at step 1" {
		t.Errorf("servers are %+v", c.Servers)
	}
	if want := map[string]string{"ftp": "MASTER", "other": "FAULT", "third": "BACKUP"}; !reflect.DeepEqual(c.States, want) {
		t.Errorf("states are %v, want %v", c.States, want)
	}
	if want := []string{"other"}; !reflect.DeepEqual(c.Unfit, want) {
		t.Errorf("unfit for %v, want %v", c.Unfit, want)
	}
	if want := map[string]Disk{"/var/log": {true, "tmpfs"}, "/": {false, "/dev/vda"}}; !reflect.DeepEqual(c.Disks, want) {
		t.Errorf("disks are %v, want %v", c.Disks, want)
	}
	if len(c.Cut) != 1 || len(c.Said) != 0 || len(c.Filters) != 1 {
		t.Errorf("cut %q, said %q, filters %q", c.Cut, c.Said, c.Filters)
	}
	if _, err := parseCondition([]byte(strings.TrimSuffix(conditionSaid, "@end\n"))); err == nil {
		t.Error("an answer that was cut off is taken")
	}
}

// TestCondition runs the script in a real shell: what is not there is left out, and
// a server that cannot be asked is none that is well.
func TestCondition(t *testing.T) {
	b, h, _ := startBox(t)
	c, err := h.Condition(t.Context(), Ask{Host: "127.0.0.1", Port: 1, Path: "/none", Check: b.Root + "/none", VIPs: []string{"it's"}, Since: time.Hour, Disks: []string{"/", b.Root + "/none"}})
	if err != nil {
		t.Fatal(err)
	}
	if c.Servers != nil {
		t.Errorf("servers %v of an HAProxy that is not there", c.Servers)
	}
	if want := []string{"it's"}; !reflect.DeepEqual(c.Unfit, want) {
		t.Errorf("unfit for %v, want %v", c.Unfit, want)
	}
	if len(c.Disks) != 1 || time.Since(c.Now).Abs() > time.Minute {
		t.Errorf("disks %v, clock %s", c.Disks, c.Now)
	}
}
