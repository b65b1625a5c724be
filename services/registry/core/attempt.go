package core

import (
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
)

// Outcome is what an append makes true of a job and of its worker together.
// Either may be empty, not both.
type Outcome struct {
	Job    []job.Event
	Worker []worker.Event
}

// Finish decides the end of the attempt that w holds: the job's end and the
// worker's release, for one append. An attempt that was never started (its ack
// was lost) is started first. An attempt that is not current is a *job.StaleError.
// chance is as for [job.Job.End].
func Finish(j job.Job, w worker.Worker, attempt int, r job.Result, now time.Time, chance float64) (Outcome, error) {
	return finish(j, w, attempt, r, now, chance, true)
}

// Abort decides the end of an attempt that never ran on w and now must not: it is
// ended as it stands.
func Abort(j job.Job, w worker.Worker, attempt int, r job.Result, now time.Time, chance float64) (Outcome, error) {
	return finish(j, w, attempt, r, now, chance, false)
}

func finish(j job.Job, w worker.Worker, attempt int, r job.Result, now time.Time, chance float64, start bool) (Outcome, error) {
	var out Outcome
	if start && j.State == job.StateAssigned {
		began, err := j.Start(w.ID, attempt)
		if err != nil {
			return Outcome{}, err
		}
		out.Job = began
		for _, e := range began {
			j = j.Evolve(e, job.At{Version: j.Version + 1, Time: now})
		}
	}
	ended, err := j.End(w.ID, attempt, r, now, chance)
	if err != nil {
		return Outcome{}, err
	}
	out.Job = append(out.Job, ended...)
	if w.State == worker.StateTerminated {
		return out, nil
	}
	if out.Worker, err = w.Release(j.ID, attempt); err != nil {
		return Outcome{}, err
	}
	return out, nil
}

// Fenced decides the end of the attempt that a terminated worker held: the
// provider has confirmed that nothing of it runs. It returns no facts where the
// job is not in that attempt any more.
func Fenced(j job.Job, w worker.Worker, attempt int, now time.Time, chance float64) ([]job.Event, error) {
	if !j.State.HasWorker() || j.WorkerID != w.ID || j.Attempt != attempt {
		return nil, nil
	}
	return j.End(w.ID, attempt, fencedResult(j, w), now, chance)
}

func fencedResult(j job.Job, w worker.Worker) job.Result {
	r := job.Result{StartedAt: j.Started(), LogRef: job.LogRef(j.ID, j.Attempt)}
	switch w.Cause {
	case worker.CauseJobTimeout:
		r.Failure = job.Fail(job.CategoryTimeout, "it ran longer than its timeout of %s and its worker had to be destroyed", j.Spec.Timeout)
	case worker.CauseCancelUnanswered:
		r.Failure = job.Fail(job.CategoryCancelled, "cancelled; its worker did not answer and was destroyed")
	default:
		reason := w.Reason
		if reason == "" {
			reason = "no reason was given"
		}
		r.Failure = job.Fail(job.CategoryWorkerLost, "worker %s is gone: %s", w.ID, reason)
	}
	return r
}

// Cancelled is the result of an attempt that was cancelled before it started.
func Cancelled(j job.Job) job.Result {
	message := "cancelled before it started"
	if c := j.Cancel; c != nil {
		message = "cancelled by " + c.By + " before it started"
		if c.Reason != "" {
			message += ": " + c.Reason
		}
	}
	return job.Result{Failure: job.Fail(job.CategoryCancelled, "%s", message), LogRef: job.LogRef(j.ID, j.Attempt)}
}

// Vanished is the result of an attempt that its own agent, alive, does not have.
func Vanished(j job.Job) job.Result {
	return job.Result{
		Failure:   job.Fail(job.CategoryWorkerLost, "the agent of worker %s is back without the attempt: it was restarted, or lost it", j.WorkerID),
		StartedAt: j.Started(), LogRef: job.LogRef(j.ID, j.Attempt),
	}
}

// Runnable tells whether an attempt may be handed to w now; else why not.
func Runnable(j job.Job, w worker.Worker, attempt int) error {
	switch {
	case j.WorkerID != w.ID || j.Attempt != attempt || !j.State.HasWorker():
		return &job.StaleError{JobID: j.ID, State: j.State, Attempt: attempt, Current: j.Attempt, WorkerID: w.ID, CurrentWorkerID: j.WorkerID}
	case w.State == worker.StateTerminating || w.State == worker.StateTerminated:
		return fault.New(fault.Precondition, "worker %s is %s", w.ID, w.State)
	}
	return nil
}
