package eventlog_test

import (
	"reflect"
	"testing"
	"time"

	"hodei.dev/libs/domain/eventlog"
)

var (
	old   = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	fresh = old.Add(time.Hour)
)

// What the relay finds, and what is recorded of it.
func TestNotice(t *testing.T) {
	known := eventlog.Log{Version: 1, Stream: old}
	asked := known.Evolve(eventlog.EpochRequested{Reason: "the log ends at 80"}, 2, fresh)
	for _, c := range []struct {
		name string
		log  eventlog.Log
		s    eventlog.Stream
		want []eventlog.Event // nil: no news
	}{
		{"the first stream", eventlog.Log{}, eventlog.Stream{Created: old, LogHead: 7}, []eventlog.Event{
			eventlog.EpochStarted{Cause: "FIRST", Stream: old, LogHead: 7},
		}},
		{"a restart", known, eventlog.Stream{Created: old, Head: 90, Handled: 90, LogHead: 100}, nil},
		{"wiped", known, eventlog.Stream{Created: fresh, Base: 60, Head: 60, Before: 95, Handled: 90, LogHead: 100}, []eventlog.Event{
			eventlog.EpochStarted{Cause: "WIPED", Stream: fresh, Base: 60, LogHead: 100},
			eventlog.Republished{Cause: "WIPED", First: 61, Through: 95, Incidents: 1},
		}},
		{"wiped when all was handled", known, eventlog.Stream{Created: fresh, Base: 100, Head: 100, Handled: 100, LogHead: 100}, []eventlog.Event{
			eventlog.EpochStarted{Cause: "WIPED", Stream: fresh, Base: 100, LogHead: 100},
		}},
		{"the tail lost", known, eventlog.Stream{Created: old, Head: 70, Before: 95, Handled: 95, LogHead: 100}, []eventlog.Event{
			eventlog.Republished{Cause: "TAIL_LOST", First: 71, Through: 95, Incidents: 1},
		}},
		{"asked for: what the log has lost is not published again", asked, eventlog.Stream{Created: fresh, Base: 60, Head: 60, Before: 120, Handled: 70, LogHead: 80}, []eventlog.Event{
			eventlog.EpochStarted{Cause: "REQUESTED", Stream: fresh, Base: 60, LogHead: 80},
			eventlog.Republished{Cause: "REQUESTED", First: 61, Through: 80, Incidents: 1},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			i, news := c.log.Notice(c.s)
			if news != (c.want != nil) {
				t.Fatalf("news: %v", news)
			}
			if !news {
				return
			}
			if got := c.log.Record(i); !reflect.DeepEqual(got, c.want) {
				t.Errorf("recorded %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestMergedIncidentsAreOneRange(t *testing.T) {
	first := eventlog.Incident{Stream: eventlog.Stream{Created: old}, First: 50, Through: 60, Times: 1}
	second := eventlog.Incident{Stream: eventlog.Stream{Created: fresh}, First: 40, Through: 55, Times: 1}
	got := eventlog.Incident{}.Merge(first).Merge(second)
	if want := (eventlog.Incident{Stream: eventlog.Stream{Created: fresh}, First: 40, Through: 60, Times: 2}); got != want {
		t.Errorf("merged %+v, want %+v", got, want)
	}
}
