package registry_test

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/service/servicetest"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
	"hodei.dev/services/registry"
)

// TestStopWhileAnAgentIsCutOff: a connection over which nothing comes any more, not
// even its end, holds nobody up.
func TestStopWhileAnAgentIsCutOff(t *testing.T) {
	for name, cutOff := range map[string]func(*world, *link){
		"idle": func(w *world, l *link) {
			w.ready(0)
			l.silence()
		},
		"before it has said a word": func(w *world, l *link) {
			l.silence()
			conn, err := net.Dial("tcp", l.addr())
			if err != nil {
				w.t.Fatal(err)
			}
			w.t.Cleanup(func() { _ = conn.Close() })
			l.awaitAnswer(w.t) // the registry has accepted it, and sends its settings
		},
		"with more to hear than it takes": func(w *world, l *link) {
			a := w.ready(0)
			l.silence()
			id := w.queue(func(s *job.Spec) {
				s.Stdin = bytes.Repeat([]byte("x"), 160<<10)
			})
			w.send(w.assign(id, a.workerID), a.epoch)
			l.awaitAnswer(w.t) // as much of it as is sent unasked
		},
		"in the middle of its output": func(w *world, l *link) {
			a := w.ready(0)
			id := w.queue(nil)
			a.run(id)
			logs := a.logsTo(w.replica)
			logs.write(id, 1, chunk(1, "stdout", "some"))
			l.silence()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.replica = w.start(func(c *registry.Config) { c.AgentListen = "127.0.0.1:0" })
			issued, err := w.tokens.IssueToken(t.Context(), &registryv1.IssueTokenRequest{WorkerId: w.newWorker(0)})
			if err != nil {
				t.Fatal(err)
			}
			l := newLink(t, issued.GetAgentAddress())
			w.agents = registryv1.NewWorkerAgentServiceClient(servicetest.Dial(t, l.addr()))
			cutOff(w, l)
			began := time.Now()
			w.stop()
			if took := time.Since(began); took > 10*time.Second { // the grace is twice that
				t.Errorf("it took %s", took)
			}
		})
	}
}

// link carries connections to a server until it falls silent: then it keeps them, and
// passes nothing on.
type link struct {
	listener net.Listener
	silent   chan struct{}
	// answered has a token once the server has said something into the silence.
	answered chan struct{}

	mu    sync.Mutex // guards conns
	conns []net.Conn
}

func newLink(t *testing.T, to string) *link {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &link{listener: listener, silent: make(chan struct{}), answered: make(chan struct{}, 1)}
	var carrying sync.WaitGroup
	carrying.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return // closed
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				_ = near.Close()
				continue
			}
			l.mu.Lock()
			l.conns = append(l.conns, near, far)
			l.mu.Unlock()
			carrying.Go(func() { l.carry(far, near, func() {}) })
			carrying.Go(func() { l.carry(near, far, l.heard) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		l.mu.Lock()
		for _, c := range l.conns {
			_ = c.Close()
		}
		l.mu.Unlock()
		carrying.Wait()
	})
	return l
}

func (l *link) addr() string { return l.listener.Addr().String() }

func (l *link) silence() { close(l.silent) }

func (l *link) heard() {
	select {
	case l.answered <- struct{}{}:
	default:
	}
}

func (l *link) awaitAnswer(tb testing.TB) {
	tb.Helper()
	select {
	case <-l.answered:
	case <-time.After(patience):
		tb.Fatal("the registry says nothing")
	}
}

// carry passes on what comes; once it is silent it takes one more piece and stops.
func (l *link) carry(to io.Writer, from io.Reader, swallowed func()) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		select {
		case <-l.silent:
			if n > 0 {
				swallowed()
			}
			return
		default:
		}
		if _, werr := to.Write(buf[:n]); werr != nil || err != nil {
			return
		}
	}
}
