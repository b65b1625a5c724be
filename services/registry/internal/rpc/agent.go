// Package rpc serves registry's doors: WorkerAgentService to agents, and
// WorkerService, WorkerTokenService and LogService to everybody else. It
// translates and decides nothing.
package rpc

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/fault"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
	"hodei.dev/services/registry/internal/app"
	"hodei.dev/services/registry/internal/logs"
	"hodei.dev/services/registry/internal/nats"
	"hodei.dev/services/registry/internal/session"
)

// sessionKey is the metadata key that carries a session's secret.
const sessionKey = "hodei-session"

// logWindow is how many batches of one log stream may wait to be stored.
const logWindow = 16

// Agents serves WorkerAgentService. Its fields are set once.
type Agents struct {
	registryv1.UnimplementedWorkerAgentServiceServer
	App      *app.App
	Sessions *session.Manager
	Ingest   *logs.Ingest
}

// Register trades a registration token for a session.
func (a *Agents) Register(ctx context.Context, r *registryv1.RegisterRequest) (*registryv1.RegisterResponse, error) {
	from := ""
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		from = p.Addr.String()
	}
	secret, err := a.App.Register(ctx, app.Registration{
		WorkerID: r.GetWorkerId(), Token: r.GetToken(), Nonce: r.GetNonce(),
		AgentVersion: r.GetAgentVersion(), Hostname: r.GetHostname(), PID: int(r.GetPid()), Peer: from,
	})
	if err != nil {
		return nil, err
	}
	return &registryv1.RegisterResponse{
		Session: secret, HeartbeatInterval: deadline.HeartbeatInterval.String(), Lease: deadline.Lease.String(), KillGrace: deadline.KillGrace.String(),
	}, nil
}

// Connect is an agent's session.
func (a *Agents) Connect(stream registryv1.WorkerAgentService_ConnectServer) error {
	secret, err := secretOf(stream.Context())
	if err != nil {
		return err
	}
	return a.Sessions.Serve(stream, secret)
}

func secretOf(ctx context.Context) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get(sessionKey); len(v) == 1 && v[0] != "" {
		return v[0], nil
	}
	return "", fault.New(fault.Denied, "the metadata have no %s", sessionKey).WithCode("SESSION_REFUSED", "register first")
}

// waitingAck is a batch that is being stored.
type waitingAck struct {
	jobID   string
	attempt int32
	seq     int64
	done    <-chan error // nil = stored already
}

// SendLogs takes output. A batch is acknowledged when it is stored; several may
// wait at once, so that an agent is held back by the disk and not by round trips.
func (a *Agents) SendLogs(stream registryv1.WorkerAgentService_SendLogsServer) error {
	ctx := stream.Context()
	secret, err := secretOf(ctx)
	if err != nil {
		return err
	}
	workerID, err := a.App.Authenticate(ctx, secret)
	if err != nil {
		return err
	}
	in := &intake{agents: a, workerID: workerID, stream: stream, acks: make(chan waitingAck, logWindow), failed: make(chan error, 1), writers: map[written]*logs.Writer{}}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go in.read(ctx)
	return in.acknowledge(ctx)
}

// intake is one stream of logs.
type intake struct {
	agents   *Agents
	workerID string
	stream   registryv1.WorkerAgentService_SendLogsServer
	acks     chan waitingAck
	failed   chan error

	// Only the reader uses these: an agent may send what lags behind of an earlier
	// attempt beside the present one's output.
	writers map[written]*logs.Writer
	order   []written // oldest first
}

// written is an attempt whose output comes on a stream.
type written struct {
	jobID   string
	attempt int32
}

// mostWriters is how many attempts without an end one stream may have.
const mostWriters = 64

func (in *intake) read(ctx context.Context) {
	defer close(in.acks)
	for {
		r, err := in.stream.Recv()
		if err == nil {
			err = in.take(ctx, r)
		}
		if err != nil {
			in.failed <- err
			return
		}
	}
}

func (in *intake) take(ctx context.Context, r *registryv1.SendLogsRequest) error {
	if len(r.GetChunks()) == 0 {
		return nil
	}
	key := written{r.GetJobId(), r.GetAttempt()}
	w := in.writers[key]
	if w == nil {
		var err error
		if w, err = in.begin(ctx, key, r.GetChunks()[0].GetSeq()); err != nil {
			return err
		}
	}
	chunks := nats.Unwire(r.GetChunks())
	for i := range chunks {
		if !r.GetChunks()[i].GetTime().IsValid() {
			chunks[i].At = time.Now().UTC()
		}
	}
	seq, done, err := w.Write(ctx, chunks)
	if err != nil {
		return err
	}
	if chunks[len(chunks)-1].EOF {
		in.forget(key)
	}
	select {
	case in.acks <- waitingAck{r.GetJobId(), r.GetAttempt(), seq, done}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (in *intake) begin(ctx context.Context, key written, next int64) (*logs.Writer, error) {
	number := int(key.attempt)
	if !in.agents.Sessions.Holds(in.workerID, key.jobID, number) {
		if err := in.agents.App.MayLog(ctx, in.workerID, key.jobID, number); err != nil {
			return nil, err
		}
	}
	w, err := in.agents.Ingest.Writer(ctx, logs.Attempt{JobID: key.jobID, Number: number}, next)
	if err != nil {
		return nil, err
	}
	if len(in.order) >= mostWriters {
		in.forget(in.order[0])
	}
	in.writers[key], in.order = w, append(in.order, key)
	return w, nil
}

func (in *intake) forget(key written) {
	delete(in.writers, key)
	in.order = slices.DeleteFunc(in.order, func(k written) bool { return k == key })
}

// acknowledge answers in order, each batch when it is stored. The stream's end
// comes after the last answer.
func (in *intake) acknowledge(ctx context.Context) error {
	for ack := range in.acks {
		if ack.done != nil {
			select {
			case err := <-ack.done:
				if err != nil {
					return err
				}
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if err := in.stream.Send(&registryv1.SendLogsResponse{JobId: ack.jobID, Attempt: ack.attempt, AckedSeq: ack.seq}); err != nil {
			return err
		}
	}
	if err := <-in.failed; !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}
