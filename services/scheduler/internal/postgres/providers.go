package postgres

import (
	"context"

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
	// projection is the name of the projection; events after its position are read from the log.
	projection string
}

// NewProviders returns the providers of a database, as the projection of this name has them.
func NewProviders(pool *pgxpool.Pool, log Log, projection string) *Providers {
	return &Providers{pool: pool, log: log, projection: projection}
}

// Known tells whether an enabled provider has this name or id. A name that the
// projection does not have yet is looked for in the rest of the log, so that a
// provider can be used as soon as its registration was answered.
func (p *Providers) Known(ctx context.Context, nameOrID string) (bool, error) {
	var known bool
	var position int64
	// Both of one moment: a projection that is being made anew goes back.
	err := p.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM scheduler.providers WHERE enabled AND (name = $1 OR id::text = lower($1))),
		coalesce((SELECT position FROM scheduler.positions WHERE name = $2), 0)`, nameOrID, p.projection).Scan(&known, &position)
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
