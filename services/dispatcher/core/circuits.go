package core

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"hodei.dev/libs/domain/circuit"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/worker"
)

// Step is a change of a circuit that is due, or a probe that is to be made again. It
// must be settled ([State.SettleStep]) once its outcome is known.
type Step struct {
	circuit.Guarded
	// To is the state that it should be in.
	To circuit.State
	// Failures and Reason are why.
	Failures int
	Reason   string
	// Probe is the worker whose session is to be asked whether the path works; empty for
	// a provider, whose probe is a worker that is to be made.
	Probe string
}

// Steps returns what is due for the circuits now: for each at most one, and none
// before the last was settled. A probe's room is held until then.
func (s *State) Steps(now time.Time) []Step {
	var out []Step
	for _, id := range s.pathNames() {
		b := s.paths[id]
		b.spread, b.wanted = len(b.workers), true
		if to, why, ok := b.next(now, len(b.workers) == 0); ok {
			out = append(out, s.step(&b.breaker, to, why, b.probe(to)))
		} else if b.State == circuit.StateHalfOpen && !b.asking && !b.busy {
			// Whoever began the probe is no more.
			out = append(out, s.step(&b.breaker, circuit.StateHalfOpen, "", b.probe(circuit.StateHalfOpen)))
		}
	}
	for _, p := range s.byName {
		b := p.breaker
		if b.State == circuit.StateHalfOpen && s.workers[b.Probe] == nil {
			b.failed(b.Probe, "the worker that was its probe is gone")
		}
		to, why, ok := b.next(now, p.State != provider.StateEnabled)
		if !ok || to == circuit.StateHalfOpen && p.room() <= 0 {
			continue
		}
		if to == circuit.StateHalfOpen {
			p.slots++
		}
		out = append(out, s.step(b, to, why, ""))
	}
	return out
}

func (s *State) step(b *breaker, to circuit.State, why, probe string) Step {
	b.busy, b.asking = true, to == circuit.StateHalfOpen
	failures := b.failures
	if b.State == circuit.StateHalfOpen {
		failures = 1
	}
	return Step{Guarded: b.Guarded, To: to, Failures: failures, Reason: why, Probe: probe}
}

// SettleStep ends a step, whatever came of it; what became true has been observed before.
func (s *State) SettleStep(step Step) {
	b := s.breaker(step.Guarded)
	b.busy = false
	if p := s.providers[step.Subject]; p != nil && step.Kind == circuit.Provider && step.To == circuit.StateHalfOpen {
		p.slots--
		s.roomier = true
	}
	b.asking = b.asking && b.State == circuit.StateHalfOpen
	s.tidyPath(step.Subject)
}

// ObserveCircuit takes in a whole fold. What the state has already is ignored.
func (s *State) ObserveCircuit(c circuit.Circuit) {
	if b := s.breaker(c.Guarded); b.observe(c) {
		s.circuitChanged(b)
	}
}

// ApplyCircuit folds one event. What the state has already is ignored.
func (s *State) ApplyCircuit(fact circuit.Event, at circuit.At) {
	var g circuit.Guarded
	switch e := fact.(type) {
	case circuit.Opened:
		g = e.Guarded
	case circuit.HalfOpened:
		g = e.Guarded
	case circuit.Closed:
		g = e.Guarded
	}
	b := s.breaker(g)
	c := b.Evolve(fact, at)
	c.ID = g.ID()
	if b.observe(c) {
		s.circuitChanged(b)
	}
}

// Circuits returns those that are not closed, by what they guard.
func (s *State) Circuits() []circuit.Circuit {
	var out []circuit.Circuit
	for _, p := range s.byName {
		if !p.breaker.closed() {
			out = append(out, p.breaker.Circuit)
		}
	}
	for _, p := range s.paths {
		if !p.closed() {
			out = append(out, p.Circuit)
		}
	}
	slices.SortFunc(out, func(a, b circuit.Circuit) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// PathWorked takes note that a worker's session has answered, whatever it said.
func (s *State) PathWorked(workerID, replica string) {
	if b, ok := s.paths[replica]; ok {
		b.worked("the session of worker " + workerID + " answers")
	}
}

// PathFailed takes note that a worker's session could not be reached.
func (s *State) PathFailed(workerID, replica, why string) {
	if b, ok := s.paths[replica]; ok {
		b.failed(workerID, why)
	}
}

// breaker returns the one that guards g, made where it is new.
func (s *State) breaker(g circuit.Guarded) *breaker {
	if g.Kind == circuit.Provider {
		return s.provider(g.Subject).breaker
	}
	return &s.path(g.Subject).breaker
}

// circuitChanged: what could not be used may be used now, or the other way round.
func (s *State) circuitChanged(b *breaker) {
	s.generation++
	s.roomier = true
	if b.Kind == circuit.Path {
		on := s.path(b.Subject).workers
		for _, id := range slices.Sorted(maps.Keys(on)) {
			s.workerChanged(on[id])
		}
		s.tidyPath(b.Subject)
		s.pathsChanged()
	}
}

// nextProbe is when a circuit may be probed that somebody waits for; false where none is.
func (s *State) nextProbe() (next time.Time, found bool) {
	look := func(b *breaker) {
		if at, ok := b.wake(); ok && (!found || at.Before(next)) {
			next, found = at, true
		}
	}
	for _, p := range s.paths {
		look(&p.breaker)
	}
	for _, p := range s.byName {
		if p.room() > 0 {
			look(p.breaker)
		}
	}
	return next, found
}

// judge takes the first word of a worker on whether its provider can make workers. A
// fold says what was so before, which is news only of a probe.
func (s *State) judge(e *workerEntry, news bool) {
	b := e.provider.breaker
	if e.judged || e.provider.Spec.Kind == provider.External {
		return // an operator makes those
	}
	ended := e.State == worker.StateTerminating || e.State == worker.StateTerminated
	switch {
	case !e.ReadyAt.IsZero():
		if e.judged = true; news || b.Probe == e.ID {
			b.worked("worker " + e.ID + " is ready")
		}
	case e.failure != "":
		if e.judged = true; news || b.Probe == e.ID {
			b.failed(e.ID, "worker "+e.ID+" could not be made: "+e.failure)
		}
	case ended:
		e.judged = true
		// Without a cause its resource has ended by itself.
		failed := e.Cause == worker.CauseProvisioning || e.Cause == worker.CauseLost || e.Cause == ""
		if b.Probe == e.ID || news && failed {
			b.failed(e.ID, "worker "+e.ID+" ended before it was ready: "+e.Reason)
		}
	}
}
