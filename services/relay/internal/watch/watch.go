// Package watch looks at every consumer of the log from outside: one that does
// not move while events wait for it has stalled, also where its service is dead
// and can say nothing itself. It records that and the recovery, once each, and
// likewise when many of a consumer's dead letters are open; it repairs nothing.
package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"

	"hodei.dev/libs/domain/catalogue"
	domain "hodei.dev/libs/domain/consumer"
	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/libs/service/incident"
	"hodei.dev/libs/service/letters"
)

// near is how far from the log's head a consumer has recovered.
const near = 500

// sample is how many waiting events are looked at for one that counts.
const sample = 100

// Place is where a consumer stands.
type Place struct {
	Service, Name string
	// Position up to which it has handled everything.
	Position int64
	// Waits is whether events wait, where that is known; nil = ask the log.
	Waits *bool
}

// Log is the part of the event log that is needed. *store.Store is one.
type Log interface {
	incident.Log
	consumer.Log
	letters.Counted
}

// Config says what to watch.
type Config struct {
	Log Log
	// Places says where every consumer stands.
	Places func(ctx context.Context) ([]Place, error)
	// After is how long a consumer may stand still while events wait. Default 30 s.
	After time.Duration
	// Every is the pause between two looks. Default 5 s.
	Every time.Duration
	// Letters is from how many open dead letters of a consumer on there is an alert.
	// Default: none.
	Letters int64
	// Now is the clock. Default time.Now.
	Now func() time.Time
	// Logger gets stalls and recoveries. Default slog.Default().
	Logger *slog.Logger
	// Meter makes the instruments hodei.consumer.stalled and
	// hodei.consumer.dead_letters_open; may be nil.
	Meter metric.Meter
}

// Watch watches. Use [New]; Look and Run are for one goroutine.
type Watch struct {
	cfg  Config
	seen map[string]sight // by consumer
	up   metric.Int64UpDownCounter

	tally   *letters.Tally
	alerted map[letters.Holder]bool // whose alert stands; nil = ask the log

	mu   sync.Mutex // guards open
	open map[letters.Holder]int
}

// sight is what is remembered of a consumer.
type sight struct {
	position int64
	since    time.Time // it stands there since, as far as was seen
	stalled  bool
}

// New returns a watch that has not looked yet.
func New(cfg Config) (*Watch, error) {
	if cfg.After <= 0 {
		cfg.After = 30 * time.Second
	}
	if cfg.Every <= 0 {
		cfg.Every = 5 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Letters <= 0 {
		cfg.Letters = math.MaxInt64
	}
	w := &Watch{cfg: cfg, seen: map[string]sight{}, tally: letters.NewTally(cfg.Log)}
	if cfg.Meter != nil {
		var err error
		w.up, err = cfg.Meter.Int64UpDownCounter("hodei.consumer.stalled", metric.WithDescription("Consumers that stand still while events wait; 0 without faults."))
		if err != nil {
			return nil, fmt.Errorf("make the watch's instruments: %w", err)
		}
		if err := w.observeLetters(cfg.Meter); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// Run looks until ctx ends. What cannot be asked now is asked the next time.
func (w *Watch) Run(ctx context.Context) error {
	w.beginLetters() // another replica may have watched meanwhile
	defer w.show(nil)
	tick := time.NewTicker(w.cfg.Every)
	defer tick.Stop()
	for {
		if err := w.Look(ctx); err != nil && ctx.Err() == nil {
			w.cfg.Logger.Warn("cannot look after the consumers", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Look looks once at everybody.
func (w *Watch) Look(ctx context.Context) error {
	return errors.Join(w.consumers(ctx), w.letters(ctx))
}

func (w *Watch) consumers(ctx context.Context) error {
	places, err := w.cfg.Places(ctx)
	if err != nil {
		return fmt.Errorf("find the consumers: %w", err)
	}
	head, err := w.cfg.Log.Head(ctx)
	if err != nil {
		return fmt.Errorf("read the log's head: %w", err)
	}
	for _, p := range places {
		if err := w.one(ctx, p, head); err != nil {
			return fmt.Errorf("look after consumer %s: %w", p.Name, err)
		}
	}
	return nil
}

func (w *Watch) one(ctx context.Context, p Place, head int64) error {
	now := w.cfg.Now()
	s, known := w.seen[p.Name]
	if !known {
		c, err := aggregate.LoadConsumer(ctx, w.cfg.Log, p.Service, p.Name)
		if err != nil {
			return err
		}
		s.stalled = c.State == domain.StateStalled
		if s.stalled {
			w.count(ctx, 1)
		}
	}
	moved := known && p.Position != s.position
	if !known || moved {
		s.position, s.since = p.Position, now
	}
	w.seen[p.Name] = s
	waits, err := w.waits(ctx, p, head)
	if err != nil {
		return err
	}
	switch {
	case !waits && !s.stalled:
		s.since = now // idle is not still
	case s.stalled && (!waits || moved && head-p.Position <= near):
		return w.recovered(ctx, p, s, now)
	case !s.stalled && waits && now.Sub(s.since) >= w.cfg.After:
		return w.stalled(ctx, p, s)
	}
	w.seen[p.Name] = s
	return nil
}

func (w *Watch) stalled(ctx context.Context, p Place, s sight) error {
	i := domain.Incident{Reason: "events wait and it does not move", Since: s.since, Position: p.Position}
	told, err := incident.Record(ctx, w.cfg.Log, catalogue.Relay, p.Service, p.Name, func(c domain.Consumer) []domain.Event { return c.Stall(i) })
	if err != nil {
		return err
	}
	if told {
		w.cfg.Logger.Error("a consumer has stalled: is its service alive?", "consumer", p.Name, "position", p.Position, "since", s.since, "alert", true)
	}
	s.stalled = true
	w.seen[p.Name] = s
	w.count(ctx, 1)
	return nil
}

func (w *Watch) recovered(ctx context.Context, p Place, s sight, now time.Time) error {
	i := domain.Incident{Through: p.Position, Count: 1, Ended: now}
	told, err := incident.Record(ctx, w.cfg.Log, catalogue.Relay, p.Service, p.Name, func(c domain.Consumer) []domain.Event { return c.Recover(i) })
	if err != nil {
		return err
	}
	if told {
		w.cfg.Logger.Info("a consumer has recovered", "consumer", p.Name, "position", p.Position)
	}
	s.stalled = false
	w.seen[p.Name] = s
	w.count(ctx, -1)
	return nil
}

func (w *Watch) count(ctx context.Context, n int64) {
	if w.up != nil {
		w.up.Add(ctx, n)
	}
}

// waits tells whether events wait that are more than what was recorded about
// consumers: those must not cause the next record.
func (w *Watch) waits(ctx context.Context, p Place, head int64) (bool, error) {
	if p.Waits != nil {
		return *p.Waits, nil
	}
	if p.Position >= head {
		return false, nil
	}
	events, err := w.cfg.Log.Read(ctx, store.ReadOptions{After: p.Position, Through: head, Types: typesOf(p.Service), Limit: sample})
	return slices.ContainsFunc(events, func(e event.Event) bool { return e.Stream.Type != catalogue.Consumer }), err
}

// typesOf are the types that a service's consumers may want; nil means all.
func typesOf(service string) []string {
	if service == catalogue.Audit {
		return nil
	}
	return catalogue.Consumed(service)
}

// ServiceOf is the service that a consumer belongs to by its name.
func ServiceOf(name string) string {
	for _, s := range []string{
		catalogue.Scheduler, catalogue.Dispatcher, catalogue.Registry, catalogue.Provisioner, catalogue.TimeoutMonitor, catalogue.Audit, catalogue.Gateway,
	} {
		if name == s || strings.HasPrefix(name, s+"-") {
			return s
		}
	}
	return name
}
