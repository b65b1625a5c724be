// Package postgres keeps what registry has in the schema "registry": tokens and
// sessions (hashed), the list of workers, and the output of jobs. It decides
// nothing, and reads no other service's tables.
package postgres

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/services/registry/core"
)

// Schema is the name of registry's part of the database.
const Schema = "registry"

//go:embed migrations/*.sql
var migrationFiles embed.FS

// Migrations are the schema's.
func Migrations() fs.FS {
	sub, err := fs.Sub(migrationFiles, "migrations")
	if err != nil {
		panic(err) // the embedded directory has this name
	}
	return sub
}

// failed says what was done, and that Postgres is away where it is.
func failed(err error, format string, args ...any) error {
	doing := fmt.Sprintf(format, args...)
	var pg *pgconn.PgError
	var connect *pgconn.ConnectError
	var network net.Error
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %w", doing, err)
	case errors.As(err, &pg):
		switch pg.Code[:min(2, len(pg.Code))] {
		case "08", "40", "53", "55", "57", "58":
		default:
			return fmt.Errorf("%s: %w", doing, err)
		}
	case errors.As(err, &connect), errors.As(err, &network), pgconn.SafeToRetry(err):
	default:
		return fmt.Errorf("%s: %w", doing, err)
	}
	return fault.Wrap(fault.Unavailable, err, "%s", doing).WithCode("POSTGRES_UNAVAILABLE", "check that Postgres runs; the same call may succeed later")
}

// Credentials keeps tokens and sessions. It is safe for concurrent use.
type Credentials struct{ pool *pgxpool.Pool }

// NewCredentials returns the credentials of a database.
func NewCredentials(pool *pgxpool.Pool) *Credentials { return &Credentials{pool} }

// PutToken stores a worker's token in the place of an earlier one.
func (c *Credentials) PutToken(ctx context.Context, workerID string, t core.Token) error {
	_, err := c.pool.Exec(ctx, `INSERT INTO registry.tokens (worker_id, token_hash, expires_at) VALUES ($1, $2, $3)
		ON CONFLICT (worker_id) DO UPDATE SET token_hash = excluded.token_hash, expires_at = excluded.expires_at,
			nonce = '', issued_at = now(), used_at = NULL`, workerID, t.Hash, t.ExpiresAt)
	if err != nil {
		return failed(err, "store the token of worker %s", workerID)
	}
	return nil
}

// Token returns what is stored; the zero Token where there is none.
func (c *Credentials) Token(ctx context.Context, workerID string) (core.Token, error) {
	var t core.Token
	err := c.pool.QueryRow(ctx, `SELECT token_hash, expires_at, nonce FROM registry.tokens WHERE worker_id = $1`, workerID).
		Scan(&t.Hash, &t.ExpiresAt, &t.Nonce)
	if errors.Is(err, pgx.ErrNoRows) {
		return core.Token{}, nil
	}
	if err != nil {
		return core.Token{}, failed(err, "read the token of worker %s", workerID)
	}
	return t, nil
}

// UseToken marks the token as used and stores the session that came of it, in
// one statement; a fault.Conflict where the token is another or used by another.
func (c *Credentials) UseToken(ctx context.Context, workerID string, tokenHash []byte, nonce string, sessionHash []byte) error {
	tag, err := c.pool.Exec(ctx, `WITH used AS (
			UPDATE registry.tokens SET nonce = $3, used_at = coalesce(used_at, now())
			WHERE worker_id = $1 AND token_hash = $2 AND nonce IN ('', $3) RETURNING worker_id)
		INSERT INTO registry.sessions AS s (worker_id, session_hash) SELECT worker_id, $4 FROM used
		ON CONFLICT (worker_id) DO UPDATE SET session_hash = excluded.session_hash,
			connection = CASE WHEN s.session_hash = excluded.session_hash THEN s.connection ELSE 0 END`, workerID, tokenHash, nonce, sessionHash)
	if err != nil {
		return failed(err, "use the token of worker %s", workerID)
	}
	if tag.RowsAffected() == 0 {
		return fault.New(fault.Conflict, "the token of worker %s was used or replaced", workerID)
	}
	return nil
}

func noSession() error {
	return fault.New(fault.Denied, "there is no such session").WithCode("SESSION_REFUSED", "register again with a new token")
}

// Authenticate returns the worker of a session; fault.Denied where there is none.
func (c *Credentials) Authenticate(ctx context.Context, sessionHash []byte) (workerID string, err error) {
	err = c.pool.QueryRow(ctx, `SELECT worker_id::text FROM registry.sessions WHERE session_hash = $1`, sessionHash).Scan(&workerID)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", noSession()
	}
	if err != nil {
		return "", failed(err, "authenticate a session")
	}
	return workerID, nil
}

// OpenSession gives the session its next epoch, for a connection that its agent counts
// as newer than the last one that got an epoch; 0 = it does not count, and never has.
// It is fault.Denied where there is no such session, and a fault.Precondition, which
// changes nothing, where the connection is not newer.
func (c *Credentials) OpenSession(ctx context.Context, sessionHash []byte, connection int64, replica string) (workerID string, epoch int64, err error) {
	err = c.pool.QueryRow(ctx, `UPDATE registry.sessions
		SET epoch = epoch + 1, connection = $2, replica = $3, connected_at = now(), last_heartbeat_at = now()
		WHERE session_hash = $1 AND (connection < $2 OR connection = 0 AND $2 = 0)
		RETURNING worker_id::text, epoch`, sessionHash, connection, replica).Scan(&workerID, &epoch)
	if errors.Is(err, pgx.ErrNoRows) {
		if workerID, err = c.Authenticate(ctx, sessionHash); err != nil {
			return "", 0, err
		}
		return "", 0, fault.New(fault.Precondition, "connection %d of the agent of worker %s is not its newest", connection, workerID).
			WithCode("CONNECTION_STALE", "nothing to do: the agent has given it up for a newer one")
	}
	if err != nil {
		return "", 0, failed(err, "open a session")
	}
	return workerID, epoch, nil
}

// LastHeartbeats returns when the workers were last heard of, as far as stored.
func (c *Credentials) LastHeartbeats(ctx context.Context, workerIDs []string) (map[string]time.Time, error) {
	rows, err := c.pool.Query(ctx, `SELECT worker_id::text, last_heartbeat_at FROM registry.sessions
		WHERE worker_id = ANY($1::uuid[]) AND last_heartbeat_at IS NOT NULL`, workerIDs)
	if err != nil {
		return nil, failed(err, "read last heartbeats")
	}
	seen := make(map[string]time.Time, len(workerIDs))
	var id string
	var at time.Time
	if _, err := pgx.ForEachRow(rows, []any{&id, &at}, func() error {
		seen[id] = at.UTC()
		return nil
	}); err != nil {
		return nil, failed(err, "read last heartbeats")
	}
	return seen, nil
}

// Forget removes the token and the session of a worker that is no more.
func (c *Credentials) Forget(ctx context.Context, workerID string) error {
	if _, err := c.pool.Exec(ctx, `WITH gone AS (DELETE FROM registry.tokens WHERE worker_id = $1)
		DELETE FROM registry.sessions WHERE worker_id = $1`, workerID); err != nil {
		return failed(err, "forget worker %s", workerID)
	}
	return nil
}

// Retired is how long the session of a worker that was given up is kept.
const Retired = 24 * time.Hour

// Retire voids the token of a worker that was given up and keeps its session for
// the time of [Retired]; those that were kept longer are removed.
func (c *Credentials) Retire(ctx context.Context, workerID string) error {
	if _, err := c.pool.Exec(ctx, `WITH gone AS (DELETE FROM registry.tokens WHERE worker_id = $1),
			old AS (DELETE FROM registry.sessions WHERE retired_at < now() - $2::interval)
		UPDATE registry.sessions SET retired_at = coalesce(retired_at, now()) WHERE worker_id = $1`, workerID, Retired); err != nil {
		return failed(err, "retire worker %s", workerID)
	}
	return nil
}

// Beat is a session of this replica that was heard of.
type Beat struct {
	WorkerID string
	Epoch    int64
	At       time.Time
}

// Beaten is what storing a beat told about its session.
type Beaten struct {
	// Superseded: the worker has a newer session, or none.
	Superseded bool
	// Going: the worker is TERMINATING or TERMINATED, as far as the list knows.
	Going bool
}

// SaveBeats stores when sessions were last heard of, all in one statement, and
// returns those that should not be any more.
func (c *Credentials) SaveBeats(ctx context.Context, beats []Beat) (map[Beat]Beaten, error) {
	ids, epochs, times := make([]string, len(beats)), make([]int64, len(beats)), make([]time.Time, len(beats))
	for i, b := range beats {
		ids[i], epochs[i], times[i] = b.WorkerID, b.Epoch, b.At
	}
	rows, err := c.pool.Query(ctx, `WITH beat AS (
			SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::timestamptz[]) WITH ORDINALITY AS u (worker_id, epoch, at, n)),
		saved AS (
			UPDATE registry.sessions AS s SET last_heartbeat_at = greatest(s.last_heartbeat_at, beat.at)
			FROM beat WHERE s.worker_id = beat.worker_id AND s.epoch = beat.epoch RETURNING beat.n)
		SELECT beat.n - 1, saved.n IS NULL, coalesce(w.state IN ('TERMINATING', 'TERMINATED'), false)
		FROM beat LEFT JOIN saved USING (n) LEFT JOIN registry.workers AS w USING (worker_id)
		WHERE saved.n IS NULL OR w.state IN ('TERMINATING', 'TERMINATED')`, ids, epochs, times)
	if err != nil {
		return nil, failed(err, "store heartbeats")
	}
	odd := map[Beat]Beaten{}
	var n int64
	var b Beaten
	if _, err := pgx.ForEachRow(rows, []any{&n, &b.Superseded, &b.Going}, func() error {
		odd[beats[n]] = b
		return nil
	}); err != nil {
		return nil, failed(err, "store heartbeats")
	}
	return odd, nil
}
