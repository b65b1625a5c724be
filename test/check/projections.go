package check

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/eventing/event"
)

// checkProjections compares what services have made of the log with the log: at rest each
// equals a fold from zero.
func checkProjections(ctx context.Context, db *pgx.Conn, f *fold, log []event.Event, atRest bool) error {
	if err := checkAudit(ctx, db, log, f.r, atRest); err != nil {
		return err
	}
	if err := checkJobs(ctx, db, f, atRest); err != nil {
		return err
	}
	if err := checkCounts(ctx, db, f); err != nil {
		return err
	}
	if err := checkWorkers(ctx, db, f, atRest); err != nil {
		return err
	}
	return checkDeadlines(ctx, db, f, atRest)
}

// checkStreams compares the current-state table with the fold.
func checkStreams(ctx context.Context, db *pgx.Conn, f *fold) error {
	rows, err := db.Query(ctx, `select stream_id::text, stream_type, version, coalesce(state, ''), terminal from hodei.streams`)
	if err != nil {
		return fmt.Errorf("read the streams: %w", err)
	}
	seen := map[string]bool{}
	var id, typ, state string
	var version int
	var terminal bool
	_, err = pgx.ForEachRow(rows, []any{&id, &typ, &version, &state, &terminal}, func() error {
		seen[id] = true
		if got := f.versions[id]; got != version {
			f.r.add("streams: %s/%s has version %d, its events say %d", typ, id, version, got)
		}
		switch typ {
		case catalogue.Job:
			if j := f.jobs[id]; string(j.State) != state || j.State.Terminal() != terminal {
				f.r.add("streams: job/%s is %s (terminal %v), its events say %s", id, state, terminal, j.State)
			}
		case catalogue.Worker:
			if w := f.workers[id]; string(w.State) != state || w.State.Terminal() != terminal {
				f.r.add("streams: worker/%s is %s (terminal %v), its events say %s", id, state, terminal, w.State)
			}
		case catalogue.Circuit:
			if c := f.circuits[id]; string(c.State) != state || c.State.Settled() != terminal {
				f.r.add("streams: circuit/%s is %s (terminal %v), its events say %s", id, state, terminal, c.State)
			}
		}
		return nil
	})
	for id := range f.versions {
		if !seen[id] {
			f.r.add("streams: no row of stream %s", id)
		}
	}
	return err
}

// checkAudit compares the audit log with the event log, row by row.
func checkAudit(ctx context.Context, db *pgx.Conn, log []event.Event, r *Report, atRest bool) error {
	rows, err := db.Query(ctx, `select position, event_id::text, correlation_id from audit.log order by position`)
	if err != nil {
		return fmt.Errorf("read the audit log: %w", err)
	}
	i := 0
	var position int64
	var id, correlation string
	_, err = pgx.ForEachRow(rows, []any{&position, &id, &correlation}, func() error {
		if i >= len(log) || log[i].Position != position || log[i].ID != id || log[i].CorrelationID != correlation {
			r.add("audit: row %d is position %d event %s, which the log does not have there", i+1, position, id)
		}
		i++
		return nil
	})
	if err == nil && atRest && i < len(log) {
		r.add("audit: has %d events of %d", i, len(log))
	}
	return err
}

// checkJobs compares the scheduler's projection with the fold.
func checkJobs(ctx context.Context, db *pgx.Conn, f *fold, atRest bool) error {
	rows, err := db.Query(ctx, `select id::text, state, attempt, version, worker_id, reason from scheduler.jobs`)
	if err != nil {
		return fmt.Errorf("read the projection of jobs: %w", err)
	}
	n := 0
	var id, state, workerID, reason string
	var attempt, version int
	_, err = pgx.ForEachRow(rows, []any{&id, &state, &attempt, &version, &workerID, &reason}, func() error {
		n++
		j, ok := f.jobs[id]
		if !ok || atRest && (string(j.State) != state || j.Attempt != attempt || f.projected[id] != version || j.WorkerID != workerID || j.Reason != reason) {
			f.r.add("scheduler.jobs: %s is %s v%d, attempt %d on worker %q (%s); its events say %s v%d, attempt %d on %q (%s)",
				id, state, version, attempt, workerID, reason, j.State, f.projected[id], j.Attempt, j.WorkerID, j.Reason)
		}
		return nil
	})
	if err == nil && atRest && n != len(f.jobs) {
		f.r.add("scheduler.jobs: has %d jobs of %d", n, len(f.jobs))
	}
	return err
}

// checkCounts compares the scheduler's counters with its jobs.
func checkCounts(ctx context.Context, db *pgx.Conn, f *fold) error {
	rows, err := db.Query(ctx, `select coalesce(c.namespace, j.namespace) || ' ' || coalesce(c.state, j.state) || ': counted ' || coalesce(c.jobs, 0) || ', there are ' || coalesce(j.jobs, 0)
		from scheduler.counts c full join (select namespace, state, count(*) jobs from scheduler.jobs group by 1, 2) j
		on j.namespace = c.namespace and j.state = c.state where coalesce(c.jobs, 0) <> coalesce(j.jobs, 0)`)
	if err != nil {
		return fmt.Errorf("read the counts of jobs: %w", err)
	}
	wrong, err := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, w := range wrong {
		f.r.add("scheduler.counts: %s", w)
	}
	return err
}

// checkWorkers compares the registry's projection with the fold.
func checkWorkers(ctx context.Context, db *pgx.Conn, f *fold, atRest bool) error {
	rows, err := db.Query(ctx, `select worker_id::text, state, version from registry.workers`)
	if err != nil {
		return fmt.Errorf("read the projection of workers: %w", err)
	}
	n := 0
	var id, state string
	var version int
	_, err = pgx.ForEachRow(rows, []any{&id, &state, &version}, func() error {
		n++
		if w, ok := f.workers[id]; !ok || atRest && (string(w.State) != state || f.projected[id] != version) {
			f.r.add("registry.workers: %s is %s v%d, its events say %s v%d", id, state, version, w.State, f.projected[id])
		}
		return nil
	})
	if err == nil && atRest && n != len(f.workers) {
		f.r.add("registry.workers: has %d workers of %d", n, len(f.workers))
	}
	return err
}

// checkDeadlines compares the timeout-monitor's projection with the fold: everything that is not
// at its end is watched, in the state that it is in, and nothing else is.
func checkDeadlines(ctx context.Context, db *pgx.Conn, f *fold, atRest bool) error {
	if !atRest {
		return nil
	}
	rows, err := db.Query(ctx, `select stream_id::text, state from timeout_monitor.deadlines`)
	if err != nil {
		return fmt.Errorf("read the deadlines: %w", err)
	}
	watched := map[string]string{}
	var id, state string
	if _, err := pgx.ForEachRow(rows, []any{&id, &state}, func() error { watched[id] = state; return nil }); err != nil {
		return err
	}
	live := map[string]string{}
	for id, j := range f.jobs {
		if !j.State.Terminal() {
			live[id] = string(j.State)
		}
	}
	for id, w := range f.workers {
		if !w.State.Terminal() {
			live[id] = string(w.State)
		}
	}
	for id, state := range live {
		if watched[id] != state {
			f.r.add("timeout_monitor.deadlines: %s is %s and is watched as %q", id, state, watched[id])
		}
	}
	for id, state := range watched {
		if _, ok := live[id]; !ok {
			f.r.add("timeout_monitor.deadlines: %s is watched as %s and is at its end", id, state)
		}
	}
	return nil
}
