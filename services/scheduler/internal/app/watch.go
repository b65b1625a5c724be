package app

import (
	"context"
	"slices"

	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/service/aggregate"
)

// Feed announces the events of one job as they come.
type Feed interface {
	// Next waits for events, or for the news that some were missed (resync): then
	// the log has to be asked. It returns ctx's error when that ends.
	Next(ctx context.Context) (events []event.Event, resync bool, err error)
}

// Watch calls send with the job as it is and then at each change, and returns
// nil after the terminal state. The feed must have been opened before: then
// nothing falls between the first look and the first event.
func (a *Jobs) Watch(ctx context.Context, id string, feed Feed, send func(View) error) error {
	v, err := a.Get(ctx, id)
	if err != nil {
		return err
	}
	if err := send(v); err != nil {
		return err
	}
	for !v.State.Terminal() {
		events, resync, err := feed.Next(ctx)
		if err != nil {
			return err
		}
		if resync || gap(v, events) {
			if events, err = a.log.Load(ctx, aggregate.JobStream(v.ID), v.Version); err != nil {
				return err
			}
		}
		if v, err = advance(v, events, send); err != nil {
			return err
		}
	}
	return nil
}

// gap tells whether an event is missing between the view and the last of the events.
func gap(v View, events []event.Event) bool {
	version := v.Version
	for _, e := range events {
		if e.StreamVersion > version+1 {
			return true
		}
		version = max(version, e.StreamVersion)
	}
	return false
}

// advance folds events one by one and sends each change that can be seen.
func advance(v View, events []event.Event, send func(View) error) (View, error) {
	for _, e := range events {
		next, err := v.Evolve(e)
		if err != nil {
			return v, err
		}
		changed := visible(v, next)
		v = next
		if changed {
			if err := send(v); err != nil {
				return v, err
			}
		}
		if v.State.Terminal() {
			break
		}
	}
	return v, nil
}

// visible tells whether a watcher would see a difference; notices make none.
func visible(a, b View) bool {
	return a.State != b.State || a.Attempt != b.Attempt || a.WorkerID != b.WorkerID || a.Reason != b.Reason ||
		(a.Cancel == nil) != (b.Cancel == nil) || !slices.Equal(a.Deferred, b.Deferred) ||
		!a.NotBefore.Equal(b.NotBefore)
}
