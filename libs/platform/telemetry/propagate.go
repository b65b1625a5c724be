package telemetry

import (
	"context"

	"go.opentelemetry.io/otel/propagation"
)

// Propagator is the one form in which traces cross a boundary: W3C trace context.
func Propagator() propagation.TextMapPropagator { return propagation.TraceContext{} }

// Inject returns the W3C traceparent and tracestate of the context's span, for an
// event or a command; empty where there is no span.
func Inject(ctx context.Context) (traceparent, tracestate string) {
	carrier := propagation.MapCarrier{}
	Propagator().Inject(ctx, carrier)
	return carrier["traceparent"], carrier["tracestate"]
}

// Extract returns a context whose remote parent span is what [Inject] returned. A
// malformed traceparent is ignored.
func Extract(ctx context.Context, traceparent, tracestate string) context.Context {
	return Propagator().Extract(ctx, propagation.MapCarrier{"traceparent": traceparent, "tracestate": tracestate})
}
