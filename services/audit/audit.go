// Package audit is the service that keeps every event and answers who did what,
// when and why.
package audit

import (
	"context"
	"fmt"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/platform/process"
	"hodei.dev/libs/service/chassis"
	auditv1 "hodei.dev/proto/hodei/audit/v1"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
	"hodei.dev/services/audit/internal/app"
	"hodei.dev/services/audit/internal/postgres"
	"hodei.dev/services/audit/internal/rpc"
)

// Config is the audit's configuration.
type Config struct {
	chassis.Config `yaml:",inline"`
}

// Default returns the defaults.
func Default() Config { return Config{Config: chassis.DefaultConfig()} }

// Service describes the audit to its main and to `hodei dev`.
func Service() process.Service[Config] {
	return process.Service[Config]{
		Name: catalogue.Audit, Short: "keeps every event and answers who did what, when and why", Default: Default, Run: Run, Migrate: Migrate,
	}
}

func spec() chassis.Spec {
	return chassis.Spec{
		Name: catalogue.Audit, Schema: postgres.Schema, Migrations: postgres.Migrations(), ServesWithoutNATS: true,
	}
}

// Migrate brings the event log's schema and the audit's own up to date.
func Migrate(ctx context.Context, cfg Config) error {
	return chassis.Migrate(ctx, spec(), cfg.PostgresURL)
}

// Run keeps and answers until ctx ends.
//
//	HODEI_EVENTS ──every event──▶ projection (one active) ──▶ audit.log ──▶ search, count, trace ◀── rpc ◀── auditor
//	     ▲ what is missing there           ▲                     │                                   │
//	  event log ───────────────────────────┘                audit.events (SQL)       HODEI_DLQ_* ────┘
func Run(ctx context.Context, cfg Config, env process.Env) error {
	// Known from the start, so that an open database alone is not yet readiness.
	env.Health.Check("projection")
	c, err := chassis.Open(ctx, spec(), cfg.Config, env)
	if err != nil {
		return err
	}
	projection, err := newProjection(c)
	if err != nil {
		c.Close()
		return fmt.Errorf("make the projection: %w", err)
	}
	log := postgres.NewLog(c.Store.Pool())
	letters := &app.Letters{Log: log, Store: c.Store, Changes: letterChanges(c.NC)}
	if c.RPC != nil {
		auditv1.RegisterAuditServiceServer(c.RPC.GRPC(), &rpc.Server{Audit: app.New(log, c.Store)})
		auditv1.RegisterDeadLetterServiceServer(c.RPC.GRPC(), &rpc.DeadLetters{Letters: letters, Log: c.Store, Meta: c.Meta})
	}
	c.OnStatus(func(ctx context.Context, s *platformv1.ServiceStatus) { fillStatus(ctx, s, projection, log) })
	return c.Run(ctx, c.Exclusive("projection", func(ctx context.Context) error {
		if err := c.EnsureStreams(ctx); err != nil {
			return err
		}
		return projection.Run(ctx)
	}))
}
