package app

import (
	"context"
	"errors"
	"fmt"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/command"
	"hodei.dev/services/registry/core"
)

// Attachment is the memory of one session: its worker and the job of its current
// attempt as far as the session knows them, so that the hot path loads a job
// once. It belongs to one goroutine; what it expects is checked by every append.
type Attachment struct {
	WorkerID string
	Epoch    int64

	worker knownWorker
	job    knownJob
}

// Going tells whether the worker's life is over or about to be.
func (at *Attachment) Going() bool {
	return at.worker.State == worker.StateTerminating || at.worker.State == worker.StateTerminated
}

// Grace is how long what a worker that is going runs has to end by itself.
func (at *Attachment) Grace() time.Duration { return at.worker.Grace() }

// Reason is why the worker is in its state.
func (at *Attachment) Reason() string { return at.worker.Reason }

// Superseded tells whether the log knows of a newer session of the worker.
func (at *Attachment) Superseded() bool { return at.worker.Epoch > at.Epoch }

// OpenSession authenticates a session by its secret and gives it the next epoch,
// unless the agent has been heard on a newer connection already.
func (a *App) OpenSession(ctx context.Context, secret string, connection int64, replica string) (workerID string, epoch int64, err error) {
	return a.Credentials.OpenSession(ctx, core.HashSecret(secret), connection, replica)
}

// Authenticate returns the worker of a session's secret.
func (a *App) Authenticate(ctx context.Context, secret string) (workerID string, err error) {
	return a.Credentials.Authenticate(ctx, core.HashSecret(secret))
}

// Attach records that the worker's agent is connected, through the registry process
// replica: READY for the first time, WorkerReconnected later. The session must be able
// to take commands before. A worker that is going is left as it is.
func (a *App) Attach(ctx context.Context, workerID string, epoch int64, replica string) (*Attachment, error) {
	at := &Attachment{WorkerID: workerID, Epoch: epoch}
	var err error
	for range rounds {
		if at.worker, err = a.loadWorker(ctx, workerID); err != nil {
			return nil, err
		}
		if at.Superseded() {
			return nil, superseded(workerID)
		}
		if at.Going() || at.worker.Epoch == epoch {
			return at, nil
		}
		facts, derr := core.Attach(at.worker.Worker, epoch, replica)
		if derr != nil {
			return nil, derr
		}
		if err = a.changeWorker(ctx, at, at.worker.meta("worker/"+workerID), facts); !errors.Is(err, fault.Conflict) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("attach worker %s: %w", workerID, err)
	}
	return at, nil
}

func superseded(workerID string) error {
	return fault.New(fault.Precondition, "worker %s has a newer session", workerID).WithCode("SUPERSEDED", "")
}

// changeWorker appends facts of the session's own worker and remembers them.
func (a *App) changeWorker(ctx context.Context, at *Attachment, meta event.Meta, facts []worker.Event) error {
	change, err := at.worker.change(meta, facts)
	if err != nil {
		return err
	}
	return a.record(ctx, at, change)
}

// record appends changes of the session's worker and job and remembers them.
func (a *App) record(ctx context.Context, at *Attachment, changes ...store.Change) error {
	events, err := a.appendChanges(ctx, changes...)
	if err != nil {
		return err
	}
	for _, e := range events {
		switch e.Stream.ID {
		case at.worker.ID:
			err = at.worker.apply(e)
		case at.job.ID:
			err = at.job.apply(e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// refresh loads the session's worker and job again, after a conflict.
func (a *App) refresh(ctx context.Context, at *Attachment, jobID string) (err error) {
	if at.worker, err = a.loadWorker(ctx, at.WorkerID); err != nil {
		return err
	}
	at.job = knownJob{}
	if jobID != "" {
		at.job, err = a.loadJob(ctx, jobID)
	}
	return err
}

// Reconcile compares what the agent has with the log and returns what to tell
// it. An attempt that is proven dead is ended, with its worker's release. What an
// agent said to a session that has been superseded proves nothing: that is a
// fault.Precondition.
func (a *App) Reconcile(ctx context.Context, at *Attachment, held core.Held) (core.Plan, error) {
	var err error
	for range rounds {
		own, theirs := knownJob{}, knownJob{}
		if at.worker.JobID != "" {
			if own, err = a.loadJob(ctx, at.worker.JobID); err != nil {
				return core.Plan{}, err
			}
		}
		switch held.JobID {
		case "":
		case at.worker.JobID:
			theirs = own
		default:
			theirs, err = a.loadJob(ctx, held.JobID)
			if err != nil && !errors.Is(err, fault.NotFound) && !errors.Is(err, fault.Invalid) {
				return core.Plan{}, err
			}
		}
		at.job = own
		plan := core.Reconcile(at.worker.Worker, own.Job, theirs.Job, held)
		if !plan.Lost {
			return plan, nil
		}
		err = a.end(ctx, at, at.worker.Attempt, core.Vanished(own.Job))
		if !errors.Is(err, fault.Conflict) {
			return plan, err
		}
		if at.worker, err = a.loadWorker(ctx, at.WorkerID); err != nil {
			return core.Plan{}, err
		}
		if at.Superseded() { // what the agent has now it says to the newer one
			return core.Plan{}, superseded(at.WorkerID)
		}
	}
	return core.Plan{}, err
}

// end appends the end of the session's job with its worker's release.
func (a *App) end(ctx context.Context, at *Attachment, attempt int, r job.Result) error {
	out, err := core.Finish(at.job.Job, at.worker.Worker, attempt, r, a.Now(), a.Jitter())
	if err != nil {
		return err
	}
	return a.conclude(ctx, at, out)
}

// conclude appends an outcome that concerns the session's job and worker.
func (a *App) conclude(ctx context.Context, at *Attachment, out core.Outcome) error {
	meta := at.job.meta("worker/" + at.WorkerID)
	jobChange, err := at.job.change(meta, out.Job)
	if err != nil {
		return err
	}
	workerChange, err := at.worker.change(meta, out.Worker)
	if err != nil {
		return err
	}
	return a.record(ctx, at, jobChange, workerChange)
}

// Stopping records that the agent takes nothing new: an idle worker goes, a busy
// one finishes first.
func (a *App) Stopping(ctx context.Context, at *Attachment, reason string) error {
	var err error
	for range rounds {
		facts, derr := core.Stopping(at.worker.Worker, reason)
		if derr != nil || len(facts) == 0 {
			return derr
		}
		if err = a.changeWorker(ctx, at, at.worker.meta("worker/"+at.WorkerID), facts); !errors.Is(err, fault.Conflict) {
			return err
		}
		if err := a.refresh(ctx, at, at.job.ID); err != nil {
			return err
		}
	}
	return err
}

// Detach records that the session's stream has ended, unless a newer session
// has taken its place. clean: the agent said goodbye.
func (a *App) Detach(ctx context.Context, at *Attachment, reason string, clean bool) error {
	var err error
	for range rounds {
		if at.worker.Epoch != at.Epoch || at.worker.State == worker.StateTerminated {
			return nil
		}
		note := worker.Disconnected{Epoch: at.Epoch, Reason: core.Clean(reason, 512), Clean: clean}
		err = a.changeWorker(ctx, at, at.worker.meta("worker/"+at.WorkerID), []worker.Event{note})
		if !errors.Is(err, fault.Conflict) {
			return err
		}
		if at.worker, err = a.loadWorker(ctx, at.WorkerID); err != nil {
			return err
		}
	}
	return err
}

// Prepared is an attempt that is ready to be handed to the agent.
type Prepared struct {
	JobID         string
	Attempt       int
	Spec          job.Spec
	CorrelationID string
	TraceParent   string
	// Ended: the attempt was cancelled meanwhile and is over; the agent gets nothing.
	Ended bool
}

// Prepare loads the attempt of a RUN command. An attempt that is not the job's
// current one, or not this worker's, is an error: the dispatcher is told so.
func (a *App) Prepare(ctx context.Context, at *Attachment, r command.Request) (Prepared, error) {
	if err := a.expectTaken(ctx, at, r); err != nil {
		return Prepared{}, err
	}
	var err error
	if at.job, err = a.loadJob(ctx, r.JobID); err != nil {
		return Prepared{}, err
	}
	if err := core.Runnable(at.job.Job, at.worker.Worker, r.Attempt); err != nil {
		return Prepared{}, err
	}
	p := Prepared{JobID: r.JobID, Attempt: r.Attempt, Spec: at.job.Spec, CorrelationID: at.job.correlationID, TraceParent: at.job.traceParent}
	if at.job.Cancel != nil && at.job.State == job.StateAssigned {
		v, err := a.Begin(ctx, at, r.JobID, r.Attempt)
		if err != nil {
			return Prepared{}, err
		}
		p.Ended = !v.Start
	}
	return p, nil
}

// expectTaken brings the session's worker to the version that the dispatcher's
// assignment left it at: by the same decision where nothing else happened, else
// from the log.
func (a *App) expectTaken(ctx context.Context, at *Attachment, r command.Request) (err error) {
	if r.WorkerVersion > 0 && at.worker.Version == r.WorkerVersion {
		return nil
	}
	facts, derr := at.worker.Take(r.JobID, r.Attempt)
	if derr == nil && r.WorkerVersion == at.worker.Version+len(facts) {
		for _, f := range facts {
			at.worker.Worker = at.worker.Evolve(f, worker.At{Version: at.worker.Version + 1, Time: a.Now()})
		}
		return nil
	}
	at.worker, err = a.loadWorker(ctx, at.WorkerID)
	return err
}

// CorrelationID is that of the worker's own life.
func (at *Attachment) CorrelationID() string { return at.worker.correlationID }

// Held is the attempt that the worker has, as far as the session knows.
func (at *Attachment) Held() core.Held {
	if at.job.ID == "" || !at.Holds(at.job.ID, at.job.Attempt) {
		return core.Held{}
	}
	return core.Held{JobID: at.job.ID, Attempt: at.job.Attempt, Started: at.job.State == job.StateRunning}
}
