package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
)

// testRace has many compete for the versions of one stream.
func testRace(t *testing.T, a, b Log) {
	t.Helper()
	const racers, rounds = 16, 10
	stream := NewStream("job")
	for round := range rounds {
		var won, lost atomic.Int32
		var all sync.WaitGroup
		for i := range racers {
			change := NewChange(t, stream, round, 1)
			all.Go(func() {
				switch _, err := []Log{a, b}[i%2].Append(t.Context(), One(change)); {
				case err == nil:
					won.Add(1)
				case errors.Is(err, fault.Conflict):
					lost.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		all.Wait()
		if won.Load() != 1 || lost.Load() != racers-1 {
			t.Fatalf("round %d: %d won, %d lost", round, won.Load(), lost.Load())
		}
	}
	if events := loaded(t, a, stream, 0); len(events) != rounds {
		t.Errorf("%d events, want %d", len(events), rounds)
	}
}

// testSpares mixes appends that must fail with others that must not.
func testSpares(t *testing.T, a, _ Log) {
	t.Helper()
	taken := NewStream("job")
	appended(t, a, store.Append{
		Changes: []store.Change{NewChange(t, taken, 0, 1)},
		Keys:    []store.Key{{Namespace: "default", Kind: "k", Value: "taken", Stream: taken}},
	})
	const n = 90
	var all sync.WaitGroup
	for i := range n {
		fresh := NewStream("job")
		ap, want := One(NewChange(t, fresh, 0, 1)), error(nil)
		switch i % 3 {
		case 1:
			ap.Changes = append(ap.Changes, NewChange(t, taken, 5, 1))
			want = fault.Conflict
		case 2:
			ap.Keys = []store.Key{{Namespace: "default", Kind: "k", Value: "taken", Stream: fresh}}
			want = fault.AlreadyExists
		}
		all.Go(func() {
			if _, err := a.Append(t.Context(), ap); !errors.Is(err, want) {
				t.Errorf("append %d: got %v, want %v", i, err, want)
			}
		})
	}
	all.Wait()
	if head := headOf(t, a); head != 1+n/3 {
		t.Errorf("the head is %d, want %d", head, 1+n/3)
	}
}

// testFollow has many writers at two doors and readers that follow the log: what
// they see must be every position, in order, once.
func testFollow(t *testing.T, a, b Log) {
	t.Helper()
	const writers, appends, perAppend = 48, 15, 2
	const total = writers * appends * perAppend
	var all sync.WaitGroup
	for _, l := range []Log{a, b} {
		all.Go(func() { follow(t, l, total) })
	}
	for w := range writers {
		l, stream := []Log{a, b}[w%2], NewStream("job")
		var changes []store.Change
		for i := range appends {
			changes = append(changes, NewChange(t, stream, i*perAppend, perAppend))
		}
		all.Go(func() {
			last := int64(0)
			for _, c := range changes {
				events, err := l.Append(t.Context(), One(c))
				if err != nil {
					t.Error(err)
					return
				}
				if events[0].Position <= last || events[1].Position != events[0].Position+1 {
					t.Errorf("positions %d, %d after %d", events[0].Position, events[1].Position, last)
				}
				last = events[1].Position
			}
		})
	}
	all.Wait()
}

func follow(t *testing.T, l Log, total int) {
	t.Helper()
	cursor, versions := int64(0), map[event.Stream]int{}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for cursor < int64(total) {
		events, err := l.Read(ctx, store.ReadOptions{After: cursor, Limit: 100})
		if err != nil {
			t.Error(err)
			return
		}
		for _, e := range events {
			if e.Position != cursor+1 || e.StreamVersion != versions[e.Stream]+1 {
				t.Errorf("position %d after %d, version %d of %s after %d", e.Position, cursor, e.StreamVersion, e.Stream, versions[e.Stream])
				return
			}
			cursor, versions[e.Stream] = e.Position, e.StreamVersion
		}
	}
}

// testSnapshot moves streams in pairs, so that a snapshot between the two halves
// of an append would show.
func testSnapshot(t *testing.T, a, b Log) {
	t.Helper()
	left, right, done := NewStream("job"), NewStream("worker"), NewStream("job")
	end := NewChange(t, done, 0, 1)
	end.Terminal = true
	first := []store.Change{NewChange(t, left, 0, 1), NewChange(t, right, 0, 1), end}
	appended(t, a, store.Append{Changes: first})
	writing, stop := context.WithCancel(t.Context())
	var writer sync.WaitGroup
	writer.Go(func() {
		for v := 1; writing.Err() == nil; v++ {
			if _, err := b.Append(t.Context(), store.Append{Changes: []store.Change{NewChange(t, left, v, 1), NewChange(t, right, v, 1)}}); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 10 {
		versions, last := map[event.Stream]int{}, int64(0)
		head, err := a.Snapshot(t.Context(), store.SnapshotOptions{}, func(e event.Event) error {
			if e.Position <= last || e.StreamVersion != versions[e.Stream]+1 {
				t.Errorf("position %d after %d, version %d after %d", e.Position, last, e.StreamVersion, versions[e.Stream])
			}
			versions[e.Stream], last = e.StreamVersion, e.Position
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if versions[left] != versions[right] || versions[left] == 0 || versions[done] != 0 {
			t.Errorf("the snapshot has %d and %d events, and %d of what has ended", versions[left], versions[right], versions[done])
		}
		if want := int64(versions[left]+versions[right]) + 1; head != want || last > head {
			t.Errorf("the snapshot's position is %d, want %d", head, want)
		}
	}
	stop()
	writer.Wait()
	count := 0
	_, err := a.Snapshot(t.Context(), store.SnapshotOptions{StreamTypes: []string{"worker"}, EventTypes: []string{"Happened"}}, func(e event.Event) error {
		if count++; e.Stream != right {
			t.Errorf("an event of %s", e.Stream)
		}
		return nil
	})
	if err != nil || count == 0 {
		t.Errorf("%d events, %v", count, err)
	}
	broken := errors.New("broken")
	if _, err := a.Snapshot(t.Context(), store.SnapshotOptions{}, func(event.Event) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("got %v, want fn's error", err)
	}
}

func testEndedContext(t *testing.T, a, _ Log) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Append(ctx, One(NewChange(t, NewStream("job"), 0, 1))); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if headOf(t, a) != 0 {
		t.Error("an append without a caller happened")
	}
}

func testExclusive(t *testing.T, a, b Log) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var inside atomic.Int32
	enter := func() error {
		if inside.Add(1) != 1 {
			return fmt.Errorf("two are inside")
		}
		return nil
	}
	firstIn, waits, leave := make(chan struct{}), make(chan struct{}), make(chan struct{})
	results := make(chan error, 2)
	done := errors.New("done")
	go func() {
		results <- a.Exclusive(ctx, "role", nil, func(context.Context) error {
			defer inside.Add(-1)
			close(firstIn)
			if err := enter(); err != nil {
				return err
			}
			<-leave
			return done
		})
	}()
	<-firstIn
	// Another name is another matter.
	if err := b.Exclusive(ctx, "other", nil, func(context.Context) error { return nil }); err != nil {
		t.Error(err)
	}
	go func() {
		results <- b.Exclusive(ctx, "role", func(error) { close(waits) }, func(context.Context) error {
			defer inside.Add(-1)
			if err := enter(); err != nil {
				return err
			}
			return done
		})
	}()
	<-waits
	close(leave)
	for range 2 {
		if err := <-results; !errors.Is(err, done) {
			t.Errorf("got %v, want fn's error", err)
		}
	}
	// Its context's end ends who waits and who is inside.
	held := make(chan struct{})
	ending, end := context.WithCancel(ctx)
	go func() {
		results <- a.Exclusive(ending, "role", nil, func(ctx context.Context) error {
			close(held)
			<-ctx.Done()
			return ctx.Err()
		})
	}()
	<-held
	go func() {
		results <- b.Exclusive(ending, "role", func(error) { end() }, func(context.Context) error { return errors.New("got in") })
	}()
	for range 2 {
		if err := <-results; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want canceled", err)
		}
	}
}
