package core_test

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/unit"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/services/timeout-monitor/core"
)

// happened is an event as a naive reader of the history sees it.
type happened struct {
	fact core.Fact
	at   time.Time
}

// TestArmedDeadlineIsWhatTheHistorySays drives a job and a worker through random
// decisions and compares the incremental watch with a reading of the whole history.
func TestArmedDeadlineIsWhatTheHistorySays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		spec := job.Spec{Name: "j", Command: []string{"true"}, Retry: job.Retry{MaxAttempts: 3, InfrastructureAttempts: 3}}.WithDefaults()
		spec.Timeout = unit.Duration(rapid.IntRange(1, 100).Draw(t, "timeout")) * unit.Duration(time.Second)
		j, w := job.Job{ID: "j"}, worker.Worker{ID: "w"}
		var jw, ww core.Watch
		var jh, wh []happened
		now := t0
		tellJob := func(facts []job.Event, err error) {
			if err != nil {
				return
			}
			for _, f := range facts {
				j = j.Evolve(f, job.At{Version: j.Version + 1, Time: now})
				jw = jw.Observe(f, core.At{Version: j.Version, Time: now, ID: "x"})
				jh = append(jh, happened{f, now})
			}
		}
		tellWorker := func(facts []worker.Event, err error) {
			if err != nil {
				return
			}
			for _, f := range facts {
				w = w.Evolve(f, worker.At{Version: w.Version + 1, Time: now})
				ww = ww.Observe(f, core.At{Version: w.Version, Time: now, ID: "x"})
				wh = append(wh, happened{f, now})
			}
		}
		tellJob(job.Create(spec, "", ""))
		tellWorker(worker.Request(requested), nil)
		for range rapid.IntRange(0, 25).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 50).Draw(t, "wait")) * time.Second)
			switch rapid.SampledFrom([]string{"schedule", "assign", "start", "own", "infra", "cancel", "connecting", "attach", "take", "release", "drain", "undrain", "terminate", "confirm"}).Draw(t, "decision") {
			case "schedule":
				tellJob(j.Schedule("p", "w", ""))
			case "assign":
				tellJob(j.Assign("p", "w", 1, ""))
			case "start":
				tellJob(j.Start(j.WorkerID, j.Attempt))
			case "own":
				tellJob(j.End(j.WorkerID, j.Attempt, job.Result{Failure: job.Fail(job.CategoryExitCode, "1")}, now, 0))
			case "infra":
				tellJob(j.End(j.WorkerID, j.Attempt, job.Result{Failure: job.Fail(job.CategoryWorkerLost, "gone")}, now, 0))
			case "cancel":
				tellJob(j.RequestCancel("ann", ""))
			case "connecting":
				tellWorker(w.Connecting(""))
			case "attach":
				tellWorker(w.Attach(1, ""))
			case "take":
				tellWorker(w.Take("j", 1))
			case "release":
				tellWorker(w.Release(w.JobID, w.Attempt))
			case "drain":
				tellWorker(w.Drain("ann"))
			case "undrain":
				tellWorker(w.Undrain("ann"))
			case "terminate":
				tellWorker(w.Terminate(worker.CauseTerminated, ""))
			case "confirm":
				tellWorker(w.Confirm(""))
			}
			compare(t, core.Job, jw, string(j.State), naiveJob(j, jh))
			compare(t, core.Worker, ww, string(w.State), naiveWorker(w, wh))
		}
	})
}

func compare(t *rapid.T, of core.Type, w core.Watch, state string, want time.Time) {
	if w.State != state {
		t.Fatalf("%s: watched as %s, is %s", of, w.State, state)
	}
	got, ok := rules.Deadline(of, w, nil)
	if ok != !want.IsZero() || ok && !got.Due.Equal(want) {
		t.Fatalf("%s in %s: armed %t for %s, want %s", of, state, ok, got.Due.Sub(t0), want.Sub(t0))
	}
}

// naiveJob reads the deadline off the history, backwards; zero where there is none.
func naiveJob(j job.Job, history []happened) time.Time {
	table := deadline.Defaults()
	entered, asked := time.Time{}, time.Time{}
	for _, h := range slices.Backward(history) {
		switch f := h.fact.(type) {
		case job.CancelRequested:
			asked = h.at
		case job.Queued, job.Scheduled, job.Assigned, job.StatusChanged, job.Requeued:
			if entered.IsZero() {
				entered = h.at
				if r, ok := f.(job.Requeued); ok && r.NotBefore.After(entered) {
					entered = r.NotBefore
				}
			}
		}
	}
	var due time.Time
	switch j.State {
	case job.StatePending:
		return entered.Add(j.Spec.QueueTimeout.D())
	case job.StateScheduled:
		return entered.Add(table.JobScheduled)
	case job.StateAssigned:
		due = entered.Add(table.JobAssigned)
	case job.StateRunning:
		due = entered.Add(j.Spec.Timeout.D() + table.KillGrace + table.BackstopMargin)
	default:
		return due
	}
	if !asked.IsZero() {
		if entered.After(asked) {
			asked = entered
		}
		if cancel := asked.Add(table.KillGrace + table.CancelMargin); cancel.Before(due) {
			return cancel
		}
	}
	return due
}

func naiveWorker(w worker.Worker, history []happened) time.Time {
	table := deadline.Defaults()
	var entered time.Time
	for _, h := range history {
		switch h.fact.(type) {
		case worker.ProvisioningRequested, worker.StatusChanged, worker.Terminated:
			entered = h.at
		}
	}
	threshold := map[worker.State]time.Duration{
		worker.StateCreating: table.WorkerCreating, worker.StateConnecting: table.WorkerConnecting,
		worker.StateReady: core.DefaultIdleTimeout, worker.StateTerminating: table.WorkerTerminating,
	}[w.State]
	due := time.Time{}
	if threshold > 0 {
		due = entered.Add(threshold)
	}
	switch w.State {
	case worker.StateCreating, worker.StateConnecting, worker.StateReady, worker.StateBusy:
		if end := history[0].at.Add(table.WorkerLifetime); due.IsZero() || end.Before(due) {
			return end
		}
	default: // those that go have no other end
	}
	return due
}
