package scheduler_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/platform/call"
	"hodei.dev/libs/platform/process"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/libs/service/servicetest"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
	"hodei.dev/services/scheduler"
)

func TestMain(m *testing.M) { os.Exit(eventingtest.Main(m)) }

// world is a log, a bus, a relay between them, and the scheduler under test. The
// test itself plays the other services by appending to the log.
type world struct {
	t     testing.TB
	url   string
	nats  *eventingtest.Server
	store *store.Store
	jobs  schedulerv1.JobServiceClient
	limit scheduler.Admission
	stats platformv1.StatusServiceClient
	// stop ends the scheduler; start begins it again.
	stop func()
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	return limitedWorld(tb, scheduler.Default().Admission)
}

// limitedWorld is one whose scheduler takes on no more than that.
func limitedWorld(tb testing.TB, limit scheduler.Admission) *world {
	tb.Helper()
	g := servicetest.New(tb, func(ctx context.Context, url string) error {
		cfg := scheduler.Default()
		cfg.PostgresURL = url
		return scheduler.Migrate(ctx, cfg)
	})
	w := &world{limit: limit, t: tb, url: g.URL, nats: g.NATS, store: g.Store}
	w.start()
	return w
}

// start runs the scheduler until stop is called, or the test ends.
func (w *world) start() {
	w.t.Helper()
	cfg := scheduler.Default()
	cfg.PostgresURL, cfg.NATSURL, cfg.Admission = w.url, w.nats.URL(), w.limit
	cfg.Listen = "unix://" + filepath.Join(servicetest.SocketDir(w.t), "rpc")
	w.stop = servicetest.Start(w.t, "scheduler", "error", func(ctx context.Context, env process.Env) error { return scheduler.Run(ctx, cfg, env) })
	conn := servicetest.Dial(w.t, cfg.Listen)
	w.jobs, w.stats = schedulerv1.NewJobServiceClient(conn), platformv1.NewStatusServiceClient(conn)
}

// as is the context of a call by ann.
func (w *world) as() context.Context {
	return call.With(w.t.Context(), call.Call{Actor: "user/ann"})
}

func (w *world) queue(spec *schedulerv1.JobSpec) *schedulerv1.Job {
	w.t.Helper()
	out, err := w.jobs.QueueJob(w.as(), &schedulerv1.QueueJobRequest{Spec: spec})
	if err != nil {
		w.t.Fatalf("queue: %v", err)
	}
	return out.GetJob()
}

func (w *world) get(id string) *schedulerv1.Job {
	w.t.Helper()
	out, err := w.jobs.GetJob(w.as(), &schedulerv1.GetJobRequest{JobId: id})
	if err != nil {
		w.t.Fatalf("get: %v", err)
	}
	return out.GetJob()
}

// decide plays another service: it folds the job, decides, and appends.
func (w *world) decide(id string, decision func(j job.Job) ([]job.Event, error)) {
	w.t.Helper()
	j, err := aggregate.LoadJob(w.t.Context(), w.store, id)
	if err != nil {
		w.t.Fatal(err)
	}
	facts, err := decision(j)
	if err != nil {
		w.t.Fatal(err)
	}
	change, err := aggregate.JobChange(j, event.Meta{Source: "dispatcher", Actor: "service/dispatcher", CorrelationID: "c-" + id}, facts)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.store.Append(w.t.Context(), store.Append{Changes: []store.Change{change}}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) assign(id, worker string) {
	w.t.Helper()
	w.decide(id, func(j job.Job) ([]job.Event, error) { return j.Assign(event.NewID(), worker, 1, "it fits") })
}

func (w *world) run(id, worker string) {
	w.t.Helper()
	w.decide(id, func(j job.Job) ([]job.Event, error) { return j.Start(worker, j.Attempt) })
}

func (w *world) end(id, worker string, exit int) {
	w.t.Helper()
	r := job.Result{ExitCode: &exit}
	if exit != 0 {
		r.Failure = job.Fail(job.CategoryExitCode, "the command exited with %d", exit)
	}
	w.decide(id, func(j job.Job) ([]job.Event, error) { return j.End(worker, j.Attempt, r, time.Now(), 0) })
}

// settle waits until the read model has all that the log has now.
func (w *world) settle() {
	w.t.Helper()
	head, err := w.store.Head(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	eventingtest.Eventually(w.t, fmt.Sprintf("position %d in the read model", head), func() bool {
		out, err := w.stats.GetStatus(w.t.Context(), &platformv1.GetStatusRequest{})
		return err == nil && out.GetServices()[0].GetPosition() >= head
	})
}

func command(argv ...string) *schedulerv1.JobSpec { return &schedulerv1.JobSpec{Command: argv} }

// registerProvider plays the provisioner.
func (w *world) registerProvider(name string) (id string) {
	w.t.Helper()
	p := provider.Provider{ID: event.NewID()}
	w.provide(p, provider.Registered{Spec: provider.Spec{Name: name, Kind: provider.Process}, By: "user/ann"})
	return p.ID
}

func (w *world) removeProvider(id string) {
	w.t.Helper()
	p, err := aggregate.LoadProvider(w.t.Context(), w.store, id)
	if err != nil {
		w.t.Fatal(err)
	}
	w.provide(p, provider.Removed{By: "user/ann"})
}

func (w *world) provide(p provider.Provider, fact provider.Event) {
	w.t.Helper()
	meta := event.Meta{Source: "provisioner", Actor: "user/ann", CorrelationID: "c-provider"}
	change, err := aggregate.ProviderChange(p, meta, []provider.Event{fact})
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.store.Append(w.t.Context(), store.Append{Changes: []store.Change{change}}); err != nil {
		w.t.Fatal(err)
	}
}
