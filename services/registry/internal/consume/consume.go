// Package consume is how registry follows the event log: one consumer for what
// has consequences, one projection for the list of workers. Both are
// single-active; their positions stand in registry's schema.
package consume

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/projection"
	"hodei.dev/libs/service/chassis"
	"hodei.dev/services/registry/internal/app"
	"hodei.dev/services/registry/internal/postgres"
)

// meter names the instruments of consumers.
const meter = "hodei.dev/eventing"

// Reactions returns the consumer that does what follows from events.
func Reactions(c *chassis.Chassis, a *app.App) (*consumer.Consumer, error) {
	positions, pool := consumer.NewPositions(postgres.Schema), c.Store.Pool()
	save := func(ctx context.Context, position int64) error { return positions.Save(ctx, pool, c.Name, position) }
	return consumer.New(consumer.Config{
		Service: c.Name, Types: app.Reacts(),
		Start: func(ctx context.Context) (int64, error) { return positions.Load(ctx, pool, c.Name) },
		Handle: func(ctx context.Context, events []event.Event) error {
			for _, e := range events {
				if err := a.React(ctx, e); err != nil {
					return err
				}
			}
			return nil // the position is saved by Checkpoint: seeing an event again changes nothing
		},
		DeadLettered: func(ctx context.Context, e event.Event, _ error) error { return save(ctx, e.Position) },
		Checkpoint:   save, Store: c.Store, NC: c.NC, JS: c.JS, Replicas: c.Replicas, Letters: c.Letters(), Incident: c.Incidents.Report, Log: c.Log, Meter: c.Tel.Meter(meter),
	})
}

// Workers returns the projection of the list of workers.
func Workers(c *chassis.Chassis, list *postgres.Workers) (*projection.Projection, error) {
	return projection.New(projection.Config{
		Service: c.Name, Schema: postgres.Schema, Name: bus.ConsumerName(c.Name, "workers"), Types: WorkerTypes(),
		Apply: func(ctx context.Context, tx pgx.Tx, events []event.Event) error {
			return list.Apply(ctx, tx, events)
		},
		Reset: list.Reset, Pool: c.Store.Pool(), Store: c.Store, NC: c.NC, JS: c.JS, Replicas: c.Replicas, Letters: c.Letters(), Incident: c.Incidents.Report, Log: c.Log, Meter: c.Tel.Meter(meter),
	})
}

// WorkerTypes are the types of the events that the list is made from, and that
// watchers hear of.
func WorkerTypes() []string { return consumed(catalogue.Worker) }

// JobTypes are the types of the events that end or begin an attempt of a job.
func JobTypes() []string { return []string{"JobAssigned", "JobStatusChanged", "JobRequeued"} }

func consumed(aggregate string) []string {
	var types []string
	for _, e := range catalogue.Entries {
		if e.Role != catalogue.Telemetry && slices.Contains(e.Aggregates, aggregate) && slices.Contains(e.Consumers, catalogue.Registry) {
			types = append(types, e.Type)
		}
	}
	return types
}
