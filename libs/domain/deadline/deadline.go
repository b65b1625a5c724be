// Package deadline says how long a job or a worker may stay in each state (R5.2)
// and which fact is recorded when it stays longer. The recovery belongs to the
// aggregate; watching the clock belongs to the timeout-monitor.
package deadline

import (
	"time"

	"hodei.dev/libs/domain/unit"
)

// TimedOut is StateTimedOut: a notice in the stream of the aggregate that stayed too long.
type TimedOut struct {
	// State is where it stayed, Threshold how long it might, Elapsed how long it did.
	State     string        `json:"state"`
	Threshold unit.Duration `json:"threshold"`
	Elapsed   unit.Duration `json:"elapsed"`
	// Kind is what was measured: the time in the state, the silence of a worker, its
	// life, or the time since somebody asked for a job's end.
	Kind string `json:"kind"`
	// JobID and Attempt are what a worker held.
	JobID   string `json:"job_id,omitempty"`
	Attempt int    `json:"attempt,omitempty"`
	// LastSeen is the last heartbeat, for Kind "heartbeat".
	LastSeen time.Time `json:"last_seen,omitzero"`
	// Recovery says what follows.
	Recovery string `json:"recovery"`
}

// EventType names the fact.
func (TimedOut) EventType() string { return "StateTimedOut" }

// EventVersion is the version of its form.
func (TimedOut) EventVersion() int { return 1 }

// The kinds of TimedOut.
const (
	KindState     = "state"
	KindHeartbeat = "heartbeat"
	KindLifetime  = "lifetime"
	KindCancel    = "cancel"
)

// The times that liveness rests on (R5.2, design: lost workers).
const (
	// HeartbeatInterval is how often an agent says that it lives.
	HeartbeatInterval = 5 * time.Second
	// Lease is how long an agent that is cut off lets its job run.
	Lease = 20 * time.Second
	// KillGrace is the time between TERM and KILL.
	KillGrace = 10 * time.Second
	// SessionCheck is how often registry asks its store whether the workers of its sessions
	// still live: so long may a session that missed its Terminate renew a lease.
	SessionCheck = 10 * time.Second
	// Silence is after how long without a heartbeat a worker is lost.
	Silence = 30 * time.Second
	// BackstopMargin is what the monitor adds to an execution timeout and its kill grace: the agent enforces it first.
	BackstopMargin = 5 * time.Second
	// CancelMargin is added to the kill grace before a cancel counts as unanswered.
	CancelMargin = 10 * time.Second
)

// Table holds the thresholds; 0 means none.
type Table struct {
	JobAssigned       time.Duration
	JobScheduled      time.Duration
	KillGrace         time.Duration
	BackstopMargin    time.Duration
	CancelMargin      time.Duration
	WorkerCreating    time.Duration
	WorkerConnecting  time.Duration
	WorkerSilence     time.Duration
	WorkerDraining    time.Duration
	WorkerTerminating time.Duration
	WorkerLifetime    time.Duration
}

// Defaults returns the table of R5.2.
func Defaults() Table {
	return Table{
		JobAssigned: 30 * time.Second, JobScheduled: 5 * time.Minute,
		KillGrace: KillGrace, BackstopMargin: BackstopMargin, CancelMargin: CancelMargin,
		WorkerCreating: 5 * time.Minute, WorkerConnecting: time.Minute, WorkerSilence: Silence,
		WorkerTerminating: 2 * time.Minute, WorkerLifetime: 24 * time.Hour,
	}
}
