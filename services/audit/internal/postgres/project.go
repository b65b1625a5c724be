package postgres

import (
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/event"
)

const (
	// spanSize is how many positions a row of audit.spans stands for.
	spanSize = 4096
	// partitionSize is how many positions a partition holds; the migration says the same.
	partitionSize = 10_000_000
)

// GapError says that the next event is not the one after the last: something was
// left out or came twice. It is a fault.Conflict: nothing of the batch is stored,
// and the consumer has to start over from what is. It is never skipped.
type GapError struct {
	// Last is the last position that the audit log has, Next the one that came.
	Last, Next int64
}

// Error names both positions.
func (e *GapError) Error() string {
	return fmt.Sprintf("the audit log ends at position %d and cannot go on with %d", e.Last, e.Next)
}

// Is reports whether target is fault.Conflict.
func (e *GapError) Is(target error) bool { return target == fault.Conflict }

// logColumns of audit.log, in the order of rows.
var logColumns = []string{
	"position", "event_id", "correlation_id", "causation_id", "type", "version", "actor", "stream_type", "stream_id",
	"stream_version", "namespace", "source", "occurred_at", "digest", "data",
}

// Apply appends a batch of events to the audit log. It is what the projection
// runs in the transaction that also moves its position. Whatever the projection
// believes, the log itself proves that nothing is missing: the batch must begin
// right after the last row and have no gap, else it is a *GapError.
func Apply(ctx context.Context, tx pgx.Tx, events []event.Event) error {
	if len(events) == 0 {
		return nil
	}
	if err := contiguous(ctx, tx, events); err != nil {
		return err
	}
	first, last := events[0].Position, events[len(events)-1].Position
	if first == 1 || first/partitionSize != last/partitionSize || first%partitionSize == 0 {
		if _, err := tx.Exec(ctx, `SELECT audit.ensure_partitions($1)`, last); err != nil {
			return fmt.Errorf("make room for positions through %d: %w", last, err)
		}
	}
	rows := make([][]any, len(events))
	for i, e := range events {
		row, err := logRow(e)
		if err != nil {
			return err
		}
		rows[i] = row
	}
	if _, err := tx.CopyFrom(ctx, pgx.Identifier{Schema, "log"}, logColumns, pgx.CopyFromRows(rows)); err != nil {
		return fmt.Errorf("store positions %d to %d: %w", first, last, err)
	}
	return summarise(ctx, tx, events)
}

func contiguous(ctx context.Context, tx pgx.Tx, events []event.Event) error {
	var last int64
	if err := tx.QueryRow(ctx, `SELECT coalesce(max(position), 0) FROM audit.log`).Scan(&last); err != nil {
		return fmt.Errorf("read the end of the audit log: %w", err)
	}
	for _, e := range events {
		if e.Position != last+1 {
			return &GapError{Last: last, Next: e.Position}
		}
		last = e.Position
	}
	return nil
}

func logRow(e event.Event) ([]any, error) {
	id, err := uuid.Parse(e.ID)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "event at position %d: its id %q", e.Position, e.ID)
	}
	stream, err := uuid.Parse(e.Stream.ID)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "event at position %d: the id of %s", e.Position, e.Stream)
	}
	digest := sha256.Sum256(e.Data)
	return []any{
		e.Position,
		pgtype.UUID{Bytes: id, Valid: true},
		e.CorrelationID, e.CausationID, e.Type, int32(e.Version), e.Actor, e.Stream.Type,
		pgtype.UUID{Bytes: stream, Valid: true},
		int32(e.StreamVersion), e.Namespace, e.Source, e.Time, digest[:], []byte(e.Data),
	}, nil
}

// summarise keeps the counters and the times of spans.
func summarise(ctx context.Context, tx pgx.Tx, events []event.Event) error {
	counts := map[string]int64{}
	var spans []int64
	var earliest, latest []time.Time
	for _, e := range events {
		counts[e.Type]++
		n := len(spans) - 1
		if span := e.Position / spanSize; n < 0 || spans[n] != span {
			spans, earliest, latest = append(spans, span), append(earliest, e.Time), append(latest, e.Time)
			continue
		}
		if e.Time.Before(earliest[n]) {
			earliest[n] = e.Time
		}
		if e.Time.After(latest[n]) {
			latest[n] = e.Time
		}
	}
	types, numbers := make([]string, 0, len(counts)), make([]int64, 0, len(counts))
	for t, n := range counts {
		types, numbers = append(types, t), append(numbers, n)
	}
	var batch pgx.Batch
	batch.Queue(`INSERT INTO audit.counts AS c (type, events) SELECT * FROM unnest($1::text[], $2::bigint[])
		ON CONFLICT (type) DO UPDATE SET events = c.events + excluded.events`, types, numbers)
	batch.Queue(`INSERT INTO audit.spans AS s (span, earliest, latest) SELECT * FROM unnest($1::bigint[], $2::timestamptz[], $3::timestamptz[])
		ON CONFLICT (span) DO UPDATE SET earliest = least(s.earliest, excluded.earliest), latest = greatest(s.latest, excluded.latest)`,
		spans, earliest, latest)
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return fmt.Errorf("count events: %w", err)
	}
	return nil
}

// Reset empties the audit log, for a rebuild from the event log.
func Reset(ctx context.Context, tx pgx.Tx) error {
	if _, err := tx.Exec(ctx, `TRUNCATE audit.log, audit.counts, audit.spans`); err != nil {
		return fmt.Errorf("empty the audit log: %w", err)
	}
	return nil
}
