package app

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/services/registry/core"
)

// Verdict is what the agent is told after what it said about an attempt.
type Verdict struct {
	// Start: the log has RUNNING; the command may start.
	Start bool
	// Ack: the result is kept; the agent may forget it.
	Ack bool
	// Drop: the attempt is not the agent's any more; Reason says why.
	Drop   bool
	Reason string
	// Cancel: somebody wants the attempt to end.
	Cancel bool
}

// Begin records that the agent has accepted the attempt: RUNNING, and only then
// may it start. An attempt that was cancelled meanwhile ends without starting.
func (a *App) Begin(ctx context.Context, at *Attachment, jobID string, attempt int) (Verdict, error) {
	var err error
	for round := range rounds {
		if round > 0 || at.job.ID != jobID {
			if err := a.refresh(ctx, at, jobID); err != nil {
				if unknown(err) {
					return Verdict{Drop: true, Reason: "there is no such job"}, nil
				}
				return Verdict{}, err
			}
		}
		j := at.job.Job
		current := j.State.HasWorker() && j.WorkerID == at.WorkerID && j.Attempt == attempt
		switch {
		case !current:
			return Verdict{Drop: true, Reason: fmt.Sprintf("the job is %s at attempt %d", j.State, j.Attempt)}, nil
		case j.State == job.StateRunning:
			return Verdict{Start: true, Cancel: j.Cancel != nil}, nil
		case j.Cancel != nil:
			r := core.Cancelled(j)
			err = a.conclude(ctx, at, func() (core.Outcome, error) {
				return core.Abort(j, at.worker.Worker, attempt, r, a.Now())
			})
			if err == nil {
				return Verdict{Drop: true, Reason: r.Failure.Message}, nil
			}
		default:
			if err = a.start(ctx, at, attempt); err == nil {
				return Verdict{Start: true}, nil
			}
		}
		if !errors.Is(err, fault.Conflict) {
			return Verdict{}, fmt.Errorf("begin attempt %d of job %s: %w", attempt, jobID, err)
		}
	}
	return Verdict{}, fmt.Errorf("begin attempt %d of job %s: %w", attempt, jobID, err)
}

func (a *App) start(ctx context.Context, at *Attachment, attempt int) error {
	facts, err := at.job.Start(at.WorkerID, attempt)
	if err != nil {
		return err
	}
	change, err := at.job.change(at.job.meta("worker/"+at.WorkerID), facts)
	if err != nil {
		return err
	}
	return a.record(ctx, at, change)
}

// Finish records how an attempt ended, with its worker's release in the same
// append. What comes too late, or from an attempt that is not this worker's, is
// kept as evidence. A report that the log has already is only acknowledged.
func (a *App) Finish(ctx context.Context, at *Attachment, report core.Report) (Verdict, error) {
	var err error
	for round := range rounds {
		if round > 0 || at.job.ID != report.JobID || !at.job.State.HasWorker() {
			if err := a.refresh(ctx, at, report.JobID); err != nil {
				if unknown(err) {
					return Verdict{Ack: true, Drop: true, Reason: "there is no such job"}, nil
				}
				return Verdict{}, err
			}
		}
		r := report.Result(at.job.Job)
		err = a.end(ctx, at, report.Attempt, r)
		if stale := (*job.StaleError)(nil); errors.As(err, &stale) {
			if round == 0 {
				// Perhaps only the memory is old.
				if err := a.refresh(ctx, at, report.JobID); err != nil {
					return Verdict{}, err
				}
				if at.job.State.HasWorker() && at.job.WorkerID == at.WorkerID && at.job.Attempt == report.Attempt {
					continue
				}
			}
			v, rerr := a.rejectResult(ctx, at, report.Attempt, r)
			if errors.Is(rerr, fault.Conflict) {
				err = rerr
				continue
			}
			return v, rerr
		}
		if err == nil {
			return Verdict{Ack: true}, nil
		}
		// A decision that memory refused may be right for the log.
		if !errors.Is(err, fault.Conflict) && (round > 0 || !errors.Is(err, fault.Precondition)) {
			break
		}
	}
	return Verdict{}, fmt.Errorf("end attempt %d of job %s: %w", report.Attempt, report.JobID, err)
}

// rejectResult keeps a result that is stale as evidence, once.
func (a *App) rejectResult(ctx context.Context, at *Attachment, attempt int, r job.Result) (Verdict, error) {
	if core.Repeated(at.job.Job, at.WorkerID, attempt, r) {
		return Verdict{Ack: true}, nil
	}
	v := Verdict{Ack: true, Drop: true, Reason: fmt.Sprintf("the job is %s at attempt %d", at.job.State, at.job.Attempt)}
	known := slices.ContainsFunc(at.job.rejected, func(old job.ResultRejected) bool {
		return old.WorkerID == at.WorkerID && old.Attempt == attempt && core.SameEnd(old.Result, r)
	})
	if known {
		return v, nil
	}
	change, err := at.job.change(at.job.meta("worker/"+at.WorkerID), at.job.Reject(at.WorkerID, attempt, r))
	if err != nil {
		return Verdict{}, err
	}
	return v, a.record(ctx, at, change)
}

// CancelRunning tells whether the agent has to be told of a cancel: the attempt
// runs. One that has not started yet is ended instead of being started.
func (a *App) CancelRunning(at *Attachment, jobID string, attempt int) bool {
	j := at.job.Job
	return j.ID == jobID && j.Attempt == attempt && j.State == job.StateRunning
}

// Holds tells whether the session's worker has this attempt, as far as it knows.
func (at *Attachment) Holds(jobID string, attempt int) bool {
	return at.job.ID == jobID && at.job.WorkerID == at.WorkerID && at.job.Attempt == attempt && at.job.State.HasWorker()
}

// MayLog tells whether an attempt was ever assigned to a worker: only then may
// the worker write its log. A stale attempt may: its output is evidence.
func (a *App) MayLog(ctx context.Context, workerID, jobID string, attempt int) error {
	k, err := a.loadJob(ctx, jobID)
	if err != nil {
		return err
	}
	for _, past := range k.Attempts {
		if past.Number == attempt && past.WorkerID == workerID {
			return nil
		}
	}
	var wrong fault.Fields
	wrong.Add("attempt", "attempt %d of job %s was never assigned to worker %s", attempt, jobID, workerID)
	return wrong.Err("the log")
}

func unknown(err error) bool { return errors.Is(err, fault.NotFound) || errors.Is(err, fault.Invalid) }
