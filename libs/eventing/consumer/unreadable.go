package consumer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/eventing/deadletter"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
)

// errMisplaced says that a message is an event, but of another position than the
// stream's base gives it.
var errMisplaced = errors.New("the stream's base is not what its messages say")

// otherwise takes the event of a position from the log, where its message is not
// it: a tombstone, an event of another place, or no event at all (why says so).
func (c *Consumer) otherwise(ctx context.Context, m jetstream.Msg, position, says int64, why error) error {
	if _, _, tombstone := event.TombstoneOf(m.Headers()); tombstone {
		return c.fromLog(ctx, position)
	}
	if why != nil {
		return c.unreadable(ctx, m, position, why)
	}
	// A good event under a wrong base is no dead letter, and neither are those
	// after it: the log has them all, and the relay stops when it compares.
	c.log.Error("a message stands at another position than it says: taken from the log", "position", position, "message", says, "alert", true)
	if err := c.supply(ctx, position, errMisplaced.Error()); err != nil {
		return err
	}
	return fmt.Errorf("%w: the message at position %d says that it is %d", errMisplaced, position, says)
}

// unreadable dead-letters a message that is no event, as it is, and takes the
// event of its place from the log.
func (c *Consumer) unreadable(ctx context.Context, m jetstream.Msg, position int64, cause error) error {
	if c.rawBuried != position {
		now := time.Now()
		letter := deadletter.Letter{
			Service: c.cfg.Service, Position: position, Header: m.Headers(), Data: m.Data(), Error: cause.Error(), Consumer: c.cfg.Name, Deliveries: 1, First: now, Last: now,
		}
		if _, err := c.record(ctx, letter); err != nil {
			return err
		}
		if err := c.post(ctx, fmt.Sprintf("%s:%d:%d", c.cfg.Name, c.identity.UnixNano(), position), letter); err != nil {
			return err
		}
		c.rawBuried = position
		c.log.Error("a message that is no event is a dead letter now", "position", position, "subject", m.Subject(), "error", cause, "alert", true)
	}
	var events []event.Event
	err := c.retry(ctx, "read the log", func() (err error) {
		events, err = c.cfg.Store.Read(ctx, store.ReadOptions{After: position - 1, Through: position, Limit: 1})
		return err
	})
	switch {
	case err != nil:
		return fmt.Errorf("read position %d: %w", position, err)
	case len(events) == 0:
		// Nothing may be passed over here: the event of this position is still to come.
		return fmt.Errorf("the stream has position %d, but the log does not", position)
	}
	return c.fromLog(ctx, position)
}
