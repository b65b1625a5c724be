package consumer_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/relay"
	"hodei.dev/libs/eventing/store"
)

// world is a log in memory, a NATS server and a relay between them.
type world struct {
	tb  testing.TB
	srv *eventingtest.Server // nil for a cluster
	n   int                  // replicas
	nc  *nats.Conn
	js  jetstream.JetStream
	log *slog.Logger

	mu     sync.Mutex
	events []event.Event
	fail   error
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	srv := eventingtest.NATS(tb)
	w := worldOn(tb, srv.Conn(), 1)
	w.srv = srv
	return w
}

func worldOn(tb testing.TB, nc *nats.Conn, replicas int) *world {
	tb.Helper()
	level := slog.LevelError + 1
	if testing.Verbose() {
		level = slog.LevelInfo
	}
	w := &world{
		tb: tb, nc: nc, js: eventingtest.JetStream(tb, nc), n: replicas,
		log: slog.New(slog.NewTextHandler(tb.Output(), &slog.HandlerOptions{Level: level})),
	}
	if err := bus.Ensure(tb.Context(), w.js, "tester", replicas); err != nil {
		tb.Fatal(err)
	}
	return w
}

// relay runs until the test ends or stop is called.
func (w *world) relay(base int64) (stop func()) {
	w.tb.Helper()
	r, err := relay.New(relay.Config{
		Store: w, NC: w.nc, JS: w.js, DeadLetters: w, Log: w.log, Replicas: w.n, AckTimeout: 2 * time.Second,
		Base: func(context.Context) (int64, error) { return base, nil },
	})
	if err != nil {
		w.tb.Fatal(err)
	}
	return w.background(r.Run)
}

func (w *world) background(run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.tb.Error(err)
		}
	})
	w.tb.Cleanup(stop)
	return stop
}

// add appends n events of the types in turn.
func (w *world) add(n int, types ...string) {
	if len(types) == 0 {
		types = []string{"JobQueued"}
	}
	w.mu.Lock()
	for i := range n {
		p := int64(len(w.events) + 1)
		w.events = append(w.events, event.Event{
			Meta: event.Meta{Source: "test", Namespace: "default", CorrelationID: "c", Actor: "service/test"},
			ID:   event.NewID(), Type: types[i%len(types)], Version: 1, Stream: event.Stream{Type: "job", ID: strconv.FormatInt(p%5, 10)},
			StreamVersion: 1, Position: p, Time: time.Now().UTC().Truncate(time.Microsecond), Data: json.RawMessage(fmt.Sprintf(`{"n": %d}`, p)),
		})
	}
	head := int64(len(w.events))
	w.mu.Unlock()
	bus.Nudger(w.nc)(head)
}

func (w *world) Read(_ context.Context, o store.ReadOptions) ([]event.Event, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return nil, w.fail
	}
	var out []event.Event
	for _, e := range w.events[min(o.After, int64(len(w.events))):] {
		if len(out) == o.Limit || (o.Through > 0 && e.Position > o.Through) {
			break
		}
		if len(o.Types) == 0 || slices.Contains(o.Types, e.Type) {
			out = append(out, e)
		}
	}
	return out, nil
}

func (w *world) Head(context.Context) (int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return int64(len(w.events)), w.fail
}

func (w *world) Record(context.Context, event.Event, string) error { return nil }

// want are the positions of the log's events of these types after a position.
func (w *world) want(after int64, types ...string) []int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	var p []int64
	for _, e := range w.events[after:] {
		if len(types) == 0 || slices.Contains(types, e.Type) {
			p = append(p, e.Position)
		}
	}
	return p
}

// sink handles events by remembering them.
type sink struct {
	mu        sync.Mutex
	positions []int64
	batches   int
	fail      func(e event.Event) error
}

func (s *sink) handle(_ context.Context, events []event.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		for _, e := range events {
			if err := s.fail(e); err != nil {
				return err
			}
		}
	}
	for _, e := range events {
		s.positions = append(s.positions, e.Position)
	}
	s.batches++
	return nil
}

func (s *sink) last() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.positions) == 0 {
		return 0
	}
	return s.positions[len(s.positions)-1]
}

func (s *sink) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.positions)
}

func (s *sink) got(tb testing.TB, want []int64) {
	tb.Helper()
	eventingtest.Eventually(tb, fmt.Sprintf("%d events", len(want)), func() bool { return s.count() >= len(want) })
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Equal(s.positions, want) {
		tb.Fatalf("got %d events %v, want %d", len(s.positions), s.positions[:min(20, len(s.positions))], len(want))
	}
}

func (w *world) config(s *sink, types ...string) consumer.Config {
	return consumer.Config{
		Service: "tester", Types: types, Store: w, NC: w.nc, JS: w.js, Log: w.log, RetryDelay: time.Millisecond,
		Start:  func(context.Context) (int64, error) { return 0, nil },
		Handle: s.handle,
	}
}

func (w *world) consume(cfg consumer.Config) (*consumer.Consumer, func()) {
	w.tb.Helper()
	c, err := consumer.New(cfg)
	if err != nil {
		w.tb.Fatal(err)
	}
	return c, w.background(c.Run)
}

func startAt(p int64) func(context.Context) (int64, error) {
	return func(context.Context) (int64, error) { return p, nil }
}
