package scheduler

import (
	"context"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/eventing/projection"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/chassis"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
	"hodei.dev/services/scheduler/internal/postgres"
)

// newProjection makes what keeps the read model up to date.
func newProjection(c *chassis.Chassis) (*projection.Projection, error) {
	return projection.New(projection.Config{
		Service: c.Name, Schema: postgres.Schema, Types: catalogue.Consumed(c.Name), Apply: postgres.Apply, Reset: postgres.Reset,
		Pool: c.Store.Pool(), Store: c.Store, NC: c.NC, JS: c.JS, Replicas: c.Replicas, Letters: c.Letters(), Incident: c.Incidents.Report, Log: c.Log, Meter: c.Tel.Meter("hodei.dev/eventing"),
	})
}

// fillStatus says how far the read model is and how many jobs wait.
func fillStatus(ctx context.Context, s *platformv1.ServiceStatus, c *chassis.Chassis, p *projection.Projection, read *postgres.Jobs) {
	position, err := reached(ctx, s.Head, c, p)
	if err != nil {
		s.Problems["projection"] = err.Error()
	}
	s.Position, s.Lag = position, max(0, s.Head-position)
	if retrying := p.Status().Retrying; retrying != "" {
		s.Problems["projection"] = retrying
	}
	counts, err := read.Counts(ctx, "")
	if err != nil {
		s.Problems["counters"] = err.Error()
	}
	s.Figures["queue_depth"] = counts[string(job.StatePending)]
	for _, state := range []job.State{job.StateScheduled, job.StateAssigned, job.StateRunning} {
		s.Figures["in_flight"] += counts[string(state)]
	}
}

// reached is how far the read model is: the head where nothing before it is of
// its types, although its stored position follows only now and then.
func reached(ctx context.Context, head int64, c *chassis.Chassis, p *projection.Projection) (int64, error) {
	position, err := p.Position(ctx)
	if err != nil || position >= head {
		return position, err
	}
	waiting, err := c.Store.Read(ctx, store.ReadOptions{After: position, Through: head, Types: catalogue.Consumed(c.Name), Limit: 1})
	if err != nil || len(waiting) > 0 {
		return position, err
	}
	return head, nil
}
