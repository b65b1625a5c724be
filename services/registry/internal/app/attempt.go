package app

import (
	"context"
	"errors"
	"fmt"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/services/registry/core"
)

// Verdict is what the agent is told after what it said about an attempt.
type Verdict = core.Verdict

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
		v, out, derr := core.Begin(at.job.Job, at.worker.Worker, attempt, a.Now(), a.Jitter())
		if derr != nil {
			return Verdict{}, fmt.Errorf("begin attempt %d of job %s: %w", attempt, jobID, derr)
		}
		if err = a.conclude(ctx, at, out); err == nil {
			return v, nil
		}
		if !errors.Is(err, fault.Conflict) {
			break
		}
	}
	return Verdict{}, fmt.Errorf("begin attempt %d of job %s: %w", attempt, jobID, err)
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
	v, facts := core.Stale(at.job.Job, at.job.rejected, at.WorkerID, attempt, r)
	change, err := at.job.change(at.job.meta("worker/"+at.WorkerID), facts)
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
