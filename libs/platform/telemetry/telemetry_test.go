package telemetry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"hodei.dev/libs/platform/call"
	"hodei.dev/libs/platform/telemetry"
)

func setup(t *testing.T, o telemetry.Options) *telemetry.Telemetry {
	t.Helper()
	tel, err := telemetry.Setup(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tel.Shutdown(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return tel
}

const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func TestLogCarriesTheContext(t *testing.T) {
	var out bytes.Buffer
	log := setup(t, telemetry.Options{Service: "scheduler", LogWriter: &out, LogLevel: "debug"}).Log
	ctx := call.With(t.Context(), call.Call{CorrelationID: "c-1", Actor: "user/ana"})
	ctx = telemetry.Extract(ctx, parent, "")
	inCall := map[string]any{"correlation_id": "c-1", "actor": "user/ana", "trace_id": "0af7651916cd43dd8448eb211c80319c"}
	with := func(more map[string]any) map[string]any {
		all := map[string]any{"msg": "m", "level": "INFO", "service": "scheduler"}
		for _, m := range []map[string]any{inCall, more} {
			maps.Copy(all, m)
		}
		return all
	}
	for name, tc := range map[string]struct {
		do   func()
		want map[string]any
	}{
		"nothing in the context": {func() { log.InfoContext(t.Context(), "m") }, map[string]any{"msg": "m", "level": "INFO", "service": "scheduler"}},
		"plain":                  {func() { log.InfoContext(ctx, "m", "k", "v") }, with(map[string]any{"k": "v"})},
		"with attributes":        {func() { log.With("a", "b").InfoContext(ctx, "m") }, with(map[string]any{"a": "b"})},
		"in groups": {
			func() {
				log.With("a", "b").WithGroup("g").With("c", "d").WithGroup("h").InfoContext(ctx, "m", "k", "v")
			},
			with(map[string]any{"a": "b", "g": map[string]any{"c": "d", "h": map[string]any{"k": "v"}}}),
		},
	} {
		t.Run(name, func(t *testing.T) {
			out.Reset()
			tc.do()
			var got map[string]any
			if err := json.Unmarshal(out.Bytes(), &got); err != nil {
				t.Fatalf("%v in %s", err, out.String())
			}
			delete(got, "time")
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestLevelAndFormat(t *testing.T) {
	var out bytes.Buffer
	log := setup(t, telemetry.Options{Service: "s", LogWriter: &out, LogLevel: "warn", LogFormat: "text"}).Log
	log.Info("quiet")
	log.Warn("loud")
	if got := out.String(); strings.Contains(got, "quiet") || !strings.Contains(got, "msg=loud service=s") {
		t.Errorf("got %q", got)
	}
	for _, o := range []telemetry.Options{{LogLevel: "loud"}, {LogFormat: "xml"}} {
		if _, err := telemetry.Setup(t.Context(), o); err == nil {
			t.Errorf("%+v is accepted", o)
		}
	}
}

func TestMetricsPagesAreApart(t *testing.T) {
	one, two := setup(t, telemetry.Options{Service: "one"}), setup(t, telemetry.Options{Service: "two"})
	counter, err := one.Meter("test").Int64Counter("hodei.test.things")
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(t.Context(), 3)
	page := func(tel *telemetry.Telemetry) string {
		rec := httptest.NewRecorder()
		tel.Metrics().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		return rec.Body.String()
	}
	first, second := page(one), page(two)
	for _, want := range []string{"hodei_test_things_total", "go_goroutines", "process_", `service_name="hodei-one"`} {
		if !strings.Contains(first, want) {
			t.Errorf("the page has no %s", want)
		}
	}
	if strings.Contains(second, "hodei_test_things") {
		t.Error("one service's metric is on the other's page")
	}
}

func TestTraceTravelsThroughText(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	tel := setup(t, telemetry.Options{Service: "s", SpanProcessors: []sdktrace.SpanProcessor{spans}})
	ctx, span := tel.Tracer("test").Start(t.Context(), "queue")
	traceparent, _ := telemetry.Inject(ctx)
	span.End()
	if traceparent == "" {
		t.Fatal("no traceparent although there is a span")
	}
	_, child := tel.Tracer("test").Start(telemetry.Extract(context.WithoutCancel(t.Context()), traceparent, ""), "handle")
	child.End()
	if child.SpanContext().TraceID() != span.SpanContext().TraceID() || len(spans.Ended()) != 2 {
		t.Error("the trace did not travel")
	}
	if tp, ts := telemetry.Inject(context.WithoutCancel(t.Context())); tp != "" || ts != "" {
		t.Errorf("a context without a span gave %q, %q", tp, ts)
	}
	if got := telemetry.Extract(t.Context(), "rubbish", ""); trace.SpanContextFromContext(got).IsValid() {
		t.Error("a malformed traceparent is taken")
	}
}

func TestExportsOnlyWhereTheEnvironmentAsks(t *testing.T) {
	var hits atomic.Int32
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/traces" {
			hits.Add(1)
		}
	}))
	defer collector.Close()
	run := func() {
		tel, err := telemetry.Setup(t.Context(), telemetry.Options{Service: "s"})
		if err != nil {
			t.Fatal(err)
		}
		_, span := tel.Tracer("test").Start(t.Context(), "x")
		span.End()
		if err := tel.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	run()
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	t.Setenv("OTEL_SDK_DISABLED", "true")
	run()
	if hits.Load() != 0 {
		t.Fatal("exported without being asked")
	}
	t.Setenv("OTEL_SDK_DISABLED", "")
	run()
	if hits.Load() == 0 {
		t.Fatal("not exported")
	}
	t.Setenv("OTEL_TRACES_EXPORTER", "carrier-pigeon")
	if _, err := telemetry.Setup(t.Context(), telemetry.Options{}); err == nil {
		t.Error("an unknown exporter is accepted")
	}
}
