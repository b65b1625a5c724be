// Package compare proves completeness: it compares the event log with the events
// stream, with the current state of its aggregates and with how far every consumer
// is, and says in words what is off and what to do. It changes nothing.
package compare

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/relay"
	"hodei.dev/libs/eventing/store"
)

const (
	// samples is how many positions a quick comparison looks at beside both ends.
	samples = 256
	// every is how often progress is told.
	every = 500 * time.Millisecond
)

// The phases of a comparison.
const (
	PhaseStream     = "stream and log"
	PhaseAggregates = "aggregates"
	PhasePositions  = "positions"
)

// Log is the part of the event log that is compared. *store.Store is one.
type Log interface {
	relay.FullLog
	// Mismatches compares the current state of every aggregate with its events.
	Mismatches(ctx context.Context, limit int) (found []store.Mismatch, total int, err error)
}

// Options say how thorough to be.
type Options struct {
	// Quick looks at samples and leaves aggregates out.
	Quick bool
	// Limit is how many differences are listed.
	Limit int
}

// State is what has been found so far.
type State struct {
	relay.Comparison
	Phase      string
	Quick      bool
	Mismatches []store.Mismatch
	Mismatched int
	Positions  []consumer.Stored
}

// Comparer compares one system.
type Comparer struct {
	Log  Log
	Pool *pgxpool.Pool
	JS   jetstream.JetStream
	Now  func() time.Time
}

// Run compares and tells how far it is now and then. It ends at tell's first
// error, which it returns.
func (c *Comparer) Run(ctx context.Context, o Options, tell func(State) error) (State, error) {
	s := State{Phase: PhaseStream, Quick: o.Quick}
	if err := c.stream(ctx, o, &s, tell); err != nil {
		return s, fmt.Errorf("compare stream and log: %w", err)
	}
	var err error
	if !o.Quick {
		s.Phase = PhaseAggregates
		if err := tell(s); err != nil {
			return s, err
		}
		if s.Mismatches, s.Mismatched, err = c.Log.Mismatches(ctx, o.Limit); err != nil {
			return s, err
		}
	}
	s.Phase = PhasePositions
	if s.Positions, err = consumer.AllStored(ctx, c.Pool); err != nil {
		return s, err
	}
	return s, nil
}

func (c *Comparer) stream(ctx context.Context, o Options, s *State, tell func(State) error) (err error) {
	if o.Quick {
		s.Comparison, err = relay.Sample(ctx, c.Log, c.JS, samples)
		return err
	}
	told := c.Now()
	s.Comparison, err = relay.Compare(ctx, c.Log, c.JS, o.Limit, func(now relay.Comparison) error {
		if c.Now().Sub(told) < every {
			return nil
		}
		told = c.Now()
		s.Comparison = now
		return tell(*s)
	})
	return err
}
