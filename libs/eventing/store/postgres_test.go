package store_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/eventing/store/storetest"
)

func execute(tb testing.TB, s *store.Store, sql string) {
	tb.Helper()
	if _, err := s.Pool().Exec(tb.Context(), sql); err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}
}

// contiguous checks the whole log: no gap in positions, none in any stream, no
// event twice, streams that say what their events say.
func contiguous(tb testing.TB, s *store.Store, events int64) {
	tb.Helper()
	var count, head, ids, wrong int64
	err := s.Pool().QueryRow(tb.Context(), `SELECT count(*), coalesce(max(position), 0), count(DISTINCT event_id),
		(SELECT count(*) FROM hodei.streams AS s WHERE version <> (SELECT count(*) FROM hodei.events AS e WHERE e.stream_id = s.stream_id)
		    OR version <> (SELECT max(version) FROM hodei.events AS e WHERE e.stream_id = s.stream_id)) FROM hodei.events`).
		Scan(&count, &head, &ids, &wrong)
	if err != nil {
		tb.Fatal(err)
	}
	if count != events || head != events || ids != events || wrong != 0 {
		tb.Errorf("%d events, head %d, %d ids, %d streams that differ from their events; want %d events", count, head, ids, wrong, events)
	}
}

// Postgres refuses one of many appends for a reason of its own: it fails alone.
func TestOneBadAppendFailsAlone(t *testing.T) {
	t.Parallel()
	s := eventingtest.MigratedStore(t)
	execute(t, s, "ALTER TABLE hodei.keys ADD CHECK (kind <> 'poison')")
	const n = 100
	var all sync.WaitGroup
	for i := range n {
		stream := storetest.NewStream("job")
		a := storetest.One(storetest.NewChange(t, stream, 0, 1))
		bad := i%10 == 3
		if bad {
			a.Keys = []store.Key{{Namespace: "default", Kind: "poison", Value: fmt.Sprint(i), Stream: stream}}
		}
		all.Go(func() {
			if _, err := s.Append(t.Context(), a); bad != errors.Is(err, fault.Invalid) || !bad && err != nil {
				t.Errorf("append %d: %v", i, err)
			}
		})
	}
	all.Wait()
	contiguous(t, s, n-n/10)
}

// The committers' sessions are ended again and again, at whatever they do: no
// caller gets an error, nothing is lost, nothing happens twice.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	url := eventingtest.MigratedPostgres(t)
	var told, commits atomic.Int64
	strike := make(chan struct{}, 1)
	committed := func(int64) {
		if commits.Add(1)%8 == 0 {
			select {
			case strike <- struct{}{}:
			default:
			}
		}
	}
	a := open(t, store.Config{URL: url, Name: "victim", OnCommit: func(p int64) {
		if p <= told.Swap(p) {
			t.Errorf("told of %d twice", p)
		}
		committed(p)
	}})
	b := open(t, store.Config{URL: url, Name: "victim", OnCommit: committed})
	killing, stop := context.WithCancel(t.Context())
	var killer sync.WaitGroup
	kills := 0
	killer.Go(func() { kills = kill(killing, t, url, strike) })
	const writers, appends = 16, 100
	var all sync.WaitGroup
	for w := range writers {
		stream := storetest.NewStream("job")
		all.Go(func() {
			for v := range appends {
				events, err := []*store.Store{a, b}[w%2].Append(t.Context(), storetest.One(storetest.NewChange(t, stream, v, 1)))
				if err != nil {
					t.Errorf("version %d: %v", v, err)
					return
				}
				if events[0].StreamVersion != v+1 {
					t.Errorf("version %d, want %d", events[0].StreamVersion, v+1)
				}
			}
		})
	}
	all.Wait()
	stop()
	killer.Wait()
	if kills < 10 {
		t.Errorf("only %d sessions were ended", kills)
	}
	t.Logf("%d sessions were ended", kills)
	contiguous(t, a, writers*appends)
}

// kill ends, each time it is told to, the sessions named "victim" that it meets
// at work, and returns how many.
func kill(ctx context.Context, t *testing.T, url string, strike <-chan struct{}) (kills int) {
	t.Helper()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Error(err)
		return 0
	}
	defer func() { _ = conn.Close(context.Background()) }()
	for ctx.Err() == nil {
		select {
		case <-strike:
		case <-ctx.Done():
		}
		for n := 0; n == 0 && ctx.Err() == nil; kills += n {
			err := conn.QueryRow(ctx, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
				WHERE application_name = 'victim' AND datname = current_database() AND state = 'active'`).Scan(&n)
			if err != nil && ctx.Err() == nil {
				t.Error(err)
				return kills
			}
		}
	}
	return kills
}

func TestPostgresRestarts(t *testing.T) {
	t.Parallel()
	server := eventingtest.PostgresServer(t)
	url := server.URL("postgres")
	if err := store.Migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	s := open(t, store.Config{URL: url})
	const writers = 8
	writing, stop := context.WithCancel(t.Context())
	var total atomic.Int64
	var all, begun sync.WaitGroup
	begun.Add(writers)
	again := make(chan struct{}, writers)
	var restarted atomic.Bool
	for range writers {
		stream := storetest.NewStream("job")
		all.Go(func() {
			for v, told := 0, false; writing.Err() == nil; v++ {
				if _, err := s.Append(t.Context(), storetest.One(storetest.NewChange(t, stream, v, 1))); err != nil {
					t.Error(err)
					begun.Done()
					return
				}
				total.Add(1)
				if v == 0 {
					begun.Done()
				}
				if restarted.Load() && !told {
					told = true
					again <- struct{}{}
				}
			}
		})
	}
	begun.Wait()
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	restarted.Store(true)
	for range writers {
		select {
		case <-again:
		case <-time.After(20 * time.Second):
			t.Fatal("appends did not go on after the restart")
		}
	}
	stop()
	all.Wait()
	if _, err := s.Head(t.Context()); err != nil {
		t.Errorf("a read after the restart: %v", err)
	}
	contiguous(t, s, total.Load())
}

// While Postgres is away an append waits for as long as its caller, then says so;
// nothing of it happens afterwards unless it is repeated.
func TestPostgresAway(t *testing.T) {
	t.Parallel()
	server := eventingtest.PostgresServer(t)
	url := server.URL("postgres")
	if err := store.Migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	s := open(t, store.Config{URL: url})
	stream := storetest.NewStream("job")
	if _, err := s.Append(t.Context(), storetest.One(storetest.NewChange(t, stream, 0, 1))); err != nil {
		t.Fatal(err)
	}
	if err := server.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := storetest.One(storetest.NewChange(t, stream, 1, 1))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := s.Append(ctx, second)
	if !errors.Is(err, fault.Unavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("append: got %v, want unavailable", err)
	}
	if _, err := s.Head(t.Context()); !errors.Is(err, fault.Unavailable) {
		t.Errorf("head: got %v, want unavailable", err)
	}
	if _, err := store.Open(t.Context(), store.Config{URL: url}); !errors.Is(err, fault.Unavailable) {
		t.Errorf("open: got %v, want unavailable", err)
	}
}

// Appends must not wait for a reader, however long it takes.
func TestOpenSnapshotHoldsUpNobody(t *testing.T) {
	t.Parallel()
	s := eventingtest.MigratedStore(t)
	stream := storetest.NewStream("job")
	if _, err := s.Append(t.Context(), storetest.One(storetest.NewChange(t, stream, 0, 1))); err != nil {
		t.Fatal(err)
	}
	head, err := s.Snapshot(t.Context(), store.SnapshotOptions{}, func(event.Event) error {
		_, err := s.Append(t.Context(), storetest.One(storetest.NewChange(t, stream, 1, 1)))
		return err
	})
	if err != nil || head != 1 {
		t.Errorf("head %d, %v", head, err)
	}
}
