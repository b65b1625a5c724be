// Package relay is the service that carries the event log from Postgres to
// JetStream. The work is in libs/eventing/relay; this is its process.
package relay

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/relay"
	"hodei.dev/libs/platform/config"
	"hodei.dev/libs/platform/lifecycle"
	"hodei.dev/libs/platform/process"
	"hodei.dev/libs/service/chassis"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
	relayv1 "hodei.dev/proto/hodei/relay/v1"
	"hodei.dev/services/relay/internal/compare"
	"hodei.dev/services/relay/internal/epoch"
	"hodei.dev/services/relay/internal/postgres"
	"hodei.dev/services/relay/internal/rpc"
	"hodei.dev/services/relay/internal/watch"
)

// Config is the relay's configuration.
type Config struct {
	chassis.Config `yaml:",inline"`
	// Window is how many messages may wait for the stream's acknowledgement: 1 to 4096, default 512.
	Window int `yaml:"window" env:"HODEI_RELAY_WINDOW"`
	// DeadLetterAlert is from how many open dead letters of one consumer on there is an
	// alert: at least 1, or "none". Default 10.
	DeadLetterAlert config.Limit `yaml:"dead_letter_alert" env:"HODEI_RELAY_DEAD_LETTER_ALERT"`
}

// Default returns the defaults.
func Default() Config {
	return Config{Config: chassis.DefaultConfig(), Window: 512, DeadLetterAlert: 10}
}

// Validate reports every wrong field.
func (c *Config) Validate() error {
	if err := c.Config.Validate(); err != nil {
		return err
	}
	var wrong fault.Fields
	if c.Window < 1 || c.Window > 4096 {
		wrong.Add("window", "%d: from 1 to 4096", c.Window)
	}
	if c.DeadLetterAlert < 1 {
		wrong.Add("dead_letter_alert", "%s: at least 1, or none", c.DeadLetterAlert)
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
//	                │ what can never be published  │ another stream, a lost tail
//	                ▼                              ▼
//	 relay.dead_letters, DeadLetterRecorded    event-log: StreamEpochStarted, EventRepublished
//
//	CompletenessService: log, stream, aggregates and positions, compared on demand
func Run(ctx context.Context, cfg Config, env process.Env) error {
	c, err := chassis.Open(ctx, spec(), cfg.Config, env)
	if err != nil {
		return err
	}
	pool := c.Store.Pool()
	letters, recorder := relay.NewDeadLetters(pool), epoch.NewRecorder(c.Store, pool, c.Log)
	r, err := relay.New(relay.Config{
		Store: c.Store, NC: c.NC, JS: c.JS, Window: cfg.Window, Replicas: cfg.NATSReplicas, DeadLetters: keeper{table: letters, log: c.Letters()},
		Base: func(ctx context.Context) (int64, error) { return epoch.Base(ctx, c.Store, pool) }, Opened: recorder.Opened,
		Log: c.Log, Meter: c.Tel.Meter("hodei.dev/relay"),
	})
	if err != nil {
		c.Close()
		return fmt.Errorf("make the relay: %w", err)
	}
	c.OnStatus(func(ctx context.Context, s *platformv1.ServiceStatus) { status(ctx, c.JS, r, s) })
	alerts := alerts{log: c.Store, threshold: int64(cfg.DeadLetterAlert)}
	c.OnStatus(alerts.status)
	c.OnExamine(alerts.examine)
	if c.RPC != nil {
		relayv1.RegisterCompletenessServiceServer(c.RPC.GRPC(), &rpc.Completeness{
			Comparer: &compare.Comparer{Log: c.Store, Pool: pool, JS: c.JS, Now: time.Now},
			Operator: &epoch.Operator{Log: c.Store, Pool: pool, JS: c.JS}, Meta: c.Meta,
		})
	}
	w, err := watch.New(watch.Config{
		Log: c.Store, Places: places(pool, c.JS, c.Log), Letters: int64(cfg.DeadLetterAlert), Logger: c.Log, Meter: c.Tel.Meter("hodei.dev/relay"),
	})
	if err != nil {
		c.Close()
		return fmt.Errorf("make the watch: %w", err)
	}
	return c.Run(ctx, c.Exclusive("log", r.Run), lifecycle.Part{Name: "epochs", Run: recorder.Run}, watching(c, w))
}

// watching is the part that looks after the consumers and their dead letters. It is
// single-active so that each stall is looked up once; it goes on where the relay itself
// has stopped.
func watching(c *chassis.Chassis, w *watch.Watch) lifecycle.Part {
	return lifecycle.Part{Name: "watch", Run: func(ctx context.Context) error {
		for ctx.Err() == nil {
			if err := c.Store.Exclusive(ctx, c.Name+"/watch", nil, w.Run); err != nil && ctx.Err() == nil {
				c.Log.WarnContext(ctx, "the watch over the consumers begins again", "error", err)
			}
		}
		return nil
	}}
}

// status says how far the stream is, and why it goes no further. A replica that
// stands by does not know it from its own work, so it asks the stream.
func status(ctx context.Context, js jetstream.JetStream, r *relay.Relay, s *platformv1.ServiceStatus) {
	st := r.Status()
	s.Position = st.Position
	if !st.Publishing {
		if stream, err := bus.LookupEvents(ctx, js); err != nil {
			s.Problems["stream"] = err.Error()
		} else {
			s.Position = stream.Head()
		}
	}
	s.Lag = max(0, s.Head-s.Position)
	if st.Diverged != nil {
		s.Problems["diverged"] = st.Diverged.Error()
	}
}
