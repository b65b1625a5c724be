// Package providertest is the suite that every provider passes: what the engine
// relies on, whatever the kind.
package providertest

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/services/provisioner/internal/app"
)

// Subject is a kind of provider under test.
type Subject struct {
	// Kind is how it is registered.
	Kind provider.Kind
	// New makes a provider whose workers the test may end; it is cleaned up with t.
	New func(t *testing.T) app.Provider
}

// worker is a spec that counts how often its token is asked for.
func worker(asked *atomic.Int32) app.WorkerSpec {
	return app.WorkerSpec{
		WorkerID: uuid.Must(uuid.NewV7()).String(), Provider: "test",
		Token: func(context.Context) (app.Token, error) {
			asked.Add(1)
			return app.Token{Value: "secret", AgentAddress: "127.0.0.1:7434"}, nil
		},
	}
}

// Run runs the suite.
func Run(t *testing.T, s Subject) {
	t.Helper()
	t.Run("create is get or create", func(t *testing.T) { getOrCreate(t, s) })
	t.Run("destroy is idempotent", func(t *testing.T) { destroyTwice(t, s) })
	t.Run("a create without a token leaves nothing", func(t *testing.T) { noToken(t, s) })
	t.Run("a create that is not wanted leaves nothing", func(t *testing.T) { notWanted(t, s) })
	t.Run("workers do not hold each other up", func(t *testing.T) { together(t, s) })
	t.Run("watch ends with its context", func(t *testing.T) { watch(t, s) })
	t.Run("a registration is checked", func(t *testing.T) { accepts(t, s) })
}

func has(t *testing.T, p app.Provider, id string) bool {
	t.Helper()
	list, err := p.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list {
		if r.WorkerID == id {
			return true
		}
	}
	return false
}

func getOrCreate(t *testing.T, s Subject) {
	t.Helper()
	p := s.New(t)
	var asked atomic.Int32
	w := worker(&asked)
	first, err := p.Create(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	if first.WorkerID != w.WorkerID || first.Name == "" {
		t.Fatalf("the resource is %+v", first)
	}
	again, err := p.Create(t.Context(), w)
	if err != nil || again.Name != first.Name || again.Details["pid"] != first.Details["pid"] {
		t.Fatalf("create again: %+v, %v; want %+v", again, err, first)
	}
	if n := asked.Load(); n > 1 {
		t.Fatalf("the token was asked for %d times: each voids the one before", n)
	}
	if p.Capabilities().Inventory && !has(t, p, w.WorkerID) {
		t.Fatal("the inventory does not have it")
	}
	if local, ok := p.(app.Local); ok && !local.Here(first.Details) {
		t.Fatal("its own resource is not here")
	}
	if err := p.Destroy(t.Context(), w.WorkerID); err != nil {
		t.Fatal(err)
	}
}

func destroyTwice(t *testing.T, s Subject) {
	t.Helper()
	p := s.New(t)
	var asked atomic.Int32
	w := worker(&asked)
	if err := p.Destroy(t.Context(), w.WorkerID); err != nil {
		t.Fatalf("destroy what never was: %v", err)
	}
	if _, err := p.Create(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := p.Destroy(t.Context(), w.WorkerID); err != nil {
			t.Fatal(err)
		}
		if has(t, p, w.WorkerID) {
			t.Fatal("it is still there")
		}
	}
}

func noToken(t *testing.T, s Subject) {
	t.Helper()
	p := s.New(t)
	var asked atomic.Int32
	w := worker(&asked)
	denied := fault.New(fault.Denied, "no token")
	w.Token = func(context.Context) (app.Token, error) { asked.Add(1); return app.Token{}, denied }
	_, err := p.Create(t.Context(), w)
	if asked.Load() > 0 && !errors.Is(err, fault.Denied) {
		t.Fatalf("got %v, want the token's error", err)
	}
	if err := p.Destroy(t.Context(), w.WorkerID); err != nil || has(t, p, w.WorkerID) {
		t.Fatalf("something is left: %v", err)
	}
}

func notWanted(t *testing.T, s Subject) {
	t.Helper()
	p := s.New(t)
	var asked atomic.Int32
	w := worker(&asked)
	ctx, cancel := context.WithCancel(t.Context())
	token := w.Token
	w.Token = func(ctx context.Context) (app.Token, error) { cancel(); return token(ctx) }
	_, err := p.Create(ctx, w)
	cancel()
	if asked.Load() > 0 && err == nil {
		t.Fatal("it was made although nobody wanted it any more")
	}
	if err := p.Destroy(t.Context(), w.WorkerID); err != nil || has(t, p, w.WorkerID) {
		t.Fatalf("something is left: %v", err)
	}
}

func together(t *testing.T, s Subject) {
	t.Helper()
	p := s.New(t)
	var all sync.WaitGroup
	var asked atomic.Int32
	for range 6 {
		w := worker(&asked)
		all.Go(func() {
			if _, err := p.Create(t.Context(), w); err != nil {
				t.Error(err)
			}
			if err := p.Destroy(t.Context(), w.WorkerID); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

func watch(t *testing.T, s Subject) {
	t.Helper()
	p := s.New(t)
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- p.Watch(ctx, func(g app.Gone) { t.Errorf("%s is gone: nothing was there", g.WorkerID) })
		}()
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Health(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func accepts(t *testing.T, s Subject) {
	t.Helper()
	p := s.New(t)
	spec := provider.Spec{Name: "test", Kind: s.Kind}
	if err := p.Accepts(spec); err != nil {
		t.Fatal(err)
	}
	spec.Config = json.RawMessage(`{"unknown":1}`)
	if err := p.Accepts(spec); !errors.Is(err, fault.Invalid) {
		t.Fatalf("options that it does not have: %v, want Invalid", err)
	}
	spec.Config, spec.RunAs = nil, "no-such-user"
	if err := p.Accepts(spec); !errors.Is(err, fault.Invalid) {
		t.Fatalf("a user that there is not: %v, want Invalid", err)
	}
}
