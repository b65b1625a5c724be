package scheduler_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/event"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

// pages reads a whole list; between is called after each page.
func (w *world) pages(in *schedulerv1.ListJobsRequest, between func()) []*schedulerv1.Job {
	w.t.Helper()
	var all []*schedulerv1.Job
	for {
		out, err := w.jobs.ListJobs(w.as(), in)
		if err != nil {
			w.t.Fatal(err)
		}
		all = append(all, out.GetJobs()...)
		if in.PageToken = out.GetNextPageToken(); in.PageToken == "" {
			return all
		}
		between()
	}
}

// Lists against a filter that is too simple to be wrong, in pages, while other
// jobs come.
func TestList(t *testing.T) {
	w := newWorld(t)
	rng := rand.New(rand.NewPCG(1, 2))
	var all []*schedulerv1.Job
	for i := range 80 {
		spec := &schedulerv1.JobSpec{
			Command: []string{"true"}, Namespace: []string{"default", "other"}[rng.IntN(2)], Id: fmt.Sprintf("%x%07d-0000-4000-8000-000000000000", rng.IntN(3)+10, i),
			Labels: map[string]string{},
		}
		for _, label := range []string{"team", "tier"} {
			if v := rng.IntN(3); v > 0 {
				spec.Labels[label] = fmt.Sprint(v)
			}
		}
		j := w.queue(spec)
		switch rng.IntN(3) {
		case 0:
			w.assign(j.GetId(), event.NewID())
		case 1:
			if _, err := w.jobs.CancelJob(w.as(), &schedulerv1.CancelJobRequest{JobId: j.GetId()}); err != nil {
				t.Fatal(err)
			}
		}
		all = append(all, w.get(j.GetId()))
	}
	slices.Reverse(all) // newest first
	w.settle()
	for n := range 120 {
		in := &schedulerv1.ListJobsRequest{PageSize: int32(1 + rng.IntN(30))}
		if rng.IntN(2) == 0 {
			in.States = [][]string{{"PENDING"}, {"assigned", "CANCELLED"}, {"RUNNING"}}[rng.IntN(3)]
		}
		if rng.IntN(2) == 0 {
			in.Namespace = "other"
		}
		if rng.IntN(2) == 0 {
			in.Labels = []map[string]string{{"team": "1"}, {"team": "1", "tier": "2"}, {"none": "x"}}[rng.IntN(3)]
		}
		if rng.IntN(3) == 0 {
			in.IdPrefix = []string{"a", "B000", "c0000-000"}[rng.IntN(3)]
		}
		if rng.IntN(3) == 0 {
			in.Since = all[len(all)-1-rng.IntN(len(all))].GetCreatedAt()
		}
		if rng.IntN(3) == 0 {
			in.Until = timestamppb.New(all[rng.IntN(len(all)/4)].GetCreatedAt().AsTime())
		}
		if in.Since != nil && in.Until != nil && !in.Since.AsTime().Before(in.Until.AsTime()) {
			continue
		}
		var want []string
		for _, j := range all {
			if listed(in, j) {
				want = append(want, j.GetId())
			}
		}
		arriving := 0
		query := fmt.Sprint(in)
		got := w.pages(in, func() {
			if arriving++; n%10 == 0 && arriving == 1 {
				w.queue(&schedulerv1.JobSpec{Command: []string{"late"}, Name: "late", Namespace: "late"})
			}
		})
		var ids []string
		for _, j := range got {
			if j.GetName() != "late" {
				ids = append(ids, j.GetId())
			}
			if j.GetSpec() != nil || j.GetAttempts() != nil {
				t.Errorf("a list shows a spec or attempts")
			}
		}
		if !slices.Equal(ids, want) {
			t.Fatalf("%s:\n got %d %v\nwant %d %v", query, len(ids), ids, len(want), want)
		}
	}
	// What the read model says is what the fold says.
	for _, j := range w.pages(&schedulerv1.ListJobsRequest{}, func() {}) {
		whole := w.get(j.GetId())
		whole.Spec, whole.Attempts, j.Version = nil, nil, whole.GetVersion() // notices move the version only
		if j.String() != whole.String() {
			t.Errorf("list %v\n get %v", j, whole)
		}
	}
}

func listed(in *schedulerv1.ListJobsRequest, j *schedulerv1.Job) bool {
	state := len(in.GetStates()) == 0
	for _, s := range in.GetStates() {
		state = state || strings.EqualFold(s, j.GetState())
	}
	created := j.GetCreatedAt().AsTime()
	labels := maps.Clone(j.GetLabels())
	if labels == nil {
		labels = map[string]string{}
	}
	for k, v := range in.GetLabels() {
		if labels[k] != v {
			return false
		}
	}
	return state && (in.GetNamespace() == "" || in.GetNamespace() == j.GetNamespace()) &&
		strings.HasPrefix(strings.ReplaceAll(j.GetId(), "-", ""), strings.ToLower(strings.ReplaceAll(in.GetIdPrefix(), "-", ""))) &&
		(in.GetSince() == nil || !created.Before(in.GetSince().AsTime())) && (in.GetUntil() == nil || created.Before(in.GetUntil().AsTime()))
}

func TestListRefusals(t *testing.T) {
	w := newWorld(t)
	for range 3 {
		w.queue(command("true"))
	}
	w.settle()
	out, err := w.jobs.ListJobs(w.as(), &schedulerv1.ListJobsRequest{PageSize: 1})
	if err != nil || out.GetNextPageToken() == "" {
		t.Fatal(out, err)
	}
	now := timestamppb.Now()
	for field, in := range map[string]*schedulerv1.ListJobsRequest{
		"states": {States: []string{"DONE"}}, "namespace": {Namespace: "A b"}, "page_size": {PageSize: 1001}, "id_prefix": {IdPrefix: "xyz"},
		"until": {Since: now, Until: now}, "page_token": {PageToken: "garbage"},
	} {
		if _, err := w.jobs.ListJobs(w.as(), in); !errors.Is(err, fault.Invalid) || !slices.Equal(fields(err), []string{field}) {
			t.Errorf("%s: %v", field, err)
		}
	}
	other := &schedulerv1.ListJobsRequest{PageSize: 1, Namespace: "other", PageToken: out.GetNextPageToken()}
	if _, err := w.jobs.ListJobs(w.as(), other); !slices.Equal(fields(err), []string{"page_token"}) {
		t.Errorf("a token of another list: %v", err)
	}
}
