// Package letters keeps dead letters in the event log, as the aggregate of
// libs/domain/deadletter, for consumers and for the relay. It is where the domain's
// letter meets the transport's; it decides nothing.
//
// No letter causes a letter: what is about a letter (an event of the aggregate
// deadletter) is never recorded here, only logged by its consumer.
package letters

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/deadletter"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/consumer"
	transport "hodei.dev/libs/eventing/deadletter"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
)

// Log is the part of the event log that letters need. *store.Store is one.
type Log interface {
	aggregate.Loader
	store.Appender
	Read(ctx context.Context, o store.ReadOptions) ([]event.Event, error)
	Snapshot(ctx context.Context, o store.SnapshotOptions, fn func(event.Event) error) (int64, error)
}

// Letters is consumer.Letters for one service. Safe for concurrent use.
type Letters struct {
	log     Log
	service string
}

var _ consumer.Letters = (*Letters)(nil)

// New returns the letters of a service.
func New(log Log, service string) *Letters { return &Letters{log: log, service: service} }

// ID is the id of the letter of one event for one consumer: the same whenever the
// consumer fails with it, so that it is recorded once.
func ID(consumer, eventID string) string {
	return uuid.NewSHA1(uuid.NameSpaceURL, []byte("hodei:deadletter:"+consumer+":"+eventID)).String()
}

// Types implements consumer.Letters.
func (*Letters) Types() []string {
	return []string{deadletter.TypeReplayRequested, deadletter.TypeDiscarded}
}

// Record implements consumer.Letters.
func (s *Letters) Record(ctx context.Context, l transport.Letter) (v consumer.Verdict, err error) {
	if l.Event != nil && l.Event.Stream.Type == catalogue.DeadLetter {
		return v, nil
	}
	err = s.decide(ctx, idOf(l), metaOf(l, s.service), func(have deadletter.Letter) ([]deadletter.Event, error) {
		v = consumer.Verdict{}
		switch {
		case have.State == deadletter.StateDiscarded:
			v.Discarded = true
			return nil, nil
		case have.State == deadletter.StateReplaying && !l.Replayed:
			return nil, nil // met again before the replay that waits in the log: that one answers
		case have.State == deadletter.StateReplayed && len(have.Edited) > 0 && l.Event != nil && !l.Replayed:
			e := *l.Event
			e.Data = have.Edited
			v.Edited = &e
			return nil, nil
		}
		return have.Record(recorded(l)), nil
	})
	if err != nil {
		return v, fmt.Errorf("record a dead letter of %s: %w", l.Consumer, err)
	}
	return v, nil
}

// Order implements consumer.Letters.
func (s *Letters) Order(ctx context.Context, name string, e event.Event) (o consumer.Order, mine bool, err error) {
	l, err := aggregate.LoadDeadLetter(ctx, s.log, e.Stream.ID)
	if err != nil {
		return o, false, err
	}
	if l.Consumer != name || l.Kind != deadletter.KindEvent {
		return o, false, nil
	}
	o = consumer.Order{Decision: e, Discard: e.Type == deadletter.TypeDiscarded, WithParked: l.WithParked}
	if !o.Discard && (l.State != deadletter.StateReplaying || l.Version != e.StreamVersion) {
		return o, false, nil // answered
	}
	original, err := s.log.Read(ctx, store.ReadOptions{After: l.Position - 1, Through: l.Position, Limit: 1})
	if err != nil {
		return o, false, err
	}
	if len(original) != 1 || original[0].ID != l.OriginalID {
		return o, false, fault.New(fault.Internal, "the log has another event at position %d than %s of dead letter %s", l.Position, l.OriginalID, l.ID)
	}
	o.Event = original[0]
	if !o.Discard && len(l.Edited) > 0 {
		o.Event.Data = l.Edited
	}
	return o, true, nil
}

// Pending implements consumer.Letters.
func (s *Letters) Pending(ctx context.Context) (events []event.Event, err error) {
	_, err = s.log.Snapshot(ctx, store.SnapshotOptions{
		StreamTypes: []string{catalogue.DeadLetter}, EventTypes: []string{deadletter.TypeReplayRequested},
	}, func(e event.Event) error {
		events = append(events, e)
		return nil
	})
	return events, err
}

// Replayed implements consumer.Letters.
func (s *Letters) Replayed(ctx context.Context, o consumer.Order, unparked int) error {
	err := s.decide(ctx, o.Decision.Stream.ID, o.Decision.CausedBy(s.service), func(have deadletter.Letter) ([]deadletter.Event, error) {
		if have.Version != o.Decision.StreamVersion {
			return nil, nil // answered before a crash
		}
		return have.Succeed(unparked)
	})
	if err != nil {
		return fmt.Errorf("answer the replay of dead letter %s: %w", o.Decision.Stream.ID, err)
	}
	return nil
}

// Abandon implements consumer.Letters.
func (s *Letters) Abandon(ctx context.Context, o consumer.Order, letters []transport.Letter) error {
	discard, err := aggregate.Decode(o.Decision)
	if err != nil {
		return err
	}
	reason := fmt.Sprintf("with dead letter %s", o.Decision.Stream.ID)
	if d, ok := discard.(deadletter.Discarded); ok && d.Reason != "" {
		reason += ": " + d.Reason
	}
	for _, l := range letters {
		meta := metaOf(l, s.service)
		meta.CausationID = o.Decision.ID
		err := s.decide(ctx, idOf(l), meta, func(have deadletter.Letter) ([]deadletter.Event, error) {
			if have.State == deadletter.StateDiscarded {
				return nil, nil
			}
			facts := have.Record(recorded(l))
			for _, fact := range facts {
				have = have.Evolve(fact, deadletter.At{Version: have.Version})
			}
			given, err := have.Discard(o.Decision.Actor, reason, false)
			return append(facts, given...), err
		})
		if err != nil {
			return fmt.Errorf("give up position %d: %w", l.Position, err)
		}
	}
	return nil
}

// Unpublishable keeps a letter of an event that the relay can never publish.
func (s *Letters) Unpublishable(ctx context.Context, e event.Event, reason string) error {
	if e.Stream.Type == catalogue.DeadLetter {
		return nil
	}
	l := transport.Letter{Service: s.service, Consumer: s.service, Event: &e, Position: e.Position, Error: reason, Deliveries: 1, First: e.Time, Last: e.Time}
	err := s.decide(ctx, idOf(l), metaOf(l, s.service), func(have deadletter.Letter) ([]deadletter.Event, error) {
		r := recorded(l)
		r.Kind = deadletter.KindUnpublishable
		return have.Record(r), nil
	})
	if err != nil {
		return fmt.Errorf("record a dead letter of %s: %w", s.service, err)
	}
	return nil
}

// decide loads the letter, decides and appends, again where somebody else was first.
func (s *Letters) decide(ctx context.Context, id string, meta event.Meta, fn func(deadletter.Letter) ([]deadletter.Event, error)) error {
	for {
		l, err := aggregate.LoadDeadLetter(ctx, s.log, id)
		if errors.Is(err, fault.NotFound) {
			l, err = deadletter.Letter{ID: id}, nil
		}
		if err != nil {
			return err
		}
		facts, err := fn(l)
		if err != nil || len(facts) == 0 {
			return err
		}
		change, err := aggregate.DeadLetterChange(l, meta, facts)
		if err != nil {
			return err
		}
		_, err = s.log.Append(ctx, store.Append{Changes: []store.Change{change}})
		if !errors.Is(err, fault.Conflict) {
			return err
		}
	}
}

func idOf(l transport.Letter) string {
	if l.Event == nil {
		return ID(l.Consumer, fmt.Sprintf("position %d", l.Position))
	}
	return ID(l.Consumer, l.Event.ID)
}

// metaOf puts the letter beside its event: same correlation and namespace.
func metaOf(l transport.Letter, service string) event.Meta {
	if l.Event == nil {
		return event.Meta{
			Source: service, Namespace: event.NoNamespace, CorrelationID: idOf(l), Actor: "service/" + service,
		}
	}
	return l.Event.CausedBy(service)
}

func recorded(l transport.Letter) deadletter.Recorded {
	r := deadletter.Recorded{
		Subject: deadletter.Subject{Service: l.Service, Consumer: l.Consumer, Kind: deadletter.KindUnreadable, Position: l.Position},
		Error:   l.Error, Attempts: l.Deliveries, FirstAt: l.First.UTC(), LastAt: l.Last.UTC(),
	}
	if e := l.Event; e != nil {
		r.Kind, r.Parks = deadletter.KindEvent, l.Parks
		r.OriginalID, r.OriginalType, r.OriginalVersion, r.Aggregate = e.ID, e.Type, e.Version, e.Stream.String()
	}
	return r
}
