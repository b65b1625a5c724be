package core

import (
	"fmt"
	"slices"
	"time"

	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
)

// Verdict is what an agent is told after what it said about an attempt.
type Verdict struct {
	// Start: the log has RUNNING; the command may start.
	Start bool
	// Ack: the result is kept; the agent may forget it.
	Ack bool
	// Drop: the attempt is not the agent's any more; Reason says why.
	Drop   bool
	Reason string
	// Cancel: somebody wants the attempt to end.
	Cancel bool
}

// Attach decides what it means that a session with that epoch is connected: READY
// for the first time, WorkerReconnected later. The registry process replica holds it.
func Attach(w worker.Worker, epoch int64, replica string) ([]worker.Event, error) {
	switch w.State {
	case worker.StateCreating:
		step, err := w.Connecting("its agent is there")
		if err != nil {
			return nil, err
		}
		w = w.Evolve(step[0], worker.At{Version: w.Version + 1})
		ready, err := w.Attach(epoch, replica)
		return append(step, ready...), err
	case worker.StateConnecting:
		return w.Attach(epoch, replica)
	default:
		return []worker.Event{worker.Reconnected{Epoch: epoch, Replica: replica}}, nil
	}
}

// Registered decides that an agent has proven itself to be the worker's.
func Registered(w worker.Worker, r worker.Registered) ([]worker.Event, error) {
	if w.State != worker.StateCreating {
		return []worker.Event{r}, nil
	}
	step, err := w.Connecting("its agent has registered")
	return append(step, r), err
}

// Made decides that the worker's resource exists: it is CONNECTING, where its
// agent has not been quicker.
func Made(w worker.Worker) ([]worker.Event, error) {
	if w.State != worker.StateCreating {
		return nil, nil
	}
	return w.Connecting("its resource exists")
}

// Begin decides what follows when the agent of w has accepted an attempt: RUNNING,
// and only once that is in the log may it start. An attempt that was cancelled
// meanwhile ends without starting; one that is not the agent's is dropped. chance is
// as for [job.Job.End].
func Begin(j job.Job, w worker.Worker, attempt int, now time.Time, chance float64) (Verdict, Outcome, error) {
	switch {
	case !j.State.HasWorker() || j.WorkerID != w.ID || j.Attempt != attempt:
		return Verdict{Drop: true, Reason: fmt.Sprintf("the job is %s at attempt %d", j.State, j.Attempt)}, Outcome{}, nil
	case j.State == job.StateRunning:
		return Verdict{Start: true, Cancel: j.Cancel != nil}, Outcome{}, nil
	case j.Cancel != nil:
		r := Cancelled(j)
		out, err := Abort(j, w, attempt, r, now, chance)
		return Verdict{Drop: true, Reason: r.Failure.Message}, out, err
	}
	began, err := j.Start(w.ID, attempt)
	return Verdict{Start: true}, Outcome{Job: began}, err
}

// Stale decides what becomes of a result that is not the current attempt's: the
// log keeps it as evidence, once. rejected is what it has kept already. One that
// the log has as that attempt's end is only acknowledged.
func Stale(j job.Job, rejected []job.ResultRejected, workerID string, attempt int, r job.Result) (Verdict, []job.Event) {
	if Repeated(j, workerID, attempt, r) {
		return Verdict{Ack: true}, nil
	}
	v := Verdict{Ack: true, Drop: true, Reason: fmt.Sprintf("the job is %s at attempt %d", j.State, j.Attempt)}
	known := slices.ContainsFunc(rejected, func(old job.ResultRejected) bool {
		return old.WorkerID == workerID && old.Attempt == attempt && SameEnd(old.Result, r)
	})
	if known {
		return v, nil
	}
	return v, j.Reject(workerID, attempt, r)
}

// Stopping decides what follows when an agent takes nothing new: an idle worker
// goes, a busy one finishes first.
func Stopping(w worker.Worker, reason string) ([]worker.Event, error) {
	switch w.State {
	case worker.StateBusy:
		return w.Drain("worker/" + w.ID)
	case worker.StateReady, worker.StateConnecting:
		return w.Terminate(worker.CauseShutdown, "its agent is stopping: "+Clean(reason, 256))
	default:
		return nil, nil
	}
}

// GiveUp decides about a worker that is reported silent, and whose session does not
// answer: it is lost, unless somebody heard of it lately or it has a newer session
// than the one that was judged. last is its last heartbeat, as far as anybody knows.
func GiveUp(w worker.Worker, judged int64, last, now time.Time) ([]worker.Event, error) {
	if !w.State.Connected() || w.Epoch != judged || now.Sub(last) < deadline.Silence {
		return nil, nil
	}
	return w.Lose(last, fmt.Sprintf("no heartbeat since %s", last.UTC().Format("15:04:05 MST")))
}
