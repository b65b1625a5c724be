// Package event is the envelope that every fact travels in, from the row in the
// log to the message on the bus: who, when, why, and the exact bytes of what.
//
// It knows no job and no worker: facts are plain structs of other modules that
// name themselves (see [Fact]). It is not a catalogue and decodes no data.
package event

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// Fact is what a domain says that happened. Its JSON form is the event's data.
type Fact interface {
	// EventType is the short name, such as "JobCreated".
	EventType() string
	// EventVersion is the version of the struct's form, from 1.
	EventVersion() int
}

// Stream names one aggregate: the events of one stream have versions 1, 2, 3, ...
type Stream struct {
	// Type is the aggregate's kind: "job", "worker", "provider".
	Type string
	// ID is a UUID in its usual text form.
	ID string
}

// String is the form of CloudEvents' subject: "job/<id>".
func (s Stream) String() string { return s.Type + "/" + s.ID }

// NoNamespace is the namespace of what has none, such as a worker.
const NoNamespace = "_"

// Meta is the context that an event is made in.
type Meta struct {
	// Source is the service that appends, such as "scheduler"; on the wire "/hodei/scheduler".
	Source string
	// Namespace is a DNS label, or NoNamespace.
	Namespace string
	// CorrelationID follows one request through every service; never empty.
	CorrelationID string
	// CausationID is the id of the event or command that led to this event; may be empty at the edge.
	CausationID string
	// Actor is "user/<name>", "service/<name>" or "worker/<id>"; never empty.
	Actor string
	// TraceParent and TraceState are W3C trace context; may be empty.
	TraceParent, TraceState string
}

// Event is one fact in its envelope. Data is never changed after New.
type Event struct {
	Meta
	// ID is a UUIDv7.
	ID string
	// Type is the short name; on the wire "dev.hodei.<Type>.v<Version>".
	Type    string
	Version int
	Stream  Stream
	// StreamVersion is the event's number in its stream, from 1; the store sets it.
	StreamVersion int
	// Position is the event's place in the whole log, from 1, without gaps; the store sets it.
	Position int64
	// Time is when the log took it (Postgres's clock, UTC); the store sets it.
	Time time.Time
	// Data is the fact as JSON: the exact bytes that are stored and published.
	Data json.RawMessage
}

// New puts a fact into an envelope with a fresh id. The store completes it.
func New(stream Stream, meta Meta, fact Fact) (Event, error) {
	data, err := json.Marshal(fact)
	if err != nil {
		return Event{}, fmt.Errorf("encode %s: %w", fact.EventType(), err)
	}
	return Event{
		Meta: meta, ID: NewID(), Type: fact.EventType(), Version: fact.EventVersion(), Stream: stream, Data: data,
	}, nil
}

// CausedBy is the context of what follows from e: the same correlation,
// namespace and trace, caused by e, done by the named service.
func (e Event) CausedBy(service string) Meta {
	m := e.Meta
	m.Source, m.Actor, m.CausationID = service, "service/"+service, e.ID
	return m
}

// DerivedID is the id of what has a name and no id of its own: the same for the
// same kind and name for ever (UUIDv5).
func DerivedID(kind, name string) string {
	return uuid.NewSHA1(uuid.NameSpaceURL, []byte("https://hodei.dev/"+kind+"/"+name)).String()
}

// NewID returns a UUIDv7: ids that grow with time keep the log's indexes dense.
func NewID() string { return uuid.Must(uuid.NewV7()).String() }
