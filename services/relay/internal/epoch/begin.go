package epoch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/domain/eventlog"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/relay"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
)

// maxGivenUp is how many events that the log has lost are listed.
const maxGivenUp = 1000

// Plan is what a new epoch does: it gives up Stream and begins after Base.
type Plan struct {
	Reason  string
	Stream  bus.Events
	LogHead int64
	// Agreed is the last position at which stream and log say the same.
	Agreed int64
	Base   int64
	// GivenUp are the events that only the stream has, as many as are listed.
	GivenUp []relay.Difference
}

// Operator is what an operator may have done to the events stream.
type Operator struct {
	Log interface {
		Log
		relay.FullLog
	}
	Pool *pgxpool.Pool
	JS   jetstream.JetStream
}

// Base is where a new stream begins: the lowest position that any consumer has
// stored, and never above the log's head.
func Base(ctx context.Context, log Log, pool *pgxpool.Pool) (int64, error) {
	lowest, err := consumer.Lowest(ctx, pool)
	if err != nil {
		return 0, err
	}
	head, err := log.Head(ctx)
	if err != nil {
		return 0, err
	}
	return min(lowest, head), nil
}

// Plan says what a new epoch would do. A log that was taken back is found quickly,
// a single difference by reading everything. Where stream and log agree it is a
// fault.Precondition: nothing is gained by giving the stream up.
func (o *Operator) Plan(ctx context.Context) (Plan, error) {
	c, err := relay.Sample(ctx, o.Log, o.JS, 0)
	if errors.Is(err, bus.ErrNoBase) {
		return o.foreign(ctx)
	}
	if err == nil && len(c.First) == 1 {
		return o.takenBack(ctx, c)
	}
	if err == nil {
		c, err = relay.Compare(ctx, o.Log, o.JS, maxGivenUp, func(relay.Comparison) error { return nil })
	}
	if err != nil {
		return Plan{}, fmt.Errorf("compare stream and log: %w", err)
	}
	p := Plan{Stream: c.Stream, LogHead: c.LogHead, Agreed: min(c.LogHead, c.Stream.Head())}
	if p.Base, err = Base(ctx, o.Log, o.Pool); err != nil {
		return Plan{}, err
	}
	for _, d := range c.First {
		if d.Kind == relay.Different || d.Kind == relay.Beyond {
			p.GivenUp = append(p.GivenUp, d)
			p.Agreed = min(p.Agreed, d.Position-1)
		}
	}
	if n := c.Counts[relay.Different] + c.Counts[relay.Beyond]; n > 0 {
		p.Reason = fmt.Sprintf("the stream has %d events from position %d on that the log does not", n, p.Agreed+1)
		return p, nil
	}
	return p, fault.New(fault.Precondition, "stream and log agree up to position %d: no new epoch is needed", p.Agreed).
		WithCode("EPOCH_NOT_NEEDED", "see `hodei doctor` for what else may be off")
}

// takenBack is the plan for a stream that has, from one position on, what the log
// has not: all of that is given up.
func (o *Operator) takenBack(ctx context.Context, c relay.Comparison) (p Plan, err error) {
	from := c.First[0].Position
	p = Plan{Stream: c.Stream, LogHead: c.LogHead, Agreed: from - 1}
	p.Reason = fmt.Sprintf("the stream has %d events from position %d on that the log does not: %s", c.Stream.Head()-p.Agreed, from, c.First[0].Detail)
	if p.GivenUp, err = relay.Tail(ctx, c.Stream, from, maxGivenUp); err != nil {
		return p, err
	}
	p.Base, err = Base(ctx, o.Log, o.Pool)
	return p, err
}

// foreign is the plan for a stream of the right name that the relay has not made.
func (o *Operator) foreign(ctx context.Context) (Plan, error) {
	head, err := o.Log.Head(ctx)
	if err != nil {
		return Plan{}, err
	}
	s, err := o.JS.Stream(ctx, bus.EventsStream)
	if err != nil {
		return Plan{}, fmt.Errorf("look up the stream: %w", err)
	}
	p := Plan{Reason: bus.ErrNoBase.Message, LogHead: head, Stream: bus.Events{Created: s.CachedInfo().Created, Last: s.CachedInfo().State.LastSeq}}
	p.Base, err = Base(ctx, o.Log, o.Pool)
	return p, err
}

// Begin gives the stream up: the request is recorded first, under who asked, then
// the stream is deleted; whichever relay is active makes the next one. created is
// the stream that the caller has looked at; zero = any. The returned id is that of
// the event.
func (o *Operator) Begin(ctx context.Context, meta event.Meta, created time.Time) (Plan, string, error) {
	p, err := o.Plan(ctx)
	if err != nil {
		return p, "", err
	}
	if !created.IsZero() && !created.Equal(p.Stream.Created) {
		return p, "", fault.New(fault.Precondition, "the events stream is another one than you have looked at: it was created at %s",
			p.Stream.Created.Format(time.RFC3339)).WithCode("EPOCH_STREAM_CHANGED", "look again: `hodei doctor`")
	}
	log, _, err := aggregate.LoadLog(ctx, o.Log)
	if err != nil {
		return p, "", err
	}
	facts, err := log.RequestEpoch(eventlog.EpochRequested{
		Reason: p.Reason, Stream: p.Stream.Created, Base: p.Stream.Base, StreamHead: p.Stream.Head(), LogHead: p.LogHead, Agreed: p.Agreed,
	})
	if err != nil {
		return p, "", err
	}
	change, err := aggregate.LogChange(log, meta, facts)
	if err != nil {
		return p, "", err
	}
	events, err := o.Log.Append(ctx, store.Append{Changes: []store.Change{change}})
	if err != nil {
		return p, "", fmt.Errorf("record the new epoch: %w", err)
	}
	if err := o.JS.DeleteStream(ctx, bus.EventsStream); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return p, "", fault.Wrap(fault.Unavailable, err, "the new epoch is recorded, but the stream could not be removed: ask again")
	}
	return p, events[0].ID, nil
}
