package relay

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
)

// compareBatch is how many positions are held in memory at a time.
const compareBatch = 2000

// FullLog is the part of the event log that a full comparison reads.
// *store.Store is one.
type FullLog interface {
	Log
	// Fingerprints returns what identifies the events after a position, in order.
	Fingerprints(ctx context.Context, after int64, limit int) ([]store.Fingerprint, error)
}

// Kind is one way in which log and stream can fail to agree.
type Kind string

// The kinds of difference.
const (
	// Gap: the log has nothing at a position below its head.
	Gap Kind = "gap"
	// Damaged: the log's data does not have the digest that was stored with it.
	Damaged Kind = "damaged"
	// Different: the stream has another event, or other bytes, than the log.
	Different Kind = "different"
	// Beyond: the stream has a position above the log's head.
	Beyond Kind = "beyond"
	// Missing: a message was deleted from inside the stream; consumers read the log.
	Missing Kind = "missing"
	// Tombstone: the event could never be published; the log has it.
	Tombstone Kind = "tombstone"
)

// Difference is one position where log and stream do not say the same.
type Difference struct {
	Kind     Kind
	Position int64
	// EventID, Type and Stream are the log's, or the stream's where the log has none.
	EventID, Type, Stream string
	// Detail says what differs.
	Detail string
}

// Comparison is what a full comparison has found so far.
type Comparison struct {
	// LogHead and Stream are as they were when it began; it goes no further.
	LogHead int64
	Stream  bus.Events
	// Checked is the position that it has reached, Total the last that it will.
	Checked, Total int64
	// Compared counts positions that both have and that agree; Expired those that
	// only the log has because the stream has let them go by age, or never had them;
	// Unpublished those above the stream's head.
	Compared, Expired, Unpublished int64
	// Counts is how many differences there are of each kind.
	Counts map[Kind]int64
	// First lists the first differences, as many as were asked for.
	First []Difference
}

func (c *Comparison) add(limit int, d Difference) {
	c.Counts[d.Kind]++
	if len(c.First) < limit {
		c.First = append(c.First, d)
	}
}

// Compare reads the whole log and the whole stream, side by side, and tells where
// they do not say the same: position, id and digest of every event. It holds a
// fixed number of positions in memory, reports now and then how far it is, ends
// when ctx ends, and disturbs neither publishing nor consumers. At most limit
// differences are listed; all are counted. Where there is no stream, the log alone
// is read. Its error means that it could not look.
func Compare(ctx context.Context, log FullLog, js jetstream.JetStream, limit int, progress func(Comparison) error) (Comparison, error) {
	c := Comparison{Counts: map[Kind]int64{}}
	stream, err := bus.LookupEvents(ctx, js)
	if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return c, err
	}
	// The stream first: what it holds then, the log has had since before.
	if c.LogHead, err = log.Head(ctx); err != nil {
		return c, fmt.Errorf("read the log's head: %w", err)
	}
	c.Stream, c.Total = stream, max(c.LogHead, stream.Head())
	r := &comparer{Comparison: &c, limit: limit, log: log}
	if stream.Messages > 0 {
		if r.messages, err = newReader(ctx, js, stream); err != nil {
			return c, err
		}
		defer r.messages.stop()
	}
	for c.Checked < c.Total {
		if err := r.batch(ctx); err != nil {
			return c, err
		}
		if err := progress(c); err != nil {
			return c, err
		}
	}
	return c, nil
}

// comparer walks over both sides.
type comparer struct {
	*Comparison
	limit    int
	log      FullLog
	messages *reader // nil where the stream has none
}

// batch compares the next positions.
func (r *comparer) batch(ctx context.Context) error {
	prints, err := r.log.Fingerprints(ctx, r.Checked, compareBatch)
	if err != nil {
		return err
	}
	through := min(r.Checked+compareBatch, r.Total)
	for position := r.Checked + 1; position <= through; position++ {
		var own *store.Fingerprint
		if len(prints) > 0 && prints[0].Position == position {
			own, prints = &prints[0], prints[1:]
			if !own.Intact {
				r.note(Damaged, position, own, "the data does not have the digest that was stored with it")
			}
		} else if position <= r.LogHead {
			r.note(Gap, position, nil, "the log has nothing here")
		}
		if err := r.position(ctx, position, own); err != nil {
			return err
		}
	}
	r.Checked = through
	return nil
}

// position compares one position of the stream with the log's event, if there is one.
func (r *comparer) position(ctx context.Context, position int64, own *store.Fingerprint) error {
	switch {
	case position > r.Stream.Head():
		r.Unpublished++
		return nil
	case position < r.Stream.Start():
		r.Expired++
		return nil
	}
	m, err := r.messages.at(ctx, position)
	if err != nil {
		return err
	}
	if m == nil {
		if position <= r.LogHead {
			r.note(Missing, position, own, "the stream has lost this message; consumers read it from the log")
		}
		return nil
	}
	if own == nil {
		r.strange(position, m)
		return nil
	}
	if _, id, ok := event.TombstoneOf(m.Headers()); ok && id == own.ID {
		r.note(Tombstone, position, own, "the event could not be published")
		return nil
	}
	if detail := unlike(*own, m); detail != "" {
		r.note(Different, position, own, detail)
		return nil
	}
	r.Compared++
	return nil
}

func (r *comparer) note(kind Kind, position int64, own *store.Fingerprint, detail string) {
	d := Difference{Kind: kind, Position: position, Detail: detail}
	if own != nil {
		d.EventID, d.Type, d.Stream = own.ID, own.Type, own.Stream.String()
	}
	r.add(r.limit, d)
}

// strange notes a message whose position the log does not have.
func (r *comparer) strange(position int64, m jetstream.Msg) {
	d := Difference{Kind: Beyond, Position: position, Detail: "the log ends before this event, which the stream has"}
	if position <= r.LogHead {
		return // noted as a gap
	}
	if e, err := event.FromMessage(m.Headers(), m.Data()); err == nil {
		d.EventID, d.Type, d.Stream = e.ID, e.Type, e.Stream.String()
	}
	r.add(r.limit, d)
}

// unlike says what the stream's message has that the log's event has not.
func unlike(own store.Fingerprint, m jetstream.Msg) string {
	got, err := event.FromMessage(m.Headers(), m.Data())
	if err != nil {
		return fmt.Sprintf("the stream has no event here: %v", err)
	}
	digest := sha256.Sum256(m.Data())
	switch {
	case got.Position != own.Position:
		return fmt.Sprintf("the stream's message says it is %d", got.Position)
	case got.ID != own.ID:
		return "the stream has event " + got.ID
	case !bytes.Equal(digest[:], own.Digest):
		return "the same event has other data in the stream"
	}
	return ""
}

// reader reads the stream forward.
type reader struct {
	base int64
	it   jetstream.MessagesContext
	cons jetstream.Consumer
	drop func()
	next jetstream.Msg // read and not asked for yet
	last int64         // the position after which nothing is read
}

func newReader(ctx context.Context, js jetstream.JetStream, stream bus.Events) (*reader, error) {
	// It is its own and forgets itself: nothing is left where this process dies.
	cons, err := js.CreateConsumer(ctx, bus.EventsStream, jetstream.ConsumerConfig{
		Description: "A comparison of the stream with the log.", DeliverPolicy: jetstream.DeliverByStartSequencePolicy,
		OptStartSeq: max(stream.First, 1), AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true, InactiveThreshold: time.Minute, Replicas: 1,
	})
	if err != nil {
		return nil, fmt.Errorf("read the stream: %w", err)
	}
	it, err := cons.Messages(jetstream.PullMaxMessagesWithBytesLimit(compareBatch, 16<<20))
	if err != nil {
		return nil, fmt.Errorf("read the stream: %w", err)
	}
	name := cons.CachedInfo().Name
	drop := func() {
		ask, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
		defer cancel()
		_ = js.DeleteConsumer(ask, bus.EventsStream, name) // else it ends by itself
	}
	return &reader{base: stream.Base, it: it, cons: cons, drop: drop, last: stream.Head()}, nil
}

func (r *reader) stop() {
	r.it.Stop()
	r.drop()
}

// at returns the message of a position; nil where the stream has none. Positions
// are asked for in order.
func (r *reader) at(ctx context.Context, position int64) (jetstream.Msg, error) {
	for r.next == nil || r.place(r.next) < position {
		m, err := r.it.Next(jetstream.NextContext(ctx))
		if err != nil {
			return nil, fmt.Errorf("read position %d of the stream: %w", position, err)
		}
		r.next = m
	}
	if r.place(r.next) > position {
		return nil, nil
	}
	return r.next, nil
}

func (r *reader) place(m jetstream.Msg) int64 {
	meta, err := m.Metadata()
	if err != nil {
		return 0 // not a message of the stream: passed over
	}
	return r.base + int64(meta.Sequence.Stream)
}

// Sample compares both ends of the stream and n positions between them. It takes
// milliseconds, and finds a log that was taken back for certain, a single difference
// by luck.
func Sample(ctx context.Context, log Log, js jetstream.JetStream, n int) (Comparison, error) {
	c := Comparison{Counts: map[Kind]int64{}}
	stream, err := bus.LookupEvents(ctx, js)
	if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return c, err
	}
	if c.LogHead, err = log.Head(ctx); err != nil {
		return c, fmt.Errorf("read the log's head: %w", err)
	}
	c.Stream, c.Total = stream, max(c.LogHead, stream.Head())
	c.Unpublished, c.Expired = max(0, c.LogHead-stream.Head()), max(0, min(c.LogHead, stream.Start()-1))
	if stream.Deleted > 0 {
		c.Counts[Missing] = int64(stream.Deleted)
	}
	r := &Relay{cfg: Config{Store: log, JS: js}, log: slog.New(slog.DiscardHandler)}
	err = r.check(ctx, stream, n)
	if diverged, ok := errors.AsType[*DivergedError](err); ok {
		kind := Different
		if diverged.Position > c.LogHead {
			kind = Beyond
		}
		c.add(1, Difference{Kind: kind, Position: diverged.Position, Detail: diverged.Reason})
		return c, nil
	}
	if err == nil && stream.Messages > 0 {
		c.Compared = int64(n) + 2
	}
	c.Checked = c.Total
	return c, err
}

// Tail lists what the stream has from a position on, at most limit events: what is
// lost with a stream that is given up there.
func Tail(ctx context.Context, stream bus.Events, from int64, limit int) ([]Difference, error) {
	var out []Difference
	for position := from; position <= stream.Head() && len(out) < limit; position++ {
		m, err := stream.Stream.GetMsg(ctx, uint64(position-stream.Base))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read position %d of the stream: %w", position, err)
		}
		d := Difference{Kind: Beyond, Position: position, Detail: "only the stream has it"}
		if e, err := event.FromMessage(m.Header, m.Data); err == nil {
			d.EventID, d.Type, d.Stream = e.ID, e.Type, e.Stream.String()
		}
		out = append(out, d)
	}
	return out, nil
}
