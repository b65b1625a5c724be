package postgres_test

import (
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/migrations"
	"hodei.dev/services/timeout-monitor/internal/postgres"
)

func TestMain(m *testing.M) { os.Exit(eventingtest.Main(m)) }

// What is stuck is found, and what is only under way is not.
func TestStuck(t *testing.T) {
	url := eventingtest.MigratedPostgres(t)
	if err := migrations.Up(t.Context(), url, postgres.Schema, postgres.Migrations()); err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	add := func(sql string, args ...any) {
		t.Helper()
		if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	late, soon, forgotten, fresh, ended := event.NewID(), event.NewID(), event.NewID(), event.NewID(), event.NewID()
	for i, id := range []string{late, soon, forgotten, fresh, ended} {
		add(`insert into hodei.streams (stream_id, stream_type, version, state, terminal, namespace) values ($1, 'job', 1, 'RUNNING', $2, 'default')`, id, id == ended)
		add(`insert into hodei.events (position, event_id, stream_type, stream_id, version, type, schema_version, namespace, correlation_id, causation_id,
			actor, source, occurred_at, traceparent, tracestate, digest, data)
			values ($1, $2, 'job', $3, 1, 'JobCreated', 1, 'default', 'c', '', 'user/ann', 'test', now(), '', '', '', '{}')`, i+1, event.NewID(), id)
	}
	row := `insert into timeout_monitor.deadlines (stream_id, stream_type, version, state, attempt, provider_id, kind, due_at, cause, watch)
		values ($1, 'job', 1, 'RUNNING', 1, '', 'running', now() + $2::interval, '', '{}')`
	add(row, late, -5*time.Minute)
	add(row, soon, time.Minute)
	// Everything but the event of fresh is projected.
	add(`insert into timeout_monitor.positions (name, position) values ('timeout-monitor', 3)`)

	d := postgres.NewDeadlines(pool)
	overdue, n, err := d.Overdue(t.Context(), 30*time.Second, 10)
	if err != nil || n != 1 || overdue[0].Aggregate != "job/"+late || overdue[0].Overdue < 5*time.Minute {
		t.Errorf("overdue %+v (%d), %v", overdue, n, err)
	}
	unwatched, n, err := d.Unwatched(t.Context(), 10)
	if err != nil || n != 1 || unwatched[0].Aggregate != "job/"+forgotten {
		t.Errorf("unwatched %+v (%d), %v; want %s", unwatched, n, err, forgotten)
	}
}
