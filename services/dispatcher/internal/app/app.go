// Package app is the dispatcher at work: it keeps the core's state current from the
// log, has it decide, makes its decisions true by appends, and hands assigned jobs
// over to their workers' sessions.
//
//	Activate: snapshot ─▶ core.State            (memory is a cache of the log)
//
//	events ─▶ Handle ─▶ ┐                ┌─▶ append ─▶ outcome ─┐
//	                    ├─▶ one goroutine ┤    (at most InFlight) ├─▶ back into the state
//	outcomes, timer ──▶ ┘   owns the State └─▶ RUN to the session ┘
//
// What a decision takes is reserved in the state until its outcome is in, so that
// nothing is decided twice; versions in the log decide whatever memory believes.
// An append that meets a conflict is answered by reading the aggregates again.
// Postgres away: the same append is repeated until it has an answer.
//
// The package is not the consumer of events and knows no NATS: see Sessions.
package app

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/circuit"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/libs/service/command"

	"hodei.dev/services/dispatcher/core"
)

// Log is the event log, as store.Store is.
type Log interface {
	store.Appender
	aggregate.Loader
	// Snapshot calls fn with the events of all live streams in order of position
	// and returns the position that they stand for.
	Snapshot(ctx context.Context, o store.SnapshotOptions, fn func(event.Event) error) (int64, error)
}

// Sessions is the way to the workers' sessions. It is safe for concurrent use.
type Sessions interface {
	// Run hands an attempt over. nil means that the agent has accepted it; any
	// error that it may not have: a *SessionGone that the worker may be back with its
	// next session, fault.Unavailable that nobody answered before ctx ended.
	Run(ctx context.Context, epoch int64, r command.Request) error
	// Ping asks the session with that epoch whether its agent was heard of lately; an
	// error says that nobody answered before ctx ended.
	Ping(ctx context.Context, workerID string, epoch int64) (alive bool, err error)
	// Available tells whether sessions can be reached at all at present.
	Available() bool
}

// SessionGone says that a command has not reached the agent, because the session that
// it was for is over, or is nowhere. It is a fault.Unavailable.
type SessionGone struct {
	// Answered: the registry said so; otherwise nobody has heard the command.
	Answered bool
	Reason   string
}

// Error says why.
func (e *SessionGone) Error() string { return e.Reason }

// Is reports whether target is fault.Unavailable.
func (e *SessionGone) Is(target error) bool { return target == fault.Unavailable }

// Meter counts what the dispatcher does. It is safe for concurrent use.
type Meter interface {
	// Decided: a decision is in the log; kind is "assign", "schedule", "defer" or "abandon".
	Decided(kind string)
	// Conflict: somebody else was first.
	Conflict(kind string)
	// HandOver took that long; failed where the session did not accept.
	HandOver(took time.Duration, failed bool)
	// Circuit: the circuit of a kind has changed its state, which is in the log.
	Circuit(kind circuit.Kind, to circuit.State)
}

// Config is what a Dispatcher is made of. All fields are required but those with a default.
type Config struct {
	Log      Log
	Sessions Sessions
	Meter    Meter
	Logger   *slog.Logger
	// Now is the clock, NewID makes ids of new workers, Jitter returns numbers in [0, 1).
	Now    func() time.Time
	NewID  func() string
	Jitter func() float64
	// InFlight is the most decisions whose appends run at once. Default 128.
	InFlight int
	// HandOvers is the most hand-overs that run at once. Default 1024.
	HandOvers int
	// HandOverTimeout is how long a session may take to accept. Default 5s.
	HandOverTimeout time.Duration
	// HandOverGrace is how long an attempt waits for its worker's next session where
	// the one that it was given to is gone. Default 8s.
	HandOverGrace time.Duration
	// Policies are those of circuits. Default core.DefaultPolicies.
	Policies core.Policies
}

// Figures are counts for people.
type Figures struct {
	core.Figures
	// Circuits are those that are not closed.
	Circuits []circuit.Circuit
	// Position is that of the last event taken in.
	Position int64
}

// Dispatcher serves one activation: Activate, then Run, with Handle at the same time.
type Dispatcher struct {
	cfg Config

	inbox    chan []observed
	outcomes chan outcome
	done     chan struct{} // closed when Run has returned
	handing  chan struct{} // a token for each hand-over that runs
	work     sync.WaitGroup

	// What follows belongs to Run's goroutine.
	state    *core.State
	causes   map[string]event.Event // the last event of each live job, without data
	position int64
	inFlight int
	running  map[string]*handing // hand-overs that run, by job
	handed   map[string]int      // the attempts whose hand-over has ended, by live job

	figures atomic.Pointer[Figures]
}

// observed is an event with what it says.
type observed struct {
	event.Event
	fact any
}

// New returns a Dispatcher.
func New(cfg Config) *Dispatcher {
	if cfg.InFlight <= 0 {
		cfg.InFlight = 128
	}
	if cfg.HandOvers <= 0 {
		cfg.HandOvers = 1024
	}
	if cfg.HandOverTimeout <= 0 {
		cfg.HandOverTimeout = 5 * time.Second
	}
	if cfg.HandOverGrace <= 0 {
		cfg.HandOverGrace = 8 * time.Second
	}
	if cfg.Policies == (core.Policies{}) {
		cfg.Policies = core.DefaultPolicies()
	}
	d := &Dispatcher{
		cfg: cfg, inbox: make(chan []observed, 64), outcomes: make(chan outcome, 2*cfg.InFlight), done: make(chan struct{}),
		handing: make(chan struct{}, cfg.HandOvers), state: core.NewWith(cfg.Policies), causes: map[string]event.Event{}, running: map[string]*handing{}, handed: map[string]int{},
	}
	d.figures.Store(&Figures{})
	return d
}

// Types are the events that the dispatcher has to be told of.
func Types() []string { return catalogue.Consumed(catalogue.Dispatcher) }

// Figures are current within one event; safe for concurrent use.
func (d *Dispatcher) Figures() Figures { return *d.figures.Load() }

// Handle takes events in, in order of position; those that are known are skipped.
// It returns once they are received: memory is a cache, nothing has to be stored
// first. An error that is fault.Invalid names the first event that cannot be
// decoded; those before it are taken in.
func (d *Dispatcher) Handle(ctx context.Context, events []event.Event) error {
	batch := make([]observed, 0, len(events))
	var err error
	for _, e := range events {
		var fact any
		if fact, err = aggregate.Decode(e); err != nil {
			break
		}
		e.Data = nil
		batch = append(batch, observed{e, fact})
	}
	if len(batch) > 0 {
		select {
		case d.inbox <- batch:
		case <-d.done:
			return context.Canceled
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

// Run decides until ctx ends, and returns when all that it began has ended: no
// side effect comes after it.
func (d *Dispatcher) Run(ctx context.Context) error {
	defer close(d.done)
	defer d.work.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for _, j := range d.state.Assigned() {
		d.handOverDue(ctx, j.ID)
	}
	for {
		d.decide(ctx, timer)
		d.publish()
		select {
		case <-ctx.Done():
			return nil
		case batch := <-d.inbox:
			d.observe(ctx, batch)
		case o := <-d.outcomes:
			d.take(ctx, o)
		case <-timer.C:
		}
		d.catchUp(ctx)
	}
}

// catchUp takes in what has come meanwhile, so that one look decides for all of it.
func (d *Dispatcher) catchUp(ctx context.Context) {
	for range 256 {
		select {
		case batch := <-d.inbox:
			d.observe(ctx, batch)
		case o := <-d.outcomes:
			d.take(ctx, o)
		default:
			return
		}
	}
}

// unreachable is how often Sessions are asked whether they are back.
const unreachable = 100 * time.Millisecond

// decide begins what there is to do and sets the timer for what is held back.
// Nothing is decided while no session can be reached: hand-overs would only fail.
func (d *Dispatcher) decide(ctx context.Context, timer *time.Timer) {
	if !d.cfg.Sessions.Available() {
		timer.Reset(unreachable)
		return
	}
	now := d.cfg.Now()
	d.takeSteps(ctx)
	free := d.cfg.InFlight - d.inFlight
	if free <= 0 {
		timer.Stop() // an outcome comes first
		return
	}
	for _, decision := range d.state.Decide(now, free) {
		d.begin(ctx, now, decision)
	}
	if due, ok := d.state.NextWake(); ok {
		timer.Reset(max(due.Sub(now), 0))
	} else {
		timer.Stop()
	}
}

func (d *Dispatcher) publish() {
	d.figures.Store(&Figures{Figures: d.state.Figures(), Circuits: d.state.Circuits(), Position: d.position})
}
