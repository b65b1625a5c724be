package postgres

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/services/scheduler/internal/app"
)

// Apply folds a batch of events, in the order of the log, into the read model. It
// is what the projection runs in the transaction that also moves its position.
// Events that are in the read model already change nothing. One that cannot be
// folded is an error that consumer.Permanent has marked.
func Apply(ctx context.Context, tx pgx.Tx, events []event.Event) error {
	b := batch{jobs: map[string]*app.View{}, before: map[string]job.State{}}
	if err := b.load(ctx, tx, events); err != nil {
		return err
	}
	for _, e := range events {
		if err := b.fold(e); err != nil {
			return consumer.Permanent(err) // trying again changes nothing
		}
	}
	return b.save(ctx, tx)
}

// batch is what a batch of events touches. A job that changes several times in
// it is written once.
type batch struct {
	jobs map[string]*app.View
	// before is the state that a job had when the batch began; absent for a new one.
	before map[string]job.State
	// changed lists the jobs to write, in the order of their first event.
	changed []string
	// providers are the events of providers.
	providers []event.Event
}

// load reads the jobs that the batch does not begin.
func (b *batch) load(ctx context.Context, tx pgx.Tx, events []event.Event) error {
	var ids []string
	seen := map[string]bool{}
	for _, e := range events {
		if e.Stream.Type == catalogue.Job && !seen[e.Stream.ID] {
			seen[e.Stream.ID] = true
			ids = append(ids, e.Stream.ID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	result, err := tx.Query(ctx, `SELECT `+columns+` FROM scheduler.jobs WHERE id = ANY($1)`, ids)
	if err != nil {
		return fmt.Errorf("read the jobs of a batch: %w", err)
	}
	views, err := pgx.CollectRows(result, scan)
	if err != nil {
		return fmt.Errorf("read the jobs of a batch: %w", err)
	}
	for _, v := range views {
		b.jobs[v.ID], b.before[v.ID] = &v, v.State
	}
	return nil
}

func (b *batch) fold(e event.Event) error {
	switch e.Stream.Type {
	case catalogue.Provider:
		b.providers = append(b.providers, e)
		return nil
	case catalogue.Job:
	default:
		return nil // a notice that also occurs on other aggregates
	}
	v, there := b.jobs[e.Stream.ID]
	if !there {
		if e.StreamVersion != 1 {
			return fault.New(fault.Invalid, "event %s (position %d) is version %d of job %s, which the read model does not have",
				e.Type, e.Position, e.StreamVersion, e.Stream.ID).WithCode("PROJECTION_GAP", "rebuild the projection from the log")
		}
		v = &app.View{}
		b.jobs[e.Stream.ID] = v
	}
	if e.StreamVersion <= v.Version {
		return nil
	}
	next, err := v.Evolve(e)
	if err != nil {
		return err
	}
	*v = next
	if n := len(b.changed); n == 0 || b.changed[n-1] != e.Stream.ID {
		b.changed = append(b.changed, e.Stream.ID)
	}
	return nil
}

func (b *batch) save(ctx context.Context, tx pgx.Tx) error {
	slices.Sort(b.changed)
	b.changed = slices.Compact(b.changed)
	var r rows
	counts := map[count]int64{}
	for _, id := range b.changed {
		v := b.jobs[id]
		if err := r.add(*v); err != nil {
			return fmt.Errorf("encode job %s: %w", id, err)
		}
		before, existed := b.before[id]
		if existed && before == v.State {
			continue
		}
		counts[count{v.Spec.Namespace, string(v.State)}]++
		if existed {
			counts[count{v.Spec.Namespace, string(before)}]--
		}
	}
	if len(b.changed) > 0 {
		if _, err := tx.Exec(ctx, upsertSQL, r.args()...); err != nil {
			return fmt.Errorf("write %d jobs: %w", len(b.changed), err)
		}
	}
	if err := addCounts(ctx, tx, counts); err != nil {
		return err
	}
	return saveProviders(ctx, tx, b.providers)
}

// count is a counter's name.
type count struct{ namespace, state string }

func addCounts(ctx context.Context, tx pgx.Tx, counts map[count]int64) error {
	var namespaces, states []string
	var deltas []int64
	for c, n := range counts {
		if n != 0 {
			namespaces, states, deltas = append(namespaces, c.namespace), append(states, c.state), append(deltas, n)
		}
	}
	if len(deltas) == 0 {
		return nil
	}
	_, err := tx.Exec(ctx, `INSERT INTO scheduler.counts AS c (namespace, state, jobs)
		SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[])
		ON CONFLICT (namespace, state) DO UPDATE SET jobs = c.jobs + excluded.jobs`, namespaces, states, deltas)
	if err != nil {
		return fmt.Errorf("count jobs: %w", err)
	}
	return nil
}

func saveProviders(ctx context.Context, tx pgx.Tx, events []event.Event) error {
	for _, e := range events {
		name, enabled, ok, err := providerFact(e)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		// A removal does not repeat the name.
		_, err = tx.Exec(ctx, `INSERT INTO scheduler.providers AS p (id, name, enabled, position) VALUES ($1, $2, $3, $4)
			ON CONFLICT (id) DO UPDATE SET name = coalesce(nullif(excluded.name, ''), p.name), enabled = excluded.enabled, position = excluded.position
			WHERE p.position < excluded.position`, e.Stream.ID, name, enabled, e.Position)
		if err != nil {
			return fmt.Errorf("write provider %s: %w", e.Stream.ID, err)
		}
	}
	return nil
}

// providerFact is what an event says about whether jobs may name the provider.
func providerFact(e event.Event) (name string, enabled, ok bool, err error) {
	fact, err := aggregate.Decode(e)
	if err != nil {
		return "", false, false, err
	}
	switch f := fact.(type) {
	case provider.Registered:
		return f.Spec.Name, true, true, nil
	case provider.Removed:
		return "", false, true, nil
	default:
		return "", false, false, nil
	}
}

// Reset empties the read model, for a rebuild.
func Reset(ctx context.Context, tx pgx.Tx) error {
	if _, err := tx.Exec(ctx, `TRUNCATE scheduler.jobs, scheduler.counts, scheduler.providers`); err != nil {
		return fmt.Errorf("empty the read model: %w", err)
	}
	return nil
}
