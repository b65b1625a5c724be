package relay

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"hodei.dev/libs/eventing/event"
)

// DDL makes the relay's dead-letter table in the schema "relay", which must
// exist. The relay service's first migration contains it.
const DDL = `create table relay.dead_letters (
	position bigint primary key,
	event_id text not null,
	type text not null,
	stream text not null,
	error text not null,
	recorded_at timestamptz not null default now()
);
comment on table relay.dead_letters is 'Events that could never be published; the events themselves stay in the log.';
`

// PostgresDeadLetters keeps dead letters in the table of [DDL]. Safe for
// concurrent use.
type PostgresDeadLetters struct{ pool *pgxpool.Pool }

// NewDeadLetters returns the dead letters of a database.
func NewDeadLetters(pool *pgxpool.Pool) *PostgresDeadLetters { return &PostgresDeadLetters{pool: pool} }

// Record keeps one event's place and why it could not be published; the first
// reason stays.
func (d *PostgresDeadLetters) Record(ctx context.Context, e event.Event, reason string) error {
	_, err := d.pool.Exec(ctx, `insert into relay.dead_letters (position, event_id, type, stream, error) values ($1, $2, $3, $4, $5)
		on conflict (position) do nothing`, e.Position, e.ID, e.Type, e.Stream.String(), reason)
	if err != nil {
		return fmt.Errorf("record a dead letter of the relay: %w", err)
	}
	return nil
}

// DeadLetter is one event that could not be published.
type DeadLetter struct {
	Position                     int64
	EventID, Type, Stream, Error string
	RecordedAt                   time.Time
}

// List returns the newest dead letters, at most limit.
func (d *PostgresDeadLetters) List(ctx context.Context, limit int) ([]DeadLetter, error) {
	rows, err := d.pool.Query(ctx, `select position, event_id, type, stream, error, recorded_at from relay.dead_letters
		order by position desc limit $1`, limit)
	if err != nil {
		return nil, fmt.Errorf("list dead letters of the relay: %w", err)
	}
	letters, err := pgx.CollectRows(rows, pgx.RowToStructByPos[DeadLetter])
	if err != nil {
		return nil, fmt.Errorf("list dead letters of the relay: %w", err)
	}
	return letters, nil
}
