package scheduler_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/event"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

// TestRetryPolicy: a policy comes back whole and with its defaults, another one is
// another job, and a retry of the job has the same.
func TestRetryPolicy(t *testing.T) {
	w := newWorld(t)
	policy := func() *schedulerv1.Retry {
		return &schedulerv1.Retry{
			MaxAttempts: 3, On: []string{"TIMEOUT", "EXIT_CODE"},
			Backoff: &schedulerv1.Backoff{Initial: "10s", Factor: proto.Float64(3), Jitter: proto.Float64(0)},
		}
	}
	asked := func(change func(*schedulerv1.Retry)) *schedulerv1.QueueJobRequest {
		spec := command("true")
		spec.IdempotencyKey, spec.Retry = "k", policy()
		if change != nil {
			change(spec.GetRetry())
		}
		return &schedulerv1.QueueJobRequest{Spec: spec}
	}
	id := w.queue(asked(nil).GetSpec()).GetId()
	got := w.get(id).GetSpec().GetRetry()
	want := policy()
	want.InfrastructureAttempts = proto.Int32(3)
	want.On = []string{"EXIT_CODE", "TIMEOUT", "WORKER_LOST", "DISPATCH_FAILED", "PROVISIONING_FAILED", "INFRASTRUCTURE"}
	want.Backoff.Max = "1m0s"
	if !proto.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	again, err := w.jobs.QueueJob(w.as(), asked(func(r *schedulerv1.Retry) { r.On, r.Backoff.Max = []string{"EXIT_CODE", "TIMEOUT", "TIMEOUT"}, "60s" }))
	if err != nil || !again.GetExisted() {
		t.Errorf("the same in other words: %v, %v", again, err)
	}
	_, err = w.jobs.QueueJob(w.as(), asked(func(r *schedulerv1.Retry) { r.Backoff.Jitter = nil }))
	if !errors.Is(err, fault.AlreadyExists) || !slices.Equal(fields(err), []string{"retry"}) {
		t.Errorf("another jitter: %v", err)
	}
	if _, err := w.jobs.CancelJob(w.as(), &schedulerv1.CancelJobRequest{JobId: id}); err != nil {
		t.Fatal(err)
	}
	retried, err := w.jobs.RetryJob(w.as(), &schedulerv1.RetryJobRequest{JobId: id})
	if err != nil || !proto.Equal(retried.GetJob().GetSpec().GetRetry(), want) {
		t.Errorf("the retry: %v, %v", retried.GetJob().GetSpec().GetRetry(), err)
	}

	none := w.queue(&schedulerv1.JobSpec{Command: []string{"x"}, Retry: &schedulerv1.Retry{Backoff: &schedulerv1.Backoff{Jitter: proto.Float64(0)}}})
	if b := none.GetSpec().GetRetry().GetBackoff(); b.GetInitial() != "1s" || b.GetFactor() != 2 || b.Jitter == nil || b.GetJitter() != 0 {
		t.Errorf("no jitter, and the rest by default: %v", b)
	}
}

func TestRetryPolicyIsRefusedFieldByField(t *testing.T) {
	w := newWorld(t)
	_, err := w.jobs.QueueJob(w.as(), &schedulerv1.QueueJobRequest{Spec: &schedulerv1.JobSpec{
		Command: []string{"x"}, Retry: &schedulerv1.Retry{
			MaxAttempts: 101, On: []string{"CANCELLED"},
			Backoff: &schedulerv1.Backoff{Initial: "soon", Factor: proto.Float64(0), Max: "25h", Jitter: proto.Float64(2)},
		},
	}})
	want := []string{"retry.backoff.factor", "retry.backoff.initial", "retry.backoff.jitter", "retry.backoff.max", "retry.max_attempts", "retry.on"}
	if got := fields(err); !errors.Is(err, fault.Invalid) || !slices.Equal(got, want) {
		t.Errorf("fields %v, want %v (%v)", got, want, err)
	}
	_, err = w.jobs.QueueJob(w.as(), &schedulerv1.QueueJobRequest{Spec: &schedulerv1.JobSpec{
		Command: []string{"x"}, Retry: &schedulerv1.Retry{On: []string{"EXIT_CODE"}},
	}})
	if got := fields(err); !slices.Equal(got, []string{"retry.on"}) {
		t.Errorf("a category without a budget: %v", err)
	}
}

// TestEveryAttemptKeepsItsEnd: what comes later overwrites no earlier attempt, and a
// job that waits for its next one says until when.
func TestEveryAttemptKeepsItsEnd(t *testing.T) {
	w := newWorld(t)
	spec := command("false")
	spec.Retry = &schedulerv1.Retry{MaxAttempts: 3, Backoff: &schedulerv1.Backoff{Initial: "1h", Max: "24h", Jitter: proto.Float64(0)}}
	id := w.queue(spec).GetId()
	var ends []*schedulerv1.Attempt
	for n := int32(1); n <= 3; n++ {
		worker := event.NewID()
		w.assign(id, worker)
		w.run(id, worker)
		w.end(id, worker, int(10*n))
		j := w.get(id)
		if j.GetAttemptsEnded() != n || j.GetAttemptsLost() != 0 || len(j.GetAttempts()) != int(n) {
			t.Fatalf("after attempt %d: %v", n, j)
		}
		for i, end := range ends {
			if !proto.Equal(j.GetAttempts()[i], end) {
				t.Errorf("attempt %d was overwritten by attempt %d:\n%v\n%v", i+1, n, end, j.GetAttempts()[i])
			}
		}
		end := j.GetAttempts()[n-1]
		if end.GetNumber() != n || end.GetWorkerId() != worker || end.GetExitCode() != 10*n || end.GetFailure().GetCategory() != "EXIT_CODE" || end.GetFinishedAt() == nil {
			t.Errorf("attempt %d: %v", n, end)
		}
		ends = append(ends, end)
		if n == 3 {
			if j.GetState() != "FAILED" || j.GetNotBefore() != nil {
				t.Errorf("%v", j)
			}
			break
		}
		wait := time.Until(j.GetNotBefore().AsTime())
		if most := time.Duration(n) * time.Hour; j.GetState() != "PENDING" || wait > most || wait < most-time.Minute {
			t.Errorf("after attempt %d it is %s and waits for %s", n, j.GetState(), wait)
		}
	}
}

// TestARepeatedRetryIsTheSame: who lost the answer of a retry asks again under the same
// id, and gets the first one.
func TestARepeatedRetryIsTheSame(t *testing.T) {
	w := newWorld(t)
	old, other := w.queue(command("true")).GetId(), w.queue(command("true")).GetId()
	w.cancel(old)
	w.cancel(other)
	in := &schedulerv1.RetryJobRequest{JobId: old, NewJobId: event.NewID()}
	first, err := w.jobs.RetryJob(w.as(), in)
	if err != nil || first.GetExisted() || first.GetJob().GetId() != in.GetNewJobId() {
		t.Fatalf("%v, %v", first, err)
	}
	head, err := w.store.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	again, err := w.jobs.RetryJob(w.as(), in)
	if err != nil || !again.GetExisted() || again.GetJob().GetId() != in.GetNewJobId() || again.GetJob().GetRetryOf() != old {
		t.Errorf("%v, %v", again, err)
	}
	_, err = w.jobs.RetryJob(w.as(), &schedulerv1.RetryJobRequest{JobId: other, NewJobId: in.GetNewJobId()})
	if !errors.Is(err, fault.AlreadyExists) || !slices.Equal(fields(err), []string{"retry_of"}) {
		t.Errorf("the id of another job's retry: %v", err)
	}
	_, err = w.jobs.RetryJob(w.as(), &schedulerv1.RetryJobRequest{JobId: old, NewJobId: "nope"})
	if !slices.Equal(fields(err), []string{"new_job_id"}) {
		t.Errorf("no UUID: %v", err)
	}
	if now, err := w.store.Head(t.Context()); err != nil || now != head {
		t.Errorf("position %d after %d: a repeated retry is another job (%v)", now, head, err)
	}
}
