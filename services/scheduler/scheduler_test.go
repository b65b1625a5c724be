package scheduler_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/platform/call"
	"hodei.dev/libs/service/aggregate"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

func TestQueueAndGet(t *testing.T) {
	w := newWorld(t)
	ctx := call.With(t.Context(), call.Call{Actor: "user/ann", CorrelationID: "c-1"})
	out, err := w.jobs.QueueJob(ctx, &schedulerv1.QueueJobRequest{Spec: &schedulerv1.JobSpec{
		Command: []string{"sh", "-c", "true"}, Labels: map[string]string{"team": "a"}, Timeout: "30s",
	}})
	if err != nil {
		t.Fatal(err)
	}
	j := out.GetJob()
	if out.GetExisted() || j.GetState() != "PENDING" || j.GetNamespace() != "default" || j.GetName() != "sh" || j.GetQueuedBy() != "user/ann" ||
		j.GetCorrelationId() != "c-1" || j.GetSpec().GetTimeout() != "30s" || j.GetSpec().GetQueueTimeout() != "24h0m0s" || j.GetReason() != "waits in the queue" {
		t.Errorf("queued %v", j)
	}
	for _, id := range []string{j.GetId(), strings.ToUpper(j.GetId()), j.GetId()[:30]} {
		if got := w.get(id); got.GetId() != j.GetId() || got.GetVersion() != 2 || got.GetSpec().GetTimeout() != "30s" {
			t.Errorf("get %s: %v", id, got)
		}
	}
	history, err := w.jobs.GetJobHistory(ctx, &schedulerv1.GetJobHistoryRequest{JobId: j.GetId()})
	if err != nil {
		t.Fatal(err)
	}
	var types []string
	for _, e := range history.GetEvents() {
		types = append(types, e.GetType())
		if e.GetActor() != "user/ann" || e.GetCorrelationId() != "c-1" || e.GetAggregate() != "job/"+j.GetId() || e.GetSource() != "scheduler" {
			t.Errorf("event %v", e)
		}
	}
	if !slices.Equal(types, []string{"JobCreated", "JobQueued"}) {
		t.Errorf("history %v", types)
	}
}

func TestRefusalsNameEveryField(t *testing.T) {
	w := newWorld(t)
	_, err := w.jobs.QueueJob(w.as(), &schedulerv1.QueueJobRequest{Spec: &schedulerv1.JobSpec{
		Id: "nope", Namespace: "No", Timeout: "soon", QueueTimeout: "-1s", Priority: 5000, IdempotencyKey: strings.Repeat("k", 256),
		CorrelationId: "a b", Env: map[string]string{"1": "x"}, Retry: &schedulerv1.Retry{MaxAttempts: -1},
	}})
	want := []string{"command", "correlation_id", "env", "id", "idempotency_key", "namespace", "priority", "queue_timeout", "retry.max_attempts", "timeout"}
	if got := fields(err); !errors.Is(err, fault.Invalid) || !slices.Equal(got, want) {
		t.Errorf("fields %v, want %v (%v)", got, want, err)
	}
	_, err = w.jobs.QueueJob(w.as(), &schedulerv1.QueueJobRequest{Spec: &schedulerv1.JobSpec{Command: []string{"x"}, Timeout: "0s"}})
	if got := fields(err); !slices.Equal(got, []string{"timeout"}) {
		t.Errorf("an explicit zero timeout: %v", err)
	}
	_, err = w.jobs.QueueJob(w.as(), &schedulerv1.QueueJobRequest{Spec: &schedulerv1.JobSpec{
		Command: []string{"x"}, Placement: &schedulerv1.Placement{Provider: "nowhere"},
	}})
	if got := fields(err); !slices.Equal(got, []string{"placement.provider"}) {
		t.Errorf("an unknown provider: %v", err)
	}
	_, err = w.jobs.QueueJob(w.as(), &schedulerv1.QueueJobRequest{Spec: &schedulerv1.JobSpec{
		Command: []string{"x"}, Placement: &schedulerv1.Placement{Provider: "nowhere", PreferredProvider: "nowhere else"},
	}})
	if got := fields(err); !slices.Equal(got, []string{"placement.preferred_provider", "placement.provider"}) {
		t.Errorf("unknown providers: %v", err)
	}
	_, err = w.jobs.QueueJob(w.as(), &schedulerv1.QueueJobRequest{Spec: &schedulerv1.JobSpec{
		Command: []string{"x"}, Description: strings.Repeat("d", 4097), Tags: []string{"t", "t", "a\tb"},
		Placement: &schedulerv1.Placement{RequiredLabels: map[string]string{"-": ""}},
	}})
	if got := fields(err); !slices.Equal(got, []string{"description", "placement.required_labels", "tags[1]", "tags[2]"}) {
		t.Errorf("for people and placement: %v", err)
	}
	big := command("cat")
	big.Stdin = make([]byte, 300<<10)
	if _, err := w.jobs.QueueJob(w.as(), &schedulerv1.QueueJobRequest{Spec: big}); !slices.Equal(fields(err), []string{"spec"}) {
		t.Errorf("an oversized spec: %v", err)
	}
	if head, err := w.store.Head(t.Context()); err != nil || head != 0 {
		t.Errorf("refusals left %d events, %v", head, err)
	}
}

func fields(err error) []string {
	var e *fault.Error
	if !errors.As(err, &e) {
		return nil
	}
	var out []string
	for _, f := range e.Fields {
		out = append(out, f.Name)
	}
	slices.Sort(out)
	return out
}

func TestIdempotence(t *testing.T) {
	w := newWorld(t)
	id := event.NewID()
	first := command("true")
	first.Id, first.IdempotencyKey = id, "key-1"
	w.queue(first)

	for name, c := range map[string]struct {
		spec    *schedulerv1.JobSpec
		existed bool
		differ  []string
	}{
		"the same":            {&schedulerv1.JobSpec{Id: id, IdempotencyKey: "key-1", Command: []string{"true"}}, true, nil},
		"the id alone":        {&schedulerv1.JobSpec{Id: id, Command: []string{"true"}}, true, nil},
		"the key alone":       {&schedulerv1.JobSpec{IdempotencyKey: "key-1", Command: []string{"true"}, Timeout: "1h"}, true, nil},
		"another spec, id":    {&schedulerv1.JobSpec{Id: id, Name: "true", Command: []string{"false"}}, false, []string{"command"}},
		"another spec, key":   {&schedulerv1.JobSpec{IdempotencyKey: "key-1", Name: "true", Command: []string{"false"}, Priority: 3}, false, []string{"command", "priority"}},
		"another id":          {&schedulerv1.JobSpec{Id: event.NewID(), IdempotencyKey: "key-1", Command: []string{"true"}}, false, []string{"id"}},
		"another key":         {&schedulerv1.JobSpec{Id: id, IdempotencyKey: "key-2", Command: []string{"true"}}, false, []string{"idempotency_key"}},
		"another namespace":   {&schedulerv1.JobSpec{IdempotencyKey: "key-1", Namespace: "other", Command: []string{"true"}}, false, nil},
		"id, other namespace": {&schedulerv1.JobSpec{Id: id, Namespace: "other", Command: []string{"true"}}, false, []string{"namespace"}},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := w.jobs.QueueJob(w.as(), &schedulerv1.QueueJobRequest{Spec: c.spec})
			if c.differ != nil {
				if !errors.Is(err, fault.AlreadyExists) || !slices.Equal(fields(err), c.differ) {
					t.Errorf("got %v %v, want AlreadyExists naming %v", fields(err), err, c.differ)
				}
				return
			}
			if err != nil || out.GetExisted() != c.existed || c.existed && out.GetJob().GetId() != id {
				t.Errorf("existed %v, %v, job %s", out.GetExisted(), err, out.GetJob().GetId())
			}
		})
	}
}

func TestResolve(t *testing.T) {
	w := newWorld(t)
	for _, id := range []string{"aaaaaaaa-0000-4000-8000-000000000001", "aaaaaaaa-0000-4000-8000-000000000002", "bbbbbbbb-0000-4000-8000-000000000001"} {
		spec := command("true")
		spec.Id = id
		w.queue(spec)
	}
	for text, want := range map[string]error{
		"bbbb": nil, "bbbbbbbb-0000": nil, "aaaa": fault.Invalid, "bbb": fault.Invalid, "": fault.Invalid, "zzzz": fault.Invalid,
		"cccc": fault.NotFound, "cccccccc-0000-4000-8000-000000000001": fault.NotFound,
	} {
		_, err := w.jobs.GetJob(w.as(), &schedulerv1.GetJobRequest{JobId: text})
		if want == nil && err != nil || want != nil && !errors.Is(err, want) {
			t.Errorf("get %q: %v, want %v", text, err, want)
		}
		if text == "aaaa" && (!strings.Contains(err.Error(), "aaaaaaaa-0000-4000-8000-000000000001") || !strings.Contains(err.Error(), "000000000002")) {
			t.Errorf("an ambiguous prefix does not list its matches: %v", err)
		}
		if errors.Is(want, fault.NotFound) {
			var e *fault.Error
			if !errors.As(err, &e) || e.Advice == "" {
				t.Errorf("not found without advice: %v", err)
			}
		}
	}
}

func TestCancelAndRetry(t *testing.T) {
	w := newWorld(t)
	pending := w.queue(command("true"))
	out, err := w.jobs.CancelJob(w.as(), &schedulerv1.CancelJobRequest{JobId: pending.GetId(), Reason: "not needed"})
	if err != nil || out.GetJob().GetState() != "CANCELLED" || !strings.Contains(out.GetJob().GetReason(), "user/ann: not needed") {
		t.Errorf("cancel of a pending job: %v, %v", out.GetJob(), err)
	}
	if _, err := w.jobs.CancelJob(w.as(), &schedulerv1.CancelJobRequest{JobId: pending.GetId()}); !errors.Is(err, fault.Precondition) {
		t.Errorf("cancel of a cancelled job: %v", err)
	}

	worker := event.NewID()
	running := w.queue(command("sleep", "9"))
	w.assign(running.GetId(), worker)
	w.run(running.GetId(), worker)
	if _, err := w.jobs.RetryJob(w.as(), &schedulerv1.RetryJobRequest{JobId: running.GetId()}); !errors.Is(err, fault.Precondition) {
		t.Errorf("retry of a running job: %v", err)
	}
	for range 2 { // asking again changes nothing
		out, err := w.jobs.CancelJob(w.as(), &schedulerv1.CancelJobRequest{JobId: running.GetId()})
		if err != nil || out.GetJob().GetState() != "RUNNING" || !out.GetJob().GetCancelRequested() || out.GetJob().GetVersion() != 5 {
			t.Errorf("cancel of a running job: %v, %v", out.GetJob(), err)
		}
	}
	w.end(running.GetId(), worker, 3)
	old := w.get(running.GetId())
	if old.GetState() != "FAILED" || old.GetExitCode() != 3 || old.GetFailure().GetCategory() != "EXIT_CODE" ||
		!strings.Contains(old.GetAdvice(), "hodei job logs "+old.GetId()) || len(old.GetAttempts()) != 1 {
		t.Errorf("a failed job: %v", old)
	}
	ctx := call.With(t.Context(), call.Call{Actor: "user/bob", CorrelationID: "another"})
	again, err := w.jobs.RetryJob(ctx, &schedulerv1.RetryJobRequest{JobId: running.GetId()})
	if err != nil {
		t.Fatal(err)
	}
	if j := again.GetJob(); j.GetId() == old.GetId() || j.GetRetryOf() != old.GetId() || j.GetCorrelationId() != old.GetCorrelationId() ||
		j.GetQueuedBy() != "user/bob" || j.GetState() != "PENDING" || !slices.Equal(j.GetSpec().GetCommand(), []string{"sleep", "9"}) {
		t.Errorf("the retry: %v", j)
	}
}

func TestWords(t *testing.T) {
	w := newWorld(t)
	worker := event.NewID()
	j := w.queue(&schedulerv1.JobSpec{Command: []string{"true"}, Retry: &schedulerv1.Retry{MaxAttempts: 2}})
	w.decide(j.GetId(), func(j job.Job) ([]job.Event, error) { return j.Defer([]string{"p1: too small"}), nil })
	if got := w.get(j.GetId()); !strings.Contains(got.GetReason(), "p1: too small") || got.GetAdvice() == "" || len(got.GetDeferred()) != 1 {
		t.Errorf("deferred: %v", got)
	}
	w.decide(j.GetId(), func(j job.Job) ([]job.Event, error) { return j.Schedule(event.NewID(), worker, "cheapest") })
	if got := w.get(j.GetId()); !strings.Contains(got.GetReason(), worker) || got.GetDeferred() != nil {
		t.Errorf("scheduled: %v", got)
	}
	w.assign(j.GetId(), worker)
	w.run(j.GetId(), worker)
	w.end(j.GetId(), worker, 1) // one attempt left
	got := w.get(j.GetId())
	if got.GetState() != "PENDING" || got.GetNotBefore() == nil || !strings.Contains(got.GetReason(), "queued again (attempt 1 of 2 ended)") || got.GetExitCode() != 1 {
		t.Errorf("requeued: %v", got)
	}
}

func TestProviderIsKnownAtOnce(t *testing.T) {
	w := newWorld(t)
	id := w.registerProvider("pool-a")
	for _, name := range []string{"pool-a", id} {
		spec := command("true")
		spec.Placement = &schedulerv1.Placement{Provider: name}
		w.queue(spec)
	}
	w.settle()
	spec := command("true")
	spec.Placement = &schedulerv1.Placement{Provider: "pool-a"}
	w.queue(spec)
	w.removeProvider(id)
	w.settle()
	if _, err := w.jobs.QueueJob(w.as(), &schedulerv1.QueueJobRequest{Spec: spec}); !slices.Equal(fields(err), []string{"placement.provider"}) {
		t.Errorf("a removed provider: %v", err)
	}
}

func TestStatusAndQueue(t *testing.T) {
	w := newWorld(t)
	a := w.queue(command("true"))
	w.queue(&schedulerv1.JobSpec{Command: []string{"true"}, Namespace: "other"})
	w.assign(a.GetId(), event.NewID())
	w.settle()
	for namespace, want := range map[string]map[string]int64{
		"": {"PENDING": 1, "ASSIGNED": 1}, "default": {"ASSIGNED": 1}, "other": {"PENDING": 1}, "none": {},
	} {
		out, err := w.jobs.GetQueue(w.as(), &schedulerv1.GetQueueRequest{Namespace: namespace})
		if err != nil {
			t.Fatal(err)
		}
		if len(out.GetJobs()) != len(job.Transitions.States) {
			t.Errorf("not every state is there: %v", out.GetJobs())
		}
		for state, n := range out.GetJobs() {
			if n != want[state] {
				t.Errorf("namespace %q: %d %s, want %d", namespace, n, state, want[state])
			}
		}
	}
	out, err := w.stats.GetStatus(t.Context(), &platformv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	s := out.GetServices()[0]
	if s.GetFigures()["queue_depth"] != 1 || s.GetFigures()["in_flight"] != 1 || s.GetLag() != 0 || s.GetRole() != "active" || !s.GetReady() {
		t.Errorf("status %v", s)
	}
}

// The read model goes on where it stopped: nothing twice, nothing left out.
func TestRestart(t *testing.T) {
	w := newWorld(t)
	var ids []string
	for i := range 60 {
		ids = append(ids, w.queue(command("true")).GetId())
		if i == 20 || i == 40 {
			w.stop()
			for _, id := range ids[i-10 : i] {
				w.assign(id, event.NewID())
			}
			if i == 40 {
				w.nats.Restart()
			}
			w.start()
		}
	}
	w.settle()
	out, err := w.jobs.GetQueue(w.as(), &schedulerv1.GetQueueRequest{})
	if err != nil || out.GetJobs()["PENDING"] != 40 || out.GetJobs()["ASSIGNED"] != 20 {
		t.Errorf("counters %v, %v", out.GetJobs(), err)
	}
	list, err := w.jobs.ListJobs(w.as(), &schedulerv1.ListJobsRequest{})
	if err != nil || len(list.GetJobs()) != 60 {
		t.Errorf("%d jobs, %v", len(list.GetJobs()), err)
	}
	eventingtest.Eventually(t, "readiness", func() bool {
		out, err := w.stats.GetStatus(t.Context(), &platformv1.GetStatusRequest{})
		return err == nil && out.GetServices()[0].GetReady()
	})
}

// An event that nobody can read parks its own job and no other, and is seen.
func TestPoisonedEvent(t *testing.T) {
	w := newWorld(t)
	bad, good := w.queue(command("true")).GetId(), w.queue(command("true")).GetId()
	e := event.Event{
		Meta: event.Meta{Source: "dispatcher", Actor: "service/dispatcher", CorrelationID: "c"}, ID: event.NewID(),
		Type: "JobAssigned", Version: 99, Data: []byte(`{"of":"the future"}`),
	}
	change := store.Change{Stream: aggregate.JobStream(bad), Namespace: "default", Expected: 2, State: "ASSIGNED", Events: []event.Event{e}}
	if _, err := w.store.Append(t.Context(), store.Append{Changes: []store.Change{change}}); err != nil {
		t.Fatal(err)
	}
	w.assign(good, event.NewID())
	w.settle()
	out, err := w.stats.GetStatus(t.Context(), &platformv1.GetStatusRequest{})
	if err != nil || out.GetServices()[0].GetDeadLetters() != 1 {
		t.Errorf("status %v, %v", out, err)
	}
	counts, err := w.jobs.GetQueue(w.as(), &schedulerv1.GetQueueRequest{})
	if err != nil || counts.GetJobs()["ASSIGNED"] != 1 || counts.GetJobs()["PENDING"] != 1 {
		t.Errorf("counters %v, %v", counts, err)
	}
}

func BenchmarkQueueJob(b *testing.B) {
	w := newWorld(b)
	spec := &schedulerv1.JobSpec{Name: "bench", Command: []string{"true"}, Labels: map[string]string{"a": "b"}}
	b.SetParallelism(16) // of two processors: 32 callers
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := w.jobs.QueueJob(w.as(), &schedulerv1.QueueJobRequest{Spec: spec}); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
}
