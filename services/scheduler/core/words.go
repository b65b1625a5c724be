package core

import (
	"fmt"
	"strings"
	"time"

	"hodei.dev/libs/domain/job"
)

// Explain says in words why a job is in its state, and what the user can do
// next; the advice may be empty. now decides whether a job is still held back.
func Explain(j job.Job, now time.Time) (reason, advice string) {
	switch j.State {
	case job.StatePending:
		return explainPending(j, now)
	case job.StateScheduled:
		return withCause(fmt.Sprintf("waits for worker %s, which provider %s is making", j.WorkerID, j.ProviderID), j.Reason),
			"see how the worker is coming along: `hodei worker get " + j.WorkerID + "`"
	case job.StateAssigned:
		return fmt.Sprintf("worker %s is being given the job (attempt %d)%s", j.WorkerID, j.Attempt, cancelling(j)),
			"see the worker: `hodei worker get " + j.WorkerID + "`"
	case job.StateRunning:
		if j.Cancel != nil {
			return fmt.Sprintf("runs on worker %s (attempt %d)%s", j.WorkerID, j.Attempt, cancelling(j)),
				"wait: the worker ends the job's processes and reports: `hodei job wait " + j.ID + "`"
		}
		return fmt.Sprintf("runs on worker %s (attempt %d)", j.WorkerID, j.Attempt),
			"follow its output: `hodei job logs -f " + j.ID + "`"
	default:
		if j.Result != nil && j.Result.Failure != nil {
			return j.Reason, Advice(j)
		}
		return j.Reason, ""
	}
}

func explainPending(j job.Job, now time.Time) (reason, advice string) {
	switch {
	case len(j.Deferred) > 0:
		return "waits in the queue: nothing could run it as things are: " + strings.Join(j.Deferred, "; "),
			"make room or change what it asks for: see `hodei provider list` and `hodei worker list`"
	case j.NotBefore.After(now):
		return withCause(fmt.Sprintf("waits in the queue, held back until %s", j.NotBefore.UTC().Format(time.RFC3339)), j.Reason),
			"wait, or see its attempts: `hodei job history " + j.ID + "`"
	default:
		return withCause("waits in the queue", j.Reason), "see what there is to run it: `hodei status`"
	}
}

// Advice is what to do about the failure of the job's last attempt, with the
// job's and the worker's id in the commands that it names; empty where nothing failed.
func Advice(j job.Job) string {
	if j.Result == nil || j.Result.Failure == nil {
		return ""
	}
	advice := j.Result.Failure.Advice
	if j.WorkerID != "" {
		advice = strings.ReplaceAll(advice, "worker get ID", "worker get "+j.WorkerID)
	}
	for _, verb := range []string{"logs", "history", "retry", "get"} {
		advice = strings.ReplaceAll(advice, "job "+verb+" ID", "job "+verb+" "+j.ID)
	}
	return advice
}

func cancelling(j job.Job) string {
	if j.Cancel == nil {
		return ""
	}
	return withCause("; "+j.Cancel.By+" has asked for its end", j.Cancel.Reason)
}

func withCause(what, cause string) string {
	if cause == "" {
		return what
	}
	return what + ": " + cause
}
