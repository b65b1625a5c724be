package app_test

import (
	"context"
	"encoding/json"
	"testing"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
)

// spoil appends an event to a worker's stream that no build knows.
func (f *fixture) spoil(id string) {
	f.t.Helper()
	w := f.load(id)
	stream := aggregate.WorkerStream(id)
	e := event.Event{
		Meta: event.Meta{Source: catalogue.Registry, Namespace: event.NoNamespace, Actor: "service/registry", CorrelationID: "c"},
		ID:   event.NewID(), Stream: stream, Type: "WorkerStatusChanged", Version: 9, Data: json.RawMessage(`{}`),
	}
	change := store.Change{Stream: stream, Namespace: event.NoNamespace, Expected: w.Version, Events: []event.Event{e}}
	if _, err := f.store.Append(f.t.Context(), store.Append{Changes: []store.Change{change}}); err != nil {
		f.t.Fatal(err)
	}
}

// A live worker whose stream cannot be read keeps no other one from being made, also
// not after a restart, and its resource is left alone.
func TestAWorkerThatCannotBeReadKeepsNobodyUp(t *testing.T) {
	f := newFixture(t)
	poisoned := f.request()
	f.await(poisoned, worker.StateConnecting)
	f.stop()
	f.spoil(poisoned)
	f.run()
	f.await(f.request(), worker.StateConnecting)
	if n := f.kind.destroys.Load(); n != 0 {
		t.Errorf("%d resources were destroyed", n)
	}
	eventingtest.Eventually(t, "the views", func() bool {
		views, err := f.engine.Providers.List(context.WithoutCancel(t.Context()), false)
		return err == nil && len(views) == 1 && views[0].Workers == 2
	})
}
