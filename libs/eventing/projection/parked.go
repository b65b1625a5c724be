package projection

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/event"
)

// Parked is one parked event.
type Parked struct {
	// Stream is "job/<id>".
	Stream   string
	Position int64
	Event    event.Event
	Error    string
	FirstAt  time.Time
}

// Parked returns the parked events, oldest first, at most limit.
func (p *Projection) Parked(ctx context.Context, limit int) ([]Parked, error) {
	rows, err := p.cfg.Pool.Query(ctx, `select stream_id, position, event, error, first_at from `+p.parked+`
		where projection = $1 order by position limit $2`, p.cfg.Name, limit)
	if err != nil {
		return nil, fmt.Errorf("list parked events: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Parked])
	if err != nil {
		return nil, fmt.Errorf("list parked events: %w", err)
	}
	return list, nil
}

// park keeps an event that cannot be applied; what follows in its stream waits behind it.
func (p *Projection) park(ctx context.Context, e event.Event, cause error) error {
	events, err := p.settle(ctx, []event.Event{e})
	if err != nil || len(events) == 0 {
		return err
	}
	err = p.inTx(ctx, e.Position, e.ID, func(tx pgx.Tx) error { return p.insertParked(ctx, tx, e, cause.Error()) })
	if err == nil {
		p.blocked[e.Stream.String()] = true
	}
	return err
}

func (p *Projection) insertParked(ctx context.Context, tx pgx.Tx, e event.Event, reason string) error {
	body, err := json.Marshal(e)
	if err != nil {
		return consumer.Permanent(fmt.Errorf("encode the parked event %s: %w", e.ID, err))
	}
	_, err = tx.Exec(ctx, `insert into `+p.parked+` (projection, stream_id, position, event, error) values ($1, $2, $3, $4, $5)
		on conflict do nothing`, p.cfg.Name, e.Stream.String(), e.Position, body, reason)
	if err != nil {
		return fmt.Errorf("park event %s: %w", e.ID, err)
	}
	return nil
}
