package store

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/migrations"
)

// Schema is the Postgres schema of the log.
const Schema = "hodei"

// openTimeout is how long Open waits for Postgres.
const openTimeout = 10 * time.Second

//go:embed migrations/*.sql
var migrationFiles embed.FS

// Migrations are the log's own, for hodei.dev/libs/eventing/migrations.
func Migrations() fs.FS {
	sub, err := fs.Sub(migrationFiles, "migrations")
	if err != nil {
		panic(err) // the embedded directory has this name
	}
	return sub
}

// Migrate brings the log's schema up to date, as the owner role.
func Migrate(ctx context.Context, url string) error {
	return migrations.Up(ctx, url, Schema, Migrations())
}

// Store is one process's door to the log. It is safe for concurrent use.
//
//	Append ─▶ queue ─▶ committer (one goroutine, one connection) ─▶ hodei.append
//	Load, Read, Head, LookupKey, FindStreams, Snapshot ─▶ pool
//	Exclusive ─▶ a connection each
type Store struct {
	pool      *pgxpool.Pool
	conf      *pgx.ConnConfig // for connections outside of the pool
	log       *slog.Logger
	metrics   metrics
	queue     queue
	committed sync.WaitGroup // the committer
}

// Open connects to the log and checks that its schema is new enough. It returns
// fault.Unavailable where Postgres does not answer within ten seconds, and
// fault.Precondition where the schema must be migrated first.
func Open(ctx context.Context, config Config) (*Store, error) {
	if config.Log == nil {
		config.Log = slog.Default()
	}
	instruments, err := newMetrics(config.Meter)
	if err != nil {
		return nil, fmt.Errorf("make the store's instruments: %w", err)
	}
	poolConfig, err := poolConfig(config)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	pool, err := pgxpool.NewWithConfig(ctx, poolConfig)
	if err != nil {
		return nil, fmt.Errorf("make the connection pool: %w", err)
	}
	if err := ready(ctx, pool); err != nil {
		pool.Close()
		return nil, err
	}
	s := &Store{pool: pool, conf: poolConfig.ConnConfig.Copy(), log: config.Log, metrics: instruments}
	s.queue.wake = make(chan struct{}, 1)
	c := &committer{store: s, onCommit: config.OnCommit}
	s.committed.Go(c.run)
	return s, nil
}

func poolConfig(config Config) (*pgxpool.Config, error) {
	pc, err := pgxpool.ParseConfig(config.URL)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "postgres URL")
	}
	pc.MaxConns = config.MaxConns
	if pc.MaxConns <= 0 {
		pc.MaxConns = 8
	}
	name := config.Name
	if name == "" {
		name = "hodei"
	}
	pc.ConnConfig.ConnectTimeout = 5 * time.Second
	// A session that waits, or sleeps in a transaction, holds up others: no
	// session of ours may, whatever the server's defaults.
	for param, value := range map[string]string{
		"application_name":                    name,
		"lock_timeout":                        "2s",
		"idle_in_transaction_session_timeout": "1s",
		"default_transaction_isolation":       "read committed",
	} {
		if _, given := pc.ConnConfig.RuntimeParams[param]; !given {
			pc.ConnConfig.RuntimeParams[param] = value
		}
	}
	return pc, nil
}

// ready returns nil once Postgres answers and has the log's schema.
func ready(ctx context.Context, pool *pgxpool.Pool) error {
	if err := pool.Ping(ctx); err != nil {
		return unavailable(err, "connect to postgres")
	}
	return migrations.Check(ctx, pool, Schema, Migrations())
}

// Pool is the connection pool that reads use; projections may share it. Its
// sessions wait two seconds for a lock and stay one second idle in a transaction,
// then Postgres ends them. It ends with the Store.
func (s *Store) Pool() *pgxpool.Pool { return s.pool }

// Close lets the appends that are queued end (at most ten seconds), refuses
// further ones, and ends the connections. Reads that run are waited for.
func (s *Store) Close() {
	s.queue.close()
	s.committed.Wait()
	s.pool.Close()
}

// Append makes a true, or returns why not; then nothing of it is. It returns the
// events completed with Position, StreamVersion and Time, in the order of the
// changes.
//
// Errors: *ConflictError (fault.Conflict), *KeyTakenError (fault.AlreadyExists),
// fault.Invalid naming the fields, fault.Unavailable where Postgres stayed away
// for ten seconds, or ctx's error. After the last two the outcome may be unknown:
// repeat with the same event ids and expected versions, and get the first answer.
func (s *Store) Append(ctx context.Context, a Append) ([]event.Event, error) {
	p, err := prepare(a)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("append: %w", err)
	}
	started := time.Now()
	p.ctx, p.giveUp, p.done = ctx, started.Add(giveUpAfter), make(chan struct{})
	if err := s.queue.put(p); err != nil {
		return nil, err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		if s.queue.withdraw(p) {
			return nil, s.ended(p, "nothing was appended")
		}
		select {
		case <-p.done:
		default:
			return nil, s.ended(p, "the outcome is unknown; repeat it with the same event ids")
		}
	}
	s.metrics.appended(ctx, time.Since(started), p.result, p.err)
	return p.result, p.err
}

// ended returns the error for a caller who stopped waiting: Unavailable where
// Postgres is to blame.
func (s *Store) ended(p *pending, outcome string) error {
	if trouble := s.queue.troubled(); trouble != nil && errors.Is(p.ctx.Err(), context.DeadlineExceeded) {
		return unavailable(errors.Join(p.ctx.Err(), trouble), "append ("+outcome+")")
	}
	return fmt.Errorf("append (%s): %w", outcome, p.ctx.Err())
}

func unavailable(err error, doing string) error {
	return fault.Wrap(fault.Unavailable, err, "%s", doing).
		WithCode("POSTGRES_UNAVAILABLE", "check that Postgres runs and that the URL is right; the same call may succeed later")
}
