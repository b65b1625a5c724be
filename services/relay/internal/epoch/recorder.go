// Package epoch keeps the record of the events stream's lives: which stream the
// relay publishes to, what it had to publish again, and that an operator had a
// stream made anew. It publishes nothing itself.
package epoch

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/eventlog"
	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/relay"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
)

// At most burst records are made in one interval: what happens sooner is told with
// the next one, so that a NATS that breaks all the time fills no log.
const (
	burst    = 3
	interval = time.Minute
)

// Log is the part of the event log that is read and appended to.
type Log interface {
	aggregate.Loader
	store.Appender
	Head(ctx context.Context) (int64, error)
}

// Recorder appends what becomes of the events stream. Opened only notes it, so
// that publishing never waits for it; Run appends.
type Recorder struct {
	log    Log
	pool   *pgxpool.Pool
	logger *slog.Logger
	wake   chan struct{} // holds one token after pending has grown

	mu      sync.Mutex // guards the following two
	pending eventlog.Incident
	known   time.Time // the stream that is recorded, or about to be
}

// NewRecorder returns a recorder.
func NewRecorder(log Log, pool *pgxpool.Pool, logger *slog.Logger) *Recorder {
	return &Recorder{log: log, pool: pool, logger: logger, wake: make(chan struct{}, 1)}
}

// Opened notes what is new about a stream that publishing is about to go on with.
func (r *Recorder) Opened(ctx context.Context, o relay.Opened) error {
	r.mu.Lock()
	same := r.known.Equal(o.Created)
	r.mu.Unlock()
	if same && o.Before <= o.Head {
		return nil
	}
	log, _, err := aggregate.LoadLog(ctx, r.log)
	if err != nil {
		return err
	}
	s := eventlog.Stream{Created: o.Created, Base: o.Base, Head: o.Head, Before: o.Before}
	if s.LogHead, err = r.log.Head(ctx); err != nil {
		return err
	}
	stored, err := consumer.AllStored(ctx, r.pool)
	if err != nil {
		return err
	}
	for _, p := range stored {
		s.Handled = max(s.Handled, p.Position)
	}
	incident, news := log.Notice(s)
	r.mu.Lock()
	r.known = o.Created
	if news {
		r.pending = r.pending.Merge(incident)
	}
	r.mu.Unlock()
	if news {
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
	return nil
}

// Run appends until ctx ends.
func (r *Recorder) Run(ctx context.Context) error {
	var made [burst]time.Time // the last records, the oldest at made[n%burst]
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		}
		if !pause(ctx, interval-time.Since(made[n%burst])) {
			return nil
		}
		if !r.record(ctx) {
			return nil
		}
		made[n%burst] = time.Now()
	}
}

// record appends what is pending, again until it stands; false where ctx ends first.
func (r *Recorder) record(ctx context.Context) bool {
	r.mu.Lock()
	incident := r.pending
	r.pending = eventlog.Incident{}
	r.mu.Unlock()
	for delay := 50 * time.Millisecond; ; delay = min(2*delay, 5*time.Second) {
		err := r.append(ctx, incident)
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		r.logger.WarnContext(ctx, "cannot record what became of the events stream, trying again", "error", err, "in", delay)
		if !pause(ctx, delay/2+rand.N(delay)) {
			return false
		}
	}
}

// append records one incident. A conflict is tried again from the start.
func (r *Recorder) append(ctx context.Context, i eventlog.Incident) error {
	log, request, err := aggregate.LoadLog(ctx, r.log)
	if err != nil {
		return err
	}
	facts := log.Record(i)
	if len(facts) == 0 {
		return nil
	}
	meta := event.Meta{Source: catalogue.Relay, Actor: "service/" + catalogue.Relay, CorrelationID: event.NewID()}
	if request.ID != "" {
		meta = request.CausedBy(catalogue.Relay)
	}
	change, err := aggregate.LogChange(log, meta, facts)
	if err != nil {
		return err
	}
	if _, err := r.log.Append(ctx, store.Append{Changes: []store.Change{change}}); err != nil {
		return fmt.Errorf("record the events stream: %w", err)
	}
	for _, fact := range facts {
		if e, ok := fact.(eventlog.Republished); ok {
			r.logger.WarnContext(ctx, "the events stream has lost messages: they are published again from the log",
				"cause", e.Cause, "first", e.First, "through", e.Through, "alert", true)
		}
	}
	return nil
}

// pause returns false where ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
