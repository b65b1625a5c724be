package timeoutmonitor_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/unit"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/relay"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/platform/config"
	"hodei.dev/libs/platform/process"
	"hodei.dev/libs/platform/telemetry"
	"hodei.dev/libs/service/aggregate"
	timeoutmonitor "hodei.dev/services/timeout-monitor"
)

func TestMain(m *testing.M) { os.Exit(eventingtest.Main(m)) }

// world is a log, a bus and a relay; the monitor is started by each test.
type world struct {
	t     testing.TB
	store *store.Store
	nc    *nats.Conn
	cfg   timeoutmonitor.Config
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	return newWorldOn(tb, eventingtest.NATS(tb))
}

func newWorldOn(tb testing.TB, server *eventingtest.Server) *world {
	tb.Helper()
	url := eventingtest.MigratedPostgres(tb)
	cfg := timeoutmonitor.Default()
	cfg.PostgresURL, cfg.NATSURL = url, server.URL()
	cfg.ShutdownGrace = config.Duration(10 * time.Second)
	if err := timeoutmonitor.Migrate(tb.Context(), cfg); err != nil {
		tb.Fatal(err)
	}
	nc := server.Conn()
	s, err := store.Open(tb.Context(), store.Config{URL: url, OnCommit: bus.Nudger(nc)})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	r, err := relay.New(relay.Config{
		Store: s, NC: nc, JS: eventingtest.JetStream(tb, nc), DeadLetters: relay.NewDeadLetters(s.Pool()),
		Base: func(context.Context) (int64, error) { return 0, nil },
	})
	if err != nil {
		tb.Fatal(err)
	}
	background(tb, r.Run)
	return &world{t: tb, store: s, nc: nc, cfg: cfg}
}

// background runs a part until the test, or the returned function, ends it.
func background(tb testing.TB, run func(context.Context) error) (stop func()) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	ended := false
	stop = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("stopping: %v", err)
		}
	}
	tb.Cleanup(stop)
	return stop
}

// monitor starts the service and waits until it is ready.
func (w *world) monitor() (stop func()) {
	w.t.Helper()
	level := "warn"
	if _, ok := w.t.(*testing.B); ok {
		level = "error" // thousands of deadlines fire
	}
	tel, err := telemetry.Setup(w.t.Context(), telemetry.Options{Service: "timeout-monitor", LogLevel: level, LogFormat: "text", LogWriter: w.t.Output()})
	if err != nil {
		w.t.Fatal(err)
	}
	env := process.Env{Log: tel.Log, Tel: tel, Health: process.NewHealth(nil)}
	stop = background(w.t, func(ctx context.Context) error { return timeoutmonitor.Run(ctx, w.cfg, env) })
	if err := env.Health.Wait(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	return stop
}

var meta = event.Meta{Source: "test", CorrelationID: "corr", Actor: "user/ann"}

func (w *world) append(changes ...store.Change) []event.Event {
	w.t.Helper()
	out, err := w.store.Append(w.t.Context(), store.Append{Changes: changes})
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *world) job(id string) job.Job {
	w.t.Helper()
	j, err := aggregate.LoadJob(w.t.Context(), w.store, id)
	if err != nil {
		w.t.Fatal(err)
	}
	return j
}

func (w *world) worker(id string) worker.Worker {
	w.t.Helper()
	v, err := aggregate.LoadWorker(w.t.Context(), w.store, id)
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

func jobChange(w *world, j job.Job) func([]job.Event, error) store.Change {
	return func(facts []job.Event, err error) store.Change {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
		c, err := aggregate.JobChange(j, meta, facts)
		if err != nil {
			w.t.Fatal(err)
		}
		return c
	}
}

func workerChange(w *world, v worker.Worker, correlation string) func([]worker.Event, error) store.Change {
	return func(facts []worker.Event, err error) store.Change {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
		m := meta
		m.CorrelationID = correlation
		c, err := aggregate.WorkerChange(v, m, facts)
		if err != nil {
			w.t.Fatal(err)
		}
		return c
	}
}

// queue appends a PENDING job.
func (w *world) queue(edit func(*job.Spec)) string {
	w.t.Helper()
	id := event.NewID()
	spec := job.Spec{Name: "j", Command: []string{"true"}, Retry: job.Retry{InfrastructureAttempts: 3}}
	if edit != nil {
		edit(&spec)
	}
	facts, err := job.Create(spec, "", "")
	w.append(jobChange(w, job.Job{ID: id, Spec: spec.WithDefaults()})(facts, err))
	return id
}

var providerID = uuid.NewString()

// creating appends a CREATING worker, under a correlation id of its own.
func (w *world) creating(jobID string) string {
	w.t.Helper()
	id := event.NewID()
	w.append(workerChange(w, worker.Worker{ID: id}, "own-"+id)(worker.Request(worker.ProvisioningRequested{ProviderID: providerID, JobID: jobID, JobsPerWorker: 1}), nil))
	return id
}

// ready appends a READY worker.
func (w *world) ready() string {
	w.t.Helper()
	id := w.creating("")
	for _, decide := range []func(worker.Worker) ([]worker.Event, error){
		func(v worker.Worker) ([]worker.Event, error) { return v.Connecting("made") },
		func(v worker.Worker) ([]worker.Event, error) { return v.Attach(1, "") },
	} {
		v := w.worker(id)
		facts, err := decide(v)
		w.append(workerChange(w, v, "own-"+id)(facts, err))
	}
	return id
}

// assign gives the job to the worker.
func (w *world) assign(jobID, workerID string) {
	w.t.Helper()
	j, v := w.job(jobID), w.worker(workerID)
	assigned, err := j.Assign(providerID, workerID, 1, "test")
	first := jobChange(w, j)(assigned, err)
	taken, err := v.Take(jobID, j.Attempt+1)
	w.append(first, workerChange(w, v, "corr")(taken, err))
}

func (w *world) run(jobID string) {
	w.t.Helper()
	j := w.job(jobID)
	facts, err := j.Start(j.WorkerID, j.Attempt)
	w.append(jobChange(w, j)(facts, err))
}

// until waits for an event of a stream and returns the stream's events.
func (w *world) until(s event.Stream, what string, is func(event.Event) bool) []event.Event {
	w.t.Helper()
	var events []event.Event
	eventingtest.Eventually(w.t, what+" of "+s.String(), func() bool {
		var err error
		if events, err = w.store.Load(w.t.Context(), s, 0); err != nil {
			w.t.Fatal(err)
		}
		return slices.ContainsFunc(events, is)
	})
	return events
}

func typed(name string) func(event.Event) bool {
	return func(e event.Event) bool { return e.Type == name }
}

func terminating(e event.Event) bool {
	return e.Type == "WorkerStatusChanged" && strings.Contains(string(e.Data), `"TERMINATING"`)
}

func find(tb testing.TB, events []event.Event, is func(event.Event) bool) event.Event {
	tb.Helper()
	i := slices.IndexFunc(events, is)
	if i < 0 {
		tb.Fatalf("it is not among %d events", len(events))
	}
	return events[i]
}

func fact[F any](tb testing.TB, e event.Event) F {
	tb.Helper()
	v, err := aggregate.Decode(e)
	if err != nil {
		tb.Fatal(err)
	}
	return v.(F)
}

// together says that two streams changed in one append: their positions touch.
func together(t *testing.T, a, b event.Event) {
	t.Helper()
	if d := b.Position - a.Position; d < 1 || d > 3 || !a.Time.Equal(b.Time) {
		t.Errorf("%s at %d (%s) and %s at %d (%s) are not one append", a.Type, a.Position, a.Time, b.Type, b.Position, b.Time)
	}
}

// recovered checks what every recovery promises, and how late it was.
func recovered(t *testing.T, events []event.Event, cause event.Event, threshold time.Duration) event.Event {
	t.Helper()
	e := find(t, events, typed("StateTimedOut"))
	f := fact[deadline.TimedOut](t, e)
	late := e.Time.Sub(cause.Time) - threshold
	t.Logf("%s in %s: %s late", f.Kind, f.State, late)
	if late < -5*time.Millisecond || late > time.Second {
		t.Errorf("fired %s after %s was due", late, f.State)
	}
	if e.Actor != "service/timeout-monitor" || e.Source != "timeout-monitor" || e.CausationID != cause.ID || e.CorrelationID == "" {
		t.Errorf("who and why: %+v, want caused by %s", e.Meta, cause.ID)
	}
	if f.Threshold.D() != threshold {
		t.Errorf("threshold %s, want %s", f.Threshold, threshold)
	}
	return e
}

func short(d time.Duration) config.Duration { return config.Duration(d) }

func (w *world) register(edit func(*provider.Spec)) {
	w.t.Helper()
	spec := provider.Spec{
		Name: "here", Kind: provider.Process, MaxWorkers: 4, JobsPerWorker: 1, IdleTimeout: unit.Duration(time.Minute), ScheduledTimeout: unit.Duration(time.Minute),
	}
	edit(&spec)
	p, err := aggregate.LoadProvider(w.t.Context(), w.store, providerID)
	if err != nil {
		p = provider.Provider{ID: providerID}
	}
	facts, err := p.Register(spec, provider.Capabilities{}, "ann")
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := aggregate.ProviderChange(p, meta, facts)
	if err != nil {
		w.t.Fatal(err)
	}
	w.append(c)
}

func (w *world) count(query string) (n int) {
	w.t.Helper()
	if err := w.store.Pool().QueryRow(w.t.Context(), query).Scan(&n); err != nil {
		w.t.Fatal(fmt.Errorf("%s: %w", query, err))
	}
	return n
}
