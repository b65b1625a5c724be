// Package catalogue is the list of every event type: who appends it, who
// consumes it, and whether it carries a transition or is a notice. It is data;
// docs/events.md is made from it, and tests compare the running system with it.
package catalogue

import (
	"encoding/json"
	"fmt"
	"strings"

	"hodei.dev/libs/domain/circuit"
	"hodei.dev/libs/domain/consumer"
	"hodei.dev/libs/domain/deadletter"
	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/eventlog"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/worker"
)

// Role tells what an event type does to its aggregate.
type Role string

// The roles. Exactly one event carries each transition; all others are notices.
const (
	Transition Role = "transition"
	Notice     Role = "notice"
	Telemetry  Role = "telemetry"
)

// The services.
const (
	Scheduler      = "scheduler"
	Dispatcher     = "dispatcher"
	Registry       = "registry"
	Provisioner    = "provisioner"
	TimeoutMonitor = "timeout-monitor"
	Audit          = "audit"
	Relay          = "relay"
	Gateway        = "gateway"
	Agent          = "agent"
)

// The aggregate types.
const (
	Job      = "job"
	Worker   = "worker"
	Provider = "provider"
	Consumer = "consumer"
	EventLog = "event-log"
	Circuit  = "circuit"
	// DeadLetter is an event that a service could not handle (ADR: dead letters are an aggregate).
	DeadLetter = "deadletter"
)

// Entry is one event type.
type Entry struct {
	Type string
	// Aggregates are the kinds of stream that it occurs in.
	Aggregates []string
	Role       Role
	// Producers append it; Consumers react to it. Audit consumes everything and is not repeated.
	Producers, Consumers []string
	// Meaning in one line.
	Meaning string

	decode func([]byte) (any, error)
}

func of[E any](t string, aggregates []string, role Role, producers, consumers []string, meaning string) Entry {
	return Entry{t, aggregates, role, producers, consumers, meaning, func(b []byte) (any, error) {
		var e E
		err := json.Unmarshal(b, &e)
		return e, err
	}}
}

func list(s ...string) []string { return s }

// consumers are the services that consume the log, and the relay, which watches them.
var consumers = list(Scheduler, Dispatcher, Registry, Provisioner, TimeoutMonitor, Audit, Relay)

// Entries lists every event type that something emits (R3.1, R3.2).
var Entries = []Entry{
	of[job.Created]("JobCreated", list(Job), Transition, list(Scheduler), list(Scheduler), "a job exists and is PENDING"),
	of[job.Queued]("JobQueued", list(Job), Notice, list(Scheduler), list(Dispatcher, TimeoutMonitor), "a job waits to be placed"),
	of[job.Scheduled]("JobScheduled", list(Job), Transition, list(Dispatcher), list(Scheduler, Dispatcher, TimeoutMonitor), "a provider makes a worker for the job"),
	of[job.Assigned]("JobAssigned", list(Job), Transition, list(Dispatcher), list(Scheduler, Dispatcher, TimeoutMonitor), "a worker gets the job; an attempt is minted"),
	of[job.StatusChanged]("JobStatusChanged", list(Job), Transition, list(Scheduler, Dispatcher, Registry, TimeoutMonitor), list(Scheduler, Dispatcher, TimeoutMonitor), "every transition of a job that has no event of its own"),
	of[job.Requeued]("JobRequeued", list(Job), Transition, list(Dispatcher, Registry, TimeoutMonitor), list(Scheduler, Dispatcher, TimeoutMonitor), "an attempt ended and the job waits again"),
	of[job.ExecutionError]("JobExecutionError", list(Job), Notice, list(Registry, TimeoutMonitor), nil, "an attempt's command failed, or was ended by its deadline"),
	of[job.DispatchFailed]("JobDispatchFailed", list(Job), Notice, list(Dispatcher), nil, "a worker could not be given its job"),
	of[job.ResultRejected]("JobResultRejected", list(Job), Notice, list(Registry), nil, "a result came too late or from a stale attempt; kept as evidence"),
	of[job.CancelRequested]("JobCancelRequested", list(Job), Notice, list(Scheduler), list(Scheduler, Registry, Dispatcher, TimeoutMonitor), "somebody wants the job to end"),
	of[job.PlacementDeferred]("PlacementDeferred", list(Job), Notice, list(Dispatcher), list(Scheduler), "nothing in the system could run the job as things are"),

	of[worker.ProvisioningRequested]("WorkerProvisioningRequested", list(Worker), Transition, list(Dispatcher, Provisioner), list(Provisioner, Dispatcher, Registry, TimeoutMonitor), "a worker is to be made; it is CREATING"),
	of[worker.ProviderSelected]("ProviderSelected", list(Worker), Notice, list(Dispatcher), nil, "which providers were candidates and why this one was taken"),
	of[worker.Provisioned]("WorkerProvisioned", list(Worker), Notice, list(Provisioner), list(Registry), "the resource exists"),
	of[worker.ProvisioningFailed]("WorkerProvisioningFailed", list(Worker), Notice, list(Provisioner), list(Dispatcher), "the resource could not be made"),
	of[worker.StatusChanged]("WorkerStatusChanged", list(Worker), Transition, list(Dispatcher, Registry, Provisioner, TimeoutMonitor), list(Dispatcher, Registry, Provisioner, TimeoutMonitor), "every transition of a worker but the first and the last"),
	of[worker.Registered]("WorkerRegistered", list(Worker), Notice, list(Registry), list(Dispatcher, Registry), "an agent has proven itself"),
	of[worker.Ready]("WorkerReady", list(Worker), Notice, list(Registry), list(Dispatcher, Registry), "the agent is connected for the first time"),
	of[worker.ReadyForJob]("WorkerReadyForJob", list(Worker), Notice, list(Registry), list(Dispatcher, Registry), "the worker can take a job"),
	of[worker.Disconnected]("WorkerDisconnected", list(Worker), Notice, list(Registry), list(Dispatcher, Registry, Provisioner), "the agent's stream broke; this alone ends nothing"),
	of[worker.Reconnected]("WorkerReconnected", list(Worker), Notice, list(Registry), list(Dispatcher, Registry), "the agent is back with the next session epoch"),
	of[worker.Lost]("WorkerLost", list(Worker), Notice, list(Registry), list(Registry), "the worker fell silent and is given up"),
	of[worker.DrainRequested]("WorkerDrainRequested", list(Worker), Notice, list(Registry, Provisioner), nil, "an operator drains the worker, or undoes that"),
	of[worker.RegistrationRejected]("WorkerRegistrationRejected", list(Worker), Notice, list(Registry), nil, "an agent could not prove itself"),
	of[worker.Terminated]("WorkerTerminated", list(Worker), Transition, list(Provisioner), list(Registry, Dispatcher, Provisioner, TimeoutMonitor), "the provider has confirmed that nothing is left"),
	of[worker.Heartbeat]("WorkerHeartbeat", list(Worker), Telemetry, list(Agent), list(TimeoutMonitor, Registry), "an agent lives; never in the event log"),

	of[provider.Registered]("ProviderRegistered", list(Provider), Transition, list(Provisioner), list(Scheduler, Dispatcher, Provisioner, TimeoutMonitor), "a provider makes workers"),
	of[provider.Updated]("ProviderUpdated", list(Provider), Notice, list(Provisioner), list(Dispatcher, Provisioner, TimeoutMonitor), "a provider's settings have changed"),
	of[provider.Removed]("ProviderRemoved", list(Provider), Transition, list(Provisioner), list(Scheduler, Dispatcher, Provisioner, TimeoutMonitor), "a provider makes no more workers"),
	of[provider.HealthChanged]("ProviderHealthChanged", list(Provider), Notice, list(Provisioner), list(Dispatcher), "a provider became healthy or unhealthy"),
	of[provider.AlertRaised]("ProviderAlertRaised", list(Provider), Notice, list(Provisioner), nil, "somebody should look at a provider"),
	of[provider.AlertCleared]("ProviderAlertCleared", list(Provider), Notice, list(Provisioner), nil, "the cause of a provider's alert is gone"),
	of[provider.OrphanDetected]("OrphanResourceDetected", list(Provider), Notice, list(Provisioner), nil, "a resource has no live worker, seen twice; it is destroyed"),
	of[provider.OrphanDestroyed]("OrphanResourceDestroyed", list(Provider), Notice, list(Provisioner), nil, "nothing of the orphan is left"),

	of[circuit.Opened]("CircuitOpened", list(Circuit), Transition, list(Dispatcher), list(Dispatcher, Provisioner), "what it guards is not used until a probe succeeds"),
	of[circuit.HalfOpened]("CircuitHalfOpened", list(Circuit), Transition, list(Dispatcher), list(Dispatcher, Provisioner), "one probe is made"),
	of[circuit.Closed]("CircuitClosed", list(Circuit), Transition, list(Dispatcher), list(Dispatcher, Provisioner), "what it guards is used again, or nothing is left to guard"),

	of[deadline.TimedOut]("StateTimedOut", list(Job, Worker), Notice, list(TimeoutMonitor), list(Registry, TimeoutMonitor), "a job or worker stayed in a state longer than it may"),

	of[consumer.Stalled]("ConsumerStalled", list(Consumer), Transition, consumers, nil, "events wait for a consumer of the log and do not reach it"),
	of[consumer.Recovered]("ConsumerRecovered", list(Consumer), Transition, consumers, nil, "what waited for the consumer is handled, nothing was skipped"),

	of[consumer.AlertRaised]("DeadLetterAlertRaised", list(Consumer), Notice, list(Relay), nil, "so many dead letters of a consumer are open that somebody should look"),
	of[consumer.AlertCleared]("DeadLetterAlertCleared", list(Consumer), Notice, list(Relay), nil, "fewer dead letters of the consumer are open again"),

	of[eventlog.EpochRequested]("StreamEpochRequested", list(EventLog), Notice, list(Relay), nil, "an operator has the events stream made anew, because it holds what the log does not"),
	of[eventlog.EpochStarted]("StreamEpochStarted", list(EventLog), Notice, list(Relay), nil, "the relay publishes to a stream that it has not known before"),
	of[eventlog.Republished]("EventRepublished", list(EventLog), Notice, list(Relay), nil, "positions that the stream has lost are published again; one event an incident"),
	of[deadletter.Recorded](deadletter.TypeRecorded, list(DeadLetter), Transition, list(Scheduler, Dispatcher, Registry, Provisioner, TimeoutMonitor, Audit, Relay), nil, "a service gave up on an event, or a replay of it failed again"),
	of[deadletter.ReplayRequested](deadletter.TypeReplayRequested, list(DeadLetter), Transition, list(Audit), handlers, "an operator sends a dead letter back to the one consumer that failed, as it is or edited"),
	of[deadletter.Replayed](deadletter.TypeReplayed, list(DeadLetter), Transition, handlers, nil, "the replayed event was handled, with what was parked behind it"),
	of[deadletter.Discarded](deadletter.TypeDiscarded, list(DeadLetter), Transition, list(Audit, Scheduler, Registry, TimeoutMonitor), handlers, "an operator gave a dead letter up; what was parked behind it goes on"),
}

// handlers are the services whose consumers handle replays.
var handlers = list(Scheduler, Dispatcher, Registry, Provisioner, TimeoutMonitor)

// Lookup returns the entry of a type.
func Lookup(eventType string) (Entry, bool) {
	for _, e := range Entries {
		if e.Type == eventType {
			return e, true
		}
	}
	return Entry{}, false
}

// Consumed lists the types that a service reacts to.
func Consumed(service string) []string {
	var out []string
	for _, e := range Entries {
		for _, c := range e.Consumers {
			if c == service && e.Role != Telemetry {
				out = append(out, e.Type)
			}
		}
	}
	return out
}

// Decode turns an event's data into its struct. A type or version that this
// build does not know is a typed Invalid error.
func Decode(eventType string, version int, data []byte) (any, error) {
	e, ok := Lookup(eventType)
	if !ok || version != 1 {
		return nil, fault.New(fault.Invalid, "event type %s version %d is not known here: deploy a build that knows it", eventType, version).
			WithCode("UNKNOWN_EVENT_TYPE", "")
	}
	v, err := e.decode(data)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "decode %s", eventType)
	}
	return v, nil
}

// Markdown renders the catalogue for docs/events.md.
func Markdown() string {
	var b strings.Builder
	b.WriteString("| event | aggregate | role | appended by | consumed by (beside audit) | meaning |\n|---|---|---|---|---|---|\n")
	for _, e := range Entries {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", e.Type, strings.Join(e.Aggregates, ", "), e.Role,
			strings.Join(e.Producers, ", "), strings.Join(e.Consumers, ", "), e.Meaning)
	}
	return b.String()
}
