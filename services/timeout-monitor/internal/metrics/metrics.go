// Package metrics counts what the timeout-monitor does, as OpenTelemetry
// instruments hodei.timeout_monitor.*. It decides nothing.
package metrics

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"hodei.dev/services/timeout-monitor/internal/app"
)

// Metrics implements the port Meter of internal/app. It is safe for concurrent use.
type Metrics struct {
	fired, failed, conflicts, held metric.Int64Counter
	late                           metric.Float64Histogram
}

// New makes the instruments. figures is asked at each collection.
func New(meter metric.Meter, figures func() app.Figures) (*Metrics, error) {
	m := &Metrics{}
	var err error
	keep := func(e error) {
		if err == nil {
			err = e
		}
	}
	counter := func(name, description string) metric.Int64Counter {
		c, e := meter.Int64Counter("hodei.timeout_monitor."+name, metric.WithDescription(description))
		keep(e)
		return c
	}
	gauge := func(name, description string, of func(app.Figures) int64) {
		_, e := meter.Int64ObservableGauge("hodei.timeout_monitor."+name, metric.WithDescription(description),
			metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
				o.Observe(of(figures()))
				return nil
			}))
		keep(e)
	}
	m.fired = counter("fired", "Deadlines whose recovery is in the log, by kind.")
	m.failed = counter("failures", "Recoveries that could not be decided or appended and are tried again, by kind.")
	m.conflicts = counter("conflicts", "Recoveries that somebody else was faster than, by kind.")
	m.held = counter("mass_silences", "Times that too many workers fell silent at once for any to be reported: an alert.")
	gauge("nearby", "Deadlines that are in memory.", func(f app.Figures) int64 { return int64(f.Nearby) })
	gauge("workers", "Workers whose heartbeats are listened to.", func(f app.Figures) int64 { return int64(f.Workers) })
	gauge("mass_silence", "1 while a mass silence is going on.", func(f app.Figures) int64 {
		if f.Held {
			return 1
		}
		return 0
	})
	var e error
	m.late, e = meter.Float64Histogram("hodei.timeout_monitor.late", metric.WithUnit("s"),
		metric.WithDescription("From when a deadline was due to its recovery in the log."),
		metric.WithExplicitBucketBoundaries(.001, .005, .01, .025, .05, .1, .25, .5, 1, 5, 30, 300))
	keep(e)
	if err != nil {
		return nil, fmt.Errorf("make the timeout-monitor's instruments: %w", err)
	}
	return m, nil
}

func kind(k string) metric.MeasurementOption {
	return metric.WithAttributes(attribute.String("kind", k))
}

// Fired implements app.Meter.
func (m *Metrics) Fired(k string, late time.Duration) {
	m.fired.Add(context.Background(), 1, kind(k))
	m.late.Record(context.Background(), late.Seconds(), kind(k))
}

// Failed implements app.Meter.
func (m *Metrics) Failed(k string) { m.failed.Add(context.Background(), 1, kind(k)) }

// Conflict implements app.Meter.
func (m *Metrics) Conflict(k string) { m.conflicts.Add(context.Background(), 1, kind(k)) }

// Held implements app.Meter.
func (m *Metrics) Held() { m.held.Add(context.Background(), 1) }
