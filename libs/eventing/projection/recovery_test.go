package projection_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/deadletter"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/pgserver"
	"hodei.dev/libs/eventing/projection"
	"hodei.dev/libs/eventing/store"
)

// probe is how soon subscribers ask the log whether they have missed anything. Events that take twice
// as long to come, on a machine that is busy, are an incident to them.
const probe = 400 * time.Millisecond

// subscriber is one of the ways to follow the log: it writes down what it was
// given, in order, and which incidents it had.
type subscriber struct {
	name  string
	types []string
	got   func() []int64

	mu        sync.Mutex // guards the following
	incidents []consumer.Incident
	gate      chan struct{} // handling waits for it; nil = open
	held      int           // how often it has waited
}

func (s *subscriber) incident(i consumer.Incident) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.incidents = append(s.incidents, i)
}

func (s *subscriber) had() []consumer.Incident {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.incidents)
}

// pass waits at the gate; meanwhile it calls alive now and then.
func (s *subscriber) pass(ctx context.Context, alive func() error) error {
	s.mu.Lock()
	gate := s.gate
	if gate != nil {
		s.held++
	}
	s.mu.Unlock()
	if gate == nil {
		return nil
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-gate:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			if err := alive(); err != nil {
				return err
			}
		}
	}
}

// hold closes the gates of all; the returned function opens them.
func hold(subs []*subscriber) (release func()) {
	gate := make(chan struct{})
	for _, s := range subs {
		s.mu.Lock()
		s.gate = gate
		s.mu.Unlock()
	}
	return func() {
		close(gate)
		for _, s := range subs {
			s.mu.Lock()
			s.gate = nil
			s.mu.Unlock()
		}
	}
}

// subscribers are a projection of everything, one with a filter, and a plain
// consumer with filters.
func (p *pipeline) subscribers() []*subscriber {
	p.tb.Helper()
	return []*subscriber{p.project("ledger"), p.project("board", "A"), p.react("reactions", "A", "C")}
}

func (p *pipeline) project(name string, types ...string) *subscriber {
	p.tb.Helper()
	s := &subscriber{name: name, types: types}
	rows := p.service(name, types...)
	s.got = func() []int64 { return rows.seen(p.tb) }
	pr, err := projection.New(projection.Config{
		Service: name, Schema: name, Types: types, Pool: rows.pool, Store: p.store, NC: p.nc, JS: p.js, Log: p.log,
		ProbeInterval: probe, Gather: -1, Incident: s.incident, IncidentAfter: time.Nanosecond,
		Apply: func(ctx context.Context, tx pgx.Tx, events []event.Event) error {
			// A transaction that is idle for a second is ended.
			if err := s.pass(ctx, func() error { _, err := tx.Exec(ctx, `select 1`); return err }); err != nil {
				return err
			}
			for _, e := range events {
				if _, err := tx.Exec(ctx, `insert into `+name+`.seen (position, stream, version) values ($1, $2, $3)`, e.Position, e.Stream.String(), e.StreamVersion); err != nil {
					return err
				}
			}
			return nil
		},
		Reset: func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `truncate `+name+`.seen`)
			return err
		},
	})
	if err != nil {
		p.tb.Fatal(err)
	}
	p.background(pr.Run)
	return s
}

func (p *pipeline) react(name string, types ...string) *subscriber {
	p.tb.Helper()
	s := &subscriber{name: name, types: types}
	var mu sync.Mutex
	var got []int64
	done := map[int64]bool{}
	s.got = func() []int64 {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(got)
	}
	c, err := consumer.New(consumer.Config{
		Service: name, Types: types, Store: p.store, NC: p.nc, JS: p.js, Log: p.log, RetryDelay: time.Millisecond,
		ProbeInterval: probe, Incident: s.incident, IncidentAfter: time.Nanosecond,
		Start: func(context.Context) (int64, error) { return 0, nil },
		Handle: func(ctx context.Context, events []event.Event) error {
			if err := s.pass(ctx, func() error { return nil }); err != nil {
				return err
			}
			if _, err := p.store.Head(ctx); err != nil { // an effect needs Postgres
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			for _, e := range events {
				if !done[e.Position] { // idempotent, as a handler must be
					done[e.Position] = true
					got = append(got, e.Position)
				}
			}
			return nil
		},
	})
	if err != nil {
		p.tb.Fatal(err)
	}
	p.background(c.Run)
	return s
}

// newDatabase is one with an empty log, on a server that the test may restart.
func newDatabase(tb testing.TB, pg *pgserver.Server, name string) string {
	tb.Helper()
	admin, err := pgx.Connect(tb.Context(), pg.URL("postgres"))
	if err != nil {
		tb.Fatal(err)
	}
	_, err = admin.Exec(tb.Context(), `create database `+name)
	if err := errors.Join(err, admin.Close(tb.Context())); err != nil {
		tb.Fatal(err)
	}
	return migrated(tb, pg.URL(name))
}

// bulk appends n events, each of a stream of its own, of the types in turn.
func (p *pipeline) bulk(n int, types ...string) {
	p.tb.Helper()
	for done := 0; done < n; {
		var a store.Append
		for ; done < n && len(a.Changes) < 500; done++ {
			stream := event.Stream{Type: "job", ID: uuid.NewString()}
			e, err := event.New(stream, event.Meta{Source: "test", Namespace: "default", CorrelationID: "c", Actor: "service/test"},
				counted{N: done, Type: types[done%len(types)]})
			if err != nil {
				p.tb.Fatal(err)
			}
			a.Changes = append(a.Changes, store.Change{Stream: stream, Namespace: "default", State: "X", Events: []event.Event{e}})
		}
		if _, err := p.store.Append(p.tb.Context(), a); err != nil {
			p.tb.Fatal(err)
		}
	}
}

func (p *pipeline) stream() jetstream.Stream {
	p.tb.Helper()
	s, err := p.js.Stream(p.tb.Context(), bus.EventsStream)
	if err != nil {
		p.tb.Fatal(err)
	}
	return s
}

func (p *pipeline) published(position int64) {
	p.tb.Helper()
	eventingtest.Eventually(p.tb, fmt.Sprintf("position %d in the stream", position), func() bool {
		e, err := bus.LookupEvents(p.tb.Context(), p.js)
		return err == nil && e.Head() >= position
	})
}

// complete waits until everybody has everything: once, and in order.
func (p *pipeline) complete(subs []*subscriber, inOrder bool) {
	p.tb.Helper()
	for _, s := range subs {
		want := p.want(s.types...)
		eventingtest.Eventually(p.tb, fmt.Sprintf("%s to have %d events", s.name, len(want)), func() bool { return len(s.got()) >= len(want) })
		got := s.got()
		if !inOrder {
			slices.Sort(got)
		}
		if !slices.Equal(got, want) {
			p.tb.Fatalf("%s: %d events instead of %d, or not in order: %v", s.name, len(got), len(want), got[:min(30, len(got))])
		}
	}
}

// closedConsumer is the server's code for a consumer that was removed while it was made.
const closedConsumer = 10012

// TestEveryFaultIsRecovered is R3.6: one case for each way to lose a subscription
// or what it should bring. Nothing is skipped, no effect happens twice, and each
// incident is reported once.
func TestEveryFaultIsRecovered(t *testing.T) {
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			t.Fatal(err)
		}
	}
	each := func(p *pipeline, subs []*subscriber, fn func(name string) error) {
		p.tb.Helper()
		for _, s := range subs {
			if err := fn(s.name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
				p.tb.Fatal(err)
			}
		}
	}
	cases := []struct {
		name  string
		fault func(t *testing.T, p *pipeline, subs []*subscriber)
		again bool // events may be gone back for: later ones were handled already
	}{
		{name: "lost connection", fault: func(t *testing.T, p *pipeline, _ []*subscriber) { must(t, p.nc.ForceReconnect()) }},
		{name: "NATS restarted", fault: func(_ *testing.T, p *pipeline, _ []*subscriber) { p.srv.Restart() }},
		{name: "NATS restarted with an empty store", fault: func(_ *testing.T, p *pipeline, _ []*subscriber) { p.srv.Wipe() }},
		{name: "consumer deleted", fault: func(_ *testing.T, p *pipeline, subs []*subscriber) {
			each(p, subs, func(name string) error { return p.js.DeleteConsumer(t.Context(), bus.EventsStream, name) })
		}},
		{name: "consumer paused", fault: func(t *testing.T, p *pipeline, subs []*subscriber) {
			each(p, subs, func(name string) error {
				_, err := p.js.PauseConsumer(t.Context(), bus.EventsStream, name, time.Now().Add(time.Hour))
				return err
			})
		}},
		{name: "consumer replaced by another", fault: func(t *testing.T, p *pipeline, subs []*subscriber) {
			each(p, subs, func(name string) error {
				must(t, p.js.DeleteConsumer(t.Context(), bus.EventsStream, name))
				_, err := p.js.CreateConsumer(t.Context(), bus.EventsStream, jetstream.ConsumerConfig{
					Durable: name, DeliverPolicy: jetstream.DeliverNewPolicy, AckPolicy: jetstream.AckAllPolicy, FilterSubject: bus.EventSubject("*", "*", "B"),
				})
				if api, ok := errors.AsType[*jetstream.APIError](err); ok && api.ErrorCode == closedConsumer {
					return nil // its owner replaced it in the same moment
				}
				if errors.Is(err, jetstream.ErrConsumerExists) || errors.Is(err, jetstream.ErrConsumerNameAlreadyInUse) {
					return nil // its owner was quicker
				}
				return err
			})
		}},
		{name: "consumer's filter changed", again: true, fault: func(t *testing.T, p *pipeline, subs []*subscriber) {
			each(p, subs, func(name string) error {
				cons, err := p.js.Consumer(t.Context(), bus.EventsStream, name)
				if err != nil {
					return err
				}
				cfg := cons.CachedInfo().Config
				cfg.FilterSubject, cfg.FilterSubjects = bus.EventSubject("*", "*", "C"), nil
				_, err = p.js.UpdateConsumer(t.Context(), bus.EventsStream, cfg)
				return err
			})
		}},
		{name: "stream deleted", fault: func(t *testing.T, p *pipeline, _ []*subscriber) {
			must(t, p.js.DeleteStream(t.Context(), bus.EventsStream))
		}},
		{name: "stream made by hand, without a base", fault: func(t *testing.T, p *pipeline, _ []*subscriber) {
			cfg := p.stream().CachedInfo().Config
			must(t, p.js.DeleteStream(t.Context(), bus.EventsStream))
			cfg.Metadata = nil
			_, err := p.js.CreateStream(t.Context(), cfg)
			if !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // the relay was quicker
				must(t, err)
			}
		}},
		{name: "stream made by hand with a base that is too low", fault: func(t *testing.T, p *pipeline, _ []*subscriber) {
			cfg := p.stream().CachedInfo().Config
			must(t, p.js.DeleteStream(t.Context(), bus.EventsStream))
			cfg.Metadata = map[string]string{"base": "7"}
			_, err := p.js.CreateStream(t.Context(), cfg)
			if !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
				must(t, err)
			}
		}},
		{name: "purged before it was seen", fault: behind(func(t *testing.T, p *pipeline) { must(t, p.stream().Purge(t.Context())) })},
		{name: "purged in part before it was seen", fault: behind(func(t *testing.T, p *pipeline) {
			must(t, p.stream().Purge(t.Context(), jetstream.WithPurgeSequence(uint64(p.head()-100))))
		})},
		{name: "interior deletes before they were seen", fault: behind(func(t *testing.T, p *pipeline) {
			for seq := p.head() - 150; seq < p.head()-50; seq += 3 {
				must(t, p.stream().DeleteMsg(t.Context(), uint64(seq)))
			}
		})},
		{name: "expired before it was seen", again: true, fault: behind(func(t *testing.T, p *pipeline) {
			cfg := p.stream().CachedInfo().Config
			age := cfg.MaxAge
			cfg.MaxAge, cfg.Duplicates = 100*time.Millisecond, 100*time.Millisecond
			_, err := p.js.UpdateStream(t.Context(), cfg)
			must(t, err)
			eventingtest.Eventually(t, "everything to expire", func() bool {
				e, err := bus.LookupEvents(t.Context(), p.js)
				return err == nil && e.Messages == 0
			})
			cfg.MaxAge = age
			_, err = p.js.UpdateStream(t.Context(), cfg)
			must(t, err)
		})},
		{name: "Postgres restarted", fault: func(t *testing.T, p *pipeline, subs []*subscriber) {
			release := hold(subs)
			defer release()
			p.bulk(30, "A", "B", "C") // are being handled when it goes
			for _, s := range subs {
				eventingtest.Eventually(t, s.name+" to be at work", func() bool {
					s.mu.Lock()
					defer s.mu.Unlock()
					return s.held > 0
				})
			}
			restarting := make(chan error, 1)
			go func() { restarting <- p.pg.Restart(t.Context()) }()
			for i := 0; len(restarting) == 0; i++ { // traffic that has to wait for it
				must(t, p.append(event.Stream{Type: "job", ID: uuid.NewString()}, []string{"A", "C"}[i%2], i))
			}
			must(t, <-restarting)
		}},
	}
	pg := eventingtest.PostgresServer(t)
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			url := newDatabase(t, pg, fmt.Sprintf("case_%d", i))
			p := newPipeline(t, url)
			p.pg = pg
			subs := p.subscribers()
			p.bulk(300, "A", "B", "C")
			p.complete(subs, true)
			c.fault(t, p, subs)
			p.bulk(300, "A", "B", "C")
			p.complete(subs, !c.again)
			for _, s := range subs {
				if c.name == "Postgres restarted" && s.name == "reactions" {
					continue // whether it met the outage depends on the moment
				}
				eventingtest.Eventually(t, s.name+" to report its incident", func() bool { return len(s.had()) > 0 })
			}
			p.bulk(30, "A", "B", "C")
			p.complete(subs, !c.again)
			for _, s := range subs {
				for _, i := range s.had() {
					t.Logf("%s: %s (%d from the log, %s)", s.name, i.Reason, i.FromLog, i.Ended.Sub(i.Began).Round(time.Millisecond))
				}
				if n := len(s.had()); n > 1 {
					t.Errorf("%s reported %d incidents instead of one", s.name, n)
				}
			}
			if n, err := deadletter.Count(t.Context(), p.js); err != nil || n["ledger"]+n["board"]+n["reactions"] != 0 {
				t.Error("dead letters:", n, err)
			}
		})
	}
}

// behind makes a fault that happens to subscribers that have far more waiting
// than they have fetched.
func behind(fault func(t *testing.T, p *pipeline)) func(*testing.T, *pipeline, []*subscriber) {
	return func(t *testing.T, p *pipeline, subs []*subscriber) {
		release := hold(subs)
		p.bulk(9000, "A", "B", "C")
		p.published(p.head())
		fault(t, p)
		release()
	}
}

// A NATS that lost what it had not synced comes back with an older state: the
// relay brings the tail again, and nobody handles it twice.
func TestALostTailIsBroughtAgain(t *testing.T) {
	p := newPipeline(t, eventingtest.MigratedPostgres(t))
	subs := p.subscribers()
	p.bulk(300, "A", "B", "C")
	p.complete(subs, true)
	p.srv.Stop()
	old := filepath.Join(t.TempDir(), "old")
	if err := os.CopyFS(old, os.DirFS(p.srv.StoreDir())); err != nil {
		t.Fatal(err)
	}
	p.srv.Start()
	p.bulk(200, "A", "B", "C")
	p.complete(subs, true)
	p.srv.Stop()
	if err := os.RemoveAll(p.srv.StoreDir()); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(p.srv.StoreDir(), os.DirFS(old)); err != nil {
		t.Fatal(err)
	}
	p.srv.Start()
	p.bulk(200, "A", "B", "C")
	p.complete(subs, true)
	p.published(p.head())
}

// Under a base that is wrong nothing is handled and good events are no dead
// letters; under a right one everything is handled.
func TestAWrongBaseSkipsNothing(t *testing.T) {
	p := newPipeline(t, eventingtest.MigratedPostgres(t))
	p.bulk(300, "A", "B", "C")
	p.published(300)
	if err := p.stop(); err != nil { // nothing compares them now
		t.Fatal(err)
	}
	cfg := p.stream().CachedInfo().Config
	cfg.Metadata = map[string]string{"base": "-40"}
	if _, err := p.js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	subs := p.subscribers()
	eventingtest.Eventually(t, "the consumers to find the stream", func() bool {
		n, err := p.js.Stream(t.Context(), bus.EventsStream)
		return err == nil && n.CachedInfo().Config.Metadata["base"] == "-40"
	})
	if n, err := deadletter.Count(t.Context(), p.js); err != nil || n["ledger"]+n["board"]+n["reactions"] != 0 {
		t.Fatal("dead letters:", n, err)
	}
	if err := p.js.DeleteStream(t.Context(), bus.EventsStream); err != nil { // what `hodei doctor --new-epoch` does
		t.Fatal(err)
	}
	p.relay()
	p.bulk(100, "A", "B", "C")
	p.complete(subs, true)
}

// The dead-letter stream was lost with NATS's store: it is made again by whoever needs it.
func TestDeadLettersOutliveAnEmptyStore(t *testing.T) {
	p := newPipeline(t, eventingtest.MigratedPostgres(t))
	s := p.service("board", "A")
	bad := errors.New("bad")
	s.fail = func(e event.Event) error {
		if strings.Contains(string(e.Data), `"n":7}`) || strings.Contains(string(e.Data), `"n": 7}`) {
			return consumer.Permanent(bad)
		}
		return nil
	}
	p.background(s.Run)
	p.srv.Wipe()
	p.add(20, streams(20), "A")
	s.reaches(t, p.head())
	if n, err := deadletter.Count(t.Context(), p.js); err != nil || n["board"] != 1 {
		t.Fatal(n, err)
	}
}
