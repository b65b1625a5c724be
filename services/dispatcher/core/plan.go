package core

import (
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
)

// Plan is a decision in the domain's words: what becomes true of a job and of a
// worker together, in one append.
type Plan struct {
	// Kind is "assign", "schedule", "defer" or "abandon".
	Kind string
	// Job and Worker are as they are before; a worker that is to be made has only its id.
	Job    job.Job
	Worker worker.Worker
	// About are the facts about the job, Beside those about the worker; either may be empty.
	About  []job.Event
	Beside []worker.Event
	// HandOver: the job is to be given to the worker afterwards.
	HandOver bool
}

// Plan turns a decision into facts, by the domain's rules. workerID is that of the
// worker that a Schedule has made, chance is as for [job.Job.End]. An error says
// that the domain refuses what was decided: the state is out of date.
func (s *State) Plan(d Decision, workerID string, now time.Time, chance float64) (p Plan, err error) {
	var ok bool
	if p.Job, ok = s.Job(d.JobID()); !ok {
		return p, fault.New(fault.Internal, "job %s is not known", d.JobID())
	}
	j := p.Job
	switch d := d.(type) {
	case Assign:
		p.Kind, p.HandOver = "assign", true
		p.Worker, _ = s.Worker(d.Worker)
		if p.About, err = j.Assign(p.Worker.ProviderID, p.Worker.ID, p.Worker.Epoch, d.Reason); err == nil {
			p.Beside, err = p.Worker.Take(j.ID, j.Attempt+1)
		}
	case Schedule:
		p.Kind, p.Worker = "schedule", worker.Worker{ID: workerID}
		p.Beside = s.request(j, d)
		p.About, err = j.Schedule(d.Provider, workerID, d.Reason)
	case Defer:
		p.Kind, p.About = "defer", j.Defer(d.Reasons)
	case Abandon:
		p.Kind = "abandon"
		result := job.Result{Failure: job.Fail(job.CategoryProvisioningFailed, "%s", d.Reason)}
		p.About, err = j.Abandon(result, now, chance)
	}
	return p, err
}

// request is the first events of a worker that is to be made for j.
func (s *State) request(j job.Job, d Schedule) []worker.Event {
	p, _ := s.Provider(d.Provider)
	return append(worker.Request(worker.ProvisioningRequested{
		ProviderID: p.ID, ProviderName: p.Spec.Name, JobID: j.ID,
		CPUMillis: j.Spec.Resources.CPUMillis, MemoryBytes: j.Spec.Resources.MemoryBytes,
		JobsPerWorker: p.Spec.JobsPerWorker, Reason: "a job waits for it",
	}), worker.ProviderSelected{ProviderID: p.ID, JobID: j.ID, Candidates: d.Candidates})
}

// LastChance tells whether the job cannot lose another attempt to the platform:
// the session of its worker is asked first whether it is there.
func LastChance(j job.Job) bool {
	return j.Spent.Infrastructure >= j.Spec.Retry.InfrastructureAttempts
}

// Refused decides that a hand-over has failed: the attempt's end and the worker's,
// in one append. A late acceptance cannot become RUNNING then.
func Refused(j job.Job, w worker.Worker, refusal string, now time.Time, chance float64) (about []job.Event, beside []worker.Event, err error) {
	result := job.Result{Failure: job.Fail(job.CategoryDispatchFailed, "its worker could not be given the job: %s", refusal)}
	end, err := j.End(w.ID, j.Attempt, result, now, chance)
	if err != nil {
		return nil, nil, err
	}
	beside, err = w.Discard(j.ID, j.Attempt, worker.CauseHandOver, "it could not be given job "+j.ID+": "+refusal)
	return append([]job.Event{j.FailDispatch(refusal)}, end...), beside, err
}
