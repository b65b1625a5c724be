package postgres_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/migrations"
	"hodei.dev/libs/eventing/projection"
	"hodei.dev/services/registry/core"
	"hodei.dev/services/registry/internal/logs"
	"hodei.dev/services/registry/internal/postgres"
)

func TestMain(m *testing.M) { os.Exit(eventingtest.Main(m)) }

func database(t *testing.T) *pgxpool.Pool {
	t.Helper()
	url := eventingtest.Postgres(t)
	if err := migrations.Up(t.Context(), url, postgres.Schema, postgres.Migrations()); err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// TestRetention lives through forty days: each day's output is stored, the days
// to come are made ahead, and what is older than the retention goes by whole days.
func TestRetention(t *testing.T) {
	pool := database(t)
	now := time.Date(2031, 3, 1, 12, 0, 0, 0, time.UTC)
	chunks := postgres.NewChunks(pool, func() time.Time { return now })
	ids := map[int]logs.Attempt{}
	for day := range 40 {
		a := logs.Attempt{JobID: event.NewID(), Number: 1, Since: now}
		ids[day] = a
		batch := logs.Batch{JobID: a.JobID, Attempt: 1, Chunks: []logs.Chunk{{Seq: 1, Stream: logs.Stdout, At: now, Data: fmt.Appendf(nil, "day %d", day)}}}
		// The first insert of a day that nobody prepared makes it.
		if err := chunks.Insert(t.Context(), []logs.Batch{batch, batch}); err != nil {
			t.Fatalf("day %d: %v", day, err)
		}
		now = now.AddDate(0, 0, 1)
	}
	if err := chunks.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	dropped, err := chunks.Drop(t.Context(), now.AddDate(0, 0, -30))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(dropped, "log_chunks_20310310") || slices.Contains(dropped, "log_chunks_20310311") {
		t.Fatalf("dropped %v", dropped)
	}
	for day, a := range ids {
		s, err := chunks.Stat(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		if kept := s.LastSeq == 1 && s.Bytes == int64(len(fmt.Sprintf("day %d", day))); kept != (day >= 10) {
			t.Errorf("day %d: %+v", day, s)
		}
	}
	if again, err := chunks.Drop(t.Context(), now.AddDate(0, 0, -30)); err != nil || len(again) != 0 {
		t.Fatalf("%v %v", again, err)
	}
	if size, err := chunks.Size(t.Context()); err != nil || size <= 0 {
		t.Fatalf("%d %v", size, err)
	}
}

// TestMigrationHasWhatProjectionsNeed compares the tables with those that the
// library describes.
func TestMigrationHasWhatProjectionsNeed(t *testing.T) {
	pool := database(t)
	if _, err := pool.Exec(t.Context(), `CREATE SCHEMA other; `+projection.DDL("other")); err != nil {
		t.Fatal(err)
	}
	columns := func(schema string) []string {
		t.Helper()
		rows, err := pool.Query(t.Context(), `SELECT table_name || '.' || column_name || ' ' || data_type || ' ' || is_nullable || ' ' || coalesce(column_default, '')
			FROM information_schema.columns WHERE table_schema = $1 AND table_name IN ('positions', 'parked') ORDER BY 1`, schema)
		if err != nil {
			t.Fatal(err)
		}
		out, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if got, want := columns("registry"), columns("other"); !slices.Equal(got, want) || len(got) == 0 {
		t.Fatalf("%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestConnections: a session is one agent process, which counts its connections.
func TestConnections(t *testing.T) {
	c := postgres.NewCredentials(database(t))
	id := event.NewID()
	begin := func(token, nonce string) []byte {
		t.Helper()
		secret := core.HashSecret(token + nonce)
		if err := c.UseToken(t.Context(), id, core.HashSecret(token), nonce, secret); err != nil {
			t.Fatal(err)
		}
		return secret
	}
	issue := func(token string) {
		t.Helper()
		if err := c.PutToken(t.Context(), id, core.Token{Hash: core.HashSecret(token), ExpiresAt: time.Now().Add(time.Hour)}); err != nil {
			t.Fatal(err)
		}
	}
	issue("t1")
	first := begin("t1", "n1")
	open := func(secret []byte, connection, epoch int64, kind error) {
		t.Helper()
		_, got, err := c.OpenSession(t.Context(), secret, connection, "r")
		if got != epoch || !errors.Is(err, kind) {
			t.Fatalf("connection %d: epoch %d, %v; want %d, %v", connection, got, err, epoch, kind)
		}
	}
	open(first, 0, 1, nil) // does not count, so far
	open(first, 2, 2, nil)
	open(first, 1, 0, fault.Precondition)
	open(first, 2, 0, fault.Precondition)
	open(first, 0, 0, fault.Precondition)
	begin("t1", "n1") // the answer was lost: the same session
	open(first, 2, 0, fault.Precondition)
	open(first, 3, 3, nil)
	issue("t2")
	second := begin("t2", "n2") // another process, which counts from 1; epochs go on
	open(first, 4, 0, fault.Denied)
	open(second, 1, 4, nil)
}

func TestBeats(t *testing.T) {
	pool := database(t)
	c := postgres.NewCredentials(pool)
	id, going := event.NewID(), event.NewID()
	for _, w := range []string{id, going} {
		secret := core.HashSecret("s" + w)
		if err := c.PutToken(t.Context(), w, core.Token{Hash: core.HashSecret(w), ExpiresAt: time.Now().Add(time.Hour)}); err != nil {
			t.Fatal(err)
		}
		if err := c.UseToken(t.Context(), w, core.HashSecret(w), "n", secret); err != nil {
			t.Fatal(err)
		}
		if err := c.UseToken(t.Context(), w, core.HashSecret(w), "m", secret); !errors.Is(err, fault.Conflict) {
			t.Fatalf("used twice: %v", err)
		}
		for want := range int64(2) {
			if got, epoch, err := c.OpenSession(t.Context(), secret, want+1, "r"); err != nil || got != w || epoch != want+1 {
				t.Fatalf("%s %d %v", got, epoch, err)
			}
		}
	}
	if _, err := pool.Exec(t.Context(), `INSERT INTO registry.workers VALUES ($1, 1, 'TERMINATING', '', '', now(), '{}')`, going); err != nil {
		t.Fatal(err)
	}
	now := time.Now().Add(time.Minute).UTC().Truncate(time.Microsecond)
	fine, old := postgres.Beat{WorkerID: id, Epoch: 2, At: now}, postgres.Beat{WorkerID: id, Epoch: 1, At: now.Add(time.Hour)}
	leaving, never := postgres.Beat{WorkerID: going, Epoch: 2, At: now}, postgres.Beat{WorkerID: event.NewID(), Epoch: 1, At: now}
	odd, err := c.SaveBeats(t.Context(), []postgres.Beat{old, fine, leaving, never})
	if err != nil {
		t.Fatal(err)
	}
	want := map[postgres.Beat]postgres.Beaten{old: {Superseded: true}, never: {Superseded: true}, leaving: {Going: true}}
	if !maps.Equal(odd, want) {
		t.Fatalf("%+v, want %+v", odd, want)
	}
	seen, err := c.LastHeartbeats(t.Context(), []string{id, going})
	if err != nil || !seen[id].Equal(now) {
		t.Fatalf("%v %v", seen, err)
	}
	if err := c.Retire(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if _, epoch, err := c.OpenSession(t.Context(), core.HashSecret("s"+id), 3, "r"); err != nil || epoch != 3 {
		t.Fatalf("a retired session: epoch %d, %v", epoch, err)
	}
	if token, err := c.Token(t.Context(), id); err != nil || token.Hash != nil {
		t.Fatalf("a retired worker's token: %+v, %v", token, err)
	}
	if _, err := pool.Exec(t.Context(), `UPDATE registry.sessions SET retired_at = now() - interval '25 hours' WHERE worker_id = $1`, id); err != nil {
		t.Fatal(err)
	}
	if err := c.Retire(t.Context(), going); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Authenticate(t.Context(), core.HashSecret("s"+id)); !errors.Is(err, fault.Denied) {
		t.Fatalf("retired for longer than a day: %v", err)
	}
	if err := c.Forget(t.Context(), going); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Authenticate(t.Context(), core.HashSecret("s"+going)); !errors.Is(err, fault.Denied) {
		t.Fatalf("forgotten: %v", err)
	}
}
