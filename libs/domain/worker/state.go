// Package worker is the aggregate of one throw-away worker: a resource of a
// provider with an agent in it that runs jobs, one at a time.
//
// Decisions return events or a typed error; [Worker.Evolve] never fails. The
// package has no clock and no I/O, and does not know how resources are made.
package worker

import "hodei.dev/libs/domain/transition"

// State is where a worker is in its life.
type State string

// The states of R2.1.
const (
	// StateCreating: the provider makes the resource.
	StateCreating State = "CREATING"
	// StateConnecting: the resource exists, its agent dials in.
	StateConnecting State = "CONNECTING"
	// StateReady: connected and idle.
	StateReady State = "READY"
	// StateBusy: holds a job.
	StateBusy State = "BUSY"
	// StateDraining takes nothing new and finishes what it has.
	StateDraining State = "DRAINING"
	// StateTerminating: the provider destroys the resource.
	StateTerminating State = "TERMINATING"
	// StateTerminated: nothing is left.
	StateTerminated State = "TERMINATED"
)

const (
	typeRequested     = "WorkerProvisioningRequested"
	typeStatusChanged = "WorkerStatusChanged"
	typeTerminated    = "WorkerTerminated"
)

// Transitions is the one table that decides every change of a worker's state (R2.2).
var Transitions = transition.Table[State]{
	Aggregate: "worker",
	States:    []State{StateCreating, StateConnecting, StateReady, StateBusy, StateDraining, StateTerminating, StateTerminated},
	Rules: []transition.Rule[State]{
		{To: StateCreating, Event: typeRequested},
		{From: StateCreating, To: StateConnecting, Event: typeStatusChanged},
		{From: StateCreating, To: StateTerminating, Event: typeStatusChanged},
		{From: StateCreating, To: StateTerminated, Event: typeTerminated},
		{From: StateConnecting, To: StateReady, Event: typeStatusChanged},
		{From: StateConnecting, To: StateTerminating, Event: typeStatusChanged},
		{From: StateConnecting, To: StateTerminated, Event: typeTerminated},
		{From: StateReady, To: StateBusy, Event: typeStatusChanged},
		{From: StateReady, To: StateDraining, Event: typeStatusChanged},
		{From: StateReady, To: StateTerminating, Event: typeStatusChanged},
		{From: StateReady, To: StateTerminated, Event: typeTerminated},
		{From: StateBusy, To: StateReady, Event: typeStatusChanged},
		{From: StateBusy, To: StateDraining, Event: typeStatusChanged},
		{From: StateBusy, To: StateTerminating, Event: typeStatusChanged},
		{From: StateBusy, To: StateTerminated, Event: typeTerminated},
		{From: StateDraining, To: StateReady, Event: typeStatusChanged},
		{From: StateDraining, To: StateBusy, Event: typeStatusChanged},
		{From: StateDraining, To: StateTerminating, Event: typeStatusChanged},
		{From: StateDraining, To: StateTerminated, Event: typeTerminated},
		{From: StateTerminating, To: StateTerminated, Event: typeTerminated},
	},
}

// Terminal tells whether the worker's life is over.
func (s State) Terminal() bool { return Transitions.Terminal(s) }

// Connected tells whether the worker's agent is, or should be, connected.
func (s State) Connected() bool { return s == StateReady || s == StateBusy || s == StateDraining }

// Cause is why a worker goes, in one word: it decides how the job that it held ends.
type Cause string

// The causes of TERMINATING.
const (
	// CauseDone: it has run the jobs that it was made for.
	CauseDone Cause = "DONE"
	// CauseDrained: an operator drained it.
	CauseDrained Cause = "DRAINED"
	// CauseTerminated: an operator terminated it.
	CauseTerminated Cause = "TERMINATED"
	// CauseLost: it fell silent, or its resource is gone.
	CauseLost Cause = "LOST"
	// CauseJobTimeout: its job ran over its deadline and the agent did not end it.
	CauseJobTimeout Cause = "JOB_TIMEOUT"
	// CauseCancelUnanswered: its job was cancelled and the agent did not answer.
	CauseCancelUnanswered Cause = "CANCEL_UNANSWERED"
	// CauseHandOver: it could not be given its job.
	CauseHandOver Cause = "HAND_OVER"
	// CauseProvisioning: its resource could not be made, or its agent never came.
	CauseProvisioning Cause = "PROVISIONING"
	// CauseIdle: it had nothing to do for its provider's idle timeout.
	CauseIdle Cause = "IDLE"
	// CauseLifetime: it reached its maximum lifetime.
	CauseLifetime Cause = "LIFETIME"
	// CauseShutdown: its control plane, or its agent, was told to stop.
	CauseShutdown Cause = "SHUTDOWN"
	// CauseProviderRemoved: its provider is no more.
	CauseProviderRemoved Cause = "PROVIDER_REMOVED"
)
