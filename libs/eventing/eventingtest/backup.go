package eventingtest

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"
)

// Backup copies a database of this package as it is now, and returns what takes
// the database back to that: what was committed since is lost, as with a backup
// that was restored or a standby that was behind. Both cut every connection to it;
// nobody is told, and clients find another past when they come back.
func Backup(tb testing.TB, database string) (restore func()) {
	tb.Helper()
	u, err := url.Parse(database)
	if err != nil {
		tb.Fatal(err)
	}
	name := strings.TrimPrefix(u.Path, "/")
	admin := withDatabase(database, "postgres")
	copied, lost := name+"_backup", name+"_lost"
	run := func(sql string) {
		tb.Helper()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), time.Minute)
		defer cancel()
		if err := execute(ctx, admin, sql); err != nil {
			tb.Fatalf("%s: %v", sql, err)
		}
	}
	// Whoever is connected keeps a database from being copied or renamed.
	alone := func(work ...string) {
		tb.Helper()
		run(fmt.Sprintf("ALTER DATABASE %s ALLOW_CONNECTIONS false", name))
		run(fmt.Sprintf("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '%s'", name))
		for _, sql := range work {
			run(sql)
		}
	}
	alone(fmt.Sprintf("CREATE DATABASE %s TEMPLATE %s", copied, name), fmt.Sprintf("ALTER DATABASE %s ALLOW_CONNECTIONS true", name))
	tb.Cleanup(func() {
		for _, left := range []string{copied, lost} {
			run("DROP DATABASE IF EXISTS " + left + " WITH (FORCE)")
		}
	})
	return func() {
		tb.Helper()
		alone(
			fmt.Sprintf("ALTER DATABASE %s RENAME TO %s", name, lost), fmt.Sprintf("ALTER DATABASE %s RENAME TO %s", copied, name),
			fmt.Sprintf("ALTER DATABASE %s ALLOW_CONNECTIONS true", name),
		)
	}
}
