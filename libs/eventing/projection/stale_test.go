package projection_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/projection"
	"hodei.dev/libs/eventing/store"
)

// pause stops the first who comes by, as SIGSTOP does to a process, until it is continued.
type pause struct {
	once            sync.Once
	stopped, goesOn chan struct{}
}

func newPause() *pause { return &pause{stopped: make(chan struct{}), goesOn: make(chan struct{})} }

func (p *pause) here() {
	p.once.Do(func() {
		close(p.stopped)
		<-p.goesOn
	})
}

// beforeBegin pauses a pool's user before a transaction begins.
type beforeBegin struct{ *pause }

func (b beforeBegin) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	if q.SQL == "begin" {
		b.here()
	}
	return ctx
}

func (beforeBegin) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// takeover runs a role by two holders. The first is paused in the middle of what it
// does and loses the role; the second does it all; the first goes on and is as late
// as can be in noticing: never. It returns what the first ended with.
func (p *pipeline) takeover(t *testing.T, first, second func(ctx context.Context) error, at *pause, done func()) error {
	t.Helper()
	role := "role" + uuid.NewString()
	unnoticed, end := context.WithCancel(context.Background())
	result := make(chan error, 1)
	lost := make(chan struct{})
	p.background(func(ctx context.Context) error {
		_ = p.store.Exclusive(ctx, role, nil, func(held context.Context) error {
			go func() { result <- first(unnoticed) }()
			<-held.Done()
			close(lost)
			return nil
		})
		return nil
	})
	t.Cleanup(end)
	<-at.stopped
	standby, err := store.Open(t.Context(), store.Config{URL: p.store.Pool().Config().ConnString(), Name: "standby", Log: p.log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(standby.Close)
	stop := p.background(func(ctx context.Context) error { return standby.Exclusive(ctx, role, nil, second) })
	t.Cleanup(func() { _ = stop() }) // before the standby's pool is closed
	if _, err := p.store.Pool().Exec(t.Context(), `select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and objid = hashtext($1)::oid::bigint`, role); err != nil {
		t.Fatal(err)
	}
	<-lost
	done()
	close(at.goesOn)
	p.add(100, streams(3), "A")
	done()
	end()
	return <-result
}

// A projection that was paused wakes up when another instance has applied what it
// was about to: nothing is applied twice, and no event is blamed for it.
func TestAPausedProjectionAppliesNothingTwice(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"before its transaction", "within its transaction"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			p := newPipeline(t, eventingtest.MigratedPostgres(t))
			active, at := p.service("board"), newPause()
			paused := &service{schema: "board", pool: p.store.Pool()}
			if where == "before its transaction" {
				cfg := p.store.Pool().Config()
				cfg.ConnConfig.Tracer = beforeBegin{at}
				pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(pool.Close)
				paused.pool = pool
			} else {
				paused.fail = func(event.Event) error { at.here(); return nil }
			}
			paused.Projection = p.instance(paused)
			p.add(100, streams(3), "A")
			err := p.takeover(t, paused.Run, active.Run, at, func() { active.reaches(t, p.head()) })
			if replaced := (*projection.ReplacedError)(nil); !errors.As(err, &replaced) {
				t.Errorf("the paused one ended with %v, want that it was replaced", err)
			}
			if got := active.seen(t); !slices.Equal(got, p.want()) {
				t.Errorf("applied %v", got)
			}
			if n := paused.Status().DeadLetters + active.Status().DeadLetters; n != 0 {
				t.Errorf("%d events are dead letters", n)
			}
			if parked, err := active.Parked(t.Context(), 10); err != nil || len(parked) != 0 {
				t.Errorf("parked: %v %v", parked, err)
			}
		})
	}
}

// appender is a consumer whose effect on each event is one append to a stream of
// the event's own, at the version that it expects.
func (p *pipeline) appender(name string, before func()) *consumer.Consumer {
	p.tb.Helper()
	positions := consumer.NewPositions(name)
	c, err := consumer.New(consumer.Config{
		Service: name, Types: []string{"A"}, Store: p.store, NC: p.nc, JS: p.js, Log: p.log,
		Start: func(ctx context.Context) (int64, error) { return positions.Load(ctx, p.store.Pool(), name) },
		Handle: func(ctx context.Context, events []event.Event) error {
			before()
			for _, e := range events {
				if err := p.effect(ctx, e); err != nil && !errors.Is(err, fault.Conflict) {
					return err
				}
			}
			return nil
		},
		Checkpoint: func(ctx context.Context, position int64) error {
			return positions.Save(ctx, p.store.Pool(), name, position)
		},
	})
	if err != nil {
		p.tb.Fatal(err)
	}
	return c
}

func (p *pipeline) effect(ctx context.Context, cause event.Event) error {
	id, err := uuid.Parse(cause.ID)
	if err != nil {
		return err
	}
	stream := event.Stream{Type: "effect", ID: uuid.NewSHA1(id, nil).String()}
	e, err := event.New(stream, event.Meta{Source: "test", Namespace: "default", CorrelationID: "c", CausationID: cause.ID, Actor: "service/test"}, counted{Type: "E"})
	if err != nil {
		return err
	}
	_, err = p.store.Append(ctx, store.Append{Changes: []store.Change{{Stream: stream, Namespace: "default", State: "X", Events: []event.Event{e}}}})
	return err
}

// A consumer whose effects are appends is paused with a batch in its hand, and goes
// on beside the one that took over: it acknowledges through the durable that both
// have, takes messages from it and makes it anew. Each event has its effect once,
// none is skipped, and the position never goes back.
func TestAPausedConsumerHasNoSecondEffect(t *testing.T) {
	t.Parallel()
	p := newPipeline(t, eventingtest.MigratedPostgres(t))
	if _, err := p.store.Pool().Exec(t.Context(), `create schema reactor; `+consumer.PositionsDDL("reactor")); err != nil {
		t.Fatal(err)
	}
	if err := bus.Ensure(t.Context(), p.js, "reactor", 1); err != nil {
		t.Fatal(err)
	}
	at := newPause()
	paused, active := p.appender("reactor", at.here), p.appender("reactor", func() {})
	p.add(100, streams(3), "A")
	err := p.takeover(t, paused.Run, active.Run, at, func() {
		eventingtest.Eventually(t, "the active one to be done", func() bool {
			want := p.want("A")
			return active.Status().Position >= want[len(want)-1]
		})
	})
	if err != nil {
		t.Errorf("the paused one ended with %v", err)
	}
	effects := map[string]int{}
	events, err := p.store.Read(t.Context(), store.ReadOptions{Types: []string{"E"}, Limit: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		effects[e.CausationID]++
	}
	causes, err := p.store.Read(t.Context(), store.ReadOptions{Types: []string{"A"}, Limit: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range causes {
		if effects[e.ID] != 1 {
			t.Errorf("position %d has %d effects", e.Position, effects[e.ID])
		}
	}
	if n := paused.Status().DeadLetters + active.Status().DeadLetters; n != 0 {
		t.Errorf("%d events are dead letters", n)
	}
}
