package logs

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"hodei.dev/libs/domain/fault"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
)

// Config says how output is shipped. Zero fields get their defaults.
type Config struct {
	// Window is how many bytes of one attempt may wait for their acknowledgement;
	// default 4 MiB.
	Window int
	// Batch is about how many bytes go into one message; default 256 KiB.
	Batch int
	// MaxStreams is how many attempts may wait at a time, the oldest that has ended is
	// given up for a newer one; default 8.
	MaxStreams int
	// Stall is how long an acknowledgement may take before the connection is replaced;
	// default 20 s.
	Stall time.Duration
	// BackoffMin and BackoffMax bound the pause between two connections; default
	// 100 ms and 2 s.
	BackoffMin, BackoffMax time.Duration
}

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	size := func(n *int, to int) {
		if *n == 0 {
			*n = to
		}
	}
	size(&c.Window, 4<<20)
	size(&c.Batch, 256<<10)
	size(&c.MaxStreams, 8)
	set(&c.Stall, 20*time.Second)
	set(&c.BackoffMin, 100*time.Millisecond)
	set(&c.BackoffMax, 2*time.Second)
	return c
}

// Shipper ships the output of attempts. Made by [New]; safe for concurrent use.
type Shipper struct {
	cfg  Config
	open func(context.Context) (registryv1.WorkerAgentService_SendLogsClient, error)
	log  *slog.Logger
	wake chan struct{} // one token: there may be something to send

	mu      sync.Mutex // guards streams and what they say it guards
	streams []*Stream  // oldest first
}

// New returns a shipper that calls client with contexts of authorize, which adds
// the session's credentials.
func New(client registryv1.WorkerAgentServiceClient, authorize func(context.Context) context.Context, cfg Config, log *slog.Logger) *Shipper {
	return &Shipper{
		cfg: cfg.withDefaults(), log: log, wake: make(chan struct{}, 1),
		open: func(ctx context.Context) (registryv1.WorkerAgentService_SendLogsClient, error) {
			return client.SendLogs(authorize(ctx), grpc.WaitForReady(true))
		},
	}
}

// Open returns the stream of an attempt, whose chunks are numbered from 1. Call it
// once for each attempt.
func (s *Shipper) Open(jobID string, attempt int32) *Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.streams) >= s.cfg.MaxStreams {
		if i := slices.IndexFunc(s.streams, func(st *Stream) bool { return st.closed }); i >= 0 {
			old := s.streams[i]
			s.log.Warn("giving up output that was never acknowledged", "job_id", old.jobID, "attempt", old.attempt, "chunks", len(old.chunks))
			old.end()
		}
	}
	st := &Stream{shipper: s, jobID: jobID, attempt: attempt, flushed: make(chan struct{}), room: sync.NewCond(&s.mu)}
	s.streams = append(s.streams, st)
	return st
}

// Run ships until ctx ends. Nothing that happens to a connection ends it.
func (s *Shipper) Run(ctx context.Context) {
	pause, refusals := s.cfg.BackoffMin, 0
	for {
		for !s.waiting() {
			select {
			case <-s.wake:
			case <-ctx.Done():
				return
			}
		}
		progress, err := s.ship(ctx)
		if ctx.Err() != nil {
			return
		}
		s.log.Info("the log stream broke; what is not acknowledged is sent again", "error", err)
		switch {
		case progress:
			pause, refusals = s.cfg.BackoffMin, 0
		case refused(err):
			if refusals++; refusals%maxRefusals == 0 {
				s.giveUp(err)
			}
		}
		select {
		case <-time.After(pause/2 + rand.N(pause/2+1)):
		case <-ctx.Done():
			return
		}
		pause = min(2*pause, s.cfg.BackoffMax)
	}
}

// maxRefusals is how often the registry refuses output in a row before what lags
// behind is given up: it must not hold up the output of a job that runs.
const maxRefusals = 5

// refused says whether the registry does not want something that it was sent.
func refused(err error) bool {
	switch fault.KindOf(err) {
	case fault.Invalid, fault.NotFound, fault.Precondition, fault.Denied:
		return true
	default:
		return false
	}
}

// giveUp forgets the output of attempts that have ended.
func (s *Shipper) giveUp(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range slices.Clone(s.streams) {
		if st.closed {
			s.log.Warn("giving up output that the registry refuses", "job_id", st.jobID, "attempt", st.attempt, "chunks", len(st.chunks), "error", why)
			st.end()
		}
	}
}

// ship uses one connection to its end, and says whether anything was acknowledged.
func (s *Shipper) ship(ctx context.Context) (progress bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.open(ctx)
	if err != nil {
		return false, err
	}
	s.mu.Lock()
	for _, st := range s.streams {
		st.sent = 0
	}
	s.mu.Unlock()
	stalled := time.AfterFunc(s.cfg.Stall, func() {
		s.log.Warn("the registry acknowledges no output; trying another connection", "after", s.cfg.Stall)
		cancel()
	})
	defer stalled.Stop()
	received := make(chan error, 1)
	go func() {
		defer cancel()
		for {
			ack, err := stream.Recv()
			if err != nil {
				received <- err
				return
			}
			progress = s.acked(ack, stalled) || progress
		}
	}()
	s.send(ctx, stream, stalled)
	cancel()
	err = <-received // orders progress, too
	return progress, err
}

// send sends what there is until ctx ends or the stream breaks.
func (s *Shipper) send(ctx context.Context, stream registryv1.WorkerAgentService_SendLogsClient, stalled *time.Timer) {
	for {
		if m := s.next(stalled); m != nil {
			if stream.Send(m) != nil {
				return // Recv has the reason
			}
			continue
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		}
	}
}

// next takes the next message to send, nil when there is none. What is new goes
// before what lags behind: a job that runs does not wait for one that has ended.
func (s *Shipper) next(stalled *time.Timer) *registryv1.SendLogsRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.outstanding() {
		stalled.Reset(s.cfg.Stall)
	}
	for _, st := range slices.Backward(s.streams) {
		if st.sent < len(st.chunks) {
			return &registryv1.SendLogsRequest{JobId: st.jobID, Attempt: st.attempt, Chunks: st.batch(s.cfg.Batch)}
		}
	}
	if !s.outstanding() {
		stalled.Stop()
	}
	return nil
}

// outstanding says whether something was sent that is not acknowledged.
func (s *Shipper) outstanding() bool {
	return slices.ContainsFunc(s.streams, func(st *Stream) bool { return st.sent > 0 })
}

func (s *Shipper) acked(ack *registryv1.SendLogsResponse, stalled *time.Timer) (news bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range slices.Clone(s.streams) {
		if st.jobID == ack.GetJobId() && st.attempt == ack.GetAttempt() {
			news = st.acked(ack.GetAckedSeq()) || news
		}
	}
	switch {
	case !s.outstanding():
		stalled.Stop()
	case news:
		stalled.Reset(s.cfg.Stall)
	}
	return news
}

func (s *Shipper) waiting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.streams, func(st *Stream) bool { return len(st.chunks) > 0 })
}

func (s *Shipper) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Shipper) remove(st *Stream) {
	s.streams = slices.DeleteFunc(s.streams, func(x *Stream) bool { return x == st })
}
