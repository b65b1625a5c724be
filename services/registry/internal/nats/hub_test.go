package nats_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"

	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/relay"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/services/registry/internal/logs"
	"hodei.dev/services/registry/internal/nats"
)

func TestMain(m *testing.M) { os.Exit(eventingtest.Main(m)) }

// noLetters is a place for dead letters that the tests do not need.
type noLetters struct{}

func (noLetters) Record(context.Context, event.Event, string) error { return nil }

// fact is an event of the tests.
type fact struct{}

func (fact) EventType() string { return "WorkerReady" }
func (fact) EventVersion() int { return 1 }

// What watches comes back after every loss, and is told that it may have missed something.
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
	hub := nats.NewHub(js, log, "WorkerReady")
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
	w, err := hub.Watch(t.Context(), "", 1024)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	add := func() string {
		t.Helper()
		stream := event.Stream{Type: "worker", ID: event.NewID()}
		e, err := event.New(stream, event.Meta{Source: "test", Namespace: event.NoNamespace, CorrelationID: "c", Actor: "service/test"}, fact{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Append(t.Context(), store.Append{Changes: []store.Change{{Stream: stream, Namespace: event.NoNamespace, Events: []event.Event{e}}}}); err != nil {
			t.Fatal(err)
		}
		return stream.ID
	}
	// heard returns once the event, or the word that something may have been missed, has come.
	heard := func(what, id string) {
		t.Helper()
		eventingtest.Eventually(t, what, func() bool {
			select {
			case e := <-w.C():
				return e.Stream.ID == id || e.Type == ""
			default:
				return false
			}
		})
	}
	heard("the first event", add())
	for name, fault := range map[string]func(){
		"lost connection": func() {
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
		heard("the event after "+name+", or the word that some may be missing", add())
		eventingtest.Eventually(t, "a new event after "+name, func() bool {
			id := add()
			for range 100 {
				select {
				case e := <-w.C():
					if e.Stream.ID == id {
						return true
					}
				default:
				}
			}
			return false
		})
	}
}

// The live output of a job goes on after the connection or the server was lost,
// and its reader is told to look at the rows.
func TestLiveOutputComesBack(t *testing.T) {
	srv := eventingtest.NATS(t)
	nc := srv.Conn()
	live := nats.NewLive(nc, slog.New(slog.DiscardHandler))
	sub, err := live.Subscribe(t.Context(), "job")
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	for i, fault := range []func(){srv.Restart, srv.Wipe} {
		fault()
		eventingtest.Eventually(t, fmt.Sprintf("the word after fault %d", i), func() bool {
			select {
			case <-sub.Resumed():
				return true
			case <-sub.C(): // as a reader does
			default:
			}
			return false
		})
		eventingtest.Eventually(t, "live output", func() bool {
			live.Publish(logs.Batch{JobID: "job", Attempt: i + 1, Chunks: []logs.Chunk{{Stream: "stdout", Seq: 1, Data: []byte("x")}}})
			select {
			case b := <-sub.C():
				return b.Attempt == i+1
			default:
				return false
			}
		})
	}
}
