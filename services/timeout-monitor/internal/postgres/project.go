package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/services/timeout-monitor/core"
	"hodei.dev/services/timeout-monitor/internal/app"
)

// Apply folds a batch of events, in the order of the log, into the deadlines, and
// returns what has changed. It is what the projection runs in the transaction that
// also moves its position.
func Apply(ctx context.Context, tx pgx.Tx, rules core.Rules, events []event.Event) ([]app.Row, error) {
	b := newBatch(rules)
	if err := b.load(ctx, tx, events); err != nil {
		return nil, err
	}
	for _, e := range events {
		if err := b.fold(e); err != nil {
			return nil, consumer.Permanent(err)
		}
	}
	if err := b.affected(ctx, tx); err != nil {
		return nil, err
	}
	return b.save(ctx, tx)
}

// Reset empties the deadlines.
func Reset(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `TRUNCATE timeout_monitor.deadlines, timeout_monitor.providers`)
	return err
}

// batch is what a batch of events touches. What changes several times in it is
// written once.
type batch struct {
	rules   core.Rules
	watched map[string]*watched
	// providers are the settings in force, settings those that the batch changes.
	providers, settings map[string]*core.Provider
}

type watched struct {
	app.Row
	// seen is the version of the last event of the batch.
	seen int
}

func newBatch(rules core.Rules) *batch {
	return &batch{rules: rules, watched: map[string]*watched{}, providers: map[string]*core.Provider{}, settings: map[string]*core.Provider{}}
}

// load reads what the batch goes on from.
func (b *batch) load(ctx context.Context, tx pgx.Tx, events []event.Event) error {
	ids := map[string]bool{}
	for _, e := range events {
		if t := core.Type(e.Stream.Type); t == core.Job || t == core.Worker {
			ids[e.Stream.ID] = true
		}
	}
	if len(ids) == 0 {
		return nil
	}
	rows, err := tx.Query(ctx, `SELECT stream_type, stream_id::text, watch FROM timeout_monitor.deadlines WHERE stream_id = ANY($1::uuid[])`,
		slices.Collect(maps.Keys(ids)))
	if err != nil {
		return fmt.Errorf("read the deadlines of a batch: %w", err)
	}
	if err := b.collect(rows); err != nil {
		return fmt.Errorf("read the deadlines of a batch: %w", err)
	}
	return b.loadProviders(ctx, tx)
}

func (b *batch) loadProviders(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, `SELECT provider_id, idle_timeout, scheduled_timeout, min_idle FROM timeout_monitor.providers`)
	if err != nil {
		return fmt.Errorf("read the providers' settings: %w", err)
	}
	var id string
	var p core.Provider
	_, err = pgx.ForEachRow(rows, []any{&id, &p.IdleTimeout, &p.ScheduledTimeout, &p.MinIdle}, func() error {
		settings := p
		b.providers[id] = &settings
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the providers' settings: %w", err)
	}
	return nil
}

func (b *batch) collect(rows pgx.Rows) error {
	var t, id string
	var body []byte
	_, err := pgx.ForEachRow(rows, []any{&t, &id, &body}, func() error {
		if b.watched[id] != nil {
			return nil
		}
		w := &watched{Row: app.Row{Type: core.Type(t), ID: id}}
		b.watched[id] = w
		return json.Unmarshal(body, &w.Watch)
	})
	return err
}

func (b *batch) fold(e event.Event) error {
	fact, err := aggregate.Decode(e)
	if err != nil {
		return err
	}
	switch e.Stream.Type {
	case catalogue.Provider:
		b.setting(e.Stream.ID, fact)
	case catalogue.Job, catalogue.Worker:
		w := b.watched[e.Stream.ID]
		if w == nil {
			w = &watched{Row: app.Row{Type: core.Type(e.Stream.Type), ID: e.Stream.ID}}
			b.watched[e.Stream.ID] = w
		}
		w.seen = e.StreamVersion
		w.Watch = w.Watch.Observe(fact, core.At{Version: e.StreamVersion, Time: e.Time, ID: e.ID})
	}
	return nil
}

func (b *batch) setting(id string, fact any) {
	var p core.Provider
	switch f := fact.(type) {
	case provider.Registered:
		p = core.ProviderOf(f.Spec)
	case provider.Updated:
		p = core.ProviderOf(f.Spec)
	default:
		// A removed provider's workers are told to go; until then its settings hold.
		return
	}
	b.providers[id], b.settings[id] = &p, &p
}

// affected reads the rest of what is under the deadlines of changed providers.
func (b *batch) affected(ctx context.Context, tx pgx.Tx) error {
	if len(b.settings) == 0 {
		return nil
	}
	rows, err := tx.Query(ctx, `SELECT stream_type, stream_id::text, watch FROM timeout_monitor.deadlines
		WHERE provider_id = ANY($1) AND state IN ('READY', 'SCHEDULED')`, slices.Collect(maps.Keys(b.settings)))
	if err != nil {
		return fmt.Errorf("read the deadlines of changed providers: %w", err)
	}
	if err := b.collect(rows); err != nil {
		return fmt.Errorf("read the deadlines of changed providers: %w", err)
	}
	return nil
}

// save writes the rows and removes those whose life is over.
func (b *batch) save(ctx context.Context, tx pgx.Tx) ([]app.Row, error) {
	var out []app.Row
	var over []string
	var c columns
	// In one order always: a correction beside it locks rows as well.
	for _, id := range slices.Sorted(maps.Keys(b.watched)) {
		w := b.watched[id]
		if w.Watch.Over(w.Type) {
			if w.seen >= w.Watch.Version {
				over = append(over, id)
			}
			out = append(out, w.Row)
			continue
		}
		w.Deadline, w.Armed = b.rules.Deadline(w.Type, w.Watch, b.providers[w.Watch.ProviderID])
		if err := c.add(w.Row); err != nil {
			return nil, err
		}
		out = append(out, w.Row)
	}
	var work pgx.Batch
	if len(c.id) > 0 {
		work.Queue(upsert, c.id, c.kindOf, c.version, c.state, c.attempt, c.provider, c.kind, c.threshold, c.due, c.cause, c.watch)
	}
	if len(over) > 0 {
		work.Queue(`DELETE FROM timeout_monitor.deadlines WHERE stream_id = ANY($1::uuid[])`, over)
	}
	for _, id := range slices.Sorted(maps.Keys(b.settings)) {
		p := b.settings[id]
		work.Queue(`INSERT INTO timeout_monitor.providers (provider_id, idle_timeout, scheduled_timeout, min_idle) VALUES ($1, $2, $3, $4)
			ON CONFLICT (provider_id) DO UPDATE SET idle_timeout = excluded.idle_timeout, scheduled_timeout = excluded.scheduled_timeout,
			min_idle = excluded.min_idle`, id, p.IdleTimeout, p.ScheduledTimeout, p.MinIdle)
	}
	if work.Len() == 0 {
		return out, nil
	}
	if err := tx.SendBatch(ctx, &work).Close(); err != nil {
		return nil, fmt.Errorf("store deadlines: %w", err)
	}
	return out, nil
}

const upsert = `INSERT INTO timeout_monitor.deadlines AS d
	(stream_id, stream_type, version, state, attempt, provider_id, kind, threshold, due_at, cause, watch)
	SELECT * FROM unnest($1::uuid[], $2::text[], $3::integer[], $4::text[], $5::integer[], $6::text[], $7::text[], $8::interval[],
		$9::timestamptz[], $10::text[], $11::json[])
	ON CONFLICT (stream_id) DO UPDATE SET version = excluded.version, state = excluded.state, attempt = excluded.attempt,
		provider_id = excluded.provider_id, kind = excluded.kind, threshold = excluded.threshold, due_at = excluded.due_at,
		cause = excluded.cause, holds = 0, watch = excluded.watch
	WHERE d.version <= excluded.version`

// columns are rows, turned.
type columns struct {
	id, kindOf, state, provider, kind, cause []string
	watch                                    []json.RawMessage
	version, attempt                         []int32
	threshold                                []*time.Duration
	due                                      []*time.Time
}

func (c *columns) add(r app.Row) error {
	watch, err := json.Marshal(r.Watch)
	if err != nil {
		return fmt.Errorf("encode the watch of %s %s: %w", r.Type, r.ID, err)
	}
	kind, threshold, due := armed(r)
	c.id, c.kindOf, c.state = append(c.id, r.ID), append(c.kindOf, string(r.Type)), append(c.state, r.Watch.State)
	c.provider, c.kind, c.cause = append(c.provider, r.Watch.ProviderID), append(c.kind, kind), append(c.cause, r.Deadline.Cause)
	c.watch = append(c.watch, watch)
	c.version, c.attempt = append(c.version, int32(r.Watch.Version)), append(c.attempt, int32(r.Watch.Attempt))
	c.threshold, c.due = append(c.threshold, threshold), append(c.due, due)
	return nil
}
