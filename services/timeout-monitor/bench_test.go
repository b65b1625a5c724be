package timeoutmonitor_test

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/unit"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/migrations"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/services/timeout-monitor/core"
	"hodei.dev/services/timeout-monitor/internal/app"
	"hodei.dev/services/timeout-monitor/internal/postgres"
)

// armed is how many deadlines BenchmarkArm arms, a multiple of 500.
var armed = flag.Int("armed", 100_000, "how many deadlines BenchmarkArm arms")

// BenchmarkArm arms deadlines in batches of 500, as the projection does, all of them
// held in memory, and then loads them as a restart does. A million:
//
//	go test hodei.dev/services/timeout-monitor -run '^$' -bench Arm -benchtime 1x -armed 1000000
func BenchmarkArm(b *testing.B) {
	const batch = 500
	n := *armed
	s := eventingtest.MigratedStore(b)
	if err := migrations.Up(b.Context(), s.Pool().Config().ConnString(), postgres.Schema, postgres.Migrations()); err != nil {
		b.Fatal(err)
	}
	rules := core.Rules{Table: deadline.Defaults(), IdleTimeout: core.DefaultIdleTimeout}
	rows := postgres.NewDeadlines(s.Pool())
	for b.Loop() {
		if _, err := s.Pool().Exec(b.Context(), `truncate timeout_monitor.deadlines`); err != nil {
			b.Fatal(err)
		}
		m := app.New(app.Config{
			Rules: rules, Log: s, Deadlines: rows, Logger: slog.New(slog.DiscardHandler), Now: time.Now, Jitter: rand.Float64,
			Concurrency: 32, Nearby: n, Window: time.Hour,
		})
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		before := heap()
		began := time.Now()
		for i := 0; i < n; i += batch {
			events := make([]event.Event, batch)
			for k := range events {
				e, err := event.New(aggregate.JobStream(event.NewID()), meta, job.Queued{
					Name: fmt.Sprint(i + k), Namespace: "default", Timeout: unit.Duration(time.Hour), QueueTimeout: unit.Duration(30 * time.Minute),
				})
				if err != nil {
					b.Fatal(err)
				}
				e.StreamVersion, e.Time = 2, time.Now()
				events[k] = e
			}
			err := pgx.BeginFunc(b.Context(), s.Pool(), func(tx pgx.Tx) error {
				changed, err := postgres.Apply(b.Context(), tx, rules, events)
				if err == nil {
					m.Observe(changed)
				}
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(time.Since(began).Seconds(), "arm-s")
		eventingtest.Eventually(b, "all in memory", func() bool { return m.Figures().Nearby == n })
		b.ReportMetric((float64(heap())-float64(before))/float64(n), "heap-B/row")
		cancel()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		began = time.Now()
		entries, err := rows.Upcoming(b.Context(), time.Now().Add(time.Hour), n)
		if err != nil || len(entries) != n {
			b.Fatal(len(entries), err)
		}
		b.ReportMetric(time.Since(began).Seconds(), "load-s")
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC() // what pools hold goes with the second
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}
