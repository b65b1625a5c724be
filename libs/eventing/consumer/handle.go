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
// is the cause, found and dead-lettered. Decisions about dead letters are carried
// out in their place. Its error ends the session.
func (c *Consumer) deliver(ctx context.Context, events []event.Event) error {
	for len(events) > 0 {
		began, n := time.Now(), 0
		for n < len(events) && !c.decisions[events[n].Type] {
			n++
		}
		if n > 0 {
			if err := c.deliverAll(ctx, events[:n]); err != nil {
				return err
			}
			events = events[n:]
			continue
		}
		if err := c.decided(ctx, events[0]); err != nil {
			return err
		}
		c.handled(ctx, events[:1], began)
		events = events[1:]
	}
	return nil
}

func (c *Consumer) deliverAll(ctx context.Context, events []event.Event) error {
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
	if err := c.deliverAll(ctx, events[:half]); err != nil {
		return err
	}
	return c.deliverAll(ctx, events[half:])
}

// single tries the one event that fails, and gives it up in the end.
func (c *Consumer) single(ctx context.Context, e event.Event, err error, began time.Time) error {
	tries, err := c.persist(ctx, e, err, func() error {
		return c.retry(ctx, "handle an event", func() error { return c.cfg.Handle(ctx, []event.Event{e}) })
	})
	switch {
	case err == nil:
		c.handled(ctx, []event.Event{e}, began)
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case isStop(err):
		return err
	}
	return c.bury(ctx, e, err, tries, began)
}

// persist calls fn, which has failed with err once, until it succeeds, cannot
// succeed, or was called often enough; it returns how often that was.
func (c *Consumer) persist(ctx context.Context, e event.Event, err error, fn func() error) (tries int, last error) {
	delay := c.cfg.RetryDelay
	for tries = 1; !IsPermanent(err) && !isStop(err) && tries < c.cfg.Attempts; tries++ {
		c.log.Warn("cannot handle an event, trying again", "position", e.Position, "type", e.Type, "id", e.ID,
			"attempt", tries, "of", c.cfg.Attempts, "error", err, "in", delay)
		c.update(func(s *Status) { s.Retrying = err.Error() })
		if !wait(ctx, delay/2+rand.N(delay)) {
			return tries, ctx.Err()
		}
		delay = min(3*delay, maxDelay)
		if err = fn(); err == nil || ctx.Err() != nil {
			return tries + 1, err
		}
	}
	return tries, err
}

// bury dead-letters an event and goes past it. What the log knows of it from
// before holds: a discarded event is passed over, an edited one taken instead.
func (c *Consumer) bury(ctx context.Context, e event.Event, cause error, tries int, began time.Time) error {
	letter := c.letter(e, cause, tries, began)
	verdict, err := c.record(ctx, letter)
	if err == nil && verdict.Edited != nil {
		letter.Replayed = true
		if err = c.retry(ctx, "handle an edited event", func() error { return c.cfg.Handle(ctx, []event.Event{*verdict.Edited}) }); err == nil {
			c.handled(ctx, []event.Event{e}, began)
			return nil
		}
		if ctx.Err() != nil || isStop(err) {
			return err
		}
		letter.Error = err.Error()
		verdict, err = c.record(ctx, letter)
	}
	if err != nil {
		return err
	}
	if verdict.Discarded {
		c.log.Info("passes over an event that was discarded", "position", e.Position, "type", e.Type, "id", e.ID, "stream", e.Stream)
		c.handled(ctx, []event.Event{e}, began)
		return nil
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

// post puts a letter into the service's dead-letter stream, which it makes again
// where it is gone. Where the log has the letter, the stream is its announcement
// and not worth standing still for.
func (c *Consumer) post(ctx context.Context, id string, l deadletter.Letter) error {
	post := func() error {
		ask, cancel := context.WithTimeout(ctx, 2*askTimeout)
		defer cancel()
		err := deadletter.Publish(ask, c.cfg.NC, c.cfg.JS, id, l)
		if errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoResponders) {
			if err := bus.Ensure(ask, c.cfg.JS, c.cfg.Service, c.cfg.Replicas); err != nil {
				return err
			}
			err = deadletter.Publish(ask, c.cfg.NC, c.cfg.JS, id, l)
		}
		return err
	}
	var err error
	if c.cfg.Letters == nil {
		err = c.insist(ctx, "store a dead letter", post)
	} else if lost := post(); lost != nil {
		c.log.Warn("a dead letter is in the log, but not in its stream", "stream", bus.DeadLetterStream(c.cfg.Service), "error", lost)
		err = ctx.Err()
	}
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
