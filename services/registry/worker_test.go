package registry_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/unit"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/servicetest"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
)

// confirm plays the provisioner: nothing of the worker is left.
func (w *world) confirm(workerID string) {
	w.t.Helper()
	w.decideWorker("provisioner", workerID, func(k worker.Worker) ([]worker.Event, error) { return k.Confirm("destroyed") })
}

func TestWorkerIsTerminatedWithALiveJob(t *testing.T) {
	w := newWorld(t)
	cases := []struct {
		cause    worker.Cause
		want     string
		category job.Category
	}{
		{worker.CauseLost, "JobRequeued", job.CategoryWorkerLost},
		{worker.CauseJobTimeout, "JobStatusChanged:TIMEOUT", job.CategoryTimeout},
		{worker.CauseCancelUnanswered, "JobStatusChanged:CANCELLED", job.CategoryCancelled},
	}
	for _, c := range cases {
		t.Run(string(c.cause), func(t *testing.T) {
			a, id := w.ready(0), w.queue(nil)
			a.run(id)
			w.decideWorker("timeout-monitor", a.workerID, func(k worker.Worker) ([]worker.Event, error) { return k.Terminate(c.cause, "why") })
			if m := hear(a, (*registryv1.ConnectResponse).GetTerminate); m.GetGraceNanos() != 0 {
				t.Errorf("a job that nobody may wait for has a grace: %v", m)
			}
			w.wantLast("job", id, "JobStatusChanged:RUNNING") // not before the provider confirms
			w.confirm(a.workerID)
			if c.category == job.CategoryTimeout {
				w.eventually("job", id, "JobStatusChanged:RUNNING", "JobExecutionError", c.want)
			} else {
				w.eventually("job", id, "JobStatusChanged:RUNNING", c.want)
			}
			if f := w.job(id).Result.Failure; f.Category != c.category {
				t.Fatalf("failure %+v", f)
			}
			w.comesBack(a, id, c.category == job.CategoryWorkerLost)
		})
	}
}

// comesBack plays an agent whose worker was given up: told to kill what it runs, and
// to end; what it still reports is evidence, once, and changes nothing.
func (w *world) comesBack(a *agent, jobID string, requeued bool) {
	w.t.Helper()
	before := w.job(jobID)
	b := w.connect(a.workerID, a.session, &registryv1.Hello{JobId: jobID, Attempt: 1, Started: true})
	if d := hear(b, (*registryv1.ConnectResponse).GetDrop); d.GetJobId() != jobID || d.GetAttempt() != 1 {
		w.t.Errorf("it is told to drop %v", d)
	}
	hear(b, (*registryv1.ConnectResponse).GetTerminate)
	report := exited(jobID, 1, 0)
	for range 2 { // the second time as if the ack was lost
		b.result(report)
		hear(b, (*registryv1.ConnectResponse).GetResultAck)
		hear(b, (*registryv1.ConnectResponse).GetDrop)
	}
	w.wantLast("job", jobID, "JobResultRejected")
	if types := w.types("job", jobID); slices.Index(types, "JobResultRejected") != len(types)-1 {
		w.t.Errorf("the evidence is kept more than once: %v", types)
	}
	if now := w.job(jobID); now.State != before.State || requeued != (now.State == job.StatePending) {
		w.t.Errorf("its word moved the job from %s to %s", before.State, now.State)
	}
}

func TestResultOfATerminatingWorkerCounts(t *testing.T) {
	w := newWorld(t)
	a, id := w.ready(0), w.queue(nil)
	a.run(id)
	w.decideWorker("timeout-monitor", a.workerID, func(k worker.Worker) ([]worker.Event, error) { return k.Terminate(worker.CauseLost, "silent") })
	hear(a, (*registryv1.ConnectResponse).GetTerminate)
	a.result(exited(id, 1, 0))
	hear(a, (*registryv1.ConnectResponse).GetResultAck)
	w.wantLast("job", id, "JobStatusChanged:RUNNING", "JobStatusChanged:SUCCEEDED")
	w.confirm(a.workerID)
	w.eventually("worker", a.workerID, "WorkerTerminated")
	w.wantLast("job", id, "JobStatusChanged:SUCCEEDED")
}

func TestProvisionedBeforeItsAgent(t *testing.T) {
	w := newWorld(t)
	id := w.newWorker(1)
	w.decideWorker("provisioner", id, func(k worker.Worker) ([]worker.Event, error) {
		return []worker.Event{worker.Provisioned{ProviderID: k.ProviderID, Resource: "pid 7"}}, nil
	})
	w.eventually("worker", id, "WorkerProvisioned", "WorkerStatusChanged:CONNECTING")
}

// silence plays the monitor.
func (w *world) silence(workerID string, seen time.Time) {
	w.t.Helper()
	k := w.worker(workerID)
	note := deadline.TimedOut{
		State: string(k.State), Threshold: unit.Duration(deadline.Silence), Kind: deadline.KindHeartbeat, JobID: k.JobID, Attempt: k.Attempt, LastSeen: seen, Recovery: "lose",
	}
	e, err := event.New(event.Stream{Type: "worker", ID: workerID}, meta("timeout-monitor", w.correlation("worker", workerID)), note)
	if err != nil {
		w.t.Fatal(err)
	}
	w.append(store.Change{Stream: e.Stream, Namespace: event.NoNamespace, Expected: k.Version, State: string(k.State), Events: []event.Event{e}})
}

func TestSilence(t *testing.T) {
	w := newWorld(t)
	alive := w.ready(0)
	id := w.queue(nil)
	alive.run(id)
	w.silence(alive.workerID, time.Now().Add(-time.Minute))

	gone := w.ready(0)
	lost := w.queue(nil)
	gone.run(lost)
	gone.hangUp()
	w.eventually("worker", gone.workerID, "WorkerDisconnected")
	w.exec(`UPDATE registry.sessions SET last_heartbeat_at = now() - interval '1 hour' WHERE worker_id = $1`, gone.workerID)
	w.silence(gone.workerID, time.Now().Add(-time.Minute))
	w.eventually("worker", gone.workerID, "StateTimedOut", "WorkerLost", "WorkerStatusChanged:TERMINATING")
	if k := w.worker(gone.workerID); k.Cause != worker.CauseLost || k.JobID != lost {
		t.Fatalf("%+v", k)
	}
	w.wantLast("job", lost, "JobStatusChanged:RUNNING")
	// The one whose session has heard of it stays: events are handled in order, so that was decided before.
	w.wantLast("worker", alive.workerID, "WorkerStatusChanged:BUSY", "StateTimedOut")
}

func TestHeartbeats(t *testing.T) {
	w := newWorld(t)
	a := w.ready(0)
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan bus.Telemetry, 8)
	done := make(chan error, 1)
	since := time.Now().Add(-time.Hour)
	go func() {
		done <- bus.SubscribeTelemetry(ctx, eventingtest.JetStream(t, w.nc), bus.TelemetryConfig{Type: "WorkerHeartbeat", Since: since, Log: servicetest.Quiet()}, func(m bus.Telemetry) { got <- m })
	}()
	a.say(&registryv1.ConnectRequest{Message: &registryv1.ConnectRequest_Heartbeat{Heartbeat: &registryv1.Heartbeat{Sequence: 1}}})
	if ack := hear(a, (*registryv1.ConnectResponse).GetHeartbeatAck); ack.GetSequence() != 1 {
		t.Fatalf("%v", ack)
	}
	m := <-got
	if h, err := decode[worker.Heartbeat]([]event.Event{m.Event}); err != nil || h.Epoch != a.epoch || m.Stream.ID != a.workerID || m.CorrelationID == "" {
		t.Fatalf("%+v %v", m, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestOperators(t *testing.T) {
	w := newWorld(t)
	drain := func(id string, undo bool) (*registryv1.Worker, error) {
		r, err := w.workers.DrainWorker(w.as(), &registryv1.DrainWorkerRequest{WorkerId: id, Undo: undo})
		return r.GetWorker(), err
	}
	t.Run("drain an idle worker", func(t *testing.T) {
		a := w.ready(0)
		k, err := drain(a.workerID, false)
		if err != nil || k.GetState() != "TERMINATING" || k.GetCause() != "DRAINED" {
			t.Fatalf("%v %v", k, err)
		}
		w.wantLast("worker", a.workerID, "WorkerDrainRequested", "WorkerStatusChanged:DRAINING", "WorkerStatusChanged:TERMINATING")
		if e := w.events("worker", a.workerID)[k.GetVersion()-1]; e.Actor != "user/ann" {
			t.Fatalf("actor %s", e.Actor)
		}
		hear(a, (*registryv1.ConnectResponse).GetTerminate)
	})
	t.Run("drain a busy worker, undo it, drain it again", func(t *testing.T) {
		a, id := w.ready(0), w.queue(nil)
		a.run(id)
		for _, want := range []string{"DRAINING", "BUSY", "DRAINING"} {
			if k, err := drain(a.workerID, want == "BUSY"); err != nil || k.GetState() != want {
				t.Fatalf("%v %v", k, err)
			}
		}
		if _, err := drain(a.workerID, false); !errors.Is(err, fault.Precondition) {
			t.Fatalf("drained twice: %v", err)
		}
		a.result(exited(id, 1, 0))
		hear(a, (*registryv1.ConnectResponse).GetResultAck)
		hear(a, (*registryv1.ConnectResponse).GetTerminate)
		w.wantLast("worker", a.workerID, "WorkerStatusChanged:DRAINING", "WorkerStatusChanged:TERMINATING")
		w.wantLast("job", id, "JobStatusChanged:SUCCEEDED")
	})
	t.Run("terminate, with and without a session", func(t *testing.T) {
		a, id := w.ready(0), w.newWorker(1)
		for _, worker := range []string{a.workerID, id} {
			r, err := w.workers.TerminateWorker(w.as(), &registryv1.TerminateWorkerRequest{WorkerId: worker, Reason: "broken"})
			if err != nil || r.GetWorker().GetReason() != "terminated by user/ann: broken" {
				t.Fatalf("%v %v", r, err)
			}
		}
		hear(a, (*registryv1.ConnectResponse).GetTerminate)
		if _, err := w.workers.TerminateWorker(w.as(), &registryv1.TerminateWorkerRequest{WorkerId: id}); !errors.Is(err, fault.Precondition) {
			t.Fatalf("terminated twice: %v", err)
		}
		if _, err := w.tokens.IssueToken(t.Context(), &registryv1.IssueTokenRequest{WorkerId: id}); !errors.Is(err, fault.Precondition) {
			t.Fatalf("a token for a worker that goes: %v", err)
		}
	})
	t.Run("terminate a busy worker: its job has its grace, and its result counts", func(t *testing.T) {
		a, id := w.ready(0), w.queue(nil)
		a.run(id)
		if _, err := w.workers.TerminateWorker(w.as(), &registryv1.TerminateWorkerRequest{WorkerId: a.workerID}); err != nil {
			t.Fatal(err)
		}
		if m := hear(a, (*registryv1.ConnectResponse).GetTerminate); time.Duration(m.GetGraceNanos()) != deadline.KillGrace {
			t.Errorf("the grace is %s", time.Duration(m.GetGraceNanos()))
		}
		report := exited(id, 1, 0)
		report.Category, report.FailureMessage = string(job.CategoryInfrastructure), "terminated"
		a.result(report)
		hear(a, (*registryv1.ConnectResponse).GetResultAck)
		w.wantLast("job", id, "JobStatusChanged:RUNNING", "JobRequeued")
	})
	t.Run("an agent that stops", func(t *testing.T) {
		stop := &registryv1.ConnectRequest{Message: &registryv1.ConnectRequest_Stopping{Stopping: &registryv1.Stopping{Reason: "SIGTERM"}}}
		idle, busy, id := w.ready(0), w.ready(0), w.queue(nil)
		idle.say(stop)
		hear(idle, (*registryv1.ConnectResponse).GetTerminate)
		w.wantLast("worker", idle.workerID, "WorkerReadyForJob", "WorkerStatusChanged:TERMINATING")
		busy.run(id)
		busy.say(stop)
		busy.result(exited(id, 1, 0))
		hear(busy, (*registryv1.ConnectResponse).GetResultAck)
		hear(busy, (*registryv1.ConnectResponse).GetTerminate)
		w.wantLast("worker", busy.workerID, "WorkerDrainRequested", "WorkerStatusChanged:DRAINING", "WorkerStatusChanged:TERMINATING")
	})
	t.Run("unknown and ambiguous ids", func(t *testing.T) {
		if _, err := drain(event.NewID(), false); !errors.Is(err, fault.NotFound) {
			t.Fatal(err)
		}
		first, second := w.newWorker(1), w.newWorker(1)
		common := 0
		for first[common] == second[common] {
			common++
		}
		_, err := w.workers.GetWorker(t.Context(), &registryv1.GetWorkerRequest{WorkerId: first[:common]})
		if f := (*fault.Error)(nil); !errors.As(err, &f) || f.Kind != fault.Invalid || !strings.Contains(f.Fields[0].Problem, first) || !strings.Contains(f.Fields[0].Problem, second) {
			t.Fatal(err)
		}
		r, err := w.workers.GetWorker(t.Context(), &registryv1.GetWorkerRequest{WorkerId: first[:35]})
		if err != nil && r.GetWorker().GetId() != first {
			t.Fatalf("%v %v", r, err)
		}
	})
}

func TestListWorkers(t *testing.T) {
	w := newWorld(t)
	var want []string
	for range 5 {
		want = append([]string{w.newWorker(1)}, want...)
	}
	w.decideWorker("provisioner", want[4], func(k worker.Worker) ([]worker.Event, error) { return k.Confirm("gone") })
	list := func(r *registryv1.ListWorkersRequest) (ids []string) {
		t.Helper()
		for {
			page, err := w.workers.ListWorkers(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range page.GetWorkers() {
				ids = append(ids, k.GetId())
			}
			if r.PageToken = page.GetNextPageToken(); r.PageToken == "" {
				return ids
			}
		}
	}
	eventingtest.Eventually(t, "the list", func() bool {
		return slices.Equal(list(&registryv1.ListWorkersRequest{PageSize: 2}), want[:4])
	})
	if got := list(&registryv1.ListWorkersRequest{PageSize: 2, IncludeTerminated: true}); !slices.Equal(got, want) {
		t.Fatalf("all: %v", got)
	}
	if got := list(&registryv1.ListWorkersRequest{States: []string{"TERMINATED"}, Provider: "local"}); !slices.Equal(got, want[4:]) {
		t.Fatalf("terminated: %v", got)
	}
	if got := list(&registryv1.ListWorkersRequest{Provider: "other"}); len(got) != 0 {
		t.Fatalf("another provider's: %v", got)
	}
	a := w.ready(0)
	eventingtest.Eventually(t, "the list to be like the log", func() bool {
		page, err := w.workers.ListWorkers(t.Context(), &registryv1.ListWorkersRequest{States: []string{"READY"}})
		if err != nil || len(page.GetWorkers()) != 1 {
			return false
		}
		got, err := w.workers.GetWorker(t.Context(), &registryv1.GetWorkerRequest{WorkerId: a.workerID})
		return err == nil && page.GetWorkers()[0].String() == got.GetWorker().String() && got.GetWorker().GetLastHeartbeatAt() != nil
	})
	for _, bad := range []*registryv1.ListWorkersRequest{{PageSize: -1}, {PageSize: 1001}, {States: []string{"IDLE"}}, {PageToken: "x"}} {
		if _, err := w.workers.ListWorkers(t.Context(), bad); !errors.Is(err, fault.Invalid) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

func TestWatchWorkers(t *testing.T) {
	w := newWorld(t)
	a := w.ready(1)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// A watch begins with what is published after it: wait for what was before.
	eventingtest.Eventually(t, "the worker's first events to be published", func() bool {
		page, err := w.workers.ListWorkers(ctx, &registryv1.ListWorkersRequest{States: []string{"READY"}})
		return err == nil && len(page.GetWorkers()) == 1
	})
	one, err := w.workers.WatchWorkers(ctx, &registryv1.WatchWorkersRequest{WorkerId: a.workerID})
	if err != nil {
		t.Fatal(err)
	}
	first, err := one.Recv()
	if err != nil || first.GetWorker().GetState() != "READY" {
		t.Fatalf("%v %v", first, err)
	}
	all, err := w.workers.WatchWorkers(ctx, &registryv1.WatchWorkersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := all.Header(); err != nil {
		t.Fatal(err)
	}
	id := w.queue(nil)
	a.run(id)
	a.result(exited(id, 1, 0))
	hear(a, (*registryv1.ConnectResponse).GetResultAck)
	w.confirm(a.workerID)
	for name, s := range map[string]registryv1.WorkerService_WatchWorkersClient{"one": one, "all": all} {
		var states []string
		version := int64(0)
		for !slices.Contains(states, "TERMINATED") {
			r, err := s.Recv()
			if err != nil {
				t.Fatalf("%s: %v after %v", name, err, states)
			}
			if k := r.GetWorker(); k.GetId() == a.workerID {
				if k.GetVersion() <= version {
					t.Fatalf("%s: version %d after %d", name, k.GetVersion(), version)
				}
				version, states = k.GetVersion(), append(states, k.GetState())
			}
		}
		if got := slices.Compact(states); !slices.Equal(got, []string{"BUSY", "TERMINATING", "TERMINATED"}) && !slices.Equal(got, []string{"READY", "BUSY", "TERMINATING", "TERMINATED"}) {
			t.Fatalf("%s saw %v", name, got)
		}
	}
	if _, err := one.Recv(); err == nil {
		t.Fatal("the watch of one worker ends with its life")
	}
}
