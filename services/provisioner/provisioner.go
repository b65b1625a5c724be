// Package provisioner is the service that makes workers on providers and ends
// them for sure.
package provisioner

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/eventing/event"
	platform "hodei.dev/libs/platform/process"
	platformrpc "hodei.dev/libs/platform/rpc"
	"hodei.dev/libs/service/chassis"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
	provisionerv1 "hodei.dev/proto/hodei/provisioner/v1"
	"hodei.dev/services/provisioner/internal/app"
	"hodei.dev/services/provisioner/internal/external"
	"hodei.dev/services/provisioner/internal/process"
	"hodei.dev/services/provisioner/internal/registry"
	"hodei.dev/services/provisioner/internal/rpc"
)

const name = "provisioner"

// Service describes the provisioner to its main and to `hodei dev`.
func Service() platform.Service[Config] {
	return platform.Service[Config]{
		Name: name, Short: "makes workers on providers and ends them", Default: Default, Run: Run, Migrate: Migrate,
	}
}

// spec has no schema: what the provisioner knows is in the log and on its providers.
func spec() chassis.Spec { return chassis.Spec{Name: name} }

// Migrate brings the event log's schema up to date; the provisioner has none of its own.
func Migrate(ctx context.Context, cfg Config) error {
	return chassis.Migrate(ctx, spec(), cfg.PostgresURL)
}

// Run makes and ends workers until ctx ends.
//
//	operators ──▶ rpc ──▶ Providers ───────────────┬──▶ events
//	                          │ registers          │
//	events ──▶ consumer ──▶ Engine (one active) ───┘
//	                          │        ▲ gone
//	       registry ◀─ token ─┤        │
//	                          ▼        │
//	                       process: an agent in a process tree of this machine
//	                       external: an agent that somebody else starts
func Run(ctx context.Context, cfg Config, env platform.Env) error {
	machine, err := process.Machine()
	if err != nil {
		return err
	}
	local, err := process.New(process.Config{StateDir: cfg.StateDir, AgentBinary: cfg.AgentBinary, RunAs: cfg.RunAs, Log: env.Log})
	if err != nil {
		return fmt.Errorf("open the process provider: %w", err)
	}
	defer local.Close()
	if cfg.StopWorkers {
		defer endAll(local, env.Log)
	}
	conn, err := platformrpc.Dial(cfg.RegistryAddress, platformrpc.WithTelemetry(env.Tel))
	if err != nil {
		return fmt.Errorf("registry_address: %w", err)
	}
	defer conn.Close()
	c, err := chassis.Open(ctx, spec(), cfg.Config, env)
	if err != nil {
		return err
	}
	remote := external.New(external.Config{
		Fate: func(ctx context.Context, workerID string) (app.Fate, error) {
			return app.FateOf(ctx, c.Store, workerID)
		},
	})
	kinds := map[provider.Kind]app.Provider{provider.Process: local, provider.External: remote}
	engine := &app.Engine{
		Log: c.Store, Kinds: kinds, Fence: remote, Tokens: registry.NewTokens(conn),
		StopWorkers: cfg.StopWorkers, StopGrace: cfg.stopGrace(), Now: time.Now, NewID: event.NewID, Logger: c.Log,
	}
	providers := &app.Providers{Log: c.Store, Kinds: kinds, Tokens: engine.Tokens, Machine: machine, NewID: event.NewID, Engine: engine}
	engine.Providers = providers
	for _, p := range cfg.Providers {
		engine.Configured = append(engine.Configured, p.spec())
	}
	if c.RPC != nil {
		provisionerv1.RegisterProviderServiceServer(c.RPC.GRPC(), &rpc.Server{Providers: providers, Meta: c.Meta})
	}
	if err := observe(c.Tel, engine); err != nil {
		c.Close()
		return err
	}
	follow := &follower{chassis: c}
	engine.Follow = follow.run
	c.OnStatus(func(_ context.Context, s *platformv1.ServiceStatus) {
		follow.status(s, engine.Found(), engine.Alerts())
	})
	return c.Run(ctx, c.Exclusive("workers", engine.Run))
}

// endAll ends the workers that are left when the provisioner stops: the log could
// not be reached, or they came too late. The next one confirms their end.
func endAll(local *process.Provider, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	left, err := local.List(ctx)
	if err != nil {
		log.Error("cannot list the workers that are left", "error", err)
	}
	for _, r := range left {
		if err := local.Destroy(ctx, r.WorkerID); err != nil {
			log.Error("a worker is left behind", "worker", r.WorkerID, "error", err, "alert", true)
		}
	}
}
