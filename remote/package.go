package remote

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Package is a package to install.
type Package struct {
	Name    string
	Version string // "" = the repository's candidate
}

// packageWait bounds how long the package manager's lock is waited for, and how
// long one of its runs may take.
const packageWait = 5 * time.Minute

// packageScript runs the package manager, as root and without asking anything.
// What it says is collected, so that a connection that breaks does not break it off.
const packageScript = `apt() {
	n=0
	until o=$(DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Options::=--force-confold "$@" 2>&1 </dev/null); do
		case $o in
		*'ould not get lock'* | *'nable to lock'* | *'nable to acquire'*) sleep 2 ;;
		*'dpkg --configure -a'*) dpkg --configure -a --force-confold >/dev/null 2>&1 </dev/null ;;
		*) echo "apt-get $*: $o" >&2; exit 1 ;;
		esac
		n=$((n + 1))
		[ $n -lt $wait ] || { echo "apt-get $*: another package manager held the lock all the while: $o" >&2; exit 1; }
	done
}
rpms() { o=$(timeout $((2 * wait)) "$@" 2>&1 </dev/null) || { echo "$*: $o" >&2; exit 1; }; }
`

// Install installs packages on a machine of the family (OS.Family). It waits
// for another run of the package manager to end, for at most 5 minutes.
// Configuration files that are there are kept as they are.
func (h *Host) Install(ctx context.Context, family string, packages ...Package) error {
	words := make([]string, len(packages))
	for i, p := range packages {
		words[i] = p.Name
		if p.Version != "" && family == "debian" {
			words[i] += "=" + p.Version
		} else if p.Version != "" {
			words[i] += "-" + p.Version
		}
		words[i] = quote(words[i])
	}
	list := strings.Join(words, " ")
	var act string
	switch family {
	case "debian":
		act = "apt update\napt install --no-install-recommends --allow-downgrades " + list
	case "rhel":
		act = "rpms dnf -q -y install " + list
	case "photon":
		act = "rpms tdnf -q -y install " + list
	default:
		return fmt.Errorf("install %s on %s: no package manager is known for family %q", list, h.name, family)
	}
	if err := h.packages(ctx, act); err != nil {
		return fmt.Errorf("install %s: %w", list, err)
	}
	return nil
}

// Uninstall removes packages with their configuration, and not what they depended on.
func (h *Host) Uninstall(ctx context.Context, family string, names ...string) error {
	words := make([]string, len(names))
	for i, n := range names {
		words[i] = quote(n)
	}
	list := strings.Join(words, " ")
	var act string
	switch family {
	case "debian":
		act = "apt purge " + list
	case "rhel":
		act = "rpms dnf -q -y --noautoremove remove " + list
	case "photon":
		act = "rpms tdnf -q -y remove " + list
	default:
		return fmt.Errorf("remove %s from %s: no package manager is known for family %q", list, h.name, family)
	}
	if err := h.packages(ctx, act); err != nil {
		return fmt.Errorf("remove %s: %w", list, err)
	}
	return nil
}

func (h *Host) packages(ctx context.Context, act string) error {
	// The lock is tried every two seconds.
	_, err := h.change(ctx, fmt.Sprintf("wait=%d\n%s%s\n", int(packageWait.Seconds()/2), packageScript, act), nil)
	return err
}
