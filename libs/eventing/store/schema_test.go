package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/eventing/store/storetest"
)

func TestOpenChecksTheSchema(t *testing.T) {
	t.Parallel()
	_, err := store.Open(t.Context(), store.Config{URL: eventingtest.Postgres(t)})
	if !errors.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "migrate") {
		t.Errorf("got %v, want what to do", err)
	}
	if _, err := store.Open(t.Context(), store.Config{URL: "postgres://%zz"}); !errors.Is(err, fault.Invalid) {
		t.Errorf("got %v, want invalid", err)
	}
}

func TestCloseRefusesFurtherAppends(t *testing.T) {
	t.Parallel()
	s := open(t, store.Config{URL: eventingtest.MigratedPostgres(t)})
	s.Close()
	if _, err := s.Append(t.Context(), storetest.One(storetest.NewChange(t, storetest.NewStream("job"), 0, 1))); !errors.Is(err, fault.Unavailable) {
		t.Errorf("got %v", err)
	}
}

// Nobody changes what happened: not by the parent table, not by a partition.
func TestAppendOnly(t *testing.T) {
	t.Parallel()
	s := eventingtest.MigratedStore(t)
	if _, err := s.Append(t.Context(), storetest.One(storetest.NewChange(t, storetest.NewStream("job"), 0, 3))); err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{
		"UPDATE hodei.events SET actor = 'x'", "DELETE FROM hodei.events", "TRUNCATE hodei.events",
		"UPDATE hodei.events_1 SET actor = 'x'", "DELETE FROM hodei.events_1", "TRUNCATE hodei.events_1",
		"DELETE FROM hodei.streams", "TRUNCATE hodei.streams", "DELETE FROM hodei.keys", "UPDATE hodei.keys SET value = 'x'",
	} {
		_, err := s.Pool().Exec(t.Context(), sql)
		if pg := (*pgconn.PgError)(nil); !errors.As(err, &pg) || pg.Code != "42501" {
			t.Errorf("%s: %v", sql, err)
		}
	}
	contiguous(t, s, 3)
	var n int
	if err := s.Pool().QueryRow(t.Context(), `SELECT (data->>'n')::int FROM hodei.event_log WHERE aggregate LIKE 'job/%' AND version = 2`).Scan(&n); err != nil || n != 2 {
		t.Errorf("the auditors' view: %d, %v", n, err)
	}
}

// A service has the right to append and to read, an auditor to read, nobody more.
func TestRoles(t *testing.T) {
	t.Parallel()
	s := eventingtest.MigratedStore(t)
	as := func(role string, sql string, args ...any) error {
		return pgx.BeginFunc(t.Context(), s.Pool(), func(tx pgx.Tx) error {
			if _, err := tx.Exec(t.Context(), "SET LOCAL ROLE "+role); err != nil {
				return err
			}
			_, err := tx.Exec(t.Context(), sql, args...)
			return err
		})
	}
	const call = `SELECT hodei.append('{}','{}','{}','{}','{}','{}','{}','{}','{}','{}','{}','{}','{}',
		'{}','{}','{}','{}','{}','{}','{}','{}','{}','{}','{}','{}','{}','{}','{}')`
	for _, test := range []struct {
		role, sql string
		allowed   bool
	}{
		{"hodei_service", call, true},
		{"hodei_service", "SELECT count(*) FROM hodei.events", true},
		{"hodei_service", "INSERT INTO hodei.keys VALUES ('a', 'b', 'c', 'd', gen_random_uuid(), NULL)", false},
		{"hodei_service", "SELECT hodei.add_partition()", false},
		{"hodei_auditor", "SELECT count(*) FROM hodei.event_log", true},
		{"hodei_auditor", "SELECT count(*) FROM hodei.events", true},
		{"hodei_auditor", call, false},
	} {
		err := as(test.role, test.sql)
		if pg := (*pgconn.PgError)(nil); test.allowed && err != nil || !test.allowed && (!errors.As(err, &pg) || pg.Code != "42501") {
			t.Errorf("%s: %s: %v", test.role, test.sql, err)
		}
	}
}

// A service whose login has nothing but its role opens the log and appends.
func TestServiceLogin(t *testing.T) {
	t.Parallel()
	url := eventingtest.MigratedPostgres(t)
	owner := open(t, store.Config{URL: url})
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	login := "login_" + config.Database // roles are the whole server's
	execute(t, owner, "CREATE ROLE "+login+" LOGIN PASSWORD 'secret' IN ROLE hodei_service")
	t.Cleanup(func() {
		if _, err := owner.Pool().Exec(context.WithoutCancel(t.Context()), "DROP ROLE "+login); err != nil {
			t.Error(err)
		}
	})
	s := open(t, store.Config{URL: fmt.Sprintf("host=%s port=%d dbname=%s user=%s password=secret sslmode=disable", config.Host, config.Port, config.Database, login)})
	change := storetest.NewChange(t, storetest.NewStream("job"), 0, 2)
	if _, err := s.Append(t.Context(), storetest.One(change)); err != nil {
		t.Fatal(err)
	}
	if events, err := s.Load(t.Context(), change.Stream, 0); err != nil || len(events) != 2 {
		t.Errorf("loaded %d events, %v", len(events), err)
	}
}

// Partitions are made ahead, in the middle of appends, and hold a lock on none.
func TestPartitions(t *testing.T) {
	t.Parallel()
	s := eventingtest.MigratedStore(t)
	execute(t, s, "DROP TABLE hodei.events_1")
	execute(t, s, "DROP TABLE hodei.events_10000001")
	execute(t, s, "DELETE FROM hodei.event_partitions")
	execute(t, s, "CREATE OR REPLACE FUNCTION hodei.partition_size() RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT 50::bigint'")
	// A reader that stays in its transaction must not hold anybody up.
	reader, err := s.Pool().Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reader.Exec(t.Context(), "SET LOCAL idle_in_transaction_session_timeout = 0"); err != nil {
		t.Fatal(err)
	}
	if _, err := reader.Exec(t.Context(), "SELECT count(*) FROM hodei.events"); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 20 {
		stream := storetest.NewStream("job")
		all.Go(func() {
			for v := range 5 {
				if _, err := s.Append(t.Context(), storetest.One(storetest.NewChange(t, stream, v*3, 3))); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	if err := reader.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	big := storetest.NewStream("job")
	if _, err := s.Append(t.Context(), storetest.One(storetest.NewChange(t, big, 0, 180))); err != nil {
		t.Fatal(err) // spans several partitions, none of which is there
	}
	contiguous(t, s, 480)
	if events, err := s.Load(t.Context(), big, 0); err != nil || len(events) != 180 {
		t.Errorf("loaded %d events, %v", len(events), err)
	}
	rows, err := s.Pool().Query(t.Context(), "SELECT table_name FROM hodei.event_partitions ORDER BY first_position DESC LIMIT 1")
	if err != nil {
		t.Fatal(err)
	}
	last, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || !slices.Equal(last, []string{"events_501"}) {
		t.Errorf("the last partition is %v, %v", last, err)
	}
}

// Where the next partition cannot be made because somebody locks the log, appends
// go on.
func TestPartitionAheadMustWait(t *testing.T) {
	t.Parallel()
	s := eventingtest.MigratedStore(t)
	execute(t, s, "DROP TABLE hodei.events_10000001")
	execute(t, s, "DELETE FROM hodei.event_partitions WHERE first_position > 1")
	locker, err := s.Pool().Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{"SET LOCAL idle_in_transaction_session_timeout = 0", "LOCK TABLE hodei.events IN SHARE UPDATE EXCLUSIVE MODE"} {
		if _, err := locker.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	execute(t, s, "CREATE OR REPLACE FUNCTION hodei.partition_size() RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT 1000::bigint'")
	stream := storetest.NewStream("job")
	for v := range 3 {
		if _, err := s.Append(t.Context(), storetest.One(storetest.NewChange(t, stream, v, 1))); err != nil {
			t.Fatal(err)
		}
	}
	if err := locker.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Append(t.Context(), storetest.One(storetest.NewChange(t, stream, 3, 1))); err != nil {
		t.Fatal(err)
	}
	var n int
	if err := s.Pool().QueryRow(t.Context(), "SELECT count(*) FROM hodei.event_partitions").Scan(&n); err != nil || n != 2 {
		t.Errorf("%d partitions, %v", n, err)
	}
}
