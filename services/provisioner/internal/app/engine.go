package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"hodei.dev/libs/domain/circuit"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/service/aggregate"
)

// Engine is the part of the provisioner that one replica at a time runs: it makes
// and ends workers. Its exported fields are set once, before Run.
//
//	snapshot, events ─▶ model ─▶ pool: keeps min_idle workers ─────────┐
//	      │                                                            ▼
//	      └─▶ poke(worker) ─▶ task: reads the worker, then makes, ends or drains it
//	             ▲                      │
//	gone, ghosts and zombies ◀── Provider ──▶ the log
type Engine struct {
	// Log is the event log.
	Log Log
	// Follow delivers the events after a position.
	Follow Follow
	// Kinds are the providers by kind.
	Kinds map[provider.Kind]Provider
	// Fence ends workers whose machine is not this one: it waits until their agents
	// have said goodbye or must have ended by themselves.
	Fence Provider
	// Tokens issues what agents register with.
	Tokens Tokens
	// Providers registers what Configured names.
	Providers *Providers
	// Configured are registered, or updated, when the engine starts.
	Configured []provider.Spec
	// StopWorkers ends the workers of this machine when Run ends, within StopGrace.
	StopWorkers bool
	StopGrace   time.Duration
	// SweepEvery is how often log and providers are compared; at least 5 s. Default 5 s.
	SweepEvery time.Duration
	// HealthEvery is how often the providers' health is looked at. Default 30 s.
	HealthEvery time.Duration
	// AlertAfter is how long a worker cannot be destroyed before that is an alert. Default 1 min.
	AlertAfter time.Duration
	// Now is the clock.
	Now func() time.Time
	// NewID makes ids of workers and correlations.
	NewID func() string
	// Logger gets what an operator should know.
	Logger *slog.Logger

	mu        sync.Mutex      // guards what follows
	model     *model          // nil while the engine does not run
	ctx       context.Context // of Run: what tasks end with
	tasks     map[string]*task
	removedBy map[string]string           // provider id -> who removed it
	trouble   map[string]map[string]stuck // provider id -> worker id -> why it cannot be ended
	orphans   map[string]orphan           // worker id -> the resource that is being destroyed
	found     Found
	running   sync.WaitGroup // the tasks

	pool, health chan struct{} // wake their loops; one waiting signal is enough
	warm         *warmth
}

// Found counts what the sweeps repaired since the process started: 0 without faults.
type Found struct{ Zombies, Ghosts int64 }

// Found returns the counts.
func (e *Engine) Found() Found {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.found
}

// Run makes and ends workers until ctx ends; it may be called again afterwards.
func (e *Engine) Run(ctx context.Context) error {
	if e.StopWorkers {
		defer func() {
			// Only where the process stops: a lost role is taken up again, or by another.
			if cause := context.Cause(ctx); errors.Is(cause, context.Canceled) && !errors.Is(cause, fault.Unavailable) {
				e.stopWorkers(context.WithoutCancel(ctx))
			}
		}()
	}
	m := newModel()
	position, err := m.read(ctx, e.Log, e.Logger)
	if err != nil {
		return err
	}
	inner, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	e.start(inner, m)
	var parts sync.WaitGroup
	part := func(name string, run func(ctx context.Context) error) {
		parts.Go(func() {
			if err := run(inner); err != nil && inner.Err() == nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	e.registerConfigured(inner)
	for kind, p := range e.Kinds {
		part("watch the workers of kind "+string(kind), func(ctx context.Context) error { return p.Watch(ctx, e.gone) })
	}
	for _, w := range m.allWorkers() {
		e.poke(w.ID, false)
	}
	part("keep workers ready", e.keepReady)
	part("look at the providers' health", e.watchHealth)
	part("compare log and providers", e.sweepAll)
	part("follow the log", func(ctx context.Context) error { return e.Follow(ctx, position, e.handle) })
	<-inner.Done()
	parts.Wait()
	e.stop()
	if cause := context.Cause(inner); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

func (e *Engine) start(ctx context.Context, m *model) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.model, e.ctx = m, ctx
	e.tasks, e.removedBy, e.trouble = map[string]*task{}, map[string]string{}, map[string]map[string]stuck{}
	e.orphans = map[string]orphan{}
	e.pool, e.health = make(chan struct{}, 1), make(chan struct{}, 1)
	e.warm = newWarmth(m.allWorkers())
	wake(e.pool)
}

// stop waits for the tasks; no new one begins.
func (e *Engine) stop() {
	e.mu.Lock()
	e.model, e.ctx = nil, nil
	e.mu.Unlock()
	e.running.Wait()
}

// current is the model while the engine runs, else nil.
func (e *Engine) current() *model {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.model
}

// registerConfigured registers the configured providers. One that cannot be is an
// operator's affair and holds up nobody else.
func (e *Engine) registerConfigured(ctx context.Context) {
	for _, s := range e.Configured {
		meta := event.Meta{Source: service, Actor: "service/" + service, CorrelationID: e.NewID()}
		if _, err := e.Providers.Register(ctx, meta, s); err != nil && ctx.Err() == nil {
			e.Logger.ErrorContext(ctx, "a configured provider cannot be registered", "provider", s.Name, "error", err, "alert", true)
		}
	}
}

// handle takes events of the log. It calls no provider, so it is never held up.
func (e *Engine) handle(ctx context.Context, events []event.Event) error {
	m := e.current()
	if m == nil {
		return context.Cause(ctx)
	}
	for _, ev := range events {
		if err := m.apply(ev); err != nil {
			return err
		}
		fact, err := aggregate.Decode(ev)
		if err != nil {
			return err
		}
		switch f := fact.(type) {
		case worker.ProvisioningRequested:
			e.poke(ev.Stream.ID, false)
		case worker.StatusChanged:
			ready := f.To == worker.StateReady || f.From.Connected()
			e.warm.saw(ev.Stream.ID, f.To, ready, e.Now())
			e.statusChanged(ev.Stream.ID, f)
		case worker.Terminated:
			e.warm.saw(ev.Stream.ID, worker.StateTerminated, f.From.Connected(), e.Now())
		case worker.Disconnected:
			if f.Clean {
				e.poke(ev.Stream.ID, true)
			}
		case provider.Registered, provider.Updated, circuit.Event:
			wake(e.health)
		case provider.Removed:
			e.removed(ev.Stream.ID, f.By)
		}
	}
	wake(e.pool)
	return nil
}

func (e *Engine) statusChanged(id string, f worker.StatusChanged) {
	switch f.To {
	case worker.StateTerminating:
		e.poke(id, true)
	case worker.StateConnecting:
		e.poke(id, false) // its agent may have been quicker than the word that its resource exists
	default:
	}
}

func (e *Engine) removed(providerID, by string) {
	e.mu.Lock()
	e.removedBy[providerID] = by
	m := e.model
	e.mu.Unlock()
	if m == nil {
		return
	}
	for _, w := range m.workersOf(providerID) {
		e.poke(w.ID, true)
	}
}

// wake leaves a signal where none waits.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
