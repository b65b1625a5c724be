// Package registrytest is a registry for tests of the agent: a real gRPC server
// whose every word is the test's, so that it can lose answers, cut streams, repeat
// itself and fall silent. It checks nothing but the sequence of the output.
package registrytest

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"hodei.dev/libs/platform/rpc"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
)

// Patience is how long the test waits for anything before it fails.
const Patience = 15 * time.Second

// Secret is the session that every registration gets.
const Secret = "session-secret"

// Registry is the server. Set its fields before the agent starts.
type Registry struct {
	registryv1.UnimplementedWorkerAgentServiceServer
	// Heartbeat, Lease and Grace are the terms of the session, Go style.
	Heartbeat, Lease, Grace string
	// OnRegister may refuse or lose a registration; nil takes all.
	OnRegister func(*registryv1.RegisterRequest) error
	// OnConnect may refuse a stream; nil takes all.
	OnConnect func() error
	// OnLogs sees each message of output before it is stored, and may break the stream; nil: stores all.
	OnLogs func(*registryv1.SendLogsRequest) error
	// Ack says up to where a stored message is acknowledged; nil: all of it, negative: not at all.
	Ack func(*registryv1.SendLogsRequest) int64

	// Mute keeps heartbeats unanswered.
	Mute atomic.Bool

	addr    string
	streams chan *Stream
	epoch   atomic.Int64

	mu         sync.Mutex // guards the fields below
	output     map[string]*Output
	heartbeats []time.Time
}

// Output is what was stored of one attempt.
type Output struct {
	// Bytes by stream.
	Stdout, Stderr []byte
	// Last is the last sequence number, Dropped the sum of what chunks told.
	Last, Dropped int64
	// Repeats counts chunks that came again, as they may, and Gaps those that were
	// missing before one, as they must not.
	Repeats, Gaps int
	// EOF: the last chunk is there.
	EOF bool
}

// New starts a registry with quick terms.
func New(t *testing.T) *Registry {
	t.Helper()
	r := &Registry{Heartbeat: "100ms", Lease: "10s", Grace: "2s", streams: make(chan *Stream, 100), output: map[string]*Output{}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.addr = l.Addr().String()
	srv := grpc.NewServer()
	registryv1.RegisterWorkerAgentServiceServer(srv, r)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(l)
	}()
	t.Cleanup(func() {
		srv.Stop()
		<-served
	})
	return r
}

// Addr is where it listens.
func (r *Registry) Addr() string { return r.addr }

// Client returns a client of it.
func (r *Registry) Client(t *testing.T) registryv1.WorkerAgentServiceClient {
	t.Helper()
	conn, err := rpc.Dial(r.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return registryv1.NewWorkerAgentServiceClient(conn)
}

// Register gives every agent the same session.
func (r *Registry) Register(_ context.Context, req *registryv1.RegisterRequest) (*registryv1.RegisterResponse, error) {
	if r.OnRegister != nil {
		if err := r.OnRegister(req); err != nil {
			return nil, err
		}
	}
	return &registryv1.RegisterResponse{Session: Secret, HeartbeatInterval: r.Heartbeat, Lease: r.Lease, KillGrace: r.Grace}, nil
}

func authorized(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get("hodei-session"); len(v) != 1 || v[0] != Secret {
		return status.Error(codes.PermissionDenied, "no session")
	}
	return nil
}

// Stream is one Connect of an agent.
type Stream struct {
	server registryv1.WorkerAgentService_ConnectServer
	out    sync.Mutex // one Send at a time
	in     chan *registryv1.ConnectRequest
	cut    chan error
	gone   chan struct{}
}

// Connect hands the stream to the test.
func (r *Registry) Connect(server registryv1.WorkerAgentService_ConnectServer) error {
	if err := authorized(server.Context()); err != nil {
		return err
	}
	if r.OnConnect != nil {
		if err := r.OnConnect(); err != nil {
			return err
		}
	}
	s := &Stream{server: server, in: make(chan *registryv1.ConnectRequest, 1000), cut: make(chan error, 1), gone: make(chan struct{})}
	go func() {
		defer close(s.in)
		for {
			m, err := server.Recv()
			if err != nil {
				return
			}
			h := m.GetHeartbeat()
			if h == nil {
				s.in <- m
				continue
			}
			r.mu.Lock()
			r.heartbeats = append(r.heartbeats, time.Now())
			r.mu.Unlock()
			if !r.Mute.Load() {
				s.out.Lock()
				_ = server.Send(&registryv1.ConnectResponse{Message: &registryv1.ConnectResponse_HeartbeatAck{
					HeartbeatAck: &registryv1.HeartbeatAck{Sequence: h.GetSequence()},
				}})
				s.out.Unlock()
			}
		}
	}()
	r.streams <- s
	defer close(s.gone)
	select {
	case err := <-s.cut:
		return err
	case <-server.Context().Done():
		return nil
	}
}

// Heartbeats are when heartbeats came.
func (r *Registry) Heartbeats() []time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]time.Time(nil), r.heartbeats...)
}

// Next returns the next stream that an agent opens.
func (r *Registry) Next(t *testing.T) *Stream {
	t.Helper()
	select {
	case s := <-r.streams:
		return s
	case <-time.After(Patience):
		t.Fatal("the agent does not connect")
		return nil
	}
}

// Attach returns the next stream after its Hello was answered with Welcome.
func (r *Registry) Attach(t *testing.T) (*Stream, *registryv1.Hello) {
	t.Helper()
	s := r.Next(t)
	h := s.Hello(t)
	s.Welcome(t, r.epoch.Add(1))
	return s, h
}

// Idle says whether no agent has connected that the test has not seen.
func (r *Registry) Idle() bool { return len(r.streams) == 0 }

// Cut ends the stream with an error, or nil.
func (s *Stream) Cut(err error) {
	s.cut <- err
	<-s.gone
}

// Receive returns the next message but heartbeats; nil when the agent has closed
// its side.
func (s *Stream) Receive(t *testing.T) *registryv1.ConnectRequest {
	t.Helper()
	select {
	case m := <-s.in:
		return m
	case <-time.After(Patience):
		t.Fatal("the agent says nothing")
		return nil
	}
}

// SendLogs stores what it gets and acknowledges it.
func (r *Registry) SendLogs(server registryv1.WorkerAgentService_SendLogsServer) error {
	if err := authorized(server.Context()); err != nil {
		return err
	}
	for {
		m, err := server.Recv()
		if err != nil {
			return nil
		}
		if r.OnLogs != nil {
			if err := r.OnLogs(m); err != nil {
				return err
			}
		}
		ack := r.store(m)
		if r.Ack != nil {
			ack = r.Ack(m)
		}
		if ack < 0 {
			continue
		}
		if err := server.Send(&registryv1.SendLogsResponse{JobId: m.GetJobId(), Attempt: m.GetAttempt(), AckedSeq: ack}); err != nil {
			return err
		}
	}
}

func (r *Registry) store(m *registryv1.SendLogsRequest) (last int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.output[m.GetJobId()]
	if o == nil {
		o = &Output{}
		r.output[m.GetJobId()] = o
	}
	for _, c := range m.GetChunks() {
		switch {
		case c.GetSeq() <= o.Last:
			o.Repeats++
			continue
		case c.GetSeq() > o.Last+1:
			o.Gaps++
		}
		o.Last = c.GetSeq()
		o.Dropped += c.GetDropped()
		o.EOF = o.EOF || c.GetEof()
		if c.GetStream() == "stderr" {
			o.Stderr = append(o.Stderr, c.GetData()...)
		} else {
			o.Stdout = append(o.Stdout, c.GetData()...)
		}
	}
	return o.Last
}

// Output is what is stored of a job.
func (r *Registry) Output(job string) Output {
	r.mu.Lock()
	defer r.mu.Unlock()
	if o := r.output[job]; o != nil {
		return *o
	}
	return Output{}
}
