// Package migrations brings a Postgres schema up to date from embedded SQL files,
// with goose as a library.
//
// Each owner has a schema, its own files and its own version table inside that
// schema, so services migrate independently and in any order. Migrating is done
// by an owner role, one at a time under an advisory lock; services only check.
// There is no way down: a schema is changed by the next file.
package migrations

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"

	"hodei.dev/libs/domain/fault"
)

// versionTable is goose's, one in each schema.
const versionTable = "goose_db_version"

// lockClass is the first half of the advisory locks that migrations take; the
// second is the hash of the schema's name.
const lockClass = 0x686d // "hm"

// Undefined table and undefined schema: nothing was ever migrated.
const undefinedTable, undefinedSchema = "42P01", "3F000"

var schemaName = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,62}$`)

// Querier is what reads a version: a pool, a connection, a transaction.
type Querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// BehindError says that a schema is older than this program; it is a
// fault.Precondition.
type BehindError struct {
	Schema string
	// Have is the version of the database (0 = never migrated), Want the program's.
	Have, Want int64
}

// Error says what to run.
func (e *BehindError) Error() string {
	return fmt.Sprintf("schema %s is at version %d, this program needs %d: run its migrate command (or `hodei migrate`) first",
		e.Schema, e.Have, e.Want)
}

// Is reports whether target is fault.Precondition.
func (e *BehindError) Is(target error) bool { return target == fault.Precondition }

// Up applies what is missing of fsys's *.sql files to the schema, which it makes
// if need be, and waits while another process does the same. Each file runs with
// the schema as search path. A schema that is ahead of fsys is left as it is.
func Up(ctx context.Context, url, schema string, fsys fs.FS) (err error) {
	if !schemaName.MatchString(schema) {
		return fault.New(fault.Invalid, "%q cannot name a schema: want lower-case letters, digits and _", schema)
	}
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "postgres URL")
	}
	config.RuntimeParams["search_path"] = schema
	config.RuntimeParams["application_name"] = "hodei migrate " + schema

	// The lock has a connection of its own: goose uses a pool.
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "connect to postgres").WithCode("POSTGRES_UNAVAILABLE", "check that Postgres runs and that the URL is right")
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock($1, hashtext($2))", lockClass, schema); err != nil {
		return fmt.Errorf("wait for other migrations of %s: %w", schema, err)
	}
	// Asked first: CREATE SCHEMA wants a privilege even where the schema exists.
	var exists bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", schema).Scan(&exists); err != nil {
		return fmt.Errorf("look for schema %s: %w", schema, err)
	}
	if !exists {
		if _, err := conn.Exec(ctx, "CREATE SCHEMA "+pgx.Identifier{schema}.Sanitize()); err != nil {
			return fmt.Errorf("create schema %s: %w", schema, err)
		}
	}
	return up(ctx, config, schema, fsys)
}

func up(ctx context.Context, config *pgx.ConnConfig, schema string, fsys fs.FS) (err error) {
	db := stdlib.OpenDB(*config)
	defer func() { err = errors.Join(err, db.Close()) }()
	versions, err := database.NewStore(database.DialectPostgres, schema+"."+versionTable)
	if err != nil {
		return fmt.Errorf("version table of %s: %w", schema, err)
	}
	provider, err := goose.NewProvider("", db, fsys, goose.WithStore(versions), goose.WithDisableGlobalRegistry(true))
	if errors.Is(err, goose.ErrNoMigrations) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read migrations of %s: %w", schema, err)
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("migrate schema %s: %w", schema, err)
	}
	return nil
}

// Version returns the version of a schema; 0 where nothing was ever migrated.
func Version(ctx context.Context, q Querier, schema string) (int64, error) {
	if !schemaName.MatchString(schema) {
		return 0, fault.New(fault.Invalid, "%q cannot name a schema", schema)
	}
	var version int64
	err := q.QueryRow(ctx, "SELECT coalesce(max(version_id), 0) FROM "+schema+"."+versionTable+" WHERE is_applied").Scan(&version)
	if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) && (pg.Code == undefinedTable || pg.Code == undefinedSchema) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read version of schema %s: %w", schema, err)
	}
	return version, nil
}

// Check returns nil where the schema has all of fsys's migrations, or more: a
// newer schema must serve older programs. Else it returns a *BehindError.
func Check(ctx context.Context, q Querier, schema string, fsys fs.FS) error {
	want, err := latest(fsys)
	if err != nil {
		return fmt.Errorf("read migrations of %s: %w", schema, err)
	}
	have, err := Version(ctx, q, schema)
	if err != nil {
		return err
	}
	if have < want {
		return &BehindError{Schema: schema, Have: have, Want: want}
	}
	return nil
}

// latest returns the highest version among the *.sql files of fsys.
func latest(fsys fs.FS) (int64, error) {
	names, err := fs.Glob(fsys, "*.sql")
	if err != nil {
		return 0, err
	}
	var highest int64
	for _, name := range names {
		version, err := goose.NumericComponent(name)
		if err != nil {
			return 0, err
		}
		highest = max(highest, version)
	}
	return highest, nil
}
