package circuit_test

import (
	"errors"
	"testing"
	"time"

	"hodei.dev/libs/domain/circuit"
	"hodei.dev/libs/domain/transition"
)

var (
	t0      = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	policy  = circuit.Policy{Failures: 3, FirstPause: time.Second, MostPause: 5 * time.Second}
	replica = circuit.Guarded{Kind: circuit.Path, Subject: "r1", Name: "r1"}
)

func follow(t *testing.T, c circuit.Circuit) func([]circuit.Event, error) circuit.Circuit {
	t.Helper()
	return func(events []circuit.Event, err error) circuit.Circuit {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			c = c.Evolve(e, circuit.At{Version: c.Version + 1, Time: t0})
		}
		return c
	}
}

// TestPausesGrow: each probe that fails doubles the wait for the next; a success forgets it.
func TestPausesGrow(t *testing.T) {
	var c circuit.Circuit
	for i, want := range []time.Duration{1, 2, 4, 5, 5} {
		c = follow(t, c)(c.Open(replica, 3, "no answer", t0, policy))
		if got := c.RetryAt.Sub(t0); got != want*time.Second || c.Openings != i+1 || c.State != circuit.StateOpen {
			t.Errorf("opening %d: probed after %s, want %s: %+v", i+1, got, want*time.Second, c)
		}
		c = follow(t, c)(c.HalfOpen("w"))
		if c.Probe != "w" || c.State != circuit.StateHalfOpen || !c.RetryAt.IsZero() {
			t.Errorf("half-open: %+v", c)
		}
	}
	c = follow(t, c)(c.Close("it answers"))
	if !c.State.Settled() || c.Openings != 0 || c.Probe != "" || c.Guarded != replica {
		t.Errorf("closed: %+v", c)
	}
	if c = follow(t, c)(c.Open(replica, 3, "again", t0, policy)); c.RetryAt.Sub(t0) != time.Second {
		t.Errorf("opened anew: %+v", c)
	}
}

// TestOneProbeAtATime: the table has no way from half-open to half-open, nor back
// from closed by a late verdict.
func TestOneProbeAtATime(t *testing.T) {
	var c circuit.Circuit
	refused := func(what string, _ []circuit.Event, err error) {
		t.Helper()
		if _, ok := errors.AsType[*transition.Error](err); !ok {
			t.Errorf("%s: %v", what, err)
		}
	}
	probe, err := c.HalfOpen("w")
	refused("a probe of a circuit that never opened", probe, err)
	c = follow(t, c)(c.Open(replica, 3, "no answer", t0, policy))
	again, err := c.Open(replica, 3, "no answer", t0, policy)
	refused("opened twice", again, err)
	c = follow(t, c)(c.HalfOpen("w"))
	second, err := c.HalfOpen("x")
	refused("a second probe", second, err)
	c = follow(t, c)(c.Close("it answers"))
	late, err := c.Close("late")
	refused("closed twice", late, err)
}

func TestIDs(t *testing.T) {
	a := circuit.Guarded{Kind: circuit.Path, Subject: "x", Name: "x"}
	b := circuit.Guarded{Kind: circuit.Provider, Subject: "x", Name: "x"}
	c := circuit.Guarded{Kind: circuit.Path, Subject: "x", Name: "renamed"}
	if a.ID() == b.ID() || a.ID() != c.ID() {
		t.Errorf("ids: %s %s %s", a.ID(), b.ID(), c.ID())
	}
}
