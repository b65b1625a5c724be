package dispatcher_test

import (
	"testing"
	"time"

	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/service/command"
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
