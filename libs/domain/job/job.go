package job

import (
	"slices"
	"time"
)

// Job is the state of one job: the fold of its events. The zero value is a job
// that does not exist yet. It is a value: Evolve returns a changed copy.
type Job struct {
	ID string
	// Version is the version of the last event folded in.
	Version int
	State   State
	Spec    Spec
	RetryOf string
	// Attempt is the number of the latest attempt; 0 before the first assignment.
	Attempt int
	// Spent counts ended attempts by who ended them.
	Spent Spent
	// WorkerID and ProviderID are of the current attempt, or of the worker that is waited for.
	WorkerID, ProviderID string
	// Cancel is the pending request to cancel, if any.
	Cancel *CancelRequested
	// NotBefore holds a requeued job back.
	NotBefore time.Time
	// Attempts keeps the end of every attempt.
	Attempts []Attempt
	// Result is that of the last attempt that ended.
	Result *Result
	// Reason is why the job is in its state, in words.
	Reason string
	// Deferred are the reasons why nothing could run it, until it is placed.
	Deferred []string
	// CreatedAt, QueuedAt, StartedAt and FinishedAt are the log's times; QueuedAt is of the latest queueing.
	CreatedAt, QueuedAt, StartedAt, FinishedAt time.Time
}

// Spent counts ended attempts (R1.2a).
type Spent struct {
	// Own were ended by the job's own command.
	Own int
	// Infrastructure were lost by the platform.
	Infrastructure int
}

// Attempt is the record of one attempt.
type Attempt struct {
	Number     int
	WorkerID   string
	ProviderID string
	AssignedAt time.Time
	StartedAt  time.Time
	FinishedAt time.Time
	// Result is nil while it runs.
	Result *Result
}

// At places an event: its version in the job's stream and the log's time.
type At struct {
	Version int
	Time    time.Time
}

// Evolve applies one event. It never fails: what the log holds has been decided.
// A fold may leave out JobCreated; JobQueued then supplies what placement needs.
func (j Job) Evolve(e Event, at At) Job {
	j.Version = at.Version
	switch e := e.(type) {
	case Created:
		j.State, j.Spec, j.RetryOf, j.CreatedAt, j.QueuedAt = StatePending, e.Spec, e.RetryOf, at.Time, at.Time
	case Queued:
		j.State, j.QueuedAt = StatePending, at.Time
		if j.CreatedAt.IsZero() {
			j.Spec, j.CreatedAt = e.spec(), at.Time
		}
	case Scheduled:
		j.State, j.WorkerID, j.ProviderID, j.Reason, j.Deferred = StateScheduled, e.WorkerID, e.ProviderID, e.Reason, nil
	case Assigned:
		j.State, j.Attempt, j.WorkerID, j.ProviderID, j.Reason, j.Deferred = StateAssigned, e.Attempt, e.WorkerID, e.ProviderID, e.Reason, nil
		j.Attempts = append(slices.Clone(j.Attempts), Attempt{Number: e.Attempt, WorkerID: e.WorkerID, ProviderID: e.ProviderID, AssignedAt: at.Time})
	case StatusChanged:
		j = j.changed(e, at)
	case Requeued:
		j = j.endAttempt(e.From, e.Result, at)
		j.State, j.WorkerID, j.ProviderID, j.Reason, j.NotBefore, j.QueuedAt = StatePending, "", "", e.Reason, e.NotBefore, at.Time
	case CancelRequested:
		j.Cancel = &e
	case PlacementDeferred:
		j.Deferred = e.Reasons
	case ExecutionError, DispatchFailed, ResultRejected:
		// Notices: evidence, no change of state.
	}
	return j
}

func (j Job) changed(e StatusChanged, at At) Job {
	if e.To == StateRunning {
		j.Attempts = slices.Clone(j.Attempts)
		if n := len(j.Attempts); n > 0 {
			j.Attempts[n-1].StartedAt = at.Time
		}
		if j.StartedAt.IsZero() {
			j.StartedAt = at.Time
		}
	}
	if e.To.Terminal() {
		j.FinishedAt = at.Time
		if e.Result != nil {
			j = j.endAttempt(e.From, *e.Result, at)
		}
	}
	j.State, j.Reason = e.To, e.Reason
	return j
}

// endAttempt books the result of the attempt that from was in. An attempt lost
// before a worker had it (SCHEDULED) has no number, but it spends the budget.
func (j Job) endAttempt(from State, r Result, at At) Job {
	j.Result = &r
	if r.Failure != nil && CauseOf(r.Failure.Category).Infrastructure {
		j.Spent.Infrastructure++
	} else if from.HasWorker() {
		j.Spent.Own++
	}
	if n := len(j.Attempts); from.HasWorker() && n > 0 {
		j.Attempts = slices.Clone(j.Attempts)
		j.Attempts[n-1].Result, j.Attempts[n-1].FinishedAt = &r, at.Time
	}
	return j
}

// Started is when the current attempt began to run; zero when it has not.
func (j Job) Started() time.Time {
	if n := len(j.Attempts); n > 0 && j.Attempts[n-1].Number == j.Attempt {
		return j.Attempts[n-1].StartedAt
	}
	return time.Time{}
}

func (e Queued) spec() Spec {
	return Spec{
		Name: e.Name, Namespace: e.Namespace, Priority: e.Priority, Resources: e.Resources, Placement: e.Placement,
		Retry: e.Retry, Timeout: e.Timeout, QueueTimeout: e.QueueTimeout,
	}
}

func queued(s Spec) Queued {
	return Queued{
		Name: s.Name, Namespace: s.Namespace, Priority: s.Priority, Resources: s.Resources, Placement: s.Placement,
		Retry: s.Retry, Timeout: s.Timeout, QueueTimeout: s.QueueTimeout,
	}
}
