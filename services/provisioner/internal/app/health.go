package app

import (
	"context"
	"fmt"
	"time"

	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/eventing/event"
)

// cannotEnd remembers that a worker's resource cannot be destroyed: its provider is
// unhealthy for as long, because what it made cannot be fenced.
func (e *Engine) cannotEnd(ctx context.Context, k known, err error) {
	e.Logger.ErrorContext(ctx, "a worker's resource cannot be destroyed, trying again for ever", "worker", k.ID,
		"provider", k.ProviderName, "job", k.JobID, "error", err, "alert", true)
	e.mu.Lock()
	if e.trouble == nil {
		e.trouble = map[string]map[string]error{}
	}
	if e.trouble[k.ProviderID] == nil {
		e.trouble[k.ProviderID] = map[string]error{}
	}
	e.trouble[k.ProviderID][k.ID] = err
	e.mu.Unlock()
	wake(e.health)
}

func (e *Engine) canEnd(k known) {
	e.mu.Lock()
	_, had := e.trouble[k.ProviderID][k.ID]
	delete(e.trouble[k.ProviderID], k.ID)
	e.mu.Unlock()
	if had {
		wake(e.health)
	}
}

// watchHealth looks at every provider regularly and when there is a reason to.
func (e *Engine) watchHealth(ctx context.Context) error {
	every := e.HealthEvery
	if every == 0 {
		every = 30 * time.Second
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		e.lookAtHealth(ctx)
		select {
		case <-tick.C:
		case <-e.health:
		case <-ctx.Done():
			return nil
		}
	}
}

// lookAtHealth asks each kind once and records what is news for its providers.
func (e *Engine) lookAtHealth(ctx context.Context) {
	m := e.current()
	if m == nil {
		return
	}
	problems := map[provider.Kind]error{}
	for kind, p := range e.Kinds {
		problems[kind] = p.Health(ctx)
	}
	for _, p := range m.allProviders() {
		health, reason := provider.Healthy, "it can make and end workers"
		if err := e.problem(p, problems); err != nil {
			health, reason = provider.Unhealthy, err.Error()
		}
		if len(p.Observe(health, reason)) == 0 || ctx.Err() != nil {
			continue
		}
		meta := event.Meta{Source: service, Actor: "service/" + service, CorrelationID: e.NewID()}
		now, err := decideProvider(ctx, e.Log, p.ID, meta, func(p provider.Provider) ([]provider.Event, error) {
			return p.Observe(health, reason), nil
		})
		if err != nil {
			e.Logger.WarnContext(ctx, "cannot record a provider's health", "provider", p.Spec.Name, "error", err)
			continue
		}
		m.provider(now)
		wake(e.pool)
		if health == provider.Unhealthy {
			e.Logger.ErrorContext(ctx, "a provider is unhealthy", "provider", p.Spec.Name, "reason", reason, "alert", true)
		} else {
			e.Logger.InfoContext(ctx, "a provider is healthy again", "provider", p.Spec.Name)
		}
	}
}

// problem is why a provider is unhealthy; nil where it is not.
func (e *Engine) problem(p provider.Provider, kinds map[provider.Kind]error) error {
	if err, ok := kinds[p.Spec.Kind]; err != nil || !ok {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, err := range e.trouble[p.ID] {
		return fmt.Errorf("worker %s cannot be destroyed: %w", id, err)
	}
	return nil
}
