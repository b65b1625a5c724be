package core

import "hodei.dev/libs/domain/worker"

// Decision is one thing to do. Each must be settled ([State.Settle]) once its
// outcome is known. The set is closed.
type Decision interface {
	// JobID is the job that it is about.
	JobID() string
	isDecision()
}

// Assign gives a job to an idle worker.
type Assign struct {
	Job, Worker string
	// Reason is why this worker, in words.
	Reason string
}

// Schedule has a provider make a worker for a job.
type Schedule struct {
	Job, Provider string
	// Candidates are all providers that were looked at, by name, with reasons.
	Candidates []worker.Candidate
	// Reason is why this provider, in words.
	Reason string
}

// Defer notes that nothing in the system could run the job as things are.
type Defer struct {
	Job string
	// Reasons say, provider by provider, why not. They are shared: do not change them.
	Reasons []string
}

// Abandon gives up a SCHEDULED job's wait, because the worker that was made for it is gone.
type Abandon struct {
	Job, Worker string
	// Reason is what became of the worker.
	Reason string
}

// JobID implements Decision.
func (d Assign) JobID() string { return d.Job }

// JobID implements Decision.
func (d Schedule) JobID() string { return d.Job }

// JobID implements Decision.
func (d Defer) JobID() string { return d.Job }

// JobID implements Decision.
func (d Abandon) JobID() string { return d.Job }

func (Assign) isDecision()   {}
func (Schedule) isDecision() {}
func (Defer) isDecision()    {}
func (Abandon) isDecision()  {}
