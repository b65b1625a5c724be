package watch_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"slices"
	"testing"
	"time"

	"hodei.dev/libs/domain/catalogue"
	domain "hodei.dev/libs/domain/consumer"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/libs/service/incident"
	"hodei.dev/services/relay/internal/watch"
)

func TestMain(m *testing.M) { os.Exit(eventingtest.Main(m)) }

// fact is an event of the tests.
type fact struct{ typ string }

func (f fact) EventType() string { return f.typ }
func (fact) EventVersion() int   { return 1 }

// world is a log with consumers that stand where the test puts them, and a clock.
type world struct {
	t      *testing.T
	store  *store.Store
	watch  *watch.Watch
	places []watch.Place
	now    time.Time
	logged bytes.Buffer
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, store: eventingtest.MigratedStore(t), now: time.Now()}
	w.begin()
	return w
}

// begin has a new watch, as after a restart of the relay.
func (w *world) begin() {
	w.t.Helper()
	var err error
	w.watch, err = watch.New(watch.Config{
		Log: w.store, Places: func(context.Context) ([]watch.Place, error) { return w.places, nil }, After: 30 * time.Second,
		Now: func() time.Time { return w.now }, Logger: slog.New(slog.NewTextHandler(&w.logged, nil)), Letters: 3,
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) add(n int, typ string) {
	w.t.Helper()
	for range n {
		stream := event.Stream{Type: catalogue.Job, ID: event.NewID()}
		e, err := event.New(stream, event.Meta{Source: "test", Namespace: "default", CorrelationID: "c", Actor: "service/test"}, fact{typ})
		if err != nil {
			w.t.Fatal(err)
		}
		if _, err := w.store.Append(w.t.Context(), store.Append{Changes: []store.Change{{Stream: stream, Namespace: "default", Events: []event.Event{e}}}}); err != nil {
			w.t.Fatal(err)
		}
	}
}

// looks looks every five seconds for a while.
func (w *world) looks(d time.Duration) {
	w.t.Helper()
	for range d / (5 * time.Second) {
		w.now = w.now.Add(5 * time.Second)
		if err := w.watch.Look(w.t.Context()); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) has(name string, want ...string) {
	w.t.Helper()
	events, err := w.store.Load(w.t.Context(), aggregate.ConsumerStream(name), 0)
	if err != nil {
		w.t.Fatal(err)
	}
	var types []string
	for _, e := range events {
		types = append(types, e.Type)
	}
	if !slices.Equal(types, want) {
		w.t.Fatalf("%s has %v, want %v", name, types, want)
	}
}

const stalled, recovered = "ConsumerStalled", "ConsumerRecovered"

// A dead service says nothing: the watch does, once, however long it lasts and
// however often the relay restarts.
func TestADeadServiceIsSeen(t *testing.T) {
	w := newWorld(t)
	w.places = []watch.Place{{Service: "audit", Name: "audit"}, {Service: "dispatcher", Name: "dispatcher"}}
	w.looks(time.Minute) // nothing waits
	w.has("audit")
	w.add(3, "JobQueued")
	w.looks(25 * time.Second)
	w.has("audit") // not yet
	w.looks(10 * time.Second)
	w.has("audit", stalled)
	w.has("dispatcher", stalled)
	w.looks(10 * time.Minute)
	w.begin()
	w.looks(10 * time.Minute)
	w.has("audit", stalled)
	w.places[0].Position = 5 // all but what was recorded about stalls
	w.looks(5 * time.Second)
	w.has("audit", stalled, recovered)
	w.has("dispatcher", stalled)
}

// One that moves has not stalled, however far behind it is; one for whom nothing
// of its types waits has not either.
func TestSlowAndIdleAreNotStalled(t *testing.T) {
	w := newWorld(t)
	w.add(40, "JobQueued")
	w.places = []watch.Place{{Service: "audit", Name: "audit"}, {Service: "provisioner", Name: "provisioner"}}
	for range 30 {
		w.places[0].Position++
		w.looks(25 * time.Second)
	}
	w.has("audit")
	w.has("provisioner") // takes no JobQueued
}

// What is recorded about consumers waits for audit, and is no reason to record more.
func TestItNeverCausesItself(t *testing.T) {
	w := newWorld(t)
	w.places = []watch.Place{{Service: "audit", Name: "audit"}}
	for _, name := range []string{"x", "y", "z"} {
		_, err := incident.Record(t.Context(), w.store, "relay", "registry", name, func(c domain.Consumer) []domain.Event {
			return c.Stall(domain.Incident{Reason: "test", Since: w.now})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	w.looks(10 * time.Minute)
	w.has("audit")
}

// JetStream says whether something waits, where no position is stored.
func TestADurableThatNobodyPulls(t *testing.T) {
	w := newWorld(t)
	yes, no := true, false
	w.places = []watch.Place{{Service: "dispatcher", Name: "dispatcher", Position: 7, Waits: &yes}}
	w.looks(time.Minute)
	w.has("dispatcher", stalled)
	w.places[0].Waits = &no
	w.looks(5 * time.Second)
	w.has("dispatcher", stalled, recovered)
}

func TestServiceOf(t *testing.T) {
	for name, want := range map[string]string{
		"audit": "audit", "registry-workers": "registry", "timeout-monitor": "timeout-monitor", "other": "other",
	} {
		if got := watch.ServiceOf(name); got != want {
			t.Errorf("%s is of %s, want %s", name, got, want)
		}
	}
}
