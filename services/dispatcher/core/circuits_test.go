package core_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hodei.dev/libs/domain/circuit"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/worker"

	"hodei.dev/services/dispatcher/core"
)

// failed has a worker that is being made fail.
func (w *world) failed(id string) {
	w.tb.Helper()
	w.worker(id, worker.ProvisioningFailed{ProviderID: w.workers[id].ProviderID, Reason: "no disk"})
	w.destroy(id, worker.CauseProvisioning, "no disk")
}

func (w *world) want(got []string, want ...string) {
	w.tb.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		w.tb.Fatal(diff)
	}
}

const openReason = "provider p: its circuit is open, for it failed to make workers: see `hodei provider get p`"

// broken is a world where the provider p has failed three times.
func broken(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.register("p", 3, nil)
	for _, id := range []string{"a", "b", "c"} {
		w.worker(id, worker.ProvisioningRequested{ProviderID: "p", ProviderName: "p"})
		w.want(w.step())
		w.failed(id)
	}
	w.want(w.step(), " OPEN")
	return w
}

// TestProviderCircuit: after three failures in a row the provider is left alone; the
// job waits, and says why once; the probe is one worker that nobody waits for, and
// the job runs on it.
func TestProviderCircuit(t *testing.T) {
	w := broken(t)
	w.queue("j", nil)
	w.want(w.decide(), "defer j: ["+openReason+"]")
	w.want(w.decide())
	due, ok := w.s.NextWake()
	if c := w.s.Circuits(); !ok || len(c) != 1 || !due.Equal(c[0].RetryAt) || c[0].Name != "p" || c[0].Failures != 3 {
		t.Fatalf("woken at %v (%v): %+v", due, ok, c)
	}
	w.want(w.step())
	w.now = due
	w.want(w.step(), "p HALF_OPEN")
	w.want(w.step())
	w.want(w.decide())
	w.failed("w1")
	w.want(w.step(), "p OPEN")
	w.want(w.decide()) // the same reasons as before: no event
	if later, _ := w.s.NextWake(); later.Sub(w.now) != 2*core.DefaultPolicies().Provider.FirstPause {
		t.Errorf("the second probe is %s away", later.Sub(w.now))
	}
	w.now = w.now.Add(time.Minute)
	w.want(w.step(), "p HALF_OPEN")
	w.up("w2")
	w.want(w.decide(), "assign j to w2")
	w.want(w.step(), "p CLOSED")
	if j := w.jobs["j"]; j.Spent.Infrastructure != 0 || len(w.s.Circuits()) != 0 {
		t.Errorf("the job paid for the probes: %+v; %+v", j, w.s.Circuits())
	}
	w.queue("k", nil)
	w.queue("l", nil)
	w.want(w.decide(), "schedule k at p", "schedule l at p") // the probes' room is free again
}

// TestCircuitUnwanted: where no job would go there, nothing is probed.
func TestCircuitUnwanted(t *testing.T) {
	w := broken(t)
	if _, ok := w.s.NextWake(); ok {
		t.Error("woken for nobody")
	}
	w.now = w.now.Add(time.Hour)
	w.want(w.step())
	w.provider("p", must[provider.Event](t)(w.providers["p"].Remove("user/x"))...)
	w.want(w.step(), "p CLOSED")
}

// TestChooseElsewhere: a provider that is fine gets the jobs; a READY worker of the
// other goes on working.
func TestChooseElsewhere(t *testing.T) {
	w := broken(t)
	w.register("q", 1, nil)
	w.idle("x", "p", job.Resources{})
	w.want(w.step(), "p CLOSED") // a worker of it is ready: it works
	w = broken(t)
	w.register("q", 1, nil)
	w.queue("j", func(s *job.Spec) { s.Placement.PreferredProvider = "p" })
	w.want(w.decide(), "schedule j at q")
}

// TestProbeSurvivesItsMaker: who takes over finds the probe's verdict, or that the
// probe is no more.
func TestProbeSurvivesItsMaker(t *testing.T) {
	for name, c := range map[string]struct {
		become func(w *world)
		want   string
	}{
		"ready":  {func(w *world) { w.up("w1") }, "p CLOSED"},
		"failed": {func(w *world) { w.failed("w1") }, "p OPEN"},
	} {
		t.Run(name, func(t *testing.T) {
			w := broken(t)
			w.queue("j", nil)
			w.decide()
			w.now = w.now.Add(time.Minute)
			w.want(w.step(), "p HALF_OPEN")
			w.s = core.New() // another dispatcher, which hears of it all at once
			c.become(&world{tb: t, s: core.New(), now: w.now, jobs: w.jobs, workers: w.workers, providers: w.providers})
			for _, c := range w.circuits {
				w.s.ObserveCircuit(c)
			}
			for _, p := range w.providers {
				w.s.ObserveProvider(p)
			}
			for _, x := range w.workers {
				if !x.State.Terminal() {
					w.s.ObserveWorker(x)
				}
			}
			w.want(w.step(), c.want)
		})
	}
}

func (w *world) paths(workers map[string]string) {
	w.register("p", 4, func(s *provider.Spec) { s.JobsPerWorker = 0 })
	for _, id := range []string{"x", "y", "z"} {
		if replica, ok := workers[id]; ok {
			w.worker(id, worker.ProvisioningRequested{ProviderID: "p", ProviderName: "p"})
			w.upAt(id, replica)
		}
	}
}

// TestPathCircuit: the workers of a replica that is away get nothing, those of the
// other do; when it answers again they are used again.
func TestPathCircuit(t *testing.T) {
	w := newWorld(t)
	w.paths(map[string]string{"x": "r1", "y": "r1", "z": "r2"})
	w.down["r1"] = true
	for _, id := range []string{"x", "x", "y"} {
		w.want(w.step())
		w.send(id, "r1")
	}
	w.want(w.step(), " OPEN")
	w.queue("a", nil)
	w.want(w.decide(), "assign a to z")
	w.queue("b", nil)
	w.want(w.decide(), "schedule b at p") // a new worker may come by the other replica
	w.now = w.now.Add(time.Second)
	w.want(w.step(), "r1 HALF_OPEN")
	w.want(w.step(), "r1 OPEN")
	w.want(w.step())
	w.down["r1"] = false
	w.now = w.now.Add(time.Minute)
	w.want(w.step(), "r1 HALF_OPEN")
	w.want(w.step(), "r1 CLOSED")
	w.want(w.decide(), "assign b to x")
}

// TestOneSessionIsNotThePath: failures about one worker say nothing of the others.
func TestOneSessionIsNotThePath(t *testing.T) {
	w := newWorld(t)
	w.paths(map[string]string{"x": "r1", "y": "r1"})
	w.down["r1"] = true
	for range 9 {
		w.send("x", "r1")
	}
	w.want(w.step())
}

// TestAllPathsOpen: nothing is placed and no worker is made while nobody can be
// reached; the job says so; a worker that comes back has the path probed at once.
func TestAllPathsOpen(t *testing.T) {
	w := newWorld(t)
	w.paths(map[string]string{"x": "r1"})
	w.down["r1"] = true
	for range 3 {
		w.send("x", "r1")
	}
	w.want(w.step(), " OPEN")
	w.queue("a", nil)
	w.want(w.decide(), "defer a: [no worker can be reached, for the circuits of all registry replicas are open: see `hodei status`]")
	w.want(w.step())
	w.down["r1"] = false
	w.worker("x", worker.Reconnected{Epoch: 2, Replica: "r1"})
	w.want(w.step(), "r1 HALF_OPEN")
	w.want(w.step(), "r1 CLOSED")
	w.want(w.decide(), "assign a to x")
}

// TestPathIsGone: a replica does not come back, its agents go to another one; nothing
// is left of its circuit.
func TestPathIsGone(t *testing.T) {
	w := newWorld(t)
	w.paths(map[string]string{"x": "r1"})
	w.down["r1"] = true
	for range 3 {
		w.send("x", "r1")
	}
	w.want(w.step(), " OPEN")
	w.queue("a", nil)
	w.decide()
	w.worker("x", worker.Reconnected{Epoch: 2, Replica: "r2"})
	w.want(w.decide(), "assign a to x")
	w.want(w.step(), "r1 CLOSED")
	if c := w.s.Circuits(); len(c) != 0 {
		t.Errorf("left: %+v", c)
	}
}

// TestTakenOverHalfOpen: the probe of whoever is no more is made again.
func TestTakenOverHalfOpen(t *testing.T) {
	w := newWorld(t)
	w.paths(map[string]string{"x": "r1"})
	g := circuit.Guarded{Kind: circuit.Path, Subject: "r1", Name: "r1"}
	c := circuit.Circuit{ID: g.ID(), Version: 2, Guarded: g, State: circuit.StateHalfOpen, Openings: 1, Probe: "x", ChangedAt: t0}
	w.circuits[g.ID()] = c
	w.s.ObserveCircuit(c)
	w.want(w.step(), "r1 HALF_OPEN")
	w.want(w.step(), "r1 CLOSED")
}
