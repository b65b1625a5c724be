package incident_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"slices"
	"testing"
	"time"

	domain "hodei.dev/libs/domain/consumer"
	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/libs/service/incident"
)

func TestMain(m *testing.M) { os.Exit(eventingtest.Main(m)) }

func incidentOf(name string, position int64) consumer.Incident {
	now := time.Now()
	return consumer.Incident{
		Service: "audit", Consumer: name, Reason: "it was purged", Began: now.Add(-time.Second), Ended: now, Position: position, Through: position + 10, FromLog: 10,
	}
}

func start(t *testing.T, s *store.Store, every time.Duration) (r *incident.Reporter, stop func()) {
	t.Helper()
	r = incident.New(s, "audit", every, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	return r, func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func recorded(t *testing.T, s *store.Store, name string) (types []string, last domain.Recovered) {
	t.Helper()
	events, err := s.Load(t.Context(), aggregate.ConsumerStream(name), 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		types = append(types, e.Type)
		if e.Namespace != event.NoNamespace || e.Actor != "service/audit" || e.CorrelationID == "" {
			t.Errorf("envelope %+v", e.Meta)
		}
	}
	if len(events) > 0 {
		if err := json.Unmarshal(events[len(events)-1].Data, &last); err != nil {
			t.Fatal(err)
		}
	}
	return types, last
}

// Of many incidents the first is told at once, and the rest as one.
func TestOnePairAMinute(t *testing.T) {
	s := eventingtest.MigratedStore(t)
	r, stop := start(t, s, time.Hour)
	pair := []string{"ConsumerStalled", "ConsumerRecovered"}
	r.Report(incidentOf("a", 0))
	r.Report(incidentOf("b", 0))
	for _, name := range []string{"a", "b"} {
		eventingtest.Eventually(t, "the pair of "+name, func() bool { types, _ := recorded(t, s, name); return slices.Equal(types, pair) })
	}
	for n := range int64(50) {
		r.Report(incidentOf("a", 10*n))
	}
	if types, _ := recorded(t, s, "a"); !slices.Equal(types, pair) {
		t.Fatalf("got %v at once", types)
	}
	stop() // the last words
	types, last := recorded(t, s, "a")
	if !slices.Equal(types, append(slices.Clone(pair), pair...)) || last.Incidents != 50 || last.FromLog != 500 || last.Position != 500 {
		t.Errorf("got %v, %+v", types, last)
	}
	if types, _ := recorded(t, s, "b"); !slices.Equal(types, pair) {
		t.Errorf("b has %v", types)
	}
}

// A stall that the relay has seen gets its recovery from the consumer, and no second stall.
func TestTheEndOfAKnownStall(t *testing.T) {
	s := eventingtest.MigratedStore(t)
	told, err := incident.Record(t.Context(), s, "audit", "audit", "a", func(c domain.Consumer) []domain.Event {
		return c.Stall(domain.Incident{Reason: "does not move", Since: time.Now()})
	})
	if err != nil || !told {
		t.Fatal(told, err)
	}
	r, stop := start(t, s, 0)
	r.Report(incidentOf("a", 0))
	stop()
	if types, _ := recorded(t, s, "a"); !slices.Equal(types, []string{"ConsumerStalled", "ConsumerRecovered"}) {
		t.Errorf("got %v", types)
	}
}
