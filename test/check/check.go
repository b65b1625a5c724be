// Package check is the one checker of the system's invariants. It believes
// nobody: it reads the event log, the events stream and the projections as they
// are stored, folds the log from zero by itself, and says what does not hold.
// Integration, e2e and chaos tests end with it.
package check

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

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
	// Holes: messages were deleted from inside the stream on purpose, so that consumers
	// had to read them from the log.
	Holes bool
	// AtRest asserts in addition what holds only when nothing is under way: every
	// job is terminal, no worker is left but READY ones, projections have caught up.
	AtRest bool
}

// Report is what was found.
type Report struct {
	Events, Jobs, Workers int
	// JobStates counts jobs by their last state.
	JobStates map[job.State]int
	// Tombstones are the positions that the stream holds without their events, which could
	// never be published.
	Tombstones []int64
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
	f.settle(log)
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
	if err := checkProjections(ctx, db, f, log, cfg.AtRest); err != nil {
		return r, err
	}
	if cfg.NATS != nil {
		if err := checkStream(ctx, cfg, log, &r); err != nil {
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

// liveJob tells whether a job holds its worker.
func liveJob(j job.Job) bool { return j.State.HasWorker() }

// holds tells whether a worker in this state may hold a live job: BUSY, or on its way out with it.
func holds(s worker.State) bool {
	return s == worker.StateBusy || s == worker.StateDraining || s == worker.StateTerminating
}
