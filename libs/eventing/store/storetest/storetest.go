// Package storetest is what every event log must do, as tests: run it against
// each implementation. What only Postgres can suffer (lost connections, restarts)
// is tested where Postgres is.
package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
)

// Log is what is tested; *store.Store is one.
type Log interface {
	store.Appender
	Load(ctx context.Context, stream event.Stream, after int) ([]event.Event, error)
	Read(ctx context.Context, o store.ReadOptions) ([]event.Event, error)
	Head(ctx context.Context) (int64, error)
	LookupKey(ctx context.Context, namespace, kind, value string) (store.Key, bool, error)
	FindStreams(ctx context.Context, streamType, idPrefix string, limit int) ([]store.StreamRow, error)
	Snapshot(ctx context.Context, o store.SnapshotOptions, fn func(event.Event) error) (int64, error)
	Exclusive(ctx context.Context, name string, onWait func(err error), fn func(ctx context.Context) error) error
}

// Open returns two doors, as of two processes, to one new and empty log.
type Open func(t *testing.T) (a, b Log)

// Run runs the suite; each test opens a log of its own.
func Run(t *testing.T, open Open) {
	t.Helper()
	for _, test := range []struct {
		name string
		run  func(t *testing.T, a, b Log)
	}{
		{"an append is completed, loaded and read as it was given", testRoundTrip},
		{"an append spans streams or does not happen", testSpans},
		{"a conflict names stream and versions", testConflict},
		{"one of many wins each version", testRace},
		{"a conflict spares others in the same commit", testSpares},
		{"keys belong to the first", testKeys},
		{"a repeated append gets its first answer", testRepeat},
		{"what is not valid is refused with the field's name", testInvalid},
		{"positions are contiguous and a follower misses nothing", testFollow},
		{"streams are found by a prefix of the id", testFind},
		{"a snapshot is of one moment", testSnapshot},
		{"state is kept, replaced and ended", testState},
		{"an ended context ends an append", testEndedContext},
		{"one at a time is exclusive", testExclusive},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			a, b := open(t)
			test.run(t, a, b)
		})
	}
}

// Fact is an event's data in tests.
type Fact struct {
	Type string `json:"-"`
	N    int    `json:"n"`
	Text string `json:"text,omitempty"`
}

// EventType returns the fact's type.
func (f Fact) EventType() string { return f.Type }

// EventVersion returns 1.
func (Fact) EventVersion() int { return 1 }

// NewStream names a new stream.
func NewStream(streamType string) event.Stream {
	return event.Stream{Type: streamType, ID: event.NewID()}
}

// NewEvent makes an event of a stream.
func NewEvent(tb testing.TB, stream event.Stream, fact Fact) event.Event {
	tb.Helper()
	e, err := event.New(stream, event.Meta{
		Source: "storetest", Namespace: "default", CorrelationID: "correlation", CausationID: "cause",
		Actor: "service/storetest", TraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", TraceState: "k=v",
	}, fact)
	if err != nil {
		tb.Fatal(err)
	}
	return e
}

// NewChange makes a change with n events of type "Happened".
func NewChange(tb testing.TB, stream event.Stream, expected, n int) store.Change {
	tb.Helper()
	c := store.Change{Stream: stream, Namespace: "default", Expected: expected, State: "OPEN"}
	for i := range n {
		c.Events = append(c.Events, NewEvent(tb, stream, Fact{Type: "Happened", N: expected + 1 + i}))
	}
	return c
}

// One is an append of a single change.
func One(c store.Change) store.Append { return store.Append{Changes: []store.Change{c}} }

func appended(t *testing.T, l Log, a store.Append) []event.Event {
	t.Helper()
	events, err := l.Append(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	return events
}

func loaded(t *testing.T, l Log, stream event.Stream, after int) []event.Event {
	t.Helper()
	events, err := l.Load(t.Context(), stream, after)
	if err != nil {
		t.Fatal(err)
	}
	return events
}

func headOf(t *testing.T, l Log) int64 {
	t.Helper()
	head, err := l.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return head
}

func testRoundTrip(t *testing.T, a, b Log) {
	t.Helper()
	if head := headOf(t, a); head != 0 {
		t.Fatalf("an empty log has head %d", head)
	}
	stream := NewStream("job")
	change := NewChange(t, stream, 0, 3)
	// Bytes that a parser would change: order, blanks, escapes, digits.
	change.Events[1].Data = json.RawMessage(" {\"b\" : 1.0,\t\"a\":\"\\u00e9é\\ud83d\\ude00\", \"a\":1e3 }\n")
	change.Events[2].Namespace = "other"
	before := time.Now().Add(-time.Minute)
	got := appended(t, a, One(change))
	want := change.Events
	for i := range want {
		want[i].Position, want[i].StreamVersion, want[i].Time = int64(i+1), i+1, got[0].Time
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("appended (-want +got):\n%s", diff)
	}
	if got[0].Time.Before(before) || got[0].Time.After(time.Now().Add(time.Minute)) || got[0].Time.Location() != time.UTC {
		t.Errorf("the time is %v", got[0].Time)
	}
	if diff := cmp.Diff(want, loaded(t, b, stream, 0)); diff != "" {
		t.Errorf("loaded (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want[1:], loaded(t, b, stream, 1)); diff != "" {
		t.Errorf("loaded after 1 (-want +got):\n%s", diff)
	}
	for _, none := range []event.Stream{NewStream("job"), {Type: "worker", ID: stream.ID}} {
		if events := loaded(t, b, none, 0); len(events) != 0 {
			t.Errorf("%s has %d events", none, len(events))
		}
	}
	for _, test := range []struct {
		options store.ReadOptions
		want    []event.Event
	}{
		{store.ReadOptions{}, want},
		{store.ReadOptions{After: 1}, want[1:]},
		{store.ReadOptions{After: 1, Through: 2}, want[1:2]},
		{store.ReadOptions{Limit: 2}, want[:2]},
		{store.ReadOptions{Types: []string{"Happened", "Else"}, Limit: 1}, want[:1]},
		{store.ReadOptions{Types: []string{"Else"}}, nil},
		{store.ReadOptions{After: 3}, nil},
	} {
		events, err := b.Read(t.Context(), test.options)
		if err != nil {
			t.Fatal(err)
		}
		if len(events) != len(test.want) || len(events) > 0 && cmp.Diff(test.want, events) != "" {
			t.Errorf("read %+v: %s", test.options, cmp.Diff(test.want, events))
		}
	}
}

func testSpans(t *testing.T, a, b Log) {
	t.Helper()
	job, worker := NewStream("job"), NewStream("worker")
	appended(t, a, One(NewChange(t, worker, 0, 2)))
	both := store.Append{Changes: []store.Change{NewChange(t, job, 0, 2), NewChange(t, worker, 2, 1)}}
	got := appended(t, b, both)
	var positions []int64
	for _, e := range got {
		positions = append(positions, e.Position)
	}
	if diff := cmp.Diff([]int64{3, 4, 5}, positions); diff != "" {
		t.Error(diff)
	}
	// The second change is wrong: the first must not happen.
	half := store.Append{Changes: []store.Change{NewChange(t, NewStream("job"), 0, 1), NewChange(t, worker, 2, 1)}}
	if _, err := a.Append(t.Context(), half); !errors.Is(err, fault.Conflict) {
		t.Fatalf("got %v, want a conflict", err)
	}
	if events := loaded(t, a, half.Changes[0].Stream, 0); len(events) != 0 || headOf(t, a) != 5 {
		t.Errorf("half an append happened: %v", events)
	}
	if got := appended(t, a, One(half.Changes[0])); got[0].Position != 6 {
		t.Errorf("position %d after a refused append, want 6", got[0].Position)
	}
}

func testConflict(t *testing.T, a, b Log) {
	t.Helper()
	stream := NewStream("job")
	appended(t, a, One(NewChange(t, stream, 0, 2)))
	for _, expected := range []int{0, 1, 3} {
		_, err := b.Append(t.Context(), One(NewChange(t, stream, expected, 1)))
		var conflict *store.ConflictError
		if !errors.As(err, &conflict) || !errors.Is(err, fault.Conflict) {
			t.Fatalf("expected %d: got %v, want a conflict", expected, err)
		}
		if diff := cmp.Diff(&store.ConflictError{Stream: stream, Expected: expected, Actual: 2}, conflict); diff != "" {
			t.Error(diff)
		}
	}
	// One id is one stream, whatever its type.
	other := event.Stream{Type: "worker", ID: stream.ID}
	for _, expected := range []int{0, 2} {
		if _, err := a.Append(t.Context(), One(NewChange(t, other, expected, 1))); !errors.Is(err, fault.Conflict) {
			t.Errorf("another type of the same id at %d: %v", expected, err)
		}
	}
	if headOf(t, a) != 2 {
		t.Error("a refused append left something")
	}
}

func testKeys(t *testing.T, a, b Log) {
	t.Helper()
	first := NewStream("job")
	key := store.Key{Namespace: "default", Kind: "idempotency", Value: "order 66", Stream: first, Digest: []byte{1, 2}}
	appended(t, a, store.Append{Changes: []store.Change{NewChange(t, first, 0, 1)}, Keys: []store.Key{key}})
	got, ok, err := b.LookupKey(t.Context(), "default", "idempotency", "order 66")
	if err != nil || !ok {
		t.Fatalf("%v, %v", ok, err)
	}
	if diff := cmp.Diff(key, got); diff != "" {
		t.Error(diff)
	}
	if _, ok, err := b.LookupKey(t.Context(), "default", "idempotency", "order 67"); ok || err != nil {
		t.Errorf("a key that nobody took: %v, %v", ok, err)
	}
	second := NewStream("job")
	again := key
	again.Stream, again.Digest = second, []byte{3}
	free := store.Key{Namespace: "default", Kind: "client id", Value: "order 66", Stream: second}
	_, err = b.Append(t.Context(), store.Append{Changes: []store.Change{NewChange(t, second, 0, 1)}, Keys: []store.Key{free, again}})
	var taken *store.KeyTakenError
	if !errors.As(err, &taken) || !errors.Is(err, fault.AlreadyExists) {
		t.Fatalf("got %v, want a taken key", err)
	}
	if diff := cmp.Diff(key, taken.Key); diff != "" {
		t.Error(diff)
	}
	if _, ok, _ := a.LookupKey(t.Context(), "default", "client id", "order 66"); ok {
		t.Error("a refused append took a key")
	}
	again.Namespace = "other"
	appended(t, b, store.Append{Changes: []store.Change{NewChange(t, second, 0, 1)}, Keys: []store.Key{free, again}})
}

func testRepeat(t *testing.T, a, b Log) {
	t.Helper()
	job, worker := NewStream("job"), NewStream("worker")
	both := store.Append{
		Changes: []store.Change{NewChange(t, job, 0, 2), NewChange(t, worker, 0, 1)},
		Keys:    []store.Key{{Namespace: "default", Kind: "k", Value: "v", Stream: job}},
	}
	first := appended(t, a, both)
	appended(t, a, One(NewChange(t, job, 2, 1)))
	for _, l := range []Log{a, b} {
		if diff := cmp.Diff(first, appended(t, l, both)); diff != "" {
			t.Errorf("the second answer differs (-first +second):\n%s", diff)
		}
	}
	// Part of it, with something new, is not the same append.
	mixed := store.Append{Changes: []store.Change{both.Changes[1], NewChange(t, NewStream("job"), 0, 1)}}
	if _, err := a.Append(t.Context(), mixed); !errors.Is(err, fault.Conflict) {
		t.Errorf("got %v, want a conflict", err)
	}
	// Many at once, at both doors: one happens, all get its answer.
	same := One(NewChange(t, worker, 1, 2))
	answers := make(chan string, 16)
	for i := range cap(answers) {
		go func() {
			events, err := []Log{a, b}[i%2].Append(t.Context(), same)
			if err != nil {
				answers <- err.Error()
				return
			}
			answers <- fmt.Sprint(events[0].Position, events[1].Position, events[1].StreamVersion, events[1].Time)
		}()
	}
	answer := <-answers
	for range cap(answers) - 1 {
		if other := <-answers; other != answer {
			t.Errorf("answers differ: %s and %s", answer, other)
		}
	}
	if head := headOf(t, a); head != 6 {
		t.Errorf("the head is %d, want 6", head)
	}
}
