package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

const vsftpdImage = "docker.io/ftpdeploy/vsftpd:lab"

// container runs a shell script on worker-1 in which $run starts a container of
// the image with one environment setting, in the network of the node.
func container(t *testing.T, name, setting, script string) result {
	t.Helper()
	return on(t, "worker-1", "sh", "-uc", fmt.Sprintf(`name=$1 setting=$2
run="ctr -n k8s.io run --net-host --env FTP_USER=partner --env FTP_PASS=secret --env PASV_ADDRESS=127.0.0.1 --env LISTEN_PORT=2121"
%s`, script), "sh", name, setting)
}

// TestImageRefuses holds that settings which would smuggle in others, or cannot
// be, end the container with what is wrong.
func TestImageRefuses(t *testing.T) {
	for setting, want := range map[string]string{
		"FTP_USER=../escape":              "run-vsftpd: FTP_USER: must be letters",
		"FTP_USER=a/b":                    "run-vsftpd: FTP_USER: must be letters",
		"FTP_USER=.":                      "run-vsftpd: FTP_USER: must be letters",
		"FTP_PASS=one\nadmin\ntwo":        "run-vsftpd: FTP_PASS: must be one line",
		"PASV_MIN_PORT=x":                 "run-vsftpd: PASV_MIN_PORT: must be a number",
		"PASV_MAX_PORT=1\nwrite_enable=":  "run-vsftpd: PASV_MAX_PORT: must be a number",
		"PASV_PROMISCUOUS=MAYBE":          "run-vsftpd: PASV_PROMISCUOUS: must be YES or NO",
		"PASV_ADDRESS=a\nlisten=NO":       "run-vsftpd: PASV_ADDRESS: must be an address or a name",
		"BANNER=hi\nanonymous_enable=YES": "run-vsftpd: BANNER: must be one line",
	} {
		r := container(t, "refuses", setting, `timeout 10 $run --rm --env "$setting" `+vsftpdImage+` "$name"`)
		for try := 0; try < 3 && r.stdout+r.stderr == ""; try++ { // ctr may lose the last words of a container that ends at once
			r = container(t, "refuses", setting, `timeout 10 $run --rm --env "$setting" `+vsftpdImage+` "$name"`)
		}
		if r.code == 0 || !strings.Contains(r.stderr+r.stdout, want) {
			t.Errorf("%q: exit code %d, want %q in: %s%s", setting, r.code, want, r.stdout, r.stderr)
		}
	}
}

// TestImageServes logs in to a container with a password full of signs that
// shells and database loaders read otherwise, and stops it.
func TestImageServes(t *testing.T) {
	const password = `a\b\\c d$x'"é%&;|#~`
	r := container(t, "serves", "FTP_PASS="+password, `
$run -d --env "$setting" --env BANNER='the lab greets' `+vsftpdImage+` "$name" || exit
trap 'ctr -n k8s.io task kill -s KILL "$name"; ctr -n k8s.io container rm "$name"' EXIT
curl -sSv --retry 20 --retry-delay 1 --retry-connrefused --max-time 20 -I --user "partner:${setting#*=}" ftp://127.0.0.1:2121/ 2>&1
curl -sS --max-time 20 -I --user "partner:wrong" ftp://127.0.0.1:2121/ && echo 'a wrong password was taken'
start=$(date +%s%N)
ctr -n k8s.io task kill -s TERM "$name"
until [ "$(ctr -n k8s.io task ls | awk -v n="$name" '$1 == n {print $3}')" = STOPPED ]; do sleep 0.05; done
echo "stopped in $(( ($(date +%s%N) - start) / 1000000 )) ms"`)
	for _, want := range []string{"220 the lab greets", "230 Login successful", "stopped in "} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("no %q in:\n%s%s", want, r.stdout, r.stderr)
		}
	}
	if strings.Contains(r.stdout, "a wrong password was taken") {
		t.Error("a wrong password was taken")
	}
	var ms int
	if _, after, ok := strings.Cut(r.stdout, "stopped in "); ok {
		if _, err := fmt.Sscanf(after, "%d ms", &ms); err != nil || ms > int((3*time.Second).Milliseconds()) {
			t.Errorf("SIGTERM took %d ms to end the container, want at most 3 s (%v)", ms, err)
		}
	}
}
