package aggregate

import (
	"context"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/deadletter"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
)

// DeadLetterStream names a dead letter's stream.
func DeadLetterStream(id string) event.Stream {
	return event.Stream{Type: catalogue.DeadLetter, ID: id}
}

// EvolveDeadLetter folds one event into l, like EvolveJob.
func EvolveDeadLetter(l deadletter.Letter, e event.Event) (deadletter.Letter, error) {
	if e.StreamVersion <= l.Version {
		return l, nil
	}
	fact, err := Decode(e)
	if err != nil {
		return l, err
	}
	l.ID = e.Stream.ID
	if own, ok := fact.(deadletter.Event); ok {
		return l.Evolve(own, deadletter.At{Version: e.StreamVersion, Time: e.Time}), nil
	}
	l.Version = e.StreamVersion
	return l, nil
}

// LoadDeadLetter folds a dead letter from its events. One that does not exist is NotFound.
func LoadDeadLetter(ctx context.Context, l Loader, id string) (deadletter.Letter, error) {
	return load(ctx, l, DeadLetterStream(id), EvolveDeadLetter)
}

// DeadLetterChange turns what was decided about l into its part of an append. The
// namespace is that of the event that the letter is about.
func DeadLetterChange[F event.Fact](l deadletter.Letter, meta event.Meta, facts []F) (store.Change, error) {
	c := store.Change{Stream: DeadLetterStream(l.ID), Namespace: meta.Namespace, Expected: l.Version}
	for _, fact := range facts {
		if e, ok := any(fact).(deadletter.Event); ok {
			l = l.Evolve(e, deadletter.At{})
		}
	}
	c.State, c.Terminal = string(l.State), !l.State.Open()
	return enclose(c, meta, facts)
}
