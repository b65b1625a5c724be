package consumer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/store"
)

// pauseBefore is how long a message may follow the one before it, while others
// waited, before the stream is asked whether those others are still there.
const pauseBefore = 200 * time.Millisecond

var (
	errReplaced    = errors.New("somebody else has changed the consumer")
	errOtherStream = errors.New("the events stream is another one")
	errVanished    = errors.New("messages have vanished from the stream before they were delivered")
)

// SkippedError says that events vanished from the stream in the moment between
// their publication and their delivery, and that later ones are handled already.
// It is a fault.Conflict. Whoever gets it must handle all after After again.
type SkippedError struct {
	Name           string
	After, Through int64
	// Missing is how many events were skipped.
	Missing int64
}

// Error names the consumer and the range.
func (e *SkippedError) Error() string {
	return fmt.Sprintf("consumer %s has skipped %d events between positions %d and %d", e.Name, e.Missing, e.After, e.Through)
}

// Is reports whether target is fault.Conflict.
func (e *SkippedError) Is(target error) bool { return target == fault.Conflict }

// trust is why a consumer believes that nothing was left out. One of all events
// sees each gap by the positions; one with filters cannot tell a message that
// was removed from one of another type, so it looks, in three ways:
//
//   - how many wait falls by one with each message; by more, and some have gone;
//   - after a pause in which others waited, the stream must still have them;
//   - now and then: where the stream has lost anything since the last look, what
//     the log has of the time is counted against what was handled.
type trust struct {
	stream  bus.Events              // as of the last look
	made    *jetstream.ConsumerInfo // the consumer as it was made
	after   int64                   // all through here is known to be handled
	handled int64                   // the count of handled events then
	at      time.Time               // of the last look
	broken  bool                    // the consumer has brought what it must not
	filling bool                    // the stream is behind the position: its count of what waits is not to be trusted

	waiting uint64    // messages behind the last one, when it was delivered
	came    time.Time // when the last one came
}

// begin starts the trust in a new session, after what is left of the one before
// it: between its last look and its end something may have been skipped.
func (s *session) begin(ctx context.Context) error {
	c, t := s.c, &s.c.trust
	if c.types != nil && t.made != nil && (t.broken || s.stream.OtherThan(t.stream) || s.stream.Start() > t.after+1 || lostInside(t.stream, s.stream)) {
		if err := s.recount(ctx); err != nil {
			return err
		}
	}
	*t = trust{stream: s.stream, made: s.cons.CachedInfo(), after: c.position, handled: c.count, at: s.last, filling: s.stream.Head() < c.position}
	return nil
}

// whole returns an error, after reading the log through the message, where
// messages may be missing right before it.
func (s *session) whole(ctx context.Context, m message, meta *jetstream.MsgMetadata, position int64) error {
	t := &s.c.trust
	before, came := t.waiting, t.came
	t.waiting, t.came = meta.NumPending, m.at
	if s.delivered == 0 {
		// The numbers of another consumer of this name begin at 1 as well.
		if err := s.unchanged(ctx); err != nil {
			return err
		}
		came, before = t.at, t.made.NumPending
	}
	if position <= s.received {
		t.waiting = 0 // a stream that is being filled again counts what is not wanted here
		return nil
	}
	gone := s.c.types == nil && position != s.received+1 || s.c.types != nil && meta.NumPending+1 < before && !t.filling
	if !gone && s.c.types != nil && before > 0 && m.at.Sub(came) > pauseBefore {
		now, err := s.c.lookup(s.connected)
		if err != nil {
			return err
		}
		gone = now.OtherThan(t.stream) || now.Start() > s.received+1 || lostInside(t.stream, now)
	}
	if !gone {
		return nil
	}
	if err := s.flush(ctx); err != nil {
		return err
	}
	if err := s.c.supply(ctx, position, errVanished.Error()); err != nil {
		return err
	}
	return errVanished
}

// lostInside tells whether messages between the first and the last may have gone
// between two looks.
func lostInside(before, now bus.Events) bool {
	return now.Deleted != before.Deleted || now.Deleted > 0 && now.First != before.First
}

// unchanged returns an error where the durable is not the one that was made here.
func (s *session) unchanged(ctx context.Context) error {
	ask, cancel := context.WithTimeout(s.connected, askTimeout)
	defer cancel()
	cons, err := s.c.cfg.JS.Consumer(ask, bus.EventsStream, s.c.cfg.Name)
	if err != nil {
		if s.connected.Err() != nil {
			return context.Cause(s.connected)
		}
		return fmt.Errorf("look at consumer %s: %w", s.c.cfg.Name, err)
	}
	now, made := cons.CachedInfo(), s.c.trust.made
	switch {
	case !now.Created.Equal(made.Created), now.Config.OptStartSeq != made.Config.OptStartSeq, now.Config.FilterSubject != made.Config.FilterSubject,
		!slices.Equal(now.Config.FilterSubjects, made.Config.FilterSubjects):
		return errReplaced
	case now.Paused:
		return fmt.Errorf("%w: it is paused", errReplaced)
	}
	return ctx.Err()
}

// audit looks now and then whether the consumer and the stream are what they
// were, and whether anything was skipped. Between two batches.
func (s *session) audit(ctx context.Context, now time.Time) error {
	c, t := s.c, &s.c.trust
	if now.Sub(t.at) < c.cfg.ProbeInterval || len(s.batch) > 0 {
		return nil
	}
	t.at = now
	changed := s.unchanged(ctx)
	stream, err := c.lookup(s.connected)
	switch {
	case changed != nil && !errors.Is(changed, errReplaced) && !errors.Is(changed, jetstream.ErrConsumerNotFound):
		return nil // no answer: the next time
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return err
	case err != nil:
		return nil
	case stream.OtherThan(t.stream):
		changed = errOtherStream
	}
	if c.types != nil && (changed != nil || stream.Start() > t.after+1 || lostInside(t.stream, stream)) {
		if err := s.recount(ctx); err != nil {
			return err
		}
		if changed == nil && stream.Head() > c.position {
			changed = errVanished // what is still to come may be among it
		}
	}
	t.stream, t.after, t.handled = stream, c.position, c.count
	return changed
}

// recount compares what the log has since the last look with what was handled.
func (s *session) recount(ctx context.Context) error {
	c, t := s.c, &s.c.trust
	var has int64
	for after := t.after; after < c.position; {
		events, err := c.cfg.Store.Read(ctx, store.ReadOptions{After: after, Through: c.position, Types: c.cfg.Types, Limit: c.cfg.MaxBatch})
		if err != nil {
			return fmt.Errorf("count the log after %d: %w", after, err)
		}
		has += int64(len(events))
		if len(events) < c.cfg.MaxBatch {
			break
		}
		after = events[len(events)-1].Position
	}
	missing := has - (c.count - t.handled)
	if missing <= 0 {
		return nil
	}
	skipped := &SkippedError{Name: c.cfg.Name, After: t.after, Through: c.position, Missing: missing}
	c.m.skipped.Add(ctx, missing, c.m.name)
	c.log.Error("events vanished from the stream just before they were delivered: going back for them", "after", t.after,
		"through", c.position, "missing", missing, "alert", true)
	c.troubled(errVanished.Error(), true)
	if !c.cfg.OnceOnly {
		c.position = t.after
		c.update(func(st *Status) { st.Position = t.after })
		if err := c.supply(ctx, skipped.Through, errVanished.Error()); err != nil {
			return err
		}
	}
	return skipped
}
