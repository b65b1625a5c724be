package session

import (
	"context"
	"strings"
	"time"

	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/service/command"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
	"hodei.dev/services/registry/core"
	"hodei.dev/services/registry/internal/app"
	"hodei.dev/services/registry/internal/nats"
)

// reconcile tells the agent what follows from what it has.
func (s *session) reconcile(ctx context.Context, held core.Held) error {
	op, cancel := operation(ctx)
	defer cancel()
	plan, err := s.m.App.Reconcile(op, s.at, held)
	if err != nil {
		return err
	}
	if plan.Lost {
		s.log.WarnContext(ctx, "the agent is back without the attempt that its worker had")
	}
	switch {
	case plan.Drop:
		s.drop(held.JobID, held.Attempt, plan.Reason)
	case plan.Begin:
		if err := s.begin(ctx, held.JobID, held.Attempt); err != nil {
			return err
		}
	case plan.Start:
		s.start(held.JobID, held.Attempt)
	}
	if plan.Cancel && !plan.Begin {
		s.cancel(held.JobID, held.Attempt, "cancelled")
	}
	s.noteHeld()
	return nil
}

// said is a message of the agent.
func (s *session) said(ctx context.Context, r *registryv1.ConnectRequest) error {
	defer s.noteHeld()
	switch m := r.GetMessage().(type) {
	case *registryv1.ConnectRequest_Accepted:
		jobID, attempt := m.Accepted.GetJobId(), int(m.Accepted.GetAttempt())
		if s.waitsFor(jobID, attempt) {
			s.answerHandOver(command.Reply{OK: true})
		}
		return s.begin(ctx, jobID, attempt)
	case *registryv1.ConnectRequest_Refused:
		if s.waitsFor(m.Refused.GetJobId(), int(m.Refused.GetAttempt())) {
			s.answerHandOver(command.Reply{Reason: "the agent refused: " + core.Clean(m.Refused.GetReason(), 256)})
		}
	case *registryv1.ConnectRequest_Result:
		return s.result(ctx, m.Result)
	case *registryv1.ConnectRequest_Stopping:
		s.stopping = true
		s.goodbye = s.goodbye || strings.HasPrefix(m.Stopping.GetReason(), goodbye)
		op, cancel := operation(ctx)
		defer cancel()
		if err := s.m.App.Stopping(op, s.at, m.Stopping.GetReason()); err != nil {
			return err
		}
		s.leaveIfGoing()
	}
	return nil
}

// told is a command to the session.
func (s *session) told(ctx context.Context, c nats.Command) error {
	defer s.noteHeld()
	switch c.Kind {
	case command.Run:
		return s.handTo(ctx, c)
	case command.Cancel:
		// An attempt that has not started is ended instead of being started: see app.Begin.
		if s.m.App.CancelRunning(s.at, c.JobID, c.Attempt) {
			s.cancel(c.JobID, c.Attempt, c.Reason)
		}
		c.Reply(command.Reply{OK: true})
	case command.Terminate:
		s.terminate(c.Reason, c.Grace.D())
		c.Reply(command.Reply{OK: true})
	case command.Ping:
		silent := s.m.Now().Sub(time.Unix(0, s.lastBeat.Load()))
		c.Reply(command.Reply{OK: silent < deadline.Silence, Reason: silent.String()})
	case command.Supersede:
		return errSuperseded
	default:
		c.Reply(command.Reply{Reason: "unknown command " + string(c.Kind)})
	}
	return nil
}

// handTo sends the agent the attempt of a RUN command. The dispatcher hears of it
// when the agent has accepted.
func (s *session) handTo(ctx context.Context, c nats.Command) error {
	if s.stopping || s.leaving != nil {
		c.Reply(command.Reply{Reason: "the agent is stopping"})
		return nil
	}
	if h := s.handOver; h != nil {
		if h.jobID != c.JobID || h.attempt != c.Attempt {
			c.Reply(command.Reply{Reason: "another attempt is being handed over"})
			return nil
		}
		// The agent has been asked: its answer is for both. A refusal would end an attempt
		// that the agent is about to accept.
		h.commands = append(h.commands, c)
		return nil
	}
	op, cancel := operation(ctx)
	defer cancel()
	p, err := s.m.App.Prepare(op, s.at, c.Request)
	switch {
	case err != nil:
		c.Reply(command.Reply{Reason: err.Error()})
		s.log.InfoContext(ctx, "an attempt is not handed over", "job", c.JobID, "attempt", c.Attempt, "error", err)
		return nil
	case s.at.Superseded():
		c.Reply(command.Reply{Gone: true, Reason: "the agent has a newer session"})
		return errSuperseded
	case p.Ended:
		s.drop(c.JobID, c.Attempt, "it was cancelled before it started")
		c.Reply(command.Reply{OK: true, Reason: "cancelled before it started"})
		s.leaveIfGoing()
		return nil
	}
	s.handOver = &handOver{commands: []nats.Command{c}, jobID: c.JobID, attempt: c.Attempt, late: time.NewTimer(acceptTimeout)}
	s.send(&registryv1.ConnectResponse{Message: &registryv1.ConnectResponse_Run{Run: runOf(p)}}, p.TraceParent)
	return nil
}

func (s *session) waitsFor(jobID string, attempt int) bool {
	return s.handOver != nil && s.handOver.jobID == jobID && s.handOver.attempt == attempt
}

func (s *session) answerHandOver(r command.Reply) {
	if s.handOver == nil {
		return
	}
	s.handOver.late.Stop()
	for _, c := range s.handOver.commands {
		c.Reply(r)
	}
	s.handOver = nil
}

// begin has the log give the permission, and passes it on.
func (s *session) begin(ctx context.Context, jobID string, attempt int) error {
	op, cancel := operation(ctx)
	defer cancel()
	v, err := s.m.App.Begin(op, s.at, jobID, attempt)
	if err != nil {
		return err
	}
	switch {
	case v.Start:
		s.start(jobID, attempt)
		if v.Cancel {
			s.cancel(jobID, attempt, "cancelled")
		}
	case v.Drop:
		s.drop(jobID, attempt, v.Reason)
	}
	s.leaveIfGoing()
	return nil
}

// result has the end of an attempt recorded; only then may the agent forget it.
func (s *session) result(ctx context.Context, r *registryv1.Result) error {
	report := reportOf(r)
	if s.waitsFor(report.JobID, report.Attempt) {
		// It has accepted, run and ended it in an earlier session.
		s.answerHandOver(command.Reply{OK: true})
	}
	op, cancel := operation(ctx)
	defer cancel()
	v, err := s.m.App.Finish(op, s.at, report)
	if err != nil {
		return err
	}
	if v.Ack {
		s.send(&registryv1.ConnectResponse{Message: &registryv1.ConnectResponse_ResultAck{
			ResultAck: &registryv1.ResultAck{JobId: report.JobID, Attempt: int32(report.Attempt)},
		}}, "")
	}
	if v.Drop {
		s.log.WarnContext(ctx, "a result is kept as evidence only", "job", report.JobID, "attempt", report.Attempt, "reason", v.Reason)
		s.drop(report.JobID, report.Attempt, v.Reason)
	}
	s.leaveIfGoing()
	return nil
}

func (s *session) start(jobID string, attempt int) {
	s.send(&registryv1.ConnectResponse{Message: &registryv1.ConnectResponse_Start{Start: &registryv1.Start{JobId: jobID, Attempt: int32(attempt)}}}, "")
}

func (s *session) drop(jobID string, attempt int, reason string) {
	s.send(&registryv1.ConnectResponse{Message: &registryv1.ConnectResponse_Drop{
		Drop: &registryv1.Drop{JobId: jobID, Attempt: int32(attempt), Reason: reason},
	}}, "")
}

func (s *session) cancel(jobID string, attempt int, reason string) {
	s.send(&registryv1.ConnectResponse{Message: &registryv1.ConnectResponse_Cancel{
		Cancel: &registryv1.Cancel{JobId: jobID, Attempt: int32(attempt), Reason: reason},
	}}, "")
}

// leaveIfGoing tells the agent to end where the session knows that its worker is going.
func (s *session) leaveIfGoing() {
	if s.at.Going() {
		s.terminate(s.at.Reason(), s.at.Grace())
	}
}

// terminate tells the agent to end, once, and lets its lease run out.
func (s *session) terminate(reason string, grace time.Duration) {
	if s.leaving != nil {
		return
	}
	s.beating.Store(nil)
	s.leaving = time.After(leaveTimeout)
	s.send(&registryv1.ConnectResponse{Message: &registryv1.ConnectResponse_Terminate{Terminate: &registryv1.Terminate{
		Reason: reason, GraceNanos: int64(grace),
	}}}, "")
}

// noteHeld tells the log streams which attempt the worker has.
func (s *session) noteHeld() {
	held := s.at.Held()
	s.holds.Store(&held)
}

// runOf is the job as the agent needs it.
func runOf(p app.Prepared) *registryv1.Run {
	spec := p.Spec
	run := &registryv1.Run{
		JobId: p.JobID, Attempt: int32(p.Attempt), Namespace: spec.Namespace, Name: spec.Name, Command: spec.Command,
		Env: spec.Env, Cwd: spec.Cwd, Stdin: spec.Stdin, TimeoutNanos: int64(spec.Timeout),
		CpuMillis: spec.Resources.CPUMillis, MemoryBytes: spec.Resources.MemoryBytes, CorrelationId: p.CorrelationID,
	}
	if spec.Script != nil {
		run.Interpreter, run.Script = spec.Script.Interpreter, []byte(spec.Script.Content)
	}
	return run
}

func reportOf(r *registryv1.Result) core.Report {
	report := core.Report{
		JobID: r.GetJobId(), Attempt: int(r.GetAttempt()), Signal: int(r.GetSignal()), Category: r.GetCategory(), Message: r.GetFailureMessage(),
		CPUUser: time.Duration(r.GetCpuUserNanos()), CPUSystem: time.Duration(r.GetCpuSystemNanos()), MaxRSSBytes: r.GetMaxRssBytes(),
		LogBytes: r.GetLogBytes(), LogDropped: r.GetLogDropped(),
	}
	if r.ExitCode != nil {
		code := int(r.GetExitCode())
		report.ExitCode = &code
	}
	if t := r.GetStartedAt(); t.IsValid() {
		report.StartedAt = t.AsTime()
	}
	if t := r.GetFinishedAt(); t.IsValid() {
		report.FinishedAt = t.AsTime()
	}
	return report
}
