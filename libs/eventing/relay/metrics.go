package relay

import (
	"context"
	"errors"
	"fmt"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
)

type metrics struct {
	published, resyncs, tombstones, sweepFound metric.Int64Counter
	latency                                    metric.Float64Histogram
}

func newMetrics(meter metric.Meter, r *Relay) (*metrics, error) {
	if meter == nil {
		meter = noop.Meter{}
	}
	var m metrics
	var errs [8]error
	m.published, errs[0] = meter.Int64Counter("hodei.relay.published", metric.WithDescription("Events that the stream has acknowledged."))
	m.resyncs, errs[1] = meter.Int64Counter("hodei.relay.resyncs", metric.WithDescription("Times that publishing started over from the stream's last sequence."))
	m.tombstones, errs[2] = meter.Int64Counter("hodei.relay.tombstones", metric.WithDescription("Events that could never be published."))
	m.sweepFound, errs[3] = meter.Int64Counter("hodei.relay.sweep_found", metric.WithDescription("Events found by the sweep that no nudge announced; 0 without faults."))
	m.latency, errs[4] = meter.Float64Histogram("hodei.relay.ack", metric.WithUnit("s"), metric.WithDescription("Time from publishing to its acknowledgement."),
		metric.WithExplicitBucketBoundaries(.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5))
	position, err5 := meter.Int64ObservableGauge("hodei.relay.position", metric.WithDescription("Last position that the stream holds."))
	diverged, err6 := meter.Int64ObservableGauge("hodei.relay.diverged", metric.WithDescription("1 when stream and log contradict each other and publishing has stopped."))
	errs[5], errs[6] = err5, err6
	if errs[5] == nil && errs[6] == nil {
		_, errs[7] = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
			s := r.Status()
			o.ObserveInt64(position, s.Position)
			if s.Diverged != nil {
				o.ObserveInt64(diverged, 1)
			} else {
				o.ObserveInt64(diverged, 0)
			}
			return nil
		}, position, diverged)
	}
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("make the relay's instruments: %w", err)
	}
	return &m, nil
}
