package worker_test

import (
	"strings"
	"testing"
	"time"

	"hodei.dev/libs/domain/worker"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func do(t *testing.T, w worker.Worker, decide func(worker.Worker) ([]worker.Event, error)) worker.Worker {
	t.Helper()
	events, err := decide(w)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		w = w.Evolve(e, worker.At{Version: w.Version + 1, Time: now})
	}
	return w
}

func ready(t *testing.T, jobsPerWorker int) worker.Worker {
	t.Helper()
	w := worker.Worker{ID: "w"}
	w = do(t, w, func(worker.Worker) ([]worker.Event, error) {
		return worker.Request(worker.ProvisioningRequested{ProviderID: "p", JobsPerWorker: jobsPerWorker}), nil
	})
	w = do(t, w, func(w worker.Worker) ([]worker.Event, error) { return w.Connecting("made") })
	return do(t, w, func(w worker.Worker) ([]worker.Event, error) { return w.Attach(1, "") })
}

func take(w worker.Worker) ([]worker.Event, error)    { return w.Take("j", 1) }
func release(w worker.Worker) ([]worker.Event, error) { return w.Release("j", 1) }
func drain(w worker.Worker) ([]worker.Event, error)   { return w.Drain("user/ann") }
func undrain(w worker.Worker) ([]worker.Event, error) { return w.Undrain("user/ann") }

func TestLives(t *testing.T) {
	type step = func(worker.Worker) ([]worker.Event, error)
	for _, c := range []struct {
		name          string
		jobsPerWorker int
		steps         []step
		want          worker.State
		holds         string
	}{
		{"ephemeral: one job, then it goes", 1, []step{take, release}, worker.StateTerminating, ""},
		{"reused for two", 2, []step{take, release}, worker.StateReady, ""},
		{"unlimited", 0, []step{take, release, take, release, take, release}, worker.StateReady, ""},
		{"drained while busy: finishes, then goes", 0, []step{take, drain, release}, worker.StateTerminating, ""},
		{"drained while idle: goes at once", 0, []step{drain}, worker.StateTerminating, ""},
		{"undrained with its job", 0, []step{take, drain, undrain}, worker.StateBusy, "j"},
		{"lost with its job: it holds it until the fence is up", 0, []step{take, func(w worker.Worker) ([]worker.Event, error) { return w.Lose(now, "silent") }}, worker.StateTerminating, "j"},
		{"a failed hand-over ends both holds", 0, []step{take, func(w worker.Worker) ([]worker.Event, error) {
			return w.Discard("j", 1, worker.CauseHandOver, "no answer")
		}}, worker.StateTerminating, ""},
		{"terminated with its job keeps saying which", 0, []step{take, func(w worker.Worker) ([]worker.Event, error) { return w.Confirm("its process has exited") }}, worker.StateTerminated, "j"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := ready(t, c.jobsPerWorker)
			for _, s := range c.steps {
				w = do(t, w, s)
			}
			if w.State != c.want || w.JobID != c.holds {
				t.Errorf("%s holding %q, want %s holding %q", w.State, w.JobID, c.want, c.holds)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	busy := do(t, ready(t, 0), take)
	if _, err := busy.Take("k", 1); err == nil || !strings.Contains(err.Error(), "already holds job j") {
		t.Errorf("%v", err)
	}
	if _, err := busy.Release("k", 1); err == nil {
		t.Error("releases a job that it does not hold")
	}
	if _, err := ready(t, 0).Undrain("user/ann"); err == nil {
		t.Error("undrains a worker that is not drained")
	}
	drained := do(t, busy, drain)
	if _, err := drained.Take("k", 1); err == nil {
		t.Error("a drained worker takes a job")
	}
	gone := do(t, ready(t, 0), func(w worker.Worker) ([]worker.Event, error) { return w.Confirm("gone") })
	if _, err := gone.Terminate(worker.CauseLost, "again"); err == nil || !strings.Contains(err.Error(), "it is terminal") {
		t.Errorf("%v", err)
	}
}

func TestDrainBeforeReadyTerminates(t *testing.T) {
	w := do(t, worker.Worker{ID: "w"}, func(worker.Worker) ([]worker.Event, error) {
		return worker.Request(worker.ProvisioningRequested{ProviderID: "p"}), nil
	})
	if w = do(t, w, drain); w.State != worker.StateTerminating {
		t.Error(w.State)
	}
}
