// Package timeoutmonitor is the service that lets no job and no worker stay in an
// intermediate state for ever: it knows the deadline that each is under, and when
// one has passed it has the aggregate recovered (R1.4, R5.2).
package timeoutmonitor

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/projection"
	"hodei.dev/libs/platform/process"
	"hodei.dev/libs/service/chassis"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
	"hodei.dev/services/timeout-monitor/internal/app"
	"hodei.dev/services/timeout-monitor/internal/metrics"
	"hodei.dev/services/timeout-monitor/internal/postgres"
	"hodei.dev/services/timeout-monitor/internal/telemetry"
)

// window is how far ahead deadlines are held in memory.
const window = time.Hour

// Service describes the timeout-monitor to its main and to `hodei dev`.
func Service() process.Service[Config] {
	return process.Service[Config]{
		Name: catalogue.TimeoutMonitor, Short: "recovers jobs and workers that stay too long in a state",
		Default: Default, Run: Run, Migrate: Migrate,
	}
}

func spec() chassis.Spec {
	return chassis.Spec{Name: catalogue.TimeoutMonitor, Schema: postgres.Schema, Migrations: postgres.Migrations()}
}

// Migrate brings the event log's schema and the timeout-monitor's own up to date.
func Migrate(ctx context.Context, cfg Config) error {
	return chassis.Migrate(ctx, spec(), cfg.PostgresURL)
}

// Run watches until ctx ends. One replica is active, the others stand by.
//
//	HODEI_EVENTS ────projection──▶ timeout_monitor.deadlines
//	                    │                 │ the next hour
//	                    ▼                 ▼
//	                ┌──────────────────────────┐  due: load, decide, append
//	                │ app (core): one timer    │ ─────────────▶ the log: StateTimedOut, JobRequeued, ...
//	                └──────────────────────────┘
//	                    ▲
//	HODEI_TELEMETRY ────┘ heartbeats
func Run(ctx context.Context, cfg Config, env process.Env) error {
	c, err := chassis.Open(ctx, spec(), cfg.Config, env)
	if err != nil {
		return err
	}
	a := &active{chassis: c, cfg: cfg, deadlines: postgres.NewDeadlines(c.Store.Pool())}
	if a.meter, err = metrics.New(c.Tel.Meter("hodei.dev/services/timeout-monitor"), a.figures); err != nil {
		c.Close()
		return err
	}
	c.OnStatus(a.status)
	c.OnExamine(a.examine)
	return c.Run(ctx, c.Exclusive("watch", a.run))
}

// active is the part that one replica at a time runs.
type active struct {
	chassis    *chassis.Chassis
	cfg        Config
	deadlines  *postgres.Deadlines
	meter      *metrics.Metrics
	monitor    atomic.Pointer[app.Monitor] // nil while this replica stands by
	projection atomic.Pointer[projection.Projection]
}

// run is one activation, with a memory of its own.
func (a *active) run(ctx context.Context) error {
	c, rules := a.chassis, a.cfg.Thresholds.rules()
	if err := c.EnsureStreams(ctx); err != nil {
		return fmt.Errorf("make the streams: %w", err)
	}
	if err := a.deadlines.Adopt(ctx, rules); err != nil {
		return err
	}
	ahead, err := a.deadlines.Ahead(ctx, time.Now)
	if err != nil {
		return err
	}
	heartbeats := telemetry.New(c.NC, c.JS, c.Replicas)
	m := app.New(app.Config{
		Rules: rules, Log: c.Store, Deadlines: a.deadlines, Heartbeats: heartbeats, Meter: a.meter, Logger: c.Log,
		// Events are dated by Postgres: so are the deadlines that count from them.
		Now:         func() time.Time { return time.Now().Add(ahead) },
		Jitter:      rand.Float64,
		Concurrency: a.cfg.Concurrency, Nearby: a.cfg.Nearby, Window: window,
	})
	p, err := projection.New(projection.Config{
		Service: c.Name, Schema: postgres.Schema, Types: catalogue.Consumed(c.Name), Reset: postgres.Reset,
		Apply: func(ctx context.Context, tx pgx.Tx, events []event.Event) error {
			rows, err := postgres.Apply(ctx, tx, rules, events)
			if err == nil {
				m.Observe(rows)
			}
			return err
		},
		Pool: c.Store.Pool(), Store: c.Store, NC: c.NC, JS: c.JS, Replicas: c.Replicas, Letters: c.Letters(), Incident: c.Incidents.Report, Log: c.Log, Meter: c.Tel.Meter("hodei.dev/eventing"),
	})
	if err != nil {
		return fmt.Errorf("make the projection: %w", err)
	}
	a.projection.Store(p)
	a.monitor.Store(m)
	defer a.monitor.Store(nil)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.Run(ctx) })
	group.Go(func() error { return m.Run(ctx) })
	group.Go(func() error { return heartbeats.Listen(ctx, m.Heard, m.Deaf) })
	return group.Wait()
}

func (a *active) figures() app.Figures {
	if m := a.monitor.Load(); m != nil {
		return m.Figures()
	}
	return app.Figures{}
}

func (a *active) status(ctx context.Context, s *platformv1.ServiceStatus) {
	if a.monitor.Load() == nil {
		return
	}
	f, p := a.figures(), a.projection.Load().Status()
	s.Position, s.Lag = p.Position, p.Pending
	armed, next, err := a.deadlines.Armed(ctx)
	if err != nil {
		s.Problems["deadlines"] = err.Error()
	}
	s.Figures["armed"], s.Figures["fired"], s.Figures["listening"] = armed, f.Fired, int64(f.Workers)
	if !next.IsZero() {
		s.Figures["next_due_seconds"] = int64(max(0, time.Until(next)).Seconds())
	}
	if p.Retrying != "" {
		s.Problems["events"] = p.Retrying
	}
	if f.Held {
		s.Problems["heartbeats"] = "too many workers are silent at once: none is given up before three times the threshold"
	}
}
