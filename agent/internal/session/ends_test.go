//go:build linux

package session

import (
	"errors"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hodei.dev/agent/internal/registrytest"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
)

func TestLeaseExpires(t *testing.T) {
	r := registrytest.New(t)
	r.Heartbeat, r.Lease, r.Grace = "50ms", "600ms", "100ms"
	a := begin(t, r)
	s, _ := r.Attach(t)
	t.Run("kills what runs", func(t *testing.T) {
		running := filepath.Join(a.dir, "running")
		started(t, s, sh("j", 1, "trap '' TERM; touch "+running+"; while :; do sleep 0.01; done"))
		awaitFile(t, running)
		r.Mute.Store(true)
		// It tries other streams while the lease lasts; none of them says anything.
		for {
			s = r.Next(t)
			if h := s.Hello(t); h.GetJobId() != "j" || !h.GetStarted() {
				t.Fatalf("%v", h)
			}
			if a.expired() {
				break
			}
			s.Cut(nil)
		}
		r.Mute.Store(false)
		s.Welcome(t, 9)
		res := s.Result(t, "j", 1)
		if res.GetCategory() != infrastructure || !strings.Contains(res.GetFailureMessage(), "lease expired") || res.GetSignal() != 9 {
			t.Errorf("%v", res)
		}
		s.AckResult(t, "j", 1)
	})
	t.Run("drops what has not started", func(t *testing.T) {
		s.Run(t, sh("k", 1, "true"), "")
		s.Accepted(t, "k", 1)
		r.Mute.Store(true)
		for {
			s = r.Next(t)
			h := s.Hello(t)
			if h.GetJobId() == "" {
				break
			}
			s.Cut(nil)
		}
		r.Mute.Store(false)
		s.Welcome(t, 10)
		started(t, s, sh("k", 1, "true")) // handed over again: the log has no RUNNING of it
		s.Result(t, "k", 1)
		s.AckResult(t, "k", 1)
	})
	a.leave(t, s)
}

// A machine that was suspended has no timers that went on: the first look at the
// clock ends what runs, and what comes with it renews nothing.
func TestSuspendedMachine(t *testing.T) {
	r := registrytest.New(t)
	r.Heartbeat, r.Lease = "100ms", "30s"
	var slept atomic.Int64
	a := begin(t, r, func(s *Session) {
		s.now = func() time.Time { return time.Now().Round(0).Add(time.Duration(slept.Load())) }
	})
	s, _ := r.Attach(t)
	running := filepath.Join(a.dir, "running")
	started(t, s, sh("j", 1, untilKilled(running)))
	awaitFile(t, running)
	slept.Store(int64(time.Hour))
	s, _ = r.Attach(t)
	if res := s.Result(t, "j", 1); res.GetCategory() != infrastructure || !strings.Contains(res.GetFailureMessage(), "lease expired") {
		t.Errorf("%v", res)
	}
	s.AckResult(t, "j", 1)
	a.leave(t, s)
}

// expired asks the session's own goroutine.
func (a *agent) expired() bool {
	answer := make(chan bool, 1)
	a.post(func() { answer <- a.cur == nil || a.cur.cause == infrastructure })
	return <-answer
}

// Only answers to what was sent lately renew the lease, not whatever comes.
func TestChatterRenewsNoLease(t *testing.T) {
	r := registrytest.New(t)
	r.Heartbeat, r.Lease, r.Grace = "50ms", "500ms", "100ms"
	a := begin(t, r)
	s, _ := r.Attach(t)
	running := filepath.Join(a.dir, "running")
	started(t, s, sh("j", 1, untilKilled(running)))
	awaitFile(t, running)
	r.Mute.Store(true)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(registrytest.Patience); !a.expired(); <-tick.C {
		s.Cancel(t, "somebody else's", 1, "chatter")
		if time.Now().After(end) {
			t.Fatal("the job lives on")
		}
	}
	r.Mute.Store(false)
	s, _ = r.Attach(t)
	if res := s.Result(t, "j", 1); res.GetCategory() != infrastructure {
		t.Errorf("%v", res)
	}
	s.AckResult(t, "j", 1)
	a.leave(t, s)
}

func TestTerminate(t *testing.T) {
	r := registrytest.New(t)
	t.Run("while a job runs", func(t *testing.T) {
		a := begin(t, r)
		s, _ := r.Attach(t)
		running := filepath.Join(a.dir, "running")
		started(t, s, sh("t1", 1, "trap '' TERM; echo out; "+untilKilled(running)))
		awaitFile(t, running)
		a.leave(t, s) // the goodbye comes next, and no result
		if out := r.Output("t1"); string(out.Stdout) != "out\n" || !out.EOF {
			t.Errorf("%+v", out)
		}
	})
	t.Run("with a grace", func(t *testing.T) {
		a := begin(t, r)
		s, _ := r.Attach(t)
		running := filepath.Join(a.dir, "running")
		started(t, s, sh("t3", 1, "trap 'echo saved; exit 0' TERM; touch "+running+"; while :; do sleep 0.01; done"))
		awaitFile(t, running)
		s.Say(t, &registryv1.ConnectResponse{Message: &registryv1.ConnectResponse_Terminate{Terminate: &registryv1.Terminate{
			Reason: "an operator", GraceNanos: int64(time.Minute),
		}}})
		res := s.Result(t, "t3", 1)
		if res.GetCategory() != infrastructure || !strings.Contains(res.GetFailureMessage(), "an operator") || res.GetSignal() != 0 {
			t.Errorf("%v", res)
		}
		if out := r.Output("t3"); string(out.Stdout) != "saved\n" {
			t.Errorf("what it said at its end: %+v", out)
		}
		s.AckResult(t, "t3", 1)
		s.Stopping(t)
		s.Closed(t)
		if err := a.gone(t); err != nil {
			t.Error(err)
		}
	})
	t.Run("a worker that is going gets no lease", func(t *testing.T) {
		q := registrytest.New(t)
		q.Heartbeat, q.Lease, q.Grace = "50ms", "600ms", "100ms"
		a := begin(t, q)
		s, _ := q.Attach(t)
		running := filepath.Join(a.dir, "running")
		started(t, s, sh("t4", 1, untilKilled(running)))
		awaitFile(t, running)
		q.Mute.Store(true)
		for !a.expired() { // each stream says that the worker is going, and nothing else
			s.Cut(nil)
			s = q.Next(t)
			s.Hello(t)
			s.Say(t, &registryv1.ConnectResponse{Message: &registryv1.ConnectResponse_Welcome{Welcome: &registryv1.Welcome{Epoch: 9, Going: true}}})
		}
		s.Cut(nil)
		s = q.Next(t)
		s.Hello(t)
		s.Terminate(t, "gone")
		s.Cut(nil)
		if err := a.gone(t); err != nil {
			t.Error(err)
		}
	})
	t.Run("before a job starts", func(t *testing.T) {
		a := begin(t, r)
		s, _ := r.Attach(t)
		s.Run(t, sh("t2", 1, "true"), "")
		s.Accepted(t, "t2", 1)
		a.leave(t, s)
	})
	t.Run("before welcome, and the stream ends", func(t *testing.T) {
		a := begin(t, r)
		s := r.Next(t)
		s.Hello(t)
		s.Terminate(t, "gone")
		s.Stopping(t)
		s.Cut(nil)
		if err := a.gone(t); err != nil {
			t.Error(err)
		}
	})
}

func TestToldToStop(t *testing.T) {
	r := registrytest.New(t)
	r.Grace = "200ms"
	t.Run("idle", func(t *testing.T) {
		a := begin(t, r)
		s, _ := r.Attach(t)
		s.Run(t, &registryv1.Run{}, "")
		s.Refused(t, "", 0) // so it has heard the Welcome
		a.stop(errors.New("terminated"))
		if why := s.Stopping(t); !strings.Contains(why, "terminated") || strings.HasPrefix(why, Goodbye) {
			t.Errorf("%q", why)
		}
		if why := s.Stopping(t); !strings.HasPrefix(why, Goodbye) {
			t.Errorf("%q", why)
		}
		s.Closed(t)
		if err := a.gone(t); err != nil {
			t.Error(err)
		}
	})
	t.Run("while a job runs, over a reconnect", func(t *testing.T) {
		a := begin(t, r)
		s, _ := r.Attach(t)
		running := filepath.Join(a.dir, "running")
		started(t, s, sh("s1", 1, "trap '' TERM; "+untilKilled(running)))
		awaitFile(t, running)
		a.stop(errors.New("terminated"))
		s.Stopping(t)
		s.Run(t, sh("s2", 1, "true"), "")
		s.Refused(t, "s2", 1)
		s.Cut(nil)
		s, _ = r.Attach(t)
		s.Stopping(t)
		res := s.Result(t, "s1", 1)
		if res.GetCategory() != infrastructure || !strings.Contains(res.GetFailureMessage(), "told to stop") {
			t.Errorf("%v", res)
		}
		s.AckResult(t, "s1", 1)
		if why := s.Stopping(t); !strings.HasPrefix(why, Goodbye) {
			t.Errorf("%q", why)
		}
		s.Closed(t)
		if err := a.gone(t); err != nil {
			t.Error(err)
		}
	})
	t.Run("before a job starts", func(t *testing.T) {
		a := begin(t, r)
		s, _ := r.Attach(t)
		s.Run(t, sh("s3", 1, "true"), "")
		s.Accepted(t, "s3", 1)
		a.stop(errors.New("terminated"))
		s.Stopping(t)
		if res := s.Result(t, "s3", 1); res.GetCategory() != infrastructure {
			t.Errorf("%v", res)
		}
		s.AckResult(t, "s3", 1)
		s.Stopping(t)
		s.Closed(t)
		if err := a.gone(t); err != nil {
			t.Error(err)
		}
	})
	t.Run("while nobody answers", func(t *testing.T) {
		a := begin(t, r, func(s *Session) { s.limits.stop, s.limits.margin = 300*time.Millisecond, 200*time.Millisecond })
		s, _ := r.Attach(t)
		running := filepath.Join(a.dir, "running")
		started(t, s, sh("s4", 1, "trap '' TERM; "+untilKilled(running)))
		awaitFile(t, running)
		a.stop(errors.New("terminated"))
		s.Stopping(t)
		s.Result(t, "s4", 1) // never acknowledged
		s.Stopping(t)
		s.Closed(t)
		if err := a.gone(t); err != nil {
			t.Error(err)
		}
	})
}
