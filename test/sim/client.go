package sim

import (
	"time"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/unit"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
)

// client mirrors the scheduler: it queues jobs and has them cancelled.
func (w *world) queue(t *task, p *planOfJob) {
	spec := job.Spec{
		Command: []string{"true"}, Timeout: unit.Duration(p.timeout),
		Retry: job.Retry{MaxAttempts: p.maxAttempts, InfrastructureAttempts: p.infrastructure, On: p.retried()},
	}
	facts := must(job.Create(spec, "", ""))
	meta := event.Meta{Source: catalogue.Scheduler, Actor: "user/sim", CorrelationID: p.id}
	var a store.Append
	jobChange(&a, job.Job{ID: p.id, Spec: spec.WithDefaults()}, meta, facts)
	w.log.sign(a)
	for {
		if _, err := w.log.append(t, a); !isAway(err) {
			p.queued = w.now
			return
		}
		t.sleep(100 * time.Millisecond)
	}
}

// cancel asks for the end of a job.
func (w *world) cancel(t *task, id string) {
	for range rounds {
		if w.log.read(t) != nil {
			continue
		}
		s := w.log.get(id)
		facts, err := s.job.RequestCancel("user/sim", "")
		if s.version == 0 || err != nil || len(facts) == 0 {
			return
		}
		var a store.Append
		meta := s.last.CausedBy(catalogue.Scheduler)
		meta.Actor = "user/sim"
		jobChange(&a, s.job, meta, facts)
		if _, err := w.log.append(t, w.log.sign(a)); !isConflict(err) {
			return
		}
	}
}

// drain has a worker take nothing new, as an operator would.
func (w *world) drain(t *task, id string) {
	_ = w.log.decide(t, id, func(s *stream) ([]worker.Event, event.Meta, error) {
		if s.version == 0 || s.terminal || s.worker.State == worker.StateTerminating || s.worker.State == worker.StateDraining {
			return nil, event.Meta{}, nil
		}
		facts, err := s.worker.Drain("user/sim")
		return facts, by(s, "user/sim"), err
	})
}
