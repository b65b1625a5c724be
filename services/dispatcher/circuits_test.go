package dispatcher_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hodei.dev/libs/domain/circuit"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/service/aggregate"
)

// TestPathCircuit: the registry is away. Its circuit opens, jobs wait and say why, a
// dispatcher that takes over knows of it, and they go on by themselves once the probe
// is answered. The log tells the incident under one correlation id.
func TestPathCircuit(t *testing.T) {
	w := newWorld(t)
	w.probe, w.replica = 200*time.Millisecond, "r1"
	w.register(3, 0)
	for range 3 {
		w.idle()
	}
	stop := w.dispatcher()
	ids := []string{w.queue(nil), w.queue(nil), w.queue(nil)}
	eventingtest.Eventually(t, "an open circuit", func() bool { return w.circuit("r1").Openings > 0 })
	waits := w.queue(nil)
	eventingtest.Eventually(t, "a deferral", func() bool { return len(w.job(waits).Deferred) == 1 })
	if why := w.job(waits).Deferred[0]; !strings.Contains(why, "circuits of all registry replicas are open") {
		t.Errorf("deferred: %s", why)
	}
	stop()
	w.dispatcher()
	eventingtest.Eventually(t, "probes by the next one", func() bool { return w.circuit("r1").Openings > 2 })
	w.registry(accept)
	for _, id := range ids {
		if j := w.becomes(id, job.StateRunning); j.Attempt != 1 || j.Spent.Infrastructure != 0 {
			t.Errorf("job: %+v", j)
		}
	}
	eventingtest.Eventually(t, "a closed circuit", func() bool { return w.circuit("r1").State == circuit.StateClosed })
	events := w.events(aggregate.CircuitStream(w.circuit("r1").ID))
	got := types(events)
	if diff := cmp.Diff([]string{"CircuitOpened", "CircuitHalfOpened", "CircuitOpened"}, got[:3]); diff != "" || got[len(got)-1] != "CircuitClosed" {
		t.Errorf("events %v", got)
	}
	for _, e := range events {
		if e.CorrelationID != events[0].CorrelationID || e.Actor != "service/dispatcher" {
			t.Errorf("another incident: %+v", e.Meta)
		}
	}
}

// TestIncidents: each has a correlation id of its own; what caused the next is the end
// of the one before.
func TestIncidents(t *testing.T) {
	w := newWorld(t)
	w.replica = "r1"
	w.register(3, 0)
	for range 3 {
		w.idle()
	}
	meta, c := w.meta("dispatcher"), circuit.Circuit{Guarded: circuit.Guarded{Kind: circuit.Path, Subject: "r1", Name: "r1"}}
	c.ID = c.Guarded.ID()
	record := func(facts []circuit.Event, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		change, err := aggregate.CircuitChange(c, meta, facts)
		if err != nil {
			t.Fatal(err)
		}
		w.append(change)
		c = w.circuit("r1")
	}
	record(c.Open(c.Guarded, 3, "away", time.Now(), circuit.Policy{FirstPause: time.Second}))
	record(c.Close("back"))
	w.dispatcher()
	for range 3 {
		w.queue(nil)
	}
	eventingtest.Eventually(t, "an open circuit", func() bool { return w.circuit("r1").State == circuit.StateOpen })
	events := w.events(aggregate.CircuitStream(c.ID))
	if next := events[2]; next.CorrelationID == meta.CorrelationID || next.CausationID != events[1].ID {
		t.Errorf("the second incident: %+v", next.Meta)
	}
}

// TestPathComesBack: the registry was killed and another process is there: the first
// agent that connects has its workers used, and nothing is left of the old path.
func TestPathComesBack(t *testing.T) {
	w := newWorld(t)
	w.probe, w.replica = time.Minute, "r1"
	w.register(3, 0)
	workers := []string{w.idle(), w.idle(), w.idle()}
	w.dispatcher()
	ids := []string{w.queue(nil), w.queue(nil), w.queue(nil)}
	eventingtest.Eventually(t, "an open circuit", func() bool { return w.circuit("r1").State == circuit.StateOpen })
	w.registry(accept)
	for _, x := range workers {
		w.back(x, "r2")
	}
	for _, id := range ids {
		if j := w.becomes(id, job.StateRunning); j.Attempt != 1 {
			t.Errorf("job: %+v", j)
		}
	}
	eventingtest.Eventually(t, "the end of the old path", func() bool { return w.circuit("r1").State == circuit.StateClosed })
	if c := w.circuit("r2"); c.Version != 0 {
		t.Errorf("the new path: %+v", c)
	}
}

// TestProviderCircuit: a provider cannot make workers. After three failures it is left
// alone; a worker that no job pays for is the probe, and once it is ready all goes on.
func TestProviderCircuit(t *testing.T) {
	w := newWorld(t)
	w.probe = 200 * time.Millisecond
	w.register(1, 0)
	stop := w.dispatcher()
	id := w.queue(nil)
	guarded := circuit.Guarded{Kind: circuit.Provider, Subject: w.provider.ID}
	fail := func(x worker.Worker) {
		t.Helper()
		facts, err := x.Terminate(worker.CauseProvisioning, "no disk")
		if err != nil {
			t.Fatal(err)
		}
		w.append(w.workerChange(x, append([]worker.Event{worker.ProvisioningFailed{ProviderID: x.ProviderID, JobID: id, Reason: "no disk"}}, facts...)))
		x = w.worker(x.ID)
		if facts, err = x.Confirm("nothing was made"); err != nil {
			t.Fatal(err)
		}
		w.append(w.workerChange(x, facts))
	}
	for spent := range 3 {
		j := w.becomes(id, job.StateScheduled)
		fail(w.worker(j.WorkerID))
		eventingtest.Eventually(t, "the requeue", func() bool { return w.job(id).Spent.Infrastructure == spent+1 })
	}
	probe := func(openings int) worker.Worker {
		t.Helper()
		var c circuit.Circuit
		eventingtest.Eventually(t, "a probe", func() bool {
			c = w.circuitOf(guarded)
			return c.State == circuit.StateHalfOpen && c.Openings == openings
		})
		return w.worker(c.Probe)
	}
	first := probe(1)
	if why := w.job(id).Deferred; len(why) != 1 || !strings.Contains(why[0], "its circuit is open") {
		t.Errorf("deferred: %v", why)
	}
	stop()
	w.dispatcher()
	fail(first)
	second := probe(2)
	w.registry(accept)
	w.up(second.ID)
	j := w.becomes(id, job.StateRunning)
	if j.WorkerID != second.ID || j.Spent.Infrastructure != 3 || second.WaitingJobID != "" {
		t.Errorf("job %+v on worker %+v", j, second)
	}
	eventingtest.Eventually(t, "a closed circuit", func() bool { return w.circuitOf(guarded).State == circuit.StateClosed })
}
