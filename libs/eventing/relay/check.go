package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
)

// samples is how many positions the regular comparison looks at beside both ends.
const samples = 64

// DivergedError says that the stream holds something else than the log at a
// position, which neither may: a restored or failed-over Postgres has lost its
// tail, or somebody else has published. It is a fault.Precondition: nothing is
// published until an operator has decided which one is right.
type DivergedError struct {
	// Position is the first one that was found to differ.
	Position int64
	// Reason says what differs.
	Reason string
}

// Error names the position and the reason.
func (e *DivergedError) Error() string {
	return fmt.Sprintf("stream and log differ at position %d: %s", e.Position, e.Reason)
}

// Is reports whether target is fault.Precondition.
func (e *DivergedError) Is(target error) bool { return target == fault.Precondition }

// checkOften compares regularly until ctx ends. It returns only divergence; what
// cannot be asked now is asked the next time.
func (r *Relay) checkOften(ctx context.Context) error {
	tick := time.NewTicker(r.cfg.CheckInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		stream, err := bus.LookupEvents(ctx, r.cfg.JS)
		if err == nil {
			err = r.check(ctx, stream, samples)
		}
		if _, ok := errors.AsType[*DivergedError](err); ok {
			return err
		}
		if err != nil && ctx.Err() == nil {
			r.log.Warn("cannot compare stream and log", "error", err)
		}
	}
}

// check compares how far stream and log go, and position, id and data of the
// stream's last message, its first, and n between them.
func (r *Relay) check(ctx context.Context, stream bus.Events, n int) error {
	head, err := r.cfg.Store.Head(ctx)
	if err != nil {
		return fmt.Errorf("read the log's head: %w", err)
	}
	r.update(func(s *Status) { s.Head = max(s.Head, head) })
	if head < stream.Head() {
		return r.firstDifference(ctx, stream, &DivergedError{
			Position: head + 1, Reason: fmt.Sprintf("the log ends at %d, the stream at %d", head, stream.Head()),
		})
	}
	if stream.Messages == 0 {
		return nil
	}
	if stream.Deleted > 0 {
		r.log.Warn("messages were deleted from inside the stream; consumers read them from the log", "count", stream.Deleted)
	}
	seqs := append(make([]uint64, 0, n+2), stream.Last, stream.First)
	for range n {
		seqs = append(seqs, stream.First+rand.Uint64N(stream.Last-stream.First+1))
	}
	for _, seq := range seqs {
		err := r.compare(ctx, stream, seq)
		if diverged, ok := errors.AsType[*DivergedError](err); ok {
			return r.firstDifference(ctx, stream, diverged)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// firstDifference looks for where a divergence begins. A log that was taken back
// has all before that and nothing after it as the stream has it, so halving finds
// it in as many questions as the stream's length has binary digits. What cannot be
// asked meanwhile leaves it as it was found.
func (r *Relay) firstDifference(ctx context.Context, stream bus.Events, found *DivergedError) error {
	first, last := stream.First, uint64(found.Position-stream.Base) // last differs
	for first < last {
		middle := first + (last-first)/2
		err := r.compare(ctx, stream, middle)
		diverged, differs := errors.AsType[*DivergedError](err)
		switch {
		case differs:
			found, last = diverged, middle
		case err != nil:
			return found
		default:
			first = middle + 1
		}
	}
	return found
}

// compare looks at one message; one that has gone meanwhile is no difference.
func (r *Relay) compare(ctx context.Context, stream bus.Events, seq uint64) error {
	position := stream.Base + int64(seq)
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	m, err := stream.Stream.GetMsg(ask, seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read sequence %d: %w", seq, err)
	}
	events, err := r.cfg.Store.Read(ctx, store.ReadOptions{After: position - 1, Through: position, Limit: 1})
	if err != nil {
		return fmt.Errorf("read position %d: %w", position, err)
	}
	if len(events) == 0 {
		return &DivergedError{Position: position, Reason: "the log has nothing here"}
	}
	if reason := difference(events[0], m); reason != "" {
		return &DivergedError{Position: position, Reason: reason}
	}
	return nil
}

func difference(e event.Event, m *jetstream.RawStreamMsg) string {
	if p, id, ok := event.TombstoneOf(m.Header); ok {
		if p != e.Position || id != e.ID {
			return fmt.Sprintf("the stream has the tombstone of %s at %d, the log %s", id, p, e.ID)
		}
		return ""
	}
	got, err := event.FromMessage(m.Header, m.Data)
	switch {
	case err != nil:
		return fmt.Sprintf("the stream has no event here: %v", err)
	case got.Position != e.Position:
		return fmt.Sprintf("the stream's message says it is %d", got.Position)
	case got.ID != e.ID:
		return fmt.Sprintf("the stream has event %s, the log %s", got.ID, e.ID)
	case !bytes.Equal(got.Data, e.Data):
		return "the same event has other data"
	}
	return ""
}
