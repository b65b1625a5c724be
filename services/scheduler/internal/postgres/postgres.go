// Package postgres is the scheduler's read model: the projection of job events
// into tables, and the lists and counts that are read from them. It can be
// rebuilt from the log; it is a little behind the log, never wrong about it.
package postgres

import (
	"embed"
	"io/fs"
)

// Schema is the scheduler's schema.
const Schema = "scheduler"

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
