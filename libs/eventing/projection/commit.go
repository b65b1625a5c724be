package projection

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
)

// settle finds out what became of a commit without an answer, and drops the
// events that it has applied.
func (p *Projection) settle(ctx context.Context, events []event.Event) ([]event.Event, error) {
	if !p.uncertain {
		return events, nil
	}
	before, attempted := p.expected, p.attempted
	stored, err := p.load(ctx)
	if err != nil {
		p.expected, p.uncertain = before, true
		return nil, err
	}
	if stored != before && stored != attempted {
		p.expected = before
		return nil, consumer.Stop(&ReplacedError{Name: p.cfg.Name, Expected: before, Actual: stored})
	}
	for len(events) > 0 && events[0].Position <= stored {
		events = events[1:]
	}
	return events, nil
}

// inTx moves the position and runs fn in one transaction. The position is written
// where it is the expected one, and first: whoever was paused while another instance
// went on finds that out before its rows contradict the other's, which would look like
// the fault of the events; and of two at once the second waits for the first.
// Where id is not empty, it is written only where the log holds that event there: a
// database that was taken back gets no rows of events that it has lost.
func (p *Projection) inTx(ctx context.Context, position int64, id string, fn func(tx pgx.Tx) error) error {
	tx, err := p.cfg.Pool.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // after a commit it does nothing
	sql, args := `update `+p.positions+` set position = $3, updated_at = now() where name = $1 and position = $2`, []any{p.cfg.Name, p.expected, position}
	if id != "" {
		sql, args = sql+` and `+store.Holds("$3", "$4"), append(args, id)
	}
	tag, err := tx.Exec(ctx, sql, args...)
	if err != nil {
		return fmt.Errorf("move the position of %s: %w", p.cfg.Name, err)
	}
	if tag.RowsAffected() != 1 {
		return p.refused(ctx, position, id)
	}
	if err := fn(tx); err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		p.uncertain, p.attempted = true, position
		return fmt.Errorf("commit: %w", err)
	}
	p.expected = position
	return nil
}

// refused says why the position could not be moved. Both reasons end Run: the next
// one begins with what is stored.
func (p *Projection) refused(ctx context.Context, position int64, id string) error {
	actual, err := p.Position(ctx)
	if err == nil && actual == p.expected {
		return consumer.Stop(&consumer.DivergedError{Position: position, Reason: "it does not have event " + id})
	}
	return consumer.Stop(&ReplacedError{Name: p.cfg.Name, Expected: p.expected, Actual: actual})
}
