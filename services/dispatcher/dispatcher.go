// Package dispatcher is the service that decides which job runs where: it keeps
// the ready queue and the idle workers, assigns jobs, has workers made, and hands
// jobs over to their workers' sessions.
package dispatcher

import (
	"context"
	"time"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/config"
	"hodei.dev/libs/platform/process"
	"hodei.dev/libs/service/chassis"

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
}

// Default returns the defaults.
func Default() Config {
	return Config{Config: chassis.DefaultConfig(), InFlight: 128, HandOverTimeout: config.Duration(5 * time.Second)}
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
	return wrong.Err("the configuration")
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
	return c.Run(ctx, c.Exclusive("dispatch", a.run))
}
