// Package metrics counts what the dispatcher does, as OpenTelemetry instruments
// hodei.dispatcher.*. It decides nothing.
package metrics

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"hodei.dev/libs/domain/circuit"

	"hodei.dev/services/dispatcher/internal/app"
)

// Metrics implements the port Meter of internal/app. It is safe for concurrent use.
type Metrics struct {
	decisions, conflicts metric.Int64Counter
	failures, circuits   metric.Int64Counter
	handOver             metric.Float64Histogram
	kinds                map[string]metric.MeasurementOption
}

// New makes the instruments. figures is asked at each collection.
func New(meter metric.Meter, figures func() app.Figures) (*Metrics, error) {
	m := &Metrics{kinds: map[string]metric.MeasurementOption{}}
	for _, kind := range []string{"assign", "schedule", "defer", "abandon"} {
		m.kinds[kind] = metric.WithAttributeSet(attribute.NewSet(attribute.String("kind", kind)))
	}
	var err error
	counter := func(name, description string) metric.Int64Counter {
		c, e := meter.Int64Counter("hodei.dispatcher."+name, metric.WithDescription(description))
		if err == nil {
			err = e
		}
		return c
	}
	gauge := func(name, description string, of func(app.Figures) int) {
		_, e := meter.Int64ObservableGauge("hodei.dispatcher."+name, metric.WithDescription(description),
			metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
				o.Observe(int64(of(figures())))
				return nil
			}))
		if err == nil {
			err = e
		}
	}
	m.decisions = counter("decisions", "Decisions that are in the log, by kind.")
	m.conflicts = counter("conflicts", "Decisions that somebody else was faster than, by kind.")
	m.failures = counter("hand_over_failures", "Hand-overs that the worker's session did not accept.")
	m.circuits = counter("circuit_changes", "Changes of circuits that are in the log, by kind and the state that they led to.")
	open := func(k circuit.Kind) func(app.Figures) int {
		return func(f app.Figures) (n int) {
			for _, c := range f.Circuits {
				if c.Kind == k {
					n++
				}
			}
			return n
		}
	}
	gauge("provider_circuits_open", "Providers that make no workers because of their circuit; half-open ones are counted.", open(circuit.Provider))
	gauge("path_circuits_open", "Registry replicas whose workers are given nothing because of their circuit; half-open ones are counted.", open(circuit.Path))
	gauge("queue_depth", "Jobs that wait for a worker.", func(f app.Figures) int { return f.Queued })
	gauge("idle_workers", "Workers that are READY and have nothing to do.", func(f app.Figures) int { return f.Idle })
	gauge("providers", "Providers that make workers.", func(f app.Figures) int { return f.Providers })
	var e error
	m.handOver, e = meter.Float64Histogram("hodei.dispatcher.hand_over", metric.WithUnit("s"),
		metric.WithDescription("From RUN to the session's answer."),
		metric.WithExplicitBucketBoundaries(.0005, .001, .0025, .005, .01, .025, .05, .1, .5, 1, 5))
	if err == nil {
		err = e
	}
	if err != nil {
		return nil, fmt.Errorf("make the dispatcher's instruments: %w", err)
	}
	return m, nil
}

// Decided implements app.Meter.
func (m *Metrics) Decided(kind string) { m.decisions.Add(context.Background(), 1, m.kinds[kind]) }

// Conflict implements app.Meter.
func (m *Metrics) Conflict(kind string) { m.conflicts.Add(context.Background(), 1, m.kinds[kind]) }

// Circuit implements app.Meter.
func (m *Metrics) Circuit(kind circuit.Kind, to circuit.State) {
	m.circuits.Add(context.Background(), 1, metric.WithAttributes(attribute.String("kind", string(kind)), attribute.String("to", string(to))))
}

// HandOver implements app.Meter.
func (m *Metrics) HandOver(took time.Duration, failed bool) {
	m.handOver.Record(context.Background(), took.Seconds())
	if failed {
		m.failures.Add(context.Background(), 1)
	}
}
