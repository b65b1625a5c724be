package postgres_test

import (
	"io/fs"
	"strings"
	"testing"

	"hodei.dev/libs/eventing/relay"
	"hodei.dev/services/relay/internal/postgres"
)

func TestMigrationIsTheLibrarysTable(t *testing.T) {
	sql, err := fs.ReadFile(postgres.Migrations(), "00001_relay.sql")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(sql), strings.TrimSpace(relay.DDL)) {
		t.Errorf("the migration is not relay.DDL:\n%s", sql)
	}
}
