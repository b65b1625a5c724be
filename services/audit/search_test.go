package audit_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	auditv1 "hodei.dev/proto/hodei/audit/v1"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

// Searches and counts against a filter that is too simple to be wrong: any
// combination, in pages of any size, both ways, while other events arrive.
func TestSearch(t *testing.T) {
	w := newWorld(t)
	var ids []string
	for i := range 60 {
		id := fmt.Sprintf("%x0000000-0000-4000-8000-%012d", 10+i%4, i)
		ids = append(ids, id)
		meta := event.Meta{Source: "scheduler", Actor: []string{"user/ann", "user/bob"}[i%2], CorrelationID: fmt.Sprintf("c-%d", i%7)}
		events := w.queued(id, meta, job.Spec{Namespace: []string{"default", "other"}[i%3%2]})
		if i%3 == 0 {
			w.decide(id, events[1].CausedBy("dispatcher"), func(j job.Job) ([]job.Event, error) { return j.Assign(event.NewID(), event.NewID(), 1, "it fits") })
		}
		if i%6 == 0 {
			w.decide(id, events[1].CausedBy("registry"), func(j job.Job) ([]job.Event, error) { return j.Start(j.WorkerID, 1) })
			w.decide(id, events[1].CausedBy("registry"), failed)
		}
	}
	w.settle()
	log, err := w.store.Read(t.Context(), store.ReadOptions{Limit: 10_000})
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(rt *rapid.T) {
		in := &auditv1.SearchEventsRequest{
			Filter: filter(rt, ids, log), PageSize: int32(rapid.IntRange(0, 60).Draw(rt, "page size")), Ascending: rapid.Bool().Draw(rt, "ascending"),
		}
		var want []int64
		counts := map[string]int64{}
		for _, e := range log {
			if matches(in.GetFilter(), e) {
				want, counts[e.Type] = append(want, e.Position), counts[e.Type]+1
			}
		}
		if !in.GetAscending() {
			slices.Reverse(want)
		}
		if rapid.IntRange(0, 9).Draw(rt, "arriving") == 0 {
			w.queued(event.NewID(), event.Meta{Source: "late", Actor: "user/late", CorrelationID: "late"}, job.Spec{Namespace: "late"})
		}
		var got []int64
		for _, e := range w.search(rt, in) {
			if e.GetPosition() <= int64(len(log)) {
				got = append(got, e.GetPosition())
			}
		}
		if !slices.Equal(got, want) {
			rt.Fatalf("got %v\nwant %v", got, want)
		}
		out, err := w.audit.CountEvents(t.Context(), &auditv1.CountEventsRequest{Filter: bounded(in.GetFilter(), log)})
		if err != nil {
			rt.Fatal(err)
		}
		for eventType, n := range out.GetCounts() {
			if n != counts[eventType] {
				rt.Fatalf("%d %s, want %d", n, eventType, counts[eventType])
			}
		}
		if out.GetTotal() != int64(len(want)) {
			rt.Fatalf("%d in all, want %d", out.GetTotal(), len(want))
		}
	})
	w.settle()
	head, err := w.store.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// The counters that answer without a filter.
	out, err := w.audit.CountEvents(t.Context(), &auditv1.CountEventsRequest{})
	if err != nil || out.GetTotal() != head {
		t.Errorf("%d events of %d, %v", out.GetTotal(), head, err)
	}
}

// bounded leaves out what arrives while the test runs.
func bounded(f *auditv1.EventFilter, log []event.Event) *auditv1.EventFilter {
	out := proto.Clone(f).(*auditv1.EventFilter)
	if out.GetUntil() == nil {
		out.Until = timestamppb.New(log[len(log)-1].Time.Add(time.Microsecond))
	}
	return out
}

func (w *world) search(rt *rapid.T, in *auditv1.SearchEventsRequest) []*schedulerv1.Event {
	var all []*schedulerv1.Event
	for {
		out, err := w.audit.SearchEvents(w.t.Context(), in)
		if err != nil {
			rt.Fatal(err)
		}
		all = append(all, out.GetEvents()...)
		if in.PageToken = out.GetNextPageToken(); in.PageToken == "" {
			return all
		}
		if len(out.GetEvents()) == 0 {
			rt.Fatal("an empty page that is not the last")
		}
	}
}

func filter(rt *rapid.T, ids []string, log []event.Event) *auditv1.EventFilter {
	f := &auditv1.EventFilter{}
	maybe := func(what string) bool { return rapid.IntRange(0, 2).Draw(rt, what) == 0 }
	if maybe("by correlation") {
		f.CorrelationId = fmt.Sprintf("c-%d", rapid.IntRange(0, 8).Draw(rt, "correlation"))
	}
	if maybe("by type") {
		f.Types = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"JobCreated", "JobAssigned", "JobStatusChanged", "WorkerReady"}), 1, 3, rapid.ID[string]).Draw(rt, "types")
	}
	if maybe("by actor") {
		f.Actor = rapid.SampledFrom([]string{"user/ann", "service/dispatcher", "user/nobody"}).Draw(rt, "actor")
	}
	if maybe("by aggregate") {
		id := rapid.SampledFrom(ids).Draw(rt, "job")
		f.Aggregate = rapid.SampledFrom([]string{"job", "job/" + id, "job/" + strings.ToUpper(id), "worker"}).Draw(rt, "aggregate")
	}
	if maybe("by namespace") {
		f.Namespace = "other"
	}
	times := rapid.SampledFrom(log)
	if maybe("since") {
		f.Since = timestamppb.New(times.Draw(rt, "first").Time)
	}
	if maybe("until") {
		f.Until = timestamppb.New(times.Draw(rt, "last").Time.Add(time.Microsecond))
		if f.Since != nil && !f.Since.AsTime().Before(f.Until.AsTime()) {
			f.Since = nil
		}
	}
	return f
}

func matches(f *auditv1.EventFilter, e event.Event) bool {
	aggregate := strings.ToLower(f.GetAggregate())
	return (f.GetCorrelationId() == "" || f.GetCorrelationId() == e.CorrelationID) &&
		(len(f.GetTypes()) == 0 || slices.Contains(f.GetTypes(), e.Type)) &&
		(f.GetActor() == "" || f.GetActor() == e.Actor) &&
		(aggregate == "" || aggregate == e.Stream.Type || aggregate == e.Stream.String()) &&
		(f.GetNamespace() == "" || f.GetNamespace() == e.Namespace) &&
		(f.GetSince() == nil || !e.Time.Before(f.GetSince().AsTime())) &&
		(f.GetUntil() == nil || e.Time.Before(f.GetUntil().AsTime()))
}

func TestSearchByPrefix(t *testing.T) {
	w := newWorld(t)
	w.queued("abcd0000-0000-4000-8000-000000000001", meta, job.Spec{})
	w.queued("abce0000-0000-4000-8000-000000000001", meta, job.Spec{})
	w.settle()
	out, err := w.audit.SearchEvents(t.Context(), &auditv1.SearchEventsRequest{Filter: &auditv1.EventFilter{Aggregate: "job/ABCD"}})
	if err != nil || len(out.GetEvents()) != 2 || out.GetEvents()[0].GetType() != "JobQueued" {
		t.Errorf("got %v, %v", out, err)
	}
	for _, id := range []string{"job/abcf", "job/" + event.NewID(), "worker/abcd0000-0000-4000-8000-000000000001"} {
		in := &auditv1.SearchEventsRequest{Filter: &auditv1.EventFilter{Aggregate: id}}
		if _, err := w.audit.SearchEvents(t.Context(), in); !errors.Is(err, fault.NotFound) {
			t.Errorf("an unknown aggregate %s: %v", id, err)
		}
	}
	_, err = w.audit.SearchEvents(t.Context(), &auditv1.SearchEventsRequest{Filter: &auditv1.EventFilter{Aggregate: "job/abc"}})
	if err == nil || !strings.Contains(err.Error(), "at least 4") && !strings.Contains(fmt.Sprintf("%+v", err), "at least 4") {
		t.Errorf("a prefix that is too short: %v", err)
	}
}
