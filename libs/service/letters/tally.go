package letters

import (
	"context"
	"fmt"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/deadletter"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
)

// Holder is whose letter it is: a consumer of a service.
type Holder struct{ Service, Consumer string }

// Counted is the part of the event log that a tally needs. *store.Store is one.
type Counted interface {
	Read(ctx context.Context, o store.ReadOptions) ([]event.Event, error)
	Snapshot(ctx context.Context, o store.SnapshotOptions, fn func(event.Event) error) (int64, error)
	Head(ctx context.Context) (int64, error)
}

// Tally counts the letters that are open. The first count reads the open ones,
// each further one only what became of letters since. It is for one goroutine.
type Tally struct {
	log      Counted
	position int64 // up to which the log is counted
	open     map[string]Holder
}

// NewTally returns a tally that has not counted yet.
func NewTally(log Counted) *Tally { return &Tally{log: log} }

// settling are the types that open a letter or settle it.
var settling = []string{deadletter.TypeRecorded, deadletter.TypeReplayed, deadletter.TypeDiscarded}

// Count returns how many letters are open of each holder that has any.
func (t *Tally) Count(ctx context.Context) (map[Holder]int, error) {
	if err := t.follow(ctx); err != nil {
		return nil, fmt.Errorf("count the open dead letters: %w", err)
	}
	counts := map[Holder]int{}
	for _, h := range t.open {
		counts[h]++
	}
	return counts, nil
}

func (t *Tally) follow(ctx context.Context) error {
	head, err := t.log.Head(ctx)
	if err != nil {
		return err
	}
	if t.open == nil || head < t.position { // the log was taken back
		return t.begin(ctx)
	}
	const batch = 1000
	for t.position < head {
		events, err := t.log.Read(ctx, store.ReadOptions{After: t.position, Through: head, Types: settling, Limit: batch})
		if err != nil {
			return err
		}
		for _, e := range events {
			if err := t.take(e); err != nil {
				return err
			}
			t.position = e.Position
		}
		if len(events) < batch {
			t.position = head
		}
	}
	return nil
}

func (t *Tally) begin(ctx context.Context) (err error) {
	t.open = map[string]Holder{}
	t.position, err = t.log.Snapshot(ctx, store.SnapshotOptions{
		StreamTypes: []string{catalogue.DeadLetter}, EventTypes: []string{deadletter.TypeRecorded},
	}, t.take)
	if err != nil {
		t.open = nil
	}
	return err
}

func (t *Tally) take(e event.Event) error {
	if e.Type != deadletter.TypeRecorded {
		delete(t.open, e.Stream.ID)
		return nil
	}
	fact, err := aggregate.Decode(e)
	if err != nil {
		return err
	}
	if r, ok := fact.(deadletter.Recorded); ok {
		t.open[e.Stream.ID] = Holder{Service: r.Service, Consumer: r.Consumer}
	}
	return nil
}
