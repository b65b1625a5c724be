package bus_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, eventingtest.ServersGoroutines()...) }

func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		bus.EventSubject("team-a", "job", "JobCreated"): "hodei.events.team-a.job.JobCreated",
		bus.TombstoneSubject():                          "hodei.events._._.Tombstone",
		bus.HeartbeatSubject("w1"):                      "hodei.telemetry.WorkerHeartbeat.w1",
		bus.DeadLetterStream("timeout-monitor"):         "HODEI_DLQ_TIMEOUT_MONITOR",
		bus.DeadLetterSubject("audit", "JobCreated"):    "hodei.dlq.audit.JobCreated",
		bus.DeadLetters("audit"):                        "hodei.dlq.audit.>",
		bus.CommandSubject("w1", 7):                     "hodei.cmd.w1.7",
		bus.LogSubject("j1"):                            "hodei.log.j1",
		bus.ConsumerName("audit", ""):                   "audit",
		bus.ConsumerName("audit", "search"):             "audit-search",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if s, ok := bus.DeadLetterService("HODEI_DLQ_TIMEOUT_MONITOR"); !ok || s != "timeout-monitor" {
		t.Error(s, ok)
	}
	if _, ok := bus.DeadLetterService(bus.EventsStream); ok {
		t.Error("the events stream is no dead-letter stream")
	}
	want := []string{"hodei.events.*.*.A", "hodei.events.*.*.B", bus.TombstoneSubject()}
	if got := bus.EventFilters([]string{"A", "B", "A"}); !slices.Equal(got, want) {
		t.Error(got)
	}
	for token, valid := range map[string]bool{"a-b_C9": true, "": false, "*": false, ">": false, "a.b": false, "a b": false, "é": false, "x*": false} {
		if bus.ValidToken(token) != valid {
			t.Errorf("%q", token)
		}
	}
}

func TestEnsureFromManyProcessesAtOnceOnAServerThatStartsLater(t *testing.T) {
	s := eventingtest.NATS(t)
	s.Stop()
	var all sync.WaitGroup
	for i := range 8 {
		nc, err := bus.Connect(bus.Config{URL: s.URL(), Name: "x", Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		js := eventingtest.JetStream(t, nc)
		all.Go(func() {
			if err := bus.Ensure(t.Context(), js, []string{"audit", "registry"}[i%2], 1); err != nil {
				t.Error(err)
			}
		})
		all.Go(func() {
			if e, err := bus.WaitEvents(t.Context(), js); err != nil || e.Base != 42 {
				t.Error(e, err)
			}
		})
		if i < 2 { // relays, of different opinion about the base
			all.Go(func() {
				eventually(t, func() error {
					_, err := bus.EnsureEvents(t.Context(), js, bus.EventsConfig{Base: func(context.Context) (int64, error) { return 42, nil }})
					return err
				})
			})
		}
	}
	s.Start()
	all.Wait()
	js := eventingtest.JetStream(t, s.Conn())
	var names []string
	for n := range js.StreamNames(t.Context()).Name() {
		names = append(names, n)
	}
	slices.Sort(names)
	if !slices.Equal(names, []string{"HODEI_DLQ_AUDIT", "HODEI_DLQ_REGISTRY", "HODEI_EVENTS", "HODEI_TELEMETRY"}) {
		t.Fatal(names)
	}
	// A later relay changes age, but never the base.
	e, err := bus.EnsureEvents(t.Context(), js, bus.EventsConfig{MaxAge: time.Hour, Base: func(context.Context) (int64, error) { return 7, nil }})
	if err != nil || e.Base != 42 || e.Stream.CachedInfo().Config.MaxAge != time.Hour {
		t.Fatal(e, err)
	}
}

func eventually(t *testing.T, fn func() error) {
	t.Helper()
	eventingtest.Eventually(t, "success", func() bool { return fn() == nil })
}

func TestWaitEventsEndsWithItsContext(t *testing.T) {
	s := eventingtest.NATS(t)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := bus.WaitEvents(ctx, eventingtest.JetStream(t, s.Conn()))
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Fatal(err)
	}
}

func TestNudges(t *testing.T) {
	s := eventingtest.NATS(t)
	got := make(chan int64, 10)
	if _, err := bus.OnNudge(s.LocalConn(), func(p int64) { got <- p }); err != nil {
		t.Fatal(err)
	}
	nc := s.LocalConn()
	eventingtest.Eventually(t, "the subscription", func() bool { return s.Server().NumSubscriptions() > 0 })
	if err := nc.Publish(bus.NudgeSubject, []byte("rubbish")); err != nil {
		t.Fatal(err)
	}
	nudge := bus.Nudger(nc)
	eventingtest.Eventually(t, "a nudge", func() bool {
		nudge(77)
		select {
		case p := <-got:
			return p == 77
		default:
			return false
		}
	})
}

func TestTelemetrySurvivesEveryLoss(t *testing.T) {
	s := eventingtest.NATS(t)
	nc := s.Conn()
	js := eventingtest.JetStream(t, nc)
	if err := bus.Ensure(t.Context(), js, "", 1); err != nil {
		t.Fatal(err)
	}
	beat := func(worker, id string) {
		e := event.Event{
			Meta: event.Meta{Source: "agent", Namespace: event.NoNamespace, CorrelationID: "c", Actor: "worker/" + worker},
			ID:   id, Type: "WorkerHeartbeat", Version: 1, Stream: event.Stream{Type: "worker", ID: worker}, Data: []byte(`{}`),
		}
		if err := bus.PublishTelemetry(nc, e); err != nil {
			t.Error(err)
		}
	}
	beat("w1", "before")
	got := make(chan bus.Telemetry, 1<<16) // nobody reads it in the end
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- bus.SubscribeTelemetry(ctx, js, bus.TelemetryConfig{
			Type: "WorkerHeartbeat", Since: time.Now().Add(-time.Minute), Log: slog.New(slog.DiscardHandler),
		}, func(m bus.Telemetry) { got <- m })
	}()
	if m := <-got; m.ID != "before" || m.Stream.ID != "w1" || m.Stored.IsZero() || m.Sequence != 1 || m.Time.IsZero() {
		t.Fatalf("%+v", m)
	}
	if err := nc.Publish("hodei.telemetry.WorkerHeartbeat.x", []byte("rubbish")); err != nil {
		t.Fatal(err)
	}
	beat("w1", "second")
	if m := <-got; m.ID != "second" {
		t.Fatalf("%+v", m)
	}
	for id, fault := range map[string]func(){
		"after a restart":                     s.Restart,
		"after a restart with an empty store": s.Wipe,
		"after the stream was deleted": func() {
			if err := js.DeleteStream(t.Context(), bus.TelemetryStream); err != nil {
				t.Fatal(err)
			}
		},
	} {
		fault()
		eventingtest.Eventually(t, "a beat "+id, func() bool {
			if nc.Status() == nats.CONNECTED {
				beat("w1", id)
			}
			select {
			case m := <-got:
				return m.ID == id
			default:
				return false
			}
		})
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
