// Package consumer is the aggregate of one consumer of the event log, as far as
// it is worth recording: whether it gets its events. Who watches it and how it
// repairs itself is not here.
package consumer

import (
	"time"

	"hodei.dev/libs/domain/transition"
	"hodei.dev/libs/domain/unit"
)

// State is whether a consumer gets its events.
type State string

// The states of a consumer. One that never stalled has no stream and no state.
const (
	// StateStalled does not get events that wait for it.
	StateStalled State = "STALLED"
	// StateFollowing has handled all that waited.
	StateFollowing State = "FOLLOWING"
)

// Transitions is the one table that decides every change of a consumer's state.
var Transitions = transition.Table[State]{
	Aggregate: "consumer",
	States:    []State{StateStalled, StateFollowing},
	Rules: []transition.Rule[State]{
		{To: StateStalled, Event: "ConsumerStalled"},
		{From: StateStalled, To: StateFollowing, Event: "ConsumerRecovered"},
		{From: StateFollowing, To: StateStalled, Event: "ConsumerStalled"},
	},
}

// Event is a fact about a consumer. The set is closed.
type Event interface {
	EventType() string
	EventVersion() int
	isConsumerEvent()
}

type v1 struct{}

func (v1) EventVersion() int { return 1 }
func (v1) isConsumerEvent()  {}

// Stalled is ConsumerStalled: events wait and the consumer does not get them.
type Stalled struct {
	v1
	// Service owns the consumer; Name is the consumer's.
	Service string `json:"service"`
	Name    string `json:"name"`
	// Reason is what was noticed first.
	Reason string `json:"reason"`
	// Position is where it stands.
	Position int64 `json:"position"`
	// Since is when it began.
	Since time.Time `json:"since"`
}

// Recovered is ConsumerRecovered: what waited is handled, nothing was skipped.
type Recovered struct {
	v1
	Service string `json:"service"`
	Name    string `json:"name"`
	// Position is up to where everything is handled.
	Position int64 `json:"position"`
	// FromLog is how many events were read from the log because the stream did not bring them.
	FromLog int64 `json:"from_log"`
	// Took is the time since it began.
	Took unit.Duration `json:"took"`
	// Incidents is how many this stands for: those that follow within a minute are told as one.
	Incidents int `json:"incidents"`
}

// EventType implements Event.
func (Stalled) EventType() string { return "ConsumerStalled" }

// EventType implements Event.
func (Recovered) EventType() string { return "ConsumerRecovered" }

// Consumer is the state that its events add up to.
type Consumer struct {
	Service, Name string
	State         State
	// Since is when the current or last stall began.
	Since time.Time
	// Alerted is whether an alert of its dead letters stands.
	Alerted bool
	// Version is of its last event.
	Version int
}

// Incident is a stall that somebody has seen.
type Incident struct {
	Reason string
	// Since is when it began; Position is where the consumer stood then.
	Since    time.Time
	Position int64
	// Through, FromLog, Count and Ended are known once it is over.
	Through, FromLog int64
	Count            int
	Ended            time.Time
}

// Stall records that it does not get its events; nothing where that is known.
func (c Consumer) Stall(i Incident) []Event {
	if c.State == StateStalled {
		return nil
	}
	return []Event{Stalled{Service: c.Service, Name: c.Name, Reason: i.Reason, Position: i.Position, Since: i.Since.UTC()}}
}

// Recover records that it has handled what waited; nothing where it was not stalled.
func (c Consumer) Recover(i Incident) []Event {
	if c.State != StateStalled {
		return nil
	}
	return []Event{Recovered{
		Service: c.Service, Name: c.Name, Position: i.Through, FromLog: i.FromLog, Took: unit.Duration(max(i.Ended.Sub(c.Since), 0)), Incidents: max(i.Count, 1),
	}}
}

// Mend records an incident that is over: both facts, or the second where the
// first is known.
func (c Consumer) Mend(i Incident) []Event {
	events := c.Stall(i)
	for _, e := range events {
		c = c.Evolve(e, c.Version+1)
	}
	return append(events, c.Recover(i)...)
}

// Evolve folds one event.
func (c Consumer) Evolve(e Event, version int) Consumer {
	c.Version = version
	switch e := e.(type) {
	case Stalled:
		c.Service, c.Name, c.State, c.Since = e.Service, e.Name, StateStalled, e.Since
	case Recovered:
		c.State = StateFollowing
	case AlertRaised:
		c.Service, c.Name, c.Alerted = e.Service, e.Name, true
	case AlertCleared:
		c.Alerted = false
	}
	return c
}
