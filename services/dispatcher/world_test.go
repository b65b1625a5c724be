package dispatcher_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"hodei.dev/libs/domain/circuit"
	"hodei.dev/libs/domain/fault"
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
	"hodei.dev/libs/service/command"

	"hodei.dev/services/dispatcher"
)

func TestMain(m *testing.M) { os.Exit(eventingtest.Main(m)) }

// world is an event log with its relay and bus, and a registry that behaves as the
// test says. The dispatcher is the real one.
type world struct {
	testing.TB
	url      string
	srv      *eventingtest.Server
	nc       *nats.Conn
	store    *store.Store
	provider provider.Provider
	// patience is how long a hand-over may take; 0 = the default.
	patience time.Duration
	// grace is that of a hand-over, probe when an open circuit is tried; 0 = the defaults.
	grace, probe time.Duration
	// relay publishes the log until stopped is called; again after that.
	relay   *relay.Relay
	stopped func()
	// replica is the registry process that workers come by.
	replica string

	mu sync.Mutex
	// answer is what the registry does with a command; nil reply = silence.
	answer   func(command.Request) *command.Reply
	requests []command.Request
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	w := &world{TB: tb, url: eventingtest.MigratedPostgres(tb), srv: eventingtest.NATS(tb)}
	w.nc = w.srv.LocalConn()
	s, err := store.Open(tb.Context(), store.Config{URL: w.url, OnCommit: bus.Nudger(w.nc)})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	w.store = s
	w.relay, err = relay.New(relay.Config{
		Store: s, NC: w.nc, JS: eventingtest.JetStream(tb, w.nc), DeadLetters: noLetters{},
		Base: func(context.Context) (int64, error) { return 0, nil }, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		tb.Fatal(err)
	}
	w.publish()
	return w
}

// publish runs the relay.
func (w *world) publish() { w.stopped = w.background("the relay", w.relay.Run) }

type noLetters struct{}

func (noLetters) Record(context.Context, event.Event, string) error { return nil }

// background runs fn until the returned func is called, or the test ends.
func (w *world) background(what string, fn func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- fn(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.Errorf("%s: %v", what, err)
		}
	})
	w.Cleanup(stop)
	return stop
}

// dispatcher runs one replica and waits until it is ready.
func (w *world) dispatcher() (stop func()) {
	w.Helper()
	level := "error"
	if testing.Verbose() {
		level = "debug"
	}
	tel, err := telemetry.Setup(w.Context(), telemetry.Options{Service: "dispatcher", LogLevel: level, LogFormat: "text", LogWriter: w.Output()})
	if err != nil {
		w.Fatal(err)
	}
	health := process.NewHealth(nil)
	cfg := dispatcher.Default()
	cfg.PostgresURL, cfg.InProcessNATS = w.url, w.srv
	if w.patience > 0 {
		cfg.HandOverTimeout = config.Duration(w.patience)
	}
	if w.grace > 0 {
		cfg.HandOverGrace = config.Duration(w.grace)
	}
	if w.probe > 0 {
		cfg.ProviderProbeAfter, cfg.PathProbeAfter = config.Duration(w.probe), config.Duration(w.probe)
	}
	if err := cfg.Validate(); err != nil {
		w.Fatal(err)
	}
	stop = w.background("the dispatcher", func(ctx context.Context) error {
		return dispatcher.Run(ctx, cfg, process.Env{Log: tel.Log, Tel: tel, Health: health})
	})
	if err := health.Wait(w.Context()); err != nil {
		w.Fatal(err)
	}
	return stop
}

// registry answers commands. What it accepts it starts, as the real one does.
func (w *world) registry(answer func(command.Request) *command.Reply) {
	w.Helper()
	w.mu.Lock()
	first := w.answer == nil
	w.answer = answer
	w.mu.Unlock()
	if !first {
		return
	}
	var starting sync.WaitGroup
	ended := false // guarded by w.mu
	sub, err := w.nc.Subscribe("hodei.cmd.*.*", func(m *nats.Msg) {
		var r command.Request
		if err := json.Unmarshal(m.Data, &r); err != nil {
			w.Error(err)
		}
		if r.Kind == command.Ping {
			if err := m.Respond([]byte(`{"ok":true}`)); err != nil {
				w.Error(err)
			}
			return
		}
		w.mu.Lock()
		w.requests = append(w.requests, r)
		reply := w.answer(r)
		if reply != nil && reply.OK && !ended {
			starting.Go(func() { w.start(r) })
		}
		w.mu.Unlock()
		if reply == nil {
			return
		}
		data, _ := json.Marshal(reply)
		if err := m.Respond(data); err != nil {
			w.Error(err)
		}
	})
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() {
		_ = sub.Unsubscribe()
		w.mu.Lock()
		ended = true
		w.mu.Unlock()
		starting.Wait() // before the log is closed
	})
	if err := w.nc.Flush(); err != nil {
		w.Fatal(err)
	}
}

func accept(command.Request) *command.Reply { return &command.Reply{OK: true} }

func (w *world) commands() []command.Request {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.requests)
}

// start appends RUNNING for an accepted attempt.
func (w *world) start(r command.Request) {
	j := w.job(r.JobID)
	facts, err := j.Start(r.WorkerID, r.Attempt)
	if err != nil {
		return // sent twice: it runs
	}
	_, err = w.store.Append(context.Background(), store.Append{Changes: []store.Change{w.jobChange(j, facts)}})
	if err != nil && !errors.Is(err, fault.Conflict) { // sent twice at once: it runs
		w.Error(err)
	}
}

func (w *world) meta(source string) event.Meta {
	return event.Meta{Source: source, CorrelationID: event.NewID(), Actor: "service/" + source}
}

func (w *world) append(changes ...store.Change) []event.Event {
	events, err := w.store.Append(context.Background(), store.Append{Changes: changes})
	if err != nil {
		w.Error(err)
	}
	return events
}

func (w *world) jobChange(j job.Job, facts []job.Event) store.Change {
	c, err := aggregate.JobChange(j, w.meta("test"), facts)
	if err != nil {
		w.Error(err)
	}
	return c
}

func (w *world) workerChange(x worker.Worker, facts []worker.Event) store.Change {
	c, err := aggregate.WorkerChange(x, w.meta("test"), facts)
	if err != nil {
		w.Error(err)
	}
	return c
}

// register registers the provider "local".
func (w *world) register(maxWorkers, jobsPerWorker int) {
	w.Helper()
	w.provider.ID = event.NewID()
	facts, err := w.provider.Register(provider.Spec{
		Name: "local", Kind: provider.Process, MaxWorkers: maxWorkers, JobsPerWorker: jobsPerWorker,
		IdleTimeout: unit.Duration(time.Minute), ScheduledTimeout: unit.Duration(time.Minute),
	}, provider.Capabilities{}, "test")
	if err != nil {
		w.Fatal(err)
	}
	c, err := aggregate.ProviderChange(w.provider, w.meta("provisioner"), facts)
	if err != nil {
		w.Fatal(err)
	}
	w.append(c)
}

// idle brings up a worker of "local" that is never done, and returns its id.
func (w *world) idle() string {
	w.Helper()
	x := worker.Worker{ID: event.NewID()}
	w.append(w.workerChange(x, worker.Request(worker.ProvisioningRequested{
		ProviderID: w.provider.ID, ProviderName: "local",
	})))
	w.up(x.ID)
	return x.ID
}

// up brings a worker from CREATING to READY.
func (w *world) up(id string) {
	w.Helper()
	x := w.worker(id)
	facts, err := x.Connecting("made")
	if err != nil {
		w.Fatal(err)
	}
	w.append(w.workerChange(x, facts))
	x = w.worker(id)
	if facts, err = x.Attach(1, w.replica); err != nil {
		w.Fatal(err)
	}
	w.append(w.workerChange(x, facts))
}

// back has a worker's agent connect again, through a replica.
func (w *world) back(id, replica string) {
	x := w.worker(id)
	w.append(w.workerChange(x, []worker.Event{worker.Reconnected{Epoch: x.Epoch + 1, Replica: replica}}))
}

// queue queues a job and returns its id.
func (w *world) queue(change func(*job.Spec)) string {
	w.Helper()
	spec := job.Spec{Command: []string{"true"}, Retry: job.Retry{MaxAttempts: 1, InfrastructureAttempts: 3}}
	if change != nil {
		change(&spec)
	}
	facts, err := job.Create(spec, "", "")
	if err != nil {
		w.Fatal(err)
	}
	j := job.Job{ID: event.NewID()}
	w.append(w.jobChange(j, facts))
	return j.ID
}

func (w *world) job(id string) job.Job {
	j, err := aggregate.LoadJob(context.Background(), w.store, id)
	if err != nil {
		w.Error(err)
	}
	return j
}

func (w *world) worker(id string) worker.Worker {
	x, err := aggregate.LoadWorker(context.Background(), w.store, id)
	if err != nil {
		w.Error(err)
	}
	return x
}

// circuit is that of the path through a replica.
func (w *world) circuit(replica string) circuit.Circuit {
	return w.circuitOf(circuit.Guarded{Kind: circuit.Path, Subject: replica})
}

func (w *world) circuitOf(g circuit.Guarded) circuit.Circuit {
	c, err := aggregate.LoadCircuit(context.Background(), w.store, g.ID())
	if err != nil {
		w.Error(err)
	}
	return c
}

// becomes waits for a job's state.
func (w *world) becomes(id string, want job.State) job.Job {
	w.Helper()
	var j job.Job
	eventingtest.Eventually(w, "job "+id+" to be "+string(want), func() bool {
		j = w.job(id)
		return j.State == want
	})
	return j
}

// events are all of a stream.
func (w *world) events(s event.Stream) []event.Event {
	events, err := w.store.Load(w.Context(), s, 0)
	if err != nil {
		w.Fatal(err)
	}
	return events
}

func types(events []event.Event) []string {
	out := make([]string, len(events))
	for i, e := range events {
		out[i] = e.Type
	}
	return out
}
