package app

import (
	"context"
	"errors"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/store"
)

// What one append of a batch may have at most, well below the store's limits.
const (
	batchJobs  = 512
	batchBytes = 8 << 20
)

// Batch queues many jobs. Jobs that it is given together are appended together
// where possible; one that is refused does not touch the others. A Batch
// remembers which providers it has seen, so it should not live longer than a call.
type Batch struct {
	jobs      *Jobs
	providers Providers
}

// NewBatch returns a batch that asks for each provider once.
func (a *Jobs) NewBatch() *Batch {
	return &Batch{jobs: a, providers: &remembered{of: a.providers}}
}

// Queue queues the requests and answers each, in their order. Safe for concurrent use.
func (b *Batch) Queue(ctx context.Context, requests []Request) []Outcome {
	out := make([]Outcome, len(requests))
	var group []prepared
	var places []int
	bytes := int64(0)
	flush := func() {
		b.append(ctx, group, places, out)
		group, places, bytes = nil, nil, 0
	}
	for i, r := range requests {
		p, err := b.jobs.prepare(ctx, r, b.providers)
		if err != nil {
			out[i].Err = err
			continue
		}
		if len(group) == batchJobs || bytes+p.bytes > batchBytes {
			flush()
		}
		if err = b.jobs.admit(ctx, p); err != nil && len(group) > 0 {
			flush() // what it waits for may be its own
			err = b.jobs.admit(ctx, p)
		}
		if err != nil {
			q, err := b.jobs.refused(ctx, p, err)
			out[i] = Outcome{ID: q.ID, Existed: q.Existed, Err: err}
			continue
		}
		group, places, bytes = append(group, p), append(places, i), bytes+p.bytes
	}
	flush()
	return out
}

// append tries all at once, and each alone where one of them stands in the way.
func (b *Batch) append(ctx context.Context, group []prepared, places []int, out []Outcome) {
	if len(group) == 0 {
		return
	}
	var all store.Append
	for _, p := range group {
		all.Changes, all.Keys = append(all.Changes, p.change), append(all.Keys, p.keys...)
	}
	events, err := b.jobs.log.Append(ctx, all)
	switch {
	case err == nil:
		for i, p := range group {
			b.jobs.settle(p, events[:len(p.facts)])
			events = events[len(p.facts):]
			out[places[i]].ID = p.change.Stream.ID
		}
	case errors.Is(err, fault.Conflict), errors.Is(err, fault.AlreadyExists), errors.Is(err, fault.Invalid):
		for i, p := range group {
			q, err := b.jobs.queue(ctx, p)
			out[places[i]] = Outcome{ID: q.ID, Existed: q.Existed, Err: err}
		}
	default:
		for i, p := range group {
			b.jobs.settle(p, nil)
			out[places[i]].Err = err
		}
	}
}
