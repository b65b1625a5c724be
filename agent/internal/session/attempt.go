package session

import (
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"hodei.dev/agent/internal/logs"
	"hodei.dev/agent/internal/run"
	"hodei.dev/libs/platform/proctree"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
)

const (
	infrastructure = run.Infrastructure
	cancelled      = run.Cancelled
)

// attempt is one attempt of a job, from Run to the acknowledgement of its result.
// Its fields belong to the session's goroutine.
type attempt struct {
	key
	run         *registryv1.Run
	traceparent string
	log         *slog.Logger

	started bool
	proc    *run.Process // nil: not started
	out     *logs.Stream // nil: neither started nor concluded

	cause, reason string    // why the agent ends it: a category; empty: it does not
	lapsed        bool      // the lease ran out while it ran
	unreported    bool      // its worker was terminated: no result, unless it ended by itself
	dropped       bool      // it is not the agent's any more
	ended         bool      // nothing of it runs
	flushBy       time.Time // when the result waits no longer for the output
	hurried       bool      // that time is over
	flushed       bool      // its output is stored
	lags          bool      // it is over but for its output
	result        *registryv1.Result
	ready         bool // the result may be sent
}

// running says whether something of it may run.
func (a *attempt) running() bool { return a != nil && a.proc != nil && !a.ended }

// end asks what runs to end: TERM, then KILL. The first cause is the one.
func (a *attempt) end(category, reason string) {
	if a.cause == "" && a.proc != nil {
		a.cause, a.reason = category, reason
		a.proc.Cancel(reason)
	}
}

func (s *Session) onRun(r *registryv1.Run, traceparent string) {
	k := key{r.GetJobId(), r.GetAttempt()}
	fate, known := s.seen.get(k)
	switch {
	case s.cur != nil && s.cur.key == k:
		s.accept(k, traceparent)
		return
	case known && fate.over:
		s.refuse(k, traceparent, "this attempt is over here: "+fate.reason)
		return
	case s.stopping != "":
		s.refuse(k, traceparent, s.stopping)
		return
	case s.cur != nil:
		s.refuse(k, traceparent, fmt.Sprintf("busy with attempt %d of job %s", s.cur.attempt, s.cur.job))
		return
	}
	if problem := unfit(r); problem != "" {
		s.refuse(k, traceparent, problem)
		return
	}
	if s.ending > 0 { // in a moment what was dropped is dead
		s.waiting = func() { s.onRun(r, traceparent) }
		return
	}
	s.cur = &attempt{
		key: k, run: r, traceparent: traceparent,
		log: s.cfg.Log.With("job_id", k.job, "attempt", k.attempt, "correlation_id", r.GetCorrelationId()),
	}
	s.cur.log.Info("accepted")
	s.accept(k, traceparent)
	if known {
		s.never(s.cur, cancelled, fate.reason)
	}
}

// unfit says what makes a Run senseless. What is wrong with the job itself is for
// its result to say.
func unfit(r *registryv1.Run) string {
	switch {
	case r.GetJobId() == "":
		return "there is no job id"
	case r.GetAttempt() < 1:
		return "attempts count from 1"
	case len(r.GetCommand()) == 0 && len(r.GetScript()) == 0:
		return "there is neither a command nor a script"
	case r.GetTimeoutNanos() < 0 || r.GetCpuMillis() < 0 || r.GetMemoryBytes() < 0:
		return "a limit is negative"
	}
	return ""
}

func (s *Session) accept(k key, traceparent string) {
	s.send(&registryv1.ConnectRequest{
		Message:     &registryv1.ConnectRequest_Accepted{Accepted: &registryv1.Accepted{JobId: k.job, Attempt: k.attempt}},
		Traceparent: traceparent,
	})
}

func (s *Session) refuse(k key, traceparent, reason string) {
	s.cfg.Log.Warn("refused", "job_id", k.job, "attempt", k.attempt, "reason", reason)
	s.send(&registryv1.ConnectRequest{
		Message:     &registryv1.ConnectRequest_Refused{Refused: &registryv1.Refused{JobId: k.job, Attempt: k.attempt, Reason: reason}},
		Traceparent: traceparent,
	})
}

func (s *Session) onStart(k key) {
	a := s.cur
	if a == nil || a.key != k {
		if _, known := s.seen.get(k); !known {
			// The log says that it runs here. A new Hello says that it does not.
			s.cut(fmt.Sprintf("the registry started attempt %d of job %s, which is not here", k.attempt, k.job))
		}
		return
	}
	if a.started || a.out != nil {
		return
	}
	a.started = true
	s.watch(s.now()) // the guard knows of it before it runs
	a.out = s.logs.Open(k.job, k.attempt)
	a.proc = s.cfg.Runner.Start(s.spec(a), a.out)
	a.log.Info("started", "pid", a.proc.PID())
	s.work.Go(func() { s.follow(a) })
}

// spec is what the runner is to run.
func (s *Session) spec(a *attempt) run.Spec {
	r := a.run
	spec := run.Spec{
		JobID: a.job, Attempt: int(a.attempt), Namespace: r.GetNamespace(), Command: r.GetCommand(), Env: map[string]string{},
		Cwd: r.GetCwd(), Stdin: r.GetStdin(), Timeout: time.Duration(r.GetTimeoutNanos()), KillGrace: s.terms.grace, RunAs: s.cfg.RunAs,
		Limits:  proctree.Limits{MemoryBytes: r.GetMemoryBytes(), CPUMillis: r.GetCpuMillis(), PIDs: s.cfg.Limits.PIDs},
		WorkDir: filepath.Join(s.cfg.JobsDir, dirName(a.key)),
	}
	if spec.Limits.MemoryBytes == 0 {
		spec.Limits.MemoryBytes = s.cfg.Limits.MemoryBytes
	}
	if spec.Limits.CPUMillis == 0 {
		spec.Limits.CPUMillis = s.cfg.Limits.CPUMillis
	}
	if len(r.GetScript()) > 0 {
		spec.Script = &run.Script{Interpreter: r.GetInterpreter(), Content: r.GetScript()}
	}
	maps.Copy(spec.Env, r.GetEnv())
	for k, v := range map[string]string{
		"HODEI_JOB_NAME": r.GetName(), "HODEI_WORKER_ID": s.cfg.WorkerID,
		"HODEI_CORRELATION_ID": r.GetCorrelationId(), "TRACEPARENT": a.traceparent,
	} {
		if v != "" {
			spec.Env[k] = v
		}
	}
	return spec
}

// dirName names the directory of an attempt; ids of jobs may hold what names of
// files must not.
func dirName(k key) string {
	safe := strings.Map(func(r rune) rune {
		if r == '-' || r == '_' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' {
			return r
		}
		return '_'
	}, k.job)
	return safe[:min(len(safe), 100)] + "-" + strconv.Itoa(int(k.attempt))
}

// follow tells the session how the attempt goes on, in a goroutine of its own.
func (s *Session) follow(a *attempt) {
	wait := func(c <-chan struct{}, then func(*attempt)) bool {
		select {
		case <-c:
			s.post(func() { then(a) })
			return true
		case <-s.over:
			return false
		}
	}
	if a.proc == nil || wait(a.proc.Ended(), s.onEnded) && wait(a.proc.Done(), s.onDone) {
		wait(a.out.Flushed(), s.onFlushed)
	}
}

// onEnded: nothing of it runs; its output may still be on its way.
func (s *Session) onEnded(a *attempt) {
	a.ended = true
	if !a.dropped {
		a.flushBy = s.now().Add(s.limits.flush)
	}
}

// onDone: how it ended is known, and all its output is with the shipper.
func (s *Session) onDone(a *attempt) {
	res := a.proc.Result()
	a.out.Close(res.Dropped)
	a.log.Info("ended", "category", res.Category, "message", res.Message, "exit_code", res.ExitCode, "dropped", a.dropped)
	switch {
	case a.dropped:
		s.ending--
		if next := s.waiting; next != nil && s.ending == 0 {
			s.waiting = nil
			next()
		}
		return
	case a.unreported && res.Cancelled:
		s.release(a)
		return
	}
	a.result = report(a, res)
	if a.hurried {
		s.conclude(a)
	}
}

// report is the result as the registry wants it.
func report(a *attempt, res run.Result) *registryv1.Result {
	r := &registryv1.Result{
		JobId: a.job, Attempt: a.attempt, Signal: int32(res.Signal), Category: res.Category, FailureMessage: res.Message,
		CpuUserNanos: res.Usage.CPUUser.Nanoseconds(), CpuSystemNanos: res.Usage.CPUSystem.Nanoseconds(), MaxRssBytes: res.Usage.MaxRSSBytes,
		StartedAt: timestamppb.New(res.StartedAt), FinishedAt: timestamppb.New(res.FinishedAt),
		LogBytes: a.out.Bytes(), LogDropped: res.Dropped,
	}
	if res.ExitCode != run.NoExitCode {
		code := int32(res.ExitCode)
		r.ExitCode = &code
	}
	guarded := a.lapsed && res.Signal == int(syscall.SIGKILL)    // the guard was quicker
	if (res.Cancelled || guarded) && a.cause == infrastructure { // it was nobody's wish
		r.Category, r.FailureMessage = infrastructure, a.reason
	}
	return r
}

// never concludes an attempt without running it.
func (s *Session) never(a *attempt, category, reason string) {
	if reason == "" {
		reason = "no reason was given"
	}
	now := timestamppb.New(time.Now())
	a.result = &registryv1.Result{
		JobId: a.job, Attempt: a.attempt, Category: category, FailureMessage: "it was ended before it started: " + reason, StartedAt: now, FinishedAt: now,
	}
	a.log.Info("ended before it started", "category", category, "reason", reason)
	a.ended = true
	a.out = s.logs.Open(a.job, a.attempt)
	a.out.Close(0) // readers of its log learn that there is none
	a.flushBy = s.now().Add(s.limits.flush)
	s.work.Go(func() { s.follow(a) })
}

func (s *Session) onFlushed(a *attempt) {
	a.flushed = true
	if a.lags {
		a.lags = false
		s.lagging--
	}
	if a == s.cur {
		s.conclude(a)
	}
}

// conclude lets the result go, as soon as there is one.
func (s *Session) conclude(a *attempt) {
	a.hurried, a.flushBy = true, time.Time{}
	if a.result == nil || a.ready {
		return
	}
	a.ready = true
	s.sendResult(a)
}

func (s *Session) sendResult(a *attempt) {
	s.send(&registryv1.ConnectRequest{Message: &registryv1.ConnectRequest_Result{Result: a.result}, Traceparent: a.traceparent})
}

func (s *Session) onResultAck(k key) {
	if a := s.cur; a != nil && a.key == k && a.ready {
		s.release(a)
	}
}

// release forgets an attempt that is over here, but for its output.
func (s *Session) release(a *attempt) {
	s.seen.put(a.key, fate{over: true, reason: "it has ended"})
	s.cur = nil
	if a.out != nil && !a.flushed {
		a.lags = true
		s.lagging++
	}
}

func (s *Session) onDrop(k key, reason string) {
	if a := s.cur; a != nil && a.key == k {
		a.log.Info("dropped", "reason", reason)
		s.cur, a.dropped = nil, true
		if a.proc != nil {
			a.proc.Kill("dropped: " + reason)
			if a.result == nil {
				s.ending++ // until onDone
			}
		}
		if a.out != nil {
			a.out.Abandon()
		}
	}
	s.seen.put(k, fate{over: true, reason: "dropped: " + reason})
}

func (s *Session) onCancel(k key, reason string) {
	a := s.cur
	switch {
	case a == nil || a.key != k:
		s.seen.put(k, fate{reason: reason})
	case a.started:
		a.log.Info("cancelled", "reason", reason)
		a.end(cancelled, reason)
	case a.out == nil:
		s.never(a, cancelled, reason)
	}
}

// traceparent is that of the attempt at hand.
func (s *Session) traceparent() string {
	if s.cur == nil {
		return ""
	}
	return s.cur.traceparent
}
