package consume_test

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"time"

	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/relay"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/services/scheduler/internal/consume"
)

func TestMain(m *testing.M) { os.Exit(eventingtest.Main(m)) }

// noLetters is a place for dead letters that the tests do not need.
type noLetters struct{}

func (noLetters) Record(context.Context, event.Event, string) error { return nil }

// fact is an event of the tests.
type fact struct{}

func (fact) EventType() string { return "JobStatusChanged" }
func (fact) EventVersion() int { return 1 }

// What watches jobs comes back after every loss, and reads the log for what it missed.
func TestWatchesComeBack(t *testing.T) {
	srv := eventingtest.NATS(t)
	nc := srv.Conn()
	js := eventingtest.JetStream(t, nc)
	log := slog.New(slog.DiscardHandler)
	s, err := store.Open(t.Context(), store.Config{URL: eventingtest.MigratedPostgres(t), OnCommit: bus.Nudger(nc), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r, err := relay.New(relay.Config{
		Store: s, NC: nc, JS: js, Log: log, DeadLetters: noLetters{}, Base: func(context.Context) (int64, error) { return 0, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	hub := consume.NewHub(nc, js, log, func(error) {})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- r.Run(ctx) }()
	go func() { ended <- hub.Run(ctx) }()
	defer func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}()
	w := hub.WatchAll()
	defer w.Close()
	add := func() string {
		t.Helper()
		stream := event.Stream{Type: "job", ID: event.NewID()}
		e, err := event.New(stream, event.Meta{Source: "test", Namespace: "default", CorrelationID: "c", Actor: "service/test"}, fact{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Append(t.Context(), store.Append{Changes: []store.Change{{Stream: stream, Namespace: "default", Events: []event.Event{e}}}}); err != nil {
			t.Fatal(err)
		}
		return stream.ID
	}
	// next waits a moment for news; resync says that the log has to be read.
	next := func(id string) (found, resync bool) {
		t.Helper()
		wait, done := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer done()
		events, resync, err := w.Next(wait)
		if err != nil && wait.Err() == nil {
			t.Fatal(err)
		}
		for _, e := range events {
			found = found || e.Stream.ID == id
		}
		return found, resync
	}
	for name, fault := range map[string]func(){
		"nothing": func() {},
		"a lost connection": func() {
			if err := nc.ForceReconnect(); err != nil {
				t.Fatal(err)
			}
		},
		"a restart":                   srv.Restart,
		"a restart on an empty store": srv.Wipe,
		"the deletion of the stream": func() {
			if err := js.DeleteStream(t.Context(), bus.EventsStream); err != nil {
				t.Fatal(err)
			}
		},
	} {
		fault()
		missed := add()
		eventingtest.Eventually(t, "the event after "+name+", or the word to read the log", func() bool {
			found, resync := next(missed)
			return found || resync
		})
		eventingtest.Eventually(t, "live events after "+name, func() bool {
			found, _ := next(add())
			return found
		})
	}
}
