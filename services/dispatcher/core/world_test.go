package core_test

import (
	"fmt"
	"testing"
	"time"

	"hodei.dev/libs/domain/circuit"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/unit"
	"hodei.dev/libs/domain/worker"

	"hodei.dev/services/dispatcher/core"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

const gib = 1 << 30

// world is a log in memory with the folds that are true; the state is told of
// each event. It decides by the domain alone.
type world struct {
	tb        testing.TB
	s         *core.State
	now       time.Time
	jobs      map[string]job.Job
	workers   map[string]worker.Worker
	providers map[string]provider.Provider
	circuits  map[string]circuit.Circuit
	// down are the replicas that do not answer.
	down map[string]bool
	made int
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	return &world{
		tb: tb, s: core.New(), now: t0, jobs: map[string]job.Job{}, workers: map[string]worker.Worker{}, providers: map[string]provider.Provider{},
		circuits: map[string]circuit.Circuit{}, down: map[string]bool{},
	}
}

func must[E any](tb testing.TB) func([]E, error) []E {
	tb.Helper()
	return func(e []E, err error) []E {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
		return e
	}
}

func (w *world) job(id string, facts ...job.Event) {
	j := w.jobs[id]
	j.ID = id
	for _, f := range facts {
		at := job.At{Version: j.Version + 1, Time: w.now}
		j = j.Evolve(f, at)
		w.s.ApplyJob(id, f, at)
	}
	w.jobs[id] = j
}

func (w *world) worker(id string, facts ...worker.Event) {
	x := w.workers[id]
	x.ID = id
	for _, f := range facts {
		at := worker.At{Version: x.Version + 1, Time: w.now}
		x = x.Evolve(f, at)
		w.s.ApplyWorker(id, f, at)
	}
	w.workers[id] = x
}

func (w *world) provider(id string, facts ...provider.Event) {
	p := w.providers[id]
	p.ID = id
	for _, f := range facts {
		at := provider.At{Version: p.Version + 1, Time: w.now}
		p = p.Evolve(f, at)
		w.s.ApplyProvider(id, f, at)
	}
	w.providers[id] = p
}

// queue queues a job; change may alter its spec.
func (w *world) queue(id string, change func(*job.Spec)) {
	spec := job.Spec{Command: []string{"true"}, Retry: job.Retry{MaxAttempts: 1, InfrastructureAttempts: 3}}
	if change != nil {
		change(&spec)
	}
	w.job(id, must[job.Event](w.tb)(job.Create(spec, "", ""))...)
}

// register registers a provider named like its id.
func (w *world) register(id string, maxWorkers int, change func(*provider.Spec)) {
	spec := provider.Spec{
		Name: id, Kind: provider.Process, MaxWorkers: maxWorkers, JobsPerWorker: 1,
		IdleTimeout: unit.Duration(time.Minute), ScheduledTimeout: unit.Duration(time.Minute),
	}
	if change != nil {
		change(&spec)
	}
	w.provider(id, must[provider.Event](w.tb)(w.providers[id].Register(spec, provider.Capabilities{}, "test"))...)
}

// idle brings up a worker that nobody waits for and that never has enough.
func (w *world) idle(id, providerID string, limits job.Resources) {
	w.worker(id, worker.ProvisioningRequested{
		ProviderID: providerID, ProviderName: providerID, CPUMillis: limits.CPUMillis, MemoryBytes: limits.MemoryBytes,
	})
	w.up(id)
}

// up brings a worker from CREATING to READY.
func (w *world) up(id string) { w.upAt(id, "r1") }

// upAt is up through a registry replica.
func (w *world) upAt(id, replica string) {
	w.worker(id, must[worker.Event](w.tb)(w.workers[id].Connecting("made"))...)
	w.worker(id, must[worker.Event](w.tb)(w.workers[id].Attach(1, replica))...)
}

func (w *world) circuit(g circuit.Guarded, facts ...circuit.Event) {
	c := w.circuits[g.ID()]
	c.ID = g.ID()
	for _, f := range facts {
		at := circuit.At{Version: c.Version + 1, Time: w.now}
		c = c.Evolve(f, at)
		w.s.ApplyCircuit(f, at)
	}
	w.circuits[g.ID()] = c
}

// step makes all steps true that are due, and answers the probes of paths.
func (w *world) step() []string {
	w.tb.Helper()
	var out []string
	for _, step := range w.s.Steps(w.now) {
		out = append(out, w.circuits[step.ID()].Name+" "+string(step.To))
		w.takeStep(step)
	}
	return out
}

func (w *world) takeStep(step core.Step) {
	w.tb.Helper()
	c, policies := w.circuits[step.ID()], core.DefaultPolicies()
	switch step.To {
	case c.State: // the probe is made again
	case circuit.StateOpen:
		policy := policies.Path
		if step.Kind == circuit.Provider {
			policy = policies.Provider
		}
		w.circuit(step.Guarded, must[circuit.Event](w.tb)(c.Open(step.Guarded, step.Failures, step.Reason, w.now, policy))...)
	case circuit.StateHalfOpen:
		probe := step.Probe
		if step.Kind == circuit.Provider {
			w.made++
			probe = fmt.Sprintf("w%d", w.made)
			p := w.providers[step.Subject]
			w.worker(probe, worker.ProvisioningRequested{ProviderID: p.ID, ProviderName: p.Spec.Name, JobsPerWorker: p.Spec.JobsPerWorker})
		}
		w.circuit(step.Guarded, must[circuit.Event](w.tb)(c.HalfOpen(probe))...)
	case circuit.StateClosed:
		w.circuit(step.Guarded, must[circuit.Event](w.tb)(c.Close(step.Reason))...)
	}
	w.s.SettleStep(step)
	if step.Kind == circuit.Path && step.To == circuit.StateHalfOpen {
		w.send(step.Probe, step.Subject)
	}
}

// send asks a worker's session through a replica.
func (w *world) send(workerID, replica string) {
	if w.down[replica] {
		w.s.PathFailed(workerID, replica, "nobody answers")
	} else {
		w.s.PathWorked(workerID, replica)
	}
}

// decide has the state decide, and makes it all true.
func (w *world) decide() []string {
	w.tb.Helper()
	var out []string
	for _, d := range w.s.Decide(w.now, 0) {
		out = append(out, w.describe(d))
		w.execute(d)
	}
	return out
}

func (w *world) describe(d core.Decision) string {
	switch d := d.(type) {
	case core.Assign:
		return fmt.Sprintf("assign %s to %s", d.Job, d.Worker)
	case core.Schedule:
		return fmt.Sprintf("schedule %s at %s", d.Job, d.Provider)
	case core.Defer:
		return fmt.Sprintf("defer %s: %v", d.Job, d.Reasons)
	case core.Abandon:
		return fmt.Sprintf("abandon %s: %s", d.Job, d.Reason)
	}
	return "?"
}

// execute makes a decision true, by the domain, and settles it.
func (w *world) execute(d core.Decision) {
	w.tb.Helper()
	j := w.jobs[d.JobID()]
	switch d := d.(type) {
	case core.Assign:
		x := w.workers[d.Worker]
		facts, taking := must[job.Event](w.tb)(j.Assign(x.ProviderID, x.ID, x.Epoch, d.Reason)), must[worker.Event](w.tb)(x.Take(j.ID, j.Attempt+1))
		w.job(j.ID, facts...)
		w.worker(x.ID, taking...)
	case core.Schedule:
		w.made++
		id, p := fmt.Sprintf("w%d", w.made), w.providers[d.Provider]
		w.job(j.ID, must[job.Event](w.tb)(j.Schedule(p.ID, id, d.Reason))...)
		w.worker(id, worker.ProvisioningRequested{
			ProviderID: p.ID, ProviderName: p.Spec.Name, JobID: j.ID, JobsPerWorker: p.Spec.JobsPerWorker,
			CPUMillis: j.Spec.Resources.CPUMillis, MemoryBytes: j.Spec.Resources.MemoryBytes,
		}, worker.ProviderSelected{ProviderID: p.ID, JobID: j.ID, Candidates: d.Candidates})
	case core.Defer:
		w.job(j.ID, j.Defer(d.Reasons)...)
	case core.Abandon:
		r := job.Result{Failure: job.Fail(job.CategoryProvisioningFailed, "%s", d.Reason)}
		w.job(j.ID, must[job.Event](w.tb)(j.Abandon(r, w.now, 0))...)
	}
	w.s.Settle(d.JobID(), time.Time{})
}

// finish lets a job's attempt run and end with result.
func (w *world) finish(id string, r job.Result) {
	w.tb.Helper()
	j := w.jobs[id]
	if j.State == job.StateAssigned {
		w.job(id, must[job.Event](w.tb)(j.Start(j.WorkerID, j.Attempt))...)
		j = w.jobs[id]
	}
	x := w.workers[j.WorkerID]
	w.job(id, must[job.Event](w.tb)(j.End(x.ID, j.Attempt, r, w.now, 0))...)
	w.worker(x.ID, must[worker.Event](w.tb)(x.Release(id, j.Attempt))...)
}

// destroy ends a worker.
func (w *world) destroy(id string, cause worker.Cause, reason string) {
	w.tb.Helper()
	if w.workers[id].State != worker.StateTerminating {
		w.worker(id, must[worker.Event](w.tb)(w.workers[id].Terminate(cause, reason))...)
	}
	w.worker(id, must[worker.Event](w.tb)(w.workers[id].Confirm("gone"))...)
}
