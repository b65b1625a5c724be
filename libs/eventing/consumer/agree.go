package consumer

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
)

// DivergedError says that the log does not have what the stream, or this
// consumer, has from it: a Postgres that was restored or failed over has lost its
// tail. It is a fault.Precondition. Nothing is taken from the stream meanwhile: the
// consumer waits until an operator has had it made anew (`hodei doctor --new-epoch`).
type DivergedError struct {
	// Position is where it was noticed.
	Position int64
	// Reason says what differs.
	Reason string
}

// Error names the position and the reason.
func (e *DivergedError) Error() string {
	return fmt.Sprintf("the log has lost its tail: at position %d %s; nothing is handled until `hodei doctor --new-epoch`", e.Position, e.Reason)
}

// Is reports whether target is fault.Precondition.
func (e *DivergedError) Is(target error) bool { return target == fault.Precondition }

// agree makes sure that the log has the stream's last event before anything is
// taken from the stream. The log is only ever appended to or taken back as a whole,
// so one event that both have says that all before it are the same.
//
// A consumer that has handled more than the log has is ended: what it keeps in
// memory comes from events that there never were, and its owner begins anew.
func (s *session) agree(ctx context.Context) error {
	c := s.c
	head, err := c.cfg.Store.Head(ctx)
	if err != nil {
		return fmt.Errorf("read the log's head: %w", err)
	}
	if c.position > head {
		return Stop(&DivergedError{Position: c.position, Reason: fmt.Sprintf("this consumer has handled more than the log has, which ends at %d", head)})
	}
	if head < s.stream.Head() {
		return &DivergedError{Position: head + 1, Reason: fmt.Sprintf("the stream goes on to %d", s.stream.Head())}
	}
	if s.stream.Messages == 0 {
		return nil
	}
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	m, err := s.stream.Stream.GetMsg(ask, s.stream.Last)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil // it has expired meanwhile
	}
	if err != nil {
		return fmt.Errorf("read the stream's last message: %w", err)
	}
	e, err := event.FromMessage(m.Header, m.Data)
	if err != nil {
		return nil //nolint:nilerr // a tombstone or no event: handled as one when it comes
	}
	events, err := c.cfg.Store.Read(ctx, store.ReadOptions{After: s.stream.Head() - 1, Through: s.stream.Head(), Limit: 1})
	if err != nil {
		return fmt.Errorf("read position %d: %w", s.stream.Head(), err)
	}
	if len(events) == 0 || events[0].ID != e.ID {
		return &DivergedError{Position: s.stream.Head(), Reason: "it has another event than the stream"}
	}
	return nil
}
