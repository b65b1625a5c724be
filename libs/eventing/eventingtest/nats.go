package eventingtest

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"hodei.dev/libs/eventing/bus"
)

// startTimeout bounds how long a server may take to serve.
const startTimeout = 30 * time.Second

// Server is an embedded nats-server with JetStream on a store of its own in
// t.TempDir(). It can be stopped and started again on the same store and port.
// Its methods end the test on failure; they may be called from the test's goroutine only,
// InProcessConn from any.
type Server struct {
	tb   testing.TB
	opts *server.Options

	mu  sync.Mutex // guards srv
	srv *server.Server
}

// NATS starts one server on a free TCP port of the loopback address. It is shut
// down at the end of the test.
func NATS(tb testing.TB) *Server {
	tb.Helper()
	s := newServer(tb, "solo")
	s.Start()
	return s
}

func newServer(tb testing.TB, name string) *Server {
	tb.Helper()
	s := &Server{tb: tb, opts: &server.Options{
		ServerName: name, Host: "127.0.0.1", Port: freePort(tb), JetStream: true, StoreDir: tb.TempDir(),
		NoLog: true, NoSigs: true, JetStreamMaxMemory: 256 << 20, JetStreamMaxStore: 4 << 30,
	}}
	tb.Cleanup(s.Stop)
	return s
}

// Start starts the server on its store and waits until it takes connections.
func (s *Server) Start() {
	s.tb.Helper()
	s.begin()
	if !s.Server().ReadyForConnections(startTimeout) {
		s.tb.Fatalf("NATS server %s did not start", s.opts.ServerName)
	}
}

func (s *Server) begin() {
	s.tb.Helper()
	srv, err := server.NewServer(s.opts.Clone())
	if err != nil {
		s.tb.Fatalf("make a NATS server: %v", err)
	}
	s.mu.Lock()
	s.srv = srv
	s.mu.Unlock()
	srv.Start()
}

// Stop shuts the server down, keeping its store. Stopping twice is harmless.
func (s *Server) Stop() {
	s.mu.Lock()
	srv := s.srv
	s.srv = nil
	s.mu.Unlock()
	if srv != nil {
		srv.Shutdown()
		srv.WaitForShutdown()
	}
}

// Restart stops the server and starts it again on the same store and port.
func (s *Server) Restart() {
	s.tb.Helper()
	s.Stop()
	s.Start()
}

// Wipe stops the server and starts it again on an empty store: everything that
// JetStream knew is gone.
func (s *Server) Wipe() {
	s.tb.Helper()
	s.Stop()
	if err := os.RemoveAll(s.opts.StoreDir); err != nil {
		s.tb.Fatal(err)
	}
	s.Start()
}

// StoreDir is where the server keeps what it stores; touch it only while it is stopped.
func (s *Server) StoreDir() string { return s.opts.StoreDir }

// Server is the running server; nil while it is stopped.
func (s *Server) Server() *server.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.srv
}

// URL is the server's address; it stays the same over restarts.
func (s *Server) URL() string { return fmt.Sprintf("nats://127.0.0.1:%d", s.opts.Port) }

// InProcessConn makes s a [nats.InProcessConnProvider] that outlives restarts.
func (s *Server) InProcessConn() (net.Conn, error) {
	srv := s.Server()
	if srv == nil {
		return nil, nats.ErrNoServers
	}
	return srv.InProcessConn()
}

// Conn connects over TCP the way the product does; closed at the end of the test.
func (s *Server) Conn() *nats.Conn { s.tb.Helper(); return dial(s.tb, s.URL(), nil) }

// LocalConn connects in process; closed at the end of the test.
func (s *Server) LocalConn() *nats.Conn { s.tb.Helper(); return dial(s.tb, "", s) }

// Servers is a cluster of embedded servers.
type Servers []*Server

// Cluster starts n servers that form one JetStream cluster and waits until it
// has a leader.
func Cluster(tb testing.TB, n int) Servers {
	tb.Helper()
	c := make(Servers, n)
	routes := make([]*url.URL, n)
	for i := range c {
		c[i] = newServer(tb, fmt.Sprintf("n%d", i+1))
		port := freePort(tb)
		c[i].opts.Cluster = server.ClusterOpts{Name: "hodei", Host: "127.0.0.1", Port: port}
		routes[i] = &url.URL{Scheme: "nats", Host: fmt.Sprintf("127.0.0.1:%d", port)}
	}
	for _, s := range c {
		s.opts.Routes = routes
		s.begin()
	}
	for _, s := range c {
		if !s.Server().ReadyForConnections(startTimeout) {
			tb.Fatalf("NATS server %s did not start", s.opts.ServerName)
		}
	}
	c.WaitLeader()
	return c
}

// WaitLeader waits until the cluster has a meta leader.
func (c Servers) WaitLeader() {
	c[0].tb.Helper()
	Eventually(c[0].tb, "a meta leader", func() bool {
		for _, s := range c {
			if srv := s.Server(); srv != nil && srv.JetStreamIsLeader() {
				return true
			}
		}
		return false
	})
}

// StreamLeader is the running server that leads a stream; it waits until there is one.
func (c Servers) StreamLeader(stream string) *Server {
	c[0].tb.Helper()
	var leader *Server
	Eventually(c[0].tb, "a leader of "+stream, func() bool {
		for _, s := range c {
			if srv := s.Server(); srv != nil && srv.JetStreamIsStreamLeader(server.DEFAULT_GLOBAL_ACCOUNT, stream) {
				leader = s
				return true
			}
		}
		return false
	})
	return leader
}

// WaitCurrent waits until every running server holds all of a stream. To stop a
// server before is to stop two: the ones that are behind cannot go on alone.
func (c Servers) WaitCurrent(stream string) {
	c[0].tb.Helper()
	Eventually(c[0].tb, "all replicas of "+stream+" to be current", func() bool {
		last := map[uint64]bool{}
		for _, s := range c {
			srv := s.Server()
			if srv == nil {
				continue
			}
			if !srv.JetStreamIsStreamCurrent(server.DEFAULT_GLOBAL_ACCOUNT, stream) {
				return false
			}
			info, err := srv.Jsz(&server.JSzOptions{Account: server.DEFAULT_GLOBAL_ACCOUNT, Streams: true})
			if err != nil {
				return false
			}
			found := false
			for _, a := range info.AccountDetails {
				for _, d := range a.Streams {
					if d.Name == stream {
						last[d.State.LastSeq], found = true, true
					}
				}
			}
			if !found {
				return false
			}
		}
		return len(last) == 1
	})
}

// Conn connects to all servers of the cluster; closed at the end of the test.
func (c Servers) Conn() *nats.Conn {
	c[0].tb.Helper()
	var urls strings.Builder
	urls.WriteString(c[0].URL())
	for _, s := range c[1:] {
		urls.WriteString("," + s.URL())
	}
	return dial(c[0].tb, urls.String(), nil)
}

func dial(tb testing.TB, urls string, local nats.InProcessConnProvider) *nats.Conn {
	tb.Helper()
	nc, err := bus.Connect(bus.Config{URL: urls, InProcess: local, Name: tb.Name(), Log: discard})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(nc.Close)
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := bus.WaitConnected(ctx, nc); err != nil {
		tb.Fatal(err)
	}
	return nc
}

// JetStream is the JetStream context of a connection.
func JetStream(tb testing.TB, nc *nats.Conn) jetstream.JetStream {
	tb.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		tb.Fatal(err)
	}
	return js
}

// Eventually asks cond every few milliseconds until it is true, and ends the
// test when it is not within a minute. It is for conditions of other processes
// and servers, which have no signal to wait for.
func Eventually(tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			tb.Fatalf("waited a minute for %s", what)
		}
	}
}

func freePort(tb testing.TB) int {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

var discard = slog.New(slog.DiscardHandler)

// ServersGoroutines are what an embedded NATS server leaves for a while after it
// has shut down: no leak of ours.
func ServersGoroutines() []goleak.Option {
	return []goleak.Option{
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server/ats.Register.func1"),
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.(*fileStore).flushStreamStateLoop"),
	}
}
