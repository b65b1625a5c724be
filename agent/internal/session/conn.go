package session

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"

	"hodei.dev/libs/domain/fault"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
)

// maxQueue is how many messages may wait before heartbeats are left out.
const maxQueue = 16

// conn is one Connect stream. Its fields belong to the session's goroutine.
type conn struct {
	number int64 // among the connections of this process, from 1
	cancel context.CancelFunc
	out    chan *registryv1.ConnectRequest // nil message: nothing more will be sent
	queue  []*registryv1.ConnectRequest

	open     bool // Hello may be sent
	welcomed bool
	heard    time.Time // when anything last came
	beats    []beat    // heartbeats that were not answered, Hello first
	closing  bool      // the last message is queued
}

// beat is a message whose answer renews the lease from when it was sent: an answer
// that was held up on its way must not.
type beat struct {
	seq int64
	at  time.Time
}

// connect begins a stream.
func (s *Session) connect(now time.Time) {
	ctx, cancel := context.WithCancel(s.ctx)
	s.connections++
	c := &conn{number: s.connections, cancel: cancel, out: make(chan *registryv1.ConnectRequest), heard: now}
	s.conn = c
	s.work.Go(func() {
		defer cancel()
		stream, err := s.cfg.Client.Connect(s.authorize(ctx), grpc.WaitForReady(true))
		if err != nil {
			s.post(func() { s.lost(c, err) })
			return
		}
		s.work.Go(func() { c.write(ctx, stream) })
		s.post(func() { s.opened(c) })
		for {
			m, err := stream.Recv()
			if err != nil {
				s.post(func() { s.lost(c, err) })
				return
			}
			s.post(func() { s.received(c, m) })
		}
	})
}

// write sends what the session hands over. An error ends it: Recv has the reason.
func (c *conn) write(ctx context.Context, stream registryv1.WorkerAgentService_ConnectClient) {
	for {
		select {
		case m := <-c.out:
			if m == nil {
				_ = stream.CloseSend() // never fails
				return
			}
			if stream.Send(m) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// opened says what the agent has. It comes first on every stream.
func (s *Session) opened(c *conn) {
	if c != s.conn {
		return
	}
	c.open = true
	hello := &registryv1.Hello{Connection: c.number}
	if a := s.cur; a != nil {
		hello.JobId, hello.Attempt, hello.Started = a.job, a.attempt, a.started || a.out != nil
	}
	c.beats = []beat{{at: s.now()}}
	c.queue = append(c.queue, &registryv1.ConnectRequest{Message: &registryv1.ConnectRequest_Hello{Hello: hello}, Traceparent: s.traceparent()})
}

// send queues a message; without an attached stream it is lost, and what must not
// be is said again after Welcome.
func (s *Session) send(m *registryv1.ConnectRequest) {
	if s.connected() && !s.conn.closing {
		s.conn.queue = append(s.conn.queue, m)
	}
}

// lost takes note that a stream is no more.
func (s *Session) lost(c *conn, err error) {
	c.cancel()
	if c != s.conn {
		return
	}
	s.conn, s.waiting = nil, nil
	if c.closing {
		s.gone = true
		return
	}
	if c.welcomed {
		s.pause = backoffMin
	}
	now := s.now()
	s.reconnectAt = now.Add(jitter(s.pause))
	s.pause = min(2*s.pause, backoffMax)
	s.cfg.Log.Info("the connection to the registry is lost", "error", err, "again_in", s.reconnectAt.Sub(now).Round(time.Millisecond))
	switch {
	case !errors.Is(err, fault.Denied):
		s.refusal, s.refusedSince = nil, time.Time{}
	case s.refusal == nil:
		s.refusal, s.refusedSince = err, now
	}
}

// cut ends the current stream, to try another one.
func (s *Session) cut(why string) {
	if s.conn != nil {
		s.lost(s.conn, errors.New(why))
	}
}

// welcome is the first answer: from now on the agent may speak.
func (s *Session) welcome(c *conn, w *registryv1.Welcome, now time.Time) {
	c.welcomed = true
	s.refusedSince, s.refusal = time.Time{}, nil
	s.cfg.Log.Info("connected", "epoch", w.GetEpoch())
	if !w.GetGoing() { // else its attempt may be given to another worker
		s.renew(c, 0)
	}
	s.beatAt = now
	if s.stopping != "" {
		s.send(stopping(s.stopping))
	}
	switch a := s.cur; {
	case a == nil:
	case a.ready:
		s.sendResult(a)
	case !a.flushBy.IsZero():
		a.flushBy = now.Add(s.limits.flush) // output could not travel meanwhile, either
	}
}

// renew renews the lease from when the message was sent that is now answered.
func (s *Session) renew(c *conn, seq int64) {
	for i, b := range c.beats {
		if b.seq == seq {
			s.leaseUntil = b.at.Add(s.terms.lease)
			c.beats = c.beats[i+1:]
			return
		}
	}
}

// heartbeat says that the agent lives.
func (s *Session) heartbeat(now time.Time) {
	s.beatAt = now.Add(s.terms.heartbeat)
	if len(s.conn.queue) > maxQueue { // the stream is stuck: one more would be answered too late, too
		return
	}
	s.seq++
	h := &registryv1.Heartbeat{Sequence: s.seq}
	if s.cur != nil {
		h.JobId, h.Attempt = s.cur.job, s.cur.attempt
	}
	s.conn.beats = append(s.conn.beats, beat{s.seq, now})
	s.send(&registryv1.ConnectRequest{Message: &registryv1.ConnectRequest_Heartbeat{Heartbeat: h}})
}

func stopping(reason string) *registryv1.ConnectRequest {
	return &registryv1.ConnectRequest{Message: &registryv1.ConnectRequest_Stopping{Stopping: &registryv1.Stopping{Reason: reason}}}
}
