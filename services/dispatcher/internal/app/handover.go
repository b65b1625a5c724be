package app

import (
	"context"
	"errors"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/service/command"

	"hodei.dev/services/dispatcher/core"
)

const service = catalogue.Dispatcher

// handOverRounds is how often a hand-over goes on after a conflict that was about
// something else; after that the deadline of ASSIGNED decides.
const handOverRounds = 5

// handAgain hands over a job that is ASSIGNED already: RUN may never have been
// sent, and an agent that has it only says so again.
func (d *Dispatcher) handAgain(ctx context.Context, j job.Job) {
	w, ok := d.state.Worker(j.WorkerID)
	if !ok {
		return // it is terminated: registry ends the attempt
	}
	d.running[j.ID] = j.Attempt
	cause := d.causes[j.ID]
	d.work.Go(func() { d.handOver(ctx, plan{job: j, worker: w}, cause) })
}

// handOver sends RUN to the worker's session. Where the session does not accept,
// the attempt ends and the worker goes, in one append; where that append finds
// that the attempt went on or ended, all is well.
func (d *Dispatcher) handOver(ctx context.Context, p plan, cause event.Event) {
	o := outcome{handed: p.job.ID}
	defer func() { d.tell(ctx, o) }()
	select {
	case d.handing <- struct{}{}:
		defer func() { <-d.handing }()
	case <-ctx.Done():
		return
	}
	for range handOverRounds {
		refusal := d.send(ctx, p, cause)
		if refusal == nil || ctx.Err() != nil {
			o.accepted = refusal == nil
			return
		}
		d.cfg.Logger.WarnContext(ctx, "a hand-over failed", "job", p.job.ID, "worker", p.worker.ID, "attempt", p.job.Attempt, "error", refusal)
		events, err := d.endAttempt(ctx, p, cause, refusal)
		if err == nil {
			o.events, o.refused = events, true
			return
		}
		if ctx.Err() != nil {
			return
		}
		if !errors.Is(err, fault.Conflict) {
			d.cfg.Logger.ErrorContext(ctx, "a failed hand-over cannot be appended", "job", p.job.ID, "error", err)
			return
		}
		now, err := d.reload(ctx, p.job.ID, p.worker.ID)
		if err != nil {
			if ctx.Err() == nil {
				d.cfg.Logger.ErrorContext(ctx, "a job cannot be read", "job", p.job.ID, "error", err)
			}
			return
		}
		now.handed = p.job.ID // whatever came of it, this hand-over ends: a probing brake waits for that
		o = now
		if now.job == nil || now.worker == nil || now.job.State != job.StateAssigned || now.job.Attempt != p.job.Attempt {
			return
		}
		// A notice was first, perhaps that the agent has a new session: try that.
		p.job, p.worker, cause = *now.job, *now.worker, now.cause
	}
	d.cfg.Logger.WarnContext(ctx, "a hand-over is left to its deadline", "job", p.job.ID, "worker", p.worker.ID, "attempt", p.job.Attempt)
}

// send asks the session to take the job; nil means that the agent has accepted.
func (d *Dispatcher) send(ctx context.Context, p plan, cause event.Event) error {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.HandOverTimeout)
	defer cancel()
	began := d.cfg.Now()
	err := d.cfg.Sessions.Run(ctx, p.worker.Epoch, command.Request{
		Kind: command.Run, WorkerID: p.worker.ID, JobID: p.job.ID, Attempt: p.job.Attempt,
		JobVersion: p.job.Version, WorkerVersion: p.worker.Version,
		CorrelationID: cause.CorrelationID, CausationID: cause.ID, TraceParent: cause.TraceParent, TraceState: cause.TraceState,
	})
	d.cfg.Meter.HandOver(d.cfg.Now().Sub(began), err != nil)
	return err
}

// endAttempt appends that the hand-over failed: the attempt's end and the worker's.
func (d *Dispatcher) endAttempt(ctx context.Context, p plan, cause event.Event, refusal error) ([]observed, error) {
	about, beside, err := core.Refused(p.job, p.worker, refusal.Error(), d.cfg.Now(), d.cfg.Jitter())
	if err != nil {
		return nil, err
	}
	q := plan{job: p.job, worker: p.worker}
	if err := q.add(cause.CausedBy(service), about, beside); err != nil {
		return nil, err
	}
	return d.append(ctx, q)
}
