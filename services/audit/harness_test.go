package audit_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/platform/process"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/libs/service/servicetest"
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
	g := servicetest.New(tb, func(ctx context.Context, url string) error {
		cfg := audit.Default()
		cfg.PostgresURL = url
		return audit.Migrate(ctx, cfg)
	})
	w := &world{t: tb, url: g.URL, nats: g.NATS, store: g.Store}
	w.start()
	return w
}

// start runs the audit until stop is called, or the test ends.
func (w *world) start() {
	w.t.Helper()
	cfg := audit.Default()
	cfg.PostgresURL, cfg.NATSURL = w.url, w.nats.URL()
	cfg.Listen = "unix://" + filepath.Join(servicetest.SocketDir(w.t), "rpc")
	w.stop = servicetest.Start(w.t, "audit", "error", func(ctx context.Context, env process.Env) error { return audit.Run(ctx, cfg, env) })
	conn := servicetest.Dial(w.t, cfg.Listen)
	w.audit, w.letters = auditv1.NewAuditServiceClient(conn), auditv1.NewDeadLetterServiceClient(conn)
	w.stats = platformv1.NewStatusServiceClient(conn)
}

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
