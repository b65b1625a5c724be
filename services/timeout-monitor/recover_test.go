package timeoutmonitor_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/unit"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
)

const brief = 300 * time.Millisecond

func TestPendingBecomesTimeout(t *testing.T) {
	w := newWorld(t)
	w.monitor()
	id := w.queue(func(s *job.Spec) { s.QueueTimeout = unit.Duration(brief) })
	events := w.until(aggregate.JobStream(id), "TIMEOUT", typed("JobStatusChanged"))
	recovered(t, events, find(t, events, typed("JobQueued")), brief)
	j := w.job(id)
	if j.State != job.StateTimedOut || j.Result.Failure.Category != job.CategoryQueueTimeout || j.Result.Failure.Advice == "" {
		t.Errorf("the job is %s: %+v", j.State, j.Result)
	}
	eventingtest.Eventually(t, "its row to go", func() bool { return w.count(`select count(*) from timeout_monitor.deadlines`) == 0 })
}

func TestScheduledIsRequeuedAndItsWorkerGoes(t *testing.T) {
	w := newWorld(t)
	w.register(func(s *provider.Spec) { s.ScheduledTimeout = unit.Duration(brief) })
	w.monitor()
	id := w.queue(nil)
	j, workerID := w.job(id), event.NewID()
	scheduled, err := j.Schedule(providerID, workerID, "test")
	w.append(jobChange(w, j)(scheduled, err),
		workerChange(w, worker.Worker{ID: workerID}, "corr")(worker.Request(worker.ProvisioningRequested{ProviderID: providerID, JobID: id, JobsPerWorker: 1}), nil))
	events := w.until(aggregate.JobStream(id), "requeue", typed("JobRequeued"))
	recovered(t, events, find(t, events, typed("JobScheduled")), brief)
	requeued := find(t, events, typed("JobRequeued"))
	together(t, requeued, find(t, w.until(aggregate.WorkerStream(workerID), "end", terminating), terminating))
	if got := w.worker(workerID); got.Cause != worker.CauseProvisioning {
		t.Errorf("the worker goes because of %s", got.Cause)
	}
}

func TestAssignedIsRequeuedAndItsWorkerDiscarded(t *testing.T) {
	w := newWorld(t)
	w.cfg.Thresholds.JobAssigned = short(brief)
	w.monitor()
	id, workerID := w.queue(nil), w.ready()
	w.assign(id, workerID)
	events := w.until(aggregate.JobStream(id), "requeue", typed("JobRequeued"))
	out := recovered(t, events, find(t, events, typed("JobAssigned")), brief)
	gone := find(t, w.until(aggregate.WorkerStream(workerID), "end", terminating), terminating)
	together(t, out, gone)
	v, j := w.worker(workerID), w.job(id)
	if v.JobID != "" || v.Cause != worker.CauseHandOver || j.State != job.StatePending || gone.CorrelationID != "corr" {
		t.Errorf("the worker holds %q and goes because of %s; the job is %s", v.JobID, v.Cause, j.State)
	}
}

func TestRunningAndCancelFenceTheirWorker(t *testing.T) {
	w := newWorld(t)
	w.cfg.Thresholds.KillGrace, w.cfg.Thresholds.JobRunning, w.cfg.Thresholds.JobCancel = short(100*time.Millisecond), short(100*time.Millisecond), short(200*time.Millisecond)
	w.monitor()
	for _, c := range []struct {
		name      string
		cancelled bool
		cause     worker.Cause
		by        string
		threshold time.Duration
		end       job.State
	}{
		{"ran too long", false, worker.CauseJobTimeout, "JobStatusChanged", 400 * time.Millisecond, job.StateTimedOut},
		{"cancel unanswered", true, worker.CauseCancelUnanswered, "JobCancelRequested", 300 * time.Millisecond, job.StateCancelled},
	} {
		t.Run(c.name, func(t *testing.T) {
			id := w.queue(func(s *job.Spec) {
				if !c.cancelled {
					s.Timeout = unit.Duration(200 * time.Millisecond)
				}
			})
			workerID := w.ready()
			w.assign(id, workerID)
			w.run(id)
			if c.cancelled {
				j := w.job(id)
				facts, err := j.RequestCancel("ann", "")
				w.append(jobChange(w, j)(facts, err))
			}
			events := w.until(aggregate.JobStream(id), "timeout", typed("StateTimedOut"))
			out := recovered(t, events, find(t, events, typed(c.by)), c.threshold)
			together(t, out, find(t, w.until(aggregate.WorkerStream(workerID), "end", terminating), terminating))
			v, j := w.worker(workerID), w.job(id)
			if v.Cause != c.cause || v.JobID != id || j.State != job.StateRunning {
				t.Fatalf("the worker goes because of %s and holds %q; the job is %s", v.Cause, v.JobID, j.State)
			}
			// The provider confirms and nobody concludes: the monitor does, when it looks again.
			facts, err := v.Confirm("destroyed")
			w.append(workerChange(w, v, "corr")(facts, err))
			w.until(aggregate.JobStream(id), "end", func(e event.Event) bool {
				return e.Type == "JobStatusChanged" && fact[job.StatusChanged](t, e).To == c.end
			})
		})
	}
}

func TestWorkersThatStay(t *testing.T) {
	w := newWorld(t)
	th := &w.cfg.Thresholds
	th.WorkerCreating, th.WorkerConnecting, th.WorkerTerminating = short(brief), short(brief), short(brief)
	w.register(func(s *provider.Spec) { s.IdleTimeout, s.MinIdle = unit.Duration(brief), 1 })
	w.monitor()
	creating := w.creating("")
	events := w.until(aggregate.WorkerStream(creating), "end", terminating)
	out := recovered(t, events, find(t, events, typed("WorkerProvisioningRequested")), brief)
	if out.CorrelationID != "own-"+creating {
		t.Errorf("correlation id %q", out.CorrelationID)
	}
	// It does not go: that is noted again and again, with growing distance.
	var noted []event.Event
	eventingtest.Eventually(t, "two notices of TERMINATING", func() bool {
		events, err := w.store.Load(t.Context(), aggregate.WorkerStream(creating), 0)
		if err != nil {
			t.Fatal(err)
		}
		noted = nil
		for _, e := range events {
			if e.Type == "StateTimedOut" && fact[deadline.TimedOut](t, e).State == "TERMINATING" {
				noted = append(noted, e)
			}
		}
		return len(noted) >= 2
	})
	if d := noted[1].Time.Sub(noted[0].Time); d < 2*time.Second {
		t.Errorf("noted again after %s", d)
	}

	// Of three idle workers one is kept.
	ids := []string{w.ready(), w.ready(), w.ready()}
	eventingtest.Eventually(t, "two of three to go", func() bool {
		n := 0
		for _, id := range ids {
			if v := w.worker(id); v.State == worker.StateTerminating && v.Cause == worker.CauseIdle {
				n++
			}
		}
		return n == 2
	})
	eventingtest.Eventually(t, "the third to be looked at again and kept", func() bool {
		return w.count(`select count(*) from timeout_monitor.deadlines where state = 'READY' and due_at > now()`) == 1
	})
	// The provider's settings change, and with them the deadline of the one that is left.
	w.register(func(s *provider.Spec) { s.IdleTimeout = unit.Duration(brief) })
	eventingtest.Eventually(t, "the third to go", func() bool {
		for _, id := range ids {
			if w.worker(id).State != worker.StateTerminating {
				return false
			}
		}
		return true
	})
}

func TestLifetimeDrains(t *testing.T) {
	w := newWorld(t)
	w.cfg.Thresholds.WorkerLifetime = short(brief)
	id, workerID := w.queue(nil), w.ready()
	w.assign(id, workerID)
	w.monitor()
	w.until(aggregate.WorkerStream(workerID), "drain", typed("WorkerDrainRequested"))
	if v := w.worker(workerID); v.State != worker.StateDraining || v.JobID != id {
		t.Errorf("the worker is %s and holds %q", v.State, v.JobID)
	}
}

func TestRestartBetweenArmingAndFiring(t *testing.T) {
	w := newWorld(t)
	stop := w.monitor()
	id := w.queue(func(s *job.Spec) { s.QueueTimeout = unit.Duration(time.Second) })
	eventingtest.Eventually(t, "its row", func() bool { return w.count(`select count(*) from timeout_monitor.deadlines`) == 1 })
	stop()
	w.monitor()
	events := w.until(aggregate.JobStream(id), "TIMEOUT", typed("JobStatusChanged"))
	recovered(t, events, find(t, events, typed("JobQueued")), time.Second)
}

func TestOtherThresholdsAfterARestart(t *testing.T) {
	w := newWorld(t)
	stop := w.monitor()
	id, workerID := w.queue(nil), w.ready()
	w.assign(id, workerID)
	eventingtest.Eventually(t, "its row", func() bool {
		return w.count(`select count(*) from timeout_monitor.deadlines where kind = 'assigned'`) == 1
	})
	stop()
	w.cfg.Thresholds.JobAssigned = short(brief)
	w.monitor()
	w.until(aggregate.JobStream(id), "requeue", typed("JobRequeued"))
}

// TestTheJobEndsAtTheSameMoment: many jobs end just when their deadline passes. Each
// ends once, and the monitor's part and the agent's never mix.
func TestTheJobEndsAtTheSameMoment(t *testing.T) {
	w := newWorld(t)
	const n = 30
	w.cfg.Thresholds.KillGrace, w.cfg.Thresholds.JobRunning = short(100*time.Millisecond), short(100*time.Millisecond)
	w.monitor()
	type pair struct{ job, worker string }
	var all []pair
	for range n {
		p := pair{w.queue(func(s *job.Spec) { s.Timeout = unit.Duration(500 * time.Millisecond) }), w.ready()}
		w.assign(p.job, p.worker)
		all = append(all, p)
	}
	var wins, losses int
	var mu sync.Mutex
	var work sync.WaitGroup
	for _, p := range all {
		w.run(p.job)
		due := w.job(p.job).Started().Add(700 * time.Millisecond)
		work.Go(func() {
			timer := time.NewTimer(time.Until(due))
			<-timer.C
			won := w.finish(p.job, p.worker)
			mu.Lock()
			defer mu.Unlock()
			if won {
				wins++
			} else {
				losses++
			}
		})
	}
	work.Wait()
	t.Logf("the agent was faster %d times, the monitor %d times", wins, losses)
	for _, p := range all {
		eventingtest.Eventually(t, "an outcome", func() bool {
			j, v := w.job(p.job), w.worker(p.worker)
			return j.State == job.StateSucceeded && v.JobID == "" || j.State == job.StateRunning && v.State == worker.StateTerminating && v.JobID == p.job
		})
	}
}

// finish ends the job as its agent would, unless the monitor was faster.
func (w *world) finish(jobID, workerID string) bool {
	j, err := aggregate.LoadJob(context.Background(), w.store, jobID)
	if err != nil {
		w.t.Error(err)
	}
	v, err := aggregate.LoadWorker(context.Background(), w.store, workerID)
	if err != nil {
		w.t.Error(err)
	}
	if v.State != worker.StateBusy {
		return false
	}
	ends, err := j.End(workerID, 1, job.Result{}, time.Now(), 0)
	if err != nil {
		w.t.Error(err)
		return false
	}
	released, err := v.Release(jobID, 1)
	if err != nil {
		w.t.Error(err)
		return false
	}
	_, err = w.store.Append(context.Background(), store.Append{Changes: []store.Change{
		jobChange(w, j)(ends, nil), workerChange(w, v, "corr")(released, nil),
	}})
	if err != nil && !errors.Is(err, fault.Conflict) {
		w.t.Error(err)
	}
	return err == nil
}
