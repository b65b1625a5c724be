package projection_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/deadletter"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/pgserver"
	"hodei.dev/libs/eventing/projection"
	"hodei.dev/libs/eventing/relay"
	"hodei.dev/libs/eventing/store"
)

func TestMain(m *testing.M) { os.Exit(eventingtest.Main(m)) }

// counted is a fact of the tests.
type counted struct {
	N    int    `json:"n"`
	Type string `json:"-"`
}

func (c counted) EventType() string { return c.Type }
func (counted) EventVersion() int   { return 1 }

// pipeline is the whole way: a store, a relay, NATS.
type pipeline struct {
	tb    testing.TB
	srv   *eventingtest.Server
	nc    *nats.Conn
	js    jetstream.JetStream
	store *store.Store
	log   *slog.Logger
	pg    *pgserver.Server // where the test may restart it
	stop  func() error     // of the relay

	mu       sync.Mutex // guards versions
	versions map[event.Stream]int
}

func newPipeline(tb testing.TB, url string) *pipeline {
	tb.Helper()
	level := slog.LevelError + 1
	if testing.Verbose() {
		level = slog.LevelInfo
	}
	p := &pipeline{
		tb: tb, srv: eventingtest.NATS(tb), versions: map[event.Stream]int{},
		log: slog.New(slog.NewTextHandler(tb.Output(), &slog.HandlerOptions{Level: level})),
	}
	p.nc = p.srv.Conn()
	p.js = eventingtest.JetStream(tb, p.nc)
	var err error
	p.store, err = store.Open(tb.Context(), store.Config{URL: url, OnCommit: bus.Nudger(p.nc), Log: p.log})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(p.store.Close)
	if _, err := p.store.Pool().Exec(tb.Context(), `create schema relay; `+relay.DDL); err != nil {
		tb.Fatal(err)
	}
	p.relay()
	return p
}

func (p *pipeline) relay() {
	p.tb.Helper()
	r, err := relay.New(relay.Config{
		Store: p.store, NC: p.nc, JS: p.js, Log: p.log, DeadLetters: relay.NewDeadLetters(p.store.Pool()),
		Base: func(ctx context.Context) (int64, error) { return consumer.Lowest(ctx, p.store.Pool()) },
	})
	if err != nil {
		p.tb.Fatal(err)
	}
	p.stop = p.background(r.Run)
}

func (p *pipeline) background(run func(context.Context) error) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	p.tb.Cleanup(func() { _ = stop() })
	return stop
}

// append adds one event to a stream and retries while the log is away.
func (p *pipeline) append(stream event.Stream, typ string, n int) error {
	p.mu.Lock()
	expected := p.versions[stream]
	p.mu.Unlock()
	e, err := event.New(stream, event.Meta{Source: "test", Namespace: "default", CorrelationID: "c", Actor: "service/test"}, counted{N: n, Type: typ})
	if err != nil {
		return err
	}
	a := store.Append{Changes: []store.Change{{Stream: stream, Namespace: "default", Expected: expected, State: "X", Events: []event.Event{e}}}}
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		_, err = p.store.Append(ctx, a)
		cancel()
		if err == nil || !errors.Is(err, fault.Unavailable) {
			break
		}
	}
	if err == nil {
		p.mu.Lock()
		p.versions[stream]++
		p.mu.Unlock()
	}
	return err
}

func (p *pipeline) add(n int, streams []event.Stream, types ...string) {
	p.tb.Helper()
	for i := range n {
		if err := p.append(streams[i%len(streams)], types[i%len(types)], i); err != nil {
			p.tb.Fatal(err)
		}
	}
}

func streams(n int) []event.Stream {
	s := make([]event.Stream, n)
	for i := range s {
		s[i] = event.Stream{Type: "job", ID: uuid.NewString()}
	}
	return s
}

// service is a projection that writes down what it was given.
type service struct {
	*projection.Projection
	schema string
	pool   *pgxpool.Pool
	fail   func(e event.Event) error
}

func (p *pipeline) service(name string, types ...string) *service {
	p.tb.Helper()
	if err := bus.Ensure(p.tb.Context(), p.js, name, 1); err != nil {
		p.tb.Fatal(err)
	}
	s := &service{schema: name, pool: p.store.Pool()}
	ddl := fmt.Sprintf(`create schema if not exists %[1]s; create table if not exists %[1]s.seen (id bigserial, position bigint primary key, stream text, version int)`, name)
	if _, err := s.pool.Exec(p.tb.Context(), ddl); err != nil {
		p.tb.Fatal(err)
	}
	var there bool
	if err := s.pool.QueryRow(p.tb.Context(), `select to_regclass($1) is not null`, name+".positions").Scan(&there); err != nil {
		p.tb.Fatal(err)
	}
	if !there {
		if _, err := s.pool.Exec(p.tb.Context(), projection.DDL(name)); err != nil {
			p.tb.Fatal(err)
		}
	}
	s.Projection = p.instance(s, types...)
	return s
}

func (p *pipeline) instance(s *service, types ...string) *projection.Projection {
	p.tb.Helper()
	pr, err := projection.New(projection.Config{
		Service: s.schema, Schema: s.schema, Types: types, Pool: s.pool, Store: p.store, NC: p.nc, JS: p.js, Log: p.log,
		RetryDelay: time.Millisecond, ProbeInterval: 100 * time.Millisecond,
		Apply: func(ctx context.Context, tx pgx.Tx, events []event.Event) error {
			for _, e := range events {
				if _, err := tx.Exec(ctx, `insert into `+s.schema+`.seen (position, stream, version) values ($1, $2, $3)`, e.Position, e.Stream.String(), e.StreamVersion); err != nil {
					return err
				}
				if s.fail != nil {
					if err := s.fail(e); err != nil {
						return err
					}
				}
			}
			return nil
		},
		Reset: func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `truncate `+s.schema+`.seen`)
			return err
		},
	})
	if err != nil {
		p.tb.Fatal(err)
	}
	return pr
}

// seen are the positions in the order of writing.
func (s *service) seen(tb testing.TB) []int64 {
	tb.Helper()
	rows, err := s.pool.Query(tb.Context(), `select position from `+s.schema+`.seen order by id`)
	if err != nil {
		tb.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		tb.Fatal(err)
	}
	return list
}

func (s *service) reaches(tb testing.TB, position int64) {
	tb.Helper()
	eventingtest.Eventually(tb, fmt.Sprintf("%s to reach %d", s.schema, position), func() bool { return s.Status().Position >= position })
}

func (p *pipeline) head() int64 {
	p.tb.Helper()
	head, err := p.store.Head(p.tb.Context())
	if err != nil {
		p.tb.Fatal(err)
	}
	return head
}

// want are the positions of the log's events of these types.
func (p *pipeline) want(types ...string) []int64 {
	p.tb.Helper()
	events, err := p.store.Read(p.tb.Context(), store.ReadOptions{Types: types, Limit: 1 << 20})
	if err != nil {
		p.tb.Fatal(err)
	}
	list := make([]int64, len(events))
	for i, e := range events {
		list[i] = e.Position
	}
	return list
}

func TestRowsAndPositionMoveTogether(t *testing.T) {
	p := newPipeline(t, eventingtest.MigratedPostgres(t))
	all, some := p.service("audit"), p.service("board", "A")
	p.background(all.Run)
	stop := p.background(some.Run)
	p.add(200, streams(5), "A", "B")
	all.reaches(t, p.head())
	some.reaches(t, p.head())
	if got := all.seen(t); !slices.Equal(got, p.want()) {
		t.Fatal(got)
	}
	if got := some.seen(t); !slices.Equal(got, p.want("A")) {
		t.Fatal(got)
	}
	if pos, err := all.Position(t.Context()); err != nil || pos != 200 {
		t.Fatal(pos, err)
	}
	// Stopped and started again it goes on where it was, and not again.
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	p.add(20, streams(2), "A")
	p.background(some.Run)
	some.reaches(t, p.head())
	if got := some.seen(t); !slices.Equal(got, p.want("A")) {
		t.Fatal(got)
	}
	if low, err := consumer.Lowest(t.Context(), p.store.Pool()); err != nil || low < 200 {
		t.Fatal(low, err)
	}
}

func TestAPoisonedEventParksItsAggregateOnly(t *testing.T) {
	p := newPipeline(t, eventingtest.MigratedPostgres(t))
	s := p.service("board")
	s.fail = func(e event.Event) error {
		if e.Position == 12 {
			return errors.New("cannot be applied")
		}
		return nil
	}
	jobs := streams(3)
	p.add(30, jobs, "A") // position 12 is of the last job
	stop := p.background(s.Run)
	s.reaches(t, 30)
	var want, parked []int64
	for pos := int64(1); pos <= 30; pos++ {
		if pos >= 12 && pos%3 == 0 {
			parked = append(parked, pos)
		} else {
			want = append(want, pos)
		}
	}
	if got := s.seen(t); !slices.Equal(got, want) {
		t.Fatal(got)
	}
	_ = stop()
	p.background(s.Run) // what is parked is known after a restart too
	p.add(3, jobs, "A")
	s.reaches(t, 33)
	parked = append(parked, 33)
	list, err := s.Parked(t.Context(), 100)
	if err != nil {
		t.Fatal(err)
	}
	var got []int64
	for _, e := range list {
		if e.Event.Position != e.Position || e.Stream != jobs[2].String() || !json.Valid(e.Event.Data) {
			t.Fatalf("%+v", e)
		}
		got = append(got, e.Position)
	}
	if !slices.Equal(got, parked) {
		t.Fatal(got)
	}
	letters, err := deadletter.List(t.Context(), p.js, deadletter.Filter{Service: "board"})
	if err != nil || len(letters) != 1 || letters[0].Event.Position != 12 || letters[0].Error != "cannot be applied" {
		t.Fatal(letters, err)
	}
	one, err := deadletter.Get(t.Context(), p.js, "board", letters[0].Sequence)
	if err != nil || one.Event.ID != letters[0].Event.ID {
		t.Fatal(one, err)
	}
	if _, err := deadletter.Get(t.Context(), p.js, "board", 99); !errors.Is(err, fault.NotFound) {
		t.Fatal(err)
	}
	if _, err := deadletter.Get(t.Context(), p.js, "nobody", 1); !errors.Is(err, fault.NotFound) {
		t.Fatal(err)
	}
	// Once it can be applied, a rebuild brings all of it back.
	s.fail = nil
	if err := s.Rebuild(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.seen(t); !slices.Equal(got, p.want()) {
		t.Fatal(got)
	}
}

func TestRebuildWhileRunningAndNot(t *testing.T) {
	p := newPipeline(t, eventingtest.MigratedPostgres(t))
	s := p.service("board", "A")
	p.add(50, streams(3), "A", "B")
	if err := s.Rebuild(t.Context()); err != nil {
		t.Fatal(err)
	}
	if pos, err := s.Position(t.Context()); err != nil || pos != 50 {
		t.Fatal(pos, err)
	}
	p.background(s.Run)
	for range 3 {
		p.add(10, streams(1), "A", "B")
		if err := s.Rebuild(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.add(10, streams(1), "A", "B")
		s.reaches(t, p.head())
		if got := s.seen(t); !slices.Equal(got, p.want("A")) {
			t.Fatal(got)
		}
	}
}

func TestASecondInstanceIsFound(t *testing.T) {
	p := newPipeline(t, eventingtest.MigratedPostgres(t))
	s := p.service("board")
	p.add(5, streams(1), "A")
	failed := make(chan error, 1)
	go func() { failed <- s.Run(t.Context()) }()
	s.reaches(t, 5)
	// Another one writes, as a standby would that believes the first to be dead.
	if _, err := s.pool.Exec(t.Context(), `update board.positions set position = 6`); err != nil {
		t.Fatal(err)
	}
	p.add(5, streams(1), "A")
	err := <-failed
	var replaced *projection.ReplacedError
	if !errors.As(err, &replaced) || !errors.Is(err, fault.Conflict) || replaced.Actual != 6 {
		t.Fatal(err)
	}
	if got := s.seen(t); len(got) != 5 {
		t.Fatal(got)
	}
}

func TestPositionsOnlyGrow(t *testing.T) {
	p := newPipeline(t, eventingtest.MigratedPostgres(t))
	s := p.service("board")
	positions := consumer.NewPositions("board")
	for _, step := range []struct{ save, want int64 }{{5, 5}, {3, 5}, {9, 9}} {
		if err := positions.Save(t.Context(), s.pool, "x", step.save); err != nil {
			t.Fatal(err)
		}
		if got, err := positions.Load(t.Context(), s.pool, "x"); err != nil || got != step.want {
			t.Fatal(got, err)
		}
	}
	if got, err := positions.Load(t.Context(), s.pool, "unknown"); err != nil || got != 0 {
		t.Fatal(got, err)
	}
}

// TestEndToEnd appends from several writers to several services, restarts NATS
// and Postgres in the middle, and expects every event everywhere, in order, once.
func TestEndToEnd(t *testing.T) {
	postgres := eventingtest.PostgresServer(t)
	p := newPipeline(t, migrated(t, postgres.URL("postgres")))
	services := map[string]*service{"audit": p.service("audit"), "board": p.service("board", "A", "C"), "rare": p.service("rare", "C")}
	types := map[string][]string{"board": {"A", "C"}, "rare": {"C"}}
	for _, s := range services {
		p.background(s.Run)
	}
	var mu sync.Mutex
	var handled []int64 // by a service without tables of its own
	positions := consumer.NewPositions("audit")
	dispatcher, err := consumer.New(consumer.Config{
		Service: "dispatcher", Store: p.store, NC: p.nc, JS: p.js, Log: p.log,
		Start: func(ctx context.Context) (int64, error) { return positions.Load(ctx, p.store.Pool(), "dispatcher") },
		Checkpoint: func(ctx context.Context, position int64) error {
			return positions.Save(ctx, p.store.Pool(), "dispatcher", position)
		},
		Handle: func(_ context.Context, events []event.Event) error {
			mu.Lock()
			defer mu.Unlock()
			for _, e := range events {
				handled = append(handled, e.Position)
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	stop := p.background(dispatcher.Run)

	const writers, each = 4, 300
	var writing sync.WaitGroup
	for range writers {
		writing.Go(func() {
			own := streams(10)
			for i := range each {
				if err := p.append(own[i%10], []string{"A", "B", "C"}[i%3], i); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	services["audit"].reaches(t, 100)
	p.srv.Restart()
	services["audit"].reaches(t, 400)
	if err := postgres.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	services["audit"].reaches(t, 700)
	p.srv.Restart()
	writing.Wait()
	if head := p.head(); head != writers*each {
		t.Fatalf("the log ends at %d", head)
	}
	for name, s := range services {
		s.reaches(t, writers*each)
		if got := s.seen(t); !slices.Equal(got, p.want(types[name]...)) {
			t.Fatalf("%s: %v", name, got)
		}
	}
	eventingtest.Eventually(t, "the dispatcher", func() bool { return dispatcher.Status().Position == writers*each })
	_ = stop()
	if !slices.Equal(handled, p.want()) {
		t.Fatal(handled)
	}
	if pos, err := positions.Load(t.Context(), p.store.Pool(), "dispatcher"); err != nil || pos != writers*each {
		t.Fatal(pos, err)
	}
	if n, err := deadletter.Count(t.Context(), p.js); err != nil || n["audit"]+n["board"]+n["rare"] != 0 {
		t.Fatal(n, err)
	}
}

func migrated(tb testing.TB, url string) string {
	tb.Helper()
	if err := store.Migrate(tb.Context(), url); err != nil {
		tb.Fatal(err)
	}
	return url
}
