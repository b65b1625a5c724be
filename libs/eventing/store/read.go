package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/event"
)

const eventColumns = `e.position, e.event_id, e.stream_type, e.stream_id, e.version, e.type, e.schema_version, e.namespace,
	e.correlation_id, e.causation_id, e.actor, e.source, e.occurred_at, e.traceparent, e.tracestate, e.data`

func scanEvent(row pgx.CollectableRow) (event.Event, error) {
	var e event.Event
	err := row.Scan(&e.Position, &e.ID, &e.Stream.Type, &e.Stream.ID, &e.StreamVersion, &e.Type, &e.Version, &e.Namespace,
		&e.CorrelationID, &e.CausationID, &e.Actor, &e.Source, &e.Time, &e.TraceParent, &e.TraceState, (*[]byte)(&e.Data))
	e.Time = e.Time.UTC()
	return e, err
}

// Load returns the events of one stream whose version is above after, in order;
// none where there is no such stream.
func (s *Store) Load(ctx context.Context, stream event.Stream, after int) ([]event.Event, error) {
	id, err := streamID(stream)
	if err != nil {
		return nil, err
	}
	events, err := collect(ctx, s.pool, scanEvent, `SELECT `+eventColumns+` FROM hodei.events AS e
		WHERE e.stream_id = $1 AND e.version > $2 AND e.stream_type = $3 ORDER BY e.version`, id, after, stream.Type)
	if err != nil {
		return nil, readError(ctx, err, "load %s", stream)
	}
	return events, nil
}

// Read returns events by position. Fewer than the limit means that the range's
// end, or the head at the time of the read, was reached.
func (s *Store) Read(ctx context.Context, o ReadOptions) ([]event.Event, error) {
	if o.Limit <= 0 {
		o.Limit = 1000
	}
	query, args := `SELECT `+eventColumns+` FROM hodei.events AS e WHERE e.position > $1`, []any{o.After}
	if o.Through > 0 {
		args = append(args, o.Through)
		query += fmt.Sprintf(" AND e.position <= $%d", len(args))
	}
	if len(o.Types) > 0 {
		args = append(args, o.Types)
		query += fmt.Sprintf(" AND e.type = ANY($%d)", len(args))
	}
	args = append(args, o.Limit)
	query += fmt.Sprintf(" ORDER BY e.position LIMIT $%d", len(args))
	events, err := collect(ctx, s.pool, scanEvent, query, args...)
	if err != nil {
		return nil, readError(ctx, err, "read after position %d", o.After)
	}
	return events, nil
}

// Head returns the position of the last event; 0 where there is none.
func (s *Store) Head(ctx context.Context) (int64, error) {
	head, err := collect(ctx, s.pool, pgx.RowTo[int64], headSQL)
	if err != nil {
		return 0, readError(ctx, err, "read the log's head")
	}
	return head[0], nil
}

const headSQL = "SELECT coalesce(max(position), 0) FROM hodei.events"

// LookupKey returns who holds a key, and whether anybody does.
func (s *Store) LookupKey(ctx context.Context, namespace, kind, value string) (Key, bool, error) {
	held, err := collect(ctx, s.pool, scanKey, `SELECT namespace, kind, value, stream_type, stream_id, digest FROM hodei.keys
		WHERE namespace = $1 AND kind = $2 AND value = $3`, namespace, kind, value)
	if err != nil {
		return Key{}, false, readError(ctx, err, "look up %s %q", kind, value)
	}
	if len(held) == 0 {
		return Key{}, false, nil
	}
	return held[0], true, nil
}

func scanKey(row pgx.CollectableRow) (k Key, err error) {
	err = row.Scan(&k.Namespace, &k.Kind, &k.Value, &k.Stream.Type, &k.Stream.ID, &k.Digest)
	return k, err
}

// FindStreams returns streams of a type whose id begins with a prefix, in order
// of their ids; dashes and case of the prefix do not matter. Limit is the most
// to return, default 2: enough to see that a prefix is not unique.
func (s *Store) FindStreams(ctx context.Context, streamType, idPrefix string, limit int) ([]StreamRow, error) {
	lo, hi, ok := prefixRange(idPrefix)
	if !ok {
		return nil, fault.New(fault.Invalid, "%q cannot begin an id: want up to 32 hexadecimal digits", idPrefix)
	}
	if limit <= 0 {
		limit = 2
	}
	found, err := collect(ctx, s.pool, scanStream, `SELECT stream_type, stream_id, namespace, version, state, terminal FROM hodei.streams
		WHERE stream_id BETWEEN $1 AND $2 AND stream_type = $3 ORDER BY stream_id LIMIT $4`, lo, hi, streamType, limit)
	if err != nil {
		return nil, readError(ctx, err, "find %s %s", streamType, idPrefix)
	}
	return found, nil
}

func scanStream(row pgx.CollectableRow) (r StreamRow, err error) {
	err = row.Scan(&r.Stream.Type, &r.Stream.ID, &r.Namespace, &r.Version, &r.State, &r.Terminal)
	return r, err
}

// prefixRange returns the lowest and the highest id that begin with prefix.
func prefixRange(prefix string) (lo, hi pgtype.UUID, ok bool) {
	digits := strings.ReplaceAll(prefix, "-", "")
	if len(digits) > 32 {
		return lo, hi, false
	}
	low, err := uuid.Parse(digits + strings.Repeat("0", 32-len(digits)))
	if err != nil {
		return lo, hi, false
	}
	high := uuid.MustParse(digits + strings.Repeat("f", 32-len(digits)))
	return pgtype.UUID{Bytes: low, Valid: true}, pgtype.UUID{Bytes: high, Valid: true}, true
}

// Snapshot calls fn with the events of all streams that are not terminal, in
// order of position, and returns the position of the head: all of it as it stood
// at one moment. So a reader that then follows from that position has seen
// everything once. It ends at fn's first error, which it returns as it is.
func (s *Store) Snapshot(ctx context.Context, o SnapshotOptions, fn func(event.Event) error) (position int64, err error) {
	options := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	var fnErr error
	err = pgx.BeginTxFunc(ctx, s.pool, options, func(tx pgx.Tx) error {
		// What is sent but not yet handled by fn counts as idle.
		if _, err := tx.Exec(ctx, "SET LOCAL idle_in_transaction_session_timeout = '5min'"); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, headSQL).Scan(&position); err != nil {
			return err
		}
		query, args := `SELECT `+eventColumns+` FROM hodei.streams AS s JOIN hodei.events AS e USING (stream_id)
			WHERE NOT s.terminal`, []any{}
		if len(o.StreamTypes) > 0 {
			args = append(args, o.StreamTypes)
			query += fmt.Sprintf(" AND s.stream_type = ANY($%d)", len(args))
		}
		if len(o.EventTypes) > 0 {
			args = append(args, o.EventTypes)
			query += fmt.Sprintf(" AND e.type = ANY($%d)", len(args))
		}
		rows, err := tx.Query(ctx, query+" ORDER BY e.position", args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			e, err := scanEvent(rows)
			if err != nil {
				return err
			}
			if fnErr = fn(e); fnErr != nil {
				return fnErr
			}
		}
		return rows.Err()
	})
	if fnErr != nil {
		return 0, fnErr
	}
	if err != nil {
		return 0, readError(ctx, err, "read a snapshot")
	}
	return position, nil
}

func streamID(stream event.Stream) (pgtype.UUID, error) {
	id, ok := parseID(stream.ID)
	if !ok {
		return id, fault.New(fault.Invalid, "%q is not the id of a %s: want a UUID", stream.ID, stream.Type)
	}
	return id, nil
}

// parseID accepts the 36-character form only.
func parseID(text string) (pgtype.UUID, bool) {
	if len(text) != 36 {
		return pgtype.UUID{}, false
	}
	id, err := uuid.Parse(text)
	return pgtype.UUID{Bytes: id, Valid: err == nil}, err == nil
}

// collect reads all rows of a query. After a restart of Postgres the pool is full
// of dead connections: it is emptied, and the query, which changes nothing, is
// asked once more.
func collect[T any](ctx context.Context, pool *pgxpool.Pool, scan pgx.RowToFunc[T], query string, args ...any) ([]T, error) {
	ask := func() ([]T, error) {
		rows, err := pool.Query(ctx, query, args...)
		if err != nil {
			return nil, err
		}
		return pgx.CollectRows(rows, scan)
	}
	found, err := ask()
	if err != nil && ctx.Err() == nil && classify(err) == failedUnknown {
		pool.Reset()
		found, err = ask()
	}
	return found, err
}

// readError says what was done, and that Postgres is away where it is.
func readError(ctx context.Context, err error, format string, args ...any) error {
	doing := fmt.Sprintf(format, args...)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", doing, err)
	case classify(err) == failedTransient, classify(err) == failedUnknown:
		return unavailable(err, doing)
	default:
		return fmt.Errorf("%s: %w", doing, err)
	}
}
