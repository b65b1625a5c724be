// Package postgres keeps the deadlines of the timeout-monitor: one row for each
// job and worker that is not at its end, made from the events alone, so that it can
// be dropped and rebuilt at any time.
package postgres

import (
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"hodei.dev/services/timeout-monitor/core"
	"hodei.dev/services/timeout-monitor/internal/app"
)

//go:embed migrations/*.sql
var files embed.FS

// Schema is the monitor's part of the database.
const Schema = "timeout_monitor"

// Migrations returns the monitor's migrations.
func Migrations() fs.FS {
	sub, err := fs.Sub(files, "migrations")
	if err != nil {
		panic(err) // the directory is embedded: a build without it does not exist
	}
	return sub
}

// Deadlines implements app.Deadlines. It is safe for concurrent use.
type Deadlines struct{ pool *pgxpool.Pool }

// NewDeadlines returns the deadlines in a database.
func NewDeadlines(pool *pgxpool.Pool) *Deadlines { return &Deadlines{pool: pool} }

// Upcoming implements app.Deadlines.
func (d *Deadlines) Upcoming(ctx context.Context, through time.Time, limit int) ([]core.Entry, error) {
	rows, err := d.pool.Query(ctx, `SELECT stream_type, stream_id::text, version, due_at, holds FROM timeout_monitor.deadlines
		WHERE due_at <= $1 ORDER BY due_at, stream_id LIMIT $2`, through, limit)
	if err != nil {
		return nil, fmt.Errorf("read the upcoming deadlines: %w", err)
	}
	entries, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e core.Entry, err error) {
		err = row.Scan(&e.Type, &e.ID, &e.Version, &e.Due, &e.Tries)
		return e, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the upcoming deadlines: %w", err)
	}
	return entries, nil
}

// Connected implements app.Deadlines.
func (d *Deadlines) Connected(ctx context.Context) ([]string, error) {
	rows, err := d.pool.Query(ctx, `SELECT stream_id::text FROM timeout_monitor.deadlines
		WHERE stream_type = 'worker' AND state IN ('READY', 'BUSY', 'DRAINING')`)
	if err != nil {
		return nil, fmt.Errorf("read the connected workers: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read the connected workers: %w", err)
	}
	return ids, nil
}

// Correct implements app.Deadlines.
func (d *Deadlines) Correct(ctx context.Context, r app.Row) error {
	watch, err := json.Marshal(r.Watch)
	if err != nil {
		return fmt.Errorf("encode the watch of %s %s: %w", r.Type, r.ID, err)
	}
	kind, threshold, due := armed(r)
	_, err = d.pool.Exec(ctx, `UPDATE timeout_monitor.deadlines SET version = $2, state = $3, attempt = $4, provider_id = $5,
		kind = $6, threshold = $7, due_at = $8, cause = $9, holds = 0, watch = $10 WHERE stream_id = $1 AND version <= $2`,
		r.ID, r.Watch.Version, r.Watch.State, r.Watch.Attempt, r.Watch.ProviderID, kind, threshold, due, r.Deadline.Cause, watch)
	if err != nil {
		return fmt.Errorf("correct the deadline of %s %s: %w", r.Type, r.ID, err)
	}
	return nil
}

// armed are the columns of a deadline: null where there is none.
func armed(r app.Row) (kind string, threshold *time.Duration, due *time.Time) {
	if !r.Armed {
		return "", nil, nil
	}
	return string(r.Deadline.Kind), &r.Deadline.Threshold, &r.Deadline.Due
}

// Hold implements app.Deadlines.
func (d *Deadlines) Hold(ctx context.Context, id string, version int, due time.Time, times int) error {
	_, err := d.pool.Exec(ctx, `UPDATE timeout_monitor.deadlines SET due_at = $3, holds = $4 WHERE stream_id = $1 AND version <= $2`,
		id, version, due, times)
	if err != nil {
		return fmt.Errorf("hold the deadline of %s: %w", id, err)
	}
	return nil
}

// Idle implements app.Deadlines.
func (d *Deadlines) Idle(ctx context.Context, providerID string, except []string) (int, error) {
	var n int
	err := d.pool.QueryRow(ctx, `SELECT count(*) FROM timeout_monitor.deadlines
		WHERE provider_id = $1 AND state = 'READY' AND stream_id <> ALL($2::uuid[])`, providerID, except).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count the idle workers of provider %s: %w", providerID, err)
	}
	return n, nil
}

// Armed counts the stored deadlines and returns the earliest; zero where there is none.
func (d *Deadlines) Armed(ctx context.Context) (n int64, next time.Time, err error) {
	var first *time.Time
	err = d.pool.QueryRow(ctx, `SELECT count(*), min(due_at) FROM timeout_monitor.deadlines WHERE due_at IS NOT NULL`).Scan(&n, &first)
	if err != nil {
		return 0, next, fmt.Errorf("count the deadlines: %w", err)
	}
	if first != nil {
		next = *first
	}
	return n, next, nil
}

// Ahead returns how far the database's clock, by which events are dated, is ahead
// of the clock that now reads.
func (d *Deadlines) Ahead(ctx context.Context, now func() time.Time) (time.Duration, error) {
	var there time.Time
	if err := d.pool.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&there); err != nil {
		return 0, fmt.Errorf("ask the database for the time: %w", err)
	}
	// Measured from the answer's arrival, so that the guess is rather behind: what
	// fires a moment late is late, what fires early is wrong.
	return there.Sub(now()), nil
}
