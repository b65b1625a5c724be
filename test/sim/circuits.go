package sim

import (
	"time"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/circuit"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"

	"hodei.dev/services/dispatcher/core"
)

// What follows is the dispatcher again: circuits.

const (
	probePing = 2 * time.Second
	stepRetry = 5 * time.Second
)

// evidence feeds back what an answer, or none, says of the path to a worker.
func (d *dispatcher) evidence(workerID, replica string, a answer) {
	if a.heard || a.refusal == "" {
		d.state.PathWorked(workerID, replica)
	} else {
		d.state.PathFailed(workerID, replica, a.refusal)
	}
}

// takeSteps begins what is due for the circuits.
func (d *dispatcher) takeSteps() {
	for _, step := range d.state.Steps(d.clock()) {
		probe := worker.Worker{ID: step.Probe}
		var makes []worker.Event
		switch {
		case step.To != circuit.StateHalfOpen:
		case step.Kind == circuit.Path:
			if w, ok := d.state.Worker(step.Probe); ok {
				probe = w
			}
		default:
			p, _ := d.state.Provider(step.Subject)
			probe.ID = d.w.log.newUUID()
			makes = worker.Request(worker.ProvisioningRequested{
				ProviderID: p.ID, ProviderName: p.Spec.Name, JobsPerWorker: p.Spec.JobsPerWorker, Reason: "a probe: its provider's circuit is half-open",
			})
		}
		d.start(func(t *task) { d.step(t, step, probe, makes) })
	}
}

// step makes a step true and has the probe of a path answered.
func (d *dispatcher) step(t *task, step core.Step, probe worker.Worker, makes []worker.Event) {
	c, err := d.change(t, step, probe, makes)
	if err != nil {
		t.sleep(stepRetry)
	} else {
		d.state.ObserveCircuit(c)
	}
	d.state.SettleStep(step)
	d.kick(0)
	if err != nil || step.Kind != circuit.Path || c.State != circuit.StateHalfOpen {
		return
	}
	if a := d.w.net.ping(t, probe.ID, probe.Epoch, probePing); !d.w.broken.forgetsProbes {
		d.evidence(c.Probe, step.Subject, a)
		d.kick(0)
	}
}

// change appends a step; where the circuit is in that state already, or may not go
// there, memory was wrong and is told.
func (d *dispatcher) change(t *task, step core.Step, probe worker.Worker, makes []worker.Event) (c circuit.Circuit, err error) {
	for range rounds {
		for d.w.log.read(t) != nil {
			t.sleep(d.between(100*time.Millisecond, time.Second))
		}
		s := d.w.log.get(step.ID())
		if c = s.circuit; s.version == 0 {
			c = circuit.Circuit{ID: step.ID(), Guarded: step.Guarded}
		}
		meta := event.Meta{Source: catalogue.Dispatcher, Actor: "service/dispatcher", CorrelationID: d.w.log.newUUID(), CausationID: s.last.ID}
		if !c.State.Settled() {
			meta = s.last.CausedBy(catalogue.Dispatcher)
		}
		facts, refused := decideStep(c, step, probe, d.clock())
		if refused != nil || c.State == step.To {
			return c, nil //nolint:nilerr // memory was wrong: it is told what is so
		}
		var a store.Append
		workerChange(&a, probe, meta, makes)
		a.Changes = append(a.Changes, must(aggregate.CircuitChange(c, meta, facts)))
		var done []fact
		if done, err = d.persist(t, d.w.log.sign(a)); err == nil {
			for _, f := range done {
				d.apply(f)
				if own, ok := f.says.(circuit.Event); ok {
					c = c.Evolve(own, circuit.At{Version: f.StreamVersion, Time: f.Time})
				}
			}
			return c, nil
		}
	}
	return c, err
}

func decideStep(c circuit.Circuit, step core.Step, probe worker.Worker, now time.Time) ([]circuit.Event, error) {
	switch step.To {
	case circuit.StateOpen:
		return c.Open(step.Guarded, step.Failures, step.Reason, now, core.DefaultPolicies().Of(step.Kind))
	case circuit.StateHalfOpen:
		return c.HalfOpen(probe.ID)
	default:
		return c.Close(step.Reason)
	}
}
