// Package provider is the aggregate of a place where workers are made: its
// registration, its limits and its health. The core knows no provider's own
// fields: they travel in Config as the provider's JSON (R6.1).
package provider

import (
	"encoding/json"
	"regexp"
	"slices"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/transition"
	"hodei.dev/libs/domain/unit"
)

// State is where a provider is in its life.
type State string

// The states of a provider.
const (
	// StateEnabled makes workers.
	StateEnabled State = "ENABLED"
	// StateRemoved makes none; its workers have been told to go. It may be registered again.
	StateRemoved State = "REMOVED"
)

// Transitions is the one table that decides every change of a provider's state.
var Transitions = transition.Table[State]{
	Aggregate: "provider",
	States:    []State{StateEnabled, StateRemoved},
	Rules: []transition.Rule[State]{
		{To: StateEnabled, Event: "ProviderRegistered"},
		{From: StateEnabled, To: StateRemoved, Event: "ProviderRemoved"},
		{From: StateRemoved, To: StateEnabled, Event: "ProviderRegistered"},
	},
}

// Health is what the provisioner last saw.
type Health string

// The states of health.
const (
	Healthy   Health = "HEALTHY"
	Unhealthy Health = "UNHEALTHY"
)

// Kind is the sort of infrastructure.
type Kind string

// The kinds that exist.
const (
	// Process makes workers as processes beside the provisioner.
	Process Kind = "process"
	// External has its workers started by an operator.
	External Kind = "external"
)

// Spec is what an operator registers.
type Spec struct {
	// Name is a DNS label, unique.
	Name string `json:"name"`
	Kind Kind   `json:"kind"`
	// MinIdle workers are kept READY without a job.
	MinIdle int `json:"min_idle"`
	// MaxWorkers bounds the workers that exist at once; default twice the CPUs.
	MaxWorkers int `json:"max_workers"`
	// JobsPerWorker is after how many jobs a worker ends; default 1, 0 = never.
	JobsPerWorker int `json:"jobs_per_worker"`
	// CPUMillis and MemoryBytes are the capacity that jobs reserve from; 0 = what the machine has.
	CPUMillis   int64 `json:"cpu_millis"`
	MemoryBytes int64 `json:"memory_bytes"`
	// IdleTimeout ends a READY worker that has nothing to do (default 5m); those kept by MinIdle stay.
	IdleTimeout unit.Duration `json:"idle_timeout"`
	// ScheduledTimeout is how long a job waits SCHEDULED for a worker of it (default 5m).
	ScheduledTimeout unit.Duration `json:"scheduled_timeout"`
	// RunAs is the user that jobs run as; empty = the provider's default.
	RunAs string `json:"run_as,omitempty"`
	// Labels are what jobs may require of the provider that runs them.
	Labels map[string]string `json:"labels,omitempty"`
	// Config holds the kind's own options.
	Config json.RawMessage `json:"config,omitempty"`
}

// Capabilities are what the provisioner found the provider able to do.
type Capabilities struct {
	// EnforcesCPU and EnforcesMemory: limits, else reservations only.
	EnforcesCPU    bool `json:"enforces_cpu"`
	EnforcesMemory bool `json:"enforces_memory"`
	// Isolation is how a worker's processes are held together, such as "cgroup1" or "groups".
	Isolation string `json:"isolation"`
	// LeaseFence: the provider declares that an agent's lease is proof of its job's end (R5.6).
	LeaseFence bool `json:"lease_fence"`
}

// Event is a fact about a provider. The set is closed.
type Event interface {
	EventType() string
	EventVersion() int
	isProviderEvent()
}

type v1 struct{}

func (v1) EventVersion() int { return 1 }
func (v1) isProviderEvent()  {}

// Registered is ProviderRegistered.
type Registered struct {
	v1
	Spec         Spec         `json:"spec"`
	Capabilities Capabilities `json:"capabilities"`
	By           string       `json:"by"`
}

// Updated is ProviderUpdated: its settings or what it can do have changed.
type Updated struct {
	v1
	Spec         Spec         `json:"spec"`
	Capabilities Capabilities `json:"capabilities"`
	By           string       `json:"by"`
}

// Removed is ProviderRemoved: it makes no more workers and those it has go.
type Removed struct {
	v1
	By string `json:"by"`
}

// HealthChanged is ProviderHealthChanged: a notice.
type HealthChanged struct {
	v1
	From   Health `json:"from"`
	To     Health `json:"to"`
	Reason string `json:"reason"`
}

// EventType implements Event.
func (Registered) EventType() string { return "ProviderRegistered" }

// EventType implements Event.
func (Updated) EventType() string { return "ProviderUpdated" }

// EventType implements Event.
func (Removed) EventType() string { return "ProviderRemoved" }

// EventType implements Event.
func (HealthChanged) EventType() string { return "ProviderHealthChanged" }

// Provider is the fold of a provider's events. It is a value.
type Provider struct {
	ID           string
	Version      int
	State        State
	Spec         Spec
	Capabilities Capabilities
	Health       Health
	HealthReason string
	// Alerts are those that stand, the oldest first.
	Alerts       []Raised
	RegisteredAt time.Time
	ChangedAt    time.Time
}

// At places an event: its version in the provider's stream and the log's time.
type At struct {
	Version int
	Time    time.Time
}

// Evolve applies one event. It never fails.
func (p Provider) Evolve(e Event, at At) Provider {
	p.Version, p.ChangedAt = at.Version, at.Time
	switch e := e.(type) {
	case Registered:
		p.State, p.Spec, p.Capabilities, p.Health, p.RegisteredAt = StateEnabled, e.Spec, e.Capabilities, Healthy, at.Time
	case Updated:
		p.Spec, p.Capabilities = e.Spec, e.Capabilities
	case Removed:
		p.State = StateRemoved
	case HealthChanged:
		p.Health, p.HealthReason = e.To, e.Reason
	case AlertRaised:
		p.Alerts = append(slices.Clone(p.Alerts), Raised{Alert: e.Alert, Reason: e.Reason, Since: at.Time})
	case AlertCleared:
		p.Alerts = slices.DeleteFunc(slices.Clone(p.Alerts), func(r Raised) bool { return r.Alert == e.Alert })
	}
	return p
}

var nameRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// Validate returns an Invalid error that names every wrong field.
func (s Spec) Validate() error {
	var f fault.Fields
	if !nameRE.MatchString(s.Name) {
		f.Add("name", "%q: 1 to 63 lower-case letters, digits or '-'", s.Name)
	}
	if s.Kind != Process && s.Kind != External {
		f.Add("kind", "%q: one of process, external", s.Kind)
	}
	if s.MaxWorkers < 1 || s.MaxWorkers > 10_000 {
		f.Add("max_workers", "%d: from 1 to 10000", s.MaxWorkers)
	}
	if s.MinIdle < 0 || s.MinIdle > s.MaxWorkers {
		f.Add("min_idle", "%d: from 0 to max_workers (%d)", s.MinIdle, s.MaxWorkers)
	}
	if s.Kind == External && s.MinIdle > 0 {
		f.Add("min_idle", "the workers of an external provider are started by its operator: leave it 0")
	}
	if s.JobsPerWorker < 0 {
		f.Add("jobs_per_worker", "%d: 1 or more, or 0 for unlimited", s.JobsPerWorker)
	}
	if s.CPUMillis < 0 || s.MemoryBytes < 0 {
		f.Add("capacity", "cpu_millis and memory_bytes: not negative")
	}
	if s.IdleTimeout <= 0 {
		f.Add("idle_timeout", "%s: more than 0", s.IdleTimeout)
	}
	if s.ScheduledTimeout <= 0 {
		f.Add("scheduled_timeout", "%s: more than 0", s.ScheduledTimeout)
	}
	job.CheckLabels(&f, "labels", s.Labels)
	return f.Err("the provider")
}

// Register decides on a registration: new, again after removal, changed (an
// update), or nothing where all is as it was.
func (p Provider) Register(s Spec, c Capabilities, by string) ([]Event, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	if p.State != StateEnabled {
		return []Event{Registered{Spec: s, Capabilities: c, By: by}}, nil
	}
	if p.Spec.Kind != s.Kind {
		return nil, fault.New(fault.AlreadyExists, "provider %s exists with kind %s", s.Name, p.Spec.Kind).
			WithCode("PROVIDER_EXISTS", "remove it first, or register under another name")
	}
	if p.Spec.equal(s) && p.Capabilities == c {
		return nil, nil
	}
	return []Event{Updated{Spec: s, Capabilities: c, By: by}}, nil
}

// Remove decides that the provider makes no more workers; its alerts are cleared.
func (p Provider) Remove(by string) ([]Event, error) {
	if err := Transitions.Check(p.ID, p.State, StateRemoved); err != nil {
		return nil, err
	}
	return append([]Event{Removed{By: by}}, p.silence()...), nil
}

// Observe decides whether a look at the provider's health is news.
func (p Provider) Observe(h Health, reason string) []Event {
	if p.State != StateEnabled || p.Health == h {
		return nil
	}
	return []Event{HealthChanged{From: p.Health, To: h, Reason: reason}}
}

func (s Spec) equal(o Spec) bool {
	a, errA := json.Marshal(s)
	b, errB := json.Marshal(o)
	return errA == nil && errB == nil && string(a) == string(b)
}
