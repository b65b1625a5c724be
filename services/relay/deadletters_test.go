package relay_test

import (
	"net/http/httptest"
	"strings"
	"testing"

	"hodei.dev/libs/domain/deadletter"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/libs/service/letters"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
)

// unpublishable appends an event that no subject can have.
func (w *world) unpublishable() event.Event {
	w.t.Helper()
	facts, err := job.Create(job.Spec{Command: []string{"true"}}, "", "")
	if err != nil {
		w.t.Fatal(err)
	}
	meta := event.Meta{Source: "scheduler", Actor: "user/ann", CorrelationID: event.NewID()}
	change, err := aggregate.JobChange(job.Job{ID: event.NewID()}, meta, facts[:1])
	if err != nil {
		w.t.Fatal(err)
	}
	change.Namespace, change.Events[0].Namespace = "not a token", "not a token"
	events, err := w.store.Append(w.t.Context(), store.Append{Changes: []store.Change{change}})
	if err != nil {
		w.t.Fatal(err)
	}
	return events[0]
}

// says waits until the relay's status has so many open dead letters.
func (w *world) says(open int64) {
	w.t.Helper()
	eventingtest.Eventually(w.t, "the status", func() bool {
		out, err := w.status.GetStatus(w.t.Context(), &platformv1.GetStatusRequest{Examine: true})
		return err == nil && out.GetServices()[0].GetDeadLetters() == open
	})
}

// metrics is what the relay tells of itself in numbers.
func (w *world) metrics() string {
	w.t.Helper()
	answer := httptest.NewRecorder()
	w.tel.Metrics().ServeHTTP(answer, httptest.NewRequestWithContext(w.t.Context(), "GET", "/metrics", nil))
	return answer.Body.String()
}

// decide appends what an operator decides about a letter.
func (w *world) decide(id string, decide func(deadletter.Letter) ([]deadletter.Event, error)) {
	w.t.Helper()
	l, err := aggregate.LoadDeadLetter(w.t.Context(), w.store, id)
	if err != nil {
		w.t.Fatal(err)
	}
	facts, err := decide(l)
	if err != nil {
		w.t.Fatal(err)
	}
	change, err := aggregate.DeadLetterChange(l, event.Meta{Source: "audit", Namespace: "default", Actor: "user/ann", CorrelationID: "c"}, facts)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.store.Append(w.t.Context(), store.Append{Changes: []store.Change{change}}); err != nil {
		w.t.Fatal(err)
	}
}

// What nobody has looked at is told of; what an operator has settled is not.
func TestWhatCannotBePublishedIsToldOfUntilItIsSettled(t *testing.T) {
	w := newWorld(t)
	r := w.reader()
	w.says(0)
	e := w.unpublishable()
	w.says(1)
	w.decide(letters.ID("relay", e.ID), func(l deadletter.Letter) ([]deadletter.Event, error) { return l.Discard("user/ann", "seen", false) })
	w.says(0)
	r.has()
	if c := w.compare(false); len(c.GetFindings()) > 0 || c.GetCounts()["tombstone"] != 2 { // the event's and, in the same namespace, its letter's
		t.Errorf("%v\n%s", c, findings(c))
	}
}

// So many open letters are an alert: in the log, in the status, for the doctor and in
// the metrics, until they are settled.
func TestDeadLettersThatGrowAreAnAlert(t *testing.T) {
	w := newWorld(t)
	var ids []string
	for range 10 {
		ids = append(ids, letters.ID("relay", w.unpublishable().ID))
	}
	status := func() *platformv1.ServiceStatus {
		out, err := w.status.GetStatus(t.Context(), &platformv1.GetStatusRequest{Examine: true})
		if err != nil {
			t.Fatal(err)
		}
		return out.GetServices()[0]
	}
	eventingtest.Eventually(t, "the alert", func() bool { return len(w.events("DeadLetterAlertRaised")) == 1 })
	s := status()
	if s.GetProblems()["dead letters of relay"] != "10 are open, the alert is at 10" || s.GetFigures()["dead_letter_alerts"] != 1 || !s.GetReady() {
		t.Errorf("the status: %v", s)
	}
	if len(s.GetFindings()) != 1 || s.GetFindings()[0].GetCheck() != "dead letters" || s.GetFindings()[0].GetSeverity() != "error" {
		t.Errorf("the findings: %v", s.GetFindings())
	}
	if text := w.metrics(); !strings.Contains(text, `hodei_consumer_dead_letters_open{consumer="relay"`) {
		t.Errorf("no gauge in\n%s", text)
	}
	for _, id := range ids {
		w.decide(id, func(l deadletter.Letter) ([]deadletter.Event, error) { return l.Discard("user/ann", "seen", false) })
	}
	eventingtest.Eventually(t, "the end of the alert", func() bool { return len(w.events("DeadLetterAlertCleared")) == 1 })
	if s := status(); len(s.GetFindings()) > 0 || len(s.GetProblems()) > 0 || s.GetDeadLetters() != 0 {
		t.Errorf("afterwards: %v", s)
	}
	if text := w.metrics(); strings.Contains(text, "hodei_consumer_dead_letters_open{") {
		t.Errorf("the gauge stays:\n%s", text)
	}
}
