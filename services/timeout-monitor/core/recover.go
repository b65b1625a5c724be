package core

import (
	"fmt"
	"time"

	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/unit"
	"hodei.dev/libs/domain/worker"
)

// Name is the monitor's, as it signs what it decides.
const Name = "timeout-monitor"

// Fact is an event of the domain.
type Fact interface {
	EventType() string
	EventVersion() int
}

// Recovery is what follows from a deadline that has passed: what is appended to
// the job's and to the worker's stream, together. Both are empty where the right
// thing is under way already and there is nothing to do but to look again later.
type Recovery struct {
	Job    []Fact
	Worker []Fact
}

// Empty tells whether there is nothing to append.
func (r Recovery) Empty() bool { return len(r.Job) == 0 && len(r.Worker) == 0 }

// RecoverJob decides what follows when a job has been under d for too long. w is
// the worker of its attempt, or the one that it waits for; the zero Worker where
// there is none. A typed error says that the aggregates contradict each other or
// have moved on. chance is as for [job.Job.End].
func (r Rules) RecoverJob(d Deadline, j job.Job, w worker.Worker, now time.Time, chance float64) (Recovery, error) {
	switch d.Kind {
	case Queue:
		return r.abandon(d, j, worker.Worker{}, now, chance, job.Fail(job.CategoryQueueTimeout,
			"it waited %s without being started; its queue timeout is %s", elapsed(d, now), d.Threshold))
	case Scheduled:
		return r.abandon(d, j, w, now, chance, job.Fail(job.CategoryProvisioningFailed,
			"worker %s was not there after %s", j.WorkerID, d.Threshold))
	case Assigned:
		return r.handBack(d, j, w, now, chance)
	case Running:
		return r.fence(d, j, w, now, chance, worker.CauseJobTimeout, fmt.Sprintf("job %s attempt %d ran longer than it may", j.ID, j.Attempt))
	case Cancel:
		return r.fence(d, j, w, now, chance, worker.CauseCancelUnanswered, fmt.Sprintf("the cancel of job %s attempt %d was not answered", j.ID, j.Attempt))
	default:
		return Recovery{}, fault.New(fault.Internal, "job %s is under a deadline of kind %q", j.ID, d.Kind)
	}
}

// abandon ends a job that no worker has, and the worker that it waited for where
// that has not come up.
func (r Rules) abandon(d Deadline, j job.Job, w worker.Worker, now time.Time, chance float64, why *job.Failure) (Recovery, error) {
	ends, err := j.Abandon(job.Result{Failure: why}, now, chance)
	if err != nil {
		return Recovery{}, err
	}
	out := Recovery{Job: facts(timedOut(d, deadline.KindState, now, recovery(ends)), ends)}
	if w.State != worker.StateCreating && w.State != worker.StateConnecting {
		return out, nil
	}
	goes, err := w.Terminate(worker.CauseProvisioning, fmt.Sprintf("job %s waited for it for %s", j.ID, d.Threshold))
	if err != nil {
		return Recovery{}, err
	}
	out.Worker = append(out.Worker, anyFacts(goes)...)
	return out, nil
}

// handBack ends an attempt whose hand-over nobody reported on. It never ran: an
// agent starts nothing before the log says RUNNING.
func (r Rules) handBack(d Deadline, j job.Job, w worker.Worker, now time.Time, chance float64) (Recovery, error) {
	why := fmt.Sprintf("worker %s did not accept it within %s", j.WorkerID, d.Threshold)
	ends, err := j.End(j.WorkerID, j.Attempt, job.Result{Failure: job.Fail(job.CategoryDispatchFailed, "%s", why)}, now, chance)
	if err != nil {
		return Recovery{}, err
	}
	out := Recovery{Job: facts(timedOut(d, deadline.KindState, now, recovery(ends)), ends)}
	if !live(w) {
		return out, nil
	}
	goes, err := w.Discard(j.ID, j.Attempt, worker.CauseHandOver, "it did not accept job "+j.ID)
	if err != nil {
		return Recovery{}, err
	}
	out.Worker = anyFacts(goes)
	return out, nil
}

// fence ends the worker of an attempt that cannot be ended otherwise; the job ends
// when the provider has confirmed that nothing is left (R5.6). Where it has, and
// nobody drew the conclusion, the attempt ends here.
func (r Rules) fence(d Deadline, j job.Job, w worker.Worker, now time.Time, chance float64, cause worker.Cause, why string) (Recovery, error) {
	if w.State == worker.StateTerminating {
		return Recovery{}, nil
	}
	kind := deadline.KindState
	if d.Kind == Cancel {
		kind = deadline.KindCancel
	}
	if !live(w) {
		ends, err := j.End(j.WorkerID, j.Attempt, gone(j, w), now, chance)
		if err != nil {
			return Recovery{}, err
		}
		return Recovery{Job: facts(timedOut(d, kind, now, recovery(ends)), ends)}, nil
	}
	if w.JobID != j.ID || w.Attempt != j.Attempt {
		return Recovery{}, fault.New(fault.Internal, "job %s attempt %d is on worker %s, which holds job %q attempt %d", j.ID, j.Attempt, w.ID, w.JobID, w.Attempt)
	}
	goes, err := w.Terminate(cause, why)
	if err != nil {
		return Recovery{}, err
	}
	return Recovery{
		Job:    []Fact{timedOut(d, kind, now, "its worker is terminated; the job ends when nothing of it is left")},
		Worker: anyFacts(goes),
	}, nil
}

// gone is the result of an attempt whose worker is TERMINATED or was never in the log.
func gone(j job.Job, w worker.Worker) job.Result {
	r := job.Result{StartedAt: j.Started(), LogRef: job.LogRef(j.ID, j.Attempt)}
	switch w.Cause {
	case worker.CauseJobTimeout:
		r.Failure = job.Fail(job.CategoryTimeout, "it ran longer than its timeout of %s and its worker had to be destroyed", j.Spec.Timeout)
	case worker.CauseCancelUnanswered:
		r.Failure = job.Fail(job.CategoryCancelled, "cancelled; its worker did not answer and was destroyed")
	default:
		r.Failure = job.Fail(job.CategoryWorkerLost, "worker %s is gone: %s", j.WorkerID, w.Reason)
	}
	return r
}

// RecoverWorker decides what follows when a worker has been under d for too long.
// idle is how many workers of its provider are READY now, itself included, and p
// the provider's settings, nil where they are not known: both count for [Idle] only.
func (r Rules) RecoverWorker(d Deadline, w worker.Worker, p *Provider, idle int, now time.Time) (Recovery, error) {
	var goes []worker.Event
	var err error
	kind := deadline.KindState
	switch d.Kind {
	case Creating:
		goes, err = w.Terminate(worker.CauseProvisioning, fmt.Sprintf("its resource was not there after %s", d.Threshold))
	case Connecting:
		goes, err = w.Terminate(worker.CauseProvisioning, fmt.Sprintf("its agent was not connected after %s", d.Threshold))
	case Idle:
		if p != nil && p.MinIdle > 0 && idle <= p.MinIdle {
			return Recovery{}, nil
		}
		goes, err = w.Terminate(worker.CauseIdle, fmt.Sprintf("it had nothing to do for %s", d.Threshold))
	case Draining:
		goes, err = w.Terminate(worker.CauseDrained, fmt.Sprintf("drained, and not done after %s", d.Threshold))
	case Terminating:
		// A notice: the provisioner goes on trying by itself.
	case Lifetime:
		kind = deadline.KindLifetime
		goes, err = retire(w, d)
	default:
		return Recovery{}, fault.New(fault.Internal, "worker %s is under a deadline of kind %q", w.ID, d.Kind)
	}
	if err != nil {
		return Recovery{}, err
	}
	what := "its provider is still asked to destroy it"
	for _, g := range goes {
		if s, ok := g.(worker.StatusChanged); ok {
			what = fmt.Sprintf("%s: %s", s.To, s.Reason)
		}
	}
	note := timedOut(d, kind, now, what)
	note.JobID, note.Attempt = w.JobID, w.Attempt
	return Recovery{Worker: facts(note, goes)}, nil
}

// retire ends a worker that is too old: one that holds a job finishes it first.
func retire(w worker.Worker, d Deadline) ([]worker.Event, error) {
	if w.State == worker.StateBusy {
		return w.Drain(fmt.Sprintf("service/%s: its lifetime of %s is over", Name, d.Threshold))
	}
	return w.Terminate(worker.CauseLifetime, fmt.Sprintf("its lifetime of %s is over", d.Threshold))
}

// SilentWorker decides that a connected worker is reported silent. What follows is
// registry's to say: it knows the session. lastSeen is zero where nothing was ever heard.
func SilentWorker(w worker.Worker, since, lastSeen, now time.Time, threshold time.Duration) (Recovery, error) {
	if !w.State.Connected() {
		return Recovery{}, fault.New(fault.Precondition, "worker %s is %s: nobody expects its heartbeat", w.ID, w.State)
	}
	return Recovery{Worker: []Fact{deadline.TimedOut{
		State: string(w.State), Kind: deadline.KindHeartbeat, Threshold: unit.Duration(threshold), Elapsed: unit.Duration(now.Sub(since).Round(time.Millisecond)),
		JobID: w.JobID, Attempt: w.Attempt, LastSeen: lastSeen.UTC(), Recovery: "given up by registry, unless its session lives",
	}}}, nil
}

func timedOut(d Deadline, kind string, now time.Time, recovery string) deadline.TimedOut {
	return deadline.TimedOut{
		State: d.State, Kind: kind, Threshold: unit.Duration(d.Threshold), Elapsed: unit.Duration(elapsed(d, now)), Recovery: recovery,
	}
}

func elapsed(d Deadline, now time.Time) time.Duration {
	return now.Sub(d.Since).Round(time.Millisecond)
}

// recovery puts the end of an attempt into words.
func recovery(ends []job.Event) string {
	for _, e := range ends {
		switch e := e.(type) {
		case job.Requeued:
			return "PENDING: " + e.Reason
		case job.StatusChanged:
			return fmt.Sprintf("%s: %s", e.To, e.Reason)
		}
	}
	return ""
}

// live tells whether w is in the log and not TERMINATED.
func live(w worker.Worker) bool { return w.Version > 0 && !w.State.Terminal() }

func facts[F Fact](first Fact, rest []F) []Fact { return append([]Fact{first}, anyFacts(rest)...) }

func anyFacts[F Fact](from []F) []Fact {
	out := make([]Fact, len(from))
	for i, f := range from {
		out[i] = f
	}
	return out
}
