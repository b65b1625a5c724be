package core

import (
	"errors"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/worker"
)

// Fate is what the log says of the agent of a worker.
type Fate struct {
	// Registered: an agent has proven itself to be the worker's.
	Registered bool
	// Goodbye: its last word was that it has ended what it ran and will not come back.
	Goodbye bool
	// Condemned is when the worker was given up; zero while it is not.
	Condemned time.Time
}

// Follow takes in one fact about the worker, which the log took at that time.
func (f *Fate) Follow(fact any, at time.Time) {
	switch fact := fact.(type) {
	case worker.Registered:
		f.Registered = true
	case worker.Ready, worker.Reconnected:
		f.Goodbye = false
	case worker.Disconnected:
		f.Goodbye = fact.Clean
	case worker.StatusChanged:
		if fact.To == worker.StateTerminating {
			f.Condemned = at
		}
	case worker.Terminated:
		f.Condemned = at
	}
}

// Keeper is who can end a worker's resource, as far as decisions need to know.
type Keeper struct {
	// Known: there is somebody.
	Known bool
	// LeaseFence: it has nothing but the agent's word, or its lease, for the end.
	LeaseFence bool
}

// Step is what a worker needs next.
type Step int

// The steps.
const (
	// Rest: nothing.
	Rest Step = iota
	// Clear: what is left of a worker that is no more is destroyed.
	Clear
	// End: the resource is destroyed, and that is confirmed in the log.
	End
	// Drain: its provider is removed: it goes, at once or after its job.
	Drain
	// GiveUp: nobody here can make it.
	GiveUp
	// Provide: its resource is made.
	Provide
)

// Next decides what a worker needs; gone is why its resource has ended by itself, as
// far as anybody has seen, "" where nobody has. The second result is what is known of
// that then.
func Next(w worker.Worker, p provider.Provider, f Fate, k Keeper, gone string) (Step, string) {
	if gone == "" && f.Goodbye && k.LeaseFence {
		gone = "its agent has said goodbye"
	}
	switch {
	case w.State.Terminal():
		return Clear, gone
	case w.State == worker.StateTerminating, gone != "":
		return End, gone
	case p.State == provider.StateRemoved && w.State != worker.StateDraining:
		return Drain, gone
	case !w.Provisioned && !k.Known:
		return GiveUp, gone
	case !w.Provisioned:
		return Provide, gone
	}
	return Rest, gone
}

// MakeAttempts is how often a resource is tried to be made before the worker is given up.
const MakeAttempts = 3

// Again tells whether a resource that could not be made for the n-th time (from 1) is
// worth another try.
func Again(failures int, err error) bool { return failures < MakeAttempts && !Lasting(err) }

// Lasting tells whether the same try would fail again.
func Lasting(err error) bool {
	return errors.Is(err, fault.Invalid) || errors.Is(err, fault.Precondition) || errors.Is(err, fault.NotFound) || errors.Is(err, fault.Denied)
}

// Provided decides that the resource exists. No facts where that is known or the
// worker is not wanted any more: then it is to be ended.
func Provided(w worker.Worker, resource string, details map[string]string) ([]worker.Event, error) {
	if w.Provisioned || going(w) {
		return nil, nil
	}
	facts := []worker.Event{worker.Provisioned{ProviderID: w.ProviderID, Resource: resource, Details: details}}
	if w.State != worker.StateCreating {
		return facts, nil
	}
	more, err := w.Connecting("its resource exists")
	return append(facts, more...), err
}

// GivenUp decides that the resource cannot be made; what there is of it is destroyed,
// because the worker is TERMINATING then.
func GivenUp(w worker.Worker, cause error) ([]worker.Event, error) {
	if going(w) {
		return nil, nil
	}
	facts, err := w.Terminate(worker.CauseProvisioning, "its resource could not be made: "+cause.Error())
	return append([]worker.Event{worker.ProvisioningFailed{ProviderID: w.ProviderID, JobID: w.WaitingJobID, Reason: cause.Error()}}, facts...), err
}

// Drained decides that the worker of a removed provider goes: at once, or after its job.
func Drained(w worker.Worker, by string) ([]worker.Event, error) {
	if going(w) || w.State == worker.StateDraining {
		return nil, nil
	}
	return w.Drain(by)
}

// Ended decides that nothing of the worker is left; gone is why its resource ended by
// itself, where it did.
func Ended(w worker.Worker, gone string) ([]worker.Event, error) {
	if w.State.Terminal() {
		return nil, nil
	}
	reason := "nothing of it is left"
	if gone != "" && w.State != worker.StateTerminating {
		reason = gone
	}
	return w.Confirm(reason)
}

func going(w worker.Worker) bool {
	return w.State.Terminal() || w.State == worker.StateTerminating
}
