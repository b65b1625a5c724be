package letters_test

import (
	"maps"
	"testing"

	"hodei.dev/libs/domain/deadletter"
	transport "hodei.dev/libs/eventing/deadletter"
	"hodei.dev/libs/service/letters"
)

// A tally that has followed and one that begins count the same, whatever became of
// the letters.
func TestTheTallyCountsWhatIsOpen(t *testing.T) {
	w := newWorld(t)
	w.add(6, stream())
	record := func(consumer string, position int64, replayed bool) {
		t.Helper()
		e := w.at(position)
		l := transport.Letter{Service: "board", Consumer: consumer, Event: &e, Position: position, Error: "x", Replayed: replayed}
		if _, err := letters.New(w.store, "board").Record(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	a, b := letters.Holder{Service: "board", Consumer: "a"}, letters.Holder{Service: "board", Consumer: "b"}
	followed := letters.NewTally(w.store)
	for _, step := range []struct {
		name string
		do   func()
		want map[letters.Holder]int
	}{
		{"nothing", func() {}, map[letters.Holder]int{}},
		{"two consumers", func() { record("a", 1, false); record("a", 2, false); record("b", 2, false) }, map[letters.Holder]int{a: 2, b: 1}},
		{"the same once more", func() { record("a", 1, false) }, map[letters.Holder]int{a: 2, b: 1}},
		{"a replay that is asked for is open", func() { w.operator(w.letter("a", 1), replay) }, map[letters.Holder]int{a: 2, b: 1}},
		{"a replay that fails", func() { record("a", 1, true) }, map[letters.Holder]int{a: 2, b: 1}},
		{"a discard", func() { w.operator(w.letter("b", 2), discard(false)) }, map[letters.Holder]int{a: 2}},
		{"a replay that succeeds", func() {
			w.operator(w.letter("a", 1), replay)
			w.operator(w.letter("a", 1), func(l deadletter.Letter) ([]deadletter.Event, error) { return l.Succeed(0) })
		}, map[letters.Holder]int{a: 1}},
		{"a rebuild that meets it again", func() { record("a", 1, false) }, map[letters.Holder]int{a: 2}},
	} {
		step.do()
		for name, tally := range map[string]*letters.Tally{"followed": followed, "new": letters.NewTally(w.store)} {
			if got, err := tally.Count(t.Context()); err != nil || !maps.Equal(got, step.want) {
				t.Errorf("%s: %s: got %v, %v, want %v", step.name, name, got, err, step.want)
			}
		}
	}
}
