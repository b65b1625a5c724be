package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"hodei.dev/services/registry/internal/logs"
)

// partitionsAhead is how many days have their partition before they begin, today
// included.
const partitionsAhead = 3

// Chunks keeps the output of jobs. It is safe for concurrent use.
type Chunks struct {
	pool *pgxpool.Pool
	now  func() time.Time
}

// NewChunks returns the chunks of a database; now is the clock that days go by.
func NewChunks(pool *pgxpool.Pool, now func() time.Time) *Chunks { return &Chunks{pool, now} }

// Insert stores chunks; those that are stored already are passed over. A missing
// partition is made.
func (c *Chunks) Insert(ctx context.Context, batches []logs.Batch) error {
	err := c.insert(ctx, batches)
	if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) && pg.Code == "23514" { // no partition for this day
		if err := c.Ensure(ctx); err != nil {
			return err
		}
		err = c.insert(ctx, batches)
	}
	if err != nil {
		return failed(err, "store log chunks")
	}
	return nil
}

func (c *Chunks) insert(ctx context.Context, batches []logs.Batch) error {
	n := 0
	for _, b := range batches {
		n += len(b.Chunks)
	}
	jobs, streams := make([]string, 0, n), make([]string, 0, n)
	attempts, seqs, dropped := make([]int32, 0, n), make([]int64, 0, n), make([]int64, 0, n)
	times, data, ends := make([]time.Time, 0, n), make([][]byte, 0, n), make([]bool, 0, n)
	for _, b := range batches {
		for _, chunk := range b.Chunks {
			jobs, attempts = append(jobs, b.JobID), append(attempts, int32(b.Attempt))
			seqs, streams, times = append(seqs, chunk.Seq), append(streams, chunk.Stream), append(times, chunk.At)
			bytes := chunk.Data
			if bytes == nil {
				bytes = []byte{}
			}
			data, dropped, ends = append(data, bytes), append(dropped, chunk.Dropped), append(ends, chunk.EOF)
		}
	}
	_, err := c.pool.Exec(ctx, `INSERT INTO registry.log_chunks (job_id, attempt, seq, day, stream, at, data, dropped, eof)
		SELECT job_id, attempt, seq, $1, stream, at, data, dropped, eof
		FROM unnest($2::uuid[], $3::int[], $4::bigint[], $5::text[], $6::timestamptz[], $7::bytea[], $8::bigint[], $9::bool[])
			AS u (job_id, attempt, seq, stream, at, data, dropped, eof)
		ON CONFLICT DO NOTHING`, c.now().UTC(), jobs, attempts, seqs, streams, times, data, dropped, ends)
	return err
}

const chunkColumns = `SELECT seq, stream, at, data, dropped, eof FROM registry.log_chunks WHERE job_id = $1 AND attempt = $2 AND day >= $3`

// After returns chunks whose sequence is above after, in order. since is a time
// before which no chunk of the attempt was taken.
func (c *Chunks) After(ctx context.Context, a logs.Attempt, after int64, limit int) ([]logs.Chunk, error) {
	return c.read(ctx, a, chunkColumns+` AND seq > $4 ORDER BY seq LIMIT $5`, after, limit)
}

// Before returns chunks whose sequence is below before, the latest first.
func (c *Chunks) Before(ctx context.Context, a logs.Attempt, before int64, limit int) ([]logs.Chunk, error) {
	return c.read(ctx, a, chunkColumns+` AND seq < $4 ORDER BY seq DESC LIMIT $5`, before, limit)
}

func (c *Chunks) read(ctx context.Context, a logs.Attempt, sql string, bound int64, limit int) ([]logs.Chunk, error) {
	rows, err := c.pool.Query(ctx, sql, a.JobID, a.Number, firstDay(a), bound, limit)
	if err != nil {
		return nil, failed(err, "read the log of attempt %d of job %s", a.Number, a.JobID)
	}
	chunks, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (k logs.Chunk, err error) {
		err = row.Scan(&k.Seq, &k.Stream, &k.At, &k.Data, &k.Dropped, &k.EOF)
		k.At = k.At.UTC()
		return k, err
	})
	if err != nil {
		return nil, failed(err, "read the log of attempt %d of job %s", a.Number, a.JobID)
	}
	return chunks, nil
}

// firstDay prunes partitions: a day of margin covers clocks that differ.
func firstDay(a logs.Attempt) time.Time {
	if a.Since.IsZero() {
		return time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	return a.Since.UTC().AddDate(0, 0, -1)
}

// Stat says how much of an attempt's log is stored.
func (c *Chunks) Stat(ctx context.Context, a logs.Attempt) (logs.Stat, error) {
	var s logs.Stat
	err := c.pool.QueryRow(ctx, `SELECT coalesce(max(seq), 0), coalesce(sum(octet_length(data)), 0)::bigint, coalesce(bool_or(eof), false)
		FROM registry.log_chunks WHERE job_id = $1 AND attempt = $2 AND day >= $3`, a.JobID, a.Number, firstDay(a)).Scan(&s.LastSeq, &s.Bytes, &s.EOF)
	if err != nil {
		return s, failed(err, "measure the log of attempt %d of job %s", a.Number, a.JobID)
	}
	return s, nil
}

// Ensure makes the partitions of today and the next days where they are missing.
func (c *Chunks) Ensure(ctx context.Context) error {
	var made int
	if err := c.pool.QueryRow(ctx, `SELECT registry.ensure_log_partitions($1, $2)`, c.now().UTC(), partitionsAhead).Scan(&made); err != nil {
		return failed(err, "make partitions of the log")
	}
	return nil
}

// Drop removes the days that lie wholly before a time, and returns their names.
func (c *Chunks) Drop(ctx context.Context, before time.Time) ([]string, error) {
	rows, err := c.pool.Query(ctx, `SELECT registry.drop_log_partitions($1)`, before.UTC())
	if err != nil {
		return nil, failed(err, "drop old partitions of the log")
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, failed(err, "drop old partitions of the log")
	}
	return names, nil
}

// Size is how many bytes the stored output takes on disk.
func (c *Chunks) Size(ctx context.Context) (int64, error) {
	var size int64
	if err := c.pool.QueryRow(ctx, `SELECT coalesce(sum(pg_total_relation_size(inhrelid)), 0)::bigint FROM pg_inherits
		WHERE inhparent = 'registry.log_chunks'::regclass`).Scan(&size); err != nil {
		return 0, fmt.Errorf("measure the log: %w", err)
	}
	return size, nil
}
