package core_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/services/timeout-monitor/core"
)

// aJob folds a job whose retry policy is the default.
func aJob(facts ...job.Event) job.Job {
	spec := job.Spec{Name: "j", Command: []string{"true"}, Retry: job.Retry{InfrastructureAttempts: 3}}.WithDefaults()
	j := job.Job{ID: "j"}
	for i, f := range append([]job.Event{job.Created{Spec: spec}}, facts...) {
		j = j.Evolve(f, job.At{Version: i + 1, Time: at(float64(i))})
	}
	return j
}

func aWorker(facts ...worker.Event) worker.Worker {
	w := worker.Worker{ID: "w"}
	for i, f := range append([]worker.Event{requested}, facts...) {
		w = w.Evolve(f, worker.At{Version: i + 1, Time: at(float64(i))})
	}
	return w
}

// told is a short form of facts: what a reader checks first.
func told(facts []core.Fact) string {
	var out []string
	for _, f := range facts {
		switch f := f.(type) {
		case deadline.TimedOut:
			out = append(out, fmt.Sprintf("timed out %s in %s", f.Kind, f.State))
		case job.StatusChanged:
			out = append(out, fmt.Sprintf("%s %s", f.To, f.Result.Failure.Category))
		case job.Requeued:
			out = append(out, fmt.Sprintf("requeued %s", f.Cause))
		case worker.StatusChanged:
			out = append(out, fmt.Sprintf("%s %s", f.To, f.Cause))
		default:
			out = append(out, fmt.Sprintf("%T", f))
		}
	}
	return strings.Join(out, ", ")
}

func TestRecoverJob(t *testing.T) {
	up := becomes(worker.StateConnecting, worker.StateReady)
	busy := aWorker(up, becomes(worker.StateReady, worker.StateBusy))
	drained := aWorker(up, becomes(worker.StateReady, worker.StateBusy), worker.StatusChanged{From: worker.StateBusy, To: worker.StateDraining})
	other := aWorker(up, worker.StatusChanged{From: worker.StateReady, To: worker.StateBusy, JobID: "other", Attempt: 7})
	going := func(c worker.Cause) worker.Worker {
		return aWorker(up, becomes(worker.StateReady, worker.StateBusy), worker.StatusChanged{From: worker.StateBusy, To: worker.StateTerminating, Cause: c})
	}
	ended := func(c worker.Cause) worker.Worker {
		return going(c).Evolve(worker.Terminated{From: worker.StateTerminating, Reason: "destroyed"}, worker.At{Version: 9})
	}
	lost := job.Requeued{From: job.StateAssigned, Attempt: 1, Cause: job.CategoryWorkerLost, Result: job.Result{Failure: job.Fail(job.CategoryWorkerLost, "gone")}}
	isRunning := []job.Event{assigned, running}
	for name, c := range map[string]struct {
		kind        core.Kind
		job         job.Job
		worker      worker.Worker
		wantJob     string
		wantWorker  string
		wantProblem error
	}{
		"PENDING ends as TIMEOUT": {kind: core.Queue, job: aJob(), wantJob: "timed out state in PENDING, TIMEOUT QUEUE_TIMEOUT"},
		"SCHEDULED, the worker is CREATING": {
			kind: core.Scheduled, job: aJob(scheduled), worker: aWorker(),
			wantJob: "timed out state in SCHEDULED, requeued PROVISIONING_FAILED", wantWorker: "TERMINATING PROVISIONING",
		},
		"SCHEDULED, the worker is CONNECTING": {
			kind: core.Scheduled, job: aJob(scheduled), worker: aWorker(becomes(worker.StateCreating, worker.StateConnecting)),
			wantJob: "timed out state in SCHEDULED, requeued PROVISIONING_FAILED", wantWorker: "TERMINATING PROVISIONING",
		},
		"SCHEDULED, the worker serves another": {
			kind: core.Scheduled, job: aJob(scheduled), worker: other, wantJob: "timed out state in SCHEDULED, requeued PROVISIONING_FAILED",
		},
		"SCHEDULED, no attempts left": {
			kind: core.Scheduled, job: aJob(assigned, lost, assigned, lost, assigned, lost, scheduled), worker: aWorker(),
			wantJob: "timed out state in SCHEDULED, FAILED PROVISIONING_FAILED", wantWorker: "TERMINATING PROVISIONING",
		},
		"ASSIGNED": {
			kind: core.Assigned, job: aJob(assigned), worker: busy,
			wantJob: "timed out state in ASSIGNED, requeued DISPATCH_FAILED", wantWorker: "TERMINATING HAND_OVER",
		},
		"ASSIGNED, cancel pending": {
			kind: core.Assigned, job: aJob(assigned, cancel), worker: busy,
			wantJob: "timed out state in ASSIGNED, CANCELLED DISPATCH_FAILED", wantWorker: "TERMINATING HAND_OVER",
		},
		"ASSIGNED, the worker is going": {
			kind: core.Assigned, job: aJob(assigned), worker: going(worker.CauseLost), wantJob: "timed out state in ASSIGNED, requeued DISPATCH_FAILED",
		},
		"ASSIGNED, the worker is gone": {
			kind: core.Assigned, job: aJob(assigned), worker: ended(worker.CauseLost), wantJob: "timed out state in ASSIGNED, requeued DISPATCH_FAILED",
		},
		"RUNNING": {kind: core.Running, job: aJob(isRunning...), worker: busy, wantJob: "timed out state in RUNNING", wantWorker: "TERMINATING JOB_TIMEOUT"},
		"RUNNING on a drained worker": {
			kind: core.Running, job: aJob(isRunning...), worker: drained, wantJob: "timed out state in RUNNING", wantWorker: "TERMINATING JOB_TIMEOUT",
		},
		"RUNNING, the worker is going": {kind: core.Running, job: aJob(isRunning...), worker: going(worker.CauseJobTimeout)},
		"RUNNING, the worker is gone and nobody ended the job": {
			kind: core.Running, job: aJob(isRunning...), worker: ended(worker.CauseJobTimeout),
			wantJob: "timed out state in RUNNING, job.ExecutionError, TIMEOUT TIMEOUT",
		},
		"RUNNING, the worker was lost and nobody ended the job": {
			kind: core.Running, job: aJob(isRunning...), worker: ended(worker.CauseLost), wantJob: "timed out state in RUNNING, requeued WORKER_LOST",
		},
		"RUNNING, the worker holds another": {kind: core.Running, job: aJob(isRunning...), worker: other, wantProblem: fault.Internal},
		"cancel unanswered, RUNNING": {
			kind: core.Cancel, job: aJob(assigned, running, cancel), worker: busy, wantJob: "timed out cancel in RUNNING", wantWorker: "TERMINATING CANCEL_UNANSWERED",
		},
		"cancel unanswered, ASSIGNED": {
			kind: core.Cancel, job: aJob(assigned, cancel), worker: busy, wantJob: "timed out cancel in ASSIGNED", wantWorker: "TERMINATING CANCEL_UNANSWERED",
		},
		"cancel unanswered, the worker is gone": {
			kind: core.Cancel, job: aJob(assigned, running, cancel), worker: ended(worker.CauseCancelUnanswered),
			wantJob: "timed out cancel in RUNNING, CANCELLED CANCELLED",
		},
		"an unknown kind": {kind: "x", job: aJob(), wantProblem: fault.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			d := core.Deadline{Kind: c.kind, State: string(c.job.State), Attempt: c.job.Attempt, Since: at(1), Threshold: 30 * time.Second}
			got, err := rules.RecoverJob(d, c.job, c.worker, at(40), 0)
			if !errors.Is(err, c.wantProblem) {
				t.Fatalf("error %v, want %v", err, c.wantProblem)
			}
			if j := told(got.Job); j != c.wantJob {
				t.Errorf("job: %s\nwant %s", j, c.wantJob)
			}
			if w := told(got.Worker); w != c.wantWorker {
				t.Errorf("worker: %s\nwant %s", w, c.wantWorker)
			}
			if len(got.Job) > 0 {
				if f := got.Job[0].(deadline.TimedOut); f.Elapsed.D() != 39*time.Second || f.Threshold.D() != 30*time.Second || f.Recovery == "" {
					t.Errorf("StateTimedOut says %+v", f)
				}
			}
		})
	}
}

func TestRecoverWorker(t *testing.T) {
	up := becomes(worker.StateConnecting, worker.StateReady)
	ready := aWorker(up)
	busy := aWorker(up, becomes(worker.StateReady, worker.StateBusy))
	keeps := &core.Provider{MinIdle: 2}
	for name, c := range map[string]struct {
		kind   core.Kind
		worker worker.Worker
		p      *core.Provider
		idle   int
		want   string
	}{
		"CREATING":                      {kind: core.Creating, worker: aWorker(), want: "timed out state in CREATING, TERMINATING PROVISIONING"},
		"CONNECTING":                    {kind: core.Connecting, worker: aWorker(becomes(worker.StateCreating, worker.StateConnecting)), want: "timed out state in CONNECTING, TERMINATING PROVISIONING"},
		"READY":                         {kind: core.Idle, worker: ready, p: &core.Provider{}, idle: 1, want: "timed out state in READY, TERMINATING IDLE"},
		"READY, none are kept":          {kind: core.Idle, worker: ready, p: &core.Provider{}, want: "timed out state in READY, TERMINATING IDLE"},
		"READY, provider not known":     {kind: core.Idle, worker: ready, want: "timed out state in READY, TERMINATING IDLE"},
		"READY, kept":                   {kind: core.Idle, worker: ready, p: keeps, idle: 2},
		"READY, one more than are kept": {kind: core.Idle, worker: ready, p: keeps, idle: 3, want: "timed out state in READY, TERMINATING IDLE"},
		"DRAINING": {
			kind: core.Draining, worker: aWorker(up, worker.StatusChanged{From: worker.StateReady, To: worker.StateDraining}),
			want: "timed out state in DRAINING, TERMINATING DRAINED",
		},
		"TERMINATING": {
			kind: core.Terminating, worker: aWorker(worker.StatusChanged{From: worker.StateCreating, To: worker.StateTerminating}),
			want: "timed out state in TERMINATING",
		},
		"lifetime, BUSY":  {kind: core.Lifetime, worker: busy, want: "timed out lifetime in BUSY, worker.DrainRequested, DRAINING DRAINED"},
		"lifetime, READY": {kind: core.Lifetime, worker: ready, want: "timed out lifetime in READY, TERMINATING LIFETIME"},
	} {
		t.Run(name, func(t *testing.T) {
			d := core.Deadline{Kind: c.kind, State: string(c.worker.State), Since: at(1), Threshold: 30 * time.Second}
			got, err := rules.RecoverWorker(d, c.worker, c.p, c.idle, at(40))
			if err != nil {
				t.Fatal(err)
			}
			if w := told(got.Worker); w != c.want {
				t.Errorf("got %s\nwant %s", w, c.want)
			}
		})
	}
	if _, err := core.SilentWorker(aWorker(), at(1), at(0), at(40), 30*time.Second); !errors.Is(err, fault.Precondition) {
		t.Errorf("a CREATING worker is silent: %v", err)
	}
	got, err := core.SilentWorker(busy, at(1), at(0), at(40), 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	want := deadline.TimedOut{State: "BUSY", Kind: "heartbeat", JobID: "j", Attempt: 1, LastSeen: at(0)}
	f := got.Worker[0].(deadline.TimedOut)
	if f.State != want.State || f.Kind != want.Kind || f.JobID != want.JobID || f.Attempt != want.Attempt || !f.LastSeen.Equal(want.LastSeen) {
		t.Errorf("got %+v", f)
	}
}
