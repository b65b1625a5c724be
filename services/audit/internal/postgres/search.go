package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/services/audit/internal/app"
)

// queryTimeout ends a search or count that would take too long; it is said as such.
const queryTimeout = 20 * time.Second

// queryCanceled is Postgres's code for a statement that ran into its timeout.
const queryCanceled = "57014"

// Log reads the audit log. Safe for concurrent use.
type Log struct{ pool *pgxpool.Pool }

// NewLog returns a reader of a database.
func NewLog(pool *pgxpool.Pool) *Log { return &Log{pool: pool} }

const selectSQL = `SELECT position, event_id::text, correlation_id, causation_id, type, version, actor, stream_type, stream_id::text,
	stream_version, namespace, source, occurred_at, data FROM audit.log`

func scan(row pgx.CollectableRow) (event.Event, error) {
	var e event.Event
	err := row.Scan(&e.Position, &e.ID, &e.CorrelationID, &e.CausationID, &e.Type, &e.Version, &e.Actor, &e.Stream.Type, &e.Stream.ID,
		&e.StreamVersion, &e.Namespace, &e.Source, &e.Time, (*[]byte)(&e.Data))
	e.Time = e.Time.UTC()
	return e, err
}

// Search implements app.Log. Pages follow each other by position, so events that
// come meanwhile move nothing.
func (l *Log) Search(ctx context.Context, f app.Filter, p app.Page) (events []event.Event, more bool, err error) {
	var q query
	order := " DESC"
	if p.Ascending {
		order = ""
	}
	switch {
	case p.After > 0 && p.Ascending:
		q.add("position > ?::bigint", p.After)
	case p.After > 0:
		q.add("position < ?::bigint", p.After)
	}
	err = l.read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if err := q.build(ctx, tx, f); err != nil {
			return err
		}
		sql := selectSQL + q.where() + fmt.Sprintf(" ORDER BY position%s LIMIT %d", order, p.Limit+1)
		rows, err := tx.Query(ctx, sql, q.planned()...)
		if err != nil {
			return err
		}
		events, err = pgx.CollectRows(rows, scan)
		return err
	})
	if err != nil {
		return nil, false, fmt.Errorf("search the audit log: %w", err)
	}
	if len(events) > p.Limit {
		return events[:p.Limit], true, nil
	}
	return events, false, nil
}

// Count implements app.Log. Where only types are asked for it reads counters.
func (l *Log) Count(ctx context.Context, f app.Filter) (map[string]int64, error) {
	counts := map[string]int64{}
	err := l.read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		var q query
		sql := `SELECT type, events FROM audit.counts`
		if err := q.build(ctx, tx, f); err != nil {
			return err
		}
		group := ""
		if !f.OnlyTypes() {
			sql, group = `SELECT type, count(*) FROM audit.log`, ` GROUP BY type`
		}
		rows, err := tx.Query(ctx, sql+q.where()+group, q.planned()...)
		if err != nil {
			return err
		}
		var eventType string
		var n int64
		_, err = pgx.ForEachRow(rows, []any{&eventType, &n}, func() error {
			counts[eventType] = n
			return nil
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("count the audit log: %w", err)
	}
	return counts, nil
}

// HasType implements app.Log.
func (l *Log) HasType(ctx context.Context, eventType string) (bool, error) {
	var has bool
	err := l.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM audit.counts WHERE type = $1)`, eventType).Scan(&has)
	if err != nil {
		return false, fmt.Errorf("look for event type %s: %w", eventType, err)
	}
	return has, nil
}

// Last is the position of the last event, which is also how many there are.
func (l *Log) Last(ctx context.Context) (int64, error) {
	var last int64
	if err := l.pool.QueryRow(ctx, `SELECT coalesce(max(position), 0) FROM audit.log`).Scan(&last); err != nil {
		return 0, fmt.Errorf("read the end of the audit log: %w", err)
	}
	return last, nil
}

// read runs fn in a read-only transaction that ends in time.
func (l *Log) read(ctx context.Context, fn func(ctx context.Context, tx pgx.Tx) error) error {
	err := pgx.BeginTxFunc(ctx, l.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL statement_timeout = %d", queryTimeout.Milliseconds())); err != nil {
			return err
		}
		return fn(ctx, tx)
	})
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == queryCanceled && ctx.Err() == nil {
		return fault.Wrap(fault.Exhausted, err, "it took longer than %s", queryTimeout).
			WithCode("QUERY_TOO_LARGE", "narrow it: an aggregate, a correlation id, or a time range")
	}
	return err
}

// query collects conditions and their arguments.
type query struct {
	conditions []string
	args       []any
}

func (q *query) add(condition string, args ...any) {
	for _, a := range args {
		q.args = append(q.args, a)
		condition = strings.Replace(condition, "?", fmt.Sprintf("$%d", len(q.args)), 1)
	}
	q.conditions = append(q.conditions, condition)
}

func (q *query) where() string {
	if len(q.conditions) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(q.conditions, " AND ")
}

// planned are the arguments of a query that is planned with their values: the
// best index depends on them.
func (q *query) planned() []any { return append([]any{pgx.QueryExecModeCacheDescribe}, q.args...) }

func (q *query) build(ctx context.Context, tx pgx.Tx, f app.Filter) error {
	if f.CorrelationID != "" {
		q.add("correlation_id = ?::text", f.CorrelationID)
	}
	if len(f.Types) > 0 {
		q.add("type = ANY(?::text[])", f.Types)
	}
	if f.Actor != "" {
		q.add("actor = ?::text", f.Actor)
	}
	if f.Stream.Type != "" {
		q.add("stream_type = ?::text", f.Stream.Type)
	}
	if f.Stream.ID != "" {
		q.add("stream_id = ?::uuid", f.Stream.ID)
	}
	if f.Namespace != "" {
		q.add("namespace = ?::text", f.Namespace)
	}
	return q.times(ctx, tx, f)
}

// times adds the range of time, and the range of positions that it can be in:
// without it a page of long ago would read everything since.
func (q *query) times(ctx context.Context, tx pgx.Tx, f app.Filter) error {
	if !f.Since.IsZero() {
		var first *int64
		if err := tx.QueryRow(ctx, `SELECT min(span) FROM audit.spans WHERE latest >= $1`, f.Since).Scan(&first); err != nil {
			return err
		}
		if first == nil {
			q.add("false")
			return nil
		}
		q.add("occurred_at >= ?::timestamptz AND position >= ?::bigint", f.Since, *first*spanSize)
	}
	if !f.Until.IsZero() {
		var last *int64
		if err := tx.QueryRow(ctx, `SELECT max(span) FROM audit.spans WHERE earliest < $1`, f.Until).Scan(&last); err != nil {
			return err
		}
		if last == nil {
			q.add("false")
			return nil
		}
		q.add("occurred_at < ?::timestamptz AND position < ?::bigint", f.Until, (*last+1)*spanSize)
	}
	return nil
}
