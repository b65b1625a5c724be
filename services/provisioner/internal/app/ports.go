package app

import (
	"context"
	"encoding/json"
	"time"

	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
)

// service is the source and actor of what the provisioner appends by itself.
const service = "provisioner"

// Provider makes resources of one kind, one for each worker, and ends them. It
// decides nothing about workers. Implementations are safe for concurrent use;
// calls about one worker come one after the other.
type Provider interface {
	// Create returns the worker's resource and makes it where there is none. An error
	// that is fault.Invalid, fault.Precondition or fault.NotFound will stay; any other
	// is worth another try. After an error nothing is left that Destroy does not find.
	Create(ctx context.Context, w WorkerSpec) (Resource, error)
	// Destroy ends the worker's resource and everything in it. It returns nil only
	// when nothing is left, also where there never was anything; an error means try again.
	Destroy(ctx context.Context, workerID string) error
	// List returns the resources that exist, where Capabilities say that it can.
	List(ctx context.Context) ([]Resource, error)
	// Watch tells of resources that have ended by themselves, also of those that had
	// ended before, until ctx ends. What is left of them is Destroy's. One Watch at a time.
	Watch(ctx context.Context, gone func(Gone)) error
	// Health returns nil where workers can be made.
	Health(ctx context.Context) error
	// Capabilities says what the provider can do here.
	Capabilities() Capabilities
	// Accepts returns an Invalid error that names what of a registration it cannot do.
	Accepts(s provider.Spec) error
}

// Capabilities is what a provider can do.
type Capabilities struct {
	provider.Capabilities
	// Inventory: List is complete, so what it does not name does not exist.
	Inventory bool
}

// WorkerSpec is what a worker has to be, in words that every provider understands.
type WorkerSpec struct {
	WorkerID string
	// Provider is the name of the registration that the worker belongs to.
	Provider string
	// CPUMillis and MemoryBytes are what its first job reserves; 0 = unknown.
	CPUMillis, MemoryBytes int64
	// RunAs is the user that its jobs run as; empty = the provider's default.
	RunAs string
	// Extension holds the provider's own options as JSON; may be nil.
	Extension json.RawMessage
	// Token returns what the worker's agent registers with. It is asked only where a
	// resource has to be made, because each token voids the one before. It blocks while
	// registry is away, until ctx ends.
	Token func(ctx context.Context) (Token, error)
}

// Token is what an agent registers with.
type Token struct {
	// Value is secret.
	Value string
	// AgentAddress is where the agent dials in.
	AgentAddress string
	ExpiresAt    time.Time
}

// Resource is what a provider made for a worker.
type Resource struct {
	WorkerID string
	// Name is the provider's own.
	Name string
	// Details are for people, such as "pid".
	Details map[string]string
	// Pending: the worker's owner starts it; it does not exist yet.
	Pending bool
}

// Gone says that a resource has ended by itself.
type Gone struct {
	WorkerID string
	// Reason is one clause for people.
	Reason string
}

// Local is a provider whose resources are those of one machine.
type Local interface {
	// Here tells whether a resource with these details is on this machine.
	Here(details map[string]string) bool
}

// Graceful is a provider that can ask a worker's agent to end what it runs.
type Graceful interface {
	// Stop asks, and returns once the agent has ended or grace is over. Destroy follows
	// in any case.
	Stop(ctx context.Context, workerID string, grace time.Duration) error
}

// Tokens issues registration tokens. *registry.Tokens is one.
type Tokens interface {
	// Issue makes the token of a worker; fault.Unavailable while registry is away.
	Issue(ctx context.Context, workerID string, ttl time.Duration) (Token, error)
}

// Log is the event log; a *store.Store is one.
type Log interface {
	aggregate.Loader
	store.Appender
	// Snapshot reads all live aggregates as they stand at one position.
	Snapshot(ctx context.Context, o store.SnapshotOptions, fn func(event.Event) error) (int64, error)
	// FindStreams returns at most limit streams whose id begins with a prefix.
	FindStreams(ctx context.Context, streamType, idPrefix string, limit int) ([]store.StreamRow, error)
}

// Follow delivers the events after a position, in order, until ctx ends. A batch
// that handle fails comes again.
type Follow func(ctx context.Context, after int64, handle func(ctx context.Context, events []event.Event) error) error

// Machine is what the machine that the provisioner runs on has.
type Machine struct {
	CPUs        int
	MemoryBytes int64
}
