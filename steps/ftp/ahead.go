package ftp

import (
	"context"
	"net"
	"time"
)

// goneGrace is how long the server's word on a transfer is waited for when its data
// connection is closed already: one that was closed after the transfer follows at
// once, and where a proxy found nobody behind, none does.
const goneGrace = 2 * time.Second

// ahead is a data connection of which the first byte is read as soon as it comes,
// so that its end is noticed while the server is silent.
type ahead struct {
	net.Conn
	came  chan struct{} // closed when the first read has ended
	first []byte        // what it read and nobody has taken yet
	err   error
	lost  bool // it read nothing
}

func readAhead(conn net.Conn) *ahead {
	a := &ahead{Conn: conn, came: make(chan struct{})}
	go func() {
		defer close(a.came)
		b := make([]byte, 1)
		n, err := conn.Read(b)
		a.first, a.err, a.lost = b[:n], err, n == 0
	}()
	return a
}

// Read implements net.Conn.
func (a *ahead) Read(p []byte) (int, error) {
	<-a.came
	if n := copy(p, a.first); n > 0 {
		a.first = a.first[n:]
		return n, nil
	}
	if a.err != nil {
		return 0, a.err
	}
	return a.Conn.Read(p)
}

// gone tells whether the connection ended before anything came over it.
func (a *ahead) gone() bool {
	select {
	case <-a.came:
		return a.lost
	default:
		return false
	}
}

// whenGone calls f when the connection has been gone for goneGrace and ctx is not done.
func (a *ahead) whenGone(ctx context.Context, f func()) {
	select {
	case <-ctx.Done():
		return
	case <-a.came:
	}
	if !a.gone() {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(goneGrace):
		f()
	}
}
