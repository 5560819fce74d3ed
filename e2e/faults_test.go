package e2e

import (
	"os/exec"
	"strings"
	"testing"
	"time"
)

// kubelet asks the kubelet of worker-1 from the control plane, as the API server
// would, and returns "401" where it answers, or why it does not.
func kubelet(t *testing.T) string {
	t.Helper()
	r := on(t, "cp", "curl", "-sk", "--max-time", "3", "-o", "/dev/null", "-w", "%{http_code} %{errormsg}", "https://198.51.100.21:10250/healthz")
	return strings.TrimSpace(strings.TrimPrefix(r.stdout, "000"))
}

// TestFaults makes each kind of fault and mends it, and looks from a neighbour.
func TestFaults(t *testing.T) {
	if said := kubelet(t); said != "401" {
		t.Fatalf("the kubelet of worker-1 answers %q before any fault", said)
	}
	for _, f := range []struct {
		name       string
		make, mend []string
		says       string // part of why the kubelet does not answer
	}{
		{"port", []string{"drop-port", "worker-1", "10250"}, []string{"undrop-port", "worker-1", "10250"}, "timed out"},
		{"cable", []string{"link-down", "worker-1", "workload"}, []string{"link-up", "worker-1", "workload"}, ""},
		{"switch", []string{"link-cut", "worker-1", "workload"}, []string{"link-join", "worker-1", "workload"}, ""},
		{"frozen", []string{"freeze", "worker-1"}, []string{"thaw", "worker-1"}, "timed out"},
		{"service", []string{"stop", "kubelet", "worker-1"}, []string{"start", "kubelet", "worker-1"}, "Failed to connect"},
		{"power", []string{"node-kill", "worker-1"}, []string{"node-start", "worker-1"}, ""},
	} {
		t.Run(f.name, func(t *testing.T) {
			lab(t, append([]string{"fault"}, f.make...)...)
			if said := kubelet(t); said == "401" || !strings.Contains(said, f.says) {
				t.Errorf("with the fault the kubelet says %q, want %q", said, f.says)
			}
			lab(t, append([]string{"fault"}, f.mend...)...)
			within(t, 30*time.Second, "the kubelet answers after the fault", func() bool { return kubelet(t) == "401" })
		})
	}
}

// TestFaultDelay delays a link by 200 ms each way and times a TCP handshake over it.
func TestFaultDelay(t *testing.T) {
	handshake := func() time.Duration { // the fastest of three: the delay is in each
		t.Helper()
		fastest := time.Hour
		for range 3 {
			took, err := time.ParseDuration(on(t, "jump", "curl", "-sk", "-o", "/dev/null", "-w", "%{time_connect}s", "https://192.0.2.5:6443/version").must(t).stdout)
			if err != nil {
				t.Fatal(err)
			}
			fastest = min(fastest, took)
		}
		return fastest
	}
	lab(t, "fault", "link-delay", "jump", "management", "200ms")
	if took := handshake(); took < 400*time.Millisecond || took > time.Second {
		t.Errorf("a handshake takes %s over a link of 200 ms, want at least 400 ms", took)
	}
	// Large frames, and what their senders leave to the hardware, pass unchanged.
	on(t, "jump", "sh", "-euc", `curl -fsSk -o "$HOME/one" http://192.0.2.2/Packages; curl -fsSk -o "$HOME/two" http://192.0.2.2/Packages; test -s "$HOME/one"; cmp "$HOME/one" "$HOME/two"; rm "$HOME/one" "$HOME/two"`).must(t)
	lab(t, "fault", "link-delay", "jump", "management", "0s")
	if took := handshake(); took > 200*time.Millisecond {
		t.Errorf("a handshake takes %s after the delay ended", took)
	}
}

// TestFaultKilled kills the API server: it is away, and comes back by itself.
func TestFaultKilled(t *testing.T) {
	ready := func() bool {
		return on(t, "jump", "curl", "-fsk", "--max-time", "3", "-o", "/dev/null", "https://192.0.2.5:6443/version").code == 0
	}
	lab(t, "fault", "kill", "kube-apiserver", "cp")
	if ready() {
		t.Error("the API server answers right after it was killed")
	}
	within(t, 60*time.Second, "the API server is back", ready)
}

// TestFaultMistakes holds that a fault that makes no sense is refused with what would.
func TestFaultMistakes(t *testing.T) {
	for command, want := range map[string]string{
		"no-such-fault":              "link-down HOST NIC",
		"link-down jump":             "usage: ftplab fault link-down HOST NIC",
		"link-down jump workload":    "jump has no NIC in workload",
		"link-down nobody frontend":  `no host "nobody" is on`,
		"drop-port worker-1 0":       `"0" is no port`,
		"stop nothing worker-1":      "which has: containerd kubelet kube-proxy",
		"link-delay jump frontend x": `"x" is no time`,
		"node-kill jump":             `no node "jump"`,
		"vm-off nobody":              "nobody",
	} {
		out, err := exec.CommandContext(t.Context(), ftplab, append([]string{"fault"}, strings.Fields(command)...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("ftplab fault %s: %v, want %q in: %s", command, err, want, out)
		}
	}
}
