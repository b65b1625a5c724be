// Package aggregate is where the domain meets the event log: it loads an
// aggregate by folding its events, and turns what the domain decided into the
// change that an append takes. It decides nothing itself.
package aggregate

import (
	"context"
	"errors"
	"fmt"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/circuit"
	"hodei.dev/libs/domain/consumer"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
)

// Loader is the half of the store that reads one stream.
type Loader interface {
	// Load returns the events of a stream after a version, oldest first; none where there is no such stream.
	Load(ctx context.Context, stream event.Stream, after int) ([]event.Event, error)
}

// JobStream names a job's stream.
func JobStream(id string) event.Stream { return event.Stream{Type: catalogue.Job, ID: id} }

// WorkerStream names a worker's stream.
func WorkerStream(id string) event.Stream { return event.Stream{Type: catalogue.Worker, ID: id} }

// ProviderStream names a provider's stream.
func ProviderStream(id string) event.Stream { return event.Stream{Type: catalogue.Provider, ID: id} }

// CircuitStream names a circuit's stream.
func CircuitStream(id string) event.Stream { return event.Stream{Type: catalogue.Circuit, ID: id} }

// ConsumerStream names the stream of a consumer of the log; its id comes from its name.
func ConsumerStream(name string) event.Stream {
	return event.Stream{Type: catalogue.Consumer, ID: event.DerivedID(catalogue.Consumer, name)}
}

// EvolveJob folds one event into j. An event that j has already is ignored, so
// that a consumer may be told twice. A type that is not a job's own, such as
// StateTimedOut, moves only the version.
func EvolveJob(j job.Job, e event.Event) (job.Job, error) {
	if e.StreamVersion <= j.Version {
		return j, nil
	}
	fact, err := Decode(e)
	if err != nil {
		return j, err
	}
	j.ID = e.Stream.ID
	if own, ok := fact.(job.Event); ok {
		return j.Evolve(own, job.At{Version: e.StreamVersion, Time: e.Time}), nil
	}
	j.Version = e.StreamVersion
	return j, nil
}

// EvolveWorker folds one event into w, like EvolveJob.
func EvolveWorker(w worker.Worker, e event.Event) (worker.Worker, error) {
	if e.StreamVersion <= w.Version {
		return w, nil
	}
	fact, err := Decode(e)
	if err != nil {
		return w, err
	}
	w.ID = e.Stream.ID
	if own, ok := fact.(worker.Event); ok {
		return w.Evolve(own, worker.At{Version: e.StreamVersion, Time: e.Time}), nil
	}
	w.Version = e.StreamVersion
	return w, nil
}

// EvolveProvider folds one event into p, like EvolveJob.
func EvolveProvider(p provider.Provider, e event.Event) (provider.Provider, error) {
	if e.StreamVersion <= p.Version {
		return p, nil
	}
	fact, err := Decode(e)
	if err != nil {
		return p, err
	}
	p.ID = e.Stream.ID
	if own, ok := fact.(provider.Event); ok {
		return p.Evolve(own, provider.At{Version: e.StreamVersion, Time: e.Time}), nil
	}
	p.Version = e.StreamVersion
	return p, nil
}

// EvolveCircuit folds one event into c, like EvolveJob.
func EvolveCircuit(c circuit.Circuit, e event.Event) (circuit.Circuit, error) {
	if e.StreamVersion <= c.Version {
		return c, nil
	}
	fact, err := Decode(e)
	if err != nil {
		return c, err
	}
	c.ID = e.Stream.ID
	if own, ok := fact.(circuit.Event); ok {
		return c.Evolve(own, circuit.At{Version: e.StreamVersion, Time: e.Time}), nil
	}
	c.Version = e.StreamVersion
	return c, nil
}

// LoadConsumer folds a service's consumer from its events. One that never stalled
// has none, and no state.
func LoadConsumer(ctx context.Context, l Loader, service, name string) (consumer.Consumer, error) {
	c := consumer.Consumer{Service: service, Name: name}
	events, err := l.Load(ctx, ConsumerStream(name), 0)
	if err != nil {
		return c, fmt.Errorf("load consumer %s: %w", name, err)
	}
	for _, e := range events {
		fact, err := Decode(e)
		if err != nil {
			return c, err
		}
		if own, ok := fact.(consumer.Event); ok {
			c = c.Evolve(own, e.StreamVersion)
		}
	}
	return c, nil
}

// Decode returns the event's fact as its struct of libs/domain.
func Decode(e event.Event) (any, error) {
	fact, err := catalogue.Decode(e.Type, e.Version, e.Data)
	if err != nil {
		return nil, fmt.Errorf("event %s of %s: %w", e.ID, e.Stream, err)
	}
	return fact, nil
}

// LoadJob folds a job from its events. A job that does not exist is NotFound.
func LoadJob(ctx context.Context, l Loader, id string) (job.Job, error) {
	return load(ctx, l, JobStream(id), EvolveJob)
}

// LoadWorker folds a worker from its events. One that does not exist is NotFound.
func LoadWorker(ctx context.Context, l Loader, id string) (worker.Worker, error) {
	return load(ctx, l, WorkerStream(id), EvolveWorker)
}

// LoadProvider folds a provider from its events. One that does not exist is NotFound.
func LoadProvider(ctx context.Context, l Loader, id string) (provider.Provider, error) {
	return load(ctx, l, ProviderStream(id), EvolveProvider)
}

// LoadCircuit folds a circuit from its events. One that has never opened is closed,
// with only its id.
func LoadCircuit(ctx context.Context, l Loader, id string) (circuit.Circuit, error) {
	c, err := load(ctx, l, CircuitStream(id), EvolveCircuit)
	if errors.Is(err, fault.NotFound) {
		return circuit.Circuit{ID: id}, nil
	}
	return c, err
}

func load[A any](ctx context.Context, l Loader, s event.Stream, evolve func(A, event.Event) (A, error)) (A, error) {
	var a A
	events, err := l.Load(ctx, s, 0)
	if err != nil {
		return a, fmt.Errorf("load %s: %w", s, err)
	}
	if len(events) == 0 {
		return a, fault.New(fault.NotFound, "there is no %s %s", s.Type, s.ID).
			WithCode("NOT_FOUND", "list what there is: `hodei "+s.Type+" list`")
	}
	for _, e := range events {
		if a, err = evolve(a, e); err != nil {
			return a, err
		}
	}
	return a, nil
}

// JobChange turns what was decided about j into its part of an append.
func JobChange[F event.Fact](j job.Job, meta event.Meta, facts []F) (store.Change, error) {
	c := store.Change{Stream: JobStream(j.ID), Namespace: j.Spec.Namespace, Expected: j.Version}
	for _, fact := range facts {
		if e, ok := any(fact).(job.Event); ok {
			j = j.Evolve(e, job.At{})
		}
	}
	c.Namespace, c.State, c.Terminal = j.Spec.Namespace, string(j.State), j.State.Terminal()
	return enclose(c, meta, facts)
}

// WorkerChange turns what was decided about w into its part of an append.
func WorkerChange[F event.Fact](w worker.Worker, meta event.Meta, facts []F) (store.Change, error) {
	c := store.Change{Stream: WorkerStream(w.ID), Namespace: event.NoNamespace, Expected: w.Version}
	for _, fact := range facts {
		if e, ok := any(fact).(worker.Event); ok {
			w = w.Evolve(e, worker.At{})
		}
	}
	c.State, c.Terminal = string(w.State), w.State.Terminal()
	return enclose(c, meta, facts)
}

// ProviderChange turns what was decided about p into its part of an append. A
// provider is never terminal: a removed one may be registered again.
func ProviderChange[F event.Fact](p provider.Provider, meta event.Meta, facts []F) (store.Change, error) {
	c := store.Change{Stream: ProviderStream(p.ID), Namespace: event.NoNamespace, Expected: p.Version}
	for _, fact := range facts {
		if e, ok := any(fact).(provider.Event); ok {
			p = p.Evolve(e, provider.At{})
		}
	}
	c.State = string(p.State)
	return enclose(c, meta, facts)
}

// CircuitChange turns what was decided about c into its part of an append. A closed
// circuit is left out of snapshots; it may open again.
func CircuitChange[F event.Fact](c circuit.Circuit, meta event.Meta, facts []F) (store.Change, error) {
	change := store.Change{Stream: CircuitStream(c.ID), Namespace: event.NoNamespace, Expected: c.Version}
	for _, fact := range facts {
		if e, ok := any(fact).(circuit.Event); ok {
			c = c.Evolve(e, circuit.At{})
		}
	}
	change.State, change.Terminal = string(c.State), c.State.Settled()
	return enclose(change, meta, facts)
}

// ConsumerChange turns what was recorded about c into its part of an append. Its
// stream has no end.
func ConsumerChange(c consumer.Consumer, meta event.Meta, facts []consumer.Event) (store.Change, error) {
	change := store.Change{Stream: ConsumerStream(c.Name), Namespace: event.NoNamespace, Expected: c.Version}
	for _, e := range facts {
		c = c.Evolve(e, c.Version+1)
	}
	change.State = string(c.State)
	return enclose(change, meta, facts)
}

// enclose puts the facts into envelopes. Within one change each event is caused
// by what caused the first: they are one decision.
func enclose[F event.Fact](c store.Change, meta event.Meta, facts []F) (store.Change, error) {
	meta.Namespace = c.Namespace
	for _, fact := range facts {
		e, err := event.New(c.Stream, meta, fact)
		if err != nil {
			return store.Change{}, fmt.Errorf("change %s: %w", c.Stream, err)
		}
		c.Events = append(c.Events, e)
	}
	return c, nil
}
