package core

import (
	"fmt"

	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
)

// Held is what an agent says that it has: an attempt that it has accepted, runs,
// or keeps the result of. The zero value is nothing.
type Held struct {
	JobID   string
	Attempt int
	// Started: the command has been started (and has perhaps ended).
	Started bool
}

// Plan is what follows from comparing an agent with the log.
type Plan struct {
	// Drop: the agent's attempt is not its own any more; Reason says why.
	Drop   bool
	Reason string
	// Begin: append RUNNING, then tell the agent Start.
	Begin bool
	// Start: RUNNING is in the log already; only the agent has not heard.
	Start bool
	// Cancel: somebody wants the attempt to end.
	Cancel bool
	// Lost: the attempt that the worker holds is proven dead by its own agent.
	Lost bool
}

// Reconcile compares what an agent that has connected has with the log. own is
// the job that w holds, theirs the job that the agent names; zero values where
// there is none.
func Reconcile(w worker.Worker, own, theirs job.Job, held Held) Plan {
	var p Plan
	if held.JobID != "" {
		p = keep(w, theirs, held)
	}
	same := held.JobID == w.JobID && held.Attempt == w.Attempt
	if w.JobID != "" && !same && own.State == job.StateRunning && own.WorkerID == w.ID && own.Attempt == w.Attempt {
		p.Lost = true
	}
	return p
}

func keep(w worker.Worker, j job.Job, held Held) Plan {
	if j.WorkerID != w.ID || j.Attempt != held.Attempt || !j.State.HasWorker() {
		return Plan{Drop: true, Reason: stale(j, w, held)}
	}
	p := Plan{Cancel: j.Cancel != nil}
	switch {
	case j.State == job.StateAssigned && !held.Started:
		p.Begin = true
	case j.State == job.StateRunning && !held.Started:
		p.Start = true
	}
	return p
}

func stale(j job.Job, w worker.Worker, held Held) string {
	switch {
	case j.Version == 0:
		return "there is no such job"
	case j.State.Terminal():
		return fmt.Sprintf("the job is already %s", j.State)
	case j.WorkerID != w.ID:
		return fmt.Sprintf("attempt %d is not this worker's; the job is %s", held.Attempt, j.State)
	}
	return fmt.Sprintf("attempt %d is over; the job is %s at attempt %d", held.Attempt, j.State, j.Attempt)
}
