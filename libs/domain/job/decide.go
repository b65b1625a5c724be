package job

import (
	"fmt"
	"slices"
	"time"

	"hodei.dev/libs/domain/fault"
)

// Create decides that a job exists and is queued. The spec gets its defaults;
// an Invalid error names every wrong field.
func Create(spec Spec, retryOf, idempotencyKey string) ([]Event, error) {
	spec = spec.WithDefaults()
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	return []Event{Created{Spec: spec, RetryOf: retryOf, IdempotencyKey: idempotencyKey}, queued(spec)}, nil
}

// Retry decides the spec of the job that repeats j, which must be terminal.
func (j Job) Retry() (Spec, error) {
	if !j.State.Terminal() {
		return Spec{}, fault.New(fault.Precondition, "job %s is %s: only a job that has ended can be retried", j.ID, j.State).
			WithCode("JOB_NOT_TERMINAL", "wait for its end (`hodei job wait "+j.ID+"`) or cancel it first")
	}
	spec := j.Spec
	spec.Retry = spec.Retry.Explicit()
	return spec, nil
}

// Schedule decides that a provider makes a worker for the job.
func (j Job) Schedule(providerID, workerID, reason string) ([]Event, error) {
	if err := Transitions.Check(j.ID, j.State, StateScheduled); err != nil {
		return nil, err
	}
	return []Event{Scheduled{ProviderID: providerID, WorkerID: workerID, Reason: reason}}, nil
}

// Assign decides that a worker's session gets the job, and mints the attempt.
func (j Job) Assign(providerID, workerID string, epoch int64, reason string) ([]Event, error) {
	if err := Transitions.Check(j.ID, j.State, StateAssigned); err != nil {
		return nil, err
	}
	return []Event{Assigned{
		From: j.State, Attempt: j.Attempt + 1, ProviderID: providerID, WorkerID: workerID, Epoch: epoch, Reason: reason,
	}}, nil
}

// Start decides that the attempt runs. An attempt that is not the current one is
// a *StaleError: its agent has to drop it.
func (j Job) Start(workerID string, attempt int) ([]Event, error) {
	if err := j.current(workerID, attempt); err != nil {
		return nil, err
	}
	if err := Transitions.Check(j.ID, j.State, StateRunning); err != nil {
		return nil, err
	}
	return []Event{StatusChanged{From: j.State, To: StateRunning, Attempt: attempt, WorkerID: workerID, Reason: "accepted by its worker"}}, nil
}

// End decides how the current attempt ends (R1.2a): requeue while the policy has
// attempts left and nobody wants the job cancelled, else the terminal state.
// A requeued job is held back as its policy says; chance, from 0 up to 1, is the
// jitter's. It serves every observer of an end: the agent's report, a lost worker, a
// failed hand-over, a deadline.
func (j Job) End(workerID string, attempt int, r Result, now time.Time, chance float64) ([]Event, error) {
	if err := j.current(workerID, attempt); err != nil {
		return nil, err
	}
	return j.end(r, now, chance)
}

// Abandon decides the end of a job that no worker has: placement failed, or it
// waited too long. j is PENDING or SCHEDULED; chance is as for [Job.End].
func (j Job) Abandon(r Result, now time.Time, chance float64) ([]Event, error) {
	if j.State.HasWorker() {
		return nil, fault.New(fault.Precondition, "job %s is %s on worker %s: end its attempt instead", j.ID, j.State, j.WorkerID)
	}
	return j.end(r, now, chance)
}

func (j Job) end(r Result, now time.Time, chance float64) ([]Event, error) {
	to, reason := j.Ending(r)
	if err := Transitions.Check(j.ID, j.State, to); err != nil {
		return nil, err
	}
	var out []Event
	if r.Failure != nil && !CauseOf(r.Failure.Category).Infrastructure && j.State == StateRunning && r.Failure.Category != CategoryCancelled {
		out = append(out, ExecutionError{Attempt: j.Attempt, WorkerID: j.WorkerID, Failure: *r.Failure})
	}
	if to == StatePending {
		return append(out, Requeued{
			From: j.State, Attempt: j.Attempt, WorkerID: j.WorkerID, Cause: r.Failure.Category, Reason: reason, Result: r,
			NotBefore: now.Add(j.Spec.Retry.Delay(j.Spent.Own+j.Spent.Infrastructure+1, chance)),
		}), nil
	}
	return append(out, StatusChanged{From: j.State, To: to, Attempt: j.Attempt, WorkerID: j.WorkerID, Reason: reason, Result: &r}), nil
}

// Ending is the one pure decision of R1.2a: where a result leads, and why.
// StatePending means that the job is requeued.
func (j Job) Ending(r Result) (State, string) {
	to := r.State()
	if r.Failure == nil {
		return to, "the command exited with 0"
	}
	why, cause := r.Failure.Message, CauseOf(r.Failure.Category)
	switch {
	case to == StateCancelled, cause.Retried == Never:
		return to, why
	case j.Cancel != nil && cause.Infrastructure:
		return StateCancelled, "cancelled; " + why
	case j.Cancel != nil:
		return to, why
	}
	left, budget := j.left(cause.Infrastructure)
	switch {
	case left <= 0 && cause.Infrastructure:
		return to, why + "; no infrastructure attempts left"
	case left <= 0:
		return to, why
	case !j.Spec.Retry.Retries(r.Failure.Category):
		return to, fmt.Sprintf("%s; %s is not retried (`hodei job get` shows the policy)", why, r.Failure.Category)
	default:
		return j.requeueTo(to), why + "; queued again (" + budget + ")"
	}
}

// left is how many more attempts of a kind may be made up for, this one included,
// and what becomes of that budget, in words.
func (j Job) left(infrastructure bool) (n int, words string) {
	if infrastructure {
		n = j.Spec.Retry.InfrastructureAttempts - j.Spent.Infrastructure
		return n, fmt.Sprintf("%d of %d infrastructure attempts left", n-1, j.Spec.Retry.InfrastructureAttempts)
	}
	n = j.Spec.Retry.MaxAttempts - 1 - j.Spent.Own
	return n, fmt.Sprintf("attempt %d of %d ended", j.Spent.Own+1, j.Spec.Retry.MaxAttempts)
}

// requeueTo is PENDING where the table allows it; a job that is PENDING already
// cannot be requeued and ends.
func (j Job) requeueTo(terminal State) State {
	if j.State == StatePending {
		return terminal
	}
	return StatePending
}

// RequestCancel decides that somebody wants the job to end. Where no worker has
// it, it is CANCELLED at once; else the worker's agent ends it first. Asking
// again while a request is pending changes nothing.
func (j Job) RequestCancel(by, reason string) ([]Event, error) {
	if j.State.Terminal() {
		return nil, Transitions.Check(j.ID, j.State, StateCancelled)
	}
	if j.Cancel != nil {
		return nil, nil
	}
	out := []Event{CancelRequested{State: j.State, Attempt: j.Attempt, WorkerID: j.WorkerID, By: by, Reason: reason}}
	if j.State.HasWorker() {
		return out, nil
	}
	message := "cancelled by " + by
	if reason != "" {
		message += ": " + reason
	}
	r := Result{Failure: Fail(CategoryCancelled, "%s", message)}
	return append(out, StatusChanged{From: j.State, To: StateCancelled, Attempt: j.Attempt, Reason: message, Result: &r}), nil
}

// Defer notes that nothing could run the job; nil when the same was said before.
func (j Job) Defer(reasons []string) []Event {
	if j.State != StatePending || slices.Equal(j.Deferred, reasons) {
		return nil
	}
	return []Event{PlacementDeferred{Reasons: reasons}}
}

// Reject keeps a result that came from an attempt that is no longer the current
// one, or after the job's end, as evidence.
func (j Job) Reject(workerID string, attempt int, r Result) []Event {
	reason := fmt.Sprintf("attempt %d on worker %s is not the current attempt", attempt, workerID)
	if j.State.Terminal() {
		reason = fmt.Sprintf("the job is already %s", j.State)
	}
	return []Event{ResultRejected{Attempt: attempt, WorkerID: workerID, State: j.State, CurrentAttempt: j.Attempt, Reason: reason, Result: r}}
}

// FailDispatch notes that the worker could not be given the job; End follows it.
func (j Job) FailDispatch(reason string) Event {
	return DispatchFailed{Attempt: j.Attempt, WorkerID: j.WorkerID, Reason: reason}
}

// current returns a *StaleError unless the attempt is the one that the job is in.
func (j Job) current(workerID string, attempt int) error {
	if !j.State.HasWorker() || j.Attempt != attempt || j.WorkerID != workerID {
		return &StaleError{JobID: j.ID, State: j.State, Attempt: attempt, Current: j.Attempt, WorkerID: workerID, CurrentWorkerID: j.WorkerID}
	}
	return nil
}

// StaleError is about an attempt that the job is not, or no longer, in. It is a fault.Precondition.
type StaleError struct {
	JobID                     string
	State                     State
	Attempt, Current          int
	WorkerID, CurrentWorkerID string
}

// Error names the job, its state and both attempts.
func (e *StaleError) Error() string {
	return fmt.Sprintf("job %s is %s (attempt %d on worker %q): attempt %d on worker %q is stale",
		e.JobID, e.State, e.Current, e.CurrentWorkerID, e.Attempt, e.WorkerID)
}

// Is reports whether target is fault.Precondition.
func (e *StaleError) Is(target error) bool { return target == fault.Precondition }
