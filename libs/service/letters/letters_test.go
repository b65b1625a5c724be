package letters_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"hodei.dev/libs/domain/deadletter"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/service/letters"
)

// poisoned is a board where position 3 of ten of one job has failed, with another
// job beside it: 3, 5, 7, 9, ... are of the poisoned one.
func poisoned(t *testing.T) (*world, *board) {
	t.Helper()
	w := newWorld(t)
	b := w.board()
	b.poison(3)
	w.add(10, stream(), stream())
	return w, b
}

func TestReplayHandlesThePoisonAndWhatWaitedBehindIt(t *testing.T) {
	w, b := poisoned(t)
	w.background(b.Run)
	l := w.becomes("board", 3, deadletter.StateDead)
	b.reaches(10)
	if !l.Parks || l.Error != errPoison.Error() || l.Attempts != 5 || l.OriginalType != "Fact" || !slices.Equal(b.parked(), []int64{3, 5, 7, 9}) {
		t.Fatalf("%+v, parked %v", l, b.parked())
	}
	// Before the fix it fails again, and the rest goes on waiting.
	w.operator(l, replay)
	eventingtest.Eventually(t, "the replay to fail again", func() bool {
		l = w.letter("board", 3)
		return l.State == deadletter.StateDead && l.Replays == 1
	})
	if l.Attempts != 10 || !slices.Equal(b.seen(), []int64{1, 2, 4, 6, 8, 10}) {
		t.Fatalf("%+v, seen %v", l, b.seen())
	}
	b.poison()
	w.operator(l, replay)
	l = w.becomes("board", 3, deadletter.StateReplayed)
	if want := []int64{1, 2, 4, 6, 8, 10, 3, 5, 7, 9}; !slices.Equal(b.seen(), want) || l.Unparked != 3 || l.Replays != 2 || len(b.parked()) != 0 {
		t.Fatalf("%+v, seen %v, parked %v", l, b.seen(), b.parked())
	}
}

func TestReplayIsNotLostWhileTheServiceIsDown(t *testing.T) {
	w, b := poisoned(t)
	stop := w.background(b.Run)
	l := w.becomes("board", 3, deadletter.StateDead)
	b.reaches(10)
	stop()
	w.operator(l, replay)
	w.add(2, w.at(3).Stream)
	// The bus loses everything, also the letter's stream: the log has it.
	for _, name := range []string{bus.EventsStream, bus.DeadLetterStream("board")} {
		if err := w.js.DeleteStream(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	b.poison()
	b.Projection = b.instance()
	w.background(b.Run)
	w.becomes("board", 3, deadletter.StateReplayed)
	head := w.head()
	b.reaches(head - 1)
	eventingtest.Eventually(t, "all of it in order", func() bool {
		return slices.Equal(b.seen(), []int64{1, 2, 4, 6, 8, 10, 3, 5, 7, 9, 13, 14})
	})
}

// crashing is Letters whose process dies before a replay is answered.
type crashing struct {
	consumer.Letters
	crashes int
}

var errCrash = errors.New("crash")

func (c *crashing) Replayed(ctx context.Context, o consumer.Order, unparked int) error {
	if c.crashes > 0 {
		c.crashes--
		return consumer.Stop(errCrash)
	}
	return c.Letters.Replayed(ctx, o, unparked)
}

func TestACrashBetweenTheEffectAndItsAnswer(t *testing.T) {
	w, b := poisoned(t)
	b.letters = &crashing{Letters: b.letters, crashes: 1}
	b.Projection = b.instance()
	died := make(chan error, 1)
	run := b.Run
	go func() { died <- run(t.Context()) }()
	l := w.becomes("board", 3, deadletter.StateDead)
	b.reaches(10)
	b.poison()
	w.operator(l, replay)
	if err := <-died; !errors.Is(err, errCrash) {
		t.Fatal(err)
	}
	if l := w.letter("board", 3); l.State != deadletter.StateReplaying || len(b.seen()) != 10 { // the effect is there, the answer is not
		t.Fatalf("%+v, seen %v", l, b.seen())
	}
	b.Projection = b.instance()
	w.background(b.Run)
	w.becomes("board", 3, deadletter.StateReplayed)
	if want := []int64{1, 2, 4, 6, 8, 10, 3, 5, 7, 9}; !slices.Equal(b.seen(), want) {
		t.Fatal(b.seen())
	}
}

func TestAFollowerThatFailsIsALetterOfItsOwn(t *testing.T) {
	w, b := poisoned(t)
	w.background(b.Run)
	l := w.becomes("board", 3, deadletter.StateDead)
	b.reaches(10)
	b.poison(7)
	w.operator(l, replay)
	l = w.becomes("board", 3, deadletter.StateReplayed)
	next := w.becomes("board", 7, deadletter.StateDead)
	if l.Unparked != 1 || !next.Parks || !slices.Equal(b.parked(), []int64{7, 9}) || !slices.Equal(b.seen(), []int64{1, 2, 4, 6, 8, 10, 3, 5}) {
		t.Fatalf("%+v, %+v, parked %v, seen %v", l, next, b.parked(), b.seen())
	}
	w.operator(next, discard(false))
	w.becomes("board", 7, deadletter.StateDiscarded)
	eventingtest.Eventually(t, "what waited behind the discarded event", func() bool { return len(b.parked()) == 0 })
	if want := []int64{1, 2, 4, 6, 8, 10, 3, 5, 9}; !slices.Equal(b.seen(), want) {
		t.Fatal(b.seen())
	}
}

func TestDiscardWithWhatIsParked(t *testing.T) {
	w, b := poisoned(t)
	w.background(b.Run)
	l := w.becomes("board", 3, deadletter.StateDead)
	b.reaches(10)
	w.operator(l, discard(true))
	eventingtest.Eventually(t, "nothing parked", func() bool { return len(b.parked()) == 0 })
	for _, position := range []int64{5, 7, 9} {
		f := w.letter("board", position)
		if f.State != deadletter.StateDiscarded || f.By != "user/ana" || !strings.Contains(f.Reason, l.ID) || !strings.Contains(f.Reason, "hopeless") {
			t.Fatalf("%+v", f)
		}
	}
	w.add(1, w.at(3).Stream) // later events go on
	b.reaches(w.head())
	if got := b.seen(); !slices.Equal(got, []int64{1, 2, 4, 6, 8, 10, w.head()}) {
		t.Fatal(got)
	}
}

func TestARebuildKeepsWhatOperatorsDecided(t *testing.T) {
	w, b := poisoned(t)
	b.mu.Lock()
	b.fail = func(e event.Event) error {
		if e.Position == 3 && string(e.Data) == `{"n":2}` || e.Position == 6 {
			return errPoison
		}
		return nil
	}
	b.mu.Unlock()
	w.background(b.Run)
	three, six := w.becomes("board", 3, deadletter.StateDead), w.becomes("board", 6, deadletter.StateDead)
	b.reaches(10)
	w.operator(three, edited(`{"n": 42}`))
	w.operator(six, discard(false))
	w.becomes("board", 3, deadletter.StateReplayed)
	eventingtest.Eventually(t, "nothing parked", func() bool { return len(b.parked()) == 0 })
	if err := b.Rebuild(t.Context()); err != nil {
		t.Fatal(err)
	}
	var n int
	if err := w.store.Pool().QueryRow(t.Context(), `select n from board.seen where position = 3`).Scan(&n); err != nil || n != 42 {
		t.Fatal(n, err)
	}
	if want := []int64{1, 2, 3, 4, 5, 7, 8, 9, 10}; !slices.Equal(b.seen(), want) || len(b.parked()) != 0 {
		t.Fatalf("seen %v, parked %v", b.seen(), b.parked())
	}
	if e := w.at(3); string(e.Data) != `{"n":2}` {
		t.Fatalf("the log was changed: %s", e.Data)
	}
}

// TestAConsumerWithoutTables: one that begins with a snapshot hears of replays
// that were asked for before it began, each once.
func TestAConsumerWithoutTables(t *testing.T) {
	w := newWorld(t)
	if err := bus.Ensure(t.Context(), w.js, "reactor", 1); err != nil {
		t.Fatal(err)
	}
	handled := make(chan string, 100)
	broken := true
	reactor := func(after int64) *consumer.Consumer {
		c, err := consumer.New(consumer.Config{
			Service: "reactor", Types: []string{"Fact"}, Store: w.store, NC: w.nc, JS: w.js, Log: w.log, Letters: letters.New(w.store, "reactor"),
			Start: func(context.Context) (int64, error) { return after, nil },
			Handle: func(_ context.Context, events []event.Event) error {
				if broken && slices.ContainsFunc(events, func(e event.Event) bool { return e.Position == 2 }) {
					return consumer.Permanent(errPoison)
				}
				for _, e := range events {
					handled <- fmt.Sprintf("%d %s", e.Position, e.Data)
				}
				return nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	w.add(3, stream())
	stop := w.background(reactor(0).Run)
	l := w.becomes("reactor", 2, deadletter.StateDead)
	if l.Parks || l.Attempts != 1 {
		t.Fatalf("%+v", l)
	}
	for _, want := range []string{`1 {"n":0}`, `3 {"n":2}`} {
		if got := <-handled; got != want {
			t.Fatal(got)
		}
	}
	stop()
	w.operator(l, edited(`{"n": 7}`))
	broken = false
	stop = w.background(reactor(w.head()).Run) // after a snapshot that is newer than the request
	if got := <-handled; got != `2 {"n":7}` {
		t.Fatal(got)
	}
	w.becomes("reactor", 2, deadletter.StateReplayed)
	stop()
	w.background(reactor(0).Run) // sees the request again: it has been answered
	for _, want := range []string{`1 {"n":0}`, `2 {"n":1}`, `3 {"n":2}`} {
		if got := <-handled; got != want {
			t.Fatal(got)
		}
	}
	w.add(1, stream())
	if got := <-handled; !strings.HasPrefix(got, fmt.Sprint(w.head())) {
		t.Fatal(got)
	}
}

func TestNoLetterCausesALetter(t *testing.T) {
	w := newWorld(t)
	keep := letters.New(w.store, "relay")
	w.add(1, stream())
	if err := keep.Unpublishable(t.Context(), w.at(1), "too large"); err != nil {
		t.Fatal(err)
	}
	if err := keep.Unpublishable(t.Context(), w.at(1), "too large"); err != nil { // after a crash
		t.Fatal(err)
	}
	l := w.letter("relay", 1)
	if l.Kind != deadletter.KindUnpublishable || w.head() != 2 {
		t.Fatalf("%+v, head %d", l, w.head())
	}
	if err := keep.Unpublishable(t.Context(), w.at(2), "too large"); err != nil || w.head() != 2 {
		t.Fatal(err, w.head())
	}
}
