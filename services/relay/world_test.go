package relay_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/jackc/pgx/v5"

	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/projection"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/platform/process"
	"hodei.dev/libs/platform/telemetry"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/libs/service/servicetest"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
	relayv1 "hodei.dev/proto/hodei/relay/v1"
	"hodei.dev/services/relay"
)

func TestMain(m *testing.M) { os.Exit(eventingtest.Main(m)) }

// world is a log, a bus, the relay under test and one reader that projects
// everything.
type world struct {
	t      testing.TB
	url    string
	nats   *eventingtest.Server
	store  *store.Store
	health *process.Health
	tel    *telemetry.Telemetry
	relay  relayv1.CompletenessServiceClient
	status platformv1.StatusServiceClient
	// stop ends the relay; start begins it again.
	stop func()
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	w := &world{t: tb, url: eventingtest.Postgres(tb), nats: eventingtest.NATS(tb)}
	if err := relay.Migrate(tb.Context(), w.config()); err != nil {
		tb.Fatal(err)
	}
	nc := w.nats.Conn()
	var err error
	w.store, err = store.Open(tb.Context(), store.Config{URL: w.url, OnCommit: bus.Nudger(nc), Log: servicetest.Quiet()})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(w.store.Close)
	w.start()
	return w
}

func (w *world) config() relay.Config {
	cfg := relay.Default()
	cfg.PostgresURL, cfg.NATSURL = w.url, w.nats.URL()
	return cfg
}

// start runs the relay until stop is called, or the test ends.
func (w *world) start() {
	w.t.Helper()
	cfg := w.config()
	cfg.Listen = "unix://" + filepath.Join(servicetest.SocketDir(w.t), "rpc")
	var err error
	w.tel, err = telemetry.Setup(w.t.Context(), telemetry.Options{Service: "relay", LogLevel: "error", LogWriter: w.t.Output()})
	if err != nil {
		w.t.Fatal(err)
	}
	w.health = process.NewHealth(nil)
	env := process.Env{Log: w.tel.Log, Tel: w.tel, Health: w.health, Version: "test"}
	w.stop = servicetest.Background(w.t, "relay", func(ctx context.Context) error { return relay.Run(ctx, cfg, env) })
	w.ready()
	conn := servicetest.Dial(w.t, cfg.Listen)
	w.relay, w.status = relayv1.NewCompletenessServiceClient(conn), platformv1.NewStatusServiceClient(conn)
}

func (w *world) ready() {
	w.t.Helper()
	eventingtest.Eventually(w.t, "the relay", func() bool { ready, _ := w.health.Ready(); return ready })
}

// queue appends the first events of n jobs: two each.
func (w *world) queue(n int) {
	w.t.Helper()
	for range n {
		facts, err := job.Create(job.Spec{Command: []string{"true"}}, "", "")
		if err != nil {
			w.t.Fatal(err)
		}
		meta := event.Meta{Source: "scheduler", Actor: "user/ann", CorrelationID: event.NewID()}
		change, err := aggregate.JobChange(job.Job{ID: event.NewID()}, meta, facts)
		if err != nil {
			w.t.Fatal(err)
		}
		if _, err := w.store.Append(w.t.Context(), store.Append{Changes: []store.Change{change}}); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) head() int64 {
	w.t.Helper()
	head, err := w.store.Head(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return head
}

// events are those of a type, and their facts.
func (w *world) events(eventType string) []event.Event {
	w.t.Helper()
	events, err := w.store.Read(w.t.Context(), store.ReadOptions{Types: []string{eventType}})
	if err != nil {
		w.t.Fatal(err)
	}
	return events
}

// reader starts a service that writes down every event; it begins anew where its
// projection ends, as every service does.
func (w *world) reader() *reader {
	w.t.Helper()
	pool := w.store.Pool()
	if _, err := pool.Exec(w.t.Context(), "create schema reader; create table reader.seen (position bigint primary key, event_id uuid);"+projection.DDL("reader")); err != nil {
		w.t.Fatal(err)
	}
	nc := w.nats.Conn()
	js := eventingtest.JetStream(w.t, nc)
	if err := bus.Ensure(w.t.Context(), js, "reader", 1); err != nil {
		w.t.Fatal(err)
	}
	servicetest.Background(w.t, "reader", func(ctx context.Context) error {
		for ctx.Err() == nil {
			p, err := projection.New(projection.Config{
				Service: "reader", Schema: "reader", Pool: pool, Store: w.store, NC: nc, JS: js, Log: servicetest.Quiet(), Reset: nothing,
				Apply: func(ctx context.Context, tx pgx.Tx, events []event.Event) error {
					for _, e := range events {
						if _, err := tx.Exec(ctx, "insert into reader.seen values ($1, $2)", e.Position, e.ID); err != nil {
							return err
						}
					}
					return nil
				},
			})
			if err != nil {
				return err
			}
			_ = p.Run(ctx) // a lost tail or another instance: begin anew
		}
		return nil
	})
	return &reader{w: w}
}

func nothing(context.Context, pgx.Tx) error { return nil }

type reader struct{ w *world }

// has waits until the reader has exactly the events of the log: none skipped, none
// twice, none that the log does not have.
func (r *reader) has() {
	r.w.t.Helper()
	var missing, strange int64
	eventingtest.Eventually(r.w.t, "the reader to have what the log has", func() bool {
		err := r.w.store.Pool().QueryRow(r.w.t.Context(), `select
			count(*) filter (where s.position is null), count(*) filter (where e.position is null)
			from hodei.events e full join reader.seen s on s.position = e.position and s.event_id = e.event_id`).Scan(&missing, &strange)
		return err == nil && missing == 0 && strange == 0
	})
}

// compare asks for a comparison and returns its end.
func (w *world) compare(quick bool) *relayv1.Comparison {
	w.t.Helper()
	stream, err := w.relay.Compare(w.t.Context(), &relayv1.CompareRequest{Quick: quick})
	if err != nil {
		w.t.Fatal(err)
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			w.t.Fatal(err)
		}
		if m.GetDone() {
			return m.GetComparison()
		}
	}
}

func findings(c *relayv1.Comparison) string {
	text := ""
	for _, f := range c.GetFindings() {
		text += fmt.Sprintf("%s %s: %s (%s)\n", f.GetSeverity(), f.GetCheck(), f.GetProblem(), f.GetSubject())
	}
	return text
}
