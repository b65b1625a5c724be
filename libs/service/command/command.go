// Package command is what services tell a worker's session over NATS
// request/reply. Commands are not facts: a lost one is found by the deadline of
// the state that it should have ended, and every one of them may be repeated.
package command

import "hodei.dev/libs/domain/unit"

// Kind is what the session is asked to do.
type Kind string

// The kinds of command.
const (
	// Run hands an attempt over; the reply says that the agent has accepted it.
	Run Kind = "RUN"
	// Cancel asks the agent to end the attempt.
	Cancel Kind = "CANCEL"
	// Terminate tells the agent that its worker's life is over.
	Terminate Kind = "TERMINATE"
	// Ping asks whether the agent lives: the reply is OK where it was heard of lately.
	Ping Kind = "PING"
	// Supersede tells a session that its worker's agent has a newer one: it ends.
	Supersede Kind = "SUPERSEDE"
)

// Request is a command to bus.CommandSubject(worker, epoch), as JSON.
type Request struct {
	Kind     Kind   `json:"kind"`
	WorkerID string `json:"worker_id"`
	JobID    string `json:"job_id,omitempty"`
	Attempt  int    `json:"attempt,omitempty"`
	// JobVersion and WorkerVersion are the streams' versions after the assignment.
	JobVersion    int    `json:"job_version,omitempty"`
	WorkerVersion int    `json:"worker_version,omitempty"`
	Reason        string `json:"reason,omitempty"`
	// Grace is how long what a terminated worker runs has to end by itself; 0 = none.
	Grace unit.Duration `json:"grace,omitempty"`
	// CorrelationID, CausationID and the trace context go on to the agent and into what follows.
	CorrelationID string `json:"correlation_id"`
	CausationID   string `json:"causation_id,omitempty"`
	TraceParent   string `json:"traceparent,omitempty"`
	TraceState    string `json:"tracestate,omitempty"`
}

// Reply answers a Request.
type Reply struct {
	// OK: the agent has accepted (Run), or has been told (the others).
	OK bool `json:"ok"`
	// Reason says why not.
	Reason string `json:"reason,omitempty"`
	// Gone: the session is over, and the agent has not answered; it may be back with its next one.
	Gone bool `json:"gone,omitempty"`
}
