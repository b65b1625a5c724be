package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/services/scheduler/internal/app"
)

// Filter selects jobs; what is empty selects all.
type Filter struct {
	States    []string
	Namespace string
	// Labels must all match.
	Labels map[string]string
	// Since is inclusive, Until exclusive; both by created_at.
	Since, Until time.Time
	// IDPrefix is hexadecimal digits without dashes, at most 32.
	IDPrefix string
	// Limit is the most jobs on a page, at least 1.
	Limit int
	// Token is that of the page before; empty = the first page.
	Token string
}

// Jobs reads the read model. Safe for concurrent use.
type Jobs struct{ pool *pgxpool.Pool }

// NewJobs returns a reader of a database.
func NewJobs(pool *pgxpool.Pool) *Jobs { return &Jobs{pool: pool} }

// List returns a page of jobs, newest first, and the token of the next page,
// which is empty on the last. Jobs that come meanwhile do not move later pages.
func (j *Jobs) List(ctx context.Context, f Filter) ([]app.View, string, error) {
	var q query
	if err := q.build(f); err != nil {
		return nil, "", err
	}
	sql := `SELECT ` + columns + ` FROM scheduler.jobs` + q.where() +
		fmt.Sprintf(` ORDER BY created_at DESC, id DESC LIMIT %d`, f.Limit+1)
	// Planned with its values each time: the best index depends on them.
	args := append([]any{pgx.QueryExecModeCacheDescribe}, q.args...)
	result, err := j.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, "", fmt.Errorf("read a page of jobs: %w", err)
	}
	views, err := pgx.CollectRows(result, scan)
	if err != nil {
		return nil, "", fmt.Errorf("read a page of jobs: %w", err)
	}
	if len(views) <= f.Limit {
		return views, "", nil
	}
	views = views[:f.Limit]
	last := views[f.Limit-1]
	token, err := encodeToken(f, token{Created: last.CreatedAt.UnixMicro(), ID: last.ID})
	return views, token, err
}

// Counts returns the number of jobs in every state, of one namespace or of all.
func (j *Jobs) Counts(ctx context.Context, namespace string) (map[string]int64, error) {
	out := map[string]int64{}
	for _, s := range job.Transitions.States {
		out[string(s)] = 0
	}
	result, err := j.pool.Query(ctx, `SELECT state, sum(jobs)::bigint FROM scheduler.counts WHERE $1 = '' OR namespace = $1 GROUP BY state`, namespace)
	if err != nil {
		return nil, fmt.Errorf("read the counters of jobs: %w", err)
	}
	var state string
	var n int64
	_, err = pgx.ForEachRow(result, []any{&state, &n}, func() error {
		out[state] = n
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the counters of jobs: %w", err)
	}
	return out, nil
}

// Live returns how many jobs of each namespace have not ended, and the position of the
// log that this is true of.
func (j *Jobs) Live(ctx context.Context) (position int64, byNamespace map[string]int64, err error) {
	result, err := j.pool.Query(ctx, liveSQL, terminal())
	if err != nil {
		return 0, nil, fmt.Errorf("count the jobs that have not ended: %w", err)
	}
	var namespace *string
	var n *int64
	byNamespace = map[string]int64{}
	_, err = pgx.ForEachRow(result, []any{&position, &namespace, &n}, func() error {
		if namespace != nil {
			byNamespace[*namespace] = *n
		}
		return nil
	})
	if err != nil {
		return 0, nil, fmt.Errorf("count the jobs that have not ended: %w", err)
	}
	return position, byNamespace, nil
}

// One statement, and so one snapshot: the projection moves both in one transaction.
const liveSQL = `SELECT p.position, c.namespace, c.jobs FROM (SELECT coalesce(max(position), 0) AS position FROM scheduler.positions) p
	LEFT JOIN (SELECT namespace, sum(jobs)::bigint AS jobs FROM scheduler.counts WHERE state <> ALL($1) GROUP BY namespace HAVING sum(jobs) > 0) c ON true`

func terminal() []string {
	var out []string
	for _, s := range job.Transitions.States {
		if s.Terminal() {
			out = append(out, string(s))
		}
	}
	return out
}

// query collects conditions and their arguments.
type query struct {
	conditions []string
	args       []any
}

func (q *query) add(condition string, args ...any) {
	for _, a := range args {
		q.args = append(q.args, a)
		condition = strings.Replace(condition, "?", fmt.Sprintf("$%d", len(q.args)), 1)
	}
	q.conditions = append(q.conditions, condition)
}

func (q *query) where() string {
	if len(q.conditions) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(q.conditions, " AND ")
}

func (q *query) build(f Filter) error {
	if len(f.States) > 0 {
		q.add("state = ANY(?::text[])", f.States)
	}
	if f.Namespace != "" {
		q.add("namespace = ?::text", f.Namespace)
	}
	if len(f.Labels) > 0 {
		labels, err := json.Marshal(f.Labels)
		if err != nil {
			return fmt.Errorf("encode labels: %w", err)
		}
		q.add("labels @> ?::text::jsonb AND labels <> '{}'", string(labels))
	}
	if !f.Since.IsZero() {
		q.add("created_at >= ?::timestamptz", f.Since)
	}
	if !f.Until.IsZero() {
		q.add("created_at < ?::timestamptz", f.Until)
	}
	if f.IDPrefix != "" {
		lo, err := uuid.Parse(f.IDPrefix + strings.Repeat("0", 32-len(f.IDPrefix)))
		if err != nil {
			return fault.Wrap(fault.Invalid, err, "the prefix of an id")
		}
		hi := uuid.MustParse(f.IDPrefix + strings.Repeat("f", 32-len(f.IDPrefix)))
		q.add("id BETWEEN ?::uuid AND ?::uuid", lo.String(), hi.String())
	}
	if f.Token != "" {
		t, err := decodeToken(f)
		if err != nil {
			return err
		}
		q.add("(created_at, id) < (?::timestamptz, ?::uuid)", time.UnixMicro(t.Created), t.ID)
	}
	return nil
}

// token is where a page ended, and what it was a page of.
type token struct {
	Created int64  `json:"c"`
	ID      string `json:"i"`
	// Filter is a fingerprint: a token continues the list that it came from, no other.
	Filter []byte `json:"f"`
}

func encodeToken(f Filter, t token) (string, error) {
	var err error
	if t.Filter, err = f.fingerprint(); err != nil {
		return "", err
	}
	b, err := json.Marshal(t)
	if err != nil {
		return "", fmt.Errorf("encode a page token: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(b), nil
}

func decodeToken(f Filter) (token, error) {
	var t token
	var wrong fault.Fields
	b, err := base64.RawURLEncoding.DecodeString(f.Token)
	if err == nil {
		err = json.Unmarshal(b, &t)
	}
	want, ferr := f.fingerprint()
	switch {
	case ferr != nil:
		return t, ferr
	case err != nil || uuid.Validate(t.ID) != nil || !app.WholeID(t.ID):
		wrong.Add("page_token", "is not a token that this service gave: use next_page_token as it is, or leave it out")
	case !slices.Equal(t.Filter, want):
		wrong.Add("page_token", "belongs to a list with other filters: repeat the filters of the first page")
	}
	return t, wrong.Err("the list")
}

// fingerprint tells lists apart. The size of a page may change on the way.
func (f Filter) fingerprint() ([]byte, error) {
	f.Token, f.Limit = "", 0
	b, err := json.Marshal(f)
	if err != nil {
		return nil, fmt.Errorf("encode a filter: %w", err)
	}
	sum := sha256.Sum256(b)
	return sum[:8], nil
}
