package consumer

import (
	"context"
	"fmt"
	"time"

	"hodei.dev/libs/eventing/deadletter"
	"hodei.dev/libs/eventing/event"
)

// Letters keeps what consumers could not handle in the log, where no wiped bus
// loses it, and reads there what operators have decided about it: a decision is
// an event that comes to the consumer in its place in the log, so it is neither
// lost while the service is down nor carried out beside other handling. Errors
// are judged by [Transient]. Safe for concurrent use.
type Letters interface {
	// Types are the short names of the events by which operators decide.
	Types() []string
	// Record keeps a letter. For an event that has one it tells what is known of it.
	Record(ctx context.Context, l deadletter.Letter) (Verdict, error)
	// Order returns what an event of Types asks of a consumer; false where it is
	// another's or has been carried out.
	Order(ctx context.Context, consumer string, e event.Event) (Order, bool, error)
	// Pending returns the events that ask for a replay and have no answer yet.
	Pending(ctx context.Context) ([]event.Event, error)
	// Replayed answers a replay that succeeded, with how many events behind it too.
	Replayed(ctx context.Context, o Order, unparked int) error
	// Abandon gives letters to events that were given up with another one's, each
	// with the same decision. Again, it changes nothing.
	Abandon(ctx context.Context, o Order, letters []deadletter.Letter) error
}

// Verdict is what the log knows of an event that has failed.
type Verdict struct {
	// Discarded: an operator has given it up before; it is passed over.
	Discarded bool
	// Edited is what an operator had handled in its place, if so: a rebuild does the same.
	Edited *event.Event
}

// Order is an operator's decision about one letter.
type Order struct {
	// Decision is the event that carries it.
	Decision event.Event
	// Event is what the letter is about; in an edited replay with the operator's data.
	Event event.Event
	// Discard: it is given up; else it is to be handled.
	Discard bool
	// WithParked: what is parked behind a discarded event is given up as well.
	WithParked bool
}

// pending carries out the replays that were asked for before this consumer's
// start position: those of consumers that begin with a snapshot.
func (c *Consumer) pending(ctx context.Context) error {
	if c.decisions == nil {
		return nil
	}
	var events []event.Event
	err := c.retry(ctx, "look for replays", func() (err error) {
		events, err = c.cfg.Letters.Pending(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("look for replays: %w", err)
	}
	for _, e := range events {
		if e.Position > c.position {
			break // it comes in its place
		}
		if err := c.decided(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

// decided carries out what an operator decided, if it is about this consumer.
// What fails again is a dead letter again.
func (c *Consumer) decided(ctx context.Context, e event.Event) error {
	var o Order
	var mine bool
	err := c.retry(ctx, "read a decision", func() (err error) {
		o, mine, err = c.cfg.Letters.Order(ctx, c.cfg.Name, e)
		return err
	})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil: // never a dead letter of its own: letters would cause letters
		c.log.Error("cannot read a decision about a dead letter: it is passed over", "position", e.Position, "type", e.Type, "error", err, "alert", true)
		return nil
	case !mine:
		return nil
	}
	began, unparked := time.Now(), 0
	settle := func() error {
		return c.retry(ctx, "carry out a decision", func() error {
			n, err := c.settle(ctx, o)
			unparked += n
			return err
		})
	}
	tries, err := 1, settle()
	if err != nil {
		tries, err = c.persist(ctx, o.Event, err, settle)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil && (isStop(err) || o.Discard):
		return err
	case err != nil:
		return c.refused(ctx, o, err, tries, began)
	case o.Discard:
		c.log.Info("a dead letter was discarded", "position", o.Event.Position, "type", o.Event.Type, "stream", o.Event.Stream, "by", o.Decision.Actor)
		return nil
	}
	c.log.Info("a dead letter was replayed", "position", o.Event.Position, "type", o.Event.Type, "stream", o.Event.Stream,
		"by", o.Decision.Actor, "unparked", unparked)
	return c.insist(ctx, "answer a replay", func() error { return c.cfg.Letters.Replayed(ctx, o, unparked) })
}

func (c *Consumer) settle(ctx context.Context, o Order) (int, error) {
	switch {
	case c.cfg.Settle != nil:
		return c.cfg.Settle(ctx, o)
	case o.Discard:
		return 0, nil
	}
	return 0, c.cfg.Handle(ctx, []event.Event{o.Event})
}

// refused keeps a replay that has failed as a dead letter again.
func (c *Consumer) refused(ctx context.Context, o Order, cause error, tries int, began time.Time) error {
	l := c.letter(o.Event, cause, tries, began)
	l.Replayed = true
	if _, err := c.record(ctx, l); err != nil {
		return err
	}
	c.log.Error("a replay has failed: the event is a dead letter again", "position", o.Event.Position, "type", o.Event.Type,
		"stream", o.Event.Stream, "attempts", tries, "error", cause, "alert", true)
	return c.post(ctx, c.cfg.Name+":"+o.Event.ID+":"+o.Decision.ID, l)
}

// GiveUp tries again what Config.Settle could not do with one event that was
// parked, and keeps a letter of it in the end. Only Config.Settle may call it.
func (c *Consumer) GiveUp(ctx context.Context, e event.Event, cause error, again func() error) (gaveUp bool, err error) {
	began := time.Now()
	tries, cause := c.persist(ctx, e, cause, func() error { return c.retry(ctx, "handle a parked event", again) })
	switch {
	case cause == nil:
		return false, nil
	case ctx.Err() != nil:
		return false, ctx.Err()
	case isStop(cause):
		return false, cause
	}
	l := c.letter(e, cause, tries, began)
	if _, err := c.record(ctx, l); err != nil {
		return false, err
	}
	c.log.Error("an event that was parked is a dead letter now", "position", e.Position, "type", e.Type, "id", e.ID, "stream", e.Stream,
		"attempts", tries, "error", cause, "alert", true)
	return true, c.post(ctx, c.cfg.Name+":"+e.ID, l)
}

// letter is what is kept of an event that was given up.
func (c *Consumer) letter(e event.Event, cause error, tries int, began time.Time) deadletter.Letter {
	return deadletter.Letter{
		Service: c.cfg.Service, Event: &e, Position: e.Position, Header: e.Header(), Data: e.Data, Parks: c.cfg.Settle != nil,
		Error: cause.Error(), Consumer: c.cfg.Name, Deliveries: tries, First: began, Last: time.Now(),
	}
}

// record keeps a letter in the log. There is no way around it.
func (c *Consumer) record(ctx context.Context, l deadletter.Letter) (v Verdict, err error) {
	if c.cfg.Letters == nil {
		return v, nil
	}
	err = c.insist(ctx, "record a dead letter", func() (err error) {
		v, err = c.cfg.Letters.Record(ctx, l)
		return err
	})
	return v, err
}
