// Package check is the one checker of the system's invariants. It believes
// nobody: it reads the event log, the events stream and the projections as they
// are stored, folds the log from zero by itself, and says what does not hold.
// Integration, e2e and chaos tests end with it.
package check

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
)

// Config says what to check.
type Config struct {
	// PostgresURL is the database of the system. Required.
	PostgresURL string
	// NATS is a connection to its server; nil leaves the stream unchecked.
	NATS *nats.Conn
	// AtRest asserts in addition what holds only when nothing is under way: every
	// job is terminal, no worker is left but READY ones, projections have caught up.
	AtRest bool
}

// Report is what was found.
type Report struct {
	Events, Jobs, Workers int
	// JobStates counts jobs by their last state.
	JobStates map[job.State]int
	// WorkerStates are the last states of all workers, by id.
	WorkerStates map[string]worker.State
	// Lost jobs were accepted and are not terminal, at rest; Doubled were terminal
	// more than once; Leaked are workers that are left.
	Lost, Doubled, Leaked []string
	// Violations are all that does not hold, in words; empty means all is well.
	Violations []string
}

// maxViolations bounds the report: the first ones tell the story.
const maxViolations = 50

func (r *Report) add(format string, args ...any) {
	if len(r.Violations) < maxViolations {
		r.Violations = append(r.Violations, fmt.Sprintf(format, args...))
	}
}

// Assert fails the test with everything that does not hold.
func Assert(tb testing.TB, cfg Config) Report {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	r, err := Run(ctx, cfg)
	if err != nil {
		tb.Fatalf("check: %v", err)
	}
	for _, v := range r.Violations {
		tb.Errorf("invariant: %s", v)
	}
	return r
}

// Log checks what holds of an event log by itself, wherever it comes from: the
// simulation has its own in memory. events are all there are, in order of position;
// atRest is Config.AtRest.
func Log(events []event.Event, atRest bool) Report {
	var r Report
	foldLog(&r, events, atRest)
	return r
}

func foldLog(r *Report, log []event.Event, atRest bool) *fold {
	r.Events, r.JobStates, r.WorkerStates = len(log), map[job.State]int{}, map[string]worker.State{}
	f := newFold(r)
	for i, e := range log {
		f.position(i, e)
		f.envelope(e)
		f.apply(e)
	}
	f.pairs(log)
	f.ends(atRest)
	return f
}

// Run checks everything once. An error means that it could not look.
func Run(ctx context.Context, cfg Config) (Report, error) {
	var r Report
	db, err := pgx.Connect(ctx, cfg.PostgresURL)
	if err != nil {
		return r, fmt.Errorf("connect to the event log: %w", err)
	}
	defer db.Close(ctx)

	log, err := readLog(ctx, db)
	if err != nil {
		return r, err
	}
	f := foldLog(&r, log, cfg.AtRest)
	if err := checkStreams(ctx, db, f); err != nil {
		return r, err
	}
	if err := checkAudit(ctx, db, log, &r, cfg.AtRest); err != nil {
		return r, err
	}
	if err := checkJobs(ctx, db, f, cfg.AtRest); err != nil {
		return r, err
	}
	if cfg.NATS != nil {
		if err := checkStream(ctx, cfg.NATS, log, &r, cfg.AtRest); err != nil {
			return r, err
		}
	}
	return r, nil
}

func readLog(ctx context.Context, db *pgx.Conn) ([]event.Event, error) {
	rows, err := db.Query(ctx, `select position, event_id::text, stream_type, stream_id::text, version, type, schema_version, namespace,
		correlation_id, coalesce(causation_id, ''), actor, source, occurred_at, data::text from hodei.events order by position`)
	if err != nil {
		return nil, fmt.Errorf("read the event log: %w", err)
	}
	log, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (event.Event, error) {
		var e event.Event
		var data string
		err := row.Scan(&e.Position, &e.ID, &e.Stream.Type, &e.Stream.ID, &e.StreamVersion, &e.Type, &e.Version, &e.Namespace,
			&e.CorrelationID, &e.CausationID, &e.Actor, &e.Source, &e.Time, &data)
		e.Data = []byte(data)
		return e, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the event log: %w", err)
	}
	return log, nil
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
	rows, err := db.Query(ctx, `select id::text, state from scheduler.jobs`)
	if err != nil {
		return fmt.Errorf("read the projection of jobs: %w", err)
	}
	n := 0
	var id, state string
	_, err = pgx.ForEachRow(rows, []any{&id, &state}, func() error {
		n++
		if j, ok := f.jobs[id]; !ok || atRest && string(j.State) != state {
			f.r.add("scheduler.jobs: %s is %s, its events say %s", id, state, j.State)
		}
		return nil
	})
	if err == nil && atRest && n != len(f.jobs) {
		f.r.add("scheduler.jobs: has %d jobs of %d", n, len(f.jobs))
	}
	return err
}

// checkStream compares the events stream with the log: position = base + sequence.
func checkStream(ctx context.Context, nc *nats.Conn, log []event.Event, r *Report, atRest bool) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("open JetStream: %w", err)
	}
	s, err := js.Stream(ctx, "HODEI_EVENTS")
	if err != nil {
		return fmt.Errorf("look up the events stream: %w", err)
	}
	info := s.CachedInfo()
	var base int64
	if _, err := fmt.Sscan(info.Config.Metadata["base"], &base); err != nil {
		return fmt.Errorf("the base of the events stream: %w", err)
	}
	if info.State.NumDeleted > 0 {
		r.add("stream: %d messages are missing inside", info.State.NumDeleted)
	}
	if atRest && base+int64(info.State.LastSeq) != int64(len(log)) {
		r.add("stream: ends at position %d, the log at %d", base+int64(info.State.LastSeq), len(log))
	}
	cons, err := js.OrderedConsumer(ctx, "HODEI_EVENTS", jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverAllPolicy})
	if err != nil {
		return fmt.Errorf("read the events stream: %w", err)
	}
	for n := uint64(0); n < info.State.Msgs; n++ {
		msg, err := cons.Next(jetstream.FetchMaxWait(10 * time.Second))
		if err != nil {
			return fmt.Errorf("read the events stream after %d of %d messages: %w", n, info.State.Msgs, err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			return fmt.Errorf("read the events stream: %w", err)
		}
		p := base + int64(meta.Sequence.Stream)
		if p < 1 || p > int64(len(log)) {
			r.add("stream: position %d is not in the log", p)
			continue
		}
		if e := log[p-1]; msg.Headers().Get("ce-id") != e.ID {
			r.add("stream: position %d is event %s, in the log %s", p, msg.Headers().Get("ce-id"), e.ID)
		} else if !slices.Equal(msg.Data(), e.Data) {
			r.add("stream: position %d has other bytes than the log", p)
		}
	}
	return nil
}

// liveJob tells whether a job holds its worker.
func liveJob(j job.Job) bool { return j.State.HasWorker() }

// holds tells whether a worker in this state may hold a live job: BUSY, or on its way out with it.
func holds(s worker.State) bool {
	return s == worker.StateBusy || s == worker.StateDraining || s == worker.StateTerminating
}
