package consumer_test

import (
	"testing"
	"time"

	"hodei.dev/libs/domain/consumer"
	"hodei.dev/libs/domain/unit"
)

func TestOnePairAnIncident(t *testing.T) {
	began := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	i := consumer.Incident{Reason: "silent", Since: began, Position: 7, Through: 9, FromLog: 2, Count: 3, Ended: began.Add(time.Minute)}
	var all []string
	c := consumer.Consumer{Service: "audit", Name: "audit"}
	apply := func(events []consumer.Event) {
		for _, e := range events {
			to := consumer.StateFollowing
			if _, ok := e.(consumer.Stalled); ok {
				to = consumer.StateStalled
			}
			if name, ok := consumer.Transitions.Event(c.State, to); !ok || name != e.EventType() {
				t.Errorf("%s from %q to %s is not in the table", e.EventType(), c.State, to)
			}
			c = c.Evolve(e, c.Version+1)
			all = append(all, e.EventType())
		}
	}
	apply(c.Recover(i)) // was never stalled
	apply(c.Stall(i))
	apply(c.Stall(i)) // seen by somebody else as well
	apply(c.Mend(i))  // the consumer itself reports the end
	apply(c.Recover(i))
	apply(c.Mend(i)) // the next one, too short for anybody else to see
	want := []string{"ConsumerStalled", "ConsumerRecovered", "ConsumerStalled", "ConsumerRecovered"}
	if len(all) != len(want) {
		t.Fatalf("got %v, want %v", all, want)
	}
	for n := range want {
		if all[n] != want[n] {
			t.Fatalf("got %v, want %v", all, want)
		}
	}
	last := c.Mend(i)[1].(consumer.Recovered)
	if last.Took != unit.Duration(time.Minute) || last.FromLog != 2 || last.Incidents != 3 || last.Position != 9 {
		t.Errorf("got %+v", last)
	}
}
