package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Stuck is a job or a worker that nothing will move on.
type Stuck struct {
	// Aggregate is "job/<id>" or "worker/<id>".
	Aggregate, State string
	// Overdue is by how long its deadline has passed; 0 where it has none.
	Overdue time.Duration
}

// Overdue returns the jobs and workers whose deadline has passed by more than a
// margin, the longest first, at most limit, and how many there are. Those that can
// only be waited for (the deadline was held) are dated anew, and so are not here.
func (d *Deadlines) Overdue(ctx context.Context, margin time.Duration, limit int) ([]Stuck, int64, error) {
	return d.stuck(ctx, `SELECT count(*) OVER (), stream_type || '/' || stream_id, state, clock_timestamp() - due_at
		FROM timeout_monitor.deadlines WHERE due_at < clock_timestamp() - $1::interval ORDER BY due_at LIMIT $2`, margin, limit)
}

// Unwatched returns the jobs and workers that are not at their end and have no row
// of a deadline although their events are projected, at most limit, and how many
// there are: nobody would notice if they stayed as they are for ever.
func (d *Deadlines) Unwatched(ctx context.Context, limit int) ([]Stuck, int64, error) {
	return d.stuck(ctx, `SELECT count(*) OVER (), s.stream_type || '/' || s.stream_id, s.state, interval '0'
		FROM hodei.streams AS s
		WHERE NOT s.terminal AND s.stream_type IN ('job', 'worker')
		  AND NOT EXISTS (SELECT FROM timeout_monitor.deadlines AS d WHERE d.stream_id = s.stream_id)
		  AND NOT EXISTS (SELECT FROM hodei.events AS e WHERE e.stream_id = s.stream_id
			AND e.position > (SELECT coalesce(max(position), 0) FROM timeout_monitor.positions))
		ORDER BY s.stream_id LIMIT $1`, limit)
}

func (d *Deadlines) stuck(ctx context.Context, sql string, args ...any) (found []Stuck, total int64, err error) {
	rows, err := d.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, 0, fmt.Errorf("look for what is stuck: %w", err)
	}
	found, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (s Stuck, err error) {
		err = row.Scan(&total, &s.Aggregate, &s.State, &s.Overdue)
		return s, err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("look for what is stuck: %w", err)
	}
	return found, total, nil
}
