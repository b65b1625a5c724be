package postgres_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/migrations"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/services/scheduler/internal/postgres"
)

// tape is a log of one event, at position 5.
type tape struct{ event event.Event }

func (l tape) Read(_ context.Context, o store.ReadOptions) ([]event.Event, error) {
	if o.After >= l.event.Position {
		return nil, nil
	}
	return []event.Event{l.event}, nil
}

// A provider is known at every moment in which the projection is made anew.
func TestAProviderIsKnownWhileTheProjectionIsMadeAnew(t *testing.T) {
	url := eventingtest.Postgres(t)
	if err := migrations.Up(t.Context(), url, postgres.Schema, postgres.Migrations()); err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	stream := event.Stream{Type: "provider", ID: event.NewID()}
	registered, err := event.New(stream, event.Meta{Source: "test"}, provider.Registered{Spec: provider.Spec{Name: "load"}})
	if err != nil {
		t.Fatal(err)
	}
	registered.Position = 5
	move := func(position int64, do string, args ...any) error {
		return pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(t.Context(), do, args...); err != nil {
				return err
			}
			_, err := tx.Exec(t.Context(), `INSERT INTO scheduler.positions (name, position) VALUES ('scheduler', $1)
				ON CONFLICT (name) DO UPDATE SET position = excluded.position`, position)
			return err
		})
	}
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			err := move(9, `INSERT INTO scheduler.providers (id, name, enabled, position) VALUES ($1, 'load', true, 5)`, stream.ID)
			if err == nil {
				err = move(0, `TRUNCATE scheduler.providers`)
			}
			if err != nil {
				stopped <- err
				return
			}
		}
	}()
	providers := postgres.NewProviders(pool, tape{registered}, "scheduler")
	for n := range 2000 {
		if known, err := providers.Known(t.Context(), "load"); err != nil || !known {
			t.Errorf("question %d: known %t, %v", n, known, err)
			break
		}
	}
	close(stop)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
}
