package app

import (
	"context"
	"errors"
	"fmt"

	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/unit"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/libs/service/command"
	"hodei.dev/services/registry/core"
)

// Reacts are the types of the events that have consequences here.
func Reacts() []string {
	return []string{
		job.CancelRequested{}.EventType(), worker.Provisioned{}.EventType(), worker.StatusChanged{}.EventType(),
		worker.Terminated{}.EventType(), deadline.TimedOut{}.EventType(),
	}
}

// React does what follows from an event of the log. It may see an event again.
func (a *App) React(ctx context.Context, e event.Event) error {
	fact, err := aggregate.Decode(e)
	if err != nil {
		return err
	}
	switch f := fact.(type) {
	case job.CancelRequested:
		if f.WorkerID != "" && f.State.HasWorker() {
			return a.passCancel(ctx, e, f)
		}
	case worker.Provisioned:
		return a.provisioned(ctx, e)
	case worker.StatusChanged:
		if f.To == worker.StateTerminating {
			return a.passTerminate(ctx, e, f.Reason)
		}
	case worker.Terminated:
		return a.terminated(ctx, e, f)
	case deadline.TimedOut:
		if f.Kind == deadline.KindHeartbeat {
			return a.silent(ctx, e, f)
		}
	}
	return nil
}

// passCancel tells the session of the attempt that somebody wants it to end.
func (a *App) passCancel(ctx context.Context, e event.Event, f job.CancelRequested) error {
	w, err := a.loadWorker(ctx, f.WorkerID)
	if err != nil {
		return err
	}
	return a.Sessions.Tell(ctx, w.Epoch, command.Request{
		Kind: command.Cancel, WorkerID: w.ID, JobID: e.Stream.ID, Attempt: f.Attempt, Reason: f.Reason,
		CorrelationID: e.CorrelationID, CausationID: e.ID, TraceParent: e.TraceParent, TraceState: e.TraceState,
	})
}

// passTerminate tells the worker's session that its agent has to end.
func (a *App) passTerminate(ctx context.Context, e event.Event, reason string) error {
	w, err := a.loadWorker(ctx, e.Stream.ID)
	if err != nil || w.Epoch == 0 {
		return err
	}
	return a.Sessions.Tell(ctx, w.Epoch, command.Request{
		Kind: command.Terminate, WorkerID: w.ID, Reason: reason, Grace: unit.Duration(w.Grace()),
		CorrelationID: e.CorrelationID, CausationID: e.ID, TraceParent: e.TraceParent, TraceState: e.TraceState,
	})
}

// provisioned moves a worker whose resource exists to CONNECTING, where its
// agent has not been quicker.
func (a *App) provisioned(ctx context.Context, e event.Event) error {
	_, err := a.operate(ctx, e.CausedBy(name), e.Stream.ID, core.Made)
	return err
}

// terminated ends the attempt that a worker still held: nothing of it runs any
// more (R5.6). Its agent's words count no longer.
func (a *App) terminated(ctx context.Context, e event.Event, f worker.Terminated) error {
	if f.JobID != "" {
		if err := a.endFenced(ctx, e, f); err != nil {
			return err
		}
	}
	if err := a.passTerminate(ctx, e, f.Reason); err != nil {
		return err
	}
	if f.JobID != "" {
		return a.Credentials.Retire(ctx, e.Stream.ID)
	}
	return a.Credentials.Forget(ctx, e.Stream.ID)
}

func (a *App) endFenced(ctx context.Context, e event.Event, f worker.Terminated) error {
	w, err := a.loadWorker(ctx, e.Stream.ID)
	if err != nil {
		return err
	}
	for range rounds {
		var j knownJob
		if j, err = a.loadJob(ctx, f.JobID); err != nil {
			return err
		}
		facts, derr := core.Fenced(j.Job, w.Worker, f.Attempt, a.Now(), a.Jitter())
		if derr != nil || len(facts) == 0 {
			return derr
		}
		meta := j.meta("service/" + name)
		meta.CausationID = e.ID
		change, cerr := j.change(meta, facts)
		if cerr != nil {
			return cerr
		}
		if _, err = a.appendChanges(ctx, change); !errors.Is(err, fault.Conflict) {
			return err
		}
	}
	return fmt.Errorf("end attempt %d of job %s, whose worker is gone: %w", f.Attempt, f.JobID, err)
}

// silent gives a worker up that the monitor has not heard of, unless its session
// has.
func (a *App) silent(ctx context.Context, e event.Event, f deadline.TimedOut) error {
	w, err := a.loadWorker(ctx, e.Stream.ID)
	if err != nil {
		return err
	}
	if !w.State.Connected() {
		return nil
	}
	if a.Sessions.Alive(ctx, w.ID, w.Epoch) {
		a.Logger.WarnContext(ctx, "a worker that was reported silent is alive", "worker", w.ID, "last_seen", f.LastSeen)
		return nil
	}
	seen, err := a.Credentials.LastHeartbeats(ctx, []string{w.ID})
	if err != nil {
		return err
	}
	last := f.LastSeen
	if s := seen[w.ID]; s.After(last) {
		last = s
	}
	_, err = a.operate(ctx, e.CausedBy(name), w.ID, func(now worker.Worker) ([]worker.Event, error) {
		return core.GiveUp(now, w.Epoch, last, a.Now())
	})
	return err
}
