package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// delayedLink is a NIC whose frames pass through the lab process, which keeps
// each for a while in both directions. (The kernel's own netem is a module that
// a machine may not have.)
type delayedLink struct {
	peer, bridge string
	cancel       context.CancelFunc
}

// tail is the lab's port of the bridge in place of peer, and inside the name of
// that port's other end.
func (d delayedLink) tail() (port, inside string) {
	return fmt.Sprintf("%.13s-d", d.peer), fmt.Sprintf("%.13s-e", d.peer)
}

// delayLink delays every frame to and from the host behind peer.
func delayLink(ctx context.Context, peer, bridge string, delay time.Duration) (delayedLink, error) {
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	d := delayedLink{peer: peer, bridge: bridge, cancel: cancel}
	port, inside := d.tail()
	err := ip(ctx, "", fmt.Sprintf("link add %s type veth peer name %s\n"+
		"link set %[2]s addrgenmode none\nlink set %[3]s addrgenmode none\n"+
		"link set %[3]s nomaster\nlink set %[1]s master %[4]s up\nlink set %[2]s up\n", port, inside, peer, bridge))
	if err != nil {
		cancel()
		return d, fmt.Errorf("delay %s: %w", peer, err)
	}
	var ends [2]*os.File
	for i, name := range []string{peer, inside} {
		if ends[i], err = openFrames(name); err != nil {
			return d, errors.Join(fmt.Errorf("delay %s: %w", peer, err), d.end(ctx))
		}
		context.AfterFunc(running, func() { ends[i].Close() })
	}
	go forward(running, ends[0], ends[1], delay)
	go forward(running, ends[1], ends[0], delay)
	return d, nil
}

// end joins the host to the bridge again, without delay.
func (d delayedLink) end(ctx context.Context) error {
	d.cancel()
	port, _ := d.tail()
	if err := ip(ctx, "", fmt.Sprintf("link del %s\nlink set %s master %s\n", port, d.peer, d.bridge)); err != nil {
		return fmt.Errorf("end the delay of %s: %w", d.peer, err)
	}
	return nil
}

// openFrames opens a packet(7) socket for the frames that arrive at an
// interface. Each comes with a header that says what the sender left to the
// hardware to do, and is sent with one, so that frames of any size pass unchanged.
func openFrames(name string) (*os.File, error) {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}),
	)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open frames of %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// forward sends what comes from one socket to the other, delay later and in the
// same order, until ctx ends or a socket is closed.
func forward(ctx context.Context, from, to *os.File, delay time.Duration) {
	type frame struct {
		due     time.Time
		content []byte
	}
	queue := make(chan frame, 4096) // what comes when it is full is lost, as on a line
	go func() {
		for {
			select {
			case f := <-queue:
				select {
				case <-time.After(time.Until(f.due)):
					_, _ = to.Write(f.content) // what a link that is down refuses is lost
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	buffer := make([]byte, 128<<10)
	for ctx.Err() == nil {
		n, err := from.Read(buffer)
		if errors.Is(err, unix.ENETDOWN) {
			continue
		}
		if err != nil {
			return
		}
		select {
		case queue <- frame{time.Now().Add(delay), append([]byte(nil), buffer[:n]...)}:
		default:
		}
	}
}
