package dispatcher_test

import (
	"context"
	"encoding/json"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go"

	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/command"
)

// BenchmarkDispatch is jobs a second from JobQueued to their end on 200 workers,
// over Postgres, relay and NATS, all in this process; a registry in memory appends
// what an agent would cause, without reading.
func BenchmarkDispatch(b *testing.B) {
	w := newWorld(b)
	w.register(200, 0)
	workers := make([]string, 200)
	for i := range workers {
		workers[i] = w.idle()
	}
	w.dispatcher()
	var ended atomic.Int64
	done := make(chan struct{})
	if _, err := w.nc.Subscribe("hodei.cmd.*.*", func(m *nats.Msg) {
		var r command.Request
		if err := json.Unmarshal(m.Data, &r); err != nil {
			b.Error(err)
		}
		data, _ := json.Marshal(command.Reply{OK: true})
		_ = m.Respond(data)
		go func() {
			j := job.Job{ID: r.JobID, Version: r.JobVersion, State: job.StateAssigned, Attempt: r.Attempt, WorkerID: r.WorkerID}
			j.Spec.Namespace, j.Spec.Retry.MaxAttempts = "default", 1
			running, _ := j.Start(r.WorkerID, r.Attempt)
			w.append(w.jobChange(j, running))
			j = j.Evolve(running[0], job.At{Version: r.JobVersion + 1})
			x := worker.Worker{ID: r.WorkerID, Version: r.WorkerVersion, State: worker.StateBusy, JobID: r.JobID, Attempt: r.Attempt, ProviderID: w.provider.ID, Epoch: 1}
			end, _ := j.End(r.WorkerID, r.Attempt, job.Result{}, j.CreatedAt, 0)
			release, _ := x.Release(r.JobID, r.Attempt)
			w.append(w.jobChange(j, end), w.workerChange(x, release))
			if ended.Add(1) == int64(b.N) {
				close(done)
			}
		}()
	}); err != nil {
		b.Fatal(err)
	}
	if err := w.nc.Flush(); err != nil {
		b.Fatal(err)
	}
	facts, err := job.Create(job.Spec{Command: []string{"true"}}, "", "")
	if err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for left := b.N; left > 0; {
		n := min(left, 100)
		changes := make([]store.Change, n)
		for i := range changes {
			changes[i] = w.jobChange(job.Job{ID: event.NewID()}, facts)
		}
		w.append(changes...)
		left -= n
	}
	<-done
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
}

// BenchmarkActivate is a take-over with 20,000 jobs in the queue.
func BenchmarkActivate(b *testing.B) {
	w := newWorld(b)
	facts, err := job.Create(job.Spec{Command: []string{"true"}}, "", "")
	if err != nil {
		b.Fatal(err)
	}
	for range 20 {
		changes := make([]store.Change, 1000)
		for i := range changes {
			changes[i] = w.jobChange(job.Job{ID: event.NewID()}, facts)
		}
		w.append(changes...)
	}
	b.ResetTimer()
	for range b.N {
		if _, err := newDispatcher(w).Activate(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}
