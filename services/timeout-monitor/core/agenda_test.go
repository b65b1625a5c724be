package core_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"hodei.dev/services/timeout-monitor/core"
)

func TestAgendaIsInOrderAndForgetsNothingBeforeItsHorizon(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := core.NewAgenda(8)
		a.Extend(at(1000))
		want := map[string]core.Entry{}
		for version := range rapid.IntRange(0, 60).Draw(t, "steps") {
			id := fmt.Sprintf("a%d", rapid.IntRange(0, 30).Draw(t, "id"))
			if rapid.Bool().Draw(t, "remove") {
				a.Remove(id, version)
				delete(want, id)
				continue
			}
			e := core.Entry{Type: core.Job, ID: id, Version: version, Due: at(rapid.Float64Range(0, 1200).Draw(t, "due"))}
			a.Put(e)
			want[id] = e
			// What is older than what it knows comes late and changes nothing.
			if !e.Due.After(a.Horizon()) {
				a.Put(core.Entry{Type: core.Job, ID: id, Version: version - 1, Due: at(0)})
				a.Remove(id, version-1)
			}
		}
		var due []time.Time
		for _, e := range want {
			if !e.Due.After(a.Horizon()) {
				due = append(due, e.Due)
			}
		}
		slices.SortFunc(due, time.Time.Compare)
		if len(due) > a.Len() {
			t.Fatalf("%d deadlines up to the horizon, %d on the agenda", len(due), a.Len())
		}
		for i, d := range due {
			if next, _ := a.Next(); !next.Equal(d) {
				t.Fatalf("deadline %d is %s, want %s", i, next.Sub(t0), d.Sub(t0))
			}
			if _, early := a.Pop(d.Add(-1)); early {
				t.Fatal("popped before its time")
			}
			if e, ok := a.Pop(d); !ok || !e.Due.Equal(d) {
				t.Fatalf("popped %+v", e)
			}
		}
	})
}
