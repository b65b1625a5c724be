package consumer

import (
	"context"
	"fmt"
	"time"

	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
)

// waiting is the position of the first event of the consumer's types that is not
// handled; where there is none it moves the position to the log's head.
func (s *session) waiting(ctx context.Context) (int64, error) {
	c := s.c
	head, err := c.cfg.Store.Head(ctx)
	if err != nil || head <= c.position {
		return 0, err
	}
	events, err := c.cfg.Store.Read(ctx, store.ReadOptions{After: c.position, Through: head, Types: c.cfg.Types, Limit: 1})
	if err != nil {
		return 0, err
	}
	if len(events) > 0 {
		return events[0].Position, nil
	}
	c.advance(head)
	return 0, nil
}

// supply handles from the log what the stream should have brought, and says why:
// that makes it part of an incident.
func (c *Consumer) supply(ctx context.Context, through int64, why string) error {
	if c.begun {
		c.troubled(why, false)
	}
	return c.fromLog(ctx, through)
}

// fromLog handles what the log has of the consumer's types after the position
// through another, and moves the position there.
func (c *Consumer) fromLog(ctx context.Context, through int64) error {
	for c.position < through {
		var events []event.Event
		err := c.retry(ctx, "read the log", func() (err error) {
			events, err = c.cfg.Store.Read(ctx, store.ReadOptions{After: c.position, Through: through, Types: c.cfg.Types, Limit: c.cfg.MaxBatch})
			return err
		})
		if err != nil {
			return fmt.Errorf("read the log after %d: %w", c.position, err)
		}
		if len(events) > 0 {
			c.m.fromLog.Add(ctx, int64(len(events)), c.m.name)
			c.supplied(events)
			if err := c.deliver(ctx, events); err != nil {
				return err
			}
			if err := c.checkpoint(ctx, time.Now()); err != nil {
				return err
			}
		}
		if len(events) < c.cfg.MaxBatch {
			if c.types == nil && c.position < through {
				return fmt.Errorf("the log ends at %d, before position %d of the stream", c.position, through)
			}
			c.advance(through)
		}
	}
	return nil
}
