package relay_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/relay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, eventingtest.ServersGoroutines()...) }

func config(tb testing.TB, l *memory, nc *nats.Conn) relay.Config {
	tb.Helper()
	return relay.Config{
		Store: l, NC: nc, JS: eventingtest.JetStream(tb, nc), DeadLetters: l, Window: 256,
		Base: func(context.Context) (int64, error) { return 0, nil }, AckTimeout: 2 * time.Second,
		Log: slog.New(slog.NewTextHandler(tb.Output(), &slog.HandlerOptions{Level: level()})),
	}
}

// running is a relay under test; stop ends it as a crash would: whatever is
// under way stays under way.
type running struct {
	*relay.Relay
	stop func() error
}

func start(tb testing.TB, cfg relay.Config) running {
	tb.Helper()
	r, err := relay.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop := sync.OnceValue(func() error { cancel(); return <-done })
	tb.Cleanup(func() { _ = stop() })
	return running{r, stop}
}

func (r running) reaches(tb testing.TB, position int64) {
	tb.Helper()
	eventingtest.Eventually(tb, fmt.Sprintf("position %d", position), func() bool {
		if s := r.Status(); s.Diverged != nil {
			tb.Fatal(s.Diverged)
		}
		return r.Status().Position >= position
	})
}

// verify reads the whole stream: each position exactly once, in order, with the log's bytes.
func verify(tb testing.TB, l *memory, nc *nats.Conn) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	js := eventingtest.JetStream(tb, nc)
	stream, err := bus.WaitEvents(ctx, js)
	if err != nil {
		tb.Fatal(err)
	}
	if stream.Head() != int64(len(l.events)) {
		tb.Fatalf("the stream ends at %d, the log at %d", stream.Head(), len(l.events))
	}
	cons, err := js.OrderedConsumer(ctx, bus.EventsStream, jetstream.OrderedConsumerConfig{})
	if err != nil {
		tb.Fatal(err)
	}
	it, err := cons.Messages()
	if err != nil {
		tb.Fatal(err)
	}
	defer it.Stop()
	for seq := stream.First; seq <= stream.Last; seq++ {
		m, err := it.Next(jetstream.NextContext(ctx))
		if err != nil {
			tb.Fatal(err)
		}
		meta, err := m.Metadata()
		if err != nil {
			tb.Fatal(err)
		}
		e, err := event.FromMessage(m.Headers(), m.Data())
		if err != nil {
			tb.Fatal(err)
		}
		want := l.events[stream.Base+int64(seq)-1]
		if meta.Sequence.Stream != seq || e.Position != want.Position || e.ID != want.ID || string(e.Data) != string(want.Data) {
			tb.Fatalf("sequence %d holds position %d (%s), want %d (%s)", meta.Sequence.Stream, e.Position, e.ID, want.Position, want.ID)
		}
	}
}

// places are the deployments that the conformance suite runs on.
func places(t *testing.T, fn func(t *testing.T, replicas int, nc func() *nats.Conn, servers eventingtest.Servers)) {
	t.Run("R1", func(t *testing.T) {
		s := eventingtest.NATS(t)
		fn(t, 1, s.Conn, eventingtest.Servers{s})
	})
	t.Run("R3", func(t *testing.T) {
		c := eventingtest.Cluster(t, 3)
		fn(t, 3, c.Conn, c)
	})
}

func TestConformance(t *testing.T) {
	places(t, func(t *testing.T, replicas int, dial func() *nats.Conn, servers eventingtest.Servers) {
		l := &memory{}
		nc := dial()
		l.nudge = bus.Nudger(nc)
		cfg := func() relay.Config { c := config(t, l, dial()); c.Replicas = replicas; return c }

		t.Run("publishes what is there and what comes", func(t *testing.T) {
			l.add(100)
			r := start(t, cfg())
			r.reaches(t, 100)
			l.add(1)
			r.reaches(t, 101)
			l.add(3000)
			r.reaches(t, 3101)
			if err := r.stop(); err != nil {
				t.Fatal(err)
			}
			verify(t, l, nc)
		})

		t.Run("killed in mid-window many times", func(t *testing.T) {
			for range 12 {
				l.add(800)
				target := l.events[len(l.events)-1].Position - int64(rand.IntN(700))
				r := start(t, cfg())
				r.reaches(t, target)
				_ = r.stop()
			}
			r := start(t, cfg())
			r.reaches(t, int64(len(l.events)))
			_ = r.stop()
			verify(t, l, nc)
		})

		t.Run("two at once", func(t *testing.T) {
			a, b := start(t, cfg()), start(t, cfg())
			for range 10 {
				l.add(300)
				a.reaches(t, int64(len(l.events))-100)
			}
			eventingtest.Eventually(t, "both to reach the head", func() bool {
				return max(a.Status().Position, b.Status().Position) == int64(len(l.events))
			})
			_, _ = a.stop(), b.stop()
			verify(t, l, nc)
		})

		t.Run("forced mismatch", func(t *testing.T) {
			// A message whose expectation is wrong is refused, and the stream goes on.
			js := eventingtest.JetStream(t, nc)
			for range 20 {
				_, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: "hodei.events.x.y.Z", Header: nats.Header{
					jetstream.ExpectedStreamHeader: {bus.EventsStream}, jetstream.ExpectedLastSeqHeader: {"1"},
				}})
				if _, ok := errors.AsType[*jetstream.APIError](err); !ok {
					t.Fatalf("got %v", err)
				}
			}
			r := start(t, cfg())
			l.add(500)
			r.reaches(t, int64(len(l.events)))
			// Somebody else publishes the very next positions, as a stale relay would.
			stale := start(t, cfg())
			l.add(500)
			eventingtest.Eventually(t, "the head", func() bool {
				return max(r.Status().Position, stale.Status().Position) == int64(len(l.events))
			})
			_, _ = r.stop(), stale.stop()
			verify(t, l, nc)
		})

		t.Run("purged stream keeps its place", func(t *testing.T) {
			js := eventingtest.JetStream(t, nc)
			s, err := js.Stream(t.Context(), bus.EventsStream)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Purge(t.Context()); err != nil {
				t.Fatal(err)
			}
			l.add(50)
			r := start(t, cfg())
			r.reaches(t, int64(len(l.events)))
			_ = r.stop()
			verify(t, l, nc)
		})

		t.Run("server restarts while publishing", func(t *testing.T) {
			r := start(t, cfg())
			for i := range 3 {
				if len(servers) > 1 {
					servers.WaitCurrent(bus.EventsStream)
				}
				l.add(2000)
				r.reaches(t, int64(len(l.events))-1900)
				if len(servers) == 1 {
					servers[0].Restart()
				} else {
					leader := servers.StreamLeader(bus.EventsStream)
					leader.Stop()
					l.add(200 + i)
					r.reaches(t, int64(len(l.events)))
					leader.Start()
					servers.WaitLeader()
				}
			}
			l.add(100)
			r.reaches(t, int64(len(l.events)))
			_ = r.stop()
			verify(t, l, nc)
		})
	})
}

func TestNewStreamStartsAtTheLowestStoredPosition(t *testing.T) {
	s := eventingtest.NATS(t)
	l := &memory{}
	l.add(500)
	cfg := config(t, l, s.Conn())
	cfg.Base = func(context.Context) (int64, error) { return 400, nil }
	r := start(t, cfg)
	r.reaches(t, 500)
	_ = r.stop()
	e, err := bus.WaitEvents(t.Context(), cfg.JS)
	if err != nil || e.Base != 400 || e.Last != 100 {
		t.Fatalf("%+v %v", e, err)
	}
	verify(t, l, cfg.NC)
}

func TestRelayWaitsForNATSAndPostgres(t *testing.T) {
	s := eventingtest.NATS(t)
	s.Stop()
	l := &memory{fail: fault.New(fault.Unavailable, "away")}
	l.add(10)
	nc, err := bus.Connect(bus.Config{URL: s.URL(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	r := start(t, config(t, l, nc))
	s.Start()
	l.mu.Lock()
	l.fail = nil
	l.mu.Unlock()
	r.reaches(t, 10)
}

func TestTheSweepFindsWhatANudgeLost(t *testing.T) {
	s := eventingtest.NATS(t)
	l := &memory{}
	cfg := config(t, l, s.Conn())
	cfg.SweepInterval = 20 * time.Millisecond
	r := start(t, cfg)
	eventingtest.Eventually(t, "a start", func() bool { return r.Status().Publishing })
	l.add(5)
	r.reaches(t, 5)
}

func TestUnpublishableEventsBecomeTombstones(t *testing.T) {
	s := eventingtest.NATS(t)
	l := &memory{}
	l.add(10)
	l.change(3, func(e *event.Event) { e.Data = json.RawMessage(strings.Repeat("1", 2<<20)) })
	l.change(6, func(e *event.Event) { e.Namespace = "not a token" })
	cfg := config(t, l, s.Conn())
	r := start(t, cfg)
	r.reaches(t, 10)
	if len(l.buried) != 2 || l.buried[3] == "" || l.buried[6] == "" {
		t.Fatal(l.buried)
	}
	st, err := cfg.JS.Stream(t.Context(), bus.EventsStream)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []int64{3, 6} {
		m, err := st.GetMsg(t.Context(), uint64(p))
		if err != nil {
			t.Fatal(err)
		}
		if got, id, ok := event.TombstoneOf(m.Header); !ok || got != p || id != l.events[p-1].ID || len(m.Data) != 0 {
			t.Fatalf("%d: %v", p, m)
		}
	}
	// A restart finds its tombstones to be right.
	_ = r.stop()
	l.add(1)
	l.change(11, func(e *event.Event) { e.Namespace = "*" })
	again := start(t, cfg)
	again.reaches(t, 11)
	_ = again.stop()
	start(t, cfg).reaches(t, 11)
}

func TestAServersOwnLimitMakesATombstoneToo(t *testing.T) {
	s := eventingtest.NATS(t)
	l := &memory{}
	l.add(6)
	cfg := config(t, l, s.Conn())
	r := start(t, cfg)
	r.reaches(t, 6)
	st, err := cfg.JS.Stream(t.Context(), bus.EventsStream)
	if err != nil {
		t.Fatal(err)
	}
	limited := st.CachedInfo().Config
	limited.MaxMsgSize = 2000
	if _, err := cfg.JS.UpdateStream(t.Context(), limited); err != nil {
		t.Fatal(err)
	}
	l.nudge = bus.Nudger(cfg.NC)
	l.add(1)
	r.reaches(t, 7)
	l.nudge = nil
	l.add(3)
	l.change(9, func(e *event.Event) { e.Data = json.RawMessage(strings.Repeat("1", 3000)) })
	bus.Nudger(cfg.NC)(10)
	r.reaches(t, 10)
	if len(l.buried) != 1 || l.buried[9] == "" {
		t.Fatal(l.buried)
	}
}

func TestDivergenceStopsTheRelay(t *testing.T) {
	for name, corrupt := range map[string]func(*memory){
		"the log lost its tail":    func(l *memory) { l.events = l.events[:90] },
		"the tail is another fact": func(l *memory) { l.events[99].ID = event.NewID() },
		"the tail has other data":  func(l *memory) { l.events[99].Data = json.RawMessage(`{}`) },
		"the first one differs":    func(l *memory) { l.events[0].ID = event.NewID() },
	} {
		t.Run(name, func(t *testing.T) {
			s := eventingtest.NATS(t)
			l := &memory{}
			l.add(100)
			cfg := config(t, l, s.Conn())
			r := start(t, cfg)
			r.reaches(t, 100)
			if err := r.stop(); err != nil {
				t.Fatal(err)
			}
			corrupt(l)
			again, err := relay.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			err = again.Run(t.Context())
			var diverged *relay.DivergedError
			if !errors.As(err, &diverged) || !errors.Is(err, fault.Precondition) || again.Status().Diverged == nil {
				t.Fatalf("got %v", err)
			}
		})
	}
}

func TestTheRegularCheckFindsDivergence(t *testing.T) {
	s := eventingtest.NATS(t)
	l := &memory{}
	l.add(20)
	cfg := config(t, l, s.Conn())
	cfg.CheckInterval = 10 * time.Millisecond
	r := start(t, cfg)
	r.reaches(t, 20)
	l.change(10, func(e *event.Event) { e.ID = event.NewID() })
	eventingtest.Eventually(t, "the difference", func() bool { return r.Status().Diverged != nil })
}

func TestAForeignStreamIsNotTouched(t *testing.T) {
	s := eventingtest.NATS(t)
	cfg := config(t, &memory{}, s.Conn())
	if _, err := cfg.JS.CreateStream(t.Context(), jetstream.StreamConfig{Name: bus.EventsStream, Subjects: []string{"hodei.events.>"}}); err != nil {
		t.Fatal(err)
	}
	// One that never had a message would be replaced.
	if _, err := cfg.JS.Publish(t.Context(), "hodei.events.default.job.Strange", nil); err != nil {
		t.Fatal(err)
	}
	r, err := relay.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Run(t.Context()); !errors.Is(err, bus.ErrNoBase) {
		t.Fatalf("got %v", err)
	}
}

func BenchmarkRelay(b *testing.B) {
	for _, window := range []int{256, 512, 1024} {
		b.Run(strconv.Itoa(window), func(b *testing.B) {
			s := eventingtest.NATS(b)
			l := &memory{}
			l.add(b.N)
			cfg := config(b, l, s.LocalConn())
			cfg.Window = window
			b.ReportAllocs()
			b.ResetTimer()
			r := start(b, cfg)
			r.reaches(b, int64(b.N))
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

func level() slog.Level {
	if testing.Verbose() {
		return slog.LevelInfo
	}
	return slog.LevelWarn
}
