package core_test

import (
	"testing"

	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"

	"hodei.dev/services/dispatcher/core"
)

func TestRefusedEndsBothHolds(t *testing.T) {
	j := job.Job{ID: "j", State: job.StateAssigned, Attempt: 2, WorkerID: "w", Spec: job.Spec{Retry: job.Retry{InfrastructureAttempts: 3}}}
	w := worker.Worker{ID: "w", State: worker.StateBusy, JobID: "j", Attempt: 2}
	about, beside, err := core.Refused(j, w, "nobody answered", t0, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range about {
		j = j.Evolve(e, job.At{Version: i + 1, Time: t0})
	}
	for i, e := range beside {
		w = w.Evolve(e, worker.At{Version: i + 1, Time: t0})
	}
	if j.State != job.StatePending || !j.NotBefore.After(t0) || j.Spent.Infrastructure != 1 {
		t.Errorf("the job is %s until %s, %+v spent", j.State, j.NotBefore, j.Spent)
	}
	if w.State != worker.StateTerminating || w.JobID != "" {
		t.Errorf("the worker is %s and holds %q", w.State, w.JobID)
	}
	if _, _, err := core.Refused(j, w, "again", t0, 0); err == nil {
		t.Error("an attempt that is over ends again")
	}
}

func TestLastChance(t *testing.T) {
	j := job.Job{Spec: job.Spec{Retry: job.Retry{InfrastructureAttempts: 2}}, Spent: job.Spent{Infrastructure: 1}}
	if core.LastChance(j) {
		t.Error("one more may be lost")
	}
	j.Spent.Infrastructure = 2
	if !core.LastChance(j) {
		t.Error("none may be lost any more")
	}
}
