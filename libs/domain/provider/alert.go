package provider

import (
	"slices"
	"time"
)

// Alert is something about a provider that a person should look at, in one word.
type Alert string

// The alerts that exist.
const (
	// AlertUnhealthy: it cannot make workers, or not end them, as things are.
	AlertUnhealthy Alert = "UNHEALTHY"
	// AlertCircuitOpen: it failed so often to make workers that no job is placed there.
	AlertCircuitOpen Alert = "CIRCUIT_OPEN"
	// AlertNotDestroyed: a worker of it cannot be destroyed for a while already; a job may
	// be waiting for that, and a resource costs.
	AlertNotDestroyed Alert = "WORKERS_NOT_DESTROYED"
)

// Alerts lists all that exist, in the order in which they are told.
var Alerts = []Alert{AlertUnhealthy, AlertCircuitOpen, AlertNotDestroyed}

// Raised is an alert that stands.
type Raised struct {
	Alert  Alert
	Reason string
	Since  time.Time
}

// AlertRaised is ProviderAlertRaised: a notice that somebody should look.
type AlertRaised struct {
	v1
	Alert  Alert  `json:"alert"`
	Reason string `json:"reason"`
}

// AlertCleared is ProviderAlertCleared: a notice that the alert's cause is gone.
type AlertCleared struct {
	v1
	Alert Alert `json:"alert"`
	// RaisedAt is when it was raised.
	RaisedAt time.Time `json:"raised_at"`
	Reason   string    `json:"reason"`
}

// EventType implements Event.
func (AlertRaised) EventType() string { return "ProviderAlertRaised" }

// EventType implements Event.
func (AlertCleared) EventType() string { return "ProviderAlertCleared" }

// Warn decides which alerts are news: causes says, for each alert that should stand,
// why. One that stands already is not told again, whatever its cause says by now.
func (p Provider) Warn(causes map[Alert]string) []Event {
	if p.State != StateEnabled {
		return nil
	}
	var out []Event
	for _, a := range Alerts {
		why, should := causes[a]
		at := slices.IndexFunc(p.Alerts, func(r Raised) bool { return r.Alert == a })
		switch {
		case should && at < 0:
			out = append(out, AlertRaised{Alert: a, Reason: why})
		case !should && at >= 0:
			out = append(out, AlertCleared{Alert: a, RaisedAt: p.Alerts[at].Since, Reason: "its cause is gone"})
		}
	}
	return out
}

// silence clears all alerts: nobody has to look at a provider that is removed.
func (p Provider) silence() []Event {
	var out []Event
	for _, r := range p.Alerts {
		out = append(out, AlertCleared{Alert: r.Alert, RaisedAt: r.Since, Reason: "the provider is removed"})
	}
	return out
}
