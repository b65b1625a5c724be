package worker

import "time"

// Event is a fact about a worker. The set is closed.
type Event interface {
	EventType() string
	EventVersion() int
	isWorkerEvent()
}

type v1 struct{}

func (v1) EventVersion() int { return 1 }
func (v1) isWorkerEvent()    {}

// ProvisioningRequested is WorkerProvisioningRequested: the intent, recorded before the provider is called; the worker is CREATING.
type ProvisioningRequested struct {
	v1
	ProviderID   string `json:"provider_id"`
	ProviderName string `json:"provider_name"`
	// JobID is the job that waits for it; empty for one that is kept warm or started by an operator.
	JobID string `json:"job_id,omitempty"`
	// CPUMillis and MemoryBytes are what its first job reserves; they are the worker's limits where the provider enforces them.
	CPUMillis   int64 `json:"cpu_millis,omitempty"`
	MemoryBytes int64 `json:"memory_bytes,omitempty"`
	// JobsPerWorker is after how many jobs it ends; 0 = never.
	JobsPerWorker int    `json:"jobs_per_worker"`
	Reason        string `json:"reason"`
}

// ProviderSelected is a notice: which providers were candidates and why this one was taken.
type ProviderSelected struct {
	v1
	ProviderID string      `json:"provider_id"`
	JobID      string      `json:"job_id,omitempty"`
	Candidates []Candidate `json:"candidates"`
}

// Candidate is one provider that was looked at.
type Candidate struct {
	ProviderID   string `json:"provider_id"`
	ProviderName string `json:"provider_name"`
	Fits         bool   `json:"fits"`
	// Reason says why it does not fit, or why it was or was not taken.
	Reason string `json:"reason"`
}

// Provisioned is WorkerProvisioned: a notice that the resource exists.
type Provisioned struct {
	v1
	ProviderID string `json:"provider_id"`
	// Resource is the provider's name of it.
	Resource string `json:"resource"`
	// Details are the provider's own, such as "pid" or "container_id".
	Details map[string]string `json:"details,omitempty"`
}

// ProvisioningFailed is WorkerProvisioningFailed: a notice that the resource could not be made.
type ProvisioningFailed struct {
	v1
	ProviderID string `json:"provider_id"`
	JobID      string `json:"job_id,omitempty"`
	Reason     string `json:"reason"`
}

// StatusChanged is WorkerStatusChanged: every transition but the first and the last.
type StatusChanged struct {
	v1
	From State `json:"from"`
	To   State `json:"to"`
	// Cause is there when To is TERMINATING or DRAINING.
	Cause  Cause  `json:"cause,omitempty"`
	Reason string `json:"reason"`
	// JobID and Attempt are what it takes (to BUSY) or what it leaves.
	JobID   string `json:"job_id,omitempty"`
	Attempt int    `json:"attempt,omitempty"`
}

// Registered is WorkerRegistered: a notice that its agent has proven itself.
type Registered struct {
	v1
	AgentVersion string `json:"agent_version"`
	Hostname     string `json:"hostname"`
	PID          int    `json:"pid"`
}

// Ready is WorkerReady: a notice that its agent is connected for the first time.
type Ready struct {
	v1
	Epoch int64 `json:"epoch"`
	// Replica is the registry process that holds the session; empty where that is not known.
	Replica string `json:"replica,omitempty"`
}

// ReadyForJob is WorkerReadyForJob: a notice, each time it can take a job.
type ReadyForJob struct {
	v1
	ProviderID string `json:"provider_id"`
	// Epoch is the session that takes commands.
	Epoch    int64 `json:"epoch"`
	JobsDone int   `json:"jobs_done"`
}

// Disconnected is WorkerDisconnected: a notice that its agent's stream broke. It ends nothing by itself.
type Disconnected struct {
	v1
	Epoch  int64  `json:"epoch"`
	Reason string `json:"reason"`
	// Clean: the agent said goodbye: it has ended what it ran and will not come back.
	Clean bool `json:"clean,omitempty"`
}

// Reconnected is WorkerReconnected: a notice that its agent is back with the next session epoch.
type Reconnected struct {
	v1
	Epoch int64 `json:"epoch"`
	// Replica is the registry process that holds the session; empty where that is not known.
	Replica string `json:"replica,omitempty"`
}

// Lost is WorkerLost: a notice that it fell silent; TERMINATING follows in the same append.
type Lost struct {
	v1
	JobID         string    `json:"job_id,omitempty"`
	Attempt       int       `json:"attempt,omitempty"`
	LastHeartbeat time.Time `json:"last_heartbeat,omitzero"`
	Reason        string    `json:"reason"`
}

// DrainRequested is WorkerDrainRequested: a notice that an operator drains it, or undoes that.
type DrainRequested struct {
	v1
	By   string `json:"by"`
	Undo bool   `json:"undo,omitempty"`
}

// RegistrationRejected is WorkerRegistrationRejected: a notice that an agent could not prove itself.
type RegistrationRejected struct {
	v1
	Reason string `json:"reason"`
	// Peer is the address that it called from.
	Peer string `json:"peer,omitempty"`
}

// Terminated is WorkerTerminated: the provider has confirmed that nothing is left.
type Terminated struct {
	v1
	From       State  `json:"from"`
	ProviderID string `json:"provider_id"`
	Reason     string `json:"reason"`
	// JobID and Attempt are what it still held.
	JobID   string `json:"job_id,omitempty"`
	Attempt int    `json:"attempt,omitempty"`
}

// Heartbeat is WorkerHeartbeat: telemetry, never in the event log (R3.2).
type Heartbeat struct {
	v1
	Epoch int64 `json:"epoch"`
	// Sequence grows by one with each heartbeat of a session.
	Sequence int64  `json:"sequence"`
	JobID    string `json:"job_id,omitempty"`
	Attempt  int    `json:"attempt,omitempty"`
}

// EventType implements Event.
func (ProvisioningRequested) EventType() string { return typeRequested }

// EventType implements Event.
func (ProviderSelected) EventType() string { return "ProviderSelected" }

// EventType implements Event.
func (Provisioned) EventType() string { return "WorkerProvisioned" }

// EventType implements Event.
func (ProvisioningFailed) EventType() string { return "WorkerProvisioningFailed" }

// EventType implements Event.
func (StatusChanged) EventType() string { return typeStatusChanged }

// EventType implements Event.
func (Registered) EventType() string { return "WorkerRegistered" }

// EventType implements Event.
func (Ready) EventType() string { return "WorkerReady" }

// EventType implements Event.
func (ReadyForJob) EventType() string { return "WorkerReadyForJob" }

// EventType implements Event.
func (Disconnected) EventType() string { return "WorkerDisconnected" }

// EventType implements Event.
func (Reconnected) EventType() string { return "WorkerReconnected" }

// EventType implements Event.
func (Lost) EventType() string { return "WorkerLost" }

// EventType implements Event.
func (DrainRequested) EventType() string { return "WorkerDrainRequested" }

// EventType implements Event.
func (RegistrationRejected) EventType() string { return "WorkerRegistrationRejected" }

// EventType implements Event.
func (Terminated) EventType() string { return typeTerminated }

// EventType implements Event.
func (Heartbeat) EventType() string { return "WorkerHeartbeat" }
