package watch_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"hodei.dev/libs/domain/deadletter"
	transport "hodei.dev/libs/eventing/deadletter"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/libs/service/letters"
)

// dies has a consumer of the service "board" give up on n events; it returns their letters.
func (w *world) dies(consumer string, n int) (ids []string) {
	w.t.Helper()
	for range n {
		e := event.Event{ID: event.NewID(), Type: "Fact", Version: 1, Position: 1, Stream: event.Stream{Type: "job", ID: event.NewID()}}
		e.Namespace, e.CorrelationID, e.Actor, e.Source = "default", "c", "service/test", "test"
		l := transport.Letter{Service: "board", Consumer: consumer, Event: &e, Position: 1, Error: "x"}
		if _, err := letters.New(w.store, "board").Record(w.t.Context(), l); err != nil {
			w.t.Fatal(err)
		}
		ids = append(ids, letters.ID(consumer, e.ID))
	}
	return ids
}

// settled has an operator give letters up.
func (w *world) settled(ids ...string) {
	w.t.Helper()
	for _, id := range ids {
		l, err := aggregate.LoadDeadLetter(w.t.Context(), w.store, id)
		if err != nil {
			w.t.Fatal(err)
		}
		facts, err := l.Discard("user/ann", "", false)
		if err != nil {
			w.t.Fatal(err)
		}
		meta := event.Meta{Source: "audit", Namespace: "default", Actor: "user/ann", CorrelationID: "c"}
		change, err := aggregate.DeadLetterChange[deadletter.Event](l, meta, facts)
		if err != nil {
			w.t.Fatal(err)
		}
		if _, err := w.store.Append(w.t.Context(), store.Append{Changes: []store.Change{change}}); err != nil {
			w.t.Fatal(err)
		}
	}
}

// An alert for each time that the open letters of a consumer reach the threshold:
// not one a letter, not one more after a restart, and another one after they fell
// below and rose again.
func TestDeadLettersThatGrowAreOneAlert(t *testing.T) {
	const raised, cleared = "DeadLetterAlertRaised", "DeadLetterAlertCleared"
	w := newWorld(t)
	look := func() { t.Helper(); w.looks(5 * time.Second) }
	few := w.dies("a", 2)
	look()
	w.has("a")
	w.dies("b", 2) // another consumer's count by themselves
	look()
	w.has("a")
	few = append(few, w.dies("a", 1)...)
	look()
	w.has("a", raised)
	w.dies("a", 1)
	look()
	w.begin() // a restart, or another replica
	w.dies("a", 1)
	look()
	w.has("a", raised)
	w.settled(few[:2]...)
	look()
	w.has("a", raised) // three are left
	w.begin()
	w.settled(few[2])
	look()
	w.has("a", raised, cleared)
	w.dies("a", 5)
	look()
	w.has("a", raised, cleared, raised)
	w.has("b")
	if n := strings.Count(w.logged.String(), "alert=true"); n != 2 {
		t.Errorf("%d alerts in the log:\n%s", n, w.logged.String())
	}
	if want := fmt.Sprintf("consumer=a service=board open=%d threshold=3 alert=true", 3); !strings.Contains(w.logged.String(), want) {
		t.Errorf("no %q in the log:\n%s", want, w.logged.String())
	}
}
