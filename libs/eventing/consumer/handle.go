package consumer

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/deadletter"
	"hodei.dev/libs/eventing/event"
)

// maxDelay bounds the pause between two tries of anything.
const maxDelay = 5 * time.Second

// deliver handles events, all of them: what fails is retried, and where one event
// is the cause, found and dead-lettered. Its error ends the session.
func (c *Consumer) deliver(ctx context.Context, events []event.Event) error {
	began := time.Now()
	err := c.retry(ctx, "handle events", func() error { return c.cfg.Handle(ctx, events) })
	switch {
	case err == nil:
		c.handled(ctx, events, began)
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case isStop(err):
		return err
	case len(events) == 1:
		return c.single(ctx, events[0], err, began)
	}
	half := len(events) / 2
	if err := c.deliver(ctx, events[:half]); err != nil {
		return err
	}
	return c.deliver(ctx, events[half:])
}

// single tries the one event that fails, and gives it up in the end.
func (c *Consumer) single(ctx context.Context, e event.Event, err error, began time.Time) error {
	delay := c.cfg.RetryDelay
	tries := 1
	for ; !IsPermanent(err) && tries < c.cfg.Attempts; tries++ {
		c.log.Warn("cannot handle an event, trying again", "position", e.Position, "type", e.Type, "id", e.ID,
			"attempt", tries, "of", c.cfg.Attempts, "error", err, "in", delay)
		c.update(func(s *Status) { s.Retrying = err.Error() })
		if !wait(ctx, delay/2+rand.N(delay)) {
			return ctx.Err()
		}
		delay = min(3*delay, maxDelay)
		err = c.retry(ctx, "handle an event", func() error { return c.cfg.Handle(ctx, []event.Event{e}) })
		switch {
		case err == nil:
			c.handled(ctx, []event.Event{e}, began)
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case isStop(err):
			return err
		}
	}
	return c.bury(ctx, e, err, tries, began)
}

// bury dead-letters an event and goes past it.
func (c *Consumer) bury(ctx context.Context, e event.Event, cause error, tries int, began time.Time) error {
	letter := deadletter.Letter{
		Service: c.cfg.Service, Event: &e, Header: e.Header(), Data: e.Data,
		Error: cause.Error(), Consumer: c.cfg.Name, Deliveries: tries, First: began, Last: time.Now(),
	}
	if err := c.post(ctx, c.cfg.Name+":"+e.ID, letter); err != nil {
		return err
	}
	c.log.Error("an event is a dead letter now", "position", e.Position, "type", e.Type, "id", e.ID, "stream", e.Stream,
		"correlation_id", e.CorrelationID, "attempts", tries, "error", cause, "alert", true)
	if c.cfg.DeadLettered != nil {
		err := c.insist(ctx, "go past a dead letter", func() error { return c.cfg.DeadLettered(ctx, e, cause) })
		if err != nil {
			return err
		}
	}
	c.handled(ctx, []event.Event{e}, began)
	return nil
}

func (c *Consumer) post(ctx context.Context, id string, l deadletter.Letter) error {
	err := c.insist(ctx, "store a dead letter", func() error {
		ask, cancel := context.WithTimeout(ctx, 2*askTimeout)
		defer cancel()
		err := deadletter.Publish(ask, c.cfg.NC, c.cfg.JS, id, l)
		if errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoResponders) {
			// A NATS that lost its store has lost this stream too, and only this service makes it.
			err = errors.Join(err, bus.Ensure(ask, c.cfg.JS, c.cfg.Service, 1))
		}
		return err
	})
	if err == nil {
		c.m.deadLetters.Add(ctx, 1, c.m.name)
		c.update(func(s *Status) { s.DeadLetters++ })
	}
	return err
}

// handled moves the position past events.
func (c *Consumer) handled(ctx context.Context, events []event.Event, began time.Time) {
	last := events[len(events)-1]
	c.count += int64(len(events))
	c.begun = true
	c.position = max(c.position, last.Position)
	c.m.handled.Add(ctx, int64(len(events)), c.m.name)
	c.m.duration.Record(ctx, time.Since(began).Seconds(), c.m.name)
	c.update(func(s *Status) { s.Position, s.LastEventTime, s.Retrying = c.position, last.Time, "" })
}

// retry calls fn until it succeeds or its error is not transient.
func (c *Consumer) retry(ctx context.Context, what string, fn func() error) error {
	return c.again(ctx, what, Transient, fn)
}

// insist calls fn until it succeeds: there is no way around it.
func (c *Consumer) insist(ctx context.Context, what string, fn func() error) error {
	return c.again(ctx, what, func(err error) bool { return !isStop(err) }, fn)
}

func (c *Consumer) again(ctx context.Context, what string, retryable func(error) bool, fn func() error) error {
	var first time.Time // when it first failed
	var cause error
	for delay := 10 * time.Millisecond; ; delay = min(2*delay, maxDelay) {
		err := fn()
		if err == nil {
			if cause != nil {
				c.update(func(s *Status) { s.Retrying = "" })
				c.waited(ctx, what, cause, first)
			}
			return nil
		}
		if cause == nil {
			first = time.Now()
		}
		cause = err
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !retryable(err) {
			return err
		}
		c.m.retries.Add(ctx, 1, c.m.name)
		c.update(func(s *Status) { s.Retrying = err.Error() })
		c.log.Warn("cannot "+what+", trying again", "position", c.position, "error", err, "in", delay)
		if !wait(ctx, delay/2+rand.N(delay)) {
			return ctx.Err()
		}
	}
}
