package scheduler_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/uuid"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/platform/config"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
	"hodei.dev/services/scheduler"
)

// try queues a job that has an id of its own.
func (w *world) try(namespace string) (*schedulerv1.QueueJobRequest, error) {
	spec := command("true")
	spec.Id, spec.Namespace = uuid.NewString(), namespace
	in := &schedulerv1.QueueJobRequest{Spec: spec}
	_, err := w.jobs.QueueJob(w.as(), in)
	return in, err
}

// full fails unless err says which limit is reached and when to come back.
func full(t *testing.T, err error, code string) {
	t.Helper()
	e, ok := errors.AsType[*fault.Error](err)
	if !ok || e.Kind != fault.Exhausted || e.Code != code || e.RetryAfter <= 0 || e.Advice == "" {
		t.Fatalf("%v (%+v), want %s", err, e, code)
	}
}

func (w *world) cancel(id string) {
	w.t.Helper()
	if _, err := w.jobs.CancelJob(w.as(), &schedulerv1.CancelJobRequest{JobId: id}); err != nil {
		w.t.Fatal(err)
	}
}

// TestAdmission: jobs that have not ended are limited, in all and by namespace, also right
// after a restart; what ends makes room; what was queued before is answered as ever.
func TestAdmission(t *testing.T) {
	w := limitedWorld(t, scheduler.Admission{MaxJobs: 5, MaxNamespaceJobs: 3, MaxIntakeBytes: config.Unlimited})
	var first *schedulerv1.QueueJobRequest
	for i := range 3 {
		in, err := w.try("a")
		if err != nil {
			t.Fatalf("job %d: %v", i, err)
		}
		first = in
	}
	_, err := w.try("a")
	full(t, err, "NAMESPACE_JOBS_LIMIT")
	head, err := w.store.Head(t.Context())
	if err != nil || head != 6 {
		t.Errorf("the refused job left something: position %d, %v", head, err)
	}
	for range 2 {
		if _, err := w.try("b"); err != nil {
			t.Fatal(err)
		}
	}
	_, err = w.try("b")
	full(t, err, "JOBS_LIMIT")

	again, err := w.jobs.QueueJob(w.as(), first)
	if err != nil || !again.GetExisted() {
		t.Errorf("a job that was queued before, sent again: %v, %v", again, err)
	}
	if other := command("false"); true {
		other.Id = first.GetSpec().GetId()
		if _, err := w.jobs.QueueJob(w.as(), &schedulerv1.QueueJobRequest{Spec: other}); !errors.Is(err, fault.AlreadyExists) {
			t.Errorf("its id for another job: %v", err)
		}
	}

	w.settle()
	w.stop()
	w.start()
	_, err = w.try("b")
	full(t, err, "JOBS_LIMIT")

	w.cancel(first.GetSpec().GetId())
	eventingtest.Eventually(t, "room for one more", func() bool { _, err := w.try("a"); return err == nil })
	_, err = w.try("a")
	full(t, err, "JOBS_LIMIT")
}

// TestAdmissionByKey: a lost answer is made up for by the idempotency key, however full it is.
func TestAdmissionByKey(t *testing.T) {
	w := limitedWorld(t, scheduler.Admission{MaxJobs: 1, MaxNamespaceJobs: config.Unlimited, MaxIntakeBytes: config.Unlimited})
	spec := command("true")
	spec.IdempotencyKey = "k"
	id := w.queue(spec).GetId()
	_, err := w.try("default")
	full(t, err, "JOBS_LIMIT")
	again, err := w.jobs.QueueJob(w.as(), &schedulerv1.QueueJobRequest{Spec: spec})
	if err != nil || !again.GetExisted() || again.GetJob().GetId() != id {
		t.Errorf("%v, %v", again, err)
	}
	w.cancel(id)
	eventingtest.Eventually(t, "room for a retry", func() bool {
		_, err := w.jobs.RetryJob(w.as(), &schedulerv1.RetryJobRequest{JobId: id})
		return err == nil
	})
	_, err = w.jobs.RetryJob(w.as(), &schedulerv1.RetryJobRequest{JobId: id})
	full(t, err, "JOBS_LIMIT")
}

// TestAdmissionOfABatch: those that there is room for are taken, the others are told so.
func TestAdmissionOfABatch(t *testing.T) {
	w := limitedWorld(t, scheduler.Admission{MaxJobs: 20, MaxNamespaceJobs: config.Unlimited, MaxIntakeBytes: 2000})
	stream, err := w.jobs.QueueJobs(w.as())
	if err != nil {
		t.Fatal(err)
	}
	var in schedulerv1.QueueJobsRequest
	for i := range 30 {
		spec := command("true")
		spec.Id, spec.Env = uuid.NewString(), map[string]string{"FILL": strings.Repeat("x", 400), "N": fmt.Sprint(i)}
		in.Specs = append(in.Specs, spec)
	}
	if err := stream.Send(&in); err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	out, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range out.GetResults() {
		taken := i < 20
		if (r.GetJobId() != "") != taken || (r.GetKind() == "exhausted") == taken || (r.GetRetryAfter() != "") == taken {
			t.Errorf("job %d: %v", i, r)
		}
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
}

func TestAdmissionConfig(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*scheduler.Admission)
		field  string
	}{
		"none": {func(a *scheduler.Admission) {
			a.MaxJobs, a.MaxNamespaceJobs, a.MaxIntakeBytes = config.Unlimited, config.Unlimited, config.Unlimited
		}, ""},
		"no jobs":     {func(a *scheduler.Admission) { a.MaxJobs = 0 }, "admission.max_jobs"},
		"none of one": {func(a *scheduler.Admission) { a.MaxNamespaceJobs = 0 }, "admission.max_namespace_jobs"},
		"no bytes":    {func(a *scheduler.Admission) { a.MaxIntakeBytes = 0 }, "admission.max_intake_bytes"},
	} {
		cfg := scheduler.Default()
		cfg.PostgresURL, cfg.NATSURL = "postgres:///x", "nats://x"
		c.change(&cfg.Admission)
		if got := strings.Join(fields(cfg.Validate()), " "); got != c.field {
			t.Errorf("%s: %q, want %q", name, got, c.field)
		}
	}
}
