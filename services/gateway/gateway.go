// Package gateway is the clients' one door: it hands each gRPC call to the
// service that owns it, and answers for the state of all. It keeps nothing and
// decides nothing about jobs.
package gateway

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/config"
	"hodei.dev/libs/platform/lifecycle"
	"hodei.dev/libs/platform/process"
	platformrpc "hodei.dev/libs/platform/rpc"
	"hodei.dev/services/gateway/internal/rpc"
)

// Config is the gateway's configuration. It needs neither Postgres nor NATS.
type Config struct {
	config.Common `yaml:",inline"`
	// The services' gRPC addresses: "host:port" or "unix:///path". Defaults are
	// the names and ports of deploy/compose.
	Scheduler      string `yaml:"scheduler_address" env:"HODEI_SCHEDULER_ADDRESS"`
	Registry       string `yaml:"registry_address" env:"HODEI_REGISTRY_ADDRESS"`
	Provisioner    string `yaml:"provisioner_address" env:"HODEI_PROVISIONER_ADDRESS"`
	Audit          string `yaml:"audit_address" env:"HODEI_AUDIT_ADDRESS"`
	Dispatcher     string `yaml:"dispatcher_address" env:"HODEI_DISPATCHER_ADDRESS"`
	TimeoutMonitor string `yaml:"timeout_monitor_address" env:"HODEI_TIMEOUT_MONITOR_ADDRESS"`
	Relay          string `yaml:"relay_address" env:"HODEI_RELAY_ADDRESS"`
}

// DefaultListen is where clients look for the gateway.
const DefaultListen = "127.0.0.1:7433"

// Default returns the defaults.
func Default() Config {
	c := Config{
		Common: config.DefaultCommon(), Scheduler: "scheduler:7440", Registry: "registry:7440", Provisioner: "provisioner:7440",
		Audit: "audit:7440", Dispatcher: "dispatcher:7440", TimeoutMonitor: "timeout-monitor:7440", Relay: "relay:7440",
	}
	c.Listen = DefaultListen
	return c
}

// Validate reports every wrong field.
func (c *Config) Validate() error {
	wrong := c.Require("listen")
	for _, b := range c.backends() {
		if b.Address == "" {
			wrong = append(wrong, fault.Field{Name: b.Name + "_address", Problem: "is required: \"host:port\" or \"unix:///path\""})
		}
	}
	return wrong.Err("the configuration")
}

func (c *Config) backends() []rpc.Address {
	return []rpc.Address{
		{Name: "scheduler", Address: c.Scheduler},
		{Name: "dispatcher", Address: c.Dispatcher},
		{Name: "registry", Address: c.Registry},
		{Name: "provisioner", Address: c.Provisioner},
		{Name: "timeout-monitor", Address: c.TimeoutMonitor},
		{Name: "audit", Address: c.Audit},
		{Name: "relay", Address: c.Relay},
	}
}

// Service describes the gateway to its main and to `hodei dev`.
func Service() process.Service[Config] {
	return process.Service[Config]{Name: "gateway", Short: "the clients' one door: routes each call to the service that owns it", Default: Default, Run: Run}
}

// Run serves until ctx ends.
//
//	clients ──▶ gateway ──by service name──▶ scheduler, registry, provisioner, audit
//	               └─ GetStatus: asks every service
func Run(ctx context.Context, cfg Config, env process.Env) error {
	backends, err := rpc.Dial(cfg.backends(), env.Tel)
	if err != nil {
		return fmt.Errorf("reach the services: %w", err)
	}
	defer backends.Close()
	server, err := platformrpc.NewServer(platformrpc.Options{
		Listen: cfg.Listen, Log: env.Log, Tel: env.Tel, ServerOptions: []grpc.ServerOption{rpc.Codec()},
	})
	if err != nil {
		return err
	}
	if err := backends.Register(server.GRPC()); err != nil {
		server.Close()
		return err
	}
	env.Health.OnChange(server.SetServing)
	return lifecycle.Run(ctx, time.Duration(cfg.ShutdownGrace), env.Log,
		lifecycle.Part{Name: "backends", Run: backends.Watch(env.Health)},
		lifecycle.Part{Name: "grpc", Run: server.Run},
	)
}
