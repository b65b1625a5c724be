// Package telemetry makes what a service tells about itself: logs (slog), traces
// and metrics (OpenTelemetry), and the Prometheus page.
//
// Telemetry is a value. Nothing global is set or read, so several services can live
// in one OS process, each with its own name, registry and exporters.
//
// Traces and metrics are exported as the standard OTEL_* variables say
// (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_EXPORTER, OTEL_METRICS_EXPORTER,
// OTEL_SDK_DISABLED and the rest). Where none of them is set nothing is exported
// and nothing connects; trace ids are still made, so that logs and events can be
// tied together.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/otel/attribute"
	otelprom "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Options say what to set up.
type Options struct {
	// Service is the name in logs, traces and metrics, such as "scheduler".
	// OTEL_SERVICE_NAME overrides it in traces and metrics.
	Service string
	// Version of the service; may be empty.
	Version string
	// LogLevel is debug, info, warn or error. Default info.
	LogLevel string
	// LogFormat is json or text. Default json.
	LogFormat string
	// LogWriter receives the log. Default standard error.
	LogWriter io.Writer
	// SpanProcessors see every span besides the exporters; may be empty.
	SpanProcessors []sdktrace.SpanProcessor
}

// Telemetry is what a service logs, traces and measures with. Made by [Setup].
// Safe for concurrent use.
type Telemetry struct {
	// Log adds service, and of the context correlation_id, actor and trace_id.
	Log *slog.Logger
	// Tracers makes the tracers of the service.
	Tracers trace.TracerProvider
	// Meters makes the meters; what they measure is on the Prometheus page and
	// goes to the exporters.
	Meters metric.MeterProvider

	registry  *prometheus.Registry
	shutdowns []func(context.Context) error
}

// Setup makes the telemetry of one service. It fails where the level or format is
// unknown or an OTEL_* variable is malformed; it does not connect to anything.
func Setup(ctx context.Context, o Options) (*Telemetry, error) {
	log, err := newLogger(o)
	if err != nil {
		return nil, err
	}
	res, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithAttributes(
		attribute.String("service.name", "hodei-"+o.Service), attribute.String("service.version", o.Version),
	), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("reading OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	t := &Telemetry{Log: log, registry: prometheus.NewRegistry()}
	if err := t.traces(ctx, res, o.SpanProcessors); err != nil {
		return nil, err
	}
	if err := t.metrics(ctx, res); err != nil {
		return nil, errors.Join(err, t.Shutdown(ctx))
	}
	return t, nil
}

func (t *Telemetry) traces(ctx context.Context, res *resource.Resource, processors []sdktrace.SpanProcessor) error {
	opts := []sdktrace.TracerProviderOption{sdktrace.WithResource(res)}
	for _, p := range processors {
		opts = append(opts, sdktrace.WithSpanProcessor(p))
	}
	if wanted("TRACES") {
		exporter, err := autoexport.NewSpanExporter(ctx)
		if err != nil {
			return fmt.Errorf("setting up the trace exporter from OTEL_*: %w", err)
		}
		opts = append(opts, sdktrace.WithBatcher(exporter))
	}
	tracers := sdktrace.NewTracerProvider(opts...)
	t.Tracers, t.shutdowns = tracers, append(t.shutdowns, tracers.Shutdown)
	return nil
}

func (t *Telemetry) metrics(ctx context.Context, res *resource.Resource) error {
	t.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	page, err := otelprom.New(otelprom.WithRegisterer(t.registry))
	if err != nil {
		return fmt.Errorf("setting up the Prometheus page: %w", err)
	}
	opts := []sdkmetric.Option{sdkmetric.WithResource(res), sdkmetric.WithReader(page)}
	// "prometheus" would open a second page on a port of its own.
	if wanted("METRICS") && os.Getenv("OTEL_METRICS_EXPORTER") != "prometheus" {
		reader, err := autoexport.NewMetricReader(ctx)
		if err != nil {
			return fmt.Errorf("setting up the metric exporter from OTEL_*: %w", err)
		}
		opts = append(opts, sdkmetric.WithReader(reader))
	}
	meters := sdkmetric.NewMeterProvider(opts...)
	t.Meters, t.shutdowns = meters, append(t.shutdowns, meters.Shutdown)
	return nil
}

// wanted says whether the environment asks for an exporter of TRACES or METRICS.
// The standard's default, OTLP to localhost, would be noise where nobody listens.
func wanted(signal string) bool {
	exporter := os.Getenv("OTEL_" + signal + "_EXPORTER")
	switch {
	case strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") || exporter == "none":
		return false
	case exporter != "":
		return true
	}
	return os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT") != ""
}

// Metrics serves the Prometheus page: what the meters measure, the Go runtime and
// the OS process.
func (t *Telemetry) Metrics() http.Handler {
	return promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{EnableOpenMetrics: true})
}

// Tracer returns the tracer of a package, named by its import path.
func (t *Telemetry) Tracer(name string) trace.Tracer { return t.Tracers.Tracer(name) }

// Meter returns the meter of a package, named by its import path.
func (t *Telemetry) Meter(name string) metric.Meter { return t.Meters.Meter(name) }

// Shutdown sends what is not yet exported and ends the exporters, within ctx. The
// logger goes on working.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	var errs []error
	for _, end := range t.shutdowns {
		errs = append(errs, end(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("ending telemetry: %w", err)
	}
	return nil
}
