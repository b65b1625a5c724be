package relay

import (
	"context"
	"fmt"

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
