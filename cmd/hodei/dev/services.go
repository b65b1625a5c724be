package dev

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"

	"hodei.dev/libs/platform/config"
	"hodei.dev/libs/platform/lifecycle"
	"hodei.dev/libs/platform/process"
	"hodei.dev/libs/platform/telemetry"
	"hodei.dev/libs/service/chassis"
	"hodei.dev/services/audit"
	"hodei.dev/services/dispatcher"
	"hodei.dev/services/gateway"
	"hodei.dev/services/provisioner"
	"hodei.dev/services/registry"
	"hodei.dev/services/relay"
	"hodei.dev/services/scheduler"
	timeoutmonitor "hodei.dev/services/timeout-monitor"
)

// ground is what the services of one process share.
type ground struct {
	postgres string
	natsURL  string
	nats     nats.InProcessConnProvider
	sockets  string
	logs     io.Writer
	log      *slog.Logger
	cfg      Config
	grace    time.Duration
}

func (g *ground) socket(service string) string { return "unix://" + filepath.Join(g.sockets, service) }

// common is the part of the configuration that all services have.
func (g *ground) common(service string) chassis.Config {
	c := chassis.DefaultConfig()
	c.PostgresURL, c.NATSURL, c.InProcessNATS = g.postgres, g.natsURL, g.nats
	c.Listen, c.LogLevel, c.ShutdownGrace = g.socket(service), g.cfg.LogLevel, config.Duration(g.grace)
	return c
}

// fleet is the services as parts of this process, in the order in which they
// start; they stop in the opposite order.
type fleet struct {
	ground *ground
	parts  []lifecycle.Part
	health map[string]*process.Health
	close  []func(context.Context) error
	// failed is the first error; what comes after it is not tried.
	failed error
}

// add makes a part of a service that is configured already.
func add[C any](ctx context.Context, f *fleet, s process.Service[C], cfg C) {
	if f.failed == nil {
		f.failed = join(ctx, f, s, cfg)
	}
}

func join[C any](ctx context.Context, f *fleet, s process.Service[C], cfg C) error {
	if s.Migrate != nil {
		if err := s.Migrate(ctx, cfg); err != nil {
			return fmt.Errorf("migrate %s: %w", s.Name, err)
		}
	}
	tel, err := telemetry.Setup(ctx, telemetry.Options{
		Service: s.Name, Version: process.Version(), LogLevel: f.ground.cfg.LogLevel, LogFormat: f.ground.cfg.LogFormat, LogWriter: f.ground.logs,
	})
	if err != nil {
		return fmt.Errorf("telemetry of %s: %w", s.Name, err)
	}
	f.close = append(f.close, tel.Shutdown)
	env := process.Env{Log: tel.Log, Tel: tel, Health: process.NewHealth(nil), Version: process.Version()}
	f.health[s.Name] = env.Health
	f.parts = append(f.parts, lifecycle.Part{Name: s.Name, Run: func(ctx context.Context) error { return s.Run(ctx, cfg, env) }})
	return nil
}

// assemble configures every service. Intake stops first: the gateway, then who
// decides, then who has workers; the relay, which all need, last.
func assemble(ctx context.Context, g *ground, data *dataDir, agentListen string) (*fleet, error) {
	f := &fleet{ground: g, health: map[string]*process.Health{}}

	rel := relay.Default()
	rel.Config = g.common("relay")
	aud := audit.Default()
	aud.Config = g.common("audit")
	reg := registry.Default()
	reg.Config, reg.AgentListen, reg.AgentAddress = g.common("registry"), agentListen, agentListen
	mon := timeoutmonitor.Default()
	mon.Config = g.common("timeout-monitor")
	pro := provisioner.Default()
	pro.Config, pro.RegistryAddress = g.common("provisioner"), g.socket("registry")
	pro.StateDir, pro.StopWorkers = data.workersDir(), true
	pro.AgentBinary, pro.RunAs, pro.Providers = g.cfg.AgentBinary, g.cfg.RunAs, g.cfg.providers()
	dis := dispatcher.Default()
	dis.Config = g.common("dispatcher")
	sch := scheduler.Default()
	sch.Config = g.common("scheduler")
	gat := gateway.Default()
	gat.Common = g.common("gateway").Common
	gat.Listen, gat.Insecure = g.cfg.Listen, g.cfg.Insecure
	gat.Scheduler, gat.Dispatcher, gat.Registry, gat.Provisioner = g.socket("scheduler"), g.socket("dispatcher"), g.socket("registry"), g.socket("provisioner")
	gat.TimeoutMonitor, gat.Audit, gat.Relay = g.socket("timeout-monitor"), g.socket("audit"), g.socket("relay")

	add(ctx, f, relay.Service(), rel)
	add(ctx, f, audit.Service(), aud)
	add(ctx, f, registry.Service(), reg)
	f.addSettling(g.log)
	add(ctx, f, timeoutmonitor.Service(), mon)
	add(ctx, f, provisioner.Service(), pro)
	add(ctx, f, dispatcher.Service(), dis)
	add(ctx, f, scheduler.Service(), sch)
	add(ctx, f, gateway.Service(), gat)
	return f, f.failed
}

// addSettling makes a part that does nothing while the process runs. When it
// stops, it gives the registry the time to hear of the workers that the
// provisioner has just ended, so that their jobs are queued again before the end
// rather than at the next start. Jobs on workers elsewhere go on.
func (f *fleet) addSettling(log *slog.Logger) {
	f.parts = append(f.parts, lifecycle.Part{Name: "settling", Run: func(ctx context.Context) error {
		<-ctx.Done()
		wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		if err := settle(wait, f.ground.postgres); err != nil {
			log.InfoContext(ctx, "jobs go on without this process", "reason", err)
		}
		return nil
	}})
}
