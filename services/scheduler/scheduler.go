// Package scheduler is the service that takes jobs and answers for them: the
// public API of jobs over the event log, and the read model that lists are read from.
package scheduler

import (
	"context"
	"fmt"
	"time"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/platform/lifecycle"
	"hodei.dev/libs/platform/process"
	"hodei.dev/libs/service/chassis"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
	"hodei.dev/services/scheduler/internal/app"
	"hodei.dev/services/scheduler/internal/consume"
	"hodei.dev/services/scheduler/internal/postgres"
	"hodei.dev/services/scheduler/internal/rpc"
)

// Service describes the scheduler to its main and to `hodei dev`.
func Service() process.Service[Config] {
	return process.Service[Config]{
		Name: catalogue.Scheduler, Short: "takes jobs and answers for them", Default: Default, Run: Run, Migrate: Migrate,
	}
}

func spec() chassis.Spec {
	return chassis.Spec{
		Name: catalogue.Scheduler, Schema: postgres.Schema, Migrations: postgres.Migrations(), ServesWithoutNATS: true,
	}
}

// Migrate brings the event log's schema and the scheduler's own up to date.
func Migrate(ctx context.Context, cfg Config) error {
	return chassis.Migrate(ctx, spec(), cfg.PostgresURL)
}

// Run serves jobs until ctx ends.
//
//	client ──▶ rpc ──▶ app ──append──▶ event log ──relay──▶ HODEI_EVENTS
//	            │       └──fold────────────┘                 │       │
//	            │ lists, counts                              │       │ every replica
//	            ▼                               one active   │       ▼
//	     scheduler.jobs ◀────────── projection ◀─────────────┘  hub ──▶ watches
func Run(ctx context.Context, cfg Config, env process.Env) error {
	// Known from the start, so that an open database alone is not yet readiness.
	env.Health.Check("projection")
	live := env.Health.Check("live")
	c, err := chassis.Open(ctx, spec(), cfg.Config, env)
	if err != nil {
		return err
	}
	projection, err := newProjection(c)
	if err != nil {
		c.Close()
		return fmt.Errorf("make the projection: %w", err)
	}
	hub := consume.NewHub(c.NC, c.JS, c.Log, live)
	read := postgres.NewJobs(c.Store.Pool())
	if c.RPC != nil {
		providers := postgres.NewProviders(c.Store.Pool(), c.Store, c.Name)
		schedulerv1.RegisterJobServiceServer(c.RPC.GRPC(), &rpc.Server{
			Jobs: app.New(c.Store, providers, app.NewGate(cfg.Admission.limits(), read, time.Now), time.Now), Read: read, Meta: c.Meta,
			Watch:    func(jobID string) rpc.Feed { return hub.Watch(jobID) },
			WatchAll: func() rpc.Feed { return hub.WatchAll() },
		})
	}
	c.OnStatus(func(ctx context.Context, s *platformv1.ServiceStatus) {
		fillStatus(ctx, s, c, projection, read)
		if trouble := hub.Trouble(); trouble != "" {
			s.Problems["live"] = trouble
		}
	})
	return c.Run(ctx,
		c.Exclusive("projection", func(ctx context.Context) error {
			if err := c.EnsureStreams(ctx); err != nil {
				return err
			}
			return projection.Run(ctx)
		}),
		lifecycle.Part{Name: "live", Run: hub.Run},
	)
}
