package app_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hodei.dev/libs/domain/circuit"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/services/provisioner/internal/app"
)

func TestMain(m *testing.M) { os.Exit(eventingtest.Main(m)) }

// unruly is a provider that misbehaves: it fails as often as it is told, and
// forgets nothing.
type unruly struct {
	failCreate, failDestroy atomic.Int32
	creates, destroys       atomic.Int32
	mu                      sync.Mutex // guards made
	made                    map[string]bool
}

func (u *unruly) Create(_ context.Context, w app.WorkerSpec) (app.Resource, error) {
	u.creates.Add(1)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.made[w.WorkerID] = true // also where it fails: half of it is there
	if u.failCreate.Add(-1) >= 0 {
		return app.Resource{}, errors.New("the cloud is cloudy")
	}
	return app.Resource{WorkerID: w.WorkerID, Name: w.WorkerID}, nil
}

func (u *unruly) Destroy(_ context.Context, id string) error {
	u.destroys.Add(1)
	if u.failDestroy.Add(-1) >= 0 {
		return fault.New(fault.Unavailable, "the cloud does not answer")
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.made, id)
	return nil
}

func (u *unruly) List(context.Context) ([]app.Resource, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	var out []app.Resource
	for id := range u.made {
		out = append(out, app.Resource{WorkerID: id})
	}
	return out, nil
}

func (u *unruly) Watch(ctx context.Context, _ func(app.Gone)) error { <-ctx.Done(); return nil }
func (u *unruly) Health(context.Context) error                      { return nil }
func (u *unruly) Accepts(provider.Spec) error                       { return nil }
func (u *unruly) Capabilities() app.Capabilities                    { return app.Capabilities{Inventory: true} }

// fixture is an engine on a real log, which it reads in place of a bus.
type fixture struct {
	t     *testing.T
	store *store.Store
	kind  *unruly
	id    string // of the provider
	// stop ends the engine; run starts it again, and ends it with the test.
	engine *app.Engine
	stop   func()
}

// follow reads the log whenever something was committed.
func follow(s *store.Store, grown <-chan struct{}) app.Follow {
	return func(ctx context.Context, after int64, handle func(context.Context, []event.Event) error) error {
		for {
			events, err := s.Read(ctx, store.ReadOptions{After: after})
			if err == nil && len(events) > 0 {
				if err = handle(ctx, events); err == nil {
					after = events[len(events)-1].Position
					continue
				}
			}
			if err != nil && ctx.Err() == nil {
				return err
			}
			select {
			case <-grown:
			case <-ctx.Done():
				return nil
			}
		}
	}
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	grown := make(chan struct{}, 1)
	s, err := store.Open(t.Context(), store.Config{URL: eventingtest.MigratedPostgres(t), OnCommit: func(int64) {
		select {
		case grown <- struct{}{}:
		default:
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	f := &fixture{t: t, store: s, kind: &unruly{made: map[string]bool{}}}
	kinds := map[provider.Kind]app.Provider{provider.Process: f.kind}
	e := &app.Engine{Log: s, Kinds: kinds, Follow: follow(s, grown), Now: time.Now, NewID: event.NewID, Logger: slog.New(slog.DiscardHandler)}
	e.Providers = &app.Providers{Log: s, Kinds: kinds, Machine: app.Machine{CPUs: 2, MemoryBytes: 1 << 30}, NewID: event.NewID, Engine: e}
	v, err := e.Providers.Register(t.Context(), event.Meta{Source: "test", Actor: "user/test", CorrelationID: "c"},
		provider.Spec{Name: "unruly", Kind: provider.Process, JobsPerWorker: 1})
	if err != nil {
		t.Fatal(err)
	}
	f.id, f.engine = v.ID, e
	f.run()
	return f
}

func (f *fixture) run() {
	ctx, cancel := context.WithCancel(context.WithoutCancel(f.t.Context()))
	done := make(chan error, 1)
	go func() { done <- f.engine.Run(ctx) }()
	f.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			f.t.Error(err)
		}
	})
	f.t.Cleanup(f.stop)
}

func (f *fixture) load(id string) worker.Worker {
	f.t.Helper()
	w, err := aggregate.LoadWorker(f.t.Context(), f.store, id)
	if err != nil {
		f.t.Fatal(err)
	}
	return w
}

func (f *fixture) append(w worker.Worker, facts []worker.Event) {
	f.t.Helper()
	c, err := aggregate.WorkerChange(w, event.Meta{Source: "test", Actor: "service/test", CorrelationID: "c"}, facts)
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := f.store.Append(f.t.Context(), store.Append{Changes: []store.Change{c}}); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) request() string {
	f.t.Helper()
	id := event.NewID()
	f.append(worker.Worker{ID: id}, worker.Request(worker.ProvisioningRequested{ProviderID: f.id, ProviderName: "unruly", JobID: "j", JobsPerWorker: 1}))
	return id
}

func (f *fixture) await(id string, state worker.State) worker.Worker {
	f.t.Helper()
	var w worker.Worker
	eventingtest.Eventually(f.t, "worker to be "+string(state), func() (ok bool) {
		var err error
		w, err = aggregate.LoadWorker(f.t.Context(), f.store, id)
		return err == nil && w.State == state
	})
	return w
}

// healths are the changes of the provider's health, in order.
func (f *fixture) healths() (out []provider.Health) {
	f.t.Helper()
	events, err := f.store.Read(f.t.Context(), store.ReadOptions{Types: []string{"ProviderHealthChanged"}})
	if err != nil {
		f.t.Fatal(err)
	}
	for _, e := range events {
		fact, err := aggregate.Decode(e)
		if err != nil {
			f.t.Fatal(err)
		}
		if h, ok := fact.(provider.HealthChanged); ok {
			out = append(out, h.To)
		}
	}
	return out
}

func TestDestroyIsTriedForEverAndMakesUnhealthy(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	id := f.request()
	w := f.await(id, worker.StateConnecting)
	f.kind.failDestroy.Store(3)
	facts, err := w.Terminate(worker.CauseLost, "test")
	if err != nil {
		t.Fatal(err)
	}
	f.append(w, facts)
	f.await(id, worker.StateTerminated)
	if n := f.kind.destroys.Load(); n < 4 {
		t.Errorf("confirmed after %d tries, three of which failed", n)
	}
	eventingtest.Eventually(t, "the health to be told twice", func() bool {
		h := f.healths()
		return len(h) == 2 && h[0] == provider.Unhealthy && h[1] == provider.Healthy
	})
}

// alerts waits until exactly these stand, in the log and in what operators see.
func (f *fixture) alerts(want ...provider.Alert) app.View {
	f.t.Helper()
	var v app.View
	eventingtest.Eventually(f.t, fmt.Sprintf("the alerts to be %v", want), func() bool {
		var err error
		if v, err = f.engine.Providers.Get(f.t.Context(), "unruly"); err != nil || len(v.Alerts) != len(want) {
			return false
		}
		for i, a := range v.Alerts {
			if a.Alert != want[i] || a.Reason == "" || a.Since.IsZero() {
				return false
			}
		}
		return true
	})
	return v
}

// TestAlerts: lost health, and a worker that cannot be destroyed for long, are raised
// and cleared by themselves.
func TestAlerts(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.stop()
	f.engine.AlertAfter = time.Nanosecond
	f.run()
	id := f.request()
	w := f.await(id, worker.StateConnecting)
	f.kind.failDestroy.Store(1 << 30)
	facts, err := w.Terminate(worker.CauseLost, "test")
	if err != nil {
		t.Fatal(err)
	}
	f.append(w, facts)
	f.alerts(provider.AlertUnhealthy, provider.AlertNotDestroyed)
	f.kind.failDestroy.Store(0)
	f.await(id, worker.StateTerminated)
	f.alerts()
}

// TestCircuitAlert: an open circuit of a provider is an alert and part of what operators
// see, also after a restart; a path's is none. It ends with the circuit.
func TestCircuitAlert(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	g := circuit.Guarded{Kind: circuit.Provider, Subject: f.id, Name: "unruly"}
	change := func(g circuit.Guarded, decide func(circuit.Circuit) ([]circuit.Event, error)) {
		t.Helper()
		c, err := aggregate.LoadCircuit(t.Context(), f.store, g.ID())
		if err != nil {
			t.Fatal(err)
		}
		facts, err := decide(c)
		if err != nil {
			t.Fatal(err)
		}
		of, err := aggregate.CircuitChange(c, event.Meta{Source: "test", Actor: "service/test", CorrelationID: "c"}, facts)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.store.Append(t.Context(), store.Append{Changes: []store.Change{of}}); err != nil {
			t.Fatal(err)
		}
	}
	open := func(g circuit.Guarded) {
		change(g, func(c circuit.Circuit) ([]circuit.Event, error) {
			return c.Open(g, 3, "no disk", time.Now(), circuit.Policy{FirstPause: time.Minute, MostPause: time.Hour})
		})
	}
	open(circuit.Guarded{Kind: circuit.Path, Subject: f.id, Name: "r1"})
	open(g)
	if v := f.alerts(provider.AlertCircuitOpen); v.Circuit.State != circuit.StateOpen || v.Circuit.Reason != "no disk" {
		t.Errorf("circuit: %+v", v.Circuit)
	}
	f.stop()
	if v := f.alerts(provider.AlertCircuitOpen); v.Circuit.State != circuit.StateOpen {
		t.Errorf("circuit, from the log: %+v", v.Circuit)
	}
	f.run()
	change(g, func(c circuit.Circuit) ([]circuit.Event, error) { return c.HalfOpen("w") })
	change(g, func(c circuit.Circuit) ([]circuit.Event, error) { return c.Close("it works") })
	if v := f.alerts(); !v.Circuit.State.Settled() {
		t.Errorf("circuit: %+v", v.Circuit)
	}
}

func TestCreateIsTriedAgain(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.kind.failCreate.Store(2)
	f.await(f.request(), worker.StateConnecting)
	if n := f.kind.creates.Load(); n != 3 {
		t.Errorf("%d tries, want 3", n)
	}
	f.kind.failCreate.Store(1000)
	w := f.await(f.request(), worker.StateTerminated)
	if n := f.kind.creates.Load(); n != 6 {
		t.Errorf("%d tries for the second worker, want 3", n-3)
	}
	f.kind.mu.Lock()
	defer f.kind.mu.Unlock()
	if f.kind.made[w.ID] {
		t.Error("half a resource is left")
	}
}

func TestManyWorkersAtOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var ids []string
	for range 50 {
		ids = append(ids, f.request())
	}
	for i, id := range ids {
		w := f.await(id, worker.StateConnecting)
		if i%2 == 0 {
			facts, err := w.Terminate(worker.CauseIdle, "test")
			if err != nil {
				t.Fatal(err)
			}
			f.append(w, facts)
		}
	}
	for i, id := range ids {
		if i%2 == 0 {
			f.await(id, worker.StateTerminated)
		}
	}
	if n := f.kind.creates.Load(); n != 50 {
		t.Errorf("%d creates for 50 workers", n)
	}
}
