package provider

import "hodei.dev/libs/domain/unit"

// OrphanDetected is OrphanResourceDetected: a notice that a resource of the
// provider has no live worker (a zombie, R5.5). It is about to be destroyed.
type OrphanDetected struct {
	v1
	// WorkerID is the worker that the resource says it was made for.
	WorkerID string `json:"worker_id"`
	// Resource is the provider's name of it.
	Resource string `json:"resource"`
	// Known: the log has the worker, and its life is over; else the log never had it.
	Known bool `json:"known"`
	// Seen is how long it has been there without a worker, from the first look to this one.
	Seen unit.Duration `json:"seen"`
}

// OrphanDestroyed is OrphanResourceDestroyed: a notice that nothing of the orphan
// is left.
type OrphanDestroyed struct {
	v1
	WorkerID string `json:"worker_id"`
	Resource string `json:"resource"`
}

// EventType implements Event.
func (OrphanDetected) EventType() string { return "OrphanResourceDetected" }

// EventType implements Event.
func (OrphanDestroyed) EventType() string { return "OrphanResourceDestroyed" }
