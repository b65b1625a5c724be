// Package relay carries the event log from Postgres to JetStream, in order,
// each position exactly once: it is the only publisher of the events stream.
//
//	Postgres events ──read ahead──▶ window ──Expected-Last-Sequence──▶ HODEI_EVENTS
//	      ▲                           │
//	 nudge (core NATS), sweep         └── any mismatch, timeout, reconnect: stop,
//	                                      ask the stream where it is, compare, go on
//
// It keeps no cursor: in the stream, position = base + sequence, and base stands
// in the stream's metadata since its creation, so the stream itself says what
// comes next, also after a purge, expiry or a lost tail. The server refuses any
// message whose expected last sequence is not the stream's, so a second relay, a
// repeated message or a late one can neither double nor reorder anything.
//
// It decides nothing about what an event means and deletes nothing. Where stream
// and log contradict each other it stops: see [DivergedError].
package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
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

// Log is the part of the event log that the relay reads. *store.Store is one.
type Log interface {
	// Read returns events by position, in order, without gaps.
	Read(ctx context.Context, o store.ReadOptions) ([]event.Event, error)
	// Head is the position of the last event; 0 where there is none.
	Head(ctx context.Context) (int64, error)
}

// DeadLetters keeps what can never be published. It must be idempotent.
type DeadLetters interface {
	Record(ctx context.Context, e event.Event, reason string) error
}

// Config says what to relay, and how fast.
type Config struct {
	// Store is the event log. Required.
	Store Log
	// NC and JS are one connection, and JetStream on it. Required.
	NC *nats.Conn
	JS jetstream.JetStream
	// Base gives the position before the first message of a new stream: the lowest
	// position that any consumer has stored, never above the log's head. Required.
	Base func(ctx context.Context) (int64, error)
	// DeadLetters keeps events that can never be published. Required.
	DeadLetters DeadLetters
	// Opened is told of the stream each time before publishing to it begins; its
	// error is a reason to start over. May be nil.
	Opened func(ctx context.Context, o Opened) error
	// Window is how many messages may wait for their acknowledgement. Default 512.
	Window int
	// Replicas of the events stream: 1, 3 or 5. Default 1.
	Replicas int
	// MaxAge is how long the stream keeps its copy. Default 72 h.
	MaxAge time.Duration
	// SweepInterval is how often the head is asked for, in case a nudge was lost. Default 5 s.
	SweepInterval time.Duration
	// CheckInterval is how often stream and log are compared while running. Default 1 h.
	CheckInterval time.Duration
	// AckTimeout is how long the window may stand still. Default 5 s.
	AckTimeout time.Duration
	// Log gets interruptions, tombstones and divergence. Default slog.Default().
	Log *slog.Logger
	// Meter makes the instruments hodei.relay.*; may be nil.
	Meter metric.Meter
}

// Opened is the stream that publishing is about to go on with, equal to the log
// as far as looked.
type Opened struct {
	// Created tells the stream from another one of the same name.
	Created time.Time
	// Base is the position before its first message, Head that of its last.
	Base, Head int64
	// Before is the last position that this relay knew the stream to hold; above
	// Head where the stream has lost something. 0 where it has known none yet.
	Before int64
}

// Status is what a relay knows of itself.
type Status struct {
	// Position is the last one that the stream is known to hold.
	Position int64
	// Head is the last position of the log that the relay has heard of.
	Head int64
	// Publishing is whether it is connected, has compared stream and log, and publishes.
	Publishing bool
	// Diverged is why it has stopped; nil while it has not. Run looks anew.
	Diverged error
}

// Relay publishes one log. Use [New].
type Relay struct {
	cfg Config
	log *slog.Logger
	m   *metrics

	// refused are positions that the server has said it will never take, with its
	// reason; only the goroutine of Run uses it.
	refused map[int64]string

	mu     sync.Mutex // guards status
	status Status
}

// New returns a relay that has not started. An error means that cfg is wrong.
func New(cfg Config) (*Relay, error) {
	if cfg.Store == nil || cfg.NC == nil || cfg.JS == nil || cfg.Base == nil || cfg.DeadLetters == nil {
		return nil, fault.New(fault.Invalid, "relay needs a store, a connection, JetStream, a base and a place for dead letters")
	}
	setDefault(&cfg.Window, 512)
	setDefault(&cfg.SweepInterval, 5*time.Second)
	setDefault(&cfg.CheckInterval, time.Hour)
	setDefault(&cfg.AckTimeout, 5*time.Second)
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	r := &Relay{cfg: cfg, log: cfg.Log, refused: map[int64]string{}}
	var err error
	if r.m, err = newMetrics(cfg.Meter, r); err != nil {
		return nil, err
	}
	return r, nil
}

// askTimeout bounds one question to NATS. A cluster without a leader answers
// nothing at all, so asking again soon is quicker than waiting long.
const askTimeout = 1500 * time.Millisecond

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Run relays until ctx ends; it then returns nil. It outlives every loss of NATS
// and Postgres. It returns an error only where going on would be wrong: a
// [*DivergedError], a stream of the same name that is not the relay's, or a
// connection that was closed for good.
func (r *Relay) Run(ctx context.Context) error {
	delay := time.Duration(0)
	for {
		before := r.Status().Position
		err := r.session(ctx)
		r.update(func(s *Status) { s.Publishing = false })
		var diverged *DivergedError
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &diverged):
			r.stopped(diverged)
			return err
		case errors.Is(err, bus.ErrNoBase), errors.Is(err, nats.ErrConnectionClosed):
			return err
		}
		if r.Status().Position > before || delay == 0 {
			delay = 5 * time.Millisecond
		} else {
			delay = min(2*delay, 2*time.Second)
		}
		r.m.resyncs.Add(ctx, 1)
		r.log.Info("relay starts over from the stream's last sequence", "cause", err, "position", r.Status().Position, "in", delay)
		if !wait(ctx, delay/2+rand.N(delay)) {
			return nil
		}
	}
}

// stopped notes a divergence; the same one again is no news.
func (r *Relay) stopped(err *DivergedError) {
	known := r.Status().Diverged
	r.update(func(s *Status) { s.Diverged = err })
	if known == nil || known.Error() != err.Error() {
		r.log.Error("stream and log contradict each other: publishing stops until an operator acts; see `hodei doctor`", "error", err, "alert", true)
	}
}

// session makes sure of the stream, compares it with the log, and publishes
// until something is not as expected.
func (r *Relay) session(ctx context.Context) error {
	if err := bus.WaitConnected(ctx, r.cfg.NC); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer cancel(nil)
	parts.Go(func() { bus.CancelWhenLost(ctx, r.cfg.NC, cancel) })
	src, err := r.newSource()
	if err != nil {
		return err
	}
	defer src.close()
	stream, last, err := r.open(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	r.update(func(s *Status) { s.Position, s.Publishing, s.Diverged = stream.Head(), true, nil })

	trouble := make(chan error, 2)
	batches := make(chan []event.Event, 1) // the next batch is read while one is published
	parts.Go(func() { trouble <- src.run(ctx, stream.Head(), last, batches) })
	parts.Go(func() { trouble <- r.checkOften(ctx) })
	w, err := r.newWindow(stream)
	if err != nil {
		return err
	}
	defer w.close()
	return w.run(ctx, batches, trouble)
}

// open returns the stream, made if needed and equal to the log as far as looked,
// and the id of the event at its head.
func (r *Relay) open(ctx context.Context) (stream bus.Events, last string, err error) {
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	stream, err = bus.EnsureEvents(ask, r.cfg.JS, bus.EventsConfig{Replicas: r.cfg.Replicas, MaxAge: r.cfg.MaxAge, Base: r.cfg.Base})
	if err != nil {
		return bus.Events{}, "", err
	}
	if err := r.check(ctx, stream, 2); err != nil {
		return bus.Events{}, "", fmt.Errorf("compare stream and log: %w", err)
	}
	if last, err = r.idAt(ctx, stream.Head()); err != nil {
		return bus.Events{}, "", err
	}
	if r.cfg.Opened != nil {
		o := Opened{Created: stream.Created, Base: stream.Base, Head: stream.Head(), Before: r.Status().Position}
		if err := r.cfg.Opened(ctx, o); err != nil {
			return bus.Events{}, "", fmt.Errorf("tell of the stream: %w", err)
		}
	}
	return stream, last, nil
}

// idAt is the id of the log's event at a position; "" for position 0.
func (r *Relay) idAt(ctx context.Context, position int64) (string, error) {
	if position == 0 {
		return "", nil
	}
	events, err := r.cfg.Store.Read(ctx, store.ReadOptions{After: position - 1, Through: position, Limit: 1})
	if err != nil {
		return "", fmt.Errorf("read position %d: %w", position, err)
	}
	if len(events) == 0 {
		return "", &DivergedError{Position: position, Reason: "the log has nothing here"}
	}
	return events[0].ID, nil
}

// Status returns a copy; safe for concurrent use.
func (r *Relay) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}

func (r *Relay) update(fn func(*Status)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fn(&r.status)
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
