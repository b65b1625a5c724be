package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/services/scheduler/core"
)

// keyIdempotency is the kind of the keys that clients repeat a call with. A
// client's own job id needs no key: it is the stream's, and a stream is created once.
const keyIdempotency = "idempotency"

// Request is a job to queue.
type Request struct {
	// Meta is the context of the job's events; its correlation id is the job's.
	Meta event.Meta
	// ID is the client's own; empty = one is made.
	ID             string
	Spec           job.Spec
	IdempotencyKey string
	RetryOf        string
}

// Queued is the answer to a Request.
type Queued struct {
	View
	// Existed: the job was queued before, with the same id or key and the same spec.
	Existed bool
}

// Outcome is what became of one job of a batch.
type Outcome struct {
	// ID is the job's; empty where it was refused.
	ID string
	// Existed: the job was queued before, with the same id or key and the same spec.
	Existed bool
	// Err is why it was refused.
	Err error
}

// prepared is a request that is valid.
type prepared struct {
	request Request
	facts   []job.Event
	digest  []byte
	change  store.Change
	keys    []store.Key
	// bytes are the size of its events.
	bytes int64
}

// Queue creates a job and queues it, in one append. The same id or key with the
// same spec returns the first job; with another spec it is AlreadyExists and
// names the fields that differ. Where a limit is reached it is Exhausted, unless the
// job was queued before.
func (a *Jobs) Queue(ctx context.Context, r Request) (Queued, error) {
	p, err := a.prepare(ctx, r, a.providers)
	if err != nil {
		return Queued{}, err
	}
	if err := a.admit(ctx, p); err != nil {
		return a.refused(ctx, p, err)
	}
	return a.queue(ctx, p)
}

func (a *Jobs) admit(ctx context.Context, p prepared) error {
	return a.gate.Admit(ctx, p.request.Spec.Namespace, p.bytes)
}

// settle tells the gate what became of a job: where the log has its first event, the
// one that counts it. events are its own, none where it is not in the log.
func (a *Jobs) settle(p prepared, events []event.Event) {
	position := int64(0)
	if len(events) > 0 {
		position = events[0].Position
	}
	a.gate.Settle(p.request.Spec.Namespace, p.bytes, position)
}

// refused answers a request that there is no room for. A job that was queued before
// needs none: whoever lost the answer gets it.
func (a *Jobs) refused(ctx context.Context, p prepared, why error) (Queued, error) {
	if key := p.request.IdempotencyKey; key != "" {
		held, taken, err := a.log.LookupKey(ctx, p.request.Spec.Namespace, keyIdempotency, key)
		if err != nil {
			return Queued{}, fmt.Errorf("look for a job that was queued before: %w", err)
		}
		if taken {
			return a.existing(ctx, p, held.Stream.ID, held.Digest)
		}
	}
	if p.request.ID != "" {
		switch _, err := a.Get(ctx, p.request.ID); {
		case err == nil:
			return a.existing(ctx, p, p.request.ID, nil)
		case !errors.Is(err, fault.NotFound):
			return Queued{}, err
		}
	}
	return Queued{}, why
}

// queue appends a job that was admitted.
func (a *Jobs) queue(ctx context.Context, p prepared) (Queued, error) {
	events, err := a.log.Append(ctx, store.Append{Changes: []store.Change{p.change}, Keys: p.keys})
	a.settle(p, events)
	var taken *store.KeyTakenError
	switch {
	case err == nil:
		return Queued{View: p.view(events)}, nil
	case errors.As(err, &taken):
		return a.existing(ctx, p, taken.Key.Stream.ID, taken.Key.Digest)
	case errors.Is(err, fault.Conflict):
		return a.existing(ctx, p, p.change.Stream.ID, nil)
	default:
		return Queued{}, fmt.Errorf("queue a job: %w", err)
	}
}

// view folds what was just appended, without decoding it again.
func (p prepared) view(events []event.Event) View {
	v := View{
		Job: job.Job{ID: p.change.Stream.ID}, IdempotencyKey: p.request.IdempotencyKey,
		CorrelationID: p.request.Meta.CorrelationID, QueuedBy: p.request.Meta.Actor,
	}
	for i, e := range events {
		v.Job = v.Job.Evolve(p.facts[i], job.At{Version: e.StreamVersion, Time: e.Time})
		v.LastEventID = e.ID
	}
	return v
}

// existing answers a request whose id or key was used before. digest is what the
// first use had, if known: where it is the same, so is the spec.
func (a *Jobs) existing(ctx context.Context, p prepared, id string, digest []byte) (Queued, error) {
	v, err := a.Get(ctx, id)
	if errors.Is(err, fault.NotFound) {
		return Queued{}, fault.New(fault.AlreadyExists, "the id %s is that of something else than a job", id).
			WithCode("ID_TAKEN", "make a new UUID for the job")
	}
	if err != nil {
		return Queued{}, err
	}
	var fields fault.Fields
	if p.request.ID != "" && p.request.ID != v.ID {
		fields.Add("id", "the job with this idempotency key has the id %s", v.ID)
	}
	if k := p.request.IdempotencyKey; k != "" && k != v.IdempotencyKey {
		fields.Add("idempotency_key", "the job with this id was queued with %q", v.IdempotencyKey)
	}
	if p.request.RetryOf != v.RetryOf {
		fields.Add("retry_of", "job %s is a retry of %q", v.ID, v.RetryOf)
	}
	if !bytes.Equal(digest, p.digest) {
		for _, name := range core.Differences(v.Spec, p.request.Spec) {
			fields.Add(name, "is not what job %s was queued with", v.ID)
		}
	}
	if len(fields) > 0 {
		return Queued{}, &fault.Error{
			Kind: fault.AlreadyExists, Code: "JOB_EXISTS", Fields: fields,
			Message: fmt.Sprintf("job %s has this id or idempotency key already, and differs in %s", v.ID, names(fields)),
			Advice:  "send the same spec to get the first job, or use another id or key for another job",
		}
	}
	return Queued{View: v, Existed: true}, nil
}

func names(fields fault.Fields) string {
	out := make([]string, len(fields))
	for i, f := range fields {
		out[i] = f.Name
	}
	return strings.Join(out, ", ")
}

// prepare validates a request and makes its part of an append.
func (a *Jobs) prepare(ctx context.Context, r Request, providers Providers) (prepared, error) {
	facts, err := job.Create(r.Spec, r.RetryOf, r.IdempotencyKey)
	if err != nil {
		return prepared{}, err
	}
	r.Spec = r.Spec.WithDefaults()
	if err := checkProviders(ctx, providers, r.Spec.Placement); err != nil {
		return prepared{}, err
	}
	p := prepared{request: r, facts: facts}
	if p.digest, err = core.Digest(r.Spec); err != nil {
		return prepared{}, err
	}
	id := r.ID
	if id == "" {
		id = event.NewID()
	}
	if p.change, err = aggregate.JobChange(job.Job{ID: id}, r.Meta, facts); err != nil {
		return prepared{}, err
	}
	for _, e := range p.change.Events {
		p.bytes += int64(len(e.Data))
	}
	if r.IdempotencyKey != "" {
		p.keys = []store.Key{{
			Namespace: r.Spec.Namespace, Kind: keyIdempotency, Value: r.IdempotencyKey, Stream: p.change.Stream, Digest: p.digest,
		}}
	}
	return p, nil
}

// checkProviders refuses names of providers that there are not. A preferred one too:
// it is more likely mistyped than meant.
func checkProviders(ctx context.Context, providers Providers, p job.Placement) error {
	var f fault.Fields
	for _, named := range []struct{ field, name string }{
		{"placement.provider", p.Provider}, {"placement.preferred_provider", p.PreferredProvider},
	} {
		if named.name == "" {
			continue
		}
		known, err := providers.Known(ctx, named.name)
		if err != nil {
			return fmt.Errorf("look for provider %q: %w", named.name, err)
		}
		if !known {
			f.Add(named.field, "there is no provider %q; see `hodei provider list`", clip(named.name))
		}
	}
	return f.Err("the job")
}
