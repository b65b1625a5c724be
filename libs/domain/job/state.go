// Package job is the aggregate of one unit of work: its states, its attempts,
// the events that are its truth, and every decision about it.
//
// Decisions are methods of [Job] that return events or a typed error and change
// nothing; [Job.Evolve] applies an event and never fails. The package has no
// clock, no ids of its own making and no I/O. It is not a queue and does not know
// which worker fits: that is the dispatcher's.
package job

import "hodei.dev/libs/domain/transition"

// State is where a job is in its life.
type State string

// The states of R1.1.
const (
	// StatePending waits in the queue.
	StatePending State = "PENDING"
	// StateScheduled has a provider and waits for a worker.
	StateScheduled State = "SCHEDULED"
	// StateAssigned has a provider and a worker that has not yet started it.
	StateAssigned State = "ASSIGNED"
	// StateRunning has been accepted by its worker's agent.
	StateRunning State = "RUNNING"
	// StateSucceeded ended with exit code 0.
	StateSucceeded State = "SUCCEEDED"
	// StateFailed ended badly; the result says how.
	StateFailed State = "FAILED"
	// StateCancelled was ended on request.
	StateCancelled State = "CANCELLED"
	// StateTimedOut ran, or waited, longer than it may.
	StateTimedOut State = "TIMEOUT"
)

// The types of the events that carry transitions.
const (
	typeCreated       = "JobCreated"
	typeScheduled     = "JobScheduled"
	typeAssigned      = "JobAssigned"
	typeRequeued      = "JobRequeued"
	typeStatusChanged = "JobStatusChanged"
)

// Transitions is the one table that decides every change of a job's state (R1.2).
var Transitions = transition.Table[State]{
	Aggregate: "job",
	States:    []State{StatePending, StateScheduled, StateAssigned, StateRunning, StateSucceeded, StateFailed, StateCancelled, StateTimedOut},
	Rules: []transition.Rule[State]{
		{To: StatePending, Event: typeCreated},
		{From: StatePending, To: StateAssigned, Event: typeAssigned},
		{From: StatePending, To: StateScheduled, Event: typeScheduled},
		{From: StatePending, To: StateFailed, Event: typeStatusChanged},
		{From: StatePending, To: StateCancelled, Event: typeStatusChanged},
		{From: StatePending, To: StateTimedOut, Event: typeStatusChanged},
		{From: StateScheduled, To: StateAssigned, Event: typeAssigned},
		{From: StateScheduled, To: StateRunning, Event: typeStatusChanged, Unused: true},
		{From: StateScheduled, To: StatePending, Event: typeRequeued},
		{From: StateScheduled, To: StateFailed, Event: typeStatusChanged},
		{From: StateScheduled, To: StateTimedOut, Event: typeStatusChanged},
		{From: StateScheduled, To: StateCancelled, Event: typeStatusChanged},
		{From: StateAssigned, To: StateRunning, Event: typeStatusChanged},
		{From: StateAssigned, To: StatePending, Event: typeRequeued},
		{From: StateAssigned, To: StateFailed, Event: typeStatusChanged},
		{From: StateAssigned, To: StateTimedOut, Event: typeStatusChanged},
		{From: StateAssigned, To: StateCancelled, Event: typeStatusChanged},
		{From: StateRunning, To: StateSucceeded, Event: typeStatusChanged},
		{From: StateRunning, To: StatePending, Event: typeRequeued},
		{From: StateRunning, To: StateFailed, Event: typeStatusChanged},
		{From: StateRunning, To: StateCancelled, Event: typeStatusChanged},
		{From: StateRunning, To: StateTimedOut, Event: typeStatusChanged},
	},
}

// Terminal tells whether the job's life is over.
func (s State) Terminal() bool { return Transitions.Terminal(s) }

// HasWorker tells whether a worker is held by a job in this state.
func (s State) HasWorker() bool { return s == StateAssigned || s == StateRunning }
