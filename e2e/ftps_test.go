package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	pki "github.com/ftpdeploy/ftpdeploy/e2e/lab" // lab is a function here
	"github.com/ftpdeploy/ftpdeploy/steps/ftp"
)

// ftps gives the service a certificate of the lab's CA: lftp and curl put, list and
// get; who does not resume, or does not ask for TLS, is refused and told why; the
// certificate is renewed under looping transfers; no private key is anywhere.
func ftps(t *testing.T) {
	ca, err := pki.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	caFile := filepath.Join(dir, "ca.crt")
	write := func(name string, text []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("ca.crt", ca.PEM)
	address := []netip.Addr{netip.MustParseAddr(vip)}
	var canaries []string
	issue := func(s pki.Subject) {
		t.Helper()
		certificate, key, err := ca.Issue(s)
		if err != nil {
			t.Fatal(err)
		}
		write("ftp.crt", certificate)
		write("ftp.key", key)
		canaries = append(canaries, strings.Split(string(key), "\n")[1])
	}
	block := func(extra string, texts ...string) string {
		return variant(t, append(texts, `  namespace = "ftp"`, "  namespace = \"ftp\"\n  live_settings = true\n  tls {\n    certificate = file(\""+dir+"/ftp.crt\")\n"+
			"    private_key = file(\""+dir+"/ftp.key\")\n    ca_certificate = file(\""+caFile+"\")\n"+extra+"  }")...)
	}
	file := block("")
	with := func(file string, args ...string) result {
		t.Helper()
		return on(t, "jump", append([]string{ftpdeploy, "-f", file}, args...)...)
	}

	issue(pki.Subject{CommonName: "expired", Addresses: address, Life: -time.Hour})
	with(file, "validate").exits(t, 3).says(t, "Certificate has expired [FTP605]", "ftp.crt\")")
	issue(pki.Subject{CommonName: "elsewhere", Names: []string{"elsewhere.example"}})
	with(file, "validate").exits(t, 3).says(t, "Certificate is for another name [FTP605]", "elsewhere.example")

	issue(pki.Subject{CommonName: "first", Addresses: address})
	said := with(file, "plan", "-vv", "--json").must(t).stdout
	r := with(file, "apply", "--yes", "-vv").must(t)
	said += r.stdout + r.stderr
	t.Logf("TLS on: %.1f s: %s", r.took.Seconds(), done(r.stdout))
	report := filepath.Join(dir, "ftp.prom")
	within(t, 30*time.Second, "every worker leads to the new pod", func() bool {
		r = with(file, "verify", "--matrix", "--report", "prometheus="+report)
		return r.code == 0
	})
	r.says(t, "TLS 1.2, certificate until ", "reuse demanded", "clear text refused", "66 of 66 paths")
	if text, err := os.ReadFile(report); err != nil || !strings.Contains(string(text), `ftpdeploy_certificate_expiry_timestamp_seconds{smoke="end-to-end",address="203.0.113.15:21"} `) {
		t.Errorf("the report does not say when the certificate ends: %v\n%s", err, text)
	}
	with(file, "status", "--timeout", "30s").must(t).says(t, "certificate  CN=first, 29 days left")
	first := served(t, caFile, "")

	start := time.Now()
	if got := onEnv(t, "client", []string{"VIP=" + vip, "CA=" + caFile, "N=" + strconv.Itoa(times(5, 25))}, "bash", "-uc", ftpsClients).must(t).stdout; strings.TrimSpace(got) != strconv.Itoa(times(10, 50)) {
		t.Errorf("%s of %d files were put, listed and got\n%s", strings.TrimSpace(got), times(10, 50), tail(shell(t, "client", `tail -n 60 ~/ftps.log`)))
	}
	t.Logf("%d of %[1]d files put, listed, got and compared in %.1f s by lftp and curl over TLS", times(10, 50), time.Since(start).Seconds())
	stranger := byHandOn(t, "client", "stranger", caFile)
	t.Logf("a client that does not resume: %s", stranger)
	for _, text := range []string{"522 SSL connection failed: session reuse required", "did not resume the TLS session of the control connection", "FTP614"} {
		if !strings.Contains(stranger, text) {
			t.Errorf("a client that does not resume is not told %q", text)
		}
	}
	if r := on(t, "client", "sh", "-c", `curl -sS -v --netrc --max-time 20 "ftp://$1/" 2>&1`, "sh", vip); r.code == 0 || !strings.Contains(r.stdout, "530 Non-anonymous sessions must use encryption.") {
		t.Errorf("a client in clear text is let in, or not told why not: %d\n%s", r.code, r.stdout)
	}

	// A server whose TLS 1.2 has no session tickets: what resumes by them alone is refused.
	const limits = "/etc/vsftpd/openssl.cnf"
	onVsftpd(t, "busybox cp "+limits+" "+limits+".kept; echo 'Options = -SessionTicket' >>"+limits)
	verdicts, r := diagnosed(t, nil, "-f", file)
	if len(verdicts) == 0 || verdicts[0].ID != "tls" || !strings.Contains(verdicts[0].Cause, "FTP614") || !strings.Contains(verdicts[0].Cause, "session reuse required") {
		t.Errorf("doctor says of a server that refuses to resume a session: %+v", verdicts)
	} else {
		t.Logf("session reuse refused: %.1f s: %s", r.took.Seconds(), verdicts[0].Cause)
	}
	onVsftpd(t, "busybox mv "+limits+".kept "+limits)
	with(file, "verify").must(t)

	// Somebody puts a certificate that has run out into the Secret, and a pod starts with it.
	certificate, key, err := ca.Issue(pki.Subject{CommonName: "expired", Addresses: address, Life: -time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	byHand(t, "secret", "tls.crt", string(certificate))
	byHand(t, "secret", "tls.key", string(key))
	restarted := func(what string, ok func(serial string) bool) {
		t.Helper()
		byHand(t, "api", "DELETE", "/api/v1/namespaces/ftp/pods")
		rolledOut(t, "vsftpd") // the one before may show the new certificate for a moment, too
		within(t, time.Minute, what, func() bool { return ok(shown(t)) })
	}
	restarted("the server shows another certificate", func(serial string) bool { return serial != "" && serial != first })
	verdicts, r = diagnosed(t, nil, "-f", file)
	if len(verdicts) == 0 || verdicts[0].ID != "tls" || !strings.Contains(verdicts[0].Cause, "expired") {
		t.Errorf("doctor says of a certificate that has run out: %+v", verdicts)
	} else {
		t.Logf("a certificate that has run out: %.1f s: %s", r.took.Seconds(), verdicts[0].Cause)
	}
	with(file, "apply", "--yes", "--no-verify").must(t).says(t, "Secret ftp/vsftpd-tls")
	restarted("the server shows the certificate of before", func(serial string) bool { return serial == first })
	within(t, time.Minute, "every node leads to that server, and the boxes know", func() bool {
		return with(file, "verify", "--matrix").code == 0 && nodesUp(t, file)
	})

	// One edit, the file of the certificate, and one apply. The clients hold ports, for
	// which the smoke tests would wait.
	busy := block("", `  modes  = ["pasv", "epsv"]`, "  every_port = false", `  modes  = ["epsv"]`, "  every_port = false\n  modes = [\"epsv\"]")
	c := startClients(t, times(3, 12), int64(times(8, 32))<<20, caFile)
	issue(pki.Subject{CommonName: "second", Addresses: address, Life: 25 * 24 * time.Hour})
	r = with(busy, "plan", "-vv").must(t).says(t, "Secret ftp/vsftpd-tls", "certificate.subject", "CN=first", "CN=second", "certificate.expires")
	said += r.stdout + r.stderr
	began := time.Now()
	r = with(busy, "apply", "--yes", "-vv", "--json").must(t)
	said += r.stdout + r.stderr
	t.Logf("certificate renewed: %.1f s", r.took.Seconds())
	second := served(t, caFile, "")
	if first == second {
		t.Errorf("after the renewal the server shows the former certificate, %s", first)
	}
	transfers, failed := c.stop()
	if failed > 0 || c.openAt(began) == 0 {
		t.Errorf("%d of %d transfers failed over the renewal; %d were open when it began", failed, transfers, c.openAt(began))
	}

	strict := block("    min_version = \"1.3\"\n")
	with(strict, "apply", "--yes").must(t)
	if old, now := served(t, caFile, "-tls1_2"), served(t, caFile, "-tls1_3"); old != "" || now != second {
		t.Errorf("with min_version = 1.3 the server shows %q by TLS 1.2 and %q by TLS 1.3, want nothing and %q", old, now, second)
	}
	with(strict, "plan", "--detailed-exitcode").exits(t, 0)

	found := map[string]string{
		"what was said":          said,
		"files of the jump host": shell(t, "jump", `find "$HOME" -type f -exec cat {} + | tr -d "\\0"`),
		"the cluster":            byHand(t, "cluster-dump", "ftp/vsftpd-account", "ftp/vsftpd-tls"),
	}
	for _, box := range []string{boxA, boxB} {
		found["files of "+box] = shell(t, box, `cat $(find /var/lib/ftpdeploy /etc/haproxy /etc/keepalived -type f) | tr -d "\\0"; journalctl --no-pager`)
	}
	for where, text := range found {
		if text == "" {
			t.Errorf("%s: nothing was looked at", where)
		}
		for _, canary := range canaries {
			if strings.Contains(text, canary) || strings.Contains(text, encoded(canary)[4:48]) {
				t.Errorf("a private key is in %s", where)
			}
		}
	}

	r = deploy(t, "apply", "--yes").must(t)
	t.Logf("TLS off: %.1f s: %s", r.took.Seconds(), done(r.stdout))
	planIsEmpty(t)
	if left := byHand(t, "objects"); strings.Contains(left, "vsftpd-tls") {
		t.Errorf("left in the cluster: %s", left)
	}
}

// ftpsClients puts, lists and gets N files with lftp and N with curl, and prints how many came
// back the same.
const ftpsClients = `
cd "$HOME"; umask 077
printf 'machine %s login partner password %s\n' "$VIP" "$FTPDEPLOY_VAR_ftp_password" > .netrc
head -c 300000 /dev/urandom > data
export LFTP_PASSWORD=$FTPDEPLOY_VAR_ftp_password
ok=0; : > ftps.log
for i in $(seq $N); do
  rm -f back
  if lftp --env-password -u partner "ftp://$VIP" -e "debug -o $HOME/lftps.log 9; set ssl:ca-file $CA; set ftp:ssl-force true; set ftp:ssl-protect-data true
      set ftp:ssl-protect-list true; set net:timeout 10; set net:max-retries 1; set cmd:fail-exit true; put data -o l$i; cls l$i; get l$i -o back; rm l$i; bye" > lftp.out 2>> ftps.log &&
     grep -q "l$i" lftp.out && cmp -s data back; then ok=$((ok+1)); else tail -n 20 lftps.log >> ftps.log; fi
  rm -f back
  if curl -sS -v --ssl-reqd --cacert "$CA" --netrc --max-time 20 -T data "ftp://$VIP/c$i" 2>> ftps.log &&
     curl -sS -v --ssl-reqd --cacert "$CA" --netrc --max-time 20 -l "ftp://$VIP/" 2>> ftps.log | grep -q "^c$i" &&
     curl -sS -v --ssl-reqd --cacert "$CA" --netrc --max-time 20 "ftp://$VIP/c$i" -Q "-DELE c$i" -o back 2>> ftps.log && cmp -s data back; then ok=$((ok+1)); fi
done
echo "$ok"`

// served is the serial number of the certificate that OpenSSL's client sees through
// the VIP, with an option of it; "" where there is no session.
func served(t *testing.T, ca, option string) string {
	t.Helper()
	return shell(t, "client", `openssl s_client -connect `+vip+`:21 -starttls ftp -CAfile `+ca+` -verify_return_error -verify_ip `+vip+` `+option+
		` </dev/null 2>/dev/null | openssl x509 -noout -serial 2>/dev/null || :`)
}

// shown is the serial number of the certificate that the VIP shows, good or not.
func shown(t *testing.T) string {
	t.Helper()
	return shell(t, "client", `openssl s_client -connect `+vip+`:21 -starttls ftp </dev/null 2>/dev/null | openssl x509 -noout -serial 2>/dev/null || :`)
}

// stranger is an act on the client: it lists by TLS over a data connection that does
// not resume the session of its control connection, and prints what it is told.
func stranger(ctx context.Context, args []string) error {
	config, err := trusting(args[0])
	if err != nil {
		return err
	}
	config.Fresh = true
	err = listingBy(ctx, net.JoinHostPort(vip, "21"), config)
	if refused := (*ftp.TLSError)(nil); !errors.As(err, &refused) {
		return fmt.Errorf("it was not refused for its TLS: %w", err)
	}
	return json.NewEncoder(os.Stdout).Encode(err.Error())
}

// trusting is TLS to the VIP by a CA in a file.
func trusting(file string) (*ftp.TLS, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	config := &ftp.TLS{Name: vip, Roots: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	if !config.Roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s holds no certificate", file)
	}
	return config, nil
}
