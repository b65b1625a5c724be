package audit_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/relay"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/platform/process"
	"hodei.dev/libs/platform/rpc"
	"hodei.dev/libs/platform/telemetry"
	"hodei.dev/libs/service/aggregate"
	auditv1 "hodei.dev/proto/hodei/audit/v1"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
	"hodei.dev/services/audit"
)

func TestMain(m *testing.M) { os.Exit(eventingtest.Main(m)) }

// world is a log, a bus, a relay between them, and the audit under test. The test
// itself plays the other services by appending to the log.
type world struct {
	t       testing.TB
	url     string
	nats    *eventingtest.Server
	store   *store.Store
	audit   auditv1.AuditServiceClient
	letters auditv1.DeadLetterServiceClient
	stats   platformv1.StatusServiceClient
	// stop ends the audit; start begins it again.
	stop func()
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	w := &world{t: tb, url: eventingtest.Postgres(tb), nats: eventingtest.NATS(tb)}
	cfg := audit.Default()
	cfg.PostgresURL = w.url
	if err := audit.Migrate(tb.Context(), cfg); err != nil {
		tb.Fatal(err)
	}
	nc := w.nats.Conn()
	var err error
	w.store, err = store.Open(tb.Context(), store.Config{URL: w.url, OnCommit: bus.Nudger(nc), Log: quiet()})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(w.store.Close)
	r, err := relay.New(relay.Config{
		Store: w.store, NC: nc, JS: eventingtest.JetStream(tb, nc), DeadLetters: noLetters{tb},
		Base: func(context.Context) (int64, error) { return 0, nil }, Log: quiet(),
	})
	if err != nil {
		tb.Fatal(err)
	}
	background(tb, "relay", r.Run)
	w.start()
	return w
}

// start runs the audit until stop is called, or the test ends.
func (w *world) start() {
	w.t.Helper()
	cfg := audit.Default()
	cfg.PostgresURL, cfg.NATSURL = w.url, w.nats.URL()
	dir, err := os.MkdirTemp("", "a") // t.TempDir may be too long for a socket
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cfg.Listen = "unix://" + filepath.Join(dir, "rpc")
	tel, err := telemetry.Setup(w.t.Context(), telemetry.Options{Service: "audit", LogLevel: "error", LogWriter: w.t.Output()})
	if err != nil {
		w.t.Fatal(err)
	}
	health := process.NewHealth(nil)
	env := process.Env{Log: tel.Log, Tel: tel, Health: health, Version: "test"}
	w.stop = background(w.t, "audit", func(ctx context.Context) error { return audit.Run(ctx, cfg, env) })
	eventingtest.Eventually(w.t, "the audit", func() bool { ready, _ := health.Ready(); return ready })
	conn, err := rpc.Dial(cfg.Listen)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	w.audit, w.letters = auditv1.NewAuditServiceClient(conn), auditv1.NewDeadLetterServiceClient(conn)
	w.stats = platformv1.NewStatusServiceClient(conn)
}

// background runs a part until the returned stop is called, or the test ends.
func background(tb testing.TB, name string, run func(context.Context) error) (stop func()) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(tb.Context()))
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			tb.Errorf("%s: %v", name, err)
		}
	}
	tb.Cleanup(stop)
	return stop
}

type noLetters struct{ t testing.TB }

func (l noLetters) Record(_ context.Context, e event.Event, reason string) error {
	l.t.Errorf("event %d could not be published: %s", e.Position, reason)
	return nil
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// append plays a service that decides something about a job.
func (w *world) append(j job.Job, meta event.Meta, facts ...job.Event) []event.Event {
	w.t.Helper()
	change, err := aggregate.JobChange(j, meta, facts)
	if err != nil {
		w.t.Fatal(err)
	}
	events, err := w.store.Append(w.t.Context(), store.Append{Changes: []store.Change{change}})
	if err != nil {
		w.t.Fatal(err)
	}
	return events
}

// queued appends the first events of a job.
func (w *world) queued(id string, meta event.Meta, spec job.Spec) []event.Event {
	w.t.Helper()
	spec.Command = []string{"true"}
	facts, err := job.Create(spec, "", "")
	if err != nil {
		w.t.Fatal(err)
	}
	return w.append(job.Job{ID: id}, meta, facts...)
}

// decide folds the job, decides, and appends.
func (w *world) decide(id string, meta event.Meta, decision func(j job.Job) ([]job.Event, error)) []event.Event {
	w.t.Helper()
	j, err := aggregate.LoadJob(w.t.Context(), w.store, id)
	if err != nil {
		w.t.Fatal(err)
	}
	facts, err := decision(j)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.append(j, meta, facts...)
}

func failed(j job.Job) ([]job.Event, error) {
	code := 3
	r := job.Result{ExitCode: &code, Failure: job.Fail(job.CategoryExitCode, "the command exited with 3")}
	return j.End(j.WorkerID, j.Attempt, r, time.Now(), 0)
}

// settle waits until the audit log has all that the log has now.
func (w *world) settle() {
	w.t.Helper()
	head, err := w.store.Head(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	eventingtest.Eventually(w.t, fmt.Sprintf("position %d in the audit log", head), func() bool {
		out, err := w.stats.GetStatus(w.t.Context(), &platformv1.GetStatusRequest{})
		return err == nil && out.GetServices()[0].GetFigures()["events"] >= head
	})
}
