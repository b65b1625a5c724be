// Package dispatcher is the service that decides which job runs where: it keeps
// the ready queue and the idle workers, assigns jobs, has workers made, and hands
// jobs over to their workers' sessions.
package dispatcher

import (
	"context"
	"time"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/circuit"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/config"
	"hodei.dev/libs/platform/process"
	"hodei.dev/libs/service/chassis"

	"hodei.dev/services/dispatcher/core"
	"hodei.dev/services/dispatcher/internal/metrics"
)

// Config is the dispatcher's configuration.
type Config struct {
	chassis.Config `yaml:",inline"`
	// InFlight is the most decisions that are being appended at once: 1 to 4096, default 128.
	InFlight int `yaml:"in_flight" env:"HODEI_DISPATCHER_IN_FLIGHT"`
	// HandOverTimeout is how long a worker's session may take to accept a job; then
	// the job is queued again and the worker goes. Default 5s, less than 30s: then the
	// deadline of ASSIGNED is there.
	HandOverTimeout config.Duration `yaml:"hand_over_timeout" env:"HODEI_DISPATCHER_HAND_OVER_TIMEOUT"`
	// HandOverGrace is how long an attempt waits for the next session of its worker where
	// the one that it was given to is gone, as while a registry restarts; then the job is
	// queued again and the worker goes. Default 8s; together with hand_over_timeout less than 30s.
	HandOverGrace config.Duration `yaml:"hand_over_grace" env:"HODEI_DISPATCHER_HAND_OVER_GRACE"`
	// BreakerFailures is how many failures in a row open the circuit of a provider or of a
	// path to workers. Default 3.
	BreakerFailures int `yaml:"breaker_failures" env:"HODEI_DISPATCHER_BREAKER_FAILURES"`
	// ProviderProbeAfter is when a provider whose circuit has opened is tried again, by
	// having it make one worker; each try that fails doubles it, up to 12 times as long. Default 5s.
	ProviderProbeAfter config.Duration `yaml:"provider_probe_after" env:"HODEI_DISPATCHER_PROVIDER_PROBE_AFTER"`
	// PathProbeAfter is when a registry replica that could not be reached is asked again;
	// each try that fails doubles it, up to 30 times as long. Default 1s.
	PathProbeAfter config.Duration `yaml:"path_probe_after" env:"HODEI_DISPATCHER_PATH_PROBE_AFTER"`
}

// Default returns the defaults.
func Default() Config {
	circuits := core.DefaultPolicies()
	return Config{
		Config: chassis.DefaultConfig(), InFlight: 128, HandOverTimeout: config.Duration(5 * time.Second), HandOverGrace: config.Duration(8 * time.Second),
		BreakerFailures: circuits.Path.Failures, ProviderProbeAfter: config.Duration(circuits.Provider.FirstPause), PathProbeAfter: config.Duration(circuits.Path.FirstPause),
	}
}

// Validate reports every wrong field.
func (c *Config) Validate() error {
	if err := c.Config.Validate(); err != nil {
		return err
	}
	var wrong fault.Fields
	if c.InFlight < 1 || c.InFlight > 4096 {
		wrong.Add("in_flight", "%d: from 1 to 4096", c.InFlight)
	}
	if d := time.Duration(c.HandOverTimeout); d <= 0 || d >= 30*time.Second {
		wrong.Add("hand_over_timeout", "%s: more than 0 and less than 30s", d)
	}
	if d := time.Duration(c.HandOverGrace); d <= 0 || d+time.Duration(c.HandOverTimeout) >= 30*time.Second {
		wrong.Add("hand_over_grace", "%s: more than 0, and together with hand_over_timeout less than 30s", d)
	}
	if c.BreakerFailures < 1 || c.BreakerFailures > 100 {
		wrong.Add("breaker_failures", "%d: from 1 to 100", c.BreakerFailures)
	}
	if d := time.Duration(c.ProviderProbeAfter); d <= 0 || d > time.Hour {
		wrong.Add("provider_probe_after", "%s: more than 0, at most 1h", d)
	}
	if d := time.Duration(c.PathProbeAfter); d <= 0 || d > time.Hour {
		wrong.Add("path_probe_after", "%s: more than 0, at most 1h", d)
	}
	return wrong.Err("the configuration")
}

// policies are those of circuits.
func (c *Config) policies() core.Policies {
	of := func(first config.Duration, times time.Duration) circuit.Policy {
		return circuit.Policy{Failures: c.BreakerFailures, FirstPause: time.Duration(first), MostPause: times * time.Duration(first)}
	}
	return core.Policies{Provider: of(c.ProviderProbeAfter, 12), Path: of(c.PathProbeAfter, 30)}
}

// Service describes the dispatcher to its main and to `hodei dev`.
func Service() process.Service[Config] {
	return process.Service[Config]{
		Name: catalogue.Dispatcher, Short: "decides which job runs where", Default: Default, Run: Run, Migrate: Migrate,
	}
}

func spec() chassis.Spec { return chassis.Spec{Name: catalogue.Dispatcher} }

// Migrate brings the event log's schema up to date; the dispatcher has none of its own.
func Migrate(ctx context.Context, cfg Config) error {
	return chassis.Migrate(ctx, spec(), cfg.PostgresURL)
}

// Run dispatches until ctx ends. One replica is active, the others stand by.
//
//	live streams ──snapshot──▶ ┌─────────┐ ──append──▶ the log: JobAssigned, JobScheduled, ...
//	                           │   app   │
//	HODEI_EVENTS ──consumer──▶ │ (core)  │ ──RUN────▶ hodei.cmd.<worker>.<epoch> (registry)
//	                           └─────────┘ ◀─accepted─
func Run(ctx context.Context, cfg Config, env process.Env) error {
	c, err := chassis.Open(ctx, spec(), cfg.Config, env)
	if err != nil {
		return err
	}
	a := &active{chassis: c, cfg: cfg}
	if a.meter, err = metrics.New(c.Tel.Meter("hodei.dev/services/dispatcher"), a.figures); err != nil {
		c.Close()
		return err
	}
	c.OnStatus(a.status)
	c.OnExamine(a.examine)
	return c.Run(ctx, c.Exclusive("dispatch", a.run))
}
