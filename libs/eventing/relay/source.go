package relay

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
)

const (
	// readLimit is the most events in one read.
	readLimit = 1024
	// readBytes is what one read should hold in data, judged from the read before.
	readBytes = 4 << 20
	// nudgeGrace is how long a sweep that finds something waits for the nudge that
	// may be on its way, before it counts the nudge as lost.
	nudgeGrace = time.Second
)

// source reads the log forward: at once when nudged, and in a slow sweep.
type source struct {
	r      *Relay
	sub    *nats.Subscription
	nudged atomic.Int64  // the highest position that was announced
	wake   chan struct{} // holds one token after nudged has grown
}

// newSource listens before anything is read: no nudge can fall between.
func (r *Relay) newSource() (*source, error) {
	s := &source{r: r, wake: make(chan struct{}, 1)}
	var err error
	s.sub, err = bus.OnNudge(r.cfg.NC, func(position int64) {
		if position <= s.nudged.Load() {
			return
		}
		s.nudged.Store(position) // callbacks of one subscription run one after the other
		select {
		case s.wake <- struct{}{}:
		default:
		}
	})
	return s, err
}

func (s *source) close() { _ = s.sub.Unsubscribe() }

// run sends all events after cursor, in order, until ctx ends. It waits out a
// Postgres that is away. Each read begins with the event that was read last, whose
// id is last ("" where it is not known): a log that was taken back meanwhile cannot
// go on under positions that are published already. Its error is that, or that the
// log is not contiguous.
func (s *source) run(ctx context.Context, cursor int64, last string, out chan<- []event.Event) error {
	limit := readLimit
	for ctx.Err() == nil {
		events, err := s.after(ctx, cursor, last, limit)
		if err != nil {
			return err
		}
		if len(events) == 0 {
			// Whatever announced more was wrong, or ahead of its commit: the next
			// announcement or the sweep brings it.
			if n := s.nudged.Load(); n > cursor {
				s.nudged.CompareAndSwap(n, cursor)
			}
		} else {
			size := 0
			for i, e := range events {
				if e.Position != cursor+1+int64(i) {
					return &DivergedError{Position: cursor + 1 + int64(i), Reason: "the log has a gap here"}
				}
				size += len(e.Data)
			}
			select {
			case out <- events:
			case <-ctx.Done():
				return ctx.Err()
			}
			cursor, last = events[len(events)-1].Position, events[len(events)-1].ID
			full := len(events) == limit
			limit = min(readLimit, max(16, readBytes/(1+size/len(events))))
			s.r.update(func(st *Status) { st.Head = max(st.Head, cursor) })
			if full {
				continue
			}
		}
		if err := s.more(ctx, cursor); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// after reads what follows the event last at cursor.
func (s *source) after(ctx context.Context, cursor int64, last string, limit int) ([]event.Event, error) {
	if last == "" || cursor == 0 {
		return s.read(ctx, cursor, limit)
	}
	events, err := s.read(ctx, cursor-1, limit+1)
	switch {
	case err != nil:
		return nil, err
	case len(events) == 0:
		return nil, &DivergedError{Position: cursor, Reason: "the log has lost the event that the stream has"}
	case events[0].Position != cursor || events[0].ID != last:
		return nil, &DivergedError{Position: cursor, Reason: fmt.Sprintf("the stream has event %s, the log %s at %d", last, events[0].ID, events[0].Position)}
	}
	return events[1:], nil
}

// read retries until Postgres answers.
func (s *source) read(ctx context.Context, cursor int64, limit int) ([]event.Event, error) {
	for delay := 10 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		events, err := s.r.cfg.Store.Read(ctx, store.ReadOptions{After: cursor, Limit: limit})
		if err == nil || ctx.Err() != nil {
			return events, ctx.Err()
		}
		s.r.log.Warn("cannot read the log, trying again", "after", cursor, "error", err, "in", delay)
		if !wait(ctx, delay) {
			return nil, ctx.Err()
		}
	}
}

// more returns when there is something after cursor to read.
func (s *source) more(ctx context.Context, cursor int64) error {
	sweep := time.NewTicker(s.r.cfg.SweepInterval)
	defer sweep.Stop()
	for s.nudged.Load() <= cursor {
		select {
		case <-s.wake:
		case <-ctx.Done():
			return ctx.Err()
		case <-sweep.C:
			head, err := s.r.cfg.Store.Head(ctx)
			if err != nil {
				s.r.log.Warn("cannot sweep the log", "error", err)
				continue
			}
			if head > cursor && !s.nudgeArrives(ctx, cursor) {
				s.r.m.sweepFound.Add(ctx, head-cursor)
				s.r.log.Warn("the sweep found events that nobody announced", "after", cursor, "head", head)
				return ctx.Err()
			}
		}
	}
	return nil
}

func (s *source) nudgeArrives(ctx context.Context, cursor int64) bool {
	grace := time.NewTimer(nudgeGrace)
	defer grace.Stop()
	for s.nudged.Load() <= cursor {
		select {
		case <-s.wake:
		case <-grace.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
	return true
}
