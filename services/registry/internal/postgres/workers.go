package postgres

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/service/aggregate"
)

// Workers is the list of workers: the projection registry.workers. Reads are safe
// for concurrent use; Apply belongs to one consumer.
type Workers struct{ pool *pgxpool.Pool }

// NewWorkers returns the list of a database.
func NewWorkers(pool *pgxpool.Pool) *Workers { return &Workers{pool} }

// Apply folds events of workers into their rows, within a transaction of the
// caller's. Events that a row has already change nothing.
func (w *Workers) Apply(ctx context.Context, tx pgx.Tx, events []event.Event) error {
	var ids []string
	seen := map[string]bool{}
	events = slices.DeleteFunc(slices.Clone(events), func(e event.Event) bool { return e.Stream.Type != catalogue.Worker })
	for _, e := range events {
		if !seen[e.Stream.ID] {
			seen[e.Stream.ID] = true
			ids = append(ids, e.Stream.ID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	folds, err := readFolds(ctx, tx, ids)
	if err != nil {
		return err
	}
	for _, e := range events {
		if folds[e.Stream.ID], err = aggregate.EvolveWorker(folds[e.Stream.ID], e); err != nil {
			return err
		}
	}
	if err := writeFolds(ctx, tx, ids, folds); err != nil {
		return failed(err, "project workers")
	}
	return nil
}

// writeFolds writes the rows of ids, in one statement however many they are.
func writeFolds(ctx context.Context, tx pgx.Tx, ids []string, folds map[string]worker.Worker) error {
	var versions []int32
	var states, providers, names []string
	var created []time.Time
	var data []json.RawMessage
	for _, id := range ids {
		f := folds[id]
		fold, err := json.Marshal(f)
		if err != nil {
			return fmt.Errorf("encode worker %s: %w", id, err)
		}
		versions, states, providers = append(versions, int32(f.Version)), append(states, string(f.State)), append(providers, f.ProviderID)
		names, created, data = append(names, f.ProviderName), append(created, f.CreatedAt), append(data, fold)
	}
	_, err := tx.Exec(ctx, `INSERT INTO registry.workers AS w (worker_id, version, state, provider_id, provider_name, created_at, fold)
		SELECT * FROM unnest($1::uuid[], $2::integer[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::jsonb[])
		ON CONFLICT (worker_id) DO UPDATE SET version = excluded.version, state = excluded.state, provider_id = excluded.provider_id,
			provider_name = excluded.provider_name, created_at = excluded.created_at, fold = excluded.fold
		WHERE w.version < excluded.version`, ids, versions, states, providers, names, created, data)
	return err
}

func readFolds(ctx context.Context, tx pgx.Tx, ids []string) (map[string]worker.Worker, error) {
	folds := make(map[string]worker.Worker, len(ids))
	rows, err := tx.Query(ctx, `SELECT fold FROM registry.workers WHERE worker_id = ANY($1::uuid[])`, ids)
	if err != nil {
		return nil, failed(err, "read projected workers")
	}
	var data []byte
	if _, err := pgx.ForEachRow(rows, []any{&data}, func() error {
		var f worker.Worker
		if err := json.Unmarshal(data, &f); err != nil {
			return fmt.Errorf("decode a projected worker: %w", err)
		}
		folds[f.ID] = f
		return nil
	}); err != nil {
		return nil, failed(err, "read projected workers")
	}
	return folds, nil
}

// Reset empties the list, to be made again from the log.
func (w *Workers) Reset(ctx context.Context, tx pgx.Tx) error {
	if _, err := tx.Exec(ctx, `TRUNCATE registry.workers`); err != nil {
		return failed(err, "empty the list of workers")
	}
	return nil
}

// Filter selects workers.
type Filter struct {
	// States to list; empty = all but TERMINATED, or all with Terminated.
	States     []string
	Terminated bool
	// Provider is an id or a name; empty = all.
	Provider string
	// Limit is the most to return; at least 1.
	Limit int
	// Token is where the page before ended; empty = the first page.
	Token string
}

// Listed is a worker of the list.
type Listed struct {
	worker.Worker
	LastHeartbeatAt time.Time
}

// List returns workers, newest first, and the token of the next page; empty
// after the last.
func (w *Workers) List(ctx context.Context, f Filter) ([]Listed, string, error) {
	query := `SELECT w.fold, s.last_heartbeat_at FROM registry.workers AS w LEFT JOIN registry.sessions AS s USING (worker_id) WHERE true`
	var args []any
	arg := func(v any) string {
		args = append(args, v)
		return "$" + strconv.Itoa(len(args))
	}
	switch {
	case len(f.States) > 0:
		query += ` AND w.state = ANY(` + arg(f.States) + `)`
	case !f.Terminated:
		query += ` AND w.state <> 'TERMINATED'`
	}
	if f.Provider != "" {
		p := arg(f.Provider)
		query += ` AND (w.provider_id = ` + p + ` OR w.provider_name = ` + p + `)`
	}
	if f.Token != "" {
		at, id, err := decodeToken(f.Token)
		if err != nil {
			return nil, "", err
		}
		query += ` AND (w.created_at, w.worker_id) < (` + arg(at) + `, ` + arg(id) + `::uuid)`
	}
	rows, err := w.pool.Query(ctx, query+` ORDER BY w.created_at DESC, w.worker_id DESC LIMIT `+arg(f.Limit+1), args...)
	if err != nil {
		return nil, "", failed(err, "list workers")
	}
	listed, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l Listed, err error) {
		var data []byte
		var seen *time.Time
		if err := row.Scan(&data, &seen); err != nil {
			return l, err
		}
		if seen != nil {
			l.LastHeartbeatAt = seen.UTC()
		}
		return l, json.Unmarshal(data, &l.Worker)
	})
	if err != nil {
		return nil, "", failed(err, "list workers")
	}
	if len(listed) <= f.Limit {
		return listed, "", nil
	}
	listed = listed[:f.Limit]
	last := listed[f.Limit-1]
	return listed, encodeToken(last.CreatedAt, last.ID), nil
}

// Counts returns how many workers are in each state, TERMINATED left out.
func (w *Workers) Counts(ctx context.Context) (map[string]int64, error) {
	rows, err := w.pool.Query(ctx, `SELECT state, count(*) FROM registry.workers WHERE state <> 'TERMINATED' GROUP BY state`)
	if err != nil {
		return nil, failed(err, "count workers")
	}
	counts := map[string]int64{}
	var state string
	var n int64
	if _, err := pgx.ForEachRow(rows, []any{&state, &n}, func() error {
		counts[state] = n
		return nil
	}); err != nil {
		return nil, failed(err, "count workers")
	}
	return counts, nil
}

func encodeToken(at time.Time, id string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(strconv.FormatInt(at.UnixMicro(), 10) + " " + id))
}

func decodeToken(token string) (time.Time, string, error) {
	raw, err := base64.RawURLEncoding.DecodeString(token)
	micros, id, ok := strings.Cut(string(raw), " ")
	n, nerr := strconv.ParseInt(micros, 10, 64)
	if _, ierr := uuid.Parse(id); err != nil || !ok || nerr != nil || ierr != nil {
		var wrong fault.Fields
		wrong.Add("page_token", "is not one that a list has returned")
		return time.Time{}, "", wrong.Err("the request")
	}
	return time.UnixMicro(n), id, nil
}
