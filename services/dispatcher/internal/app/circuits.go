package app

import (
	"context"
	"errors"
	"fmt"
	"time"

	"hodei.dev/libs/domain/circuit"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"

	"hodei.dev/services/dispatcher/core"
)

const (
	// stepRounds is how often a circuit's change that met a conflict is decided again.
	stepRounds = 5
	// probePing is how long a session may take to answer a probe.
	probePing = 2 * time.Second
	// stepRetry is the pause after a circuit's change that could not be appended.
	stepRetry = 5 * time.Second
)

// evidence is what was found out about the path to a worker.
type evidence struct {
	workerID, replica string
	// failed is why it could not be reached; "" = its session answered.
	failed string
}

// about is the evidence of an answer, or of none; nil where it proves nothing.
func (d *Dispatcher) about(w worker.Worker, err error) *evidence {
	e := &evidence{workerID: w.ID, replica: w.Replica}
	if gone, ok := errors.AsType[*SessionGone](err); ok && gone.Answered || !errors.Is(err, fault.Unavailable) {
		return e // whatever it said, it was heard
	}
	if !d.cfg.Sessions.Available() {
		return nil // it is this process that cannot be heard
	}
	e.failed = err.Error()
	return e
}

// report hands evidence to Run's goroutine.
func (d *Dispatcher) report(ctx context.Context, e *evidence) {
	if e != nil {
		d.tell(ctx, outcome{evidence: e})
	}
}

// takeEvidence feeds what was found out about paths and circuits back into the state.
func (d *Dispatcher) takeEvidence(o outcome) {
	if o.circuit != nil {
		d.state.ObserveCircuit(*o.circuit)
	}
	if o.step != nil {
		d.state.SettleStep(*o.step)
	}
	if e := o.evidence; e != nil && e.failed == "" {
		d.state.PathWorked(e.workerID, e.replica)
	} else if e != nil {
		d.state.PathFailed(e.workerID, e.replica, e.failed)
	}
}

// takeSteps begins what is due for the circuits.
func (d *Dispatcher) takeSteps(ctx context.Context) {
	for _, step := range d.state.Steps(d.cfg.Now()) {
		p := probe{worker: worker.Worker{ID: step.Probe}}
		switch {
		case step.To != circuit.StateHalfOpen:
		case step.Kind == circuit.Path:
			if w, ok := d.state.Worker(step.Probe); ok {
				p.worker = w
			}
		default:
			p.worker.ID = d.cfg.NewID()
			p.makes = d.probeWorker(step)
		}
		d.work.Go(func() { d.step(ctx, step, p) })
	}
}

// probe is the worker that a half-open circuit is tried with: makes are the first
// events of one that is to be made.
type probe struct {
	worker worker.Worker
	makes  []worker.Event
}

// probeWorker is a worker that no job waits for: what it costs, no job pays.
func (d *Dispatcher) probeWorker(step core.Step) []worker.Event {
	p, _ := d.state.Provider(step.Subject)
	return worker.Request(worker.ProvisioningRequested{
		ProviderID: p.ID, ProviderName: p.Spec.Name, JobsPerWorker: p.Spec.JobsPerWorker, Reason: "a probe: its provider's circuit is half-open",
	})
}

// step makes a step true and has the probe of a path answered.
func (d *Dispatcher) step(ctx context.Context, step core.Step, p probe) {
	o, err := d.change(ctx, step, p)
	if err != nil {
		if ctx.Err() != nil {
			return
		}
		d.cfg.Logger.ErrorContext(ctx, "a circuit cannot be changed, trying again", "kind", step.Kind, "of", step.Name, "to", step.To, "error", err, "in", stepRetry)
		if !pause(ctx, stepRetry) {
			return
		}
	}
	o.step = &step
	d.tell(ctx, o)
	if step.Kind != circuit.Path || o.circuit == nil || o.circuit.State != circuit.StateHalfOpen {
		return
	}
	asking, cancel := context.WithTimeout(ctx, probePing)
	defer cancel()
	_, err = d.cfg.Sessions.Ping(asking, p.worker.ID, p.worker.Epoch)
	e := d.about(p.worker, err)
	if e == nil {
		e = &evidence{workerID: p.worker.ID, replica: step.Subject, failed: "NATS is away"}
	}
	e.workerID, e.replica = o.circuit.Probe, step.Subject
	d.report(ctx, e)
}

// change appends a step. The log decides: where the circuit is in that state already,
// or may not go there, memory was wrong and is told.
func (d *Dispatcher) change(ctx context.Context, step core.Step, p probe) (o outcome, err error) {
	for range stepRounds {
		var c circuit.Circuit
		var meta event.Meta
		if c, meta, err = d.loadCircuit(ctx, step); err != nil {
			return outcome{}, err
		}
		o = outcome{circuit: &c}
		facts, refused := d.decideStep(c, step, p)
		if refused != nil || c.State == step.To {
			return o, nil //nolint:nilerr // memory was wrong: it is told what is so
		}
		if o.events, err = d.appendStep(ctx, c, meta, facts, p); err == nil {
			for _, e := range o.events {
				if fact, ok := e.fact.(circuit.Event); ok {
					c = c.Evolve(fact, circuit.At{Version: e.StreamVersion, Time: e.Time})
				}
			}
			d.announce(ctx, c, step)
			return o, nil
		}
		if !errors.Is(err, fault.Conflict) {
			return outcome{}, err
		}
	}
	return outcome{}, err
}

// loadCircuit reads a circuit, and the context of what follows: an incident is one
// correlation, from the first opening until it is closed.
func (d *Dispatcher) loadCircuit(ctx context.Context, step core.Step) (c circuit.Circuit, meta event.Meta, err error) {
	err = d.persist(ctx, "read a circuit", func() error {
		c = circuit.Circuit{ID: step.ID(), Guarded: step.Guarded}
		another := event.Meta{Source: service, Actor: "service/" + service, CorrelationID: d.cfg.NewID()}
		meta = another
		events, err := d.cfg.Log.Load(ctx, aggregate.CircuitStream(c.ID), 0)
		if err != nil {
			return fmt.Errorf("load the circuit of %s %s: %w", step.Kind, step.Name, err)
		}
		for _, e := range events {
			if c, err = aggregate.EvolveCircuit(c, e); err != nil {
				return err
			}
			if meta = e.CausedBy(service); c.State.Settled() {
				meta = another
				meta.CausationID = e.ID
			}
		}
		return nil
	})
	return c, meta, err
}

func (d *Dispatcher) decideStep(c circuit.Circuit, step core.Step, p probe) ([]circuit.Event, error) {
	switch step.To {
	case circuit.StateOpen:
		return c.Open(step.Guarded, step.Failures, step.Reason, d.cfg.Now(), d.cfg.Policies.Of(step.Kind))
	case circuit.StateHalfOpen:
		return c.HalfOpen(p.worker.ID)
	default:
		return c.Close(step.Reason)
	}
}

// appendStep appends a circuit's change; a probe's worker in the same append, and first,
// so that whoever hears of the probe knows it.
func (d *Dispatcher) appendStep(ctx context.Context, c circuit.Circuit, meta event.Meta, facts []circuit.Event, p probe) ([]observed, error) {
	var q plan
	add := func(change store.Change, err error) error {
		if err == nil {
			q.append.Changes = append(q.append.Changes, change)
		}
		return err
	}
	if len(p.makes) > 0 {
		if err := add(aggregate.WorkerChange(p.worker, meta, p.makes)); err != nil {
			return nil, err
		}
		for _, f := range p.makes {
			q.facts = append(q.facts, f)
		}
	}
	if err := add(aggregate.CircuitChange(c, meta, facts)); err != nil {
		return nil, err
	}
	for _, f := range facts {
		q.facts = append(q.facts, f)
	}
	return d.append(ctx, q)
}

// announce tells people of a change that is in the log.
func (d *Dispatcher) announce(ctx context.Context, c circuit.Circuit, step core.Step) {
	d.cfg.Meter.Circuit(step.Kind, step.To)
	log := d.cfg.Logger.With("kind", step.Kind, "of", step.Name)
	switch step.To {
	case circuit.StateOpen:
		log.ErrorContext(ctx, "a circuit is open", "failures", step.Failures, "reason", step.Reason, "openings", c.Openings, "probed_at", c.RetryAt, "alert", c.Openings == 1)
	case circuit.StateHalfOpen:
		log.InfoContext(ctx, "a circuit is half-open", "probe", c.Probe)
	case circuit.StateClosed:
		log.InfoContext(ctx, "a circuit is closed", "reason", step.Reason)
	}
}
