package circuit

import "time"

// Event is a fact about a circuit. The set is closed.
type Event interface {
	EventType() string
	EventVersion() int
	isCircuitEvent()
}

type v1 struct{}

func (v1) EventVersion() int { return 1 }
func (v1) isCircuitEvent()   {}

// Opened is CircuitOpened: what it guards is not used until a probe succeeds.
type Opened struct {
	v1
	Guarded
	// Failures in a row opened it; of a probe that failed, 1.
	Failures int `json:"failures"`
	// Openings counts since it was closed.
	Openings int    `json:"openings"`
	Reason   string `json:"reason"`
	// RetryAt is when it may be probed.
	RetryAt time.Time `json:"retry_at"`
}

// HalfOpened is CircuitHalfOpened: one probe is made.
type HalfOpened struct {
	v1
	Guarded
	// Probe is the worker that is made as a probe, or whose session is asked.
	Probe string `json:"probe"`
}

// Closed is CircuitClosed: what it guards is used again, or nothing is left to guard.
type Closed struct {
	v1
	Guarded
	// Openings is how often it had opened, OpenedAt when for the first time.
	Openings int       `json:"openings"`
	OpenedAt time.Time `json:"opened_at"`
	Reason   string    `json:"reason"`
}

// EventType implements Event.
func (Opened) EventType() string { return typeOpened }

// EventType implements Event.
func (HalfOpened) EventType() string { return typeHalfOpened }

// EventType implements Event.
func (Closed) EventType() string { return typeClosed }
