// Package servicetest is the ground that the tests of a service stand on: a log, a
// bus, a relay between them, and the service as its main runs it. The test plays the
// other services by appending to the log. It is for tests only.
package servicetest

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
	"google.golang.org/grpc"

	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/relay"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/platform/process"
	"hodei.dev/libs/platform/rpc"
	"hodei.dev/libs/platform/telemetry"
)

// Ground is a log and a bus with a relay between them, of one test.
type Ground struct {
	// URL is the database's.
	URL   string
	NATS  *eventingtest.Server
	NC    *nats.Conn
	Store *store.Store
}

// New returns a ground that migrate has brought up to date. It ends with the test,
// which fails where an event could not be published.
func New(tb testing.TB, migrate func(ctx context.Context, url string) error) *Ground {
	tb.Helper()
	g := &Ground{URL: eventingtest.Postgres(tb), NATS: eventingtest.NATS(tb)}
	if err := migrate(tb.Context(), g.URL); err != nil {
		tb.Fatal(err)
	}
	g.NC = g.NATS.Conn()
	var err error
	g.Store, err = store.Open(tb.Context(), store.Config{URL: g.URL, OnCommit: bus.Nudger(g.NC), Log: Quiet()})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(g.Store.Close)
	r, err := relay.New(relay.Config{
		Store: g.Store, NC: g.NC, JS: eventingtest.JetStream(tb, g.NC), DeadLetters: noLetters{tb},
		Base: func(context.Context) (int64, error) { return 0, nil }, Log: Quiet(),
	})
	if err != nil {
		tb.Fatal(err)
	}
	Background(tb, "relay", r.Run)
	return g
}

type noLetters struct{ tb testing.TB }

// Record implements relay.DeadLetters.
func (l noLetters) Record(_ context.Context, e event.Event, reason string) error {
	l.tb.Errorf("event %d could not be published: %s", e.Position, reason)
	return nil
}

// Start runs a service until stop is called, or the test ends, and returns once it
// is ready. What it logs at the level or above it is the test's output.
func Start(tb testing.TB, name, level string, run func(ctx context.Context, env process.Env) error) (stop func()) {
	tb.Helper()
	tel, err := telemetry.Setup(tb.Context(), telemetry.Options{Service: name, LogLevel: level, LogWriter: tb.Output()})
	if err != nil {
		tb.Fatal(err)
	}
	health := process.NewHealth(nil)
	env := process.Env{Log: tel.Log, Tel: tel, Health: health, Version: "test"}
	stop = Background(tb, name, func(ctx context.Context) error { return run(ctx, env) })
	eventingtest.Eventually(tb, name+" to be ready", func() bool { ready, _ := health.Ready(); return ready })
	return stop
}

// Background runs a part until the returned stop is called, or the test ends.
func Background(tb testing.TB, name string, run func(context.Context) error) (stop func()) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(tb.Context()))
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			tb.Errorf("%s: %v", name, err)
		}
	})
	tb.Cleanup(stop)
	return stop
}

// SocketDir is a directory whose path is short enough for sockets, which that of
// tb.TempDir may not be.
func SocketDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "h") //nolint:usetesting // see above
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// Dial connects to a service's door until the test ends.
func Dial(tb testing.TB, address string) *grpc.ClientConn {
	tb.Helper()
	conn, err := rpc.Dial(address)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	return conn
}

// Quiet is a logger for what a test does not want to see.
func Quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
