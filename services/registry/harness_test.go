package registry_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/platform/call"
	"hodei.dev/libs/platform/process"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/libs/service/command"
	"hodei.dev/libs/service/servicetest"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
	"hodei.dev/services/registry"
)

func TestMain(m *testing.M) { os.Exit(eventingtest.Main(m)) }

// patience bounds every wait of a test.
const patience = 20 * time.Second

// world is a log, a bus, a relay between them, and registries under test. The
// test itself plays the other services by appending to the log, and the agents.
type world struct {
	t     testing.TB
	url   string
	nats  *eventingtest.Server
	nc    *nats.Conn
	store *store.Store
	// connections numbers those of all agents: each counts upwards.
	connections atomic.Int64
	*replica
}

// replica is one running registry.
type replica struct {
	workers registryv1.WorkerServiceClient
	tokens  registryv1.WorkerTokenServiceClient
	logs    registryv1.LogServiceClient
	agents  registryv1.WorkerAgentServiceClient
	stop    func()
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	g := servicetest.New(tb, func(ctx context.Context, url string) error {
		cfg := registry.Default()
		cfg.PostgresURL = url
		return registry.Migrate(ctx, cfg)
	})
	w := &world{t: tb, url: g.URL, nats: g.NATS, nc: g.NC, store: g.Store}
	w.replica = w.start()
	return w
}

// start runs a registry until its stop is called, or the test ends.
func (w *world) start(change ...func(*registry.Config)) *replica {
	w.t.Helper()
	cfg := registry.Default()
	cfg.PostgresURL, cfg.NATSURL = w.url, w.nats.URL()
	dir := servicetest.SocketDir(w.t)
	cfg.Listen, cfg.AgentListen = "unix://"+filepath.Join(dir, "rpc"), "unix://"+filepath.Join(dir, "agents")
	for _, f := range change {
		f(&cfg)
	}
	if err := cfg.Validate(); err != nil {
		w.t.Fatal(err)
	}
	r := &replica{stop: servicetest.Start(w.t, "registry", "warn", func(ctx context.Context, env process.Env) error { return registry.Run(ctx, cfg, env) })}
	conn, door := servicetest.Dial(w.t, cfg.Listen), servicetest.Dial(w.t, cfg.AgentListen)
	r.workers, r.tokens = registryv1.NewWorkerServiceClient(conn), registryv1.NewWorkerTokenServiceClient(conn)
	r.logs, r.agents = registryv1.NewLogServiceClient(conn), registryv1.NewWorkerAgentServiceClient(door)
	return r
}

// as is the context of a call by ann.
func (w *world) as() context.Context { return call.With(w.t.Context(), call.Call{Actor: "user/ann"}) }

func meta(source, correlationID string) event.Meta {
	return event.Meta{Source: source, Actor: "service/" + source, CorrelationID: correlationID}
}

func (w *world) append(changes ...store.Change) []event.Event {
	w.t.Helper()
	events, err := w.store.Append(w.t.Context(), store.Append{Changes: changes})
	if err != nil {
		w.t.Fatalf("append: %v", err)
	}
	return events
}

func must[T any](w *world) func(T, error) T {
	return func(v T, err error) T {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
		return v
	}
}

// newWorker plays the provisioner: the intent for a worker is in the log.
func (w *world) newWorker(jobsPerWorker int) string {
	w.t.Helper()
	fresh := worker.Worker{ID: event.NewID()}
	w.append(must[store.Change](w)(aggregate.WorkerChange(fresh, meta("provisioner", event.NewID()), worker.Request(worker.ProvisioningRequested{
		ProviderID: event.NewID(), ProviderName: "local", JobsPerWorker: jobsPerWorker, Reason: "test",
	}))))
	return fresh.ID
}

func (w *world) worker(id string) worker.Worker {
	w.t.Helper()
	return must[worker.Worker](w)(aggregate.LoadWorker(w.t.Context(), w.store, id))
}

func (w *world) job(id string) job.Job {
	w.t.Helper()
	return must[job.Job](w)(aggregate.LoadJob(w.t.Context(), w.store, id))
}

// decideWorker appends what is decided about a worker as it is.
func (w *world) decideWorker(source, id string, decide func(worker.Worker) ([]worker.Event, error)) {
	w.t.Helper()
	now := w.worker(id)
	facts := must[[]worker.Event](w)(decide(now))
	w.append(must[store.Change](w)(aggregate.WorkerChange(now, meta(source, w.correlation("worker", id)), facts)))
}

func (w *world) correlation(kind, id string) string {
	w.t.Helper()
	return w.events(kind, id)[0].CorrelationID
}

// queue plays the scheduler: a job is queued.
func (w *world) queue(change func(*job.Spec)) string {
	w.t.Helper()
	spec := job.Spec{Command: []string{"true"}, Retry: job.Retry{MaxAttempts: 1, InfrastructureAttempts: 3}}
	if change != nil {
		change(&spec)
	}
	fresh := job.Job{ID: event.NewID()}
	facts := must[[]job.Event](w)(job.Create(spec, "", ""))
	w.append(must[store.Change](w)(aggregate.JobChange(fresh, meta("scheduler", event.NewID()), facts)))
	return fresh.ID
}

// assign plays the dispatcher: the job and its worker change in one append. It
// returns the command that follows.
func (w *world) assign(jobID, workerID string) command.Request {
	w.t.Helper()
	j, k := w.job(jobID), w.worker(workerID)
	jf := must[[]job.Event](w)(j.Assign(k.ProviderID, k.ID, k.Epoch, "fits"))
	kf := must[[]worker.Event](w)(k.Take(j.ID, j.Attempt+1))
	m := meta("dispatcher", w.correlation("job", jobID))
	events := w.append(jobChange(w, j, m, jf), workerChange(w, k, m, kf))
	return command.Request{
		Kind: command.Run, WorkerID: k.ID, JobID: j.ID, Attempt: j.Attempt + 1, JobVersion: j.Version + len(jf), WorkerVersion: k.Version + len(kf),
		CorrelationID: m.CorrelationID, CausationID: events[0].ID,
	}
}

// send plays the dispatcher: the command goes to the session. The answer comes on the channel.
func (w *world) send(r command.Request, epoch int64) <-chan command.Reply {
	w.t.Helper()
	data, err := json.Marshal(r)
	if err != nil {
		w.t.Fatal(err)
	}
	answer := make(chan command.Reply, 1)
	go func() {
		m, err := w.nc.Request(bus.CommandSubject(r.WorkerID, epoch), data, patience)
		reply := command.Reply{Reason: fmt.Sprint(err)}
		if err == nil {
			if err := json.Unmarshal(m.Data, &reply); err != nil {
				reply.Reason = err.Error()
			}
		}
		answer <- reply
	}()
	return answer
}

func (w *world) requestCancel(jobID string) {
	w.t.Helper()
	j := w.job(jobID)
	facts := must[[]job.Event](w)(j.RequestCancel("user/ann", "enough"))
	w.append(must[store.Change](w)(aggregate.JobChange(j, meta("scheduler", w.correlation("job", jobID)), facts)))
}

func (w *world) events(kind, id string) []event.Event {
	w.t.Helper()
	return must[[]event.Event](w)(w.store.Load(w.t.Context(), event.Stream{Type: kind, ID: id}, 0))
}

// types are the names of a stream's events, transitions with where they lead to.
func (w *world) types(kind, id string) []string {
	w.t.Helper()
	var out []string
	for _, e := range w.events(kind, id) {
		var data struct {
			To string `json:"to"`
		}
		if err := json.Unmarshal(e.Data, &data); err != nil {
			w.t.Fatal(err)
		}
		out = append(out, strings.TrimSuffix(e.Type+":"+data.To, ":"))
	}
	return out
}

// last are the last n of types.
func (w *world) last(kind, id string, n int) []string {
	w.t.Helper()
	all := w.types(kind, id)
	return all[max(0, len(all)-n):]
}

func (w *world) wantLast(kind, id string, want ...string) {
	w.t.Helper()
	if got := w.last(kind, id, len(want)); !slices.Equal(got, want) {
		w.t.Fatalf("%s %s ends with %v, want %v", kind, id, got, want)
	}
}

// eventually waits until a stream ends with these events.
func (w *world) eventually(kind, id string, want ...string) {
	w.t.Helper()
	deadline := time.Now().Add(patience)
	eventingtest.Eventually(w.t, kind+" "+id, func() bool {
		if time.Now().After(deadline) {
			w.t.Fatalf("%s %s is %v, want its end to be %v", kind, id, w.types(kind, id), want)
		}
		return slices.Equal(w.last(kind, id, len(want)), want)
	})
}

// oneAppend checks that the last events of two streams were one append.
func (w *world) oneAppend(jobID string, jobs int, workerID string, workers int) {
	w.t.Helper()
	je, we := w.events("job", jobID), w.events("worker", workerID)
	all := append(slices.Clone(je[len(je)-jobs:]), we[len(we)-workers:]...)
	slices.SortFunc(all, func(a, b event.Event) int { return int(a.Position - b.Position) })
	for i, e := range all {
		if e.Position != all[0].Position+int64(i) || !e.Time.Equal(all[0].Time) || e.CorrelationID != je[0].CorrelationID {
			w.t.Fatalf("not one append: %s at %d after %d (%s, %s)", e.Type, e.Position, all[0].Position, e.Time, e.CorrelationID)
		}
	}
}

func jobChange(w *world, j job.Job, m event.Meta, facts []job.Event) store.Change {
	w.t.Helper()
	return must[store.Change](w)(aggregate.JobChange(j, m, facts))
}

func workerChange(w *world, k worker.Worker, m event.Meta, facts []worker.Event) store.Change {
	w.t.Helper()
	return must[store.Change](w)(aggregate.WorkerChange(k, m, facts))
}

// decode reads the last event as a fact.
func decode[F any](events []event.Event) (f F, err error) {
	err = json.Unmarshal(events[len(events)-1].Data, &f)
	return f, err
}

// exec runs SQL in registry's database.
func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.store.Pool().Exec(w.t.Context(), sql, args...); err != nil {
		w.t.Fatal(err)
	}
}
