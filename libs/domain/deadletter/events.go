package deadletter

import (
	"encoding/json"
	"time"
)

// Event is a fact about a dead letter. The set is closed.
type Event interface {
	EventType() string
	EventVersion() int
	isDeadLetterEvent()
}

type v1 struct{}

func (v1) EventVersion() int  { return 1 }
func (v1) isDeadLetterEvent() {}

// Recorded is DeadLetterRecorded: a service gave up on something, or a replay of
// it failed again. Its envelope has the correlation id and the namespace of the
// event that it is about, and names that event as its cause.
type Recorded struct {
	v1
	Subject
	// Error is the last error, at most MaxError bytes; Fingerprint tells errors of one kind from others.
	Error       string `json:"error"`
	Fingerprint string `json:"fingerprint"`
	// Attempts is how often it was tried this time; FirstAt and LastAt when.
	Attempts int       `json:"attempts"`
	FirstAt  time.Time `json:"first_at"`
	LastAt   time.Time `json:"last_at"`
}

// Subject is what a letter is about and whose it is. It never changes.
type Subject struct {
	// Service gave up; Consumer is which of its consumers.
	Service  string `json:"service"`
	Consumer string `json:"consumer"`
	Kind     Kind   `json:"kind"`
	// Position is the event's place in the log, where the event itself stays for ever.
	Position int64 `json:"position"`
	// OriginalID, OriginalType, OriginalVersion and Aggregate ("job/<id>") are the
	// event's; empty where the message could not be read.
	OriginalID      string `json:"original_id,omitempty"`
	OriginalType    string `json:"original_type,omitempty"`
	OriginalVersion int    `json:"original_version,omitempty"`
	Aggregate       string `json:"aggregate,omitempty"`
	// Parks: later events of the same aggregate wait behind this one.
	Parks bool `json:"parks,omitempty"`
}

// ReplayRequested is DeadLetterReplayRequested: an operator sends the event back
// to the one consumer that could not handle it. With Data it is an edited replay:
// a message of its own, which names the original by the letter that it belongs to.
type ReplayRequested struct {
	v1
	By string `json:"by"`
	// Reason is the operator's; may be empty.
	Reason string `json:"reason,omitempty"`
	// Data takes the place of the event's data in this one replay.
	Data json.RawMessage `json:"data,omitempty"`
}

// Replayed is DeadLetterReplayed: the consumer has handled the event, and what
// was parked behind it as far as that could be handled.
type Replayed struct {
	v1
	// Edited: it was the operator's data that was handled.
	Edited bool `json:"edited,omitempty"`
	// Unparked is how many events that waited behind it were handled too.
	Unparked int `json:"unparked,omitempty"`
}

// Discarded is DeadLetterDiscarded: an operator decided that the event will not
// be handled by this consumer. What is parked behind it is handled now, or given
// up too where WithParked is set.
type Discarded struct {
	v1
	By     string `json:"by"`
	Reason string `json:"reason,omitempty"`
	// WithParked gives up what waits behind it as well: each gets a letter of its
	// own, which names this one.
	WithParked bool `json:"with_parked,omitempty"`
}

// The types of events.
const (
	TypeRecorded        = "DeadLetterRecorded"
	TypeReplayRequested = "DeadLetterReplayRequested"
	TypeReplayed        = "DeadLetterReplayed"
	TypeDiscarded       = "DeadLetterDiscarded"
)

// EventType implements Event.
func (Recorded) EventType() string { return TypeRecorded }

// EventType implements Event.
func (ReplayRequested) EventType() string { return TypeReplayRequested }

// EventType implements Event.
func (Replayed) EventType() string { return TypeReplayed }

// EventType implements Event.
func (Discarded) EventType() string { return TypeDiscarded }
