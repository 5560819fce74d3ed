package remote

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// trust decides whether a host key is that of the machine that is meant.
type trust struct {
	algorithms []string // what the server is asked for: only the types of the known keys; nil = all
	checked    bool     // the server has shown a key
	err        error    // what was wrong with it
	verify     func(key ssh.PublicKey) error
}

func newTrust(c Config) (*trust, error) {
	switch {
	case len(c.HostKeys) > 0:
		return pinned(c.HostKeys)
	case c.KnownHosts != "":
		return knownHosts(c.KnownHosts, c.Address)
	}
	return nil, fmt.Errorf("%w: no host key is pinned and no known_hosts file is given", ErrHostKey)
}

func (t *trust) check(_ string, _ net.Addr, key ssh.PublicKey) error {
	t.checked = true
	t.err = t.verify(key)
	return t.err
}

// pinned trusts the given keys only.
func pinned(lines []string) (*trust, error) {
	t := &trust{}
	var keys []ssh.PublicKey
	for _, line := range lines {
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil {
			return nil, fmt.Errorf("%w: parse the pinned key %q: %w", ErrHostKey, line, err)
		}
		keys = append(keys, key)
		t.ask(key.Type())
	}
	t.verify = func(key ssh.PublicKey) error {
		for _, k := range keys {
			if bytes.Equal(k.Marshal(), key.Marshal()) {
				return nil
			}
		}
		return fmt.Errorf("%w: it showed %s, pinned is %s: this is another machine, or its keys were made anew",
			ErrHostKey, fingerprint(key), fingerprint(keys...))
	}
	return t, nil
}

// knownHosts trusts what an OpenSSH known_hosts file holds for the address.
func knownHosts(file, address string) (*trust, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrHostKey, err)
	}
	check, err := knownhosts.New(file)
	if err != nil {
		return nil, fmt.Errorf("%w: parse known_hosts: %w", ErrHostKey, err)
	}
	t := &trust{}
	t.verify = func(key ssh.PublicKey) error {
		err := check(address, textAddr(address), key)
		var unknown *knownhosts.KeyError
		var revoked *knownhosts.RevokedError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &revoked):
			return fmt.Errorf("%w: %s is revoked in %s line %d", ErrHostKey, fingerprint(key), file, revoked.Revoked.Line)
		case errors.As(err, &unknown) && len(unknown.Want) == 0:
			return fmt.Errorf("%w: %s is not in %s; it showed %s: compare it on the machine's console "+
				"(ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub) and add it", ErrHostKey, knownhosts.Normalize(address), file, fingerprint(key))
		case errors.As(err, &unknown):
			return fmt.Errorf("%w: it showed %s, %s line %d has another: this is another machine, or its keys were made anew",
				ErrHostKey, fingerprint(key), file, unknown.Want[0].Line)
		}
		return fmt.Errorf("%w: %w", ErrHostKey, err)
	}

	// The file is asked with a key that it cannot hold, so that it tells which it has.
	// A certificate authority's key says nothing about the type of the host's: ask for all.
	var held *knownhosts.KeyError
	if errors.As(check(address, textAddr(address), noKey{}), &held) && !bytes.Contains(text, []byte("@cert-authority")) {
		for _, k := range held.Want {
			t.ask(k.Key.Type())
		}
	}
	return t, nil
}

// ask adds the signature algorithms of a key type to those that the server is asked for.
func (t *trust) ask(keyType string) {
	algorithms := []string{keyType}
	if keyType == ssh.KeyAlgoRSA {
		algorithms = []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	}
	for _, a := range algorithms {
		if !slices.Contains(t.algorithms, a) {
			t.algorithms = append(t.algorithms, a)
		}
	}
}

// fingerprint shows keys as ssh-keygen -l does.
func fingerprint(keys ...ssh.PublicKey) string {
	var s []string
	for _, k := range keys {
		s = append(s, k.Type()+" "+ssh.FingerprintSHA256(k))
	}
	return strings.Join(s, ", ")
}

func algorithmList(a []string) string { return strings.Join(a, ", ") }

// textAddr is an address of which only the text counts.
type textAddr string

func (textAddr) Network() string  { return "tcp" }
func (a textAddr) String() string { return string(a) }

// noKey is a public key that nobody has.
type noKey struct{}

func (noKey) Type() string                        { return "none" }
func (noKey) Marshal() []byte                     { return nil }
func (noKey) Verify([]byte, *ssh.Signature) error { return errors.New("no key") }
