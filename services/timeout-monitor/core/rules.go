package core

import (
	"time"

	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
)

// Kind is which row of the table of R5.2 a deadline comes from.
type Kind string

// The kinds of deadlines.
const (
	// Queue: a PENDING job waits longer than its queue timeout.
	Queue Kind = "queue"
	// Scheduled: a job waits too long for the worker that a provider makes.
	Scheduled Kind = "scheduled"
	// Assigned: a job was not accepted by its worker.
	Assigned Kind = "assigned"
	// Running: an attempt runs on although its agent should have ended it.
	Running Kind = "running"
	// Cancel: nobody answered the request to end the job.
	Cancel Kind = "cancel"
	// Creating: the provider does not come up with the resource.
	Creating Kind = "creating"
	// Connecting: the agent does not dial in.
	Connecting Kind = "connecting"
	// Idle: a READY worker has nothing to do.
	Idle Kind = "idle"
	// Draining: a drained worker does not finish what it has.
	Draining Kind = "draining"
	// Terminating: the provider does not confirm the end of the resource.
	Terminating Kind = "terminating"
	// Lifetime: the worker has lived as long as a worker may.
	Lifetime Kind = "lifetime"
)

// Deadline is when an aggregate, left alone, has to be recovered.
type Deadline struct {
	Kind Kind
	// State and Attempt are the aggregate's while it is armed.
	State   string
	Attempt int
	// Since is what the threshold counts from.
	Since     time.Time
	Threshold time.Duration
	// Due is Since + Threshold, or later where it has passed before without an end of the state.
	Due time.Time
	// Cause is the id of the event that armed it.
	Cause string
}

// DefaultIdleTimeout is the idle timeout of a worker whose provider is not known.
const DefaultIdleTimeout = 5 * time.Minute

// The bounds of the wait before a deadline that has passed is looked at again.
const (
	repeatFirst = time.Second
	repeatBase  = 2 * time.Minute
	repeatMost  = time.Hour
)

// Rules are the thresholds in force; 0 in the table means none. The value is
// immutable and safe for concurrent use.
type Rules struct {
	Table deadline.Table
	// IdleTimeout holds for workers whose provider is not known (yet); 0 = none.
	IdleTimeout time.Duration
}

// Deadline returns the one deadline that w is under: the earliest of those that
// its state has. The second result is false where there is none. p is the
// provider's settings, nil where they are not known.
func (r Rules) Deadline(t Type, w Watch, p *Provider) (Deadline, bool) {
	var all []Deadline
	if t == Job {
		all = r.job(w, p)
	} else {
		all = r.worker(w, p)
	}
	var first Deadline
	for _, d := range all {
		if d.Threshold <= 0 {
			continue
		}
		d.State, d.Attempt, d.Due = w.State, w.Attempt, d.Since.Add(d.Threshold)
		if first.Due.IsZero() || d.Due.Before(first.Due) {
			first = d
		}
	}
	if first.Due.IsZero() {
		return Deadline{}, false
	}
	if w.Notices > 0 {
		first.Due = w.NoticedAt.Add(Again(first.Threshold, w.Notices))
	}
	return first, true
}

func (r Rules) job(w Watch, p *Provider) []Deadline {
	since := func(k Kind, threshold time.Duration) Deadline {
		return Deadline{Kind: k, Since: w.Since, Threshold: threshold, Cause: w.Cause}
	}
	var out []Deadline
	switch job.State(w.State) {
	case job.StatePending:
		d := since(Queue, w.QueueTimeout.D())
		if w.NotBefore.After(d.Since) {
			d.Since = w.NotBefore
		}
		return []Deadline{d}
	case job.StateScheduled:
		threshold := r.Table.JobScheduled
		if p != nil && p.ScheduledTimeout > 0 {
			threshold = p.ScheduledTimeout
		}
		return []Deadline{since(Scheduled, threshold)}
	case job.StateAssigned:
		out = append(out, since(Assigned, r.Table.JobAssigned))
	case job.StateRunning:
		if w.Timeout > 0 && r.Table.BackstopMargin > 0 {
			out = append(out, since(Running, w.Timeout.D()+r.Table.KillGrace+r.Table.BackstopMargin))
		}
	default:
		return nil
	}
	if !w.CancelSince.IsZero() && r.Table.CancelMargin > 0 {
		d := Deadline{Kind: Cancel, Since: w.CancelSince, Threshold: r.Table.KillGrace + r.Table.CancelMargin, Cause: w.CancelCause}
		if w.Since.After(d.Since) {
			// Asked for before this state: its worker had no chance to answer earlier.
			d.Since = w.Since
		}
		out = append(out, d)
	}
	return out
}

func (r Rules) worker(w Watch, p *Provider) []Deadline {
	since := func(k Kind, threshold time.Duration) Deadline {
		return Deadline{Kind: k, Since: w.Since, Threshold: threshold, Cause: w.Cause}
	}
	life := Deadline{Kind: Lifetime, Since: w.Born, Threshold: r.Table.WorkerLifetime, Cause: w.Cause}
	switch worker.State(w.State) {
	case worker.StateCreating:
		return []Deadline{since(Creating, r.Table.WorkerCreating), life}
	case worker.StateConnecting:
		return []Deadline{since(Connecting, r.Table.WorkerConnecting), life}
	case worker.StateReady:
		idle := r.IdleTimeout
		if p != nil && p.IdleTimeout > 0 {
			idle = p.IdleTimeout
		}
		return []Deadline{since(Idle, idle), life}
	case worker.StateBusy:
		return []Deadline{life}
	case worker.StateDraining:
		return []Deadline{since(Draining, r.Table.WorkerDraining)}
	case worker.StateTerminating:
		return []Deadline{since(Terminating, r.Table.WorkerTerminating)}
	default:
		return nil
	}
}

// Again is how long after the n-th time (from 1) a deadline that has passed, and
// whose recovery has not led anywhere yet, is looked at once more: the threshold,
// within 1 s and 2 min, doubled each time, at most 1 h.
func Again(threshold time.Duration, n int) time.Duration {
	d := max(repeatFirst, min(threshold, repeatBase))
	for range max(n, 0) {
		if d *= 2; d >= repeatMost {
			return repeatMost
		}
	}
	return d
}
