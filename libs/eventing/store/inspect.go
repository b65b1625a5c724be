package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"hodei.dev/libs/eventing/event"
)

// Fingerprint is one event without its data: enough to tell whether another copy
// is the same one.
type Fingerprint struct {
	Position int64
	ID       string
	Type     string
	Stream   event.Stream
	// Digest is the stored sha256 of the data.
	Digest []byte
	// Intact is whether the data that stands in the log has that digest.
	Intact bool
}

// Fingerprints returns the fingerprints after a position, in order, at most
// limit. The data is hashed where it is and stays there.
func (s *Store) Fingerprints(ctx context.Context, after int64, limit int) ([]Fingerprint, error) {
	found, err := collect(ctx, s.pool, func(row pgx.CollectableRow) (f Fingerprint, err error) {
		err = row.Scan(&f.Position, &f.ID, &f.Type, &f.Stream.Type, &f.Stream.ID, &f.Digest, &f.Intact)
		return f, err
	}, `SELECT position, event_id, type, stream_type, stream_id, digest, digest = sha256(convert_to(data::text, 'UTF8'))
		FROM hodei.events WHERE position > $1 ORDER BY position LIMIT $2`, after, limit)
	if err != nil {
		return nil, readError(ctx, err, "read fingerprints after position %d", after)
	}
	return found, nil
}

// Mismatch is one aggregate whose row of current state and whose events
// contradict each other.
type Mismatch struct {
	Stream event.Stream
	// Version is the row's, 0 where there is no row; Events is how many events the
	// log has, Last the highest version among them.
	Version, Events, Last int
}

// Mismatches compares, as of one moment, every aggregate's row with its events:
// versions run from 1 without gap or repetition up to the row's. It returns at
// most limit of those that contradict, and how many there are in all. It reads an
// index of the whole log: seconds for a million events, in memory that does not
// grow with them.
func (s *Store) Mismatches(ctx context.Context, limit int) (found []Mismatch, total int, err error) {
	err = pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		// Merging sorted indexes needs no memory; hashing would need all of it.
		for _, set := range []string{"enable_hashagg", "enable_hashjoin"} {
			if _, err := tx.Exec(ctx, "SET LOCAL "+set+" = off"); err != nil {
				return err
			}
		}
		rows, err := tx.Query(ctx, mismatchSQL, limit)
		if err != nil {
			return err
		}
		_, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (struct{}, error) {
			var m Mismatch
			err := row.Scan(&total, &m.Stream.Type, &m.Stream.ID, &m.Version, &m.Events, &m.Last)
			found = append(found, m)
			return struct{}{}, err
		})
		return err
	})
	if err != nil {
		return nil, 0, readError(ctx, err, "compare aggregates with their events")
	}
	return found, total, nil
}

const mismatchSQL = `SELECT count(*) OVER (), coalesce(s.stream_type, e.stream_type), coalesce(s.stream_id, e.stream_id)::text,
	coalesce(s.version, 0), coalesce(e.events, 0), coalesce(e.last, 0)
	FROM hodei.streams AS s FULL JOIN (
		SELECT stream_id, min(stream_type) AS stream_type, count(*)::int AS events, max(version) AS last, count(DISTINCT version)::int AS versions, min(version) AS first
		FROM hodei.events GROUP BY stream_id
	) AS e USING (stream_id)
	WHERE s.version IS DISTINCT FROM e.events OR e.last IS DISTINCT FROM e.events OR e.versions IS DISTINCT FROM e.events OR e.first IS DISTINCT FROM 1
	ORDER BY 3 LIMIT $1`

// Holds is the condition, for a statement of another table in the same database,
// that the log holds an event at a position: a statement with it changes nothing
// where the log has lost that event. Both arguments are placeholders, such as "$3".
func Holds(position, id string) string {
	return fmt.Sprintf("EXISTS (SELECT FROM hodei.events AS held WHERE held.position = %s AND held.event_id = %s::uuid)",
		strings.TrimSpace(position), strings.TrimSpace(id))
}
