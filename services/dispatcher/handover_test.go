package dispatcher_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/libs/service/command"

	"hodei.dev/services/dispatcher/internal/app"
)

// session answers the commands to one session of a worker alone; what it accepts it starts.
func (w *world) session(workerID string, epoch int64, answer func(command.Request) *command.Reply) {
	w.Helper()
	sub, err := w.nc.Subscribe(bus.CommandSubject(workerID, epoch), func(m *nats.Msg) {
		var r command.Request
		if err := json.Unmarshal(m.Data, &r); err != nil {
			w.Error(err)
		}
		reply := &command.Reply{OK: true}
		if r.Kind == command.Run {
			if reply = answer(r); reply == nil {
				return
			}
		}
		data, _ := json.Marshal(reply)
		if err := m.Respond(data); err != nil {
			w.Error(err)
		}
		if reply.OK && r.Kind == command.Run {
			go w.start(r)
		}
	})
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = sub.Unsubscribe() })
	if err := w.nc.Flush(); err != nil {
		w.Fatal(err)
	}
}

// ran checks that a job's first attempt runs on the worker, and that nothing was lost on the way.
func (w *world) ran(id, workerID string) {
	w.Helper()
	j := w.becomes(id, job.StateRunning)
	if j.Attempt != 1 || j.WorkerID != workerID || j.Spent.Infrastructure != 0 {
		w.Errorf("job: %+v", j)
	}
	want := []string{"JobCreated", "JobQueued", "JobAssigned", "JobStatusChanged"}
	if diff := cmp.Diff(want, types(w.events(aggregate.JobStream(id)))); diff != "" {
		w.Error(diff)
	}
}

// TestNoResponders: the registry was killed with the session, and RUN reached nobody.
// The agent's next session gets the same attempt, and the job pays nothing.
func TestNoResponders(t *testing.T) {
	w := newWorld(t)
	w.register(1, 0)
	x := w.idle()
	w.dispatcher()
	id := w.queue(nil)
	w.becomes(id, job.StateAssigned)
	w.session(x, 2, accept)
	w.back(x, "another")
	w.ran(id, x)
}

// TestBrokenStream: the agent's stream broke while RUN was on its way; whether the
// agent has heard of it is unknown. Its next session is asked again.
func TestBrokenStream(t *testing.T) {
	w := newWorld(t)
	w.register(1, 0)
	x := w.idle()
	w.session(x, 1, func(command.Request) *command.Reply {
		return &command.Reply{Gone: true, Reason: "the agent's stream has ended"}
	})
	w.session(x, 2, accept)
	w.dispatcher()
	id := w.queue(nil)
	w.becomes(id, job.StateAssigned)
	w.back(x, "")
	w.ran(id, x)
}

// TestLateReply: no answer in time proves nothing. Where the agent had accepted, the
// attempt runs, and giving it up meets a conflict; where not, the job is queued again
// and the acceptance comes too late to run.
func TestLateReply(t *testing.T) {
	for name, accepted := range map[string]bool{"accepted in time": true, "accepted too late": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.patience = 200 * time.Millisecond
			w.register(1, 0)
			x := w.idle()
			late := make(chan command.Request, 1)
			w.session(x, 1, func(r command.Request) *command.Reply {
				if accepted {
					w.start(r)
				}
				late <- r
				return nil
			})
			w.dispatcher()
			id := w.queue(nil)
			r := <-late
			if accepted {
				w.ran(id, x)
				return
			}
			j := w.becomes(id, job.StatePending)
			if w.start(r); w.job(id).State == job.StateRunning {
				t.Error("an attempt that was given up runs")
			}
			if x := w.worker(x); j.Spent.Infrastructure != 1 || x.State != worker.StateTerminating || x.Cause != worker.CauseHandOver {
				t.Errorf("job %+v, worker %+v", j, x)
			}
		})
	}
}

// dying is the way to sessions of a dispatcher that is killed at a certain moment.
type dying struct {
	accepting
	kill func()
	err  error
}

func (d dying) Run(context.Context, int64, command.Request) error {
	d.kill()
	return d.err
}

// TestKilledBeforeRun: the dispatcher dies after JobAssigned and before RUN has gone,
// or while it waits for the worker's next session: the next one sends it, at once.
func TestKilledBeforeRun(t *testing.T) {
	for name, err := range map[string]error{
		"before it is sent":              context.Canceled,
		"while it waits for the session": &app.SessionGone{Reason: "nobody"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.register(1, 0)
			x := w.idle()
			id := w.queue(nil)
			died := make(chan struct{})
			ctx, cancel := context.WithCancel(t.Context())
			d := app.New(app.Config{
				Log: w.store, Meter: &counting{}, Logger: slog.New(slog.DiscardHandler), Now: time.Now, NewID: event.NewID,
				Jitter:   func() float64 { return 0 },
				Sessions: dying{kill: sync.OnceFunc(func() { cancel(); close(died) }), err: err},
			})
			if _, err := d.Activate(ctx); err != nil {
				t.Fatal(err)
			}
			w.background("the dispatcher", func(context.Context) error { return d.Run(ctx) })
			<-died
			w.session(x, 1, accept)
			w.dispatcher()
			w.ran(id, x)
		})
	}
}

// TestWorkerGoes: while the session of an attempt is awaited, its worker is given up:
// the job does not wait for the rest of the grace, nor for a deadline.
func TestWorkerGoes(t *testing.T) {
	w := newWorld(t)
	w.grace = 20 * time.Second
	w.register(2, 0)
	x := w.idle()
	w.dispatcher()
	id := w.queue(nil)
	w.becomes(id, job.StateAssigned)
	facts, err := w.worker(x).Terminate(worker.CauseLost, "it fell silent")
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	w.append(w.workerChange(w.worker(x), facts))
	if j := w.becomes(id, job.StateScheduled); j.WorkerID == x || j.Spent.Infrastructure != 1 {
		t.Errorf("job: %+v", j)
	}
	if waited := time.Since(began); waited > w.grace/2 {
		t.Errorf("queued again after %s", waited)
	}
}

// TestGraceEnds: the session does not come back: the attempt ends with its worker.
func TestGraceEnds(t *testing.T) {
	w := newWorld(t)
	w.grace = 300 * time.Millisecond
	w.register(2, 0)
	x := w.idle()
	w.dispatcher()
	id := w.queue(nil)
	var j job.Job
	eventingtest.Eventually(t, "the requeue", func() bool { j = w.job(id); return j.Spent.Infrastructure == 1 })
	if got := w.worker(x); got.Cause != worker.CauseHandOver || j.Attempts[0].Result.Failure.Category != job.CategoryDispatchFailed {
		t.Errorf("job %+v, worker %+v", j, got)
	}
}
