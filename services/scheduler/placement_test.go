package scheduler_test

import (
	"errors"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"hodei.dev/libs/domain/fault"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

// TestPlacementAndWhatIsForPeople: the fields come back as they were given, the log
// has them, and the same key with others is another job.
func TestPlacementAndWhatIsForPeople(t *testing.T) {
	w := newWorld(t)
	id := w.registerProvider("pool-a")
	asked := func(change func(*schedulerv1.JobSpec)) *schedulerv1.JobSpec {
		spec := command("true")
		spec.IdempotencyKey, spec.Description, spec.Tags = "k", "every night: größe", []string{"night run", "b"}
		spec.Placement = &schedulerv1.Placement{PreferredProvider: "pool-a", RequiredLabels: map[string]string{"zone": "a", "gpu": ""}}
		if change != nil {
			change(spec)
		}
		return spec
	}
	want := asked(nil)
	j := w.queue(asked(nil))
	w.settle()
	for _, got := range []*schedulerv1.JobSpec{j.GetSpec(), w.get(j.GetId()).GetSpec()} {
		if got.GetDescription() != want.GetDescription() || !slices.Equal(got.GetTags(), want.GetTags()) || !proto.Equal(got.GetPlacement(), want.GetPlacement()) {
			t.Errorf("got %v", got)
		}
	}
	again, err := w.jobs.QueueJob(w.as(), &schedulerv1.QueueJobRequest{Spec: asked(nil)})
	if err != nil || !again.GetExisted() || again.GetJob().GetId() != j.GetId() {
		t.Errorf("the same again: %v, %v", again, err)
	}
	for field, change := range map[string]func(*schedulerv1.JobSpec){
		"description": func(s *schedulerv1.JobSpec) { s.Description = "" },
		"tags":        func(s *schedulerv1.JobSpec) { s.Tags = s.GetTags()[:1] },
		"placement":   func(s *schedulerv1.JobSpec) { s.Placement.PreferredProvider = id },
	} {
		_, err := w.jobs.QueueJob(w.as(), &schedulerv1.QueueJobRequest{Spec: asked(change)})
		if got := fields(err); !errors.Is(err, fault.AlreadyExists) || !slices.Equal(got, []string{field}) {
			t.Errorf("another %s: %v", field, err)
		}
	}
}
