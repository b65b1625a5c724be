package audit

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/projection"
	"hodei.dev/libs/service/chassis"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
	"hodei.dev/services/audit/internal/postgres"
)

// maxBatch is how many events one transaction takes.
const maxBatch = 1000

// newProjection makes what keeps the audit log up to date.
func newProjection(c *chassis.Chassis) (*projection.Projection, error) {
	return projection.New(projection.Config{
		Service: c.Name, Schema: postgres.Schema, Apply: keep(c), Reset: postgres.Reset, MaxBatch: maxBatch,
		Pool: c.Store.Pool(), Store: c.Store, NC: c.NC, JS: c.JS, Replicas: c.Replicas, Letters: c.Letters(), Incident: c.Incidents.Report, Log: c.Log, Meter: c.Tel.Meter("hodei.dev/eventing"),
	})
}

// keep stores events. What cannot be stored ends the projection, which then
// begins again from what is stored: an audit log that went on past an event would
// be worth nothing, so no event is ever set aside here.
func keep(c *chassis.Chassis) func(ctx context.Context, tx pgx.Tx, events []event.Event) error {
	return func(ctx context.Context, tx pgx.Tx, events []event.Event) error {
		err := postgres.Apply(ctx, tx, events)
		if err == nil || consumer.Transient(err) || ctx.Err() != nil {
			return err
		}
		c.Log.ErrorContext(ctx, "events cannot be stored: the audit log stands still until they can",
			"first", events[0].Position, "last", events[len(events)-1].Position, "error", err, "alert", true)
		return consumer.Stop(err)
	}
}

// fillStatus says how far the audit log is.
func fillStatus(ctx context.Context, s *platformv1.ServiceStatus, p *projection.Projection, log *postgres.Log) {
	last, err := log.Last(ctx)
	if err != nil {
		s.Problems["audit log"] = err.Error()
	}
	s.Position, s.Lag = last, max(0, s.Head-last)
	s.Figures["events"] = last
	if retrying := p.Status().Retrying; retrying != "" {
		s.Problems["projection"] = retrying
	}
}

// letterChanges hears of dead letters as the relay publishes what became of them.
func letterChanges(nc *nats.Conn) func() (<-chan struct{}, func(), error) {
	return func() (<-chan struct{}, func(), error) {
		changed := make(chan struct{}, 1)
		sub, err := nc.Subscribe(bus.EventSubject("*", catalogue.DeadLetter, "*"), func(*nats.Msg) {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
		if err != nil {
			return nil, nil, fmt.Errorf("listen for dead letters: %w", err)
		}
		return changed, func() { _ = sub.Unsubscribe() }, nil
	}
}
