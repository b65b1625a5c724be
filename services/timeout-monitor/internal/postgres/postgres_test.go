package postgres_test

import (
	"io/fs"
	"strings"
	"testing"

	"hodei.dev/libs/eventing/projection"
	"hodei.dev/services/timeout-monitor/internal/postgres"
)

func TestMigrationHasTheLibrarysTables(t *testing.T) {
	sql, err := fs.ReadFile(postgres.Migrations(), "00001_timeout_monitor.sql")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(sql), strings.TrimSpace(projection.DDL(postgres.Schema))) {
		t.Errorf("the migration does not contain projection.DDL:\n%s", projection.DDL(postgres.Schema))
	}
}
