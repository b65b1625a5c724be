package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/unit"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/services/provisioner/core"
)

// orphan is a resource without a live worker that is being destroyed.
type orphan struct {
	providerID string
	meta       event.Meta
	resource   string
}

// zombie is a resource without a live worker: seen twice, it is recorded as an
// orphan and destroyed. One whose worker lives as far as the log knows, with a job or
// without, is never touched.
func (e *Engine) zombie(ctx context.Context, kind provider.Kind, r Resource, before, seen core.Sightings) {
	if e.busy(r.WorkerID) {
		return
	}
	// The model may be behind: the log has the last word.
	k, err := loadWorker(ctx, e.Log, r.WorkerID)
	unheard := errors.Is(err, fault.NotFound)
	if err != nil && !unheard || !core.Zombie(k.Worker) {
		return
	}
	key, now := "zombie "+r.WorkerID, e.Now()
	if !before.Confirmed(seen, key, now) {
		return
	}
	e.Logger.WarnContext(ctx, "a resource has no live worker: it is destroyed", "worker", r.WorkerID, "resource", r.Name, "alert", true)
	if p, ok := e.ownerOf(kind, k); ok {
		meta := event.Meta{Source: service, Actor: "service/" + service, CorrelationID: e.NewID()}
		if !unheard {
			meta = k.own()
		}
		note := provider.OrphanDetected{WorkerID: r.WorkerID, Resource: r.Name, Known: !unheard, Seen: unit.Duration(now.Sub(seen[key]))}
		if err := e.note(ctx, p.ID, meta, note); err != nil {
			e.Logger.WarnContext(ctx, "an orphan is not destroyed before it is recorded; trying again", "worker", r.WorkerID, "error", err)
			return
		}
		e.mu.Lock()
		if e.orphans != nil {
			e.orphans[r.WorkerID] = orphan{p.ID, meta, r.Name}
		}
		e.mu.Unlock()
	}
	e.count(func(f *Found) { f.Zombies++ })
	e.poke(r.WorkerID, false)
}

// ownerOf is the provider in whose stream an orphan is recorded: its worker's, else
// one of its kind, the enabled before the removed. false: the log has none.
func (e *Engine) ownerOf(kind provider.Kind, k known) (provider.Provider, bool) {
	m := e.current()
	if m == nil {
		return provider.Provider{}, false
	}
	if p, ok := m.providerByID(k.ProviderID); ok {
		return p, true
	}
	ps := slices.DeleteFunc(m.allProviders(), func(p provider.Provider) bool { return p.Spec.Kind != kind })
	if len(ps) == 0 {
		return provider.Provider{}, false
	}
	removed := func(p provider.Provider) int {
		if p.State == provider.StateRemoved {
			return 1
		}
		return 0
	}
	return slices.MinFunc(ps, func(a, b provider.Provider) int {
		return cmp.Or(cmp.Compare(removed(a), removed(b)), cmp.Compare(a.Spec.Name, b.Spec.Name))
	}), true
}

// cleared records that nothing of an orphan is left. What was no orphan is no news.
func (e *Engine) cleared(ctx context.Context, workerID string) error {
	e.mu.Lock()
	o, ok := e.orphans[workerID]
	e.mu.Unlock()
	if !ok {
		return nil
	}
	meta := o.meta
	if err := e.note(ctx, o.providerID, meta, provider.OrphanDestroyed{WorkerID: workerID, Resource: o.resource}); err != nil {
		return err
	}
	e.mu.Lock()
	delete(e.orphans, workerID)
	e.mu.Unlock()
	return nil
}

// note appends a notice to a provider's stream.
func (e *Engine) note(ctx context.Context, providerID string, meta event.Meta, fact provider.Event) error {
	now, err := decideProvider(ctx, e.Log, providerID, meta, func(provider.Provider) ([]provider.Event, error) {
		return []provider.Event{fact}, nil
	})
	if err != nil {
		return fmt.Errorf("record %s: %w", fact.EventType(), err)
	}
	if m := e.current(); m != nil {
		m.provider(now)
	}
	return nil
}
