package dispatcher_test

import (
	"log/slog"
	"testing"
	"time"

	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/command"

	"hodei.dev/services/dispatcher/internal/app"
)

// TestOvertakenHandOver: an attempt goes on while its hand-over is given up, and
// then a hand-over is refused. The first has ended all the same: what waits is
// tried again after the pause, one at a time.
func TestOvertakenHandOver(t *testing.T) {
	w := newWorld(t)
	w.patience = 300 * time.Millisecond
	w.register(4, 0)
	first, second := w.idle(), w.idle()
	id := w.queue(nil)
	w.registry(func(r command.Request) *command.Reply {
		switch {
		case r.JobID == id:
			w.start(r) // accepted, but the answer is lost
			return nil
		case r.WorkerID == first || r.WorkerID == second:
			return &command.Reply{Reason: "agent is full"}
		default:
			return &command.Reply{OK: true}
		}
	})
	w.dispatcher()
	eventingtest.Eventually(t, "the end of the hand-over", func() bool {
		j := w.job(id)
		return j.State == job.StateRunning && time.Since(j.StartedAt) > 2*w.patience
	})
	next := w.queue(nil)
	j := w.becomes(next, job.StateScheduled)
	if j.Spent.Infrastructure != 1 {
		t.Errorf("job: %+v", j)
	}
	w.up(j.WorkerID)
	w.becomes(next, job.StateRunning)
	if x := w.worker(w.job(id).WorkerID); x.State != worker.StateBusy {
		t.Errorf("worker: %+v", x)
	}
}

// TestScheduledByAnother: two dispatchers, as after a pause of the active one: the
// other has a worker made for the job that this one assigns. The job waits for a
// worker that lives, so nothing is lost.
func TestScheduledByAnother(t *testing.T) {
	w := newWorld(t)
	w.register(2, 0)
	x := w.idle()
	id := w.queue(nil)
	log, sessions := &racing{Store: w.store}, accepting{make(chan command.Request, 4)}
	log.before = func() {
		made := worker.Worker{ID: event.NewID()}
		j := w.job(id)
		facts, err := j.Schedule(w.provider.ID, made.ID, "by another")
		if err != nil {
			t.Error(err)
		}
		w.append(w.jobChange(j, facts), w.workerChange(made, worker.Request(worker.ProvisioningRequested{
			ProviderID: w.provider.ID, ProviderName: "local", JobID: id,
		})))
	}
	d := app.New(app.Config{
		Log: log, Sessions: sessions, Meter: &counting{}, Logger: slog.New(slog.DiscardHandler),
		Now: time.Now, NewID: event.NewID, Jitter: func() float64 { return 0 },
	})
	if _, err := d.Activate(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.background("the dispatcher", d.Run)
	if r := <-sessions.ran; r.JobID != id || r.WorkerID != x {
		t.Errorf("handed over: %+v", r)
	}
	if j := w.job(id); j.Attempt != 1 || j.Spent.Infrastructure != 0 {
		t.Errorf("job: %+v", j)
	}
}

// TestAssignedByAnother: another dispatcher, which does not know yet that it is not
// active any more, assigns a job and ends before it sends RUN. Who is active sees the
// assignment and hands it over: no deadline has to pass.
func TestAssignedByAnother(t *testing.T) {
	w := newWorld(t)
	w.register(2, 0)
	x := w.worker(w.idle())
	w.registry(accept)
	w.dispatcher()
	facts, err := job.Create(job.Spec{Command: []string{"true"}}, "", "")
	if err != nil {
		t.Fatal(err)
	}
	j := job.Job{ID: event.NewID(), State: job.StatePending}
	assigned, err := j.Assign(w.provider.ID, x.ID, x.Epoch, "by another")
	if err != nil {
		t.Fatal(err)
	}
	taken, err := x.Take(j.ID, 1)
	if err != nil {
		t.Fatal(err)
	}
	w.append(w.jobChange(job.Job{ID: j.ID}, append(facts, assigned...)), w.workerChange(x, taken))
	w.becomes(j.ID, job.StateRunning)
}

// TestAnotherWasFirst: as before, but both want to assign at once, and the one that is
// active loses. It learns of the assignment by reading again, which is news as an event
// is: it sends RUN for what the other gave to the worker.
func TestAnotherWasFirst(t *testing.T) {
	for name, other := range map[string]bool{"with the same job": false, "with another job for the same worker": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.register(2, 0)
			x := w.idle()
			id, next := w.queue(nil), w.queue(nil)
			if other {
				id, next = next, id // the older one is what this dispatcher chooses
			}
			log, sessions := &racing{Store: w.store}, accepting{make(chan command.Request, 4)}
			log.before = func() { w.assign(id, x) }
			d := app.New(app.Config{
				Log: log, Sessions: sessions, Meter: &counting{}, Logger: slog.New(slog.DiscardHandler),
				Now: time.Now, NewID: event.NewID, Jitter: func() float64 { return 0 },
			})
			position, err := d.Activate(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			w.background("the dispatcher", d.Run)
			handed := func() {
				t.Helper()
				select {
				case r := <-sessions.ran:
					if r.JobID != id || r.WorkerID != x || r.Attempt != 1 {
						t.Errorf("handed over: %+v", r)
					}
				case <-time.After(10 * time.Second):
					t.Fatal("nobody sends RUN")
				}
			}
			if !other {
				handed()
			}
			w.becomes(next, job.StateScheduled) // where it has lost the worker, only once it knows that
			events, err := w.store.Read(t.Context(), store.ReadOptions{After: position})
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Handle(t.Context(), events); err != nil {
				t.Fatal(err)
			}
			if other {
				handed()
			}
			eventingtest.Eventually(t, "the events to be known", func() bool { return d.Figures().Position >= events[len(events)-1].Position })
			if len(sessions.ran) > 0 {
				t.Errorf("handed over again: %+v", <-sessions.ran)
			}
		})
	}
}

// assign gives a job to a worker, as a dispatcher does that is not active any more.
func (w *world) assign(id, workerID string) {
	j, x := w.job(id), w.worker(workerID)
	assigned, err := j.Assign(w.provider.ID, x.ID, x.Epoch, "by another")
	if err != nil {
		w.Error(err)
	}
	taken, err := x.Take(j.ID, j.Attempt+1)
	if err != nil {
		w.Error(err)
	}
	w.append(w.jobChange(j, assigned), w.workerChange(x, taken))
}

// TestRegistryStaysAway: with idle workers for more attempts than a job may lose, and a
// registry that is away for longer than all pauses: the last attempt is not staked on
// a session that does not answer.
func TestRegistryStaysAway(t *testing.T) {
	w := newWorld(t)
	w.grace = time.Second
	w.register(16, 0)
	for range 8 {
		w.idle()
	}
	w.dispatcher()
	id := w.queue(func(s *job.Spec) { s.Retry.InfrastructureAttempts = 1 })
	careful := w.queue(func(s *job.Spec) { s.Retry.InfrastructureAttempts = 0 })
	began := time.Now()
	eventingtest.Eventually(t, "more than what a job may lose", func() bool { return time.Since(began) > 4*time.Second })
	w.registry(accept)
	if j := w.becomes(careful, job.StateRunning); j.Attempt != 1 {
		t.Errorf("job: %+v", j)
	}
	if j := w.becomes(id, job.StateRunning); j.Spent.Infrastructure != 1 {
		t.Errorf("job: %+v", j)
	}
}
