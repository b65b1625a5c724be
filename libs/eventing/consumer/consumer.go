// Package consumer hands the event log to a service: every event of its types,
// in position order, in batches of whatever is there.
//
//	Start() ──▶ position ──┬─▶ missing in the stream? ──▶ Postgres ──┐
//	                       └─▶ durable pull consumer from position+1 ┴─▶ Handle ──▶ acknowledge
//
// The position that the service has stored is the only truth of where it is.
// The durable consumer is made anew at that position whenever anything is in
// doubt (start, reconnect, a gap, silence, another stream), so what JetStream
// remembers, loses or redelivers does not matter. Handling is at least once: after
// a crash the events since the stored position come again.
//
// It is single-active by contract, not by itself: run it under store.Exclusive.
package consumer

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/metric"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
)

// Log is the part of the event log that a consumer reads. *store.Store is one.
type Log interface {
	// Read returns events by position, in order.
	Read(ctx context.Context, o store.ReadOptions) ([]event.Event, error)
	// Head is the position of the last event; 0 where there is none.
	Head(ctx context.Context) (int64, error)
}

// Config says what to consume and how to handle it.
type Config struct {
	// Service owns the consumer; its dead letters go to bus.DeadLetterStream(Service). Required.
	Service string
	// Name of the durable consumer. Default Service.
	Name string
	// Types are the short names of the events to deliver; empty means all.
	Types []string
	// Start returns the position up to which everything is handled. It is called
	// once, and again until it succeeds while its errors are transient. Required.
	Start func(ctx context.Context) (int64, error)
	// Handle gets events in order, at least one, at most MaxBatch; nil means that
	// their effect is stored. Its error decides what follows: see [Transient],
	// [Permanent] and [Stop]; any other error splits the batch down to the one event
	// that fails, which is tried Attempts times and then dead-lettered. So it must be
	// idempotent and all or nothing, or at least repeatable. Required.
	Handle func(ctx context.Context, events []event.Event) error
	// DeadLettered is called after an event's dead letter is stored and before the
	// next event is handled, so that the service can move its position past it. It is
	// retried until it succeeds. May be nil.
	DeadLettered func(ctx context.Context, e event.Event, cause error) error
	// Letters keeps dead letters in the log and brings what operators decide about
	// them, beside Types. Where Types is empty, Handle gets those events as all
	// others, and nothing is carried out. Nil keeps letters in the stream alone.
	Letters Letters
	// Settle carries out a decision about a letter instead of Handle, for a service
	// that parks what follows a dead event, and returns how many of those it handled.
	// It must be idempotent. May be nil.
	Settle func(ctx context.Context, o Order) (unparked int, err error)
	// Checkpoint is told a position up to which everything is handled: lazily, at
	// most once per CheckpointInterval and once at the end, also when nothing of its
	// types came but the stream went on. May be nil.
	Checkpoint func(ctx context.Context, position int64) error
	// CheckpointInterval is how often at most. Default 1 s.
	CheckpointInterval time.Duration
	// Store is where what the stream no longer has is read. Required.
	Store Log
	// NC and JS are one connection, and JetStream on it. Required.
	NC *nats.Conn
	JS jetstream.JetStream
	// Replicas is on how many servers its dead-letter stream is kept where it makes it
	// again. Default 1.
	Replicas int
	// MaxBatch bounds the events of one call of Handle. Default 500.
	MaxBatch int
	// Gather is the least time between two batches: what comes sooner after the last
	// one waits and is handled with it. An event after a pause is handled at once. It
	// makes few large transactions of many small ones. Default 0: never wait.
	Gather time.Duration
	// Attempts is how often one failing event is tried before it is dead-lettered. Default 5.
	Attempts int
	// RetryDelay is the first pause between attempts; each is three times the one
	// before, at most 5 s. Default 200 ms.
	RetryDelay time.Duration
	// ProbeInterval is how often an idle consumer asks the log whether it is really
	// idle. What it finds is counted (hodei.consumer.stalls) and 0 without faults. Default 5 s.
	ProbeInterval time.Duration
	// OnceOnly is set where events must not be handed over again: Run then returns a
	// [*SkippedError] where it would go back to what was skipped.
	OnceOnly bool
	// Incident is told of each incident once, when it is over; it must return at
	// once. May be nil.
	Incident func(Incident)
	// IncidentAfter is how long the events may stand still before that alone is an
	// incident. Default 10 s.
	IncidentAfter time.Duration
	// Log gets interruptions, retries and dead letters. Default slog.Default().
	Log *slog.Logger
	// Meter makes the instruments hodei.consumer.*; may be nil.
	Meter metric.Meter
}

// Status is what a consumer knows of itself.
type Status struct {
	// Name of the consumer.
	Name string
	// Position up to which everything of its types is handled. It may be above the
	// last handled event's when the stream had nothing of its types since.
	Position int64
	// LastEventTime is when the last handled event was appended; zero before the first.
	LastEventTime time.Time
	// Pending is how many events of its types are known to wait; 0 = caught up.
	Pending int64
	// Active is whether it is connected and receives.
	Active bool
	// Retrying is the error that is being retried; empty while all is well.
	Retrying string
	// DeadLetters is how many events were dead-lettered since it was made.
	DeadLetters int64
}

// Consumer delivers events to one handler. Use [New].
type Consumer struct {
	cfg   Config
	log   *slog.Logger
	m     *metrics
	types map[string]bool // nil = all
	// decisions are the types of events that are about dead letters; nil = none are looked at.
	decisions map[string]bool

	// Only the goroutine of Run (or Replay) uses these.
	position   int64     // handled
	saved      int64     // last checkpoint
	checkedAt  time.Time // of the last checkpoint
	rawBuried  int64     // the last position whose unreadable message was dead-lettered
	identity   time.Time // creation of the stream last seen
	lastReason string    // last interruption that was logged
	count      int64     // events handled, again or not
	begun      bool      // has handled something: what is missing from now on is an incident
	trouble    *trouble  // nil while all is well
	trust      trust     // that nothing was left out

	running sync.Mutex // held by Run and Replay

	mu     sync.Mutex // guards status
	status Status
}

// New returns a consumer that has not started. An error means that cfg is wrong.
func New(cfg Config) (*Consumer, error) {
	if cfg.Service == "" || cfg.Start == nil || cfg.Handle == nil || cfg.Store == nil || cfg.NC == nil || cfg.JS == nil {
		return nil, fault.New(fault.Invalid, "consumer needs a service, start, handle, store, connection and JetStream")
	}
	setDefault(&cfg.Name, cfg.Service)
	setDefault(&cfg.Replicas, 1)
	setDefault(&cfg.MaxBatch, 500)
	setDefault(&cfg.Attempts, 5)
	setDefault(&cfg.RetryDelay, 200*time.Millisecond)
	setDefault(&cfg.ProbeInterval, 5*time.Second)
	setDefault(&cfg.CheckpointInterval, time.Second)
	setDefault(&cfg.IncidentAfter, 10*time.Second)
	if !bus.ValidToken(cfg.Name) {
		return nil, fault.New(fault.Invalid, "%q cannot be a consumer's name", cfg.Name)
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	c := &Consumer{cfg: cfg, log: cfg.Log.With("consumer", cfg.Name), rawBuried: -1, status: Status{Name: cfg.Name}}
	if len(cfg.Types) > 0 {
		if cfg.Letters != nil {
			c.decisions = map[string]bool{}
			for _, t := range cfg.Letters.Types() {
				c.decisions[t] = true
			}
			cfg.Types = slices.Concat(cfg.Types, cfg.Letters.Types())
			c.cfg.Types = cfg.Types
		}
		c.types = make(map[string]bool, len(cfg.Types))
		for _, t := range cfg.Types {
			if !bus.ValidToken(t) {
				return nil, fault.New(fault.Invalid, "%q cannot be an event type", t)
			}
			c.types[t] = true
		}
	}
	var err error
	if c.m, err = newMetrics(cfg.Meter, c); err != nil {
		return nil, err
	}
	return c, nil
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Run delivers until ctx ends; it then returns nil, after Handle has returned. It
// outlives every loss of NATS and Postgres. It returns an error only from Start
// (not transient), for [Stop], for a connection that was closed for good, and a
// [*SkippedError] where the config says OnceOnly.
// One Run at a time.
func (c *Consumer) Run(ctx context.Context) error {
	c.running.Lock()
	defer c.running.Unlock()
	registration, err := c.m.observe(c)
	if err != nil {
		return err
	}
	defer func() { _ = registration.Unregister() }()
	if err := c.start(ctx); err != nil {
		return ended(ctx, err)
	}
	defer c.lastCheckpoint(ctx)
	if err := c.pending(ctx); err != nil {
		return ended(ctx, err)
	}
	delay := time.Duration(0)
	for {
		before := c.position
		err := c.session(ctx)
		c.update(func(s *Status) { s.Active = false })
		var stop stopError
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &stop):
			return stop.error
		case errors.Is(err, nats.ErrConnectionClosed):
			return err
		}
		if skipped, ok := errors.AsType[*SkippedError](err); ok && c.cfg.OnceOnly {
			return skipped
		}
		if c.position > before || delay == 0 {
			delay = 5 * time.Millisecond
		} else {
			delay = min(2*delay, time.Second)
		}
		c.interrupted(ctx, err)
		if !wait(ctx, delay/2+rand.N(delay)) {
			return nil
		}
	}
}

// ended makes the end of ctx a clean return.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	if stop, ok := errors.AsType[stopError](err); ok {
		return stop.error
	}
	return err
}

// interrupted logs each new reason once: an absent server is one line, not thousands.
func (c *Consumer) interrupted(ctx context.Context, err error) {
	c.m.sessions.Add(ctx, 1, c.m.name)
	if c.begun {
		c.troubled(err.Error(), grave(err))
	}
	if reason := err.Error(); reason != c.lastReason {
		c.lastReason = reason
		c.log.Info("goes on from its position", "position", c.position, "cause", err)
	}
}

func (c *Consumer) start(ctx context.Context) error {
	return c.retry(ctx, "find the start position", func() error {
		p, err := c.cfg.Start(ctx)
		if err == nil {
			c.position, c.saved, c.begun = p, p, p > 0
			c.trust = trust{}
			c.update(func(s *Status) { s.Position = p })
		}
		return err
	})
}

// Replay handles the events of the log after one position through another, from
// Postgres, with the same rules as Run, and ends. It does not run beside Run, and
// stores no checkpoint.
func (c *Consumer) Replay(ctx context.Context, after, through int64) error {
	c.running.Lock()
	defer c.running.Unlock()
	c.position, c.saved = after, after
	c.update(func(s *Status) { s.Position = after })
	err := c.fromLog(ctx, through)
	if stop, ok := errors.AsType[stopError](err); ok {
		return stop.error
	}
	return err
}

// Status returns a copy; safe for concurrent use.
func (c *Consumer) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

func (c *Consumer) update(fn func(*Status)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fn(&c.status)
}

// advance moves the position over what needs no handling.
func (c *Consumer) advance(position int64) {
	if position > c.position {
		c.position = position
		c.update(func(s *Status) { s.Position = position })
	}
}

// checkpoint stores the position where it is time. A failure is logged and tried
// again, because the position is only behind the truth; it returns only [Stop].
func (c *Consumer) checkpoint(ctx context.Context, now time.Time) error {
	if c.cfg.Checkpoint == nil || c.position == c.saved || now.Sub(c.checkedAt) < c.cfg.CheckpointInterval {
		return nil
	}
	c.checkedAt = now
	position := c.position
	if err := c.cfg.Checkpoint(ctx, position); err != nil {
		if isStop(err) {
			return err
		}
		c.log.Warn("cannot store the position, trying again", "position", position, "error", err)
		return nil
	}
	c.saved = position
	return nil
}

// lastCheckpoint stores the position at the end, when ctx is already over.
func (c *Consumer) lastCheckpoint(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	c.checkedAt = time.Time{}
	if err := c.checkpoint(ctx, time.Now()); err != nil {
		c.log.Warn("cannot store the last position", "error", err)
	}
}

// wait returns false where ctx ends first.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
