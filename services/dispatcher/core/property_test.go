package core_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"hodei.dev/libs/domain/circuit"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/worker"

	"hodei.dev/services/dispatcher/core"
)

// TestProperties drives the state with random lives of jobs, workers and
// providers. The domain refuses what must not be (two jobs on a worker, a step that
// the table does not have), so every decision that it takes is checked there;
// capacity and the number of workers are counted here. In the end, with room for
// all, everything that can run has run: also what waited for an open circuit. Of each
// circuit one step at a time is on its way, and the domain refuses a second probe.
func TestProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := &random{T: rt, world: newWorld(t)}
		r.register("p", rapid.IntRange(1, 3).Draw(rt, "p workers"), func(s *provider.Spec) {
			offers(rapid.Int64Range(1, 4).Draw(rt, "cores")*1000, 0)(s)
			labelled("zone", "a")(s)
		})
		r.register("q", 2, func(s *provider.Spec) { s.JobsPerWorker = 2 })
		rt.Repeat(map[string]func(*rapid.T){
			"queue":    func(*rapid.T) { r.queueAny() },
			"decide":   func(*rapid.T) { r.decideSome() },
			"settle":   func(*rapid.T) { r.settleOne() },
			"workers":  func(*rapid.T) { r.moveWorker() },
			"cancel":   func(*rapid.T) { r.cancel() },
			"finish":   func(*rapid.T) { r.finishOne() },
			"time":     func(*rapid.T) { r.now = r.now.Add(time.Second) },
			"health":   func(*rapid.T) { r.health() },
			"":         func(*rapid.T) { r.check() },
			"deselect": func(*rapid.T) { r.undecide() },
			"fail":     func(*rapid.T) { r.failToMake() },
			"replica":  func(*rapid.T) { r.replica() },
			"send":     func(*rapid.T) { r.sendAny() },
			"steps":    func(*rapid.T) { r.stepSome() },
			"step":     func(*rapid.T) { r.settleStep() },
		})
		r.drain()
	})
}

type random struct {
	*rapid.T
	*world
	count int
	// open are decisions on their way.
	open []core.Decision
	// steps are those of circuits.
	steps []core.Step
}

// failToMake has a provider say that it cannot make a worker.
func (r *random) failToMake() {
	if x, ok := r.pick(func(x worker.Worker) bool { return x.State == worker.StateCreating }); ok {
		r.worker(x.ID, worker.ProvisioningFailed{ProviderID: x.ProviderID, JobID: x.WaitingJobID, Reason: "random"})
		r.destroy(x.ID, worker.CauseProvisioning, "random")
	}
}

// replica has one stop answering, or come back.
func (r *random) replica() {
	name := rapid.SampledFrom([]string{"r1", "r2"}).Draw(r.T, "replica")
	r.down[name] = !r.down[name]
}

// sendAny sends something to a worker's session.
func (r *random) sendAny() {
	if x, ok := r.pick(func(x worker.Worker) bool { return x.State.Connected() && x.Connected }); ok {
		r.send(x.ID, x.Replica)
	}
}

func (r *random) stepSome() {
	for _, step := range r.s.Steps(r.now) {
		for _, o := range r.steps {
			if o.Guarded == step.Guarded {
				r.Fatalf("two steps of one circuit: %+v, %+v", o, step)
			}
		}
		r.steps = append(r.steps, step)
	}
}

func (r *random) settleStep() {
	if len(r.steps) > 0 {
		step := r.steps[0]
		r.steps = r.steps[1:]
		r.takeStep(step)
	}
}

func (r *random) queueAny() {
	r.count++
	id := fmt.Sprintf("j%d", r.count)
	r.queue(id, func(s *job.Spec) {
		s.Priority = rapid.IntRange(0, 1).Draw(r.T, "priority")
		s.Namespace = rapid.SampledFrom([]string{"a", "b"}).Draw(r.T, "namespace")
		s.Resources.CPUMillis = rapid.SampledFrom([]int64{0, 500, 1000}).Draw(r.T, "cpu")
		s.Placement.Provider = rapid.SampledFrom([]string{"", "p", "q"}).Draw(r.T, "provider")
		s.Placement.PreferredProvider = rapid.SampledFrom([]string{"", "p", "q", "none"}).Draw(r.T, "preferred")
		if s.Placement.Provider != "q" && rapid.Bool().Draw(r.T, "labels") {
			s.Placement.RequiredLabels = map[string]string{"zone": "a"} // of p alone
		}
		s.Retry.InfrastructureAttempts = 100
	})
}

func (r *random) decideSome() {
	ds := r.s.Decide(r.now, rapid.IntRange(0, 3).Draw(r.T, "limit"))
	for _, d := range ds {
		for _, o := range r.open {
			if o.JobID() == d.JobID() {
				r.Fatalf("decided twice about %s: %v, %v", d.JobID(), o, d)
			}
			a, one := o.(core.Assign)
			b, two := d.(core.Assign)
			if one && two && a.Worker == b.Worker {
				r.Fatalf("worker %s for two jobs: %v, %v", a.Worker, o, d)
			}
		}
		r.open = append(r.open, d)
	}
}

// settleOne makes a decision true, unless the log went on meanwhile: a conflict.
func (r *random) settleOne() {
	if len(r.open) == 0 {
		return
	}
	i := rapid.IntRange(0, len(r.open)-1).Draw(r.T, "which")
	d := r.open[i]
	r.open = slices.Delete(r.open, i, i+1)
	if r.possible(d) {
		r.execute(d)
	} else {
		r.s.Settle(d.JobID(), time.Time{})
	}
}

// undecide drops a decision: its append was refused for a reason of its own.
func (r *random) undecide() {
	if len(r.open) > 0 {
		d := r.open[0]
		r.open = r.open[1:]
		r.s.Settle(d.JobID(), r.now.Add(time.Second))
	}
}

// possible is the log's version check.
func (r *random) possible(d core.Decision) bool {
	j := r.jobs[d.JobID()]
	if j.State != job.StatePending && j.State != job.StateScheduled || j.Cancel != nil {
		return false
	}
	if a, ok := d.(core.Assign); ok {
		return r.workers[a.Worker].State == worker.StateReady
	}
	return true
}

func (r *random) pick(want func(worker.Worker) bool) (worker.Worker, bool) {
	var found []worker.Worker
	for _, id := range slices.Sorted(maps.Keys(r.workers)) {
		if want(r.workers[id]) {
			found = append(found, r.workers[id])
		}
	}
	if len(found) == 0 {
		return worker.Worker{}, false
	}
	return rapid.SampledFrom(found).Draw(r.T, "worker"), true
}

func (r *random) moveWorker() {
	x, ok := r.pick(func(x worker.Worker) bool { return !x.State.Terminal() && x.State != worker.StateBusy })
	if !ok {
		return
	}
	bad := rapid.IntRange(0, 4).Draw(r.T, "bad") == 0
	switch {
	case x.State == worker.StateCreating && !bad:
		r.upAt(x.ID, rapid.SampledFrom([]string{"r1", "r2"}).Draw(r.T, "replica"))
	case x.State == worker.StateReady && !bad:
		if x.Connected {
			r.worker(x.ID, worker.Disconnected{Epoch: x.Epoch})
		} else {
			r.worker(x.ID, worker.Reconnected{Epoch: x.Epoch + 1, Replica: rapid.SampledFrom([]string{"r1", "r2"}).Draw(r.T, "replica")})
		}
	default:
		r.destroy(x.ID, worker.CauseLost, "random")
	}
}

func (r *random) cancel() {
	ids := slices.Sorted(maps.Keys(r.jobs))
	if len(ids) == 0 {
		return
	}
	j := r.jobs[rapid.SampledFrom(ids).Draw(r.T, "job")]
	if j.State == job.StatePending || j.State == job.StateScheduled {
		r.job(j.ID, must[job.Event](r.tb)(j.RequestCancel("user/x", ""))...)
	}
}

func (r *random) finishOne() {
	x, ok := r.pick(func(x worker.Worker) bool { return x.State == worker.StateBusy })
	if !ok {
		return
	}
	var result job.Result
	if rapid.Bool().Draw(r.T, "lost") {
		result.Failure = job.Fail(job.CategoryInfrastructure, "random")
	}
	r.finish(x.JobID, result)
}

func (r *random) health() {
	id := rapid.SampledFrom([]string{"p", "q"}).Draw(r.T, "provider")
	to := rapid.SampledFrom([]provider.Health{provider.Healthy, provider.Unhealthy}).Draw(r.T, "health")
	r.provider(id, r.providers[id].Observe(to, "random")...)
}

// check counts workers and reservations, those on their way included.
func (r *random) check() {
	workers, cores := map[string]int{}, map[string]int64{}
	for _, x := range r.workers {
		if !x.State.Terminal() {
			workers[x.ProviderID]++
		}
	}
	for _, step := range r.steps {
		if step.Kind == circuit.Provider && step.To == circuit.StateHalfOpen {
			workers[step.Subject]++
		}
	}
	moved := map[string]bool{}
	for _, d := range r.open {
		j := r.jobs[d.JobID()]
		switch d := d.(type) {
		case core.Schedule:
			workers[d.Provider]++
			cores[d.Provider] += j.Spec.Resources.CPUMillis
			moved[j.ID] = true
		case core.Assign:
			cores[r.workers[d.Worker].ProviderID] += j.Spec.Resources.CPUMillis
			moved[j.ID] = true
		}
	}
	for _, j := range r.jobs {
		if at := j.ProviderID; at == "q" && (j.Spec.Placement.Provider == "p" || j.Spec.Placement.RequiredLabels != nil) || at == "p" && j.Spec.Placement.Provider == "q" {
			r.Fatalf("job %s is at %s: %+v", j.ID, at, j.Spec.Placement)
		}
		if (j.State == job.StateScheduled || j.State.HasWorker()) && !moved[j.ID] {
			cores[j.ProviderID] += j.Spec.Resources.CPUMillis
		}
	}
	for id, p := range r.providers {
		if workers[id] > p.Spec.MaxWorkers {
			r.Fatalf("provider %s has %d of %d workers", id, workers[id], p.Spec.MaxWorkers)
		}
		if p.Spec.CPUMillis > 0 && cores[id] > p.Spec.CPUMillis {
			r.Fatalf("provider %s has reserved %d of %d", id, cores[id], p.Spec.CPUMillis)
		}
	}
}

// drain lets everything end well: what is placeable must be placed in time.
func (r *random) drain() {
	for len(r.open) > 0 {
		r.settleOne()
	}
	for len(r.steps) > 0 {
		r.settleStep()
	}
	clear(r.down)
	for _, id := range []string{"p", "q"} {
		r.provider(id, r.providers[id].Observe(provider.Healthy, "well")...)
	}
	for range 20*r.count + 20 {
		left := 0
		for _, j := range r.jobs {
			if !j.State.Terminal() {
				left++
			}
		}
		if left == 0 {
			if f := r.s.Figures(); f.Queued != 0 || len(r.open) > 0 {
				r.Fatalf("nothing is left, yet the figures say %+v", f)
			}
			return
		}
		r.now = r.now.Add(time.Minute)
		r.step()
		r.step() // what the probes said
		r.decide()
		r.check()
		for _, id := range slices.Sorted(maps.Keys(r.workers)) {
			switch x := r.workers[id]; {
			case x.State == worker.StateCreating:
				r.up(id)
			case x.State == worker.StateBusy:
				r.finish(x.JobID, job.Result{})
			case x.State == worker.StateReady && x.Connected && x.WaitingJobID != "" && r.jobs[x.WaitingJobID].State == job.StateScheduled:
				// its job comes next
			case !x.State.Terminal():
				r.destroy(id, worker.CauseIdle, "idle")
			}
		}
	}
	r.Fatalf("not everything has run: %+v", r.jobs)
}
