// Package nats is how registry's replicas reach each other and their sessions:
// commands to the session of a worker, live output, and what has changed. It is
// transport only; what is lost here is in the log or in the rows.
package nats

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/service/command"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
	"hodei.dev/services/registry/internal/logs"
)

const (
	// flushTimeout bounds how long a subscription may take to be known to the server.
	flushTimeout = 5 * time.Second
	// pingTimeout bounds how long a session may take to say that it lives.
	pingTimeout = 2 * time.Second
	// inboxCommands is how many commands may wait for one session.
	inboxCommands = 16
)

// Sessions reaches sessions wherever they are. It is safe for concurrent use.
type Sessions struct{ nc *nats.Conn }

// NewSessions returns the sessions of a connection.
func NewSessions(nc *nats.Conn) *Sessions { return &Sessions{nc} }

// Tell sends a command without waiting for an answer.
func (s *Sessions) Tell(_ context.Context, epoch int64, r command.Request) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode a command: %w", err)
	}
	if err := s.nc.Publish(bus.CommandSubject(r.WorkerID, epoch), data); err != nil {
		return fault.Wrap(fault.Unavailable, err, "send %s to worker %s", r.Kind, r.WorkerID)
	}
	return nil
}

// Alive asks a session whether its agent was heard of lately.
func (s *Sessions) Alive(ctx context.Context, workerID string, epoch int64) bool {
	data, err := json.Marshal(command.Request{Kind: command.Ping, WorkerID: workerID})
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	m, err := s.nc.RequestWithContext(ctx, bus.CommandSubject(workerID, epoch), data)
	if err != nil {
		return false
	}
	var reply command.Reply
	return json.Unmarshal(m.Data, &reply) == nil && reply.OK
}

// Command is a command that waits for its session.
type Command struct {
	command.Request
	msg *nats.Msg
}

// Reply answers it, where an answer is wanted.
func (c Command) Reply(r command.Reply) {
	if c.msg == nil || c.msg.Reply == "" {
		return
	}
	data, err := json.Marshal(r)
	if err != nil {
		return
	}
	_ = c.msg.Respond(data) // a lost reply is a timeout over there
}

// Inbox is where the commands of one session arrive.
type Inbox struct {
	sub *nats.Subscription
	c   chan *nats.Msg
}

// Open listens for the commands of a session; when it returns, none is missed.
func (s *Sessions) Open(ctx context.Context, workerID string, epoch int64) (*Inbox, error) {
	in := &Inbox{c: make(chan *nats.Msg, inboxCommands)}
	var err error
	if in.sub, err = s.nc.ChanSubscribe(bus.CommandSubject(workerID, epoch), in.c); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "listen for commands to worker %s", workerID)
	}
	if err := flush(ctx, s.nc); err != nil {
		in.Close()
		return nil, fault.Wrap(fault.Unavailable, err, "listen for commands to worker %s", workerID)
	}
	return in, nil
}

// C has the messages, for [Decode].
func (in *Inbox) C() <-chan *nats.Msg { return in.c }

// Close ends it; who sends later is told that nobody is there.
func (in *Inbox) Close() { _ = in.sub.Unsubscribe() }

// Decode reads a command.
func Decode(m *nats.Msg) (Command, error) {
	c := Command{msg: m}
	if err := json.Unmarshal(m.Data, &c.Request); err != nil {
		return c, fmt.Errorf("decode a command: %w", err)
	}
	return c, nil
}

func flush(ctx context.Context, nc *nats.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	return nc.FlushWithContext(ctx)
}

// Heartbeat publishes that an agent lives.
func Heartbeat(nc *nats.Conn, workerID, correlationID string, h worker.Heartbeat) error {
	meta := event.Meta{Source: "registry", Namespace: event.NoNamespace, CorrelationID: correlationID, Actor: "worker/" + workerID}
	e, err := event.New(event.Stream{Type: "worker", ID: workerID}, meta, h)
	if err != nil {
		return err
	}
	return bus.PublishTelemetry(nc, e)
}

const (
	// liveBytes bounds a live message: what is larger is announced only.
	liveBytes = 64 << 10
	// liveMessages is how many wait for one reader.
	liveMessages = 64
)

// Live fans out stored output. It is safe for concurrent use.
type Live struct {
	nc  *nats.Conn
	log *slog.Logger
}

// NewLive returns the live output of a connection.
func NewLive(nc *nats.Conn, log *slog.Logger) *Live { return &Live{nc, log} }

// Publish tells whoever reads the job's log now.
func (l *Live) Publish(b logs.Batch) {
	m := &registryv1.SendLogsRequest{JobId: b.JobID, Attempt: int32(b.Attempt)}
	size := 0
	for _, c := range b.Chunks {
		size += len(c.Data) + 64
	}
	if size <= liveBytes {
		m.Chunks = Wire(b.Chunks)
	}
	data, err := proto.Marshal(m)
	if err == nil {
		err = l.nc.Publish(bus.LogSubject(b.JobID), data)
	}
	if err != nil {
		l.log.Debug("live output is not sent; readers take it from the rows", "job", b.JobID, "error", err)
	}
}

// Subscribe hears what is published about a job from now on.
func (l *Live) Subscribe(ctx context.Context, jobID string) (logs.Subscription, error) {
	e := &ear{raw: make(chan *nats.Msg, liveMessages), c: make(chan logs.Batch), done: make(chan struct{}), resumed: make(chan struct{}, 1), nc: l.nc}
	var err error
	if e.sub, err = l.nc.ChanSubscribe(bus.LogSubject(jobID), e.raw); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "listen to the log of job %s", jobID)
	}
	if err := flush(ctx, l.nc); err != nil {
		_ = e.sub.Unsubscribe()
		return nil, fault.Wrap(fault.Unavailable, err, "listen to the log of job %s", jobID)
	}
	e.status = l.nc.StatusChanged(nats.CONNECTED)
	go e.listen()
	return e, nil
}

// ear is one reader's subscription.
type ear struct {
	nc      *nats.Conn
	sub     *nats.Subscription
	status  chan nats.Status
	raw     chan *nats.Msg
	c       chan logs.Batch
	resumed chan struct{}
	done    chan struct{}
}

func (e *ear) listen() {
	defer e.nc.RemoveStatusListener(e.status)
	for {
		select {
		case <-e.done:
			return
		case <-e.status:
			select {
			case e.resumed <- struct{}{}:
			default:
			}
		case m := <-e.raw:
			var b logs.Batch
			var w registryv1.SendLogsRequest
			if proto.Unmarshal(m.Data, &w) == nil {
				b = logs.Batch{JobID: w.JobId, Attempt: int(w.Attempt), Chunks: Unwire(w.Chunks)}
			}
			select {
			case e.c <- b:
			case <-e.done:
				return
			}
		}
	}
}

// C has the batches.
func (e *ear) C() <-chan logs.Batch { return e.c }

// Dropped counts what did not fit.
func (e *ear) Dropped() int {
	n, err := e.sub.Dropped()
	if err != nil {
		return 0
	}
	return n
}

// Resumed has a token after the connection was lost and is back.
func (e *ear) Resumed() <-chan struct{} { return e.resumed }

// Close ends it.
func (e *ear) Close() {
	_ = e.sub.Unsubscribe()
	close(e.done)
}

// Wire is the form of chunks on the wire.
func Wire(chunks []logs.Chunk) []*registryv1.LogChunk {
	out := make([]*registryv1.LogChunk, len(chunks))
	for i, c := range chunks {
		out[i] = &registryv1.LogChunk{Stream: c.Stream, Seq: c.Seq, Time: timestamppb.New(c.At), Data: c.Data, Dropped: c.Dropped, Eof: c.EOF}
	}
	return out
}

// Unwire reads chunks from the wire.
func Unwire(chunks []*registryv1.LogChunk) []logs.Chunk {
	out := make([]logs.Chunk, len(chunks))
	for i, c := range chunks {
		out[i] = logs.Chunk{Stream: c.GetStream(), Seq: c.GetSeq(), At: c.GetTime().AsTime().UTC(), Data: c.GetData(), Dropped: c.GetDropped(), EOF: c.GetEof()}
	}
	return out
}
