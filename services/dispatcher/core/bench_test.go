package core_test

import (
	"fmt"
	"testing"
	"time"

	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/worker"

	"hodei.dev/services/dispatcher/core"
)

// BenchmarkDecide is one job's whole way through the state with 100,000 others in
// the queue: decide, make true, settle, end, and a new one queued.
func BenchmarkDecide(b *testing.B) {
	for _, shapes := range []int{1, 50} {
		b.Run(fmt.Sprintf("queue=100k/shapes=%d", shapes), func(b *testing.B) {
			s := core.New()
			s.ApplyProvider("p", provider.Registered{Spec: provider.Spec{Name: "p", MaxWorkers: 1000}}, provider.At{Version: 1, Time: t0})
			for i := range 200 {
				s.ObserveWorker(worker.Worker{ID: fmt.Sprint("w", i), Version: 1, State: worker.StateReady, ProviderID: "p", Epoch: 1, Connected: true})
			}
			queue := func(i int) {
				s.ApplyJob(fmt.Sprint("j", i), job.Queued{
					Namespace: fmt.Sprint("n", i%20), Priority: i % 3, Resources: job.Resources{CPUMillis: int64(i % shapes)},
				}, job.At{Version: 2, Time: t0})
			}
			const waiting = 100_000
			for i := range waiting {
				queue(i)
			}
			next := waiting
			b.ReportAllocs()
			b.ResetTimer()
			for decided := 0; decided < b.N; {
				ds := s.Decide(t0, min(128, b.N-decided))
				for _, d := range ds {
					if a, ok := d.(core.Assign); ok {
						w, _ := s.Worker(a.Worker)
						s.ApplyJob(a.Job, job.Assigned{Attempt: 1, ProviderID: "p", WorkerID: a.Worker}, job.At{Version: 3, Time: t0})
						s.ApplyWorker(a.Worker, worker.StatusChanged{From: worker.StateReady, To: worker.StateBusy, JobID: a.Job}, worker.At{Version: w.Version + 1})
						s.Settle(a.Job, time.Time{})
						s.ApplyJob(a.Job, job.StatusChanged{To: job.StateSucceeded}, job.At{Version: 4, Time: t0})
						s.ApplyWorker(a.Worker, worker.StatusChanged{From: worker.StateBusy, To: worker.StateReady, JobID: a.Job}, worker.At{Version: w.Version + 2})
						s.ApplyWorker(a.Worker, worker.ReadyForJob{Epoch: 1}, worker.At{Version: w.Version + 3})
						queue(next)
						next++
						continue
					}
					s.Settle(d.JobID(), time.Time{}) // a conflict
				}
				decided += len(ds)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "decisions/s")
		})
	}
}
