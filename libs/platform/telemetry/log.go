package telemetry

import (
	"context"
	"io"
	"log/slog"
	"os"
	"slices"

	"go.opentelemetry.io/otel/trace"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/call"
)

func newLogger(o Options) (*slog.Logger, error) {
	level := slog.LevelInfo
	if o.LogLevel != "" {
		if err := level.UnmarshalText([]byte(o.LogLevel)); err != nil {
			return nil, fault.New(fault.Invalid, "log level %q must be debug, info, warn or error", o.LogLevel)
		}
	}
	var w io.Writer = os.Stderr
	if o.LogWriter != nil {
		w = o.LogWriter
	}
	var h slog.Handler
	switch o.LogFormat {
	case "", "json":
		h = slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level})
	case "text":
		h = slog.NewTextHandler(w, &slog.HandlerOptions{Level: level})
	default:
		return nil, fault.New(fault.Invalid, "log format %q must be json or text", o.LogFormat)
	}
	log := slog.New(NewLogHandler(h))
	if o.Service != "" {
		log = log.With("service", o.Service)
	}
	return log, nil
}

// NewLogHandler wraps a handler so that every record carries correlation_id, actor
// and trace_id of its context, where there are any, at the top level: a group that
// the logger has opened does not swallow them.
func NewLogHandler(h slog.Handler) slog.Handler { return &contextHandler{base: h, open: h} }

// contextHandler holds the handler as it was before the first group, and with all
// that came since. The steps in between are replayed only for loggers with a group.
type contextHandler struct {
	base  slog.Handler
	open  slog.Handler
	steps []func(slog.Handler) slog.Handler
}

// Enabled implements [slog.Handler].
func (h *contextHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return h.open.Enabled(ctx, l)
}

// Handle implements [slog.Handler].
func (h *contextHandler) Handle(ctx context.Context, r slog.Record) error {
	attrs := contextAttrs(ctx)
	if len(attrs) == 0 {
		return h.open.Handle(ctx, r)
	}
	if len(h.steps) == 0 {
		r = r.Clone()
		r.AddAttrs(attrs...)
		return h.open.Handle(ctx, r)
	}
	out := h.base.WithAttrs(attrs)
	for _, step := range h.steps {
		out = step(out)
	}
	return out.Handle(ctx, r)
}

// WithAttrs implements [slog.Handler].
func (h *contextHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	if len(h.steps) == 0 {
		return NewLogHandler(h.base.WithAttrs(attrs))
	}
	return h.step(func(to slog.Handler) slog.Handler { return to.WithAttrs(attrs) })
}

// WithGroup implements [slog.Handler].
func (h *contextHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	return h.step(func(to slog.Handler) slog.Handler { return to.WithGroup(name) })
}

func (h *contextHandler) step(s func(slog.Handler) slog.Handler) slog.Handler {
	return &contextHandler{base: h.base, open: s(h.open), steps: append(slices.Clip(h.steps), s)}
}

func contextAttrs(ctx context.Context) []slog.Attr {
	if ctx == nil {
		return nil
	}
	var attrs []slog.Attr
	c := call.From(ctx)
	if c.CorrelationID != "" {
		attrs = append(attrs, slog.String("correlation_id", c.CorrelationID))
	}
	if c.Actor != "" {
		attrs = append(attrs, slog.String("actor", c.Actor))
	}
	if sc := trace.SpanContextFromContext(ctx); sc.HasTraceID() {
		attrs = append(attrs, slog.String("trace_id", sc.TraceID().String()))
	}
	return attrs
}
