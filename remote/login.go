package remote

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// login is what the server is offered once it is trusted.
type login struct {
	methods []ssh.AuthMethod
	agent   net.Conn // nil = none
}

func newLogin(ctx context.Context, c Config) (*login, error) {
	l := &login{}
	var signers []ssh.Signer
	if c.AgentSocket != "" {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.AgentSocket)
		if err != nil {
			return nil, fmt.Errorf("ask the SSH agent: %w", err)
		}
		l.agent = conn
	}
	if c.IdentityFile != "" {
		signer, err := readIdentity(c.IdentityFile)
		var locked *ssh.PassphraseMissingError
		switch {
		case err == nil:
			signers = append(signers, signer)
		case errors.As(err, &locked) && l.agent != nil:
			// The agent may hold the key behind the passphrase.
		case errors.As(err, &locked):
			return nil, fmt.Errorf("%w: %s is protected by a passphrase: load it into an SSH agent (ssh-add)", ErrAuth, c.IdentityFile)
		default:
			l.close()
			return nil, fmt.Errorf("%w: read the identity file: %w", ErrAuth, err)
		}
	}
	if len(signers) > 0 || l.agent != nil {
		// One method for all keys: the client library tries each method once only.
		l.methods = append(l.methods, ssh.PublicKeysCallback(func() ([]ssh.Signer, error) {
			if l.agent == nil {
				return signers, nil
			}
			held, err := agent.NewClient(l.agent).Signers()
			if err != nil {
				return nil, fmt.Errorf("list the keys of the SSH agent: %w", err)
			}
			return append(signers, held...), nil
		}))
	}
	if c.Password != "" {
		l.methods = append(l.methods, ssh.Password(c.Password), ssh.KeyboardInteractive(
			func(_, _ string, questions []string, echo []bool) ([]string, error) {
				answers := make([]string, len(questions))
				for i := range questions {
					if echo[i] {
						return nil, fmt.Errorf("the server asks %q, which is no password", questions[i])
					}
					answers[i] = c.Password
				}
				return answers, nil
			}))
	}
	if len(l.methods) == 0 {
		return nil, fmt.Errorf("%w: neither an identity file, nor an agent, nor a password is given", ErrAuth)
	}
	return l, nil
}

func (l *login) close() {
	if l.agent != nil {
		l.agent.Close()
	}
}

func readIdentity(file string) (ssh.Signer, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey(pem)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return signer, nil
}

// offered names the kinds of login that c has.
func offered(c Config) string {
	var s []string
	if c.IdentityFile != "" {
		s = append(s, "identity file "+c.IdentityFile)
	}
	if c.AgentSocket != "" {
		s = append(s, "the agent's keys")
	}
	if c.Password != "" {
		s = append(s, "password")
	}
	return "offered: " + strings.Join(s, ", ")
}
