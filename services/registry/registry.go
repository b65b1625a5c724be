// Package registry is the service that holds the agents' door: it lets agents in
// by token, keeps their sessions, hands attempts over, takes their results and
// their output, and owns the life of workers between the provider's two words.
package registry

import (
	"context"
	"time"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/platform/config"
	"hodei.dev/libs/platform/lifecycle"
	"hodei.dev/libs/platform/process"
	"hodei.dev/libs/service/chassis"
	"hodei.dev/services/registry/internal/postgres"
)

// Config is the registry's configuration.
type Config struct {
	chassis.Config `yaml:",inline"`
	// AgentListen is where agents are served: "host:port" (port 0 = any free one) or
	// "unix:///path". It always demands a token. Default 127.0.0.1:7434.
	AgentListen string `yaml:"agent_listen" env:"HODEI_AGENT_LISTEN"`
	// AgentAddress is what agents dial, as it is told with each token: a name that
	// reaches any replica. Default: the address that AgentListen got.
	AgentAddress string `yaml:"agent_address" env:"HODEI_AGENT_ADDRESS"`
	// LogRetention is how long the output of jobs is kept, in whole days (UTC).
	// Default 720h (30 days); "none" keeps it for ever.
	LogRetention config.Duration `yaml:"log_retention" env:"HODEI_LOG_RETENTION"`
}

// Default returns the defaults.
func Default() Config {
	return Config{Config: chassis.DefaultConfig(), AgentListen: "127.0.0.1:7434", LogRetention: config.Duration(30 * 24 * time.Hour)}
}

// Service describes the registry to its main and to `hodei dev`.
func Service() process.Service[Config] {
	return process.Service[Config]{
		Name: catalogue.Registry, Short: "holds the agents' door, the life of workers and the output of jobs", Default: Default, Run: Run, Migrate: Migrate,
	}
}

func spec() chassis.Spec {
	return chassis.Spec{Name: catalogue.Registry, Schema: postgres.Schema, Migrations: postgres.Migrations()}
}

// Migrate brings the event log's schema and the registry's own up to date.
func Migrate(ctx context.Context, cfg Config) error {
	return chassis.Migrate(ctx, spec(), cfg.PostgresURL)
}

// Run serves agents and their observers until ctx ends.
//
//	agent ◀─Connect─▶ session ◀──commands (NATS)── dispatcher, reactions of any replica
//	  │                  │ decides in app ──append──▶ event log ──relay──▶ HODEI_EVENTS
//	  │                  └─heartbeats─▶ HODEI_TELEMETRY                     │        │
//	  │                                                         one active  │        │ while watched
//	  │                                    reactions, registry.workers ◀────┘        ▼
//	  └──SendLogs──▶ ingest ──▶ registry.log_chunks ──▶ ReadLogs ◀── live (NATS), job hub
//
// Agents come last and leave first: while they are connected, all else is there.
func Run(ctx context.Context, cfg Config, env process.Env) error {
	c, err := chassis.Open(ctx, spec(), cfg.Config, env)
	if err != nil {
		return err
	}
	w, err := wire(c, cfg)
	if err != nil {
		c.Close()
		return err
	}
	c.OnStatus(w.fillStatus)
	return c.Run(ctx,
		lifecycle.Part{Name: "log days", Run: w.keeper.Run},
		c.Exclusive("workers", w.exclusive(w.projection.Run)),
		c.Exclusive("reactions", w.exclusive(w.reactions.Run)),
		lifecycle.Part{Name: "job hub", Run: w.jobHub.Run},
		lifecycle.Part{Name: "worker hub", Run: w.workerHub.Run},
		lifecycle.Part{Name: "log ingest", Run: w.ingest.Run},
		lifecycle.Part{Name: "sessions", Run: w.sessions.Run},
		lifecycle.Part{Name: "agents", Run: w.door.Run},
	)
}
