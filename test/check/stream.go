package check

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
)

// checkStream compares the events stream with the log: position = base + sequence, every
// position from its first message to its head once, with the log's bytes.
func checkStream(ctx context.Context, cfg Config, log []event.Event, r *Report) error {
	js, err := jetstream.New(cfg.NATS)
	if err != nil {
		return fmt.Errorf("open JetStream: %w", err)
	}
	stream, err := bus.LookupEvents(ctx, js)
	if err != nil {
		return err
	}
	if stream.Deleted > 0 && !cfg.Holes {
		r.add("stream: %d messages are missing inside", stream.Deleted)
	}
	if cfg.AtRest && stream.Head() != int64(len(log)) {
		r.add("stream: ends at position %d, the log at %d", stream.Head(), len(log))
	}
	if stream.Messages == 0 {
		return nil
	}
	cons, err := stream.Stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverAllPolicy})
	if err != nil {
		return fmt.Errorf("read the events stream: %w", err)
	}
	messages, err := cons.Messages()
	if err != nil {
		return fmt.Errorf("read the events stream: %w", err)
	}
	defer messages.Stop()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for last := stream.First - 1; last < stream.Last; {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return fmt.Errorf("read the events stream after %d of %d: %w", last, stream.Last, err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return fmt.Errorf("read the events stream: %w", err)
		}
		if meta.Sequence.Stream != last+1 && !cfg.Holes {
			r.add("stream: sequence %d follows %d", meta.Sequence.Stream, last)
		}
		last = meta.Sequence.Stream
		checkMessage(stream.Base+int64(last), m, log, r)
	}
	return nil
}

func checkMessage(position int64, m jetstream.Msg, log []event.Event, r *Report) {
	if position < 1 || position > int64(len(log)) {
		r.add("stream: position %d is not in the log", position)
		return
	}
	e := log[position-1]
	if p, id, ok := event.TombstoneOf(m.Headers()); ok {
		r.Tombstones = append(r.Tombstones, position)
		if p != position || id != e.ID {
			r.add("stream: position %d has the tombstone of %s at %d, in the log it is %s", position, id, p, e.ID)
		}
		return
	}
	if id := m.Headers().Get("ce-id"); id != e.ID {
		r.add("stream: position %d is event %s, in the log %s", position, id, e.ID)
	} else if !slices.Equal(m.Data(), e.Data) {
		r.add("stream: position %d has other bytes than the log", position)
	}
}
