package app

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/services/registry/core"
)

// ResolveWorker returns the id of the one worker whose id begins with prefix.
func (a *App) ResolveWorker(ctx context.Context, prefix string) (string, error) {
	return a.resolve(ctx, catalogue.Worker, "worker_id", prefix)
}

// ResolveJob returns the id of the one job whose id begins with prefix.
func (a *App) ResolveJob(ctx context.Context, prefix string) (string, error) {
	return a.resolve(ctx, catalogue.Job, "job_id", prefix)
}

// resolve asks the log only where the id is not complete.
func (a *App) resolve(ctx context.Context, kind, field, prefix string) (string, error) {
	var wrong fault.Fields
	if prefix == "" {
		wrong.Add(field, "is empty")
		return "", wrong.Err("the request")
	}
	if len(prefix) == 36 {
		return strings.ToLower(prefix), nil
	}
	const most = 10
	rows, err := a.Log.FindStreams(ctx, kind, prefix, most+1)
	if err != nil {
		return "", err
	}
	switch len(rows) {
	case 0:
		return "", fault.New(fault.NotFound, "no %s has an id that begins with %q", kind, prefix).
			WithCode("NOT_FOUND", "list what there is: `hodei "+kind+" list`")
	case 1:
		return rows[0].Stream.ID, nil
	}
	var ids []string
	for _, r := range rows[:min(len(rows), most)] {
		ids = append(ids, r.Stream.ID)
	}
	if len(rows) > most {
		ids = append(ids, "...")
	}
	wrong.Add(field, "%q is the beginning of several ids: %s", prefix, strings.Join(ids, ", "))
	return "", wrong.Err("the request")
}

// Worker is a worker as it is now.
func (a *App) Worker(ctx context.Context, id string) (worker.Worker, error) {
	w, err := a.loadWorker(ctx, id)
	return w.Worker, err
}

// WorkerAt is a worker as it was at a version.
func (a *App) WorkerAt(ctx context.Context, id string, version int) (worker.Worker, error) {
	events, err := a.load(ctx, aggregate.WorkerStream(id))
	if err != nil {
		return worker.Worker{}, err
	}
	var k knownWorker
	for _, e := range events {
		if e.StreamVersion > version {
			break
		}
		if err := k.apply(e); err != nil {
			return worker.Worker{}, err
		}
	}
	return k.Worker, nil
}

// Drain has the worker take nothing new, or undoes that, for whom meta names.
func (a *App) Drain(ctx context.Context, meta event.Meta, id string, undo bool) (worker.Worker, error) {
	return a.operate(ctx, meta, id, func(w worker.Worker) ([]worker.Event, error) {
		if undo {
			return w.Undrain(meta.Actor)
		}
		return w.Drain(meta.Actor)
	})
}

// Terminate has the worker destroyed, for whom meta names. One that is going
// already is a typed error.
func (a *App) Terminate(ctx context.Context, meta event.Meta, id, reason string) (worker.Worker, error) {
	text := "terminated by " + meta.Actor
	if reason = core.Clean(reason, 512); reason != "" {
		text += ": " + reason
	}
	return a.operate(ctx, meta, id, func(w worker.Worker) ([]worker.Event, error) {
		return w.Terminate(worker.CauseTerminated, text)
	})
}

func (a *App) operate(ctx context.Context, meta event.Meta, id string, decide func(worker.Worker) ([]worker.Event, error)) (worker.Worker, error) {
	var err error
	for range rounds {
		var w knownWorker
		if w, err = a.loadWorker(ctx, id); err != nil {
			return worker.Worker{}, err
		}
		facts, derr := decide(w.Worker)
		if derr != nil || len(facts) == 0 {
			return w.Worker, derr
		}
		change, cerr := w.change(meta, facts)
		if cerr != nil {
			return worker.Worker{}, cerr
		}
		var events []event.Event
		events, err = a.appendChanges(ctx, change)
		if err == nil {
			for _, e := range events {
				if err := w.apply(e); err != nil {
					return worker.Worker{}, err
				}
			}
			return w.Worker, nil
		}
		if !errors.Is(err, fault.Conflict) {
			break
		}
	}
	return worker.Worker{}, fmt.Errorf("change worker %s: %w", id, err)
}

// Job is a job as it is now.
func (a *App) Job(ctx context.Context, id string) (job.Job, error) {
	k, err := a.loadJob(ctx, id)
	return k.Job, err
}
