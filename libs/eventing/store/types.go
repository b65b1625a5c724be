package store

import (
	"context"
	"fmt"
	"log/slog"

	"go.opentelemetry.io/otel/metric"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/event"
)

// Limits of one append. What is larger is refused as fault.Invalid.
const (
	// MaxDataBytes is the most that one event's data may have.
	MaxDataBytes = 512 << 10
	// MaxAppendEvents is the most events in one append.
	MaxAppendEvents = 4096
	// MaxAppendBytes is the most data that one append may have in all.
	MaxAppendBytes = 32 << 20
	// MaxTextBytes is the most that any other text of an event, change or key may have.
	MaxTextBytes = 1024
	// MaxTraceStateBytes is the most that an event's tracestate may have.
	MaxTraceStateBytes = 4096
)

// Config says which log to open.
type Config struct {
	// URL is the Postgres connection string. Required.
	URL string
	// MaxConns limits the pool that reads use; appends and Exclusive have
	// connections of their own. Default 8.
	MaxConns int32
	// OnCommit is told the position of the last event of every commit of this
	// Store, in order, by the committer: it must return at once. May be nil.
	OnCommit func(position int64)
	// Log gets what an operator should know: retries, lost connections. Default slog.Default().
	Log *slog.Logger
	// Meter makes the instruments hodei.store.*; may be nil.
	Meter metric.Meter
	// Name is the application_name in pg_stat_activity. Default "hodei".
	Name string
}

// Change is what one append does to one stream.
type Change struct {
	// Stream is the aggregate. Its id is a UUID in its 36-character form.
	Stream event.Stream
	// Namespace is the stream's, kept from its first change.
	Namespace string
	// Expected is the version that the stream must have; 0 = it must not exist yet.
	Expected int
	// State is the stream's state afterwards; "" keeps it.
	State string
	// Terminal says that the stream has reached its end: snapshots leave it out.
	// It may also be taken back (a schedule that is resumed).
	Terminal bool
	// Events are appended in this order; at least one. Their stream is the
	// change's; an event whose Namespace is empty gets the change's.
	Events []event.Event
}

// Key is a name that belongs to one stream for ever: an idempotency key, a
// client's own id.
type Key struct {
	Namespace, Kind, Value string
	// Stream is the holder.
	Stream event.Stream
	// Digest is the caller's: what the key was first used with; may be nil.
	Digest []byte
}

// Append is what becomes true together, or not at all.
type Append struct {
	// Changes name each stream at most once; at least one.
	Changes []Change
	// Keys are claimed by this append; each must be free.
	Keys []Key
}

// StreamRow is the current state of one stream.
type StreamRow struct {
	Stream    event.Stream
	Namespace string
	Version   int
	State     string
	Terminal  bool
}

// ReadOptions select events by position.
type ReadOptions struct {
	// After is exclusive; 0 reads from the first event.
	After int64
	// Through is inclusive; 0 means to the head.
	Through int64
	// Types are short names; empty means all.
	Types []string
	// Limit is the most events to return. Default 1000.
	Limit int
}

// SnapshotOptions select what a snapshot reads; an empty list means all.
type SnapshotOptions struct {
	StreamTypes []string
	EventTypes  []string
}

// Appender is the half of a Store that writes.
type Appender interface {
	Append(ctx context.Context, a Append) ([]event.Event, error)
}

// ConflictError says that a stream has another version than expected; it is a
// fault.Conflict: re-read and decide again.
type ConflictError struct {
	Stream           event.Stream
	Expected, Actual int
}

// Error names the stream and both versions.
func (e *ConflictError) Error() string {
	if e.Expected == 0 {
		return fmt.Sprintf("%s already exists (version %d)", e.Stream, e.Actual)
	}
	return fmt.Sprintf("%s has version %d, expected %d", e.Stream, e.Actual, e.Expected)
}

// Is reports whether target is fault.Conflict.
func (e *ConflictError) Is(target error) bool { return target == fault.Conflict }

// KeyTakenError says that a key belongs to another stream; it is a
// fault.AlreadyExists.
type KeyTakenError struct {
	// Key is the holder's: its Stream and Digest are those of the first use.
	Key Key
}

// Error names the key and its holder.
func (e *KeyTakenError) Error() string {
	return fmt.Sprintf("%s %q in namespace %q belongs to %s", e.Key.Kind, e.Key.Value, e.Key.Namespace, e.Key.Stream)
}

// Is reports whether target is fault.AlreadyExists.
func (e *KeyTakenError) Is(target error) bool { return target == fault.AlreadyExists }
