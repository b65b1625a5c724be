package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// mode is what a link does with what passes.
type mode int

const (
	// open passes everything on.
	open mode = iota
	// cut resets every connection and refuses new ones.
	cut
	// slow holds every piece back for the link's delay.
	slow
	// silent passes nothing on and closes nothing: both ends believe that the other one
	// is there. Once it is open again what was held back arrives, late.
	silent
	// halfOpen is silent, but its connections do not survive it.
	halfOpen
)

// link is a TCP proxy of the suite's own between two parts of the platform, so that
// what connects them can break in all ways while both live.
type link struct {
	name     string
	listener net.Listener
	// dial reaches the far end.
	dial func() (net.Conn, error)
	// owners are the processes that may connect, for SetOnly; nil where it is not used.
	owners func() []int

	mu    sync.Mutex // guards what follows
	mode  mode
	delay time.Duration
	// only restricts the mode to connections of these processes; nil = all.
	only map[int]bool
	// changed is closed when the mode changes.
	changed chan struct{}
	pipes   map[*pipe]struct{}
}

// pipe is one connection over a link.
type pipe struct {
	near, far net.Conn
	// pid of the near end's process; 0 = unknown.
	pid int
}

// newLink listens on a free port.
func newLink(name string, dial func() (net.Conn, error), owners func() []int) (*link, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the link %s: %w", name, err)
	}
	k := &link{name: name, listener: l, dial: dial, owners: owners, changed: make(chan struct{}), pipes: map[*pipe]struct{}{}}
	go k.accept()
	return k, nil
}

// dialer reaches an address: a path is a unix socket.
func dialer(address string) func() (net.Conn, error) {
	network := "tcp"
	if address[0] == '/' {
		network = "unix"
	}
	return func() (net.Conn, error) { return net.DialTimeout(network, address, 5*time.Second) }
}

// Addr is where the near end connects.
func (k *link) Addr() string { return k.listener.Addr().String() }

// Set changes what happens to all connections, present and new.
func (k *link) Set(m mode, delay time.Duration) { k.set(m, delay, nil) }

// SetOnly changes what happens to the connections of some processes.
func (k *link) SetOnly(m mode, delay time.Duration, pids ...int) {
	only := map[int]bool{}
	for _, pid := range pids {
		only[pid] = true
	}
	k.set(m, delay, only)
}

func (k *link) set(m mode, delay time.Duration, only map[int]bool) {
	k.mu.Lock()
	was, whose := k.mode, k.only
	k.mode, k.delay, k.only = m, delay, only
	close(k.changed)
	k.changed = make(chan struct{})
	var ends []*pipe
	for p := range k.pipes {
		// What was half open ends when it is over; what is cut ends at once.
		if was == halfOpen && m != halfOpen && affects(whose, p) || m == cut && affects(only, p) {
			ends = append(ends, p)
		}
	}
	k.mu.Unlock()
	for _, p := range ends {
		p.reset()
	}
}

func affects(only map[int]bool, p *pipe) bool { return only == nil || only[p.pid] }

// Close ends the link and all its connections.
func (k *link) Close() {
	_ = k.listener.Close() // nothing is left to do where it fails
	k.Set(cut, 0)
}

func (k *link) accept() {
	for {
		near, err := k.listener.Accept()
		if err != nil {
			return // closed
		}
		go k.serve(near)
	}
}

func (k *link) serve(near net.Conn) {
	p := &pipe{near: near}
	if k.owners != nil {
		p.pid = ownerOf(near, k.owners())
	}
	if m, _, _ := k.now(p); m == cut {
		p.reset()
		return
	}
	far, err := k.dial()
	if err != nil {
		p.reset()
		return
	}
	p.far = far
	k.mu.Lock()
	k.pipes[p] = struct{}{}
	k.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { k.copy(p, far, near) })
	both.Go(func() { k.copy(p, near, far) })
	both.Wait()
	k.mu.Lock()
	delete(k.pipes, p)
	k.mu.Unlock()
	p.reset()
}

// now is what happens to a pipe's bytes, and the signal that this has changed.
func (k *link) now(p *pipe) (mode, time.Duration, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !affects(k.only, p) {
		return open, 0, k.changed
	}
	return k.mode, k.delay, k.changed
}

// copy passes bytes on in one direction; its end is the pipe's end.
func (k *link) copy(p *pipe, to, from net.Conn) {
	defer func() {
		_ = to.Close()
		_ = from.Close()
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if !k.pass(p) {
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			// The end of a stream does not cross a link that passes nothing on.
			if errors.Is(err, io.EOF) {
				k.pass(p)
			}
			return
		}
	}
}

// pass waits until bytes may go on; false where the connection ends instead.
func (k *link) pass(p *pipe) bool {
	delayed := false
	for {
		m, delay, changed := k.now(p)
		switch {
		case m == cut:
			return false
		case m == open, m == slow && delayed:
			return true
		case m == slow:
			delayed = true
			select {
			case <-time.After(delay):
			case <-changed:
			}
		default:
			<-changed
			if m == halfOpen {
				return false
			}
		}
	}
}

// reset ends both connections at once, without the courtesies.
func (p *pipe) reset() {
	for _, c := range []net.Conn{p.near, p.far} {
		if c == nil {
			continue
		}
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // a reset instead of a goodbye
		}
		_ = c.Close() // it may be closed already
	}
}
