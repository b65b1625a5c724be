// Package postgres is the audit log in Postgres: the projection of every event
// into audit.log, and the searches, counts and traces that are read from it.
package postgres

import (
	"embed"
	"io/fs"
)

// Schema is the audit's schema.
const Schema = "audit"

//go:embed migrations/*.sql
var migrationFiles embed.FS

// Migrations are the schema's, for hodei.dev/libs/eventing/migrations.
func Migrations() fs.FS {
	sub, err := fs.Sub(migrationFiles, "migrations")
	if err != nil {
		panic(err) // the embedded directory has this name
	}
	return sub
}
