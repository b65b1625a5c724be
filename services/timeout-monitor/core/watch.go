package core

import (
	"time"

	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/unit"
	"hodei.dev/libs/domain/worker"
)

// Type is the kind of aggregate that is watched.
type Type string

// The kinds.
const (
	Job    Type = "job"
	Worker Type = "worker"
)

// At places a fact: its version in the stream, the log's time, and its id.
type At struct {
	Version int
	Time    time.Time
	ID      string
}

// Watch is what has to be remembered of one job or worker to know the deadline
// that it is under: a fold of its events. It is a value; its JSON form is stored.
type Watch struct {
	// Version is that of the last event seen.
	Version int `json:"version"`
	// State is the aggregate's, Since when it has been in it, Cause the id of the event that says so.
	State string    `json:"state"`
	Since time.Time `json:"since"`
	Cause string    `json:"cause"`
	// Born is when the aggregate came to be.
	Born time.Time `json:"born"`
	// NotBefore holds a requeued job back; its wait counts from then.
	NotBefore time.Time `json:"not_before,omitzero"`
	// Attempt is a job's latest, or the one that a worker holds.
	Attempt int `json:"attempt,omitempty"`
	// ProviderID makes the worker; empty for a job that no provider has.
	ProviderID string `json:"provider_id,omitempty"`
	// Timeout and QueueTimeout are a job's own.
	Timeout      unit.Duration `json:"timeout,omitempty"`
	QueueTimeout unit.Duration `json:"queue_timeout,omitempty"`
	// CancelSince is when somebody asked for the end of a job that a worker has; CancelCause is that event.
	CancelSince time.Time `json:"cancel_since,omitzero"`
	CancelCause string    `json:"cancel_cause,omitempty"`
	// Notices counts the deadlines that have passed in this state, NoticedAt is the last.
	Notices   int       `json:"notices,omitempty"`
	NoticedAt time.Time `json:"noticed_at,omitzero"`
}

// Observe folds one fact of the aggregate. A fact that was seen already, or that
// means nothing to a deadline, changes nothing else than the version.
func (w Watch) Observe(fact any, at At) Watch {
	if at.Version <= w.Version {
		return w
	}
	w.Version = at.Version
	switch f := fact.(type) {
	case job.Queued:
		w.Timeout, w.QueueTimeout = f.Timeout, f.QueueTimeout
		if w.State == "" {
			w = w.born(string(job.StatePending), at)
		}
	case job.Scheduled:
		w.ProviderID = f.ProviderID
		w = w.enter(string(job.StateScheduled), at)
	case job.Assigned:
		w.ProviderID, w.Attempt = f.ProviderID, f.Attempt
		w = w.enter(string(job.StateAssigned), at)
	case job.StatusChanged:
		w = w.enter(string(f.To), at)
	case job.Requeued:
		w = w.enter(string(job.StatePending), at)
		w.NotBefore, w.ProviderID = f.NotBefore, ""
	case job.CancelRequested:
		w.CancelSince, w.CancelCause = at.Time, at.ID
	case worker.ProvisioningRequested:
		w.ProviderID = f.ProviderID
		w = w.born(string(worker.StateCreating), at)
	case worker.StatusChanged:
		if f.To == worker.StateBusy && f.From == worker.StateReady {
			w.Attempt = f.Attempt
		}
		w = w.enter(string(f.To), at)
	case worker.Terminated:
		w = w.enter(string(worker.StateTerminated), at)
	case deadline.TimedOut:
		if f.Kind != deadline.KindHeartbeat {
			w.Notices, w.NoticedAt = w.Notices+1, at.Time
		}
	}
	return w
}

func (w Watch) born(state string, at At) Watch {
	w.Born = at.Time
	return w.enter(state, at)
}

// enter begins a state: what was counted in the one before ends.
func (w Watch) enter(state string, at At) Watch {
	w.State, w.Since, w.Cause, w.NotBefore = state, at.Time, at.ID, time.Time{}
	w.Notices, w.NoticedAt = 0, time.Time{}
	return w
}

// Over tells whether the aggregate's life has ended: nothing is watched any more.
func (w Watch) Over(t Type) bool {
	if t == Job {
		return job.State(w.State).Terminal()
	}
	return worker.State(w.State).Terminal()
}

// Connected tells whether w is of a worker whose heartbeats are expected.
func (w Watch) Connected(t Type) bool {
	return t == Worker && worker.State(w.State).Connected()
}

// Provider is what a provider's settings say about deadlines.
type Provider struct {
	// IdleTimeout ends its READY workers beyond MinIdle; ScheduledTimeout is how long a job waits for one.
	IdleTimeout, ScheduledTimeout time.Duration
	MinIdle                       int
}

// ProviderOf reads the settings of a provider.
func ProviderOf(s provider.Spec) Provider {
	return Provider{IdleTimeout: s.IdleTimeout.D(), ScheduledTimeout: s.ScheduledTimeout.D(), MinIdle: s.MinIdle}
}
