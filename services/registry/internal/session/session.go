// Package session is one agent's stream: what the agent says and what it is told,
// in order, between the log and the agent.
//
//	agent ──Recv──▶ reader ──▶ actor ──▶ app ──▶ event log
//	          │                  ▲  │
//	      heartbeats         commands (NATS)
//	          ▼                  │  ▼
//	agent ◀──Send── writer ◀──── outbox
//
// The actor is the one goroutine that decides, so that an attempt's messages
// keep their order; heartbeats are answered by the reader, so that an append that
// takes long costs no agent its lease. Everything is bounded: an agent that does
// not read, or says more than is answered, loses its stream and comes back.
package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/service/command"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
	"hodei.dev/services/registry/core"
	"hodei.dev/services/registry/internal/app"
	"hodei.dev/services/registry/internal/nats"
)

const (
	// helloTimeout bounds how long a stream may be silent at its beginning.
	helloTimeout = 10 * time.Second
	// acceptTimeout bounds how long an agent may take to accept an attempt.
	acceptTimeout = 10 * time.Second
	// operationTimeout bounds one use case, append included.
	operationTimeout = 15 * time.Second
	// detachTimeout bounds the note that a stream has ended.
	detachTimeout = 5 * time.Second
	// leaveTimeout is how long an agent that was told to end keeps its stream, so
	// that it can still report a result.
	leaveTimeout = deadline.KillGrace + 5*time.Second
	// flushTimeout bounds how long the last messages may take to go out.
	flushTimeout = time.Second
	// beatEvery bounds how often a session publishes that its agent lives.
	beatEvery = time.Second

	outboxMessages = 64
	mailbox        = 16
)

// Stream is the agent's stream, as gRPC has it.
type Stream interface {
	Context() context.Context
	Send(*registryv1.ConnectResponse) error
	Recv() (*registryv1.ConnectRequest, error)
}

// goodbye begins the reason of the last Stopping of an agent that has ended all
// that it ran and will not come back.
const goodbye = "goodbye: "

// errSuperseded ends a session whose agent has a newer one.
var errSuperseded = fault.New(fault.Precondition, "the agent has a newer session").WithCode("SUPERSEDED", "")

// session is one stream. Only the actor uses what no comment says otherwise of.
type session struct {
	m      *Manager
	stream Stream
	log    *slog.Logger
	at     *app.Attachment

	in  chan *registryv1.ConnectRequest  // reader -> actor
	out chan *registryv1.ConnectResponse // anybody -> writer
	// closing is closed when nothing more is to be sent.
	closing chan struct{}
	// failed has why the stream is over; the first reason counts.
	failed chan error
	// nudged has a token when the session should look whether its worker is going.
	nudged chan string

	// The reader needs these before and while the actor runs.
	beating   atomic.Pointer[beating]
	lastBeat  atomic.Int64 // Unix nanoseconds
	published time.Time    // the reader's: when it last published that the agent lives
	holds     atomic.Pointer[core.Held]

	handOver *handOver
	stopping bool
	goodbye  bool             // the agent has ended everything and closes its stream next
	leaving  <-chan time.Time // set once the agent was told to end
}

// beating is what heartbeats need; nil until attached, and once the worker is going.
type beating struct {
	workerID, correlationID string
	epoch                   int64
}

// handOver is an attempt that the agent has been sent and has not answered.
type handOver struct {
	// commands are who asked for it and waits: more than one where two dispatchers are
	// active for a moment, or one asks again.
	commands []nats.Command
	jobID    string
	attempt  int
	late     *time.Timer
}

// Serve runs a session until its stream ends. It returns what the stream ends
// with: nil where the agent left, else why it has to come back or stay away.
func (m *Manager) Serve(stream Stream, secret string) error {
	s := &session{
		m: m, stream: stream, log: m.Log,
		in: make(chan *registryv1.ConnectRequest, mailbox), out: make(chan *registryv1.ConnectResponse, outboxMessages), closing: make(chan struct{}),
		failed: make(chan error, 1), nudged: make(chan string, 1),
	}
	ctx := stream.Context()
	go s.read()
	hello, err := s.hello(ctx)
	if err != nil {
		return err
	}
	held := core.Held{JobID: hello.GetJobId(), Attempt: int(hello.GetAttempt()), Started: hello.GetStarted()}
	workerID, epoch, err := m.App.OpenSession(ctx, secret, hello.GetConnection(), m.Replica)
	if err != nil {
		return err
	}
	s.log = m.Log.With("worker", workerID, "epoch", epoch)
	// Commands must find the session before anybody can know of it.
	inbox, err := m.Sessions.Open(ctx, workerID, epoch)
	if err != nil {
		return err
	}
	defer inbox.Close()
	if epoch > 1 {
		old := command.Request{Kind: command.Supersede, WorkerID: workerID}
		if err := m.Sessions.Tell(ctx, epoch-1, old); err != nil {
			return err
		}
	}
	if s.at, err = m.App.Attach(ctx, workerID, epoch, m.Replica); err != nil {
		return err
	}
	s.lastBeat.Store(m.Now().UnixNano())
	if !s.at.Going() { // a worker that is going gets no lease any more
		s.beating.Store(&beating{workerID: workerID, correlationID: s.at.CorrelationID(), epoch: epoch})
	}
	m.add(s)
	defer m.remove(s)

	var writing sync.WaitGroup
	writing.Go(s.write)
	err = s.run(ctx, inbox, held)
	s.beating.Store(nil)
	s.end(ctx, err)
	s.flush(&writing)
	return s.answer(ctx, err)
}

// hello waits for the first message, which says what the agent has.
func (s *session) hello(ctx context.Context) (*registryv1.Hello, error) {
	timer := time.NewTimer(helloTimeout)
	defer timer.Stop()
	select {
	case r := <-s.in:
		h := r.GetHello()
		if h == nil {
			return nil, fault.New(fault.Invalid, "the first message of a session must be Hello").WithCode("HELLO_MISSING", "")
		}
		return h, nil
	case err := <-s.failed:
		if errors.Is(err, io.EOF) {
			return nil, fault.New(fault.Invalid, "the stream ended before Hello")
		}
		return nil, err
	case <-timer.C:
		return nil, fault.New(fault.Invalid, "no Hello within %s", helloTimeout).WithCode("HELLO_MISSING", "")
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// read takes what the agent says. Heartbeats are answered here.
func (s *session) read() {
	for {
		r, err := s.stream.Recv()
		if err != nil {
			s.fail(err)
			return
		}
		if h := r.GetHeartbeat(); h != nil {
			s.heartbeat(h)
			continue
		}
		select {
		case s.in <- r:
		default:
			// More than an honest agent ever has to say at once.
			s.fail(fault.New(fault.Exhausted, "the agent says more than can be answered"))
			return
		}
	}
}

// heartbeat renews the agent's lease, unless its worker is going.
func (s *session) heartbeat(h *registryv1.Heartbeat) {
	b := s.beating.Load()
	if b == nil {
		return
	}
	now := s.m.Now()
	s.lastBeat.Store(now.UnixNano())
	s.send(&registryv1.ConnectResponse{Message: &registryv1.ConnectResponse_HeartbeatAck{HeartbeatAck: &registryv1.HeartbeatAck{Sequence: h.GetSequence()}}}, "")
	if now.Sub(s.published) < beatEvery {
		return
	}
	s.published = now
	beat := worker.Heartbeat{Epoch: b.epoch, Sequence: h.GetSequence(), JobID: h.GetJobId(), Attempt: int(h.GetAttempt())}
	if err := s.m.Heartbeat(b.workerID, b.correlationID, beat); err != nil {
		s.log.Debug("a heartbeat is not published", "error", err)
	}
}

// write sends what is in the outbox, in order, until the session is closing and
// the outbox is empty.
func (s *session) write() {
	for {
		select {
		case r := <-s.out:
			if err := s.stream.Send(r); err != nil {
				s.fail(err)
				return
			}
			continue
		case <-s.closing:
		}
		select {
		case r := <-s.out:
			if err := s.stream.Send(r); err != nil {
				return
			}
		default:
			return
		}
	}
}

// send queues a message; an agent that does not read loses its stream.
func (s *session) send(r *registryv1.ConnectResponse, traceParent string) {
	r.Traceparent = traceParent
	select {
	case s.out <- r:
	default:
		s.fail(fault.New(fault.Exhausted, "the agent does not read what it is told"))
	}
}

// fail ends the session; the first reason counts.
func (s *session) fail(err error) {
	select {
	case s.failed <- err:
	default:
	}
}

// run is the actor: it returns why the stream ends; io.EOF where the agent left.
func (s *session) run(ctx context.Context, inbox *nats.Inbox, held core.Held) error {
	s.send(&registryv1.ConnectResponse{Message: &registryv1.ConnectResponse_Welcome{Welcome: &registryv1.Welcome{Epoch: s.at.Epoch, Going: s.at.Going()}}}, "")
	if err := s.reconcile(ctx, held); err != nil {
		return err
	}
	s.leaveIfGoing()
	for {
		var late <-chan time.Time
		if s.handOver != nil {
			late = s.handOver.late.C
		}
		var err error
		select {
		case r := <-s.in:
			err = s.said(ctx, r)
		case m := <-inbox.C():
			c, derr := nats.Decode(m)
			if derr != nil {
				s.log.Warn("a command that cannot be read", "error", derr)
				continue
			}
			err = s.told(ctx, c)
		case reason := <-s.nudged:
			s.terminate(reason, 0)
		case <-late:
			s.drop(s.handOver.jobID, s.handOver.attempt, "it was not accepted in time")
			s.answerHandOver(command.Reply{Reason: fmt.Sprintf("the agent did not accept within %s", acceptTimeout)})
		case <-s.leaving:
			return io.EOF
		case err = <-s.failed:
			s.drainMailbox(ctx)
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// drainMailbox hears what the agent said before it left: perhaps a result.
func (s *session) drainMailbox(ctx context.Context) {
	for {
		select {
		case r := <-s.in:
			if r.GetResult() == nil && r.GetStopping() == nil {
				continue
			}
			if err := s.said(ctx, r); err != nil {
				s.log.Warn("the agent's last words are lost; it repeats them when it is back", "error", err)
				return
			}
		default:
			return
		}
	}
}

// end answers a hand-over that is open and notes that the stream has ended, unless
// the registry itself stops: then the agent is back before its lease is over.
func (s *session) end(ctx context.Context, why error) {
	s.answerHandOver(command.Reply{Gone: true, Reason: "the agent's stream has ended"})
	if errors.Is(why, errSuperseded) || shuttingDown(ctx) {
		return
	}
	left := errors.Is(why, io.EOF)
	clean := left && s.goodbye
	reason := "the agent closed its stream"
	switch {
	case clean:
		reason = "the agent said goodbye"
	case !left:
		reason = "the stream broke: " + why.Error()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), detachTimeout)
	defer cancel()
	if err := s.m.App.Detach(ctx, s.at, reason, clean); err != nil {
		s.log.WarnContext(ctx, "cannot note that an agent's stream has ended", "error", err)
	}
}

// flush gives the messages in the outbox a moment to go out.
func (s *session) flush(writing *sync.WaitGroup) {
	close(s.closing)
	done := make(chan struct{})
	go func() {
		writing.Wait()
		close(done)
	}()
	timer := time.NewTimer(flushTimeout)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// answer is what the stream ends with.
func (s *session) answer(ctx context.Context, why error) error {
	switch {
	case shuttingDown(ctx):
		return context.Cause(ctx)
	case errors.Is(why, io.EOF):
		return nil
	}
	return why
}

// shuttingDown tells whether the stream ends because the registry stops.
func shuttingDown(ctx context.Context) bool {
	return ctx.Err() != nil && errors.Is(context.Cause(ctx), fault.Unavailable)
}

// operation is the context of one use case: it goes on when the agent leaves.
func operation(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), operationTimeout)
}
