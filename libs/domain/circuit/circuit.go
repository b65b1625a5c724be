// Package circuit is the aggregate of a circuit breaker: what keeps jobs away from
// something that fails, and lets one probe at a time find out whether it works again.
//
// The log has only what was decided: opened, half-opened, closed. Failures that have
// not opened a circuit yet are counted in memory by who decides. A circuit that has
// never opened has no stream: it is closed.
package circuit

import (
	"time"

	"hodei.dev/libs/domain/transition"
	"hodei.dev/libs/domain/uuid5"
)

// State is where a circuit is.
type State string

// The states of a circuit.
const (
	// StateClosed: all is well; what it guards is used.
	StateClosed State = "CLOSED"
	// StateOpen: what it guards is not used until the time of the next probe.
	StateOpen State = "OPEN"
	// StateHalfOpen: one probe is on its way; nothing else.
	StateHalfOpen State = "HALF_OPEN"
)

const (
	typeOpened     = "CircuitOpened"
	typeHalfOpened = "CircuitHalfOpened"
	typeClosed     = "CircuitClosed"
)

// Transitions is the one table that decides every change of a circuit's state.
var Transitions = transition.Table[State]{
	Aggregate: "circuit",
	States:    []State{StateClosed, StateOpen, StateHalfOpen},
	Rules: []transition.Rule[State]{
		{To: StateOpen, Event: typeOpened},
		{From: StateClosed, To: StateOpen, Event: typeOpened},
		{From: StateOpen, To: StateHalfOpen, Event: typeHalfOpened},
		{From: StateHalfOpen, To: StateOpen, Event: typeOpened},
		{From: StateOpen, To: StateClosed, Event: typeClosed},
		{From: StateHalfOpen, To: StateClosed, Event: typeClosed},
	},
}

// Settled tells whether nothing is pending: a snapshot of what lives may leave it out.
func (s State) Settled() bool { return s == StateClosed || s == "" }

// Kind is what a circuit guards.
type Kind string

// The kinds that exist.
const (
	// Provider: the making of workers by a provider; its subject is the provider's id.
	Provider Kind = "provider"
	// Path: the way to workers through the registry replica that holds their
	// sessions; its subject is the replica's name.
	Path Kind = "path"
)

// Guarded names what a circuit guards. It is comparable.
type Guarded struct {
	Kind Kind `json:"kind"`
	// Subject is a provider's id or a replica's name.
	Subject string `json:"subject"`
	// Name is the subject as people know it.
	Name string `json:"name"`
}

// namespace is the UUID under which what is guarded becomes an id.
var namespace = [16]byte{0x1c, 0x52, 0x9e, 0x07, 0xd4, 0x33, 0x4f, 0x6b, 0xa0, 0x6e, 0x55, 0x18, 0x2f, 0xc9, 0x81, 0x3a}

// ID returns the id of the circuit: the same for the same subject, for ever.
func (g Guarded) ID() string { return uuid5.New(namespace, string(g.Kind)+"/"+g.Subject) }

// Policy says when a circuit opens and when it is probed.
type Policy struct {
	// Failures in a row open the circuit.
	Failures int
	// FirstPause is the time until the first probe; each probe that fails doubles it, up to MostPause.
	FirstPause, MostPause time.Duration
}

// Pause is the time until the next probe of a circuit that has opened for the n-th
// time (from 1) since it was closed.
func (p Policy) Pause(n int) time.Duration {
	d := p.FirstPause
	for range n - 1 {
		if d *= 2; d >= p.MostPause {
			return p.MostPause
		}
	}
	return min(d, p.MostPause)
}

// Circuit is the fold of a circuit's events. It is a value; the zero value is closed.
type Circuit struct {
	ID      string
	Version int
	Guarded
	State State
	// Openings is how often it has opened since it was closed; more than one says
	// that probes have failed.
	Openings int
	// Failures opened it.
	Failures int
	// Reason is why it is in its state, in words.
	Reason string
	// RetryAt is when it may be probed; while it is open.
	RetryAt time.Time
	// Probe is the worker that is the probe, or that is asked; while it is half-open.
	Probe string
	// OpenedAt is when it opened first since it was closed.
	OpenedAt, ChangedAt time.Time
}

// At places an event: its version in the circuit's stream and the log's time.
type At struct {
	Version int
	Time    time.Time
}

// Evolve applies one event. It never fails.
func (c Circuit) Evolve(e Event, at At) Circuit {
	c.Version, c.ChangedAt = at.Version, at.Time
	switch e := e.(type) {
	case Opened:
		if c.State.Settled() {
			c.OpenedAt = at.Time
		}
		c.Guarded, c.State, c.Openings, c.Failures, c.Reason, c.RetryAt, c.Probe = e.Guarded, StateOpen, e.Openings, e.Failures, e.Reason, e.RetryAt, ""
	case HalfOpened:
		c.Guarded, c.State, c.Probe, c.RetryAt = e.Guarded, StateHalfOpen, e.Probe, time.Time{}
	case Closed:
		c = Circuit{ID: c.ID, Version: c.Version, Guarded: e.Guarded, State: StateClosed, Reason: e.Reason, ChangedAt: at.Time}
	}
	return c
}

// Open decides that what it guards is not used: after failures in a row, or because
// a probe has failed.
func (c Circuit) Open(g Guarded, failures int, reason string, now time.Time, p Policy) ([]Event, error) {
	if err := Transitions.Check(g.ID(), c.State, StateOpen); err != nil {
		return nil, err
	}
	n := c.Openings + 1
	return []Event{Opened{Guarded: g, Failures: failures, Openings: n, Reason: reason, RetryAt: now.Add(p.Pause(n)).UTC()}}, nil
}

// HalfOpen decides that one probe is made.
func (c Circuit) HalfOpen(probe string) ([]Event, error) {
	if err := Transitions.Check(c.ID, c.State, StateHalfOpen); err != nil {
		return nil, err
	}
	return []Event{HalfOpened{Guarded: c.Guarded, Probe: probe}}, nil
}

// Close decides that what it guards is used again.
func (c Circuit) Close(reason string) ([]Event, error) {
	if err := Transitions.Check(c.ID, c.State, StateClosed); err != nil {
		return nil, err
	}
	return []Event{Closed{Guarded: c.Guarded, Openings: c.Openings, OpenedAt: c.OpenedAt, Reason: reason}}, nil
}
