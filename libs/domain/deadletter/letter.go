// Package deadletter is the aggregate of an event that a service could not
// handle: recorded by the service that gave up, sent back or discarded by an
// operator. The log is its only truth, so no wiped bus loses a letter, two
// operators cannot both decide, and every decision is audited with its actor.
//
// The letter is the to-do list; the event that it is about stays in the log and
// is never changed.
package deadletter

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/transition"
)

// MaxError bounds the error text of a letter, in bytes.
const MaxError = 2048

// State is where a letter is in its life.
type State string

// The states of a letter.
const (
	// StateDead waits for an operator.
	StateDead State = "DEAD"
	// StateReplaying was sent back; the service has not answered yet (it may be down).
	StateReplaying State = "REPLAYING"
	// StateReplayed was handled in the end. It is not terminal: a rebuild of a
	// projection meets the event again, and may fail again.
	StateReplayed State = "REPLAYED"
	// StateDiscarded will not be handled. That decision stands.
	StateDiscarded State = "DISCARDED"
)

// Kind is what became of the message, and so what can be done about it.
type Kind string

// The kinds of letters.
const (
	// KindEvent could not be handled: it can be replayed, edited, discarded.
	KindEvent Kind = "event"
	// KindUnreadable was a message that is no event; the event of its place was
	// taken from the log and handled, so it can only be acknowledged (discarded).
	KindUnreadable Kind = "unreadable"
	// KindUnpublishable could not be published; consumers take it from the log by
	// its tombstone, so it can only be acknowledged (discarded).
	KindUnpublishable Kind = "unpublishable"
)

// Transitions is the one table that decides every change of a letter's state.
var Transitions = transition.Table[State]{
	Aggregate: "dead letter",
	States:    []State{StateDead, StateReplaying, StateReplayed, StateDiscarded},
	Rules: []transition.Rule[State]{
		{To: StateDead, Event: TypeRecorded},
		{From: StateDead, To: StateReplaying, Event: TypeReplayRequested},
		{From: StateDead, To: StateDiscarded, Event: TypeDiscarded},
		{From: StateReplaying, To: StateReplayed, Event: TypeReplayed},
		{From: StateReplaying, To: StateDead, Event: TypeRecorded},
		{From: StateReplayed, To: StateDead, Event: TypeRecorded},
	},
}

// Open reports whether something is still to come of a letter in this state.
func (s State) Open() bool { return s == StateDead || s == StateReplaying }

// Letter is the fold of a letter's events. It is a value; its JSON is a row of
// the audit's list.
type Letter struct {
	ID      string `json:"id"`
	Version int    `json:"version"`
	State   State  `json:"state"`
	Subject
	Error       string    `json:"error"`
	Fingerprint string    `json:"fingerprint"`
	Attempts    int       `json:"attempts"`
	FirstAt     time.Time `json:"first_at"`
	LastAt      time.Time `json:"last_at"`
	// RecordedAt is when the log took the first record; ChangedAt the last event.
	RecordedAt time.Time `json:"recorded_at"`
	ChangedAt  time.Time `json:"changed_at"`
	// Replays is how often it was sent back.
	Replays int `json:"replays"`
	// Edited is the data of the last replay; empty where that was of the original.
	Edited json.RawMessage `json:"edited,omitempty"`
	// By and Reason are of the last operator's decision.
	By     string `json:"by,omitempty"`
	Reason string `json:"reason,omitempty"`
	// WithParked is the discard's.
	WithParked bool `json:"with_parked,omitempty"`
	// Unparked is how many events behind it were handled with the replay.
	Unparked int `json:"unparked,omitempty"`
}

// At places an event: its version in the letter's stream and the log's time.
type At struct {
	Version int
	Time    time.Time
}

// Evolve applies one event. It never fails.
func (l Letter) Evolve(e Event, at At) Letter {
	l.Version, l.ChangedAt = at.Version, at.Time
	switch e := e.(type) {
	case Recorded:
		if l.State == "" {
			l.RecordedAt, l.FirstAt, l.Subject = at.Time, e.FirstAt, e.Subject
		}
		l.State, l.Error, l.Fingerprint = StateDead, e.Error, e.Fingerprint
		l.Attempts, l.LastAt = l.Attempts+e.Attempts, e.LastAt
	case ReplayRequested:
		l.State, l.Edited, l.By, l.Reason = StateReplaying, e.Data, e.By, e.Reason
		l.Replays++
	case Replayed:
		l.State, l.Unparked = StateReplayed, e.Unparked
	case Discarded:
		l.State, l.By, l.Reason, l.WithParked = StateDiscarded, e.By, e.Reason, e.WithParked
	}
	return l
}

// Record decides on a failure: a new letter, a replay that failed again, an event
// that a rebuild met again. Nothing where the letter waits already, and nothing
// where an operator has discarded it.
func (l Letter) Record(r Recorded) []Event {
	if l.State == StateDead || l.State == StateDiscarded {
		return nil
	}
	r.Error = clip(r.Error)
	r.Fingerprint = Fingerprint(r.Consumer, r.OriginalType, r.Error)
	return []Event{r}
}

// RequestReplay decides that the event goes back to its consumer, with data
// instead of its own where data is not empty.
func (l Letter) RequestReplay(by, reason string, data json.RawMessage) ([]Event, error) {
	if err := l.replayable(len(data) > 0); err != nil {
		return nil, err
	}
	if err := Transitions.Check(l.ID, l.State, StateReplaying); err != nil {
		return nil, err
	}
	return []Event{ReplayRequested{By: by, Reason: reason, Data: data}}, nil
}

// keepers store the bytes of events: for them an edited event would be a forged one.
var keepers = []string{"audit"}

// replayable says why the letter can never be replayed (or edited); nil where it can.
func (l Letter) replayable(edited bool) error {
	switch {
	case l.Kind == KindUnreadable:
		return fault.New(fault.Precondition, "dead letter %s was a message that is no event: the event of its position was taken from the log and handled", l.ID).
			WithCode("NOTHING_TO_REPLAY", "look at it with `hodei dlq show`, then discard it")
	case l.Kind == KindUnpublishable:
		return fault.New(fault.Precondition, "dead letter %s can never be published as it is: its consumers take it from the log by its tombstone", l.ID).
			WithCode("NOTHING_TO_REPLAY", "nothing is missing: discard it to acknowledge it")
	case edited && slices.Contains(keepers, l.Service):
		return fault.New(fault.Precondition, "dead letter %s is of %s, which keeps the events as they were appended: an edited one would be a forged one", l.ID, l.Service).
			WithCode("EDIT_REFUSED", "replay it as it is")
	}
	return nil
}

// Discard decides that the event will not be handled.
func (l Letter) Discard(by, reason string, withParked bool) ([]Event, error) {
	if err := Transitions.Check(l.ID, l.State, StateDiscarded); err != nil {
		return nil, err
	}
	var wrong fault.Fields
	if withParked && !l.Parks {
		wrong.Add("with_parked", "nothing is parked behind dead letter %s: its consumer %s is no projection", l.ID, l.Consumer)
	}
	if err := wrong.Err("the discard"); err != nil {
		return nil, err
	}
	return []Event{Discarded{By: by, Reason: reason, WithParked: withParked}}, nil
}

// Succeed decides that the replay has been handled.
func (l Letter) Succeed(unparked int) ([]Event, error) {
	if err := Transitions.Check(l.ID, l.State, StateReplayed); err != nil {
		return nil, err
	}
	return []Event{Replayed{Edited: len(l.Edited) > 0, Unparked: unparked}}, nil
}

// clip bounds an error text without cutting a character in two.
func clip(text string) string {
	text = strings.ToValidUTF8(text, "?")
	if len(text) <= MaxError {
		return text
	}
	return strings.ToValidUTF8(text[:MaxError-3], "") + "..."
}
