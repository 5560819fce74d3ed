package lab

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"time"
)

// The control socket speaks JSON, one value a line: the client sends a request,
// the lab answers with any number of replies that have Say and then one that
// has Done.

func socketPath(dir string) string { return filepath.Join(dir, "control.sock") }

type request struct {
	Command string // follow, status, environment, find, fault, writes
	Args    []string
}

type reply struct {
	Say    string          `json:",omitempty"`
	Done   bool            `json:",omitempty"`
	Error  string          `json:",omitempty"`
	Result json.RawMessage `json:",omitempty"`
}

// found is how a process outside enters a host.
type found struct {
	PID         int // of the host's PID 1, in the sandbox
	Environment []string
	Home        string
}

// serve answers the clients of the control socket until ctx ends, and returns
// when each has its answer.
func (l *Lab) serve(ctx context.Context, listener net.Listener) {
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	var clients sync.WaitGroup
	defer clients.Wait()
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		clients.Go(func() {
			defer conn.Close()
			var r request
			if err := cmp.Or(conn.SetReadDeadline(time.Now().Add(5*time.Second)), json.NewDecoder(conn).Decode(&r)); err != nil {
				return // a client that went away
			}
			send := func(r reply) error {
				return cmp.Or(conn.SetWriteDeadline(time.Now().Add(5*time.Second)), json.NewEncoder(conn).Encode(r))
			}
			result, err := l.answer(ctx, r, func(line string) error { return send(reply{Say: line}) })
			last := reply{Done: true}
			if err == nil {
				last.Result, err = json.Marshal(result)
			}
			if err != nil {
				last.Error = err.Error()
			}
			_ = send(last) // a client that went away
		})
	}
}

// answer waits for the lab to be up, and then does what is asked for.
func (l *Lab) answer(ctx context.Context, r request, say func(string) error) (any, error) {
	if err := l.progress.follow(say); err != nil {
		return nil, err
	}
	switch r.Command {
	case "follow":
		return nil, nil
	case "status":
		return l.status(ctx)
	case "environment":
		return l.environment(), nil
	case "writes":
		return l.writes()
	case "find":
		return l.find(r.Args[0])
	case "fault":
		l.faults.Lock()
		defer l.faults.Unlock()
		return nil, l.fault(ctx, r.Args)
	}
	return nil, fmt.Errorf("no command %q", r.Command)
}

// find returns how to enter a host or a VM that is on.
func (l *Lab) find(name string) (found, error) {
	if h := l.host(name); h != nil {
		pid, _ := h.pid()
		if pid == 0 {
			return found{}, fmt.Errorf("%s is off", name)
		}
		f := found{PID: pid, Home: h.Home(), Environment: l.environment()}
		if name == "client" { // it knows an FTP account and nothing else
			f.Environment = []string{"FTPDEPLOY_VAR_ftp_password=" + ftpPassword}
		}
		return f, nil
	}
	if m, on := l.vcenter.Machine(name); on && m.Init != 0 {
		return found{PID: m.Init, Home: "/root"}, nil
	}
	return found{}, fmt.Errorf("no host %q is on (ftplab status lists them)", name)
}

// progress is what the lab says while it starts, and how that ended.
type progress struct {
	log func(string)

	mu    sync.Mutex
	more  sync.Cond // at each change
	lines []string
	ended bool
	err   error
}

func newProgress(log func(string)) *progress {
	p := &progress{log: log}
	p.more.L = &p.mu
	return p
}

// say tells a line to the log and to the followers.
func (p *progress) say(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log(line)
	if !p.ended {
		p.lines = append(p.lines, line)
		p.more.Broadcast()
	}
}

// end says how the start ended.
func (p *progress) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended, p.err = true, err
	p.more.Broadcast()
}

// follow tells what is said while the lab starts, and returns how that ended.
func (p *progress) follow(tell func(string) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return p.err
	}
	for told := 0; ; {
		lines, ended := p.lines[told:], p.ended
		told += len(lines)
		p.mu.Unlock()
		var err error
		for _, line := range lines {
			err = errors.Join(err, tell(line))
		}
		p.mu.Lock()
		switch {
		case err != nil:
			return err
		case ended && told == len(p.lines):
			return p.err
		case told == len(p.lines) && !p.ended:
			p.more.Wait()
		}
	}
}
