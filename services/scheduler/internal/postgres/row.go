package postgres

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"hodei.dev/libs/domain/job"
	"hodei.dev/services/scheduler/internal/app"
)

// columns of scheduler.jobs, in the order of scan and of upsert's arrays.
const columns = `id, name, namespace, state, attempt, version, priority, worker_id, provider_id, labels, correlation_id, queued_by,
	retry_of, reason, deferred, cancel, result, created_at, queued_at, started_at, finished_at, not_before`

// scan reads a row as the part of a job that lists show: no spec beyond its
// name, no attempts. Events fold onto it as onto a whole job.
func scan(row pgx.CollectableRow) (app.View, error) {
	var v app.View
	var state string
	var labels, deferred, cancel, result []byte
	var queued, started, finished, notBefore *time.Time
	err := row.Scan(&v.ID, &v.Spec.Name, &v.Spec.Namespace, &state, &v.Attempt, &v.Version, &v.Spec.Priority, &v.WorkerID, &v.ProviderID,
		&labels, &v.CorrelationID, &v.QueuedBy, &v.RetryOf, &v.Reason, &deferred, &cancel, &result,
		&v.CreatedAt, &queued, &started, &finished, &notBefore)
	if err != nil {
		return v, err
	}
	v.State, v.CreatedAt = job.State(state), v.CreatedAt.UTC()
	v.QueuedAt, v.StartedAt, v.FinishedAt, v.NotBefore = known(queued), known(started), known(finished), known(notBefore)
	for _, part := range []struct {
		text []byte
		into any
	}{{labels, &v.Spec.Labels}, {deferred, &v.Deferred}, {cancel, &v.Cancel}, {result, &v.Result}} {
		if len(part.text) == 0 {
			continue
		}
		if err := json.Unmarshal(part.text, part.into); err != nil {
			return v, fmt.Errorf("read job %s: %w", v.ID, err)
		}
	}
	return v, nil
}

// rows are views as one array a column.
type rows struct {
	id, name, namespace, state, worker, provider, labels []string
	correlation, queuedBy, retryOf, reason, deferred     []string
	cancel, result                                       []*string
	attempt, version, priority                           []int32
	created                                              []time.Time
	queued, started, finished, notBefore                 []*time.Time
}

func (r *rows) add(v app.View) error {
	labels, err := text(v.Spec.Labels, len(v.Spec.Labels) == 0, "{}")
	if err != nil {
		return err
	}
	deferred, err := text(v.Deferred, len(v.Deferred) == 0, "[]")
	if err != nil {
		return err
	}
	cancel, err := optional(v.Cancel)
	if err != nil {
		return err
	}
	result, err := optional(v.Result)
	if err != nil {
		return err
	}
	r.id, r.name, r.namespace, r.state = append(r.id, v.ID), append(r.name, v.Spec.Name), append(r.namespace, v.Spec.Namespace), append(r.state, string(v.State))
	r.attempt, r.version, r.priority = append(r.attempt, int32(v.Attempt)), append(r.version, int32(v.Version)), append(r.priority, int32(v.Spec.Priority))
	r.worker, r.provider, r.labels = append(r.worker, v.WorkerID), append(r.provider, v.ProviderID), append(r.labels, labels)
	r.correlation, r.queuedBy, r.retryOf = append(r.correlation, v.CorrelationID), append(r.queuedBy, v.QueuedBy), append(r.retryOf, v.RetryOf)
	r.reason, r.deferred, r.cancel, r.result = append(r.reason, v.Reason), append(r.deferred, deferred), append(r.cancel, cancel), append(r.result, result)
	r.created, r.queued, r.started = append(r.created, v.CreatedAt), append(r.queued, set(v.QueuedAt)), append(r.started, set(v.StartedAt))
	r.finished, r.notBefore = append(r.finished, set(v.FinishedAt)), append(r.notBefore, set(v.NotBefore))
	return nil
}

const upsertSQL = `INSERT INTO scheduler.jobs AS j (` + columns + `)
	SELECT u.id, u.name, u.namespace, u.state, u.attempt, u.version, u.priority, u.worker, u.provider, u.labels::jsonb, u.correlation, u.queued_by,
	       u.retry_of, u.reason, u.deferred::json, u.cancel::json, u.result::json, u.created, u.queued, u.started, u.finished, u.not_before
	  FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::int[], $6::int[], $7::int[], $8::text[], $9::text[], $10::text[], $11::text[],
	              $12::text[], $13::text[], $14::text[], $15::text[], $16::text[], $17::text[], $18::timestamptz[], $19::timestamptz[],
	              $20::timestamptz[], $21::timestamptz[], $22::timestamptz[])
	       AS u (id, name, namespace, state, attempt, version, priority, worker, provider, labels, correlation, queued_by, retry_of, reason,
	             deferred, cancel, result, created, queued, started, finished, not_before)
	    ON CONFLICT (id) DO UPDATE SET state = excluded.state, attempt = excluded.attempt, version = excluded.version,
	       worker_id = excluded.worker_id, provider_id = excluded.provider_id, reason = excluded.reason, deferred = excluded.deferred,
	       cancel = excluded.cancel, result = excluded.result, queued_at = excluded.queued_at, started_at = excluded.started_at,
	       finished_at = excluded.finished_at, not_before = excluded.not_before`

func (r *rows) args() []any {
	return []any{
		r.id, r.name, r.namespace, r.state, r.attempt, r.version, r.priority, r.worker, r.provider, r.labels, r.correlation,
		r.queuedBy, r.retryOf, r.reason, r.deferred, r.cancel, r.result, r.created, r.queued, r.started, r.finished, r.notBefore,
	}
}

func text(v any, empty bool, instead string) (string, error) {
	if empty {
		return instead, nil
	}
	b, err := json.Marshal(v)
	return string(b), err
}

// optional is NULL for nil.
func optional[T any](v *T) (*string, error) {
	if v == nil {
		return nil, nil
	}
	b, err := json.Marshal(v)
	s := string(b)
	return &s, err
}

func known(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

func set(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
