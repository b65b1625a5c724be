package app

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/eventing/event"
)

// stuck is a worker whose resource cannot be destroyed.
type stuck struct {
	err   error
	since time.Time
}

// cannotEnd remembers that a worker's resource cannot be destroyed: its provider is
// unhealthy for as long, because what it made cannot be fenced.
func (e *Engine) cannotEnd(ctx context.Context, k known, err error) {
	e.Logger.ErrorContext(ctx, "a worker's resource cannot be destroyed, trying again for ever", "worker", k.ID,
		"provider", k.ProviderName, "job", k.JobID, "error", err, "alert", true)
	e.mu.Lock()
	if e.trouble == nil {
		e.trouble = map[string]map[string]stuck{}
	}
	if e.trouble[k.ProviderID] == nil {
		e.trouble[k.ProviderID] = map[string]stuck{}
	}
	since := e.Now()
	if had, ok := e.trouble[k.ProviderID][k.ID]; ok {
		since = had.since
	}
	e.trouble[k.ProviderID][k.ID] = stuck{err, since}
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
		causes := e.causes(m, p.ID, health, reason)
		if len(p.Observe(health, reason))+len(p.Warn(causes)) > 0 && ctx.Err() == nil {
			e.recordHealth(ctx, m, p, health, reason, causes)
		}
	}
}

// recordHealth appends what is news about a provider's health and its alerts, and tells people.
func (e *Engine) recordHealth(ctx context.Context, m *model, p provider.Provider, health provider.Health, reason string, causes map[provider.Alert]string) {
	meta := event.Meta{Source: service, Actor: "service/" + service, CorrelationID: e.NewID()}
	var facts []provider.Event
	now, err := decideProvider(ctx, e.Log, p.ID, meta, func(p provider.Provider) ([]provider.Event, error) {
		facts = append(p.Observe(health, reason), p.Warn(causes)...)
		return facts, nil
	})
	if err != nil {
		e.Logger.WarnContext(ctx, "cannot record a provider's health", "provider", p.Spec.Name, "error", err)
		return
	}
	m.provider(now)
	wake(e.pool)
	for _, f := range facts {
		switch f := f.(type) {
		case provider.HealthChanged:
			e.Logger.InfoContext(ctx, "a provider's health has changed", "provider", p.Spec.Name, "from", f.From, "to", f.To, "reason", f.Reason)
		case provider.AlertRaised:
			e.Logger.ErrorContext(ctx, "a provider needs somebody to look", "provider", p.Spec.Name, "what", f.Alert, "reason", f.Reason, "alert", true)
		case provider.AlertCleared:
			e.Logger.InfoContext(ctx, "an alert of a provider is over", "provider", p.Spec.Name, "what", f.Alert, "since", f.RaisedAt)
		}
	}
}

// causes says which alerts should stand, and why.
func (e *Engine) causes(m *model, providerID string, health provider.Health, reason string) map[provider.Alert]string {
	out := map[provider.Alert]string{}
	if health == provider.Unhealthy {
		out[provider.AlertUnhealthy] = reason
	}
	if c, open := m.circuitOf(providerID); open {
		out[provider.AlertCircuitOpen] = c.Reason
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, s := range e.trouble[providerID] {
		if e.Now().Sub(s.since) >= cmp.Or(e.AlertAfter, time.Minute) {
			out[provider.AlertNotDestroyed] = fmt.Sprintf("worker %s cannot be destroyed since %s: %v", id, s.since.UTC().Format(time.RFC3339), s.err)
		}
	}
	return out
}

// Alerts are those that stand, by provider name; none while the engine does not run.
func (e *Engine) Alerts() map[string][]provider.Raised {
	out := map[string][]provider.Raised{}
	if m := e.current(); m != nil {
		for _, p := range m.allProviders() {
			if len(p.Alerts) > 0 {
				out[p.Spec.Name] = p.Alerts
			}
		}
	}
	return out
}

// problem is why a provider is unhealthy; nil where it is not.
func (e *Engine) problem(p provider.Provider, kinds map[provider.Kind]error) error {
	if err, ok := kinds[p.Spec.Kind]; err != nil || !ok {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, s := range e.trouble[p.ID] {
		return fmt.Errorf("worker %s cannot be destroyed: %w", id, s.err)
	}
	return nil
}
