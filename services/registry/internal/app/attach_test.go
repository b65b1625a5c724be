package app

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/services/registry/core"
)

// memoryLog is a log in memory, with the versions of the real one.
type memoryLog struct {
	events map[event.Stream][]event.Event
	// meanwhile happens once, before the next append.
	meanwhile func()
}

func (l *memoryLog) Load(_ context.Context, s event.Stream, after int) ([]event.Event, error) {
	all := l.events[s]
	return all[min(after, len(all)):], nil
}

func (l *memoryLog) Append(_ context.Context, a store.Append) (out []event.Event, err error) {
	if do := l.meanwhile; do != nil {
		l.meanwhile = nil
		do()
	}
	for _, c := range a.Changes {
		if len(l.events[c.Stream]) != c.Expected {
			return nil, fault.New(fault.Conflict, "%s is at %d", c.Stream.ID, len(l.events[c.Stream]))
		}
	}
	for _, c := range a.Changes {
		for _, e := range c.Events {
			e.StreamVersion, e.Time = len(l.events[c.Stream])+1, time.Now().UTC()
			l.events[c.Stream] = append(l.events[c.Stream], e)
			out = append(out, e)
		}
	}
	return out, nil
}

func (l *memoryLog) FindStreams(context.Context, string, string, int) ([]store.StreamRow, error) {
	return nil, errors.New("nobody asks for that")
}

// stage is an App on a log in memory.
type stage struct {
	t *testing.T
	*App
	log *memoryLog
}

func newStage(t *testing.T) *stage {
	t.Helper()
	l := &memoryLog{events: map[event.Stream][]event.Event{}}
	return &stage{t: t, log: l, App: &App{Log: l, Now: time.Now, Jitter: func() float64 { return 0 }, Logger: slog.New(slog.DiscardHandler)}}
}

func must[T any](t *testing.T) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func (s *stage) append(changes ...store.Change) {
	s.t.Helper()
	must[[]event.Event](s.t)(s.log.Append(s.t.Context(), store.Append{Changes: changes}))
}

func (s *stage) job(id string) job.Job {
	s.t.Helper()
	return must[knownJob](s.t)(s.loadJob(s.t.Context(), id)).Job
}

var someone = event.Meta{Source: "test", Actor: "service/test", CorrelationID: event.NewID()}

func (s *stage) worker() string {
	s.t.Helper()
	w := worker.Worker{ID: event.NewID()}
	s.append(must[store.Change](s.t)(aggregate.WorkerChange(w, someone, worker.Request(worker.ProvisioningRequested{ProviderID: event.NewID(), ProviderName: "local", Reason: "test"}))))
	return w.ID
}

// run has a fresh job run on the worker.
func (s *stage) run(workerID string) (jobID string) {
	s.t.Helper()
	fresh := job.Job{ID: event.NewID()}
	spec := job.Spec{Command: []string{"true"}, Retry: job.Retry{MaxAttempts: 1, InfrastructureAttempts: 3}}
	s.append(must[store.Change](s.t)(aggregate.JobChange(fresh, someone, must[[]job.Event](s.t)(job.Create(spec, "", "")))))
	j, w := s.job(fresh.ID), must[knownWorker](s.t)(s.loadWorker(s.t.Context(), workerID)).Worker
	s.append(
		must[store.Change](s.t)(aggregate.JobChange(j, someone, must[[]job.Event](s.t)(j.Assign(w.ProviderID, w.ID, w.Epoch, "fits")))),
		must[store.Change](s.t)(aggregate.WorkerChange(w, someone, must[[]worker.Event](s.t)(w.Take(j.ID, j.Attempt+1)))),
	)
	j = s.job(fresh.ID)
	s.append(must[store.Change](s.t)(aggregate.JobChange(j, someone, must[[]job.Event](s.t)(j.Start(workerID, j.Attempt)))))
	return fresh.ID
}

// TestReconcileIsSuperseded: while a session records that its agent is without the
// attempt that its worker had, the agent comes back in a newer one and begins another.
func TestReconcileIsSuperseded(t *testing.T) {
	s := newStage(t)
	id := s.worker()
	must[*Attachment](t)(s.Attach(t.Context(), id, 1, "r"))
	first, second := s.run(id), ""
	old := must[*Attachment](t)(s.Attach(t.Context(), id, 2, "r"))
	s.log.meanwhile = func() {
		live := must[*Attachment](t)(s.Attach(t.Context(), id, 3, "r"))
		if plan := must[core.Plan](t)(s.Reconcile(t.Context(), live, core.Held{})); !plan.Lost {
			t.Fatalf("%+v", plan)
		}
		second = s.run(id)
	}
	plan, err := s.Reconcile(t.Context(), old, core.Held{})
	if !errors.Is(err, fault.Precondition) || plan != (core.Plan{}) {
		t.Errorf("%+v, %v", plan, err)
	}
	if j := s.job(first); j.State != job.StatePending || j.Attempt != 1 {
		t.Errorf("the first is %s", j.State)
	}
	if j := s.job(second); j.State != job.StateRunning {
		t.Errorf("the second is %s", j.State)
	}
}
