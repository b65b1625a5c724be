package app

import (
	"context"
	"fmt"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/circuit"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
)

// Activate reads all live jobs, workers and providers, and returns the position
// that they stand for: what Handle is given begins after it.
func (d *Dispatcher) Activate(ctx context.Context) (int64, error) {
	f := folding{jobs: map[string]job.Job{}, workers: map[string]worker.Worker{}, providers: map[string]provider.Provider{}, circuits: map[string]circuit.Circuit{}, causes: d.causes}
	position, err := d.cfg.Log.Snapshot(ctx, snapshotOptions(), func(e event.Event) error {
		if err := f.fold(e); err != nil {
			// One aggregate that cannot be read must not keep all others from running.
			d.cfg.Logger.ErrorContext(ctx, "an aggregate cannot be read and is left out", "aggregate", e.Stream.String(), "error", err)
			f.spoil(e.Stream)
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("read what lives: %w", err)
	}
	for _, c := range f.circuits {
		d.state.ObserveCircuit(c) // before the workers, some of which are probes
	}
	for _, p := range f.providers {
		d.state.ObserveProvider(p)
	}
	for _, w := range f.workers {
		d.state.ObserveWorker(w)
	}
	for _, id := range f.order {
		if j, ok := f.jobs[id]; ok {
			d.state.ObserveJob(j)
		}
	}
	d.position = position
	d.publish()
	d.cfg.Logger.InfoContext(ctx, "took over", "jobs", len(f.jobs), "workers", len(f.workers), "providers", len(f.providers), "position", position)
	return position, nil
}

// snapshotOptions leave out what is large and repeated: JobQueued has all of
// JobCreated that placement needs. Notices are in, so that versions are right.
func snapshotOptions() store.SnapshotOptions {
	o := store.SnapshotOptions{StreamTypes: []string{catalogue.Job, catalogue.Worker, catalogue.Provider, catalogue.Circuit}}
	created := job.Created{}.EventType()
	for _, e := range catalogue.Entries {
		if e.Type != created && e.Role != catalogue.Telemetry {
			o.EventTypes = append(o.EventTypes, e.Type)
		}
	}
	return o
}

// folding is a snapshot in the making.
type folding struct {
	jobs      map[string]job.Job
	order     []string // of the jobs, by age
	workers   map[string]worker.Worker
	providers map[string]provider.Provider
	circuits  map[string]circuit.Circuit
	causes    map[string]event.Event
	spoilt    map[event.Stream]bool
}

func (f *folding) fold(e event.Event) (err error) {
	if f.spoilt[e.Stream] {
		return nil
	}
	id := e.Stream.ID
	switch e.Stream.Type {
	case catalogue.Job:
		j, known := f.jobs[id]
		if f.jobs[id], err = aggregate.EvolveJob(j, e); !known {
			f.order = append(f.order, id)
		}
		e.Data = nil
		f.causes[id] = e
	case catalogue.Worker:
		f.workers[id], err = aggregate.EvolveWorker(f.workers[id], e)
	case catalogue.Provider:
		f.providers[id], err = aggregate.EvolveProvider(f.providers[id], e)
	case catalogue.Circuit:
		f.circuits[id], err = aggregate.EvolveCircuit(f.circuits[id], e)
	}
	return err
}

func (f *folding) spoil(s event.Stream) {
	if f.spoilt == nil {
		f.spoilt = map[event.Stream]bool{}
	}
	f.spoilt[s] = true
	delete(f.jobs, s.ID)
	delete(f.workers, s.ID)
	delete(f.providers, s.ID)
	delete(f.circuits, s.ID)
}

// observe takes a batch of events into the state.
func (d *Dispatcher) observe(ctx context.Context, batch []observed) {
	for _, o := range batch {
		if o.Position <= d.position {
			continue
		}
		d.position = o.Position
		d.apply(o)
		d.tellHandOver(ctx, o)
	}
}

// apply folds one event; what is known already changes nothing.
func (d *Dispatcher) apply(o observed) {
	id := o.Stream.ID
	switch fact := o.fact.(type) {
	case job.Event:
		before := d.state.JobVersion(id)
		d.state.ApplyJob(id, fact, job.At{Version: o.StreamVersion, Time: o.Time})
		switch after := d.state.JobVersion(id); {
		case after == 0:
			d.forget(id)
		case after != before:
			d.causes[id] = o.Event
		}
	case worker.Event:
		d.state.ApplyWorker(id, fact, worker.At{Version: o.StreamVersion, Time: o.Time})
	case provider.Event:
		d.state.ApplyProvider(id, fact, provider.At{Version: o.StreamVersion, Time: o.Time})
	case circuit.Event:
		d.state.ApplyCircuit(fact, circuit.At{Version: o.StreamVersion, Time: o.Time})
	}
}
