// Package relay is the service that carries the event log from Postgres to
// JetStream. The work is in libs/eventing/relay; this is its process.
package relay

import (
	"context"
	"fmt"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/relay"
	"hodei.dev/libs/platform/process"
	"hodei.dev/libs/service/chassis"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
	"hodei.dev/services/relay/internal/postgres"
)

// Config is the relay's configuration.
type Config struct {
	chassis.Config `yaml:",inline"`
	// Window is how many messages may wait for the stream's acknowledgement: 1 to 4096, default 512.
	Window int `yaml:"window" env:"HODEI_RELAY_WINDOW"`
	// Replicas of the events stream: 1, 3 or 5, default 1.
	Replicas int `yaml:"replicas" env:"HODEI_RELAY_REPLICAS"`
}

// Default returns the defaults.
func Default() Config { return Config{Config: chassis.DefaultConfig(), Window: 512, Replicas: 1} }

// Validate reports every wrong field.
func (c *Config) Validate() error {
	if err := c.Config.Validate(); err != nil {
		return err
	}
	var wrong fault.Fields
	if c.Window < 1 || c.Window > 4096 {
		wrong.Add("window", "%d: from 1 to 4096", c.Window)
	}
	if c.Replicas != 1 && c.Replicas != 3 && c.Replicas != 5 {
		wrong.Add("replicas", "%d: 1, 3 or 5", c.Replicas)
	}
	return wrong.Err("the configuration")
}

// Service describes the relay to its main and to `hodei dev`.
func Service() process.Service[Config] {
	return process.Service[Config]{
		Name: "relay", Short: "carries the event log from Postgres to JetStream", Default: Default, Run: Run, Migrate: Migrate,
	}
}

func spec() chassis.Spec {
	return chassis.Spec{Name: "relay", Schema: postgres.Schema, Migrations: postgres.Migrations()}
}

// Migrate brings the event log's schema and the relay's own up to date.
func Migrate(ctx context.Context, cfg Config) error {
	return chassis.Migrate(ctx, spec(), cfg.PostgresURL)
}

// Run relays until ctx ends.
//
//	events ──▶ relay (one active, others stand by) ──▶ HODEI_EVENTS
//	                │ what can never be published
//	                ▼
//	       relay.dead_letters
func Run(ctx context.Context, cfg Config, env process.Env) error {
	c, err := chassis.Open(ctx, spec(), cfg.Config, env)
	if err != nil {
		return err
	}
	letters := relay.NewDeadLetters(c.Store.Pool())
	r, err := relay.New(relay.Config{
		Store: c.Store, NC: c.NC, JS: c.JS, Window: cfg.Window, Replicas: cfg.Replicas, DeadLetters: letters,
		Base: func(ctx context.Context) (int64, error) { return consumer.Lowest(ctx, c.Store.Pool()) },
		Log:  c.Log, Meter: c.Tel.Meter("hodei.dev/relay"),
	})
	if err != nil {
		c.Close()
		return fmt.Errorf("make the relay: %w", err)
	}
	c.OnStatus(func(ctx context.Context, s *platformv1.ServiceStatus) {
		st := r.Status()
		s.Position = st.Position
		s.Lag = max(0, s.Head-st.Position)
		if st.Diverged != nil {
			s.Problems["diverged"] = st.Diverged.Error()
		}
		if list, err := letters.List(ctx, 1000); err != nil {
			s.Problems["dead letters"] = err.Error()
		} else {
			s.DeadLetters = int64(len(list))
		}
	})
	return c.Run(ctx, c.Exclusive("log", r.Run))
}
