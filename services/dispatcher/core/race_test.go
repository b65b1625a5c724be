package core_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"

	"hodei.dev/services/dispatcher/core"
)

// What was read, or appended, before an end is told after it: what has ended stays
// ended, and takes no room.
func TestWhatHasEndedStaysEnded(t *testing.T) {
	t.Run("a fold that was read before the end", func(t *testing.T) {
		w := newWorld(t)
		w.register("local", 1, reused)
		w.idle("x", "local", job.Resources{})
		w.queue("a", func(s *job.Spec) { s.Resources.CPUMillis = 500 })
		if diff := cmp.Diff([]string{"assign a to x"}, w.decide()); diff != "" {
			t.Fatal(diff)
		}
		j, x := w.jobs["a"], w.workers["x"]
		w.worker("x", must[worker.Event](t)(x.Confirm("its agent has ended"))...)
		w.job("a", must[job.Event](t)(j.End("x", 1, job.Result{Failure: job.Fail(job.CategoryValidation, "no")}, w.now, 0))...)
		w.s.ObserveWorker(x)
		w.s.ObserveJob(j)
		if _, ok := w.s.Worker("x"); ok {
			t.Error("x is terminated and is known again")
		}
		if _, ok := w.s.Job("a"); ok {
			t.Error("a has ended and is known again")
		}
		w.queue("b", nil)
		if got := w.decide(); len(got) != 1 || got[0] != "schedule b at local" {
			t.Errorf("decided %v: the room of x is not free", got)
		}
	})
	t.Run("our own append, told after all that followed from it", func(t *testing.T) {
		w := newWorld(t)
		w.register("local", 1, reused)
		w.queue("a", nil)
		d := w.s.Decide(w.now, 0)[0].(core.Schedule)
		made := worker.ProvisioningRequested{ProviderID: "local", ProviderName: "local", JobID: "a"}
		w.job("a", must[job.Event](t)(w.jobs["a"].Schedule(d.Provider, "x", ""))...)
		w.worker("x", made)
		w.worker("x", must[worker.Event](t)(w.workers["x"].Terminate(worker.CauseProvisioning, "no disk"))...)
		w.worker("x", must[worker.Event](t)(w.workers["x"].Confirm("nothing is left"))...)
		w.s.ApplyWorker("x", made, worker.At{Version: 1, Time: w.now})
		w.s.Settle("a", time.Time{})
		if _, ok := w.s.Worker("x"); ok {
			t.Error("x is terminated and is known again")
		}
		if got := w.s.Decide(w.now, 0); len(got) != 1 || got[0].(core.Abandon).Worker != "x" {
			t.Errorf("decided %v: a waits for a worker that is gone", got)
		}
	})
}
