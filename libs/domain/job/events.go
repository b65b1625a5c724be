package job

import (
	"time"

	"hodei.dev/libs/domain/unit"
)

// Event is a fact about a job. The set is closed: only this package adds to it.
type Event interface {
	EventType() string
	EventVersion() int
	isJobEvent()
}

type v1 struct{}

func (v1) EventVersion() int { return 1 }
func (v1) isJobEvent()       {}

// Created is JobCreated: the job exists and is PENDING.
type Created struct {
	v1
	Spec Spec `json:"spec"`
	// RetryOf is the terminal job that this one repeats.
	RetryOf        string `json:"retry_of,omitempty"`
	IdempotencyKey string `json:"idempotency_key,omitempty"`
}

// Queued is JobQueued: a notice with all that placement needs, and not more.
type Queued struct {
	v1
	Name         string        `json:"name"`
	Namespace    string        `json:"namespace"`
	Priority     int           `json:"priority"`
	Resources    Resources     `json:"resources,omitzero"`
	Placement    Placement     `json:"placement,omitzero"`
	Retry        Retry         `json:"retry"`
	Timeout      unit.Duration `json:"timeout"`
	QueueTimeout unit.Duration `json:"queue_timeout"`
}

// Scheduled is JobScheduled: PENDING -> SCHEDULED, a provider is making a worker for it.
type Scheduled struct {
	v1
	ProviderID string `json:"provider_id"`
	WorkerID   string `json:"worker_id"`
	Reason     string `json:"reason"`
}

// Assigned is JobAssigned: PENDING or SCHEDULED -> ASSIGNED; it alone mints an attempt.
type Assigned struct {
	v1
	From       State  `json:"from"`
	Attempt    int    `json:"attempt"`
	ProviderID string `json:"provider_id"`
	WorkerID   string `json:"worker_id"`
	// Epoch is the worker's session that gets the command.
	Epoch  int64  `json:"epoch"`
	Reason string `json:"reason"`
}

// StatusChanged is JobStatusChanged: every transition that has no event of its own.
type StatusChanged struct {
	v1
	From    State `json:"from"`
	To      State `json:"to"`
	Attempt int   `json:"attempt"`
	// WorkerID is the attempt's worker, where there is one.
	WorkerID string `json:"worker_id,omitempty"`
	Reason   string `json:"reason"`
	// Result is there exactly when To is terminal.
	Result *Result `json:"result,omitempty"`
}

// Requeued is JobRequeued: SCHEDULED, ASSIGNED or RUNNING -> PENDING; it ends the attempt and keeps its result.
type Requeued struct {
	v1
	From     State    `json:"from"`
	Attempt  int      `json:"attempt"`
	WorkerID string   `json:"worker_id,omitempty"`
	Cause    Category `json:"cause"`
	Reason   string   `json:"reason"`
	Result   Result   `json:"result"`
	// NotBefore holds the job back until then.
	NotBefore time.Time `json:"not_before,omitzero"`
}

// ExecutionError is JobExecutionError: a notice that an attempt's command failed.
type ExecutionError struct {
	v1
	Attempt  int     `json:"attempt"`
	WorkerID string  `json:"worker_id"`
	Failure  Failure `json:"failure"`
}

// DispatchFailed is JobDispatchFailed: a notice that a worker could not be given its job.
type DispatchFailed struct {
	v1
	Attempt  int    `json:"attempt"`
	WorkerID string `json:"worker_id"`
	Reason   string `json:"reason"`
}

// ResultRejected is JobResultRejected: the evidence of a result that came too late or from a stale attempt.
type ResultRejected struct {
	v1
	Attempt  int    `json:"attempt"`
	WorkerID string `json:"worker_id"`
	// State and CurrentAttempt are the job's when the result came.
	State          State  `json:"state"`
	CurrentAttempt int    `json:"current_attempt"`
	Reason         string `json:"reason"`
	Result         Result `json:"result"`
}

// CancelRequested is JobCancelRequested: a notice that somebody wants the job to end.
type CancelRequested struct {
	v1
	State    State  `json:"state"`
	Attempt  int    `json:"attempt"`
	WorkerID string `json:"worker_id,omitempty"`
	By       string `json:"by"`
	Reason   string `json:"reason"`
}

// PlacementDeferred is the notice that nothing in the system could run the job as things are.
type PlacementDeferred struct {
	v1
	// Reasons say, candidate by candidate, why not.
	Reasons []string `json:"reasons"`
}

// EventType implements Event.
func (Created) EventType() string { return typeCreated }

// EventType implements Event.
func (Queued) EventType() string { return "JobQueued" }

// EventType implements Event.
func (Scheduled) EventType() string { return typeScheduled }

// EventType implements Event.
func (Assigned) EventType() string { return typeAssigned }

// EventType implements Event.
func (StatusChanged) EventType() string { return typeStatusChanged }

// EventType implements Event.
func (Requeued) EventType() string { return typeRequeued }

// EventType implements Event.
func (ExecutionError) EventType() string { return "JobExecutionError" }

// EventType implements Event.
func (DispatchFailed) EventType() string { return "JobDispatchFailed" }

// EventType implements Event.
func (ResultRejected) EventType() string { return "JobResultRejected" }

// EventType implements Event.
func (CancelRequested) EventType() string { return "JobCancelRequested" }

// EventType implements Event.
func (PlacementDeferred) EventType() string { return "PlacementDeferred" }
