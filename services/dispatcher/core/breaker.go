package core

import (
	"time"

	"hodei.dev/libs/domain/circuit"
)

// Policies say when the circuits of each kind open and when they are probed.
type Policies struct {
	Provider, Path circuit.Policy
}

// DefaultPolicies returns the defaults. A path is probed with a question to a session,
// which costs next to nothing; a provider with a worker.
func DefaultPolicies() Policies {
	return Policies{
		Provider: circuit.Policy{Failures: 3, FirstPause: 5 * time.Second, MostPause: time.Minute},
		Path:     circuit.Policy{Failures: 3, FirstPause: time.Second, MostPause: 30 * time.Second},
	}
}

// Of returns the policy of a kind.
func (p Policies) Of(k circuit.Kind) circuit.Policy {
	if k == circuit.Path {
		return p.Path
	}
	return p.Provider
}

// breaker is a circuit with what is known of it beside the log: failures that have not
// opened it yet, and the evidence that the next step waits for. What it guards is used
// only while it is closed; an open one is tried by one probe at a time.
type breaker struct {
	circuit.Circuit
	policy circuit.Policy
	// failures in a row while it is closed; of are the workers that they were about, why is the latest.
	failures int
	of       map[string]struct{}
	why      string
	// works and fails are what says so since its state last changed.
	works, fails string
	// wanted: there is a job that would go this way; a circuit that nobody wants is not probed.
	wanted bool
	// hint is a worker that is certainly there: the probe does not wait for its time.
	hint string
	// asking: this process has begun the probe of the half-open circuit. busy: a step is on its way.
	asking, busy bool
	// spread is how many different workers the failures must be about, at most.
	spread int
}

func newBreaker(g circuit.Guarded, p circuit.Policy) *breaker {
	return &breaker{Circuit: circuit.Circuit{ID: g.ID(), Guarded: g}, policy: p}
}

func (b *breaker) closed() bool { return b.State.Settled() }

// worked takes note that what it guards did its work.
func (b *breaker) worked(why string) {
	if b.closed() {
		b.failures, b.of, b.why = 0, nil, ""
		return
	}
	b.works = why
}

// failed takes note that it failed, about a worker. While it is open that is no news.
func (b *breaker) failed(workerID, why string) {
	switch {
	case b.closed():
		if b.of == nil {
			b.of = map[string]struct{}{}
		}
		b.failures++
		b.of[workerID], b.why = struct{}{}, why
	case b.State == circuit.StateHalfOpen && b.Probe == workerID:
		b.fails = why
	}
}

// observe takes in the circuit as the log has it; false where that is no news.
func (b *breaker) observe(c circuit.Circuit) bool {
	if c.Version <= b.Version {
		return false
	}
	// Whoever probes it now: what was known was about its state before.
	b.Circuit = c
	b.failures, b.of, b.why, b.works, b.fails, b.hint, b.wanted = 0, nil, "", "", "", "", false
	b.asking = b.asking && c.State == circuit.StateHalfOpen
	return true
}

// tripped tells whether it has failed often enough: so many times in a row, and about
// so many different workers, or all that there are: one dead session is not a dead path.
func (b *breaker) tripped() bool {
	return b.failures >= b.policy.Failures && len(b.of) >= min(b.policy.Failures, b.spread)
}

// due tells whether an open one may be probed.
func (b *breaker) due(now time.Time) bool {
	return b.State == circuit.StateOpen && (b.hint != "" || b.wanted && !b.RetryAt.After(now))
}

// next is the state that it should be in now, with the reason; false where that is the one
// that it is in, or a step is on its way. alone: there is nothing left that it guards.
func (b *breaker) next(now time.Time, alone bool) (to circuit.State, why string, ok bool) {
	switch {
	case b.busy:
		return "", "", false
	case b.closed():
		return circuit.StateOpen, b.why, b.tripped() && !alone
	case alone:
		return circuit.StateClosed, "nothing is left that it guards", true
	case b.works != "":
		return circuit.StateClosed, b.works, true
	case b.State == circuit.StateOpen:
		return circuit.StateHalfOpen, "", b.due(now)
	case b.fails != "":
		return circuit.StateOpen, b.fails, true
	}
	return "", "", false
}

// wake is when an open one may be probed; false where nobody waits for that.
func (b *breaker) wake() (time.Time, bool) {
	return b.RetryAt, b.State == circuit.StateOpen && b.wanted && !b.busy
}
