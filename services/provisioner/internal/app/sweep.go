package app

import (
	"context"
	"errors"
	"sync"
	"time"

	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/services/provisioner/core"
)

// sweepAll compares log and providers regularly. It is a safety net: what it finds
// is counted.
func (e *Engine) sweepAll(ctx context.Context) error {
	every := max(e.SweepEvery, core.SightingApart)
	tick := time.NewTicker(every)
	defer tick.Stop()
	var before core.Sightings
	for {
		before = e.sweep(ctx, before)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// sweep repairs what it sees for the second time and returns what it saw.
func (e *Engine) sweep(ctx context.Context, before core.Sightings) core.Sightings {
	m := e.current()
	if m == nil {
		return before
	}
	seen := core.Sightings{}
	for kind, p := range e.Kinds {
		if !p.Capabilities().Inventory {
			continue
		}
		// The log first: a resource that is made in between is no ghost then.
		live := map[string]worker.Worker{}
		for _, w := range m.allWorkers() {
			live[w.ID] = w
		}
		resources, err := p.List(ctx)
		if err != nil {
			if ctx.Err() == nil {
				e.Logger.WarnContext(ctx, "cannot list what a provider has", "kind", kind, "error", err)
			}
			continue
		}
		exists := map[string]bool{}
		for _, r := range resources {
			exists[r.WorkerID] = true
			if _, ok := live[r.WorkerID]; !ok {
				e.zombie(ctx, kind, r, before, seen)
			}
		}
		for _, w := range live {
			if !exists[w.ID] {
				e.ghost(ctx, kind, p, w, before, seen)
			}
		}
	}
	return seen
}

// ghost is a live worker whose resource does not exist: it is confirmed as gone.
func (e *Engine) ghost(ctx context.Context, kind provider.Kind, p Provider, w worker.Worker, before, seen core.Sightings) {
	reg, err := e.providerOf(ctx, w.ProviderID)
	if err != nil || reg.Spec.Kind != kind || !core.Ghost(w) || e.busy(w.ID) {
		return
	}
	if local, ok := p.(Local); ok && !local.Here(w.Details) {
		return // on another machine: its heartbeats tell
	}
	if !before.Confirmed(seen, "ghost "+w.ID, e.Now()) {
		return
	}
	e.Logger.WarnContext(ctx, "a worker's resource does not exist: it is confirmed as gone", "worker", w.ID, "job", w.JobID, "alert", true)
	e.count(func(f *Found) { f.Ghosts++ })
	e.gone(Gone{WorkerID: w.ID, Reason: "its resource does not exist any more"})
}

func (e *Engine) count(add func(*Found)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	add(&e.found)
}

// stopWorkers ends every worker that lives on this machine, again while new ones
// come, until StopGrace is over.
func (e *Engine) stopWorkers(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, e.StopGrace)
	defer cancel()
	for round := 0; ; round++ {
		m := newModel()
		_, err := m.read(ctx, e.Log, e.Logger)
		left := 0
		if err == nil {
			left, err = e.stopAll(ctx, m)
		}
		if err == nil && left == 0 {
			return
		}
		if err != nil {
			e.Logger.WarnContext(ctx, "cannot end every worker yet", "error", err)
		}
		if !sleep(ctx, firstPause, nil) {
			e.Logger.ErrorContext(ctx, "not every worker could be ended in time", "grace", e.StopGrace, "left", left, "alert", true)
			return
		}
	}
}

// stopAll ends the workers of this machine that a model has, and tells how many
// there were.
func (e *Engine) stopAll(ctx context.Context, m *model) (int, error) {
	var all sync.WaitGroup
	var mu sync.Mutex // guards errs
	var errs []error
	n := 0
	for _, w := range m.allWorkers() {
		p, _ := m.providerByID(w.ProviderID)
		keeper := e.keeper(p, w.Details)
		if keeper == nil || keeper.Capabilities().LeaseFence {
			continue
		}
		n++
		all.Go(func() {
			if err := e.stopWorker(ctx, w.ID, keeper); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return n, errors.Join(errs...)
}

func (e *Engine) stopWorker(ctx context.Context, id string, keeper Provider) error {
	_, err := decideWorker(ctx, e.Log, id, func(k known) ([]worker.Event, event.Meta, error) {
		if k.State.Terminal() || k.State == worker.StateTerminating {
			return nil, event.Meta{}, nil
		}
		facts, err := k.Terminate(worker.CauseShutdown, "its control plane stops")
		return facts, k.own(), err
	})
	if err != nil {
		return err
	}
	k, err := loadWorker(ctx, e.Log, id)
	if err != nil {
		return err
	}
	return e.end(ctx, k, keeper, "")
}
