package dispatcher_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hodei.dev/libs/domain/circuit"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/libs/service/command"

	"hodei.dev/services/dispatcher/internal/app"
)

func TestAssign(t *testing.T) {
	w := newWorld(t)
	w.registry(accept)
	w.register(4, 0)
	x := w.idle()
	w.dispatcher()
	id := w.queue(nil)
	j := w.becomes(id, job.StateRunning)
	if j.Attempt != 1 || j.WorkerID != x || j.ProviderID != w.provider.ID {
		t.Errorf("job: %+v", j)
	}
	if got := w.worker(x); got.State != worker.StateBusy || got.JobID != id || got.Attempt != 1 {
		t.Errorf("worker: %+v", got)
	}
	events := w.events(aggregate.JobStream(id))
	if diff := cmp.Diff([]string{"JobCreated", "JobQueued", "JobAssigned", "JobStatusChanged"}, types(events)); diff != "" {
		t.Fatal(diff)
	}
	queued, assigned := events[1], events[2]
	if assigned.CausationID != queued.ID || assigned.CorrelationID != queued.CorrelationID || assigned.Actor != "service/dispatcher" || assigned.Namespace != "default" {
		t.Errorf("context of JobAssigned: %+v", assigned.Meta)
	}
	taken := w.events(aggregate.WorkerStream(x))
	busy := taken[len(taken)-1]
	if busy.Position != assigned.Position+1 || busy.CorrelationID != queued.CorrelationID {
		t.Errorf("BUSY is not of the same append: %+v, %+v", assigned, busy)
	}
	want := []command.Request{{
		Kind: command.Run, WorkerID: x, JobID: id, Attempt: 1, JobVersion: assigned.StreamVersion, WorkerVersion: busy.StreamVersion,
		CorrelationID: queued.CorrelationID, CausationID: assigned.ID,
	}}
	if diff := cmp.Diff(want, w.commands()); diff != "" {
		t.Errorf("commands (-want +got):\n%s", diff)
	}
}

func TestSchedule(t *testing.T) {
	w := newWorld(t)
	w.registry(accept)
	w.dispatcher()
	id := w.queue(nil)
	eventingtest.Eventually(t, "a deferral", func() bool { return len(w.job(id).Deferred) == 1 })
	w.register(1, 1)
	j := w.becomes(id, job.StateScheduled)
	made := w.events(aggregate.WorkerStream(j.WorkerID))
	if diff := cmp.Diff([]string{"WorkerProvisioningRequested", "ProviderSelected"}, types(made)); diff != "" {
		t.Fatal(diff)
	}
	if x := w.worker(j.WorkerID); x.WaitingJobID != id || x.JobsPerWorker != 1 || x.ProviderName != "local" {
		t.Errorf("worker: %+v", x)
	}
	w.up(j.WorkerID)
	if got := w.becomes(id, job.StateRunning); got.WorkerID != j.WorkerID || got.Attempt != 1 {
		t.Errorf("job: %+v", got)
	}
}

func TestHandOverFails(t *testing.T) {
	for _, test := range []struct {
		name, says string
		answer     func(command.Request) *command.Reply
	}{
		{"nobody holds the session", "no registry holds", nil},
		{"no answer in time", "did not answer in time", func(command.Request) *command.Reply { return nil }},
		{"refused", "refused: agent is full", func(command.Request) *command.Reply { return &command.Reply{Reason: "agent is full"} }},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			if test.answer != nil {
				w.registry(test.answer)
			}
			w.patience, w.grace = 300*time.Millisecond, 300*time.Millisecond
			w.register(2, 0)
			x := w.idle()
			w.dispatcher()
			id := w.queue(nil)
			// Requeued, held back, and then placed anew: the first worker goes.
			j := w.becomes(id, job.StateScheduled)
			if j.WorkerID == x || j.Spent.Infrastructure != 1 || j.Attempts[0].Result.Failure.Category != job.CategoryDispatchFailed {
				t.Errorf("job: %+v", j)
			}
			events := w.events(aggregate.JobStream(id))
			if diff := cmp.Diff([]string{"JobCreated", "JobQueued", "JobAssigned", "JobDispatchFailed", "JobRequeued", "JobScheduled"}, types(events)); diff != "" {
				t.Fatal(diff)
			}
			if !strings.Contains(string(events[3].Data), test.says) {
				t.Errorf("JobDispatchFailed says %s", events[3].Data)
			}
			if held := events[5].Time.Sub(events[4].Time); j.NotBefore.After(events[5].Time.Add(20*time.Millisecond)) || held < 100*time.Millisecond {
				t.Errorf("scheduled %s after the requeue, not before %s", held, j.NotBefore)
			}
			got := w.worker(x)
			if got.State != worker.StateTerminating || got.Cause != worker.CauseHandOver || got.JobID != "" {
				t.Errorf("worker: %+v", got)
			}
			if going := w.events(aggregate.WorkerStream(x)); going[len(going)-1].Position != events[4].Position+1 {
				t.Error("the worker's end is not in the append of the requeue")
			}
		})
	}
}

func TestWorkerNeverComes(t *testing.T) {
	w := newWorld(t)
	w.register(1, 1)
	w.dispatcher()
	id := w.queue(func(s *job.Spec) { s.Retry.InfrastructureAttempts = 1 })
	for _, want := range []job.State{job.StateScheduled, job.StateFailed} {
		var j job.Job
		eventingtest.Eventually(t, "a worker", func() bool { j = w.job(id); return j.State == job.StateScheduled })
		x := w.worker(j.WorkerID)
		facts, err := x.Terminate(worker.CauseProvisioning, "no disk")
		if err != nil {
			t.Fatal(err)
		}
		failed := append([]worker.Event{worker.ProvisioningFailed{ProviderID: x.ProviderID, JobID: id, Reason: "no disk"}}, facts...)
		w.append(w.workerChange(x, failed))
		x = w.worker(j.WorkerID)
		if facts, err = x.Confirm("nothing was made"); err != nil {
			t.Fatal(err)
		}
		w.append(w.workerChange(x, facts))
		eventingtest.Eventually(t, "what follows", func() bool {
			now := w.job(id)
			return now.State == want && now.WorkerID != j.WorkerID || want == job.StateFailed && now.State == want
		})
	}
	if j := w.job(id); j.Result.Failure.Category != job.CategoryProvisioningFailed || !strings.Contains(j.Reason, "no disk") {
		t.Errorf("job: %+v", j)
	}
}

// TestRestart: what is ASSIGNED when a dispatcher takes over gets its RUN again,
// and what waits is placed.
func TestRestart(t *testing.T) {
	w := newWorld(t)
	w.register(4, 0)
	x := w.worker(w.idle())
	id, waits := w.queue(nil), w.queue(nil)
	j := w.job(id)
	facts, err := j.Assign(x.ProviderID, x.ID, x.Epoch, "by one that died")
	if err != nil {
		t.Fatal(err)
	}
	taking, err := x.Take(id, 1)
	if err != nil {
		t.Fatal(err)
	}
	w.append(w.jobChange(j, facts), w.workerChange(x, taking))
	w.registry(accept)
	stop := w.dispatcher()
	w.becomes(id, job.StateRunning)
	scheduled := w.becomes(waits, job.StateScheduled)
	stop()
	w.up(scheduled.WorkerID)
	w.dispatcher()
	if got := w.becomes(waits, job.StateRunning); got.WorkerID != scheduled.WorkerID || got.Attempt != 1 {
		t.Errorf("job: %+v", got)
	}
	if w.job(id).Attempt != 1 {
		t.Error("the running job was assigned again")
	}
}

// TestStandby: of two replicas one dispatches, and the other takes over.
func TestStandby(t *testing.T) {
	w := newWorld(t)
	w.registry(accept)
	w.register(8, 0)
	stop := w.dispatcher()
	w.dispatcher()
	first := w.queue(nil)
	w.up(w.becomes(first, job.StateScheduled).WorkerID)
	w.becomes(first, job.StateRunning)
	stop()
	second := w.queue(nil)
	w.up(w.becomes(second, job.StateScheduled).WorkerID)
	w.becomes(second, job.StateRunning)
	if n := len(w.commands()); n != 2 {
		t.Errorf("%d commands: %+v", n, w.commands())
	}
}

// TestReconnect: the agent's new session gets the RUN that the old one never took.
func TestReconnect(t *testing.T) {
	w := newWorld(t)
	w.patience = 300 * time.Millisecond
	w.register(1, 0)
	x := w.idle()
	var once sync.Once
	w.registry(func(r command.Request) *command.Reply {
		silent := false
		once.Do(func() {
			silent = true
			back := w.worker(x)
			w.append(w.workerChange(back, []worker.Event{worker.Reconnected{Epoch: 2}}))
		})
		if silent {
			return nil
		}
		return &command.Reply{OK: true}
	})
	w.dispatcher()
	id := w.queue(nil)
	if j := w.becomes(id, job.StateRunning); j.Attempt != 1 || j.WorkerID != x {
		t.Errorf("job: %+v", j)
	}
}

// TestOutages: NATS restarts and Postgres connections break; nothing is lost.
func TestOutages(t *testing.T) {
	w := newWorld(t)
	w.registry(accept)
	w.register(4, 0)
	w.dispatcher()
	w.srv.Restart()
	first := w.queue(nil)
	w.up(w.becomes(first, job.StateScheduled).WorkerID)
	w.becomes(first, job.StateRunning)
	if _, err := w.store.Pool().Exec(t.Context(),
		"select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'hodei-dispatcher%' and datname = current_database()"); err != nil {
		t.Fatal(err)
	}
	second := w.queue(nil)
	w.becomes(second, job.StateScheduled)
}

// racing is the log with somebody who is always a little faster.
type racing struct {
	*store.Store
	once   sync.Once
	before func()
}

func (r *racing) Append(ctx context.Context, a store.Append) ([]event.Event, error) {
	r.once.Do(r.before)
	return r.Store.Append(ctx, a)
}

type accepting struct{ ran chan command.Request }

func (a accepting) Run(_ context.Context, _ int64, r command.Request) error {
	a.ran <- r
	return nil
}
func (accepting) Ping(context.Context, string, int64) (bool, error) { return true, nil }
func (accepting) Available() bool                                   { return true }

type counting struct {
	mu        sync.Mutex
	conflicts int
}

func (*counting) Decided(string) {}
func (c *counting) Conflict(string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conflicts++
}
func (*counting) HandOver(time.Duration, bool)        {}
func (*counting) Circuit(circuit.Kind, circuit.State) {}

// TestRegistryRestarts: with idle workers for every job and a registry that is away,
// neither workers nor attempts are spent, and all that waited then runs.
func TestRegistryRestarts(t *testing.T) {
	w := newWorld(t)
	w.probe = 100 * time.Millisecond
	w.register(16, 0)
	for range 16 {
		w.idle()
	}
	w.dispatcher()
	var ids []string
	for range 8 {
		ids = append(ids, w.queue(nil))
	}
	eventingtest.Eventually(t, "an open circuit", func() bool { return len(w.circuit("").Reason) > 0 })
	ids = append(ids, w.queue(nil))
	w.registry(accept)
	for _, id := range ids {
		if j := w.becomes(id, job.StateRunning); j.Spent.Infrastructure != 0 || j.Attempt != 1 {
			t.Errorf("job: %+v", j)
		}
	}
}

// TestConflict: a cancel comes between the decision and its append; the job stays
// cancelled and the worker gets the next one.
func TestConflict(t *testing.T) {
	w := newWorld(t)
	w.register(1, 0)
	x := w.idle()
	id := w.queue(nil)
	next := w.queue(nil)
	log, sessions, meter := &racing{Store: w.store}, accepting{make(chan command.Request, 4)}, &counting{}
	log.before = func() {
		j := w.job(id)
		facts, err := j.RequestCancel("user/x", "")
		if err != nil {
			t.Error(err)
		}
		w.append(w.jobChange(j, facts))
	}
	d := app.New(app.Config{
		Log: log, Sessions: sessions, Meter: meter, Logger: slog.New(slog.DiscardHandler),
		Now: time.Now, NewID: event.NewID, Jitter: func() float64 { return 0 },
	})
	if _, err := d.Activate(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop := w.background("the dispatcher", d.Run)
	if r := <-sessions.ran; r.JobID != next || r.WorkerID != x {
		t.Errorf("handed over: %+v", r)
	}
	stop()
	if j := w.job(id); j.State != job.StateCancelled || j.Attempt != 0 {
		t.Errorf("job: %+v", j)
	}
	if meter.conflicts != 1 {
		t.Errorf("%d conflicts", meter.conflicts)
	}
}

// newDispatcher is one without its service around it.
func newDispatcher(w *world) *app.Dispatcher {
	return app.New(app.Config{
		Log: w.store, Sessions: accepting{}, Meter: &counting{}, Logger: slog.New(slog.DiscardHandler),
		Now: time.Now, NewID: event.NewID, Jitter: func() float64 { return 0 },
	})
}

// TestHandleRefusesWhatItCannotDecode: the rest is taken in.
func TestHandleRefusesWhatItCannotDecode(t *testing.T) {
	w := newWorld(t)
	d := newDispatcher(w)
	position, err := d.Activate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	id := w.queue(nil)
	events, err := w.store.Read(t.Context(), store.ReadOptions{After: position})
	if err != nil {
		t.Fatal(err)
	}
	poisoned := events[1]
	poisoned.Position, poisoned.Data = 100, []byte(`{`)
	if err := d.Handle(t.Context(), append(events, poisoned)); !errors.Is(err, fault.Invalid) {
		t.Fatalf("got %v", err)
	}
	w.background("the dispatcher", d.Run)
	eventingtest.Eventually(t, "the job before it", func() bool { return d.Figures().Queued == 1 })
	eventingtest.Eventually(t, "its deferral", func() bool { return len(w.job(id).Deferred) == 1 })
}
