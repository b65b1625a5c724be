package sim

import (
	"errors"

	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"

	"hodei.dev/services/registry/core"
)

// What follows is registry's session again: an attempt from RUN to its end.

func (s *session) handTo(t *task, c command) error {
	if s.stopping || s.leaving {
		c.reply(refuse("the agent is stopping"))
		return nil
	}
	if h := s.handOver; h != nil {
		if h.run.job != c.run.job || h.run.attempt != c.run.attempt {
			c.reply(refuse("another attempt is being handed over"))
			return nil
		}
		first := h.reply
		h.reply = func(a answer) { first(a); c.reply(a) }
		return nil
	}
	if err := s.prepare(t, c.run); err != nil {
		c.reply(refuse(err.Error()))
		return nil //nolint:nilerr // the dispatcher has been told
	}
	if s.worker.Epoch > s.epoch {
		c.reply(answer{refusal: "the agent has a newer session", gone: true})
		return errSuperseded
	}
	if s.job.Cancel != nil && s.job.State == job.StateAssigned {
		if err := s.begin(t, c.run.job, c.run.attempt); err != nil {
			c.reply(refuse(err.Error()))
			return nil //nolint:nilerr // the dispatcher has been told
		}
		if s.job.State != job.StateRunning {
			c.reply(answer{})
			return nil
		}
	}
	s.handOver = &c
	s.late++
	n := s.late
	s.later(acceptTimeout, func() { s.in.put(command{kind: "late", run: run{attempt: n}}) })
	s.stream.toAgent(message{kind: "run", job: c.run.job, attempt: c.run.attempt})
	return nil
}

// prepare loads the attempt of a RUN command; the worker is brought to the version
// that the assignment left it at by the same decision, where nothing else happened.
func (s *session) prepare(t *task, r run) error {
	facts, err := s.worker.Take(r.job, r.attempt)
	switch {
	case r.workerVersion == s.worker.Version:
	case err == nil && r.workerVersion == s.worker.Version+len(facts):
		for _, f := range facts {
			s.worker = s.worker.Evolve(f, worker.At{Version: s.worker.Version + 1, Time: s.clock()})
		}
	default:
		if err := s.load(t, ""); err != nil {
			return err
		}
	}
	if err := s.w.log.read(t); err != nil {
		return err
	}
	s.job = s.w.log.get(r.job).job
	return core.Runnable(s.job, s.worker, r.attempt)
}

func (s *session) waitsFor(jobID string, attempt int) bool {
	return s.handOver != nil && s.handOver.run.job == jobID && s.handOver.run.attempt == attempt
}

func (s *session) answer(a answer) {
	if s.handOver != nil {
		s.handOver.reply(a)
		s.handOver = nil
	}
}

// begin has the log give the permission, and passes it on.
func (s *session) begin(t *task, jobID string, attempt int) error {
	if s.w.broken.startsEarly {
		s.stream.toAgent(message{kind: "start", job: jobID, attempt: attempt})
	}
	for round := range rounds {
		if round > 0 || s.job.ID != jobID {
			if err := s.load(t, jobID); err != nil {
				return err
			}
		}
		v, out, err := core.Begin(s.job, s.worker, attempt, s.clock(), s.rng.Float64())
		if err != nil {
			return err
		}
		if err = s.record(t, out.Job, out.Worker); isConflict(err) {
			continue
		} else if err != nil {
			return err
		}
		switch {
		case v.Start:
			s.stream.toAgent(message{kind: "start", job: jobID, attempt: attempt})
			if v.Cancel {
				s.stream.toAgent(message{kind: "cancel", job: jobID, attempt: attempt, reason: "cancelled"})
			}
		case v.Drop && s.w.broken.startsStale:
			s.stream.toAgent(message{kind: "start", job: jobID, attempt: attempt})
		case v.Drop:
			s.drop(jobID, attempt, v.Reason)
		}
		s.leaveIfGoing()
		return nil
	}
	return errAway
}

// result has the end of an attempt recorded; only then may the agent forget it.
func (s *session) result(t *task, m message) error {
	v, err := s.finish(t, m.report)
	if err != nil {
		return err
	}
	if v.Ack {
		s.stream.toAgent(message{kind: "ack", job: m.job, attempt: m.attempt})
	}
	if v.Drop {
		s.drop(m.job, m.attempt, v.Reason)
	}
	s.leaveIfGoing()
	return nil
}

func (s *session) finish(t *task, report core.Report) (core.Verdict, error) {
	var err error
	for round := range rounds {
		if round > 0 || s.job.ID != report.JobID || !s.job.State.HasWorker() {
			if err := s.load(t, report.JobID); err != nil {
				return core.Verdict{}, err
			}
		}
		r := report.Result(s.job)
		var out core.Outcome
		if out, err = core.Finish(s.job, s.worker, report.Attempt, r, s.clock(), s.rng.Float64()); err == nil {
			if s.w.broken.keepsBusy {
				out.Worker = nil
			}
			err = s.record(t, out.Job, out.Worker)
		}
		if stale := (*job.StaleError)(nil); errors.As(err, &stale) {
			if round == 0 {
				if err := s.load(t, report.JobID); err != nil {
					return core.Verdict{}, err
				}
				if s.job.State.HasWorker() && s.job.WorkerID == s.worker.ID && s.job.Attempt == report.Attempt {
					continue
				}
			}
			v, facts := core.Stale(s.job, s.w.log.get(s.job.ID).rejected, s.worker.ID, report.Attempt, r)
			if err = s.record(t, facts, nil); isConflict(err) {
				continue
			}
			return v, err
		}
		if err == nil {
			return core.Verdict{Ack: true}, nil
		}
		if !isConflict(err) && (round > 0 || isAway(err)) {
			break
		}
	}
	return core.Verdict{}, err
}
