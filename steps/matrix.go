package steps

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/ftpdeploy/ftpdeploy/blueprints"
	"github.com/ftpdeploy/ftpdeploy/remote"
	"github.com/ftpdeploy/ftpdeploy/steps/ftp"
	"github.com/ftpdeploy/ftpdeploy/steps/proxy"
)

// Cell is what the paths from one box to one worker are like: the control NodePort
// and those of the passive ports.
type Cell struct {
	Service *blueprints.Service
	Box     *blueprints.Box
	Worker  netip.Addr // the zero value: the box forwards no connections, and its HAProxy chose the worker
	Took    time.Duration
	Ports   ftp.PortsReport
	Err     error // of the control connection; nil = every port that was drawn is in Ports
}

// Paths is the number of paths of a cell, and how many of them are proven: one
// for each passive port, and no more, since a port is proven through the control
// connection.
func (c *Cell) Paths() (ok, all int) { return len(c.Ports.OK), c.Service.PassivePorts() }

// pathTimeout bounds each step of a session of the matrix: between a box and a
// worker beside it two seconds are an outage.
const pathTimeout = 2 * time.Second

// pathSessions is how many sessions of the matrix a service has at the same time.
const pathSessions = 8

// Matrix proves the paths of every passive port from every box to every worker, by
// listings over connections that the boxes open themselves (SSH direct-tcpip); it
// changes nothing. The order is that of the blueprint. Its error joins why boxes
// and workers could not be looked at; what a cell lacks is in the cell.
func (l *Live) Matrix(ctx context.Context) ([]*Cell, error) {
	cells, err := l.matrix(ctx, l.workers, l.down, heldBound)
	return l.direct(ctx, cells), err
}

// matrix is Matrix with the workers of a cluster, without the boxes that skip tells of, and
// with how long a port is waited for that another session may hold (0 = three timeouts).
func (l *Live) matrix(ctx context.Context, workers func(context.Context, *blueprints.Cluster) ([]netip.Addr, error), skip func(*blueprints.Box) bool, patience time.Duration) ([]*Cell, error) {
	var cells []*Cell
	var errs []error
	var all sync.WaitGroup
	for _, s := range l.topology.Services {
		list, err := workers(ctx, s.Cluster)
		if err != nil {
			errs = append(errs, fmt.Errorf("find the workers of ftp_service %q: %w", s.Name, err))
			continue
		}
		// Each session takes a passive port while it listens, and clients want some too.
		// vsftpd ends a session for which it has drawn nothing but taken ports nine times.
		slots := make(chan struct{}, min(pathSessions, max(1, s.PassivePorts()/3)))
		for _, b := range s.VIP.Group.Boxes {
			if skip(b) {
				continue
			}
			h, err := l.host(ctx, b)
			if err != nil {
				errs = append(errs, fmt.Errorf("enter lb %q: %w", b.Name, err))
				continue
			}
			for _, w := range list {
				c := &Cell{Service: s, Box: b, Worker: w}
				cells = append(cells, c)
				all.Go(func() {
					slots <- struct{}{}
					defer func() { <-slots }()
					c.prove(ctx, h, patience, func(ctx context.Context) ([]int, error) { return l.inUse(ctx, s) })
				})
			}
		}
	}
	all.Wait()
	return cells, errors.Join(errs...)
}

// prove fills the cell.
func (c *Cell) prove(ctx context.Context, h *remote.Host, patience time.Duration, inUse ftp.InUse) {
	worker := func(port int) string { return net.JoinHostPort(c.Worker.String(), strconv.Itoa(port)) }
	p := c.ports()
	p.Address, p.Dial, p.Patience = worker(c.Service.ControlNodePort), h.DialContext, patience
	p.InUse = inUse
	p.Data = func(port int) string { return worker(c.Service.NodePort(port)) }
	c.run(ctx, p)
}

func (c *Cell) ports() ftp.Ports {
	s := c.Service
	return ftp.Ports{
		User: s.Users[0].Name, Password: s.Users[0].Password.Reveal(),
		First: s.PassiveFirst, Last: s.PassiveLast, Timeout: pathTimeout, TLS: clientTLS(s.TLS),
	}
}

func (c *Cell) run(ctx context.Context, p ftp.Ports) {
	start := time.Now()
	c.Ports, c.Err = p.Run(ctx)
	c.Took = time.Since(start)
}

// direct replaces the cells of a box that forwards no connections by one: the paths
// to its own address and through its HAProxy, opened from here.
func (l *Live) direct(ctx context.Context, cells []*Cell) []*Cell {
	var list []*Cell
	for _, c := range cells {
		if !errors.Is(c.Err, remote.ErrForwarding) {
			list = append(list, c)
			continue
		}
		if slices.ContainsFunc(list, func(o *Cell) bool { return o.Box == c.Box && o.Service == c.Service }) {
			continue
		}
		own := &Cell{Service: c.Service, Box: c.Box}
		list = append(list, own)
		address, ok := proxy.Direct(l.topology, c.Box, c.Service)
		if !ok {
			own.Err = c.Err
			continue
		}
		p := own.ports()
		at := func(port int) string { return net.JoinHostPort(address.String(), strconv.Itoa(port)) }
		p.Address, p.Data = at(c.Service.ControlPort), at
		own.run(ctx, p)
	}
	return list
}
