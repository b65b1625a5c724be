package store

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/event"
)

// metrics are the store's instruments.
type metrics struct {
	duration metric.Float64Histogram // s, queued to answered, by outcome
	events   metric.Int64Counter     // appended
	batch    metric.Int64Histogram   // events in one commit
	retries  metric.Int64Counter     // commits tried again, by reason
}

func newMetrics(meter metric.Meter) (metrics, error) {
	if meter == nil {
		meter = noop.Meter{}
	}
	var m metrics
	var errs [4]error
	m.duration, errs[0] = meter.Float64Histogram("hodei.store.append.duration", metric.WithUnit("s"),
		metric.WithDescription("From a caller's append to its answer."),
		metric.WithExplicitBucketBoundaries(.0005, .001, .002, .005, .01, .02, .05, .1, .5, 1, 5, 10))
	m.events, errs[1] = meter.Int64Counter("hodei.store.append.events", metric.WithDescription("Events appended."))
	m.batch, errs[2] = meter.Int64Histogram("hodei.store.commit.events", metric.WithDescription("Events in one commit."),
		metric.WithExplicitBucketBoundaries(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000))
	m.retries, errs[3] = meter.Int64Counter("hodei.store.commit.retries", metric.WithDescription("Commits tried again."))
	return m, errors.Join(errs[:]...)
}

func (m metrics) appended(ctx context.Context, took time.Duration, events []event.Event, err error) {
	outcome := "ok"
	if err != nil {
		outcome = string(fault.KindOf(err))
	}
	m.duration.Record(ctx, took.Seconds(), metric.WithAttributes(attribute.String("outcome", outcome)))
	m.events.Add(ctx, int64(len(events)))
}

func (m metrics) retried(ctx context.Context, reason string) {
	m.retries.Add(ctx, 1, metric.WithAttributes(attribute.String("reason", reason)))
}
