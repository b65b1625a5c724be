package app

import (
	"context"
	"fmt"
	"sync"
	"time"

	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/services/provisioner/core"
)

// keepReady keeps min_idle workers of every provider ready. It looks when
// something has happened, and after the pause of a provider whose workers do not
// come up.
func (e *Engine) keepReady(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-e.pool:
		case <-timer.C:
		case <-ctx.Done():
			return nil
		}
		if next := e.fill(ctx); next > 0 {
			timer.Reset(next)
		}
	}
}

// fill asks for the workers that are missing and returns when to look again
// without a cause; 0 = not at all.
func (e *Engine) fill(ctx context.Context) time.Duration {
	m := e.current()
	if m == nil {
		return 0
	}
	var next time.Duration
	later := func(d time.Duration) {
		if next == 0 || d < next {
			next = d
		}
	}
	for _, p := range m.allProviders() {
		if p.Spec.MinIdle == 0 {
			continue // most have none, and there may be many workers to look at
		}
		missing := core.Missing(p, m.workersOf(p.ID))
		if missing == 0 {
			continue
		}
		if wait := e.warm.wait(p.ID, e.Now()); wait > 0 {
			later(wait)
			continue
		}
		for range missing {
			// Nobody asked for it: its life has a correlation id of its own.
			meta := event.Meta{Source: service, Actor: "service/" + service, CorrelationID: e.NewID()}
			w, err := request(ctx, e.Log, meta, e.NewID(), p, fmt.Sprintf("kept ready (min_idle %d)", p.Spec.MinIdle))
			if err != nil {
				if ctx.Err() == nil {
					e.Logger.WarnContext(ctx, "cannot ask for a worker to keep ready, trying again", "provider", p.Spec.Name, "error", err)
				}
				later(time.Second)
				break
			}
			e.warm.asked(w)
			m.worker(w)
			e.poke(w.ID, false)
		}
	}
	return next
}

// warmth remembers how well the workers that no job asked for come up.
type warmth struct {
	mu sync.Mutex // guards what follows
	// coming are the workers that have not been READY yet, with their providers.
	coming   map[string]string
	failures map[string]failures
}

// failures of one provider in a row.
type failures struct {
	count int
	until time.Time
}

func newWarmth(live []worker.Worker) *warmth {
	w := &warmth{coming: map[string]string{}, failures: map[string]failures{}}
	for _, one := range live {
		if one.State != worker.StateReady && core.Idle(one) {
			w.coming[one.ID] = one.ProviderID
		}
	}
	return w
}

// wait is how long the provider is still to be left alone.
func (w *warmth) wait(providerID string, now time.Time) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failures[providerID].until.Sub(now)
}

// asked takes note of a worker that was asked for.
func (w *warmth) asked(of worker.Worker) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.coming[of.ID] = of.ProviderID
}

// saw takes note of a worker's state: of each, the first news counts.
func (w *warmth) saw(id string, state worker.State, ready bool, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	providerID, ok := w.coming[id]
	if !ok {
		return
	}
	switch {
	case ready:
		delete(w.failures, providerID)
	case state == worker.StateTerminating || state == worker.StateTerminated:
		f := w.failures[providerID]
		f.count++
		f.until = now.Add(core.Pause(f.count))
		w.failures[providerID] = f
	default:
		return
	}
	delete(w.coming, id)
}
