// Package projection keeps tables that answer queries: rows made from events,
// with the position that they stand at, changed in one transaction.
//
// It promises that each event's rows are written exactly once and in order; that
// an event which cannot be applied parks its own aggregate and nobody else's; and
// that the whole can be rebuilt from the log at any time. A second instance that
// writes at the same time is found by the position and stopped, not mixed in.
package projection

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/metric"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/event"
)

// defaultGather bounds the transactions of a projection to 20 a second. Whoever
// waits for a change watches the live events; tables are for lists.
const defaultGather = 50 * time.Millisecond

// DDL makes what the projections of a service need beside their own tables, in
// the service's schema, which must exist: the positions (also those of consumers
// without tables, see consumer.Positions) and the parked events. The first
// migration of each service contains it.
func DDL(schema string) string {
	parked := pgx.Identifier{schema, "parked"}.Sanitize()
	return consumer.PositionsDDL(schema) + `create table ` + parked + ` (
	projection text not null,
	stream_id text not null,
	position bigint not null,
	event json not null,
	error text not null,
	first_at timestamptz not null default now(),
	primary key (projection, position)
);
create index on ` + parked + ` (projection, stream_id, position);
comment on table ` + parked + ` is 'Events that wait behind one that could not be applied, and that one.';
`
}

// ReplacedError says that the stored position is not what this instance wrote:
// another one has taken over. It is a fault.Conflict, and ends Run.
type ReplacedError struct {
	Name             string
	Expected, Actual int64
}

// Error names the projection and both positions.
func (e *ReplacedError) Error() string {
	return fmt.Sprintf("projection %s stands at %d instead of %d: another instance has written", e.Name, e.Actual, e.Expected)
}

// Is reports whether target is fault.Conflict.
func (e *ReplacedError) Is(target error) bool { return target == fault.Conflict }

// Config says what to project, and how.
type Config struct {
	// Service owns the projection. Required.
	Service string
	// Schema holds the tables of [DDL]. Required.
	Schema string
	// Name of the projection and of its durable consumer. Default Service.
	Name string
	// Types are the short names of the events to apply; empty means all.
	Types []string
	// Apply writes the rows of events, in order, in tx, and never commits it. Its
	// errors are judged as those of consumer.Config.Handle. Required.
	Apply func(ctx context.Context, tx pgx.Tx, events []event.Event) error
	// Reset empties the projection's own tables in tx. Required.
	Reset func(ctx context.Context, tx pgx.Tx) error
	// Pool is the service's database, which holds the event log as well. Required.
	Pool *pgxpool.Pool
	// Store is the event log. Required.
	Store consumer.Log
	// NC and JS are one connection, and JetStream on it. Required.
	NC *nats.Conn
	JS jetstream.JetStream
	// Letters: see consumer.Config; with them replays and discards unpark. May be nil.
	Letters consumer.Letters
	// Replicas: see consumer.Config.
	Replicas int
	// Gather: see consumer.Config; by so much may queries be behind at most because
	// of it. Default 50 ms; negative = 0.
	Gather time.Duration
	// MaxBatch, Attempts, RetryDelay and ProbeInterval: see consumer.Config.
	MaxBatch, Attempts        int
	RetryDelay, ProbeInterval time.Duration
	// Incident and IncidentAfter: see consumer.Config.
	Incident      func(consumer.Incident)
	IncidentAfter time.Duration
	// Log and Meter: see consumer.Config.
	Log   *slog.Logger
	Meter metric.Meter
}

// Projection is one projection of one service. Use [New].
type Projection struct {
	cfg               Config
	positions, parked string // tables
	consumer          *consumer.Consumer
	requests          chan request // of Rebuild, to Run

	mu      sync.Mutex    // guards the following two
	running bool          // Run or Rebuild is at work
	ended   chan struct{} // closed when that ends

	// Only the goroutine that is at work uses these.
	expected  int64           // what the stored position is
	uncertain bool            // a commit got no answer
	attempted int64           // the position that it would have stored
	blocked   map[string]bool // streams with parked events
}

type request struct {
	ctx  context.Context
	done chan error
}

// New returns a projection that has not started. An error means that cfg is wrong.
func New(cfg Config) (*Projection, error) {
	if cfg.Schema == "" || cfg.Apply == nil || cfg.Reset == nil || cfg.Pool == nil {
		return nil, fault.New(fault.Invalid, "projection needs a schema, apply, reset and a pool")
	}
	if cfg.Name == "" {
		cfg.Name = cfg.Service
	}
	if cfg.Gather == 0 {
		cfg.Gather = defaultGather
	}
	p := &Projection{
		cfg: cfg, requests: make(chan request),
		positions: pgx.Identifier{cfg.Schema, "positions"}.Sanitize(), parked: pgx.Identifier{cfg.Schema, "parked"}.Sanitize(),
	}
	var err error
	p.consumer, err = consumer.New(consumer.Config{
		Service: cfg.Service, Name: cfg.Name, Types: cfg.Types, Store: cfg.Store, NC: cfg.NC, JS: cfg.JS, Replicas: cfg.Replicas,
		Start: p.load, Handle: p.handle, DeadLettered: p.park, Checkpoint: p.checkpoint,
		Letters: cfg.Letters, Settle: p.decide,
		Gather: max(cfg.Gather, 0), MaxBatch: cfg.MaxBatch, Attempts: cfg.Attempts, RetryDelay: cfg.RetryDelay, ProbeInterval: cfg.ProbeInterval,
		OnceOnly: true, Incident: cfg.Incident, IncidentAfter: cfg.IncidentAfter, Log: cfg.Log, Meter: cfg.Meter,
	})
	return p, err
}

// Run applies events until ctx ends; it then returns nil. Otherwise it returns a
// [*ReplacedError], or what consumer.Run returns. One Run at a time.
func (p *Projection) Run(ctx context.Context) error {
	done, ok := p.begin()
	if !ok {
		return fault.New(fault.Precondition, "projection %s is at work already", p.cfg.Name)
	}
	defer done()
	for {
		live, stop := context.WithCancel(ctx)
		result := make(chan error, 1)
		go func() { result <- p.consumer.Run(live) }()
		select {
		case err := <-result:
			stop()
			if _, skipped := errors.AsType[*consumer.SkippedError](err); !skipped {
				return err
			}
			if err := p.remake(ctx); err != nil {
				return err
			}
		case r := <-p.requests:
			stop()
			err := <-result
			if err != nil {
				r.done <- err
				return err
			}
			// A failed rebuild is its caller's to know; this goes on from where it got to.
			r.done <- p.rebuild(r.ctx)
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// Rebuild empties the projection and makes it anew from the log in Postgres, up
// to the log's head when it began. Where Run is at work in this instance, it pauses
// for that and goes on live afterwards. When ctx ends early, the projection is
// partial, knows its position, and the next Run completes it.
func (p *Projection) Rebuild(ctx context.Context) error {
	for {
		if done, ok := p.begin(); ok {
			defer done()
			return p.rebuild(ctx)
		}
		p.mu.Lock()
		ended := p.ended
		p.mu.Unlock()
		r := request{ctx: ctx, done: make(chan error, 1)}
		select {
		case p.requests <- r:
			return <-r.done
		case <-ended:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// remake rebuilds after the consumer has skipped events: rows were made without
// one that came before others, so only the log makes them right. It goes on until
// the rebuilding has begun, because nothing else remembers that it must be.
func (p *Projection) remake(ctx context.Context) error {
	for {
		err := p.rebuild(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil || !consumer.Transient(err) {
			return err
		}
		t := time.NewTimer(time.Second)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil
		}
	}
}

// begin marks the projection as being at work, unless it is.
func (p *Projection) begin() (done func(), ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running {
		return nil, false
	}
	p.running, p.ended = true, make(chan struct{})
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.running = false
		close(p.ended)
	}, true
}

func (p *Projection) rebuild(ctx context.Context) error {
	if _, err := p.load(ctx); err != nil {
		return err
	}
	err := p.inTx(ctx, 0, "", func(tx pgx.Tx) error {
		if err := p.cfg.Reset(ctx, tx); err != nil {
			return fmt.Errorf("reset: %w", err)
		}
		_, err := tx.Exec(ctx, `delete from `+p.parked+` where projection = $1`, p.cfg.Name)
		return err
	})
	if err != nil {
		return fmt.Errorf("empty projection %s: %w", p.cfg.Name, err)
	}
	clear(p.blocked)
	head, err := p.cfg.Store.Head(ctx)
	if err != nil {
		return err
	}
	if err := p.consumer.Replay(ctx, 0, head); err != nil {
		return fmt.Errorf("rebuild projection %s: %w", p.cfg.Name, err)
	}
	return p.checkpoint(ctx, head)
}

// Position is the stored position: how far the tables are, and no further.
func (p *Projection) Position(ctx context.Context) (int64, error) {
	return consumer.NewPositions(p.cfg.Schema).Load(ctx, p.cfg.Pool, p.cfg.Name)
}

// Status is that of the consumer.
func (p *Projection) Status() consumer.Status { return p.consumer.Status() }

// load reads where the projection stands and what is parked.
func (p *Projection) load(ctx context.Context) (int64, error) {
	_, err := p.cfg.Pool.Exec(ctx, `insert into `+p.positions+` (name, position) values ($1, 0) on conflict do nothing`, p.cfg.Name)
	if err != nil {
		return 0, fmt.Errorf("load projection %s: %w", p.cfg.Name, err)
	}
	if p.expected, err = p.Position(ctx); err != nil {
		return 0, err
	}
	rows, err := p.cfg.Pool.Query(ctx, `select distinct stream_id from `+p.parked+` where projection = $1`, p.cfg.Name)
	if err != nil {
		return 0, fmt.Errorf("load parked streams of %s: %w", p.cfg.Name, err)
	}
	streams, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return 0, fmt.Errorf("load parked streams of %s: %w", p.cfg.Name, err)
	}
	p.blocked = make(map[string]bool, len(streams))
	for _, s := range streams {
		p.blocked[s] = true
	}
	p.uncertain = false
	return p.expected, nil
}

// handle applies events and moves the position, together.
func (p *Projection) handle(ctx context.Context, events []event.Event) error {
	events, err := p.settle(ctx, events)
	if err != nil || len(events) == 0 {
		return err
	}
	free := events
	var waiting []event.Event
	if len(p.blocked) > 0 {
		free = make([]event.Event, 0, len(events))
		for _, e := range events {
			if p.blocked[e.Stream.String()] {
				waiting = append(waiting, e)
			} else {
				free = append(free, e)
			}
		}
	}
	last := events[len(events)-1]
	return p.inTx(ctx, last.Position, last.ID, func(tx pgx.Tx) error {
		for _, e := range waiting {
			if err := p.insertParked(ctx, tx, e, "behind an earlier event of "+e.Stream.String()); err != nil {
				return err
			}
		}
		if len(free) == 0 {
			return nil
		}
		return p.cfg.Apply(ctx, tx, free)
	})
}

// checkpoint moves the position over what had nothing for this projection.
func (p *Projection) checkpoint(ctx context.Context, position int64) error {
	if _, err := p.settle(ctx, nil); err != nil {
		return err
	}
	if position <= p.expected {
		return nil
	}
	return p.inTx(ctx, position, "", func(pgx.Tx) error { return nil })
}
