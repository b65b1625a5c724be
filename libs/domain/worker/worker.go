package worker

import (
	"fmt"
	"time"

	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/fault"
)

// Worker is the state of one worker: the fold of its events. It is a value.
type Worker struct {
	ID      string
	Version int
	State   State
	// ProviderID and ProviderName are of the provider that makes it.
	ProviderID, ProviderName string
	// WaitingJobID is the job that it was made for.
	WaitingJobID           string
	CPUMillis, MemoryBytes int64
	// JobsPerWorker is after how many jobs it ends; 0 = never.
	JobsPerWorker, JobsDone int
	// JobID and Attempt are what it holds: set from BUSY until the job is released, kept through TERMINATING as what has to be fenced.
	JobID   string
	Attempt int
	// Epoch is its latest session.
	Epoch     int64
	Connected bool
	// Replica is the registry process that holds that session: commands go through it.
	Replica string
	// Cause and Reason are why it is in its state.
	Cause  Cause
	Reason string
	// Provisioned and Resource are what the provider said.
	Provisioned                                         bool
	Resource                                            string
	Details                                             map[string]string
	AgentVersion, Hostname                              string
	CreatedAt, ReadyAt, ChangedAt, LostAt, TerminatedAt time.Time
}

// At places an event: its version in the worker's stream and the log's time.
type At struct {
	Version int
	Time    time.Time
}

// Evolve applies one event. It never fails.
func (w Worker) Evolve(e Event, at At) Worker {
	w.Version = at.Version
	switch e := e.(type) {
	case ProvisioningRequested:
		w.State, w.CreatedAt, w.ChangedAt, w.Reason = StateCreating, at.Time, at.Time, e.Reason
		w.ProviderID, w.ProviderName, w.WaitingJobID = e.ProviderID, e.ProviderName, e.JobID
		w.CPUMillis, w.MemoryBytes, w.JobsPerWorker = e.CPUMillis, e.MemoryBytes, e.JobsPerWorker
	case Provisioned:
		w.Provisioned, w.Resource, w.Details = true, e.Resource, e.Details
	case StatusChanged:
		w = w.changed(e, at)
	case Registered:
		w.AgentVersion, w.Hostname = e.AgentVersion, e.Hostname
	case Ready:
		w.Epoch, w.Connected, w.Replica, w.ReadyAt = e.Epoch, true, e.Replica, at.Time
	case ReadyForJob:
		w.Epoch, w.Connected = e.Epoch, true
	case Disconnected:
		w.Connected = w.Connected && w.Epoch != e.Epoch
	case Reconnected:
		w.Epoch, w.Connected, w.Replica = e.Epoch, true, e.Replica
	case Lost:
		w.LostAt, w.Connected = at.Time, false
	case Terminated:
		w.State, w.Reason, w.Connected, w.ChangedAt, w.TerminatedAt = StateTerminated, e.Reason, false, at.Time, at.Time
	case ProviderSelected, ProvisioningFailed, DrainRequested, RegistrationRejected, Heartbeat:
		// Notices: evidence, no change of state.
	}
	return w
}

func (w Worker) changed(e StatusChanged, at At) Worker {
	if e.To == StateBusy && e.From == StateReady {
		w.JobID, w.Attempt = e.JobID, e.Attempt
	}
	if e.releases() {
		w.JobID, w.Attempt = "", 0
		w.JobsDone++
	}
	w.State, w.Reason, w.ChangedAt = e.To, e.Reason, at.Time
	if e.To == StateReady || e.To == StateBusy {
		e.Cause = ""
	}
	w.Cause = e.Cause
	return w
}

// releases tells whether the step ends the worker's hold of its job: the job's
// end is in the same append. A step that fences a job names no job to release.
func (e StatusChanged) releases() bool {
	return e.JobID != "" && (e.From == StateBusy || e.From == StateDraining) && (e.To == StateReady || e.To == StateTerminating)
}

// Request decides that a worker is to be made.
func Request(e ProvisioningRequested) []Event { return []Event{e} }

// Take decides that the worker gets a job.
func (w Worker) Take(jobID string, attempt int) ([]Event, error) {
	if w.State == StateBusy {
		return nil, fault.New(fault.Precondition, "worker %s already holds job %s", w.ID, w.JobID)
	}
	if w.State != StateReady {
		// Not the table's to say: DRAINING -> BUSY is legal, but only to undo a drain.
		return nil, fault.New(fault.Precondition, "worker %s is %s: only a READY worker takes a job", w.ID, w.State)
	}
	return w.step(StateBusy, "", "job assigned", jobID, attempt)
}

// Release decides what becomes of the worker when its job's attempt ends: READY
// for the next, or TERMINATING where it is drained or has run its jobs. It is
// appended together with the job's end. A worker that is TERMINATING already
// needs no step.
func (w Worker) Release(jobID string, attempt int) ([]Event, error) {
	if jobID == "" || w.JobID != jobID || w.Attempt != attempt {
		return nil, fault.New(fault.Precondition, "worker %s holds job %q attempt %d, not job %s attempt %d", w.ID, w.JobID, w.Attempt, jobID, attempt)
	}
	switch {
	case w.State == StateTerminating || w.State == StateTerminated:
		return nil, nil
	case w.State == StateDraining:
		return w.step(StateTerminating, CauseDrained, "drained: its job has ended", jobID, attempt)
	case w.JobsPerWorker > 0 && w.JobsDone+1 >= w.JobsPerWorker:
		return w.step(StateTerminating, CauseDone, fmt.Sprintf("has run its jobs (%d)", w.JobsDone+1), jobID, attempt)
	}
	out, err := w.step(StateReady, "", "its job has ended", jobID, attempt)
	if err != nil {
		return nil, err
	}
	return append(out, ReadyForJob{ProviderID: w.ProviderID, Epoch: w.Epoch, JobsDone: w.JobsDone + 1}), nil
}

// Discard decides that the worker ends together with its hold of a job that never
// ran on it (a failed hand-over): the job's requeue is in the same append.
func (w Worker) Discard(jobID string, attempt int, cause Cause, reason string) ([]Event, error) {
	if jobID == "" || w.JobID != jobID || w.Attempt != attempt {
		return nil, fault.New(fault.Precondition, "worker %s holds job %q attempt %d, not job %s attempt %d", w.ID, w.JobID, w.Attempt, jobID, attempt)
	}
	if w.State == StateTerminating || w.State == StateTerminated {
		return nil, nil
	}
	return w.step(StateTerminating, cause, reason, jobID, attempt)
}

// Terminate decides that the worker's resource is to be destroyed. A job that it
// holds stays its own until the provider confirms (R5.6). Asking a worker that is
// going already is a typed error.
func (w Worker) Terminate(cause Cause, reason string) ([]Event, error) {
	return w.step(StateTerminating, cause, reason, "", 0)
}

// Grace is how long what the worker runs has to end by itself when the worker is
// TERMINATING: 0 where nobody may wait for it, because the agent is lost, does not
// answer, or let its job run over its time.
func (w Worker) Grace() time.Duration {
	if w.State != StateTerminating || w.JobID == "" {
		return 0
	}
	switch w.Cause {
	case CauseTerminated, CauseShutdown, CauseDrained, CauseLifetime, CauseProviderRemoved:
		return deadline.KillGrace
	default:
		return 0
	}
}

// Connecting decides that the resource exists and its agent may dial in.
func (w Worker) Connecting(reason string) ([]Event, error) {
	return w.step(StateConnecting, "", reason, "", 0)
}

// Attach decides what the first stream of a registered agent means: READY. The
// registry process replica holds its session.
func (w Worker) Attach(epoch int64, replica string) ([]Event, error) {
	if w.State != StateConnecting {
		// BUSY -> READY and DRAINING -> READY are legal, but not by a new stream.
		return nil, fault.New(fault.Precondition, "worker %s is %s: only a CONNECTING worker becomes READY by its agent's stream", w.ID, w.State)
	}
	out, err := w.step(StateReady, "", "its agent is connected", "", 0)
	if err != nil {
		return nil, err
	}
	return append(out, Ready{Epoch: epoch, Replica: replica}, ReadyForJob{ProviderID: w.ProviderID, Epoch: epoch, JobsDone: w.JobsDone}), nil
}

// Drain decides that the worker takes nothing new: READY goes at once, BUSY
// finishes, one that has not come up is terminated (R2.2).
func (w Worker) Drain(by string) ([]Event, error) {
	note := DrainRequested{By: by}
	reason := "drained by " + by
	switch w.State {
	case StateReady:
		first, err := w.step(StateDraining, CauseDrained, reason, "", 0)
		if err != nil {
			return nil, err
		}
		return append([]Event{note}, append(first, StatusChanged{From: StateDraining, To: StateTerminating, Cause: CauseDrained, Reason: reason})...), nil
	case StateBusy:
		out, err := w.step(StateDraining, CauseDrained, reason, "", 0)
		if err != nil {
			return nil, err
		}
		return append([]Event{note}, out...), nil
	case StateDraining:
		return nil, Transitions.Check(w.ID, w.State, StateDraining)
	default:
		out, err := w.Terminate(CauseDrained, reason)
		if err != nil {
			return nil, err
		}
		return append([]Event{note}, out...), nil
	}
}

// Undrain undoes Drain while the worker still holds its job.
func (w Worker) Undrain(by string) ([]Event, error) {
	if w.State != StateDraining {
		return nil, fault.New(fault.Precondition, "worker %s is %s: only a DRAINING worker can be undrained", w.ID, w.State)
	}
	note, reason := DrainRequested{By: by, Undo: true}, "undrained by "+by
	if w.JobID != "" {
		return []Event{note, StatusChanged{From: w.State, To: StateBusy, Reason: reason}}, nil
	}
	return []Event{
		note,
		StatusChanged{From: w.State, To: StateReady, Reason: reason},
		ReadyForJob{ProviderID: w.ProviderID, Epoch: w.Epoch, JobsDone: w.JobsDone},
	}, nil
}

// Lose decides that a silent worker is given up: WorkerLost, then TERMINATING.
func (w Worker) Lose(lastHeartbeat time.Time, reason string) ([]Event, error) {
	out, err := w.Terminate(CauseLost, reason)
	if err != nil {
		return nil, err
	}
	return append([]Event{Lost{JobID: w.JobID, Attempt: w.Attempt, LastHeartbeat: lastHeartbeat, Reason: reason}}, out...), nil
}

// Confirm decides that the provider has confirmed the end of the resource.
func (w Worker) Confirm(reason string) ([]Event, error) {
	if err := Transitions.Check(w.ID, w.State, StateTerminated); err != nil {
		return nil, err
	}
	return []Event{Terminated{From: w.State, ProviderID: w.ProviderID, Reason: reason, JobID: w.JobID, Attempt: w.Attempt}}, nil
}

func (w Worker) step(to State, cause Cause, reason, jobID string, attempt int) ([]Event, error) {
	if err := Transitions.Check(w.ID, w.State, to); err != nil {
		return nil, err
	}
	return []Event{StatusChanged{From: w.State, To: to, Cause: cause, Reason: reason, JobID: jobID, Attempt: attempt}}, nil
}
