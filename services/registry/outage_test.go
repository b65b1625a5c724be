package registry_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/eventingtest"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
)

// TestNATSRestart: sessions, watches and followers outlive the bus (R3.6).
func TestNATSRestart(t *testing.T) {
	w := newWorld(t)
	a := w.ready(0)
	id := w.queue(nil)
	a.run(id)
	l := a.logsTo(w.replica)
	got := make(chan string, 1)
	go func() {
		chunks, err := w.read(&registryv1.ReadLogsRequest{JobId: id, Follow: true})
		got <- fmt.Sprint(text(chunks), err)
	}()
	l.write(id, 1, chunk(1, "stdout", "before "))
	w.nats.Stop()
	// Output is stored and acknowledged, and results are recorded, without a bus.
	l.write(id, 1, chunk(2, "stdout", "meanwhile "))
	w.nats.Start()
	l.write(id, 1, chunk(3, "stdout", "after"), eof(4))
	a.result(exited(id, 1, 0))
	hear(a, (*registryv1.ConnectResponse).GetResultAck)
	select {
	case text := <-got:
		if text != "before meanwhile after<nil>" {
			t.Fatal(text)
		}
	case <-time.After(2 * patience):
		t.Fatal("the follower does not end")
	}
	// The session still hears commands, and events still have consequences.
	next := w.queue(nil)
	a.run(next)
	w.requestCancel(next)
	hear(a, (*registryv1.ConnectResponse).GetCancel)
}

// TestManyAgents has a crowd of agents at work at once: every job ends exactly
// once, and no worker is left with one.
func TestManyAgents(t *testing.T) {
	w := newWorld(t)
	const agents, jobs = 30, 5
	began := time.Now()
	var crowd sync.WaitGroup
	ids := make([][]string, agents)
	ready := make([]*agent, agents)
	for i := range agents {
		ready[i] = w.ready(0)
		for range jobs {
			ids[i] = append(ids[i], w.queue(nil))
		}
	}
	for i, a := range ready {
		crowd.Go(func() {
			for _, id := range ids[i] {
				a.run(id)
				a.result(exited(id, 1, 0))
				hear(a, (*registryv1.ConnectResponse).GetResultAck)
			}
		})
	}
	crowd.Wait()
	t.Logf("%d jobs in %s", agents*jobs, time.Since(began))
	for i, a := range ready {
		for _, id := range ids[i] {
			w.wantLast("job", id, "JobAssigned", "JobStatusChanged:RUNNING", "JobStatusChanged:SUCCEEDED")
		}
		if k := w.worker(a.workerID); k.State != worker.StateReady || k.JobsDone != jobs {
			t.Fatalf("%+v", k)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := w.workers.GetWorker(ctx, &registryv1.GetWorkerRequest{WorkerId: ""}); !errors.Is(err, fault.Invalid) {
		t.Fatal(err)
	}
	eventingtest.Eventually(t, "the list", func() bool {
		page, err := w.workers.ListWorkers(ctx, &registryv1.ListWorkersRequest{States: []string{"READY"}})
		return err == nil && len(page.GetWorkers()) == agents
	})
}
