package audit

import (
	"context"

	"github.com/jackc/pgx/v5"

	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/deadletter"
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
		Pool: c.Store.Pool(), Store: c.Store, NC: c.NC, JS: c.JS, Letters: c.Letters(), Incident: c.Incidents.Report, Log: c.Log, Meter: c.Tel.Meter("hodei.dev/eventing"),
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

// fillStatus says how far the audit log is and what all services could not handle.
func fillStatus(ctx context.Context, s *platformv1.ServiceStatus, c *chassis.Chassis, p *projection.Projection, log *postgres.Log) {
	last, err := log.Last(ctx)
	if err != nil {
		s.Problems["audit log"] = err.Error()
	}
	s.Position, s.Lag = last, max(0, s.Head-last)
	s.Figures["events"] = last
	if retrying := p.Status().Retrying; retrying != "" {
		s.Problems["projection"] = retrying
	}
	counts, err := deadletter.Count(ctx, c.JS)
	if err != nil {
		s.Problems["dead letters"] = err.Error()
		return
	}
	s.DeadLetters = int64(counts[c.Name])
	for _, n := range counts {
		s.Figures["dead_letters"] += int64(n)
	}
}
