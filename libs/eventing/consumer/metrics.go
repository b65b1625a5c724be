package consumer

import (
	"context"
	"errors"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
)

type metrics struct {
	meter                                  metric.Meter
	name                                   metric.MeasurementOption
	handled, fromLog, retries, deadLetters metric.Int64Counter
	sessions, stalls, incidents, skipped   metric.Int64Counter
	duration                               metric.Float64Histogram
	position, pending                      metric.Int64ObservableGauge
}

func newMetrics(meter metric.Meter, c *Consumer) (*metrics, error) {
	if meter == nil {
		meter = noop.Meter{}
	}
	m := metrics{meter: meter, name: metric.WithAttributeSet(attribute.NewSet(attribute.String("consumer", c.cfg.Name)))}
	var errs [11]error
	m.handled, errs[0] = meter.Int64Counter("hodei.consumer.handled", metric.WithDescription("Events handled."))
	m.fromLog, errs[1] = meter.Int64Counter("hodei.consumer.from_log", metric.WithDescription("Events read from Postgres because the stream did not have them."))
	m.retries, errs[2] = meter.Int64Counter("hodei.consumer.retries", metric.WithDescription("Tries that failed because something was away."))
	m.deadLetters, errs[3] = meter.Int64Counter("hodei.consumer.dead_letters", metric.WithDescription("Events that could not be handled."))
	m.sessions, errs[4] = meter.Int64Counter("hodei.consumer.interruptions", metric.WithDescription("Times that the durable consumer was made anew."))
	m.stalls, errs[5] = meter.Int64Counter("hodei.consumer.stalls", metric.WithDescription("Times that messages waited and did not come."))
	m.duration, errs[6] = meter.Float64Histogram("hodei.consumer.handle", metric.WithUnit("s"), metric.WithDescription("Time to handle one batch, with retries."),
		metric.WithExplicitBucketBoundaries(.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5, 10))
	m.position, errs[7] = meter.Int64ObservableGauge("hodei.consumer.position", metric.WithDescription("Position up to which everything is handled."))
	m.pending, errs[8] = meter.Int64ObservableGauge("hodei.consumer.pending", metric.WithDescription("Events known to wait."))
	m.incidents, errs[9] = meter.Int64Counter("hodei.consumer.incidents", metric.WithDescription("Times that events did not come from the stream as they should, and it was repaired; 0 without faults."))
	m.skipped, errs[10] = meter.Int64Counter("hodei.consumer.skipped", metric.WithDescription("Events that vanished from the stream just before they were delivered, and were gone back for."))
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("make the consumer's instruments: %w", err)
	}
	return &m, nil
}

// observe reports the gauges until the registration ends.
func (m *metrics) observe(c *Consumer) (metric.Registration, error) {
	r, err := m.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		s := c.Status()
		o.ObserveInt64(m.position, s.Position, m.name)
		o.ObserveInt64(m.pending, s.Pending, m.name)
		return nil
	}, m.position, m.pending)
	if err != nil {
		return nil, fmt.Errorf("observe the consumer's gauges: %w", err)
	}
	return r, nil
}
