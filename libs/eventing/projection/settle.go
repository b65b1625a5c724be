package projection

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/deadletter"
	"hodei.dev/libs/eventing/event"
)

// decide carries out what an operator decided about a parked event: it is applied
// (as it is or edited) or left out, and then what waits behind it is applied, in
// order, until nothing is left or the next one cannot be applied, which then is a
// dead letter of its own. The parked rows go in the transaction that writes what
// they led to, so again it does only what is left.
func (p *Projection) decide(ctx context.Context, o consumer.Order) (unparked int, err error) {
	if _, err := p.settle(ctx, nil); err != nil {
		return 0, err
	}
	stream := o.Event.Stream.String()
	size := p.batch()
	for p.blocked[stream] {
		events, err := p.parkedOf(ctx, stream, 0, size)
		switch {
		case err != nil:
			return unparked, err
		case len(events) == 0:
			delete(p.blocked, stream)
			return unparked, nil
		case events[0].Position < o.Event.Position:
			return unparked, consumer.Permanent(fault.New(fault.Precondition, "position %d waits behind position %d of %s, which is a dead letter too",
				o.Event.Position, events[0].Position, stream))
		}
		own := events[0].Position == o.Event.Position
		if own && o.Discard {
			if err := p.drop(ctx, o, events[0]); err != nil {
				return unparked, err
			}
			continue
		}
		if own {
			events[0] = o.Event
		}
		err = p.apply(ctx, events)
		switch {
		case err == nil && own:
			unparked += len(events) - 1
		case err == nil:
			unparked += len(events)
		case len(events) > 1 && !consumer.Transient(err):
			size = 1 // one of them is the cause: from here on one by one
		case own || consumer.Transient(err):
			return unparked, err
		default:
			gaveUp, err := p.consumer.GiveUp(ctx, events[0], err, func() error { return p.apply(ctx, events) })
			if gaveUp || err != nil {
				return unparked, err
			}
			unparked++
		}
	}
	return unparked, nil
}

// batch is how many parked events one transaction takes.
func (p *Projection) batch() int {
	if p.cfg.MaxBatch > 0 {
		return p.cfg.MaxBatch
	}
	return 500
}

// drop takes the discarded event out. Where what waits behind it is given up too,
// each gets a letter before it goes, and all go before the one that they wait for:
// so what is left of a drop that was cut short is known by that one.
func (p *Projection) drop(ctx context.Context, o consumer.Order, own event.Event) error {
	for o.WithParked {
		events, err := p.parkedOf(ctx, own.Stream.String(), own.Position, p.batch())
		if err != nil {
			return err
		}
		if len(events) == 0 {
			break
		}
		letters := make([]deadletter.Letter, len(events))
		for i, e := range events {
			letters[i] = deadletter.Letter{
				Service: p.cfg.Service, Consumer: p.consumer.Status().Name, Event: &e, Position: e.Position, Parks: true,
				Error: fmt.Sprintf("given up with position %d of %s", own.Position, e.Stream), First: e.Time, Last: o.Decision.Time,
			}
		}
		if err := p.cfg.Letters.Abandon(ctx, o, letters); err != nil {
			return fmt.Errorf("give up what is parked behind position %d: %w", own.Position, err)
		}
		if err := p.takeOut(ctx, events); err != nil {
			return err
		}
	}
	return p.takeOut(ctx, []event.Event{own})
}

func (p *Projection) takeOut(ctx context.Context, events []event.Event) error {
	return p.inTx(ctx, p.expected, "", func(tx pgx.Tx) error { return p.deleteParked(ctx, tx, events) })
}

// apply writes the rows of parked events and takes them out.
func (p *Projection) apply(ctx context.Context, events []event.Event) error {
	return p.inTx(ctx, p.expected, "", func(tx pgx.Tx) error {
		if err := p.cfg.Apply(ctx, tx, slices.Clone(events)); err != nil {
			return err
		}
		return p.deleteParked(ctx, tx, events)
	})
}

func (p *Projection) deleteParked(ctx context.Context, tx pgx.Tx, events []event.Event) error {
	positions := make([]int64, len(events))
	for i, e := range events {
		positions[i] = e.Position
	}
	_, err := tx.Exec(ctx, `delete from `+p.parked+` where projection = $1 and position = any($2)`, p.cfg.Name, positions)
	if err != nil {
		return fmt.Errorf("take out parked events: %w", err)
	}
	return nil
}

// parkedOf returns the first parked events of a stream after a position.
func (p *Projection) parkedOf(ctx context.Context, stream string, after int64, limit int) ([]event.Event, error) {
	rows, err := p.cfg.Pool.Query(ctx, `select event from `+p.parked+` where projection = $1 and stream_id = $2 and position > $3
		order by position limit $4`, p.cfg.Name, stream, after, limit)
	if err != nil {
		return nil, fmt.Errorf("read parked events of %s: %w", stream, err)
	}
	events, err := pgx.CollectRows(rows, pgx.RowTo[event.Event])
	if err != nil {
		return nil, fmt.Errorf("read parked events of %s: %w", stream, err)
	}
	return events, nil
}
