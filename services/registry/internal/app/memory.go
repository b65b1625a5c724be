package app

import (
	"context"
	"fmt"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
)

// thread is what ties an aggregate's next event to those before it.
type thread struct {
	// correlationID is that of the aggregate's first event.
	correlationID string
	// lastID, traceParent and traceState are of its latest event.
	lastID, traceParent, traceState string
}

func (t *thread) follow(e event.Event) {
	if t.correlationID == "" {
		t.correlationID = e.CorrelationID
	}
	t.lastID, t.traceParent, t.traceState = e.ID, e.TraceParent, e.TraceState
}

func (t *thread) meta(actor string) event.Meta {
	return event.Meta{
		Source: name, Actor: actor, CorrelationID: t.correlationID, CausationID: t.lastID,
		TraceParent: t.traceParent, TraceState: t.traceState,
	}
}

// knownJob is a job as far as it has been read.
type knownJob struct {
	job.Job
	thread
	// rejected are the results that the log keeps as evidence.
	rejected []job.ResultRejected
}

// knownWorker is a worker as far as it has been read.
type knownWorker struct {
	worker.Worker
	thread
	registered bool
}

func (a *App) loadJob(ctx context.Context, id string) (knownJob, error) {
	var k knownJob
	events, err := a.load(ctx, aggregate.JobStream(id))
	if err != nil {
		return k, err
	}
	for _, e := range events {
		if err := k.apply(e); err != nil {
			return k, err
		}
	}
	return k, nil
}

func (k *knownJob) apply(e event.Event) error {
	if e.StreamVersion <= k.Version {
		return nil
	}
	j, err := aggregate.EvolveJob(k.Job, e)
	if err != nil {
		return err
	}
	k.Job = j
	k.follow(e)
	if e.Type == (job.ResultRejected{}).EventType() {
		fact, err := aggregate.Decode(e)
		if err != nil {
			return err
		}
		if r, ok := fact.(job.ResultRejected); ok {
			k.rejected = append(k.rejected, r)
		}
	}
	return nil
}

func (a *App) loadWorker(ctx context.Context, id string) (knownWorker, error) {
	var k knownWorker
	events, err := a.load(ctx, aggregate.WorkerStream(id))
	if err != nil {
		return k, err
	}
	for _, e := range events {
		if err := k.apply(e); err != nil {
			return k, err
		}
	}
	return k, nil
}

func (k *knownWorker) apply(e event.Event) error {
	if e.StreamVersion <= k.Version {
		return nil
	}
	w, err := aggregate.EvolveWorker(k.Worker, e)
	if err != nil {
		return err
	}
	k.Worker = w
	k.follow(e)
	k.registered = k.registered || e.Type == (worker.Registered{}).EventType()
	return nil
}

func (a *App) load(ctx context.Context, s event.Stream) ([]event.Event, error) {
	events, err := a.Log.Load(ctx, s, 0)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", s, err)
	}
	if len(events) == 0 {
		return nil, fault.New(fault.NotFound, "there is no %s %s", s.Type, s.ID).
			WithCode("NOT_FOUND", "list what there is: `hodei "+s.Type+" list`")
	}
	return events, nil
}

// change is the job's part of an append.
func (k knownJob) change(meta event.Meta, facts []job.Event) (store.Change, error) {
	if len(facts) == 0 {
		return store.Change{}, nil
	}
	return aggregate.JobChange(k.Job, meta, facts)
}

// change is the worker's part of an append.
func (k knownWorker) change(meta event.Meta, facts []worker.Event) (store.Change, error) {
	if len(facts) == 0 {
		return store.Change{}, nil
	}
	return aggregate.WorkerChange(k.Worker, meta, facts)
}
