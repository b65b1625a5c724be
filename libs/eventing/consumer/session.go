package consumer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
)

const (
	// askTimeout bounds one question to NATS; asking again soon is quicker than
	// waiting long for a server that has no leader.
	askTimeout = 1500 * time.Millisecond
	// ackWait is how long the server waits before it would deliver again. It is
	// long: after any doubt the consumer is made anew, and repeats are dropped anyway.
	ackWait = time.Hour
	// refreshAfter is how long a batch may take before the stream is looked at
	// again: meanwhile its messages may have expired.
	refreshAfter = time.Minute
	// settleAfter is how soon a new session asks again how far it is behind; less
	// and less often, until it is not.
	settleAfter = 50 * time.Millisecond
	// prefetchBytes bounds one pull.
	prefetchBytes = 16 << 20
)

// message is one that has come, and when.
type message struct {
	jetstream.Msg
	at time.Time
}

// session is one durable consumer from its making to the first doubt.
type session struct {
	c *Consumer
	// connected ends when the connection is lost: what questions to NATS wait on.
	connected context.Context
	stream    bus.Events
	cons      jetstream.Consumer
	msgs      chan message

	delivered uint64    // the consumer's own count, of the last message taken
	received  int64     // position of the last message taken
	last      time.Time // when a message came or a probe was made
	settled   bool      // a probe has seen that everything is handled
	suspect   int64     // position of an event that the last probe saw and that had not come

	batch   []event.Event
	ack     jetstream.Msg // the last message of batch
	flushed time.Time     // when a batch was last handled
}

// session receives and handles until something is in doubt.
func (c *Consumer) session(ctx context.Context) error {
	if err := bus.WaitConnected(ctx, c.cfg.NC); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer cancel()
	// A lost connection ends the questions to NATS, but not the handling under way.
	connected, disconnect := context.WithCancelCause(ctx)
	defer disconnect(nil)
	parts.Go(func() { bus.CancelWhenLost(connected, c.cfg.NC, disconnect) })
	s := &session{c: c, connected: connected, msgs: make(chan message, c.cfg.MaxBatch), batch: make([]event.Event, 0, c.cfg.MaxBatch)}
	if err := s.open(ctx); err != nil {
		if ctx.Err() == nil && connected.Err() != nil {
			return context.Cause(connected)
		}
		return err
	}
	doubt := make(chan error, 1)
	pull, err := s.cons.Consume(func(m jetstream.Msg) {
		select {
		case s.msgs <- message{m, time.Now()}:
		case <-ctx.Done():
		}
	}, jetstream.PullMaxMessagesWithBytesLimit(max(2*c.cfg.MaxBatch, 100), prefetchBytes), jetstream.PullExpiry(30*time.Second),
		jetstream.PullHeartbeat(5*time.Second), jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
			if errors.Is(err, jetstream.ErrMaxBytesExceeded) {
				return // the pull is full, the next one is on its way
			}
			select {
			case doubt <- err:
			default:
			}
		}))
	if err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	defer func() {
		cancel() // frees the callback, so that Stop comes to an end
		pull.Stop()
		<-pull.Closed()
	}()
	c.lastReason = ""
	c.update(func(st *Status) { st.Active, st.Retrying, st.Pending = true, "", int64(s.cons.CachedInfo().NumPending) })
	return s.receive(ctx, doubt)
}

// open makes sure that the stream has all that follows the position, reading the
// rest from Postgres, and makes the durable consumer there.
func (s *session) open(ctx context.Context) error {
	c := s.c
	var err error
	if s.stream, err = c.lookup(s.connected); err != nil {
		return err
	}
	if !c.identity.IsZero() && !c.identity.Equal(s.stream.Created) {
		c.log.Warn("the events stream is another one than before", "base", s.stream.Base, "position", c.position)
		c.troubled("the events stream is another one than before", true)
	}
	if err := s.agree(s.connected); err != nil {
		c.update(func(st *Status) { st.Retrying = err.Error() })
		return err
	}
	c.identity = s.stream.Created
	if s.stream.Deleted > 0 && c.position < s.stream.Head() {
		// Somewhere before its head messages are missing: only the log knows which.
		if err := c.supply(ctx, s.stream.Head(), "messages were deleted from inside the stream"); err != nil {
			return err
		}
	}
	for {
		for c.position+1 < s.stream.Start() {
			if err := c.supply(ctx, s.stream.Start()-1, "the stream no longer has what comes next"); err != nil {
				return err
			}
			if err := s.lookAgain(); err != nil {
				return err
			}
		}
		if err := s.makeConsumer(s.connected); err != nil {
			return err
		}
		// What expired while the consumer was made would be skipped without a word.
		if err := s.lookAgain(); err != nil {
			return err
		}
		if c.position+1 >= s.stream.Start() {
			s.received, s.last = c.position, time.Now()
			return s.begin(ctx)
		}
	}
}

func (c *Consumer) lookup(ctx context.Context) (bus.Events, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return bus.LookupEvents(ctx, c.cfg.JS)
}

// lookAgain is an error where the stream is not the one that was looked at before: by its base
// the durable may begin too late, and nobody has asked whether the log agrees with it.
func (s *session) lookAgain() error {
	now, err := s.c.lookup(s.connected)
	if err != nil {
		return err
	}
	if now.OtherThan(s.stream) {
		return errOtherStream
	}
	s.stream = now
	return nil
}

// makeConsumer replaces the durable by one at the position, whatever its floor says.
func (s *session) makeConsumer(ctx context.Context) error {
	c := s.c
	ask, cancel := context.WithTimeout(ctx, 2*askTimeout)
	defer cancel()
	err := c.cfg.JS.DeleteConsumer(ask, bus.EventsStream, c.cfg.Name)
	if err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return fmt.Errorf("remove consumer %s: %w", c.cfg.Name, err)
	}
	cfg := jetstream.ConsumerConfig{
		Durable: c.cfg.Name, Description: "Events of hodei-" + c.cfg.Service + "; its position in Postgres is the truth.",
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: uint64(max(c.position-s.stream.Base, 0)) + 1,
		AckPolicy: jetstream.AckAllPolicy, AckWait: ackWait, MaxAckPending: -1,
		MemoryStorage: true, // what it would store is not asked for: the next one is made at the position
	}
	if filters := bus.EventFilters(c.cfg.Types); len(filters) > 1 {
		cfg.FilterSubjects = filters
	}
	if s.cons, err = c.cfg.JS.CreateConsumer(ask, bus.EventsStream, cfg); err != nil {
		return fmt.Errorf("make consumer %s: %w", c.cfg.Name, err)
	}
	return nil
}

// receive handles batches of whatever is there.
func (s *session) receive(ctx context.Context, doubt <-chan error) error {
	c := s.c
	tick := time.NewTicker(min(c.cfg.CheckpointInterval, c.cfg.ProbeInterval))
	defer tick.Stop()
	early := time.Duration(0)
	settle := time.NewTimer(early) // how far a new session is behind is worth knowing at once
	defer settle.Stop()
	for {
		select {
		case m := <-s.msgs:
			if err := s.take(ctx, m); err != nil {
				return err
			}
		case now := <-tick.C:
			if err := c.checkpoint(ctx, now); err != nil {
				return err
			}
			if err := s.audit(ctx, now); err != nil {
				return err
			}
			if now.Sub(s.last) >= c.cfg.ProbeInterval {
				if err := s.probe(ctx, false); err != nil {
					return err
				}
				s.last = now
			}
		case <-settle.C:
			if !s.settled {
				if err := s.probe(ctx, true); err != nil {
					return err
				}
				early = min(2*early+settleAfter, c.cfg.ProbeInterval)
				settle.Reset(early)
			}
		case err := <-doubt:
			return fmt.Errorf("receive: %w", err)
		case <-s.connected.Done():
			return context.Cause(s.connected)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// take makes a batch of m and what else comes until it is time, and handles it.
func (s *session) take(ctx context.Context, m message) error {
	began := time.Now()
	s.last, s.suspect = began, 0
	due := s.flushed.Add(s.c.cfg.Gather)
	for ok := true; ok; {
		if err := s.add(ctx, m); err != nil {
			return err
		}
		if len(s.batch) >= s.c.cfg.MaxBatch {
			break
		}
		m, ok = s.next(ctx, due)
	}
	if err := s.flush(ctx); err != nil {
		return err
	}
	now := time.Now()
	s.flushed = now
	if s.c.trust.waiting == 0 && len(s.msgs) == 0 || s.c.quiet(now) {
		s.c.relieved(ctx)
	}
	if err := s.c.checkpoint(ctx, now); err != nil {
		return err
	}
	if now.Sub(began) > refreshAfter {
		return errors.New("handling took long: the stream may have moved on")
	}
	return nil
}

// next is the next message that has come, or comes until due.
func (s *session) next(ctx context.Context, due time.Time) (m message, ok bool) {
	select {
	case m = <-s.msgs:
		return m, true
	default:
	}
	wait := time.Until(due)
	if wait <= 0 {
		return m, false
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case m = <-s.msgs:
		return m, true
	case <-t.C:
	case <-s.connected.Done():
	case <-ctx.Done():
	}
	return m, false
}

// add puts a message into the batch. What is missing before it, or cannot be
// taken from it, is read from the log, after what the batch holds so far.
func (s *session) add(ctx context.Context, m message) error {
	meta, err := m.Metadata()
	if err != nil {
		return fmt.Errorf("read a message's metadata: %w", err)
	}
	if meta.Sequence.Consumer != s.delivered+1 {
		return fmt.Errorf("%w: message %d of the consumer came after %d", errReplaced, meta.Sequence.Consumer, s.delivered)
	}
	position := s.stream.Base + int64(meta.Sequence.Stream)
	if err := s.whole(ctx, m, meta, position); err != nil {
		return err
	}
	s.delivered = meta.Sequence.Consumer
	s.c.update(func(st *Status) { st.Pending = int64(meta.NumPending) + 1 })
	s.ack = m.Msg
	if position <= s.received {
		return nil // delivered again
	}
	e, err := event.FromMessage(m.Headers(), m.Data())
	if err == nil && s.c.types != nil && !s.c.types[e.Type] {
		s.c.trust.broken = true
		return fmt.Errorf("%w: it brings %s", errReplaced, e.Type)
	}
	if err == nil && e.Position == position {
		s.batch = append(s.batch, e)
		s.received = position
		return nil
	}
	if err := s.flush(ctx); err != nil {
		return err
	}
	s.received = position
	return s.c.otherwise(ctx, m.Msg, position, e.Position, err)
}

// flush handles the batch and acknowledges it.
func (s *session) flush(ctx context.Context) error {
	if len(s.batch) > 0 {
		if err := s.c.deliver(ctx, s.batch); err != nil {
			return err
		}
		s.batch = s.batch[:0]
	}
	if s.ack != nil {
		if err := s.ack.Ack(); err != nil && !errors.Is(err, nats.ErrConnectionReconnecting) {
			s.c.log.Info("cannot acknowledge", "error", err) // the position is stored; this is only bookkeeping
		}
		s.ack = nil
	}
	s.c.update(func(st *Status) { st.Pending = max(st.Pending-1, 0) })
	return nil
}

// probe asks the log whether nothing comes because there is nothing. If so, the
// log's head is handled. If an event of the consumer's types waits, is in the
// stream and has not come by the next probe, it is taken from the log and the
// consumer is made anew: consumers are known to fall silent. An early probe only
// looks whether everything is handled.
func (s *session) probe(ctx context.Context, early bool) error {
	c := s.c
	if len(s.msgs) > 0 {
		return nil
	}
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	waiting, err := s.waiting(ask)
	if err != nil {
		c.log.Debug("cannot probe the log", "error", err)
		return nil
	}
	if waiting == 0 {
		s.settled, s.suspect = true, 0
		s.received = max(s.received, c.position)
		c.relieved(ctx)
		return nil
	}
	if early {
		return nil
	}
	if s.suspect != waiting {
		s.suspect = waiting
		return nil
	}
	stream, err := c.lookup(s.connected)
	if err != nil || stream.Head() < waiting {
		return err // not published yet: the relay's affair
	}
	c.m.stalls.Add(ctx, 1, c.m.name)
	c.log.Warn("events wait in the stream and do not come: they are taken from the log", "position", waiting, "stream", stream.Head())
	if err := c.supply(ctx, stream.Head(), "events waited in the stream and did not come"); err != nil {
		return err
	}
	return fmt.Errorf("position %d did not come", waiting)
}
