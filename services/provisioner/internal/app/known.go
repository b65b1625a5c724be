package app

import (
	"context"
	"errors"
	"fmt"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/services/provisioner/core"
)

// rounds is how often a decision that met a conflict is taken again at once.
const rounds = 5

// known is a worker as the log has it now.
type known struct {
	worker.Worker
	// first and last are its first and latest event; change is the latest that
	// changed its state.
	first, last, change event.Event
	// fate is what became of its agent.
	fate Fate
}

// loadWorker folds a worker; one that does not exist is NotFound.
func loadWorker(ctx context.Context, log aggregate.Loader, id string) (known, error) {
	var k known
	events, err := log.Load(ctx, aggregate.WorkerStream(id), 0)
	if err != nil {
		return k, fmt.Errorf("load worker %s: %w", id, err)
	}
	if len(events) == 0 {
		return k, fault.New(fault.NotFound, "there is no worker %s", id)
	}
	k.first, k.last = events[0], events[len(events)-1]
	for _, e := range events {
		state := k.State
		if k.Worker, err = aggregate.EvolveWorker(k.Worker, e); err != nil {
			return k, err
		}
		if k.State != state {
			k.change = e
		}
		fact, err := aggregate.Decode(e)
		if err != nil {
			return k, err
		}
		k.fate.Follow(fact, e.Time)
	}
	return k, nil
}

// following is the context of what follows from the event that brought the worker
// into its state.
func (k known) following() event.Meta { return k.change.CausedBy(service) }

// own is the context of what the worker's own life brings, whatever job it holds.
func (k known) own() event.Meta {
	m := k.last.CausedBy(service)
	m.CorrelationID, m.TraceParent, m.TraceState = k.first.CorrelationID, k.first.TraceParent, k.first.TraceState
	return m
}

// decideWorker loads a worker, decides and appends, again while others are
// quicker. It returns the worker as it is then; nothing is appended where nothing
// was decided.
func decideWorker(ctx context.Context, log Log, id string, decide func(k known) ([]worker.Event, event.Meta, error)) (worker.Worker, error) {
	var k known
	var err error
	for range rounds {
		if k, err = loadWorker(ctx, log, id); err != nil {
			return k.Worker, err
		}
		facts, meta, derr := decide(k)
		if derr != nil || len(facts) == 0 {
			return k.Worker, derr
		}
		var change store.Change
		if change, err = aggregate.WorkerChange(k.Worker, meta, facts); err != nil {
			return k.Worker, err
		}
		var events []event.Event
		if events, err = log.Append(ctx, store.Append{Changes: []store.Change{change}}); err == nil {
			for _, e := range events {
				if k.Worker, err = aggregate.EvolveWorker(k.Worker, e); err != nil {
					return k.Worker, err
				}
			}
			return k.Worker, nil
		}
		if !errors.Is(err, fault.Conflict) {
			break
		}
	}
	return k.Worker, fmt.Errorf("change worker %s: %w", id, err)
}

// decideProvider is decideWorker for a provider; one that does not exist is the
// zero Provider with its id.
func decideProvider(ctx context.Context, log Log, id string, meta event.Meta, decide func(p provider.Provider) ([]provider.Event, error)) (provider.Provider, error) {
	var p provider.Provider
	var err error
	for range rounds {
		p, err = aggregate.LoadProvider(ctx, log, id)
		if errors.Is(err, fault.NotFound) {
			p, err = provider.Provider{ID: id}, nil
		}
		if err != nil {
			return p, err
		}
		facts, derr := decide(p)
		if derr != nil || len(facts) == 0 {
			return p, derr
		}
		var change store.Change
		if change, err = aggregate.ProviderChange(p, meta, facts); err != nil {
			return p, err
		}
		var events []event.Event
		if events, err = log.Append(ctx, store.Append{Changes: []store.Change{change}}); err == nil {
			for _, e := range events {
				if p, err = aggregate.EvolveProvider(p, e); err != nil {
					return p, err
				}
			}
			return p, nil
		}
		if !errors.Is(err, fault.Conflict) {
			break
		}
	}
	return p, fmt.Errorf("change provider %s: %w", id, err)
}

// request appends a new worker of a provider and returns it.
func request(ctx context.Context, log Log, meta event.Meta, id string, p provider.Provider, reason string) (worker.Worker, error) {
	w := worker.Worker{ID: id}
	change, err := aggregate.WorkerChange(w, meta, worker.Request(worker.ProvisioningRequested{
		ProviderID: p.ID, ProviderName: p.Spec.Name, JobsPerWorker: p.Spec.JobsPerWorker, Reason: reason,
	}))
	if err != nil {
		return w, err
	}
	events, err := log.Append(ctx, store.Append{Changes: []store.Change{change}})
	if err != nil {
		return w, fmt.Errorf("ask for a worker of provider %s: %w", p.Spec.Name, err)
	}
	return aggregate.EvolveWorker(w, events[0])
}

// Fate is what the log says of the agent of a worker.
type Fate = core.Fate

// FateOf reads what the log says of a worker's agent. A worker that the log does
// not know has none.
func FateOf(ctx context.Context, log aggregate.Loader, workerID string) (Fate, error) {
	k, err := loadWorker(ctx, log, workerID)
	if errors.Is(err, fault.NotFound) {
		return Fate{}, nil
	}
	return k.fate, err
}
