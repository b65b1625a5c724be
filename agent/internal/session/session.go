package session

import (
	"context"
	"fmt"
	"sync"
	"time"

	"hodei.dev/agent/internal/guard"
	"hodei.dev/agent/internal/logs"
	"hodei.dev/agent/internal/uptime"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
)

// Goodbye begins the reason of an agent's last message.
const Goodbye = "goodbye: "

// patience is how long things may take at the end.
type patience struct {
	// flush is how long a result waits for its output to be stored.
	flush time.Duration
	// stop bounds the whole stop, and margin is the part of it after KILL.
	stop, margin time.Duration
	// bye is how long the registry may take to end the stream after the goodbye.
	bye time.Duration
}

var usualPatience = patience{flush: 10 * time.Second, stop: 15 * time.Second, margin: 2 * time.Second, bye: 2 * time.Second}

// Session is a registered agent. Made by [Register].
type Session struct {
	cfg    Config
	secret string
	terms  terms
	logs   *logs.Shipper
	limits patience
	now    func() time.Time // goes on while the machine is suspended

	ctx     context.Context // ends when the session is over, not when it is told to stop
	actions chan func()     // what happened, for the goroutine of Run
	over    chan struct{}   // closed when nobody takes actions any more
	work    sync.WaitGroup

	// The rest belongs to the goroutine of Run.
	conn         *conn // nil: none
	connections  int64 // so far: registry tells by it which Hello is the last one
	pause        time.Duration
	reconnectAt  time.Time
	refusal      error // why the registry does not take this session
	refusedSince time.Time

	seq        int64 // of the last heartbeat
	beatAt     time.Time
	leaseUntil time.Time // zero: none is held
	guarded    time.Time // what the guard was told last

	cur     *attempt // nil: none
	ending  int      // attempts that were dropped and still end
	lagging int      // attempts that are over but for their output
	waiting func()   // a Run that waits until nothing is ending
	seen    memory

	stopping   string // why nothing new is taken; empty: it is
	terminated bool   // nothing is to be finished
	leaveBy    time.Time
	killBy     time.Time
	byeBy      time.Time
	gone       bool
}

func newSession(cfg Config, secret string, t terms) *Session {
	cfg.Token = "" // used up
	s := &Session{cfg: cfg, secret: secret, terms: t, limits: usualPatience, now: uptime.Clock(), actions: make(chan func()), over: make(chan struct{}), pause: backoffMin}
	s.logs = logs.New(cfg.Client, s.authorize, cfg.Logs, cfg.Log)
	return s
}

// Run serves the worker until the registry ends its life or ctx ends; then the
// attempt that runs is cancelled and its result delivered, within 15 s. It returns
// nil in both cases, and an error where the registry does not know the session
// any more. Call it once.
func (s *Session) Run(ctx context.Context) error {
	var cancel context.CancelFunc
	s.ctx, cancel = context.WithCancel(context.WithoutCancel(ctx))
	defer s.work.Wait()
	defer close(s.over)
	defer cancel()
	s.work.Go(func() { s.logs.Run(s.ctx) })

	stop := ctx.Done()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		s.tick(s.now())
		if s.gone {
			return s.farewell()
		}
		var out chan<- *registryv1.ConnectRequest
		var head *registryv1.ConnectRequest
		if c := s.conn; c != nil && c.open && len(c.queue) > 0 {
			out, head = c.out, c.queue[0]
		}
		timer.Reset(s.sleep())
		select {
		case f := <-s.actions:
			s.lapse(s.now()) // before anything that came meanwhile
			f()
		case out <- head:
			s.conn.queue = s.conn.queue[1:]
		case <-timer.C:
		case <-stop:
			stop = nil
			s.stop(context.Cause(ctx))
		}
	}
}

// post has f called by the goroutine of Run, if it still runs.
func (s *Session) post(f func()) {
	select {
	case s.actions <- f:
	case <-s.over:
	}
}

// tick does what is due.
func (s *Session) tick(now time.Time) {
	s.lapse(now)
	s.watch(now)
	due := func(t time.Time) bool { return !t.IsZero() && !now.Before(t) }
	if c := s.conn; c != nil && !c.closing && due(c.heard.Add(s.terms.silence())) {
		s.cut("nothing came from the registry for " + s.terms.silence().String())
	}
	if a := s.cur; a != nil && s.connected() && due(a.flushBy) {
		a.flushBy = time.Time{}
		a.out.Deafen()
		s.conclude(a)
	}
	if due(s.killBy) {
		s.killBy = time.Time{}
		if a := s.cur; a != nil && a.proc != nil {
			a.proc.Kill(s.stopping)
		}
	}
	s.leave(due(s.leaveBy))
	if due(s.byeBy) {
		s.gone = true
	}
	if s.gone {
		return
	}
	if !s.refusedSince.IsZero() && due(s.refusedSince.Add(s.terms.lease)) && !s.cur.running() {
		s.gone = true
		return
	}
	switch {
	case s.conn == nil && !now.Before(s.reconnectAt):
		s.connect(now)
	case s.connected() && !s.conn.closing && due(s.beatAt):
		s.heartbeat(now)
	}
}

// next is when tick has something to do, if nothing happens before.
func (s *Session) next() time.Time {
	next := s.now().Add(time.Hour)
	for _, t := range []time.Time{s.leaseUntil, s.killBy, s.leaveBy, s.byeBy} {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	sooner := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	switch c := s.conn; {
	case c == nil:
		sooner(s.reconnectAt)
	case !c.closing:
		sooner(c.heard.Add(s.terms.silence()))
		if c.welcomed {
			sooner(s.beatAt)
		}
	}
	if s.cur != nil && s.connected() && !s.cur.flushBy.IsZero() {
		sooner(s.cur.flushBy)
	}
	return next
}

// connected says whether the registry listens.
func (s *Session) connected() bool { return s.conn != nil && s.conn.welcomed }

// received handles one message of the registry.
func (s *Session) received(c *conn, m *registryv1.ConnectResponse) {
	if c != s.conn {
		return
	}
	now, traceparent := s.now(), m.GetTraceparent()
	c.heard = now
	if w := m.GetWelcome(); w != nil && !c.welcomed {
		s.welcome(c, w, now)
	}
	// A permission that comes without a lease is too late: somebody else may have
	// been given the job. What ends something is never too late.
	late := !now.Before(s.leaseUntil)
	switch m := m.GetMessage().(type) {
	case *registryv1.ConnectResponse_Run:
		s.onRun(m.Run, traceparent)
	case *registryv1.ConnectResponse_Start:
		if !late {
			s.onStart(key{m.Start.GetJobId(), m.Start.GetAttempt()})
		}
	case *registryv1.ConnectResponse_Drop:
		s.onDrop(key{m.Drop.GetJobId(), m.Drop.GetAttempt()}, m.Drop.GetReason())
	case *registryv1.ConnectResponse_Cancel:
		s.onCancel(key{m.Cancel.GetJobId(), m.Cancel.GetAttempt()}, m.Cancel.GetReason())
	case *registryv1.ConnectResponse_ResultAck:
		s.onResultAck(key{m.ResultAck.GetJobId(), m.ResultAck.GetAttempt()})
	case *registryv1.ConnectResponse_HeartbeatAck:
		s.renew(c, m.HeartbeatAck.GetSequence())
	case *registryv1.ConnectResponse_Terminate:
		s.terminate(m.Terminate.GetReason(), time.Duration(m.Terminate.GetGraceNanos()))
	}
}

// lapse ends what runs where the lease is over.
func (s *Session) lapse(now time.Time) {
	if !s.leaseUntil.IsZero() && !now.Before(s.leaseUntil) {
		s.expire()
	}
}

// watch tells the guard until when something may run: the lease, and the grace in
// which this process itself ends it.
func (s *Session) watch(now time.Time) {
	var until time.Time
	runs := s.cur != nil && s.cur.started && !s.cur.ended
	if runs {
		until = s.leaseUntil.Add(s.terms.grace)
	}
	// While it is being ended, what the guard was told stands.
	ending := s.ending > 0 || runs && s.leaseUntil.IsZero()
	if s.cfg.Guard == nil || ending || until.Equal(s.guarded) {
		return
	}
	s.guarded = until
	if err := s.cfg.Guard.Until(guard.At(until, now)); err != nil {
		s.cfg.Log.Error("without its guard, what a stopped agent runs does not end with its lease", "error", err, "alert", true)
		s.cfg.Guard = nil
	}
}

// lookEvery is how often the clock is looked at while something runs: timers stand
// still while the machine is suspended.
const lookEvery = time.Second

// sleep is how long nothing is due, if nothing happens before.
func (s *Session) sleep() time.Duration {
	d := s.next().Sub(s.now())
	if s.cur.running() {
		d = min(d, lookEvery)
	}
	return d
}

// expire ends what runs: the registry may have given the attempt up. The stream,
// if there is one, hangs.
func (s *Session) expire() {
	s.leaseUntil = time.Time{}
	if a := s.cur; a != nil && !a.ended {
		s.cfg.Log.Warn("the lease has expired", "job_id", a.job, "attempt", a.attempt, "started", a.started)
		if a.started {
			a.lapsed = true
			a.end(infrastructure, "the lease expired: no word from the registry for "+s.terms.lease.String())
		} else if a.out == nil {
			s.cur = nil // the log has not given the permission to start it
		}
	}
	s.cut("no heartbeat was answered within the lease of " + s.terms.lease.String())
}

// stop ends the attempt, delivers its result, and leaves.
func (s *Session) stop(cause error) {
	if s.stopping != "" {
		return
	}
	s.stopping = fmt.Sprintf("the worker was told to stop (%v)", cause)
	s.cfg.Log.Info("stopping", "reason", s.stopping)
	now := s.now()
	s.leaveBy, s.killBy = now.Add(s.limits.stop), now.Add(s.limits.stop-s.limits.margin)
	s.send(stopping(s.stopping))
	switch a := s.cur; {
	case a == nil:
	case a.started:
		a.end(infrastructure, s.stopping)
	case a.out == nil:
		s.never(a, infrastructure, s.stopping)
	}
}

// terminate ends the worker: with a grace its attempt gets TERM, then KILL, and its
// result counts; without, it is killed at once and is no longer the worker's own to
// report, unless it had ended by itself.
func (s *Session) terminate(reason string, grace time.Duration) {
	if s.terminated {
		return
	}
	s.terminated = true
	s.stopping = "terminated: " + reason
	s.cfg.Log.Info("the worker's life is over", "reason", reason)
	now := s.now()
	s.leaveBy, s.killBy = now.Add(grace+s.limits.flush), time.Time{}
	switch a := s.cur; {
	case a == nil:
	case a.running() && grace > 0:
		a.end(infrastructure, s.stopping)
		s.killBy = now.Add(grace)
	case a.running():
		a.unreported = true
		a.end(infrastructure, s.stopping)
		a.proc.Kill(s.stopping)
	case a.out == nil:
		s.release(a)
	}
}

// leave says goodbye once there is nothing left to do, or no more time for it.
func (s *Session) leave(late bool) {
	if s.leaveBy.IsZero() || !s.byeBy.IsZero() || !late && (s.cur != nil || s.ending > 0 || s.lagging > 0) {
		return
	}
	s.leaveBy = time.Time{}
	if s.conn == nil || !s.conn.open || s.cur.running() || s.ending > 0 {
		s.gone = true // nobody listens, or it would be a lie
		return
	}
	s.conn.queue = append(s.conn.queue, stopping(Goodbye+s.stopping), nil)
	s.conn.closing = true
	s.byeBy = s.now().Add(s.limits.bye)
}

// farewell is what Run returns.
func (s *Session) farewell() error {
	if s.stopping == "" && s.refusal != nil {
		return fmt.Errorf("the registry does not know this worker's session any more: %w", s.refusal)
	}
	return nil
}
