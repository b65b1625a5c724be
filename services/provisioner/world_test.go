package provisioner_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/relay"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/platform/config"
	"hodei.dev/libs/platform/process"
	"hodei.dev/libs/platform/rpc"
	"hodei.dev/libs/platform/telemetry"
	"hodei.dev/libs/service/aggregate"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
	provisionerv1 "hodei.dev/proto/hodei/provisioner/v1"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
	"hodei.dev/services/provisioner"
)

func TestMain(m *testing.M) { os.Exit(eventingtest.Main(m)) }

// agentScript stands in for the agent: it has a daemon in a session of its own, and
// does not connect anywhere: the tests speak for it.
const agentScript = `#!/bin/sh
cat <&3 >boot.json
exec 3<&-
setsid sh -c 'sleep 86400 & echo $! >daemon.new; mv daemon.new daemon; wait' >/dev/null 2>&1 &
while [ ! -e daemon ]; do :; done
mkfifo never
read x <never
`

// world is everything around one provisioner: a log, its relay, and a registry.
type world struct {
	t      *testing.T
	store  *store.Store
	tokens *fakeTokens
	cfg    provisioner.Config
	client provisionerv1.ProviderServiceClient
	status platformv1.StatusServiceClient
	dir    string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	url := eventingtest.MigratedPostgres(t)
	server := eventingtest.NATS(t)
	nc := server.Conn()
	s, err := store.Open(t.Context(), store.Config{URL: url, OnCommit: bus.Nudger(nc)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	// Sockets have short paths; users of jobs must get through.
	dir, err := os.MkdirTemp("", "hodei-provisioner-") //nolint:usetesting // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &world{t: t, store: s, dir: dir, tokens: &fakeTokens{}}
	w.relay(nc)
	w.cfg = provisioner.Default()
	w.cfg.PostgresURL, w.cfg.NATSURL = url, server.URL()
	w.cfg.Listen, w.cfg.LogLevel = "unix://"+dir+"/p.sock", "error"
	w.cfg.RegistryAddress = w.registry()
	w.cfg.StateDir, w.cfg.AgentBinary = filepath.Join(dir, "state"), w.agent(agentScript)
	conn, err := rpc.Dial(w.cfg.Listen, grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	w.status = platformv1.NewStatusServiceClient(conn)
	w.client = provisionerv1.NewProviderServiceClient(conn)
	return w
}

func (w *world) agent(script string) string {
	w.t.Helper()
	file := filepath.Join(w.dir, "agent-"+event.NewID())
	if err := os.WriteFile(file, []byte(script), 0o755); err != nil {
		w.t.Fatal(err)
	}
	return file
}

// relay carries the log until the test ends.
func (w *world) relay(nc *nats.Conn) {
	w.t.Helper()
	r, err := relay.New(relay.Config{
		Store: w.store, NC: nc, JS: eventingtest.JetStream(w.t, nc), Window: 64, Replicas: 1,
		Base: func(context.Context) (int64, error) { return 0, nil }, Log: slog.New(slog.DiscardHandler), DeadLetters: noDeadLetters{w.t},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.background(r.Run)
}

// noDeadLetters fails the test where an event cannot be published.
type noDeadLetters struct{ t *testing.T }

func (d noDeadLetters) Record(_ context.Context, e event.Event, reason string) error {
	d.t.Errorf("event %s cannot be published: %s", e.ID, reason)
	return nil
}

// background runs a part until the test ends or the returned function is called.
func (w *world) background(run func(ctx context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			w.t.Errorf("a part of the world: %v", err)
		}
	})
	w.t.Cleanup(stop)
	return stop
}

// start runs a provisioner until the test ends or stop is called. What it leaves is
// cleaned up by the test's last provisioner.
func (w *world) start() (stop func()) {
	w.t.Helper()
	tel, err := telemetry.Setup(w.t.Context(), telemetry.Options{Service: "provisioner", LogLevel: w.cfg.LogLevel, LogWriter: io.Discard})
	if os.Getenv("HODEI_TEST_LOG") != "" {
		tel, err = telemetry.Setup(w.t.Context(), telemetry.Options{Service: "provisioner", LogLevel: "debug", LogFormat: "text", LogWriter: os.Stderr})
	}
	if err != nil {
		w.t.Fatal(err)
	}
	env := process.Env{Log: tel.Log, Tel: tel, Health: process.NewHealth(nil), Version: "test"}
	cfg := w.cfg
	stop = w.background(func(ctx context.Context) error { return provisioner.Run(ctx, cfg, env) })
	w.awaitActive()
	return stop
}

// awaitActive waits until the provisioner makes and ends workers.
func (w *world) awaitActive() {
	w.t.Helper()
	eventingtest.Eventually(w.t, "an active provisioner", func() bool {
		out, err := w.status.GetStatus(context.WithoutCancel(w.t.Context()), &platformv1.GetStatusRequest{})
		return err == nil && out.GetServices()[0].GetRole() == "active" && out.GetServices()[0].GetReady()
	})
}

// cleanup ends every worker at the end of the test.
func (w *world) cleanup() {
	w.t.Cleanup(func() {
		w.cfg.StopWorkers, w.cfg.Providers = true, nil
		ctx, cancel := context.WithCancel(context.Background())
		env := process.Env{Log: slog.New(slog.DiscardHandler), Health: process.NewHealth(nil)}
		var err error
		if env.Tel, err = telemetry.Setup(ctx, telemetry.Options{Service: "provisioner", LogWriter: io.Discard}); err != nil {
			w.t.Error(err)
		}
		done := make(chan error, 1)
		go func() { done <- provisioner.Run(ctx, w.cfg, env) }()
		w.awaitActive()
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
		for _, pid := range w.processes() {
			w.t.Errorf("process %d is left", pid)
		}
	})
}

// processes are those that run below the state directory: agents and daemons.
func (w *world) processes() []int {
	var out []int
	entries, err := os.ReadDir("/proc")
	if err != nil {
		w.t.Error(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if cwd, err := os.Readlink("/proc/" + e.Name() + "/cwd"); err == nil && strings.HasPrefix(cwd, w.cfg.StateDir) {
			out = append(out, pid)
		}
	}
	return out
}

// register registers a provider.
func (w *world) register(spec *provisionerv1.ProviderSpec) *provisionerv1.Provider {
	w.t.Helper()
	out, err := w.client.RegisterProvider(w.t.Context(), &provisionerv1.RegisterProviderRequest{Spec: spec})
	if err != nil {
		w.t.Fatal(err)
	}
	return out.GetProvider()
}

// request asks for a worker as the dispatcher does, and returns its id.
func (w *world) request(p *provisionerv1.Provider, jobID string) string {
	w.t.Helper()
	id := event.NewID()
	w.append(worker.Worker{ID: id}, event.Meta{Source: "dispatcher", Actor: "service/dispatcher", CorrelationID: "corr-" + id},
		worker.Request(worker.ProvisioningRequested{
			ProviderID: p.GetId(), ProviderName: p.GetSpec().GetName(), JobID: jobID, JobsPerWorker: 1, CPUMillis: 100, MemoryBytes: 16 << 20, Reason: "test",
		}))
	return id
}

func (w *world) append(of worker.Worker, meta event.Meta, facts []worker.Event) {
	w.t.Helper()
	change, err := aggregate.WorkerChange(of, meta, facts)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.store.Append(w.t.Context(), store.Append{Changes: []store.Change{change}}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) worker(id string) worker.Worker {
	w.t.Helper()
	got, err := aggregate.LoadWorker(w.t.Context(), w.store, id)
	if err != nil {
		w.t.Fatal(err)
	}
	return got
}

// registryDecides appends what registry decides about a worker.
func (w *world) registryDecides(id string, decide func(w worker.Worker) ([]worker.Event, error)) {
	w.t.Helper()
	for {
		now := w.worker(id)
		facts, err := decide(now)
		if err != nil {
			w.t.Fatal(err)
		}
		change, err := aggregate.WorkerChange(now, event.Meta{Source: "registry", Actor: "service/registry", CorrelationID: "corr-" + id}, facts)
		if err != nil {
			w.t.Fatal(err)
		}
		_, err = w.store.Append(w.t.Context(), store.Append{Changes: []store.Change{change}})
		if err == nil {
			return
		}
		if !errors.Is(err, fault.Conflict) {
			w.t.Fatal(err)
		}
	}
}

// connect has a worker's agent register and attach.
func (w *world) connect(id string) {
	w.t.Helper()
	w.registryDecides(id, func(now worker.Worker) ([]worker.Event, error) {
		facts := []worker.Event{worker.Registered{AgentVersion: "test"}}
		if now.State == worker.StateCreating {
			more, err := now.Connecting("its agent came")
			if err != nil {
				return nil, err
			}
			facts = append(facts, more...)
			now.State = worker.StateConnecting
		}
		more, err := now.Attach(1, "")
		return append(facts, more...), err
	})
}

// await waits for a state and returns the worker.
func (w *world) await(id string, state worker.State) worker.Worker {
	w.t.Helper()
	var got worker.Worker
	eventingtest.Eventually(w.t, "worker "+id+" to be "+string(state), func() bool {
		got = w.worker(id)
		return got.State == state
	})
	return got
}

// types are the events of a worker, in order.
func (w *world) types(id string) string { return w.typesOf(aggregate.WorkerStream(id)) }

func (w *world) typesOf(stream event.Stream) string {
	w.t.Helper()
	events, err := w.store.Load(w.t.Context(), stream, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, e := range events {
		out = append(out, e.Type)
	}
	return strings.Join(out, " ")
}

func (w *world) count(id, eventType string) int {
	return w.countOf(aggregate.WorkerStream(id), eventType)
}

func (w *world) countOf(stream event.Stream, eventType string) int {
	return strings.Count(" "+w.typesOf(stream)+" ", " "+eventType+" ")
}

// live are the workers of a provider that have not ended.
func (w *world) live() []worker.Worker {
	w.t.Helper()
	all := map[string]worker.Worker{}
	_, err := w.store.Snapshot(w.t.Context(), store.SnapshotOptions{StreamTypes: []string{"worker"}}, func(e event.Event) error {
		got, err := aggregate.EvolveWorker(all[e.Stream.ID], e)
		all[e.Stream.ID] = got
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	var out []worker.Worker
	for _, one := range all {
		out = append(out, one)
	}
	return out
}

// daemon waits until a worker's daemon runs and returns its pid.
func (w *world) daemon(id string) int {
	w.t.Helper()
	file := filepath.Join(w.cfg.StateDir, "workers", id, "daemon")
	pid := 0
	eventingtest.Eventually(w.t, "the daemon of "+id, func() bool {
		raw, err := os.ReadFile(file)
		if err != nil {
			return false
		}
		pid, err = strconv.Atoi(strings.TrimSpace(string(raw)))
		return err == nil
	})
	return pid
}

// fakeTokens is registry's door for the provisioner.
type fakeTokens struct {
	registryv1.UnimplementedWorkerTokenServiceServer
	away   atomic.Bool
	denied atomic.Bool
	issued atomic.Int32
}

// IssueToken implements WorkerTokenService.
func (f *fakeTokens) IssueToken(_ context.Context, in *registryv1.IssueTokenRequest) (*registryv1.IssueTokenResponse, error) {
	switch {
	case f.away.Load():
		return nil, fault.New(fault.Unavailable, "registry is away")
	case f.denied.Load():
		return nil, fault.New(fault.Precondition, "no token for %s", in.GetWorkerId())
	}
	f.issued.Add(1)
	return &registryv1.IssueTokenResponse{
		Token: "token-of-" + in.GetWorkerId(), AgentAddress: "127.0.0.1:7434", ExpiresAt: timestamppb.New(time.Now().Add(5 * time.Minute)),
	}, nil
}

func (w *world) registry() string {
	w.t.Helper()
	server, err := rpc.NewServer(rpc.Options{Listen: "unix://" + w.dir + "/r.sock"})
	if err != nil {
		w.t.Fatal(err)
	}
	registryv1.RegisterWorkerTokenServiceServer(server.GRPC(), w.tokens)
	w.background(server.Run)
	return "unix://" + w.dir + "/r.sock"
}

// kill -9 of a worker's agent.
func (w *world) agentPID(id string) int {
	w.t.Helper()
	pid, err := strconv.Atoi(w.worker(id).Details["pid"])
	if err != nil {
		w.t.Fatal(err)
	}
	return pid
}

// duration of the shutdown grace for tests.
func grace(c *provisioner.Config, d time.Duration) { c.ShutdownGrace = config.Duration(d) }
