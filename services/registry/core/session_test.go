package core_test

import (
	"testing"
	"time"

	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/services/registry/core"
)

func TestBegin(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	w := worker.Worker{ID: workerID, State: worker.StateBusy, JobID: jobID, Attempt: 2}
	j := job.Job{ID: jobID, State: job.StateAssigned, Attempt: 2, WorkerID: workerID}
	cancelled, running := j, j
	cancelled.Cancel, running.State = &job.CancelRequested{By: "user/ann"}, job.StateRunning
	for _, c := range []struct {
		name        string
		j           job.Job
		attempt     int
		start, drop bool
		facts       int
	}{
		{"the log gives the permission", j, 2, true, false, 1},
		{"it has given it already", running, 2, true, false, 0},
		{"a stale attempt is dropped", j, 1, false, true, 0},
		{"a cancel was quicker", cancelled, 2, false, true, 1},
	} {
		v, out, err := core.Begin(c.j, w, c.attempt, now, 0)
		if err != nil || v.Start != c.start || v.Drop != c.drop || len(out.Job) != c.facts {
			t.Errorf("%s: %+v, %d facts, %v", c.name, v, len(out.Job), err)
		}
	}
}

func TestAttach(t *testing.T) {
	w := worker.Worker{ID: workerID, State: worker.StateCreating}
	first, err := core.Attach(w, 1, "r1")
	if err != nil || len(first) != 4 { // CONNECTING, READY and its notices
		t.Errorf("%v, %v", first, err)
	}
	again, err := core.Attach(worker.Worker{ID: workerID, State: worker.StateBusy}, 2, "r2")
	if err != nil || len(again) != 1 || again[0] != (worker.Reconnected{Epoch: 2, Replica: "r2"}) {
		t.Errorf("%v, %v", again, err)
	}
}

func TestGiveUp(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	w := worker.Worker{ID: workerID, State: worker.StateBusy, Epoch: 3}
	for _, c := range []struct {
		name   string
		w      worker.Worker
		judged int64
		last   time.Time
		lost   bool
	}{
		{"silent for too long", w, 3, now.Add(-deadline.Silence), true},
		{"heard of lately", w, 3, now.Add(time.Second - deadline.Silence), false},
		{"back with a new session", w, 2, now.Add(-time.Hour), false},
		{"going already", worker.Worker{ID: workerID, State: worker.StateTerminating, Epoch: 3}, 3, now.Add(-time.Hour), false},
	} {
		facts, err := core.GiveUp(c.w, c.judged, c.last, now)
		if err != nil || len(facts) > 0 != c.lost {
			t.Errorf("%s: %v, %v", c.name, facts, err)
		}
	}
}

func TestStaleResultIsKeptOnce(t *testing.T) {
	j := job.Job{ID: jobID, State: job.StateSucceeded, Attempt: 2}
	zero := 0
	r := job.Result{ExitCode: &zero}
	v, facts := core.Stale(j, nil, workerID, 1, r)
	if !v.Ack || !v.Drop || len(facts) != 1 {
		t.Fatalf("%+v, %v", v, facts)
	}
	if v, facts = core.Stale(j, []job.ResultRejected{facts[0].(job.ResultRejected)}, workerID, 1, r); !v.Ack || len(facts) > 0 {
		t.Errorf("kept twice: %+v, %v", v, facts)
	}
}

func TestStopping(t *testing.T) {
	for state, want := range map[worker.State]worker.State{
		worker.StateBusy: worker.StateDraining, worker.StateReady: worker.StateTerminating, worker.StateDraining: worker.StateDraining,
	} {
		w := worker.Worker{ID: workerID, State: state, JobID: jobID, Attempt: 1}
		facts, err := core.Stopping(w, "told to stop")
		for _, f := range facts {
			w = w.Evolve(f, worker.At{Version: w.Version + 1})
		}
		if err != nil || w.State != want {
			t.Errorf("%s became %s, want %s (%v)", state, w.State, want, err)
		}
	}
}
