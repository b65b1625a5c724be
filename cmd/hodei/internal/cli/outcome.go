package cli

import (
	"slices"

	"hodei.dev/libs/domain/job"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

// The exit codes of jobs that did not end by themselves.
const (
	exitTimeout  = 124
	exitPlatform = 125
	exitSignal   = 128
)

// outcome is the exit code of `run` and `job wait`: the job's own; 128+n where
// signal n killed it; 124 timed out; 130 cancelled; 125 where the platform failed,
// that is, the command never ended by itself.
func outcome(j *schedulerv1.Job) int {
	switch job.State(j.GetState()) { //nolint:exhaustive // the others have not ended
	case job.StateSucceeded:
		return int(j.GetExitCode())
	case job.StateTimedOut:
		return exitTimeout
	case job.StateCancelled:
		return exitInterrupted
	}
	switch {
	case job.CauseOf(job.Category(j.GetFailure().GetCategory())).Infrastructure && j.GetFailure() != nil:
		return exitPlatform
	case j.GetSignal() > 0:
		return exitSignal + int(j.GetSignal())
	case j.ExitCode != nil && j.GetExitCode() != 0:
		return int(j.GetExitCode())
	default:
		return exitPlatform
	}
}

// terminal tells whether a state is one that a job does not leave.
func terminal(state string) bool {
	s := job.State(state)
	return slices.Contains(job.Transitions.States, s) && s.Terminal()
}

// verdict says in a line how a job ended, and what to do about it where it failed.
func (a *app) verdict(j *schedulerv1.Job) {
	if j.GetState() == string(job.StateSucceeded) {
		return
	}
	why, advice := j.GetReason(), j.GetAdvice()
	if f := j.GetFailure(); f != nil {
		if f.GetMessage() != "" {
			why = f.GetMessage()
		}
		if advice == "" {
			advice = f.GetAdvice()
		}
	}
	a.say("job "+j.GetId()+" "+j.GetState(), why, advice)
}
