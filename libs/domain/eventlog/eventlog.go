// Package eventlog is the aggregate of the way from the log to its readers: the
// epochs of the events stream and what was published again. An epoch is the life
// of one stream: it ends when the stream is wiped, or when an operator has it made
// anew because the log was taken back.
package eventlog

import (
	"time"

	"hodei.dev/libs/domain/fault"
)

// ID is the aggregate's id: there is one event log.
const ID = "10600000-0000-7000-8000-000000000001"

// Log is what its own events say of the event log. The zero value has none.
type Log struct {
	Version int
	// Stream is when the events stream of the present epoch was created.
	Stream time.Time
	// Requested is why an operator has asked for the next epoch; empty while nobody has.
	Requested string
	// Reported is when the last event was appended.
	Reported time.Time
}

// Evolve folds one event. It never fails.
func (l Log) Evolve(e Event, version int, at time.Time) Log {
	l.Version, l.Reported = version, at
	switch e := e.(type) {
	case EpochRequested:
		l.Requested = e.Reason
	case EpochStarted:
		l.Stream, l.Requested = e.Stream, ""
	case Republished:
	}
	return l
}

// Stream is an events stream as the relay finds it before it publishes.
type Stream struct {
	// Created tells it from another one of the same name.
	Created time.Time
	// Base is the position before its first message, Head that of its last.
	Base, Head int64
	// Before is how far the relay knew it, or the one before it, to go; 0 where it
	// has known none. Handled is the highest position that any consumer has handled.
	Before, Handled int64
	// LogHead is the log's last position.
	LogHead int64
}

// Incident is what has become of the events stream: an epoch that begins, or a
// range of positions that is published again.
type Incident struct {
	Stream Stream
	// First and Through are the positions that are published again; 0 where none are.
	First, Through int64
	// Times is how many incidents are told as one, because they followed each other closely.
	Times int
}

// Merge tells two incidents that followed each other as one.
func (i Incident) Merge(later Incident) Incident {
	if i.Times == 0 {
		return later
	}
	out := Incident{Stream: later.Stream, First: i.First, Through: max(i.Through, later.Through), Times: i.Times + later.Times}
	if out.First == 0 || later.First > 0 && later.First < out.First {
		out.First = later.First
	}
	return out
}

// Notice says whether the stream as it is found is news, and which. The very
// first stream publishes nothing again: there was none before.
func (l Log) Notice(s Stream) (Incident, bool) {
	i := Incident{Stream: s, Times: 1}
	switch {
	case l.Stream.IsZero():
		return i, true
	case !l.Stream.Equal(s.Created):
		i.First, i.Through = s.Base+1, min(max(s.Before, s.Handled), s.LogHead)
	case s.Before > s.Head:
		i.First, i.Through = s.Head+1, min(s.Before, s.LogHead)
	default:
		return i, false
	}
	if i.Through < i.First {
		i.First, i.Through = 0, 0
	}
	return i, true
}

// Record is what is appended for an incident.
func (l Log) Record(i Incident) []Event {
	var events []Event
	cause := CauseTailLost
	if !l.Stream.Equal(i.Stream.Created) {
		switch {
		case l.Requested != "":
			cause = CauseRequested
		case l.Stream.IsZero():
			cause = CauseFirst
		default:
			cause = CauseWiped
		}
		events = append(events, EpochStarted{Cause: cause, Stream: i.Stream.Created, Base: i.Stream.Base, LogHead: i.Stream.LogHead})
	}
	if i.First > 0 {
		events = append(events, Republished{Cause: cause, First: i.First, Through: i.Through, Incidents: i.Times})
	}
	return events
}

// RequestEpoch is an operator's decision to have the events stream made anew.
func (l Log) RequestEpoch(e EpochRequested) ([]Event, error) {
	if e.Reason == "" {
		return nil, fault.New(fault.Invalid, "the reason of a new epoch is empty").WithCode("INVALID_ARGUMENT", "say why: it stays in the audit log")
	}
	return []Event{e}, nil
}
