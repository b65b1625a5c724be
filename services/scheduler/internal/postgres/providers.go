package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"

	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
)

// tail is how many events of providers one read of the log takes.
const tail = 1000

// Log is the part of the event log that finds a provider that was registered
// just now. *store.Store is one.
type Log interface {
	Read(ctx context.Context, o store.ReadOptions) ([]event.Event, error)
}

// Providers knows which providers jobs may name. Safe for concurrent use.
type Providers struct {
	pool *pgxpool.Pool
	log  Log
	// position is where the projection is; events after it are read from the log.
	position func(ctx context.Context) (int64, error)
}

// NewProviders returns the providers of a database. position tells how far the
// projection is.
func NewProviders(pool *pgxpool.Pool, log Log, position func(ctx context.Context) (int64, error)) *Providers {
	return &Providers{pool: pool, log: log, position: position}
}

// Known tells whether an enabled provider has this name or id. A name that the
// projection does not have yet is looked for in the rest of the log, so that a
// provider can be used as soon as its registration was answered.
func (p *Providers) Known(ctx context.Context, nameOrID string) (bool, error) {
	position, err := p.position(ctx) // first, so that nothing falls between
	if err != nil {
		return false, fmt.Errorf("read the projection's position: %w", err)
	}
	var known bool
	err = p.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM scheduler.providers WHERE enabled AND (name = $1 OR id::text = lower($1)))`, nameOrID).Scan(&known)
	if err != nil || known {
		return known, err
	}
	for {
		events, err := p.log.Read(ctx, store.ReadOptions{After: position, Types: []string{"ProviderRegistered", "ProviderRemoved"}, Limit: tail})
		if err != nil {
			return false, err
		}
		for _, e := range events {
			name, enabled, ok, err := providerFact(e)
			if err == nil && ok && enabled && (name == nameOrID || e.Stream.ID == nameOrID) {
				return true, nil
			}
			position = e.Position
		}
		if len(events) < tail {
			return false, nil
		}
	}
}
