package audit_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	auditv1 "hodei.dev/proto/hodei/audit/v1"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
	"hodei.dev/services/audit/internal/postgres"
)

var meta = event.Meta{Source: "scheduler", Actor: "user/ann", CorrelationID: "c-1"}

// Every event is in the audit log as it is in the log, whatever happens to the
// service and to NATS meanwhile: nothing twice, nothing left out.
func TestEveryEventOnce(t *testing.T) {
	w := newWorld(t)
	for i := range 300 {
		w.queued(event.NewID(), meta, job.Spec{Annotations: map[string]string{"note": "<ü> \" & more"}})
		switch i {
		case 50, 150:
			w.stop()
		case 100:
			w.start()
		case 200:
			w.nats.Restart()
			w.start()
		}
	}
	w.settle()
	log, err := w.store.Read(t.Context(), store.ReadOptions{Limit: 10_000})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), w.url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	rows, err := conn.Query(t.Context(), `SELECT position, event_id::text, data, digest, occurred_at FROM audit.log ORDER BY position`)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for ; rows.Next(); n++ {
		var e event.Event
		var data, digest []byte
		if err := rows.Scan(&e.Position, &e.ID, &data, &digest, &e.Time); err != nil {
			t.Fatal(err)
		}
		want := log[n]
		sum := sha256.Sum256(want.Data)
		if e.Position != want.Position || e.ID != want.ID || !bytes.Equal(data, want.Data) || !bytes.Equal(digest, sum[:]) || !e.Time.Equal(want.Time) {
			t.Fatalf("row %d is %d %s %s, want %d %s %s", n, e.Position, e.ID, data, want.Position, want.ID, want.Data)
		}
	}
	if err := rows.Err(); err != nil || n != len(log) || n != 600 {
		t.Fatalf("%d rows of %d: %v", n, len(log), err)
	}
	// SQL can look into the view.
	var note string
	if err := conn.QueryRow(t.Context(), `SELECT data -> 'spec' -> 'annotations' ->> 'note' FROM audit.events WHERE type = 'JobCreated' LIMIT 1`).Scan(&note); err != nil || note != "<ü> \" & more" {
		t.Errorf("the view says %q, %v", note, err)
	}
	out, err := w.stats.GetStatus(t.Context(), &platformv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if s := out.GetServices()[0]; s.GetFigures()["events"] != 600 || s.GetLag() != 0 || s.GetDeadLetters() != 0 || s.GetRole() != "active" {
		t.Errorf("status %v", s)
	}
}

// The audit log proves by itself that nothing is missing.
func TestGapIsAnError(t *testing.T) {
	w := newWorld(t)
	events := w.queued(event.NewID(), meta, job.Spec{})
	more := w.queued(event.NewID(), meta, job.Spec{})
	w.settle()
	w.stop()
	conn, err := pgx.Connect(t.Context(), w.url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	at := func(position int64) event.Event {
		e := more[1]
		e.Position = position
		return e
	}
	for name, batch := range map[string][]event.Event{
		"a hole before": {at(6)}, "a hole inside": {at(5), at(7)}, "once more": {events[1]}, "overlapping": {at(4), at(5)},
	} {
		err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error { return postgres.Apply(t.Context(), tx, batch) })
		var gap *postgres.GapError
		if !errors.As(err, &gap) || gap.Last < 4 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error { return postgres.Apply(t.Context(), tx, []event.Event{at(5)}) }); err != nil {
		t.Errorf("the next position: %v", err)
	}
}

func TestTrace(t *testing.T) {
	w := newWorld(t)
	id, worker := event.NewID(), event.NewID()
	meta := event.Meta{Source: "scheduler", Actor: "user/ann", CorrelationID: "the-story"}
	created := w.queued(id, meta, job.Spec{})
	assigned := w.decide(id, created[1].CausedBy("dispatcher"), func(j job.Job) ([]job.Event, error) {
		return j.Assign(event.NewID(), worker, 1, "it fits")
	})
	running := w.decide(id, assigned[0].CausedBy("registry"), func(j job.Job) ([]job.Event, error) { return j.Start(worker, j.Attempt) })
	w.decide(id, running[0].CausedBy("registry"), failed)
	w.queued(event.NewID(), event.Meta{Source: "scheduler", Actor: "user/bob", CorrelationID: "another"}, job.Spec{})
	w.settle()

	want := "0 JobCreated user/ann|0 JobQueued user/ann|1 JobAssigned service/dispatcher|2 JobStatusChanged service/registry|" +
		"3 JobExecutionError service/registry|3 JobStatusChanged service/registry"
	for name, in := range map[string]*auditv1.TraceEventsRequest{
		"by correlation": {CorrelationId: "the-story"}, "by job": {Aggregate: "job/" + id}, "by prefix": {Aggregate: "job/" + strings.ToUpper(id[:30])},
		"without dashes": {Aggregate: "job/" + strings.ReplaceAll(id, "-", "")},
	} {
		out, err := w.audit.TraceEvents(t.Context(), in)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var got []string
		for _, n := range out.GetNodes() {
			got = append(got, fmt.Sprintf("%d %s %s", n.GetDepth(), n.GetEvent().GetType(), n.GetEvent().GetActor()))
		}
		if strings.Join(got, "|") != want || out.GetCorrelationId() != "the-story" {
			t.Errorf("%s:\n got %s\nwant %s", name, strings.Join(got, "|"), want)
		}
	}
	for name, c := range map[string]struct {
		in   *auditv1.TraceEventsRequest
		want error
	}{
		"nothing":         {&auditv1.TraceEventsRequest{}, fault.Invalid},
		"both":            {&auditv1.TraceEventsRequest{CorrelationId: "a", Aggregate: "job/" + id}, fault.Invalid},
		"unknown":         {&auditv1.TraceEventsRequest{CorrelationId: "nope"}, fault.NotFound},
		"unknown job":     {&auditv1.TraceEventsRequest{Aggregate: "job/ffffffff"}, fault.NotFound},
		"unknown whole":   {&auditv1.TraceEventsRequest{Aggregate: "job/" + event.NewID()}, fault.NotFound},
		"no id":           {&auditv1.TraceEventsRequest{Aggregate: "job"}, fault.Invalid},
		"no such kind":    {&auditv1.TraceEventsRequest{Aggregate: "thing/" + id}, fault.Invalid},
		"not hexadecimal": {&auditv1.TraceEventsRequest{Aggregate: "job/xyz"}, fault.Invalid},
		"ambiguous":       {&auditv1.TraceEventsRequest{Aggregate: "job/" + id[:4]}, fault.Invalid},
	} {
		if _, err := w.audit.TraceEvents(t.Context(), c.in); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t)
	w.queued(event.NewID(), meta, job.Spec{})
	w.settle()
	first, err := w.audit.SearchEvents(t.Context(), &auditv1.SearchEventsRequest{PageSize: 1})
	if err != nil || first.GetNextPageToken() == "" {
		t.Fatal(first, err)
	}
	now := timestamppb.Now()
	for field, in := range map[string]*auditv1.SearchEventsRequest{
		"filter.types":          {Filter: &auditv1.EventFilter{Types: []string{"JobCreatd"}}},
		"filter.actor":          {Filter: &auditv1.EventFilter{Actor: "ann"}},
		"filter.aggregate":      {Filter: &auditv1.EventFilter{Aggregate: "jobs/1"}},
		"filter.correlation_id": {Filter: &auditv1.EventFilter{CorrelationId: "a b"}},
		"filter.until":          {Filter: &auditv1.EventFilter{Since: now, Until: now}},
		"page_size":             {PageSize: -1},
		"page_token":            {PageSize: 1, Ascending: true, PageToken: first.GetNextPageToken()},
	} {
		_, err := w.audit.SearchEvents(t.Context(), in)
		var e *fault.Error
		if !errors.As(err, &e) || e.Kind != fault.Invalid || len(e.Fields) != 1 || e.Fields[0].Name != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// An auditor may read, and nothing else.
func TestAuditorRole(t *testing.T) {
	w := newWorld(t)
	w.queued(event.NewID(), meta, job.Spec{})
	w.settle()
	conn, err := pgx.Connect(t.Context(), w.url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var there bool
	if err := conn.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'hodei_auditor')`).Scan(&there); err != nil || !there {
		t.Skip("the role was not made:", err)
	}
	if _, err := conn.Exec(t.Context(), `SET ROLE hodei_auditor`); err != nil {
		t.Fatal(err)
	}
	var n int
	if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM audit.events WHERE data -> 'spec' IS NOT NULL`).Scan(&n); err != nil || n != 1 {
		t.Errorf("an auditor sees %d, %v", n, err)
	}
	for _, sql := range []string{`DELETE FROM audit.log`, `UPDATE audit.log SET actor = 'x'`, `TRUNCATE audit.log`, `INSERT INTO audit.counts VALUES ('x', 1)`} {
		if _, err := conn.Exec(t.Context(), sql); err == nil {
			t.Errorf("an auditor may %s", sql)
		}
	}
}
