// Package postgres holds the schema of the relay: the places of events that
// could never be published. It holds no events: those stay in the log.
package postgres

import (
	"embed"
	"io/fs"
)

//go:embed migrations/*.sql
var files embed.FS

// Schema is the relay's part of the database.
const Schema = "relay"

// Migrations returns the relay's migrations.
func Migrations() fs.FS {
	sub, err := fs.Sub(files, "migrations")
	if err != nil {
		panic(err) // the directory is embedded: a build without it does not exist
	}
	return sub
}
