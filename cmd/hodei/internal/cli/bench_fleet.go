package cli

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/timestamppb"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/call"
	"hodei.dev/libs/platform/process"
	"hodei.dev/libs/platform/rpc"
	provisionerv1 "hodei.dev/proto/hodei/provisioner/v1"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
)

// keySession is the metadata key that carries an agent's session.
const keySession = "hodei-session"

// fleet is an external provider with simulated workers: they speak as agents do,
// over the agents' door, and every job that they are given succeeds at once.
type fleet struct {
	r        *remote
	provider string
	conn     *grpc.ClientConn
	stopNow  context.CancelFunc
	agents   sync.WaitGroup
}

// startFleet makes the provider and its workers and waits until each is attached.
func startFleet(ctx context.Context, r *remote, provider string, workers int) (_ *fleet, err error) {
	f := &fleet{r: r, provider: provider}
	forever := int32(0)
	_, err = r.providers.RegisterProvider(ctx, &provisionerv1.RegisterProviderRequest{Spec: &provisionerv1.ProviderSpec{
		Name: provider, Kind: "external", MaxWorkers: int32(workers), JobsPerWorker: &forever, IdleTimeout: "1h",
	}})
	if err != nil {
		return nil, fmt.Errorf("registering the provider: %w", err)
	}
	live, cancel := context.WithCancel(ctx)
	f.stopNow = cancel
	defer func() {
		if err != nil {
			err = errors.Join(err, f.stop(context.WithoutCancel(ctx)))
		}
	}()
	attached := make(chan error, workers)
	for range workers {
		token, err := r.providers.IssueWorkerToken(ctx, &provisionerv1.IssueWorkerTokenRequest{Provider: provider})
		if err != nil {
			return nil, fmt.Errorf("asking for a token: %w", err)
		}
		if f.conn == nil {
			if f.conn, err = rpc.Dial(token.GetAgentAddress()); err != nil {
				return nil, err
			}
		}
		a := &fakeAgent{client: registryv1.NewWorkerAgentServiceClient(f.conn), id: token.GetWorkerId(), attached: attached}
		f.agents.Go(func() { a.live(live, token.GetToken()) })
	}
	for range workers {
		select {
		case err := <-attached:
			if err != nil {
				return nil, fmt.Errorf("attaching a worker: %w", err)
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return f, nil
}

// stop removes the provider and waits for the workers to be told their end; those
// that nobody tells are ended after a while.
func (f *fleet) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	_, err := f.r.providers.RemoveProvider(ctx, &provisionerv1.RemoveProviderRequest{Provider: f.provider})
	if err == nil {
		gone := make(chan struct{})
		go func() {
			f.agents.Wait()
			close(gone)
		}()
		select {
		case <-gone:
		case <-ctx.Done():
			err = fault.New(fault.Unavailable, "its workers were not told to end")
		}
	}
	f.stopNow()
	f.agents.Wait()
	if f.conn != nil {
		f.conn.Close()
	}
	if err != nil {
		return fmt.Errorf("removing the provider %s: %w", f.provider, err)
	}
	return nil
}

// fakeAgent is one simulated worker.
type fakeAgent struct {
	client   registryv1.WorkerAgentServiceClient
	id       string
	session  string
	interval time.Duration
	// connections so far.
	connections int64
	// attached hears once that the worker is there, or why not.
	attached chan<- error
	told     bool

	// The attempt that it has, and its result until that is acknowledged.
	jobID   string
	attempt int32
	started bool
	result  *registryv1.Result
}

func (a *fakeAgent) tell(err error) {
	if !a.told {
		a.told = true
		a.attached <- err
	}
}

// live is the worker's life: it ends when it is told to, or ctx ends.
func (a *fakeAgent) live(ctx context.Context, token string) {
	ctx = call.With(ctx, call.Call{Actor: "worker/" + a.id})
	resp, err := a.client.Register(ctx, &registryv1.RegisterRequest{
		WorkerId: a.id, Token: token, Nonce: uuid.NewString(), AgentVersion: process.Version(), Hostname: "bench",
	})
	if err != nil {
		a.tell(err)
		return
	}
	a.session = resp.GetSession()
	if a.interval, err = time.ParseDuration(resp.GetHeartbeatInterval()); err != nil || a.interval <= 0 {
		a.interval = 5 * time.Second
	}
	ctx = metadata.AppendToOutgoingContext(ctx, keySession, a.session)
	for ctx.Err() == nil {
		err := a.connect(ctx)
		if err == nil {
			return
		}
		if !errors.Is(err, fault.Unavailable) {
			a.tell(err)
			return
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	a.tell(ctx.Err())
}

// connect is one session; nil means that the worker's life is over.
func (a *fakeAgent) connect(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := a.client.Connect(ctx)
	if err != nil {
		return err
	}
	s := &session{stream: stream}
	a.connections++
	err = s.send(&registryv1.ConnectRequest{Message: &registryv1.ConnectRequest_Hello{
		Hello: &registryv1.Hello{JobId: a.jobID, Attempt: a.attempt, Started: a.started, Connection: a.connections},
	}})
	var beats sync.WaitGroup
	defer beats.Wait()
	defer cancel()
	beats.Go(func() { s.beat(ctx, a.interval) })
	if a.result != nil && err == nil {
		err = s.report(a.result)
	}
	for err == nil {
		var m *registryv1.ConnectResponse
		if m, err = stream.Recv(); err != nil {
			return err
		}
		if m.GetTerminate() != nil {
			return s.close()
		}
		err = a.obey(s, m)
	}
	return fault.Wrap(fault.Unavailable, err, "the session broke")
}

// obey does what the agent is told.
func (a *fakeAgent) obey(s *session, m *registryv1.ConnectResponse) error {
	switch m := m.GetMessage().(type) {
	case *registryv1.ConnectResponse_Welcome:
		a.tell(nil)
	case *registryv1.ConnectResponse_Run:
		if a.jobID != m.Run.GetJobId() || a.attempt != m.Run.GetAttempt() {
			a.jobID, a.attempt, a.started, a.result = m.Run.GetJobId(), m.Run.GetAttempt(), false, nil
		}
		return s.send(&registryv1.ConnectRequest{Message: &registryv1.ConnectRequest_Accepted{
			Accepted: &registryv1.Accepted{JobId: a.jobID, Attempt: a.attempt},
		}})
	case *registryv1.ConnectResponse_Start:
		if a.has(m.Start.GetJobId(), m.Start.GetAttempt()) && !a.started {
			code, now := int32(0), timestamppb.Now()
			a.started = true
			a.result = &registryv1.Result{JobId: a.jobID, Attempt: a.attempt, ExitCode: &code, StartedAt: now, FinishedAt: now}
			return s.report(a.result)
		}
	case *registryv1.ConnectResponse_Cancel:
		if a.has(m.Cancel.GetJobId(), m.Cancel.GetAttempt()) && !a.started {
			a.result = &registryv1.Result{JobId: a.jobID, Attempt: a.attempt, Category: "CANCELLED", FailureMessage: "cancelled before it started"}
			return s.report(a.result)
		}
	case *registryv1.ConnectResponse_Drop:
		a.forget(m.Drop.GetJobId(), m.Drop.GetAttempt())
	case *registryv1.ConnectResponse_ResultAck:
		a.forget(m.ResultAck.GetJobId(), m.ResultAck.GetAttempt())
	}
	return nil
}

func (a *fakeAgent) has(id string, attempt int32) bool { return a.jobID == id && a.attempt == attempt }

func (a *fakeAgent) forget(id string, attempt int32) {
	if a.has(id, attempt) {
		a.jobID, a.attempt, a.started, a.result = "", 0, false, nil
	}
}

// session is a stream that two may send on.
type session struct {
	mu     sync.Mutex // guards sending
	stream grpc.BidiStreamingClient[registryv1.ConnectRequest, registryv1.ConnectResponse]
}

func (s *session) send(m *registryv1.ConnectRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stream.Send(m)
}

func (s *session) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stream.CloseSend()
}

func (s *session) report(r *registryv1.Result) error {
	return s.send(&registryv1.ConnectRequest{Message: &registryv1.ConnectRequest_Result{Result: r}})
}

func (s *session) beat(ctx context.Context, interval time.Duration) {
	t := time.NewTicker(interval)
	defer t.Stop()
	for n := int64(1); ; n++ {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		if s.send(&registryv1.ConnectRequest{Message: &registryv1.ConnectRequest_Heartbeat{Heartbeat: &registryv1.Heartbeat{Sequence: n}}}) != nil {
			return // the receiver hears it too
		}
	}
}
