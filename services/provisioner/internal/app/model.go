package app

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/circuit"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
)

// model is the live workers, all providers and their circuits in memory: a cache of the log, for
// counting. Decisions about one aggregate are taken on a fresh read of it.
type model struct {
	mu        sync.Mutex // guards what follows
	workers   map[string]worker.Worker
	providers map[string]provider.Provider
	circuits  map[string]circuit.Circuit // those of providers that are not closed, by their own id
}

func newModel() *model {
	return &model{workers: map[string]worker.Worker{}, providers: map[string]provider.Provider{}, circuits: map[string]circuit.Circuit{}}
}

// Types are the events that the engine is told.
func Types() []string { return catalogue.Consumed(catalogue.Provisioner) }

// read fills a model from the log and returns the position that it stands for. An
// event that cannot be folded is passed over, as it is when it comes by the bus and
// becomes a dead letter: one aggregate must not keep all others from running.
func (m *model) read(ctx context.Context, log Log, logger *slog.Logger) (int64, error) {
	position, err := log.Snapshot(ctx, store.SnapshotOptions{
		StreamTypes: []string{catalogue.Worker, catalogue.Provider, catalogue.Circuit},
		EventTypes: append(Types(), worker.Provisioned{}.EventType(), provider.HealthChanged{}.EventType(),
			provider.AlertRaised{}.EventType(), provider.AlertCleared{}.EventType()),
	}, func(e event.Event) error {
		if err := m.apply(e); err != nil {
			logger.ErrorContext(ctx, "an event cannot be read and is passed over", "position", e.Position, "type", e.Type, "aggregate", e.Stream.String(), "error", err)
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("read the live workers and the providers: %w", err)
	}
	return position, nil
}

// apply folds one event. What the model has already changes nothing.
func (m *model) apply(e event.Event) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch e.Stream.Type {
	case catalogue.Worker:
		old, ok := m.workers[e.Stream.ID]
		if !ok && e.Type != (worker.ProvisioningRequested{}).EventType() {
			return nil // it has ended: an event that comes late or again
		}
		w, err := aggregate.EvolveWorker(old, e)
		if err != nil {
			return err
		}
		m.put(w)
	case catalogue.Provider:
		p, err := aggregate.EvolveProvider(m.providers[e.Stream.ID], e)
		if err != nil {
			return err
		}
		m.providers[e.Stream.ID] = p
	case catalogue.Circuit:
		c, err := aggregate.EvolveCircuit(m.circuits[e.Stream.ID], e)
		if err != nil {
			return err
		}
		if c.Kind == circuit.Provider {
			m.circuits[c.ID] = c
		}
	}
	return nil
}

// circuitOf returns the circuit of a provider where it is not closed.
func (m *model) circuitOf(providerID string) (c circuit.Circuit, open bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c = m.circuits[circuit.Guarded{Kind: circuit.Provider, Subject: providerID}.ID()]
	return c, !c.State.Settled()
}

// worker puts a worker that was read from the log.
func (m *model) worker(w worker.Worker) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if old, ok := m.workers[w.ID]; !ok || old.Version < w.Version {
		m.put(w)
	}
}

// put stores a worker while it lives; the caller holds mu.
func (m *model) put(w worker.Worker) {
	if w.State.Terminal() {
		delete(m.workers, w.ID)
		return
	}
	m.workers[w.ID] = w
}

// provider puts a provider that was read from the log.
func (m *model) provider(p provider.Provider) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.providers[p.ID].Version < p.Version {
		m.providers[p.ID] = p
	}
}

func (m *model) providerByID(id string) (provider.Provider, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.providers[id]
	return p, ok
}

// allWorkers returns the live workers, the oldest first.
func (m *model) allWorkers() []worker.Worker {
	return m.selected(func(worker.Worker) bool { return true })
}

// workersOf returns the live workers of a provider, the oldest first.
func (m *model) workersOf(providerID string) []worker.Worker {
	return m.selected(func(w worker.Worker) bool { return w.ProviderID == providerID })
}

func (m *model) selected(keep func(worker.Worker) bool) []worker.Worker {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []worker.Worker
	for _, w := range m.workers {
		if keep(w) {
			out = append(out, w)
		}
	}
	slices.SortFunc(out, func(a, b worker.Worker) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return out
}

func (m *model) allProviders() []provider.Provider {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.providers))
}
