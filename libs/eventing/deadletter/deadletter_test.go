package deadletter_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/deadletter"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, eventingtest.ServersGoroutines()...) }

func letter(service, typ string, n int) deadletter.Letter {
	e := event.Event{
		Meta: event.Meta{Source: "scheduler", Namespace: "default", CorrelationID: "c", Actor: "user/ana"},
		ID:   fmt.Sprintf("%s-%s-%d", service, typ, n), Type: typ, Version: 1, Stream: event.Stream{Type: "job", ID: "1"},
		StreamVersion: 1, Position: int64(n), Data: []byte(`{"a": 1}`),
	}
	now := time.Now().UTC()
	return deadletter.Letter{
		Service: service, Event: &e, Header: e.Header(), Data: e.Data, Error: "line one\nline é", Consumer: service + "-x", Deliveries: 5,
		First: now.Add(-time.Second), Last: now,
	}
}

func TestLettersAreKeptAndFound(t *testing.T) {
	nc := eventingtest.NATS(t).Conn()
	js := eventingtest.JetStream(t, nc)
	for _, service := range []string{"audit", "timeout-monitor", "empty"} {
		if err := bus.Ensure(t.Context(), js, service, 1); err != nil {
			t.Fatal(err)
		}
	}
	publish := func(id string, l deadletter.Letter) {
		t.Helper()
		if err := deadletter.Publish(t.Context(), nc, js, id, l); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 150 {
		l := letter("audit", []string{"A", "B"}[n%2], n)
		publish(l.Event.ID, l)
		publish(l.Event.ID, l) // again, after a crash
	}
	first := letter("timeout-monitor", "A", 1)
	publish("x", first)
	publish("raw", deadletter.Letter{Service: "timeout-monitor", Header: map[string][]string{"X": {"y"}, "Nats-Expected-Stream": {"Z"}}, Data: []byte{0xff}, Error: "no event"})
	huge := letter("timeout-monitor", "A", 2)
	huge.Data = []byte(strings.Repeat("x", 2<<20))
	publish("huge", huge)

	counts, err := deadletter.Count(t.Context(), js)
	if diff := cmp.Diff(map[string]uint64{"audit": 150, "timeout-monitor": 3, "empty": 0}, counts); err != nil || diff != "" {
		t.Fatal(err, diff)
	}
	for _, c := range []struct {
		name        string
		filter      deadletter.Filter
		count       int
		first, last string // event ids
	}{
		{"newest of one", deadletter.Filter{Service: "audit", Limit: 10}, 10, "audit-A-140", "audit-B-149"},
		{"default limit", deadletter.Filter{Service: "audit"}, 100, "audit-A-50", "audit-B-149"},
		{"all of one", deadletter.Filter{Service: "audit", Limit: -1}, 150, "audit-A-0", "audit-B-149"},
		{"one type", deadletter.Filter{Service: "audit", Type: "B", Limit: 3}, 3, "audit-B-145", "audit-B-149"},
		{"all services", deadletter.Filter{Limit: -1, Type: "A"}, 77, "audit-A-0", "timeout-monitor-A-2"},
		{"newest of all", deadletter.Filter{Limit: 4}, 4, "audit-B-149", "timeout-monitor-A-2"},
		{"since never", deadletter.Filter{Since: time.Now().Add(time.Hour)}, 0, "", ""},
		{"nothing", deadletter.Filter{Service: "empty"}, 0, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := deadletter.List(t.Context(), js, c.filter)
			if err != nil || len(got) != c.count {
				t.Fatal(len(got), err)
			}
			if c.count > 0 {
				id := func(l deadletter.Letter) string { return strings.Trim(fmt.Sprint(l.Header["ce-id"]), "[]") }
				if id(got[0]) != c.first || id(got[c.count-1]) != c.last {
					t.Fatal(id(got[0]), id(got[c.count-1]))
				}
			}
		})
	}

	got, err := deadletter.Get(t.Context(), js, "timeout-monitor", 1)
	if err != nil {
		t.Fatal(err)
	}
	first.Sequence, first.Stored = 1, got.Stored
	if diff := cmp.Diff(first, got); diff != "" || got.Stored.IsZero() {
		t.Fatal(diff)
	}
	raw, err := deadletter.Get(t.Context(), js, "timeout-monitor", 2)
	if err != nil || raw.Event != nil || string(raw.Data) != "\xff" || cmp.Diff(map[string][]string{"X": {"y"}}, raw.Header) != "" {
		t.Fatal(raw, err)
	}
	big, err := deadletter.Get(t.Context(), js, "timeout-monitor", 3)
	if err != nil || !big.DataOmitted || len(big.Data) != 0 || big.Event == nil || big.Event.ID != huge.Event.ID {
		t.Fatal(big, err)
	}
	if _, err := deadletter.List(t.Context(), js, deadletter.Filter{Service: "nobody"}); !errors.Is(err, fault.NotFound) {
		t.Fatal(err)
	}
}
