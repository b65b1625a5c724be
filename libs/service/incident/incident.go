// Package incident records in the event log what happened to a service's
// consumers: one ConsumerStalled and one ConsumerRecovered an incident, at most
// one pair a minute and consumer. It never holds a consumer up, and is no
// repair: that is the consumer's own.
package incident

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	domain "hodei.dev/libs/domain/consumer"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
)

const (
	// DefaultEvery is the least time between two pairs of one consumer.
	DefaultEvery = time.Minute
	// tries bounds how often one record meets another writer.
	tries = 5
	// lastWords is how long a service that stops may take to record what is left.
	lastWords = 2 * time.Second
)

// Log is the part of the event log that is needed. *store.Store is one.
type Log interface {
	aggregate.Loader
	store.Appender
}

// Record appends what decide makes of a consumer's state, and says whether that
// was anything. Whoever records the same at the same time is found by the version.
func Record(ctx context.Context, log Log, by, service, name string, decide func(domain.Consumer) []domain.Event) (bool, error) {
	for range tries {
		c, err := aggregate.LoadConsumer(ctx, log, service, name)
		if err != nil {
			return false, err
		}
		facts := decide(c)
		if len(facts) == 0 {
			return false, nil
		}
		meta := event.Meta{Source: by, CorrelationID: event.NewID(), Actor: "service/" + by}
		change, err := aggregate.ConsumerChange(c, meta, facts)
		if err != nil {
			return false, err
		}
		if _, err = log.Append(ctx, store.Append{Changes: []store.Change{change}}); err == nil {
			return true, nil
		}
		if !errors.Is(err, fault.Conflict) {
			return false, fmt.Errorf("record what happened to consumer %s: %w", name, err)
		}
	}
	return false, fault.New(fault.Unavailable, "consumer %s is recorded by too many at once", name)
}

// Reporter records the incidents of one service's consumers. Use [New]; it is
// safe for concurrent use.
type Reporter struct {
	log     Log
	service string
	every   time.Duration
	logger  *slog.Logger
	wake    chan struct{}

	mu      sync.Mutex // guards the following
	waiting map[string]domain.Incident
	last    map[string]time.Time // when a pair was recorded
}

// New returns a reporter; every is the least time between two pairs of one
// consumer, 0 = [DefaultEvery].
func New(log Log, service string, every time.Duration, logger *slog.Logger) *Reporter {
	if every == 0 {
		every = DefaultEvery
	}
	return &Reporter{
		log: log, service: service, every: every, logger: logger, wake: make(chan struct{}, 1),
		waiting: map[string]domain.Incident{}, last: map[string]time.Time{},
	}
}

// Report takes an incident; it returns at once. What comes too soon after the
// last one is told together with what follows.
func (r *Reporter) Report(i consumer.Incident) {
	r.mu.Lock()
	w, ok := r.waiting[i.Consumer]
	if !ok {
		w = domain.Incident{Reason: i.Reason, Since: i.Began, Position: i.Position}
	}
	w.Through, w.Ended = i.Through, i.Ended
	w.FromLog += i.FromLog
	w.Count++
	r.waiting[i.Consumer] = w
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run records until ctx ends, and then what is left.
func (r *Reporter) Run(ctx context.Context) error {
	for {
		next := r.record(ctx, false)
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
			defer cancel()
			r.record(last, true)
			return nil
		case <-timer.C:
		case <-r.wake:
			timer.Stop()
		}
	}
}

// record tells what is due, or all, and returns when to look again.
func (r *Reporter) record(ctx context.Context, all bool) (next time.Duration) {
	r.mu.Lock()
	names := make([]string, 0, len(r.waiting))
	for name := range r.waiting {
		names = append(names, name)
	}
	r.mu.Unlock()
	next = time.Hour
	for _, name := range names {
		if wait := r.due(name); wait > 0 && !all {
			next = min(next, wait)
			continue
		}
		if !r.tell(ctx, name) {
			next = min(next, time.Second)
		}
	}
	return next
}

func (r *Reporter) due(name string) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	last, ok := r.last[name]
	if !ok {
		return 0
	}
	return time.Until(last.Add(r.every))
}

// tell records one consumer's incident; false = try again.
func (r *Reporter) tell(ctx context.Context, name string) bool {
	r.mu.Lock()
	i := r.waiting[name]
	delete(r.waiting, name)
	r.mu.Unlock()
	_, err := Record(ctx, r.log, r.service, r.service, name, func(c domain.Consumer) []domain.Event { return c.Mend(i) })
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		r.last[name] = time.Now()
		return true
	}
	r.logger.Warn("cannot record an incident, trying again", "consumer", name, "error", err)
	if later, ok := r.waiting[name]; ok { // what came meanwhile joins it
		i.Through, i.Ended, i.FromLog, i.Count = later.Through, later.Ended, i.FromLog+later.FromLog, i.Count+later.Count
	}
	r.waiting[name] = i
	return false
}
