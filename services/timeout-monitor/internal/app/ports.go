package app

import (
	"context"
	"time"

	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/services/timeout-monitor/core"
)

// Log is the event log: what is true now, and where a decision becomes true.
// *store.Store is one.
type Log interface {
	aggregate.Loader
	store.Appender
}

// Row is what is stored of one watched aggregate.
type Row struct {
	Type  core.Type
	ID    string
	Watch core.Watch
	// Deadline is meaningful where Armed.
	Deadline core.Deadline
	Armed    bool
}

// Entry is the row's place on the agenda.
func (r Row) Entry() core.Entry {
	return core.Entry{Type: r.Type, ID: r.ID, Version: r.Watch.Version, Due: r.Deadline.Due}
}

// Deadlines are the stored deadlines. Every error is worth another try later.
type Deadlines interface {
	// Upcoming returns the armed deadlines due by through, the earliest first, at most limit.
	Upcoming(ctx context.Context, through time.Time, limit int) ([]core.Entry, error)
	// Connected returns the workers whose heartbeats are expected.
	Connected(ctx context.Context) ([]string, error)
	// Correct stores what the log says about an aggregate, unless the row is newer or gone.
	Correct(ctx context.Context, r Row) error
	// Hold moves a deadline that has passed, and can only be waited for, to due; times is how often that was done.
	Hold(ctx context.Context, id string, version int, due time.Time, times int) error
	// Idle counts the provider's READY workers, without those in except.
	Idle(ctx context.Context, providerID string, except []string) (int, error)
}

// Heartbeats is the telemetry stream.
type Heartbeats interface {
	// Last returns when the stream took the worker's last heartbeat, by its own
	// clock; zero where it holds none. An error means that nothing is known.
	Last(ctx context.Context, workerID string) (time.Time, error)
}

// Meter is told what happens.
type Meter interface {
	// Fired: a deadline's recovery is in the log, late after it was due.
	Fired(kind string, late time.Duration)
	// Failed: it could not be decided or appended, and is tried again.
	Failed(kind string)
	// Conflict: somebody else was faster.
	Conflict(kind string)
	// Held: nothing is reported because too many workers are silent at once.
	Held()
}
