package migrations_test

import (
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5/pgxpool"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/migrations"
)

func TestMain(m *testing.M) { os.Exit(eventingtest.Main(m)) }

func files(contents ...string) fstest.MapFS {
	fsys := fstest.MapFS{"README.md": {Data: []byte("not a migration")}}
	for i, content := range contents {
		fsys["0000"+string(rune('1'+i))+"_step.sql"] = &fstest.MapFile{Data: []byte("-- +goose Up\n" + content)}
	}
	return fsys
}

func pool(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	p, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func TestUpAndCheck(t *testing.T) {
	t.Parallel()
	url := eventingtest.Postgres(t)
	db := pool(t, url)
	one, two := files("CREATE TABLE a (n int);"), files("CREATE TABLE a (n int);", "ALTER TABLE a ADD m int;")
	var behind *migrations.BehindError
	if err := migrations.Check(t.Context(), db, "svc", one); !errors.As(err, &behind) || !errors.Is(err, fault.Precondition) || behind.Have != 0 || behind.Want != 1 {
		t.Errorf("nothing migrated: %v", err)
	}
	up := func(fsys fstest.MapFS, want int64) {
		t.Helper()
		if err := migrations.Up(t.Context(), url, "svc", fsys); err != nil {
			t.Fatal(err)
		}
		if got, err := migrations.Version(t.Context(), db, "svc"); err != nil || got != want {
			t.Errorf("version %d, %v; want %d", got, err, want)
		}
	}
	up(one, 1)
	if err := migrations.Check(t.Context(), db, "svc", two); !errors.As(err, &behind) || behind.Have != 1 || behind.Want != 2 {
		t.Errorf("one step behind: %v", err)
	}
	up(two, 2)
	up(two, 2)
	up(one, 2) // an older program finds a newer schema
	for _, fsys := range []fstest.MapFS{one, two} {
		if err := migrations.Check(t.Context(), db, "svc", fsys); err != nil {
			t.Error(err)
		}
	}
	// What the files make is in the schema, and so is the version table.
	var tables string
	if err := db.QueryRow(t.Context(), "SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_tables WHERE schemaname = 'svc'").Scan(&tables); err != nil || tables != "a goose_db_version" {
		t.Errorf("tables %q, %v", tables, err)
	}
}

// Every replica migrates at its start: once is enough, and nobody fails.
func TestUpAtOnce(t *testing.T) {
	t.Parallel()
	url := eventingtest.Postgres(t)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			if err := migrations.Up(t.Context(), url, []string{"svc", "other"}[i%2], files("CREATE TABLE a (n int);", "CREATE TABLE b (n int);")); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

func TestUpFails(t *testing.T) {
	t.Parallel()
	url := eventingtest.Postgres(t)
	err := migrations.Up(t.Context(), url, "svc", files("CREATE TABLE a (n int);", "CREATE TABLE b (n nonsense);"))
	if err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("got %v", err)
	}
	if got, err := migrations.Version(t.Context(), pool(t, url), "svc"); err != nil || got != 1 {
		t.Errorf("version %d, %v; want what was done before", got, err)
	}
	for _, name := range []string{"", "no-dash", `a"; DROP TABLE x`, "Upper"} {
		if err := migrations.Up(t.Context(), url, name, files("SELECT 1;")); !errors.Is(err, fault.Invalid) {
			t.Errorf("schema %q: %v", name, err)
		}
	}
	if err := migrations.Up(t.Context(), "postgres://127.0.0.1:1/x", "svc", files("SELECT 1;")); !errors.Is(err, fault.Unavailable) {
		t.Errorf("got %v, want unavailable", err)
	}
}
